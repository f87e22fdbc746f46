"""Shifts between the dates on their way through a run: columns, warnings, caveats, and runs that resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions
from deltavlm.report.page_data import PageImages, page_data
from deltavlm.summaries.caveats import caveats
from deltavlm.summaries.results import read_results
from deltavlm.summaries.totals import summarize_chips
from tests.jobs import interrupted_after, job_into, run_job
from tests.pairs import layer
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel

SIDE, CHIP = 128, 64
LENGTH = round(float(np.hypot(3, 1)), 2)


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[Path, Path]:
    """Four chips whose ground lies 3 px further right and 1 px further up in `after`; one is flat."""
    ground = noise(3, SIDE + 8, SIDE + 8)
    before, after = ground[:, 4:-4, 4:-4].copy(), ground[:, 5:-3, 1:-7].copy()
    before[:, CHIP:, CHIP:] = after[:, CHIP:, CHIP:] = 99
    return write_raster(tmp_path / "before.tif", before), write_raster(tmp_path / "after.tif", after)


def shifts_of(path: Path) -> list[float | None]:
    return [row["shift_px"] for row in read_output(path).rows("chips")]


def test_chips_have_their_shift_and_a_resumed_run_the_same(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_into(str(tmp_path / "out.gpkg"), shifted, chip_px=CHIP, batch_size=1)
    with interrupted_after(2, model):
        run_job(job, model)
    run_job(job, model)
    assert shifts_of(tmp_path / "out.gpkg") == [LENGTH, LENGTH, LENGTH, None]
    record: Any = read_output(tmp_path / "out.gpkg").provenance["inputs"]["registration"]
    assert (record["dx_px"], record["dy_px"]) == pytest.approx((3, -1), abs=0.05)
    whole = job_into(str(tmp_path / "whole.gpkg"), shifted, chip_px=CHIP, batch_size=1)
    caplog.clear()
    run_job(whole, ScriptedModel())
    assert shifts_of(tmp_path / "whole.gpkg") == shifts_of(tmp_path / "out.gpkg")
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert sum("off before" in warning for warning in warnings) == 1


def test_pairs_have_their_shift(shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path) -> None:
    before, after = shifted
    (tmp_path / "pairs.csv").write_text(f"id,before,after\nmoved,{before},{after}\nequal,{after},{after}\n")
    run_job(job_into(str(tmp_path / "out.gpkg"), tmp_path / "pairs.csv", chip_px=CHIP), model)
    rows = {row["pair_id"]: row for row in layer(tmp_path / "out.gpkg", "pairs")}
    assert rows["moved"]["shift_px"] == pytest.approx(LENGTH, abs=0.01)
    assert rows["equal"]["shift_px"] == 0
    assert "off before" in str(rows["moved"]["notes"])
    assert "off before" not in str(rows["equal"]["notes"])


def test_what_is_made_of_the_output_says_so(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path
) -> None:
    path = tmp_path / "out.gpkg"
    run_job(job_into(str(path), shifted, chip_px=CHIP), model)
    sentence = "The dates lie 3.2 px apart (median of 3 chips"
    results = read_results([path])
    assert any(text.startswith(sentence) for text in caveats(results, summarize_chips(results)))
    report = open_report(path, ImageOptions())
    data = page_data(report.output, report.pairs, PageImages())
    assert dict(data["provenance"])["Shift"].startswith(sentence)
    assert data["chips"]["columns"]["shift"] == [LENGTH, LENGTH, LENGTH, None]
