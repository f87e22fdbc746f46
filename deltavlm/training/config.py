"""Configuration of a training run, from YAML with `--set` changes: data, phases, validation, machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from deltavlm.config import from_mapping, parse_yaml, read_yaml, suggest, to_mapping
from deltavlm.data.synthetic.scene import GroundPart
from deltavlm.errors import ConfigError
from deltavlm.model.kinds import kind_of
from deltavlm.tasks import TASKS, TaskName

Objective = Literal[
    "vision", "language", "joint", "align", "instruct", "adapter", "mci_joint", "mci_caption", "mci_mask"
]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
Module = Literal["vision", "difference", "dense", "qformer", "projection"]
ANSWERING: tuple[Objective, ...] = ("language", "joint", "instruct", "mci_joint", "mci_caption")
"""Parts that train on answers, so that the model can be asked."""
STAGES: tuple[Objective, ...] = ("mci_joint", "mci_caption", "mci_mask")
"""Parts of a model of kind mci."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """Synthetic scenes, rendered once into a cache in the run's folder: number of each kind.

    `far` scenes have pixels twice as coarse. In `stormy` ones light, haze and contrast of the dates differ
    twice as much, and half of them change. `rich` ones have more kinds of land, buildings and nuisances, at
    one to three times the pixel size. `ground` ones have changes drawn on the tiles of `ground_folder`
    (docs/data.md), of which 55 % change; `train --adapt` makes that folder.
    """

    train: int
    validation: int
    size_px: int = 256
    change: float = 0.6  # share of scenes with a change
    far: int = 0
    stormy: int = 0
    rich: int = 0
    ground: int = 0
    ground_folder: Path | None = None  # relative paths start from the current folder
    ground_without: tuple[GroundPart, ...] = ()  # what they leave out, to measure its worth
    weight: float = 1.0  # sampling weight, beside those of the sets

    def __post_init__(self) -> None:
        if self.ground and self.ground_folder is None:
            raise ValueError("scenes.ground needs scenes.ground_folder, a folder of image tiles")


@dataclass(frozen=True, slots=True)
class RecordSet:
    """Data set in ChangeChat's format on disk: ChangeChat-105k, or an output of `deltavlm synth chips`.

    Relative paths start from the current folder. `held_out` pairs, drawn by the seed, are used for validation
    and not for training; a set of weight 0 is for validation alone.
    """

    path: Path
    images: Path | None = None  # default: the folder `images` beside the files
    split: Literal["train", "val", "test"] = "train"
    tasks: tuple[TaskName, ...] = tuple(TASKS)
    weight: float = 1.0  # sampling weight
    held_out: int | Literal["auto"] = 0  # "auto": a fifth of the pairs, 200 at most
    masks: Path | None = None  # MASKS/SPLIT/label/NAME or MASKS/SPLIT/NAME, for the stages of kind mci
    class_map: str | None = None  # of their values, such as road=1,building=2; default: LEVIR-MCI's


@dataclass(frozen=True, slots=True)
class Phase:
    """Phase of training: trainable modules, losses, schedule, augmentation.

    Trainable modules and losses of each `part`:

    - "vision": encoder, difference module and dense head; mask and density losses
    - "language": evidence layers of the dense head, Q-Former, projection and language model; cross-entropy of
      answers
    - "joint": all modules, both kinds of losses
    - "align": difference module and Q-Former; BLIP-2's contrastive and matching losses (arXiv 2301.12597)
    - "instruct": all modules but the language model; cross-entropy of answers
    - "adapter": what the key `adapter` describes, in a run with this one phase; cross-entropy of answers
    - "mci_joint": all modules of a model of kind mci; both losses, each divided by its own value
    - "mci_caption": its caption neck and decoder; cross-entropy of captions
    - "mci_mask": its mask neck and mask head; cross-entropy of the classes of pixels

    `rates` overrides that: learning-rate multipliers by the name of a module or parameter ("vision",
    "vision.tower.blocks.37"); 0 freezes it, and the longest matching name counts. A phase starts from the EMA
    weights of the phase before it, or with `start_weight` from their mean with those that phase started from.
    """

    part: Objective
    steps: int
    batch: int  # pairs per step, in all processes together
    lr: float
    warmup: int = 200  # steps
    crop_px: int | None = None  # side of random crops of scenes; default: no crop
    weight_decay: float = 0.03  # of matrices; biases and norms have none
    start_weight: float = 0.0  # of the weights that it starts from in the mean that it ends with
    words: float = 1.0  # weight of the answers' loss beside the mask losses
    class_balance: float = 1.0  # power of the class weights of the mask loss (losses.CLASS_WEIGHTS)
    rows: int = 5  # questions per pair and step, at most
    extra: float = 0.5  # of these beside the four standard ones, on average: open questions and later turns
    far: float = 0.0  # share of scenes that are of the kind `far`
    stormy: float = 0.0  # share of scenes that are of the kind `stormy`
    rich: float = 0.0  # share of scenes that are of the kind `rich`
    ground: float = 0.0  # share of scenes that are of the kind `ground`
    color_jitter: float = 0.0  # share of scenes with random colors
    token_dropout: float = 0.0  # mean share of the difference tokens that are dropped, for each question
    evidence_noise: float = 0.0  # share of pairs with degraded evidence tokens of the dense head
    evidence_dropout: float = 0.0  # share of questions whose evidence tokens are dropped, all ten
    rates: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.98)  # of AdamW
    floor: float = 0.01  # learning rate at the end of the cosine, as a share of lr
    micro: int | None = None  # micro-batch of a process, in pairs; default: its whole share of the batch
    balance: Literal["root", "token"] = "root"  # weight of an answer: root of its length, or its length
    b_rate: float = 1.0  # learning-rate multiplier of an adapter's matrices B (LoRA+, arXiv 2402.12354)
    cut: float = 0.0  # random crop of up to this share of an image's side, the same of both dates
    turn_deg: float = 0.0  # random rotation by up to so many degrees, the same of both dates

    def __post_init__(self) -> None:
        minimum = {"steps": 1, "batch": 1, "warmup": 0, "rows": 1, "lr": 0, "turn_deg": 0, "b_rate": 0}
        for name, limit in minimum.items():
            if not limit <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, less than {limit} or not finite")
        if self.micro is not None and self.micro < 1:
            raise ValueError(f"micro is {self.micro}, less than 1")
        shares = ("far", "stormy", "rich", "ground", "color_jitter", "floor", "cut", "class_balance")
        dropped = ("token_dropout", "evidence_noise", "evidence_dropout")
        for name in (*shares, *dropped):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not between 0 and 1")
        if not 0 <= self.start_weight < 1:
            raise ValueError(f"start_weight is {self.start_weight}, not at least 0 and below 1")
        for name, factor in self.rates.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"rates.{name} is {factor}, less than 0 or not finite")


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation every `every` steps and at the end of a phase, on the validation scenes and the held-out
    pairs of the sets: losses, and scores of the answers.

    `metric` names one of the logged metrics, such as "changechat.caption.all.bleu_4": the weights with its
    best value are kept and passed to the next phase. `patience` is for early stopping: a phase ends after so
    many validations in a row without a better value.
    """

    every: int
    pairs: int = 200  # of each source, at most
    answers: bool = True  # ask the questions and score the answers; False: losses alone
    metric: str | None = None
    lower: bool = False  # a lower value of the metric is better, as for an error
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.pairs < 1:
            raise ValueError("every and pairs must be at least 1")
        if self.patience is not None and (self.metric is None or self.patience < 1):
            raise ValueError("patience needs validation.metric, and must be at least 1")


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA adapter (arXiv 2106.09685) of a model hf:... or of kind changechat or changevg, whose own weights
    stay."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ()  # names of linear layers in its blocks, as q_proj; default: all

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError("rank and alpha must be at least 1, dropout at least 0 and below 1")


ADAPTER_KEYS = frozenset(
    {"part", "steps", "batch", "lr", "warmup", "weight_decay", "betas", "floor", "micro", "balance", "b_rate"}
)
"""Keys of a phase that the training of an adapter uses."""


STAGE_KEYS = frozenset(
    {"part", "steps", "batch", "lr", "warmup", "weight_decay", "betas", "floor", "micro", "rates"}
)
"""Keys of a phase that the stages of a model of kind mci use."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of a training run; `configs/train_nano.yaml` is the recipe of the shipped weights."""

    model: str  # name of a model config in configs/; hf:... or a folder of another kind that is trained
    phases: dict[str, Phase]
    scenes: Scenes | None = None
    sets: dict[str, RecordSet] = field(default_factory=dict)
    adapter: Adapter | None = None  # what is trained of a model hf:...
    start: str | None = None  # name or folder of the model to start from; default: random weights
    fresh: tuple[Module, ...] = ()  # modules of it to initialize anew, as the config `model` says
    pretrained: bool = True  # without a start: pretrained weights for an encoder that has some
    seed: int = 0
    clip: float = 1.0  # norm that gradients are clipped to
    ema: float = 0.999  # decay of the exponential moving average of the weights; 0: none, the last ones count
    checkpoint_every: int = 500  # steps
    log_every: int = 50  # steps
    validation: Validation | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: PrecisionChoice = "auto"  # of autocast; trainable weights are fp32
    language_dtype: PrecisionChoice = "fp32"  # of frozen language models and models hf:...; auto: `precision`
    recompute: bool = False  # activation checkpointing: less memory, more time
    sharding: Literal["ddp", "fsdp"] = "ddp"  # of several processes: a full replica, or a shard in each
    workers: int = 1  # threads that prefetch batches
    max_epochs: float | None = None  # of a phase over its sets: small sets get fewer steps and fewer scenes

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("there are no phases")
        if self.scenes is None and not self.sets:
            raise ValueError("there is nothing to train on: give scenes or sets")
        sources = [source for source in (self.scenes, *self.sets.values()) if source is not None]
        weights = [source.weight for source in sources]
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError("weights of scenes and sets must not be negative, and not all of them 0")
        for name in ("checkpoint_every", "log_every", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, less than 1")
        if self.max_epochs is not None and not 0 < self.max_epochs < math.inf:
            raise ValueError(f"max_epochs is {self.max_epochs}, not above 0 and finite")
        if not (0 <= self.ema < 1 and self.clip > 0):
            raise ValueError("ema must be at least 0 and below 1, clip above 0")
        if self.validation is not None:
            self._check_metric(self.validation.metric)
        for name, phase in self.phases.items():
            self._check_phase(name, phase)
        self._check_adapter()
        self._check_stages()
        first, phase = next(iter(self.phases.items()))
        if phase.start_weight and (self.start is None or self.fresh):
            raise ValueError(f"phase {first} starts from random weights, which a start_weight would mix in")

    def _check_adapter(self) -> None:
        is_chat_model, parts = kind_of(self.model) == "hf", [phase.part for phase in self.phases.values()]
        if is_chat_model and self.adapter is None:
            raise ValueError(f"of {self.model} only an adapter can be trained; add adapter: {{rank: 16}}")
        if self.adapter is None:
            if "adapter" in parts:
                raise ValueError("a phase of part adapter needs the key adapter, and a model hf:...")
            return
        if not is_chat_model and "/" not in self.model and not Path(self.model).is_dir():
            raise ValueError(
                "adapter is for a model hf:OWNER/NAME or hf:FOLDER, or a folder of kind changechat or"
                f" changevg, not for {self.model!r}"
            )
        if parts != ["adapter"]:
            raise ValueError("a run with adapter has one phase, of part adapter")
        self._check_unused("the training of an adapter", ADAPTER_KEYS)

    def _check_stages(self) -> None:
        """Rules of the stages of a model of kind mci."""
        stages = {name: phase.part in STAGES for name, phase in self.phases.items()}
        if not any(stages.values()):
            if with_masks := [name for name, records in self.sets.items() if records.masks]:
                raise ValueError(f"sets.{with_masks[0]}.masks are for phases of part mci_...; leave it out")
            return
        if not all(stages.values()):
            raise ValueError("phases of part mci_... are of a model of kind mci, and the others are not")
        self._check_unused("the training of a model of kind mci", STAGE_KEYS)
        needs_masks = any(phase.part != "mci_caption" for phase in self.phases.values())
        if without := [name for name, records in self.sets.items() if needs_masks and not records.masks]:
            raise ValueError(f"sets.{without[0]} has no masks; set sets.{without[0]}.masks to their folder")

    def _check_unused(self, trained: str, phase_keys: frozenset[str]) -> None:
        """Raises: ValueError for values that the training of another kind of model would ignore."""
        top = ("start", "fresh", "scenes", "max_epochs")
        unused = [name for name in top if getattr(self, name)]
        unused += ["sharding"] * (self.sharding != "ddp")
        for name, phase in self.phases.items():
            default = Phase(phase.part, phase.steps, phase.batch, phase.lr)
            keys = (field.name for field in fields(Phase) if field.name not in phase_keys)
            unused += [f"phases.{name}.{key}" for key in keys if getattr(phase, key) != getattr(default, key)]
        if unused:
            raise ValueError(f"{trained} does not support {', '.join(unused)}; leave it out")

    def _check_metric(self, metric: str | None) -> None:
        sources = [name for name, records in self.sets.items() if records.held_out]
        sources += ["scenes"] * (self.scenes is not None)
        if not sources:
            raise ValueError("validation has no data: give scenes, or a set with held_out")
        if metric is not None and metric.split(".")[0] not in sources:
            raise ValueError(f"validation.metric {metric!r} does not begin with one of {', '.join(sources)}")

    def _check_phase(self, name: str, phase: Phase) -> None:
        has_weighted_sets = any(records.weight for records in self.sets.values())
        if not name.isidentifier():
            raise ValueError(f"phase {name!r} is not a name of letters, digits and _")
        if phase.part in ("vision", "joint") and (self.scenes is None or not self.scenes.weight):
            raise ValueError(f"phase {name} trains on masks, and only scenes have them")
        if phase.part == "vision" and has_weighted_sets:
            raise ValueError(f"phase {name} trains on masks alone, and sets have none; give them weight 0")
        if phase.crop_px and has_weighted_sets:
            raise ValueError(
                f"phase {name} crops scenes to crop_px, and the answers of sets are about whole images"
            )


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a run's configuration from YAML and apply `key=value` changes: dotted keys, values as in YAML.

    Raises: ConfigError naming file, key and value.
    """
    content = read_yaml(path)
    if isinstance(content, Mapping) and "vision" in content and "phases" not in content:
        raise ConfigError(f"{path}: configures a model, not a run; give a run's, such as train_nano.yaml")
    config = from_mapping(TrainConfig, content, source=str(path))
    if not changes:
        return config
    values = to_mapping(config)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key:
            raise ConfigError(f"`set={change}`: expected KEY=VALUE, such as seed=1")
        value = parse_yaml(text, f"`set={change}`")
        _set_key(values, key.split("."), value, f"`set={change}`")
    return from_mapping(TrainConfig, values, source=f"{path} with `set`")


class _NewSection(dict[str, Any]):
    """Section that the file leaves out and a change adds; `from_mapping` checks its keys afterwards."""


def _set_key(values: dict[str, Any], keys: Sequence[str], value: Any, source: str) -> None:
    """Set a nested key. Raises: ConfigError for an unknown key, naming the nearest."""
    *path, last = keys
    section: Any = values
    for depth, key in enumerate(path):
        if isinstance(section, dict) and key in section and section[key] is None:
            section[key] = _NewSection()
        if not isinstance(section, dict) or key not in section:
            names = section if isinstance(section, dict) else ()
            raise ConfigError(f"{source}: no key {'.'.join(keys[: depth + 1])!r}{suggest(key, names)}")
        section = section[key]
    accepts_any = isinstance(section, _NewSection) or path[-1:] == ["rates"]
    if not isinstance(section, dict) or (last not in section and not accepts_any):
        names = section if isinstance(section, dict) else ()
        raise ConfigError(f"{source}: no key {'.'.join(keys)!r}{suggest(last, names)}")
    section[last] = value


#: keys that may differ on --resume: training steps do not depend on them
MAY_CHANGE = frozenset({"checkpoint_every", "log_every", "validation", "workers", "device"})
#: keys that differ only where neither value is auto, which may pick another value on another machine
PICKED = frozenset({"precision", "language_dtype"})


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys with different values, without those that may change between two runs.

    >>> config_differences({"seed": 0, "clip": 1.0, "workers": 1}, {"seed": 1, "clip": 1.0, "workers": 2})
    ['seed (0, now 1)']
    >>> config_differences({"precision": "bf16"}, {"precision": "auto"})
    []
    """
    differences = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if prefix == "" and (key in MAY_CHANGE or (key in PICKED and "auto" in (before, after))):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            differences += config_differences(before, after, f"{prefix}{key}.")
        elif before != after:
            differences.append(f"{prefix}{key} ({before}, now {after})")
    return differences
