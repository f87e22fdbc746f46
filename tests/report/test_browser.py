"""HTML page in headless Chromium, with real clicks and keys; skipped if it is not installed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltavlm.model.interface import Reply
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.review import Opinion, read_review
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions
from deltavlm.report.page import report_html
from deltavlm.report.pairs import build_pairs
from deltavlm.summaries.results import read_results
from deltavlm.summaries.review import summarize_review
from tests.conftest import Analyzed, Scene
from tests.report.conftest import HOSTILE, page_of, with_changes
from tests.scripted_model import CHANGED, UNCHANGED, ScriptedModel, contradicting

pytestmark = [pytest.mark.browser, pytest.mark.slow]

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

if CHROMIUM is None or DRIVER is None:
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("--headless=new", "--disable-gpu", "--window-size=1400,900", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


class Tab:
    """Browser tab with one page."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        for log in ("browser", "performance"):
            driver.get_log(log)
        driver.get(path.as_uri())
        self.settle()

    def js(self, code: str, *args: object) -> Any:
        return self.driver.execute_script(code, *args)

    def settle(self) -> None:
        """Wait for two animation frames: requested drawing is done in the second one."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()
        self.settle()

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def click_map(self, column: int, row: int) -> None:
        """Click on a pixel of the pair (160 x 96 px), with the map fitted to the window."""
        box = self.js(
            "const b = document.getElementById('map').getBoundingClientRect(); return [b.width, b.height]"
        )
        zoom = min(box[0] / 160, box[1] / 96) * 0.96
        chain = webdriver.ActionChains(self.driver)
        element = self.driver.find_element("id", "map")
        chain.move_to_element_with_offset(element, round((column - 80) * zoom), round((row - 48) * zoom))
        chain.click().perform()
        self.settle()

    def choose(self, select: str, value: str) -> None:
        """Choose an option of a filter."""
        self.js(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            select,
            value,
        )
        self.settle()

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def rows(self) -> list[str]:
        """Texts of the visible rows, from the top."""
        return list(
            self.js(
                "return [...document.querySelectorAll('.row:not([hidden])')]"
                ".sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map((row) => row.innerText)"
            )
        )

    @property
    def is_open(self) -> bool:
        return not self.js("return document.getElementById('detail').hidden")

    def pixels(self) -> list[int]:
        """Row of the map's canvas at row 45 of the pair, with the map fitted to the window."""
        return list(
            self.js(
                "const c = document.getElementById('canvas');"
                "const row = c.height / 2 - 3 * 0.96 * Math.min(c.width / 160, c.height / 96);"
                "return [...c.getContext('2d').getImageData(0, row | 0, c.width, 1).data]"
            )
        )

    def complaints(self) -> list[Any]:
        """Console errors; warnings about reading pixels are due to this test."""
        return [entry for entry in self.driver.get_log("browser") if entry["source"] != "rendering"]

    def requests(self) -> set[str]:
        """URL schemes of the page's requests; Chromium may still be loading a new-tab page of its own."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {
            request["params"]["request"]["url"].partition(":")[0]
            for request in messages
            if request["method"] == "Network.requestWillBeSent"
            and request["params"]["documentURL"].startswith("file:")
        }


@pytest.fixture
def tab(chromium: Any, analyzed: Analyzed, scene: Scene, tmp_path: Path) -> Tab:
    return opened(chromium, analyzed(*scene.args), tmp_path)


def opened(chromium: Any, path: Path, folder: Path) -> Tab:
    page = folder / "report.html"
    page.write_text(page_of(path), encoding="utf-8")
    return Tab(chromium, page)


def test_it_opens_without_a_complaint_or_a_request(tab: Tab, scene: Scene) -> None:
    assert tab.complaints() == []
    assert tab.requests() <= {"file", "data"}
    assert tab.text("h1") == "before.tif → after.tif"
    assert tab.text("#count") == "15 chips"
    assert "15" in tab.text("#totals")
    first = tab.rows()[0]
    assert CHANGED["caption"] in first
    assert "0.90" in first


def test_a_click_on_the_map_opens_the_chip(tab: Tab, scene: Scene) -> None:
    tab.click_map(90, 58)
    assert tab.is_open
    text = tab.text("#detail")
    for word in (scene.changed_chip, CHANGED["caption"], "top-left, center-center", "3.00051, 45.1"):
        assert word in text
    assert len(tab.js("return [...document.querySelectorAll('#detail canvas')]")) == 2
    tab.press("\ue00c")  # Escape
    assert not tab.is_open
    assert tab.complaints() == []


CUT_IDS = """return [...document.querySelectorAll('.row:not([hidden]) .where')].filter((where) => {
  const id = where.firstElementChild, inner = id.getBoundingClientRect();
  const outer = where.getBoundingClientRect();
  const isWhole = inner.right <= outer.right && inner.bottom <= outer.bottom;
  return !isWhole || !/^r\\d+_c\\d+$/.test(id.textContent);
}).length"""  # rows whose chip_id is not seen whole


def test_rows_search_and_filters(tab: Tab, scene: Scene) -> None:
    assert tab.js(CUT_IDS) == 0
    tab.press("/", "villa")
    assert tab.rows() == []
    assert tab.text("#count").startswith("0 of 15 chips")
    tab.press("\ue00c", "\ue00c")
    assert tab.text("#count") == "15 chips"
    tab.press("/", "houses new ROAD")
    assert len(tab.rows()) == 1
    tab.click("#count button")
    for select, value, number in (("state", "changed", 1), ("state", "unchanged", 14), ("class", "road", 1)):
        tab.choose(select, value)
        assert tab.text("#count").startswith(f"{number} of 15 chips")
        tab.click("#count button")
    low = tab.driver.find_element("id", "low")
    low.send_keys("\ue011")  # Home
    low.send_keys(*["\ue00e"] * 5)  # PageUp: ten steps each
    tab.settle()
    assert tab.text("#range-told") == "0.50–1.00"
    assert len(tab.rows()) == 1


def test_columns_sort(tab: Tab, scene: Scene) -> None:
    tab.click("[data-by=score]")
    assert UNCHANGED["caption"] in tab.rows()[0]
    tab.js("document.getElementById('list').focus()")
    tab.press("\ue010")  # End
    assert CHANGED["caption"] in tab.rows()[-1]
    tab.click("[data-by=place]")
    assert "r00000_c00000" in tab.rows()[0]
    assert tab.js("return document.querySelector('[data-by=place]').parentElement.ariaSort") == "ascending"
    tab.click("[data-by=caption]")
    assert UNCHANGED["caption"] in tab.rows()[0]
    tab.click("[data-by=buildings]")
    assert CHANGED["caption"] in tab.rows()[0]


def test_keys_go_from_chip_to_chip(tab: Tab, scene: Scene) -> None:
    tab.click_map(90, 58)
    tab.js("document.getElementById('map').focus()")
    tab.press("\ue014")  # right
    assert "r00032_c00096" in tab.text("#detail")
    tab.press("\ue013", "\ue012")  # up, left
    assert "r00000_c00064" in tab.text("#detail")
    tab.press("\ue00c")
    tab.js("document.getElementById('list').focus()")
    tab.press("\ue011", "\ue007")  # Home, Enter
    assert scene.changed_chip in tab.text("#detail")
    tab.click("#next")
    assert "2 of 15" in tab.text("#detail")
    assert tab.js("return document.activeElement.id") == "next"
    tab.click("#close")
    assert not tab.is_open


def test_the_swipe_switches_between_the_dates(tab: Tab) -> None:
    middle = tab.pixels()
    tab.js("document.getElementById('swipe').focus()")
    tab.press("\ue010")  # End: before
    before = tab.pixels()
    tab.press("\ue011")  # Home: after
    after = tab.pixels()
    assert before != after
    half = len(middle) // 8 * 4  # four numbers a pixel
    assert middle[: half - 4] == before[: half - 4]
    assert middle[half + 4 :] == after[half + 4 :]
    assert tab.js("return document.getElementById('swipe').ariaValueNow") == "0"
    tab.press("b")
    assert tab.pixels() == before


def test_zoom_and_back(tab: Tab) -> None:
    initial = tab.pixels()
    scale = tab.text("#scale")
    for _ in range(5):
        tab.click("#zoom-in")
    assert tab.pixels() != initial
    assert tab.text("#scale") != scale
    tab.press("0")
    assert tab.pixels() == initial


def test_light_and_dark(tab: Tab) -> None:
    def paper() -> str:
        return str(tab.js("return getComputedStyle(document.body).backgroundColor"))

    first = paper()
    tab.click("#theme")
    second = paper()
    tab.click("#theme")
    assert first != second
    assert paper() == first
    tab.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    tab.js("delete document.documentElement.dataset.theme")
    assert paper() == min(first, second, key=lambda colour: sum(map(int, colour.strip("rgb()").split(","))))
    tab.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_polygons_of_change_are_drawn(
    chromium: Any, analyzed: Analyzed, scene: Scene, tmp_path: Path
) -> None:
    tab = opened(chromium, with_changes(analyzed(*scene.args)), tmp_path)
    assert "68 m² 1.8 %, in 2 polygons" in tab.text("#totals")
    drawn = tab.pixels()
    tab.click("#show-changes")
    assert tab.pixels() != drawn
    tab.click(".row")
    assert "building built, 64 m², score 0.50" in tab.text("#detail")
    assert tab.complaints() == []


def test_conflicts_are_marked_and_can_be_filtered(
    chromium: Any, analyzed: Analyzed, scene: Scene, model: ScriptedModel, tmp_path: Path
) -> None:
    model.script = contradicting
    tab = opened(chromium, analyzed(*scene.args), tmp_path)
    assert "Conflicting answers1 chip" in tab.text("#totals")
    assert "Neither yes nor no" not in tab.text("#totals")
    tab.choose("state", "conflict")
    assert tab.text("#count").startswith("1 of 15 chips")
    assert tab.js("return document.querySelectorAll('.row:not([hidden]) .said.conflict').length") == 1
    tab.click(".row")
    assert "the answer is yes, and the caption says that nothing changed" in tab.text("#detail")
    assert tab.complaints() == []


def test_a_result_without_a_chip_opens(
    chromium: Any, analyzed: Analyzed, scene: Scene, tmp_path: Path
) -> None:
    output = read_output(analyzed(*scene.args))
    empty = replace(output, layers={"chips": output.layers["chips"].iloc[:0]})
    page = tmp_path / "none.html"
    page.write_text(report_html(empty, build_pairs(empty), ImageOptions())[0], encoding="utf-8")
    tab = Tab(chromium, page)
    tab.js("document.getElementById('list').focus()")
    tab.press("\ue015", "\ue007", "\ue00c", "/", "x")  # down, Enter, Escape
    assert tab.text("#count") == "0 chips"
    assert tab.complaints() == []


def test_hostile_words_stay_words(
    chromium: Any, analyzed: Analyzed, scene: Scene, model: ScriptedModel, tmp_path: Path
) -> None:
    model.script = lambda before, after, question: "yes" if question.yes_no else HOSTILE
    tab = opened(chromium, analyzed(*scene.args), tmp_path)
    tab.click(".row")
    assert HOSTILE.split(" & ")[0] in tab.text("#detail")
    assert tab.js("return document.querySelectorAll('img, script').length") == 2
    assert tab.complaints() == []


def test_many_pairs_have_a_selector(chromium: Any, analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    before, after = scene.args
    pairs = [
        Pair("busy", before, after, "2015", "2024"),
        Pair("calm", before, before, "2015", "2016"),
        Pair("lost", f"{tmp_path}/none.tif", after, "2015", "2016"),
    ]
    tab = opened(chromium, analyzed(pairs), tmp_path)
    assert tab.text("#count") == "30 chips"
    assert tab.text("#date-after") == "After, 2024"
    names = tab.js("return [...document.getElementById('pair').options].map((one) => one.text)")
    assert names == ["All 3 pairs", "busy (1 of 15 changed)", "calm (0 of 15 changed)", "lost (failed)"]
    choose = (
        "const s = document.getElementById('pair'); s.selectedIndex = arguments[0];"
        "s.dispatchEvent(new Event('change'))"
    )
    tab.js(choose, 2)
    tab.settle()
    assert tab.text("#count") == "15 chips"
    assert tab.text("#date-after") == "After, 2016"
    tab.js(choose, 3)
    tab.settle()
    assert "no such file" in tab.text("#missing")
    assert tab.complaints() == []


def test_a_page_without_pictures_works(
    chromium: Any, analyzed: Analyzed, scene: Scene, tmp_path: Path
) -> None:
    path = analyzed(*scene.args)
    scene.before.unlink()
    tab = opened(chromium, path, tmp_path)
    assert "no such file" in tab.text("#missing")
    tab.click_map(90, 58)
    assert CHANGED["caption"] in tab.text("#detail")
    assert tab.complaints() == []


def test_a_narrow_window_does_not_scroll_sideways(tab: Tab) -> None:
    tab.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        tab.settle()
        assert tab.js("return document.documentElement.scrollWidth") <= 360
        assert tab.js(CUT_IDS) == 0
        tab.js("document.querySelector('.row').click()")
        tab.settle()
        box = tab.js(
            "const b = document.getElementById('detail').getBoundingClientRect(); return [b.top, b.bottom]"
        )
        assert 0 < box[0] < box[1] <= 741
    finally:
        tab.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_review_goes_round(chromium: Any, analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    """From the page to a file, from the file to a summary, and from the file back into the page."""
    path = with_changes(analyzed(*scene.args))
    page = tmp_path / "review.html"
    page.write_text(open_report(path, ImageOptions()).html(review=True)[0], encoding="utf-8")
    tab = Tab(chromium, page)
    tab.js("localStorage.clear(); const keep = URL.createObjectURL;"
           "URL.createObjectURL = (blob) => { window.kept = blob; return keep(blob); }")  # fmt: skip
    tab.click_map(90, 58)
    forms = tab.driver.find_elements("css selector", ".opinion")
    assert [form.text.split("\n")[0] for form in forms] == [
        "chip: changed",
        "polygon 2: building built, 64 m²",
        "polygon 1: building built, 4 m²",
    ]
    tab.press("a")
    assert tab.js("return document.querySelector('.opinion select').value") == "accept"
    forms = tab.driver.find_elements("css selector", ".opinion")
    tab.js(
        "const s = document.querySelectorAll('.opinion select')[1]; s.value = 'road';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    forms[1].find_element("tag name", "input").send_keys('a "road", r')
    assert tab.text("#review-status") == "Reviewed: 1 of 2 polygons, 1 of 15 chips"
    tab.choose("state", "unreviewed")
    assert tab.text("#count").startswith("14 of 15 chips")
    for button, name in (("json", "review.json"), ("csv", "review.csv")):
        tab.click(f"#review-{button}")
        text = tab.driver.execute_async_script("window.kept.text().then(arguments[0])")
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        opinions = read_review(tmp_path / name).opinions
        assert opinions["changes"] == {("", "2"): Opinion("road", 'a "road", r')}
        assert opinions["chips"] == {("", scene.changed_chip): Opinion("accept", None)}
    assert tab.complaints() == []
    summary = summarize_review(read_results([path], review=tmp_path / "review.json"))
    assert summary is not None
    assert summary.accepted == {"road": 1}
    tab = Tab(chromium, page)  # opened again: the browser has kept it
    assert tab.text("#review-status") == "Reviewed: 1 of 2 polygons, 1 of 15 chips"
    tab.js("localStorage.clear()")
    tab = Tab(chromium, page)
    assert tab.text("#review-status") == "Reviewed: 0 of 2 polygons, 0 of 15 chips"
    tab.driver.find_element("id", "review-load").send_keys(str(tmp_path / "review.json"))
    tab.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert tab.text("#review-status").startswith("Reviewed: 1 of 2 polygons, 1 of 15 chips")


def test_a_page_for_looking_has_no_forms(tab: Tab) -> None:
    tab.click_map(90, 58)
    assert tab.js("return document.querySelector('.opinion')") is None
    assert tab.js("return document.getElementById('review').hidden") is True


def test_chips_without_a_readable_answer_are_counted(
    chromium: Any, analyzed: Analyzed, scene: Scene, model: ScriptedModel, tmp_path: Path
) -> None:
    """Else "0 %" would stand alone for ground of which nothing is known."""
    unread = Reply("perhaps", 0.5)
    model.script = lambda *args: unread if args[2].name == "change" else Reply(CHANGED[args[2].name], -0.1)
    tab = opened(chromium, analyzed(*scene.args), tmp_path)
    assert "Neither yes nor no15 not counted as changed" in tab.text("#totals")
