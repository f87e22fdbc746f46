"""QGIS styles: checks of the QML text, and maps drawn by a real QGIS."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS

from deltavlm.config import shipped_config
from deltavlm.geo.features import Feature, Layer
from deltavlm.geo.sinks import open_sink
from deltavlm.geo.styles import STEPS, STYLES, layer_style
from deltavlm.pipeline.outputs import polygons_path
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.schema import (
    CHANGES,
    GRID,
    LOCATIONS,
    PAIRS,
    VERDICTS,
    chips_layer,
    with_pair_columns,
)
from deltavlm.summaries.results import read_results
from deltavlm.summaries.review import summarize_review
from deltavlm.tasks.questions import load_questions

SCRIPT = Path(__file__).with_name("qgis_look.py")
QGIS_PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")  # Debian's; QGIS's own elsewhere
CHIPS = chips_layer(load_questions(shipped_config("questions.yaml")))
LAYERS = [CHIPS, LOCATIONS, CHANGES, GRID, PAIRS]


# --- without QGIS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_style_asks_for_columns_that_the_layer_has(layer: Layer) -> None:
    style = STYLES[layer.name]
    words = [style.title, style.tip, style.value, style.label.expression if style.label else ""]
    words = [word if " " in word or '"' in word else f'"{word}"' for word in words if word]
    html = re.compile(r'\w+="[^"]*"')
    columns = {name for word in words for name in re.findall(r'"(\w+)"', html.sub("", word))}
    columns |= set(filter(None, [style.on_top]))
    assert columns
    assert columns <= {field.name for field in layer.fields}


def test_every_layer_has_a_style_and_others_have_none() -> None:
    assert all(map(layer_style, [*LAYERS, with_pair_columns(CHIPS)]))
    assert layer_style(Layer("roads", ())) is None


def test_higher_scores_are_darker_and_thicker() -> None:
    """The grades can be told apart without color: luminance falls all the way, lines become thicker."""
    luminance = [0.2126 * red + 0.7152 * green + 0.0722 * blue for _, (red, green, blue, _), _ in STEPS]
    assert all(np.diff(luminance) < -15)
    assert all(np.diff([width for _, _, width in STEPS]) > 0)


def test_grades_meet_and_cover_every_score() -> None:
    text = layer_style(CHIPS)
    assert text
    renderer = ET.fromstring(text).find("renderer-v2")
    assert renderer is not None
    grades = sorted(
        (float(grade.attrib["lower"]), float(grade.attrib["upper"])) for grade in renderer.iter("range")
    )
    assert grades[0][0] < -3  # the three reasons for having no score are -3, -2 and -1
    assert [low for low, _ in grades if low >= 0] == [0, 0.2, 0.4, 0.6, 0.8]
    assert grades[-1][1] == 1
    assert len(list(renderer.iter("symbol"))) == len(grades)


def test_only_what_people_fill_in_is_editable() -> None:
    for layer, editable in ((CHIPS, ["verdict", "note"]), (CHANGES, ["verdict", "note"]), (GRID, [])):
        root = ET.fromstring(layer_style(layer) or "")
        flags = {each.attrib["name"]: each.attrib["editable"] for each in root.iterfind("editable/field")}
        assert [*flags] == ["fid", *(column.name for column in layer.fields)]
        assert [name for name, flag in flags.items() if flag == "1"] == editable
        in_form = [each.attrib["name"] for each in root.iter("attributeEditorField")]
        assert in_form == (
            editable and [*editable, *(name for name in flags if name not in ("fid", *editable))]
        )


# --- with QGIS --------------------------------------------------------------------------------------------


@cache
def has_qgis() -> bool:
    try:
        process = subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], capture_output=True, check=False)
    except OSError:
        return False
    return process.returncode == 0


needs_qgis = pytest.mark.skipif("not has_qgis()", reason=f"no QGIS for {QGIS_PYTHON}")


def run_qgis(*layers: object, **options: Any) -> dict[str, Any]:
    """Report of QGIS on the layers; with `png` it draws them too."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PROJ_DATA")
    }
    process = subprocess.run(
        [
            QGIS_PYTHON,
            str(SCRIPT),
            json.dumps({"layers": [str(layer) for layer in layers], **options}, default=str),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def square(step: int) -> shapely.Polygon:
    return shapely.box(500_000 + 128 * step, 5_000_000, 500_128 + 128 * step, 5_000_128)


ROWS: list[dict[str, object]] = [
    {"status": "answered", "changed": True, "changed_score": 0.95, "caption": "<script>x</script> a house"},
    {"status": "answered", "changed": False, "changed_score": 0.05, "caption": "nothing has changed"},
    {"status": "nodata"},
    {"status": "error"},
    {"status": "answered", "caption": "columns for a caption only"},
]


def written(path: Path) -> Path:
    with open_sink(path, (CHIPS, LOCATIONS), CRS.from_epsg(32631), {"model": {}}) as sink:
        rows = [{"chip_id": f"chip {step}", **row} for step, row in enumerate(ROWS)]
        sink.write("chips", [Feature(square(step), row) for step, row in enumerate(rows)])
        cell = {"chip_id": "chip 0", "class": "road", "cell": "top-left"}
        sink.write("locations", [Feature(square(0), cell)])
    return path


def picture(path: Path) -> NDArray[np.int16]:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int16)


@pytest.mark.qgis
@pytest.mark.slow
@needs_qgis
def test_a_geopackage_alone_opens_styled(tmp_path: Path) -> None:
    path = written(tmp_path / "out.gpkg")
    (tmp_path / "alone").mkdir()
    path = path.rename(tmp_path / "alone" / "moved.gpkg")
    chips, cells = run_qgis(f"{path}|layername=chips", f"{path}|layername=locations")["layers"]
    assert (chips["renderer"], cells["renderer"]) == ("graduatedSymbol", "categorizedSymbol")
    assert chips["legend"][0] == "changed (0.8 to 1)"
    assert len(chips["legend"]) == 8
    assert chips["aliases"]["gsd_m"] == "Pixel size (m)"
    assert {"model", "answer_caption", "fid"} <= set(chips["hidden"])
    assert chips["widgets"]["changed_score"]["Precision"] == 2
    assert (chips["labels"], chips["title"]) == (True, '"chip_id"')
    assert "&lt;script>x" in chips["tip"]
    assert "<script" not in chips["tip"]


@pytest.mark.qgis
@pytest.mark.slow
@needs_qgis
@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".fgb"])
def test_a_qml_style_next_to_a_file_applies(tmp_path: Path, suffix: str) -> None:
    (chips,) = run_qgis(written(tmp_path / f"out{suffix}"))["layers"]
    assert (chips["rows"], chips["renderer"]) == (len(ROWS), "graduatedSymbol")
    assert chips["aliases"]["changed_score"] == "Score of change"


@pytest.mark.qgis
@pytest.mark.slow
@needs_qgis
def test_chips_that_were_not_analyzed_differ(tmp_path: Path) -> None:
    """Five chips in a row, on white: each middle has the color that the legend promises."""
    path, png = written(tmp_path / "out.gpkg"), tmp_path / "map.png"
    run_qgis(f"{path}|layername=chips", png=png, size_px=[500, 100])
    pixels = picture(png)
    changed, unchanged, nodata, failed, unscored = (
        pixels[30:70, 100 * step + 30 : 100 * step + 70].reshape(-1, 3) for step in range(5)
    )
    red, green, blue = np.median(changed, axis=0)
    assert red > green + 20
    assert red > blue + 20
    assert (np.median(unchanged, axis=0) > 250).all()
    assert (np.median(unscored, axis=0) > 250).all()
    grey = np.median(nodata, axis=0)
    assert np.ptp(grey) <= 2
    assert 120 < grey[0] < 230
    dark = (failed.max(axis=1) < 130).mean()
    assert 0.01 < dark < 0.7  # hatched: lines, and ground between them
    assert (failed.min(axis=1) > 240).any()


@pytest.mark.qgis
@pytest.mark.slow
@needs_qgis
def test_captions_stand_only_in_changed_chips_that_are_wide_on_the_screen(tmp_path: Path) -> None:
    path, png = written(tmp_path / "out.gpkg"), tmp_path / "map.png"

    def letters(step: int, width_px: int) -> int:
        """Nearly black pixels well inside a chip, that fills a map of this width."""
        run_qgis(f"{path}|layername=chips", png=png, size_px=[width_px] * 2, extent=square(step).bounds)
        edge = width_px // 10
        return int((picture(png)[edge:-edge, edge:-edge].max(axis=2) < 60).sum())

    assert letters(0, 400) > 50
    assert letters(0, 100) == 0  # 26 mm
    assert letters(1, 400) == 0


@pytest.mark.qgis
@pytest.mark.slow
@needs_qgis
def test_changes_are_drawn_by_class(tmp_path: Path) -> None:
    path, png = tmp_path / "changes.gpkg", tmp_path / "map.png"
    with open_sink(path, (CHANGES,), CRS.from_epsg(32631), {}) as sink:
        rows = [{"class": name, "area_m2": 16384.0} for name in ("building", "road", "other")]
        sink.write("changes", [Feature(square(step), row) for step, row in enumerate(rows)])
    report = run_qgis(f"{path}|layername=changes", png=png, size_px=[300, 100])
    (changes,) = report["layers"]
    assert changes["legend"] == ["building", "road", "other"]
    building, road, other = (picture(png)[20, 100 * step + 20] for step in range(3))
    assert building[2] < min(building[0], building[1]) - 20  # yellow
    assert road[0] < min(road[1], road[2]) - 10  # blue
    assert other[1] < min(other[0], other[2]) - 10  # purple


CHIP: dict[str, object] = {
    **{"chip_id": "r00000_c00000", "status": "answered", "changed": True, "changed_score": 0.123456789},
    **{"conflicts": ["changed_without_mask"], "road_cells": ["center", "top"], "ground_share": 0.87890625},
}
POLYGON: dict[str, object] = {
    **{"class": "building", "kind": "building_built", "area_m2": 362.87512345, "mean_score": 0.8253220326},
    **{"chip_ids": ["r00000_c00000", "r00000_c00224"], "lon": 15.003741718271723, "lat": 48.75184301207319},
}
EDITS: list[dict[str, object]] = [
    {"where": "polygon_id = 1", "verdict": "accept"},
    {"where": "polygon_id = 2", "verdict": "road", "note": "a <wide> road"},
    {"where": "polygon_id = 3", "verdict": "reject", "note": "a shadow"},
    {"where": "polygon_id = 4", "verdict": "other"},
    {"where": "polygon_id = 4", "verdict": None},
]


@pytest.mark.qgis
@pytest.mark.slow
@needs_qgis
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_review_in_the_form_of_qgis(tmp_path: Path, suffix: str) -> None:
    """Saving the form of a row once rounded its numbers, and emptied its lists in a GeoPackage."""
    path = tmp_path / f"out{suffix}"
    one_file = suffix == ".gpkg"
    polygons = path if one_file else polygons_path(path)
    features = {
        "chips": [Feature(square(0), CHIP), Feature(square(1), {**CHIP, "chip_id": "r00000_c00224"})],
        "changes": [Feature(square(step), {**POLYGON, "polygon_id": step + 1}) for step in range(5)],
    }
    provenance = {"tool": "deltavlm analyze", "changes": {"chips": "changed"}}
    for file, layers in (
        {path: (CHIPS, CHANGES)} if one_file else {path: (CHIPS,), polygons: (CHANGES,)}
    ).items():
        with open_sink(file, layers, CRS.from_epsg(32631), provenance) as sink:
            for layer in layers:
                sink.write(layer.name, features[layer.name])
    before = {name: read_output(path).rows(name) for name in ("chips", "changes")}

    layers = (f"{path}|layername=changes", f"{path}|layername=chips") if one_file else (polygons, path)
    chip = {"where": "chip_id = 'r00000_c00000'", "verdict": "accept", "note": "x"}
    seen = run_qgis(*layers, edit=[EDITS, [chip]])
    assert seen["choices"] == [{"verdict": ["<none>", *VERDICTS[name]]} for name in ("changes", "chips")]
    assert [layer["editable"] for layer in seen["layers"]] == [["verdict", "note"]] * 2

    after = {name: read_output(path).rows(name) for name in ("chips", "changes")}
    opinions = {
        name: [tuple(row.pop(column) for column in ("verdict", "note")) for row in rows]
        for name, rows in after.items()
    }
    assert opinions["chips"] == [("accept", "x"), (None, None)]
    assert opinions["changes"] == [
        *(("accept", None), ("road", "a <wide> road"), ("reject", "a shadow"), (None, None), (None, None)),
    ]
    for name, rows in before.items():
        assert [{**row, "verdict": None, "note": None} for row in after[name]] == rows
    review = summarize_review(read_results([path]))
    assert review
    assert review.as_json()["polygon_class"]["right"] == 1
    assert (review.accepted, review.changed_chips and review.changed_chips.right) == (
        {"building": 1, "road": 1},
        1,
    )
