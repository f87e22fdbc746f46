"""Summary of a review: precision of what was reviewed, and totals of the accepted polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.messages import pluralize
from deltavlm.pipeline.mask_codec import CLASSES
from deltavlm.summaries.results import Results

__all__ = ["Precision", "ReviewSummary", "summarize_review"]

CONFIDENCE = 0.95  # of the interval


@dataclass(frozen=True, slots=True)
class Precision:
    """Share of reviewed rows that are right, with an interval of 95 % (Wilson 1927)."""

    right: int
    reviewed: int
    low: float
    high: float

    @classmethod
    def of(cls, right: int, reviewed: int) -> Precision | None:
        """None where nothing was reviewed."""
        if not reviewed:
            return None
        from scipy.stats import binomtest  # slow to import

        interval = binomtest(right, reviewed).proportion_ci(CONFIDENCE, method="wilson")
        return cls(right, reviewed, float(interval.low), float(interval.high))

    @property
    def value(self) -> float:
        return self.right / self.reviewed

    def __str__(self) -> str:
        """`0.83 (0.70 to 0.91), 33 of 40`."""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}), {self.right} of {self.reviewed}"


@dataclass(frozen=True, slots=True)
class ReviewSummary:
    """Figures of a review. A row with another class as its verdict shows a change, but not of its class.

    Intervals hold for the whole output only if the reviewed rows were chosen at random.
    """

    polygons: int  # of the outputs
    polygon_change: Precision | None  # polygons that show a change, of any class
    polygon_class: Precision | None  # polygons with a class, not `other`, that show a change of it
    chips: int  # analyzed
    changed_chips: Precision | None  # chips called changed that are
    unchanged_chips: Precision | None  # chips called unchanged that are
    accepted: Mapping[str, int]  # polygons that show a change, by class, as corrected
    accepted_m2: Mapping[str, float]  # their area; empty without a CRS

    def as_json(self) -> dict[str, Any]:
        """Figures as plain values, ready for JSON."""
        values = asdict(self)
        for name in ("polygon_change", "polygon_class", "changed_chips", "unchanged_chips"):
            precision: Precision | None = getattr(self, name)
            values[name] = None if precision is None else values[name] | {"precision": precision.value}
        return values

    def lines(self) -> list[str]:
        """Sentences for people, those that apply."""
        precisions = (
            (f"Polygons that show a change (of {self.polygons:,})", self.polygon_change),
            ("Polygons that show a change of their class", self.polygon_class),
            (f"Chips called changed that are (of {pluralize(self.chips, 'chip')})", self.changed_chips),
            ("Chips called unchanged that are", self.unchanged_chips),
        )
        lines = [f"{name}: {precision}." for name, precision in precisions if precision is not None]
        if self.polygon_change is not None and self.polygon_class is None:
            lines.insert(1, "Polygons that show a change of their class: n/a, the reviewed ones have none.")
        if self.accepted:
            counts = (
                f"{count} {name}{f' ({self.accepted_m2[name]:,.0f} m²)' if name in self.accepted_m2 else ''}"
                for name, count in self.accepted.items()
            )
            lines.append(f"Accepted polygons, with corrected classes: {', '.join(counts)}.")
        return lines


def summarize_review(results: Results) -> ReviewSummary | None:
    """Figures of the verdicts in the outputs; None without any."""
    polygons, chips = results.polygons, results.chips
    verdicts, classes = _texts(polygons["verdict"]), _texts(polygons["class"])
    kinds = _texts(polygons["kind"])
    analyzed = chips["status"].isin(("answered", "cascaded")).to_numpy()
    truths = chips["truth"][analyzed].tolist()
    if not any(verdicts) and all(truth is None for truth in truths):
        return None
    shown = [verdict in ("accept", *CLASSES) for verdict in verdicts]
    right_class = [
        verdict in ("accept", name)
        for verdict, name, kind in zip(verdicts, classes, kinds, strict=True)
        if verdict and (kind or name) != "other"  # no class was told, as where pixels are too coarse for one
    ]
    final = [verdict if verdict in CLASSES else name for verdict, name in zip(verdicts, classes, strict=True)]
    areas_m2 = polygons["area_m2"].to_numpy(dtype=float, na_value=np.nan)
    accepted = {
        name: [index for index, each in enumerate(final) if shown[index] and each == name] for name in CLASSES
    }
    reviewed = sum(map(bool, verdicts))
    changed = chips["changed"][analyzed].eq(True).to_numpy()
    return ReviewSummary(
        polygons=len(polygons),
        polygon_change=Precision.of(sum(shown), reviewed),
        polygon_class=Precision.of(sum(right_class), len(right_class)),
        chips=int(analyzed.sum()),
        changed_chips=_chip_precision(truths, changed, True),
        unchanged_chips=_chip_precision(truths, ~changed, False),
        accepted={name: len(indices) for name, indices in accepted.items() if indices},
        accepted_m2={
            name: float(areas_m2[indices].sum())
            for name, indices in accepted.items()
            if indices and np.isfinite(areas_m2[indices]).all()
        },
    )


def _chip_precision(truths: Sequence[bool | None], called: NDArray[np.bool_], call: bool) -> Precision | None:
    """Precision of the chips that are called so, where their truth is known."""
    known = [
        truth for truth, is_called in zip(truths, called, strict=True) if is_called and truth is not None
    ]
    return Precision.of(known.count(call), len(known))


def _texts(values: Any) -> list[str]:
    return ["" if value is None or value != value else str(value) for value in values.tolist()]
