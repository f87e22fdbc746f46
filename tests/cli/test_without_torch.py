"""A light install: commands in a process that cannot import torch nor the packages installed with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltavlm.extras import EXTRAS, TORCH_PACKAGES, install_command
from tests.chat_server import chat_server
from tests.cli.conftest import ROOT
from tests.sample import write_corner
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

SAMPLE = ("before.tif", "after.tif")
PLACE = ("--at", "15.002,48.751")
DATES = ("--before-date", "2015", "--after-date", "2024")
CHATS = str(ROOT / "sample_data" / "changechat_mini")

PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))  # importing one of these fails
from typer.testing import CliRunner
from deltacli.main import app
from deltavlm import analyze, load_model
for *args, stdin in json.loads(sys.argv[2]):
    result = CliRunner().invoke(app, args, input=stdin)
    print(json.dumps([result.exit_code, result.stdout, result.stderr]), flush=True)
"""

WORKS = {
    "analyze": ["analyze", *SAMPLE, "-o", "out.gpkg", "--polygons", "--probability", "p.tif"],
    "dry run": ["analyze", *SAMPLE, "--dry-run"],
    "ask": ["ask", *SAMPLE, "Has a road been built?", *PLACE],
    "chat": ["chat", *SAMPLE, *PLACE],
    "report": ["report", "out.gpkg", "-o", "out.html"],
    "summarize": ["summarize", "out.gpkg", "--by", "grid", "--cell", "100"],
    "stac": ["stac", "out.gpkg", "-o", "items.json", *DATES],
    "polygonize": ["polygonize", "out.gpkg", "--overwrite"],
    "grid": ["grid", SAMPLE[0], "-o", "grid.geojson"],
    "eval": ["eval", CHATS, "--limit", "2", "--bootstrap", "0"],
    "data": ["data", "check", CHATS],
    "synth": ["synth", "scene", "made", "--width", "256", "--height", "256"],
    "doctor": ["doctor"],
    "doctor of a model": ["doctor", "--model", "nano"],
    "weights": ["weights", "list"],
    "training configuration": ["train", "train_nano", "--print-config"],
}
ONE_OPTION = {
    "runtime": (["--runtime", "torch"], "--runtime torch needs torch"),
    "device": (["--device", "cuda"], "it runs on a CPU, not on --device cuda), the model nano needs torch"),
    "beams": (["--beams", "3"], "the model nano needs torch"),
    "quantize": (["--quantize", "int8"], "the model nano needs torch"),
}
REFUSED = {
    **{name: (["analyze", *SAMPLE, *flags], words) for name, (flags, words) in ONE_OPTION.items()},
    "dry run": (["analyze", *SAMPLE, "--dry-run", "--runtime", "torch"], "--runtime torch needs torch"),
    "ask": (["ask", *SAMPLE, "Trees?", *PLACE, "--model", "tiny"], "tiny has no graphs"),
    "7b": (["analyze", *SAMPLE, "--model", "deltavlm-7b"], "the model deltavlm-7b needs torch"),
    "hf": (["analyze", *SAMPLE, "--model", "hf:tiny"], "hf:tiny needs torch"),
    "eval": (["eval", CHATS, "--model", "tiny"], "the model tiny needs torch"),
    "doctor": (["doctor", "--model", "tiny"], "the model tiny needs torch"),
    "train": (["train", "train_nano", "-o", "run"], "training needs torch"),
    "fetch": (["weights", "fetch"], "the conversion of the downloaded files"),
    "inspect": (["weights", "inspect", "x.pth"], "weights inspect needs torch"),
    "verify": (["weights", "verify", "tiny", "--expected", "x"], "weights verify needs torch"),
    "export": (["weights", "export", "tiny"], "weights export needs torch"),
}


def run(folder: Path, *commands: list[str], home: str = "") -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of commands about SAMPLE, run one after the other in one process."""
    write_corner(folder)
    lines = [[*command, "Any new roads?\n"] for command in commands]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "DELTAVLM_HOME": home}
    environment["PATH"] = ""  # without Java, which takes longer to score two pairs than all commands
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(TORCH_PACKAGES), json.dumps(lines)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    results = run(tmp_path_factory.mktemp("works"), *WORKS.values())
    return dict(zip(WORKS, results, strict=True))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("refused")
    for name in ("tiny", "deltavlm-7b"):
        (folder / name).mkdir()
        tiny_checkpoint(folder / name)
    commands = [command for command, _ in REFUSED.values()]
    return dict(zip(REFUSED, run(folder, *commands, home=str(folder)), strict=True))


@pytest.mark.parametrize("name", WORKS)
def test_it_works(worked: dict[str, tuple[int, str, str]], name: str) -> None:
    code, stdout, stderr = worked[name]
    assert code == 0, stderr
    words = {
        "analyze": "changed",
        "polygonize": "polygons of change",
        "doctor": "ok       torch        not installed",
        "doctor of a model": "has a mask head",
    }
    assert words.get(name, "") in stdout + stderr


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_one_line(refused: dict[str, tuple[int, str, str]], name: str) -> None:
    code, stdout, stderr = refused[name]
    (line,) = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert (code, stdout) == (2, ""), stderr
    assert "Traceback" not in stderr
    assert REFUSED[name][1] in line
    assert line.endswith('which is not installed; pip install "deltavlm[torch]"')


@pytest.mark.network
def test_a_model_behind_a_server(tmp_path: Path) -> None:
    with chat_server() as server:
        command = ["analyze", *SAMPLE, "--limit", "2", "--model", server.name, "-o", "out.gpkg"]
        ((code, _, stderr),) = run(tmp_path, command)
    assert code == 0, stderr
    assert "model tiny (" in stderr


def test_every_extra_is_in_the_metadata() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = extras["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(line.startswith(package) for line in optional[extra]), package
        assert not any(line.startswith(package) for line in extras["dependencies"])
    assert install_command("peft") == 'pip install "deltavlm[peft]"'
