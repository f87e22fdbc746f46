"""LoRA adapters (arXiv 2106.09685): chats of sets, the loss of their answers, and the adapter folder.

What depends on the kind of model is an `AdapterTarget`: its layers, the words of its questions, its batches.
`TARGETS` lists the modules of the kinds. The loss is on the tokens of answers and of their ends alone.

R rows (a chat about a pair), S tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import import_module
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
from deltavlm.errors import AnswerParseError, ConfigError
from deltavlm.extras import require_package
from deltavlm.files import write_atomic
from deltavlm.files.atomic import atomic_file
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.folder import find_folder, read_kind
from deltavlm.model.huggingface.chat_model import to_image
from deltavlm.model.huggingface.loading import quiet
from deltavlm.model.huggingface.source import ADAPTER_CONFIG, TRAINING
from deltavlm.model.interface import ChangeModel, Question, standard_question
from deltavlm.model.kinds import kind_of
from deltavlm.model.tensors import write_tensors
from deltavlm.scoring.inference import PairExamples
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.phrasing import Phrasebook
from deltavlm.training.build import enable_activation_checkpointing
from deltavlm.training.changechat_dataset import Split, load_split
from deltavlm.training.checkpoints import final_weights, wrap_write_errors
from deltavlm.training.config import Adapter, TrainConfig
from deltavlm.training.distributed import Machine
from deltavlm.training.loop import micro_batches
from deltavlm.training.sampling import SlotPlan
from deltavlm.training.validate import BaseValidator

WEIGHTS = "adapter_model.safetensors"
TARGETS: Mapping[str, str] = {
    "hf": "deltavlm.training.lora_hf",
    "changechat": "deltavlm.training.lora_changechat",
    "changevg": "deltavlm.training.lora_changevg",
}
"""Kind of a model -> module with `load_target(config)`, which gives its `AdapterTarget`."""

Balance = Literal["root", "token"]


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


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """R chats as inputs of the model, padded on the right, and the labels of their answers."""

    inputs: Mapping[str, Any]  # input_ids (R, S), attention_mask (R, S), pixels, ...
    labels: Tensor  # (R, S) token ids of answer and end, else IGNORE_INDEX
    terms: dict[str, float]  # number of terms of the loss

    @classmethod
    def of(cls, inputs: Mapping[str, Any], labels: Tensor, balance: Balance) -> ChatBatch:
        """Batch whose loss has a term for each row, or for each token."""
        terms = len(labels) if balance == "root" else int((labels != IGNORE_INDEX).sum())
        return cls(inputs, labels, {"words": float(terms)})

    def to(self, device: torch.device) -> ChatBatch:
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return ChatBatch(inputs, self.labels.to(device), self.terms)


@dataclass(frozen=True)
class AdapterTarget(ABC):
    """Model of one kind that an adapter is trained for."""

    model: Any  # a ChangeModel with `name` and `fingerprint`, whose layers have the adapter
    adapted: Any  # its network as peft wraps it, on the CPU; the trainer moves it

    @abstractmethod
    def chats(self, pair: PairExamples) -> list[Chat]:
        """Chats about a pair, in the words in which the model is asked."""

    @abstractmethod
    def collate(self, samples: Sequence[ChatSample], balance: Balance) -> ChatBatch:
        """Inputs and labels of R chats. The beginning of each row is what the model is asked."""

    @abstractmethod
    def validation_copy(self, device: str) -> AdapterTarget:
        """Target that shares the weights, and whose model answers on a device while this one makes batches:
        a tokenizer serves one thread at a time."""

    def learner(self, balance: Balance) -> AdapterLearner:
        """Learner of the adapter."""
        return AdapterLearner(self.adapted, balance)


@dataclass(frozen=True, slots=True)
class AdapterInputs:
    """Inputs of a run, read and checked before anything is computed."""

    target: AdapterTarget
    splits: tuple[Split, ...]
    sources: tuple[ChatSource, ...]  # of the sets with a weight
    weights: tuple[float, ...]


def phrased_chats(pair: PairExamples, book: Phrasebook) -> list[Chat]:
    """Chats about a pair: one for each record and reference answer of its last turn.

    A standard question is asked in the words of the phrasebook, each line of them alone; one whose answer
    cannot be written in them is left out, as cells where a phrasebook has polygons. All others keep their
    words.
    """
    chats: list[Chat] = []
    for example in pair.examples:
        *earlier, last = example.turns
        history = tuple((turn.question, turn.answers[0]) for turn in earlier)
        for answer in last.answers:
            if not history and last.question == TASKS[example.task].prompt:
                chats += _standard_chats(example.task, answer, book)
            else:
                chats.append(Chat(Question(example.task, last.question, history=history), answer))
    return chats


def _standard_chats(task: TaskName, answer: str, book: Phrasebook) -> list[Chat]:
    """Chats in the words of the phrasebook; none if the answer cannot be read or written in them."""
    phrase = book.phrase(task)
    try:
        reply = phrase.write({task: TASKS[task].parse(answer)})
    except AnswerParseError:
        return []
    if reply is None:
        return []
    prompts, lines = phrase.prompt.split("\n"), reply.split("\n")
    if len(prompts) == 1:
        return [Chat(standard_question(TASKS[task], phrase=phrase), reply)]
    return [Chat(Question(task, prompt), line) for prompt, line in zip(prompts, lines, strict=True)]


class ChatSource:
    """Infinite samples of the chats of a set, epoch by epoch; an epoch has each chat once, in an order of its
    own."""

    def __init__(
        self, chats: Sequence[tuple[PairExamples, Chat]], image_folder: Path, seed: list[int]
    ) -> None:
        self.chats, self.image_folder, self.seed = chats, image_folder, seed
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


def chat_source(
    target: AdapterTarget, pairs: Sequence[PairExamples], image_folder: Path, seed: list[int]
) -> ChatSource:
    """Samples of pairs in the words of a model."""
    return ChatSource([(pair, chat) for pair in pairs for chat in target.chats(pair)], image_folder, seed)


@dataclass(frozen=True)
class ChatLoader:
    """Loader of micro-batches of chats."""

    plan: SlotPlan
    sources: Sequence[ChatSource]
    target: AdapterTarget
    balance: Balance
    lock: Lock = field(default_factory=Lock)  # a tokenizer serves one thread at a time

    def micro_batch(self, step: int, start: int, stop: int) -> ChatBatch:
        samples = [self.sources[source].sample(index) for source, index in self.plan.slots(step, start, stop)]
        with self.lock:
            return self.target.collate(samples, self.balance)


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows (R, S) of different lengths, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


class AdapterLearner(nn.Module):
    """A model with its adapter and the loss of answers. `forward`: a `ChatBatch` -> sums of losses."""

    def __init__(self, model: nn.Module, balance: Balance) -> None:
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
    require_package("peft", "the training of an adapter")
    kind = kind_of(config.model) or read_kind(find_folder(config.model))
    if kind not in TARGETS:
        raise ConfigError(
            "adapter is for a model hf:... or a folder of kind changechat or changevg;"
            f" {config.model} is of {kind}"
        )
    for name, phase in config.phases.items():
        micro_batches(name, phase)
    splits = tuple(load_split(name, records, config.seed) for name, records in config.sets.items())
    target: AdapterTarget = import_module(TARGETS[kind]).load_target(config)
    weighted = [split for split in splits if config.sets[split.name].weight]
    sources = tuple(
        chat_source(target, split.train, split.image_folder, [config.seed, number])
        for number, split in enumerate(weighted)
    )
    for split, source in zip(weighted, sources, strict=True):
        if not len(source):
            raise ConfigError(
                f"sets.{split.name} has no answer that can be written in the words of"
                f" {target.model.phrasebook}"
            )
    weights = tuple(config.sets[split.name].weight for split in weighted)
    return AdapterInputs(target, splits, sources, weights)


def add_adapter(config: TrainConfig, network: Any, parents: Sequence[str], base: str) -> Any:
    """Network with a new adapter of random weights, which changes no answer yet.

    Args:
        config: with `adapter` and `seed`.
        network: model of transformers.
        parents: names of its lists of blocks, whose linear layers get the adapter.
        base: name of the model, for the adapter's configuration.

    Raises: ConfigError for a name in `adapter.target_modules` that no such layer has.
    """
    import peft

    assert config.adapter is not None
    adapter = config.adapter
    torch.manual_seed(config.seed)
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=target_pattern(network, parents, adapter),
    )
    network.requires_grad_(False)
    with quiet():
        adapted: Any = peft.get_peft_model(network, settings)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def decoder_layers(network: Any) -> str:
    """Name of the list of blocks of the language model in a network."""
    decoder = network.get_decoder()
    prefix = next(name for name, module in network.named_modules() if module is decoder)
    return f"{prefix}.layers" if prefix else "layers"


def target_pattern(network: Any, parents: Sequence[str], adapter: Adapter) -> str:
    """Regular expression of the linear layers that get an adapter, by their full names; see `add_adapter`."""
    stems = tuple(f"{parent}." for parent in parents)
    names = sorted(
        {
            name.rpartition(".")[2]
            for name, module in network.named_modules()
            if name.startswith(stems) and type(module) is nn.Linear
        }
    )
    for name in adapter.target_modules:
        if name not in names:
            raise ConfigError(
                f"adapter.target_modules: the blocks of the model have no {name!r}{suggest(name, names)}"
            )
    chosen = "|".join(re.escape(name) for name in adapter.target_modules or names)
    return rf"({'|'.join(map(re.escape, parents))})\..*\.({chosen})"


def build_learner(config: TrainConfig, inputs: AdapterInputs) -> AdapterLearner:
    """Learner of the model with its adapter."""
    (phase,) = config.phases.values()
    if config.recompute:
        enable_activation_checkpointing(inputs.target.adapted.get_base_model())
    return inputs.target.learner(phase.balance)


def build_loader(config: TrainConfig, name: str, inputs: AdapterInputs) -> ChatLoader:
    """Loader of the micro-batches of a phase."""
    phase = config.phases[name]
    plan = SlotPlan(inputs.weights, phase.batch, phase.steps, [config.seed, *name.encode()])
    return ChatLoader(plan, inputs.sources, inputs.target, phase.balance)


class AdapterValidator(BaseValidator):
    """Validation of an adapter on the held-out pairs of its sets."""

    def __init__(self, config: TrainConfig, name: str, inputs: AdapterInputs, machine: Machine) -> None:
        super().__init__(config, name, inputs.splits, machine)
        self.target = inputs.target.validation_copy(str(machine.device))
        sources = {
            split.name: chat_source(self.target, split.held_out, split.image_folder, [0])
            for split in self.splits
        }
        self.sources = {name: source for name, source in sources.items() if len(source)}
        self.asks_questions = self.plan.answers

    def make_batch(self, samples: Sequence[ChatSample], noise_seed: int) -> ChatBatch:
        return self.target.collate(samples, self.phase.balance)

    def answering_model(self, learner: AdapterLearner) -> ChangeModel:
        model: ChangeModel = self.target.model
        return model


def export_adapter(
    config: TrainConfig, inputs: AdapterInputs, provenance: Mapping[str, str], out: Path, folder: Path
) -> None:
    """Write the adapter of the run in `out` for peft, with the provenance in training.json.

    Raises: WriteError, ModelError if the run has no checkpoint.
    """
    import peft

    (name,) = config.phases
    model, adapted = inputs.target.model, inputs.target.adapted
    best = config.validation is not None and config.validation.metric is not None
    adapted.load_state_dict(final_weights(out, name, best=best), strict=False)
    weights = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    values = adapted.peft_config["default"].to_dict() | {"inference_mode": True}
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    facts = {
        "base": model.name,
        "base_fingerprint": model.fingerprint,
        "base_revision": model.details.get("revision"),
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
