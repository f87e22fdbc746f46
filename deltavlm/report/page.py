"""HTML page of a report: one self-contained file that makes no request."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from deltavlm.errors import InputError, RasterError
from deltavlm.geo.geobox import Window
from deltavlm.pipeline.outputs_reader import Output
from deltavlm.report.images import ImageOptions, OpenImages, as_webp, open_images
from deltavlm.report.page_data import PageImages, page_data
from deltavlm.report.pairs import ReportPair, score_of

__all__ = ["MAX_CHIPS", "ImageLimits", "report_html"]

logger = logging.getLogger(__name__)

MAX_CHIPS = 50_000
"""Rows that a browser still searches at the speed of typing."""

SCRIPTS = ("data.js", "view.js", "map.js", "list.js", "review.js", "detail.js", "main.js")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Sizes of the embedded images. Details are crops of the most changed chips, for coarse overviews."""

    overview_px: int = 2048  # long side
    total_overview_px: int = 64_000_000  # pixels of all overviews, both dates
    min_overview_px: int = 256  # long side
    detail_px: int = 256  # long side
    max_details: int = 300
    detail_below_scale: float = 0.75  # overview pixels per grid pixel, below which details are embedded


def report_html(
    output: Output,
    pairs: Sequence[ReportPair],
    options: ImageOptions,
    limits: ImageLimits | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    *,
    review: bool = False,
) -> tuple[str, dict[str, str]]:
    """Render the page of some pairs of an output.

    Args:
        options: access to the images; a pair whose images cannot be opened is shown without them.
        on_progress: called with the number of pairs that are done.
        review: with forms for verdicts and notes.

    Returns:
        The HTML text, and the pairs without images: id -> reason.

    Raises:
        InputError: more chips than a page can hold, or values that deltavlm cannot have written.
    """
    chip_count = sum(len(pair.chips) for pair in pairs)
    if chip_count > MAX_CHIPS:
        raise InputError(
            f"{output.path}: has {chip_count:,} chips, more than the {MAX_CHIPS:,} that a page can hold; "
            "choose one pair with `pair`, or analyze a part of it"
        )
    images = _render_images(output, pairs, options, limits or ImageLimits(), on_progress)
    try:
        data = page_data(output, pairs, images, review=review)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{output.path}: holds invalid values ({error or type(error).__name__}); was the output edited? "
            "run deltavlm analyze again"
        ) from error
    return _fill_template(data), images.missing


def _fill_template(data: dict[str, Any]) -> str:
    folder = files("deltavlm.report") / "web"
    style = (folder / "report.css").read_text(encoding="utf-8")
    code = "".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}}})();\n'
    page = Template((folder / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(data["title"]),
        style=style,
        style_hash=_csp_hash(style),
        script=script,
        script_hash=_csp_hash(script),
        data=_script_json(data),
    )


def _csp_hash(text: str) -> str:
    """Source expression of a Content-Security-Policy that allows this text and nothing else."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script_json(data: dict[str, Any]) -> str:
    """JSON for a script element: `<`, `>` and `&` are escaped, so that no value can close the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode()  # lone surrogates


def _render_images(
    output: Output,
    pairs: Sequence[ReportPair],
    options: ImageOptions,
    limits: ImageLimits,
    on_progress: Callable[[int], None],
) -> PageImages:
    """Overviews of as many pairs as the limits allow, and crops of the most changed chips."""
    images = PageImages()
    max_pairs = max(1, limits.total_overview_px // (2 * limits.min_overview_px**2))
    long_side_px = min(
        limits.overview_px,
        max(limits.min_overview_px, math.isqrt(limits.total_overview_px // (2 * len(pairs) or 1))),
    )
    detail_numbers = _highest_scores(pairs, limits.max_details)
    first = 0
    for index, pair in enumerate(pairs):
        if index >= max_pairs:
            images.missing[pair.name] = (
                f"the page embeds images of {max_pairs} pairs at most; show this one with `pair`"
            )
        else:
            windows = {
                number: window
                for number, window in enumerate(pair.windows, first)
                if number in detail_numbers
            }
            try:
                with open_images(pair, options, output.folder) as opened:
                    images.overviews[pair.name], scale = _overviews(opened, long_side_px)
                    if scale < limits.detail_below_scale:
                        images.details |= _details(opened, windows, limits.detail_px)
            except RasterError as error:
                images.missing[pair.name] = str(error)
        first += len(pair.chips)
        on_progress(index + 1)
    return images


def _highest_scores(pairs: Sequence[ReportPair], count: int) -> set[int]:
    """Numbers of the changed chips with the highest scores, those without conflicts first; counted over all
    pairs."""
    chips = enumerate(chip for pair in pairs for chip in pair.chips)
    ranked = sorted(
        (
            (not chip.get("conflicts"), score_of(chip), number)
            for number, chip in chips
            if chip.get("changed")
        ),
        reverse=True,
    )
    return {number for *_, number in ranked[:count]}


def _overviews(opened: OpenImages, long_side_px: int) -> tuple[dict[str, Any], float]:
    """Overviews of both dates for the page, and their scale: overview pixels per grid pixel."""
    before, after = opened.overview(long_side_px)
    overviews = {
        "before": _data_uri(as_webp(before)),
        "after": _data_uri(as_webp(after)),
        "size": before.size,
        "extent": (opened.geobox.width, opened.geobox.height),
    }
    return overviews, before.width / opened.geobox.width


def _details(opened: OpenImages, windows: dict[int, Window], long_side_px: int) -> dict[int, list[str]]:
    """Crops of chips by number: before and after as data URIs. A chip that cannot be read has none."""
    details = {}
    for number, window in windows.items():
        try:
            details[number] = [_data_uri(as_webp(image)) for image in opened.crop(window, long_side_px)]
        except RasterError as error:
            logger.info("%s", error)
    return details


def _data_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
