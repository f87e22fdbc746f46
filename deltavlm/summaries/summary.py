"""Summary of outputs: totals by area and overall, with caveats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltavlm.summaries.areas import Areas
from deltavlm.summaries.caveats import caveats
from deltavlm.summaries.results import Results
from deltavlm.summaries.review import ReviewSummary, summarize_review
from deltavlm.summaries.totals import AreaSummary, as_row, summarize_areas, summarize_chips

__all__ = ["Summary", "summarize"]

TOP_CHIPS = 6  # most changed chips overall


@dataclass(frozen=True)
class Summary:
    """Totals of the chips of some outputs."""

    results: Results
    areas: Areas
    by_area: Sequence[AreaSummary]  # the most changed area first; last, chips outside of all areas, if any
    total: AreaSummary
    caveats: Sequence[str]
    review: ReviewSummary | None = None  # None where nobody has reviewed anything

    @property
    def has_areas(self) -> bool:
        """False for a single area of all chips."""
        return self.areas.kind != "whole"

    @property
    def rows(self) -> Sequence[AreaSummary]:
        """Rows of a table: each area and the total; the total alone if there are no areas."""
        return [*self.by_area, self.total] if self.has_areas else [self.total]

    def as_json(self) -> dict[str, Any]:
        """Summary as plain values, ready for JSON."""
        return {
            "all": as_row(self.total),
            "totals": self.total.totals.as_dict(),
            "conflicts": dict(self.total.conflicts),
            "by": self.areas.kind,
            "areas": [as_row(area) for area in self.by_area] if self.has_areas else [],
            "left_out": self.areas.empty_count,
            "caveats": list(self.caveats),
            "review": None if self.review is None else self.review.as_json(),
        }


def summarize(results: Results, areas: Areas) -> Summary:
    """Summarize chips by area and overall."""
    by_area = summarize_areas(results, areas)
    total = summarize_chips(results, top_count=TOP_CHIPS)
    sentences = caveats(results, total, by_area)
    return Summary(results, areas, by_area, total, sentences, summarize_review(results))
