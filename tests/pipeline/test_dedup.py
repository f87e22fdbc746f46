"""Identical chips are asked about once, and their results are those that asking again would have given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import ModelError
from deltavlm.model.interface import Reply
from deltavlm.pipeline import dedup
from deltavlm.pipeline.dedup import ResultCache
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.summary import Summary
from tests.conftest import CHIP, Scene, write_tiled
from tests.jobs import journaled, single_job
from tests.rasters import noise
from tests.scripted_model import ScriptedModel

SEA = [(row, col) for row in range(3) for col in (0, 1, 4)]  # chips with one picture


@pytest.fixture
def coast(tmp_path: Path) -> Scene:
    """15 chips; of those in SEA both dates show the same picture, and the same as the others of them."""
    first, second = noise(), 255 - noise()
    for row, col in SEA:
        for pixels in (first, second):
            pixels[:, row * CHIP : (row + 1) * CHIP, col * CHIP : (col + 1) * CHIP] = 77
    return Scene(write_tiled(tmp_path / "before.tif", first), write_tiled(tmp_path / "after.tif", second))


@dataclass
class ByBatch(ScriptedModel):
    """Its scores hang on how many were asked together, as a real model's do in the last digits."""

    def answer(self, encoded: Any, questions: Any, pairs: Any = None) -> list[list[Reply]]:
        rows = super().answer(encoded, questions, pairs)
        return [[replace(one, score=one.score + len(encoded) / 1000) for one in row] for row in rows]


def run(scene: Scene, model: ScriptedModel, path: Path, **options: Any) -> tuple[list[ChipResult], Summary]:
    """The results, and a journal that stays."""
    results, result = journaled(single_job(scene, **({"batch_size": 4} | options)), model, path)
    return results, result.summary


def test_one_of_many_chips_with_a_picture_is_asked(coast: Scene, tmp_path: Path) -> None:
    model = ScriptedModel()
    results, summary = run(coast, model, tmp_path / "journal")
    assert sum(model.batches) == 15 - len(SEA) + 1
    assert summary.deduplicated == len(SEA) - 1
    assert summary.statuses == {"answered": 15}
    for result in results:
        same = (result.chip.row, result.chip.col) in SEA
        assert result.answers["change"].value is not same
        assert result.valid_fraction == 1
    assert len({result.digest for result in results}) == 15 - len(SEA) + 1
    assert model.batches == [4, 3]  # groups are filled with what is to be asked


def test_a_pair_of_equal_pictures_is_asked(tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "same.tif", noise())
    model = ScriptedModel()
    _, summary = run(Scene(path, path), model, tmp_path / "journal")
    assert sum(model.batches) == 15
    assert not summary.deduplicated


@pytest.mark.parametrize(("batch_size", "most"), [(4, dedup.CACHE_SIZE), (1, 2)])
def test_a_run_that_is_gone_on_with_asks_what_an_unbroken_one_asks(
    coast: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, most: int
) -> None:
    """Wherever it was stopped, and also where pictures were forgotten."""
    monkeypatch.setattr(dedup, "CACHE_SIZE", most)
    path = tmp_path / "journal"
    model = ByBatch()
    expected, _ = run(coast, model, path, batch_size=batch_size)
    assert sum(model.batches) == (7 if most > 2 else 10)  # in the end of each row the sea is forgotten
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        results, _ = run(coast, ByBatch(), path, batch_size=batch_size)
        assert results == expected
        assert path.read_bytes() == whole


def test_a_picture_that_fails_fails_wherever_it_is(coast: Scene, tmp_path: Path) -> None:
    model = ScriptedModel(poison=77)
    results, summary = run(coast, model, tmp_path / "journal")
    assert {(one.chip.row, one.chip.col) for one in results if one.status == "error"} == set(SEA)
    assert summary.statuses == {"answered": 15 - len(SEA), "error": len(SEA)}
    with pytest.raises(ModelError, match="cannot be answered"):
        run(coast, ScriptedModel(poison=77), tmp_path / "other", on_error="fail")


def test_only_the_last_pictures_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "CACHE_SIZE", 2)
    cache = ResultCache()
    assert [cache.lookup(digest)[1] for digest in "abacabba"] == [
        *(True, True, False, True),  # c takes the place of b, for a came after it
        *(False, True, False, False),
    ]
