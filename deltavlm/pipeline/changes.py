"""What changed, as ground: the masks of chips laid together, as rasters and as the layer `changes`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.blend import FULL, NODATA, Block, ChipMask, blend_blocks
from deltavlm.geo.cog import Cog, RasterStyle
from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.geobox import LONLAT, GeoBox, Window, project
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.measure import measure_of
from deltavlm.geo.polygonize import Polygonizer, Region, simplify_polygons
from deltavlm.geo.styles import CLASSES
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.masks import KINDS, read_holes, read_mask
from deltavlm.pipeline.sidecar import Ticket

__all__ = ["CHANGES", "MASK", "PROBABILITY", "ChangeOptions", "Drawing", "draw"]

CHANGES = Layer(
    "changes",
    (
        Field("class", "str", "What was built, removed or altered there: building, road or other"),
        Field("area_m2", "float", "Area on the ground, square metres"),
        Field("perimeter_m", "float", "Length of the outline on the ground, holes included, metres"),
        Field("mean_score", "float", "Mean probability of the class within, 0 to 1"),
        Field("lon", "float", "Longitude of the centroid, degrees"),
        Field("lat", "float", "Latitude of the centroid, degrees"),
        Field("chip_ids", "list", "Chips that it was seen in"),
        Field("caption", "str", "The caption of the chip that holds most of it"),
        Field("before_date", "str", "When the earlier image was taken, as was said"),
        Field("after_date", "str", "When the later image was taken, as was said"),
    ),
)

MASK = RasterStyle(
    band_names=("class of change",),
    overview_resampling="nearest",
    colormap={0: (0, 0, 0, 0)}
    | {KINDS.index(name) + 1: (*colour, 255) for name, colour in CLASSES},  # as of the polygons
    categories=("none", *KINDS),
)
PROBABILITY = RasterStyle(band_names=KINDS, overview_resampling="average", scale=1 / FULL)


SPECK = 3  # values of a mask; of nano's polygons below that few are right (benchmarks/results.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOptions:
    """From masks to polygons."""

    threshold: float = 0.5  # changed is what is so probably any of KINDS
    min_area_m2: float | None = None  # smaller polygons are dropped; None: those below SPECK
    simplify_px: float | None = None  # of `simplify_polygons`, pixels of the grid; None: half one of the mask
    before_date: str | None = None
    after_date: str | None = None


@dataclass
class Drawing:
    """The chips of a pair and where their masks are."""

    chips: ChipGrid
    grid: GeoBox  # the pixels that they are cut from
    result: Callable[[Chip], ChipResult | None]
    read: Callable[[Ticket], bytes]
    value_px: float = field(default=1.0, init=False)  # side of a value of a mask, pixels of the grid

    def mask_of(self, chip: Chip) -> ChipMask | None:
        """What the model says of the chip; None where it was not asked."""
        result = self.result(chip)
        if result is None or result.mask is None:
            return None
        shares = read_mask(self.read(result.mask))
        self.value_px = chip.size / shares.shape[2]
        holes = result.holes
        return ChipMask(shares, None if holes is None else read_holes(self.read(holes), chip.size))


def draw(
    drawing: Drawing,
    options: ChangeOptions,
    *,
    polygons: bool = True,
    mask: Cog | None = None,
    probability: Cog | None = None,
) -> list[Feature]:
    """Write the rasters, by blocks, and give the polygons, in the grid's CRS; none unless they are wished.

    A pixel belongs to the likeliest of KINDS where all of them together reach the threshold. Pixels of one
    class that share an edge make a polygon.

    Raises: WriteError.
    """
    polygonizer = Polygonizer(drawing.chips.geobox.width)
    for block in blend_blocks(drawing.chips, len(KINDS), drawing.mask_of):
        labels, seen = _labels(block, options.threshold)
        if probability is not None:
            probability.write(block.window, block.probabilities)
        if mask is not None:
            mask.write(block.window, np.where(seen, labels, NODATA)[None].astype(np.uint8))
        if polygons:
            polygonizer.add(block.window, labels, block.probabilities.max(axis=0) / np.float32(FULL))
    return [*_features(drawing, polygonizer.regions(), options)]


def _labels(block: Block, threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """0 for no change, else 1 and the place in KINDS; and where there are data."""
    seen = block.probabilities[0] != NODATA
    changed = seen & (block.probabilities.sum(axis=0, dtype=np.uint16) >= max(1.0, threshold * FULL))
    labels = np.zeros(changed.shape, np.uint8)
    labels[changed] = block.probabilities[:, changed].argmax(axis=0) + 1
    return labels, seen


def _features(drawing: Drawing, found: list[Region], options: ChangeOptions) -> Iterator[Feature]:
    measure = measure_of(drawing.grid)
    a, b, c, d, e, f = drawing.grid.transform[:6]
    tolerance_px = drawing.value_px / 2 if options.simplify_px is None else options.simplify_px
    if options.min_area_m2 is None:
        found = [region for region in found if region.pixels >= SPECK * drawing.value_px**2]
    kept: list[tuple[Region, BaseGeometry, tuple[float, float] | None]] = []
    for region, outline in zip(
        found, simplify_polygons([one.polygon for one in found], tolerance_px), strict=True
    ):
        polygon = affine_transform(outline, (a, b, d, e, c, f))
        size = measure(polygon)
        if size is None or size[0] >= (options.min_area_m2 or 0):
            kept.append((region, polygon, size))
    for (region, polygon, size), (lon, lat) in zip(kept, _middles(drawing, kept), strict=True):
        seen_in = _seen_in(drawing, region.polygon)
        caption = seen_in[0].of_task("caption") if seen_in else None
        properties = {
            "class": KINDS[region.value - 1],
            "area_m2": size[0] if size else None,
            "perimeter_m": size[1] if size else None,
            "mean_score": region.mean,
            "lon": lon,
            "lat": lat,
            "chip_ids": sorted(one.chip.chip_id for one in seen_in),
            "caption": caption.value if caption else None,
            "before_date": options.before_date,
            "after_date": options.after_date,
        }
        yield Feature(polygon, properties)


def _middles(
    drawing: Drawing, kept: list[tuple[Region, BaseGeometry, tuple[float, float] | None]]
) -> list[tuple[float | None, float | None]]:
    """Longitude and latitude of the centroids; None where nothing leads there."""
    points = shapely.get_coordinates([polygon.centroid for _, polygon, _ in kept])
    if drawing.grid.crs is None:
        return [(None, None)] * len(kept)
    found = project(points, drawing.grid.crs, LONLAT) if len(points) else points
    return [
        ((lon - 360 * round(lon / 360) if abs(lon) > 180 else lon), lat)
        if math.isfinite(lon + lat)
        else (None, None)
        for lon, lat in found.tolist()
    ]


def _seen_in(drawing: Drawing, shape: BaseGeometry) -> list[ChipResult]:
    """The chips that show a part of a polygon of pixels and were asked, the one with most of it first."""
    left, top, right, bottom = (int(edge) for edge in shape.bounds)
    near = [*drawing.chips.intersecting(Window(left, top, right - left, bottom - top))]
    corners = np.array([chip.window for chip in near])
    squares = shapely.box(*corners[:, :2].T, *(corners[:, :2] + corners[:, 2:]).T)
    shared = shapely.area(shapely.intersection(squares, shape))
    held = sorted(
        ((share, chip) for share, chip in zip(shared, near, strict=True) if share > 0),
        key=lambda one: -one[0],
    )
    results = (drawing.result(chip) for _, chip in held)
    return [one for one in results if one is not None and one.mask is not None]
