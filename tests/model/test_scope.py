"""Question scope: part of a checkpoint, asked about typed questions alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltavlm.errors import ModelError
from deltavlm.messages import UNSUPPORTED
from deltavlm.model import checkpoint
from deltavlm.model.config import ScopeConfig
from deltavlm.model.folder import SHIPPED, WEIGHTS, read_config
from deltavlm.model.interface import Question
from deltavlm.model.predictor import Predictor, load_model
from deltavlm.model.scope import CLASSES, QuestionScope
from tests.tiny import TINY, tiny_codec, tiny_model

SCOPE = ScopeConfig(buckets=64, width=4, hidden=8)


def constant_scope(name: str) -> QuestionScope:
    """A scope that puts every question into one class."""
    scope = QuestionScope(SCOPE)
    with torch.no_grad():
        scope.classes.weight.zero_()
        scope.classes.bias.fill_(-9)[CLASSES.index(name)] = 9  # type: ignore[call-overload]
    return scope.eval()


def save_checkpoint(folder: Path, scope: QuestionScope | None) -> None:
    config = replace(TINY, scope=None if scope is None else SCOPE)
    weights = tiny_model().state_dict() | ({} if scope is None else checkpoint.scope_tensors(scope))
    checkpoint.save(folder, config, weights, provenance={"made": "for a test"})
    tiny_codec(folder)


def ask(model: Predictor, *questions: Question) -> list[str]:
    before, after = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 64, 64), dtype=np.uint8)
    return [reply.text for reply in model.answer(model.encode(before, after), questions)[0]]


def test_a_checkpoint_has_its_scope_again(tmp_path: Path) -> None:
    torch.manual_seed(1)
    scope = QuestionScope(SCOPE).eval()
    save_checkpoint(tmp_path, scope)
    loaded = checkpoint.load_scope(tmp_path / WEIGHTS, SCOPE)
    assert not any("scope" in name for name in checkpoint.load(tmp_path)[1].state_dict())
    for text in ("were houses built?", "", "中文"):
        assert loaded.probability(text, after_answer=True) == pytest.approx(
            scope.probability(text, after_answer=True), abs=2e-3
        )


def test_weights_of_a_scope_are_checked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, QuestionScope(SCOPE))
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
    save_checkpoint(tmp_path, constant_scope("unsupported"))
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


def test_a_model_without_a_scope_answers_everything(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, None)
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


@pytest.mark.parametrize(
    ("question", "is_supported"),
    [
        ("Were any houses built?", True),
        ("is there a new road in the top left corner", True),
        ("what was there before the houses", True),
        ("Has a swimming pool been built?", False),
        ("who owns the new house", False),
        ("Wurden neue Häuser gebaut?", False),
        ("???", False),
        ("where are they", False),
    ],
)
def test_nano_knows_its_scope(question: str, is_supported: bool) -> None:
    """Asked about a pool, nano once said "yes, many new houses"."""
    config = read_config(SHIPPED / "nano")
    assert config.scope is not None
    scope = checkpoint.load_scope(SHIPPED / "nano" / WEIGHTS, config.scope)
    assert scope.supports(question) == is_supported
    size = sum(tensor.numel() * 2 for tensor in scope.state_dict().values())
    assert size < 200_000
