"""`deltavlm calibrate` and `--calibration`: from a run and its review to a run that calls right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
from typer.testing import CliRunner

import deltavlm
from deltacli.main import app
from deltavlm.model.interface import Question, Reply
from tests.cli.conftest import Run, one_line
from tests.pairs import layer, write_pairs
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32)
PAIRS = 33  # of which every third has changed
CALIBRATION = {
    **{"model": "scripted", "fingerprint": "0123456789abcdef", "method": "platt"},
    **{"scale": 1.0, "offset": 0.0, "threshold": 0.5, "changed": 11, "unchanged": 22},
}


def always_yes(before: np.ndarray, after: np.ndarray, question: Question) -> str | Reply:
    """Script that is a little surer where something has changed."""
    if not question.yes_no:
        return "there is no difference"
    noise = float(before[0, 0, 0]) / 2550
    return Reply("yes", (0.85 if (before != after).any() else 0.6) + noise)


@pytest.fixture
def alarmed(model: ScriptedModel) -> ScriptedModel:
    """Model that says yes to everything."""
    model.script = always_yes
    return model


@pytest.fixture(scope="module")
def written_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("written") / "pairs", PAIRS)


@pytest.fixture
def pairs(written_pairs: Path, tmp_path: Path) -> Path:
    """A list of its own for each test: other lists are written beside it."""
    return Path(shutil.copytree(written_pairs.parent, tmp_path / "pairs")) / written_pairs.name


@pytest.fixture(scope="module")
def analyzed_pairs(written_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("analyzed") / "out.gpkg"
    words = ["analyze", "--pairs", str(written_pairs), "-o", str(path), *map(str, SMALL)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(deltavlm), "load_model", lambda name, runtime: ScriptedModel(script=always_yes))
        assert CliRunner().invoke(app, words).exit_code == 0
    return path


@pytest.fixture
def out(run: Run, alarmed: ScriptedModel, analyzed_pairs: Path) -> Path:
    """Output of the pairs in the current folder."""
    return Path(shutil.copy(analyzed_pairs, "out.gpkg"))


def is_changed(pair_id: str) -> bool:
    return int(pair_id[1:]) % 3 == 0


def write_review(out: Path, path: Path = Path("review.json")) -> Path:
    """Verdicts on every chip of the output, as the page of `report --review` downloads them."""
    rows = [
        {
            **{"layer": "chips", "pair_id": row["pair_id"], "id": row["chip_id"], "note": ""},
            "verdict": "accept" if row["changed"] == is_changed(row["pair_id"]) else "reject",
        }
        for row in layer(out, "chips")
    ]
    path.write_text(json.dumps({"output": out.name, "review": rows}))
    return path


def calls(out: str) -> dict[str, bool]:
    return {row["pair_id"]: bool(row["changed"]) for row in layer(out, "chips")}


def labelled(pairs: Path, labels: Any = is_changed) -> Path:
    """The list with a column `changed`."""
    head, *rows = pairs.read_text().splitlines()
    texts = [f"{row},{labels(row.split(',')[0])}" for row in rows]
    path = pairs.with_name("labelled.csv")
    path.write_text("\n".join([f"{head},changed", *texts]) + "\n")
    return path


def test_from_a_run_to_its_review_to_a_run_that_calls_right(run: Run, out: Path, pairs: Path) -> None:
    assert all(calls("out.gpkg").values())
    result = run("calibrate", out, "--review", write_review(out), "-o", "c.json", "--json")
    assert result.exit_code == 0, result.stderr
    assert not run.loads  # stored scores need no model
    summary, stored = json.loads(result.stdout), json.loads(Path("c.json").read_text())
    assert summary["before"] == {"balanced_accuracy": 0.5, "false_alarms": 1, "misses": 0}
    assert summary["after"] == {"balanced_accuracy": 1, "false_alarms": 0, "misses": 0}
    assert {**summary, **stored, "output": "c.json"} == summary
    assert (stored["changed"], stored["unchanged"]) == (11, 22)
    assert "AUC 1.00" in result.stderr

    args = ("analyze", "--pairs", pairs, *SMALL, "--calibration", "c.json")
    result = run(*args, "-o", "again.gpkg")
    assert result.exit_code == 0, result.stderr
    assert calls("again.gpkg") == {name: is_changed(name) for name in calls("out.gpkg")}
    provenance = json.loads(pyogrio.read_info("again.gpkg", layer="chips")["layer_metadata"]["deltavlm"])
    assert provenance["model"]["calibration"] == stored
    assert provenance["options"]["threshold"] == stored["threshold"]
    scores = [
        {row["pair_id"]: row["changed_score"] for row in layer(name, "chips")}
        for name in ("out.gpkg", "again.gpkg")
    ]
    odds = [{name: np.log(each / (1 - each)) for name, each in table.items()} for table in scores]
    for name, margin in odds[0].items():
        assert odds[1][name] == pytest.approx(stored["scale"] * margin + stored["offset"])

    write_review(
        Path("again.gpkg"), Path("second.json")
    )  # a fit to calibrated scores is for the model itself
    result = run("calibrate", "again.gpkg", "--review", "second.json", "-o", "second_c.json")
    assert result.exit_code == 0, result.stderr
    second = json.loads(Path("second_c.json").read_text())
    assert second["scale"] == pytest.approx(stored["scale"], rel=1e-3)
    assert second["offset"] == pytest.approx(stored["offset"], rel=1e-3)

    assert run(*args, "-o", "high.gpkg", "--threshold", 0.999).exit_code == 0
    assert not any(calls("high.gpkg").values())


def test_verdicts_in_the_columns_of_an_output(run: Run, out: Path) -> None:
    frame = pyogrio.read_dataframe(out, layer="chips")
    frame["verdict"] = [
        "accept" if called == is_changed(name) else "reject"
        for called, name in zip(frame["changed"], frame["pair_id"], strict=True)
    ]
    metadata = pyogrio.read_info(out, layer="chips")["layer_metadata"]
    Path("edited").mkdir()
    pyogrio.write_dataframe(frame, "edited/out.gpkg", layer="chips", layer_metadata=metadata)
    assert run("calibrate", out, "--review", write_review(out), "-o", "file.json").exit_code == 0
    result = run("calibrate", "edited", "-o", "columns.json")
    assert result.exit_code == 0, result.stderr
    assert Path("columns.json").read_text() == Path("file.json").read_text()


@pytest.mark.parametrize("words", [("yes", "no"), ("True", "FALSE"), ("1", "0")])
def test_labels_of_a_list_of_pairs(
    run: Run, alarmed: ScriptedModel, pairs: Path, words: tuple[str, str]
) -> None:
    path = labelled(pairs, lambda name: words[0] if is_changed(name) else words[1])
    result = run("calibrate", path, "-o", "c.json", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert {question.name for asked in alarmed.history for question in asked} == {"change"}
    assert run("analyze", "--pairs", pairs, *SMALL, "--calibration", "c.json", "-o", "o.gpkg").exit_code == 0
    assert calls("o.gpkg") == {f"p{number}": number % 3 == 0 for number in range(PAIRS)}


def test_labels_in_json_lines_and_stac_items(run: Run, alarmed: ScriptedModel, pairs: Path) -> None:
    rows = [row.split(",")[:3] for row in pairs.read_text().splitlines()[1:]]
    lines = [
        json.dumps({"id": name, "before": before, "after": after, "changed": is_changed(name)})
        for name, before, after in rows
    ]
    (pairs.parent / "list.ndjson").write_text("\n".join(lines))
    items = [
        {
            **{"type": "Feature", "id": name, "properties": {"changed": "yes" if is_changed(name) else "no"}},
            "assets": {"before": {"href": before}, "after": {"href": after}},
        }
        for name, before, after in rows
    ]
    (pairs.parent / "list.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    for name in ("list.ndjson", "list.geojson"):
        result = run("calibrate", pairs.parent / name, "-o", f"{name}.json", *SMALL)
        assert result.exit_code == 0, result.stderr
    assert Path("list.ndjson.json").read_text() == Path("list.geojson.json").read_text()


def test_chips_taken_as_unchanged(run: Run, out: Path, pairs: Path) -> None:
    for source in (out, pairs):
        args = () if source == out else SMALL
        result = run("calibrate", source, "--false-alarms", 0.1, "-o", f"{source.stem}.json", *args)
        assert result.exit_code == 0, result.stderr
        assert "33 chips, taken as unchanged" in result.stderr
    assert Path("out.json").read_text() == Path("list.json").read_text()
    assert (
        run("analyze", "--pairs", pairs, *SMALL, "--calibration", "out.json", "-o", "o.gpkg").exit_code == 0
    )
    assert sum(calls("o.gpkg").values()) == 3


def test_sources_of_both_kinds(run: Run, out: Path, pairs: Path) -> None:
    result = run("calibrate", out, labelled(pairs), *SMALL, "-o", "c.json")
    assert result.exit_code == 0, result.stderr
    assert "11 changed and 22 unchanged chips" in result.stderr  # the output has no verdicts


def refused(run: Run, *args: object, words: str) -> None:
    loads = len(run.loads)
    result = run("calibrate", *args)
    assert words in one_line(result)
    assert result.exit_code == 2
    assert len(run.loads) == loads
    assert not Path("calibration.json").exists()


def test_refusals_of_outputs(run: Run, out: Path) -> None:
    refused(run, out, words="out.gpkg: has no labels; give verdicts (deltavlm report --review)")
    refused(run, out, "--false-alarms", 0.001, words="33 unchanged chips: --false-alarms 0.001 needs 1000")
    refused(run, out, "--false-alarms", 1, words="--false-alarms 1.0: is not between 0 and 1")
    refused(run, out, "--chip-size", 64, words="--chip-size is for lists of pairs")
    refused(run, out, "-o", "c.txt", words="c.txt")
    refused(run, "missing.gpkg", words="missing.gpkg")
    one_kind = json.loads(write_review(out).read_text())
    one_kind["review"] = [row for row in one_kind["review"] if row["verdict"] == "reject"]
    Path("one.json").write_text(json.dumps(one_kind))
    refused(run, out, "--review", "one.json", words="all labels are unchanged; a fit needs 10 changed chips")
    Path("c.json").write_text("mine")
    refused(
        run,
        out,
        "--review",
        write_review(out),
        "-o",
        "c.json",
        words="c.json: exists already; add --overwrite",
    )
    assert Path("c.json").read_text() == "mine"
    refused(run, out, "--review", "review.json", "-o", "review.json", "--overwrite", words="would be both")
    assert run("calibrate", out, "--review", "review.json", "-o", "c.json", "--overwrite").exit_code == 0


def test_an_output_without_scores(run: Run, out: Path, pairs: Path) -> None:
    assert run("analyze", "--pairs", pairs, "-o", "b.gpkg", *SMALL, "--ask", "caption").exit_code == 0
    refused(run, "b.gpkg", "--false-alarms", 0.1, words="b.gpkg, chip r00000_c00000: has no score of change")


def test_an_output_of_another_model(run: Run, model: ScriptedModel, out: Path, pairs: Path) -> None:
    model.fingerprint = "f" * 16
    assert run("analyze", "--pairs", pairs, "-o", "b.gpkg", *SMALL).exit_code == 0
    words = "b.gpkg: is of model scripted (ffffffffffffffff), and out.gpkg of scripted (0123456789abcdef)"
    refused(run, out, "b.gpkg", "--false-alarms", 0.1, words=words)


def test_refusals_of_lists(run: Run, pairs: Path) -> None:
    refused(run, pairs, words="list.csv: has no labels")
    refused(run, labelled(pairs, lambda name: "yes"), words="labelled.csv: all labels are changed")
    bad = labelled(pairs, lambda name: "maybe" if name == "p1" else "no")
    refused(
        run, bad, words="labelled.csv, line 3, changed: 'maybe' is neither yes (true, 1) nor no (false, 0)"
    )
    refused(run, labelled(pairs), "--review", "r.json", words="--review: is of an output")


def test_other_columns_named_changed_are_no_labels(run: Run, pairs: Path) -> None:
    """The layer `pairs` of an output has the number of changed chips there, and is a list for `analyze`."""
    path = labelled(pairs, lambda name: "3")
    result = run("analyze", "--pairs", path, "-o", "o.gpkg", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert "ignored columns: changed" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not valid JSON"), ("{}", "'model' is missing"), (None, "no such file")]
)
def test_a_damaged_calibration(run: Run, pairs: Path, text: str | None, words: str) -> None:
    if text is not None:
        Path("c.json").write_text(text)
    for args in (
        ("analyze", "--pairs", pairs),
        ("ask", pairs.parent / "b0.tif", pairs.parent / "a0.tif", "What?"),
    ):
        result = run(*args, "--calibration", "c.json")
        assert words in result.stderr.splitlines()[-1]
        assert result.exit_code == 2
        assert not run.loads


def test_a_calibration_is_not_overwritten_by_a_run(run: Run, pairs: Path) -> None:
    Path("c.json").write_text(json.dumps(CALIBRATION))
    Path("out.gpkg").symlink_to("c.json")
    result = run(
        "analyze", "--pairs", pairs, "--calibration", "c.json", "-o", "out.gpkg", "--overwrite", *SMALL
    )
    assert "--calibration" in one_line(result)
    assert result.exit_code == 2


def test_a_run_with_another_calibration_is_not_resumed(
    run: Run, model: ScriptedModel, tmp_path: Path
) -> None:
    """A chip that failed keeps the journal, for --retry-failed with the same settings."""
    pairs = write_pairs(tmp_path / "broken", 4, broken=(1,))
    for name, offset in (("a.json", 0.0), ("b.json", 0.5)):
        Path(name).write_text(json.dumps({**CALIBRATION, "offset": offset}))
    args = ("analyze", "--pairs", pairs, "-o", "out.gpkg", *SMALL)
    assert run(*args, "--calibration", "a.json").exit_code == 3
    for other in (("--calibration", "b.json"), ()):
        if not other:
            model.calibration, model.details = None, {}
        result = run(*args, "--retry-failed", *other)
        assert result.exit_code == 2
        line = result.stderr.splitlines()[-1]
        assert "is of a run with other settings (model.calibration" in line
    assert run(*args, "--retry-failed", "--calibration", "a.json").exit_code == 3


def test_ask_and_chat_report_the_calibrated_score(run: Run, alarmed: ScriptedModel, pairs: Path) -> None:
    images = (pairs.parent / "b1.tif", pairs.parent / "a1.tif")
    Path("c.json").write_text(json.dumps({**CALIBRATION, "offset": -3.0}))
    question = "Has anything changed?"
    before = json.loads(run("ask", *images, question, "--json").stdout)["score"]
    after = [
        json.loads(run("ask", *images, question, "--json", "--calibration", "c.json").stdout)["score"],
        json.loads(run("chat", *images, "--json", "--calibration", "c.json", input=question).stdout)["score"],
    ]
    odds = np.log([score / (1 - score) for score in (before, *after)])
    assert odds[1:] == pytest.approx(odds[0] - 3)
