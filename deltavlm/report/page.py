"""The report: one HTML file with everything in it, which asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from deltavlm.errors import InputError, RasterError
from deltavlm.report.images import ImageOptions, OpenScene, as_webp, open_scene
from deltavlm.report.outputs import Output, Row
from deltavlm.report.page_data import PageImages, page_data
from deltavlm.report.scenes import Scene, score_of

__all__ = ["MAX_CHIPS", "ImageLimits", "report_html"]

logger = logging.getLogger(__name__)

MAX_CHIPS = 50_000
"""More rows than a browser searches while one types."""

SCRIPTS = ("data.js", "view.js", "map.js", "list.js", "detail.js", "main.js")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How much room pictures get; `detail` ones are of the most changed chips, where the overview is too
    coarse to look at them."""

    overview_px: int = 2048  # long side
    all_overviews_px: int = 64_000_000  # pixels of all, both dates
    smallest_px: int = 256
    detail_px: int = 256
    details: int = 300
    coarse: float = 0.75  # overview pixels to a pixel of the grid, below which details are wanted


def report_html(
    output: Output,
    scenes: Sequence[Scene],
    options: ImageOptions,
    sizes: ImageLimits | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> tuple[str, dict[str, str]]:
    """The page, and why which pairs have no pictures. `scenes`: those of the output that are wanted; `watch`
    is told how many are done.

    Raises:
        InputError: more chips than a page can hold.
    """
    number = sum(len(scene.chips) for scene in scenes)
    if number > MAX_CHIPS:
        raise InputError(
            f"{output.path}: has {number:,} chips, more than the {MAX_CHIPS:,} that a page can hold; choose "
            "one pair with --pair, or analyze --bbox"
        )
    shown = _pictures(output, scenes, options, sizes or ImageLimits(), watch)
    try:
        data = page_data(output, scenes, shown)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{output.path}: holds what cannot be ({error or type(error).__name__}); was the output edited? "
            "run deltavlm analyze again"
        ) from error
    return _filled(data), shown.missing


def _filled(data: dict[str, Any]) -> str:
    folder = files("deltavlm.report") / "web"
    style = (folder / "report.css").read_text(encoding="utf-8")
    code = "".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}}})();\n'
    page = Template((folder / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(data["title"]),
        style=style,
        style_hash=_hashed(style),
        script=script,
        script_hash=_hashed(script),
        data=_embedded(data),
    )


def _hashed(text: str) -> str:
    """What a Content-Security-Policy calls this text; nothing else is run or styled."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(data: dict[str, Any]) -> str:
    """JSON that nothing in it can end or open an element from."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode()  # lone surrogates


def _pictures(
    output: Output,
    scenes: Sequence[Scene],
    options: ImageOptions,
    sizes: ImageLimits,
    watch: Callable[[int], None],
) -> PageImages:
    """Overviews of as many pairs as there is room for, and the most changed chips as they are."""
    shown = PageImages()
    room = max(1, sizes.all_overviews_px // (2 * sizes.smallest_px**2))
    longest = min(
        sizes.overview_px,
        max(sizes.smallest_px, math.isqrt(sizes.all_overviews_px // (2 * len(scenes) or 1))),
    )
    scored = sorted(
        ((score_of(chip), number) for number, chip in _numbered(scenes) if chip.get("changed")), reverse=True
    )
    wanted = {number for _, number in scored[: sizes.details]}
    first = 0
    for index, scene in enumerate(scenes):
        if index >= room:
            shown.missing[scene.name] = (
                f"the page has room for pictures of {room} pairs; report --pair shows it"
            )
        else:
            try:
                with open_scene(scene, options, output.path.absolute().parent) as seen:
                    _look(seen, scene, first, wanted, longest, sizes, shown)
            except RasterError as error:
                shown.missing[scene.name] = str(error)
        first += len(scene.chips)
        watch(index + 1)
    return shown


def _look(
    seen: OpenScene,
    scene: Scene,
    first: int,
    wanted: set[int],
    longest: int,
    sizes: ImageLimits,
    shown: PageImages,
) -> None:
    before, after = seen.overview(longest)
    shown.overviews[scene.name] = {
        "before": _uri(as_webp(before)),
        "after": _uri(as_webp(after)),
        "size": before.size,
        "extent": (seen.grid.width, seen.grid.height),
    }
    if before.width >= sizes.coarse * seen.grid.width:
        return
    for number, window in enumerate(scene.windows, first):
        if number in wanted:
            try:
                shown.details[number] = [_uri(as_webp(one)) for one in seen.crop(window, sizes.detail_px)]
            except RasterError as error:
                logger.info("%s", error)


def _uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _numbered(scenes: Sequence[Scene]) -> Iterator[tuple[int, Row]]:
    return enumerate(chip for scene in scenes for chip in scene.chips)
