"""Scores of a model on held-out synthetic scenes and, where a folder of them is given, on real pairs.

Scenes have seeds that no training or calibration uses. Real pairs are a folder as `real_scores.py` reads it.

    python benchmarks/nano_scores.py --scenes 1000 --real FOLDER --json scores.json

Prints Markdown tables on stdout, messages on stderr. Baselines are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402

from benchmarks.real_scores import score_real_pairs  # noqa: E402
from deltavlm.data.synthetic import SceneOptions, phrases  # noqa: E402
from deltavlm.data.synthetic.cache import (  # noqa: E402
    FAR_TEST_SEED,
    RICH_TEST_SEED,
    TEST_SEED,
    open_cache,
    render_cache,
)
from deltavlm.data.synthetic.facts import MIN_CELL_SHARE, MIN_GROUND_SHARE, MIN_INSTANCE_SHARE, cell_shares  # noqa: E402
from deltavlm.metrics import binary, counts, sets  # noqa: E402
from deltavlm.model.interface import ChangeModel  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.scoring.synthetic import predict_scenes, score_conversations, score_scenes  # noqa: E402
from deltavlm.tasks import caption  # noqa: E402
from deltavlm.tasks.locate import LABELS  # noqa: E402

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "made": ("Synthetic scenes, held out", {"seed": TEST_SEED}),
    "far": (
        "Synthetic scenes with pixels twice as coarse (about 0.6 to 3 m), held out",
        {"seed": FAR_TEST_SEED, "options": SceneOptions(change=0.6, downsample=2)},
    ),
    "rich": (
        "Synthetic scenes with more kinds of land, buildings and nuisances, held out",
        {"seed": RICH_TEST_SEED, "options": SceneOptions(change=0.6, rich=True)},
    ),
}


def score_model(model: ChangeModel, count: int, render_options: dict[str, Any]) -> dict[str, Any]:
    """Scores of a model on `count` scenes, beside those of the rule and of constant answers."""
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        render_cache(cache, count, **render_options)
        replies, facts = predict_scenes(model, cache)
        scores = score_scenes(replies, facts) | score_conversations(model, cache)
        scores |= score_rule(model, cache, facts)
    changed = [fact.changed for fact in facts]
    buildings, roads = ([getattr(fact, name) for fact in facts] for name in ("building_cells", "road_cells"))
    references = [phrases.captions(fact) for fact in facts]
    first_captions = {captions[0] for captions in references}
    constant = max(first_captions, key=lambda text: sum(text in captions for captions in references))
    exact = [caption.score(constant, captions)["exact"] for captions in references]
    return scores | {
        "constant_yes_no": max(float(np.mean(changed)), 1 - float(np.mean(changed))),
        "constant_cell_f1_buildings": sets.micro_average([LABELS] * len(facts), buildings).f1,
        "constant_cell_f1_roads": sets.micro_average([LABELS] * len(facts), roads).f1,
        "constant_caption_exact": float(np.mean(exact)),
    }


def score_rule(model: Any, cache: Path, facts: list[Any]) -> dict[str, float]:
    """Scores of answers derived from the dense head alone; empty for a model without one.

    "Yes" where a class covers enough of the chip, the cells that it covers enough of, and the rounded sums of
    the densities as counts.
    """
    images, _ = open_cache(cache)
    yes, cells, totals = [], [], []
    for start in range(0, len(images), 16):
        dates = np.ascontiguousarray(images[start : start + 16].transpose(1, 0, 4, 2, 3))
        encoded = model.encode(dates[0], dates[1])
        masks = model.masks(encoded)
        if masks is None:
            return {}
        sums = model.counts(encoded).round().astype(int).tolist()
        for labels, (roads, buildings) in zip(masks.labels, sums, strict=True):
            shares = np.bincount(labels.ravel(), minlength=len(masks.classes)) / labels.size
            has_instance = (shares[1:5] >= MIN_INSTANCE_SHARE).any()
            yes.append(bool(has_instance or (shares[5:] >= MIN_GROUND_SHARE).any()))
            cells.append([cells_of(np.isin(labels, codes)) for codes in ((1, 2), (3, 4))])
            totals.append((roads, buildings))
    truth = [phrases.counts_of(fact) for fact in facts]
    pairs = [(roads, fact.roads) for (roads, _), fact in zip(totals, truth, strict=True)]
    pairs += [(buildings, fact.buildings) for (_, buildings), fact in zip(totals, truth, strict=True)]
    building_cells, road_cells = zip(*cells, strict=True)
    return {
        "rule_yes_no": binary.accuracy(yes, [fact.changed for fact in facts]),
        "rule_count_mae": counts.mae(*zip(*pairs, strict=True)),
        "rule_cell_f1_buildings": sets.micro_average(
            building_cells, [fact.building_cells for fact in facts]
        ).f1,
        "rule_cell_f1_roads": sets.micro_average(road_cells, [fact.road_cells for fact in facts]).f1,
    }


def cells_of(mask: np.ndarray) -> list[str]:
    """Names of the cells of a chip that a mask covers enough of."""
    is_covered = cell_shares(mask) >= MIN_CELL_SHARE
    return [label for label, covered in zip(LABELS, is_covered, strict=True) if covered]


def print_table(title: str, content: dict[str, Any]) -> None:
    print(f"\n{title}\n\n| measure | value |\n|---|---|")
    for name, value in content.items():
        print(f"| {name} | {format_value(value)} |")


def format_value(value: Any) -> str:
    """Number, or number and its interval."""
    if isinstance(value, list) and len(value) == 3:
        return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"
    if isinstance(value, list):
        return ", ".join(format_value(item) for item in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="name of a shipped model or a checkpoint folder")
    parser.add_argument("--scenes", type=int, default=1000, help="synthetic scenes to score; 0 for none")
    parser.add_argument("--real", type=Path, help="folder of real pairs")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    model = load_model(args.model, device="cpu")
    scores: dict[str, Any] = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    print_table("Run", scores)
    if args.scenes:
        for name, (title, render_options) in KINDS.items():
            scores[name] = score_model(model, args.scenes, render_options)
            print_table(title, scores[name])
    if args.real:
        scores["real"] = score_real_pairs(model, args.real)
        for name, content in scores["real"].items():
            print_table(f"Real pairs, never trained or tuned on: {name}", content)
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
