"""GeoJSON writers after RFC 7946: WGS 84, seven decimals, right-hand rings, cut at the antimeridian."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from shapely.geometry import mapping

from deltavlm.geo.features import Feature, Layer
from deltavlm.geo.lonlat import ToLonLat

__all__ = ["FeatureCollection", "FeatureLines", "WriteText"]

WriteText = Callable[[str], object]


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
