"""Scores of the dense head and of the feature distances on real pairs, for a model whose language part is not
trained yet.

    python benchmarks/head_scores.py FOLDER --run runs/nano --phase mixed
    python benchmarks/head_scores.py FOLDER --model nano

FOLDER has pairs.csv as `compare_weights.py` reads it. `--run` is the folder of a training run and takes the
averaged weights of a phase's checkpoint, finished or not; "" is the untrained model with its pretrained
encoder. A pair's score is the mean probability of built or removed buildings and roads, that of their most
probable 5 % of the mask, the same of any change, and the mean of the largest 5 % of the distances at strides
16 and 8. Then, by the number of true buildings, the mean of the head's densities summed over the image: its
own count. Last, the median of the distance at stride 16 of unchanged and of changed pairs; with `--tiles`
also of made pairs on real ground, whose unchanged ones should differ as much as real ones. No training,
calibration or choice may have used any of the real pairs.

Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.compare_weights import Truth, read_truths  # noqa: E402
from benchmarks.real_scores import BUILDINGS, Overlap, f1, mask_overlap, read_image  # noqa: E402
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.data.synthetic import SceneOptions  # noqa: E402
from deltavlm.data.synthetic.cache import GROUND_TEST_SEED  # noqa: E402
from deltavlm.data.synthetic.ground import GroundTiles, make_ground_scene  # noqa: E402
from deltavlm.metrics import binary  # noqa: E402
from deltavlm.model import checkpoint  # noqa: E402
from deltavlm.model.deltavlm import DeltaVLM  # noqa: E402
from deltavlm.model.folder import find_folder  # noqa: E402
from deltavlm.model.interface import Masks  # noqa: E402
from deltavlm.training.build import build_initial_model, load_inputs  # noqa: E402
from deltavlm.training.checkpoints import final_weights  # noqa: E402
from deltavlm.training.config import load_config  # noqa: E402

Array = npt.NDArray[np.float32]
BUILDING = 1  # of the counted classes, roads and buildings
TRUE_BUILDINGS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, 99))
DISTANCE, MADE_PAIRS = "distance, stride 16", 64
TOP = 0.05  # share of the map that a pair's score is the mean of


@dataclass(frozen=True, slots=True)
class HeadResult:
    """Scores of a pair by name, and the overlap of its mask of buildings with the true one."""

    truth: Truth
    scores: dict[str, float]
    overlap: Overlap
    buildings: float  # sum of the density


def load_head(args: argparse.Namespace) -> tuple[DeltaVLM, tuple[str, ...]]:
    """Model and the classes of its masks."""
    if args.run is None:
        config, model = checkpoint.load(find_folder(args.model))
        return model, config.dense.classes if config.dense else ()
    run = load_config(args.run / "config.yaml")
    inputs = load_inputs(run)
    model = build_initial_model(run, inputs)
    if args.phase:
        model.load_state_dict(final_weights(args.run, args.phase, best=False), strict=False)
    assert inputs.model.dense is not None
    return model.eval(), inputs.model.dense.classes


def top_mean(values: Array) -> float:
    """Mean of the largest 5 %."""
    flat = np.sort(values.ravel())[::-1]
    return float(flat[: max(1, round(len(flat) * TOP))].mean())


def run_head(model: DeltaVLM, classes: tuple[str, ...], truths: Sequence[Truth]) -> list[HeadResult]:
    """Results of all pairs, eight at a time."""
    results = []
    size = model.vision.config.image_px
    for start in range(0, len(truths), 8):
        group = truths[start : start + 8]
        before, after = (
            torch.from_numpy(np.stack([read_image(t.folder / f"{date}.png", size) for t in group]))
            for date in ("before", "after")
        )
        with torch.inference_mode():
            normalise = model.vision.normalise
            pair = model.encode_pair(normalise(before), normalise(after))
        assert pair.mask_logits is not None
        assert pair.density is not None
        shares = pair.mask_logits.float().softmax(dim=1).numpy()
        for index, truth in enumerate(group):
            built, any_change = shares[index, 1:5].sum(axis=0), 1 - shares[index, 0]
            scores = {
                "buildings and roads": float(built.mean()),
                "their densest 5 %": top_mean(built),
                "any change": float(any_change.mean()),
                "its densest 5 %": top_mean(any_change),
            }
            if pair.distances:
                distances = [d[index, 0].float().numpy() for d in pair.distances]
                scores |= {
                    DISTANCE: top_mean(distances[-1]),
                    "distance, stride 8": top_mean(distances[-2]),
                }
            true = np.asarray(Image.open(truth.folder / "mask.png").convert("L"))[:size, :size] > 127
            masks = Masks(classes, shares[index : index + 1])
            counted = float(pair.density[index, BUILDING].sum())
            results.append(HeadResult(truth, scores, mask_overlap(masks, true, BUILDINGS), counted))
    return results


def made_distances(model: DeltaVLM, tiles: Path, *, change: float) -> list[float]:
    """Distances at stride 16 of MADE_PAIRS pairs on real ground; change: 0, or 1 for changed ones."""
    options = SceneOptions(change=change, misregistration_px=5.0)
    size, ground, distances = model.vision.config.image_px, GroundTiles(tiles), []
    for start in range(0, MADE_PAIRS, 8):
        scenes = [
            make_ground_scene(GROUND_TEST_SEED + number, ground, size, size, options)
            for number in range(start, start + 8)
        ]
        before, after = (
            torch.from_numpy(np.stack([getattr(scene, date).transpose(2, 0, 1) for scene in scenes]))
            for date in ("before", "after")
        )
        with torch.inference_mode():
            normalise = model.vision.normalise
            pair = model.encode_pair(normalise(before), normalise(after))
        distances += [top_mean(each[0].float().numpy()) for each in pair.distances[-1]]
    return distances


def auc_of(name: str) -> Callable[[Sequence[HeadResult]], float]:
    """AUC of a score over the pairs with a label."""

    def auc(results: Sequence[HeadResult]) -> float:
        known = [result for result in results if result.truth.changed is not None]
        return binary.auc([r.scores[name] for r in known], [bool(r.truth.changed) for r in known])

    return auc


def interval(score: Callable[[Sequence[HeadResult]], float], results: Sequence[HeadResult]) -> str:
    """A score and its 95 % interval (percentile bootstrap over the pairs)."""
    rng = np.random.default_rng(0)
    draws = [score([results[i] for i in rng.integers(len(results), size=len(results))]) for _ in range(500)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return f"{score(results):.3f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano", help="name of a shipped model, or a checkpoint folder")
    parser.add_argument("--run", type=Path, help="folder of a training run, in place of a model")
    parser.add_argument("--phase", default="", help="phase of the run; default: the untrained model")
    parser.add_argument("--tiles", type=Path, help="folder of image tiles, for made pairs")
    args = parser.parse_args()
    model, classes = load_head(args)
    results = run_head(model, classes, read_truths(args.folder))
    print(f"{heading(torch.get_num_threads())}\n")
    table = Table()
    for source in dict.fromkeys(result.truth.source for result in results):
        of_source = [result for result in results if result.truth.source == source]
        labels = {result.truth.changed for result in of_source} - {None}
        cells: dict[str, object] = {"source": f"{source} ({len(of_source)})"}
        for name in of_source[0].scores:
            cells[f"AUC: {name}"] = interval(auc_of(name), of_source) if len(labels) == 2 else "-"
        cells["mask F1, buildings"] = interval(lambda rs: f1([r.overlap for r in rs]), of_source)
        table.row(cells)
    print()
    table = Table()
    for low, high in TRUE_BUILDINGS:
        some = [r for r in results if r.truth.buildings is not None and low <= r.truth.buildings <= high]
        if some:
            table.row(
                {
                    "true buildings": f"{low} to {high}",
                    "pairs": len(some),
                    "mean": f"{np.mean([r.truth.buildings for r in some]):.1f}",
                    "mean of the head's own count": f"{np.mean([r.buildings for r in some]):.1f}",
                }
            )
    print()
    groups = {
        source: [
            [r.scores[DISTANCE] for r in results if r.truth.source == source and r.truth.changed is changed]
            for changed in (False, True)
        ]
        for source in dict.fromkeys(result.truth.source for result in results)
    }
    if args.tiles is not None:
        groups["made, on real ground"] = [
            made_distances(model, args.tiles, change=change) for change in (0.0, 1.0)
        ]
    table = Table()
    for source, (unchanged, changed) in groups.items():
        if unchanged and changed:
            table.row(
                {
                    f"median of {DISTANCE}": source,
                    "unchanged pairs": f"{np.median(unchanged):.2f} ({len(unchanged)})",
                    "changed pairs": f"{np.median(changed):.2f} ({len(changed)})",
                }
            )


if __name__ == "__main__":
    main()
