"""Published values, as fractions, by the protocol and the set that they are comparable under.

`paper`: DeltaVLM (arXiv 2507.22346) on the test split of ChangeChat-105k, from a third party's transcription
of the tables; caption BLEU-4 and CIDEr and the F1 of yes/no agree with the authors' code repository.
`changeimti`: ChangeVG (arXiv 2509.23105) on that of ChangeIMTI, transcribed by the third party that rebuilt
it (qotjwns/RSCD), which reads ChangeVG's example accuracy as the Jaccard index with 1 for two empty sets.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DATA", "SOURCES", "published"]

DATA = {  # protocol -> set and split
    "strict": ("changechat_105k", "test"),
    "paper": ("changechat_105k", "test"),
    "changeimti": ("changeimti", "test"),
}
_DELTAVLM = (
    "DeltaVLM, arXiv 2507.22346, ChangeChat-105k test (as transcribed by a third party); comparable under the"
    " paper protocol only"
)
SOURCES = {
    "strict": _DELTAVLM,
    "paper": _DELTAVLM,
    "changeimti": "ChangeVG, arXiv 2509.23105, ChangeIMTI test (as transcribed by a third party)",
}

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


_CHANGEVG_CELLS = ("example_accuracy", "precision", "recall", "f1", "subset")
_CHANGEVG_TEXT = ("bleu_4", "meteor", "rouge_l", "cider", "s_m")
_CHANGEVG: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("caption", "all"): _percent(_CHANGEVG_TEXT, 65.08, 42.06, 76.95, 142.83, 81.73),
    ("change", "all"): _percent(("accuracy", "precision", "recall", "f1"), 94.60, 95.49, 94.01, 94.74),
    ("count", "roads"): {"mae": 0.156},
    ("count", "buildings"): {"mae": 0.802},
    ("location", "roads"): _percent(_CHANGEVG_CELLS, 78.65, 78.50, 75.95, 77.20, 73.30),
    ("location", "buildings"): _percent(_CHANGEVG_CELLS, 88.13, 90.68, 92.08, 91.37, 72.20),
}


def published(protocol: str, task: str, group: str, metric: str) -> float | None:
    """Published value; None where there is none. DeltaVLM's yes/no was derived from captions.

    >>> published("paper", "caption", "all", "bleu_4"), published("paper", "caption", "changed", "bleu_4")
    (0.6251, None)
    >>> published("changeimti", "count", "roads", "mae")
    0.156
    """
    values = _CHANGEVG if protocol == "changeimti" else _PUBLISHED
    return values.get((task, group), {}).get(metric)
