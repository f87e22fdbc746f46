"""Plan of a run: pairs are opened and cut into chips, and no model is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltavlm.errors import InputError
from deltavlm.model.kinds import ModelSpec
from deltavlm.pipeline.plan import plan_run
from tests.conftest import Scene
from tests.jobs import job_into
from tests.pairs import write_pairs


def spec(chip_px: int, training_gsd_m: float | None, name: str = "any") -> ModelSpec:
    return ModelSpec(name, chip_px, training_gsd_m, has_masks=False, weights_bytes=0)


def test_the_plan_of_a_single_pair(scene: Scene) -> None:
    (plan,) = plan_run(job_into("out.gpkg", scene, overlap_px=8), spec(32, 0.5))
    assert (plan.chips, plan.rows, plan.cols) == (4 * 7, 4, 7)
    assert (plan.chip_px, plan.overlap_px) == (32, 8)
    assert (plan.crs, plan.overlap_share, plan.reason) == ("EPSG:32631", 1.0, None)
    assert plan.gsd_m == pytest.approx(0.5, rel=0.01)
    assert plan.warnings == ()
    assert plan.inputs["grid"]["crs"] == "EPSG:32631"


def test_a_scale_far_from_the_training_is_a_warning(scene: Scene) -> None:
    (plan,) = plan_run(job_into("out.gpkg", scene), spec(32, 3.0))
    assert plan.warnings == plan.notes[-1:]
    assert plan.warnings[0].startswith("a pixel is 0.5 m, the model was trained at 3 m")
    (plan,) = plan_run(job_into("out.gpkg", scene), spec(16, 0.25))  # chips are resampled to half their size
    assert plan.warnings[0].startswith("a chip of this size has 1 m a pixel, the model was trained at 0.25 m")


def test_the_scale_of_an_evidence_model_is_warned_about_too(scene: Scene) -> None:
    (plan,) = plan_run(job_into("out.gpkg", scene), spec(32, None), spec(32, 5.0, "other"))
    (warning,) = plan.warnings
    assert warning.startswith("a pixel is 0.5 m, the evidence model other was trained at 5 m, 10 times finer")
    assert "counts, cells and classes are left out" in warning


def test_a_pair_of_a_list_that_cannot_be_opened_has_a_reason(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 3, chips=2, broken=[1])
    plans = plan_run(job_into("out.gpkg", pairs), spec(32, 0.5))
    assert [(plan.pair.id, plan.chips) for plan in plans] == [("p0", 2), ("p1", 0), ("p2", 2)]
    assert "is empty" in (plans[1].reason or "")
    assert [plan.reason for plan in (plans[0], plans[2])] == [None, None]


def test_a_single_pair_must_open(scene: Scene) -> None:
    scene.after.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        plan_run(job_into("out.gpkg", scene), spec(32, 0.5))
