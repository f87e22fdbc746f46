"""The report: one HTML file with everything in it, which asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from deltavlm import __version__
from deltavlm.errors import InputError, RasterError
from deltavlm.geo.location import public_name
from deltavlm.report.colours import RAMP
from deltavlm.report.outputs import Output, Row
from deltavlm.report.pictures import Opening, Seen, as_webp, opened
from deltavlm.report.scenes import Scene, score_of
from deltavlm.tasks.locate import LABELS

__all__ = ["MAX_CHIPS", "Sizes", "report_html"]

logger = logging.getLogger(__name__)

MAX_CHIPS = 50_000
"""More rows than a browser searches while one types."""

SCRIPTS = ("data.js", "view.js", "map.js", "list.js", "detail.js", "main.js")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much room pictures get; `detail` ones are of the most changed chips, where the overview is too
    coarse to look at them."""

    overview_px: int = 2048  # long side
    all_overviews_px: int = 64_000_000  # pixels of all, both dates
    smallest_px: int = 256
    detail_px: int = 256
    details: int = 300
    coarse: float = 0.75  # overview pixels to a pixel of the grid, below which details are wanted


@dataclass
class _Shown:
    """Pictures as data URIs."""

    missing: dict[str, str] = field(default_factory=dict)  # by pair: why it has none
    overviews: dict[str, dict[str, Any]] = field(default_factory=dict)  # by pair
    details: dict[int, list[str]] = field(default_factory=dict)  # by number of the chip


def report_html(
    output: Output,
    scenes: Sequence[Scene],
    opening: Opening,
    sizes: Sizes | None = None,
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
    shown = _pictures(output, scenes, opening, sizes or Sizes(), watch)
    title = _title(scenes, output)
    data = {
        "title": title,
        "file": output.path.name,
        "pairs": [_pair(scene, shown) for scene in scenes],
        "chips": _columns(scenes),
        "changes": [
            _change(number, one, scene) for number, scene in enumerate(scenes) for one in scene.changes
        ],
        "details": shown.details,
        "ramp": RAMP,
        "cells": LABELS,
        "chipPx": scenes[0].chip_px if scenes else 0,
        "questions": {
            str(one.get("name")): str(one.get("prompt")) for one in output.provenance.get("questions", ())
        },
        "provenance": _provenance(output.provenance, scenes),
        "record": json.dumps(output.provenance, indent=1, ensure_ascii=False, default=str),
        "version": __version__,
    }
    return _filled(title, data), shown.missing


def _filled(title: str, data: dict[str, Any]) -> str:
    folder = files("deltavlm.report") / "web"
    style = (folder / "report.css").read_text(encoding="utf-8")
    code = "".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}}})();\n'
    page = Template((folder / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(title),
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


def _title(scenes: Sequence[Scene], output: Output) -> str:
    if len(scenes) != 1:
        return f"{len(scenes):,} pairs of {output.path.name}"
    names = [_short(scenes[0].before.path), _short(scenes[0].after.path)]
    return scenes[0].name or (" → ".join(names) if all(names) else output.path.name)


def _short(path: str) -> str:
    return public_name(path).replace("\\", "/").rpartition("/")[2]


def _pictures(
    output: Output, scenes: Sequence[Scene], opening: Opening, sizes: Sizes, watch: Callable[[int], None]
) -> _Shown:
    """Overviews of as many pairs as there is room for, and the most changed chips as they are."""
    shown = _Shown()
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
                with opened(scene, opening, output.path.absolute().parent) as seen:
                    _look(seen, scene, first, wanted, longest, sizes, shown)
            except RasterError as error:
                shown.missing[scene.name] = str(error)
        first += len(scene.chips)
        watch(index + 1)
    return shown


def _look(
    seen: Seen, scene: Scene, first: int, wanted: set[int], longest: int, sizes: Sizes, shown: _Shown
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


def _pair(scene: Scene, shown: _Shown) -> dict[str, Any]:
    grid, gsd_m, north = scene.grid, scene.gsd_m, scene.north
    return {
        "name": scene.name,
        "before": _short(scene.before.path),
        "after": _short(scene.after.path),
        "dates": [scene.before.taken, scene.after.taken],
        "width": grid.width if grid else 0,
        "height": grid.height if grid else 0,
        "gsd": gsd_m,
        "north": north,
        "pictures": shown.overviews.get(scene.name),
        "missing": shown.missing.get(scene.name, ""),
        "reason": scene.reason,
        "notes": scene.notes,
    }


def _columns(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Chips as columns, their texts as places in a list: most say the same."""
    texts: dict[str, int] = {"": 0}

    def text(value: Any) -> int:
        return texts.setdefault("" if value is None else str(value), len(texts))

    asked = [
        name for scene in scenes for chip in scene.chips[:1] for name in chip if name.startswith("answer_")
    ]
    answers = list(dict.fromkeys(asked))
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            *("pair", "id", "x", "y", "w", "h", "lon", "lat", "status", "changed", "score", "caption"),
            *("surety", "roads", "buildings", "road_cells", "building_cells", "valid", *answers),
        )
    }
    for number, scene in enumerate(scenes):
        for chip, window, point in zip(scene.chips, scene.windows, scene.points, strict=True):
            score = score_of(chip)
            row = {
                "pair": number,
                "id": str(chip["chip_id"]),
                **dict(zip("xywh", window, strict=True)),
                "lon": None if point is None else round(point[0], 6),
                "lat": None if point is None else round(point[1], 6),
                "status": text(chip.get("status")),
                "changed": None if chip.get("changed") is None else bool(chip["changed"]),
                "score": None if score < 0 else round(score, 4),
                "caption": text(chip.get("caption")),
                "surety": _number(chip.get("caption_score"), 3),
                "roads": _number(chip.get("new_roads"), 0),
                "buildings": _number(chip.get("new_buildings"), 0),
                "road_cells": _bits(chip.get("road_cells")),
                "building_cells": _bits(chip.get("building_cells")),
                "valid": _number(chip.get("valid_fraction"), 3),
            }
            row |= {name: text(chip.get(name)) for name in answers}
            for name, column in columns.items():
                column.append(row[name])
    return {"columns": columns, "answers": answers, "texts": list(texts)}


def _number(value: Any, digits: int) -> float | int | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, digits) if digits else int(value)


def _bits(cells: Any) -> int:
    """Cells as a number: one bit each, row by row from the top left."""
    return sum(1 << LABELS.index(cell) for cell in set(cells or ()) if cell in LABELS)


def _change(number: int, change: Row, scene: Scene) -> dict[str, Any]:
    """A polygon of the layer `changes`."""
    return {
        "pair": number,
        "class": str(change.get("class") or "change"),
        "area": _number(change.get("area_m2"), 1),
        "score": _number(change.get("mean_score"), 4),
        "lon": _number(change.get("lon"), 6),
        "lat": _number(change.get("lat"), 6),
        "chips": [str(one) for one in change.get("chip_ids") or ()],
        "rings": scene.rings(change),
    }


def _provenance(record: dict[str, Any], scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    """The lines that matter of where the answers come from; the page has all of it as JSON too."""
    model, options = record.get("model") or {}, record.get("options") or {}
    lines = [
        ("Made by", f"{record.get('tool', 'deltavlm')} {record.get('versions', {}).get('deltavlm', '')}")
    ]
    if len(scenes) == 1:
        scene = scenes[0]
        for label, date in (("Before", scene.before), ("After", scene.after)):
            size = f", {date.size[0]:,} × {date.size[1]:,} px" if date.size else ""
            bands = f", bands {', '.join(map(str, date.bands))}" if date.bands else ""
            lines.append((label, f"{public_name(date.path)}{size}{bands}"))
        if scene.grid is not None:
            crs = scene.grid.crs
            lines.append(("Grid", f"{crs.to_string()[:80] if crs else 'no CRS'}, {_size_told(scene)}"))
        inputs = record.get("inputs") or {}
        lines.append(("Scale to 8 bit", str(inputs.get("scale", record.get("reading", {}).get("scale", "")))))
    else:
        lines.append(("Pairs", str(record.get("pairs", ""))))
    place = ", ".join(str(model[key]) for key in ("device", "dtype") if model.get(key))
    told = f"{model.get('name', '')}, fingerprint {model.get('fingerprint', '')}"
    lines.append(("Model", f"{told}{f', on {place}' if place else ''}"))
    chips = f"{options.get('chip_px')} px, overlap {options.get('overlap_px')} px"
    asked = " Cascade: the other questions only of chips that changed." if options.get("cascade") else ""
    lines.append(("Chips", f"{chips}.{asked}"))
    return [(label, text) for label, text in lines if text.strip()]


def _size_told(scene: Scene) -> str:
    assert scene.grid is not None
    size = f"{scene.grid.width:,} × {scene.grid.height:,} px"
    return f"{size} of {scene.gsd_m:.3g} m" if scene.gsd_m else size
