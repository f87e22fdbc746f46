"""Metrics under both protocols, which parse, count and compare the same answers in different ways."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence

import pytest

from deltavlm.data.examples import Example, Turn
from deltavlm.errors import ToolError
from deltavlm.metrics import java
from deltavlm.scoring.predictions import Prediction
from deltavlm.scoring.score import Protocol, Scores, Setup, score
from deltavlm.tasks import TaskName, dialogue

WORDS = {"a": 0, "house": 1, "is": 2, "built": 3, "there": 4, "no": 5, "difference": 6, "<unk>": 7}
SAME = "there is no difference"


def pairs(
    task: TaskName, *rows: tuple[str, str, bool] | tuple[str, str, bool, float]
) -> list[tuple[Example, Prediction]]:
    """(answer, reference, changed[, score]) as pairs."""
    examples = []
    for number, (answer, reference, changed, *p_yes) in enumerate(rows):
        name = str(number)
        example = Example(name, task, (Turn("?", (reference,)),), changed, f"A/{name}.png", f"B/{name}.png")
        examples.append((example, Prediction(name, task, (answer,), p_yes[0] if p_yes else None)))
    return examples


def values(scores: Scores, task: str, group: str = "all") -> dict[str, float]:
    return {
        metric.metric: metric.value
        for metric in scores.metrics
        if (metric.task, metric.group) == (task, group)
    }


def scored(
    rows: Sequence[tuple[Example, Prediction]], tasks: Sequence[str], protocol: Protocol = "strict"
) -> Scores:
    words = WORDS if protocol == "paper" else None
    scores = score(rows, tasks, Setup(protocol, words, bootstrap_rounds=20))
    assert {metric.protocol for metric in scores.metrics} <= {protocol}
    return scores


def test_yes_and_no_are_parsed_from_the_answer() -> None:
    rows = pairs(
        "change",
        ("Yes.", "yes", True, 0.9),
        ("no", "no", False, 0.2),
        ("", "no", False, 0.5),
        ("north", "yes", True, 0.6),
        (SAME, "yes", True, 0.4),
    )
    result = values(scored(rows, ["change"]), "change")
    assert (result["tp"], result["fp"], result["fn"], result["tn"]) == (1, 1, 2, 1)
    assert result["unreadable"] == 2
    assert result["accuracy"] == pytest.approx(0.4)
    assert 0 < result["calibration_error"] < 1


def test_the_flag_is_the_ground_truth_and_a_contradiction_is_reported() -> None:
    result = scored(pairs("change", ("yes", "no", True)), ["change"])
    assert values(result, "change")["accuracy"] == 1
    assert [problem.location for problem in result.problems] == ["change 0"]


def test_scores_that_are_no_probabilities_give_no_calibration_error() -> None:
    result = scored(pairs("change", ("yes", "yes", True, -3.5)), ["change"])
    assert "calibration_error" not in values(result, "change")
    assert "P(yes)" in result.notes[0]
    assert scored(pairs("change", ("yes", "yes", True)), ["change"]).notes == []


@pytest.mark.usefixtures("no_java")
def test_paper_derives_change_from_captions() -> None:
    rows = pairs(
        "caption", (SAME, SAME, False), ("There is no difference.", SAME, False), ("a house", "a", True)
    )
    result = values(scored(rows, ["change"], "paper"), "change")
    assert (result["tp"], result["fp"], result["fn"], result["tn"]) == (1, 1, 0, 1)
    yes_no = pairs("change", ("yes", "yes", True))
    assert scored(yes_no, ["change"], "paper").metrics == []


def test_counts_under_strict_and_paper() -> None:
    rows = pairs(
        "count",
        ("2 new roads and 1 new building", "2 new roads and 1 new building", True),
        ("2 new roads in the north and 3 new buildings", "2 new roads and 3 new buildings", True),
        ("no new roads or buildings", "There are no changes in roads or buildings.", False),
        ("three new roads and no new buildings", "3 new roads and no new buildings", True),
        ("gibberish", "1 new road and no new buildings", True),
        ("1 new road", "unheard of", True),
    )
    strict, paper = (scored(rows, ["count"], protocol) for protocol in ("strict", "paper"))
    assert values(strict, "count", "roads") == {"mae": 0, "rmse": 0, "exact": 0.8}
    assert values(strict, "count", "both") == {"exact": 0.8, "unreadable": 1}
    # "north" makes 3 buildings 0, and "three" is no number
    assert values(paper, "count", "buildings")["mae"] == 1.0
    assert values(paper, "count", "buildings")["rmse"] == pytest.approx(math.sqrt(3))
    assert values(paper, "count", "both")["unreadable"] == 2
    assert [metric.n for metric in strict.metrics if metric.metric == "mae"] == [4, 4]
    assert [problem.location for problem in strict.problems] == ["count 5"]


def test_cells_under_changeimti_have_both_rules_for_empty_sets() -> None:
    cell = "roads ['top-left'] buildings []"
    none = "roads [] buildings []"
    rows = pairs(
        "location", (cell, cell, True), (none, none, False), (none, cell, True), ("no idea", none, False)
    )
    result = values(scored(rows, ["location"], "changeimti"), "location", "roads")
    assert (result["example_accuracy"], result["jaccard_empty_0"], result["subset"]) == (0.5, 0.25, 0.5)
    assert (result["precision"], result["recall"]) == (1.0, 0.5)
    strict = values(scored(rows, ["location"]), "location", "roads")
    assert strict["jaccard"] == result["example_accuracy"]
    published = {(m.group, m.metric): m.published for m in scored(rows, ["location"], "changeimti").metrics}
    assert published["roads", "example_accuracy"] == 0.7865
    assert published["buildings", "f1"] == 0.9137
    assert published["roads, always empty", "f1"] is None


def test_counts_under_changeimti_are_compared_with_changevg() -> None:
    rows = pairs("count", ("2 new roads and no new buildings", "1 new road and no new buildings", True))
    metrics = {(m.group, m.metric): m for m in scored(rows, ["count"], "changeimti").metrics}
    assert (metrics["roads", "mae"].value, metrics["roads", "mae"].published) == (1.0, 0.156)


def test_cells_under_strict_and_paper() -> None:
    empty = "roads [] buildings []"
    rows = pairs(
        "location",
        (empty, empty, False),
        ("roads ['top-left'] buildings []", "roads: ['top-left'] buildings: ['center-left']", True),
        ("Roads: [top left], buildings: [center-left]", "roads ['top-left'] buildings ['center-left']", True),
        ("roads ['top-left' buildings [", empty, False),
    )
    strict, paper = (scored(rows, ["location"], protocol) for protocol in ("strict", "paper"))
    roads = values(strict, "location", "roads")
    assert (roads["precision"], roads["recall"], roads["jaccard"], roads["subset"]) == (1, 1, 0.75, 0.75)
    roads = values(paper, "location", "roads")
    assert (roads["precision"], roads["recall"], roads["jaccard"], roads["subset"]) == (1, 0.5, 0.25, 0.5)
    assert values(paper, "location", "both") == {"unreadable": 2}
    baseline = {
        protocol: values(result, "location", "buildings, always empty")
        for protocol, result in (("strict", strict), ("paper", paper))
    }
    assert baseline["strict"]["subset"] == baseline["paper"]["subset"] == baseline["strict"]["jaccard"] == 0.5
    assert baseline["paper"]["jaccard"] == baseline["paper"]["f1"] == 0


def test_java_is_started_once_for_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in all: for the tokenizer and for METEOR; each answer is scored with its own references."""
    started: list[Sequence[str]] = []

    def answered(arguments: Sequence[str], folder: object, lines: Sequence[str]) -> list[str]:
        started.append(lines)
        if "-stdio" in arguments:
            return [" ".join(["1"] * java.METEOR_STATISTICS) for _ in lines]
        return [line.lower() for line in lines]

    monkeypatch.setattr(java, "_java", answered)
    captions = pairs("caption", ("A house", SAME, True), (SAME, SAME, False))
    result = scored([*captions, *pairs("open", ("yes", "yes", True))], ["caption", "open"])
    assert [sorted(lines) for lines in started] == [
        sorted(["A house", SAME, "yes", SAME, "yes"]),
        sorted([f"SCORE ||| {SAME} ||| a house", f"SCORE ||| {SAME} ||| {SAME}", "SCORE ||| yes ||| yes"]),
    ]
    assert {"caption", "open"} <= {metric.task for metric in result.metrics if metric.metric == "meteor"}


@pytest.mark.usefixtures("no_java")
def test_text_without_java_has_a_note_and_the_metrics_without_java() -> None:
    rows = pairs("caption", ("A house is built!", "a house is built .", True), (SAME, SAME + " .", False))
    strict, paper = (scored(rows, ["caption"], protocol) for protocol in ("strict", "paper"))
    assert (strict.tokenizer, paper.tokenizer) == ("simple", "word map")
    assert any("simple rule" in note for note in strict.notes)
    assert any("no METEOR" in note and "Java" in note for note in paper.notes)
    assert not any("simple rule" in note for note in paper.notes)
    assert values(strict, "caption")["bleu_4"] == pytest.approx(1)
    assert values(paper, "caption")["bleu_4"] < 1  # "A" and "built!" are unknown words
    assert values(paper, "caption", "unchanged")["rouge_l"] == pytest.approx(1)
    assert "s_m" not in values(strict, "caption")
    assert {metric.published for metric in paper.metrics if metric.metric == "bleu_4"} == {0.6251, None}


@pytest.mark.usefixtures("no_java")
def test_text_is_grouped_by_ground_truth() -> None:
    rows = pairs("caption", ("a", "a", True), ("b", "c", False), (SAME, SAME, False))
    result = [metric for metric in scored(rows, ["caption"]).metrics if metric.metric == "rouge_l"]
    assert [(metric.group, metric.n) for metric in result] == [("all", 3), ("changed", 1), ("unchanged", 2)]
    assert [metric.value for metric in result] == pytest.approx([2 / 3, 1, 1 / 2])
    assert {metric.group for metric in scored(rows[:1], ["caption"]).metrics} == {"all", "changed"}


def test_unknown_words_match_each_other_under_paper_only(no_java: None) -> None:
    rows = pairs("open", ("a palace is built", "a villa is built", True))
    assert values(scored(rows, ["open"], "paper"), "open")["bleu_4"] == pytest.approx(1)
    assert values(scored(rows, ["open"]), "open")["bleu_4"] < 0.5


def test_text_is_not_scored_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ToolError("not installed: deltavlm[eval]")

    monkeypatch.setattr(java, "pycocoevalcap_folder", fail)
    rows = [*pairs("caption", ("a", "a", True)), *pairs("change", ("yes", "yes", True))]
    result = scored(rows, ["caption", "change"])
    assert [note for note in result.notes if "deltavlm[eval]" in note] == result.notes
    assert len(result.notes) == 1
    assert {metric.task for metric in result.metrics} == {"change"}


@pytest.mark.usefixtures("no_java")
def test_dialogues_are_scored_turn_by_turn() -> None:
    questions = (*dialogue.TURNS, "And the trees?")
    truth = ("yes", "2 roads has changed, and no buildings has changed", "a house is built", "they are gone")
    turns = tuple(Turn(question, (answer,)) for question, answer in zip(questions, truth, strict=True))
    rows = [
        (Example("a", "dialogue", turns, True, "A", "B"), Prediction("a", "dialogue", truth)),
        (Example("b", "dialogue", turns, True, "A", "B"), Prediction("b", "dialogue", ("no",))),
    ]
    result = scored(rows, ["dialogue"])
    assert values(result, "dialogue, turn 1")["accuracy"] == 0.5
    assert values(result, "dialogue, turn 2", "roads") == {"mae": 0, "rmse": 0, "exact": 1}
    assert values(result, "dialogue, turn 3")["rouge_l"] == pytest.approx(1)
    assert "rouge_l" in values(result, "dialogue, turn 4")
    assert any("fewer answers" in note for note in result.notes)
    assert "dialogue, turn 1" not in {metric.task for metric in scored(rows, ["dialogue"], "paper").metrics}


def test_paper_needs_a_word_map() -> None:
    with pytest.raises(ValueError, match="word map"):
        score(pairs("caption", ("a", "a", True)), ["caption"], Setup("paper"))


def test_the_order_of_examples_does_not_matter() -> None:
    rows = pairs(
        "count",
        *((f"{i} new roads and 1 new building", "3 new roads and 1 new building", True) for i in range(9)),
    )
    scores, reversed_scores = (scored(order, ["count"]) for order in (rows, rows[::-1]))
    assert [m.value for m in scores.metrics] == [m.value for m in reversed_scores.metrics]


@pytest.mark.parametrize("module", ["report", "evaluate", "synthetic"])
def test_scoring_loads_no_model(module: str) -> None:
    """`data` may import the model; the modules of it that scoring imports must not load torch."""
    code = f"import sys, deltavlm.scoring.{module}; print({{'torch', 'transformers'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "set()"
