"""Program runner of the QGIS plugin, without QGIS: the program is found, checked, heard and stopped."""

from __future__ import annotations

import configparser
import importlib.util
import os
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deltavlm.version import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
PLUGIN = ROOT / "qgis" / "deltavlm_processing"


def load_program() -> Any:
    spec = importlib.util.spec_from_file_location("deltavlm_processing_program", PLUGIN / "program.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


program = load_program()


def script(path: Path, text: str) -> Path:
    """A program in Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No deltavlm on PATH, nor in the home folder."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_setting_goes_before_the_path_and_the_path_before_the_private_one(nowhere: Path) -> None:
    private = script(program.private_program(nowhere / "private"), "")
    assert program.find_program("", nowhere / "private") == str(private)
    linked = script(nowhere / "home" / ".local" / "bin" / "deltavlm", "")
    assert program.find_program("", nowhere / "private") == str(linked)
    on_path = script(nowhere / "bin" / "deltavlm", "")
    assert program.find_program("", nowhere / "private") == str(on_path)
    chosen = script(nowhere / "chosen" / "deltavlm", "")
    assert program.find_program(str(chosen.parent), nowhere / "private") == str(chosen)


def test_a_missing_program_is_told_with_what_to_do(nowhere: Path) -> None:
    with pytest.raises(program.ProgramError, match=r"no deltavlm program found\. Run the algorithm 'Install"):
        program.find_program("", nowhere / "private")
    with pytest.raises(program.ProgramError, match="is not a program; set its path in Settings"):
        program.find_program(str(nowhere / "deltavlm"), nowhere / "private")


def test_an_old_version_is_refused(tmp_path: Path) -> None:
    old = script(tmp_path / "old", "print('deltavlm 0.0.9')")
    with pytest.raises(program.ProgramError, match=r"is deltavlm 0\.0\.9, and this plugin needs 0\.1\.0"):
        program.check_version(str(old))
    assert program.check_version(str(script(tmp_path / "new", "print('deltavlm 0.10.2.dev1')"))) == "0.10.2"


def test_another_program_is_refused(tmp_path: Path) -> None:
    for name, text in (("other", "print('hello')"), ("broken", "raise SystemExit('no module x')")):
        path = script(tmp_path / name, text)
        with pytest.raises(program.ProgramError, match=r"not a working deltavlm: (hello|no module x)"):
            program.check_version(str(path))


def test_the_plugin_accepts_the_version_of_this_package(tmp_path: Path) -> None:
    own = script(tmp_path / "own", f"print('deltavlm {__version__}')")
    assert program.check_version(str(own)) == __version__


def test_the_program_does_not_inherit_the_python_and_proj_of_qgis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONHOME", "PYTHONPATH", "PROJ_DATA", "GDAL_DATA", "MINE"):
        monkeypatch.setenv(name, "/x")
    show = script(
        tmp_path / "show", "import os; print(sorted(n for n, v in os.environ.items() if v == '/x'))"
    )
    result = program.run([str(show)], is_canceled=lambda: False, on_message=print)
    assert result.stdout.strip() == "['MINE']"


def test_messages_results_and_errors_are_read(tmp_path: Path) -> None:
    path = script(
        tmp_path / "talk",
        "import json, sys\n"
        "for m in ({'level': 'info', 'message': 'chips', 'done': 1, 'total': 4},"
        " {'level': 'error', 'message': 'no disk'}): print(json.dumps(m), file=sys.stderr)\n"
        "print('a library speaks', file=sys.stderr)\n"
        "print(json.dumps({'chips': 4}))\n"
        "sys.exit(1)",
    )
    messages: list[dict[str, Any]] = []
    result = program.run([str(path)], is_canceled=lambda: False, on_message=messages.append)
    assert (result.code, result.errors, result.canceled) == (1, ["no disk"], False)
    assert result.objects() == [{"chips": 4}]
    assert [message["message"] for message in messages] == ["chips", "no disk", "a library speaks"]
    assert messages[0]["done"] == 1


def test_cancel_sends_a_signal_that_the_program_can_catch(tmp_path: Path) -> None:
    path = script(
        tmp_path / "wait",
        "import signal, sys, time\n"
        "def stop(*_):\n    print('kept'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "time.sleep(600)",
    )
    heard: list[str] = []
    result = program.run(
        [str(path)],
        is_canceled=lambda: bool(heard),
        on_message=lambda message: heard.append(message["message"]),
    )
    assert (result.canceled, result.code, result.stdout.strip()) == (True, 143, "kept")


def test_a_program_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "STOP_TIMEOUT_S", 0.2)
    path = script(
        tmp_path / "deaf",
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "time.sleep(600)",
    )
    heard: list[Any] = []
    result = program.run([str(path)], is_canceled=lambda: bool(heard), on_message=heard.append)
    assert result.canceled
    assert result.code == -9


def test_a_program_that_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no program")
    with pytest.raises(program.ProgramError, match="cannot be started"):
        program.run([str(path)], is_canceled=lambda: False, on_message=print)


def test_the_private_environment_is_made_by_uv(nowhere: Path) -> None:
    with pytest.raises(program.ProgramError, match="uv is needed"):
        program.find_uv()
    uv = script(nowhere / "bin" / "uv", "")
    commands = program.install_commands(program.find_uv(), nowhere / "private", "deltavlm==0.1.0")
    assert [command[0] for command in commands] == [str(uv)] * 2
    assert commands[0][-1] == str(nowhere / "private")
    assert commands[1][-2:] == [str(nowhere / "private"), "deltavlm==0.1.0"]


def test_an_update_that_fails_leaves_the_private_environment_that_works(nowhere: Path) -> None:
    """Nothing is cleared before the packages are there; an environment that is broken is made anew."""
    private = program.private_program(nowhere / "private")
    script(private, "print('deltavlm 0.1.0')")
    (command,) = program.install_commands("uv", nowhere / "private", "deltavlm")
    assert command[:3] == ["uv", "pip", "install"]
    assert "--upgrade" in command
    script(private, "raise SystemExit('no module deltacli')")
    os.utime(private, (1, 1))  # versions are remembered by time of modification
    assert [words[1] for words in program.install_commands("uv", nowhere / "private", "deltavlm")] == [
        "venv",
        "pip",
    ]


def test_the_zip_installs_and_its_metadata_are_complete(tmp_path: Path) -> None:
    build = runpy.run_path(str(ROOT / "qgis" / "build_zip.py"))
    path = build["build_zip"](
        tmp_path, {"repository": "https://example.org/deltavlm", "email": "maps@example.org"}
    )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        metadata = configparser.ConfigParser()
        metadata.read_string(archive.read("deltavlm_processing/metadata.txt").decode())
    assert {name.split("/")[0] for name in names} == {"deltavlm_processing"}
    assert {"deltavlm_processing/LICENSE", "deltavlm_processing/icon.svg"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    general = metadata["general"]
    assert build["missing_metadata"](general) == []
    assert general["tracker"] == "https://example.org/deltavlm/issues"
    assert (general["version"], general["supportsQt6"], general["hasProcessingProvider"]) == (
        __version__,
        "True",
        "yes",
    )
    assert build["missing_metadata"](build["read_metadata"]()["general"]) == [
        *("email", "homepage", "tracker", "repository"),
    ]


def test_the_plugin_imports_no_package_but_those_of_qgis() -> None:
    from tests.imports import imports_of

    own = {path.stem for path in PLUGIN.glob("*.py")}
    for path in PLUGIN.glob("*.py"):
        names = {name.split(".")[0] for _, name in imports_of(path, PLUGIN.parent)}
        strange = names - {"qgis", "processing", "deltavlm_processing"} - own - sys.stdlib_module_names
        assert not strange, f"{path}: {strange}"
