"""State of one pair of a run: identity for resuming, record of the opened pair, result."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import Polygon

from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.location import file_identity
from deltavlm.geo.pair import PairReader
from deltavlm.messages import redact_address
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import PairStatus

__all__ = ["PairIdentity", "PairRecord", "PairResult"]

LIMIT_REACHED = "--limit was reached within it"


@dataclass(frozen=True, slots=True)
class PairIdentity:
    """Identity of a pair for resuming: redacted locations, AOI, size and modification time of both files."""

    before: str  # without credentials
    after: str
    aoi: str | None
    files: list[dict[str, int] | None]  # `file_identity` of both; None for a remote file

    @classmethod
    def of(cls, pair: Pair) -> PairIdentity:
        return cls(
            redact_address(pair.before),
            redact_address(pair.after),
            None if pair.aoi is None else str(pair.aoi),
            [file_identity(location) for location in (pair.before, pair.after)],
        )

    def matches(self, pair: Pair) -> bool:
        """True if the pair has not changed since; files that have been removed do not count."""
        now = PairIdentity.of(pair)
        return (self.before, self.after, self.aoi) == (now.before, now.after, now.aoi) and all(
            file is None or file == earlier for file, earlier in zip(now.files, self.files, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PairRecord:
    """Record of an opened pair, from which its chips can be placed without opening it again."""

    identity: PairIdentity
    crs: str | None  # WKT
    transform: list[float]  # a, b, c, d, e, f
    width: int  # px
    height: int
    gsd_m: float | None
    chips: int  # chips of the grid inside the area of interest
    notes: list[str]
    inputs: str  # `PairReader.provenance()` as JSON, which takes a tenth of the memory
    dates: tuple[str | None, str | None]  # ISO 8601, of before and after
    aoi: str | None = None  # area of interest in the CRS of the grid, WKB in hexadecimal digits

    @classmethod
    def of(cls, pair: Pair, reader: PairReader, chips: ChipGrid) -> PairRecord:
        """Record of an open pair that is cut into `chips`."""
        return cls.from_dict(
            {
                "identity": asdict(PairIdentity.of(pair)),
                "crs": reader.geobox.crs.to_wkt() if reader.geobox.crs else None,
                "transform": list(reader.geobox.transform)[:6],
                "width": reader.geobox.width,
                "height": reader.geobox.height,
                "gsd_m": reader.gsd_m,
                "chips": len(chips),
                "notes": list(reader.notes),
                "inputs": json.dumps(reader.provenance()),
                "dates": reader.dates,
                "aoi": None if reader.aoi is None else shapely.to_wkb(reader.aoi, hex=True),
            }
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PairRecord:
        """Inverse of `asdict`."""
        crs = values["crs"] and sys.intern(values["crs"])  # many pairs share one
        identity, (before_date, after_date) = PairIdentity(**values["identity"]), values["dates"]
        return cls(**{**values, "crs": crs, "identity": identity, "dates": (before_date, after_date)})

    def chip_grid(self, chip_px: int, overlap_px: int) -> ChipGrid:
        """Chip grid of the pair."""
        return _chip_grid(self.geobox, chip_px, overlap_px, self.aoi)

    @property
    def geobox(self) -> GeoBox:
        """Pixel grid of the pair."""
        crs = None if self.crs is None else CRS.from_wkt(self.crs)
        return GeoBox(self.width, self.height, Affine(*self.transform), crs)

    @property
    def overlap_share(self) -> float | None:
        """Share of before's area that after covers."""
        share: float | None = json.loads(self.inputs)["alignment"]["overlap_share"]
        return share

    @property
    def shift_px(self) -> float | None:
        """Shift between the dates before any correction, in pixels; None where it cannot be measured."""
        length: float | None = json.loads(self.inputs)["registration"]["shift_px"]
        return length

    @property
    def footprint(self) -> Polygon:
        """Outline of the pixel grid, in its CRS."""
        return self.geobox.footprint


@lru_cache(maxsize=2)  # selecting the chips of a large grid by an area of interest takes seconds
def _chip_grid(geobox: GeoBox, chip_px: int, overlap_px: int, aoi: str | None) -> ChipGrid:
    return ChipGrid(geobox, chip_px, overlap_px, None if aoi is None else shapely.from_wkb(aoi))


@dataclass(slots=True)
class PairResult:
    """Result of a run for one pair."""

    pair: Pair
    record: PairRecord | None = None  # None: it could not be opened
    chips: int = 0
    changed: int = 0  # chips
    failed: int = 0  # chips
    reason: str = ""  # error message of the pair, or of its first failed chip

    def add(self, result: ChipResult) -> None:
        """Count a chip of the pair."""
        self.chips += 1
        self.changed += result.changed is True
        if result.failed:
            self.failed += 1
            self.reason = self.reason or result.reason

    @property
    def status(self) -> PairStatus:
        if self.record is None:
            return "failed"
        return "partly" if self.failed or self.chips < self.record.chips else "answered"

    @property
    def failure(self) -> str | None:
        """Reason why the pair was not answered completely; None if it was."""
        return None if self.status == "answered" else self.reason or LIMIT_REACHED
