"""GeoJSON writers after RFC 7946: WGS 84, seven decimals, right-hand rings, cut at the antimeridian."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, mapping
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from deltavlm.errors import OutputError
from deltavlm.geo.features import Feature, Layer

if TYPE_CHECKING:
    from rasterio.crs import CRS

__all__ = ["FeatureCollection", "FeatureLines", "cut_at_180", "shapes_to_lonlat", "to_lonlat"]

DECIMALS = 7  # of a degree: a centimetre

Points = NDArray[np.float64]  # (N, 2)
Shapes = NDArray[np.object_]  # shapely geometries, or None
ToLonLat = Callable[[BaseGeometry], BaseGeometry]
WriteText = Callable[[str], object]


def to_lonlat(crs: CRS | pyproj.CRS | None) -> ToLonLat:
    """Function that transforms polygons from `crs` to longitude and latitude by RFC 7946; without a CRS they
    keep their coordinates.

    A polygon with a corner that has no longitude and latitude becomes empty.

    Raises:
        OutputError: there is no transformation from `crs` to WGS 84.
    """
    if crs is None:
        return lambda geometry: geometry
    transformer = _transformer(crs)

    def lonlat(geometry: BaseGeometry) -> BaseGeometry:
        def transform(points: Points) -> Points:
            transformed = np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)
            if not np.isfinite(transformed).all():  # a corner of a world map is outside of the projection
                return np.zeros_like(points)
            if not crs.is_geographic and np.ptp(transformed[:, 0]) > 180:  # nothing projected is that wide
                transformed[:, 0] %= 360
            return transformed

        return geometry if geometry.is_empty else cut_at_180(shapely.transform(geometry, transform))

    return lonlat


def shapes_to_lonlat(shapes: Shapes, crs: pyproj.CRS) -> Shapes:
    """Array version of `to_lonlat`, neither rounded nor oriented; None for polygons that become empty.

    Only the few polygons that cross the antimeridian take the exact, slow way of `to_lonlat`.

    Raises:
        OutputError: as `to_lonlat`.
    """
    transformer = _transformer(crs)
    lonlat: Shapes = shapely.transform(
        shapes, lambda points: np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)
    )
    bounds = shapely.bounds(lonlat)
    with np.errstate(invalid="ignore"):
        crossing = np.flatnonzero(~((bounds[:, 2] - bounds[:, 0]) < 180))  # or without a longitude
    exact = to_lonlat(crs)
    for index in crossing:
        shape = shapes[index]
        cut = None if shape is None or shape.is_empty else exact(shape)
        lonlat[index] = None if cut is None or cut.is_empty else cut
    return lonlat


def _transformer(crs: CRS | pyproj.CRS) -> pyproj.Transformer:
    """Transformation from a CRS to longitude and latitude. Raises: OutputError where there is none."""
    try:
        return pyproj.Transformer.from_crs(
            pyproj.CRS.from_wkt(crs.to_wkt()), pyproj.CRS.from_epsg(4326), always_xy=True
        )
    except pyproj.exceptions.ProjError as error:
        reason = str(error).split(": (Internal", 1)[0].rstrip(".:")
        raise OutputError(
            f"no transformation from the raster's CRS to WGS 84 ({reason}); write .gpkg instead"
        ) from error


def cut_at_180(geometry: BaseGeometry) -> BaseGeometry:
    """Polygon in longitude and latitude by RFC 7946: cut at the antimeridian, rounded to seven decimals, with
    counter-clockwise outer rings."""
    xmin, _, xmax, _ = geometry.bounds
    if xmin < -180 or xmax > 180:
        worlds = [(west, shapely.box(west, -90, west + 360, 90)) for west in (-540, -180, 180)]
        wrapped = [translate(geometry.intersection(world), -180 - west) for west, world in worlds]
    else:
        wrapped = [geometry]
    polygons = [polygon for shape in wrapped for polygon in shapely.get_parts(shape) if polygon.area > 0]
    polygons = [
        orient(shapely.transform(polygon, lambda points: np.round(points, DECIMALS))) for polygon in polygons
    ]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def _feature_text(feature: Feature, layer: Layer, lonlat: ToLonLat, extra: Mapping[str, object]) -> str:
    """GeoJSON Feature, with `extra` members."""
    shape = lonlat(feature.geometry)
    geometry = None if shape.is_empty else mapping(shape)
    member = {"type": "Feature", **extra, "properties": feature.row(layer), "geometry": geometry}
    return json.dumps(member, ensure_ascii=False, allow_nan=False)


class FeatureLines:
    """Newline-delimited GeoJSON, written in batches; the first line has the provenance as "deltavlm"."""

    def __init__(
        self, write_text: WriteText, layer: Layer, lonlat: ToLonLat, provenance: Mapping[str, object]
    ) -> None:
        self.write_text, self.layer, self.lonlat = write_text, layer, lonlat
        self.extra: Mapping[str, object] = {"deltavlm": provenance}

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        if layer != self.layer.name:
            return
        lines = []
        for feature in features:
            lines.append(_feature_text(feature, self.layer, self.lonlat, self.extra) + "\n")
            self.extra = {}
        self.write_text("".join(lines))

    def close(self) -> None:
        """Nothing to write: lines need no closing text."""


class FeatureCollection:
    """GeoJSON FeatureCollection, written in batches; the provenance is its top-level member "deltavlm"."""

    def __init__(
        self, write_text: WriteText, layer: Layer, lonlat: ToLonLat, provenance: Mapping[str, object]
    ) -> None:
        self.write_text, self.layer, self.lonlat = write_text, layer, lonlat
        head = {"type": "FeatureCollection", "name": layer.name, "deltavlm": provenance}
        write_text(json.dumps(head, ensure_ascii=False, allow_nan=False)[:-1] + ', "features": [')
        self.separator = "\n"

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        if layer != self.layer.name:
            return
        texts = []
        for feature in features:
            texts.append(self.separator + _feature_text(feature, self.layer, self.lonlat, {}))
            self.separator = ",\n"
        self.write_text("".join(texts))

    def close(self) -> None:
        self.write_text("\n]}\n")
