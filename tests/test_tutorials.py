"""The tutorials, run as they stand; and the documentation as a site, where mkdocs is installed."""

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
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```bash\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
LEFT = {
    "first-map": {"map.gpkg", "map.html", "map.png", "ground.gpkg", "ground.tif", "squares.md"},
    "your-question": {"roads.gpkg", "questions.yaml", "houses.gpkg", "talk.jsonl"},
    "score-a-model": {"mini.json", "mini.md", "mini.predictions.jsonl", "again.json", "again.md"},
}


def test_there_are_three_tutorials() -> None:
    assert {path.stem for path in TUTORIALS} == set(LEFT)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the tutorials are for bash")
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    script = ["set -euo pipefail", f'deltavlm() {{ "{sys.executable}" -m deltacli "$@"; }}', *blocks]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert LEFT[page.stem] <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason='needs pip install "deltavlm[docs]"')
def test_the_site_is_built_and_has_a_page_for_each_command(tmp_path: Path) -> None:
    """Strict: a link that leads nowhere is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (tmp_path / "site" / "commands").iterdir()}
    for name, top in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        words = [name, *(f"{name}-{below}" for below in getattr(top, "commands", {}))]
        assert pages >= set(words)
        for option in (option for option in top.params if not getattr(option, "hidden", False)):
            text = (tmp_path / "site" / "commands" / name / "index.html").read_text(encoding="utf-8")
            assert all(flag in text for flag in option.opts if flag.startswith("--")), option.name
    for page in (tmp_path / "site").rglob("*.html"):
        assert "https://fonts." not in page.read_text(encoding="utf-8")
