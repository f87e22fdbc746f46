"""Results of the original systems, against models converted from their files.

    python benchmarks/parity.py FOLDER [--kind mci ...]

FOLDER holds a folder for each kind, with its published files at small size, expected.json and
expected.safetensors: what the original code computed. Converts each, compares every stage alone and batched,
and prints a row of a Markdown table for each stage. Exits with 1 where one is not equal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import torch  # noqa: E402

from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.upstream import kinds  # noqa: E402


def sources_of(kind: str, folder: Path) -> dict[str, Path]:
    """Published files of a kind, by the names of the options of `weights convert`."""
    names = json.loads((folder / "expected.json").read_text()).get("folders")
    if names is None:
        return {"checkpoint": folder / "MCI_model.pth", "vocab": folder / "vocab.json"}
    known = {"base", "vision", "adapter", "mci", "vocab"}
    return {name: folder / path for name, path in names.items() if name in known}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", action="append", choices=list(kinds.KINDS))
    arguments = parser.parse_args()
    print(heading(torch.get_num_threads(), f"torch {torch.__version__}"), end="\n\n")
    table, is_equal = Table(), True
    for kind in arguments.kind or kinds.KINDS:
        expected = arguments.folder / kind
        with tempfile.TemporaryDirectory() as scratch:
            converted = kinds.convert(kind, sources_of(kind, expected), Path(scratch) / kind)
            for check in kinds.verify(converted.folder, expected):
                worst = "" if check.worst is None else f"{check.worst:.1e} of {check.size:.3g}"
                equal = f"{check.equal} of {check.cases}"
                table.row({"kind": kind, "stage": check.name, "equal": equal, "largest error": worst})
                is_equal = is_equal and check.passed
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
