"""Ablation of nano's mask training: the head trained from nothing but a pretrained encoder, one part of the
recipe left out at a time, and scored on real pairs.

    python benchmarks/ablate_training.py FOLDER... --tiles TILES --output RUNS [--steps 100] [--only NAME...]

FOLDER as in `head_scores.py`, TILES as in `make nano`. Every row has the seed, the steps and, but for what it
leaves out, the scenes of the first. An encoder that learns too has its own batch statistics. AUC is by the
mean probability of built or removed buildings and roads ("built") and by the densest 5 % of any change
("any"), F1 that of the masks of buildings. A run takes the threads of `--threads`; finished ones in RUNS are
scored again, not trained. No training, calibration or choice may have used any of the real pairs.

Prints Markdown on stdout, messages on stderr.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.compare_weights import read_truths  # noqa: E402
from benchmarks.head_scores import HeadResult, auc_of, load_head, run_head  # noqa: E402
from benchmarks.real_scores import f1  # noqa: E402
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.model import difference  # noqa: E402
from deltavlm.training.config import load_config  # noqa: E402
from deltavlm.training.run import RunOptions, train  # noqa: E402

PHASE, RECIPE = "masks", "the recipe"
NO_DISTANCES = "no distances of features"
VARIATIONS: dict[str, tuple[str, ...]] = {  # name: settings
    RECIPE: (),
    "drawn ground alone": ("phases.masks.ground=0",),
    NO_DISTANCES: (),
    "no distractors of the land": ("scenes.ground_without=[distractors]",),
    "nothing grows or weathers": ("scenes.ground_without=[growth]",),
    "no real objects cut out or hidden": ("scenes.ground_without=[cutouts, hidden]",),
    "class weights of the square root": ("phases.masks.class_balance=0.5",),
    "encoder learns at a tenth of the rate": ("phases.masks.rates={vision.tower.encoder: 0.1}",),
    "encoder from random weights, learns": ("pretrained=false", "phases.masks.rates={}"),
}
SHARED = ("scenes", "validation", "far", "stormy", "rich", "ground", "tokenizer.json", "scope.safetensors")
SOURCES = {"LEVIR-CC": "levircc_test", "CLCD": "clcd", "SZTAKI": "sztaki_256"}


def no_distance(before_BCHW: Tensor, after_BCHW: Tensor) -> Tensor:
    """Distances of 0, (B, 1, H, W), in place of `difference.feature_distance`."""
    return before_BCHW.new_zeros(len(before_BCHW), 1, *before_BCHW.shape[-2:], dtype=torch.float32)


def share_inputs(source: Path, folder: Path, settings: Sequence[str]) -> None:
    """Link scenes and tokenizer of a run into another one's folder; no ground that differs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        is_another = name == "ground" and any("ground_without" in each for each in settings)
        if (source / name).exists() and not (folder / name).exists() and not is_another:
            (folder / name).symlink_to((source / name).resolve())


def describe(results: Sequence[HeadResult]) -> dict[str, object]:
    """Scores by source."""
    cells: dict[str, object] = {}
    for title, source in SOURCES.items():
        some = [result for result in results if result.truth.source == source]
        if some:
            scores = (auc_of("buildings and roads")(some), auc_of("its densest 5 %")(some))
            overlap = f1([result.overlap for result in some])
            cells[f"{title}: built, any, F1"] = ", ".join(f"{each:.3f}" for each in (*scores, overlap))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--tiles", type=Path, required=True, help="folder of image tiles")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=100, help="of training, 32 pairs each")
    parser.add_argument("--ground", type=int, default=2000, help="scenes on the tiles")
    parser.add_argument("--only", nargs="+", choices=VARIATIONS, default=list(VARIATIONS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    truths = [truth for folder in args.folders for truth in read_truths(folder)]
    truths = [truth for truth in truths if truth.source in SOURCES.values()]
    print(f"{heading(args.threads, f'torch {torch.__version__}')}; {args.steps} steps\n")
    table = Table()
    for name in args.only:
        folder = args.output / name.replace(" ", "_").replace(",", "")
        settings = [
            f"scenes.ground_folder={args.tiles.resolve()}",
            f"scenes.ground={args.ground}",
            f"phases.masks.steps={args.steps}",
            "precision=fp32",
            *VARIATIONS[name],
        ]
        share_inputs(args.output / RECIPE.replace(" ", "_"), folder, settings)
        config = load_config(ROOT / "configs" / "train_nano.yaml", settings)
        with ExitStack() as stack:
            if name == NO_DISTANCES:
                stack.enter_context(mock.patch.object(difference, "feature_distance", no_distance))
            train(config, folder, RunOptions(resume=(folder / "config.yaml").exists(), only=PHASE))
            load = argparse.Namespace(run=folder, phase=PHASE)
            results = run_head(*load_head(load), truths)
        table.row({"masks trained with": name, **describe(results)})


if __name__ == "__main__":
    main()
