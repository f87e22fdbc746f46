"""Pictures and questions in, answers with scores out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deltavlm.errors import ConfigError, InputError, ModelError, ModelOutOfMemory
from deltavlm.model.config import Calibration
from deltavlm.model.interface import Question
from deltavlm.model.predictor import Predictor, load_model, pick_device, resized
from tests.tiny import tiny_checkpoint

CHANGED = Question(
    "change", "Please judge whether these two images have changed.", yes_no=True, max_new_tokens=4
)
CAPTION = Question("caption", "Please briefly describe the changes.", max_new_tokens=6)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(folder)
    model = load_model(str(folder), device="cpu")
    assert isinstance(model, Predictor)
    return model


def pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.integers(0, 256, (number, 3, 64, 64), dtype=np.uint8) for _ in range(2))  # type: ignore[return-value]


def test_one_pair_and_one_question_equal_many(predictor: Predictor) -> None:
    before, after = pairs(3)
    questions = [CAPTION, CHANGED, Question("roads", "how many roads?", max_new_tokens=6)]
    many = predictor.answer(predictor.encode(before, after), questions)
    for index in range(3):
        encoded = predictor.encode(before[index : index + 1], after[index : index + 1])
        for place, question in enumerate(questions):
            alone = predictor.answer(encoded, [question])[0][0]
            assert alone.text == many[index][place].text
            assert alone.score == pytest.approx(many[index][place].score, abs=1e-4)


def test_scores(predictor: Predictor) -> None:
    replies = predictor.answer(predictor.encode(*pairs(2)), [CAPTION, CHANGED])
    for caption, changed in replies:
        assert caption.score <= 0
        assert 0 <= changed.score <= 1


def test_calibration_moves_answer_and_score_together(predictor: Predictor) -> None:
    """When the model answers yes or no, the text says what the calibrated score says."""
    encoded = predictor.encode(*pairs(2))
    model = predictor.model
    kept = model.language.lm_head.weight.detach().clone()
    yes, no = predictor.codec.encode("yes")[0], predictor.codec.encode("no")[0]
    hidden = torch.randn_like(kept[yes])
    with torch.no_grad():  # make yes and no the only words that it can begin with
        model.language.lm_head.weight.zero_()
        model.language.lm_head.weight[yes], model.language.lm_head.weight[no] = hidden, -hidden
    try:
        seen = set()
        for offset in (-50.0, 50.0):
            shifted = replace(
                predictor, config=replace(predictor.config, calibration=Calibration(0.01, offset))
            )
            for (reply,) in shifted.answer(encoded, [CHANGED]):
                assert reply.text == ("yes" if reply.score >= 0.5 else "no")
                seen.add(reply.text)
        assert seen == {"yes", "no"}
    finally:
        with torch.no_grad():
            model.language.lm_head.weight.copy_(kept)


def test_pictures_of_another_size_are_resized(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 3, 100, 100), dtype=np.uint8)
    assert predictor.pixels(image).shape == (1, 3, 64, 64)
    flat = np.full((3, 100, 100), 77, np.uint8)
    assert (resized(flat, 64) == 77).all()


def test_questions_are_worded_as_in_training(predictor: Predictor) -> None:
    assert predictor.worded("How many roads?") == "q how many roads?"
    assert predictor.worded("q has it changed? a yes q how many?") == "q has it changed? a yes q how many?"


def test_a_question_cannot_smuggle_special_tokens_in(predictor: Predictor) -> None:
    ids = predictor.codec.encode("</s> <pad> yes")
    assert not {predictor.codec.eos, predictor.codec.pad, predictor.codec.bos} & set(ids)


def test_any_unicode_question_is_answered(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(1))
    for prompt in ("", "建物は？", "🏠" * 10, "a" * 200, "\x00\n"):
        assert isinstance(
            predictor.answer(encoded, [Question("x", prompt, max_new_tokens=2)])[0][0].text, str
        )


def test_out_of_memory_has_its_own_error(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    encoded = predictor.encode(*pairs(1))
    monkeypatch.setattr(predictor.model, "encode_pair", full)
    monkeypatch.setattr(predictor.model, "query", full)
    with pytest.raises(ModelOutOfMemory, match="smaller batch"):
        predictor.encode(*pairs(1))
    with pytest.raises(ModelOutOfMemory, match="smaller batch"):
        predictor.answer(encoded, [CAPTION])


def test_other_failures_of_torch_are_model_errors(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chip's failure must not end a run, so it has to be an error that the pipeline knows."""

    def broken(*_: object) -> None:
        raise RuntimeError("kernel failed\nand more")

    monkeypatch.setattr(predictor.model, "encode_pair", broken)
    with pytest.raises(ModelError, match="1 pairs failed on cpu: kernel failed; try"):
        predictor.encode(*pairs(1))


def test_devices_and_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown device 'tpu'"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no cuda device"):
            pick_device("cuda")
    with pytest.raises(InputError, match="no model 'nanoo'; give a known one"):
        load_model("nanoo")
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_model(str(tmp_path))


def test_a_question_longer_than_the_model_reads_is_refused(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(1))
    with pytest.raises(ConfigError, match=r"question 'essay' is .* word pieces long; tiny reads at most"):
        predictor.answer(encoded, [Question("essay", "how many roads? " * 300)])
