"""Pairs of an output as a report shows them: chips and change polygons in pixels of the grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from deltavlm.config import suggest
from deltavlm.errors import InputError
from deltavlm.geo.drivers import MAX_PIXELS
from deltavlm.geo.geobox import LONLAT, GeoBox, Window, lonlat_of, project
from deltavlm.geo.grid import chip_offsets
from deltavlm.geo.registration import Registration
from deltavlm.pipeline.outputs_reader import Output, Row
from deltavlm.pipeline.totals import ChipArrays, PolygonArrays, Totals, shape_areas

__all__ = ["PairImage", "ReportPair", "build_pairs", "chip_origin", "score_of", "select_pair"]

MAX_CHIP_PX = 8192  # as --chip-size

Ring = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PairImage:
    """One image of a pair as the output records it: file, bands, and the stretch to 8 bit."""

    path: str
    date: str = ""
    size: tuple[int, int] | None = None  # width, height of the file, px
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    stretch: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # low, high; for red, green, blue


@dataclass(frozen=True)
class ReportPair:
    """One pair with its chips, including chips that were not analyzed or failed."""

    name: str  # id of the pair; "" in an output of a single pair
    before: PairImage
    after: PairImage
    geobox: GeoBox | None  # None: the pair was not analyzed
    chip_px: int
    resampling: str = "bilinear"
    registration: Registration = field(default_factory=Registration)
    has_recorded_geobox: bool = True  # False: `geobox` is estimated from the chips, and bands are unknown
    chips: list[Row] = field(default_factory=list, repr=False)
    changes: list[Row] = field(default_factory=list, repr=False)
    has_polygons: bool = False  # the output has polygons of change, perhaps none in this pair
    crs: CRS | None = None  # of the geometries
    reason: str = ""  # of the failure, if the pair or a chip of it failed
    notes: tuple[str, ...] = ()

    @property
    def max_score(self) -> float:
        """Highest score of the changed chips; -1 if no chip has changed."""
        return max((score_of(chip) for chip in self.chips if chip.get("changed")), default=-1.0)

    @cached_property
    def windows(self) -> list[Window]:
        """Pixel window of each chip, derived from its chip_id."""
        width, height = (self.geobox.width, self.geobox.height) if self.geobox else (MAX_CHIP_PX,) * 2
        origins = [chip_origin(chip) for chip in self.chips]
        return [
            Window(col, row, max(1, min(self.chip_px, width - col)), max(1, min(self.chip_px, height - row)))
            for row, col in origins
        ]

    @cached_property
    def points(self) -> list[tuple[float, float] | None]:
        """Longitude and latitude of the centre of each chip; None without a CRS that leads there."""
        geobox = self.geobox
        if geobox is None or not self.chips:
            return [None] * len(self.chips)
        centres = np.array([(x + w / 2, y + h / 2) for x, y, w, h in self.windows])
        return lonlat_of(geobox.to_ground(centres), geobox.crs)

    @property
    def gsd_m(self) -> float | None:
        """Ground sample distance in metres; None without a CRS."""
        return self.geobox.gsd_m if self.geobox else None

    @property
    def north(self) -> float | None:
        """Direction of north in degrees clockwise from up; None without a CRS."""
        geobox = self.geobox
        if geobox is None or geobox.crs is None:
            return None
        centre = geobox.to_ground(np.array([[geobox.width / 2, geobox.height / 2]]))
        centre_lonlat = project(centre, geobox.crs, LONLAT)
        if not np.isfinite(centre_lonlat).all() or abs(centre_lonlat[0, 1]) > 89.9:
            return None
        northward = geobox.to_pixels(project(centre_lonlat + np.array([[0, 1e-4]]), LONLAT, geobox.crs))
        right, down = (northward[0] - geobox.to_pixels(centre)[0]).tolist()
        return math.degrees(math.atan2(right, -down)) if math.isfinite(right + down) else None

    @cached_property
    def totals(self) -> Totals:
        """Totals in which all ground counts once."""
        chips, changes = (
            (rows, shape_areas([row["geometry"] for row in rows], self.crs), self.crs is not None)
            for rows in (self.chips, self.changes)
        )
        polygons = PolygonArrays.of_rows(*changes).totals() if self.has_polygons else None
        return ChipArrays.of_rows(*chips).totals().with_polygons(polygons)

    def shape(self, change: Row) -> shapely.MultiPolygon:
        """Change polygon in pixels of the grid; without what has no place there."""
        if self.geobox is None or change["geometry"] is None:
            return shapely.MultiPolygon()
        geometry = shapely.transform(
            change["geometry"],
            lambda points: self.geobox.to_pixels(project(points, self.crs, self.geobox.crs)),
        )
        return shapely.MultiPolygon(
            part
            for part in shapely.get_parts(geometry)
            if part.geom_type == "Polygon" and np.isfinite(shapely.get_coordinates(part)).all()
        )

    def rings(self, change: Row) -> list[Ring]:
        """Exterior and interior rings of a change polygon, in pixels of the grid."""
        return [
            [(round(x, 1), round(y, 1)) for x, y, *_ in ring.coords]
            for polygon in self.shape(change).geoms
            for ring in (polygon.exterior, *polygon.interiors)
        ]


def score_of(chip: Row) -> float:
    """Score of change of a chip, 0 to 1; -1 if it has none."""
    score = chip.get("changed_score")
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else -1.0


def chip_origin(chip: Row) -> tuple[int, int]:
    """Row and column of the upper left pixel of a chip, from its chip_id.

    Raises:
        InputError: the chip_id is not r<row>_c<column>.
    """
    offsets = chip_offsets(chip.get("chip_id"))
    if offsets is None:
        raise InputError(f"chip {chip.get('chip_id')!r}: is not named by its pixels; was the output edited?")
    return offsets


def build_pairs(output: Output) -> list[ReportPair]:
    """Pairs of an output, the most changed pair first.

    Raises:
        InputError: the output has no provenance, or one that deltavlm cannot have written.
    """
    if not output.provenance:
        raise InputError(
            f"{output.path}: has no provenance written by deltavlm, so its images are unknown; "
            "give an output of deltavlm analyze"
        )
    try:
        return _build_pairs(output)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, CRSError) as error:
        raise InputError(
            f"{output.path}: has an invalid record of its images ({error or type(error).__name__}); "
            "was the output edited? run deltavlm analyze again"
        ) from error


def _build_pairs(output: Output) -> list[ReportPair]:
    chip_px = int(output.provenance["options"]["chip_px"])
    if not 1 <= chip_px <= MAX_CHIP_PX:
        raise ValueError(f"chips of {chip_px} px")
    all_chips, changes, inputs = output.rows("chips"), output.rows("changes"), output.provenance.get("inputs")
    if inputs is not None:
        first = all_chips[0] if all_chips else {}
        row = {"pair_id": first.get("pair_id") or ""} | first | {"inputs": inputs}
        return [_build_pair(row, all_chips, changes, output)]
    pair_rows = {str(row["pair_id"]): row for row in output.rows("pairs")}
    chips_of_pair: dict[str, list[Row]] = {name: [] for name in pair_rows}
    for chip in all_chips:
        chips_of_pair.setdefault(str(chip["pair_id"]), []).append(chip)
    pairs = [
        _build_pair(pair_rows.get(name) or chips[0], chips, changes, output)
        for name, chips in chips_of_pair.items()
    ]
    return sorted(pairs, key=lambda pair: -pair.max_score)


def _build_pair(row: Row, chips: list[Row], changes: Sequence[Row], output: Output) -> ReportPair:
    """Pair with its chips. `row` describes it: of the layer `pairs`, or the first of its chips."""
    chip_px, crs = int(output.provenance["options"]["chip_px"]), output.crs
    name, inputs = str(row.get("pair_id") or ""), row.get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    record = inputs.get("grid")
    geobox = _recorded_geobox(record) if isinstance(record, dict) else _estimated_geobox(chips, chip_px, crs)
    return ReportPair(
        name=name,
        before=_pair_image(inputs.get("before"), row, "before"),
        after=_pair_image(inputs.get("after"), row, "after"),
        geobox=geobox,
        chip_px=chip_px,
        resampling=str(inputs.get("alignment", {}).get("resampling", "bilinear")),
        registration=Registration.from_record(inputs["registration"])
        if "registration" in inputs
        else Registration(),
        has_recorded_geobox=isinstance(record, dict),
        chips=chips,
        changes=[change for change in changes if str(change.get("pair_id") or "") in ("", name)],
        has_polygons=output.has_polygons,
        crs=crs,
        reason=str(row.get("reason") or ""),
        notes=tuple(map(str, row.get("notes") or ())),
    )


def _pair_image(record: Any, row: Mapping[str, Any], key: str) -> PairImage:
    date = str(row.get(f"{key}_date") or "")
    if not isinstance(record, dict):
        return PairImage(str(row.get(key) or ""), date)
    nodata, stretch = record.get("nodata"), record.get("stretch")
    return PairImage(
        path=str(record["path"]),
        date=date,
        size=(int(record["width"]), int(record["height"])),
        bands=tuple(int(band) for band in record["bands"]),
        nodata=None if nodata is None or isinstance(nodata, list) else float(nodata),  # a list: of the bands
        stretch=None
        if stretch is None
        else (_three_numbers(stretch["low"]), _three_numbers(stretch["high"])),
    )


def _three_numbers(values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"a stretch of {values}")
    return numbers


def _recorded_geobox(record: Mapping[str, Any]) -> GeoBox:
    coefficients = [float(value) for value in record["transform"]]
    width, height = int(record["width"]), int(record["height"])
    crs = CRS.from_user_input(record["crs"]) if record["crs"] else None
    geobox = GeoBox(width, height, Affine(*coefficients), crs)
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"a grid of {width} x {height} px")
    if not geobox.is_invertible():
        raise ValueError(f"a transform {coefficients}")
    return geobox


def _estimated_geobox(chips: Sequence[Row], chip_px: int, crs: CRS | None) -> GeoBox | None:
    """Grid fitted to the polygons of the chips, by least squares: single-layer outputs do not record it."""
    if not chips:
        return None
    origins = [chip_origin(chip) for chip in chips]
    width, height = max(col for _, col in origins) + chip_px, max(row for row, _ in origins) + chip_px
    in_a_line = min(len({row for row, _ in origins}), len({col for _, col in origins})) == 1
    pixels: list[tuple[float, float]] = []
    ground: list[tuple[float, float]] = []
    for chip, (row, col) in zip(chips, origins, strict=True):
        polygon = chip["geometry"]
        if polygon is not None and polygon.geom_type == "Polygon":
            pixels.append((col + chip_px / 2, row + chip_px / 2))
            ground.append((polygon.centroid.x, polygon.centroid.y))
            if in_a_line:  # centres on a line leave the other axis undefined; take the chip as upright
                xmin, ymin, xmax, ymax = polygon.bounds
                pixels += [(col, row), (col + chip_px, row + chip_px)]
                ground += [(xmin, ymax), (xmax, ymin)]
    if not pixels:
        return GeoBox(width, height, Affine.identity())
    design = np.column_stack([np.array(pixels), np.ones(len(pixels))])
    (a, d), (b, e), (c, f) = np.linalg.lstsq(design, np.array(ground), rcond=None)[0].tolist()
    geobox = GeoBox(width, height, Affine(a, b, c, d, e, f), crs)
    return geobox if geobox.is_invertible() else GeoBox(width, height, Affine.identity())


def select_pair(pairs: Iterable[ReportPair], name: str) -> ReportPair:
    """Pair with this id.

    Raises:
        InputError: the output has no such pair; the message suggests the nearest id.
    """
    by_name = {pair.name: pair for pair in pairs}
    if list(by_name) == [""] and name:
        raise InputError(
            f"there is no pair {name!r}: the output is of one pair, without a name; leave it out"
        )
    if name not in by_name:
        raise InputError(f"there is no pair {name!r} in the output{suggest(name, list(by_name)[:20])}")
    return by_name[name]
