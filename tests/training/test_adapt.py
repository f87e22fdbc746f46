"""Adaptation without labels: which chips count as unchanged, and the tiles that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.data.synthetic.tiles import GroundTiles
from deltavlm.errors import InputError
from deltavlm.model.interface import Masks
from deltavlm.training.adapt import AdaptChip, change_scores, pick_unchanged, read_summary, write_ground
from tests.scripted_model import ScriptedModel

BRIGHT = 220


class SeesBrightBlocks(ScriptedModel):
    """Model that sees a building where `after` is bright, trees removed everywhere, and, in pictures with a
    dark first date, another building in the upper left of each view."""

    def masks(self, encoded: Any) -> Masks | None:
        shares = np.zeros((len(encoded), 3, 8, 8), np.float32)
        for share, (before, after) in zip(shares, encoded, strict=True):
            is_bright = after.reshape(3, 8, 4, 8, 4).mean(axis=(0, 2, 4)) > 180
            share[1] = np.where(is_bright, 0.9, 0.02)
            if before.mean() < 50:
                share[1, :2, :2] = 0.9
            share[2] = 0.05
            share[0] = 1 - share[1] - share[2]
        return Masks(("none", "building_built", "trees_removed"), shares)


def chip(*, changed: bool = False, level: int = 120) -> AdaptChip:
    """Gray chip of 32 px, with a bright block at the lower left of the second date if it has changed."""
    before = np.full((3, 32, 32), level, np.uint8)
    after = before.copy()
    if changed:
        after[:, 24:, :8] = BRIGHT
    return AdaptChip(before, after, 0.5)


def test_change_that_stays_in_all_views_scores_highest() -> None:
    """A building in one view only, wherever that is turned, counts a quarter of one that turns along."""
    scores = change_scores(SeesBrightBlocks(), [chip(), chip(level=30), chip(changed=True)])
    assert scores[0] == pytest.approx(0.02)
    assert scores[2] == pytest.approx(0.9)
    assert 0.1 < scores[1] < 0.5


def test_at_most_the_lower_half_and_nothing_that_scores_high_is_unchanged() -> None:
    scores = np.array([0.1, 0.7, 0.2, 0.9])
    assert pick_unchanged(scores).tolist() == [True, False, True, False]
    assert pick_unchanged(scores + 0.35).tolist() == [True, False, False, False]
    assert not pick_unchanged(np.full(8, 0.6)).any()


def test_unchanged_chips_become_tiles_with_two_dates(tmp_path: Path) -> None:
    chips = [chip(changed=index % 2 == 1, level=100 + index) for index in range(8)]
    chips[7] = AdaptChip(chips[7].before, chips[7].after, None)
    summary = write_ground(tmp_path / "ground", SeesBrightBlocks(), chips, "pairs.csv", seed=0)
    assert summary == {
        "adapted_from": "scripted 0123456789abcdef",
        "adapted_to": "8 chips of pairs.csv, 4 taken as unchanged",
    }
    assert read_summary(tmp_path / "ground") == summary
    tiles = GroundTiles(tmp_path / "ground")
    assert len(tiles.paths) == 8
    assert sorted(path.stem for path in tiles.dated) == ["00000", "00002", "00004", "00006"]
    assert [tiles.read(path).gsd_m for path in tiles.paths] == [0.5] * 7 + [None]
    tile = tiles.read(tmp_path / "ground" / "0.5m" / "00002.png")
    assert (tile.pixels == 102).all()
    assert (tile.after == 102).all()


def test_too_few_chips_a_model_without_masks_and_missing_tiles_are_errors(tmp_path: Path) -> None:
    class Blind(ScriptedModel):
        def masks(self, encoded: Any) -> Masks | None:
            return None

    for model, chips, message in (
        (ScriptedModel(), [], r"pairs\.csv: no full chips of 32 px"),
        (ScriptedModel(), [chip()] * 7, r"pairs\.csv: 7 full chips .* 8 are needed"),
        (Blind(), [chip()] * 8, "scripted has no change masks"),
    ):
        with pytest.raises(InputError, match=message):
            write_ground(tmp_path / "ground", model, chips, "pairs.csv", seed=0)
    assert not (tmp_path / "ground").exists()
    with pytest.raises(InputError, match="holds no tiles to resume with"):
        read_summary(tmp_path / "ground")
