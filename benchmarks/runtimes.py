"""Runtimes of nano on a CPU: OpenVINO against torch, in turns.

    python benchmarks/runtimes.py [--scenes 300] [--rounds 3] [--threads 1] [--dtype fp32] [--real FOLDER]

Processor time a pair of encoding and of the four standard questions, in batches; seconds of both for one pair
by a loaded model; seconds until a fresh process has loaded the model and answered about one pair, and until
`deltavlm analyze` has written the sample pair's map. Then the processor time of each graph of OpenVINO, and
how many of the answers to synthetic scenes, and to the pairs of FOLDER (pairs.csv as `compare_weights.py`
reads it), are the same. Ratios are to torch in the same run. Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

from benchmarks.compare_weights import read_truths  # noqa: E402
from benchmarks.real_scores import read_image  # noqa: E402
from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.data.synthetic.cache import TEST_SEED, open_cache, render_cache  # noqa: E402
from deltavlm.model.interface import ChangeModel, Reply  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.model.openvino import GraphPredictor, Graphs  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS  # noqa: E402

RUNTIMES = ("torch", "openvino")
BATCH, SIZE = 32, 256
SINGLE_PAIRS = 16  # that are asked about one at a time
FIRST_ANSWER = """
import sys, numpy as np
from deltavlm import load_model
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS
model = load_model("nano", device="cpu", runtime=sys.argv[1])
image = np.zeros((1, 3, 256, 256), np.uint8)
model.answer(model.encode(image, image), STANDARD_QUESTIONS)
"""

Images = npt.NDArray[np.uint8]


def batches(before: Images, after: Images) -> Iterator[tuple[Images, Images]]:
    for start in range(0, len(before), BATCH):
        yield before[start : start + BATCH], after[start : start + BATCH]


def answer(model: ChangeModel, before: Images, after: Images) -> tuple[list[list[Reply]], float, float]:
    """Replies, and milliseconds of processor time a pair of encoding and of answering."""
    replies, encode_s, answer_s = [], 0.0, 0.0
    for dates in batches(before, after):
        start = time.process_time()
        encoded = model.encode(*dates)
        middle = time.process_time()
        replies += model.answer(encoded, STANDARD_QUESTIONS)
        encode_s, answer_s = encode_s + middle - start, answer_s + time.process_time() - middle
    return replies, encode_s / len(before) * 1000, answer_s / len(before) * 1000


def single_seconds(model: ChangeModel, before: Images, after: Images) -> float:
    """Seconds, the median, in which one pair is encoded and asked the four questions."""
    seconds = []
    for index in range(SINGLE_PAIRS):
        start = time.perf_counter()
        encoded = model.encode(before[index : index + 1], after[index : index + 1])
        model.answer(encoded, STANDARD_QUESTIONS)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def print_graphs(model: GraphPredictor, before: Images, after: Images) -> None:
    """Print the processor time a pair, the number of runs and of rows of each graph."""
    table, run = Table(), model.graphs.run
    seconds, runs, rows = Counter[str](), Counter[str](), Counter[str]()

    def timed_run(name: str, inputs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        start = time.process_time()
        outputs = run(name, inputs)
        step = (
            f"{name}, {'prompt' if inputs['embeds'].shape[1] > 1 else 'token'}"
            if "embeds" in inputs
            else name
        )
        seconds[step] += time.process_time() - start
        runs[step] += 1
        rows[step] += inputs["images"].shape[1] if "images" in inputs else len(inputs["mask"])
        return outputs

    timed = replace(model, graphs=cast(Graphs, SimpleNamespace(run=timed_run)))
    _, encode_ms, answer_ms = answer(timed, before, after)
    for step, value in seconds.items():
        table.row(
            {
                "graph": step,
                "ms/pair": f"{value / len(before) * 1000:.2f}",
                "runs": str(runs[step]),
                "rows a run": f"{rows[step] / runs[step]:.1f}",
            }
        )
    rest = encode_ms + answer_ms - seconds.total() / len(before) * 1000
    table.row({"graph": "all else", "ms/pair": f"{rest:.2f}", "runs": "", "rows a run": ""})


def process_seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=environment)
    return time.perf_counter() - start


def scenes(count: int) -> tuple[Images, Images]:
    with tempfile.TemporaryDirectory() as folder:
        render_cache(Path(folder), count, seed=TEST_SEED)
        pictures = np.array(open_cache(Path(folder))[0]).transpose(1, 0, 4, 2, 3)
    return np.ascontiguousarray(pictures[0]), np.ascontiguousarray(pictures[1])


def print_agreement(name: str, models: dict[str, ChangeModel], before: Images, after: Images) -> None:
    """Print how many answers of both runtimes are the same, and the largest difference of P(yes)."""
    replies = {runtime: answer(model, before, after)[0] for runtime, model in models.items()}
    rows = [
        pair
        for first, second in zip(*replies.values(), strict=True)
        for pair in zip(first, second, strict=True)
    ]
    same = sum(first.text == second.text for first, second in rows)
    index = next(index for index, question in enumerate(STANDARD_QUESTIONS) if question.yes_no)
    scores = [np.array([row[index].score for row in each]) for each in replies.values()]
    print(
        f"\n{name}: {same} of {len(rows)} answers are the same; P(yes) differs by at most "
        f"{np.abs(scores[0] - scores[1]).max():.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto", help="auto: on a CPU that can, torch encodes in bf16")
    parser.add_argument("--real", type=Path)
    args = parser.parse_args()
    models: dict[str, ChangeModel] = {
        runtime: load_model("nano", device="cpu", runtime=runtime, threads=args.threads, dtype=args.dtype)
        for runtime in RUNTIMES
    }
    before, after = scenes(args.scenes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT)}
    times: dict[str, list[tuple[float, ...]]] = {runtime: [] for runtime in RUNTIMES}
    title = heading(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        sample = [f"sample_data/{date}.tif" for date in ("before", "after")]
        analyze = [sys.executable, "-m", "deltacli", "analyze", *sample, "-o", f"{folder}/map.gpkg"]
        for runtime in RUNTIMES:  # compiled graphs are cached by the first process
            process_seconds([sys.executable, "-c", FIRST_ANSWER, runtime], environment)
        for _ in range(args.rounds):
            for runtime, model in models.items():
                _, encode_ms, answer_ms = answer(model, before[: 2 * BATCH], after[: 2 * BATCH])
                single_s = single_seconds(model, before, after)
                first_s = process_seconds([sys.executable, "-c", FIRST_ANSWER, runtime], environment)
                map_s = process_seconds(
                    [*analyze, "--overwrite", "--device", "cpu", "--runtime", runtime], environment
                )
                times[runtime].append((encode_ms, answer_ms, single_s, first_s, map_s))
    print(f"{title}\n")
    table = Table()
    medians = {
        runtime: [statistics.median(column) for column in zip(*rows, strict=True)]
        for runtime, rows in times.items()
    }
    names = ("encode, ms/pair", "4 answers, ms/pair", "one pair, s", "first answer, s", "first map, s")
    for runtime, rows in times.items():
        ratios = [old / new for old, new in zip(medians["torch"], medians[runtime], strict=True)]
        table.row(
            {"runtime": runtime}
            | {
                name: spread(column, 1 if "ms" in name else 2)
                for name, column in zip(names, zip(*rows, strict=True), strict=True)
            }
            | {"times as fast as torch": ", ".join(f"{ratio:.1f}" for ratio in ratios)}
        )
    print()
    print_graphs(cast(GraphPredictor, models["openvino"]), before[: 2 * BATCH], after[: 2 * BATCH])
    print_agreement(f"{args.scenes} synthetic scenes", models, before, after)
    if args.real:
        folders = [truth.folder for truth in read_truths(args.real)]
        dates = [
            np.stack([read_image(folder / f"{date}.png", SIZE) for folder in folders])
            for date in ("before", "after")
        ]
        print_agreement(f"{len(folders)} real pairs", models, dates[0], dates[1])


if __name__ == "__main__":
    main()
