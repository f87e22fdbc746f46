"""LoRA adapter of a vision-language model hf:...: chats of a set, their loss, and the adapter folder.

Standard questions are asked in the words of the phrasebook `generic`, with answers in the form which it asks
for; all others in the words of their record. The loss is on the tokens of the answers only.

R rows (a chat about a pair), S tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from deltavlm.config import suggest
from deltavlm.data.images import read_image
from deltavlm.errors import AnswerParseError, ConfigError, InputError
from deltavlm.extras import require_package
from deltavlm.files import write_atomic
from deltavlm.files.atomic import atomic_file
from deltavlm.model.chat_turns import chat_turns
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.huggingface.chat_model import ChatModel, chat_text, read_chats, to_image
from deltavlm.model.huggingface.loading import linear_layers, load_chat_model, quiet
from deltavlm.model.huggingface.source import ADAPTER_CONFIG, TRAINING, parse
from deltavlm.model.interface import ChangeModel, PairContext, Question, standard_question
from deltavlm.model.tensors import write_tensors
from deltavlm.scoring.inference import PairExamples
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.phrasing import GENERIC
from deltavlm.training.build import enable_activation_checkpointing
from deltavlm.training.changechat_dataset import Split, load_split
from deltavlm.training.checkpoints import final_weights, wrap_write_errors
from deltavlm.training.config import Adapter, TrainConfig
from deltavlm.training.distributed import Machine
from deltavlm.training.loop import micro_batches
from deltavlm.training.sampling import SlotPlan
from deltavlm.training.validate import BaseValidator

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class AdapterInputs:
    """Inputs of a run, read and checked before anything is computed."""

    chat_model: ChatModel
    model: Any  # its weights with an adapter, on the CPU; the trainer moves them
    splits: tuple[Split, ...]
    sources: tuple[ChatSource, ...]  # of the sets with a weight
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Chat:
    """Question about a pair, with the turns before it, and its answer."""

    question: Question
    answer: str


@dataclass(frozen=True, slots=True)
class ChatSample:
    """A chat with the two images that it is about."""

    images: tuple[Image.Image, Image.Image]
    chat: Chat


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


class ChatSource:
    """Infinite samples of image pairs of a set, epoch by epoch; an epoch has each chat once, in an order of
    its own."""

    def __init__(self, pairs: Sequence[PairExamples], image_folder: Path, seed: list[int]) -> None:
        self.image_folder, self.seed = image_folder, seed
        self.chats = [(pair, chat) for pair in pairs for chat in pair_chats(pair)]
        self.order = lru_cache(maxsize=2)(self._order)

    def __len__(self) -> int:
        """Number of chats in an epoch."""
        return len(self.chats)

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([*self.seed, epoch]).permutation(len(self.chats)).tolist()
        return order

    def sample(self, index: int) -> ChatSample:
        """Sample 0, 1, 2, ... without end. Raises: InputError when its images cannot be read."""
        epoch, position = divmod(index, len(self.chats))
        pair, chat = self.chats[self.order(epoch)[position]]
        before, after = (read_image(self.image_folder / name) for name in (pair.before, pair.after))
        return ChatSample((to_image(before), to_image(after)), chat)


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """R chats as inputs of the model, padded on the right, and the labels of their answers."""

    inputs: Mapping[str, Any]  # as the processor makes them: input_ids (R, S), pixel_values, ...
    labels: Tensor  # (R, S) token ids of answer and end, else IGNORE_INDEX
    terms: dict[str, float]  # number of terms of the loss

    def to(self, device: torch.device) -> ChatBatch:
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return ChatBatch(inputs, self.labels.to(device), self.terms)


@dataclass(frozen=True)
class ChatLoader:
    """Loader of micro-batches of chats."""

    plan: SlotPlan
    sources: Sequence[ChatSource]
    chat_model: ChatModel
    balance: Literal["root", "token"]
    lock: Lock = field(default_factory=Lock)  # a tokenizer serves one thread at a time

    def micro_batch(self, step: int, start: int, stop: int) -> ChatBatch:
        samples = [self.sources[source].sample(index) for source, index in self.plan.slots(step, start, stop)]
        with self.lock:
            return collate_chats(self.chat_model, samples, self.balance)


def collate_chats(
    chat_model: ChatModel, samples: Sequence[ChatSample], balance: Literal["root", "token"]
) -> ChatBatch:
    """Inputs and labels of chats. The beginning of each is what a model with the adapter is asked.

    Raises: ModelError if the processor cannot read a chat.
    """
    processor, images = chat_model.processor, [list(sample.images) for sample in samples]
    asked = [chat_text(processor, chat_turns(PairContext(), sample.chat.question)) for sample in samples]
    texts = [
        text + answer_text(processor, text, sample.chat) for text, sample in zip(asked, samples, strict=True)
    ]

    def read(texts: list[str]) -> Mapping[str, Any]:
        return read_chats(processor, texts, images, padding_side="right", name=chat_model.name)

    inputs, beginnings = read(texts), read(asked)
    labels = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    for row, ids in enumerate(inputs["input_ids"]):
        length = int(inputs["attention_mask"][row].sum())
        asked_length = int(beginnings["attention_mask"][row].sum())
        same = ids[:asked_length] == beginnings["input_ids"][row, :asked_length]
        start = asked_length if bool(same.all()) else int(same.int().argmin())  # a token across the border
        labels[row, start:length] = ids[start:length]
    dtype = chat_model.model.dtype
    tensors = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    terms = len(samples) if balance == "root" else int((labels != IGNORE_INDEX).sum())
    return ChatBatch(tensors, labels, {"words": float(terms)})


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


class AdapterLearner(nn.Module):
    """A model with its adapter and the loss of answers. `forward`: a `ChatBatch` -> sums of losses."""

    def __init__(self, model: nn.Module, balance: Literal["root", "token"]) -> None:
        super().__init__()
        self.model, self.balance = model, balance
        base: Any = model
        self.crops_logits = "logits_to_keep" in inspect.signature(base.get_base_model().forward).parameters

    def forward(self, batch: ChatBatch) -> dict[str, Tensor]:
        is_answer = batch.labels != IGNORE_INDEX
        columns = batch.labels.shape[1] - int(is_answer.any(dim=0).int().argmax())  # from the first label on
        crop = {"logits_to_keep": columns + 1} if self.crops_logits else {}
        logits_RSV = self.model(**batch.inputs, use_cache=False, **crop).logits[:, -columns - 1 : -1]
        labels_RS = batch.labels[:, -columns:]
        losses_RS = F.cross_entropy(
            logits_RSV.transpose(1, 2).float(), labels_RS, reduction="none", ignore_index=IGNORE_INDEX
        )
        losses_R = losses_RS.sum(dim=1)
        if self.balance == "root":
            losses_R = losses_R / is_answer.sum(dim=1).sqrt()
        return {"words": losses_R.sum()}


def load_adapter_inputs(config: TrainConfig) -> AdapterInputs:
    """Read the sets and load the model.

    Raises: ConfigError, InputError, ModelError naming what is missing or cannot be used.
    """
    assert config.adapter is not None
    require_package("peft", "the training of an adapter")
    if parse(config.model)[1] is not None:
        raise ConfigError(f"model {config.model} has an adapter already; give the model alone")
    for name, phase in config.phases.items():
        micro_batches(name, phase)
    splits = [load_split(name, records, config.seed) for name, records in config.sets.items()]
    weighted = [split for split in splits if config.sets[split.name].weight]
    sources = tuple(
        ChatSource(split.train, split.image_folder, [config.seed, number])
        for number, split in enumerate(weighted)
    )
    weights = tuple(config.sets[split.name].weight for split in weighted)
    chat_model = load_chat_model(config.model, RuntimeOptions(device="cpu", dtype=config.language_dtype))
    if chat_model.always_reasons:
        raise InputError(
            f"the chat template of {chat_model.name} begins every answer with reasoning, which no set has;"
            " give a model that answers at once"
        )
    return AdapterInputs(
        chat_model, _with_new_adapter(config, chat_model.model), tuple(splits), sources, weights
    )


def target_pattern(model: Any, adapter: Adapter) -> str:
    """Regular expression of the linear layers that get an adapter, by their full names.

    They are in the blocks of the language model, so that the vision encoder stays as it is.

    Raises: ConfigError for a name that no such layer has.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    names = sorted({name.rpartition(".")[2] for name in linear_layers(decoder)})
    for name in adapter.target_modules:
        if name not in names:
            raise ConfigError(
                f"adapter.target_modules: the language model has no {name!r}{suggest(name, names)}"
            )
    chosen = "|".join(re.escape(name) for name in adapter.target_modules or names)
    return rf"{re.escape(f'{prefix}.' if prefix else '')}layers\..*\.({chosen})"


def build_learner(config: TrainConfig, inputs: AdapterInputs) -> AdapterLearner:
    """Learner of the model with its adapter."""
    (phase,) = config.phases.values()
    if config.recompute:
        enable_activation_checkpointing(inputs.model.get_base_model())
    return AdapterLearner(inputs.model, phase.balance)


def build_loader(config: TrainConfig, name: str, inputs: AdapterInputs) -> ChatLoader:
    """Loader of the micro-batches of a phase."""
    phase = config.phases[name]
    plan = SlotPlan(inputs.weights, phase.batch, phase.steps, [config.seed, *name.encode()])
    return ChatLoader(plan, inputs.sources, inputs.chat_model, phase.balance)


class AdapterValidator(BaseValidator):
    """Validation of an adapter on the held-out pairs of its sets."""

    def __init__(self, config: TrainConfig, name: str, inputs: AdapterInputs, machine: Machine) -> None:
        super().__init__(config, name, inputs.splits, machine)
        self.sources = {
            split.name: ChatSource(split.held_out, split.image_folder, [0]) for split in self.splits
        }
        self.asks_questions = self.plan.answers
        processor = copy.deepcopy(inputs.chat_model.processor)  # a tokenizer serves one thread at a time
        device = str(machine.device)
        self.chat_model = replace(
            inputs.chat_model, processor=processor, device=device, pads=device != "cpu", tokens={}
        )

    def make_batch(self, samples: Sequence[ChatSample], noise_seed: int) -> ChatBatch:
        return collate_chats(self.chat_model, samples, self.phase.balance)

    def answering_model(self, learner: AdapterLearner) -> ChangeModel:
        base: Any = learner.model
        return replace(self.chat_model, model=base.get_base_model())


def export_adapter(
    config: TrainConfig, inputs: AdapterInputs, provenance: Mapping[str, str], out: Path, folder: Path
) -> None:
    """Write the adapter of the run in `out` for peft, with the provenance in training.json.

    Raises: WriteError, ModelError if the run has no checkpoint.
    """
    import peft

    (name,) = config.phases
    chat_model, model = inputs.chat_model, inputs.model
    best = config.validation is not None and config.validation.metric is not None
    model.load_state_dict(final_weights(out, name, best=best), strict=False)
    weights = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    values = model.peft_config["default"].to_dict() | {"inference_mode": True}
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    facts = {
        "base": chat_model.name,
        "base_fingerprint": chat_model.fingerprint,
        "base_revision": chat_model.details["revision"],
        "tells_facts": False,  # sets have no dates and pixel sizes, so the adapter is not told any
        **provenance,
        "adapter": asdict(config.adapter) if config.adapter else None,
    }
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / ADAPTER_CONFIG, json.dumps(values, indent=2, sort_keys=True) + "\n")
        write_atomic(folder / TRAINING, json.dumps(facts, indent=2) + "\n")
        with atomic_file(folder / WEIGHTS) as scratch:
            write_tensors(scratch, tensors, provenance)


def _with_new_adapter(config: TrainConfig, model: Any) -> Any:
    """Model with a new adapter of random weights, which changes no answer yet. Raises: ConfigError."""
    import peft

    assert config.adapter is not None
    adapter, reference = config.adapter, parse(config.model)[0]
    torch.manual_seed(config.seed)
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=target_pattern(model, adapter),
    )
    with quiet():
        adapted: Any = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = reference.name
    return adapted
