"""Helpers of the tests of reports: the only pair of an output, and its page taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyogrio
from rasterio.crs import CRS
from shapely.geometry import box

from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.sinks import open_sink
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions, open_images
from deltavlm.report.page import ImageLimits
from deltavlm.report.pairs import ReportPair, build_pairs
from tests.rasters import UTM

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \"quoted\" 'too' $title ${data}"
)

CHANGES = Layer(
    "changes",
    (
        Field("polygon_id", "int"),
        Field("class", "str"),
        Field("kind", "str"),
        Field("area_m2", "float"),
        Field("mean_score", "float"),
        Field("lon", "float"),
        Field("lat", "float"),
        Field("chip_ids", "list"),
    ),
)


def only_pair(path: Path) -> ReportPair:
    (pair,) = build_pairs(read_output(path))
    return pair


def page_of(path: Path, options: ImageOptions | None = None, limits: ImageLimits | None = None) -> str:
    return open_report(path, options or ImageOptions()).html(limits)[0]


def opened(path: Path, options: ImageOptions | None = None) -> Any:
    return open_images(only_pair(path), options or ImageOptions(), path.parent)


def with_changes(path: Path) -> Path:
    """Add two change polygons to the output, the smaller first."""
    x, top = 500_000 + 0.5 * 64, 5_000_000 - 0.5 * 32
    rows = [
        Feature(
            box(x, top - side, x + side, top),
            {
                "polygon_id": number,
                "class": "building",
                "kind": "building_built",
                "area_m2": side * side,
                "mean_score": 0.5,
                "lon": 3.0,
                "lat": 45.1,
                "chip_ids": ["r00032_c00064", "r09999_c00000"],
            },
        )
        for number, side in enumerate((2.0, 8.0), start=1)
    ]
    other = path.with_name("changes.gpkg")
    with open_sink(other, (CHANGES,), CRS.from_user_input(UTM), {}) as sink:
        sink.write("changes", rows)
    table = pyogrio.read_dataframe(other, layer="changes")
    table["chip_ids"] = table["chip_ids"].map(json.dumps)
    pyogrio.write_dataframe(table, path, layer="changes", append=True)
    return path


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text inside each script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.texts["script"][0])
        return data
