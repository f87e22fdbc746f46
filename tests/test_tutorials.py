"""Run the commands of the tutorials, and build the documentation site."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from deltacli.main import app

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
OUTPUTS = {
    "first-map": {"map.gpkg", "map.html", "map.png", "ground.gpkg", "ground.tif", "squares.md"},
    "your-question": {"roads.gpkg", "questions.yaml", "houses.gpkg", "talk.jsonl"},
    "score-a-model": {"mini.json", "mini.md", "mini.predictions.jsonl", "again.json", "again.md"},
}


def blocks(page: Path, language: str) -> str:
    """The code blocks of a page in one language, joined to a script."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def run_script(command: list[str], folder: Path) -> str:
    """Run a program in a folder that contains `sample_data`; returns its stdout."""
    shutil.copytree(ROOT / "sample_data", folder / "sample_data")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_tutorial_is_tested() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.md")} == {*OUTPUTS, "python"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="tutorials use bash")
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_tutorial_runs(name: str, tmp_path: Path) -> None:
    program = f'deltavlm() {{ "{sys.executable}" -m deltacli "$@"; }}'
    commands = blocks(TUTORIALS / f"{name}.md", "bash")
    run_script(["bash", "-euo", "pipefail", "-c", f"{program}\n{commands}"], tmp_path)
    assert OUTPUTS[name] <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_python_tutorial_runs(tmp_path: Path) -> None:
    stdout = run_script([sys.executable, "-c", blocks(TUTORIALS / "python.md", "python")], tmp_path)
    assert stdout.startswith("7 of 12 chips changed, 0 failed\n")
    assert "missing failed: " in stdout
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"map.gpkg", "part.geojson", "part.changes.geojson", "mask.tif", "all.gpkg"}
    assert "none.gpkg" not in files


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    stdout = run_script([sys.executable, "-c", blocks(ROOT / "README.md", "python")], tmp_path)
    assert stdout.startswith("7 ChangedChip(")
    assert (tmp_path / "changes.gpkg").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason="needs pip install '.[docs]'")
def test_the_site_has_a_page_for_each_command(tmp_path: Path) -> None:
    """With --strict, so a broken link is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
