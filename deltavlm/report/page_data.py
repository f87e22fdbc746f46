"""Data of the report page, ready for JSON: chips in columns, pairs, change polygons, provenance."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltavlm.geo.registration import shift_caveat
from deltavlm.messages import pluralize, redact_address
from deltavlm.pipeline.consistency import RULES
from deltavlm.pipeline.outputs_reader import Output, Row
from deltavlm.pipeline.scale import Scale
from deltavlm.pipeline.schema import VERDICTS
from deltavlm.pipeline.totals import sum_totals
from deltavlm.report.colours import CLASS_COLOURS, RAMP
from deltavlm.report.pairs import ReportPair, score_of
from deltavlm.tasks.evidence import Evidence
from deltavlm.tasks.locate import LABELS
from deltavlm.version import __version__

__all__ = ["PageImages", "page_data"]

MAX_POLYGONS = 20_000
"""Outlines that a browser still draws while the map is moved."""


@dataclass
class PageImages:
    """Images of the page as data URIs, and the pairs without images."""

    missing: dict[str, str] = field(default_factory=dict)  # pair id -> reason
    overviews: dict[str, dict[str, Any]] = field(default_factory=dict)  # by pair id
    details: dict[int, list[str]] = field(default_factory=dict)  # by number of the chip


def page_data(
    output: Output, pairs: Sequence[ReportPair], images: PageImages, *, review: bool = False
) -> dict[str, Any]:
    """Everything that the scripts of the page read; web/data.js is the other side of it."""
    changes = _changes(pairs)
    return {
        "title": _title(pairs, output),
        "file": output.path.name,
        "pairs": [_pair(pair, images) for pair in pairs],
        "chips": _columns(pairs, _evidence_name(output.provenance)),
        "changes": changes,
        "totals": sum_totals(pair.totals for pair in pairs).as_dict(),
        "leftOut": sum(len(pair.changes) for pair in pairs) - len(changes),
        "details": images.details,
        "ramp": RAMP,
        "classColours": CLASS_COLOURS,
        "cells": LABELS,
        "rules": [(rule.name, rule.meaning) for rule in RULES],
        "chipPx": pairs[0].chip_px if pairs else 0,
        "questions": {
            str(question.get("name")): str(question.get("prompt"))
            for question in output.provenance.get("questions", ())
        },
        "provenance": [*_provenance(output.provenance, pairs), *_threshold(output)],
        "threshold": output.threshold,
        "verdicts": VERDICTS if review else None,
        "reviewKey": _review_key(output),
        "record": json.dumps(output.provenance, indent=1, ensure_ascii=False, default=str),
        "version": __version__,
    }


def _review_key(output: Output) -> str:
    """Name and digest of an output, by which a browser keeps the opinions on it."""
    record = json.dumps([output.provenance, output.threshold], sort_keys=True, default=str)
    return f"{output.path.name} {hashlib.sha256(record.encode()).hexdigest()[:16]}"


def _title(pairs: Sequence[ReportPair], output: Output) -> str:
    if len(pairs) != 1:
        return f"{pluralize(len(pairs), 'pair')} of {output.path.name}"
    names = [_file_name(pairs[0].before.path), _file_name(pairs[0].after.path)]
    return pairs[0].name or (" → ".join(names) if all(names) else output.path.name)


def _file_name(path: str) -> str:
    return redact_address(path).replace("\\", "/").rpartition("/")[2]


def _pair(pair: ReportPair, images: PageImages) -> dict[str, Any]:
    geobox, gsd_m, north = pair.geobox, pair.gsd_m, pair.north
    return {
        "name": pair.name,
        "before": _file_name(pair.before.path),
        "after": _file_name(pair.after.path),
        "dates": [pair.before.date, pair.after.date],
        "width": geobox.width if geobox else 0,
        "height": geobox.height if geobox else 0,
        "gsd": gsd_m,
        "north": north,
        "pictures": images.overviews.get(pair.name),
        "missing": images.missing.get(pair.name, ""),
        "changes": len(pair.changes),
        "totals": pair.totals.as_dict(),
        "reason": pair.reason,
        "notes": pair.notes,
    }


def _evidence_name(record: Mapping[str, Any]) -> str:
    """Name of the evidence model of a run; empty without one."""
    return str(((record.get("model") or {}).get("evidence") or {}).get("name", ""))


def _columns(pairs: Sequence[ReportPair], evidence_name: str) -> dict[str, Any]:
    """Chips as columns. Texts are indices into a list of distinct texts, since most chips share theirs."""
    text_indices: dict[str, int] = {"": 0}

    def text(value: Any) -> int:
        return text_indices.setdefault("" if value is None else str(value), len(text_indices))

    first_chips = [chip for pair in pairs for chip in pair.chips[:1]]
    answers = list(dict.fromkeys(name for chip in first_chips for name in chip if name.startswith("answer_")))
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            *("pair", "id", "x", "y", "w", "h", "lon", "lat", "status", "changed", "score", "caption"),
            *("surety", "roads", "buildings", "road_cells", "building_cells", "conflicts", "valid"),
            *("clouds", "shift", "verdict", "note", *(["evidence"] if evidence_name else []), *answers),
        )
    }
    for number, pair in enumerate(pairs):
        for chip, window, point in zip(pair.chips, pair.windows, pair.points, strict=True):
            score = score_of(chip)
            row = {
                "pair": number,
                "id": str(chip["chip_id"]),
                **dict(zip("xywh", window, strict=True)),
                "lon": None if point is None else round(point[0], 7),
                "lat": None if point is None else round(point[1], 7),
                "status": text(chip.get("status")),
                "changed": None if chip.get("changed") is None else bool(chip["changed"]),
                "score": None if score < 0 else round(score, 4),
                "caption": text(chip.get("caption")),
                "surety": _number(chip.get("caption_score"), 3),
                "roads": _number(chip.get("new_roads"), 0),
                "buildings": _number(chip.get("new_buildings"), 0),
                "road_cells": _cell_bits(chip.get("road_cells")),
                "building_cells": _cell_bits(chip.get("building_cells")),
                "conflicts": _rule_bits(chip.get("conflicts")),
                "valid": _number(chip.get("valid_fraction"), 3),
                "clouds": _number(chip.get("cloud_share"), 3),
                "shift": _number(chip.get("shift_px"), 2),
                "verdict": text(chip.get("verdict")),
                "note": text(chip.get("note")),
                "evidence": text(_evidence_text(chip, evidence_name) if evidence_name else ""),
            }
            row |= {name: text(chip.get(name)) for name in answers}
            for name, column in columns.items():
                column.append(row[name])
    return {"columns": columns, "answers": answers, "texts": list(text_indices)}


def _evidence_text(chip: Row, name: str) -> str:
    """Evidence of a row of the layer `chips` in words; empty where there is none."""
    values = {each: chip.get(f"evidence_{each}") for each in Evidence().as_dict()}
    values |= {each: _number(values[each], 0) for each in ("new_roads", "new_buildings")}
    try:
        return Evidence.from_dict(values).sentences(name)
    except ValueError:  # somebody has edited the file
        return ""


def _number(value: Any, digits: int) -> float | int | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, digits) if digits else int(value)


def _cell_bits(cells: Any) -> int:
    """Bit mask of the named cells: bit 0 is the top left cell, row by row."""
    return sum(1 << LABELS.index(cell) for cell in set(cells or ()) if cell in LABELS)


def _rule_bits(conflicts: Any) -> int:
    """Bit mask of consistency rules that a chip breaks, in the order of RULES."""
    return sum(1 << index for index, rule in enumerate(RULES) if rule.name in (conflicts or ()))


def _area_m2(change: Row) -> float:
    return float(_number(change.get("area_m2"), 1) or 0)


def _changes(pairs: Sequence[ReportPair]) -> list[dict[str, Any]]:
    """Change polygons, the largest first; at most MAX_POLYGONS."""
    numbered = [(number, change) for number, pair in enumerate(pairs) for change in pair.changes]
    largest = sorted(numbered, key=lambda entry: -_area_m2(entry[1]))[:MAX_POLYGONS]
    return [_change(number, change, pairs[number]) for number, change in largest]


def _change(number: int, change: Row, pair: ReportPair) -> dict[str, Any]:
    return {
        "pair": number,
        "id": _number(change.get("polygon_id"), 0),
        "verdict": str(change.get("verdict") or ""),
        "note": str(change.get("note") or ""),
        "class": str(change.get("class") or "other"),
        "kind": str(change.get("kind") or change.get("class") or "other"),
        "area": _number(change.get("area_m2"), 1),
        "score": _number(change.get("mean_score"), 4),
        "lon": _number(change.get("lon"), 6),
        "lat": _number(change.get("lat"), 6),
        "chips": list(map(str, ids)) if isinstance(ids := change.get("chip_ids"), list) else [],
        "rings": pair.rings(change),
    }


def _provenance(record: Mapping[str, Any], pairs: Sequence[ReportPair]) -> list[tuple[str, str]]:
    """Main facts of the provenance as (label, text); the page has the full record as JSON too."""
    model, options = record.get("model") or {}, record.get("options") or {}
    lines = [
        ("Made by", f"{record.get('tool', 'deltavlm')} {record.get('versions', {}).get('deltavlm', '')}")
    ]
    if len(pairs) == 1:
        pair = pairs[0]
        for label, image in (("Before", pair.before), ("After", pair.after)):
            size = f", {image.size[0]:,} × {image.size[1]:,} px" if image.size else ""
            bands = f", bands {', '.join(map(str, image.bands))}" if image.bands else ""
            lines.append((label, f"{redact_address(image.path)}{size}{bands}"))
        if pair.geobox is not None:
            crs = pair.geobox.crs
            lines.append(("Grid", f"{crs.to_string()[:80] if crs else 'no CRS'}, {_grid_size(pair)}"))
        inputs = record.get("inputs") or {}
        lines.append(("Scale to 8 bit", str(inputs.get("scale", record.get("reading", {}).get("scale", "")))))
    else:
        lines.append(("Pairs", str(record.get("pairs", ""))))
    lines += _scale_and_area(record, pairs)
    shifts_px = [_number(chip.get("shift_px"), 2) for pair in pairs for chip in pair.chips]
    lines.append(("Shift", shift_caveat([px for px in shifts_px if px is not None]) or ""))
    device = ", ".join(str(model[key]) for key in ("device", "dtype") if model.get(key))
    name = f"{model.get('name', '')}, fingerprint {model.get('fingerprint', '')}"
    lines.append(("Model", f"{name}{f', on {device}' if device else ''}"))
    chips = f"{options.get('chip_px')} px, overlap {options.get('overlap_px')} px"
    cascade = " Cascade: only changed chips were asked the other questions." if options.get("cascade") else ""
    if cascade and _evidence_name(record):
        cascade = " Cascade: only chips that the evidence calls changed were asked about."
    lines.append(("Chips", f"{chips}.{cascade}"))
    return [(label, text) for label, text in lines if text.strip()]


def _scale_and_area(record: Mapping[str, Any], pairs: Sequence[ReportPair]) -> list[tuple[str, str]]:
    """Warnings about pixels far from the training's, and the area that was analyzed, as (label, text)."""
    model, options = record.get("model") or {}, record.get("options") or {}
    lines = []
    chip_px, limited = _number(options.get("chip_px"), 3), not options.get("any_scale")
    for name, facts in (
        ("the model", model),
        (f"the evidence model {_evidence_name(record)}", model.get("evidence") or {}),
    ):
        model_px, training_gsd_m = (_number(facts.get(each), 3) for each in ("chip_px", "training_gsd_m"))
        if chip_px and model_px and training_gsd_m:
            scales = (Scale(pair.gsd_m, training_gsd_m, chip_px / model_px, name) for pair in pairs)
            warnings = dict.fromkeys(scale.warning(limited=limited) for scale in scales)
            lines += [("Scale", text) for text in list(filter(None, warnings))[:3]]
    source = {**(record.get("inputs") or {}), **(record.get("reading") or {})}
    if source.get("bbox") or source.get("aoi"):
        lines.append(("Area", "only chips that touch the area of interest were analyzed"))
    return lines


def _threshold(output: Output) -> list[tuple[str, str]]:
    """Threshold of changed chips as (label, text), if it is not the model's own answer."""
    if output.threshold is not None:
        text = f"changed from a score of {output.threshold:g} on, by the stored scores"
        return [("Threshold", f"{text}; polygons of other chips are left out")]
    threshold = (output.provenance.get("options") or {}).get("threshold")
    return [] if threshold is None else [("Threshold", f"changed from a score of {threshold} on")]


def _grid_size(pair: ReportPair) -> str:
    assert pair.geobox is not None
    size = f"{pair.geobox.width:,} × {pair.geobox.height:,} px"
    return f"{size} of {pair.gsd_m:.3g} m" if pair.gsd_m else size
