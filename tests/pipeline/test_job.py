"""Job of a run: options that contradict each other are refused, and others follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import ConfigError
from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions, OutputOptions
from deltavlm.pipeline.pairs import Pair, PairList
from tests.jobs import QUESTIONS

SINGLE = PairList.single("before.tif", "after.tif")
LISTED = PairList((Pair("a", "before.tif", "after.tif"), Pair("b", "before.tif", "after.tif")), "list.csv")


def job_of(pairs: PairList, **output: Any) -> AnalyzeJob:
    return AnalyzeJob(pairs=pairs, questions=QUESTIONS, output=OutputOptions(**output))


@pytest.mark.parametrize(
    ("pairs", "output", "message"),
    [
        (SINGLE, {"path": Path("o.gpkg"), "layer": "changes"}, "without `polygons`"),
        (SINGLE, {"path": Path("o.gpkg"), "layer": "pairs"}, "is for many pairs"),
        (LISTED, {"path": Path("o"), "per_pair": True, "layer": "pairs"}, "is for one output"),
        (SINGLE, {"polygons": True}, "need a file"),
        (LISTED, {"probability": Path("p.tif")}, "need a file"),
        (LISTED, {"path": Path("o.gpkg"), "mask": Path("m.tif")}, r"`mask=m\.tif`: many pairs"),
        (LISTED, {"path": Path("o.gpkg"), "probability": Path("p")}, "`probability=p`: many pairs"),
    ],
)
def test_contradictions_are_refused(pairs: PairList, output: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job_of(pairs, **output)


def test_a_cascade_needs_the_yes_no_question() -> None:
    without = tuple(question for question in QUESTIONS if question.task != "change")
    options = AnalyzeOptions(cascade=True)
    assert AnalyzeJob(pairs=SINGLE, questions=QUESTIONS, options=options).asks_change
    with pytest.raises(ConfigError, match="`cascade=True` needs the yes/no question"):
        AnalyzeJob(pairs=SINGLE, questions=without, options=options)


def test_masks_are_stored_only_where_an_output_needs_them() -> None:
    path = Path("o.gpkg")
    assert not job_of(SINGLE, path=path).options.masks
    for output in ({"polygons": True}, {"mask": Path("m.tif")}, {"probability": Path("p.tif")}):
        job = job_of(SINGLE, path=path, **output)
        assert job.options.masks
        assert {"changes"} <= set(job.change_record()) <= {"changes", "probability"}
        assert not replace(job, output=OutputOptions(path=path)).options.masks
    assert job_of(SINGLE, path=path).change_record() == {}


def test_chips_whose_masks_are_blended_overlap_by_an_eighth() -> None:
    path = Path("o.gpkg")
    assert job_of(SINGLE, path=path).options.grid == (256, 0)
    blended = job_of(SINGLE, path=path, polygons=True)
    assert blended.options.grid == (256, 32)
    chosen = replace(blended, options=AnalyzeOptions(chip_px=512, overlap_px=0))
    assert chosen.options.grid == (512, 0)
    assert replace(blended, options=AnalyzeOptions(chip_px=512)).options.grid == (512, 64)


def test_the_job_of_a_pair_in_a_folder() -> None:
    job = job_of(LISTED, path=Path("each"), per_pair=True, mask=Path("masks"), probability=Path("shares"))
    assert (job.is_single, job.one_pair_per_output) == (False, True)
    single = job.for_pair(LISTED.pairs[1], Path("each/b.gpkg"), 7)
    assert [pair.id for pair in single.pairs.pairs] == ["b"]
    assert (single.is_single, single.one_pair_per_output) == (False, True)
    assert single.options.limit == 7
    assert single.output.path == Path("each/b.gpkg")
    assert (single.output.mask, single.output.probability) == (
        Path("masks/b.mask.tif"),
        Path("shares/b.probability.tif"),
    )


def test_an_output_is_replaced_on_overwrite_and_on_retry() -> None:
    assert not OutputOptions().may_replace
    assert OutputOptions(overwrite=True).may_replace
    assert OutputOptions(retry_failed=True).may_replace
