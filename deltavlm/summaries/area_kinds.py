"""Kinds of areas to summarize by: polygons of a file, square cells, H3 cells, or pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.config import suggest
from deltavlm.errors import ConfigError, InputError
from deltavlm.extras import require_package
from deltavlm.geo.lonlat import cut_at_180, polygon_of_ring
from deltavlm.geo.vector_reader import read_layer, split_layer
from deltavlm.summaries.areas import Areas, Parts, divide, require_crs, single_area
from deltavlm.summaries.results import Results, Shapes, union

__all__ = ["areas_from_file", "areas_from_grid", "areas_from_h3", "areas_from_pairs", "make_areas"]

CELL_M = 1000.0
H3_RESOLUTION = 8  # 0.7 km² a cell
MAX_UTM_DEGREES = 12  # of longitude: wider results are too distorted in one UTM zone
EQUAL_AREA = 6933  # EASE-Grid 2.0, for results that are wider or nearer to a pole
MAX_AREAS = 1_000_000


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
        InputError and ConfigError: as the function of that kind of areas.
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
    if not path.exists():
        raise InputError(f"`by={by}`: no such file{suggest(by, ('pair', 'grid', 'h3'))}")
    return areas_from_file(results, path, layer, name_field)


def areas_from_pairs(results: Results) -> Areas:
    """One area per pair, outlined by its chips; with several outputs, a single pair is named by its file.

    Raises:
        InputError: one output of a single pair.
    """
    pairs = results.chips["pair_id"]
    if pairs.isna().all():
        raise InputError(f"{results.paths[0]}: has one pair only; leave `by` out")
    codes, names = pairs.factorize()
    shapes = np.full(len(names), None, dtype=object)
    if results.has_crs:
        for code in range(len(names)):
            outline = union(results.lonlat[codes == code])
            shapes[code] = None if outline.is_empty else outline
    of_polygons = names.get_indexer(results.polygons["pair_id"])
    return Areas(
        "pair", [str(name) for name in names], shapes, codes, Parts.whole(codes), Parts.whole(of_polygons)
    )


def areas_from_file(
    results: Results, path: Path, layer: str | None = None, name_field: str | None = None
) -> Areas:
    """Polygons of a vector file; those that no chip shares ground with are left out and counted.

    Raises:
        InputError: the file cannot be read, has no CRS, no polygons or none where the chips are, or the
            results have no CRS.
        ConfigError: the file has no column `name_field`.
    """
    require_crs(results)
    frame = read_layer(path, layer, polygons=True).frame
    frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])].reset_index(drop=True)
    if not len(frame):
        raise InputError(f"{path}: holds no polygons; give a layer of areas as FILE:LAYER")
    if frame.crs is None:
        raise InputError(f"{path}: has no CRS; save it with one")
    names = _names(frame, path, name_field)
    areas = divide(results, "area", names, shapely.make_valid(frame.geometry.to_numpy()), frame.crs)
    if not areas.names and len(results.chips):
        raise InputError(f"{path}: no area has a chip in it; does it cover the same place?")
    return areas


def areas_from_h3(results: Results, resolution: int = H3_RESOLUTION) -> Areas:
    """Cells of Uber's H3, resolution 0 to 15.

    Raises:
        InputError: the results have no CRS, or the package h3 is not installed.
    """
    require_crs(results)
    require_package("h3", "`by='h3'`")
    import h3

    names = sorted({cell for shape in results.lonlat for cell in _h3_cells(shape, resolution)})
    rings = [[(lon, lat) for lat, lon in h3.cell_to_boundary(name)] for name in names]
    kind = f"H3 cell of resolution {resolution}"
    areas = divide(results, kind, names, _lonlat_polygons(rings), pyproj.CRS.from_epsg(4326))
    return replace(areas, empty_count=0)


def _h3_cells(shape: BaseGeometry | None, resolution: int) -> set[str]:
    """Cells that may share ground with a chip in longitude and latitude."""
    import h3

    cells: set[str] = set()
    for polygon in shapely.get_parts(shape):
        corners = [(lat, lon) for lon, lat in polygon.exterior.coords[:-1]]
        of_corners = {h3.latlng_to_cell(*corner, resolution) for corner in corners}
        if len(of_corners) > 1:  # else the chip lies in one cell, which is convex
            inner = of_corners.union(h3.h3shape_to_cells(h3.LatLngPoly(corners), resolution))
            of_corners = {near for cell in inner for near in h3.grid_disk(cell, 1)}
        cells |= of_corners
    return cells


def areas_from_grid(results: Results, cell_m: float = CELL_M) -> Areas:
    """Square cells whose corners are multiples of `cell_m` metres, in the UTM zone of the results.

    Results that are too wide for a zone, or near a pole, get squares in the equal-area EPSG:6933. Cells are
    named by their lower left corner in metres: E500000 N5399000.

    Raises:
        InputError: the results have no CRS.
        ConfigError: more than MAX_AREAS cells.
    """
    require_crs(results)
    has_centre = np.isfinite(results.centres).all(axis=1)
    crs = pyproj.CRS.from_epsg(_metric_crs(*results.centres[has_centre].T))
    to_metres = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    chips = shapely.transform(
        shapely.get_parts(results.lonlat[has_centre]),  # two, where one is cut at the 180th meridian
        lambda points: np.stack(to_metres.transform(*points.T), axis=1),
    )
    first, last = np.split(np.floor(shapely.bounds(chips) / cell_m), 2, axis=1)
    sizes = last - first + 1
    if sizes.prod(axis=1).sum() > MAX_AREAS * 10:
        raise ConfigError(f"`cell={cell_m:g}` gives too many cells; give a larger one")
    corners = {
        (col * cell_m, row * cell_m)
        for (west, south), (cols, rows) in zip(first.tolist(), sizes.astype(int).tolist(), strict=True)
        for col in np.arange(west, west + cols).tolist()
        for row in np.arange(south, south + rows).tolist()
    }
    if len(corners) > MAX_AREAS:
        raise ConfigError(f"`cell={cell_m:g}` gives {len(corners):,} cells; give a larger one")
    ordered = sorted(corners)
    boxes = np.array([shapely.box(x, y, x + cell_m, y + cell_m) for x, y in ordered], dtype=object)
    names = [f"E{x:.0f} N{y:.0f}" for x, y in ordered]
    areas = divide(results, f"cell of {cell_m:g} m in EPSG:{crs.to_epsg()}", names, boxes, crs)
    return replace(areas, empty_count=0)


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


def _lonlat_polygons(rings: Sequence[Sequence[tuple[float, float]]]) -> Shapes:
    """Polygons of counter-clockwise rings in longitude and latitude, cut at the 180th meridian."""
    shapes = np.empty(len(rings), dtype=object)
    for index, ring in enumerate(rings):
        shapes[index] = cut_at_180(polygon_of_ring(np.array([*ring, ring[0]], float), is_ccw=True))
    return shapes
