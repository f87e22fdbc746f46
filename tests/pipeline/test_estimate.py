"""Estimate of a run from a sample of its chips."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import ModelError
from deltavlm.pipeline import estimate
from deltavlm.pipeline.engine import LocalEngine
from deltavlm.pipeline.estimate import estimate_run
from tests.conftest import CHIP, Scene
from tests.jobs import job_into, run_job
from tests.pairs import write_pairs
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")


class Paced(ScriptedModel):
    """Model that is asked on a clock of its own: each pair takes a second, the first batch nine more."""

    now = 0.0

    def encode(self, before: Any, after: Any, contexts: Any = ()) -> Any:
        self.now += len(before) + (0 if self.batches else 9)
        return super().encode(before, after)


def write_pair(rows: int, cols: int) -> tuple[Path, Path]:
    return tuple(  # type: ignore[return-value]
        write_raster(Path(f"{date}.tif"), noise(rows=rows * CHIP, cols=cols * CHIP, low=low))
        for date, low in (("before", 1), ("after", 5))
    )


def test_the_first_batch_and_the_load_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Paced()
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: model.now)
    job = job_into("out.gpkg", write_pair(20, 20))
    result = estimate_run(job, LocalEngine(model), {"": 400}, load_s=5)
    assert sum(model.batches) == result.sample_chips < 400
    assert result.chips_per_s == pytest.approx(1)
    assert result.seconds == pytest.approx(5 + 9 + 400)
    assert list(Path().glob("out*")) == []


def test_the_sample_is_spread_over_a_single_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = []
    made = estimate._SampleStore

    def keep(*args: Any) -> Any:
        stores.append(made(*args))
        return stores[-1]

    monkeypatch.setattr(estimate, "_SampleStore", keep)
    result = estimate_run(job_into("o.gpkg", write_pair(30, 20)), LocalEngine(ScriptedModel()), {"": 600}, 0)
    rows = {each.chip.row for each in stores[0].results}
    assert result.sample_chips <= 80
    assert min(rows) < 4
    assert max(rows) > 25


def test_sizes_are_those_of_the_run(model: ScriptedModel) -> None:
    for name in ("o.gpkg", "o.geojsonl", "o.fgb"):
        job = job_into(name, write_pair(16, 20))
        expected = estimate_run(job, LocalEngine(model), {"": 320}, 0)
        run_job(job, model)
        assert expected.output_bytes == pytest.approx(Path(name).stat().st_size, rel=0.25)
        assert expected.journal_bytes > 320 * 200


def test_masks_take_space_too(bright: ScriptedModel) -> None:
    job = job_into("o.gpkg", write_pair(8, 8), polygons=True, mask="m.tif", probability="p.tif", overlap_px=0)
    expected = estimate_run(job, LocalEngine(bright), {"": 64}, 0)
    run_job(job, bright)
    size = sum(Path(name).stat().st_size for name in ("o.gpkg", "m.tif", "p.tif"))
    assert 1 / 1.5 < expected.output_bytes / size < 1.5
    assert sorted(path.name for path in Path().glob("*.tif")) == ["after.tif", "before.tif", "m.tif", "p.tif"]


def test_a_limit_and_a_list_of_pairs(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    assert estimate_run(job_into("o.gpkg", scene, limit=4), LocalEngine(model), {"": 15}, 0).chips == 4
    pairs = write_pairs(tmp_path / "data", 3, chips=2, broken=[1])
    result = estimate_run(job_into("o/", pairs), LocalEngine(model), {"p0": 2, "p2": 2}, 0)
    assert (result.chips, result.sample_chips) == (4, 4)


def test_a_model_that_cannot_answer(
    scene: Scene, model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    model.most = 0
    caplog.set_level(logging.WARNING)
    with pytest.raises(ModelError, match="do not fit"):
        estimate_run(job_into("o.gpkg", scene), LocalEngine(replace(model)), {"": 15}, 0)
