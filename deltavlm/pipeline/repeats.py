"""Pictures that come again, such as sea or fill: what was said of them the first time is said again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace

from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels
from deltavlm.pipeline.layers import ChipResult

__all__ = ["Repeats", "picture_of"]

MOST = 1024  # pictures; more than a group of chips has, so that none is forgotten before it is answered


def picture_of(pixels: ChipPixels) -> str:
    """A name for what the model sees: equal for two chips that look the same at both dates, byte for byte."""
    both = hashlib.sha256(pixels.before.tobytes())
    both.update(pixels.after.tobytes())
    return both.hexdigest()[:32]


class Repeats:
    """The pictures that came last, and what was said of them.

    Which chips are asked follows from the pictures in their order, and so is the same in a run that is gone
    on with, whose earlier results come first.
    """

    def __init__(self) -> None:
        self._said: OrderedDict[str, ChipResult | None] = OrderedDict()

    def is_new(self, picture: str) -> bool:
        """Whether the picture is not among the last ones; from now on it is."""
        if picture in self._said:
            self._said.move_to_end(picture)
            return False
        self._said[picture] = None
        if len(self._said) > MOST:
            self._said.popitem(last=False)
        return True

    def answered(self, result: ChipResult) -> None:
        """What was said of a picture that came."""
        if self._said.get(result.picture, result) is None:
            self._said[result.picture] = result

    def again(self, picture: str, chip: Chip, valid_fraction: float | None, pair: str) -> ChipResult:
        """The same of another chip with the picture."""
        said = self._said[picture]
        assert said is not None
        return replace(said, chip=chip, valid_fraction=valid_fraction, pair=pair)
