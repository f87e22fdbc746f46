"""False alarms and misses per 100 chips by ground size and threshold, for docs/good-enough.md.

    python benchmarks/per_100_chips.py FOLDER... [--scenes 300] [--chart FILE.svg] [--examples FILE.jpg]

A folder is read as by `consistency.py`, and its sources are those of SOURCES. A chip has changed by
`pairs.csv`, by its part of mask.png from 0.5 % on, or has not where `labels.csv` says that neither a building
nor a road is new; others are left out and named. Synthetic scenes are drawn from seeds that no training or
calibration uses. `--chart` draws the false alarms and misses at a threshold of 0.5; `--examples` the first
scenes, in the order of their seeds, that are a hit, a false alarm and a miss, where there is one (changed
buildings alone).

Prints Markdown on stdout, messages on stderr. Intervals are 95 % (Wilson), each chip counted as independent.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from rasterio.windows import Window as RasterioWindow  # noqa: E402
from scipy.ndimage import binary_dilation  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

from benchmarks.real_scores import MIN_CHANGED_SHARE  # noqa: E402
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.data.synthetic import SceneOptions, phrases  # noqa: E402
from deltavlm.data.synthetic.cache import FAR_TEST_SEED, TEST_SEED, open_cache, render_cache  # noqa: E402
from deltavlm.data.synthetic.facts import facts_of  # noqa: E402
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair  # noqa: E402
from deltavlm.model.interface import ChangeModel  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS  # noqa: E402

YES_NO = [question for question in STANDARD_QUESTIONS if question.yes_no]
THRESHOLDS, DEFAULT = (0.3, 0.5, 0.7, 0.9), 0.5
MIN_VALID = 0.5  # share of a chip with data, below which `analyze` leaves it out
TOWN_CHANGED = 10  # changed chips among the 100 of the worked example
ALARM_COLOR, MISS_COLOR = "#d55e00", "#0072b2"  # distinct in all common kinds of color blindness
OUTLINE_COLOR = (255, 230, 0)
SIDE, GAP, TEXT = 200, 10, 60  # pixels of the examples: an image, a gap, the words below
FINE, MEDIUM, COARSE = "fine, up to 1 m", "medium, about 1.5 to 2 m", "coarse, 5 to 10 m"
SYNTHETIC = "synthetic"
SOURCES = {
    "levir_bit": (FINE, "suburbs in Texas, 0.5 m"),
    "levircc_test": (FINE, "suburbs in Texas, 0.5 m"),
    "whu_cd": (FINE, "other places, 0.2 to 1 m"),
    "cdd": (FINE, "other places, 0.2 to 1 m"),
    "desert_unknown": (FINE, "other places, 0.2 to 1 m"),
    "sztaki_256": (MEDIUM, "villages in Hungary, 1.5 m"),
    "dsifn_changeformer": (MEDIUM, "cities in China, 2 m"),
    "dsifn": (MEDIUM, "cities in China, 2 m"),
    "clcd": (MEDIUM, "farmland in China, 0.5 to 2 m"),
    "naip_nd": (COARSE, "farmland in North Dakota, 5 m"),
    "oscd": (COARSE, "desert city (Sentinel-2), 10 m"),
}
SCENES = {
    "synthetic scenes, 0.3 to 1.5 m": (TEST_SEED, SceneOptions(change=0.6)),
    "synthetic scenes, 0.6 to 3 m": (FAR_TEST_SEED, SceneOptions(change=0.6, downsample=2)),
}


@dataclass(frozen=True, slots=True)
class ScoredChip:
    """Chip with its `changed_score` and the truth."""

    size: str  # FINE, MEDIUM, COARSE or SYNTHETIC
    site: str
    score: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Number of wrong chips among some, per 100."""

    wrong: int
    chips: int

    @property
    def per_100(self) -> float:
        return 100 * self.wrong / self.chips if self.chips else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval (Wilson), per 100."""
        bounds = binomtest(self.wrong, self.chips).proportion_ci(0.95, method="wilson")
        return 100 * float(bounds.low), 100 * float(bounds.high)

    def __str__(self) -> str:
        if not self.chips:
            return "-"
        low, high = self.interval
        return f"{self.per_100:.0f} ({low:.0f} to {high:.0f}; {self.wrong} of {self.chips})"


def false_alarms(chips: Sequence[ScoredChip], threshold: float) -> Share:
    """Unchanged chips that are called changed."""
    scores = [chip.score for chip in chips if not chip.changed]
    return Share(sum(score >= threshold for score in scores), len(scores))


def misses(chips: Sequence[ScoredChip], threshold: float) -> Share:
    """Changed chips that are called unchanged."""
    scores = [chip.score for chip in chips if chip.changed]
    return Share(sum(score < threshold for score in scores), len(scores))


def score_images(model: ChangeModel, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    """`changed_score` of one chip, (3, size, size) uint8 RGB at both dates."""
    ((reply,),) = model.answer(model.encode(before[None], after[None]), YES_NO)
    return float(reply.score)


def read_labels(folder: Path) -> dict[str, bool]:
    """Labels of pairs as a whole, by id: True where all chips have changed, False where none has."""
    truth = {}
    for name in ("pairs.csv", "labels.csv"):
        if (folder / name).exists():
            with (folder / name).open(encoding="utf-8") as table:
                for row in csv.DictReader(table):
                    if name == "pairs.csv" and row["changed"] in ("yes", "no"):
                        truth[row["pair_id"]] = row["changed"] == "yes"
                    elif name == "labels.csv" and {row["buildings_new"], row["roads_new"]} == {"no"}:
                        truth[row["pair_id"]] = False
    return truth


def score_folder(model: ChangeModel, folder: Path) -> Iterator[ScoredChip]:
    """Chips of the pairs of a folder whose truth is known."""
    labels, has_verdicts = read_labels(folder), (folder / "pairs.csv").exists()
    for pair in sorted({path.parent for path in folder.rglob("before.*")}):
        name, mask = pair.relative_to(folder).as_posix(), pair / "mask.png"
        ending = "png" if (pair / "before.png").exists() else "tif"
        marked = None
        if mask.exists() and not has_verdicts:
            marked = np.asarray(Image.open(mask).convert("L")) > 127
        if marked is None and name not in labels:
            print(f"{name}: left out, its truth by chip is not known", file=sys.stderr)
            continue
        images = RasterPair(str(pair / f"before.{ending}"), str(pair / f"after.{ending}"))
        with open_pair(images, ReadOptions(allow_no_crs=True)) as reader:
            extent = (reader.geobox.height, reader.geobox.width)
            if marked is not None and marked.shape != extent:
                raise SystemExit(f"{mask}: {marked.shape} px, but the pair has {extent}")
            for chip in reader.chips(model.chip_px):
                pixels = reader.read(chip)
                if pixels.valid_fraction < MIN_VALID:
                    continue
                if marked is None:
                    changed = labels[name]
                else:
                    chip_mask = marked[RasterioWindow(*chip.window).toslices()]
                    changed = bool(chip_mask.mean() >= MIN_CHANGED_SHARE)
                score = score_images(model, pixels.before, pixels.after)
                yield ScoredChip(*SOURCES[pair.parent.name], score, changed)


def score_scenes(model: ChangeModel, count: int, folder: Path) -> Iterator[ScoredChip]:
    """Synthetic scenes, `count` of each kind, whose caches stay in `folder`."""
    for site, (seed, options) in SCENES.items():
        cache = folder / str(seed)
        render_cache(cache, count, seed=seed, options=options, workers=1)
        images, truth = open_cache(cache)
        for scene, arrays in zip(images, truth, strict=True):
            before, after = np.ascontiguousarray(scene.transpose(0, 3, 1, 2))
            yield ScoredChip(SYNTHETIC, site, score_images(model, before, after), facts_of(*arrays).changed)


def group_chips(chips: Sequence[ScoredChip]) -> dict[str, list[ScoredChip]]:
    """Chips by ground size; synthetic scenes by their kind."""
    groups: dict[str, list[ScoredChip]] = {FINE: [], MEDIUM: [], COARSE: []}
    for chip in chips:
        groups.setdefault(chip.site if chip.size == SYNTHETIC else chip.size, []).append(chip)
    return {name: group for name, group in groups.items() if group}


def print_sizes(groups: dict[str, list[ScoredChip]]) -> None:
    """False alarms and misses by ground size and threshold, and what they make of 100 chips of a town."""
    table = Table()
    for name, chips in groups.items():
        for threshold in THRESHOLDS:
            alarms, missed = false_alarms(chips, threshold), misses(chips, threshold)
            right = TOWN_CHANGED * (1 - missed.per_100 / 100)
            wrong = (100 - TOWN_CHANGED) * alarms.per_100 / 100
            table.row(
                {
                    "ground size": name,
                    "threshold": threshold,
                    "false alarms per 100 unchanged chips": alarms,
                    "misses per 100 changed chips": missed,
                    f"of 100 chips with {TOWN_CHANGED} changed: called changed": f"{right + wrong:.0f}",
                    "of these right": f"{right:.0f}",
                }
            )


def print_sites(chips: Sequence[ScoredChip]) -> None:
    """The same by site, at the first threshold."""
    table = Table()
    for size, site in dict.fromkeys((chip.size, chip.site) for chip in chips if chip.size != SYNTHETIC):
        group = [chip for chip in chips if (chip.size, chip.site) == (size, site)]
        table.row(
            {
                f"site, threshold {DEFAULT}": site,
                "counted as": size,
                "false alarms per 100 unchanged chips": false_alarms(group, DEFAULT),
                "misses per 100 changed chips": misses(group, DEFAULT),
            }
        )


def chart(groups: dict[str, list[ScoredChip]]) -> str:
    """SVG of false alarms and misses per 100 chips with their intervals, at the first threshold."""
    width, axis_x, right, top, step = 760, 190, 40, 84, 86
    scale = (width - axis_x - right) / 100
    bottom = top + step * len(groups)
    title = f"Wrong chips per 100 at a threshold of {DEFAULT}"
    shapes, words = [], []
    for value in range(0, 101, 25):
        x = axis_x + scale * value
        shapes.append(f'<path d="M{x:.1f} {top - 8}V{bottom - 10}" stroke="#ccc"/>')
        shapes.append(f'<text x="{x:.1f}" y="{bottom + 8}" text-anchor="middle">{value}</text>')
    for number, (name, chips) in enumerate(groups.items()):
        y = top + step * number
        numbers = [sum(chip.changed is changed for chip in chips) for changed in (False, True)]
        for line, text in enumerate([*name.split(", "), "{} unchanged, {} changed".format(*numbers)]):
            weight = "bold" if line == 0 else "normal"
            shapes.append(
                f'<text x="12" y="{y + 16 + 18 * line}" font-weight="{weight}">{escape(text)}</text>'
            )
        for line, (kind, share, color) in enumerate(
            (
                ("false alarms", false_alarms(chips, DEFAULT), ALARM_COLOR),
                ("misses", misses(chips, DEFAULT), MISS_COLOR),
            )
        ):
            if not share.chips:
                continue
            low, high = (axis_x + scale * value for value in share.interval)
            bar_y = y + 32 * line
            middle = bar_y + 13
            shapes.append(
                f'<rect x="{axis_x}" y="{bar_y}" width="{scale * share.per_100:.1f}" height="26" '
                f'fill="{color}"/>'
                f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}'
                f'v10" stroke="#000" stroke-width="1.5"/>'
                f'<text x="{high + 6:.1f}" y="{middle + 5}" font-weight="bold">{share.per_100:.0f}</text>'
            )
            words.append(f"{name}: {kind} {share}.")
    legend = (
        f'<rect x="{axis_x}" y="42" width="14" height="14" fill="{ALARM_COLOR}"/>'
        f'<text x="{axis_x + 20}" y="54">false alarms per 100 unchanged chips</text>'
        f'<rect x="{axis_x + 290}" y="42" width="14" height="14" fill="{MISS_COLOR}"/>'
        f'<text x="{axis_x + 310}" y="54">misses per 100 changed chips</text>'
    )
    content = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 20}" role="img" '
        f'aria-labelledby="title desc" font-family="sans-serif" font-size="14">\n'
        f'<title id="title">{title}</title>\n<desc id="desc">{escape(" ".join(words))}</desc>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="12" y="26" font-size="17" font-weight="bold">{title}; black lines: 95 % intervals</text>\n'
        f"{legend}\n{content}\n</svg>\n"
    )


def draw_examples(path: Path, chips: Sequence[ScoredChip], folder: Path) -> None:
    """The first scenes that are a hit, a false alarm and a miss, if there are, with the true change outlined.

    Scenes are of the first kind, in the order of their seeds; changed ones have a new or removed building.
    """
    site, (seed, _) = next(iter(SCENES.items()))
    images, truth = open_cache(folder / str(seed))
    firsts: dict[tuple[bool, bool], int] = {}
    for number, chip in enumerate(chips):
        if chip.site == site and (not chip.changed or facts_of(*truth[number]).building_cells):
            firsts.setdefault((chip.score >= DEFAULT, chip.changed), number)
    kinds = {"Hit": (True, True), "False alarm": (True, False), "Miss": (False, True)}
    kinds = {kind: key for kind, key in kinds.items() if key in firsts}  # there may be no false alarm
    tile = 2 * SIDE + 4
    sheet = Image.new("RGB", (len(kinds) * (tile + GAP) + GAP, SIDE + TEXT + 2 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (kind, key) in enumerate(kinds.items()):
        number, x = firsts[key], GAP + column * (tile + GAP)
        changed = np.kron(truth[number, 0] > 0, np.ones((2, 2))) > 0
        for date, image in enumerate(images[number]):
            canvas = np.array(image)
            if date:
                outer, inner = (binary_dilation(changed, iterations=width) for width in (4, 2))
                canvas[outer & ~inner] = OUTLINE_COLOR
            sheet.paste(Image.fromarray(canvas).resize((SIDE, SIDE)), (x + date * (SIDE + 4), GAP))
        score = chips[number].score
        true = textwrap.fill(f"True: {phrases.captions(facts_of(*truth[number]))[0]}", 60)
        pen.text((x, GAP + SIDE + 4), f"{kind}: score {score:.2f}", "black", ImageFont.load_default(17))
        pen.text((x, GAP + SIDE + 26), true, "black", ImageFont.load_default(12))
    sheet.save(path, quality=82, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--scenes", type=int, default=300, help="synthetic scenes of each kind")
    parser.add_argument("--chart", type=Path, help="SVG of false alarms and misses")
    parser.add_argument("--examples", type=Path, help="image of a hit, a false alarm and a miss")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    model = load_model(args.model, device="cpu", threads=1)
    print(f"\n{heading(1)}, {model.label}\n")
    chips = [chip for folder in args.folders for chip in score_folder(model, folder)]
    with tempfile.TemporaryDirectory() as scratch:
        scenes = list(score_scenes(model, args.scenes, Path(scratch)))
        if args.examples:
            draw_examples(args.examples, scenes, Path(scratch))
    groups = group_chips([*chips, *scenes])
    print_sizes(groups)
    print()
    print_sites(chips)
    if args.chart:
        args.chart.write_text(
            chart({name: groups[name] for name in (FINE, MEDIUM, COARSE) if name in groups}), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
