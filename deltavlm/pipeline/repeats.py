"""Pictures that come again, such as sea or fill: what was said of them the first time is said again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace

from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.sidecar import Ticket

__all__ = ["Repeats", "Said", "picture_of"]

MOST = 1024  # pictures


def picture_of(pixels: ChipPixels) -> str:
    """A name for what the model sees: equal for two chips that look the same at both dates, byte for byte."""
    both = hashlib.sha256(pixels.before.tobytes())
    both.update(pixels.after.tobytes())
    return both.hexdigest()[:32]


@dataclass(slots=True)
class Said:
    """What was said of a picture; None until it is answered."""

    result: ChipResult | None = None

    def again(
        self, chip: Chip, valid_fraction: float | None, pair: str, holes: Ticket | None = None
    ) -> ChipResult:
        """The same of another chip with the picture, which may have no data in other places."""
        assert self.result is not None
        return replace(self.result, chip=chip, valid_fraction=valid_fraction, pair=pair, holes=holes)


class Repeats:
    """The pictures that came last, and what was said of them.

    Which chips are asked follows from the pictures in their order, and so is the same in a run that is gone
    on with, whose earlier results come first, and where batches are asked side by side.
    """

    def __init__(self) -> None:
        self._said: OrderedDict[str, Said] = OrderedDict()

    def of(self, picture: str) -> tuple[Said, bool]:
        """What was or will be said of the picture, and whether it is new: not among the last ones."""
        if picture in self._said:
            self._said.move_to_end(picture)
            return self._said[picture], False
        said = self._said[picture] = Said()
        if len(self._said) > MOST:
            self._said.popitem(last=False)
        return said, True
