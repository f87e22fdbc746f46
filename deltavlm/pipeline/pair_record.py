"""State of one pair of a run: identity for resuming, record of the opened pair, result."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from shapely.errors import ShapelyError
from shapely.geometry import Polygon

from deltavlm.config import from_mapping
from deltavlm.errors import ConfigError
from deltavlm.geo.drivers import MAX_PIXELS
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.identity import Identity, content_identity, current_identity, is_same
from deltavlm.geo.pair import PairReader, ReadOptions
from deltavlm.messages import redact, redact_address
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import PairStatus

__all__ = ["PairIdentity", "PairRecord", "PairResult"]

LIMIT_REACHED = "the limit was reached within it"


@dataclass(frozen=True, slots=True)
class PairIdentity:
    """Identity of a pair for resuming, without its addresses, which may hold secrets."""

    before: str  # without secrets
    after: str
    aoi: str | None  # of the pair, in a list
    files: list[dict[str, Identity]]  # of each date, by file without secrets
    aoi_file: Identity | None = None  # content of the file of the area of interest
    cloud_masks: list[str] = field(default_factory=list)  # of before and after, without secrets

    @classmethod
    def of(
        cls, pair: Pair, read: ReadOptions, files: Iterable[Mapping[str, Identity]] | None = None
    ) -> PairIdentity:
        """Identity of a pair; `files` are those of its reader, None if it could not be opened."""
        aoi = read.aoi if pair.aoi is None else pair.aoi
        if files is None:
            files = (
                {each: known for each in locations if (known := current_identity(each))}
                for locations in pair.locations
            )
        return cls(
            redact_address(pair.before),
            redact_address(pair.after),
            None if pair.aoi is None else redact(str(pair.aoi)),
            [{redact_address(file): _stored(identity) for file, identity in each.items()} for each in files],
            content_identity(aoi) if isinstance(aoi, Path) else None,
            [redact_address(mask) for mask in pair.cloud_masks],
        )

    def has_files_of(self, other: PairIdentity) -> bool:
        """True if neither has a file that is another in the other."""
        return all(
            mine.keys() == others.keys() and all(is_same(mine[file], others[file]) for file in mine)
            for mine, others in zip(self.files, other.files, strict=True)
        )

    def matches(self, pair: Pair, read: ReadOptions) -> bool:
        """True if the pair has not changed since; files that have been removed do not count."""
        now = PairIdentity.of(pair, read)
        names, names_now = ((each.before, each.after, each.aoi, each.cloud_masks) for each in (self, now))
        if names != names_now:
            return False
        current = now.files[0] | now.files[1]
        known = self.files[0] | self.files[1]
        others = {file: _stored(current_identity(file) or {}) for file in known.keys() - current.keys()}
        return (
            current.keys() <= known.keys()  # else a file that was missing is there
            and is_same(self.aoi_file, now.aoi_file)
            and all(is_same(identity, (current | others)[file]) for file, identity in known.items())
        )


def _stored(identity: Identity) -> Identity:
    """Identity for the journal: a copy of a file in its place, as from a backup, is the same file."""
    return {key: value for key, value in identity.items() if key != "inode"}


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
                "identity": asdict(PairIdentity.of(pair, reader.options, reader.files)),
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
        """Inverse of `asdict`. Raises: ConfigError for values that no record has."""
        record = from_mapping(cls, values, "record")
        try:
            record.check()
        except (ValueError, TypeError, LookupError, RecursionError, CRSError, ShapelyError) as error:
            raise ConfigError(f"record: {error}") from error
        return replace(record, crs=record.crs and sys.intern(record.crs))  # many pairs share one

    def check(self) -> None:
        """Raises: ValueError, TypeError, LookupError, CRSError or ShapelyError for impossible values."""
        numbers = [*self.transform, self.gsd_m or 0.0, self.overlap_share or 0.0, self.shift_px or 0.0]
        if not all(map(math.isfinite, numbers)) or len(self.transform) != 6:
            raise ValueError("not six finite numbers in its transform, or a size that is not finite")
        if min(self.width, self.height) < 1 or self.width * self.height > MAX_PIXELS or self.chips < 0:
            raise ValueError(f"{self.width} x {self.height} px with {self.chips} chips")
        if len(self.identity.files) != 2:
            raise ValueError("not the files of two dates")
        if self.aoi is not None:
            shapely.from_wkb(self.aoi)
        _ = self.geobox  # with its CRS
        if not isinstance(json.loads(self.inputs)["registration"]["corrected"], bool):
            raise ValueError("no word on whether its shift is corrected")

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
        share = json.loads(self.inputs)["alignment"]["overlap_share"]
        return None if share is None else float(share)

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
