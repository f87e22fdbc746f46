"""Scores of a model before and after `train --adapt`, on real pairs of the same source.

    python benchmarks/adapt.py FOLDER --source clcd --keep runs/adapt_clcd

FOLDER has pairs.csv as `compare_weights.py` reads it. The model is adapted to half of the scenes of the
source, without labels, and both models are scored on the pairs of the other half. The adapted weights are for
measuring only.

Intervals: 95 %, percentile bootstrap over the pairs, the same draws for both models. `--set` changes keys of
the recipe, as in `deltavlm train`. Prints Markdown on stdout, messages on stderr.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402

from benchmarks.compare_weights import ask, print_source, read_truths  # noqa: E402
from benchmarks.real_scores import read_image  # noqa: E402
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.config import shipped_config  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.training.adapt import AdaptChip, read_summary, write_ground  # noqa: E402
from deltavlm.training.config import load_config  # noqa: E402
from deltavlm.training.run import RunOptions, train  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default="clcd")
    parser.add_argument(
        "--keep", type=Path, required=True, help="folder of the run; an unfinished one is resumed"
    )
    parser.add_argument("--config", default="adapt_nano.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    print(heading(1))
    config = load_config(shipped_config(args.config), args.set)
    assert config.start is not None
    assert config.scenes is not None
    with (args.folder / "pairs.csv").open(encoding="utf-8") as table:
        scenes = [row["scene"] for row in csv.DictReader(table)]
    pairs = [
        pair for pair in zip(read_truths(args.folder), scenes, strict=True) if pair[0].source == args.source
    ]
    names = sorted({scene for _, scene in pairs})
    adapted = set(np.random.default_rng(0).permutation(names)[: len(names) // 2].tolist())
    old = load_model(config.start, device="cpu")
    chips = [
        AdaptChip(
            *(read_image(truth.folder / f"{date}.png", old.chip_px) for date in ("before", "after")), 0.5
        )
        for truth, scene in pairs
        if scene in adapted
    ]
    tiles, resume, started = args.keep / "tiles", args.keep.exists(), time.process_time()
    summary = read_summary(tiles) if resume else write_ground(tiles, old, chips, args.source, config.seed)
    config = replace(config, scenes=replace(config.scenes, ground_folder=tiles))
    result = train(config, args.keep, RunOptions(resume=resume, provenance=summary))
    minutes = (time.process_time() - started) / 60
    new = load_model(str(result.model_folder), device="cpu")
    time_text = "resumed" if resume else f"{minutes:.1f} min CPU of this process"
    print(f"\n{summary['adapted_to']}; {time_text}\n")
    scored = [truth for truth, scene in pairs if scene not in adapted]
    print_source(Table(), args.source, ask(old, scored), ask(new, scored))


if __name__ == "__main__":
    main()
