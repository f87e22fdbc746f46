"""No user, password, query, fragment or header in anything that a command prints or writes.

Each run goes over addresses in many spellings whose secrets are SECRET, alone and in a list, with success and
with failure; then every word and every file is searched.
"""

from __future__ import annotations

import json
import logging
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import deltavlm
from deltavlm.errors import RasterError
from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.object_server import Objects, served
from tests.rasters import write_raster

SECRET = "SEKRIT"
SPELLINGS = {
    "url": "http://SEKRIT:SEKRIT@{host}/{name}.tif?token=SEKRIT#SEKRIT",
    "capitals": "HTTP://{host}/{name}.tif?SEKRIT",
    "vsicurl": "/vsicurl/http://u:SEKRIT@{host}/{name}.tif?token=SEKRIT",
    "options": (
        "/vsicurl?header.X-Key=SEKRIT&max_retry=0&url="
        "http%3A%2F%2Fu%3ASEKRIT%40{host}%2F{name}.tif%3Ft%3DSEKRIT"
    ),
    "archive": "zip+http://u:SEKRIT@{host}/{name}.zip!{name}.tif",
    "vsizip": "/vsizip/vsicurl/http://u:SEKRIT@{host}/{name}.zip/{name}.tif",
    "braces": "/vsizip/{{/vsicurl/http://u:SEKRIT@{host}/{name}.zip?token=SEKRIT}}/{name}.tif",
}
WHOLE = ("url", "vsicurl", "options", "archive", "vsizip", "braces")  # that can be read
LOST = {
    "s3": "s3://AKIA:SEKRIT/x@{host}/{name}.tif?versionId=SEKRIT",
    "ftp": "ftp://u:SEKRIT@127.0.0.1:1/{name}.tif",
    "query in an archive": "zip+http://u:SEKRIT@{host}/{name}.zip!{name}.tif?token=SEKRIT",
    "password with a slash": "http://u:SEKRIT/SEKRIT@{host}/{name}.tif",
    "double": "/vsicurl?url=http%253A%252F%252Fu%253ASEKRIT%2540{host}%252F{name}.tif",
}


@pytest.fixture
def objects(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """`after.tif` and `after.zip` on a server; no credentials of the machine, and no retries."""
    for name, value in {"GDAL_HTTP_MAX_RETRY": "0", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "127.0.0.1:1")
    monkeypatch.setenv("GDAL_HTTP_HEADERS", f"X-Token: {SECRET}")
    with zipfile.ZipFile(tmp_path / "after.zip", "w") as archive:
        archive.write(scene.after, "after.tif")
    with served() as objects:
        objects.contents = {name: (tmp_path / name).read_bytes() for name in ("after.tif", "after.zip")}
        yield objects


def address(spelling: str, objects: Objects, name: str = "after") -> str:
    return spelling.format(host=objects.url.removeprefix("http://"), name=name)


def check(result: Result, caplog: pytest.LogCaptureFixture, inputs: tuple[str, ...] = ()) -> None:
    """No secret in the output, the log, or the names and contents of the files of the current folder."""
    assert SECRET not in result.output
    assert SECRET not in result.stderr
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("delta")]
    assert not [text for text in ours if SECRET in text]
    for path in Path().rglob("*"):
        assert SECRET not in str(path)
        if path.is_file() and path.name not in inputs:
            assert SECRET.encode() not in path.read_bytes(), path


SMALL = ("--chip-size", 32, "--batch-size", 4, "-vv")


@pytest.mark.slow
@pytest.mark.parametrize(("spelling", "suffix"), [("url", "gpkg"), ("options", "gpkg"), ("url", "geojson")])
def test_a_pair_that_is_analyzed(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture, spelling: str, suffix: str
) -> None:
    after = address(SPELLINGS[spelling], objects)
    output = f"out.{suffix}"
    extra = ("--metrics", "run.prom", "--html", "page.html", "--quicklook", "look.png", "--json")
    result = run("analyze", scene.before, after, "-o", output, *SMALL, *extra)
    assert result.exit_code == 0, result.stderr
    assert b"/after." in Path(output).read_bytes()  # its name
    check(result, caplog)
    for command in (
        ("report", output, "-o", "again.html"),
        ("summarize", output, "-o", "table.md"),
        ("stac", output, "-o", "stac", "--before-date", "2020-01-01", "--after-date", "2021-01-01"),
    ):
        check(run(*command), caplog)
    for more in (("--dry-run",), ("--dry-run", "--json"), ("--overwrite", "--log-format", "json")):
        check(run("analyze", scene.before, after, "-o", output, *SMALL, *more), caplog)


def test_a_default_name_of_the_output(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    for spelling in ("options", "vsicurl"):
        result = run("analyze", scene.before, address(SPELLINGS[spelling], objects), *SMALL, "--limit", 1)
        assert result.exit_code == 0, result.stderr
        check(result, caplog)
        for path in Path().iterdir():
            path.unlink()


def test_masks_and_streams(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture, bright: object
) -> None:
    after = address(SPELLINGS["url"], objects)
    masks = ("--polygons", "--mask", "mask.tif", "--probability", "p.tif")
    result = run("analyze", scene.before, after, "-o", "out.geojson", *SMALL, *masks)
    assert result.exit_code == 0, result.stderr
    assert Path("mask.tif").exists()
    check(result, caplog)
    check(run("analyze", scene.before, after, "-o", "-", *SMALL), caplog)
    check(run("ask", scene.before, after, "what changed?", "--json", "-vv"), caplog)
    check(run("grid", scene.before, after, "-o", "grid.geojson", "-vv"), caplog)
    talk = run("chat", scene.before, after, "--save", "talk.jsonl", "-vv", input="what changed?\n/image\n")
    assert talk.exit_code == 0, talk.stderr
    assert Path("talk.jsonl").exists()
    check(talk, caplog)


def test_a_cloud_mask(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    write_raster(tmp_path / "mask.tif", np.zeros((1, 96, 160), np.uint8))
    objects.contents["mask.tif"] = (tmp_path / "mask.tif").read_bytes()
    for name, code in (("mask", 0), ("nothing", 2)):
        mask = address(SPELLINGS["url"].partition("#")[0], objects, name)
        extra = ("--after-cloud-mask", f"{mask}:values=7", "--limit", 1, "-o", f"{name}.geojson")
        result = run("analyze", scene.before, scene.after, *SMALL, *extra)
        assert result.exit_code == code, result.stderr
        check(result, caplog)


@pytest.mark.slow
def test_a_list_whose_pairs_fail_or_not(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    good = [address(SPELLINGS[name], objects) for name in WHOLE]
    bad = [address(spelling, objects, "nothing") for spelling in (*SPELLINGS.values(), *LOST.values())]
    rows = [{"before": str(scene.before), "after": after} for after in (*good, *bad)]
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for output in ("out.gpkg", "folder/"):
        extra = ("--metrics", "run.prom", "--log-format", "json")
        result = run("analyze", "--pairs", "list.jsonl", "-o", output, *SMALL, *extra)
        assert result.exit_code == 3, result.stderr
        check(result, caplog, inputs=("list.jsonl",))
    journal = Path("out.gpkg.journal.jsonl")
    assert journal.exists()  # for --retry-failed
    check(run("report", "out.gpkg", "-o", "page.html"), caplog, inputs=("list.jsonl",))


@pytest.mark.parametrize("spelling", [*SPELLINGS, *LOST])
def test_a_pair_that_cannot_be_read(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture, spelling: str
) -> None:
    before = address((SPELLINGS | LOST)[spelling], objects, "nothing")
    for command in ("analyze", "ask", "grid"):
        words = ["what changed?"] if command == "ask" else []
        if command == "analyze":
            words = ["--metrics", "run.prom"]
        result = run(command, before, scene.after, *words, "-vv")
        assert result.exit_code == 2, result.stderr
        check(result, caplog)


def test_an_object_that_fails_while_it_is_read(
    run: Run,
    scene: Scene,
    objects: Objects,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason of an unreadable chip is GDAL's own text."""
    content = objects.contents["after.tif"]
    objects.contents["after.tif"] = content[: len(content) // 2]
    after = address(SPELLINGS["url"], objects)
    result = run("analyze", scene.before, after, "-o", "out.geojson", *SMALL)
    assert result.exit_code == 3, result.stderr
    assert "unreadable" in Path("out.geojson").read_text()
    check(result, caplog)


def test_flags_that_are_wrong(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    url = address(SPELLINGS["url"], objects)
    for words in (
        ("analyze", scene.before, url, "-o", url),
        ("analyze", scene.before, url, "--gdal-config", f"GDAL_HTTP_USERPWD u:{SECRET}"),
        ("analyze", scene.before, url, "--aoi", url),
        ("analyze", "--pairs", url),
        ("analyze", scene.before, url, "--metrics", url),
        ("analyze", scene.before, url, "--no-such-flag"),
        ("report", url),
        ("summarize", url),
        ("analyze", scene.before, url, url),
        ("grid", url, "-o", "x.txt"),
    ):
        result = run(*words)
        assert result.exit_code == 2, (words, result.stderr)
        check(result, caplog)


def test_lists_that_are_wrong(
    run: Run, scene: Scene, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    url = address(SPELLINGS["url"], objects)
    for text in (
        f"before,{url},{url}\n",
        f"before,after,date\n{scene.before},{url},{url}\n",
        f"before,after,id\n{scene.before},{url},a\n{scene.before},{url},a\n",
        f'{{"before": "{url}", "after": ["{url}"]}}\n',
        f'{{"{url}": 1}}\n',
        f"{url}\n",
        f"before,after,aoi\n{scene.before},{url},{url}\n",
        f"before,after,aoi\n{scene.before},{url},POLYGON(({url}))\n",
        f"before,after\n{scene.before},{url}\t\x01\n",
        f"before,after\n{scene.before},{url},{url}\n",
    ):
        Path("list.csv").write_text(text)
        result = run("analyze", "--pairs", "list.csv", "-o", "out.gpkg", "-vv")
        assert result.exit_code in (2, 3), (text, result.stderr)
        check(result, caplog, inputs=("list.csv",))


def test_the_log_of_the_library(objects: Objects, caplog: pytest.LogCaptureFixture, scene: Scene) -> None:
    """Somebody who uses the library sees the log and tracebacks without the console."""
    caplog.set_level(logging.DEBUG)
    for spelling in (SPELLINGS | LOST).values():
        with (
            pytest.raises(RasterError) as caught,
            deltavlm.open_pair(str(scene.before), address(spelling, objects, "nothing")),
        ):
            pass
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("delta")]
    assert not [text for text in ours if SECRET in text]
