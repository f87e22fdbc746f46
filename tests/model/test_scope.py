"""Question scope: part of a checkpoint, asked about typed questions alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.questions import ROOT, ask_each, read_questions
from deltavlm.errors import ModelError
from deltavlm.messages import UNSUPPORTED
from deltavlm.model import answering, checkpoint, constraint
from deltavlm.model.folder import WEIGHTS
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor
from deltavlm.model.scope import QuestionScope
from tests.tiny import SCOPE, TINY, constant_scope, save_with_scope


def ask(model: Predictor, *questions: Question) -> list[str]:
    before, after = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 64, 64), dtype=np.uint8)
    return [reply.text for reply in model.answer(model.encode(before, after), questions)[0]]


def test_a_checkpoint_has_its_scope_again(tmp_path: Path) -> None:
    torch.manual_seed(1)
    scope = QuestionScope(SCOPE).eval()
    save_with_scope(tmp_path, scope)
    loaded = checkpoint.load_scope(tmp_path / WEIGHTS, SCOPE)
    assert not any("scope" in name for name in checkpoint.load(tmp_path)[1].state_dict())
    for text in ("were houses built?", "", "中文"):
        assert loaded.probability(text, after_answer=True) == pytest.approx(
            scope.probability(text, after_answer=True), abs=2e-3
        )


def test_weights_of_a_scope_are_checked(tmp_path: Path) -> None:
    save_with_scope(tmp_path, QuestionScope(SCOPE))
    weights = load_file(tmp_path / WEIGHTS)
    del weights["scope.first.bias"]
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=r"1 keys missing: first\.bias"):
        load_model(str(tmp_path), device="cpu")
    checkpoint.save_config(tmp_path, TINY)  # without a scope its tensors are unexpected
    with pytest.raises(ModelError, match="keys unexpected: scope"):
        load_model(str(tmp_path), device="cpu")


def test_only_typed_questions_are_refused(tmp_path: Path) -> None:
    """A standard question is asked in the same words as ever, and is never checked."""
    save_with_scope(tmp_path, constant_scope("unsupported"))
    model = load_model(str(tmp_path), device="cpu")
    assert isinstance(model, Predictor)
    standard = Question("change", "Please judge whether these two images have changed.", max_new_tokens=3)
    own = replace(standard, typed=standard.prompt)
    first, refused, last = ask(model, standard, own, standard)
    assert refused == UNSUPPORTED
    assert first == last != UNSUPPORTED
    assert math.isnan(
        model.answer_rows(model.encode(*[np.zeros((1, 3, 64, 64), np.uint8)] * 2), [(0, own)])[0].score
    )


def test_the_scope_alone_decides_what_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the language model declines a typed question that is in scope, its next best answer counts; a
    standard question has the answer that it has."""
    save_with_scope(tmp_path, constant_scope("answerable"))
    model = load_model(str(tmp_path), device="cpu")
    assert isinstance(model, Predictor)
    standard = Question("change", "Please judge whether these two images have changed.", max_new_tokens=3)
    own = replace(standard, typed=standard.prompt)
    (declined,) = ask(model, standard)
    assert declined.split()
    for module in (answering, constraint):
        monkeypatch.setattr(module, "UNSUPPORTED", declined)
    first, insisted, last = ask(model, standard, own, standard)
    assert first == last == declined
    assert insisted
    assert declined.split()[0] not in insisted.split()


def test_questions_typed_by_hand_are_answered_or_refused() -> None:
    """Of the questions written before nano was trained on any, at least 95 % of either kind are judged right;
    what the language model itself declines counts too."""
    model = load_model("nano", device="cpu")
    right: dict[bool, list[bool]] = {True: [], False: []}
    questions = read_questions(ROOT / "benchmarks" / "questions.jsonl")
    for question, answered, _ in ask_each(model, (each for each in questions if each.group == "typed")):
        right[question.answerable].append(answered == question.answerable)
    assert [len(flags) for flags in right.values()] == [100, 100]
    assert all(sum(flags) >= 95 for flags in right.values()), {k: sum(v) for k, v in right.items()}


def test_a_model_without_a_scope_answers_everything(tmp_path: Path) -> None:
    save_with_scope(tmp_path, None)
    model = load_model(str(tmp_path), device="cpu")
    assert isinstance(model, Predictor)
    assert model.scope is None
    assert model.supports(Question("pool", "?", typed="has a pool been built"))


def test_a_follow_up_needs_a_turn_that_was_answered() -> None:
    scope = constant_scope("follow_up")
    assert scope.supports("where are they", after_answer=True)
    assert not scope.supports("where are they", after_answer=False)


def test_the_threshold_becomes_a_half() -> None:
    torch.manual_seed(0)
    scope = QuestionScope(SCOPE).eval()
    before = scope.probability("were houses built", after_answer=True)
    scope.set_threshold(before)
    assert scope.probability("were houses built", after_answer=True) == pytest.approx(0.5, abs=1e-6)


def test_questions_are_judged_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    scope = QuestionScope(SCOPE).eval()
    texts = ["houses?", "were any new houses built in the upper left corner of the image", "", "x " * 99]
    with torch.inference_mode():
        together = scope(texts)
        alone = torch.cat([scope([text]) for text in texts])
    torch.testing.assert_close(together, alone)
    assert together.isfinite().all()
