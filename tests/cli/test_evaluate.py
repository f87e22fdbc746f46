"""`deltavlm eval`: a model, or a file of predictions, is scored."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.changechat import write_chip_set
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.files import lock
from tests.cli.conftest import Run, one_line
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("no_java")

WORDS = {"a": 0, "house": 1, "road": 2, "<unk>": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four pairs, without its images."""
    folder = tmp_path_factory.mktemp("dataset")
    scenes = [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(4)]
    write_chip_set(folder, "test", scenes)
    shutil.rmtree(folder / "images")
    return folder


@pytest.fixture
def perfect(folder: Path, run: Run) -> list[dict[str, Any]]:
    """The first reference of every example as its answer, in no order."""
    answers: list[dict[str, Any]] = []
    for example in read_dataset(folder).examples:
        references = [turn.answers[0] for turn in example.turns]
        answer = references if example.task == "dialogue" else references[0]
        answers.append({"id": example.id, "task": example.task, "answer": answer})
    random.Random(0).shuffle(answers)
    write(answers)
    return answers


def write(answers: list[dict[str, Any]], name: str = "answers.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def figures(report: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    return {(m["task"], m["group"], m["metric"]): m["value"] for m in report["figures"]}


@pytest.mark.usefixtures("perfect")
def test_perfect_answers_have_perfect_scores(run: Run, folder: Path) -> None:
    result = run("eval", folder, "--predictions", "answers.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["protocol"] == "strict"
    assert {m["protocol"] for m in report["figures"]} == {"strict"}
    values = figures(report)
    assert values["change", "all", "f1"] == values["location", "roads", "jaccard"] == 1
    assert values["count", "both", "exact"] == 1
    assert values["count", "buildings", "mae"] == 0
    assert values["dialogue, turn 1", "all", "accuracy"] == 1
    assert values["caption", "all", "bleu_4"] > 0.99
    assert report["examples"]["open"]["missing"] == 0
    assert report["problems"] == []
    assert any("Java" in note for note in report["notes"])
    assert run.loads == []


def test_the_report_does_not_depend_on_the_order(
    run: Run, folder: Path, perfect: list[dict[str, Any]]
) -> None:
    reports = []
    for _ in range(2):
        files = ("--predictions", "answers.jsonl", "-o", "r.json")
        assert run("eval", folder, *files, "--overwrite", "--bootstrap", 50).exit_code == 0
        reports.append((Path("r.json").read_text(), Path("r.md").read_text()))
        perfect.reverse()
        write(perfect)
    assert reports[0] == reports[1]
    assert "protocol `strict`" in reports[0][1]
    assert "| count | roads | MAE | 0.00 | 0.00 to 0.00 | 4 |  |" in reports[0][1]


def test_the_table_is_on_stdout_and_messages_on_stderr(
    run: Run, folder: Path, perfect: list[dict[str, Any]]
) -> None:
    missing, *others = [answer for answer in perfect if answer["task"] == "count"]
    write([*others, others[0], {"id": "nosuch", "task": "count", "answer": "no"}, {"id": "x"}])
    result = run("eval", folder, "--predictions", "answers.jsonl")
    assert result.exit_code == 3, result.stderr
    head, columns, *rows = result.stdout.splitlines()
    assert "protocol strict" in head
    assert "published: nothing on these data" in head
    assert columns.split()[-1] == "published"
    assert {row.split()[0] for row in rows} == {"count"}
    assert f"1 example of 4 without an answer: count {missing['id']}" in result.stderr
    assert "1 prediction of no example: count nosuch" in result.stderr
    assert f"1 prediction with an id again; the first is scored: count {others[0]['id']}" in result.stderr
    assert "1 prediction that cannot be parsed: line 6" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        "Error: answers.jsonl is scored in part: 1 line cannot be parsed: line 6: x: no task None"
    )
    assert "; 1 prediction without an example; 1 of 4 examples without an answer" in result.stderr
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "answers.jsonl"]


def test_a_file_of_other_lines_is_no_file_of_predictions(run: Run, folder: Path) -> None:
    Path("log.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    result = run("eval", folder, "--predictions", "log.jsonl")
    assert result.exit_code == 2
    assert "log.jsonl has no predictions: line 1: id is not text or an integer" in one_line(result)
    write([{"id": "nosuch", "task": "count", "answer": "no"}])
    result = run("eval", folder, "--predictions", "answers.jsonl")
    assert result.exit_code == 2
    assert "no prediction in answers.jsonl has the id of an example: they have 'nosuch'" in one_line(result)


@pytest.mark.usefixtures("perfect")
def test_published_values_are_shown_for_the_published_dataset_only(run: Run, folder: Path) -> None:
    shutil.copy(folder / "synthetic_test_count.json", "changechat_105k_test_count.json")
    args = ("--predictions", "answers.jsonl", "--tasks", "count")
    result = run("eval", "changechat_105k_test_count.json", *args)
    assert "paper protocol only" in result.stdout
    assert result.stdout.splitlines()[2].split() == [
        "count",
        "roads",
        "MAE",
        "0.00",
        "0.00",
        "to",
        "0.00",
        "4",
        "0.24",
    ]
    report = json.loads(run("eval", folder, *args, "--json").stdout)
    assert {m["published"] for m in report["figures"]} == {None}


@pytest.mark.usefixtures("perfect")
def test_paper(run: Run, folder: Path) -> None:
    Path("words.json").write_text(json.dumps(WORDS))
    args = ("eval", folder, "--predictions", "answers.jsonl", "--protocol", "paper")
    assert "--word-map" in one_line(run(*args))
    result = run(*args, "--word-map", "words.json", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["protocol"], report["tokens"], report["word_map_size"]) == ("paper", "word map", 4)
    assert figures(report)["change", "all", "f1"] == 1  # from the captions
    assert any("from captions" in note for note in report["notes"])
    result = run(*args, "--tasks", "count,change", "--json")
    assert {m["task"] for m in json.loads(result.stdout)["figures"]} == {"change", "count"}


@pytest.mark.usefixtures("perfect")
def test_outputs_and_inputs_are_not_overwritten(run: Run, folder: Path) -> None:
    args = ("eval", folder, "--predictions", "answers.jsonl", "--tasks", "count")
    Path("r.md").write_text("mine")
    result = run(*args, "-o", "r.json")
    assert result.exit_code == 2
    assert "r.md exists" in one_line(result)
    assert not Path("r.json").exists()
    shutil.copy("answers.jsonl", "answers.json")
    for name, message in (("no/r.json", "does not exist"), ("r.csv", "suffix"), ("answers.json", "exists")):
        result = run(*args, "-o", name)
        assert result.exit_code == 2
        assert message in one_line(result)
    args = ("eval", folder, "--predictions", "answers.json", "-o", "answers.json", "--overwrite")
    assert "would be both the report and" in one_line(run(*args))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give the folder of the images with --images"),
        (["--images", "nosuch"], "nosuch is not a folder"),
        (["--shard", "3/2"], "'3/2' is not I/N"),
        (["--shard", "0/2"], "'0/2' is not I/N"),
        (["--predictions", "answers.jsonl", "--limit", "3"], "--predictions loads no model"),
        (["--predictions", "answers.jsonl", "--model", "nana"], "--predictions loads no model"),
        (["--predictions", "nosuch"], "nosuch"),
        (["--predictions", "answers.jsonl", "--tasks", "cuont"], "did you mean 'count'"),
        (["--predictions", "answers.jsonl", "--tasks", ""], "no task ''"),
        (["--predictions", "answers.jsonl", "--split", "val"], "it has test"),
        (["--predictions", "answers.jsonl", "--word-map", "x"], "--protocol paper"),
        (
            ["--predictions", "answers.jsonl", "--protocol", "paper", "--word-map", "answers.jsonl"],
            "answers.jsonl",
        ),
        (["--predictions", "foreign.jsonl"], "has the id of an example: they have 'f'"),
    ],
)
@pytest.mark.usefixtures("perfect")
def test_usage_errors_are_a_single_line(run: Run, folder: Path, args: list[str], message: str) -> None:
    write([{"id": "f", "task": "count", "answer": "no"}], "foreign.jsonl")
    result = run("eval", folder, *args)
    assert result.exit_code == 2, result.stderr
    assert message in one_line(result)
    assert result.stdout == ""


@pytest.mark.usefixtures("perfect")
def test_missing_data(run: Run, folder: Path) -> None:
    for path, message in (("nosuch", "does not exist"), ("answers.jsonl", "not valid JSON")):
        result = run("eval", path, "--predictions", "answers.jsonl")
        assert result.exit_code == 2
        assert message in one_line(result)
    result = run(
        "eval", folder / "synthetic_test_count.json", "--predictions", "answers.jsonl", "--tasks", "open"
    )
    assert "there is count" in one_line(result)


def test_unencodable_characters_in_ids_and_answers(
    run: Run, folder: Path, perfect: list[dict[str, Any]]
) -> None:
    """A lone surrogate has no UTF-8; a control character would break a line."""
    odd = {"id": "\ud800\n\x1b[31m|", "task": "count", "answer": "\ud800"}
    write(
        [
            *perfect,
            odd,
            {
                **odd,
                "id": next(answer["id"] for answer in perfect if answer["task"] == "open"),
                "task": "open",
            },
        ]
    )
    for flag in ("--json", "--quiet"):
        result = run(
            "eval",
            folder,
            "--predictions",
            "answers.jsonl",
            "-o",
            f"{flag}.json",
            flag,
            "--tasks",
            "count",
        )
        assert result.exit_code == 3, result.stderr  # no example has this id
    assert json.loads(Path("--json.json").read_text())["unknown"] == ["count \ud800\n\x1b[31m|"]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six pairs, with its images."""
    folder = tmp_path_factory.mktemp("image_folder")
    write_chip_set(
        folder,
        "test",
        [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(6)],
    )
    return folder


def test_predictions_of_a_model_can_be_scored_from_their_file(run: Run, image_folder: Path) -> None:
    result = run("eval", image_folder, "-o", "report.json", "--bootstrap", 50)
    assert result.exit_code == 0, result.stderr
    assert [name for name, _ in run.loads] == ["nano"]
    report = json.loads(Path("report.json").read_text())
    assert report["sources"]["model"]["name"] == "scripted"
    assert report["sources"]["predictions"] is None
    tasks = {m["task"] for m in report["figures"]}
    assert {"caption", "change", "count", "location", "open"} <= tasks
    assert {"dialogue, turn 3", "dialogue, turn 3, reference history"} <= tasks
    assert "dialogue, turn 1, reference history" not in tasks
    again = run(
        *("eval", image_folder, "--predictions", "report.predictions.jsonl", "-o", "again.json"),
        *("--bootstrap", 50),
    )
    assert again.exit_code == 0, again.stderr
    assert json.loads(Path("again.json").read_text())["figures"] == report["figures"]
    assert len(run.loads) == 1


def test_an_interrupted_run_resumes_to_equal_files(
    run: Run, image_folder: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("eval", image_folder, "--batch-size", 2, "--bootstrap", 50)
    assert run(*args, "-o", "whole.json").exit_code == 0
    number_of_batches = len(model.batches)

    encode, calls = model.encode, 0

    def failing(before: Any, after: Any, contexts: Any = ()) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(before, after)

    monkeypatch.setattr(model, "encode", failing)
    result = run(*args, "-o", "cut.json")
    assert result.exit_code != 0
    assert "run the same command again to resume" in result.stderr
    assert not Path("cut.json").exists()
    with Path("cut.predictions.jsonl").open("a") as stream:
        stream.write('{"id": "test_5_bin')  # killed while it wrote
    result = run(*args, "-o", "cut.json")
    assert result.exit_code == 0, result.stderr
    assert "resuming: 4 of 6 pairs already in" in result.stderr
    assert len(model.batches) == 2 * number_of_batches  # the third batch alone was asked again
    for ending in (".json", ".md", ".predictions.jsonl"):
        assert Path(f"cut{ending}").read_bytes() == Path(f"whole{ending}").read_bytes()


def test_predictions_of_all_shards_give_the_report_of_the_dataset(run: Run, image_folder: Path) -> None:
    assert run("eval", image_folder, "-o", "whole.json", "--bootstrap", 0).exit_code == 0
    for index in (1, 2):
        part = run("eval", image_folder, "-o", f"part{index}.json", "--shard", f"{index}/2", "--bootstrap", 0)
        assert part.exit_code == 0, part.stderr
    Path("all.jsonl").write_text(
        "".join(Path(f"part{index}.predictions.jsonl").read_text() for index in (1, 2))
    )
    assert (
        run("eval", image_folder, "--predictions", "all.jsonl", "-o", "all.json", "--bootstrap", 0).exit_code
        == 0
    )
    whole, parts = (json.loads(Path(f"{name}.json").read_text())["figures"] for name in ("whole", "all"))
    assert whole == parts


def test_predictions_of_another_run_are_refused(run: Run, image_folder: Path, model: ScriptedModel) -> None:
    args = ("eval", image_folder, "-o", "report.json", "--tasks", "count")
    assert run(*args).exit_code == 0
    Path("report.json").unlink()
    Path("report.md").unlink()
    model.fingerprint = "another"
    result = run(*args)
    assert result.exit_code == 2
    assert "scripted 0123456789abcdef in another run" in last_line(result.stderr)
    assert run(*args, "--overwrite").exit_code == 0


def test_missing_images_are_reported_and_the_other_examples_scored(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    (copy / "images/test/B/test_2.png").unlink()
    result = run("eval", copy, "--tasks", "change,count", "-o", "report.json")
    assert result.exit_code == 3
    assert "test/B/test_2.png is missing" in last_line(result.stderr)
    report = json.loads(Path("report.json").read_text())
    assert report["examples"]["count"] == {"answered": 5, "missing": 1}
    assert [problem["kind"] for problem in report["problems"]] == ["image"]
    shutil.rmtree(copy / "images/test")
    result = run("eval", copy)
    assert result.exit_code == 2
    assert "none of the images exists" in one_line(result)


def test_a_dataset_with_a_broken_file_is_scored_with_exit_code_3(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    (copy / "synthetic_test_count.json").write_text("{bad")
    result = run("eval", copy, "--tasks", "change,count", "-o", "report.json")
    assert result.exit_code == 3
    assert "synthetic_test_count.json is not valid JSON" in last_line(result.stderr)
    assert json.loads(Path("report.json").read_text())["examples"] == {
        "change": {"answered": 6, "missing": 0}
    }
    result = run("eval", copy, "--tasks", "count")
    assert result.exit_code == 2
    assert "is not valid JSON" in one_line(result)


def test_a_report_is_locked_against_a_second_run(run: Run, image_folder: Path) -> None:
    args = ("eval", image_folder, "-o", "report.json", "--tasks", "count")
    with lock(Path("report.predictions.jsonl")):
        result = run(*args)
    assert result.exit_code == 2
    assert "another run is writing it" in last_line(result.stderr)
    assert run(*args).exit_code == 0
    Path("report.json").unlink()  # killed between the page and the report
    assert run(*args).exit_code == 0


def last_line(stderr: str) -> str:
    line = stderr.splitlines()[-1]
    assert line.startswith("Error: "), stderr
    assert "Traceback" not in stderr
    return line
