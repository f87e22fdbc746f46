"""A training run in numbers. `configs/train_nano.yaml` is the recipe of the shipped weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from deltavlm.config import from_mapping, read_yaml, suggest, to_mapping
from deltavlm.errors import ConfigError
from deltavlm.tasks import TASKS, TaskName

Part = Literal["vision", "language", "joint", "align", "instruct"]
Precision = Literal["fp32", "bf16", "fp16"]
ASKING: tuple[Part, ...] = ("language", "joint", "instruct")  # parts that learn words, and so can be asked


@dataclass(frozen=True, slots=True)
class Scenes:
    """Made scenes, drawn once: `train` of them, `far` more whose pixels are twice as coarse, `stormy` ones,
    between whose dates light, haze and contrast differ twice as much, and of which half change, and `rich`
    ones, with more kinds of land, of building and of nuisance, at one to three times the pixel size."""

    train: int
    validation: int
    size_px: int = 256
    change: float = 0.6
    far: int = 0
    stormy: int = 0
    rich: int = 0
    weight: float = 1.0  # share beside the sets'


@dataclass(frozen=True, slots=True)
class Records:
    """A ChangeChat-format set on disk: ChangeChat-105k, or what `deltavlm synth chips` writes.

    Relative paths start from the current folder. `held_out` pairs, drawn by the seed, are not trained on but
    validated on; a set of weight 0 is for validation alone.
    """

    path: Path
    images: Path | None = None  # left out: the folder `images` beside the files
    split: Literal["train", "val", "test"] = "train"
    tasks: tuple[TaskName, ...] = tuple(TASKS)
    weight: float = 1.0
    held_out: int = 0


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training.

    What a `part` fits, and to what:

    - "vision": encoder, difference and dense head, to masks
    - "language": what reads them, the Q-Former and the language model, to words
    - "joint": everything, to both
    - "align": difference and Q-Former, to which caption belongs to which pair (BLIP-2's contrastive and
      matching losses, arXiv 2301.12597)
    - "instruct": everything but the language model, to words

    `rates` changes that: names of organs or of what is inside them ("vision", "vision.tower.blocks.37")
    with a factor on the learning rate; 0 holds them still, and the longest name that fits counts. A phase
    starts from the averaged weights of the phase before it.
    """

    part: Part
    steps: int
    batch: int  # pairs a step, in all processes together
    lr: float
    warmup: int = 200
    crop_px: int | None = None
    weight_decay: float = 0.03  # of matrices; biases and norms have none
    words: float = 1.0  # weight of the words' loss beside the masks'
    rows: int = 5  # questions asked about a pair in one step, at most
    extra: float = 0.5  # of them beside the four standing ones, on average: open questions and later turns
    far: float = 0.0  # share of the pairs that come from the far scenes
    stormy: float = 0.0  # share of the pairs that come from the stormy scenes
    rich: float = 0.0  # share of the pairs that come from the rich scenes
    color_jitter: float = 0.0  # share of the pairs whose colours are developed anew every time
    token_dropout: float = 0.0  # mean share of the difference tokens that a question does not get to see
    evidence_noise: float = 0.0  # share of the pairs whose evidence from the dense head is made less sure
    rates: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.98)
    floor: float = 0.01  # what the cosine comes down to, as a share of lr
    micro: int | None = None  # pairs that a process looks at at once; left out: its whole share of the batch
    balance: Literal["root", "token"] = "root"  # an answer weighs the root of its length, or its length
    cut: float = 0.0  # up to this share of a picture's side is cut off, the same of both dates
    turn_deg: float = 0.0  # and it is turned by up to so many degrees

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "warmup": 0, "rows": 1, "lr": 0, "turn_deg": 0}
        for name, limit in least.items():
            if not limit <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, less than {limit} or not finite")
        if self.micro is not None and self.micro < 1:
            raise ValueError(f"micro is {self.micro}, less than 1")
        for name in (
            "far",
            "stormy",
            "rich",
            "color_jitter",
            "token_dropout",
            "evidence_noise",
            "floor",
            "cut",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not between 0 and 1")
        for name, factor in self.rates.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"rates.{name} is {factor}, less than 0 or not finite")


@dataclass(frozen=True, slots=True)
class Validation:
    """Every so many steps (and at the end of a phase): losses and scores on the validation scenes and on what
    the sets hold out.

    `metric` names one of the logged figures, as "changechat.caption.all.bleu_4": the weights that had it
    best are kept and handed on. With `patience` a phase ends when it was not beaten so many times in a row.
    """

    every: int
    pairs: int = 200  # of each source, at most
    answers: bool = True  # ask the questions and score the answers; False: losses alone
    metric: str | None = None
    lower: bool = False  # the metric is an error: less is better
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.pairs < 1:
            raise ValueError("every and pairs are at least 1")
        if self.patience is not None and (self.metric is None or self.patience < 1):
            raise ValueError("patience counts a metric's defeats: name the metric, and give at least 1")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A run: which model, from which weights, on what, in which phases, and how the machine is used."""

    model: str  # name of a model config in configs/
    phases: dict[str, Phase]
    scenes: Scenes | None = None
    sets: dict[str, Records] = field(default_factory=dict)
    start: str | None = None  # a model's name or folder whose weights it starts from; left out: fresh ones
    fresh: tuple[Literal["difference", "qformer", "projection"], ...] = ()  # organs that begin anew in it
    seed: int = 0
    clip: float = 1.0
    ema: float = 0.999  # of the weights; 0: the last weights count
    checkpoint_every: int = 500  # steps
    log_every: int = 50  # steps
    validation: Validation | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "bf16"  # of what is computed; weights that are fitted are fp32
    language_dtype: Precision = "fp32"  # of a language model that no phase fits
    recompute: bool = False  # activations twice instead of keeping them: less memory, more time
    sharding: Literal["ddp", "fsdp"] = "ddp"  # of several processes: each the whole model, or a part of it
    workers: int = 1  # threads that read batches ahead

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("there are no phases")
        if self.scenes is None and not self.sets:
            raise ValueError("there is nothing to train on: give scenes or sets")
        weights = [each.weight for each in (self.scenes, *self.sets.values()) if each is not None]
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError("weights of scenes and sets must not be negative, and not all of them 0")
        for name in ("checkpoint_every", "log_every", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, less than 1")
        if not (0 <= self.ema < 1 and self.clip > 0):
            raise ValueError("ema is from 0 to below 1, clip above 0")
        if self.validation is not None:
            known = [name for name, records in self.sets.items() if records.held_out]
            known += ["scenes"] * (self.scenes is not None)
            if not known:
                raise ValueError(
                    "validation has nothing to look at: give scenes, or a set that holds some out"
                )
            metric = self.validation.metric
            if metric is not None and metric.split(".")[0] not in known:
                raise ValueError(
                    f"validation.metric {metric!r} does not begin with one of {', '.join(known)}"
                )
        for name, phase in self.phases.items():
            if not name.isidentifier():
                raise ValueError(f"phase {name!r} is not a name of letters, digits and _")
            if phase.part in ("vision", "joint") and (self.scenes is None or not self.scenes.weight):
                raise ValueError(f"phase {name} fits masks, and only scenes have them")
            if phase.part == "vision" and any(records.weight for records in self.sets.values()):
                raise ValueError(f"phase {name} fits masks alone, and sets have none; give them weight 0")
            if phase.crop_px and any(records.weight for records in self.sets.values()):
                raise ValueError(
                    f"phase {name} cuts crop_px from scenes, and sets have words about whole pairs"
                )


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """A run's configuration from YAML, with `key=value` changes, dotted keys, values as in YAML.

    Raises: ConfigError naming file, key and value.
    """
    config = from_mapping(TrainConfig, read_yaml(path), source=str(path))
    if not changes:
        return config
    values = to_mapping(config)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {change}: expected KEY=VALUE, such as seed=1")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {change}: {text!r} is not a YAML value") from error
        _put(values, key.split("."), value, f"--set {change}")
    return from_mapping(TrainConfig, values, source=f"{path} with --set")


class _Opened(dict[str, Any]):
    """A group of keys that the file leaves out; they are checked when the whole is read."""


def _put(values: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> None:
    """Raises: ConfigError for a key that is not there, naming the nearest."""
    *path, last = keys
    inside: Any = values
    for depth, key in enumerate(path):
        if isinstance(inside, dict) and key in inside and inside[key] is None:
            inside[key] = _Opened()
        if not isinstance(inside, dict) or key not in inside:
            known = inside if isinstance(inside, dict) else ()
            raise ConfigError(f"{where}: no key {'.'.join(keys[: depth + 1])!r}{suggest(key, known)}")
        inside = inside[key]
    free = isinstance(inside, _Opened) or path[-1:] == ["rates"]
    if not isinstance(inside, dict) or (last not in inside and not free):
        known = inside if isinstance(inside, dict) else ()
        raise ConfigError(f"{where}: no key {'.'.join(keys)!r}{suggest(last, known)}")
    inside[last] = value


#: keys that may differ when a run goes on: no step hangs on them
HARMLESS = frozenset({"checkpoint_every", "log_every", "validation", "workers", "device"})


def differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> list[str]:
    """Dotted keys whose values differ, those that are harmless left out.

    >>> differences({"seed": 0, "clip": 1.0, "workers": 1}, {"seed": 1, "clip": 1.0, "workers": 2})
    ['seed (0, now 1)']
    """
    found = []
    for key in dict.fromkeys([*old, *new]):
        if above == "" and key in HARMLESS:
            continue
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{above}{key}.")
        elif left != right:
            found.append(f"{above}{key} ({left}, now {right})")
    return found
