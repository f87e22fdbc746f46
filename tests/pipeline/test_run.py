"""Run of one pair into an output: formats, failed chips, resuming, locks."""

from __future__ import annotations

from pathlib import Path

import pyogrio
import pytest

from deltavlm.errors import ConfigError, ModelError, OutputError, PartialFailure
from deltavlm.files import lock
from tests.conftest import Scene
from tests.jobs import interrupted_after, job_into, run_job
from tests.pairs import features, layer
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".geojsonl", ".ndjson", ".fgb"])
def test_every_format_has_the_chips(scene: Scene, model: ScriptedModel, suffix: str) -> None:
    result = run_job(job_into(f"out{suffix}", scene), model)
    assert (result.chips, result.failed) == (15, 0)
    options = {"layer": "chips"} if suffix == ".gpkg" else {}
    meta, _, geometry, columns = pyogrio.raw.read(f"out{suffix}", **options)
    assert len(geometry) == 15
    values = dict(zip(meta["fields"], columns, strict=True))
    assert [name for name, changed in zip(values["chip_id"], values["changed"], strict=True) if changed] == [
        scene.changed_chip
    ]


def test_parquet_with_the_layer_of_locations(scene: Scene, model: ScriptedModel) -> None:
    import pyarrow.parquet

    run_job(job_into("out.parquet", scene, layer="locations"), model)
    table = pyarrow.parquet.read_table("out.parquet")
    assert sorted(zip(table["class"].to_pylist(), table["cell"].to_pylist(), strict=True)) == [
        ("building", "center-center"),
        ("building", "top-left"),
        ("road", "center-left"),
    ]


def test_a_geopackage_of_one_pair_has_both_layers_and_no_pair_columns(
    scene: Scene, model: ScriptedModel
) -> None:
    run_job(job_into("out.gpkg", scene), model)
    assert {str(name) for name, _ in pyogrio.list_layers("out.gpkg")} == {
        "chips",
        "locations",
        "layer_styles",
    }
    assert "pair_id" not in layer("out.gpkg", "chips")[0]


def test_failed_chips_are_written(scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    result = run_job(job_into("out.geojson", scene), model)
    assert result.failed == 15
    with pytest.raises(PartialFailure, match=r"^15 of 15 chips failed"):
        result.raise_if_partial()
    rows = features("out.geojson")
    assert len(rows) == 15
    assert {row["properties"]["status"] for row in rows} == {"error"}


def test_on_error_fail_leaves_no_output(scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    with pytest.raises(ModelError, match="do not fit"):
        run_job(job_into("out.gpkg", scene, on_error="fail"), model)
    assert not list(Path().iterdir())


def test_failed_chips_are_tried_again(scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    job = job_into("out.geojson", scene, batch_size=2)
    retry = job_into("out.geojson", scene, batch_size=2, retry_failed=True)
    assert run_job(job, model).failed == 15
    model.most = None
    with pytest.raises(OutputError, match="exists already"):
        run_job(job, model)
    assert run_job(retry, model).failed == 0
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["out.geojson", "out.qml"]
    run_job(job_into("uninterrupted.geojson", scene, batch_size=2), model)
    assert Path("out.geojson").read_bytes() == Path("uninterrupted.geojson").read_bytes()
    with pytest.raises(ConfigError, match="there is no journal of a run"):
        run_job(retry, model)


def test_a_truncated_image_that_was_copied_again_is_retried(scene: Scene, model: ScriptedModel) -> None:
    content = scene.after.read_bytes()
    scene.after.write_bytes(content[: len(content) * 2 // 3])
    assert run_job(job_into("out.geojson", scene, batch_size=2), model).failed > 0
    scene.after.write_bytes(content)
    result = run_job(job_into("out.geojson", scene, batch_size=2, retry_failed=True), model)
    assert (result.chips, result.failed) == (15, 0)
    run_job(job_into("uninterrupted.geojson", scene, batch_size=2), model)
    assert Path("out.geojson").read_bytes() == Path("uninterrupted.geojson").read_bytes()


def test_an_interrupted_run_keeps_its_batches_and_resumes(scene: Scene, model: ScriptedModel) -> None:
    job, notes = job_into("out.gpkg", scene, batch_size=2), list[str]()
    with interrupted_after(3, model):
        run_job(job, model, notes)
    assert notes[-1] == "6 chips kept in out.gpkg.journal.jsonl; the same command resumes"
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg.journal.jsonl"]
    model.batches.clear()
    result = run_job(job, model, notes)
    assert "resuming: 6 of 15 chips done" in notes
    assert (result.chips, result.summary.resumed, result.changed) == (15, 6, 1)
    assert sum(model.batches) == 9
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg"]


def test_a_smaller_limit_than_an_interrupted_run_had(
    scene: Scene, model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """It said "resuming: 6 of 4 chips done" and dropped two results without a word."""
    notes: list[str] = []
    with interrupted_after(3, model):
        run_job(job_into("out.geojson", scene, batch_size=2), model)
    result = run_job(job_into("out.geojson", scene, batch_size=2, limit=4), model, notes)
    assert "resuming: 4 of 4 chips done" in notes
    assert "2 results beyond `limit=4` of the interrupted run are discarded" in caplog.text
    assert result.chips == 4


def test_an_output_that_another_run_writes_is_refused(scene: Scene, model: ScriptedModel) -> None:
    with lock(Path("out.gpkg")), pytest.raises(OutputError, match=r"out\.gpkg: another run is writing it"):
        run_job(job_into("out.gpkg", scene), model)
    assert model.batches == []
    assert not list(Path().iterdir())
