"""Models of other systems at full size, with random weights in the published layout.

    python benchmarks/full_size.py mci [--dtype fp32] [--folder FOLDER]

Writes random files as they are published, converts them, and answers the standard questions about a chip of
the sample pair in a process of its own. Prints a row of a Markdown table: parameters, size of the checkpoint,
seconds of conversion, loading, encoding and answering, and the peak resident memory of the process. The files
are removed afterwards. Needs about 1.5 GB of disk and of memory for mci.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import torch  # noqa: E402

from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.files import format_bytes  # noqa: E402
from deltavlm.upstream import kinds  # noqa: E402
from tests.mci_reference import PUBLISHED, random_weights  # noqa: E402

ROUNDS = 5
ANSWERS = """
import json, resource, sys, time
import numpy as np
import rasterio
start = time.perf_counter()
from deltavlm import load_model
from deltavlm.pipeline.answers import phrasebook_of, question_of
from deltavlm.tasks.questions import QuestionSpec
folder, dtype, rounds, *images = sys.argv[1:]
model = load_model(folder, device="cpu", dtype=dtype)
loaded = time.perf_counter()
dates = []
for path in images:
    with rasterio.open(path) as source:
        dates.append(source.read(window=((0, 256), (0, 256)))[None, :3])
specs = [QuestionSpec(task, task) for task in ("caption", "change", "count", "location")]
questions = [question_of(spec, book=phrasebook_of(model)) for spec in specs]
encode, answer = [], []
for _ in range(int(rounds)):
    begun = time.perf_counter()
    encoded = model.encode(*dates)
    middle = time.perf_counter()
    model.answer(encoded, questions)
    encode.append(middle - begun)
    answer.append(time.perf_counter() - middle)
print(json.dumps({
    "load": loaded - start, "encode": encode[1:], "answer": answer[1:],
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def write_mci(folder: Path) -> dict[str, Path]:
    """Random files of MCI in the published layout."""
    torch.save(random_weights(0, PUBLISHED), folder / "MCI_model.pth")
    words = [
        "<NULL>",
        "<UNK>",
        "<START>",
        "<END>",
        *(f"word{number}" for number in range(4, PUBLISHED.words)),
    ]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    return {"checkpoint": folder / "MCI_model.pth", "vocab": folder / "vocab.json"}


WRITERS = {"mci": write_mci}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=WRITERS)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--folder", type=Path, help="where the files are written; they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        paths = WRITERS[arguments.kind](folder)
        begun = time.perf_counter()
        converted = kinds.convert(arguments.kind, paths, folder / "converted")
        convert_s = time.perf_counter() - begun
        images = [ROOT / "sample_data" / name for name in ("before.tif", "after.tif")]
        command = [sys.executable, "-c", ANSWERS, converted.folder, arguments.dtype, ROUNDS, *images]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=True, env=environment
        )
        measured = json.loads(run.stdout.splitlines()[-1])
        parameters = sum(part[2] for part in kinds.inspect(arguments.kind, paths["checkpoint"]).parts)
    print(heading(torch.get_num_threads(), f"torch {torch.__version__}"), end="\n\n")
    Table().row(
        {
            "kind": arguments.kind,
            "dtype": arguments.dtype,
            "numbers in the published file": f"{parameters:,}",
            "checkpoint": format_bytes(converted.bytes),
            "convert": f"{convert_s:.1f} s",
            "load": f"{measured['load']:.1f} s",
            "encode a pair": f"{spread(measured['encode'], 2)} s",
            "four questions": f"{spread(measured['answer'], 2)} s",
            "peak memory": format_bytes(int(measured["peak"])),
        }
    )


if __name__ == "__main__":
    main()
