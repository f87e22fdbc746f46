"""Unattended runs: logs as JSON, metrics for Prometheus, exit codes, and the script for cron."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pyogrio
import pytest

from deltacli import metrics
from deltacli.metrics import Metric, format_metrics
from tests.cli.conftest import ROOT, Run, program
from tests.conftest import Scene
from tests.pairs import write_pairs
from tests.rasters import noise, spoil, write_raster
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32, "--batch-size", 2)
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:\\.|[^"\\\n])*",?)+)\})? (\S+)')


def statuses(output: Path) -> list[str]:
    return list(pyogrio.read_dataframe(output, layer="chips", read_geometry=False)["status"])


def samples(text: str) -> dict[tuple[str, str], float]:
    """Parse and check the text format: values by the name of the metric and its labels except `output`."""
    values: dict[tuple[str, str], float] = {}
    announced = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            announced = line.split()[2]
        elif line.startswith("# TYPE "):
            assert line.split()[2] == announced
            assert line.split()[3] == ("counter" if announced.endswith("_total") else "gauge")
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == announced
            labels = dict(re.findall(r'([a-z_]+)="((?:\\.|[^"\\])*)"', match[2]))
            labels.pop("output")
            key = (match[1].removeprefix("deltavlm_"), ",".join(labels.values()))
            assert key not in values
            values[key] = float(match[3])
    return values


def read(path: str | Path = "m.prom") -> dict[tuple[str, str], float]:
    return samples(Path(path).read_text(encoding="utf-8"))


def objects(stderr: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_json_logs_are_one_object_per_line(run: Run, scene: Scene) -> None:
    args = ("analyze", *scene.args, "-o", "-", *SMALL)
    plain = run(*args)
    result = run(*args, "--log-format", "json", "-v")
    assert result.stdout == plain.stdout
    lines = objects(result.stderr)
    for line in lines:
        assert datetime.fromisoformat(str(line["time"])).utcoffset() is not None
        assert {"time", "level", "message"} <= line.keys()
    assert {line["level"] for line in lines} == {"info"}
    assert str(lines[-1]["message"]).startswith("15 chips: 1 changed")


@pytest.mark.slow
def test_progress_in_json_has_numbers(scene: Scene, tmp_path: Path) -> None:
    args = (*scene.args, "-o", tmp_path / "out.gpkg", *SMALL, "--log-format", "json")
    with program("analyze", *args, pause=0.3) as process:
        _, stderr = process.communicate(timeout=60)
    records = [line for line in objects(stderr) if "done" in line]
    assert records
    assert {line["total"] for line in records} == {15}


@pytest.mark.parametrize(
    "args",
    [
        ("--log-format", "json", "analyze", "nosuch.tif", "b.tif"),
        ("analyze", "nosuch.tif", "b.tif", "--log-format=json"),
        ("analyze", "--nosuch", "--log-format", "json"),
        ("analyse", "--log-format", "json"),
        ("analyze", "a", "b", "--limit", "many", "--log-format", "json"),
    ],
)
def test_an_error_in_json_is_one_object(run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    (line,) = objects(result.stderr)
    assert line["level"] == "error"


def test_json_logs_name_pair_and_chip(run: Run, tmp_path: Path, model: ScriptedModel) -> None:
    model.most = 0
    table = write_pairs(tmp_path / "in", 2, chips=2, broken=[1])
    result = run("analyze", "--pairs", table, "-o", "o.gpkg", "--log-format", "json", "-v", "--chip-size", 32)
    assert result.exit_code == 3
    lines = objects(result.stderr)
    assert [line["pair"] for line in lines if line["level"] == "warning"] == ["p1"]
    records = [(line["pair"], line["chip"], line["status"]) for line in lines if "chip" in line]
    assert records == [("p0", "r00000_c00000", "error"), ("p0", "r00000_c00032", "error")]


def test_labels_are_escaped() -> None:
    text = format_metrics([Metric("a", "gauge", "x\\y\nz", [({"l": 'q"\\\n'}, 0.5)])], {"output": "o"})
    assert text == '# HELP a x\\\\y\\nz\n# TYPE a gauge\na{l="q\\"\\\\\\n",output="o"} 0.5\n'


def test_metrics_of_a_run(run: Run, scene: Scene, tmp_path: Path) -> None:
    clouds = np.zeros((1, 96, 160), np.uint8)
    clouds[:, :32, :32] = 1  # the first chip
    mask = ("--after-cloud-mask", write_raster(tmp_path / "clouds.tif", clouds))
    result = run("analyze", *scene.args, "-o", 'o "1".geojson', *SMALL, "--metrics", "m.prom", *mask)
    assert result.exit_code == 0, result.stderr
    values = read()
    assert (values["chips_total", "answered"], values["chips_total", "nodata"]) == (14, 1)
    assert values["cloud_ratio", ""] == pytest.approx(1 / 15, rel=0.01)
    assert values["chips_total", "error"] == values["chips_resumed_total", ""] == 0
    assert values["chips_changed_total", ""] == values["pairs_total", "answered"] == 1
    assert values["exit_code", ""] == values["run_active", ""] == 0
    assert values["analyzed_ground_square_meters", ""] == pytest.approx(14 * 16 * 16, rel=0.01)
    assert values["changed_ground_square_meters", ""] == pytest.approx(16 * 16, rel=0.01)
    assert (values["new_buildings", ""], values["new_roads", ""]) == (2, 1)
    assert values["last_run_timestamp_seconds", ""] >= values["run_start_timestamp_seconds", ""]
    assert {label for name, label in values if name == "stage_seconds_total"} == {
        "read",
        "waited",
        "encode",
        "answer",
        "write",
    }
    assert values["stage_seconds_total", "answer"] > 0
    assert f'output="{Path.cwd()}/o \\"1\\".geojson"' in Path("m.prom").read_text()
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["m.prom", 'o "1".geojson', 'o "1".qml']


def test_metrics_are_readable_by_another_user(run: Run, scene: Scene) -> None:
    """node_exporter is rarely root; files of `tempfile` are readable by their owner only."""
    Path("plain").touch()
    run("analyze", *scene.args, "-o", "o.geojson", *SMALL, "--metrics", "m.prom")
    assert Path("m.prom").stat().st_mode == Path("plain").stat().st_mode


def test_metrics_of_many_pairs(run: Run, tmp_path: Path) -> None:
    table = write_pairs(tmp_path / "in", 4, chips=2, broken=[1])
    for number, output in enumerate(("o.gpkg", "each/")):
        file = f"m{number}.prom"
        result = run("analyze", "--pairs", table, "-o", output, "--chip-size", 32, "--metrics", file)
        assert result.exit_code == 3
        values = read(file)
        assert [values["pairs_total", one] for one in ("answered", "partly", "failed")] == [3, 0, 1]
        assert values["chips_total", "answered"] == 6
        assert values["exit_code", ""] == 3


@pytest.mark.parametrize(
    ("args", "code"),
    [(("nosuch.tif", "b.tif"), 2), (("a.tif", "b.tif", "--limit", "0"), 2), (("a", "b", "--ask", "x"), 2)],
)
def test_metrics_of_a_run_that_could_not_start(run: Run, args: tuple[str, ...], code: int) -> None:
    assert run("analyze", *args, "--metrics", "m.prom").exit_code == code
    values = read()
    assert values["exit_code", ""] == code
    assert values["pairs_total", "failed"] == 1


def test_metrics_of_a_run_that_fails(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    args = ("analyze", *scene.args, "-o", "o.geojson", *SMALL, "--metrics", "m.prom")
    assert run(*args, "--on-error", "fail").exit_code == 1
    assert read()["exit_code", ""] == read()["pairs_total", "failed"] == 1
    assert run(*args).exit_code == 3
    assert read()["chips_total", "error"] == 15
    assert read()["pairs_total", "partly"] == 1


@pytest.mark.slow
def test_metrics_during_a_run_and_after_a_signal(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "m.prom"
    args = (*scene.args, "-o", tmp_path / "o.gpkg", "--chip-size", 32, "--batch-size", 1, "--metrics", file)
    with program("analyze", *args, pause=0.5) as process:
        journal = tmp_path / "o.gpkg.journal.jsonl"
        # header, pair and two chips: one is counted
        while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.02)
        assert read(file)["run_active", ""] == 1
        assert ("exit_code", "") not in read(file)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == read(file)["exit_code", ""] == 143
    assert 0 < read(file)["chips_total", "answered"] < 15
    assert sum(value for (name, _), value in read(file).items() if name == "pairs_total") == 0


def test_metrics_are_refreshed(
    run: Run, scene: Scene, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REFRESH_S", 0.01)
    seen: list[float] = []
    encode = model.encode

    def waiting(before: object, after: object, contexts: object = ()) -> object:
        started = time.monotonic()
        while len(seen) and read()["chips_total", "answered"] <= seen[-1] and time.monotonic() < started + 20:
            time.sleep(0.01)
        seen.append(read()["chips_total", "answered"])
        return encode(before, after)  # type: ignore[arg-type]

    model.encode = waiting  # type: ignore[method-assign, assignment]
    assert run("analyze", *scene.args, "-o", "o.geojson", *SMALL, "--metrics", "m.prom").exit_code == 0
    assert seen == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_file_that_holds_something_else_is_kept(run: Run, scene: Scene) -> None:
    before = scene.before.read_bytes()
    result = run("analyze", *scene.args, "--metrics", scene.before)
    assert result.exit_code == 2
    assert "not a metrics file" in result.stderr
    assert scene.before.read_bytes() == before
    for wrong in ("-", "nosuch/m.prom", "."):
        assert run("analyze", *scene.args, "--metrics", wrong).exit_code == 2


def test_a_dry_run_writes_no_metrics(run: Run, scene: Scene) -> None:
    assert run("analyze", *scene.args, "-n", "--metrics", "m.prom").exit_code == 0
    assert not Path("m.prom").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
@pytest.mark.parametrize("unknown_user", [False, True])
def test_the_script_of_the_cron_page(tmp_path: Path, unknown_user: bool) -> None:
    """As cron runs it: almost no environment, no terminal, no home; with the scripted model. With nano, it
    failed for a user without an entry in the table of users, because the folder of models is in the home."""
    page = (ROOT / "docs" / "cron.md").read_text(encoding="utf-8")
    text = page.split("<!-- test:nightly -->\n```bash\n", 1)[1].split("```", 1)[0]
    folder = tmp_path / "place"
    for date in ("before", "after"):
        (folder / date).mkdir(parents=True)
        write_raster(folder / date / "fine.tif", noise(3, 256, 256))
        (folder / date / "broken.tif").write_bytes(b"")
        tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
        write_raster(folder / date / "half.tif", noise(3, 256, 512), **tiles)
    spoil(folder / "after" / "half.tif", [(0, 1)])  # as if it were still being copied
    start = f"#!{sys.executable}\nimport os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    if unknown_user:
        start += "import pwd\ndef unknown(*_): raise KeyError('uid not found')\npwd.getpwuid = unknown\n"
    else:
        start += "import deltavlm\nfrom tests.scripted_model import ScriptedModel\n"
        start += "deltavlm.load_model = lambda name, runtime: ScriptedModel()\n"
    (tmp_path / "deltavlm").write_text(f"{start}from deltacli.main import app\napp(prog_name='deltavlm')\n")
    (tmp_path / "deltavlm").chmod(0o755)
    script = tmp_path / "nightly"
    script.write_text(text.replace("/opt/deltavlm/bin", str(tmp_path)).replace("/srv/changes", str(folder)))
    script.chmod(0o755)

    def run_script() -> tuple[int, str]:
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
        process = subprocess.run(
            [script],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        return process.returncode, process.stdout

    code, mail = run_script()
    assert code == 3, mail
    assert mail.startswith("deltavlm: done, but something failed;")
    assert "broken" in mail
    assert read(folder / "deltavlm.prom")["exit_code", ""] == 3
    if unknown_user:
        return
    assert (folder / "each" / "fine.gpkg").exists()
    assert statuses(folder / "each" / "half.gpkg") == ["answered", "unreadable"]
    for date in ("before", "after"):
        write_raster(folder / date / "broken.tif", noise(3, 256, 256))
    shutil.copyfile(folder / "before" / "half.tif", folder / "after" / "half.tif")
    fcntl = pytest.importorskip("fcntl")
    with (folder / ".nightly.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        assert run_script() == (0, "")
    assert not (folder / "each" / "broken.gpkg").exists()
    assert run_script() == (0, "")
    assert {path.name for path in (folder / "each").iterdir()} == {"fine.gpkg", "broken.gpkg", "half.gpkg"}
    assert statuses(folder / "each" / "half.gpkg") == ["answered", "answered"]
    (log,) = [path for path in (folder / "log").iterdir() if "already complete" in path.read_text()]
    assert objects(log.read_text())
