"""Algorithms of the QGIS plugin in the QGIS of this machine, on the sample pair, with nano.

Skipped where QGIS is not installed. QGIS runs in a process of its own, with its own Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio

from tests.sample import write_corner

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("qgis_run.py")
MODEL3 = ROOT / "qgis" / "deltavlm_processing" / "models" / "changes_and_report.model3"
BEFORE, AFTER = (str(ROOT / "sample_data" / f"{date}.tif") for date in ("before", "after"))
PAIR = {"BEFORE": BEFORE, "AFTER": AFTER}
QGIS_PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")
#: Debian's wrapper `qgis_process` passes a flag that the program refuses
QGIS_PROCESS = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
SETPRIV = shutil.which("setpriv") or ""
SMALL = "500000,500128,5399872,5400000 [EPSG:32633]"  # one chip, and parts of three where chips overlap


@cache
def has_qgis() -> bool:
    try:
        process = subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], capture_output=True, check=False)
    except OSError:
        return False
    return process.returncode == 0 and QGIS_PROCESS is not None


pytestmark = [
    pytest.mark.qgis,
    pytest.mark.slow,
    pytest.mark.skipif("not has_qgis()", reason=f"no QGIS for {QGIS_PYTHON}"),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment of QGIS: its own Python, an empty profile, no window, this `deltavlm` on PATH."""
    program = tmp_path / "bin" / "deltavlm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m deltacli "$@"\n')
    program.chmod(0o755)
    return {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "QT_QPA_PLATFORM": "offscreen",
        "GDAL_PAM_ENABLED": "NO",  # no statistics beside the sample images
        "QGIS_CUSTOM_CONFIG_PATH": str(tmp_path / "profile"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Part of the sample pair, where all chips are asked."""
    before, after = write_corner(tmp_path_factory.mktemp("corner"))
    return {"BEFORE": str(before), "AFTER": str(after)}


def run_steps(
    environment: dict[str, str], tmp_path: Path, *steps: dict[str, Any], under: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What QGIS got for each step of `qgis_run.py`, started by another program where one is named."""
    work = tmp_path / "work.json"
    work.write_text(json.dumps({"program": "", "steps": steps}))
    command = [*under, QGIS_PYTHON, str(SCRIPT), str(work)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    reports: list[dict[str, Any]] = json.loads(process.stdout.splitlines()[-1])
    return reports


def step(algorithm: str, **parameters: Any) -> dict[str, Any]:
    return {"algorithm": f"deltavlm:{algorithm}", "parameters": parameters}


def test_every_algorithm_runs_and_loads_styled_layers(
    environment: dict[str, str], tmp_path: Path, corner: dict[str, str]
) -> None:
    out, probability, html = tmp_path / "out.gpkg", tmp_path / "probability.tif", tmp_path / "report.html"
    chips = f"{out}|layername=chips"
    analyze = step("analyze", **corner, OUTPUT=str(out), PROBABILITY=str(probability), EXTRA="--overlap 0")
    polygons = step("polygonize", INPUT=chips, MASK_THRESHOLD=0.9, OUTPUT=str(tmp_path / "surer.gpkg"))
    roads = step("polygonize", PROBABILITY=str(probability), CLASSES=[1], OUTPUT=str(tmp_path / "roads.gpkg"))
    areas = step("summarize", INPUTS=[chips], BY=2, CELL=200, OUTPUT=str(tmp_path / "areas.gpkg"))
    areas["parameters"]["TABLE"] = str(tmp_path / "areas.csv")
    reports = run_steps(
        environment,
        tmp_path,
        step("checkpair", **PAIR, EXTENT=SMALL),
        {**analyze, "load": ["OUTPUT", "PROBABILITY"]},
        step(
            "ask",
            **PAIR,
            POINT="500100,5399900 [EPSG:32633]",
            QUESTION="Has anything changed?\nWhat changed?",
        ),
        {**polygons, "load": ["OUTPUT"]},
        roads,
        {**areas, "load": ["OUTPUT"]},
        step("report", INPUT=chips, OUTPUT=str(html), QUICKLOOK=str(tmp_path / "quicklook.png")),
    )
    assert not [report["error"] for report in reports if "error" in report]
    checked, analyzed, asked, surer, of_roads, summed, _ = (report["results"] for report in reports)
    assert (checked["CHIP_COUNT"], round(checked["PIXEL_SIZE"], 2), checked["OVERLAP"]) == (1, 0.5, 1)
    assert checked["SECONDS"] > 0
    assert "`" not in checked["NOTES"]

    table = pyogrio.read_dataframe(out, layer="chips")
    assert (analyzed["CHIP_COUNT"], analyzed["CHANGED_COUNT"]) == (len(table), table["changed"].sum())
    assert (analyzed["OUTPUT"], analyzed["CHANGES"]) == (chips, f"{out}|layername=changes")
    layers = reports[1]["layers"]  # in the folder of temporary files a layer has the name of the parameter
    assert {name.lower().partition(" ")[0]: layer["renderer"] for name, layer in layers.items()} == {
        "chips": "graduatedSymbol",
        "changes": "categorizedSymbol",
        "locations": "categorizedSymbol",
        "probability": "multibandcolor",
    }
    assert all(layer["valid"] for layer in layers.values())

    answers = asked["ANSWER"].splitlines()
    assert (len(answers), answers[0] in ("yes", "no"), asked["STATUS"]) == (2, True, "answered")
    assert 0 <= asked["SCORE"] <= 1
    changes = pyogrio.read_dataframe(out, layer="changes")
    sure = pyogrio.read_dataframe(tmp_path / "surer.gpkg", layer="changes")
    assert 0 < surer["POLYGON_COUNT"] == len(sure)  # a larger one may fall into several
    assert 0 < sure.area.sum() < 0.9 * changes.area.sum()
    assert [layer["renderer"] for layer in reports[3]["layers"].values()] == ["categorizedSymbol"]
    road_classes = set(pyogrio.read_dataframe(tmp_path / "roads.gpkg", layer="changes")["class"])
    assert (of_roads["POLYGON_COUNT"] > 0, road_classes) == (True, {"road"})
    assert json.loads(summed["SUMMARY"])["all"]["changed"] == table["changed"].sum()
    assert [layer["renderer"] for layer in reports[5]["layers"].values()] == ["graduatedSymbol"]
    assert (tmp_path / "areas.csv").read_text().count("\n") > 2
    assert "<html" in html.read_text(encoding="utf-8")
    assert (tmp_path / "quicklook.png").stat().st_size > 1000


def test_cancel_keeps_the_journal_and_the_next_run_resumes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out.gpkg"
    run = {**step("analyze", **PAIR, OUTPUT=str(out), EXTRA="--overlap 0 --batch-size 1"), "load": ["OUTPUT"]}
    canceled, resumed = run_steps(environment, tmp_path, {**run, "cancel": True}, run)
    assert (canceled["results"], canceled["layers"]) == ({}, {})
    assert 0 < canceled["progress"][0] < 100
    kept = next(line for line in canceled["lines"] if "kept in" in line)
    count = int(kept.split()[0])
    assert 0 < count < 12
    assert "Canceled: stopped by SIGTERM" in canceled["lines"]
    assert any(line.startswith(f"resuming: {count} of 12") for line in resumed["lines"])
    assert resumed["results"]["CHIP_COUNT"] == 12
    assert sorted(path.name for path in tmp_path.glob("out.gpkg*")) == ["out.gpkg"]


def test_cancel_reaches_a_program_that_says_nothing_in_the_thread_of_the_windows(
    environment: dict[str, str], tmp_path: Path
) -> None:
    text = '#!/bin/sh\n[ "$1" = --version ] && echo deltavlm 9.0 && exit\nexec sleep 60\n'
    (tmp_path / "bin" / "deltavlm").write_text(text)
    (report,) = run_steps(environment, tmp_path, {**step("checkpair", **PAIR), "cancel_ms": 300})
    assert report["results"] == {}
    assert [line for line in report["lines"] if line.startswith("Canceled: ")]


def test_batch_mode_runs_each_row_and_tells_its_layers_apart(
    environment: dict[str, str], tmp_path: Path
) -> None:
    rows = [
        {**PAIR, "EXTRA": "--limit 1", "OUTPUT": str(tmp_path / "east.gpkg")},
        {"BEFORE": BEFORE, "AFTER": str(tmp_path / "missing.tif"), "OUTPUT": str(tmp_path / "no.gpkg")},
        {**PAIR, "EXTRA": "--limit 2", "POLYGONS": False, "OUTPUT": str(tmp_path / "west.gpkg")},
    ]
    (report,) = run_steps(environment, tmp_path, {"algorithm": "deltavlm:analyze", "rows": rows})
    assert set(report["layers"]) == {
        *("Changes (east)", "Chips (east)", "Locations (east)"),
        *("Chips (west)", "Locations (west)"),
    }
    counts = [
        len(pyogrio.read_dataframe(tmp_path / f"{name}.gpkg", layer="chips")) for name in ("east", "west")
    ]
    assert counts == [1, 2]
    lines = report["lines"]
    assert "1 executions failed. See log for further details." in lines
    assert not [line for line in lines if "not correctly generated" in line]  # of an output that is left out


def test_what_a_person_gets_wrong_is_said_in_the_dialog(environment: dict[str, str], tmp_path: Path) -> None:
    no_crs = tmp_path / "no_crs.tif"
    profile = {"driver": "GTiff", "width": 256, "height": 256, "count": 3, "dtype": "uint8"}
    with rasterio.open(no_crs, "w", **profile, transform=rasterio.Affine(1, 0, 0, 0, -1, 256)) as file:
        file.write(np.full((3, 256, 256), 90, np.uint8))
    (tmp_path / "there.gpkg").write_bytes(b"mine")
    out = str(tmp_path / "out.gpkg")
    wms = {"web": ["type=xyz&url=http://localhost:9/{z}/{x}/{y}.png&zmax=3&zmin=0", "wms", ""]}
    guessed = {"plain": [str(no_crs), "gdal", "EPSG:32633"]}
    steps = [
        {**step("analyze", BEFORE="web", AFTER=AFTER, OUTPUT=out), "layers": wms},
        {**step("checkpair", BEFORE="plain", AFTER="plain"), "layers": guessed},
        {**step("checkpair", BEFORE="plain", AFTER="plain", ALLOW_NO_CRS=True), "layers": guessed},
        step("analyze", **PAIR, OUTPUT="/nowhere/at/all/out.gpkg"),
        step("analyze", **PAIR, OUTPUT=str(tmp_path / "there.gpkg")),
        step("ask", **PAIR, QUESTION="What?", POINT="15,48.75 [EPSG:4326]", OUTPUT=out),
        step("install", AGREE=False),
    ]
    web, plain, allowed, folder, there, both, install = run_steps(environment, tmp_path, *steps)
    assert "The layer web is a web service (wms)" in web["error"]
    assert "has no CRS (QGIS takes it to be EPSG:32633, which the file does not say)" in plain["error"]
    assert allowed["results"]["CHIP_COUNT"] == 1
    assert (
        "There is no folder /nowhere/at/all; choose another file for 'Chips with answers'" in folder["error"]
    )
    assert 'exists already; add "Replace existing output files"' in there["error"]
    assert (tmp_path / "there.gpkg").read_bytes() == b"mine"
    assert "Give a place, or an output layer for all chips, not both" in both["error"]
    assert "Nothing is installed unless" in install["error"]


def qgis_process(environment: dict[str, str], *words: str) -> tuple[int, str]:
    """Exit code, and all that it prints."""
    process = subprocess.run(
        [str(QGIS_PROCESS), *words], env=environment, capture_output=True, text=True, check=False
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def installed(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Environment in which the plugin is installed and enabled."""
    plugins = tmp_path / "profile" / "profiles" / "default" / "python" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "deltavlm_processing").symlink_to(ROOT / "qgis" / "deltavlm_processing")
    code, text = qgis_process(environment, "plugins", "enable", "deltavlm_processing")
    assert code == 0, text
    return environment


@pytest.mark.skipif("not SETPRIV", reason="no setpriv")
def test_a_folder_without_permission_to_write_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    """Root writes everywhere, so QGIS runs without that capability."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    under = [SETPRIV, "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    (report,) = run_steps(
        environment, tmp_path, step("analyze", **PAIR, OUTPUT=str(locked / "out.gpkg")), under=under
    )
    assert f"No permission to write into {locked}; choose another file for" in report["error"]
    assert not [*locked.iterdir()]


def test_qgis_process_runs_an_algorithm_and_a_model_of_the_designer(
    installed: dict[str, str], tmp_path: Path, corner: dict[str, str]
) -> None:
    code, text = qgis_process(installed, "list")
    names = {line.split("\t")[1] for line in text.splitlines() if line.startswith("\tdeltavlm:")}
    assert names == {
        f"deltavlm:{name}"
        for name in ("analyze", "ask", "checkpair", "install", "polygonize", "report", "summarize")
    }
    pair = [f"BEFORE={BEFORE}", f"AFTER={AFTER}", f"EXTENT={SMALL}", f"OUTPUT={tmp_path / 'one.gpkg'}"]
    code, text = qgis_process(installed, "run", "deltavlm:analyze", "--", *pair)
    assert (code, "CHIP_COUNT:\t4" in text) == (0, True), text
    files = {
        **{"analyze:Chips": "chips.gpkg", "analyze:Probability": "probability.tif"},
        **{
            "polygons:Surer changes": "surer.gpkg",
            "report:Report": "report.html",
            "summary:Summary": "sum.csv",
        },
    }
    outputs = [f"{name}={tmp_path / file}" for name, file in files.items()]
    images = [f"{date.lower()}={path}" for date, path in corner.items()]
    code, text = qgis_process(installed, "run", str(MODEL3), "--", *images, *outputs)
    assert code == 0, text
    assert not [file for file in files.values() if not (tmp_path / file).is_file()]
    classes = set(pyogrio.read_dataframe(tmp_path / "surer.gpkg", layer="changes")["class"])
    assert classes >= {"building", "road"}  # not of one class, as a list without a value would mean


def test_qgis_process_says_that_there_is_no_program(installed: dict[str, str], tmp_path: Path) -> None:
    pair = [f"BEFORE={BEFORE}", f"AFTER={AFTER}"]
    without = {**installed, "PATH": "/usr/bin:/bin"}
    code, text = qgis_process(without, "run", "deltavlm:checkpair", "--", *pair)
    assert (code, "no deltavlm program found" in text) == (1, True), text
    (tmp_path / "bin" / "deltavlm").write_text("#!/bin/sh\necho deltavlm 0.0.9\n")
    code, text = qgis_process(installed, "run", "deltavlm:checkpair", "--", *pair)
    assert (code, "is deltavlm 0.0.9, and this plugin needs 0.1.0 or later" in text) == (1, True), text
