"""Metrics equal those of scikit-learn and pycocoevalcap on the same lists, with edge cases among them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from sklearn import metrics

from deltavlm.errors import ToolError
from deltavlm.metrics import binary, counts, java, sets, text
from deltavlm.tasks.locate import LABELS

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
CLOSE = 1e-9

SENTENCES = (
    "a house is built beside the road",
    "there is no difference",
    "",
    "no new roads or buildings",
    "north",
    "the the the the",
    "3 4 465 465 9",
    "many buildings have been built and the trees have gone",
)
REFERENCES = (
    ("a house was built near a road", "a villa appears", "one building is constructed"),
    ("there is no difference", "the two scenes seem identical"),
    ("some trees are removed",),
    ("there are no changes in roads or buildings", ""),
    ("in the north",),
    ("the road is there",),
    ("3 4 465 9", "465 465"),
    ("many houses have been built and trees disappear",),
)


def as_coco(sentences: Any) -> dict[int, list[str]]:
    return {i: [entry] if isinstance(entry, str) else list(entry) for i, entry in enumerate(sentences)}


def test_text_metrics_equal_pycocoevalcap() -> None:
    computed = text.compute_metrics(SENTENCES, REFERENCES)
    references, answers = as_coco(REFERENCES), as_coco(SENTENCES)
    for order, value in enumerate(Bleu(4).compute_score(references, answers, verbose=0)[0], start=1):
        assert computed[f"bleu_{order}"].value() == pytest.approx(value, abs=CLOSE)
    rouge, cider = (scorer.compute_score(references, answers)[0] for scorer in (Rouge(), Cider()))
    assert computed["rouge_l"].value() == pytest.approx(rouge, abs=CLOSE)
    assert computed["cider"].value() == pytest.approx(cider, abs=CLOSE)
    assert cider > 0.1
    assert "meteor" not in computed
    assert "s_m" not in computed


@pytest.mark.parametrize(
    ("sentences", "references"), [([""], [[""]]), (["a b"], [[""]]), ([""], [["a b c d e"]])]
)
def test_empty_sentences_have_metrics(sentences: list[str], references: list[list[str]]) -> None:
    values = {name: metric.value() for name, metric in text.compute_metrics(sentences, references).items()}
    assert all(0 <= value <= 1 for value in values.values()), values
    assert values["cider"] == 0


@contextmanager
def original_meteor() -> Iterator[Any]:
    """METEOR of pycocoevalcap; the pipes that it leaves open are closed."""
    scorer = Meteor()
    try:
        yield scorer
    finally:
        scorer.meteor_p.communicate()


@pytest.mark.slow
@needs_java
def test_meteor_equals_pycocoevalcap() -> None:
    computed = text.compute_metrics(SENTENCES, REFERENCES, java.meteor_statistics(SENTENCES, REFERENCES))
    with original_meteor() as scorer:
        value, each = scorer.compute_score(as_coco(REFERENCES), as_coco(SENTENCES))
    assert computed["meteor"].value() == pytest.approx(value, abs=CLOSE)
    rows = computed["meteor"].rows
    assert [java.meteor(rows[i : i + 1]).value() for i in range(len(SENTENCES))] == pytest.approx(
        each, abs=CLOSE
    )
    parts = [computed[name].value() for name in ("bleu_4", "meteor", "rouge_l", "cider")]
    assert computed["s_m"].value() == pytest.approx(sum(parts) / 4, abs=CLOSE)
    low, high = computed["meteor"].confidence_interval(rounds=100) or (0.0, 0.0)
    assert low < value < high


@needs_java
def test_tokens_equal_pycocoevalcap() -> None:
    sentences = [
        "A house, isn't it?",
        "",
        "   ",
        "two\nlines",
        'a 3x3-grid (top-left) ... `quoted` "words"',
        "the trees and/or the car-park; 50% gone!",
        ".",
    ]
    expected = PTBTokenizer().tokenize({i: [{"caption": sentence}] for i, sentence in enumerate(sentences)})
    assert java.ptb_tokenize(sentences) == [expected[i][0] for i in range(len(sentences))]
    assert java.ptb_tokenize([]) == []
    assert java.ptb_tokenize(["Die Straße im Süden."]) == ["die straße im süden"]  # in any locale


@pytest.mark.slow
@needs_java
def test_special_characters_do_not_split_lines() -> None:
    """Characters that METEOR or the tokenizer take for an end of line do not shift the other sentences."""
    odd = ["a\u2028b", "c ||| d", "e\x0bf\x1cg\x85h", "i"]
    assert len(java.ptb_tokenize(odd)) == 4
    rows = java.meteor_statistics(odd, [["a b"], ["c d"], ["e f g h"], ["i"]])
    assert rows[:, 0].tolist() == [2, 2, 4, 1]


def test_missing_java_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="Java is not installed"):
        java.ptb_tokenize(["a"])
    with pytest.raises(ToolError, match="Java is not installed"):
        java.meteor_statistics(["a"], [["a"]])


def test_a_failing_java_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stub = tmp_path / "java"
    stub.write_text("#!/bin/sh\necho no runtime here >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(java.shutil, "which", lambda name: str(stub))
    with pytest.raises(ToolError, match="no runtime here"):
        java.ptb_tokenize(["a"])


@pytest.mark.parametrize("seed", [0, 1])
def test_yes_no_metrics_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = (rng.random(50) < 0.4).tolist(), (rng.random(50) < 0.5).tolist()
    for answers, facts in ((predicted, truth), ([False] * 50, truth), (predicted, [False] * 50)):
        values = {name: metric.value() for name, metric in binary.compute_metrics(answers, facts).items()}
        scores = metrics.precision_recall_fscore_support(facts, answers, average="binary", zero_division=0)
        assert [values[name] for name in ("precision", "recall", "f1")] == pytest.approx(
            scores[:3], abs=CLOSE
        )
        assert values["accuracy"] == pytest.approx(metrics.accuracy_score(facts, answers), abs=CLOSE)
        table = metrics.confusion_matrix(facts, answers, labels=[False, True])
        assert [values[name] for name in ("tn", "fp", "fn", "tp")] == table.reshape(-1).tolist()


def test_count_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    predicted, truth = rng.integers(0, 9, 40).tolist(), rng.integers(0, 9, 40).tolist()
    values = {name: metric.value() for name, metric in counts.compute_metrics(predicted, truth).items()}
    assert values["mae"] == pytest.approx(metrics.mean_absolute_error(truth, predicted), abs=CLOSE)
    assert values["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, predicted), abs=CLOSE)
    assert values["exact"] == pytest.approx(metrics.accuracy_score(truth, predicted), abs=CLOSE)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_cell_metrics_equal_scikit_learn(share: float) -> None:
    """Many pairs of empty sets, as in the test split; there scikit-learn's Jaccard is 0, ours can be 1."""
    rng = np.random.default_rng(3)
    says, facts = (rng.random((60, 9)) < share for _ in range(2))
    predicted, truth = ([{LABELS[i] for i in np.flatnonzero(row)} for row in part] for part in (says, facts))
    values = {
        name: metric.value() for name, metric in sets.compute_metrics(predicted, truth, 9, empty=0.0).items()
    }
    for name, scorer in (
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
        ("f1", metrics.f1_score),
    ):
        assert values[name] == pytest.approx(scorer(facts, says, average="micro", zero_division=0), abs=CLOSE)
    jaccard = metrics.jaccard_score(facts, says, average="samples", zero_division=0)
    assert values["jaccard"] == pytest.approx(jaccard, abs=CLOSE)
    assert values["subset"] == pytest.approx(metrics.accuracy_score(facts, says), abs=CLOSE)
    assert values["hamming"] == pytest.approx(metrics.hamming_loss(facts, says), abs=CLOSE)
    both_empty = float(np.mean(~says.any(axis=1) & ~facts.any(axis=1)))
    strict = sets.compute_metrics(predicted, truth, 9, empty=1.0)["jaccard"].value()
    assert strict == pytest.approx(jaccard + both_empty, abs=CLOSE)
