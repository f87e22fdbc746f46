"""What nano's answers rest on: its scores with one way from the pictures to the words closed after another.

    python benchmarks/ablate.py [--model nano] [--scenes 200] [--real FOLDER]

The Q-Former reads the difference tokens of both dates and, behind them, the evidence that the dense head has
drawn from the same tokens. Each is closed by zeros in the place of its tokens; without the difference module
there are zeros for all that it puts out, so that the head too has nothing but the tower's finer maps. Weights
are the same in every row. Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.real_scores import evaluate_pairs  # noqa: E402
from benchmarks.rows import Table  # noqa: E402
from deltavlm.data.synthetic.cache import TEST_SEED, render_cache  # noqa: E402
from deltavlm.metrics import binary  # noqa: E402
from deltavlm.model.deltavlm import PairFeatures  # noqa: E402
from deltavlm.model.interface import Pixels  # noqa: E402
from deltavlm.model.predictor import Predictor, load_model  # noqa: E402
from deltavlm.scoring.synthetic import predict_scenes, score_scenes  # noqa: E402

MEASURES = (
    "yes_no_accuracy",
    "yes_no_auc",
    "count_mae_all",
    "cell_f1_buildings",
    "cell_f1_roads",
    "caption_exact",
)


@dataclass(frozen=True)
class Closed(Predictor):
    """A model whose questions see zeros in the place of some tokens of a pair."""

    tokens: slice = field(kw_only=True)

    def encode(self, before: Pixels, after: Pixels) -> PairFeatures:
        found = super().encode(before, after)
        tokens = found.tokens.clone()
        tokens[:, self.tokens] = 0
        return replace(found, tokens=tokens)


@contextmanager
def without_difference(model: Predictor) -> Iterator[Predictor]:
    """The same model, whose difference module puts out zeros."""
    hook = model.model.difference.register_forward_hook(lambda _module, _seen, out: out * 0)
    try:
        yield model
    finally:
        hook.remove()


def row(model: Predictor, cache: Path, real: Path | None) -> dict[str, object]:
    replies, facts = predict_scenes(model, cache)
    found = score_scenes(replies, facts)
    cells: dict[str, object] = {name: f"{found[name]:.3f}" for name in MEASURES}
    if real:
        results = evaluate_pairs(model, real)
        cells["AUC, real, by mask"] = (
            f"{binary.auc([r.p_yes for r in results], [r.changed for r in results]):.3f}"
        )
    return cells


def main() -> None:
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--model", default="nano", help="a model with a dense head: its name or folder")
    ask.add_argument("--scenes", type=int, default=200, help="held-out made scenes")
    ask.add_argument("--real", type=Path, help="folder of real pairs")
    args = ask.parse_args()
    if args.scenes < 2:
        ask.error("--scenes: give at least 2")
    model = load_model(args.model, device="cpu")
    if not isinstance(model, Predictor) or model.config.dense is None or not model.config.dense.evidence:
        sys.exit(f"{args.model} has no dense head whose evidence could be closed; try nano")
    evidence = model.config.dense.evidence_tokens  # behind the difference tokens
    closed = {
        "nothing: as it ships": slice(0),
        "difference tokens": slice(0, -evidence),
        "evidence": slice(-evidence, None),
    }
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        render_cache(cache, args.scenes, seed=TEST_SEED)
        for name, tokens in closed.items():
            table.row({"closed": name, **row(Closed(**vars(model), tokens=tokens), cache, args.real)})
        with without_difference(model):
            table.row({"closed": "no difference module", **row(model, cache, args.real)})


if __name__ == "__main__":
    main()
