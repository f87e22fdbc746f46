"""LoRA adapter of a checkpoint of kind changechat: chats of a set, their loss, and the adapter folder.

    model without adapter -> `train` -> adapter_config.json, adapter_model.safetensors
      -> `weights convert --kind changechat --adapter` merges it

Questions and answers are in the words of ChangeChat-87k, as the model is asked. Answers of all turns are
learned, with their ends; vision tower and projector stay as they are. Both images are resized, not cropped.

R rows (a chat about a pair), S tokens, P tokens of an image, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deltavlm.errors import AnswerParseError, ConfigError
from deltavlm.extras import require_package
from deltavlm.model.changechat.model import PLACEHOLDER, ChangeChat, load_changechat
from deltavlm.model.changechat.network import ChangeChatNetwork
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.folder import find_folder, read_kind
from deltavlm.model.huggingface.loading import quiet
from deltavlm.model.interface import Question, standard_question
from deltavlm.scoring.inference import PairExamples
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.phrasing import CHANGECHAT_87K
from deltavlm.training.build import enable_activation_checkpointing
from deltavlm.training.changechat_dataset import Split, load_split
from deltavlm.training.config import TrainConfig
from deltavlm.training.loop import micro_batches
from deltavlm.training.lora import (
    AdapterInputs,
    AdapterLearner,
    Chat,
    ChatBatch,
    ChatSample,
    ChatSource,
    target_pattern,
)
from deltavlm.training.sampling import SlotPlan


def pair_chats(pair: PairExamples) -> list[Chat]:
    """Chats about a pair: one for each record and reference answer of its last turn.

    A standard question is asked in the words of ChangeChat-87k; one whose answer cannot be written in them is
    left out, as cells, which are no polygons. All others keep their words.
    """
    chats: list[Chat] = []
    for example in pair.examples:
        *earlier, last = example.turns
        history = tuple((turn.question, turn.answers[0]) for turn in earlier)
        for answer in last.answers:
            if not history and last.question == TASKS[example.task].prompt:
                chats += _standard_chat(example.task, answer)
            else:
                chats.append(Chat(Question(example.task, last.question, history=history), answer))
    return chats


def _standard_chat(task: TaskName, answer: str) -> list[Chat]:
    """Chat in the words of the phrasebook; none if the answer cannot be read or written in them."""
    phrase = CHANGECHAT_87K.phrase(task)
    try:
        reply = phrase.write({task: TASKS[task].parse(answer)})
    except AnswerParseError:
        return []
    return [] if reply is None else [Chat(standard_question(TASKS[task], phrase=phrase), reply)]


class ChangeChatSource(ChatSource):
    """Infinite samples of a set's training pairs, in the words of ChangeChat-87k."""

    def __init__(self, split: Split, seed: list[int]) -> None:
        super().__init__((), split.image_folder, seed)
        self.chats = [(pair, chat) for pair in split.train for chat in pair_chats(pair)]
        if not self.chats:
            raise ConfigError(
                f"sets.{split.name} has no answer that can be written in the words of ChangeChat-87k"
            )


@dataclass(frozen=True)
class ChangeChatLoader:
    """Loader of micro-batches of chats."""

    plan: SlotPlan
    sources: Sequence[ChatSource]
    model: ChangeChat
    balance: Literal["root", "token"]

    def micro_batch(self, step: int, start: int, stop: int) -> ChatBatch:
        samples = [self.sources[source].sample(index) for source, index in self.plan.slots(step, start, stop)]
        return collate_chats(self.model, samples, self.balance)


def collate_chats(
    model: ChangeChat, samples: Sequence[ChatSample], balance: Literal["root", "token"]
) -> ChatBatch:
    """Inputs and labels of R chats, padded on the right: pixels (2R, 3, H, W), both dates of a pair in turn,
    and ids (R, S) with PLACEHOLDER for each token of an image."""
    rows, labels = [], []
    for sample in samples:
        question, answer = sample.chat.question, sample.chat.answer
        ending = model.prompts.ending(question.prompt, question.history, answer)
        learned = model.prompts.labels(question.prompt, question.history, answer)
        rows.append([*model.beginning, *ending])
        labels.append(
            [IGNORE_INDEX] * len(model.beginning)
            + [id_ if is_learned else IGNORE_INDEX for id_, is_learned in zip(ending, learned, strict=True)]
        )
    images = [np.asarray(image).transpose(2, 0, 1) for sample in samples for image in sample.images]
    pixels = torch.cat([model.pixels(image[None]) for image in images])  # pairs may differ in size
    inputs = {
        "pixels": pixels,
        "input_ids": _pad(rows, PLACEHOLDER),
        "attention_mask": _pad([[1] * len(row) for row in rows], 0),
    }
    padded = _pad(labels, IGNORE_INDEX)
    terms = len(samples) if balance == "root" else int((padded != IGNORE_INDEX).sum())
    return ChatBatch(inputs, padded, {"words": float(terms)})


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


class ChangeChatLearner(AdapterLearner):
    """A ChangeChat with an adapter, and the loss of answers. `forward`: a `ChatBatch` -> sums of losses."""

    def __init__(self, model: Any, chat_model: ChangeChat, balance: Literal["root", "token"]) -> None:
        super().__init__(model, balance)
        # in a tuple, so that its modules are no part of this one: they are neither trained nor saved
        self.encoders: tuple[ChangeChatNetwork] = (chat_model.network,)
        start, between = map(len, chat_model.prompts.beginning)
        tokens = chat_model.config.image_tokens
        self.images = (
            slice(start, start + tokens),
            slice(start + tokens + between, len(chat_model.beginning)),
        )

    def forward(self, batch: ChatBatch) -> dict[str, Tensor]:
        (network,) = self.encoders
        ids_RS, pixels = batch.inputs["input_ids"], batch.inputs["pixels"]
        with torch.no_grad():
            for module in (network.vision, network.projector):
                module.to(pixels.device)
            tokens_2RPD = network.image_tokens(pixels)
            base: Any = self.model
            embedded_RSD = base.get_base_model().get_input_embeddings()(ids_RS).to(tokens_2RPD.dtype)
            for date, columns in enumerate(self.images):
                embedded_RSD[:, columns] = tokens_2RPD[date::2]
        inputs = {"inputs_embeds": embedded_RSD, "attention_mask": batch.inputs["attention_mask"]}
        return super().forward(ChatBatch(inputs, batch.labels, batch.terms))


def load_adapter_inputs(config: TrainConfig) -> AdapterInputs:
    """Read the sets and load the model.

    Raises: ConfigError, InputError, ModelError naming what is missing or cannot be used.
    """
    import peft

    assert config.adapter is not None
    require_package("peft", "the training of an adapter")
    folder = find_folder(config.model)
    kind = read_kind(folder)
    if kind != "changechat":
        raise ConfigError(
            f"adapter is for a model hf:... or a folder of kind changechat; {folder} is of {kind}"
        )
    if config.validation is not None:
        raise ConfigError("validation is not supported for a model of kind changechat; leave it out")
    for name, phase in config.phases.items():
        micro_batches(name, phase)
    splits = tuple(load_split(name, records, config.seed) for name, records in config.sets.items())
    weighted = [split for split in splits if config.sets[split.name].weight]
    sources = tuple(ChangeChatSource(split, [config.seed, number]) for number, split in enumerate(weighted))
    weights = tuple(config.sets[split.name].weight for split in weighted)
    model = load_changechat(folder, RuntimeOptions(device="cpu", dtype=config.language_dtype))
    model = replace(model, details={**model.details, "revision": None})
    model.network.requires_grad_(False)
    torch.manual_seed(config.seed)
    settings = peft.LoraConfig(
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha,
        lora_dropout=config.adapter.dropout,
        target_modules=target_pattern(model.model, config.adapter),
    )
    with quiet():
        adapted: Any = peft.get_peft_model(model.model, settings)
    adapted.peft_config["default"].base_model_name_or_path = folder.name
    return AdapterInputs(model, adapted, splits, sources, weights)


def build_learner(config: TrainConfig, inputs: AdapterInputs) -> ChangeChatLearner:
    """Learner of the model with its adapter."""
    (phase,) = config.phases.values()
    if config.recompute:
        enable_activation_checkpointing(inputs.model.get_base_model())
    return ChangeChatLearner(inputs.model, _changechat(inputs), phase.balance)


def build_loader(config: TrainConfig, name: str, inputs: AdapterInputs) -> ChangeChatLoader:
    """Loader of the micro-batches of a phase."""
    phase = config.phases[name]
    plan = SlotPlan(inputs.weights, phase.batch, phase.steps, [config.seed, *name.encode()])
    return ChangeChatLoader(plan, inputs.sources, _changechat(inputs), phase.balance)


def _changechat(inputs: AdapterInputs) -> ChangeChat:
    assert isinstance(inputs.chat_model, ChangeChat)
    return inputs.chat_model
