"""Run the commands of the tutorials, and build the documentation site."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from deltacli.main import app
from deltavlm.metrics import java

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
OUTPUTS = {
    "first-map": {"map.gpkg", "map.html", "map.png", "ground.gpkg", "ground.tif", "squares.md"},
    "your-question": {"answer.geojson", "roads.gpkg", "questions.yaml", "houses.gpkg", "talk.jsonl"},
    "score-a-model": {"mini.json", "mini.md", "mini.predictions.jsonl", "again.json", "again.md"},
}


def blocks(page: Path, language: str) -> str:
    """The code blocks of a page in one language, joined to a script."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder, which contains `sample_data`."""
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# A function that only records the words of a command, and the text that a pipe brings to it
RECORDER = """
deltavlm() {
    local call=calls/$(ls calls | wc -l)
    mkdir "$call"
    printf '%s\\0' "$@" > "$call/words"
    [[ ! -p /dev/stdin ]] || cat > "$call/input"
}
mkdir calls
"""


def recorded_commands(script: str) -> list[tuple[list[str], str | None]]:
    """Run a bash script in which `deltavlm` is RECORDER's; returns words and input of each command."""
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", RECORDER + script], stdin=subprocess.DEVNULL, check=True
    )
    commands = []
    for call in sorted(Path("calls").iterdir(), key=lambda folder: int(folder.name)):
        words = (call / "words").read_text().removesuffix("\0").split("\0")
        piped = call / "input"
        commands.append((words, piped.read_text() if piped.exists() else None))
    return commands


def test_every_tutorial_is_tested() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.md")} == {*OUTPUTS, "python"}


@pytest.fixture
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train --dry-run` measures two steps with two pairs; Java programs run once on the same lines."""
    monkeypatch.setattr("deltavlm.training.estimate.MEASURED_STEPS", 2)
    monkeypatch.setattr("deltavlm.training.estimate.CPU_PAIRS", 2)
    monkeypatch.setattr("deltavlm.training.estimate.MEASURED_PAIRS", 2)
    outputs: dict[str, list[str]] = {}

    def remembered(*call: Any) -> list[str]:
        key = repr(call)
        if key not in outputs:
            outputs[key] = start_java(*call)
        return outputs[key]

    start_java = java._java
    monkeypatch.setattr(java, "_java", remembered)


@pytest.mark.slow
@pytest.mark.usefixtures("short_measurements")
@pytest.mark.skipif(shutil.which("bash") is None, reason="tutorials use bash")
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_tutorial_runs(name: str, here: Path) -> None:
    """In this process: importing torch for each command took longer than the commands."""
    commands = recorded_commands(blocks(TUTORIALS / f"{name}.md", "bash"))
    assert len(commands) >= 4
    for words, piped in commands:
        result = CliRunner().invoke(app, words, input=piped)
        assert result.exit_code == 0, (words, result.stderr)
    assert OUTPUTS[name] <= {path.name for path in here.iterdir()}


def run_python(page: Path) -> None:
    """Run the Python blocks of a page as one program."""
    exec(compile(blocks(page, "python"), page.name, "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_the_python_tutorial_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_python(TUTORIALS / "python.md")
    stdout = capsys.readouterr().out
    assert stdout.startswith("4 of 12 chips changed, 0 failed\n")
    assert "missing failed: " in stdout
    files = {path.name for path in here.iterdir()}
    assert files >= {"map.gpkg", "part.geojson", "part.changes.geojson", "mask.tif", "all.gpkg"}
    assert "none.gpkg" not in files


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_python(ROOT / "README.md")
    assert capsys.readouterr().out.startswith("4 ChangedChip(")
    assert Path("changes.gpkg").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason="needs pip install '.[docs]'")
def test_the_site_has_a_page_for_each_command(tmp_path: Path) -> None:
    """With --strict, so a broken link is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert process.returncode == 0, process.stderr
    pages = {path.name for path in (tmp_path / "site" / "commands").iterdir()}
    for name, top in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        words = [name, *(f"{name}-{below}" for below in getattr(top, "commands", {}))]
        assert pages >= set(words)
        for option in (option for option in top.params if not getattr(option, "hidden", False)):
            text = (tmp_path / "site" / "commands" / name / "index.html").read_text(encoding="utf-8")
            assert all(flag in text for flag in option.opts if flag.startswith("--")), option.name
    for page in (tmp_path / "site").rglob("*.html"):
        assert "https://fonts." not in page.read_text(encoding="utf-8")
