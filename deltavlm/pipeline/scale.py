"""Ground size of a pixel against that of the model's training: warning, and limit of answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltavlm.model.interface import ModelFacts
from deltavlm.model.kinds import ModelSpec

__all__ = ["FAR_GSD_RATIO", "Scale"]

MAX_GSD_RATIO = 2.02  # of the pixel size to that of the training, in either direction, without a warning
FAR_GSD_RATIO = 8.0  # beyond it, an object of the training is a few pixels, or larger than a chip


@dataclass(frozen=True, slots=True)
class Scale:
    """Ground size of a pixel of an image, and that of the model's training, metres.

    `shrink` is the ratio of the chip size to the model's own: larger chips are resampled to it.
    """

    gsd_m: float | None  # None where it is not known
    training_gsd_m: float | None  # None for a model of any scale
    shrink: float = 1.0
    model: str = "the model"  # its name in warnings

    @classmethod
    def of(cls, gsd_m: float | None, model: ModelFacts | ModelSpec, chip_px: int) -> Scale:
        """Scale of chips of `chip_px` pixels for a model."""
        return cls(gsd_m, model.training_gsd_m, chip_px / model.chip_px)

    @classmethod
    def of_evidence(cls, gsd_m: float | None, model: ModelFacts | ModelSpec, chip_px: int) -> Scale:
        """The same for an evidence model, which the warnings name."""
        return replace(cls.of(gsd_m, model, chip_px), model=f"the evidence model {model.name}")

    @property
    def ratio(self) -> float:
        """Ground size of a pixel of the model's input over that of the training; 1 where one is not known."""
        if self.gsd_m is None or self.training_gsd_m is None:
            return 1.0
        return self.gsd_m * self.shrink / self.training_gsd_m

    @property
    def is_far(self) -> bool:
        """True beyond `FAR_GSD_RATIO` in either direction, where counts, cells and classes do not hold."""
        return not 1 / FAR_GSD_RATIO <= self.ratio <= FAR_GSD_RATIO

    @property
    def kind(self) -> str:
        """Kind of the warning: of pairs of one kind, only the first is warned about."""
        if self.gsd_m is None:
            return f"unknown to {self.model}"
        return f"{'far ' if self.is_far else ''}{'coarser' if self.ratio > 1 else 'finer'} than {self.model}"

    def warning(self, *, limited: bool = False) -> str | None:
        """Warning where the scale is not near that of the training; None where it is.

        `limited`: answers that need that scale are left out, which the warning then says.
        """
        if self.training_gsd_m is None:
            return None
        training = f"{self.model} was trained at {self.training_gsd_m:g} m"
        if self.gsd_m is None:
            return f"the ground size of a pixel is not known; {training}"
        ratio = self.ratio
        if 1 / MAX_GSD_RATIO <= ratio <= MAX_GSD_RATIO:
            return None
        size = (
            f"a pixel is {self.gsd_m:.3g} m"
            if self.shrink == 1
            else f"a chip of this size has {self.gsd_m * self.shrink:.3g} m a pixel"
        )
        text = f"{size}, {training}: its answers are less reliable here"
        if self.is_far:
            times = f"{max(ratio, 1 / ratio):.0f} times {'coarser' if ratio > 1 else 'finer'}"
            text = f"{size}, {training}, {times}: its answers are guesses here"
        if self.is_far and limited:
            text += ", so counts, cells and classes are left out (`any_scale=True` keeps them)"
        if ratio > 1:
            return text
        resample = f"`gsd_m={self.training_gsd_m:g}` resamples both images"
        return f"{text}; {resample if self.shrink == 1 else 'use larger chips'}"
