"""HTML page of a report: self-contained, and text of the model is escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltavlm import analyze
from deltavlm.errors import InputError
from deltavlm.pipeline.job import AnalyzeOptions
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.pairs import Pair
from deltavlm.report.build import open_report
from deltavlm.report.colours import CLASS_COLOURS
from deltavlm.report.images import ImageOptions
from deltavlm.report.page import ImageLimits, report_html
from deltavlm.report.pairs import build_pairs
from deltavlm.report.quicklook import quicklook_png
from tests.conftest import CHIP, Analyzed, Scene
from tests.report.conftest import HOSTILE, Page, only_pair, opened, page_of, with_changes
from tests.scripted_model import CHANGED, CONTRADICTIONS, ScriptedModel, contradicting
from tests.text_reader import text_reader


def columns(page: Page) -> dict[str, list[object]]:
    chip_columns: dict[str, list[object]] = page.data["chips"]["columns"]
    return chip_columns


def test_the_page_has_every_chip_with_its_answers(analyzed: Analyzed, scene: Scene) -> None:
    page = Page(page_of(analyzed(*scene.args)))
    data, chips = page.data, columns(page)
    at = chips["id"].index(scene.changed_chip)
    assert len(chips["id"]) == 15
    assert [chips[name][at] for name in ("x", "y", "w", "h")] == [64, 32, 32, 32]
    assert [chips[name][at] for name in ("changed", "score", "roads", "buildings")] == [True, 0.9, 1, 2]
    assert data["chips"]["texts"][chips["caption"][at]] == CHANGED["caption"]
    assert chips["building_cells"][at] == 0b10001  # top-left and center-center
    assert data["cells"][4] == "center-center"
    assert data["chips"]["texts"][chips["answer_count"][at]] == CHANGED["count"]
    assert sum(flag is True for flag in chips["changed"]) == 1
    assert data["pairs"][0]["pictures"]["size"] == [160, 96]
    assert dict(data["provenance"])["Before"].startswith(str(scene.before))


def test_the_page_shows_the_evidence_of_each_chip(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    path, reader = tmp_path / "out.gpkg", text_reader()
    model.training_gsd_m = 2.0
    options = AnalyzeOptions(chip_px=CHIP, cascade=True)
    analyze(*scene.args, output=path, model=reader, evidence=model, options=options)
    page = Page(page_of(path))
    data, chips = page.data, columns(page)
    at = chips["id"].index(scene.changed_chip)
    (context,) = reader.contexts
    assert data["chips"]["texts"][chips["evidence"][at]] == context.evidence
    assert context.evidence.startswith("Another model, scripted, gives a probability of 0.90")
    facts = dict(data["provenance"])
    assert facts["Model"].startswith("text:any with evidence of scripted")
    assert "only chips that the evidence calls changed" in facts["Chips"]
    assert "the evidence model scripted was trained at 2 m" in facts["Scale"]
    assert "evidence" not in columns(Page(page_of(written_without_evidence(scene, model, tmp_path))))


def written_without_evidence(scene: Scene, model: ScriptedModel, folder: Path) -> Path:
    analyze(*scene.args, output=folder / "plain.gpkg", model=model, options=AnalyzeOptions(chip_px=CHIP))
    return folder / "plain.gpkg"


def test_the_page_names_the_conflicts_of_each_chip(
    analyzed: Analyzed, scene: Scene, model: ScriptedModel
) -> None:
    model.script = contradicting
    page = Page(page_of(analyzed(*scene.args)))
    chips, rules = columns(page), page.data["rules"]
    at = chips["id"].index(scene.changed_chip)
    bits = int(str(chips["conflicts"][at]))
    assert tuple(name for rule, (name, _) in enumerate(rules) if bits >> rule & 1) == CONTRADICTIONS
    assert sum(map(bool, chips["conflicts"])) == 1


def test_the_page_makes_no_requests(analyzed: Analyzed, scene: Scene) -> None:
    html = page_of(analyzed(*scene.args))
    page = Page(html)
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data", "poster", "formaction")
    ]
    assert links
    assert all(str(link).startswith(("#", "data:")) for link in links)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    assert not re.search(r"url\(|@import", page.texts["style"][0])
    code = page.texts["script"][1].replace("http://www.w3.org/2000/svg", "")  # a name, nobody is asked there
    assert not re.search(r"https?:|//[a-z]+\.|fetch\(|XMLHttp|WebSocket|sendBeacon|innerHTML|eval\(", code)


def test_the_policy_allows_only_the_embedded_script_and_style(analyzed: Analyzed, scene: Scene) -> None:
    page = Page(page_of(analyzed(*scene.args)))
    (policy,) = [
        str(attributes["content"])
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, text in (("style-src", page.texts["style"][0]), ("script-src", page.texts["script"][1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_answers_are_escaped(analyzed: Analyzed, scene: Scene, model: ScriptedModel) -> None:
    model.script = lambda before, after, question: "yes" if question.yes_no else HOSTILE
    html = page_of(analyzed(*scene.args))
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "alert(1)</script>" not in html
    assert "\u2028" not in html
    texts = page.data["chips"]["texts"]
    assert any(HOSTILE.split(" & ")[0] in text for text in texts)


def test_file_names_are_escaped(analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    after = scene.after.rename(tmp_path / "<b onclick=x>&after.tif")
    page = Page(page_of(analyzed(scene.before, after)))
    assert "b" not in {tag for tag, _ in page.elements}
    assert page.data["title"] == "before.tif → <b onclick=x>&after.tif"


def test_the_page_says_why_it_has_no_images(analyzed: Analyzed, scene: Scene) -> None:
    path = analyzed(*scene.args)
    scene.after.unlink()
    data = Page(page_of(path)).data
    assert data["pairs"][0]["pictures"] is None
    assert data["pairs"][0]["missing"].startswith(f"{scene.after}: no such file")
    assert len(data["chips"]["columns"]["id"]) == 15


def test_a_coarse_overview_adds_crops_of_the_most_changed_chips(analyzed: Analyzed, scene: Scene) -> None:
    path = analyzed(*scene.args)
    data = Page(page_of(path, limits=ImageLimits(overview_px=40))).data
    chips = data["chips"]["columns"]["id"]
    assert [chips[int(number)] for number in data["details"]] == [scene.changed_chip]
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        for uri in next(iter(data["details"].values()))
    )
    assert before.shape == (32, 32, 3)
    assert after[10:16, 8:14].mean() > before[10:16, 8:14].mean() + 50
    assert not Page(page_of(path)).data["details"]


def test_pairs_beyond_the_limit_have_no_images(analyzed: Analyzed, scene: Scene) -> None:
    output = read_output(analyzed([Pair(f"pair{number}", *scene.args) for number in range(3)]))
    limits = ImageLimits(total_overview_px=2 * 2 * 64**2, min_overview_px=64)
    html, missing = report_html(output, build_pairs(output), ImageOptions(), limits)
    pairs = Page(html).data["pairs"]
    assert [pair["pictures"] is None for pair in pairs] == [False, False, True]
    assert pairs[0]["pictures"]["size"] == [64, 38]
    assert list(missing) == ["pair2"]
    assert "`pair`" in missing["pair2"]
    html, missing = report_html(output, build_pairs(output)[2:], ImageOptions(), limits)
    assert not missing


def test_change_polygons_are_sorted_by_area(
    analyzed: Analyzed, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_changes(analyzed(*scene.args))
    data = Page(page_of(path)).data
    assert [change["area"] for change in data["changes"]] == [64, 4]
    assert data["pairs"][0]["changes"] == 2
    assert data["pairs"][0]["totals"]["changed_km2"] == pytest.approx(68e-6)
    assert data["changes"][0]["chips"] == ["r00032_c00064", "r09999_c00000"]
    assert sorted(map(tuple, data["changes"][0]["rings"][0]))[0] == (64, 32)
    monkeypatch.setattr("deltavlm.report.page_data.MAX_POLYGONS", 1)
    data = Page(page_of(path)).data
    assert ([change["area"] for change in data["changes"]], data["leftOut"]) == ([64], 1)
    assert data["pairs"][0]["changes"] == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("changed_score", "much"),
        ("new_roads", {"a": 1}),
        ("caption", ["a", "list"]),
        ("status", None),
        ("changed", "maybe"),
        ("valid_fraction", float("nan")),
    ],
)
def test_an_invalid_value_does_not_prevent_the_page(
    analyzed: Analyzed, scene: Scene, column: str, value: object
) -> None:
    report = open_report(analyzed(*scene.args), ImageOptions())
    report.pairs[0].chips[7][column] = value
    html, _ = report.html()
    assert len(columns(Page(html))["id"]) == 15


@pytest.mark.parametrize("value", [7, [{}]])
def test_invalid_cells_are_a_one_line_error(analyzed: Analyzed, scene: Scene, value: object) -> None:
    report = open_report(analyzed(*scene.args), ImageOptions())
    report.pairs[0].chips[7]["road_cells"] = value
    with pytest.raises(InputError) as refused:
        report.html()
    assert str(refused.value).startswith(f"{report.output.path}: holds invalid values")
    assert "\n" not in str(refused.value)


def test_an_output_without_chips_has_a_page(analyzed: Analyzed, scene: Scene) -> None:
    output = read_output(analyzed(*scene.args))
    empty = replace(output, layers={"chips": output.layers["chips"].iloc[:0]})
    html, missing = report_html(empty, build_pairs(empty), ImageOptions())
    assert not missing
    assert columns(Page(html))["id"] == []


def test_too_many_chips_are_refused(
    analyzed: Analyzed, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltavlm.report.page.MAX_CHIPS", 14)
    with pytest.raises(InputError, match="has 15 chips, more than the 14"):
        page_of(analyzed(*scene.args))


def test_a_quicklook_shows_before_after_and_outlines(analyzed: Analyzed, scene: Scene) -> None:
    path = analyzed(*scene.args)
    with opened(path) as pair:
        sheet = np.asarray(Image.open(io.BytesIO(quicklook_png(only_pair(path), pair, 600))))
        pictures = pair.overview(2048)
    height, width, _ = sheet.shape
    assert 560 <= width <= 600
    panel = (width - 4 * 12) // 3
    panel_starts = [12 + index * (panel + 12) for index in range(3)]
    top = next(row for row in range(height) if (sheet[row, panel_starts[0] :][:panel] < 250).mean() > 0.5)
    tall = round(panel * 96 / 160)
    before, after, marked = (sheet[top : top + tall, x : x + panel].astype(int) for x in panel_starts)
    small = np.asarray(pictures[0].resize((panel, tall), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(before - small).mean() < 3
    rows, cols = np.nonzero((marked != after).any(axis=2))
    scale = panel / 160
    assert (
        np.abs(
            np.array([cols.min(), cols.max(), rows.min(), rows.max()]) - scale * np.array([64, 96, 32, 64])
        ).max()
        <= 2
    )
    inner = (slice(int(38 * scale), int(58 * scale)), slice(int(70 * scale), int(90 * scale)))
    assert (marked[inner] == after[inner]).all()


def test_a_quicklook_shows_polygons_in_the_colors_of_their_classes(analyzed: Analyzed, scene: Scene) -> None:
    """They had a line of one pixel that was hardly seen."""
    path = with_changes(analyzed(*scene.args))
    with opened(path) as pair:
        sheet = np.asarray(Image.open(io.BytesIO(quicklook_png(only_pair(path), pair, 2400)))).astype(int)
    panel = (sheet.shape[1] - 4 * 12) // 3
    shown, plain = sheet[:, -12 - panel : -12], sheet[:, 12 + panel + 12 :][:, :panel]
    cyan = (shown == CLASS_COLOURS["building"]).all(axis=2)
    top, scale = int(np.nonzero((sheet[:, 20] < 250).any(axis=1))[0][0]), panel / 160
    left, right = int(64 * scale), int(80 * scale)  # the polygon of 8 m, 16 px
    inside = (
        slice(top + int(36 * scale), top + int(44 * scale)),
        slice(left + int(6 * scale), right - int(2 * scale)),
    )
    assert cyan[:, left - 8 : right + 8].sum() > 4 * 16 * scale  # an outline of at least two pixels
    assert (shown[inside] - plain[inside])[..., 2].mean() > 5  # and a tint
