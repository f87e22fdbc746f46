"""Run of a list of pairs, into one output or a folder of outputs, whatever is wrong with some of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest

from deltavlm.errors import ConfigError, InputError, OutputError, PartialFailure
from deltavlm.geo.pair import ReadOptions
from deltavlm.model.kinds import ModelSpec
from deltavlm.pipeline.plan import plan_run
from tests.conftest import Scene
from tests.jobs import interrupted_after, job_into, run_job
from tests.pairs import features, layer, write_pairs
from tests.rasters import UTM, moved, write_raster
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")

NO_CRS = ReadOptions(allow_no_crs=True)


@pytest.mark.slow
def test_200_pairs_of_which_5_cannot_be_opened(
    model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = (7, 50, 93, 133, 199)
    pairs = write_pairs(tmp_path / "data", 200, broken=broken)
    result = run_job(job_into("out.gpkg", pairs), model)
    statuses = [pair.status for pair in result.pairs.values()]
    assert (len(statuses), statuses.count("answered"), statuses.count("failed")) == (200, 195, 5)
    assert [failure.pair.id for failure in result.failures] == [f"p{n}" for n in broken]
    assert "is empty (0 bytes)" in (result.failures[0].failure or "")
    failed = [record for record in caplog.records if "same image" not in record.getMessage()]
    assert [vars(record)["pair"] for record in failed] == [f"p{n}" for n in broken]
    with pytest.raises(PartialFailure, match=r"^5 of 200 pairs failed, the first because: p7: "):
        result.raise_if_partial()
    assert model.batches == [16] * 12 + [3]  # full, though each pair has one chip
    chips = layer("out.gpkg", "chips")
    assert len({row["pair_id"] for row in chips}) == len(chips) == 195
    assert sum(row["changed"] for row in chips) == len([n for n in range(0, 200, 3) if n not in broken])
    assert (chips[1]["pair_id"], chips[1]["before_date"], chips[1]["after_date"]) == (
        "p1",
        "2020",
        "2024-05-02",
    )
    rows = {row["pair_id"]: row for row in layer("out.gpkg", "pairs")}
    assert len(rows) == 200
    assert (rows["p7"]["status"], rows["p7"]["geometry"], rows["p7"]["chips"]) == ("failed", None, 0)
    assert (rows["p9"]["status"], rows["p9"]["changed"], rows["p9"]["chips"]) == ("answered", 1, 1)
    inputs = rows["p9"]["inputs"]  # text or parsed, as GDAL is old or new
    assert (json.loads(inputs) if isinstance(inputs, str) else inputs)["grid"]["crs"] == UTM
    assert rows["p9"]["geometry"].area == pytest.approx(16 * 16)
    assert pyogrio.read_info("out.gpkg", layer="chips")["crs"] == UTM
    cells = layer("out.gpkg", "locations")
    assert {"p0", "p3"} <= {row["pair_id"] for row in cells}
    assert "p1" not in {row["pair_id"] for row in cells}


@pytest.mark.parametrize("suffix", [".fgb", ".parquet", ".geojson", ".geojsonl"])
def test_the_layer_of_pairs_in_every_format(model: ScriptedModel, tmp_path: Path, suffix: str) -> None:
    pairs = write_pairs(tmp_path / "data", 4, broken=[2])
    result = run_job(job_into(f"out{suffix}", pairs, layer="pairs"), model)
    assert [failure.pair.id for failure in result.failures] == ["p2"]
    if suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table("out.parquet")
        assert [shape is None for shape in table["geometry"].to_pylist()] == [False, False, True, False]
        column = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]
        assert column["bbox"] == [500_000, 4_999_984, 500_064, 5_000_000]
        return
    frame = pyogrio.read_dataframe(f"out{suffix}").sort_values("pair_id")
    assert frame["geometry"].isna().tolist() == [False, False, True, False]
    assert frame["status"].tolist() == ["answered", "answered", "failed", "answered"]


def test_an_interrupted_list_keeps_its_batches_and_resumes(
    model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_pairs(tmp_path / "data", 6, chips=2)
    notes: list[str] = []
    with interrupted_after(2, model):
        run_job(job_into("out.gpkg", pairs, batch_size=3), model, notes)
    assert notes[-1] == "6 chips kept in out.gpkg.journal.jsonl; the same command resumes"
    with pytest.raises(OutputError, match=r"\(options\.cascade\)"):
        run_job(job_into("out.gpkg", pairs, batch_size=3, cascade=True), model)
    write_raster(tmp_path / "data" / "a1.tif", np.full((3, 32, 64), 9, np.uint8), transform=moved(64, 0))
    pairs.write_text(pairs.read_text().replace("p0,", "pnew,"))
    result = run_job(job_into("out.gpkg", pairs, batch_size=3), model)
    assert not result.failures
    assert "pair p1: its files have changed since the interrupted run" in caplog.text
    assert result.summary.resumed == 2  # of p2; p0 is not listed any more
    chips = layer("out.gpkg", "chips")
    assert [row["pair_id"] for row in chips] == [f"p{name}" for name in ("new", 1, 2, 3, 4, 5) for _ in "ab"]
    assert [row["changed"] for row in chips[:4]] == [True, False, True, True]
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg"]


def test_pairs_and_chips_that_failed_are_tried_again(model: ScriptedModel, tmp_path: Path) -> None:
    data = tmp_path / "data"
    pairs = write_pairs(data, 4)
    assert not run_job(job_into("uninterrupted.geojson", pairs), model).failures
    content = (data / "a2.tif").read_bytes()
    (data / "a2.tif").write_bytes(b"no raster")
    model.poison = 255
    job, retry = (job_into("out.geojson", pairs, retry_failed=retry) for retry in (False, True))
    assert run_job(job, model).failures
    with pytest.raises(OutputError, match="exists already"):
        run_job(job, model)
    (data / "a2.tif").write_bytes(content)
    model.batches.clear()
    assert not run_job(retry, model).failures
    assert model.batches == [1]
    assert Path("out.geojson").read_bytes() == Path("uninterrupted.geojson").read_bytes()
    assert not Path("out.geojson.journal.jsonl").exists()
    with pytest.raises(ConfigError, match="there is no journal of a run"):
        run_job(retry, model)


def test_a_pair_with_failed_chips_is_partly_answered(model: ScriptedModel, tmp_path: Path) -> None:
    model.most = 0
    pairs = write_pairs(tmp_path / "data", 2)
    result = run_job(job_into("out.geojson", pairs, layer="pairs"), model)
    with pytest.raises(PartialFailure, match=r"^2 of 2 chips failed, the first because: p0: "):
        result.raise_if_partial()
    assert [row["properties"]["status"] for row in features("out.geojson")] == ["partly"] * 2
    assert [row["properties"]["failed_chips"] for row in features("out.geojson")] == [1, 1]


def test_on_error_fail_stops_at_the_first_pair(model: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 3, broken=[1])
    with pytest.raises(InputError, match="is empty"):
        run_job(job_into("out.gpkg", pairs, on_error="fail"), model)
    assert not Path("out.gpkg").exists()


def write_mixed(folder: Path) -> Path:
    """Write a list of a pair in UTM, one in Web Mercator and one without a CRS."""
    for name, profile in (
        ("utm", {}),
        ("web", {"crs": "EPSG:3857", "transform": moved(0, 0)}),
        ("none", {"crs": None, "transform": None}),
    ):
        write_pairs(folder / name, 1, **profile)
    path = folder / "mixed.csv"
    path.write_text(
        "id,before,after\n" + "".join(f"{d},{d}/b0.tif,{d}/a0.tif\n" for d in ("utm", "web", "none"))
    )
    return path


def test_every_pair_of_a_list_must_have_a_place_in_geojson(model: ScriptedModel, tmp_path: Path) -> None:
    """Only the first was checked, so that rows of the others had no polygon."""
    site = 'LOCAL_CS["a building site",UNIT["metre",1]]'
    write_pairs(tmp_path / "utm", 1)
    write_pairs(tmp_path / "site", 1, crs=site)
    path = tmp_path / "list.csv"
    path.write_text(
        "id,before,after\nlost,no.tif,no.tif\nutm,utm/b0.tif,utm/a0.tif\nsite,site/b0.tif,site/a0.tif\n"
    )
    for name in ("out.geojson", None):
        job = job_into(name, path)
        with pytest.raises(OutputError, match=r"pair site: .*'a building site' does not lead to longitude"):
            run_job(job, model)
        with pytest.raises(OutputError, match="pair site: "):
            plan_run(job, ModelSpec("any", 32, 0.5, has_masks=False, weights_bytes=0))
    assert model.batches == []
    run_job(job_into("out.gpkg", path), model)
    assert model.batches


def test_pairs_of_several_crss_are_written_in_longitude_and_latitude(
    model: ScriptedModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = write_mixed(tmp_path)
    notes: list[str] = []
    assert not run_job(job_into("out.gpkg", pairs, read=NO_CRS), model, notes).failures
    assert any("in longitude and latitude (EPSG:4326)" in note for note in notes)
    assert "1 pair, such as none, cannot be transformed to the CRS of the output" in caplog.text
    assert pyogrio.read_info("out.gpkg", layer="chips")["crs"] == "EPSG:4326"
    utm, web, none = layer("out.gpkg", "chips")
    assert none["geometry"] is None
    assert utm["geometry"].centroid.coords[0] == pytest.approx((3.0001, 45.1534), abs=1e-4)
    assert web["geometry"].centroid.coords[0] == pytest.approx((4.4916, 40.9162), abs=1e-4)
    run_job(job_into("out.ndjson", pairs, read=NO_CRS), model)
    lines = Path("out.ndjson").read_text().splitlines()
    shapes = [json.loads(line)["geometry"] for line in lines]
    assert shapes[2] is None
    assert shapes[0]["coordinates"][0][0] == pytest.approx(utm["geometry"].exterior.coords[0])
    run_job(job_into(None, pairs, read=NO_CRS), model)
    assert capsys.readouterr().out.splitlines() == lines


def test_pairs_without_any_crs_keep_pixel_coordinates(
    model: ScriptedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "data", 2, crs=None, transform=None)
    assert not run_job(job_into("out.geojson", pairs, read=NO_CRS), model).failures
    rows = features("out.geojson")
    assert rows[1]["geometry"]["coordinates"][0][0] == [0, 0]
    run_job(job_into(None, pairs, read=NO_CRS), model)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["geometry"] for line in lines] == [row["geometry"] for row in rows]


def test_a_folder_has_an_output_for_each_pair(
    model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    pairs = write_pairs(data, 4, broken=[2])
    job, notes = job_into("each/", pairs), list[str]()
    result = run_job(job, model)
    assert (len(result.pairs), len(result.failures), result.chips, result.changed) == (4, 1, 3, 2)
    assert "pair p2 failed: " in caplog.text
    assert sorted(path.name for path in Path("each").iterdir()) == ["p0.gpkg", "p1.gpkg", "p3.gpkg"]
    (row,) = layer("each/p3.gpkg", "chips")
    assert (row["pair_id"], row["after_date"], row["changed"]) == ("p3", "2024-05-04", True)
    run_job(job_into("alone.gpkg", (data / "b3.tif", data / "a3.tif")), model)
    (alone,) = layer("alone.gpkg", "chips")
    columns = {*alone} - {"geometry", "before_date", "after_date"}
    assert {key: row[key] for key in columns} == {key: alone[key] for key in columns}
    model.batches.clear()
    caplog.clear()
    result = run_job(job, model, notes)  # only the pair that failed
    assert [failure.pair.id for failure in result.failures] == ["p2"]
    assert any("3 outputs in each already complete" in note for note in notes)
    assert "chips failed in" not in caplog.text
    assert model.batches == []
    write_pairs(data, 4)
    assert not run_job(job, model).failures
    assert model.batches == [1]
    result = run_job(job, model)
    assert (len(result.pairs), result.outputs_skipped, result.chips) == (0, 4, 0)


def test_a_folder_of_outputs_retries_failed_chips_on_request(
    model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_pairs(tmp_path / "data", 2)
    model.most = 0
    assert run_job(job_into("each/", pairs), model).failed == 2
    model.most = None
    result = run_job(job_into("each/", pairs), model)
    assert (result.outputs_skipped, result.failures) == (2, [])
    assert "chips failed in 2 outputs (p0, p1); `retry_failed=True` tries them again" in caplog.text
    assert layer("each/p0.gpkg", "chips")[0]["status"] == "error"
    assert not run_job(job_into("each/", pairs, retry_failed=True), model).failures
    assert layer("each/p0.gpkg", "chips")[0]["status"] == "answered"
    assert sorted(path.name for path in Path("each").iterdir()) == ["p0.gpkg", "p1.gpkg"]


def test_the_limit_counts_chips_of_the_whole_run(model: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 4, chips=2)
    assert not run_job(job_into("out.gpkg", pairs, limit=3), model).failures
    assert model.batches == [3]
    rows = layer("out.gpkg", "pairs")
    assert [(row["pair_id"], row["status"], row["chips"]) for row in rows] == [
        ("p0", "answered", 2),
        ("p1", "partly", 1),
    ]
    assert "the limit" in rows[1]["reason"]
    model.batches.clear()
    assert not run_job(job_into("each/", pairs, limit=3), model).failures
    assert model.batches == [2, 1]


def test_each_pair_has_its_own_area_of_interest(
    model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_pairs(tmp_path / "data", 2, chips=2)
    west = '"POLYGON ((3 45.1, 3.0001 45.1, 3.0001 45.2, 3 45.2, 3 45.1))"'
    text = pairs.read_text().splitlines()
    pairs.write_text(f"{text[0]},aoi\n{text[1]},{west}\n{text[2]},\n")
    assert not run_job(job_into("out.geojson", pairs), model).failures
    names = [(row["properties"]["pair_id"], row["properties"]["chip_id"]) for row in features("out.geojson")]
    assert names == [("p0", "r00000_c00000"), ("p1", "r00000_c00000"), ("p1", "r00000_c00032")]
    pairs.write_text(f"{text[0]},aoi\n{text[2]},{west}\n")
    assert [failure.pair.id for failure in run_job(job_into("no.geojson", pairs), model).failures] == ["p1"]
    assert "area of interest: does not overlap the pair" in caplog.text


def test_a_warning_that_pairs_share_is_logged_once(
    model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.training_gsd_m = 3.0
    run_job(job_into("out.gpkg", write_pairs(tmp_path / "data", 5)), model)
    assert caplog.text.count("the model was trained at 3 m") == 1


def test_an_output_of_a_list_of_one_has_pair_columns(
    scene: Scene, model: ScriptedModel, tmp_path: Path
) -> None:
    run_job(job_into("out.gpkg", write_pairs(tmp_path / "data", 1)), model)
    assert {"pair_id", "before_date", "after_date"} <= set(layer("out.gpkg", "chips")[0])
