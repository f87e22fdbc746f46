"""`deltavlm stac` on an output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_line
from tests.rasters import noise, write_raster

DATES = ("--before-date", "2015", "--after-date", "2024")


@pytest.fixture
def out(run: Run, tmp_path: Path) -> Path:
    before, after = (write_raster(tmp_path / f"{name}.tif", noise(3, 96, 160)) for name in "ab")
    path = tmp_path / "out.geojson"
    assert run("analyze", before, after, "-o", path, "--chip-size", 32).exit_code == 0
    return path


def test_items_link_to_each_other(run: Run, out: Path, tmp_path: Path) -> None:
    result = run("stac", out, *DATES, "--asset", f"image={tmp_path / 'b.tif'}", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    item, model = (json.loads(Path(summary[name]).read_text(encoding="utf-8")) for name in ("item", "model"))
    assert Path(summary["item"]) == tmp_path / "out.stac.json"
    assert {name: asset["href"] for name, asset in item["assets"].items()} == {
        "changes": "./out.geojson",
        "style": "./out.qml",
        "image": "./b.tif",
    }
    *images, to_model = [link["href"] for link in item["links"]]
    assert images == ["./a.tif", "./b.tif"]
    assert (tmp_path / to_model).resolve() == Path(summary["model"])
    assert model["properties"]["mlm:hyperparameters"]["training_gsd_m"] == 0.5


def test_the_item_of_the_model_is_shared(run: Run, out: Path, tmp_path: Path) -> None:
    args = ("stac", out, *DATES)
    assert run(*args).exit_code == 0
    assert "exists already; add --overwrite" in one_line(run(*args))
    second_run = run(*args, "-o", tmp_path / "other.json")
    assert second_run.exit_code == 0
    assert second_run.stderr.rstrip().endswith("(exists already)")
    assert run(*args, "--overwrite").exit_code == 0


def test_usage_errors_are_one_line(run: Run, out: Path, tmp_path: Path) -> None:
    cases: dict[tuple[object, ...], str] = {
        (out,): "give --before-date",
        (tmp_path / "no.gpkg", *DATES): "no such file",
        (out, *DATES, "-o", out, "--overwrite"): "would be both -o and OUT",
        (out, *DATES, "-o", tmp_path / "item.txt"): "suffix '.txt' is not one of .json, .geojson",
        (out, *DATES, "--asset", "mask=no.tif"): "is not NAME=FILE",
        (tmp_path / "a.tif", *DATES): "is none of",
        (out, *DATES, "-o", "-"): "there are two items",
        (".", *DATES): "is a folder; give an output of deltavlm analyze",
    }
    for args, words in cases.items():
        result = run("stac", *args)
        assert result.exit_code == 2, (args, result.stderr)
        assert words in one_line(result)
    assert not list(tmp_path.glob("*.json"))
