"""Time of `deltavlm train` as its `--dry-run` estimates it, against the run itself.

    python benchmarks/train_estimate.py [--rounds 1]

Each job is estimated and then run, as whole processes in turns. Prints the ratio of the estimate to the
measured seconds of the process. The fine-tuning uses pairs of `deltavlm synth chips`.
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

from benchmarks.rows import Table, heading, spread  # noqa: E402

PHASES = ("masks", "words")
SCRATCH = [
    *("scenes.train=200", "scenes.validation=32", "scenes.far=32", "scenes.stormy=32", "scenes.rich=32"),
    *("scenes.ground=0", *(f"phases.{name}.ground=0" for name in PHASES)),
    *(f"phases.{name}.steps=3" for name in PHASES),
    *(f"phases.{name}.batch=8" for name in PHASES),
]
FINE_TUNE = [
    *("scenes.train=40", "scenes.stormy=20", "scenes.validation=24", "validation.pairs=12"),
    *("phases.read.steps=6", "phases.all.steps=4", "phases.read.batch=8", "phases.all.batch=8"),
]


def process(args: list[str], folder: Path) -> tuple[float, str]:
    """Seconds and stdout of a command."""
    command = [sys.executable, "-m", "deltacli", *args, "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    print(heading(os.cpu_count() or 1) + "\n")
    table = Table()
    with tempfile.TemporaryDirectory(prefix="deltavlm-estimate-") as name:
        folder = Path(name)
        process(["synth", "chips", "made", "-n", "60", "--split", "train"], folder)
        jobs = {
            "train_nano.yaml, reduced": ("train_nano.yaml", SCRATCH),
            "finetune_nano_changechat.yaml, 60 pairs, reduced": (
                "finetune_nano_changechat.yaml",
                ["sets.changechat.path=made", *FINE_TUNE],
            ),
        }
        for number, (job, (config, changes)) in enumerate(jobs.items()):
            words = ["train", config, *(word for change in changes for word in ("--set", change))]
            measured, ratios = [], []
            for turn in range(rounds):
                estimate = json.loads(process([*words, "--dry-run", "--json"], folder)[1])
                total = sum(phase["seconds"] for phase in estimate["phases"].values())
                total += sum(estimate["other_seconds"].values())
                seconds, _ = process([*words, "-o", f"run_{number}_{turn}"], folder)
                measured.append(seconds)
                ratios.append(total / seconds)
            table.row({"job": job, "run, s": spread(measured), "estimate / run": f"**{spread(ratios, 2)}**"})


if __name__ == "__main__":
    main()
