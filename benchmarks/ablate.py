"""Ablation of nano: scores without difference tokens, without evidence tokens, without difference module.

    python benchmarks/ablate.py [--model nano] [--scenes 200] [--real FOLDER]

The Q-Former reads the difference tokens of both dates and, after them, the evidence tokens that the dense
head derives from the same tokens. Ablated tokens are set to zero. Without the difference module all of its
output is zero, so that the dense head too has only the finer feature maps of the vision tower. All rows have
the same weights. Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
from deltavlm.model.interface import PairContext, Pixels  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.model.predictor import Predictor  # noqa: E402
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
class AblatedPredictor(Predictor):
    """Predictor that sets some tokens of each pair to zero before any question."""

    tokens: slice = field(kw_only=True)

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> PairFeatures:
        features = super().encode(before, after)
        tokens = features.tokens.clone()
        tokens[:, self.tokens] = 0
        return replace(features, tokens=tokens)


@contextmanager
def without_difference(model: Predictor) -> Iterator[Predictor]:
    """Context in which the difference module of the model returns zeros."""
    hook = model.model.difference.register_forward_hook(lambda module, inputs, output: output * 0)
    try:
        yield model
    finally:
        hook.remove()


def measure(model: Predictor, cache: Path, real: Path | None) -> dict[str, object]:
    replies, facts = predict_scenes(model, cache)
    scores = score_scenes(replies, facts)
    cells: dict[str, object] = {name: f"{scores[name]:.3f}" for name in MEASURES}
    if real:
        results = evaluate_pairs(model, real)
        cells["AUC, real, by mask"] = (
            f"{binary.auc([r.p_yes for r in results], [r.changed for r in results]):.3f}"
        )
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano", help="a model with a dense head: its name or folder")
    parser.add_argument("--scenes", type=int, default=200, help="held-out synthetic scenes")
    parser.add_argument("--real", type=Path, help="folder of real pairs")
    args = parser.parse_args()
    if args.scenes < 2:
        parser.error("--scenes: give at least 2")
    model = load_model(args.model, runtime="torch", device="cpu")
    if not isinstance(model, Predictor) or model.config.dense is None or not model.config.dense.evidence:
        sys.exit(f"{args.model} has no dense head with evidence tokens; try nano")
    evidence = model.config.dense.evidence_tokens  # after the difference tokens
    ablations = {
        "nothing: as it ships": slice(0),
        "difference tokens": slice(0, -evidence),
        "evidence": slice(-evidence, None),
    }
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        render_cache(cache, args.scenes, seed=TEST_SEED)
        for name, tokens in ablations.items():
            ablated = AblatedPredictor(**vars(model), tokens=tokens)
            table.row({"without": name, **measure(ablated, cache, args.real)})
        with without_difference(model):
            table.row({"without": "difference module", **measure(model, cache, args.real)})


if __name__ == "__main__":
    main()
