"""Helpers of the tests of reports: the only pair of an output, and its page taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions
from deltavlm.report.page import ImageLimits
from deltavlm.report.pairs import ReportPair, build_pairs


def only_pair(path: Path) -> ReportPair:
    (pair,) = build_pairs(read_output(path))
    return pair


def page_of(path: Path, options: ImageOptions | None = None, limits: ImageLimits | None = None) -> str:
    return open_report(path, options or ImageOptions()).html(limits)[0]


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
