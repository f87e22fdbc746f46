"""`deltavlm report`, and the page and quicklook that `analyze` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyogrio
import pytest
from PIL import Image

from deltacli.console import Console
from deltavlm.errors import WriteError
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.report.conftest import Page
from tests.scripted_model import CHANGED, ScriptedModel

SMALL = ("--chip-size", "32")


@pytest.fixture
def output(run: Run, scene: Scene) -> Path:
    assert run("analyze", *scene.args, "-o", "out.gpkg", *SMALL).exit_code == 0
    return Path("out.gpkg").absolute()


@pytest.fixture
def many(run: Run, scene: Scene) -> Path:
    rows = [f"{scene.before},{scene.after},one", f"{scene.before},{scene.before},two"]
    Path("list.csv").write_text("\n".join(["before,after,id", *rows]))
    assert run("analyze", "--pairs", "list.csv", "-o", "many.gpkg", *SMALL).exit_code == 0
    return Path("many.gpkg").absolute()


def test_a_page_and_a_picture(run: Run, output: Path) -> None:
    result = run("report", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("report out_report.html\n")
    page = Path("out_report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert CHANGED["caption"] in page
    assert run("report", output, "--quicklook", "look.png").exit_code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["look.png", "out.gpkg", "out_report.html"]
    with Image.open("look.png") as picture:
        assert picture.format == "PNG"


def test_the_page_goes_to_stdout(run: Run, output: Path) -> None:
    result = run("report", output, "-o", "-", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.rstrip().endswith("</html>")


def test_the_json_summary(run: Run, output: Path) -> None:
    result = run("report", output, "-o", "a.html", "--quicklook", "a.png", "--json", "-q")
    summary = json.loads(result.stdout)
    size = Path("a.html").stat().st_size
    assert summary == {
        "pairs": 1,
        "chips": 15,
        "without_pictures": {},
        "output": "a.html",
        "bytes": size,
        "quicklook": "a.png",
    }


def test_without_images_there_is_a_page_but_no_quicklook(run: Run, output: Path, scene: Scene) -> None:
    moved = scene.after.rename(scene.after.with_name("moved.tif"))
    result = run("report", output)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"Warning: no images: {scene.after}: no such file; give --before and")
    result = run("report", output, "--quicklook", "look.png")
    assert result.exit_code == 2
    assert f"{scene.after}: no such file" in one_line(result)
    assert not Path("look.png").exists()
    assert run("report", output, "--quicklook", "look.png", "--after", moved).exit_code == 0
    result = run("report", output, "--after", "typo.tif", "--overwrite")
    assert result.exit_code == 2
    assert one_line(result).startswith("Error: typo.tif: no such file")


def test_selecting_a_pair(run: Run, many: Path, scene: Scene) -> None:
    result = run("report", many, "-o", "all.html", "--json", "-q")
    assert [json.loads(result.stdout)[key] for key in ("pairs", "chips")] == [2, 30]
    result = run("report", many, "-o", "two.html", "--pair", "two", "--json", "-q")
    assert [json.loads(result.stdout)[key] for key in ("pairs", "chips")] == [1, 15]
    for wish in (["--quicklook", "a.png"], ["--before", scene.before]):
        result = run("report", many, *wish)
        assert result.exit_code == 2
        assert "has 2 pairs" in one_line(result)
        assert "--pair one" in one_line(result)
    result = run("report", many, "--pair", "tow")
    assert result.exit_code == 2
    assert "did you mean 'two'?" in one_line(result)
    assert run("report", many, "--pair", "one", "--quicklook", "a.png").exit_code == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-o", "there.html"], "there.html: exists already; add --overwrite"),
        (["-o", "nowhere/a.html"], "there is no folder nowhere"),
        (["-o", "a.pdf"], "suffix '.pdf' is not one of .html, .htm"),
        (["--quicklook", "a.jpg"], "suffix '.jpg' is not one of .png"),
        (["-o", "-", "--json"], "stdout is taken by the page"),
        (["--overview-size", "12"], "--overview-size"),
    ],
)
def test_usage_errors_are_one_line(run: Run, output: Path, words: list[str], complaint: str) -> None:
    Path("there.html").touch()
    result = run("report", output, *words)
    assert result.exit_code == 2
    assert complaint in one_line(result)
    assert Path("there.html").stat().st_size == 0


def test_foreign_files_are_a_one_line_error(run: Run, scene: Scene) -> None:
    Path("empty.gpkg").touch()
    for source, complaint in (
        ("none.gpkg", "no such file"),
        ("empty.gpkg", "is empty"),
        (scene.before, "is none of GeoPackage"),
    ):
        result = run("report", source)
        assert result.exit_code == 2
        assert complaint in one_line(result)


def test_analyze_writes_a_page_and_a_quicklook(run: Run, scene: Scene) -> None:
    wishes = ("--html", "a.html", "--quicklook", "a.png")
    result = run("analyze", *scene.args, "-o", "a.geojson", *wishes, *SMALL)
    assert result.exit_code == 0
    assert CHANGED["caption"] in Path("a.html").read_text(encoding="utf-8")
    assert Path("a.png").exists()
    result = run("analyze", *scene.args, "-o", "b.geojson", *wishes, *SMALL)
    assert result.exit_code == 2
    assert "a.html: exists already" in one_line(result)
    assert not Path("b.geojson").exists()
    assert run("analyze", *scene.args, "-o", "a.geojson", *wishes, *SMALL, "--overwrite").exit_code == 0


def test_the_output_survives_a_failing_page(run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, overwrite: bool) -> None:
        raise WriteError(f"{path}: writing failed (no space)")

    monkeypatch.setattr("deltavlm.geo.output_files.write_output", full)
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--html", "a.html", *SMALL)
    assert result.exit_code == 1
    message = result.stderr.splitlines()[-1]
    assert message == "Error: a.html: writing failed (no space); the answers are safe in out.gpkg"
    assert len(pyogrio.read_dataframe("out.gpkg", layer="chips")) == 15
    assert not list(Path().glob("*.journal*"))


def test_the_page_is_written_although_some_chips_failed(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.poison = 255
    white = scene.after.with_name("white.tif")
    import rasterio

    with rasterio.open(scene.after) as source:
        profile, pixels = source.profile, source.read()
    pixels[:, :32, :32] = 255
    with rasterio.open(white, "w", **profile) as target:
        target.write(pixels)
    result = run("analyze", scene.before, white, "-o", "out.gpkg", "--html", "a.html", *SMALL)
    assert result.exit_code == 3
    assert "1 of 15 chips failed" in result.stderr.splitlines()[-1]
    assert Path("a.html").exists()


def test_analyze_of_many_pairs(run: Run, many: Path, scene: Scene) -> None:
    pairs = ("analyze", "--pairs", "list.csv", *SMALL)
    assert run(*pairs, "-o", "b.gpkg", "--html", "b.html").exit_code == 0
    assert "many" not in Path("b.html").read_text(encoding="utf-8").partition("</title>")[0]
    for words, complaint in (
        (("-o", "each/", "--html", "c.html"), "--html cannot be made with -o each"),
        (("-o", "c.gpkg", "--quicklook", "c.png"), "--quicklook shows one pair"),
        (("-o", "-", "--html", "c.html"), "--html is made of an output file"),
        (("-o", "c.gpkg", "--layer", "pairs", "--html", "c.html"), "--html needs the layer chips"),
    ):
        result = run(*pairs, *words)
        assert result.exit_code == 2
        assert complaint in one_line(result)
    assert not list(Path().glob("c.*"))


def test_top_sets_the_number_of_rows(
    run: Run, scene: Scene, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "on_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "200")
    model.script = lambda before, after, question: "yes" if question.yes_no else "seen"

    def rows(*words: Any) -> int:
        result = run(
            "analyze", *scene.args, "-o", "out.gpkg", "--overwrite", "--color", "never", *SMALL, *words
        )
        assert result.exit_code == 0
        assert result.stdout == ""
        if "lon" in result.stderr:
            assert "lat" in result.stderr
        return sum("seen" in line for line in result.stderr.splitlines())

    assert [rows(), rows("--top", 3), rows("--top", 0)] == [10, 3, 0]
    assert run("analyze", *scene.args, "--top", 11).exit_code == 2


def test_a_threshold_of_stored_scores(run: Run, output: Path) -> None:
    """The page, and its quicklook, show the chips as changed that reach it; the output is not touched."""
    content = output.read_bytes()
    for name, words in (("as_run", ()), ("low", ("--threshold", 0.1)), ("high", ("--threshold", 0.91))):
        assert run("report", output, "-o", f"{name}.html", *words).exit_code == 0
    pages = {name: Page(Path(f"{name}.html").read_text()) for name in ("as_run", "low", "high")}
    changed = {name: sum(page.data["chips"]["columns"]["changed"]) for name, page in pages.items()}
    assert changed == {"as_run": 1, "low": 15, "high": 0}
    threshold = dict(pages["high"].data["provenance"])["Threshold"]
    assert threshold.startswith("changed from a score of 0.91 on, by the stored scores")
    assert "Threshold" not in dict(pages["as_run"].data["provenance"])
    assert output.read_bytes() == content


def test_a_run_with_a_threshold_is_shown_as_such(run: Run, scene: Scene) -> None:
    assert run("analyze", *scene.args, "-o", "out.gpkg", *SMALL, "--threshold", 0.1).exit_code == 0
    assert run("report", "out.gpkg").exit_code == 0
    data = Page(Path("out_report.html").read_text()).data
    assert sum(data["chips"]["columns"]["changed"]) == 15
    assert dict(data["provenance"])["Threshold"] == "changed from a score of 0.1 on"


@pytest.mark.parametrize("command", ["analyze", "report", "summarize"])
@pytest.mark.parametrize("threshold", ["nan", "1.5", "often"])
def test_a_threshold_is_from_0_to_1(
    run: Run, scene: Scene, output: Path, command: str, threshold: str
) -> None:
    inputs = (*scene.args, "-o", "two.gpkg") if command == "analyze" else (output,)
    result = run(command, *inputs, "--threshold", threshold)
    assert result.exit_code == 2
    assert "--threshold" in result.stderr
    assert "Traceback" not in result.stderr
