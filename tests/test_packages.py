"""Files by which deltavlm is packaged agree with each other: pyproject.toml, recipe, plugin, citation."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pyogrio
import pytest
import yaml
from click.testing import CliRunner

from deltavlm.version import __version__
from tests.sample import write_corner

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RECIPE = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
#: names on the package index -> names on conda-forge
CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}


def requirement(text: str) -> tuple[str, str]:
    """`rasterio>=1.4,<2` or `rasterio >=1.4,<2` -> name on conda-forge and versions."""
    match = re.fullmatch(r"([\w-]+) ?(.*)", text)
    assert match is not None
    return CONDA_NAMES.get(match[1], match[1]), match[2]


def run_requirements(output: dict[str, Any]) -> dict[str, str]:
    return dict(requirement(text) for text in output["requirements"]["run"] if "${{" not in text)


def test_the_conda_recipe_asks_for_what_pyproject_asks_for() -> None:
    light, torch = RECIPE["outputs"]
    assert run_requirements(light) == dict(map(requirement, PROJECT["dependencies"]))
    assert run_requirements(torch) == dict(map(requirement, PROJECT["optional-dependencies"]["torch"]))
    assert [host.replace(" ", "") for host in light["requirements"]["host"][2:]] == PYPROJECT["build-system"][
        "requires"
    ]
    (entry_point,) = light["build"]["python"]["entry_points"]
    assert entry_point == f"deltavlm = {PROJECT['scripts']['deltavlm']}"
    assert PROJECT["requires-python"] == f">={RECIPE['context']['python_min']}"


def test_versions_are_the_same_everywhere() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "qgis" / "deltavlm_processing" / "metadata.txt", encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {RECIPE["context"]["version"], metadata["general"]["version"], citation["version"]}
    assert versions == {__version__}


def test_the_description_on_the_package_index_has_no_link_that_leads_nowhere() -> None:
    """README.md as hatch-fancy-pypi-readme changes it: no relative links nor pictures, all commands."""
    readme = text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets == [
        target for target in re.findall(r"\]\(([^)]*)\)", readme) if target.startswith("https://")
    ]
    assert "The pair is synthetic" not in text  # the caption of a picture that is left out
    assert re.findall(r"^(#.*|```.*|deltavlm .*)$", text, re.M) == re.findall(
        r"^(#.*|```.*|deltavlm .*)$", readme, re.M
    )


def test_zenodo_and_the_citation_agree() -> None:
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for name in ("title", "license", "keywords"):
        assert zenodo[name] == citation[name]
    assert zenodo["description"] == citation["abstract"]
    assert zenodo["creators"] == citation["authors"]
    assert zenodo["related_identifiers"][0]["identifier"] == citation["references"][0]["doi"]


def test_the_extras_of_the_dockerfile_exist() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_rio_changes_is_analyze(monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = PROJECT["entry-points"]["rasterio.rio_plugins"]["changes"].split(":")
    command = getattr(__import__(module, fromlist=[name]), name)
    calls: list[Any] = []
    monkeypatch.setattr("deltacli.main.app", lambda **arguments: calls.append(arguments))
    result = CliRunner().invoke(command, ["a.tif", "b.tif", "-o", "out.gpkg", "--limit", "1", "--help"])
    assert result.exit_code == 0
    words = ["analyze", "a.tif", "b.tif", "-o", "out.gpkg", "--limit", "1", "--help"]
    assert calls == [{"args": words, "prog_name": "deltavlm"}]


@pytest.mark.slow
def test_the_step_of_a_gdal_pipeline_writes_what_gdal_reads(tmp_path: Path) -> None:
    """The command of `gdal external`, with files in place of <INPUT> and <OUTPUT>, as GDAL runs it."""
    text = (ROOT / "docs" / "cron.md").read_text(encoding="utf-8")
    line = re.search(r'<!-- test:gdal -->\n```bash\n.* external "([^"]+)"', text)
    assert line is not None
    write_corner(tmp_path)
    command = line[1].replace("<INPUT>", "after.tif").replace("<OUTPUT>", f"{tmp_path}/step_out.gpkg")
    program = tmp_path / "deltavlm"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m deltacli "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(pyogrio.read_dataframe(tmp_path / "step_out.gpkg", layer="chips")) == 4


def gdal_version() -> tuple[int, ...]:
    """Version of the program gdal, (0,) where there is none."""
    if shutil.which("gdal") is None:
        return (0,)
    text = subprocess.run(["gdal", "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"GDAL (\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else (0,)


@pytest.mark.slow
@pytest.mark.skipif("gdal_version() < (3, 13)", reason="no gdal 3.13 for pipelines with external programs")
def test_the_whole_line_of_a_gdal_pipeline(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "cron.md").read_text(encoding="utf-8")
    line = re.search(r"<!-- test:gdal -->\n```bash\n(.*)\n", text)
    assert line is not None
    write_corner(tmp_path)
    program = tmp_path / "deltavlm"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m deltacli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["/bin/sh", "-c", line[1]], cwd=tmp_path, env=environment, check=True, capture_output=True)
    chips = pyogrio.read_info(tmp_path / "changes.gpkg", layer="chips")
    assert (chips["features"], "deltavlm" in chips["layer_metadata"]) == (4, True)
    styles = pyogrio.read_dataframe(tmp_path / "changes.gpkg", layer="layer_styles")
    assert set(styles["f_table_name"]) == {"chips", "locations"}
