"""`deltavlm analyze` over many pairs: flags, messages, exit codes, streams, and a process that is killed."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deltavlm.geo import pair as geo_pair
from tests.cli.conftest import Run, one_line, program
from tests.pairs import layer, write_pairs
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32)


def test_pairs_that_cannot_be_opened_are_reported(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 12, broken=[7, 10])
    result = run("analyze", "--pairs", pairs, "-o", "out.gpkg", "--json", *SMALL)
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["pairs"], summary["pairs_answered"], summary["pairs_failed"]) == (12, 10, 2)
    assert [failure["pair_id"] for failure in summary["failures"]] == ["p7", "p10"]
    assert "is empty (0 bytes)" in summary["failures"][0]["reason"]
    assert sum("Warning: pair p" in line for line in result.stderr.splitlines()) == 2
    assert result.stderr.splitlines()[-1].startswith("Error: 2 of 12 pairs failed, the first because: p7: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_killed_repeatedly_resumes_to_the_same_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "data", 9, chips=2, broken=[1, 4])
    args = ("analyze", "--pairs", pairs, *SMALL, "--batch-size", 3)
    assert run(*args, "-o", "uninterrupted.geojson").exit_code == 3
    assert run(*args, "-o", "uninterrupted_pairs.geojson", "--layer", "pairs").exit_code == 3
    out, journal = tmp_path / "out.geojson", tmp_path / "out.geojson.journal.jsonl"
    rng, kills = random.Random(1), 0

    def groups() -> int:
        return journal.read_text().count('"end"') if journal.exists() else 0

    for _ in range(2):
        process = program(*args, "-o", out, pause=0.3)
        earlier = groups()
        while process.poll() is None and groups() == earlier:
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

    def record_path(path: str, options: Any) -> Any:
        if options.read_pixels:  # the format of the output is checked by the first pair's CRS
            opened.append(Path(path).name)
        return open_source(path, options)

    monkeypatch.setattr(geo_pair, "open_source", record_path)
    result = run(*args, "-o", out)
    assert result.exit_code == 3, result.stderr
    assert "resuming: " in result.stderr
    assert "b0.tif" not in opened  # whole in the journal
    assert "b1.tif" not in opened  # known to have failed
    assert "b8.tif" in opened
    assert out.read_bytes() == Path("uninterrupted.geojson").read_bytes()
    assert run(*args, "-o", out, "--retry-failed", "--layer", "pairs").exit_code == 3
    assert out.read_bytes() == Path("uninterrupted_pairs.geojson").read_bytes()


def test_on_error_fail_stops_at_the_first(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 3, broken=[1])
    result = run("analyze", "--pairs", pairs, "-o", "out.gpkg", "--on-error", "fail", *SMALL)
    assert result.exit_code == 2
    assert "is empty" in result.stderr.splitlines()[-1]
    assert not Path("out.gpkg").exists()


def test_pairs_of_several_crss_are_reported(run: Run, tmp_path: Path) -> None:
    write_pairs(tmp_path / "utm", 1)
    write_pairs(tmp_path / "none", 1, crs=None, transform=None)
    write_pairs(tmp_path / "web", 1, crs="EPSG:3857")
    names = ("utm", "web", "none")
    rows = "".join(f"{name},{name}/b0.tif,{name}/a0.tif\n" for name in names)
    (tmp_path / "mixed.csv").write_text("id,before,after\n" + rows)
    args = ("analyze", "--pairs", tmp_path / "mixed.csv", "--allow-no-crs", *SMALL)
    result = run(*args, "-o", "out.gpkg")
    assert result.exit_code == 0, result.stderr
    assert "in longitude and latitude (EPSG:4326)" in result.stderr
    assert "Warning: 1 pair, such as none, cannot be transformed to the CRS of the output" in result.stderr


def test_a_stream_equals_a_file(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 5, chips=2, broken=[3])
    for flags in ((), ("--layer", "pairs"), ("--limit", 5)):
        run("analyze", "--pairs", pairs, "-o", "out.ndjson", "--overwrite", *SMALL, *flags)
        result = run("analyze", "--pairs", "-", "-o", "-", *SMALL, *flags, input=pairs.read_text())
        assert "b0.tif: no such file" in result.stderr  # what comes from stdin starts in the current folder
        result = run("analyze", "--pairs", pairs, "-o", "-", *SMALL, *flags)
        assert result.stdout == Path("out.ndjson").read_text()


def test_the_summary_of_a_folder_of_outputs(run: Run, model: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 4, broken=[2])
    args = ("analyze", "--pairs", pairs, "-o", "each/", *SMALL)
    result = run(*args, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["pairs"], summary["pairs_failed"], summary["chips"], summary["changed"]) == (4, 1, 3, 2)
    assert result.stderr.count("a2.tif: is empty") == 2  # the warning, and the error at the end
    result = run(*args)  # only the pair that failed
    assert result.exit_code == 3
    assert "3 outputs in each already complete" in result.stderr
    assert "chips failed in" not in result.stderr
    journal = Path("each/p0.gpkg.journal.jsonl")  # it stays where chips failed
    journal.touch()
    assert "Warning: chips failed in 1 output (p0); --retry-failed tries" in run(*args).stderr
    journal.unlink()
    write_pairs(tmp_path / "data", 4)
    model.batches.clear()
    assert run("analyze", "--pairs", pairs, "-o", "each", *SMALL).exit_code == 0  # a folder that exists
    assert model.batches == [1]
    summary = json.loads(run(*args, "--json").stdout)
    assert (summary["pairs"], summary["outputs_there_already"], summary["chips"]) == (0, 4, 0)


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


def test_dry_run_checks_every_pair(run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 3, chips=2, broken=[1])
    result = run("analyze", "--pairs", pairs, "-n", *SMALL)
    assert result.exit_code == 3
    assert "p0: 2 chips, EPSG:32631, 0.5 m a pixel" in result.stdout
    assert "p1: FAILS: " in result.stdout
    assert "2 of 3 can be opened" in result.stdout
    plan = json.loads(run("analyze", "--pairs", pairs, "-n", "--json", *SMALL).stdout)
    assert [row.get("chips") for row in plan["pairs"]] == [2, None, 2]
    assert plan["estimate"]["chips"] == 4
    assert run("analyze", "--pairs", pairs, "-n", "-o", "-", *SMALL).stdout == ""
    assert not list(Path.cwd().iterdir())


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
        (("--pairs", "nothing.csv"), "nothing.csv: no such file; check the name"),
        (("--pairs", "list.csv", "--scale", "wide"), "wide"),
        (("--pairs", "list.csv", "--bbox", "3,45,4,46", "--bbox-crs", "mine"), "CRS 'mine' is not known"),
        (("--pairs", "list.csv", "--aoi", "nothing.gpkg"), "nothing.gpkg: no such file"),
        (("--pairs", "list.csv", "--cascade", "--ask", "count"), "--cascade needs"),
        (("--pairs", "list.csv", "-m", "no-such-model"), "no model 'no-such-model'"),
        (("--pairs", "list.csv", "-o", "nowhere/out.gpkg"), "there is no folder"),
        (("--pairs", "list.csv", "-o", "nowhere/each/"), "there is no folder nowhere"),
        (("--pairs", "list.csv", "-o", "each/", "--layer", "pairs"), "choose chips or locations"),
    ],
)
def test_flags_that_contradict_are_refused_in_one_line(run: Run, args: tuple[str, ...], words: str) -> None:
    Path("list.csv").write_text("before,after\na,b\n")
    result = run("analyze", *args)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert [path.name for path in Path.cwd().iterdir()] == ["list.csv"]
