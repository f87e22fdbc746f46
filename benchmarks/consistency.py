"""Contradictions between the answers about real chips, rule by rule, and polygons with and without the rules.

    python benchmarks/consistency.py FOLDER... [--model nano]

A folder has pairs before.* and after.* in its folders, some with a mask.png of what changed, and a table
labels.csv or pairs.csv with the columns pair_id and changed. Each pair is analyzed once, with the polygons
of all chips; those of a run without `--polygons all` are some of them. A polygon is right if at least half of
its pixels are in the mask; masks that mark buildings alone (LEVIR, WHU) judge polygons of buildings alone.

Prints Markdown on stdout, messages on stderr.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import pyogrio  # noqa: E402
import rasterio  # noqa: E402
from PIL import Image  # noqa: E402
from rasterio.features import rasterize  # noqa: E402

import deltavlm  # noqa: E402
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.geo.pair import ReadOptions  # noqa: E402
from deltavlm.metrics.binary import auc  # noqa: E402
from deltavlm.pipeline.changes import ChangeOptions, is_drawn  # noqa: E402
from deltavlm.pipeline.consistency import RULES  # noqa: E402
from deltavlm.pipeline.job import AnalyzeOptions  # noqa: E402
from deltavlm.pipeline.mask_codec import CLASSES  # noqa: E402
from deltavlm.tasks.caption import denies_change  # noqa: E402

BUILDING_MASKS = ("levir", "whu")  # sources whose masks mark buildings alone
OPTIONS = ChangeOptions()


@dataclass(frozen=True, slots=True)
class Polygon:
    """Polygon of change, with what the chip with its largest part says, and its overlap with the mask."""

    source: str  # folder of its pair
    changed: bool | None
    denied: bool  # that chip's caption says that nothing changed
    denied_itself: bool  # the polygon's own caption does
    class_score: float  # mean probability of its class
    score: float  # mean probability of all classes
    label: str  # of the pair: yes, no, or another text
    pixels: int
    true_pixels: int | None  # in the mask; None without a mask that judges its class


@dataclass
class Measured:
    """Chips and polygons of the pairs of a folder."""

    name: str
    pairs: int = 0
    chips: list[dict[str, Any]] = field(default_factory=list)
    polygons: list[Polygon] = field(default_factory=list)
    unchanged_pairs: int = 0


def labels_of(folder: Path) -> dict[str, str]:
    """Label `changed` of each pair by its id; empty without a table."""
    for name in ("labels.csv", "pairs.csv"):
        if (folder / name).exists():
            with (folder / name).open(encoding="utf-8") as table:
                return {row["pair_id"]: row["changed"] for row in csv.DictReader(table)}
    return {}


def measure(folder: Path, model: Any, scratch: Path) -> Measured:
    """Analyze each pair of a folder."""
    measured, labels = Measured(folder.name), labels_of(folder)
    for before in sorted(
        {path.parent: path for path in sorted(folder.rglob("before.*")) if path.suffix != ".xml"}.values()
    ):
        pair = before.parent.relative_to(folder).as_posix()
        output = scratch / f"{measured.pairs}.gpkg"
        deltavlm.analyze(
            before,
            before.with_name(f"after{before.suffix}"),
            output=output,
            model=model,
            polygons="all",
            probability=output.with_suffix(".tif"),
            read=ReadOptions(allow_no_crs=True),
            options=AnalyzeOptions(any_scale=True),
        )
        label = labels.get(pair, "")
        measured.pairs += 1
        measured.unchanged_pairs += label == "no"
        chips = pyogrio.read_dataframe(output, layer="chips")
        rows = chips.drop(columns="geometry").to_dict("records")
        measured.chips += [row | {"label": label if len(rows) == 1 else ""} for row in rows]
        measured.polygons += polygons_of(output, chips, before.with_name("mask.png"), label)
        print(f"{folder.name} {pair}: {len(rows)} chips", file=sys.stderr)
    return measured


def polygons_of(output: Path, chips: Any, mask: Path, label: str) -> Iterator[Polygon]:
    """Polygons of an output, all of them."""
    with rasterio.open(output.with_suffix(".tif")) as raster:
        classes = raster.read([*range(1, len(CLASSES) + 1)]).astype(int)
        transform = raster.transform if raster.crs else rasterio.Affine.identity()
    truth = np.asarray(Image.open(mask).convert("L")) > 127 if mask.exists() else None
    if truth is not None and truth.shape != classes.shape[1:]:
        truth = None
    by_id = {row.chip_id: row for row in chips.itertuples()}
    for row in pyogrio.read_dataframe(output, layer="changes").to_dict("records"):
        pixels = rasterize([(row["geometry"], 1)], classes.shape[1:], transform=transform) == 1
        if not pixels.any():
            continue
        ids = row["chip_ids"] if isinstance(row["chip_ids"], list) else json.loads(row["chip_ids"])
        areas = {each: by_id[each].geometry.intersection(row["geometry"]).area for each in ids}
        chip = by_id[max(ids, key=lambda each: (round(areas[each], 6), by_id[each].changed is not False))]
        is_judged = truth is not None and (
            row["class"] == "building" or not any(name in str(mask) for name in BUILDING_MASKS)
        )
        yield Polygon(
            source=mask.parent.parent.name,
            denied_itself=isinstance(row["caption"], str) and denies_change(row["caption"]),
            changed=None if chip.changed is None else bool(chip.changed),
            denied=isinstance(chip.caption, str) and denies_change(chip.caption),
            class_score=float(classes[CLASSES.index(row["class"])][pixels].mean()) / 254,
            score=row["mean_score"],
            label=label,
            pixels=int(pixels.sum()),
            true_pixels=int(truth[pixels].sum()) if truth is not None and is_judged else None,
        )


def conflicts_of(chip: dict[str, Any]) -> list[str]:
    value = chip["conflicts"]
    return list(json.loads(value) if isinstance(value, str) else value)


def print_rules(results: Sequence[Measured]) -> None:
    """Chips by the rule that they break."""
    table = Table()
    counts = [Counter(name for chip in each.chips for name in conflicts_of(chip)) for each in results]
    asked = [[chip for chip in each.chips if chip["status"] == "answered"] for each in results]

    def row(name: str, numbers: Sequence[object]) -> None:
        table.row(
            {"chips": name} | {each.name: number for each, number in zip(results, numbers, strict=True)}
        )

    row("pairs", [each.pairs for each in results])
    row("chips analyzed", [len(chips) for chips in asked])
    row("called changed", [sum(bool(chip["changed"]) for chip in chips) for chips in asked])
    for rule in RULES:
        row(f"`{rule.name}`", [count[rule.name] for count in counts])
    row("**any of them**", [sum(bool(conflicts_of(chip)) for chip in chips) for chips in asked])
    without_mask = [rule.name for rule in RULES if "mask" not in rule.name]
    row(
        "any but those of masks",
        [sum(any(name in without_mask for name in conflicts_of(chip)) for chip in chips) for chips in asked],
    )
    for has_conflict, words in ((False, "agree"), (True, "contradict each other")):
        chosen = [
            [
                chip["label"] == "yes"
                for chip in chips
                if chip["changed"]
                and chip["label"] in ("yes", "no")
                and any(name in without_mask for name in conflicts_of(chip)) == has_conflict
            ]
            for chips in asked
        ]
        row(
            f"called changed and labelled, whose answers {words}: truly changed",
            [f"{sum(right)} of {len(right)}" for right in chosen],
        )


def print_polygons(results: Sequence[Measured]) -> None:
    """Polygons of all chips, of chips called changed, and those with a class score over the threshold."""
    table = Table()
    for each in results:
        for name, kept in (
            ("before: all", each.polygons),
            ("now: chip called changed", [one for one in each.polygons if is_drawn(one.changed, OPTIONS)]),
            (
                "tried: also the class alone from the threshold on",
                [
                    one
                    for one in each.polygons
                    if is_drawn(one.changed, OPTIONS) and one.class_score >= OPTIONS.threshold
                ],
            ),
        ):
            judged = [one for one in kept if one.true_pixels is not None]
            right = [2 * (one.true_pixels or 0) >= one.pixels for one in judged]
            found = sum(one.true_pixels or 0 for one in judged)
            all_found = sum(one.true_pixels or 0 for one in each.polygons)
            pixels = sum(one.pixels for one in judged)
            table.row(
                {
                    "polygons": f"{each.name}, {name}",
                    "number": len(kept),
                    "chip called unchanged": sum(one.changed is False for one in kept),
                    "the chip's caption denies change": sum(one.denied for one in kept),
                    "its own `caption` does": sum(one.denied_itself for one in kept),
                    "score of the class under the threshold": sum(
                        one.class_score < OPTIONS.threshold for one in kept
                    ),
                    "`mean_score` under it": sum(one.score < OPTIONS.threshold - 1e-6 for one in kept),
                    "in pairs labelled unchanged": sum(one.label == "no" for one in kept),
                    "right": f"{sum(right)} of {len(judged)}",
                    "pixels right": f"{found / pixels:.1%}" if pixels else "-",
                    "true pixels found, of those of all": f"{found / all_found:.1%}" if all_found else "-",
                }
            )


def print_scores(results: Sequence[Measured]) -> None:
    """How well both scores sort right polygons of changed chips from wrong ones."""
    table = Table()
    polygons = [one for each in results for one in each.polygons]
    for source in dict.fromkeys(one.source for one in polygons):
        judged = [
            one for one in polygons if one.source == source and one.true_pixels is not None and one.changed
        ]
        right = [2 * (one.true_pixels or 0) >= one.pixels for one in judged]
        if len(set(right)) < 2:
            continue
        table.row(
            {
                "polygons of changed chips": f"{source}, {sum(right)} right of {len(judged)}",
                "AUC of the class alone": f"{auc([one.class_score for one in judged], right):.3f}",
                "AUC of all classes (`mean_score`)": f"{auc([one.score for one in judged], right):.3f}",
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    model = deltavlm.load_model(args.model, device="cpu", threads=1)
    print(f"\n{heading(1)}, {model.label}\n")
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for folder in args.folders:
            (Path(scratch) / folder.name).mkdir()
            results.append(measure(folder, model, Path(scratch) / folder.name))
    print_rules(results)
    print()
    print_polygons(results)
    print()
    print_scores(results)


if __name__ == "__main__":
    main()
