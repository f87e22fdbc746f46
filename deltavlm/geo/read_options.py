"""Locations of a raster pair, and the options of reading it; opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shapely.geometry.base import BaseGeometry

from deltavlm.geo.aoi import aoi_file, check_bbox
from deltavlm.geo.cloud_mask import CloudMask, parse_cloud_mask, parse_qa_band
from deltavlm.geo.location import check_exists
from deltavlm.geo.matching import Matching, check_matching
from deltavlm.geo.radiometry import parse_scale
from deltavlm.geo.resampling import Resampling, parse_resampling

__all__ = ["RasterPair", "ReadOptions", "check_options"]


@dataclass(frozen=True, slots=True)
class RasterPair:
    """Locations of the two images: paths, `https://`, `s3://` or `/vsi...`. Opens nothing.

    Dates are in ISO 8601; None: from the tags of the file.
    """

    before: str
    after: str
    name: str = ""
    before_date: str | None = None
    after_date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options of `open_pair`. `bbox` is xmin, ymin, xmax, ymax in `bbox_crs`."""

    align: Literal["auto", "strict"] = "auto"
    resampling: Resampling = "bilinear"
    before_bands: tuple[int, ...] | None = None
    after_bands: tuple[int, ...] | None = None
    scale: str = "auto"  # as `parse_scale` reads it
    nodata: float | None = None
    alpha_band: Literal["auto", "none"] = "auto"
    gsd_m: float | None = None
    allow_no_crs: bool = False
    allow_vrt: bool = False
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str = "EPSG:4326"
    aoi: Path | BaseGeometry | None = None  # a vector file, or polygons in longitude and latitude
    before_cloud_mask: str | None = None  # as `parse_cloud_mask` reads it
    after_cloud_mask: str | None = None
    qa_band: str | None = None  # of each image without a cloud mask, as `parse_qa_band` reads it
    register: bool = False  # correct the measured shift of `after`
    match: Matching = "none"  # of the colors of `after` to those of `before`
    outlines_only: bool = False  # chip footprints only: no pixel is read

    @property
    def cloud_masks(self) -> tuple[CloudMask | None, CloudMask | None]:
        """Cloud masks of before and after. Raises: ConfigError."""
        masks = (self.before_cloud_mask, self.after_cloud_mask)
        band = None if self.qa_band is None else parse_qa_band(self.qa_band)
        before, after = (band if mask is None else parse_cloud_mask(mask) for mask in masks)
        return before, after


def check_options(options: ReadOptions) -> None:
    """Validate options before any pair is opened.

    Raises:
        ConfigError: the scale, the resampling method, the bbox or a cloud mask is invalid.
        RasterError: the file of the area of interest or of a cloud mask is missing.
    """
    parse_resampling(options.resampling)
    parse_scale(options.scale)
    check_matching(options.match)
    for mask in options.cloud_masks:
        if mask is not None and mask.location is not None:
            check_exists(mask.location)
    if options.bbox is not None:
        check_bbox(options.bbox, options.bbox_crs)
    if isinstance(options.aoi, Path):
        check_exists(str(aoi_file(options.aoi)))
