"""Shifts between the dates on their way through a run: columns, warnings, caveats, and runs that resume."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.errors import InputError, OutputError
from deltavlm.geo.geobox import Window
from deltavlm.geo.pair import ReadOptions
from deltavlm.geo.registration import Registration, Shift
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions, open_images
from deltavlm.report.page_data import PageImages, page_data
from deltavlm.report.pairs import build_pairs
from deltavlm.summaries.caveats import caveats
from deltavlm.summaries.results import read_results
from deltavlm.summaries.totals import summarize_chips
from tests.jobs import interrupted_after, job_into, run_job, with_output
from tests.pairs import layer
from tests.rasters import noise, read_pixels, write_raster
from tests.scripted_model import ScriptedModel

SIDE, CHIP = 128, 64
LENGTH = pytest.approx(float(np.hypot(3, 1)), abs=0.05)


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


def test_a_shift_that_cannot_be_measured_is_told_once(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path
) -> None:
    """Flat ground: nobody said that a misregistration would not be seen."""
    told = "the shift between the dates cannot be measured in any chip"
    flat = tuple(
        write_raster(tmp_path / f"{name}.tif", np.full((3, SIDE, SIDE), 90, np.uint8)) for name in ("b", "a")
    )
    (tmp_path / "pairs.csv").write_text(
        f"id,before,after\none,{flat[0]},{flat[1]}\ntwo,{flat[1]},{flat[0]}\n"
    )
    for number, (pairs, count) in enumerate(((flat, 1), (tmp_path / "pairs.csv", 1), (shifted, 0))):
        notes: list[str] = []
        path = tmp_path / f"{number}.gpkg"
        run_job(job_into(str(path), pairs, chip_px=CHIP), model, notes)  # type: ignore[arg-type]
        assert sum(note.startswith(told) for note in notes) == count
        results = read_results([path])
        sentences = caveats(results, summarize_chips(results))
        assert sum("is not known in any chip" in sentence for sentence in sentences) == count


def test_pairs_have_their_shift(shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path) -> None:
    before, after = shifted
    (tmp_path / "pairs.csv").write_text(f"id,before,after\nmoved,{before},{after}\nequal,{after},{after}\n")
    run_job(job_into(str(tmp_path / "out.gpkg"), tmp_path / "pairs.csv", chip_px=CHIP), model)
    rows = {row["pair_id"]: row for row in layer(tmp_path / "out.gpkg", "pairs")}
    assert rows["moved"]["shift_px"] == LENGTH
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


def test_a_registered_run_reports_what_remains(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path
) -> None:
    """The shift of the pair is that before the correction; the report shows what the model saw."""
    path, read = tmp_path / "out.gpkg", ReadOptions(register=True)
    job = job_into(str(path), shifted, read=read, chip_px=CHIP, batch_size=1)
    with interrupted_after(2, model):
        run_job(job, model)
    notes: list[str] = []
    run_job(job, model, notes)
    assert any(note.startswith("after: moved by 3.2 px (1.6 m)") for note in notes)
    rows = read_output(path).rows("chips")
    assert [row["shift_px"] for row in rows] == [pytest.approx(0, abs=0.1)] * 3 + [None]
    assert [row["valid_fraction"] for row in rows] == pytest.approx(
        [63 / 64, 60 / 64 * 63 / 64, 1, 60 / 64], abs=0.02
    )
    record: Any = read_output(path).provenance["inputs"]["registration"]
    assert record["corrected"]
    assert record["shift_px"] == LENGTH

    (pair,) = build_pairs(read_output(path))
    with open_images(pair, ImageOptions(), tmp_path) as images:
        before, after = (np.asarray(image.convert("RGB")) for image in images.crop(Window(8, 8, 48, 48), 48))
        small = [np.asarray(image.convert("L"), float) for image in images.overview(SIDE // 2)]
    assert np.abs(before.astype(int) - after).mean() < 10
    assert np.corrcoef(small[0][4:-4, 4:-4].ravel(), small[1][4:-4, 4:-4].ravel())[0, 1] > 0.9


def test_a_registered_run_does_not_resume_with_another_shift(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chips of one output must not lie on two grids."""
    job = job_into(
        str(tmp_path / "out.gpkg"), shifted, read=ReadOptions(register=True), chip_px=CHIP, batch_size=1
    )
    with interrupted_after(2, model):
        run_job(job, model)
    other = Registration(Shift(2.5, -1.0), 1, 1, corrected=True)
    monkeypatch.setattr(Registration, "of", lambda *_, **__: other)
    with pytest.raises(OutputError, match=r"other settings .*registration"):
        run_job(job, model)
    unregistered = with_output(job, ReadOptions())
    with pytest.raises(OutputError, match="register"):
        run_job(unregistered, model)


def test_an_output_with_a_shift_that_cannot_be_is_refused(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path
) -> None:
    run_job(
        job_into(str(tmp_path / "out.geojson"), shifted, read=ReadOptions(register=True), chip_px=CHIP), model
    )
    text = (tmp_path / "out.geojson").read_text()
    edited = re.sub(r'"dx_px": ?[-.\d]+', '"dx_px": 1e6', text)
    assert edited != text
    (tmp_path / "out.geojson").write_text(edited)
    with pytest.raises(InputError, match="correction by"):
        build_pairs(read_output(tmp_path / "out.geojson"))


def test_a_report_shows_matched_colors(
    shifted: tuple[Path, Path], model: ScriptedModel, tmp_path: Path
) -> None:
    before, after = shifted
    write_raster(after, (read_pixels(before) * 0.5 + 40).astype(np.uint8))
    path = tmp_path / "out.gpkg"
    run_job(job_into(str(path), shifted, read=ReadOptions(match="histogram"), chip_px=CHIP), model)
    (pair,) = build_pairs(read_output(path))
    with open_images(pair, ImageOptions(), tmp_path) as images:
        shown = [np.asarray(image.convert("RGB"), int) for image in images.crop(Window(0, 0, 60, 60), 60)]
    assert np.abs(shown[0] - shown[1]).mean() < 4
