"""A training run in numbers. `configs/train_nano.yaml` is the recipe of the shipped weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["vision", "language", "joint"]


@dataclass(frozen=True, slots=True)
class Scenes:
    """Made scenes, drawn once: `train` of them, `far` more whose pixels are twice as coarse, and `stormy`
    ones, between whose dates light, haze and contrast differ twice as much, and of which half change."""

    train: int
    validation: int
    size_px: int = 256
    change: float = 0.6
    far: int = 0
    stormy: int = 0


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training.

    `part` "vision" fits encoder, difference and dense head to masks; "language" fits what reads them, the
    Q-Former and the language model, to words; "joint" fits everything to both. A phase starts from the
    averaged weights of the phase before it.
    """

    part: Part
    steps: int
    batch: int
    lr: float
    warmup: int = 200
    crop_px: int | None = None
    weight_decay: float = 0.03
    words: float = 1.0  # weight of the words' loss beside the masks'
    rows: int = 5  # questions asked about a pair in one step, at most
    extra: float = 0.5  # of them beside the four standing ones, on average: open questions and later turns
    far: float = 0.0  # share of the pairs that come from the far scenes
    stormy: float = 0.0  # share of the pairs that come from the stormy scenes
    toned: float = 0.0  # share of the pairs whose colours are developed anew every time
    hidden: float = 0.0  # mean share of the difference tokens that a question does not get to see


@dataclass(frozen=True, slots=True)
class TrainConfig:
    model: str  # name of a model config in configs/
    scenes: Scenes
    phases: dict[str, Phase]
    seed: int = 0
    clip: float = 1.0
    ema: float = 0.999
    checkpoint_every: int = 500  # steps
