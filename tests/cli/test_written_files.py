"""No command writes a file twice, or a file that it reads, under whatever name: refused before any work."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
import rasterio.shutil
from rasterio.vrt import WarpedVRT

from deltavlm.config import shipped_config
from tests.cli.conftest import ROOT, Run, one_line
from tests.conftest import Scene

SMALL = ("--chip-size", 32)
WRITTEN = {  # flags of analyze that write a file, and a name that each accepts
    "-o": "out.gpkg",
    "--mask": "mask.tif",
    "--probability": "probability.tif",
    "--html": "page.html",
    "--quicklook": "look.png",
    "--metrics": "run.prom",
}
SET = ROOT / "sample_data" / "changechat_mini"
AREA = '{"type": "Polygon", "coordinates": [[[-180, -80], [180, -80], [180, 80], [-180, 80], [-180, -80]]]}'


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def refused(run: Run, *args: object) -> str:
    """The line of a command that ends with exit code 2 before any work; no file is made or changed."""
    before = contents()
    result = run(*args)
    assert result.exit_code == 2, result.stderr
    assert contents() == before
    assert not run.loads
    return one_line(result)


@pytest.fixture
def here(run: Run, scene: Scene) -> Path:
    """Current folder with the inputs of `analyze`."""
    for path in (scene.before, scene.after):
        path.rename(path.name)
    Path("area.geojson").write_text(AREA)
    Path("pairs.csv").write_text("before,after,aoi\nbefore.tif,after.tif,area.geojson\n")
    Path("questions.yaml").write_bytes(shipped_config("questions.yaml").read_bytes())
    Path("defaults.toml").write_text("[analyze]\n")
    return Path()


@pytest.mark.parametrize(("flag", "other"), [*itertools.combinations(WRITTEN, 2)])
def test_two_outputs_of_a_run_are_two_files(run: Run, here: Path, flag: str, other: str) -> None:
    first, second = WRITTEN[flag], WRITTEN[other]
    Path(second).symlink_to(first)  # which gives one file two suffixes
    args = ("before.tif", "after.tif", *SMALL, flag, first, other, second)
    line = refused(run, "analyze", *args, *(() if flag == "-o" else ("-o", "o.gpkg")))
    assert "would be both" in line
    assert second in line or first in line


@pytest.mark.parametrize("flag", WRITTEN)
@pytest.mark.parametrize(
    "name", ["before.tif", "after.tif", "area.geojson", "questions.yaml", "defaults.toml", "pairs.csv"]
)
def test_no_output_of_a_run_is_its_input(run: Run, here: Path, flag: str, name: str) -> None:
    output = WRITTEN[flag]
    if name in ("before.tif", "area.geojson", "defaults.toml"):
        Path(output).symlink_to(name)
    else:
        os.link(name, output)
    pair = (
        ("--pairs", "pairs.csv")
        if name == "pairs.csv"
        else ("before.tif", "after.tif", "--aoi", "area.geojson")
    )
    if name == "pairs.csv" and flag not in ("-o", "--html", "--metrics"):
        return  # those flags are for one pair
    args = (*pair, "-Q", "questions.yaml", "--config", "defaults.toml", "--overwrite", *SMALL)
    line = refused(run, "analyze", *args, flag, output, *(() if flag == "-o" else ("-o", "o.gpkg")))
    assert "would be both" in line or "is not a metrics file" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "out.geojson", "--metrics", "out.qml"), "--metrics and the style of the output"),
        (("-o", "out.gpkg", "--metrics", "out.gpkg.journal.jsonl"), "--metrics and the journal of the run"),
        (("-o", "out.gpkg", "--metrics", "out.gpkg.journal.masks"), "the masks of the journal"),
        (("-o", "out.gpkg", "--metrics", ".out.gpkg.lock"), "the lock of the output"),
        (("-o", "out.gpkg", "--metrics", "out.gpkg-wal"), "out.gpkg-wal next to the output"),
        (("-o", "out.gpkg", "--metrics", "./../here/out.gpkg"), "--metrics and the output"),
        (("-o", "out.geojson", "--polygons", "--metrics", "out.changes.geojson"), "the polygons"),
        (("-o", "out.geojson", "--polygons", "--mask", "m.tif", "--metrics", "out.changes.qml"), "the style"),
    ],
)
def test_files_next_to_the_output_are_its_own(
    run: Run, here: Path, args: tuple[str, ...], words: str
) -> None:
    assert words in refused(run, "analyze", "before.tif", "after.tif", *SMALL, *args)


def test_outputs_in_a_folder_are_no_other_files(run: Run, here: Path) -> None:
    Path("out").mkdir()
    os.link("after.tif", "out/after.mask.tif")
    args = ("analyze", "--pairs", "pairs.csv", "-o", "out/", *SMALL)
    assert "--metrics and an output" in refused(run, *args, "--metrics", "out/after.gpkg")
    line = refused(run, *args, "--mask", "out/", "--overwrite")
    assert "a mask and the later image of pair after" in line or "the later image of pair after" in line


def test_a_cloud_mask_is_not_written(run: Run, here: Path) -> None:
    Path("clouds.tif").write_bytes(Path("before.tif").read_bytes())
    args = ("before.tif", "after.tif", "--after-cloud-mask", "clouds.tif=3", "--overwrite", *SMALL)
    line = refused(run, "analyze", *args, "-o", "o.gpkg", "--mask", "clouds.tif")
    assert "both the mask and the cloud mask of the later image" in line


def test_sources_of_a_vrt_are_not_written(run: Run, here: Path) -> None:
    with rasterio.open("after.tif") as raster, WarpedVRT(raster, height=raster.height) as warped:
        rasterio.shutil.copy(warped, "after.vrt", driver="VRT")
    args = ("before.tif", "after.vrt", "--allow-vrt", "--overwrite", *SMALL, "-o", "o.gpkg")
    before = contents()
    result = run("analyze", *args, "--mask", "after.tif")
    assert result.exit_code == 2
    assert "after.tif: would be both the mask and a file of the images" in result.stderr
    assert contents() == before


def test_files_of_the_model_are_not_written(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    os.link("model/config.json", "o.gpkg")
    args = ("before.tif", "after.tif", "-m", "model", "-o", "o.gpkg", "--overwrite", *SMALL)
    assert "would be both the output and a file of the model" in refused(run, "analyze", *args)


def test_the_log_is_not_the_output(here: Path) -> None:
    """`2>out.geojson`: the shell makes the file, and the output would take its place."""
    command = [sys.executable, "-m", "deltacli", "grid", "before.tif", "-o", "out.geojson", "--overwrite"]
    with Path("out.geojson").open("w") as log:
        code = subprocess.run(command, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    assert code == 2
    assert (
        Path("out.geojson")
        .read_text()
        .endswith("would be both -o and stderr; give one of them another name\n")
    )


def test_no_other_command_writes_what_it_reads(run: Run, here: Path) -> None:
    assert run("analyze", "before.tif", "after.tif", "-o", "out.geojson", *SMALL).exit_code == 0
    run.loads.clear()
    Path("d.toml").write_text("")
    for suffix in ("geojson", "html", "png", "csv", "json", "jsonl"):
        os.link("d.toml", f"d.{suffix}")
        os.link("before.tif", f"b.{suffix}")
        os.link("out.geojson", f"out_.{suffix}")
    os.link("area.geojson", "area.csv")
    config = ("--config", "d.toml", "--overwrite")
    commands: list[tuple[object, ...]] = [
        ("grid", "before.tif", "after.tif", "-o", "b.geojson"),
        ("grid", "file://before.tif", "-o", "b.geojson"),
        ("grid", "before.tif", "--aoi", "area.geojson", "-o", "area.geojson"),
        ("grid", "before.tif", "-o", "d.geojson"),
        ("report", "out.geojson", "-o", "out_.html"),
        ("report", "out.geojson", "--quicklook", "out_.png"),
        ("report", "out.geojson", "--quicklook", "b.png"),
        ("report", "out.geojson", "--before", "before.tif", "-o", "b.html"),
        ("report", "out.geojson", "-o", "d.html"),
        ("summarize", "out.geojson", "-o", "out_.csv"),
        ("summarize", "out.geojson", "--by", "area.geojson", "-o", "area.csv"),
        ("summarize", "out.geojson", "-o", "d.csv"),
        ("stac", "out.geojson", "-o", "out_.json"),
        ("stac", "out.geojson", "--asset", "area=area.geojson", "-o", "area.geojson"),
        ("stac", "out.geojson", "-o", "d.json"),
        ("chat", "before.tif", "after.tif", "--save", "b.jsonl"),
        ("chat", "before.tif", "after.tif", "--save", "d.jsonl"),
        ("ask", "before.tif", "after.tif", "How?", "--all-chips", "-o", "b.geojson"),
        ("ask", "before.tif", "after.tif", "How?", "--all-chips", "-o", "d.geojson"),
    ]
    for command in commands:
        assert "would be both" in refused(run, *command, *config), command


def test_reports_of_data_sets_are_no_files_of_the_set(run: Run, here: Path) -> None:
    Path("set").mkdir()
    Path("set/synthetic_test.json").write_bytes((SET / "synthetic_test.json").read_bytes())
    Path("answers.json").write_text("[]")
    args = ("eval", "set", "--predictions", "answers.json", "--overwrite", "-o")
    assert "both the report and DATA" in refused(run, *args, "set/synthetic_test.json")
    assert "both the report and --predictions" in refused(run, *args, "answers.json")
    Path("built").mkdir()
    os.link("answers.json", "built/built_test_count.json")
    images = SET / "images"
    line = refused(run, "data", "build", images, images, "answers.json", "--overwrite")
    assert "both -o and CAPTIONS" in line
    Path("scenes").mkdir()
    os.link("defaults.toml", "scenes/truth.json")
    os.link("defaults.toml", "scenes/synthetic_test.json")
    for command in ("scene", "chips"):
        line = refused(run, "synth", command, "scenes", "--overwrite", "--config", "defaults.toml")
        assert "both FOLDER and --config" in line
