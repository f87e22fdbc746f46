"""One of many pairs: by what it is known again, what is kept of it when it was opened, what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import Polygon

from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.location import file_identity, redact_credentials
from deltavlm.geo.pair import PairReader
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.pairs import Pair

__all__ = ["Outcome", "PairMark", "PairRecord", "PairStatus"]

PairStatus = Literal["answered", "partly", "failed"]
CUT_OFF = "--limit was reached within it"


@dataclass(frozen=True, slots=True)
class PairMark:
    """By what a pair is known again without opening it."""

    before: str  # without what may be secret
    after: str
    aoi: str | None
    files: list[dict[str, int] | None]  # `file_identity` of both

    @classmethod
    def of(cls, pair: Pair) -> PairMark:
        return cls(
            redact_credentials(pair.before),
            redact_credentials(pair.after),
            None if pair.aoi is None else str(pair.aoi),
            [file_identity(location) for location in (pair.before, pair.after)],
        )

    def is_still(self, pair: Pair) -> bool:
        """Whether the pair is the same; its files may have gone since."""
        now = PairMark.of(pair)
        return (self.before, self.after, self.aoi) == (now.before, now.after, now.aoi) and all(
            file is None or file == known for file, known in zip(now.files, self.files, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PairRecord:
    """What is kept of a pair that was opened, so that its chips can be made again."""

    mark: PairMark
    crs: str | None  # WKT
    transform: list[float]
    width: int
    height: int
    gsd_m: float | None
    chips: int  # of the grid, those that are asked for
    notes: list[str]
    inputs: str  # `reader.provenance()` as JSON, which takes a tenth of the memory

    @classmethod
    def of(cls, pair: Pair, reader: PairReader, grid: ChipGrid) -> PairRecord:
        """The record of an open pair whose chips are those of `grid`."""
        return cls.read(
            {
                "mark": asdict(PairMark.of(pair)),
                "crs": reader.geobox.crs.to_wkt() if reader.geobox.crs else None,
                "transform": list(reader.geobox.transform)[:6],
                "width": reader.geobox.width,
                "height": reader.geobox.height,
                "gsd_m": reader.gsd_m,
                "chips": len(grid),
                "notes": list(reader.notes),
                "inputs": json.dumps(reader.provenance()),
            }
        )

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> PairRecord:
        """The record that `asdict` has made plain values of."""
        crs = told["crs"] and sys.intern(told["crs"])  # many pairs have the same
        return cls(**{**told, "crs": crs, "mark": PairMark(**told["mark"])})

    def grid(self, chip_px: int, overlap_px: int) -> ChipGrid:
        """All chips of the pair; which of them were asked about, the journal knows."""
        return ChipGrid(self.pixels, chip_px, overlap_px)

    @property
    def pixels(self) -> GeoBox:
        """Where its pixels lie on the ground."""
        crs = None if self.crs is None else CRS.from_wkt(self.crs)
        return GeoBox(self.width, self.height, Affine(*self.transform), crs)

    @property
    def footprint(self) -> Polygon:
        return self.pixels.footprint


@dataclass(slots=True)
class Outcome:
    """What a run has come to for one pair."""

    pair: Pair
    record: PairRecord | None = None
    chips: int = 0
    changed: int = 0
    failed: int = 0  # chips
    reason: str = ""  # why it failed, or its first chip did

    def add(self, result: ChipResult) -> None:
        """Count a chip of the pair."""
        change = result.of_task("change")
        self.chips += 1
        self.changed += change is not None and change.value is True
        if result.status in ("unreadable", "error"):
            self.failed += 1
            self.reason = self.reason or result.reason

    @property
    def status(self) -> PairStatus:
        if self.record is None:
            return "failed"
        return "partly" if self.failed or self.chips < self.record.chips else "answered"

    @property
    def why(self) -> str | None:
        """Why it was not answered wholly."""
        return None if self.status == "answered" else self.reason or CUT_OFF
