"""Which picture of a pair `ask` and `chat` talk about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, values
from deltacli.console import voice
from deltacli.flags import RasterFlags
from deltacli.options import CHIPS, flag
from deltacli.outcome import tell_notes
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.geo.grid import Chip
    from deltavlm.geo.pair import PairReader

At = Annotated[
    str | None,
    flag("--at", panel=CHIPS, metavar="LON,LAT", help="The chip around this point; pixels without a CRS."),
]
BboxAsked = Annotated[
    str | None,
    flag(
        "--bbox",
        panel=CHIPS,
        metavar="XMIN,YMIN,XMAX,YMAX",
        help="This box as one picture; with ask --all-chips, the chips that touch it.",
    ),
]
WHOLE = 2  # a pair of at most so many chips' width and height is asked whole
SMALL_PX = 64
LARGEST_PX = 4096  # of a box that is made one picture


@dataclass(frozen=True, kw_only=True)
class PlaceFlags:
    """Where to look in a large pair."""

    at: At = None
    bbox: BboxAsked = None
    bbox_crs: options.BboxCrs = "EPSG:4326"
    chip_size: options.ChipSize = 256

    @property
    def point(self) -> tuple[float, float] | None:
        return None if self.at is None else values.point_of(self.at)

    def chip(self, reader: PairReader) -> Chip:
        """Raises: ConfigError when the pair is too large to be one picture and no place is named."""
        from deltavlm.geo.chips import chip_at, chip_of_bbox, chip_of_pair

        if self.point is not None:
            return chip_at(reader, *self.point, self.chip_size)
        if self.bbox is not None:
            chip = chip_of_bbox(reader, self.chip_size)
            if min(chip.window.width, chip.window.height) < SMALL_PX:
                voice.warn(
                    f"the box is {chip.window.width} x {chip.window.height} px, too small to see much; "
                    "--at takes the surroundings of a point"
                )
            if chip.size > LARGEST_PX:
                raise ConfigError(
                    f"--bbox is {chip.window.width} x {chip.window.height} px, and one picture is at most "
                    f"{LARGEST_PX}; make it smaller"
                )
            return chip
        if max(reader.geobox.width, reader.geobox.height) > WHOLE * self.chip_size:
            raise ConfigError(
                f"the pair is {reader.geobox.width} x {reader.geobox.height} px, too large for one picture "
                f"({WHOLE * self.chip_size} px): name a place with --at LON,LAT or --bbox; ask "
                "--all-chips asks everywhere"
            )
        return chip_of_pair(reader, self.chip_size)


@contextmanager
def opened(before: str, after: str, place: PlaceFlags, rasters: RasterFlags) -> Iterator[PairReader]:
    """The pair, with what was found of it said."""
    places = values.location_of("BEFORE", before), values.location_of("AFTER", after)
    if place.point is not None and place.bbox is not None:
        raise typer.BadParameter("cannot be combined with --bbox", param_hint="--at")
    read_options = rasters.read_options(place.bbox, place.bbox_crs)

    from deltavlm.geo.pair import RasterPair, open_pair

    with open_pair(RasterPair(*places), read_options) as reader:
        tell_notes(reader)
        yield reader
