"""Models of all systems at full size, with random weights in the published layout.

    python benchmarks/full_size.py mci
    python benchmarks/full_size.py changechat --layers 2 --dtype bf16
    python benchmarks/full_size.py changevg --layers 2 --quantize int8 --load-only

Writes random files as they are published, converts them by `weights convert`, and answers the standard
questions about a chip of the sample pair, each in a process of its own. Prints a row of a Markdown table:
layers of the language model, parameters, sizes on disk, seconds of converting, loading, encoding and
answering, the peak resident memory of both processes, and what `Footprint` says of the second before it is
loaded. Exits with 1 where that is off by more than 15 %. The files are removed afterwards.

Disk, for published files and checkpoint: 1 GB for mci, 33 GB for deltavlm, 29 GB for changechat, 34 GB for
changevg; with --layers fewer. Memory: as the estimate that is printed first; nothing is begun that does not
fit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.errors import DeltaVLMError  # noqa: E402
from deltavlm.extras import require_package  # noqa: E402
from deltavlm.files import format_bytes, free_bytes  # noqa: E402

LAYERS = {"deltavlm": 32, "mci": 0, "changechat": 32, "changevg": 28}  # of the published language models
DISK = {"deltavlm": 33e9, "mci": 1e9, "changechat": 29e9, "changevg": 34e9}  # with all layers
LAYER_DISK = {"deltavlm": 0.81e9, "mci": 0, "changechat": 0.82e9, "changevg": 0.94e9}
LARGEST_ERROR = 0.15
WRITE = """
import json, sys
from pathlib import Path
from benchmarks.published import write
kind, folder, layers = sys.argv[1:]
paths = write(kind, Path(folder), int(layers))
print(json.dumps({name: str(path) for name, path in paths.items()}))
"""
ANSWERS = """
import json, resource, sys, time
from dataclasses import asdict, replace
import numpy as np
import rasterio
start = time.perf_counter()
from deltavlm import load_model
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.kinds import read_footprint
from deltavlm.pipeline.answers import phrasebook_of, question_of
from deltavlm.tasks.questions import QuestionSpec
folder, dtype, quantize, rounds, *images = sys.argv[1:]
options = RuntimeOptions(device="cpu", dtype=dtype, quantize=None if quantize == "none" else quantize)
footprint = read_footprint(folder, options)
print(json.dumps({"estimate": footprint.peak(), **asdict(footprint)}), flush=True)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

imported = peak()
model = load_model(folder, options)
loaded, loading = time.perf_counter(), peak()
dates = []
for path in images:
    with rasterio.open(path) as source:
        dates.append(source.read(window=((0, 256), (0, 256)))[None, :3])
specs = [QuestionSpec(task, task) for task in ("caption", "change", "count", "location")]
questions = [question_of(spec, book=phrasebook_of(model)) for spec in specs]
# random weights seldom end an answer; no more tokens than a caption of mci has
questions = [replace(each, max_new_tokens=min(each.max_new_tokens, 41)) for each in questions]
encode, answer = [], []
for _ in range(int(rounds)):
    begun = time.perf_counter()
    encoded = model.encode(*dates)
    middle = time.perf_counter()
    model.answer(encoded, questions)
    encode.append(middle - begun)
    answer.append(time.perf_counter() - middle)
first = len(encode) > 2  # of many rounds the first is not counted
print(json.dumps({
    "load": loaded - start, "encode": encode[first:], "answer": answer[first:],
    "imported": imported, "loading": loading, "peak": peak(),
}))
"""


def python(*words: object) -> str:
    """Output of a process of Python; its messages are shown."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def children_peak() -> int:
    """Largest resident memory of a process that was waited for, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=list(LAYERS))
    parser.add_argument("--layers", type=int, help="of the language model; all by default")
    parser.add_argument("--dtype", action="append", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--quantize", action="append", choices=("none", "int8", "int4"))
    parser.add_argument(
        "--rounds", type=int, default=3, help="of answering; of three and more one counts not"
    )
    parser.add_argument("--load-only", action="store_true", help="ask nothing")
    parser.add_argument("--folder", type=Path, help="where the files are written; they are removed")
    arguments = parser.parse_args()
    if set(arguments.quantize or ()) - {"none"}:
        try:
            require_package("bitsandbytes", "`--quantize`")
        except DeltaVLMError as error:
            parser.error(str(error))
    layers = LAYERS[arguments.kind] if arguments.layers is None else arguments.layers
    is_whole = layers == LAYERS[arguments.kind]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        needed = DISK[arguments.kind] - (LAYERS[arguments.kind] - layers) * LAYER_DISK[arguments.kind]
        if needed > free_bytes(folder):
            print(f"needs {format_bytes(int(needed))} of disk in {folder}", file=sys.stderr)
            return 2
        published = folder / "published"
        published.mkdir()
        paths = json.loads(python("-c", WRITE, arguments.kind, published, layers))
        written, published_bytes = children_peak(), tree_bytes(published)
        begun = time.perf_counter()
        options = [word for name, path in paths.items() for word in (f"--{name}", path)]
        converted = folder / "converted"
        python("-m", "deltacli", "weights", "convert", "--kind", arguments.kind, *options, "-o", converted)
        convert_s, convert_peak = time.perf_counter() - begun, children_peak()
        for path in (*published.rglob("*"), published):  # the disk has to hold one of both
            if path.is_file():
                path.unlink()
        print(heading(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))), end="\n\n")
        table, worst = Table(), 0.0
        images = [ROOT / "sample_data" / name for name in ("before.tif", "after.tif")]
        rounds = 0 if arguments.load_only else arguments.rounds
        for dtype in arguments.dtype or ("fp32",):
            for quantize in arguments.quantize or ("none",):
                output = python("-c", ANSWERS, converted, dtype, quantize, rounds, *images)
                estimate, measured = map(json.loads, output.splitlines()[-2:])
                off = estimate["estimate"] / measured["peak"] - 1
                if rounds:  # weights that were only mapped are not resident yet
                    worst = max(worst, abs(off))
                table.row(
                    row(
                        {
                            "kind": arguments.kind
                            + ("" if is_whole else f", {layers} of {LAYERS[arguments.kind]} layers"),
                            "dtype": dtype if quantize == "none" else f"{dtype}, {quantize}",
                            "published files": format_bytes(published_bytes),
                            "checkpoint": format_bytes(tree_bytes(converted)),
                            "convert": f"{convert_s:.0f} s",
                            # a process that used more before hides it
                            "peak of convert": "under " * (convert_peak <= written)
                            + format_bytes(convert_peak),
                        },
                        measured,
                        estimate,
                        off,
                    )
                )
    return int(worst > LARGEST_ERROR)


def row(cells: dict[str, str], measured: Any, estimate: Any, off: float) -> dict[str, str]:
    """Cells of a row of the table."""

    def seconds(values: list[float]) -> str:
        return f"{spread(values, 2)} s" if values else ""

    return cells | {
        "load": f"{measured['load']:.1f} s",
        "encode a pair": seconds(measured["encode"]),
        "four questions": seconds(measured["answer"]),
        "libraries": format_bytes(measured["imported"]),
        "peak of loading": format_bytes(measured["loading"]),
        "peak": format_bytes(measured["peak"]),
        "weights (estimate)": format_bytes(estimate["weights"]),
        "peak (estimate)": f"{format_bytes(estimate['estimate'])}, {off:+.0%}",
    }


if __name__ == "__main__":
    sys.exit(main())
