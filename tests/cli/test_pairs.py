"""`deltavlm analyze` over many pairs: one output or one each, whatever is wrong with some of them."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest

from deltavlm.geo import pair as geo_pair
from tests.cli.conftest import Run, one_line, program
from tests.conftest import Scene
from tests.pairs import features, layer, write_pairs
from tests.rasters import UTM, moved, write_raster
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32)


@pytest.mark.slow
def test_200_pairs_with_5_broken_ones(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    broken = (7, 50, 93, 133, 199)
    pairs = write_pairs(tmp_path / "data", 200, broken=broken)
    result = run("analyze", "--pairs", pairs, "-o", "out.gpkg", "--json", *SMALL)
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["pairs"], summary["pairs_answered"], summary["pairs_failed"]) == (200, 195, 5)
    assert [failure["pair_id"] for failure in summary["failures"]] == [f"p{n}" for n in broken]
    assert "is empty (0 bytes)" in summary["failures"][0]["reason"]
    assert sum("Warning: pair p" in line for line in result.stderr.splitlines()) == 5
    assert result.stderr.splitlines()[-1].startswith("Error: 5 of 200 pairs failed, the first because: p7: ")
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
def test_the_pairs_alone_in_every_format(run: Run, tmp_path: Path, suffix: str) -> None:
    pairs = write_pairs(tmp_path / "data", 4, broken=[2])
    assert run("analyze", "--pairs", pairs, "-o", f"out{suffix}", "--layer", "pairs", *SMALL).exit_code == 3
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_again_and_again_the_output_is_that_of_an_unbroken_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "data", 9, chips=2, broken=[1, 4])
    args = ("analyze", "--pairs", pairs, *SMALL, "--batch-size", 3)
    assert run(*args, "-o", "whole.geojson").exit_code == 3
    assert run(*args, "-o", "whole_pairs.geojson", "--layer", "pairs").exit_code == 3
    out, journal = tmp_path / "out.geojson", tmp_path / "out.geojson.journal.jsonl"
    rng, kills = random.Random(1), 0

    def groups() -> int:
        return journal.read_text().count('"end"') if journal.exists() else 0

    for _ in range(2):
        process = program(*args, "-o", out, pause=0.3)
        seen = groups()
        while process.poll() is None and groups() == seen:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills == 2
    assert not out.exists()
    assert groups() >= 2  # something was found, and not all
    assert groups() < 5
    opened = []
    open_source = geo_pair.open_source

    def told(path: str, **settings: Any) -> Any:
        opened.append(Path(path).name)
        return open_source(path, **settings)

    monkeypatch.setattr(geo_pair, "open_source", told)
    result = run(*args, "-o", out)
    assert result.exit_code == 3, result.stderr
    assert "resuming: " in result.stderr
    assert "b0.tif" not in opened  # whole in the journal
    assert "b1.tif" not in opened  # known to have failed
    assert "b8.tif" in opened
    assert out.read_bytes() == Path("whole.geojson").read_bytes()
    assert run(*args, "-o", out, "--retry-failed", "--layer", "pairs").exit_code == 3
    assert out.read_bytes() == Path("whole_pairs.geojson").read_bytes()


def test_an_interrupted_run_keeps_whole_groups_and_says_so(
    run: Run, model: ScriptedModel, tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "data", 6, chips=2)
    args = ("analyze", "--pairs", pairs, "-o", "out.gpkg", *SMALL, "--batch-size", 3)
    encode, calls = model.encode, 0

    def failing(before: Any, after: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(before, after)

    model.encode = failing  # type: ignore[method-assign]
    assert "6 chips kept in out.gpkg.journal.jsonl; the same command resumes" in run(*args).stderr
    result = run(*args, "--cascade")
    assert result.exit_code == 2
    assert "(options.cascade)" in result.stderr.splitlines()[-1]
    write_raster(tmp_path / "data" / "a1.tif", np.full((3, 32, 64), 9, np.uint8), transform=moved(64, 0))
    pairs.write_text(pairs.read_text().replace("p0,", "pnew,"))
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert "pair p1: its files have changed since the interrupted run" in result.stderr
    assert json.loads(result.stdout)["earlier"] == 2  # of p2; p0 is not listed any more
    chips = layer("out.gpkg", "chips")
    assert [row["pair_id"] for row in chips] == [f"p{name}" for name in ("new", 1, 2, 3, 4, 5) for _ in "ab"]
    assert [row["changed"] for row in chips[:4]] == [True, False, True, True]
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg"]


def test_what_failed_is_tried_again(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    data = tmp_path / "data"
    pairs = write_pairs(data, 4)
    assert run("analyze", "--pairs", pairs, "-o", "whole.geojson", *SMALL).exit_code == 0
    good = (data / "a2.tif").read_bytes()
    (data / "a2.tif").write_bytes(b"no raster")
    model.poison = 255
    args = ("analyze", "--pairs", pairs, "-o", "out.geojson", *SMALL)
    assert run(*args).exit_code == 3
    assert "exists already" in run(*args).stderr
    (data / "a2.tif").write_bytes(good)
    model.batches.clear()
    result = run(*args, "--retry-failed")
    assert result.exit_code == 0, result.stderr
    assert model.batches == [1]
    assert Path("out.geojson").read_bytes() == Path("whole.geojson").read_bytes()
    assert not Path("out.geojson.journal.jsonl").exists()
    result = run(*args, "--retry-failed")
    assert result.exit_code == 2
    assert "there is no journal of a run" in one_line(result)


def test_chips_that_fail_make_a_pair_partly_answered(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    model.most = 0
    pairs = write_pairs(tmp_path / "data", 2)
    result = run("analyze", "--pairs", pairs, "-o", "out.geojson", "--layer", "pairs", *SMALL)
    assert result.exit_code == 3
    assert "2 of 2 chips failed, the first because: p0: " in result.stderr.splitlines()[-1]
    assert [row["properties"]["status"] for row in features("out.geojson")] == ["partly"] * 2
    assert [row["properties"]["failed_chips"] for row in features("out.geojson")] == [1, 1]


def test_on_error_fail_stops_at_the_first(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 3, broken=[1])
    result = run("analyze", "--pairs", pairs, "-o", "out.gpkg", "--on-error", "fail", *SMALL)
    assert result.exit_code == 2
    assert "is empty" in result.stderr.splitlines()[-1]
    assert not Path("out.gpkg").exists()


def mixed(tmp_path: Path) -> Path:
    """A list of a pair in UTM, one in Web Mercator and one without a CRS."""
    for name, profile in (
        ("utm", {}),
        ("web", {"crs": "EPSG:3857", "transform": moved(0, 0)}),
        ("none", {"crs": None, "transform": None}),
    ):
        write_pairs(tmp_path / name, 1, **profile)
    path = tmp_path / "mixed.csv"
    path.write_text(
        "id,before,after\n" + "".join(f"{d},{d}/b0.tif,{d}/a0.tif\n" for d in ("utm", "web", "none"))
    )
    return path


def test_pairs_of_several_crss_are_in_longitude_and_latitude(run: Run, tmp_path: Path) -> None:
    pairs = mixed(tmp_path)
    result = run("analyze", "--pairs", pairs, "-o", "out.gpkg", "--allow-no-crs", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert "in longitude and latitude (EPSG:4326)" in result.stderr
    assert "1 pair, such as none, cannot be transformed to the CRS of the output" in result.stderr
    assert pyogrio.read_info("out.gpkg", layer="chips")["crs"] == "EPSG:4326"
    utm, web, none = layer("out.gpkg", "chips")
    assert none["geometry"] is None
    assert utm["geometry"].centroid.coords[0] == pytest.approx((3.0001, 45.1534), abs=1e-4)
    assert web["geometry"].centroid.coords[0] == pytest.approx((4.4916, 40.9162), abs=1e-4)
    assert run("analyze", "--pairs", pairs, "-o", "out.ndjson", "--allow-no-crs", *SMALL).exit_code == 0
    lines = Path("out.ndjson").read_text().splitlines()
    shapes = [json.loads(line)["geometry"] for line in lines]
    assert shapes[2] is None
    assert shapes[0]["coordinates"][0][0] == pytest.approx(utm["geometry"].exterior.coords[0])
    stream = run("analyze", "--pairs", pairs, "-o", "-", "--allow-no-crs", *SMALL).stdout.splitlines()
    assert stream == lines


def test_pairs_without_any_crs_keep_their_pixels(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 2, crs=None, transform=None)
    assert run("analyze", "--pairs", pairs, "-o", "out.geojson", "--allow-no-crs", *SMALL).exit_code == 0
    written = features("out.geojson")
    assert written[1]["geometry"]["coordinates"][0][0] == [0, 0]
    stream = run("analyze", "--pairs", pairs, "-o", "-", "--allow-no-crs", *SMALL).stdout.splitlines()
    assert [json.loads(line)["geometry"] for line in stream] == [one["geometry"] for one in written]


def test_a_stream_says_what_a_file_says(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 5, chips=2, broken=[3])
    for more in ((), ("--layer", "pairs"), ("--limit", 5)):
        run("analyze", "--pairs", pairs, "-o", "out.ndjson", "--overwrite", *SMALL, *more)
        result = run("analyze", "--pairs", "-", "-o", "-", *SMALL, *more, input=pairs.read_text())
        assert "b0.tif: no such file" in result.stderr  # what comes from stdin starts in the current folder
        result = run("analyze", "--pairs", pairs, "-o", "-", *SMALL, *more)
        assert result.stdout == Path("out.ndjson").read_text()


def test_each_pair_into_a_folder(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 4, broken=[2])
    args = ("analyze", "--pairs", pairs, "-o", "each/", *SMALL)
    result = run(*args, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["pairs"], summary["pairs_failed"], summary["chips"], summary["changed"]) == (4, 1, 3, 2)
    assert "failed: p2: " in result.stderr
    assert sorted(path.name for path in Path("each").iterdir()) == ["p0.gpkg", "p1.gpkg", "p3.gpkg"]
    (row,) = layer("each/p3.gpkg", "chips")
    assert (row["pair_id"], row["after_date"], row["changed"]) == ("p3", "2024-05-04", True)
    assert run("analyze", tmp_path / "data/b3.tif", tmp_path / "data/a3.tif", "-o", "one.gpkg", *SMALL)
    (alone,) = layer("one.gpkg", "chips")
    assert {key: row[key] for key in alone if key != "geometry"} == {
        key: value for key, value in alone.items() if key != "geometry"
    }
    model.batches.clear()
    result = run(*args)  # only what is not there yet
    assert result.exit_code == 3
    assert "3 outputs in each already complete" in result.stderr
    assert "chips failed in" not in result.stderr
    left = Path("each/p0.gpkg.journal.jsonl")  # it stays where chips failed
    left.touch()
    assert "Warning: chips failed in 1 output (p0); --retry-failed tries" in run(*args).stderr
    left.unlink()
    assert model.batches == []
    write_pairs(tmp_path / "data", 4)
    assert run("analyze", "--pairs", pairs, "-o", "each", *SMALL).exit_code == 0  # it is a folder
    assert model.batches == [1]
    summary = json.loads(run(*args, "--json").stdout)
    assert (summary["pairs"], summary["outputs_there_already"], summary["chips"]) == (0, 4, 0)


def test_a_folder_of_outputs_tries_failed_chips_again(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 2)
    model.most = 0
    args = ("analyze", "--pairs", pairs, "-o", "each/", *SMALL)
    assert run(*args).exit_code == 3
    model.most = None
    assert run(*args).exit_code == 0  # they are there
    assert layer("each/p0.gpkg", "chips")[0]["status"] == "error"
    assert run(*args, "--retry-failed").exit_code == 0
    assert layer("each/p0.gpkg", "chips")[0]["status"] == "answered"
    assert sorted(path.name for path in Path("each").iterdir()) == ["p0.gpkg", "p1.gpkg"]


def test_two_folders(run: Run, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 3)
    for n in range(3):
        for date, folder in (("b", "A"), ("a", "B")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / "data" / f"{date}{n}.tif").rename(tmp_path / folder / f"{n}.tif")
    (tmp_path / "B/2.tif").rename(tmp_path / "B/3.tif")
    args = ("analyze", "--before-dir", tmp_path / "A", "--after-dir", tmp_path / "B", *SMALL)
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert "1 image in " in result.stderr
    assert "without a partner of the same name: 2.tif" in result.stderr
    summary = json.loads(result.stdout)
    assert [[Path(name).name for name in names] for names in summary["unmatched"].values()] == [
        ["2.tif"],
        ["3.tif"],
    ]
    assert [row["pair_id"] for row in layer("B_changes.gpkg", "chips")] == ["0", "1"]


def test_shards_are_all_chips_once(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 5)
    for index in (1, 2):
        assert run("analyze", "--pairs", pairs, "--shard", f"{index}/2", *SMALL).exit_code == 0
    ids = [[row["pair_id"] for row in layer(f"list_changes_{n}of2.gpkg", "chips")] for n in (1, 2)]
    assert ids == [["p0", "p2", "p4"], ["p1", "p3"]]
    result = run("analyze", "--pairs", pairs, "--shard", "6/6", *SMALL)
    assert result.exit_code == 2
    assert "this shard is empty" in one_line(result)


def test_limit_is_of_the_run_and_can_be_raised(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 4, chips=2)
    args = ("analyze", "--pairs", pairs, "-o", "out.gpkg", *SMALL)
    assert run(*args, "--limit", 3).exit_code == 0
    assert model.batches == [3]
    rows = layer("out.gpkg", "pairs")
    assert [(row["pair_id"], row["status"], row["chips"]) for row in rows] == [
        ("p0", "answered", 2),
        ("p1", "partly", 1),
    ]
    assert "--limit" in rows[1]["reason"]
    model.batches.clear()
    assert run("analyze", "--pairs", pairs, "-o", "each/", "--limit", 3, *SMALL).exit_code == 0
    assert model.batches == [2, 1]


def test_an_area_of_interest_of_its_own(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 2, chips=2)
    west = '"POLYGON ((3 45.1, 3.0001 45.1, 3.0001 45.2, 3 45.2, 3 45.1))"'
    text = pairs.read_text().splitlines()
    pairs.write_text(f"{text[0]},aoi\n{text[1]},{west}\n{text[2]},\n")
    result = run("analyze", "--pairs", pairs, "-o", "out.geojson", *SMALL)
    assert result.exit_code == 0, result.stderr
    names = [(row["properties"]["pair_id"], row["properties"]["chip_id"]) for row in features("out.geojson")]
    assert names == [("p0", "r00000_c00000"), ("p1", "r00000_c00000"), ("p1", "r00000_c00032")]
    pairs.write_text(f"{text[0]},aoi\n{text[2]},{west}\n")
    result = run("analyze", "--pairs", pairs, "-o", "no.geojson", *SMALL)
    assert result.exit_code == 3
    assert "area of interest: does not overlap the pair" in result.stderr


def test_dry_run_checks_every_pair(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 3, chips=2, broken=[1])
    result = run("analyze", "--pairs", pairs, "-n", *SMALL)
    assert result.exit_code == 3
    assert "p0: 2 chips, EPSG:32631, 0.5 m a pixel" in result.stdout
    assert "p1: FAILS: " in result.stdout
    assert "2 of 3 can be opened" in result.stdout
    plan = json.loads(run("analyze", "--pairs", pairs, "-n", "--json", *SMALL).stdout)
    assert [row.get("chips") for row in plan["pairs"]] == [2, None, 2]
    assert run("analyze", "--pairs", pairs, "-n", "-o", "-", *SMALL).stdout == ""
    assert run.loads == []
    assert not list(Path.cwd().iterdir())


def test_a_warning_that_many_pairs_share_is_told_once(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    model.training_gsd_m = 3.0
    pairs = write_pairs(tmp_path / "data", 5)
    result = run("analyze", "--pairs", pairs, "-o", "out.gpkg", *SMALL)
    assert result.stderr.count("the model was trained at 3 m") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "give BEFORE and AFTER, or many pairs by --pairs"),
        (("a.tif",), "give AFTER too"),
        (("a.tif", "b.tif", "--pairs", "list.csv"), "cannot be combined with --pairs"),
        (("a.tif", "b.tif", "--after-dir", "x"), "cannot be combined with --before-dir"),
        (("a.tif", "b.tif", "--shard", "1/2"), "--shard is for many pairs"),
        (("a.tif", "b.tif", "--layer", "pairs"), "--layer pairs is for many pairs"),
        (("--pairs", "list.csv", "--before-dir", "x", "--after-dir", "y"), "cannot be combined"),
        (("--before-dir", "x"), "go together"),
        (("--pairs", "list.csv", "--shard", "3/2"), "is not I/N"),
        (("--pairs", "nothing.csv"), "cannot read nothing.csv"),
        (("--pairs", "list.csv", "--scale", "wide"), "wide"),
        (("--pairs", "list.csv", "--bbox", "3,45,4,46", "--bbox-crs", "mine"), "CRS 'mine' is not known"),
        (("--pairs", "list.csv", "--aoi", "nothing.gpkg"), "nothing.gpkg: no such file"),
        (("--pairs", "list.csv", "--cascade", "--ask", "count"), "--cascade needs"),
        (("--pairs", "list.csv", "-m", "no-such-model"), "no model 'no-such-model'"),
        (("--pairs", "list.csv", "-o", "nowhere/out.gpkg"), "there is no folder"),
        (("--pairs", "list.csv", "-o", "nowhere/each/"), "cannot be created"),
        (("--pairs", "list.csv", "-o", "each/", "--layer", "pairs"), "choose chips or locations"),
    ],
)
def test_flags_that_do_not_fit_are_told_in_a_line(run: Run, args: tuple[str, ...], words: str) -> None:
    Path("list.csv").write_text("before,after\na,b\n")
    result = run("analyze", *args)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert [path.name for path in Path.cwd().iterdir()] == ["list.csv"]


def test_one_pair_has_no_columns_of_many(run: Run, scene: Scene) -> None:
    assert run("analyze", *scene.args, "-o", "out.gpkg", *SMALL).exit_code == 0
    assert {str(name) for name, _ in pyogrio.list_layers("out.gpkg")} == {
        "chips",
        "locations",
        "layer_styles",
    }
    assert not {"pair_id", "before_date", "after_date"} & set(layer("out.gpkg", "chips")[0])
