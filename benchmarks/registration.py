"""Accuracy and cost of the measured shift between the dates, and what --register and --match do to answers.

Without arguments: on synthetic scenes whose shift is known, the error of windows (with distortions) and of
pairs, how often unrelated windows pass for measured, false changes of unchanged pairs that are shifted
(baseline: the same pairs unshifted), and the cost of measuring in `analyze` (baseline: without it). With
--real FOLDER ... (SOURCE/NAME/{before,after}.png or .tif, and labels in pairs.csv, or in mask_cells.csv and
labels.csv): the measured shifts by source, whether they follow a shift that is added, and the scores of the
yes/no answer with and without --register and --match.

    python benchmarks/registration.py
    python benchmarks/registration.py --real REALPAIRS REALPAIRS2

Prints Markdown on stdout; messages on stderr.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
from affine import Affine  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402

from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.config import shipped_config  # noqa: E402
from deltavlm.data.synthetic import SceneOptions, make_scene  # noqa: E402
from deltavlm.errors import InputError  # noqa: E402
from deltavlm.geo.geotiff import write_geotiff  # noqa: E402
from deltavlm.geo.pair import ChipPixels, PairReader, RasterPair, ReadOptions, open_pair  # noqa: E402
from deltavlm.geo.registration import Registration, Shift, measure_shift  # noqa: E402
from deltavlm.metrics import binary  # noqa: E402
from deltavlm.model.interface import ChangeModel  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.pipeline.engine import LocalEngine  # noqa: E402
from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions, OutputOptions  # noqa: E402
from deltavlm.pipeline.pairs import PairList  # noqa: E402
from deltavlm.pipeline.run import run  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS  # noqa: E402
from deltavlm.tasks.questions import load_questions  # noqa: E402

Pixels = NDArray[np.uint8]  # (3, rows, cols)
SIDE, SCENE_PX, STEP, MARGIN = 256, 992, 336, 32  # px; a scene has nine windows with a margin around each
SEED = 91_000
ALL_VALID = np.ones((SIDE, SIDE), bool)
NO_MEASURING: Any = (
    ("deltavlm.geo.pair_reader.measure_shift", lambda *_: None),
    ("deltavlm.geo.pair_measurements.lattice_windows", lambda *_: ()),
)
VARIANTS = {
    "neither": ReadOptions(allow_no_crs=True),
    "`--register`": ReadOptions(allow_no_crs=True, register=True),
    "`--match histogram`": ReadOptions(allow_no_crs=True, match="histogram"),
    "both": ReadOptions(allow_no_crs=True, register=True, match="histogram"),
}


def shifted(picture: Pixels, dx: float, dy: float) -> Pixels:
    """The picture with its content moved dx to the right and dy down, by the shift theorem."""
    rows, cols = (np.fft.fftfreq(side) for side in picture.shape[1:])
    phase = np.exp(-2j * np.pi * (cols * dx + rows[:, None] * dy))
    return np.clip(np.fft.ifft2(np.fft.fft2(picture) * phase).real, 0, 255).round().astype(np.uint8)


def jpeg(picture: Pixels) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(stream, "JPEG", quality=40)
    return np.asarray(Image.open(stream)).transpose(2, 0, 1)


def blurred(picture: Pixels) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))).transpose(2, 0, 1)


def noisy(picture: Pixels) -> Pixels:
    grain = np.random.default_rng(0).normal(0, 15, picture.shape)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


DISTORTIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda picture: picture,
    "0.4 times as bright": lambda picture: (picture * 0.4 + 10).astype(np.uint8),
    "noise of 15": noisy,
    "blur of 1.5 px": blurred,
    "JPEG, quality 40": jpeg,
}


def make_images(count: int, change: float = 0.55) -> list[tuple[Pixels, Pixels]]:
    """Both dates of synthetic scenes without a shift, but with other light, shadows, noise and sharpness."""
    options = SceneOptions(misregistration_px=0.0, change=change)
    scenes = (make_scene(SEED + number, SCENE_PX, SCENE_PX, options) for number in range(count))
    return [(scene.before.transpose(2, 0, 1), scene.after.transpose(2, 0, 1)) for scene in scenes]


def windows_of(picture: Pixels) -> list[Pixels]:
    """Nine windows with their margins."""
    offsets = range(0, SCENE_PX - SIDE - 2 * MARGIN + 1, STEP)
    size = SIDE + 2 * MARGIN
    return [picture[:, row : row + size, col : col + size] for row in offsets for col in offsets]


def inner(picture: Pixels) -> Pixels:
    return picture[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def error_px(shift: Shift, dx: float, dy: float) -> float:
    return float(np.hypot(shift.dx - dx, shift.dy - dy))


def percentiles(values: Sequence[float], digits: int = 2) -> dict[str, str]:
    """Median, 90th percentile and maximum."""
    if not values:
        return dict.fromkeys(("median", "90 %", "largest"), "-")
    numbers = (*np.percentile(values, [50, 90]), max(values))
    return {
        name: f"{number:.{digits}f}"
        for name, number in zip(("median", "90 %", "largest"), numbers, strict=True)
    }


def print_errors(images: Sequence[tuple[Pixels, Pixels]]) -> None:
    """Errors of windows of one date against itself, and of both dates; and of pairs, from nine windows."""
    rng = np.random.default_rng(5)
    table = Table()
    for dates in ("one date, moved", "two dates"):
        for name, distort in DISTORTIONS.items():
            errors: list[float] = []
            pair_errors: list[float] = []
            count = 0
            for before, after in images:
                dx, dy = rng.uniform(-8, 8, 2)
                moved = [
                    shifted(each, dx, dy) for each in windows_of(after if dates == "two dates" else before)
                ]
                measured = [
                    measure_shift(inner(first), distort(inner(second)), ALL_VALID)
                    for first, second in zip(windows_of(before), moved, strict=True)
                ]
                count += len(measured)
                found = [shift for shift in measured if shift is not None]
                errors += [error_px(shift, dx, dy) for shift in found]
                pair = Registration.of(found).shift
                pair_errors += [] if pair is None else [error_px(pair, dx, dy)]
            table.row(
                {
                    "images": dates,
                    "distortion of the later": name,
                    "windows measured": f"{len(errors)} of {count}",
                    **{f"error of a window, px: {key}": text for key, text in percentiles(errors).items()},
                    "pairs measured": f"{len(pair_errors)} of {len(images)}",
                    **{f"error of a pair: {key}": text for key, text in percentiles(pair_errors).items()},
                }
            )
    flat = [inner(window) for before, _ in images for window in windows_of(before)]
    later = [inner(window) for _, after in images for window in windows_of(after)]
    trials = [
        measure_shift(first, later[(number + step) % len(later)], ALL_VALID)
        for step in (10, 19, 31, 44)
        for number, first in enumerate(flat)
    ]
    false = sum(trial is not None for trial in trials)
    print(f"\nWindows of unrelated ground that passed for measured: {false} of {len(trials)}.\n")


def answer_yes(model: ChangeModel, chips: Sequence[ChipPixels]) -> list[float]:
    """Probability of change of each chip."""
    scores: list[float] = []
    for start in range(0, len(chips), 16):
        batch = chips[start : start + 16]
        images = (np.stack([getattr(chip, date) for chip in batch]) for date in ("before", "after"))
        replies = model.answer(model.encode(*images), STANDARD_QUESTIONS[1:2])
        scores += [reply[0].score for reply in replies]
    return scores


def chips_of(reader: PairReader) -> list[ChipPixels]:
    """Chips that `analyze` would ask about."""
    chips = (reader.read(chip) for chip in reader.chips(SIDE))
    return [chip for chip in chips if chip.valid_fraction >= 0.5]


def write_pair(folder: Path, before: Pixels, after: Pixels) -> RasterPair:
    paths = [folder / f"{name}.tif" for name in ("before", "after")]
    for path, pixels in zip(paths, (before, after), strict=True):
        path.unlink(missing_ok=True)
        image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        write_geotiff(path, image, transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), crs="EPSG:32633")
    return RasterPair(*map(str, paths))


def print_false_changes(model: ChangeModel, count: int) -> None:
    """Share of the chips of unchanged, shifted pairs that are called changed, with and without correction."""
    images = make_images(count, change=0.0)
    table = Table()
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as scratch:
        for length in (0.0, 1.0, 2.0, 3.0, 5.0, 7.0):
            scores: dict[bool, list[float]] = {False: [], True: []}
            residuals: list[float] = []
            for before, after in images:
                angle = rng.uniform(0, 2 * np.pi)
                moved = shifted(after, length * np.cos(angle), length * np.sin(angle))
                pair = write_pair(Path(scratch), before, moved)
                for register in scores:
                    with open_pair(pair, ReadOptions(register=register)) as reader:
                        chips = chips_of(reader)
                    scores[register] += answer_yes(model, chips)
                    if register:
                        found = [chip.measure_shift() for chip in chips]
                        residuals += [shift.length for shift in found if shift is not None]
            plain, registered = (np.array(scores[register]) for register in (False, True))
            table.row(
                {
                    "shift, px": f"{length:g}",
                    "chips": len(plain),
                    "called changed": f"{(plain >= 0.5).mean():.3f}",
                    "with `--register`": f"**{(registered >= 0.5).mean():.3f}**",
                    "mean score": f"{plain.mean():.3f}",
                    "mean score with `--register`": f"{registered.mean():.3f}",
                    "shift_px that remains, median": f"{np.median(residuals):.2f}",
                }
            )
    print()


def print_cost(model: ChangeModel, rounds: int) -> None:
    """CPU time of `analyze` with and without measuring, of a pair of nine and one of 36 chips."""
    table = Table()
    for side in (SIDE, SCENE_PX, 2048):
        options = SceneOptions(misregistration_px=0.0)
        scene = make_scene(SEED, side, side, options)
        with tempfile.TemporaryDirectory() as scratch:
            pair = write_pair(
                Path(scratch), *(each.transpose(2, 0, 1) for each in (scene.before, scene.after))
            )
            times: dict[bool, list[float]] = {True: [], False: []}
            for number in range(rounds + 1):
                for measuring in (True, False):
                    job = AnalyzeJob(
                        pairs=PairList.single(pair.before, pair.after),
                        questions=load_questions(shipped_config("questions.yaml")),
                        options=AnalyzeOptions(batch_size=16),
                        output=OutputOptions(path=Path(scratch) / "out.geojson", overwrite=True),
                    )
                    with ExitStack() as patches:
                        for each in () if measuring else NO_MEASURING:
                            patches.enter_context(patch(*each))
                        started = time.process_time()
                        chips = run(job, nullcontext(LocalEngine(model))).chips
                        elapsed = time.process_time() - started
                    if number:
                        times[measuring].append(elapsed / chips * 1000)
        window, count = np.ascontiguousarray(scene.before[:SIDE, :SIDE].transpose(2, 0, 1)), 100
        started = time.process_time()
        for _ in range(count):
            measure_shift(window, window, ALL_VALID)
        one_ms = (time.process_time() - started) / count * 1000
        table.row(
            {
                "chips": chips,
                "ms of a core per chip": spread(times[True]),
                "without measuring": spread(times[False]),
                "ratio": f"**{np.median(np.divide(times[True], times[False])):.3f}x**",
                "one measurement, ms": f"{one_ms:.2f}",
                "share of a chip's time": f"{one_ms / np.median(times[False]):.1%}",
            }
        )
    print()


@dataclass(frozen=True)
class RealPair:
    """Real pair of images of at least a chip, and whether it changed; None where that is not known."""

    source: str
    rasters: RasterPair
    changed: bool | None


def real_pairs(folder: Path) -> Iterator[RealPair]:
    """Pairs of a folder with `pairs.csv`, or with `mask_cells.csv` and `labels.csv`."""
    labels: dict[str, bool | None] = {}
    known = {"yes": True, "no": False}
    if (folder / "pairs.csv").exists():
        with (folder / "pairs.csv").open() as rows:
            labels = {row["pair_id"]: known.get(row["changed"]) for row in csv.DictReader(rows)}
    else:
        with (folder / "labels.csv").open() as rows:
            for row in csv.DictReader(rows):
                labels[row["pair_id"]] = {row["buildings_new"], row["roads_new"]} != {"no"}
        with (folder / "mask_cells.csv").open() as rows:
            for name, _, share, *_ in list(csv.reader(rows))[1:]:
                labels[name] = float(share) >= 0.005
    for name, changed in labels.items():
        for suffix in ("png", "tif"):
            paths = [folder / name / f"{date}.{suffix}" for date in ("before", "after")]
            if paths[0].exists():
                rasters = RasterPair(*map(str, paths))
                yield RealPair(name.split("/")[0], rasters, changed)
                break


def print_real_shifts(pairs: Sequence[RealPair]) -> None:
    """Measured shifts of chips by source; and how far they miss a shift of (-2, 3) px that is added."""
    table = Table()
    for source in dict.fromkeys(pair.source for pair in pairs):
        lengths: list[float] = []
        misses: list[float] = []
        count = 0
        for pair in (pair for pair in pairs if pair.source == source):
            with open_pair(pair.rasters, VARIANTS["neither"]) as reader:
                chips = chips_of(reader)
            for chip in chips:
                count += 1
                shift = chip.measure_shift()
                if shift is not None:
                    lengths.append(shift.length)
                before, after = chip.before[:, 4:-4, 4:-4], chip.after[:, 4:-4, 4:-4]
                moved, valid = chip.after[:, 1:-7, 6:-2], chip.valid[4:-4, 4:-4] & chip.valid[1:-7, 6:-2]
                first, second = measure_shift(before, after, valid), measure_shift(before, moved, valid)
                if first is not None and second is not None:
                    misses.append(float(np.hypot(second.dx - first.dx + 2, second.dy - first.dy - 3)))
        followed = f"{np.median(misses):.2f} px, at most {max(misses):.2f}" if misses else "-"
        quartiles = np.percentile(lengths, [25, 50, 75, 100]) if lengths else []
        table.row(
            {
                "source": source,
                "chips": count,
                "not measurable": count - len(lengths),
                "shift, px: quartiles and largest": ", ".join(f"{each:.1f}" for each in quartiles) or "-",
                "above 1 px": sum(length > 1 for length in lengths),
                "above 8 px": sum(length > 8 for length in lengths),
                "an added shift is missed by": followed,
            }
        )
    print()


def print_real_scores(model: ChangeModel, pairs: Sequence[RealPair]) -> None:
    """Scores of the yes/no answer at 0.5, of the chips of real pairs, for each variant of reading."""
    labelled = [pair for pair in pairs if pair.changed is not None]
    groups = {
        "pairs of one chip": [pair for pair in labelled if pair.rasters.before.endswith(".png")],
        "larger pairs, nothing built": [
            pair for pair in labelled if pair.rasters.before.endswith(".tif") and not pair.changed
        ],
    }
    table = Table()
    for group, members in groups.items():
        for name, options in VARIANTS.items():
            scores: list[float] = []
            truth: list[bool] = []
            corrected = matched = 0
            for pair in members:
                with open_pair(pair.rasters, options) as reader:
                    chips = chips_of(reader)
                    corrected += reader.registration.corrected
                    matched += reader.color_match is not None
                if pair.rasters.before.endswith(".png"):
                    chips = chips[:1]
                scores += answer_yes(model, chips)
                truth += [bool(pair.changed)] * len(chips)
            said: NDArray[np.bool_] = np.array(scores) >= 0.5
            changed = np.array(truth)
            both = changed.any() and not changed.all()
            accuracy = binary.balanced_accuracy(said.tolist(), truth) if both else float("nan")
            table.row(
                {
                    "set": group,
                    "reading": name,
                    "chips, changed": f"{len(scores)}, {changed.sum()}",
                    "pairs moved, matched": f"{corrected}, {matched} of {len(members)}",
                    "AUC": f"{binary.auc(scores, truth):.3f}" if both else "-",
                    "balanced accuracy": f"{accuracy:.3f}" if both else "-",
                    "false alarms": f"{said[~changed].mean():.3f}",
                    "recall": f"{said[changed].mean():.3f}" if changed.any() else "-",
                }
            )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--real", type=Path, nargs="+", default=(), metavar="FOLDER")
    args = parser.parse_args()
    model: Any = load_model(args.model, device="cpu", threads=args.threads)
    print(
        heading(args.threads, f"numpy {np.__version__}", f"{model.name} {model.fingerprint[:8]}"), end="\n\n"
    )
    try:
        if args.real:
            pairs = [pair for folder in args.real for pair in real_pairs(folder)]
            print_real_shifts(pairs)
            print_real_scores(model, pairs)
            return
        print_errors(make_images(args.scenes))
        print_false_changes(model, args.scenes)
        print_cost(model, args.rounds)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
