"""Pictures and questions in, answers with scores out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltavlm.errors import ConfigError, InputError, ModelError, ModelOutOfMemory
from deltavlm.model.config import Calibration, Decoding
from deltavlm.model.device import pick_device, to_device
from deltavlm.model.interface import Question
from deltavlm.model.memory import ROWS
from deltavlm.model.predictor import Predictor, load_model, resize_image
from tests.tiny import tiny_checkpoint

CHANGED = Question(
    "change", "Please judge whether these two images have changed.", yes_no=True, max_new_tokens=4
)
CAPTION = Question("caption", "Please briefly describe the changes.", max_new_tokens=6)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(folder)
    model = load_model(str(folder), device="cpu", dtype="fp32")
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


def prompts_read(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass of the language model over prompts; single tokens of answers are left out."""
    seen: list[int] = []
    real = predictor.model.language.model.forward

    def counted(*args: Any, **given: Any) -> Any:
        embeds = given["inputs_embeds"]  # None where transformers hands on ids, one token a row
        if embeds is not None and embeds.shape[1] > 1:
            seen.append(len(embeds))
        return real(*args, **given)

    monkeypatch.setattr(predictor.model.language.model, "forward", counted)
    return seen


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(repetition_penalty=1.5), Decoding(beams=3, repetition_penalty=1.5)]
)
def test_a_prompt_is_read_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, decoding: Decoding
) -> None:
    """A yes/no question was read twice where its answer had to be written out: for the score, and again
    for the words."""
    predictor = replace(predictor, config=replace(predictor.config, decoding=decoding))
    encoded = predictor.encode(*pairs(2))
    seen = prompts_read(predictor, monkeypatch)
    replies = predictor.answer(encoded, [CAPTION, CHANGED])
    assert {changed.text for _, changed in replies}.isdisjoint({"yes", "no"})  # else nothing was written out
    assert seen == [2 * decoding.beams] * 2  # each length by itself, on a CPU


def test_the_score_is_of_the_first_token_however_the_answer_is_written(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(2))
    plain = [row[0].score for row in predictor.answer(encoded, [CHANGED])]
    for decoding in (Decoding(repetition_penalty=1.5), Decoding(beams=3)):
        other = replace(predictor, config=replace(predictor.config, decoding=decoding))
        assert [row[0].score for row in other.answer(encoded, [CHANGED])] == pytest.approx(plain, abs=1e-5)


def test_questions_of_a_length_are_asked_together(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted by length, a full batch has little padding; the answers come back in the order asked."""
    long = Question("long", "How many roads and how many houses are there? " * 2, max_new_tokens=2)
    encoded = predictor.encode(*pairs(2))
    wanted = predictor.answer(encoded, [long, CAPTION, CHANGED])
    monkeypatch.setitem(ROWS, "cpu", 2)
    seen: list[int] = []
    real = predictor.tokenize
    monkeypatch.setattr(
        Predictor, "tokenize", lambda _, prompts: seen.append(len({*prompts})) or real(prompts)
    )
    assert [[reply.text for reply in row] for row in predictor.answer(encoded, [long, CAPTION, CHANGED])] == [
        [reply.text for reply in row] for row in wanted
    ]
    assert seen == [1, 1, 1]


def test_pixels_go_to_a_gpu_pinned_and_without_waiting() -> None:
    class Pictures:
        def __init__(self) -> None:
            self.calls: list[tuple[Any, ...]] = []

        def pin_memory(self) -> Pictures:
            self.calls.append(("pin_memory",))
            return self

        def to(self, device: str, *, non_blocking: bool = False) -> Pictures:
            self.calls.append(("to", device, non_blocking))
            return self

    found: Any = Pictures()
    assert to_device(found, "cuda:0").calls == [("pin_memory",), ("to", "cuda:0", True)]
    plain: Any = Pictures()
    assert to_device(plain, "cpu").calls == [("to", "cpu", False)]


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
    assert (resize_image(flat, 64) == 77).all()


def test_questions_are_worded_as_in_training(predictor: Predictor) -> None:
    assert predictor.format_prompt("How many roads?") == "q how many roads?"
    assert (
        predictor.format_prompt("q has it changed? a yes q how many?")
        == "q has it changed? a yes q how many?"
    )


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


def test_devices_and_names_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        pick_device("tpu")
    with pytest.raises(InputError, match="unknown device 'cuda:x'"):
        pick_device("cuda:x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no cuda device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match="no cuda:2: torch sees 2 cuda devices"):
        pick_device("cuda:2")
    with pytest.raises(InputError, match="no model 'nanoo'; give the name of an installed one"):
        load_model("nanoo")
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_model(str(tmp_path))


def test_a_question_longer_than_the_model_reads_is_refused(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(1))
    with pytest.raises(ConfigError, match=r"question 'essay' has .* tokens; tiny reads at most"):
        predictor.answer(encoded, [Question("essay", "how many roads? " * 300)])
