"""`deltavlm synth`: files that it writes, and errors for invalid input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from deltavlm.geo.geotiff import write_geotiff
from tests.cli.conftest import ROOT, Run, one_line


def test_chips(run: Run, tmp_path: Path) -> None:
    done = run("synth", "chips", str(tmp_path / "set"), "-n", "2", "--size", "64", "--split", "train")
    assert done.exit_code == 0
    assert len(list((tmp_path / "set/images/train/A").glob("*.png"))) == 2
    assert json.loads((tmp_path / "set/synthetic_train.json").read_text())
    again = run("synth", "chips", str(tmp_path / "set"), "-n", "2", "--size", "64", "--split", "train")
    assert again.exit_code == 2
    assert "exists" in one_line(again)


def test_a_scene_is_a_georeferenced_pair_with_ground_truth(run: Run, tmp_path: Path) -> None:
    args = ["--width", "300", "--height", "256", "--seed", "3", "--change", "1", "--gsd", "0.25"]
    args += ["--crs", "EPSG:32618", "--origin", "300000,4500000"]
    assert run("synth", "scene", str(tmp_path), *args).exit_code == 0
    with rasterio.open(tmp_path / "before.tif") as before, rasterio.open(tmp_path / "after.tif") as after:
        assert before.crs == after.crs == "EPSG:32618"
        assert before.transform == after.transform
        assert (before.width, before.height, before.res) == (300, 256, (0.25, 0.25))
        assert before.transform * (0, 0) == (300000, 4500000)
        first = before.read()
    with rasterio.open(tmp_path / "truth.tif") as truth:
        codes = truth.read(1)
        assert truth.colormap(1)[1][:3] == (228, 26, 28)
    told = json.loads((tmp_path / "truth.json").read_text())
    assert set(told["chips"]) == {"r00000_c00000", "r00000_c00044"}
    assert any(chip["changed"] for chip in told["chips"].values()) == bool((codes > 0).any())
    assert run("synth", "scene", str(tmp_path), *args, "--overwrite", "-q").exit_code == 0
    with rasterio.open(tmp_path / "before.tif") as before:
        assert np.array_equal(before.read(), first)


def test_scenes_on_tiles(run: Run, tmp_path: Path) -> None:
    """A scene on a GeoTIFF has its CRS and a transform of its pixel grid; a bad folder is one line."""
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    pixels = np.random.default_rng(0).normal((110, 130, 80), 6, (140, 150, 3)).clip(0, 255).astype(np.uint8)
    transform = Affine(0.5, 0, 300000, 0, -0.5, 4500000)
    write_geotiff(tiles / "a.tif", pixels, transform=transform, crs="EPSG:32618")
    size = ["--width", "96", "--height", "80", "--ground", str(tiles)]
    assert run("synth", "scene", str(tmp_path / "pair"), *size, "--change", "1").exit_code == 0
    with rasterio.open(tmp_path / "pair" / "after.tif") as after:
        assert (after.crs, after.res) == ("EPSG:32618", (0.5, 0.5))
        col, row = ~transform * (after.transform.c, after.transform.f)
        assert (col, row) == (round(col), round(row))
        assert 16 <= col <= 150 - 96 - 16
        assert 16 <= row <= 140 - 80 - 16
    assert json.loads((tmp_path / "pair" / "truth.json").read_text())["crs"] == "EPSG:32618"
    refused = run("synth", "scene", str(tmp_path / "other"), *size, "--crs", "EPSG:32633")
    assert refused.exit_code == 2
    assert "have their own georeference" in one_line(refused)
    chips = ["-n", "2", "--size", "64", "--ground"]
    assert run("synth", "chips", str(tmp_path / "set"), *chips, str(tiles)).exit_code == 0
    assert len(list((tmp_path / "set/images/test/A").glob("*.png"))) == 2
    failed = run("synth", "chips", str(tmp_path / "none"), *chips, str(tmp_path / "missing"))
    assert failed.exit_code == 2
    assert "is not a folder; give a folder of image tiles" in one_line(failed)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--origin", "here"], "expected X,Y"),
        (["--origin", "1,2,3"], "expected X,Y"),
        (["--origin", "nan,inf"], "expected X,Y"),
        (["--crs", "EPSG:4326"], "not projected in meters"),
        (["--crs", "banana"], "unknown CRS"),
        (["--width", "9000"], "9000"),
    ],
)
def test_invalid_scene_options(run: Run, tmp_path: Path, args: list[str], words: str) -> None:
    done = run("synth", "scene", str(tmp_path / "new"), *args)
    assert done.exit_code == 2
    assert words in one_line(done)
    assert not (tmp_path / "new").exists()


def test_the_shared_flags_after_the_command(run: Run, tmp_path: Path) -> None:
    Path("c.toml").write_text("[synth.chips]\ncount = 1\n[synth.scene]\nwidth = 256\n")
    shared = ["--json", "-v", "--no-progress", "--color", "always", "--config", "c.toml"]
    done = run("synth", "chips", "set", "--size", "64", *shared)
    assert done.stderr == "1 pair in set\n"
    written = json.loads(done.stdout)
    assert (written["folder"], written["split"], written["pairs"]) == ("set", "test", 1)
    assert written["files"] == sorted(map(str, Path("set").glob("*.json")))
    done = run("synth", "scene", "one", "--height", "256", *shared)
    assert done.stderr == "256 x 256 px, 1 chip in one\n"
    written = json.loads(done.stdout)
    assert (written["width"], written["height"], written["chips"]) == (256, 256, 1)
    assert sorted(written["files"]) == sorted(map(str, Path("one").iterdir()))
    assert run("synth", "scene", "one", "--overwrite", "-q", *shared[2:]).output == ""


def test_a_split_joins_the_others_and_replaces_itself(run: Run) -> None:
    small = ["synth", "chips", "set", "-n", "1", "--size", "64", "--split"]
    for split in ("train", "val"):
        assert run(*small, split).exit_code == 0
    Path("set/mine.txt").write_text("kept")
    before = Path("set/images/val/A/val_0.png").read_bytes()
    assert run(*small, "val", "--seed", "7", "--overwrite").exit_code == 0
    assert Path("set/images/val/A/val_0.png").read_bytes() != before
    assert sorted(path.name for path in Path("set").glob("*_???*.json"))[0] == "synthetic_train.json"
    assert sorted(path.name for path in Path("set/images").iterdir()) == ["train", "val"]
    assert Path("set/mine.txt").exists()
    assert not list(Path("set").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("into", ["new/below", "here"])
@pytest.mark.parametrize(
    ("args", "name", "code"),
    [
        (["chips", "-n", "1000000", "--size", "64"], "SIGTERM", 143),
        (["scene", "--width", "2048", "--height", "2048"], "SIGINT", 130),
    ],
)
def test_a_signal_leaves_nothing_behind(
    tmp_path: Path, into: str, args: list[str], name: str, code: int
) -> None:
    """A signal once left half of `images/`, or an empty folder."""
    (tmp_path / "here").mkdir()
    there = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-m", "deltacli", "synth", *args, str(tmp_path / into)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while sorted(tmp_path.rglob("*")) == there:  # until it writes
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said.splitlines()[-1]) == (code, f"Error: stopped by {name}")
    assert sorted(tmp_path.rglob("*")) == there


def test_a_folder_that_cannot_be_created(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for kind in ("chips", "scene"):
        done = run("synth", kind, str(tmp_path / "file" / "below"))
        assert done.exit_code == 2
        assert "cannot write into" in one_line(done)


def test_jpeg_is_small(run: Run, tmp_path: Path) -> None:
    sizes = []
    for compress in ("deflate", "jpeg"):
        run(
            "synth",
            "scene",
            str(tmp_path / compress),
            "--width",
            "256",
            "--height",
            "256",
            "--compress",
            compress,
        )
        sizes.append((tmp_path / compress / "after.tif").stat().st_size)
    assert sizes[1] < sizes[0] / 2


def test_chips_as_jpeg(run: Run) -> None:
    """The paths in the files are those of the images; labels stay lossless."""
    for compress in ("png", "jpeg"):
        done = run("synth", "chips", compress, "-n", "1", "--size", "64", "--compress", compress)
        assert done.exit_code == 0
    record = json.loads(Path("jpeg/synthetic_test.json").read_text())[0]
    assert (record["image_A"], record["image_B"]) == ("test/A/test_0.jpg", "test/B/test_0.jpg")
    small, large = (Path(kind, "images/test/A") for kind in ("jpeg", "png"))
    assert (small / "test_0.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert (small / "test_0.jpg").stat().st_size < (large / "test_0.png").stat().st_size / 2
    labels = [Path(kind, "images/test/label/test_0.png").read_bytes() for kind in ("jpeg", "png")]
    assert labels[0] == labels[1]
