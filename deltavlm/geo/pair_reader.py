"""Reader of an open raster pair: chips of the same ground at two dates, as RGB uint8 on one pixel grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import Alignment
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.identity import Identity, current_identity, is_same
from deltavlm.geo.matching import ColorMatch
from deltavlm.geo.radiometry import Stretch, Stretches, to_uint8
from deltavlm.geo.read_options import ReadOptions
from deltavlm.geo.registration import Registration, Shift, measure_shift
from deltavlm.geo.view import Raw, View
from deltavlm.messages import redact, redact_address

__all__ = ["MAX_CHIPS", "ChipPixels", "PairReader"]

MAX_CHIPS = 10_000_000


@dataclass(frozen=True, slots=True)
class ChipPixels:
    """Input of the model for a chip. Pixels without data at either date have the mean color in both."""

    chip: Chip
    before: NDArray[np.uint8]  # (3, size, size) RGB
    after: NDArray[np.uint8]  # (3, size, size) RGB
    valid: NDArray[np.bool_]  # (size, size), True where both dates have data
    cloud_share: float | None = None  # of the real pixels, hidden by a cloud mask alone; None without one

    @property
    def valid_fraction(self) -> float:
        """Share of the chip's real pixels, padding apart, where both dates have data."""
        real = self.valid[: self.chip.window.height, : self.chip.window.width]
        return float(np.count_nonzero(real) / real.size)

    def measure_shift(self) -> Shift | None:
        """Shift of `after` against `before`; None where it cannot be measured."""
        rows, cols = slice(self.chip.window.height), slice(self.chip.window.width)
        return measure_shift(self.before[:, rows, cols], self.after[:, rows, cols], self.valid[rows, cols])


@dataclass(frozen=True)
class PairReader:
    """Open pair; made by `open_pair`, valid inside its `with`, for one thread."""

    alignment: Alignment
    views: tuple[View, View] = field(repr=False)
    stretches: Stretches
    aoi: BaseGeometry | None  # bbox and area of interest of the options, in the CRS of the grid
    options: ReadOptions
    notes: tuple[str, ...]  # for the user, a sentence each
    warnings: tuple[str, ...]  # those of the notes that may make the answers wrong
    dates: tuple[str | None, str | None] = (None, None)  # ISO 8601, of before and after
    registration: Registration = field(default_factory=Registration)
    color_match: ColorMatch | None = None  # part of the stretch of `after` already

    @property
    def geobox(self) -> GeoBox:
        """Common pixel grid: that of `before`, cropped to what both dates cover."""
        return self.alignment.geobox

    @cached_property
    def gsd_m(self) -> float | None:
        """Ground sample distance of the grid in metres, at its center; None without a CRS."""
        return self.geobox.gsd_m

    def with_note(self, note: str, is_warning: bool) -> PairReader:
        """The same reader with one more note."""
        warnings = (*self.warnings, note) if is_warning else self.warnings
        return replace(self, notes=(*self.notes, note), warnings=warnings)

    @property
    def aoi_window(self) -> Window:
        """Pixels under the bounds of the bbox or area of interest; without one, the whole grid."""
        geobox = self.geobox
        if self.aoi is None:
            return Window(0, 0, geobox.width, geobox.height)
        corners = geobox.to_pixels(shapely.get_coordinates(self.aoi))
        xmin, ymin, xmax, ymax = shapely.MultiPoint(corners).bounds
        first = max(0, math.floor(xmin + 1e-6)), max(0, math.floor(ymin + 1e-6))
        last = min(geobox.width, math.ceil(xmax - 1e-6)), min(geobox.height, math.ceil(ymax - 1e-6))
        return Window(*first, max(1, last[0] - first[0]), max(1, last[1] - first[1]))

    def chips(self, size: int = 256, overlap: int = 0) -> ChipGrid:
        """Chips of the pair, in pixels; only those that touch the bbox or area of interest.

        Raises:
            ConfigError: more than MAX_CHIPS.
        """
        grid = ChipGrid(self.geobox, size, overlap, self.aoi)
        if grid.rows * grid.cols > MAX_CHIPS:
            raise ConfigError(
                f"{grid.rows} x {grid.cols} chips are more than {MAX_CHIPS:,}; cut larger ones, "
                "with less overlap"
            )
        return grid

    def read(self, chip: Chip) -> ChipPixels:
        """Read the pixels of a chip of `chips()`.

        Raises:
            RasterError: a block of a file cannot be decoded; other chips may be readable.
            ValueError: the pair was opened with `outlines_only`.
        """
        if self.options.outlines_only:
            raise ValueError("a pair opened for outlines only has no pixels")
        _, _, width, height = chip.window
        try:
            raws = [view.read_raw(view.allocate(height, width), chip.window) for view in self.views]
        except RasterError as error:
            raise RasterError(f"chip {chip.chip_id}: {error}") from error
        return self.to_chip_pixels(chip, raws)

    def to_chip_pixels(self, chip: Chip, raws: Sequence[Raw]) -> ChipPixels:
        """Convert the raw pixels of a chip's window at both dates to the input of the model."""
        converted = (view.to_rgb(raw) for view, raw in zip(self.views, raws, strict=True))
        values, masks = zip(*converted, strict=True)
        images = [to_uint8(date, stretch) for date, stretch in zip(values, self.stretches, strict=True)]
        valid = masks[0] & masks[1]
        clouds = [raw.clouds for raw in raws if raw.clouds is not None]
        cloud_share = None
        if clouds:
            hidden = valid & np.logical_or.reduce(clouds)
            cloud_share = float(np.count_nonzero(hidden) / hidden.size)
            valid &= ~hidden
        if valid.shape == (chip.size, chip.size) and valid.all():
            return ChipPixels(chip, images[0], images[1], valid, cloud_share)
        valid_colors = np.concatenate([image[:, valid] for image in images], axis=1)
        fill = valid_colors.mean(axis=1).round() if valid.any() else np.zeros(3)
        height, width = valid.shape
        squares = np.empty((2, 3, chip.size, chip.size), np.uint8)
        squares[:] = fill.astype(np.uint8)[:, None, None]
        for square, image in zip(squares, images, strict=True):
            np.copyto(square[:, :height, :width], image, where=valid)
        mask = np.zeros((chip.size, chip.size), bool)
        mask[:height, :width] = valid
        return ChipPixels(chip, squares[0], squares[1], mask, cloud_share)

    @property
    def files(self) -> tuple[Mapping[str, Identity], ...]:
        """Files that each date reads, as they were when they were opened."""
        return tuple(
            {**view.source.files, **({} if view.clouds is None else view.clouds.files)} for view in self.views
        )

    def changed_file(self) -> str | None:
        """Name of a file that was written over or replaced since it was opened, None if there is none."""
        for file, identity in (item for files in self.files for item in files.items()):
            if not is_same(identity, current_identity(file)):
                return redact_address(file)
        return None

    def provenance(self) -> dict[str, object]:
        """Origin of the pixels and their processing, as JSON values."""
        options, placement, geobox = self.options, self.alignment.placement, self.geobox
        return {
            "before": _describe(self.views[0], self.stretches[0]),
            "after": _describe(self.views[1], self.stretches[1]),
            "grid": {
                "crs": geobox.crs.to_string() if geobox.crs else None,
                "transform": list(geobox.transform)[:6],
                "width": geobox.width,
                "height": geobox.height,
                "gsd_m": self.gsd_m,
            },
            "alignment": {
                "same_grid": placement.offset is not None,
                "error_px": placement.error_px if math.isfinite(placement.error_px) else None,
                "resampling": options.resampling,
                "overlap_share": self.alignment.overlap_share,
            },
            "registration": self.registration.record(geobox),
            "scale": options.scale,
            "match": self.color_match and self.color_match.record(),
            "bbox": list(options.bbox) if options.bbox else None,
            "bbox_crs": options.bbox_crs if options.bbox else None,
            "aoi": redact(str(options.aoi)) if options.aoi else None,
        }


def _describe(view: View, stretch: Stretch | None) -> dict[str, object]:
    source = view.source
    geobox = source.geobox
    nodata = [value if value is None or math.isfinite(value) else str(value) for value in source.nodata]
    return {
        "path": source.name,
        "crs": geobox.crs.to_string() if geobox.crs else None,
        "width": geobox.width,
        "height": geobox.height,
        "dtype": source.dtype,
        "bands": list(source.bands),
        "nodata": nodata[0] if len(set(nodata)) == 1 else nodata,
        "warped": view.dataset is not source.dataset,
        "stretch": {"low": list(stretch.low), "high": list(stretch.high)} if stretch else None,
        "cloud_mask": view.clouds.record() if view.clouds else None,
    }
