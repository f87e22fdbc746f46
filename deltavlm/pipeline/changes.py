"""Change polygons and rasters of a pair, from the masks of its chips blended into a mosaic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError
from deltavlm.geo.blend import FULL, NODATA, Block, ChipMask, blend_blocks
from deltavlm.geo.cog import Cog, RasterStyle
from deltavlm.geo.features import Feature
from deltavlm.geo.geobox import GeoBox, Window, lonlat_of
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.measure import measure_of
from deltavlm.geo.polygonize import (
    Polygonizer,
    Region,
    fill_holes,
    merge_regions,
    pixels_within,
    simplify_polygons,
)
from deltavlm.geo.styles import CLASSES as CLASS_COLOURS
from deltavlm.model.interface import CHANGED_PIXEL
from deltavlm.pipeline.journal.blobs import Blob
from deltavlm.pipeline.mask_codec import CLASSES, KINDS, class_of_kind, decode_planes, decode_valid
from deltavlm.pipeline.results import ChipResult
from deltavlm.tasks.caption import denies_change

__all__ = [
    *("MASK_PIXEL_TAG", "MASK_STYLE", "PROBABILITY_STYLE", "ChangeOptions", "MaskMosaic", "Mosaic"),
    *("caption_of_polygon", "is_drawn", "vectorize"),
]

MASK_STYLE = RasterStyle(
    band_names=("class of change",),
    overview_resampling="nearest",
    colormap={0: (0, 0, 0, 0)}
    | {CLASSES.index(name) + 1: (*colour, 255) for name, colour in CLASS_COLOURS},  # as of the polygons
    categories=("none", *CLASSES),
)
PROBABILITY_STYLE = RasterStyle(band_names=(*CLASSES, *KINDS), overview_resampling="average", scale=1 / FULL)

MASK_PIXEL_TAG = "deltavlm_mask_pixel_px"
"""Tag of a raster of probabilities: side of a pixel of the masks that it is made of, pixels of the raster."""

MIN_KIND_SHARE = 0.6  # of the probability of its class, from which the kind of a polygon is known
MIN_PART_PX = 1e-3  # area; what a cut leaves below that is rounding
SPECKLE = 3  # mask pixels; few of nano's polygons below that are right (benchmarks/results.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOptions:
    """Options of making polygons and rasters of masks."""

    threshold: float = CHANGED_PIXEL  # a pixel is changed where the probabilities of all classes sum to this
    min_area_m2: float | None = None  # smaller polygons are dropped; None: those below SPECKLE
    simplify_px: float | None = None  # tolerance, pixels of the raster; None: half a pixel of the mask
    chips: Literal["changed", "all"] = "changed"  # whose polygons are drawn, see `is_drawn`
    classes: tuple[str, ...] = CLASSES  # those that are drawn
    merge_m: float = 0.0  # polygons of one class that are not farther apart become one
    fill_holes_m2: float = 0.0  # smaller holes are filled


def is_drawn(changed: bool | None, options: ChangeOptions) -> bool:
    """True if a polygon is drawn; `changed` is the yes/no answer about the chip with the largest part of it.

    None, an answer that was not asked for or cannot be parsed, contradicts no polygon.
    """
    return options.chips == "all" or changed is not False


def caption_of_polygon(captions: Iterable[str | None]) -> str | None:
    """First caption that does not deny change, of chips by decreasing part of a polygon; None if all do."""
    return next((caption for caption in captions if caption and not denies_change(caption)), None)


class Mosaic(Protocol):
    """Probabilities of a pair, block by block, and the results of its chips."""

    @property
    def chips(self) -> ChipGrid: ...

    @property
    def geobox(self) -> GeoBox:
        """Pixel grid of the probabilities."""
        ...

    @property
    def mask_pixel_px(self) -> float:
        """Side of a pixel of a mask in pixels of the raster, known once a block has been read."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Blocks of all classes and kinds, in rows from the upper left."""
        ...

    def result(self, chip: Chip) -> ChipResult | None:
        """Result of a chip; None where the model was not asked."""
        ...


@dataclass
class MaskMosaic:
    """Mosaic of the masks of the chips of a pair, which are read when they are needed."""

    chips: ChipGrid
    geobox: GeoBox  # the pixels that the chips are cut from
    lookup: Callable[[Chip], ChipResult | None]
    read_blob: Callable[[Blob], bytes]
    change_class: str | None = None  # the class of all change, where the classes are not to be told apart
    mask_pixel_px: float = field(default=1.0, init=False)  # side of a pixel of a mask, pixels of the raster

    def blocks(self) -> Iterator[Block]:
        return blend_blocks(self.chips, len(CLASSES) + len(KINDS), self.mask_of)

    def result(self, chip: Chip) -> ChipResult | None:
        return self.lookup(chip)

    def mask_of(self, chip: Chip) -> ChipMask | None:
        """Mask of a chip; None where the model was not asked."""
        result = self.result(chip)
        if result is None or result.mask is None:
            return None
        probabilities = decode_planes(self.read_blob(result.mask))
        self.mask_pixel_px = chip.size / probabilities.shape[2]
        if self.change_class is not None:
            merged = np.zeros_like(probabilities)
            total = probabilities[: len(CLASSES)].sum(axis=0, dtype=np.uint16)
            merged[CLASSES.index(self.change_class)] = np.minimum(total, 255)
            probabilities = merged
        valid = result.valid
        return ChipMask(
            probabilities, None if valid is None else decode_valid(self.read_blob(valid), chip.size)
        )


def vectorize(
    mosaic: Mosaic,
    options: ChangeOptions,
    *,
    polygons: bool = True,
    mask: Cog | None = None,
    probability: Cog | None = None,
) -> list[Feature]:
    """Write the rasters block by block, and return the polygons in the CRS of the raster, if requested.

    A pixel belongs to its most probable class where the probabilities of all classes together reach the
    threshold. Pixels of one class that share an edge make a polygon. Polygons and the mask end at the area of
    interest and at pixels without data; probabilities reach to the edges of chips, as polygons that are drawn
    again need what lies around. Polygons are kept or left out whole (`is_drawn`), so those of changed chips
    have the outlines that they have among all.

    Raises: WriteError.
    """
    width = mosaic.chips.geobox.width
    polygonizer, gaps = Polygonizer(width), Polygonizer(width)
    for block in mosaic.blocks():
        labels, valid = _labels(block, options.threshold)
        if probability is not None:
            probability.write(block.window, block.probabilities)
        if mask is not None:
            shown = valid & _within_area(mosaic, block.window)
            mask.write(block.window, np.where(shown, labels, NODATA)[None].astype(np.uint8))
        if polygons:
            classes, kinds = np.split(block.probabilities, [len(CLASSES)])
            scores = np.minimum(classes.sum(axis=0, dtype=np.uint16), FULL) / FULL
            polygonizer.add(block.window, labels, scores, np.concatenate([kinds, classes.max(axis=0)[None]]))
            gap = _gaps(labels, valid, math.ceil(_tolerance_px(mosaic, options)))
            gaps.add(block.window, gap, np.zeros(gap.shape))
    features = _features(mosaic, polygonizer.regions(), gaps.regions(), options)
    return [
        Feature(feature.geometry, {"polygon_id": number, **feature.properties})
        for number, feature in enumerate(features, start=1)
    ]


def _labels(block: Block, threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Labels (rows, cols), 0 for no change, else 1 + index into CLASSES; and valid pixels (rows, cols)."""
    classes = block.probabilities[: len(CLASSES)]
    valid = classes[0] != NODATA
    changed = valid & (classes.sum(axis=0, dtype=np.uint16) >= max(1.0, threshold * FULL))
    labels = np.zeros(changed.shape, np.uint8)
    labels[changed] = classes[:, changed].argmax(axis=0) + 1
    return labels, valid


def _within_area(mosaic: Mosaic, window: Window) -> NDArray[np.bool_]:
    """Pixels of a window in the area of interest, (rows, cols)."""
    area = mosaic.chips.keep
    if area is None:
        return np.ones((window.height, window.width), bool)
    return pixels_within(area, mosaic.geobox, window)


def _gaps(labels: NDArray[np.uint8], valid: NDArray[np.bool_], tolerance_px: int) -> NDArray[np.uint8]:
    """Pixels without data, as 1, that a simplified polygon may reach: those near change or a block's edge."""
    gaps = ~valid
    if gaps.any():
        from scipy import ndimage  # slow to import, and only polygons need it

        reach = 2 * tolerance_px + 1
        near = ndimage.maximum_filter(labels, 2 * reach + 1) > 0
        inner = slice(reach, -reach)
        edge = np.ones_like(near)
        edge[inner, inner] = False
        gaps &= near | edge
    return gaps.astype(np.uint8)


def _tolerance_px(mosaic: Mosaic, options: ChangeOptions) -> float:
    return mosaic.mask_pixel_px / 2 if options.simplify_px is None else options.simplify_px


@dataclass(frozen=True, slots=True)
class _Polygon:
    """Polygon of a region, in the CRS of the raster."""

    region: Region
    shape: BaseGeometry
    area_m2: float | None
    perimeter_m: float | None

    @property
    def kind(self) -> str:
        """Kind of change with MIN_KIND_SHARE of the probability of the class.

        Without one it is `building_changed`, `road_changed` or `other`.
        """
        name = CLASSES[self.region.value - 1]
        of_class = [index for index, kind in enumerate(KINDS) if class_of_kind(kind) == name]
        best = max(of_class, key=lambda index: self.region.sums[index])
        if self.region.sums[best] >= MIN_KIND_SHARE * self.region.sums[-1]:  # the last is of the class
            return KINDS[best]
        return name if name == "other" else f"{name}_changed"


def _features(
    mosaic: Mosaic, regions: list[Region], gaps: list[Region], options: ChangeOptions
) -> Iterator[Feature]:
    regions = [region for region in regions if CLASSES[region.value - 1] in options.classes]
    if options.min_area_m2 is None:
        regions = [region for region in regions if region.pixels >= SPECKLE * mosaic.mask_pixel_px**2]
    polygons = [*_polygons(mosaic, regions, gaps, options)]
    for polygon, (lon, lat) in zip(polygons, _centroids(mosaic, polygons), strict=True):
        results = _results_within(mosaic, polygon.region.polygon)
        if results and not is_drawn(results[0].changed, options):
            continue
        captions = (result.of_task("caption") for result in results)
        properties = {
            "class": CLASSES[polygon.region.value - 1],
            "kind": polygon.kind,
            "area_m2": polygon.area_m2,
            "perimeter_m": polygon.perimeter_m,
            "mean_score": polygon.region.mean,
            "lon": lon,
            "lat": lat,
            "chip_ids": sorted(result.chip.chip_id for result in results),
            "caption": caption_of_polygon(each.value if each else None for each in captions),
        }
        yield Feature(polygon.shape, properties)


def _polygons(
    mosaic: Mosaic, regions: list[Region], gaps: list[Region], options: ChangeOptions
) -> Iterator[_Polygon]:
    """Simplified polygons of the regions, without gaps and ground outside of the area of interest, and
    without those below the minimum area."""
    measure = measure_of(mosaic.geobox)
    a, b, c, d, e, f = mosaic.geobox.transform[:6]
    outlines = simplify_polygons([region.polygon for region in regions], _tolerance_px(mosaic, options))
    if options.merge_m or options.fill_holes_m2:
        gsd_m = _gsd_m(mosaic)
        if options.merge_m:
            regions, outlines = merge_regions(regions, outlines, options.merge_m / gsd_m)
        outlines = [fill_holes(outline, options.fill_holes_m2 / gsd_m**2) for outline in outlines]
    shapes = [affine_transform(each, (a, b, d, e, c, f)) for each in _without_gaps(outlines, gaps)]
    min_part = MIN_PART_PX * abs(mosaic.geobox.transform.determinant)
    for region, shape in zip(regions, _within(shapes, mosaic.chips.keep), strict=True):
        for part in shapely.get_parts(shape):
            if part.area < min_part:
                continue
            area_m2, perimeter_m = measure(part) or (None, None)
            if area_m2 is None or area_m2 >= (options.min_area_m2 or 0):
                yield _Polygon(region, part, area_m2, perimeter_m)


def _gsd_m(mosaic: Mosaic) -> float:
    """Ground size of a pixel. Raises: ConfigError without a CRS."""
    gsd_m = mosaic.geobox.gsd_m
    if gsd_m is None:
        raise ConfigError("merging and filling by metres need a raster with a CRS; leave them out")
    return gsd_m


def _without_gaps(outlines: list[BaseGeometry], gaps: list[Region]) -> list[BaseGeometry]:
    """Outlines without the pixels that have no data, into which simplifying may have moved an edge."""
    if not outlines or not gaps:
        return outlines
    holes = np.array([gap.polygon for gap in gaps], dtype=object)
    pairs = shapely.STRtree(holes).query(outlines, predicate="intersects").T
    for index in np.unique(pairs[:, 0]):
        hole = shapely.union_all(holes[pairs[pairs[:, 0] == index, 1]])
        outlines[index] = shapely.difference(outlines[index], hole)
    return outlines


def _within(shapes: list[BaseGeometry], area: BaseGeometry | None) -> list[BaseGeometry]:
    """Parts of the shapes inside an area; empty where there are none."""
    if area is None or not shapes:
        return shapes
    shapely.prepare(area)
    covered = shapely.covers(area, shapes)
    return [
        shape if is_covered else shapely.intersection(shape, area)
        for shape, is_covered in zip(shapes, covered, strict=True)
    ]


def _centroids(mosaic: Mosaic, polygons: list[_Polygon]) -> list[tuple[float, float] | tuple[None, None]]:
    """Longitude and latitude of the centroids; None where the CRS does not lead there."""
    points = shapely.get_coordinates([polygon.shape.centroid for polygon in polygons])
    return [lonlat or (None, None) for lonlat in lonlat_of(points, mosaic.geobox.crs)]


def _results_within(mosaic: Mosaic, shape: BaseGeometry) -> list[ChipResult]:
    """Results with a mask of the chips that intersect a polygon in pixels, by decreasing area of overlap.

    Of chips with the same area, those that are not called unchanged come first.
    """
    left, top, right, bottom = (int(edge) for edge in shape.bounds)
    chips = [*mosaic.chips.intersecting(Window(left, top, right - left, bottom - top))]
    windows = np.array([chip.window for chip in chips])
    boxes = shapely.box(*windows[:, :2].T, *(windows[:, :2] + windows[:, 2:]).T)
    areas = shapely.area(shapely.intersection(boxes, shape))
    overlapping = [
        (-round(area, 6), result.changed is False, result)
        for area, result in zip(areas.tolist(), map(mosaic.result, chips), strict=True)
        if area > 0 and result is not None and result.mask is not None
    ]
    return [result for *_, result in sorted(overlapping, key=lambda each: each[:2])]
