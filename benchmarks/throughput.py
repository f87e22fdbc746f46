"""Chips per second of the work of `deltavlm analyze`, with the model loaded and warm.

Measured: reading a GeoTIFF pair, encoding, four questions for each chip, writing a GeoPackage; everything
but start-up and loading. Baseline, in the same run, alternating: the same model asked about one chip and
one question at a time, encoding the pictures again for each question, with the same reads and nothing
written. Its answers are compared with those in the GeoPackage.

    python benchmarks/throughput.py --threads 2

Prints one dated row of a Markdown table on stdout and its header before it; talk goes to stderr.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

Answers = dict[tuple[str, str], str]  # (chip_id, question) -> text


class Round(NamedTuple):
    ours: float  # chips/s
    baseline: float  # chips/s


def tiled_pair(before: Path, after: Path, chips: int, chip_px: int, folder: Path) -> tuple[Path, Path]:
    """The pair repeated side by side until it gives at least `chips` chips, as tiled deflate GeoTIFFs."""
    import numpy as np
    import rasterio

    cols = math.ceil(math.sqrt(chips))
    rows = math.ceil(chips / cols)
    made = []
    for source in (before, after):
        with rasterio.open(source) as raster:
            pixels, profile = raster.read(), raster.profile
        repeats = (
            1,
            math.ceil(rows * chip_px / pixels.shape[1]),
            math.ceil(cols * chip_px / pixels.shape[2]),
        )
        big = np.tile(pixels, repeats)[:, : rows * chip_px, : cols * chip_px]
        profile.update(
            driver="GTiff", width=big.shape[2], height=big.shape[1], compress="deflate", tiled=True,
            blockxsize=256, blockysize=256, photometric="RGB",
        )  # fmt: skip
        made.append(folder / f"{source.stem}_{rows}x{cols}.tif")
        with rasterio.open(made[-1], "w", **profile) as target:
            target.write(big)
    return made[0], made[1]


def hardware(threads: int) -> str:
    """Processor, cores of the machine and cores given, operating system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    return f"{name}, {threads} of {os.cpu_count()} cores, {platform.system()}"


def commit() -> str:
    """Short hash of the checkout, with a plus when files differ from it."""
    try:
        short, changed = (
            subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return short + ("+" if changed else "")


def timed(work: Callable[[], int]) -> float:
    """Chips per second of `work`, which gives how many chips it did."""
    start = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - start)


def measure(args: argparse.Namespace, folder: Path) -> None:
    import pyogrio
    import rasterio
    import torch

    from deltavlm.config import shipped
    from deltavlm.geo.pair import RasterPair, open_pair
    from deltavlm.geo.sinks import open_sink
    from deltavlm.model.predictor import load_model
    from deltavlm.pipeline.analyze import AnalyzeOptions, analyze
    from deltavlm.pipeline.answers import question_of
    from deltavlm.pipeline.layers import LOCATIONS, Origin, Stream, chips_layer
    from deltavlm.tasks.questions import load_questions
    from deltavlm.tasks.text import clean

    model = load_model(args.model, device=args.device, threads=args.threads)
    specs = load_questions(shipped("questions.yaml"))
    questions = [question_of(spec) for spec in specs]
    options = AnalyzeOptions(chip_px=model.chip_px, batch_size=args.batch_size)
    before, after = tiled_pair(args.before, args.after, args.chips, model.chip_px, folder)
    output = folder / "out.gpkg"

    with open_pair(RasterPair(str(before), str(after))) as reader:
        chips = list(reader.grid(model.chip_px))
        # spread over the grid, so that the baseline meets the same mix of ground
        few = [chips[index * len(chips) // args.baseline_chips] for index in range(args.baseline_chips)]
        origin = Origin(str(before), str(after), model.name, reader.gsd_m)
        slow_answers: Answers = {}

        def ours() -> int:
            layers = (chips_layer(specs), LOCATIONS)
            with open_sink(output, layers, reader.crs, {}, overwrite=True, only_layer=None) as sink:
                summary = analyze(reader, model, specs, Stream(sink, specs, origin), options)
            if summary.statuses["answered"] != len(chips):
                sys.exit(f"not all chips were answered: {dict(summary.statuses)}; {summary.first_failure}")
            return summary.chips

        def one_at_a_time() -> int:
            for chip in few:
                pixels = reader.read(chip)
                for question in questions:
                    encoded = model.encode(pixels.before[None], pixels.after[None])
                    reply = model.answer(encoded, [question])[0][0]
                    slow_answers[chip.chip_id, question.name] = clean(reply.text)
            return len(few)

        ours(), one_at_a_time()  # warm-up, not counted
        rounds = []
        for number in range(1, args.rounds + 1):
            rounds.append(Round(timed(ours), timed(one_at_a_time)))
            print(
                f"round {number}: {rounds[-1].ours:.2f} and {rounds[-1].baseline:.2f} chips/s",
                file=sys.stderr,
            )

    table = pyogrio.read_dataframe(output, layer="chips", read_geometry=False).set_index("chip_id")
    equal = sum(table[f"answer_{name}"][chip_id] == text for (chip_id, name), text in slow_answers.items())
    changed = int(table["changed"].fillna(False).astype(bool).sum())
    ratio = statistics.median(taken.ours / taken.baseline for taken in rounds)
    print_row(
        {
            "date (UTC)": f"{datetime.now(UTC):%Y-%m-%d}",
            "commit": commit(),
            "hardware": hardware(args.threads) if model.device.startswith("cpu") else model.device,
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"GDAL {rasterio.__gdal_version__}",
            "model": f"{model.name} {model.fingerprint[:8]}",
            "chips (changed), batch": f"{len(chips)} ({changed}), {args.batch_size}",
            f"chips/s, {len(questions)} questions": spread([taken.ours for taken in rounds]),
            "baseline chips/s": spread([taken.baseline for taken in rounds]),
            "ratio": f"**{ratio:.1f}x**",
            "equal answers": f"{equal} of {len(slow_answers)}",
            "load before": f"{args.load:.1f}",
        }
    )


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def print_row(cells: dict[str, str]) -> None:
    print("| " + " | ".join(cells) + " |")
    print("|" + "---|" * len(cells))
    print("| " + " | ".join(cells.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, default=ROOT / "sample_data" / "before.tif")
    parser.add_argument("--after", type=Path, default=ROOT / "sample_data" / "after.tif")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="cores that the process may use")
    parser.add_argument("--chips", type=int, default=256, help="the pair is repeated until it has as many")
    parser.add_argument("--baseline-chips", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    if hasattr(os, "sched_setaffinity"):  # threads that a library starts by itself stay on these cores too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
