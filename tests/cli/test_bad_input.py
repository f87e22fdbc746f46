"""Errors in files and flags: one line on stderr that names the file or flag, exit code 2, no output.

Unwritable locations are made without permissions, because tests may run as root.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from PIL import Image

from tests.cli.conftest import Run, one_line
from tests.conftest import Scene, write_tiled
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel


def refused(run: Run, *args: object, words: tuple[str, ...]) -> None:
    result = run("analyze", *args)
    line = one_line(result)
    assert result.exit_code == 2
    for word in words:
        assert word in line
    assert run.loads == []  # before the model is loaded
    assert not list(Path.cwd().glob("*.gpkg*"))


def test_missing_file(run: Run, scene: Scene) -> None:
    refused(run, scene.before, "nosuch.tif", words=("nosuch.tif", "no such file"))
    refused(run, "nosuch.tif", scene.after, words=("nosuch.tif",))


def test_pipes_are_not_opened(run: Run, scene: Scene, tmp_path: Path) -> None:
    """Opening one waits for somebody to write to it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for args in (
        (pipe, scene.after),
        (*scene.args, "--aoi", pipe),
        (*scene.args, "--questions", pipe),
        (*scene.args, "--config", pipe),
        ("--pairs", pipe, "-o", "out.gpkg"),
    ):
        refused(run, *args, words=("pipe: is a pipe, which is not opened; give a file",))
    for command in ("summarize", "report", "stac"):
        assert "is a pipe, which is not opened" in one_line(run(command, pipe))
    assert "is a pipe, which is not opened" in one_line(run("ask", *scene.args, "-Q", pipe))


def test_a_format_that_cannot_hold_the_result(run: Run, tmp_path: Path) -> None:
    """An image in the CRS of a building site: found out after the run, whose journal fits no other output."""
    site = 'LOCAL_CS["site",UNIT["metre",1]]'
    before, after = (
        write_raster(tmp_path / f"{name}.tif", noise(3) // part, crs=site)
        for name, part in (("before", 1), ("after", 2))
    )
    for options in ((), ("--dry-run",)):
        for output in ("out.geojson", "-"):
            result = run("analyze", before, after, "-o", output, *options)
            assert result.exit_code == 2
            assert result.stderr.splitlines()[-1].endswith("write .gpkg, .fgb or .parquet")
            assert run.loads == []


def test_directory(run: Run, scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    refused(run, folder, scene.after, words=(str(folder),))


def test_text_file(run: Run, scene: Scene, tmp_path: Path) -> None:
    text = tmp_path / "notes.tif"
    text.write_text("this is no raster")
    refused(run, scene.before, text, words=(str(text),))


def test_empty_file(run: Run, scene: Scene, tmp_path: Path) -> None:
    empty = tmp_path / "empty.tif"
    empty.touch()
    refused(run, empty, scene.after, words=(str(empty), "empty"))


def test_a_truncated_header(run: Run, scene: Scene, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tif"
    cut.write_bytes(scene.after.read_bytes()[:50])
    refused(run, scene.before, cut, words=(str(cut),))


def partly_unreadable(run: Run, before: Path, after: Path) -> dict[str, str]:
    """Status by chip of a run in which some chips fail."""
    result = run("analyze", before, after, "-o", "out.gpkg", "--chip-size", 32, "--no-progress")
    assert result.exit_code == 3, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert str(after) in errors[0]
    meta, _, _, columns = pyogrio.raw.read("out.gpkg", layer="chips")
    values = dict(zip(meta["fields"], columns, strict=True))
    return dict(zip(values["chip_id"], values["status"], strict=True))


def test_a_truncated_tiff_has_answers_for_its_readable_chips(
    run: Run, tmp_path: Path, pixels: np.ndarray
) -> None:
    before = write_tiled(tmp_path / "a.tif", pixels)
    after = write_tiled(tmp_path / "b.tif", pixels)
    after.write_bytes(after.read_bytes()[: after.stat().st_size * 2 // 3])
    statuses = partly_unreadable(run, before, after)
    assert len(statuses) == 15
    assert statuses["r00000_c00000"] == "answered"
    assert statuses["r00064_c00128"] == "unreadable"
    assert {*statuses.values()} == {"answered", "unreadable"}


def test_a_corrupted_tile_affects_only_its_chip(run: Run, tmp_path: Path, pixels: np.ndarray) -> None:
    import rasterio

    before = write_tiled(tmp_path / "a.tif", pixels)
    after = write_tiled(tmp_path / "b.tif", pixels, compress="deflate", interleave="pixel")
    with rasterio.open(after) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
        size = int(raster.get_tag_item("BLOCK_SIZE_2_1", "TIFF", bidx=1))
    with after.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    statuses = partly_unreadable(run, before, after)
    assert [name for name, status in statuses.items() if status == "unreadable"] == ["r00032_c00064"]
    result = run("analyze", before, after, "-o", "b.gpkg", "--chip-size", 32, "--on-error", "fail")
    assert result.exit_code == 2
    assert "r00032_c00064" in result.stderr.splitlines()[-1]
    assert not Path("b.gpkg").exists()


@pytest.mark.parametrize("name", ["out.shp", "out", "out.tif", "out.gpgk"])
def test_wrong_suffix(run: Run, scene: Scene, name: str) -> None:
    refused(run, *scene.args, "-o", name, words=(name, ".gpkg"))


def test_output_in_a_missing_folder(run: Run, scene: Scene) -> None:
    refused(run, *scene.args, "-o", "no/where/out.gpkg", words=("no/where",))


def test_output_in_a_file_instead_of_a_folder(run: Run, scene: Scene) -> None:
    Path("file").touch()
    refused(run, *scene.args, "-o", "file/out.gpkg", words=("file",))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_unwritable_output(run: Run, scene: Scene) -> None:
    refused(run, *scene.args, "-o", "/proc/self/out.gpkg", words=("/proc/self",))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(run: Run, scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    refused(run, *scene.args, "-o", folder / "out.gpkg", words=("locked",))


def test_output_that_is_a_folder(run: Run, scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "folder.gpkg"
    folder.mkdir()
    refused(run, *scene.args, "-o", folder, words=("folder.gpkg",))


def test_existing_output_is_kept_unless_overwrite(run: Run, scene: Scene) -> None:
    out = Path("out.geojson")
    out.write_text("precious")
    result = run("analyze", *scene.args, "-o", out, "--chip-size", 32)
    assert result.exit_code == 2
    line = one_line(result)
    assert "out.geojson" in line
    assert "--overwrite" in line
    assert out.read_text() == "precious"
    assert run("analyze", *scene.args, "-o", out, "--chip-size", 32, "--overwrite").exit_code == 0
    assert len(pyogrio.raw.read(out)[2]) == 15


def test_a_failed_overwrite_keeps_the_old_output(run: Run, scene: Scene, model: ScriptedModel) -> None:
    out = Path("out.geojson")
    out.write_text("precious")
    model.most = 0
    args = ("-o", out, "--chip-size", 32, "--overwrite", "--on-error", "fail")
    assert run("analyze", *scene.args, *args).exit_code == 1
    assert out.read_text() == "precious"
    assert [path.name for path in Path.cwd().iterdir()] == ["out.geojson"]


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_a_missing_device(run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    """It was a failure during the run (exit code 1), and a dry run did not check."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(run, *scene.args, "--device", "cuda", *flags, words=("no cuda device", "--device cpu"))


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_quantize_without_its_library(
    run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    words = ("bitsandbytes", 'pip install "deltavlm[quantize]"')
    refused(run, *scene.args, "--quantize", "int4", *flags, words=words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--quantize", "int2"], ("--quantize", "int2")),
        (["--devise", "cpu"], ("--devise", "did you mean --device")),
        (["--chipsize", "64"], ("--chipsize", "--chip-size")),
        (["-z"], ("-z",)),
        (["--device", "gpu"], ("--device", "'gpu'", "cpu")),
        (["--device", "cuda:x"], ("--device", "'cuda:x'")),
        (["--chip-size", "3"], ("--chip-size", "3")),
        (["--threads", "100000"], ("--threads must be a whole number from 1 to 1,024, not '100000'",)),
        (["--chip-size", "many"], ("--chip-size must be a whole number from 16 to 8,192, not 'many'",)),
        (["--threshold", "1.5"], ("Error: --threshold must be a number from 0 to 1, not '1.5'",)),
        (["--threshold", "abc"], ("Error: --threshold must be a number from 0 to 1, not 'abc'",)),
        (["--nodata", "white"], ("--nodata must be a number, not 'white'",)),
        (["--overlap", "256"], ("--overlap", "256")),
        (["--overlap", "8", "--stride", "8"], ("--stride", "--overlap")),
        (["--stride", "300"], ("--stride", "300")),
        (["--max-nodata", "2"], ("--max-nodata", "2")),
        (["--batch-size", "0"], ("--batch-size", "'0'")),
        (["--batch-size", "big"], ("--batch-size", "'big'", "auto")),
        (["--limit", "0"], ("--limit must be a whole number of at least 1, not '0'",)),
        (["--bands", "3,2"], ("--bands", "'3,2'")),
        (["--bands", "0,1,2"], ("--bands", "'0,1,2'")),
        (["--after-bands", "r,g,b"], ("--after-bands", "'r,g,b'")),
        (["--bands", "7,8,9"], ("7,8,9",)),
        (["--bbox", "1,2,3"], ("--bbox", "'1,2,3'")),
        (["--bbox", "3,3,1,1"], ("bbox 3,3,1,1", "empty")),
        (["--bbox", "-78.5,22,-76,24"], ("bbox -78.5,22,-76,24",)),  # a leading minus is no flag
        (["--bbox", "1,2,3,4", "--bbox-crs", "EPSG:banana"], ("EPSG:banana",)),
        (["--aoi", "nosuch.geojson"], ("nosuch.geojson",)),
        (["--gsd", "0"], ("--gsd",)),
        (["--gsd", "nan"], ("--gsd",)),
        (["--scale", "loud"], ("loud",)),
        (["--align", "never"], ("--align", "'never'", "strict")),
        (["--on-error", "panic"], ("--on-error", "'panic'", "skip")),
        (["--gdal-config", "CACHE"], ("--gdal-config", "'CACHE'")),
        (["--questions", "nosuch.yaml"], ("nosuch.yaml",)),
        (["--config", "nosuch.toml"], ("nosuch.toml",)),
        (["extra.tif"], ("extra.tif",)),
        (["--before-bands", "1", "--after-bands", "9"], ("after.tif", "9")),
        (["--cloud-mask", "nosuch.tif:scl"], ("nosuch.tif: no such file",)),
        (["--before-cloud-mask", "x.tif:scl=clowd"], ("x.tif:scl=clowd", "'clowd'", "is cloud meant?")),
        (["--after-cloud-mask", "x.tif:slc"], ("x.tif:slc", "'slc' is no kind of mask", "is scl meant?")),
        (["--qa-band", "5"], ("5", "what do its values mean")),
        (["--qa-band", "SCL"], ("before.tif", "no single band named 'SCL'")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(run: Run, scene: Scene, args: list[str], words: tuple[str, ...]) -> None:
    refused(run, *scene.args, *args, words=words)


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_name_that_is_not_utf8(run: Run, scene: Scene) -> None:
    refused(run, os.fsdecode(b"\xff.tif"), scene.after, words=("BEFORE", "rename"))


def test_missing_arguments_and_unknown_commands(run: Run, scene: Scene) -> None:
    refused(run, words=("BEFORE", "--help"))
    refused(run, scene.before, words=("AFTER", "--help"))
    result = run("analyse", *scene.args)
    assert result.exit_code == 2
    assert "'analyze'" in one_line(result)


def test_images_without_a_crs(run: Run, tmp_path: Path, pixels: np.ndarray) -> None:
    pair = [tmp_path / f"{name}.png" for name in "ab"]
    for path in pair:
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    refused(run, *pair, words=("--allow-no-crs",))
    args = ("--allow-no-crs", "-o", "out.geojson", "--chip-size", 32)
    assert run("analyze", *pair, *args).exit_code == 0
