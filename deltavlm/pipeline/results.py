"""Result of one chip: status, answers, and where its mask is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltavlm.geo.grid import Chip
from deltavlm.pipeline.answers import Answer
from deltavlm.pipeline.journal.blobs import Blob
from deltavlm.pipeline.schema import FAILED_STATUSES, ChipStatus
from deltavlm.tasks.evidence import Evidence

__all__ = ["ChipResult"]


@dataclass(frozen=True, slots=True)
class ChipResult:
    """Status and answers of one chip; no answers unless the model was asked."""

    chip: Chip
    status: ChipStatus
    valid_fraction: float | None
    answers: Mapping[str, Answer] = field(default_factory=dict)  # by the question's name
    reason: str = ""  # error message of a failed chip
    pair: str = ""  # id of its pair; empty in a run over one pair
    digest: str = ""  # `dedup.pixel_digest` of its pixels
    mask: Blob | None = None  # `mask_codec.encode_masks`, if masks are kept
    valid: Blob | None = None  # `mask_codec.encode_valid` of a chip with a mask and some nodata
    cloud_share: float | None = None  # share of its pixels that cloud masks hide; None without a mask
    shift_px: float | None = None  # shift between the dates; None where it cannot be measured
    mask_score: float | None = None  # `mask_codec.peak_score` of the mask, 0 to 1
    evidence: Evidence | None = None  # of another model, that the model was told

    @property
    def failed(self) -> bool:
        """True if the chip could not be read or answered."""
        return self.status in FAILED_STATUSES

    @property
    def changed(self) -> bool | None:
        """Answer to the yes/no question; None if it was not asked or cannot be parsed."""
        change = self.of_task("change")
        return None if change is None else change.value

    def of_task(self, task: str) -> Answer | None:
        """Answer to the first question of this task, or None."""
        return next((answer for answer in self.answers.values() if answer.task == task), None)
