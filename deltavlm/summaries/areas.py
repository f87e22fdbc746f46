"""Assignment of chips to areas: one area, polygons of a file, grid cells, H3 cells, or pairs.

A chip belongs to the area that contains its centroid, so to one area at most, and sums over areas add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from deltavlm.config import suggest
from deltavlm.errors import ConfigError, InputError, ToolError
from deltavlm.geo.lonlat import cut_at_180, polygon_of_ring, shapes_to_lonlat
from deltavlm.geo.vector_reader import read_layer, split_layer
from deltavlm.summaries.results import Results, Shapes, union

__all__ = [
    "OUTSIDE",
    "Areas",
    "areas_from_file",
    "areas_from_grid",
    "areas_from_h3",
    "areas_from_pairs",
    "make_areas",
    "single_area",
]

OUTSIDE = "outside of all areas"
CELL_M = 1000.0
H3_RESOLUTION = 8  # 0.7 km² a cell
MAX_UTM_DEGREES = 12  # of longitude: wider results are too distorted in one UTM zone
EQUAL_AREA = 6933  # EASE-Grid 2.0, for results that are wider or nearer to a pole
MAX_AREAS = 1_000_000

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Areas:
    """Names and polygons of areas, and the area of each chip."""

    kind: str  # for people: "area", "pair", "cell of 1000 m in EPSG:32633"
    names: Sequence[str]
    shapes: Shapes  # (areas,): polygons in longitude and latitude, or None
    area_of_chip: Indices  # (chips,): index of the area, -1 for none
    empty_count: int = 0  # areas of the file without a chip, which are left out


def make_areas(
    results: Results,
    by: str | None,
    *,
    name_field: str | None = None,
    cell_m: float = CELL_M,
    resolution: int = H3_RESOLUTION,
) -> Areas:
    """Areas by name: None for a single one, "pair", "grid", "h3", or a vector file as FILE or FILE:LAYER.

    Raises:
        InputError, ConfigError and ToolError: as the function of that kind of areas.
    """
    match by:
        case None:
            return single_area(results)
        case "pair":
            return areas_from_pairs(results)
        case "grid":
            return areas_from_grid(results, cell_m)
        case "h3":
            return areas_from_h3(results, resolution)
    path, layer = split_layer(by)
    return areas_from_file(results, path, layer, name_field)


def single_area(results: Results) -> Areas:
    """One area of all chips, without an outline."""
    shapes = np.full(1, None, dtype=object)
    return Areas("whole", ["all"], shapes, np.zeros(len(results.chips), dtype=np.intp))


def areas_from_pairs(results: Results) -> Areas:
    """One area per pair, outlined by its chips.

    Raises:
        InputError: an output of a single pair.
    """
    pairs = results.chips["pair_id"]
    if pairs.isna().all():
        raise InputError(f"{results.paths[0]}: has one pair only; leave --by out")
    codes, names = pairs.factorize()
    shapes = np.full(len(names), None, dtype=object)
    if results.has_crs:
        for code in range(len(names)):
            outline = union(results.lonlat[codes == code])
            shapes[code] = None if outline.is_empty else outline
    return Areas("pair", [str(name) for name in names], shapes, codes)


def areas_from_file(
    results: Results, path: Path, layer: str | None = None, name_field: str | None = None
) -> Areas:
    """Polygons of a vector file; those without a chip are left out and counted.

    Raises:
        InputError: the file cannot be read, has no CRS, no polygons or none where the chips are, or the
            results have no CRS.
        ConfigError: the file has no column `name_field`.
    """
    _require_crs(results)
    frame = read_layer(path, layer, polygons=True).frame
    frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])].reset_index(drop=True)
    if not len(frame):
        raise InputError(f"{path}: holds no polygons; give a layer of areas as FILE:LAYER")
    if frame.crs is None:
        raise InputError(f"{path}: has no CRS; save it with one")
    names = _names(frame, path, name_field)
    has_centre = np.isfinite(results.centres).all(axis=1)
    try:
        to_file_crs = pyproj.Transformer.from_crs(4326, frame.crs, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise InputError(
            f"{path}: coordinates cannot be transformed to its CRS ({error}); save it in another one"
        ) from error
    points = shapely.points(*to_file_crs.transform(*results.centres[has_centre].T))
    shapes = shapely.make_valid(frame.geometry.to_numpy())
    point_indices, shape_indices = shapely.STRtree(shapes).query(points, predicate="intersects")
    shape_of_point = np.full(len(points), -1, dtype=np.intp)
    shape_of_point[point_indices[::-1]] = shape_indices[::-1]  # on a border, the first polygon of the file
    shape_of_chip = np.full(len(results.chips), -1, dtype=np.intp)
    shape_of_chip[has_centre] = shape_of_point
    used = np.unique(shape_of_chip[shape_of_chip >= 0])
    if not len(used) and len(results.chips):
        raise InputError(f"{path}: no area has a chip in it; does it cover the same place?")
    new_index = np.full(len(frame) + 1, -1, dtype=np.intp)  # the last one is for -1
    new_index[used] = np.arange(len(used))
    return Areas(
        kind="area",
        names=[names[index] for index in used],
        shapes=shapes_to_lonlat(shapes[used], frame.crs),
        area_of_chip=new_index[shape_of_chip],
        empty_count=len(frame) - len(used),
    )


def areas_from_h3(results: Results, resolution: int = H3_RESOLUTION) -> Areas:
    """Cells of Uber's H3, resolution 0 to 15.

    Raises:
        ToolError: the package h3 is not installed.
        InputError: the results have no CRS.
    """
    _require_crs(results)
    try:
        import h3
    except ImportError as error:
        raise ToolError("--by h3 needs the package h3; pip install 'deltavlm[h3]'") from error
    cells = [
        h3.latlng_to_cell(lat, lon, resolution) if np.isfinite([lon, lat]).all() else None
        for lon, lat in results.centres
    ]
    names, area_of_chip = _factorize(cells)
    rings = [[(lon, lat) for lat, lon in h3.cell_to_boundary(name)] for name in names]
    return Areas(f"H3 cell of resolution {resolution}", names, _lonlat_polygons(rings), area_of_chip)


def areas_from_grid(results: Results, cell_m: float = CELL_M) -> Areas:
    """Square cells whose corners are multiples of `cell_m` metres, in the UTM zone of the results.

    Results that are too wide for a zone, or near a pole, get squares in the equal-area EPSG:6933. Cells are
    named by their lower left corner in metres: E500000 N5399000.

    Raises:
        InputError: the results have no CRS.
        ConfigError: more than MAX_AREAS cells.
    """
    _require_crs(results)
    has_centre = np.isfinite(results.centres).all(axis=1)
    lons, lats = results.centres[has_centre].T
    crs = pyproj.CRS.from_epsg(_metric_crs(lons, lats))
    to_metres = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    corners = np.floor(np.stack(to_metres.transform(lons, lats), axis=1) / cell_m)
    cells: list[tuple[float, float] | None] = [None] * len(results.chips)
    for index, (x, y) in zip(np.flatnonzero(has_centre), corners, strict=True):
        cells[index] = (x * cell_m, y * cell_m)
    cell_corners, area_of_chip = _factorize(cells)
    if len(cell_corners) > MAX_AREAS:
        raise ConfigError(f"--cell {cell_m:g} gives {len(cell_corners):,} cells; give a larger one")
    boxes = np.array([shapely.box(x, y, x + cell_m, y + cell_m) for x, y in cell_corners], dtype=object)
    names = [f"E{x:.0f} N{y:.0f}" for x, y in cell_corners]
    shapes = shapes_to_lonlat(boxes, crs) if len(boxes) else boxes
    return Areas(f"cell of {cell_m:g} m in EPSG:{crs.to_epsg()}", names, shapes, area_of_chip)


def _metric_crs(lons: NDArray[np.float64], lats: NDArray[np.float64]) -> int:
    """EPSG code of a CRS in metres that suits these points."""
    if not len(lons):
        return EQUAL_AREA
    is_wide = np.ptp(lons) > MAX_UTM_DEGREES
    if is_wide or np.abs(lats).max() > 84:
        return EQUAL_AREA
    zone = int((lons.mean() + 180) // 6) % 60 + 1
    return (32600 if lats.mean() >= 0 else 32700) + zone


def _names(frame: Any, path: Path, name_field: str | None) -> list[str]:
    """Names of areas from `name_field`, else the column `name`, else the first with text, else numbers."""
    columns = [column for column in frame.columns if column != frame.geometry.name]
    if name_field is not None and name_field not in columns:
        raise ConfigError(f"{path}: has no column {name_field!r}{suggest(name_field, columns)}")
    with_text = [name for name in columns if frame[name].map(lambda value: isinstance(value, str)).any()]
    called_name = [name for name in with_text if name.lower() == "name"]
    column = name_field or next(iter([*called_name, *with_text]), None)
    if column is None:
        return [f"area {number + 1}" for number in range(len(frame))]
    empty = frame[column].isna()
    return [
        f"area {number + 1}" if empty.iloc[number] else " ".join(str(value).split())
        for number, value in enumerate(frame[column])
    ]


def _factorize(keys: Sequence[Any]) -> tuple[list[Any], Indices]:
    """Distinct keys, sorted, and the index of each key in them; -1 for None."""
    index_of_key = {
        key: number for number, key in enumerate(sorted({key for key in keys if key is not None}))
    }
    indices = [-1 if key is None else index_of_key[key] for key in keys]
    return list(index_of_key), np.array(indices, dtype=np.intp)


def _lonlat_polygons(rings: Sequence[Sequence[tuple[float, float]]]) -> Shapes:
    """Polygons of counter-clockwise rings in longitude and latitude, cut at the 180th meridian."""
    shapes = np.empty(len(rings), dtype=object)
    for index, ring in enumerate(rings):
        shapes[index] = cut_at_180(polygon_of_ring(np.array([*ring, ring[0]], float), is_ccw=True))
    return shapes


def _require_crs(results: Results) -> None:
    if not results.has_crs:
        raise InputError(f"{results.paths[0]}: has no CRS, so its chips lie in no area; leave --by out")
