"""Memory of loading a model hf:..., in 16 bit and quantized, against the size of its weights.

    python benchmarks/hf_loading.py [--layers N] [--hidden N] [--stored bf16|fp32] [--dtype bf16|fp32]

Makes a random Qwen2.5-VL with a wide language model and a small vision tower, and loads it in a process of
its own in each form. Measured is the memory that the system cannot take back: anonymous pages (RssAnon of
Linux), beyond those of a process that has loaded a tiny model of the same kind. Weights that stay as they are
stored are parts of the mapped file, and count as its cache. The last column is what `read_footprint` says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.rows import Table, heading  # noqa: E402

FORMS = (None, "int8", "int4")
INTERVAL_S = 0.003


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(tiny: str, folder: str, dtype: str, quantize: str | None) -> dict[str, int]:
    """Largest and final memory of loading a folder in this process, beyond that of a tiny model."""
    from deltavlm.model.kinds import load_model

    load_model(f"hf:{tiny}", device="cpu", dtype=dtype, quantize=quantize)
    start = peak = anonymous_bytes()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(INTERVAL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(f"hf:{folder}", device="cpu", dtype=dtype, quantize=quantize)
    final = anonymous_bytes()
    ended.set()
    watcher.join()
    assert model is not None
    return {"peak": max(peak, final) - start, "final": final - start}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--stored", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--one", nargs=3, metavar=("TINY", "FOLDER", "FORM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        tiny, folder, form = arguments.one
        print(json.dumps(measure(tiny, folder, arguments.dtype, None if form == "None" else form)))
        return

    import torch

    from deltavlm.model.device import DTYPES
    from deltavlm.model.huggingface.sizes import read_footprint
    from tests import tiny_hf

    torch.set_default_dtype(DTYPES[arguments.stored])
    with tempfile.TemporaryDirectory() as scratch:
        tiny_hf.SIZES.update(hidden_size=64, intermediate_size=128)
        tiny = tiny_hf.build("qwen2_5_vl", Path(scratch) / "tiny")
        tiny_hf.SIZES.update(
            hidden_size=arguments.hidden,
            intermediate_size=arguments.hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=arguments.layers,
        )
        folder = tiny_hf.build("qwen2_5_vl", Path(scratch) / "wide")
        settings = json.loads((folder / "config.json").read_text())
        size = (folder / "model.safetensors").stat().st_size
        layer = arguments.hidden * tiny_hf.SIZES["intermediate_size"] * 2
        print(heading(torch.get_num_threads(), f"torch {torch.__version__}"))
        stored = f"stored in {arguments.stored}: {size / 1e6:.0f} MB"
        print(f"{stored}; largest layer {layer / 1e6:.0f} MB in 16 bit\n")
        table = Table()
        for form in FORMS:
            command = [sys.executable, __file__, "--dtype", arguments.dtype, "--one", tiny, folder, str(form)]
            done = subprocess.run(
                [str(word) for word in command], capture_output=True, text=True, check=True, cwd=scratch
            )
            measured = json.loads(done.stdout.splitlines()[-1])
            footprint = read_footprint(
                "wide", settings, size, device="cpu", dtype=DTYPES[arguments.dtype], quantize=form
            )
            columns = {
                "weights": footprint.weights,
                "final": measured["final"],
                "largest while loading": measured["peak"],
                "told": footprint.needed,
            }
            table.row(
                {"form": f"{arguments.dtype}{f', {form}' if form else ''}"}
                | {f"{name}, MB": f"{size / 1e6:.0f}" for name, size in columns.items()}
            )


if __name__ == "__main__":
    main()
