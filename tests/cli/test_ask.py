"""`deltavlm ask`: questions from arguments, files and pipes; answers as text, JSON, GeoJSON and maps."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path

import numpy as np
import pyogrio
import pytest

from deltavlm.messages import UNSUPPORTED
from deltavlm.model.interface import Question, Reply
from deltavlm.tasks import locate
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel


@pytest.fixture(autouse=True)
def echoing(model: ScriptedModel) -> None:
    def echo(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        return Reply(f"{question.prompt.rstrip('?')}!", -0.5)

    model.script = echo


@pytest.fixture
def large(tmp_path: Path) -> list[str]:
    """A pair of 640 x 600 px, too large for one image."""
    return [str(write_raster(tmp_path / f"{date}.tif", noise(3, 600, 640))) for date in ("then", "now")]


def test_answers_are_lines_in_the_order_of_the_questions(
    run: Run, scene: Scene, model: ScriptedModel
) -> None:
    questions = ["One?", "Two?", "Three?", "Four?"]
    Path("more.txt").write_text("Three?\n\nFour?\n")
    result = run("ask", *scene.args, "One?", "-q", "Two?", "-Q", "more.txt")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "One!\nTwo!\nThree!\nFour!\n"
    assert [line for line in result.stderr.splitlines() if line in questions] == questions
    for args in (("--json",), ("--quiet",)):
        assert "Two?" not in run("ask", *scene.args, "One?", "Two?", *args).stderr
    assert "One?" not in run("ask", *scene.args, "One?").stderr
    assert model.batches[0] == 1


def test_a_question_in_the_place_of_an_image(run: Run, scene: Scene) -> None:
    """The question after a single image was looked for as a file."""
    for question in ("How many houses?", "count the houses"):
        result = run("ask", scene.before, question)
        assert result.exit_code == 2
        assert f"{question!r} is no image; name the earlier image, the later one" in one_line(result)
    assert "no such file" in one_line(run("ask", scene.before, "my images/after.tif", "One?"))


def test_stdin_is_read_only_without_other_questions(run: Run, scene: Scene) -> None:
    assert run("ask", *scene.args, input="One?\n\nTwo?\n").stdout == "One!\nTwo!\n"
    assert run("ask", *scene.args, "Three?", input="One?\n").stdout == "Three!\n"


def test_a_yaml_of_questions_as_for_analyze(run: Run, scene: Scene) -> None:
    Path("set.yaml").write_text("- name: colour\n  task: open\n  prompt: Which colour?\n")
    assert run("ask", *scene.args, "-Q", "set.yaml").stdout == "Which colour!\n"


def test_json_is_one_record_per_line(run: Run, scene: Scene) -> None:
    result = run("ask", *scene.args, "-q", "One?", "-q", "Two?", "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["question"], first["answer"], second["answer"]) == ("One?", "One!", "Two!")
    assert first["window"] == {"col_off": 0, "row_off": 0, "width": 160, "height": 96, "size": 256}
    assert first["score"] == -0.5


def test_a_question_that_was_not_taught_has_a_status_and_a_warning(
    run: Run, scene: Scene, model: ScriptedModel
) -> None:
    """The sentence is an answer like others: stdout has a line for each question, and the exit code is 0."""
    model.script, model.replies = None, deque([UNSUPPORTED, "no"])
    result = run("ask", *scene.args, "Is there a pool?", "Were trees cut?")
    assert result.exit_code == 0
    assert result.stdout == f"{UNSUPPORTED}\nno\n"
    warning = "Warning: not answered: Is there a pool?; deltavlm ask --help says which questions are answered"
    assert [line for line in result.stderr.splitlines() if "not answered" in line] == [warning]
    model.replies = deque([UNSUPPORTED, "no"])
    lines = run(
        "ask", *scene.args, "Is there a pool?", "Were trees cut?", "--json", "--quiet"
    ).stdout.splitlines()
    pool, trees = map(json.loads, lines)
    assert (pool["status"], pool["value"], pool["score"]) == ("unsupported", None, None)
    assert (trees["status"], trees["value"]) == ("answered", "no")


def test_a_large_pair_needs_a_point_or_box(run: Run, large: list[str]) -> None:
    result = run("ask", *large, "What?")
    assert result.exit_code == 2
    assert "640 x 600 px, too large" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert run.loads == []
    window = json.loads(run("ask", *large, "What?", "--chip-size", 320, "--json").stdout)["window"]
    assert window == {"col_off": 0, "row_off": 0, "width": 640, "height": 600, "size": 640}


def test_windows_by_point_and_by_box(run: Run, large: list[str]) -> None:
    west, south, east, north = json.loads(run("ask", *large, "What?", "--chip-size", 320, "--json").stdout)[
        "bounds"
    ]
    middle = f"{(west + east) / 2},{(south + north) / 2}"
    at = json.loads(run("ask", *large, "What?", "--at", middle, "--json").stdout)["window"]
    assert at["width"] == at["height"] == at["size"] == 256
    assert abs(at["col_off"] - 192) <= 1
    assert abs(at["row_off"] - 172) <= 1
    box = json.loads(
        run("ask", *large, "What?", "--json", "--bbox", f"{west},{south},{(west + east) / 2},{north}").stdout
    )["window"]
    assert abs(box["width"] - 320) <= 2
    assert box["height"] == box["size"] == 600


def test_geojson_of_window_cells_and_mask(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.script = None
    model.replies.append("roads [] buildings ['top-left']")
    result = run("ask", *scene.args, locate.PROMPT, "--geojson")
    assert result.exit_code == 0, result.stderr
    collection = json.loads(result.stdout)
    kinds = [feature["properties"]["kind"] for feature in collection["features"]]
    assert kinds == ["window", "cell", "mask"]
    assert collection["deltavlm"]["records"][0]["value"]["buildings"] == ["top-left"]
    for feature in collection["features"]:
        (lon, lat), *_ = feature["geometry"]["coordinates"][0]
        assert 2 < lon < 4
        assert 44 < lat < 46
    Path("out.geojson").write_text(result.stdout)
    assert len(pyogrio.read_dataframe("out.geojson")) == 3


def test_all_chips_runs_analyze_with_these_questions(run: Run, scene: Scene) -> None:
    result = run(
        *("ask", *scene.args, "One?", "-q", "Two?", "--all-chips", "--chip-size", 32),
        *("-o", "out.gpkg", "--limit", 4, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["changed"] is None  # no yes/no question
    assert "0 changed" not in result.stderr
    chips = pyogrio.read_dataframe("out.gpkg", layer="chips")
    assert list(chips["answer_question"]) == ["One!"] * 4
    assert list(chips["answer_question_2"]) == ["Two!"] * 4
    assert list(chips["status_question"]) == ["answered"] * 4


def test_every_chip_has_the_status_of_a_question_in_own_words(
    run: Run, scene: Scene, model: ScriptedModel
) -> None:
    Path("set.yaml").write_text(
        "- {name: change, task: change}\n- {name: pool, task: open, prompt: 'Is there a pool?'}\n"
    )
    model.script = lambda before, after, question: (
        Reply(UNSUPPORTED, math.nan) if question.typed else Reply("yes", 0.9)
    )
    result = run(
        *("ask", *scene.args, "-Q", "set.yaml", "--all-chips", "--chip-size", 32, "-o", "out.gpkg"),
        *("--limit", 4, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    chips = pyogrio.read_dataframe("out.gpkg", layer="chips")
    assert list(chips["status_pool"]) == ["unsupported"] * 4
    assert "status_change" not in chips
    assert json.loads(result.stdout)["unsupported"] == {"pool": 4}
    assert "question pool: not answered for 4 chips" in result.stderr
    Path("own.yaml").write_text("- {name: change, task: change, prompt: 'Is there a pool?'}\n")
    result = run(
        *("ask", *scene.args, "-Q", "own.yaml", "--all-chips", "--chip-size", 32, "-o", "own.gpkg"),
        *("--limit", 4, "--json"),
    )
    assert json.loads(result.stdout)["changed"] == 0
    assert json.loads(result.stdout)["neither_yes_nor_no"] == 0
    chips = pyogrio.read_dataframe("own.gpkg", layer="chips")
    assert chips["changed"].isna().all()
    assert chips["changed_score"].isna().all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no question"),
        (["  "], "the question is empty"),
        (["a\x07b"], "control character '\\x07'"),
        (["-Q", "nosuch.txt"], "nosuch.txt: no such file"),
        (["-Q", "empty.txt"], "empty.txt holds no question"),
        (["What?", "--at", "3.0"], "'3.0' is not lon,lat"),
        (["What?", "--at", "40,10"], "lon/lat 40,10 is outside"),
        (["What?", "--at", "3,45", "--bbox", "2,44,4,46"], "cannot be combined with --bbox"),
        (["What?", "--bbox", "9,9,10,10"], "does not overlap the pair"),
        (["What?", "-o", "out.gpkg"], "--output is for many chips: add --all-chips, or use --geojson > FILE"),
        (["What?", "--limit", "3"], "--limit is for many chips"),
        (["What?", "--cascade"], "--cascade is for many chips"),
        (["What?", "--at", "3,45", "--all-chips"], "cannot be combined with --all-chips"),
        (["What?", "--json", "--geojson"], "cannot be combined with --json"),
        (["What?", "--all-chips", "--geojson"], "write -o FILE.geojson"),
        (["What?", "--model", "nana"], "nana"),
    ],
)
def test_errors_are_one_line(run: Run, scene: Scene, args: list[str], message: str) -> None:
    Path("empty.txt").write_text("\n")
    result = run("ask", *scene.args, *args, "--quiet")
    assert result.exit_code == 2, result.stderr
    assert message in one_line(result)
    assert result.stdout == ""
    assert run.loads == []
