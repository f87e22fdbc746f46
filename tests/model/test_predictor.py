"""The predictor: answers, scores, batches, and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltavlm.errors import ConfigError, InputError, ModelError, ModelOutOfMemory
from deltavlm.model import predictor as predictor_module
from deltavlm.model.config import Calibration, Decoding
from deltavlm.model.device import pick_device, to_device
from deltavlm.model.images import resize_image
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model
from deltavlm.model.memory import ROWS
from deltavlm.model.predictor import Predictor
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


def test_single_questions_and_batches_have_equal_answers(predictor: Predictor) -> None:
    before, after = pairs(3)
    questions = [CAPTION, CHANGED, Question("roads", "how many roads?", max_new_tokens=6)]
    many = predictor.answer(predictor.encode(before, after), questions)
    for index in range(3):
        encoded = predictor.encode(before[index : index + 1], after[index : index + 1])
        for column, question in enumerate(questions):
            alone = predictor.answer(encoded, [question])[0][0]
            assert alone.text == many[index][column].text
            assert alone.score == pytest.approx(many[index][column].score, abs=1e-4)


def prompts_read(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass of the language model over prompts, without those over single answer tokens."""
    rows: list[int] = []
    real = predictor.model.language.model.forward

    def count_rows(*args: Any, **kwargs: Any) -> Any:
        embeds = kwargs["inputs_embeds"]  # None if transformers passes ids, one token per row
        if embeds is not None and embeds.shape[1] > 1:
            rows.append(len(embeds))
        return real(*args, **kwargs)

    monkeypatch.setattr(predictor.model.language.model, "forward", count_rows)
    return rows


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(repetition_penalty=1.5), Decoding(beams=3, repetition_penalty=1.5)]
)
def test_a_prompt_is_processed_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, decoding: Decoding
) -> None:
    """A yes/no question was processed twice if its answer had to be generated: for the score and the text."""
    predictor = replace(predictor, config=replace(predictor.config, decoding=decoding))
    encoded = predictor.encode(*pairs(2))
    rows = prompts_read(predictor, monkeypatch)
    replies = predictor.answer(encoded, [CAPTION, CHANGED])
    assert {changed.text for _, changed in replies}.isdisjoint({"yes", "no"})  # else nothing was generated
    assert rows == [2 * decoding.beams] * 2  # one batch per length, on a CPU


def test_the_score_is_of_the_first_token_for_every_decoding(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(2))
    scores = [row[0].score for row in predictor.answer(encoded, [CHANGED])]
    for decoding in (Decoding(repetition_penalty=1.5), Decoding(beams=3)):
        other = replace(predictor, config=replace(predictor.config, decoding=decoding))
        assert [row[0].score for row in other.answer(encoded, [CHANGED])] == pytest.approx(scores, abs=1e-5)


def test_questions_of_equal_length_share_a_batch(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted by length, a full batch has little padding; the answers keep the order of the questions."""
    long = Question("long", "How many roads and how many houses are there? " * 2, max_new_tokens=2)
    encoded = predictor.encode(*pairs(2))
    expected = predictor.answer(encoded, [long, CAPTION, CHANGED])
    monkeypatch.setitem(ROWS, "cpu", 2)
    rows: list[int] = []
    real = predictor.token_ids
    monkeypatch.setattr(
        Predictor, "token_ids", lambda _, prompts: rows.append(len({*prompts})) or real(prompts)
    )
    assert [[reply.text for reply in row] for row in predictor.answer(encoded, [long, CAPTION, CHANGED])] == [
        [reply.text for reply in row] for row in expected
    ]
    assert rows == [1, 1, 1]


def test_pixels_are_copied_to_a_gpu_pinned_and_asynchronously() -> None:
    class FakeTensor:
        def __init__(self) -> None:
            self.calls: list[tuple[Any, ...]] = []

        def pin_memory(self) -> FakeTensor:
            self.calls.append(("pin_memory",))
            return self

        def to(self, device: str, *, non_blocking: bool = False) -> FakeTensor:
            self.calls.append(("to", device, non_blocking))
            return self

    cuda_images: Any = FakeTensor()
    assert to_device(cuda_images, "cuda:0").calls == [("pin_memory",), ("to", "cuda:0", True)]
    cpu_images: Any = FakeTensor()
    assert to_device(cpu_images, "cpu").calls == [("to", "cpu", False)]


def test_scores(predictor: Predictor) -> None:
    replies = predictor.answer(predictor.encode(*pairs(2)), [CAPTION, CHANGED])
    for caption, changed in replies:
        assert caption.score <= 0
        assert 0 <= changed.score <= 1


def test_calibration_moves_answer_and_score_together(predictor: Predictor) -> None:
    """If the model answers yes or no, text and calibrated score agree."""
    encoded = predictor.encode(*pairs(2))
    model = predictor.model
    original = model.language.lm_head.weight.detach().clone()
    yes, no = predictor.codec.encode("yes")[0], predictor.codec.encode("no")[0]
    hidden = torch.randn_like(original[yes])
    with torch.no_grad():  # make yes and no the only possible first tokens
        model.language.lm_head.weight.zero_()
        model.language.lm_head.weight[yes], model.language.lm_head.weight[no] = hidden, -hidden
    try:
        rows = set()
        for offset in (-50.0, 50.0):
            shifted = replace(
                predictor, config=replace(predictor.config, calibration=Calibration(0.01, offset))
            )
            for (reply,) in shifted.answer(encoded, [CHANGED]):
                assert reply.text == ("yes" if reply.score >= 0.5 else "no")
                rows.add(reply.text)
        assert rows == {"yes", "no"}
    finally:
        with torch.no_grad():
            model.language.lm_head.weight.copy_(original)


def test_images_of_another_size_are_resized(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 3, 100, 100), dtype=np.uint8)
    assert predictor.pixels(image).shape == (1, 3, 64, 64)
    flat = np.full((3, 100, 100), 77, np.uint8)
    assert (resize_image(flat, 64) == 77).all()


def test_questions_are_formatted_as_in_training(predictor: Predictor) -> None:
    assert predictor.format_prompt("How many roads?") == "q how many roads?"
    assert (
        predictor.format_prompt("q has it changed? a yes q how many?")
        == "q has it changed? a yes q how many?"
    )


def test_special_tokens_in_a_question_are_text(predictor: Predictor) -> None:
    ids = predictor.codec.encode("</s> <pad> yes")
    assert not {predictor.codec.eos, predictor.codec.pad, predictor.codec.bos} & set(ids)


def test_any_unicode_question_is_answered(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(1))
    for prompt in ("", "建物は？", "🏠" * 10, "a" * 200, "\x00\n"):
        assert isinstance(
            predictor.answer(encoded, [Question("x", prompt, max_new_tokens=2)])[0][0].text, str
        )


def test_out_of_memory_has_an_error_class(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    encoded = predictor.encode(*pairs(1))
    monkeypatch.setattr(predictor.model, "encode_pair", run_out_of_memory)
    monkeypatch.setattr(predictor.model, "query", run_out_of_memory)
    with pytest.raises(ModelOutOfMemory, match="smaller batch"):
        predictor.encode(*pairs(1))
    with pytest.raises(ModelOutOfMemory, match="smaller batch"):
        predictor.answer(encoded, [CAPTION])


def test_other_failures_of_torch_are_model_errors(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chip's failure must not end a run, so it must be an error that the pipeline handles."""

    def broken(*_: object) -> None:
        raise RuntimeError("kernel failed\nand more")

    monkeypatch.setattr(predictor.model, "encode_pair", broken)
    with pytest.raises(ModelError, match="1 pair failed on cpu: kernel failed; try"):
        predictor.encode(*pairs(1))


def test_missing_devices_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_question_longer_than_the_context_is_an_error(predictor: Predictor) -> None:
    encoded = predictor.encode(*pairs(1))
    with pytest.raises(ConfigError, match=r"question 'essay' has .* tokens; tiny reads at most"):
        predictor.answer(encoded, [Question("essay", "how many roads? " * 300)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_answers_of_the_cpu(tmp_path: Path) -> None:
    """In fp32; scores up to rounding."""
    tiny_checkpoint(tmp_path)
    before, after = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 64, 64), np.uint8)
    on_cpu, on_gpu = (
        model.answer(model.encode(before, after), [CHANGED, CAPTION])
        for model in (load_model(str(tmp_path), device=name, dtype="fp32") for name in ("cpu", "cuda"))
    )
    for expected, replies in zip(on_cpu, on_gpu, strict=True):
        assert [reply.text for reply in replies] == [reply.text for reply in expected]
        assert [reply.score for reply in replies] == pytest.approx(
            [reply.score for reply in expected], abs=1e-3
        )


def test_images_are_encoded_in_float32_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a CPU with bf16 instructions, which are used by default."""
    tiny_checkpoint(tmp_path)
    before, after = pairs(2)
    monkeypatch.setattr(predictor_module, "bf16_cpu", lambda: False)
    exact = load_model(str(tmp_path), device="cpu", dtype="fp32").encode(before, after).tokens
    monkeypatch.setattr(predictor_module, "bf16_cpu", lambda: True)
    for dtype, is_equal in (("fp32", True), ("bf16", False)):
        encoded = load_model(str(tmp_path), device="cpu", dtype=dtype).encode(before, after).tokens
        assert torch.equal(encoded.float(), exact) == is_equal
