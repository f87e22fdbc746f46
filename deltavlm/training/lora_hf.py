"""LoRA adapter of a vision-language model hf:...: its chats in plain words, and its batches.

Standard questions are asked in the words of the phrasebook `generic`, with answers in the form which it asks
for; all others in the words of their record.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import AnswerParseError, ConfigError, InputError
from deltavlm.model.chat_turns import chat_turns
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.huggingface.chat_model import ChatModel, chat_text, read_chats
from deltavlm.model.huggingface.loading import load_chat_model
from deltavlm.model.huggingface.source import parse
from deltavlm.model.interface import PairContext, Question, standard_question
from deltavlm.scoring.inference import PairExamples
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.phrasing import GENERIC
from deltavlm.training.config import TrainConfig
from deltavlm.training.lora import (
    AdapterTarget,
    Balance,
    Chat,
    ChatBatch,
    ChatSample,
    add_adapter,
    decoder_layers,
)


class ChatModelTarget(AdapterTarget):
    """A model hf:... that an adapter is trained for."""

    model: ChatModel

    def chats(self, pair: PairExamples) -> list[Chat]:
        return pair_chats(pair)

    def collate(self, samples: Sequence[ChatSample], balance: Balance) -> ChatBatch:
        return collate_chats(self.model, samples, balance)

    def validation_copy(self, device: str) -> ChatModelTarget:
        processor = copy.deepcopy(self.model.processor)
        model = replace(self.model, processor=processor, device=device, pads=device != "cpu", tokens={})
        return replace(self, model=model)


def load_target(config: TrainConfig) -> ChatModelTarget:
    """Load the model with a new adapter. Raises: ConfigError, InputError, ModelError."""
    reference, adapter = parse(config.model)
    if adapter is not None:
        raise ConfigError(f"model {config.model} has an adapter already; give the model alone")
    model = load_chat_model(config.model, RuntimeOptions(device="cpu", dtype=config.language_dtype))
    if model.always_reasons:
        raise InputError(
            f"the chat template of {model.name} begins every answer with reasoning, which no set has;"
            " give a model that answers at once"
        )
    parents = (decoder_layers(model.model),)  # the vision encoder stays as it is
    return ChatModelTarget(model, add_adapter(config, model.model, parents, reference.name))


def pair_chats(pair: PairExamples) -> list[Chat]:
    """Chats about a pair: one for each turn, and for each reference answer of it.

    Counts and cells are one question; without the other of both, a record keeps its own words.
    """
    values: dict[TaskName, list[Any]] = {}
    for example in pair.examples:
        values.setdefault(example.task, []).extend(_values(example.task, example.turns[0].answers))
    known = {task: found[0] for task, found in values.items() if found}
    chats: list[Chat] = []
    for example in pair.examples:
        history: tuple[tuple[str, str], ...] = ()
        for turn in example.turns:
            is_standard = len(example.turns) == 1 and turn.question == TASKS[example.task].prompt
            for answer in turn.answers:
                chat = _standard_chat(example.task, answer, known) if is_standard else None
                if chat is None:
                    chat = Chat(Question(example.task, turn.question, history=history), answer)
                if not chat.question.schema or chat not in chats:
                    chats.append(chat)
            history += ((turn.question, turn.answers[0]),)
    return chats


def _standard_chat(task: TaskName, answer: str, known: Mapping[TaskName, Any]) -> Chat | None:
    """Chat in the words of the phrasebook; None if the answer cannot be written in its form."""
    phrase = GENERIC.phrase(task)
    reply = next((phrase.write({**known, task: value}) for value in _values(task, (answer,))), None)
    return None if reply is None else Chat(standard_question(TASKS[task], phrase=phrase), reply)


def _values(task: TaskName, answers: Sequence[str]) -> Iterator[Any]:
    """Values of the answers to a standard question, those left out that cannot be read."""
    for answer in answers if task in GENERIC.phrases else ():
        try:
            yield TASKS[task].parse(answer)
        except AnswerParseError:
            continue


def collate_chats(model: ChatModel, samples: Sequence[ChatSample], balance: Balance) -> ChatBatch:
    """Inputs and labels of chats, as the processor makes them.

    Raises: ModelError if the processor cannot read a chat.
    """
    processor, images = model.processor, [list(sample.images) for sample in samples]
    asked = [chat_text(processor, chat_turns(PairContext(), sample.chat.question)) for sample in samples]
    texts = [
        text + answer_text(processor, text, sample.chat) for text, sample in zip(asked, samples, strict=True)
    ]

    def read(texts: list[str]) -> Mapping[str, Any]:
        return read_chats(processor, texts, images, padding_side="right", name=model.name)

    inputs, beginnings = read(texts), read(asked)
    labels = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    for row, ids in enumerate(inputs["input_ids"]):
        length = int(inputs["attention_mask"][row].sum())
        asked_length = int(beginnings["attention_mask"][row].sum())
        same = ids[:asked_length] == beginnings["input_ids"][row, :asked_length]
        start = asked_length if bool(same.all()) else int(same.int().argmin())  # a token across the border
        labels[row, start:length] = ids[start:length]
    dtype = model.model.dtype
    tensors = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    return ChatBatch.of(tensors, labels, balance)


def answer_text(processor: Any, asked: str, chat: Chat) -> str:
    """Answer and the token that ends it, as the chat template writes them after `asked`."""
    turns = chat_turns(PairContext(), chat.question)
    answered = {"role": "assistant", "content": [{"type": "text", "text": chat.answer}]}
    whole = chat_text(processor, [*turns, answered], asks=False)
    before, answer, after = whole.rpartition(chat.answer)
    written = f"{before}{answer}" if answer else ""
    blanks = len(after) - len(after.lstrip())
    specials = (token for token in processor.tokenizer.all_special_tokens if after[blanks:].startswith(token))
    end: str = max(specials, key=len, default=processor.tokenizer.eos_token)
    # some templates write something else before an answer that is given, such as its reasoning
    return (written[len(asked) :] if written.startswith(asked) else chat.answer) + end
