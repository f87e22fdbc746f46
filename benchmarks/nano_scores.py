"""Scores of a model on held-out made scenes and, where a folder of them is given, on real pairs.

Made: scenes of seeds that no training or calibration ever saw. Real: a folder as `real_scores.py` wants it.

    python benchmarks/nano_scores.py --scenes 1000 --real FOLDER --json scores.json

Prints Markdown tables on stdout; talk goes to stderr. Baselines stand beside the model in the same run.
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
from deltavlm.model.predictor import load_model  # noqa: E402
from deltavlm.scoring.synthetic import predict_scenes, score_conversations, score_scenes  # noqa: E402
from deltavlm.tasks import caption  # noqa: E402
from deltavlm.tasks.locate import LABELS  # noqa: E402

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "made": ("Made scenes, held out", {"seed": TEST_SEED}),
    "far": (
        "Made scenes of pixels twice as coarse (about 0.6 to 3 m), held out",
        {"seed": FAR_TEST_SEED, "options": SceneOptions(change=0.6, downsample=2)},
    ),
    "rich": (
        "Made scenes of more kinds of land, building and nuisance, held out",
        {"seed": RICH_TEST_SEED, "options": SceneOptions(change=0.6, rich=True)},
    ),
}


def made(model: ChangeModel, number: int, how: dict[str, Any]) -> dict[str, Any]:
    """Scores on `number` scenes, with those of the rule and of constant answers."""
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        render_cache(cache, number, **how)
        replies, facts = predict_scenes(model, cache)
        found = score_scenes(replies, facts) | score_conversations(model, cache)
        found |= by_rule(model, cache, facts)
    changed = [fact.changed for fact in facts]
    built, roads = ([getattr(fact, name) for fact in facts] for name in ("building_cells", "road_cells"))
    told = [phrases.captions(fact) for fact in facts]
    first = max({ways[0] for ways in told}, key=lambda text: sum(text in ways for ways in told))
    return found | {
        "constant_yes_no": max(float(np.mean(changed)), 1 - float(np.mean(changed))),
        "constant_cell_f1_buildings": sets.micro_average([LABELS] * len(facts), built).f1,
        "constant_cell_f1_roads": sets.micro_average([LABELS] * len(facts), roads).f1,
        "constant_caption_exact": float(np.mean([caption.score(first, ways)["exact"] for ways in told])),
    }


def by_rule(model: ChangeModel, cache: Path, facts: list[Any]) -> dict[str, float]:
    """The answers that the dense head gives without any words: a yes where enough of any class is seen,
    cells where enough of it is, counts as the rounded sums of the densities. Empty without a dense head."""
    pictures, _ = open_cache(cache)
    yes, cells, numbers = [], [], []
    for start in range(0, len(pictures), 16):
        part = np.ascontiguousarray(pictures[start : start + 16].transpose(1, 0, 4, 2, 3))
        encoded = model.encode(part[0], part[1])
        masks = model.masks(encoded)
        if masks is None:
            return {}
        sums = encoded.density.float().sum(dim=(2, 3)).round().int().tolist()
        for labels, (roads, buildings) in zip(masks.labels, sums, strict=True):
            shares = np.bincount(labels.ravel(), minlength=len(masks.classes)) / labels.size
            yes.append(
                bool((shares[1:5] >= MIN_INSTANCE_SHARE).any() or (shares[5:] >= MIN_GROUND_SHARE).any())
            )
            found = []
            for kinds in ((1, 2), (3, 4)):  # buildings, roads
                seen = cell_shares(np.isin(labels, kinds)) >= MIN_CELL_SHARE
                found.append([label for label, on in zip(LABELS, seen, strict=True) if on])
            cells.append(found)
            numbers.append((roads, buildings))
    true = [phrases.counts_of(fact) for fact in facts]
    pairs = [(said[0], fact.roads) for said, fact in zip(numbers, true, strict=True)]
    pairs += [(said[1], fact.buildings) for said, fact in zip(numbers, true, strict=True)]
    return {
        "rule_yes_no": binary.accuracy(yes, [fact.changed for fact in facts]),
        "rule_count_mae": counts.mae(*zip(*pairs, strict=True)),
        "rule_cell_f1_buildings": sets.micro_average(
            [found[0] for found in cells], [fact.building_cells for fact in facts]
        ).f1,
        "rule_cell_f1_roads": sets.micro_average(
            [found[1] for found in cells], [fact.road_cells for fact in facts]
        ).f1,
    }


def table(title: str, content: dict[str, Any]) -> None:
    print(f"\n{title}\n\n| measure | value |\n|---|---|")
    for name, value in content.items():
        print(f"| {name} | {told(value)} |")


def told(value: Any) -> str:
    """A number, or a number and its interval."""
    if isinstance(value, list) and len(value) == 3:
        return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"
    if isinstance(value, list):
        return ", ".join(told(one) for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--model", default="nano", help="a shipped model's name or a checkpoint folder")
    ask.add_argument("--scenes", type=int, default=1000, help="made scenes to score; 0 for none")
    ask.add_argument("--real", type=Path, help="folder of real pairs")
    ask.add_argument("--json", type=Path, help="also write the numbers there")
    args = ask.parse_args()
    model = load_model(args.model, device="cpu")
    found: dict[str, Any] = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    table("Run", found)
    if args.scenes:
        for name, (title, how) in KINDS.items():
            found[name] = made(model, args.scenes, how)
            table(title, found[name])
    if args.real:
        found["real"] = score_real_pairs(model, args.real)
        for name, content in found["real"].items():
            table(f"Real pairs, never trained or tuned on: {name}", content)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
