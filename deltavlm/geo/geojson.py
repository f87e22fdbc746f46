"""GeoJSON as RFC 7946 wants it: WGS 84, seven decimals, right-hand rings, cut at the antimeridian."""

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

__all__ = ["FeatureCollection", "FeatureLines", "cut_at_180", "to_lonlat"]

DECIMALS = 7  # of a degree: a centimetre

Points = NDArray[np.float64]  # (N, 2)
ToLonLat = Callable[[BaseGeometry], BaseGeometry]
Put = Callable[[str], object]  # takes text to where it goes


def to_lonlat(crs: CRS | None) -> ToLonLat:
    """The function that takes polygons from `crs` to RFC 7946; without a CRS they keep their coordinates.

    A polygon with a corner that has no longitude and latitude becomes empty.

    Raises:
        OutputError: nothing leads from `crs` to longitude and latitude.
    """
    if crs is None:
        return lambda geometry: geometry
    try:
        transformer = pyproj.Transformer.from_crs(
            pyproj.CRS.from_wkt(crs.to_wkt()), pyproj.CRS.from_epsg(4326), always_xy=True
        )
    except pyproj.exceptions.ProjError as error:
        raise OutputError(f"no way from the raster's CRS to WGS 84 ({error}); write .gpkg instead") from error

    def lonlat(geometry: BaseGeometry) -> BaseGeometry:
        def move(points: Points) -> Points:
            moved = np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)
            if not np.isfinite(moved).all():  # a corner of a world map lies beside the world
                return np.zeros_like(points)
            if not crs.is_geographic and np.ptp(moved[:, 0]) > 180:  # nothing projected is that wide
                moved[:, 0] %= 360
            return moved

        return geometry if geometry.is_empty else cut_at_180(shapely.transform(geometry, move))

    return lonlat


def cut_at_180(geometry: BaseGeometry) -> BaseGeometry:
    """A polygon in longitude and latitude as RFC 7946 wants it.

    It is cut where the world's edge is passed, rounded, and its outer rings are turned counter-clockwise.
    """
    left, _, right, _ = geometry.bounds
    if left < -180 or right > 180:
        worlds = [(west, shapely.box(west, -90, west + 360, 90)) for west in (-540, -180, 180)]
        pieces = [translate(geometry.intersection(world), -180 - west) for west, world in worlds]
    else:
        pieces = [geometry]
    parts = [part for piece in pieces for part in shapely.get_parts(piece) if part.area > 0]
    parts = [orient(shapely.transform(part, lambda points: np.round(points, DECIMALS))) for part in parts]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _text(feature: Feature, layer: Layer, lonlat: ToLonLat, extra: Mapping[str, object]) -> str:
    shape = lonlat(feature.geometry)
    geometry = None if shape.is_empty else mapping(shape)
    member = {"type": "Feature", **extra, "properties": feature.row(layer), "geometry": geometry}
    return json.dumps(member, ensure_ascii=False, allow_nan=False)


class FeatureLines:
    """One feature a line, a batch put at once; the first line carries the provenance as member "deltavlm"."""

    def __init__(self, put: Put, layer: Layer, lonlat: ToLonLat, provenance: Mapping[str, object]) -> None:
        self.put, self.layer, self.lonlat = put, layer, lonlat
        self.extra: Mapping[str, object] = {"deltavlm": provenance}

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        if layer != self.layer.name:
            return
        lines = []
        for feature in features:
            lines.append(_text(feature, self.layer, self.lonlat, self.extra) + "\n")
            self.extra = {}
        self.put("".join(lines))

    def close(self) -> None:
        """A line needs no end."""


class FeatureCollection:
    """One GeoJSON object, a batch put at once; the provenance is its first-level member "deltavlm"."""

    def __init__(self, put: Put, layer: Layer, lonlat: ToLonLat, provenance: Mapping[str, object]) -> None:
        self.put, self.layer, self.lonlat = put, layer, lonlat
        head = {"type": "FeatureCollection", "name": layer.name, "deltavlm": provenance}
        put(json.dumps(head, ensure_ascii=False, allow_nan=False)[:-1] + ', "features": [')
        self.before_next = "\n"

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        if layer != self.layer.name:
            return
        pieces = []
        for feature in features:
            pieces.append(self.before_next + _text(feature, self.layer, self.lonlat, {}))
            self.before_next = ",\n"
        self.put("".join(pieces))

    def close(self) -> None:
        self.put("\n]}\n")
