"""Consistency rules: contradictions between the answers about one chip, and its mask of change.

A rule compares what every model gives: the yes/no answer, the caption, the counts, the cells and the mask.
Nothing is corrected: the names of the rules that a chip breaks are its column `conflicts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from deltavlm.pipeline.results import ChipResult
from deltavlm.tasks.caption import Kind, denies_change, kinds_built, kinds_removed, number_built
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells

__all__ = ["RULES", "ChipStatements", "Rule", "find_conflicts", "judge_row", "statements_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipStatements:
    """Statements about one chip; None for what was not asked, or cannot be parsed."""

    changed: bool | None = None
    caption: str | None = None
    counts: Counts | None = None
    cells: Cells | None = None
    has_mask: bool | None = None  # changed ground in its mask; None where masks are not kept

    @property
    def denies(self) -> bool:
        """True if the caption states that nothing changed."""
        return self.caption is not None and denies_change(self.caption)

    @property
    def asserts(self) -> bool:
        """True if the caption states a change."""
        return self.caption is not None and not denies_change(self.caption)

    @property
    def is_counted(self) -> bool:
        """True if a new road or building is counted."""
        return self.counts is not None and self.counts != Counts(0, 0)

    @property
    def has_cells(self) -> bool:
        """True if a cell is named."""
        return self.cells is not None and self.cells != Cells()

    def is_built(self, kind: Kind) -> bool:
        """True if the caption states that a building or road is new."""
        return self.caption is not None and kind in kinds_built(self.caption)

    def is_removed(self, kind: Kind) -> bool:
        """True if the caption states that a building or road is gone."""
        return self.caption is not None and kind in kinds_removed(self.caption)


@dataclass(frozen=True, slots=True)
class Rule:
    """Consistency rule: its name in the column `conflicts`, what is wrong, and the test for it."""

    name: str
    meaning: str
    is_broken: Callable[[ChipStatements], bool]


def _counted_without_cell(chip: ChipStatements, kind: Kind) -> bool:
    return chip.counts is not None and chip.cells is not None and _count(chip, kind) > 0 == _cells(chip, kind)


def _cell_without_count(chip: ChipStatements, kind: Kind) -> bool:
    """Cells are of built and removed ones, counts of built ones alone."""
    if chip.counts is None or chip.cells is None or chip.is_removed(kind):
        return False
    return _cells(chip, kind) > 0 == _count(chip, kind)


def _built_but_not_counted(chip: ChipStatements, kind: Kind) -> bool:
    return chip.counts is not None and _count(chip, kind) == 0 and chip.is_built(kind)


def _count(chip: ChipStatements, kind: Kind) -> int:
    assert chip.counts is not None
    return chip.counts.buildings if kind == "building" else chip.counts.roads


def _cells(chip: ChipStatements, kind: Kind) -> int:
    assert chip.cells is not None
    return len(chip.cells.buildings if kind == "building" else chip.cells.roads)


def _miscounted(chip: ChipStatements, kind: Kind) -> bool:
    """A count of 0 beside a caption with new ones is another rule."""
    stated = None if chip.caption is None else number_built(chip.caption, kind)
    if stated is None or chip.counts is None or _count(chip, kind) == 0:
        return False
    return not stated[0] <= _count(chip, kind) <= stated[1]


UNCHANGED_BUT_MASK, CHANGED_WITHOUT_MASK = "unchanged_but_mask", "changed_without_mask"

RULES = (
    Rule(
        "changed_but_caption_denies",
        "the answer is yes, and the caption says that nothing changed",
        lambda chip: chip.changed is True and chip.denies,
    ),
    Rule(
        "unchanged_but_caption_asserts",
        "the answer is no, and the caption describes a change",
        lambda chip: chip.changed is False and chip.asserts,
    ),
    Rule(
        "unchanged_but_counted",
        "the answer is no, and new buildings or roads are counted",
        lambda chip: chip.changed is False and chip.is_counted,
    ),
    Rule(
        "unchanged_but_cells",
        "the answer is no, and cells with changes are named",
        lambda chip: chip.changed is False and chip.has_cells,
    ),
    Rule(
        "counted_but_caption_denies",
        "new buildings or roads are counted, and the caption says that nothing changed",
        lambda chip: chip.is_counted and chip.denies,
    ),
    Rule(
        "cells_but_caption_denies",
        "cells with changes are named, and the caption says that nothing changed",
        lambda chip: chip.has_cells and chip.denies,
    ),
    Rule(
        "buildings_counted_without_cell",
        "new buildings are counted, and no cell with buildings is named",
        lambda chip: _counted_without_cell(chip, "building"),
    ),
    Rule(
        "roads_counted_without_cell",
        "new roads are counted, and no cell with roads is named",
        lambda chip: _counted_without_cell(chip, "road"),
    ),
    Rule(
        "building_cells_without_count",
        "cells with buildings are named, none is counted, and the caption says of none that it is gone",
        lambda chip: _cell_without_count(chip, "building"),
    ),
    Rule(
        "road_cells_without_count",
        "cells with roads are named, none is counted, and the caption says of none that it is gone",
        lambda chip: _cell_without_count(chip, "road"),
    ),
    Rule(
        "buildings_in_caption_not_counted",
        "the caption says that buildings are built, and their count is 0",
        lambda chip: _built_but_not_counted(chip, "building"),
    ),
    Rule(
        "roads_in_caption_not_counted",
        "the caption says that roads are built, and their count is 0",
        lambda chip: _built_but_not_counted(chip, "road"),
    ),
    Rule(
        "buildings_in_caption_miscounted",
        "the caption states a number of new buildings, in words too, that the count is not",
        lambda chip: _miscounted(chip, "building"),
    ),
    Rule(
        "roads_in_caption_miscounted",
        "the caption states a number of new roads, in words too, that the count is not",
        lambda chip: _miscounted(chip, "road"),
    ),
    Rule(
        UNCHANGED_BUT_MASK,
        "the answer is no, and the mask shows changed ground",
        lambda chip: chip.changed is False and chip.has_mask is True,
    ),
    Rule(
        CHANGED_WITHOUT_MASK,
        "the answer is yes, and the mask shows no changed ground",
        lambda chip: chip.changed is True and chip.has_mask is False,
    ),
)
"""All rules, in the order of the column `conflicts`."""


def find_conflicts(chip: ChipStatements) -> list[str]:
    """Names of the rules that a chip breaks, in the order of `RULES`."""
    return [rule.name for rule in RULES if rule.is_broken(chip)]


def statements_of(result: ChipResult, mask_threshold: float) -> ChipStatements:
    """Statements of a chip's answers, and of its mask at this threshold.

    The answers of a chip that was only asked whether it changed (`cascaded`) are filled in, so they are no
    statements of the model.
    """
    has_mask = None if result.mask_score is None else result.mask_score >= mask_threshold
    if result.status == "cascaded":
        return ChipStatements(changed=result.changed, has_mask=has_mask)
    caption, counts, cells = (
        None if answer is None else answer.value
        for answer in (result.of_task(task) for task in ("caption", "count", "location"))
    )
    return ChipStatements(
        changed=result.changed, caption=caption, counts=counts, cells=cells, has_mask=has_mask
    )


def judge_row(
    row: Mapping[str, Any], *, threshold: float | None = None, has_masks: bool = False
) -> tuple[bool | None, list[str]]:
    """`changed` and `conflicts` of a row of the layer `chips`, from its other columns.

    Args:
        row: values by column, lists as lists; a column may be missing.
        threshold: lowest score of a changed chip; None, or a row without a score: as the row says.
        has_masks: the run kept masks. What a mask shows is then known from `changed` and the mask rules that
            the row breaks.
    """
    stored, score = row.get("changed"), row.get("changed_score")
    stored = None if stored is None else bool(stored)
    changed = stored
    if threshold is not None and isinstance(score, int | float) and math.isfinite(score):
        changed = score >= threshold
    has_mask = None
    if has_masks and stored is not None:
        broken = row.get("conflicts") or ()
        has_mask = UNCHANGED_BUT_MASK in broken or (stored and CHANGED_WITHOUT_MASK not in broken)
    if row.get("status") == "cascaded":
        return changed, find_conflicts(ChipStatements(changed=changed, has_mask=has_mask))
    caption = row.get("caption")
    counts = [int(each) for each in (row.get("new_roads"), row.get("new_buildings")) if _is_number(each)]
    cells = [
        tuple(each) for each in (row.get("road_cells"), row.get("building_cells")) if isinstance(each, list)
    ]
    statements = ChipStatements(
        changed=changed,
        caption=caption if isinstance(caption, str) else None,
        counts=Counts(*counts) if len(counts) == 2 else None,
        cells=Cells(*cells) if len(cells) == 2 else None,
        has_mask=has_mask,
    )
    return changed, find_conflicts(statements)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
