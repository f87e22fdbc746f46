"""Outputs open in other programs, read-only folders, unusual environments, and malicious text.

Two runs on one output and a stale lock are in `tests/cli/test_resume.py`; closed pipes and
streams are in `tests/cli/test_process.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import geopandas
import pytest

from tests.cli.conftest import PROGRAM, ROOT, Run, one_line
from tests.conftest import Scene
from tests.faults.conftest import mounted
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32, "--batch-size", 2)

HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode=" + sys.argv[2])
database.execute("CREATE TABLE IF NOT EXISTS chips (a)")
database.execute("BEGIN EXCLUSIVE" if sys.argv[2] == "DELETE" else "BEGIN")
database.execute("SELECT * FROM chips").fetchall()
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def open_elsewhere(path: Path, mode: str) -> Iterator[None]:
    """Another process has the GeoPackage open: in WAL mode like QGIS, or in DELETE mode during an edit."""
    command = [sys.executable, "-c", HOLD, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        yield
        other.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="detected at the end only")
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_an_open_output_is_refused_before_any_work(run: Run, scene: Scene, mode: str) -> None:
    out = Path("out.gpkg")
    assert run("analyze", *scene.args, "-o", out, *SMALL).exit_code == 0
    with open_elsewhere(out, mode):
        result = run("analyze", *scene.args, "-o", out, "--overwrite", *SMALL)
        assert result.exit_code == 2
        assert "out.gpkg: is open in another program, perhaps QGIS; close it there" in one_line(result)
        assert len(run.loads) == 1
    assert run("analyze", *scene.args, "-o", out, "--overwrite", *SMALL).exit_code == 0


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_an_output_opened_during_the_run(run: Run, scene: Scene, model: ScriptedModel, mode: str) -> None:
    """Refused with the remedy; the results are kept, and the next run needs no inference."""
    out = Path("out.gpkg")
    assert run("analyze", *scene.args, "-o", out, *SMALL).exit_code == 0
    encode = model.encode
    other_program = open_elsewhere(out, mode)

    def encode_and_open(before: object, after: object, contexts: object = ()) -> object:
        model.encode = encode  # type: ignore[method-assign]
        other_program.__enter__()
        return encode(before, after)  # type: ignore[arg-type]

    model.encode = encode_and_open  # type: ignore[method-assign, assignment]
    try:
        result = run("analyze", *scene.args, "-o", out, "--overwrite", *SMALL)
    finally:
        other_program.__exit__(None, None, None)
    assert result.exit_code == 2
    assert "15 chips kept in out.gpkg.journal.jsonl; the same command resumes" in result.stderr
    last = "Error: out.gpkg: is open in another program, perhaps QGIS; close it there"
    assert result.stderr.splitlines()[-1] == last
    batches = len(model.batches)
    result = run("analyze", *scene.args, "-o", out, "--overwrite", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert len(model.batches) == batches
    assert len(geopandas.read_file(out, layer="chips")) == 15
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg"]


def test_a_read_only_folder(run: Run, scene: Scene, tmp_path: Path) -> None:
    """Refused before the model is loaded; also as root, for whom permissions do not apply."""
    with mounted(tmp_path / "read_only", "ro") as folder:
        for suffix in (".gpkg", ".geojson"):
            result = run("analyze", *scene.args, "-o", folder / f"out{suffix}", *SMALL)
            assert result.exit_code == 2
            assert f"cannot write in {folder} (Read-only file system)" in one_line(result)
        assert run.loads == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no such environment")
def test_no_home_and_the_c_locale(scene: Scene, tmp_path: Path) -> None:
    """`env -i`: only a PATH without programs and the C locale."""
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(pause=0),
        "analyze",
        *scene.args,
        "-o",
        "ä.geojson",
        *SMALL,
    ]
    bare = {"PATH": "/nowhere", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=bare, capture_output=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "output ä.geojson" in process.stderr.decode()
    assert len(json.loads((tmp_path / "ä.geojson").read_bytes())["features"]) == 15


HOSTILE = [
    *("</s>", "[PAD]", "<pad><bos>", "yes</s> no", "\x00", "\x1b[2J\x1b]0;title\x07", "\ud800", "a\u2028b"),
    *("=cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "<script>alert(1)</script>", "<img src=x>"),
    *("'; DROP TABLE chips; --", '"}, {"type": "Feature"', "\\", "\\u0000", "%s%n", "{0}", "${HOME}", "`id`"),
    *("$(touch PWNED)", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x", "../../x", "NaN"),
    *("\u202egpj.exe", "\u0000" * 99, "𝔘𝔫𝔦", "a" * 20_000, " \t\r\n "),
]


def rows(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, **({"layer": "chips"} if path.suffix == ".gpkg" else {}))


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".gpkg", ".fgb", ".parquet"])
def test_malicious_answers_are_text(run: Run, scene: Scene, model: ScriptedModel, suffix: str) -> None:
    """Answers in every format: the file is readable, with its rows and columns."""
    answers = itertools.cycle(HOSTILE)
    model.script = lambda before, after, question: next(answers)
    plain = ("--ask", "caption,count", *SMALL)
    result = run("analyze", *scene.args, "-o", f"out{suffix}", *plain)
    assert result.exit_code == 0, result.stderr
    assert not {*"\x00\x07\x1b"} & {*result.stderr}
    frame = rows(Path(f"out{suffix}"))
    assert len(frame) == 15
    model.script = None
    run("analyze", *scene.args, "-o", f"plain{suffix}", *plain)
    assert [*frame.columns] == [*rows(Path(f"plain{suffix}")).columns]
    texts = {*frame["answer_caption"], *frame["answer_count"]}
    assert {
        "<script>alert(1)</script>",
        "'; DROP TABLE chips; --",
        "$(touch PWNED)",
        "=cmd|' /C calc'!A0",
    } <= texts
    assert not Path("PWNED").exists()
    if suffix == ".gpkg":
        with sqlite3.connect(f"out{suffix}") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_malicious_questions(run: Run, scene: Scene, model: ScriptedModel) -> None:
    """They reach the model unchanged except for line breaks, or are refused."""
    for question in HOSTILE:
        if "\x00" in question or "\ud800" in question:  # not possible in an argument
            continue
        result = run("ask", *scene.args, "--", question)
        assert result.exit_code in (0, 2), result.output
        assert "Traceback" not in result.output
        if result.exit_code == 0:
            prompt = model.history[-1][0].prompt
            assert prompt.isprintable()
            assert prompt == " ".join(question.split()) or not question.isascii()
    assert not Path("PWNED").exists()


@pytest.mark.skipif(os.name != "posix", reason="file names are restricted there")
def test_malicious_file_names(run: Run, scene: Scene) -> None:
    for name in ("$(touch PWNED).gpkg", "'; DROP TABLE chips; --.gpkg", "=cmd.gpkg", "<b>.gpkg", "%s.gpkg"):
        result = run("analyze", *scene.args, "-o", name, *SMALL)
        assert result.exit_code == 0, result.stderr
        with closing(sqlite3.connect(name)) as database:  # pyogrio parses some of the names
            assert database.execute("SELECT count(*) FROM chips").fetchone() == (15,)
    assert not Path("PWNED").exists()
