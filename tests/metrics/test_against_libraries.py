"""The same numbers as scikit-learn and pycocoevalcap on the same lists, awkward ones among them."""

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

SAID = (
    "a house is built beside the road",
    "there is no difference",
    "",
    "no new roads or buildings",
    "north",
    "the the the the",
    "3 4 465 465 9",
    "many buildings have been built and the trees have gone",
)
KNOWN = (
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
    return {i: [one] if isinstance(one, str) else list(one) for i, one in enumerate(sentences)}


def test_text_is_pycocoevalcaps() -> None:
    found = text.compute_metrics(SAID, KNOWN)
    references, answers = as_coco(KNOWN), as_coco(SAID)
    for order, value in enumerate(Bleu(4).compute_score(references, answers, verbose=0)[0], start=1):
        assert found[f"bleu_{order}"].value() == pytest.approx(value, abs=CLOSE)
    rouge, cider = (scorer.compute_score(references, answers)[0] for scorer in (Rouge(), Cider()))
    assert found["rouge_l"].value() == pytest.approx(rouge, abs=CLOSE)
    assert found["cider"].value() == pytest.approx(cider, abs=CLOSE)
    assert cider > 0.1
    assert "meteor" not in found
    assert "s_m" not in found


@pytest.mark.parametrize(("said", "known"), [([""], [[""]]), (["a b"], [[""]]), ([""], [["a b c d e"]])])
def test_text_without_words_is_no_crash(said: list[str], known: list[list[str]]) -> None:
    found = {name: tally.value() for name, tally in text.compute_metrics(said, known).items()}
    assert all(0 <= value <= 1 for value in found.values()), found
    assert found["cider"] == 0


@contextmanager
def theirs() -> Iterator[Any]:
    """pycocoevalcap's METEOR, with its pipes closed in the end, which it leaves open."""
    scorer = Meteor()
    try:
        yield scorer
    finally:
        scorer.meteor_p.communicate()


@pytest.mark.slow
@needs_java
def test_meteor_is_pycocoevalcaps() -> None:
    found = text.compute_metrics(SAID, KNOWN, java.meteor_statistics(SAID, KNOWN))
    with theirs() as scorer:
        value, each = scorer.compute_score(as_coco(KNOWN), as_coco(SAID))
    assert found["meteor"].value() == pytest.approx(value, abs=CLOSE)
    rows = found["meteor"].rows
    assert [java.meteor(rows[i : i + 1]).value() for i in range(len(SAID))] == pytest.approx(each, abs=CLOSE)
    parts = [found[name].value() for name in ("bleu_4", "meteor", "rouge_l", "cider")]
    assert found["s_m"].value() == pytest.approx(sum(parts) / 4, abs=CLOSE)
    low, high = found["meteor"].confidence_interval(rounds=100) or (0.0, 0.0)
    assert low < value < high


@needs_java
def test_words_are_pycocoevalcaps() -> None:
    sentences = [
        "A house, isn't it?",
        "",
        "   ",
        "two\nlines",
        'a 3x3-grid (top-left) ... `quoted` "words"',
        "the trees and/or the car-park; 50% gone!",
        ".",
    ]
    expected = PTBTokenizer().tokenize({i: [{"caption": one}] for i, one in enumerate(sentences)})
    assert java.ptb_tokenize(sentences) == [expected[i][0] for i in range(len(sentences))]
    assert java.ptb_tokenize([]) == []
    assert java.ptb_tokenize(["Die Straße im Süden."]) == ["die straße im süden"]  # in any locale


@pytest.mark.slow
@needs_java
def test_a_line_stays_a_line() -> None:
    """Marks that METEOR or the tokenizer take for an end of line or of a sentence do not shift the rest."""
    odd = ["a\u2028b", "c ||| d", "e\x0bf\x1cg\x85h", "i"]
    assert len(java.ptb_tokenize(odd)) == 4
    rows = java.meteor_statistics(odd, [["a b"], ["c d"], ["e f g h"], ["i"]])
    assert rows[:, 0].tolist() == [2, 2, 4, 1]


def test_without_java_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="Java is not installed"):
        java.ptb_tokenize(["a"])
    with pytest.raises(ToolError, match="Java is not installed"):
        java.meteor_statistics(["a"], [["a"]])


def test_a_java_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stub = tmp_path / "java"
    stub.write_text("#!/bin/sh\necho no runtime here >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(java.shutil, "which", lambda name: str(stub))
    with pytest.raises(ToolError, match="no runtime here"):
        java.ptb_tokenize(["a"])


@pytest.mark.parametrize("seed", [0, 1])
def test_yes_and_no_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    said, truth = (rng.random(50) < 0.4).tolist(), (rng.random(50) < 0.5).tolist()
    for answers, facts in ((said, truth), ([False] * 50, truth), (said, [False] * 50)):
        found = {name: tally.value() for name, tally in binary.compute_metrics(answers, facts).items()}
        scores = metrics.precision_recall_fscore_support(facts, answers, average="binary", zero_division=0)
        assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(scores[:3], abs=CLOSE)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(facts, answers), abs=CLOSE)
        table = metrics.confusion_matrix(facts, answers, labels=[False, True])
        assert [found[name] for name in ("tn", "fp", "fn", "tp")] == table.reshape(-1).tolist()


def test_counts_are_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    said, truth = rng.integers(0, 9, 40).tolist(), rng.integers(0, 9, 40).tolist()
    found = {name: tally.value() for name, tally in counts.compute_metrics(said, truth).items()}
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, said), abs=CLOSE)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, said), abs=CLOSE)
    assert found["exact"] == pytest.approx(metrics.accuracy_score(truth, said), abs=CLOSE)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_cells_are_scikit_learns(share: float) -> None:
    """Many pairs of empty sets, as in the test split; there scikit-learn's Jaccard is 0, ours can be 1."""
    rng = np.random.default_rng(3)
    says, facts = (rng.random((60, 9)) < share for _ in range(2))
    said, truth = ([{LABELS[i] for i in np.flatnonzero(row)} for row in part] for part in (says, facts))
    found = {name: tally.value() for name, tally in sets.compute_metrics(said, truth, 9, empty=0.0).items()}
    for name, scorer in (
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
        ("f1", metrics.f1_score),
    ):
        assert found[name] == pytest.approx(scorer(facts, says, average="micro", zero_division=0), abs=CLOSE)
    jaccard = metrics.jaccard_score(facts, says, average="samples", zero_division=0)
    assert found["jaccard"] == pytest.approx(jaccard, abs=CLOSE)
    assert found["subset"] == pytest.approx(metrics.accuracy_score(facts, says), abs=CLOSE)
    assert found["hamming"] == pytest.approx(metrics.hamming_loss(facts, says), abs=CLOSE)
    both_empty = float(np.mean(~says.any(axis=1) & ~facts.any(axis=1)))
    strict = sets.compute_metrics(said, truth, 9, empty=1.0)["jaccard"].value()
    assert strict == pytest.approx(jaccard + both_empty, abs=CLOSE)
