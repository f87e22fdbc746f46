"""Into which areas chips are sorted: all in one, districts of a file, hexagons, squares, or pairs.

A chip belongs to the area that its middle lies in, and so to one at most: sums over areas add up.
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
from deltavlm.geo.geojson import cut_at_180
from deltavlm.geo.vector_reader import read_layer
from deltavlm.summaries.results import Results, Shapes, shapes_to_lonlat, union

__all__ = [
    "OUTSIDE",
    "Areas",
    "areas_from_file",
    "areas_from_grid",
    "areas_from_h3",
    "areas_from_pairs",
    "single_area",
]

OUTSIDE = "outside of all areas"
WIDE_DEGREES = 12  # of longitude; squares of one UTM zone are none beyond it
EQUAL_AREA = 6933  # EASE-Grid 2.0, for what is wider or nearer to a pole
MOST_AREAS = 1_000_000

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Areas:
    """Names, polygons in longitude and latitude (None where there is none), and the area of each chip."""

    kind: str  # in words: "district", "cell of 1000 m"
    names: Sequence[str]
    shapes: Shapes
    area_of_chip: Indices  # (chips,): index of the chip's area, -1 for none
    empty_count: int = 0  # areas of the file without a chip


def single_area(results: Results) -> Areas:
    """One area, which has no outline of its own."""
    none = np.full(1, None, dtype=object)
    return Areas("whole", ["all"], none, np.zeros(len(results.chips), dtype=np.intp))


def areas_from_pairs(results: Results) -> Areas:
    """The pairs of a run over many, each with the ground under its chips.

    Raises: InputError for an output of a single pair.
    """
    pairs = results.chips["pair_id"]
    if pairs.isna().all():
        raise InputError(f"{results.paths[0]}: has one pair only; leave --by out")
    codes, names = pairs.factorize()
    shapes = np.full(len(names), None, dtype=object)
    if results.has_crs:
        for code in range(len(names)):
            ground = union(results.lonlat[codes == code])
            shapes[code] = None if ground.is_empty else ground
    return Areas("pair", [str(name) for name in names], shapes, codes)


def areas_from_file(
    results: Results, path: Path, layer: str | None = None, name_field: str | None = None
) -> Areas:
    """Districts of a vector file; those without a chip are left out and counted.

    Raises:
        InputError: the file cannot be read, has no CRS, no polygons or none where the chips are, or the
            results have no CRS.
        ConfigError: it has no such column.
    """
    _require_crs(results)
    frame = read_layer(path, layer).frame
    frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])].reset_index(drop=True)
    if not len(frame):
        raise InputError(f"{path}: holds no polygons; give a layer of areas as FILE:LAYER")
    if frame.crs is None:
        raise InputError(f"{path}: has no CRS; save it with one")
    names = _names(frame, path, name_field)
    known = np.isfinite(results.centres).all(axis=1)
    try:
        to_file = pyproj.Transformer.from_crs(4326, frame.crs, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise InputError(f"{path}: no way leads to its CRS ({error}); save it in another one") from error
    points = shapely.points(*to_file.transform(*results.centres[known].T))
    shapes = shapely.make_valid(frame.geometry.to_numpy())
    inside, area = shapely.STRtree(shapes).query(points, predicate="intersects")
    found = np.full(len(points), -1, dtype=np.intp)
    found[inside[::-1]] = area[::-1]  # on a border, the first of the file
    area_of_chip = np.full(len(results.chips), -1, dtype=np.intp)
    area_of_chip[known] = found
    kept = np.unique(area_of_chip[area_of_chip >= 0])
    if not len(kept) and len(results.chips):
        raise InputError(f"{path}: no area has a chip in it; is it a map of the same place?")
    renumbered = np.full(len(frame) + 1, -1, dtype=np.intp)  # the last is for -1
    renumbered[kept] = np.arange(len(kept))
    lonlat = shapes_to_lonlat(shapes[kept], frame.crs)
    return Areas(
        "area", [names[one] for one in kept], lonlat, renumbered[area_of_chip], len(frame) - len(kept)
    )


def areas_from_h3(results: Results, resolution: int = 8) -> Areas:
    """Hexagons of Uber's H3; resolution 0 to 15, of which 8 has 0.7 km² a cell.

    Raises:
        ToolError: the package h3 is not there.
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
    names, area_of_chip = _numbered(cells)
    rings = [[(lon, lat) for lat, lon in h3.cell_to_boundary(name)] for name in names]
    return Areas(f"H3 cell of resolution {resolution}", names, _unwrapped(rings), area_of_chip)


def areas_from_grid(results: Results, cell_m: float = 1000) -> Areas:
    """Squares whose corners are multiples of `cell_m` metres in the UTM zone of the middle of the results.

    Where these are too wide for a zone or near a pole, squares of the same area in EPSG:6933. A name is the
    lower left corner, in metres: E500000 N5399000.

    Raises:
        InputError: the results have no CRS.
        ConfigError: the cells are so small that there would be more than a million.
    """
    _require_crs(results)
    known = np.isfinite(results.centres).all(axis=1)
    lons, lats = results.centres[known].T
    crs = pyproj.CRS.from_epsg(_metric(lons, lats))
    to_metres = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    corners = np.floor(np.stack(to_metres.transform(lons, lats), axis=1) / cell_m)
    cells: list[tuple[float, float] | None] = [None] * len(results.chips)
    for index, (x, y) in zip(np.flatnonzero(known), corners, strict=True):
        cells[index] = (x * cell_m, y * cell_m)
    places, area_of_chip = _numbered(cells)
    if len(places) > MOST_AREAS:
        raise ConfigError(f"--cell {cell_m:g} gives {len(places):,} cells; give a larger one")
    boxes = np.array([shapely.box(x, y, x + cell_m, y + cell_m) for x, y in places], dtype=object)
    names = [f"E{x:.0f} N{y:.0f}" for x, y in places]
    shapes = shapes_to_lonlat(boxes, crs) if len(boxes) else boxes
    return Areas(f"cell of {cell_m:g} m in EPSG:{crs.to_epsg()}", names, shapes, area_of_chip)


def _metric(lons: NDArray[np.float64], lats: NDArray[np.float64]) -> int:
    """The EPSG code of a CRS in metres for these places."""
    if not len(lons):
        return EQUAL_AREA
    wide = np.ptp(lons) > WIDE_DEGREES
    if wide or np.abs(lats).max() > 84:
        return EQUAL_AREA
    zone = int((lons.mean() + 180) // 6) % 60 + 1
    return (32600 if lats.mean() >= 0 else 32700) + zone


def _names(frame: Any, path: Path, name_field: str | None) -> list[str]:
    """Names of the areas: by the column asked for, else `name`, else the first with text, else numbers."""
    columns = [column for column in frame.columns if column != frame.geometry.name]
    if name_field is not None and name_field not in columns:
        raise ConfigError(f"{path}: has no column {name_field!r}{suggest(name_field, columns)}")
    texts = [one for one in columns if frame[one].map(lambda value: isinstance(value, str)).any()]
    named = [one for one in texts if one.lower() == "name"]
    chosen = name_field or next(iter([*named, *texts]), None)
    if chosen is None:
        return [f"area {number + 1}" for number in range(len(frame))]
    empty = frame[chosen].isna()
    return [
        f"area {number + 1}" if empty.iloc[number] else " ".join(str(value).split())
        for number, value in enumerate(frame[chosen])
    ]


def _numbered(keys: Sequence[Any]) -> tuple[list[Any], Indices]:
    """The different keys in order, and the number of each; None is -1."""
    known = {key: number for number, key in enumerate(sorted({key for key in keys if key is not None}))}
    return list(known), np.array([-1 if key is None else known[key] for key in keys], dtype=np.intp)


def _unwrapped(rings: Sequence[Sequence[tuple[float, float]]]) -> Shapes:
    """Polygons of rings in longitude and latitude; one that crosses the 180th meridian is cut there."""
    shapes = np.empty(len(rings), dtype=object)
    for index, ring in enumerate(rings):
        points = np.array(ring)
        if np.ptp(points[:, 0]) > 180:
            points[:, 0] %= 360
        shapes[index] = cut_at_180(shapely.Polygon(points))
    return shapes


def _require_crs(results: Results) -> None:
    if not results.has_crs:
        raise InputError(f"{results.paths[0]}: has no CRS, so its chips lie in no area; leave --by out")
