"""Published values of DeltaVLM (arXiv 2507.22346), as fractions; comparable under `paper` only.

Test split of ChangeChat-105k, from a third party's transcription of the tables; caption BLEU-4 and CIDEr and
the F1 of yes/no agree with the authors' code repository.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DATA", "SOURCE", "published"]

DATA = ("changechat_105k", "test")  # set and split

SOURCE = "DeltaVLM, arXiv 2507.22346, ChangeChat-105k test (as transcribed by a third party)"

_TEXT = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
_CELLS = ("precision", "recall", "f1", "jaccard", "subset")


def _percent(names: tuple[str, ...], *values: float) -> dict[str, float]:
    return {name: round(value / 100, 6) for name, value in zip(names, values, strict=True)}


_PUBLISHED: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("caption", "all"): _percent((*_TEXT, "s_m"), 85.78, 77.15, 69.24, 62.51, 39.47, 75.01, 136.72, 78.43),
    ("open", "all"): _percent(_TEXT, 36.67, 27.09, 20.62, 16.21, 17.85, 32.60, 127.38),
    ("change", "all"): _percent(("accuracy", "precision", "recall", "f1"), 93.99, 96.29, 91.49, 93.83),
    ("count", "roads"): {"mae": 0.24, "rmse": 0.70},
    ("count", "buildings"): {"mae": 1.32, "rmse": 2.89},
    ("location", "roads"): _percent(_CELLS, 69.63, 66.32, 67.94, 14.00, 70.92),
    ("location", "buildings"): _percent(_CELLS, 77.79, 80.22, 78.99, 23.15, 65.53),
}


def published(task: str, group: str, metric: str) -> float | None:
    """Published value; None where there is none. Yes/no was derived from captions.

    >>> published("caption", "all", "bleu_4"), published("caption", "changed", "bleu_4")
    (0.6251, None)
    """
    return _PUBLISHED.get((task, group), {}).get(metric)
