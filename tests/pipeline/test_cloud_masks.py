"""Cloud masks on their way through a run: column, polygons, lists, and runs that resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.errors import ConfigError, InputError, OutputError
from deltavlm.geo.pair import ReadOptions
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.pair_lists import parse_pairs
from tests.conftest import CHIP, Scene
from tests.jobs import interrupted_after, job_into, run_job
from tests.pairs import layer
from tests.rasters import write_raster
from tests.scripted_model import ScriptedModel

ROWS, COLS = 96, 160


def write_scl(path: Path) -> Path:
    """Scene classification: a cloud over the first chip, and over half of the second."""
    classes = np.full((1, ROWS, COLS), 4, np.uint8)
    classes[0, :CHIP, : CHIP + CHIP // 2] = 9
    return write_raster(path, classes)


@pytest.fixture
def scl(tmp_path: Path) -> Path:
    return write_scl(tmp_path / "scl.tif")


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {str(row["chip_id"]): row for row in read_output(path).rows("chips")}


def test_chips_know_their_clouds_and_a_resumed_run_too(
    scene: Scene, model: ScriptedModel, scl: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.gpkg"
    job = job_into(str(path), scene, read=ReadOptions(after_cloud_mask=str(scl)), batch_size=2)
    with interrupted_after(2, model):
        run_job(job, model)
    run_job(job, model)
    rows = rows_of(path)
    first, second, third = (rows[f"r00000_c{col:05}"] for col in (0, CHIP, 2 * CHIP))
    assert (first["status"], first["valid_fraction"], first["cloud_share"]) == ("nodata", 0, 1)
    assert (second["status"], second["valid_fraction"], second["cloud_share"]) == ("answered", 0.5, 0.5)
    assert (third["valid_fraction"], third["cloud_share"]) == (1, 0)
    inputs: Any = read_output(path).provenance["inputs"]
    assert inputs["before"]["cloud_mask"] is None
    assert inputs["after"]["cloud_mask"]["path"] == str(scl)
    whole = job_into(str(tmp_path / "whole.gpkg"), scene, read=ReadOptions(after_cloud_mask=str(scl)))
    run_job(whole, ScriptedModel())
    assert rows_of(tmp_path / "whole.gpkg") == rows


def test_without_a_mask_the_column_is_null(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    run_job(job_into(str(tmp_path / "out.gpkg"), scene), model)
    assert {row["cloud_share"] for row in rows_of(tmp_path / "out.gpkg").values()} == {None}


def test_a_run_does_not_go_on_with_another_mask(
    scene: Scene, model: ScriptedModel, scl: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "out.gpkg")
    read = ReadOptions(after_cloud_mask=str(scl))
    with interrupted_after(2, model):
        run_job(job_into(path, scene, read=read, batch_size=1), model)
    for other in (
        ReadOptions(),
        ReadOptions(after_cloud_mask=f"{scl}=3"),
        ReadOptions(before_cloud_mask=str(scl)),
    ):
        with pytest.raises(OutputError, match="`resume=False` starts over"):
            run_job(job_into(path, scene, read=other, batch_size=1), ScriptedModel())
    write_raster(scl, np.full((1, ROWS, COLS), 9, np.uint8), compress="deflate")
    with pytest.raises(OutputError, match="`resume=False` starts over"):
        run_job(job_into(path, scene, read=read, batch_size=1), ScriptedModel())


def test_polygons_end_at_clouds(scene: Scene, tmp_path: Path) -> None:
    """The house of the scripted model has 16 x 16 px; the upper half of it is hidden."""
    classes = np.full((1, ROWS, COLS), 4, np.uint8)
    classes[0, 32:40, 64:80] = 9
    mask = write_raster(tmp_path / "scl.tif", classes)
    areas = []
    for name, read in (("clear", ReadOptions()), ("cloudy", ReadOptions(before_cloud_mask=str(mask)))):
        path = tmp_path / f"{name}.gpkg"
        options: Any = {"polygons": True, "changes": ChangeOptions(min_area_m2=0), "overlap_px": 0}
        run_job(job_into(str(path), scene, read=read, **options), ScriptedModel())
        areas.append(sum(row["area_m2"] for row in layer(path, "changes")))
    assert areas[1] == pytest.approx(areas[0] / 2, rel=0.1)


def test_a_list_has_columns_of_masks(scene: Scene, model: ScriptedModel, scl: Path, tmp_path: Path) -> None:
    """Relative paths start at the folder of the list, as those of images do."""
    (tmp_path / "pairs.csv").write_text(
        "id,before,after,before_cloud_mask,after_cloud_mask\n"
        "cloudy,before.tif,after.tif,,scl.tif:scl=cloud\n"
        "clear,before.tif,after.tif,,\n"
    )
    run_job(job_into(str(tmp_path / "out.gpkg"), tmp_path / "pairs.csv"), model)
    shares: dict[Any, set[Any]] = {}
    for row in read_output(tmp_path / "out.gpkg").rows("chips"):
        shares.setdefault(row["pair_id"], set()).add(row["cloud_share"])
    assert shares == {"cloudy": {0, 0.5, 1}, "clear": {None}}


def test_masks_of_a_list_are_not_given_once(scene: Scene, scl: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("before,after\nbefore.tif,after.tif\n")
    with pytest.raises(
        ConfigError, match="a cloud mask is for one pair; a list has the columns before_cloud_mask"
    ):
        job_into("out.gpkg", tmp_path / "pairs.csv", read=ReadOptions(after_cloud_mask=str(scl)))


def test_a_bad_mask_in_a_list_is_told_with_its_line() -> None:
    text = "before,after,after_cloud_mask\nb.tif,a.tif,scl.tif:scl=clouds\n"
    with pytest.raises(InputError, match=r"list, line 2, after_cloud_mask: .* is cloud meant\?"):
        parse_pairs(text, "list", Path())


def test_the_output_is_not_a_mask(scene: Scene, model: ScriptedModel, scl: Path, tmp_path: Path) -> None:
    job = job_into(
        str(tmp_path / "out.gpkg"),
        scene,
        read=ReadOptions(after_cloud_mask=str(scl)),
        mask=scl,
        overwrite=True,
    )
    content = scl.read_bytes()
    with pytest.raises(OutputError, match=r"scl\.tif.*cloud mask"):
        run_job(job, model)
    assert scl.read_bytes() == content


def test_a_kind_of_warning_is_not_repeated(
    tmp_path: Path, model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers and paths in a warning made each pair of a list a kind of its own."""
    lines = ["before,after"]
    for number in range(3):
        for date in ("b", "a"):
            pixels = np.full((3, 32, 32), 10 * number + 5000 + (date == "a"), np.uint16)
            write_raster(tmp_path / f"{date}{number}.tif", pixels, photometric="RGB")
        lines.append(f"b{number}.tif,a{number}.tif")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    run_job(job_into(str(tmp_path / "out.gpkg"), tmp_path / "pairs.csv"), model)
    warnings = [each.getMessage() for each in caplog.records if "check the file" in each.getMessage()]
    assert sum("not repeated" in warning for warning in warnings) == 2  # of before, and of after
