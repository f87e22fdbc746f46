"""Behaviour as a process: startup, streams, signals, progress, colours, and the file of defaults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer

from deltacli import parsing
from deltacli.console import Console, duration
from deltacli.main import app
from deltacli.signals import SignalReceived, catch_signals
from deltavlm import __version__
from deltavlm.errors import DeltaVLMError, InputError, ModelOutOfMemory, PartialFailure
from tests.cli.conftest import ROOT, Run, one_line, program
from tests.conftest import Scene

COMMANDS = sorted(getattr(typer.main.get_command(app), "commands", {}))


def test_help_imports_nothing_heavy() -> None:
    """So that `--help` is fast; `benchmarks/startup.py` measures how fast. All commands in one process."""
    code = (
        "import sys, runpy\n"
        f"for command in {COMMANDS!r}:\n"
        "    sys.argv = ['deltavlm', command, '--help']\n"
        "    try: runpy.run_module('deltacli', run_name='__main__')\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'transformers', 'rasterio', 'geopandas', 'numpy', 'shapely', 'pyogrio', 'PIL'}"
        " & {*sys.modules}\n"
        "    assert not heavy, (command, heavy)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("--help") >= len(COMMANDS)


def test_version_and_short_help(run: Run) -> None:
    assert run("-V").stdout == f"deltavlm {__version__}\n"
    assert run("--version").exit_code == 0
    for args in (["-h"], ["--help"], ["analyze", "-h"]):
        result = run(*args)
        assert result.exit_code == 0
        assert "Usage: " in result.stdout


def test_without_a_command_the_help_is_on_stderr(run: Run) -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "analyze" in result.stderr


def test_exit_codes_of_errors() -> None:
    assert [kind.exit_code for kind in (DeltaVLMError, InputError, ModelOutOfMemory, PartialFailure)] == [
        1,
        2,
        1,
        3,
    ]


@pytest.mark.slow
def test_a_closed_pipe_ends_the_run_without_a_message(scene: Scene) -> None:
    """`deltavlm analyze ... -o - | head -1`"""
    reader, writer = os.pipe()
    args = (*scene.args, "-o", "-", "--chip-size", 32, "--batch-size", 1)
    with program("analyze", *args, pause=0.05, stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader) as stream:
            json.loads(stream.readline())
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 141
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr
    assert "Error" not in stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_one_error_line(scene: Scene) -> None:
    with (
        Path("/dev/full").open("w") as full,
        program("analyze", *scene.args, "-o", "-", stdout=full) as process,
    ):
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith("Error: No space left on device")
    assert "Traceback" not in stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_ends_no_run(scene: Scene, tmp_path: Path) -> None:
    """`2>/dev/full`: the first line that could not be written ended the run, without an output or a word."""
    output = tmp_path / "out.geojson"
    with Path("/dev/full").open("w") as full:
        process = program("analyze", *scene.args, "-o", output, "--chip-size", 32, stderr=full)
        stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "")
    assert len(json.loads(output.read_text())["features"]) == 15


@pytest.mark.slow
def test_a_log_whose_reader_has_gone_ends_no_run(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "out.geojson"
    reader, writer = os.pipe()
    os.close(reader)
    process = program("analyze", *scene.args, "-o", output, "--chip-size", 32, "-vv", stderr=writer)
    os.close(writer)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(json.loads(output.read_text())["features"]) == 15


@pytest.mark.slow
def test_an_error_that_cannot_be_said_has_its_exit_code(tmp_path: Path) -> None:
    for redirect in ("2>/dev/full", "2>&-"):
        command = f"'{sys.executable}' -m deltacli grid no.tif -o '{tmp_path}/g.gpkg' {redirect}"
        assert subprocess.run(command, shell=True, cwd=ROOT).returncode == 2


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
def test_data_that_cannot_be_written_are_an_error(scene: Scene, redirect: str) -> None:
    command = f"'{sys.executable}' -m deltacli grid '{scene.before}' -o - {redirect}"
    process = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(
        ("Error: Bad file descriptor", "Error: No space left on device")
    )


@pytest.mark.slow
def test_closed_streams_are_not_an_error(scene: Scene, tmp_path: Path) -> None:
    """`2>&-` and `>&-`: Python then has None in place of the streams."""
    for redirect in ("2>&-", ">&-"):
        command = [
            sys.executable,
            "-m",
            "deltacli",
            "grid",
            scene.before,
            "-o",
            tmp_path / "g.gpkg",
            "--overwrite",
        ]
        line = " ".join(f"'{word}'" for word in command)
        process = subprocess.run(f"{line} {redirect}", shell=True, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_no_partial_output(
    scene: Scene, tmp_path: Path, name: str, code: int, suffix: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    args = (*scene.args, "-o", folder / f"out{suffix}", "--chip-size", 32, "--batch-size", 1)
    with program("analyze", *args, pause=0.5) as process:
        assert process.stderr is not None
        while "model scripted" not in process.stderr.readline():  # the run is under way
            assert process.poll() is None
        process.send_signal(getattr(signal, name))
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert stderr.splitlines()[-1] == f"Error: stopped by {name}"
    assert "Traceback" not in stderr
    assert {path.name for path in folder.iterdir()} <= {f"out{suffix}.journal.jsonl"}


def test_a_swallowed_signal_is_raised_at_the_next_step() -> None:
    """numpy's `choice` now and then loses the exception of a signal: the run went on to its end."""
    console = Console()
    with catch_signals() as console.signal_state, console.count_progress(2, "chips") as tell:
        tell(1, "")
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SignalReceived, match="SIGTERM"):
            tell(2, "")


def stub(folder: Path, package: str, source: str) -> dict[str, str]:
    """Environment in which importing `package` runs `source`."""
    (folder / "stubs").mkdir()
    (folder / "stubs" / f"{package}.py").write_text(source)
    return os.environ | {"PYTHONPATH": f"{folder / 'stubs'}{os.pathsep}{ROOT}"}


@pytest.mark.skipif(os.name == "nt", reason="no process can be sent a Ctrl-C alone")
@pytest.mark.parametrize("argv", [["-m", "deltacli"], ["bin/deltavlm"]])
def test_ctrl_c_during_imports(tmp_path: Path, argv: list[str]) -> None:
    """It showed a traceback of a KeyboardInterrupt."""
    environment = stub(tmp_path, "typer", "import time\nprint(flush=True)\ntime.sleep(30)\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/deltavlm").write_text("import sys\nfrom deltacli.main import app\nsys.exit(app())\n")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *argv], cwd=tmp_path, env=environment, **streams) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (-signal.SIGINT, b"")  # 130 in a shell


def test_importing_the_package_leaves_the_signal_handler() -> None:
    code = "import signal, deltacli.main; print(signal.getsignal(signal.SIGINT) is signal.SIG_DFL)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout == "False\n"


@pytest.mark.slow
def test_a_torchvision_built_for_another_torch(scene: Scene, tmp_path: Path) -> None:
    """It was an `unexpected RuntimeError` without a remedy."""
    environment = stub(
        tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "deltacli", "analyze", *scene.args, "--runtime", "torch"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    line = process.stderr.splitlines()[-1]
    assert line.startswith("Error: torch and torchvision do not fit together (")
    assert line.endswith("); run deltavlm doctor")
    assert not list(tmp_path.glob("*.gpkg"))


def on_terminal(*args: object) -> tuple[int, str, str]:
    """Exit code, stdout, and the output of a terminal on stderr."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    terminal = b""
    with program(*args, pause=0.05, stderr=slave) as process:
        os.close(slave)
        with suppress(OSError):  # end of file of a pseudo-terminal
            while chunk := os.read(master, 4096):
                terminal += chunk
        written, _ = process.communicate(timeout=20)
    os.close(master)
    return process.returncode, written, terminal.decode()


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar_with_eta_and_a_table(scene: Scene, tmp_path: Path) -> None:
    args = (*scene.args, "-o", tmp_path / "out.gpkg", "--chip-size", 32, "--batch-size", 1)
    code, written, stderr = on_terminal("analyze", *args)
    assert (code, written) == (0, "")
    assert "ETA" in stderr
    assert re.search(r"\d+/15", stderr)
    assert "Most changed chips" in stderr
    assert scene.changed_chip in stderr


@pytest.mark.slow
def test_the_progress_bar_does_not_capture_stdout(scene: Scene) -> None:
    """Rich's Progress takes over stdout too, and would draw `-o - | ...` on the terminal above the bar."""
    code, written, stderr = on_terminal(
        "analyze", *scene.args, "-o", "-", "--chip-size", 32, "--batch-size", 1
    )
    assert code == 0
    assert "ETA" in stderr
    assert len([json.loads(line) for line in written.splitlines()]) == 15
    assert "Feature" not in stderr


@pytest.mark.slow
def test_a_pipe_gets_plain_progress_lines(scene: Scene, tmp_path: Path) -> None:
    args = (*scene.args, "-o", tmp_path / "out.gpkg", "--chip-size", 32, "--batch-size", 1)
    with program("analyze", *args, pause=0.2) as process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [line for line in stderr.splitlines() if line.startswith("chips ")]
    assert lines
    assert re.fullmatch(r"chips \d+/15 \(\d+ %\), \d+ changed, [\d.]+ chips/s, ETA \d+ s", lines[0])
    assert "\r" not in stderr
    assert "\x1b" not in stderr


def test_progress_can_be_turned_off(run: Run, scene: Scene) -> None:
    for args in (["--no-progress", "analyze", *scene.args], ["analyze", *scene.args, "--no-progress"]):
        result = run(*args, "-o", "out.gpkg", "--overwrite", "--chip-size", 32, "--batch-size", 1)
        assert not [line for line in result.stderr.splitlines() if line.startswith("chips ")]


def test_colours_only_on_request_or_on_a_terminal(run: Run) -> None:
    assert "\x1b" not in run("analyze", "a", "b").stderr
    assert "\x1b[1;31mError:\x1b[0m" in run("analyze", "a", "b", "--color", "always").stderr
    assert "\x1b" in run("--color", "always", "analyze", "a", "b").stderr
    assert run("analyze", "a", "b", "--color", "sometimes").exit_code == 2


def test_flags_override_variables_and_these_the_file_of_defaults(
    run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("c.toml").write_text("[analyze]\nchip-size = 64\nbands = [3, 2, 1]\nno_such = 1\n")
    result = run("--config", "c.toml", "analyze", *scene.args, "-n")
    assert result.exit_code == 2
    assert "no_such" in one_line(result)
    Path("c.toml").write_text("[analyze]\nchip-size = 64\nbands = [3, 2, 1]\njson = true\n")

    def chip_px(*args: object) -> int:
        return int(json.loads(run(*args).stdout)["chip_px"])

    for words in (
        ["--config", "c.toml", "analyze", *scene.args],
        ["analyze", *scene.args, "--config", "c.toml"],
    ):
        assert chip_px(*words, "-n") == 64
        monkeypatch.setenv("DELTAVLM_ANALYZE_CHIP_SIZE", "48")
        assert chip_px(*words, "-n") == 48
        assert chip_px(*words, "-n", "--chip-size", 40) == 40
        monkeypatch.delenv("DELTAVLM_ANALYZE_CHIP_SIZE")
    assert chip_px("analyze", *scene.args, "-n", "--json") == 256
    plan = json.loads(run("--config", "c.toml", "analyze", *scene.args, "-n").stdout)
    assert plan["inputs"]["before"]["bands"] == [3, 2, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[analyse]\n", ("'analyse'", "'analyze'")),
        ("[synth.chip]\n", ("'chip'", "'chips'")),
        ("[synth.chips]\ncuont = 3\n", ("'cuont'", "[synth.chips]", "'count'")),
        ("[analyze]\nchipsize = 3\n", ("'chipsize'", "'chip-size'")),
        ("analyze = 3\n", ("[analyze]",)),
        ("[analyze\n", ("not valid TOML",)),
    ],
)
def test_errors_in_a_config_file(run: Run, text: str, words: tuple[str, ...]) -> None:
    Path("c.toml").write_text(text)
    result = run("--config", "c.toml", "analyze", "a", "b")
    assert result.exit_code == 2
    line = one_line(result)
    for word in ("c.toml", *words):
        assert word in line


def test_a_variable_named_like_the_program_shows_no_version(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build scripts set such things."""
    monkeypatch.setenv("DELTAVLM_VERSION", "1")
    assert "no such file" in run("analyze", "a", "b").stderr


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("after.tif", "after_changes.gpkg"),
        ("/data/x/2020.v2.tif", "2020.v2_changes.gpkg"),
        ("https://host/a/after.tif?token=a/b.c", "after_changes.gpkg"),
        ("s3://bucket/key/after.tif", "after_changes.gpkg"),
        ("/vsizip/a.zip/in/after.tif", "after_changes.gpkg"),
        ("C:\\data\\after.tif", "after_changes.gpkg"),
        ("https://host/", "raster_changes.gpkg"),
    ],
)
def test_default_output(source: str, name: str) -> None:
    assert parsing.default_output(source, "_changes.gpkg") == name


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 59.6, 75.2, 3600, 7384)] == [
        "0 s",
        "1 min 00 s",
        "1 min 15 s",
        "1 h 00 min",
        "2 h 03 min",
    ]
