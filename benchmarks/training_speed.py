"""Speed of nano's training on a CPU: glibc's malloc as it is, and as the training sets it (`tune_malloc`).

    python benchmarks/training_speed.py [--tiles TILES] [--steps 6] [--rounds 2]

Pairs per second of both phases of `train_nano.yaml`, from the log of a run; drawn ground alone without TILES.
Every run is a process of its own, in turns, since the setting cannot be taken back. The first `--steps`
steps of a phase are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.rows import Table, heading, spread  # noqa: E402

PHASES = ("masks", "words")
DEFAULT, TUNED = "as it is", "as the training sets it"
RUN = """
import sys
from pathlib import Path
from deltavlm.training import loop
from deltavlm.training.config import load_config
from deltavlm.training.run import RunOptions, train
if sys.argv[1] == "default":
    loop.tune_malloc = lambda: None
config = load_config(Path(sys.argv[2]), sys.argv[4:])
for phase in {phases}:
    train(config, Path(sys.argv[3]), RunOptions(resume=phase != "masks", only=phase))
"""


def settings(steps: int, tiles: Path | None) -> list[str]:
    """Changes of the recipe: few scenes, from the weights of nano, two logged intervals of `steps` steps."""
    changes = [
        "scenes.train=96",
        "scenes.validation=16",
        "scenes.far=16",
        "scenes.stormy=16",
        "scenes.rich=16",
    ]
    changes += [f"log_every={steps}", *(f"phases.{name}.steps={2 * steps}" for name in PHASES)]
    if tiles is None:
        return [*changes, "scenes.ground=0", *(f"phases.{name}.ground=0" for name in PHASES)]
    return [*changes, "scenes.ground=96", f"scenes.ground_folder={tiles}"]


def pairs_per_second(kind: str, folder: Path, changes: list[str]) -> dict[str, float]:
    """Throughput of the last interval of each phase, of one run."""
    recipe = ROOT / "configs" / "train_nano.yaml"
    command = [sys.executable, "-c", RUN.format(phases=PHASES), kind, str(recipe), str(folder), *changes]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=sys.stderr)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["phase"]: line["pairs_per_s"] for line in lines if line["kind"] == "train"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    print(heading(os.cpu_count() or 1) + "\n")
    changes = settings(arguments.steps, arguments.tiles and arguments.tiles.resolve())
    speeds: dict[str, list[dict[str, float]]] = {"default": [], "tuned": []}
    with tempfile.TemporaryDirectory(prefix="deltavlm-speed-") as name:
        for turn in range(arguments.rounds):
            for kind, runs in speeds.items():
                runs.append(pairs_per_second(kind, Path(name) / f"{kind}{turn}", changes))
    table = Table()
    for phase in PHASES:
        default, tuned = ([run[phase] for run in runs] for runs in speeds.values())
        ratios = [after / before for before, after in zip(default, tuned, strict=True)]
        table.row(
            {
                "phase": phase,
                f"malloc {DEFAULT}: pairs/s": spread(default),
                f"{TUNED}: pairs/s": spread(tuned),
                "ratio": f"**{spread(ratios, 2)}**",
            }
        )


if __name__ == "__main__":
    main()
