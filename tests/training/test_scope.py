"""Training of the question scope."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deltavlm.model import checkpoint
from deltavlm.model.config import ScopeConfig
from deltavlm.model.folder import WEIGHTS
from deltavlm.model.scope import CLASSES, QuestionScope
from deltavlm.training import build
from deltavlm.training import scope as training
from deltavlm.training.scope import choose_threshold, equal_error, fit_scope, sample_question
from tests.tiny import SCOPE, constant_scope, save_with_scope

SMALL = ScopeConfig(buckets=512, width=8, hidden=8)


@pytest.mark.slow
def test_a_few_steps_tell_most_questions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POOL", 3000)
    monkeypatch.setattr(training, "VALIDATION", 200)
    scope = fit_scope(SMALL, steps=250)
    rng = np.random.default_rng(5)
    questions = [sample_question(rng) for _ in range(300)]
    right = [scope.supports(text, after_answer=True) == (name != "unsupported") for text, name in questions]
    assert np.mean(right) > 0.75


def test_the_same_scope_is_fitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POOL", 200)
    monkeypatch.setattr(training, "VALIDATION", 100)
    first, second = (fit_scope(SMALL, steps=10).state_dict() for _ in range(2))
    assert all(map(torch.equal, first.values(), second.values()))


def test_questions_of_all_classes_are_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_question(rng, ["is the elephant grey"]) for _ in range(400)]
    assert {name for _, name in drawn} == {*CLASSES}
    assert any("elephant grey" in text and name == "answerable" for text, name in drawn)


def test_equal_errors_of_separable_classes_are_none() -> None:
    assert equal_error(np.array([0.8, 0.9]), np.array([0.1, 0.3])) == (pytest.approx(0.55), 0.0)


def test_the_threshold_is_chosen_among_all_questions() -> None:
    torch.manual_seed(0)
    questions = [("yes", CLASSES[0]), ("no", CLASSES[2]), ("no no", CLASSES[2]), ("yes yes", CLASSES[0])]
    threshold, error = choose_threshold(QuestionScope(SCOPE).eval(), questions)
    assert 0 < threshold < 1
    assert error in (0.0, 0.5)


def run_inputs(start: Path | None, *questions: str) -> Any:
    examples = [SimpleNamespace(turns=[SimpleNamespace(question=text)]) for text in questions]
    split = SimpleNamespace(train=[SimpleNamespace(examples=examples)])
    return SimpleNamespace(model=SimpleNamespace(scope=SCOPE), start=start, splits=(split,))


@pytest.mark.parametrize(
    ("start_class", "questions", "is_fitted"),
    [
        (None, (), True),
        ("answerable", ("is the elephant grey",), False),
        ("unsupported", (), False),
        ("unsupported", ("is the elephant grey",), True),
    ],
)
def test_a_scope_is_fitted_where_the_start_has_none_or_refuses_a_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_class: str | None,
    questions: tuple[str, ...],
    is_fitted: bool,
) -> None:
    """A model that was fine-tuned on a question can answer it."""
    fits: list[tuple[str, ...]] = []

    def fit(config: ScopeConfig, set_questions: list[str]) -> QuestionScope:
        fits.append(tuple(set_questions))
        return constant_scope("follow_up")

    monkeypatch.setattr(build, "fit_scope", fit)
    start = None
    if start_class is not None:
        start = tmp_path / "start"
        save_with_scope(start, constant_scope(start_class))
    build.prepare_scope(run_inputs(start, *questions), tmp_path)
    assert fits == [questions] * is_fitted
    scope = checkpoint.load_scope(tmp_path / build.SCOPE, SCOPE)
    expected = "follow_up" if is_fitted else start_class
    assert CLASSES[int(scope(["x"]).argmax())] == expected
    build.prepare_scope(run_inputs(None), tmp_path)  # a resumed run keeps its scope
    assert len(fits) == is_fitted
    assert (tmp_path / build.SCOPE).name != WEIGHTS


def test_the_time_of_a_fit_is_that_of_its_questions_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MEASURED_QUESTIONS", 20)
    monkeypatch.setattr(training, "MEASURED_STEPS", 2)
    seconds = training.measure_fit(SMALL)
    monkeypatch.setattr(training, "STEPS", 1000 * training.STEPS)
    assert 0 < seconds < training.measure_fit(SMALL)
