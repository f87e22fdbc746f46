"""ChangeChat as a model of this program: prompts, one cache for all questions of a pair, batches, options.

Its numbers are compared with those of the original in `tests/upstream/test_changechat.py`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deltavlm.errors import ConfigError, InputError, ModelError
from deltavlm.model.changechat import model as changechat_model
from deltavlm.model.changechat.model import ChangeChat
from deltavlm.model.changechat.prompt import TEMPLATES, PromptCodec
from deltavlm.model.huggingface.scores import YesNo
from deltavlm.model.interface import Question, standard_question
from deltavlm.model.kinds import load_model, read_spec
from deltavlm.tasks import TASKS, dialogue
from deltavlm.tasks.phrasing import CHANGECHAT_87K

SYSTEM = (
    b"A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    b"detailed, and polite answers to the user's questions. USER: <image>\n <image>\n "
)


@pytest.fixture(scope="module")
def model(changechat_folder: Path) -> ChangeChat:
    loaded = load_model(str(changechat_folder), device="cpu", dtype="fp32")
    assert isinstance(loaded, ChangeChat)
    return loaded


@pytest.fixture(scope="module")
def pairs(changechat_files: Path) -> tuple[Any, Any]:
    arrays = load_file(changechat_files / "expected.safetensors")
    before, after = (arrays[f"uint8_{date}"].permute(0, 3, 1, 2).numpy() for date in "AB")
    return before, after


def questions() -> list[Question]:
    """Four standard questions, and a turn with a history, of different lengths."""
    standard = [
        replace(standard_question(TASKS[name], phrase=phrase), max_new_tokens=12)
        for name, phrase in CHANGECHAT_87K.phrases.items()
    ]
    follow_up = Question("more", "Why?", history=(("Did it change?", "Yes"), ("Where?", "In the north.")))
    return [*standard, replace(follow_up, max_new_tokens=12)]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("caption", b"Please briefly describe the changes in these two images."),
        ("change", b"Please judge whether these two images have changed. Please answer yes or no."),
        ("count", b"If changes have occurred, count the number of road and building changes separately."),
        (
            "location",
            b"Please draw the contours of the changed buildings and roads, approximating them with polygons.",
        ),
    ],
)
def test_prompts_are_these_bytes(model: ChangeChat, task: Any, words: bytes) -> None:
    question = standard_question(TASKS[task], phrase=CHANGECHAT_87K.phrase(task))
    assert model.prompts.template.format(question.prompt).encode() == SYSTEM + words + b" ASSISTANT:"


def test_a_dialogue_is_these_bytes(model: ChangeChat) -> None:
    history = (
        (dialogue.TURNS[0], "Yes"),
        (dialogue.TURNS[1], "1 road has changed, and no buildings has changed."),
    )
    assert model.prompts.template.format(dialogue.TURNS[2], history).encode() == (
        SYSTEM
        + b"Please judge whether these two images have changed. Please answer yes or no."
        + b" ASSISTANT: Yes</s>"
        + b"USER: If changes have occurred, count the number of road and building changes separately."
        + b" ASSISTANT: 1 road has changed, and no buildings has changed.</s>"
        + b"USER: Based on the above analysis, please describe the changes of these two images in detail."
        + b" ASSISTANT:"
    )
    human = TEMPLATES["llava_v1"].format("Why?").encode()
    assert human.startswith(b"A chat between a curious human and")
    assert human.endswith(b"the human's questions. USER: <image>\n<image>\nWhy? ASSISTANT:")


def test_all_questions_share_a_cache_and_equal_one_by_one(
    model: ChangeChat, pairs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes: list[int] = []
    prefix = ChangeChat.prefix
    monkeypatch.setattr(ChangeChat, "prefix", lambda self, images: prefixes.append(1) or prefix(self, images))
    together = model.answer(model.encode(*pairs), questions())
    assert len(prefixes) == len(pairs[0]) == 3
    for index, (first, second) in enumerate(zip(*pairs, strict=True)):
        for question, reply in zip(questions(), together[index], strict=True):
            ((alone,),) = model.answer(model.encode(first[None], second[None]), [question])
            assert alone.text == reply.text
            assert alone.score == pytest.approx(reply.score, abs=1e-5, nan_ok=True)
    assert len({reply.text for replies in together for reply in replies}) > 5  # the test can tell them apart


def test_rows_of_all_lengths_in_one_padded_batch_equal_single_rows(
    model: ChangeChat, pairs: tuple[Any, Any]
) -> None:
    padded = replace(model, pads=True)
    encoded = padded.encode(*pairs)
    rows = [(pair, question) for pair in range(3) for question in questions()]
    batched, single = padded.generate(encoded, rows), [model.generate(encoded, [row])[0] for row in rows]
    assert batched == single
    assert [reply.text for reply in padded.answer_rows(encoded, rows)] == [
        reply.text for reply in model.answer_rows(encoded, rows)
    ]


def test_the_cache_of_the_beginning_equals_the_whole_prompt(
    model: ChangeChat, pairs: tuple[Any, Any]
) -> None:
    before, after = (date[:1] for date in pairs)
    question = questions()[-1]
    (encoded,) = model.encode(before, after)
    with torch.inference_mode():
        tokens = model.network.image_tokens(model.pixels(np.concatenate([before, after])))
        texts = [*model.prompts.beginning, model.prompts.ending(question.prompt, question.history)]
        ids: list[int] = []
        for _ in range(5):
            embedded = model.network.embed([*texts[:2], [*texts[2], *ids]], tokens)
            ids.append(int(model.model(inputs_embeds=embedded).logits[0, -1].argmax()))
    assert model.generate([encoded], [(0, replace(question, max_new_tokens=5))]) == [ids]


def test_the_order_of_the_dates_matters(model: ChangeChat, pairs: tuple[Any, Any]) -> None:
    before, after = (date[:1] for date in pairs)
    rows = [(0, question) for question in questions()]
    assert model.generate(model.encode(before, after), rows) != model.generate(
        model.encode(after, before), rows
    )


def test_the_mark_of_an_image_never_reaches_the_model(model: ChangeChat, pairs: tuple[Any, Any]) -> None:
    encoded = model.encode(*(date[:1] for date in pairs))
    with pytest.raises(ConfigError, match="has <image>, which stands for an image"):
        model.answer(encoded, [Question("own", "What is in <image>?")])
    with pytest.raises(ConfigError, match="has <image>, which stands for an image"):
        model.answer(encoded, [Question("own", "Why?", history=(("Is <image> new?", "Yes"),))])


def test_the_end_of_an_answer_in_a_question_is_text(model: ChangeChat) -> None:
    codec = model.prompts.codec
    assert codec.eos not in model.prompts.ending("Is </s> a sign?")
    ids = model.prompts.ending("Why?", (("Did it change?", "Yes"),))
    assert ids.count(codec.eos) == 1
    following = ids[ids.index(codec.eos) + 1 :]
    assert codec.processor.id_to_piece(following[0]) != "▁"  # no blank after the end of an answer
    assert codec.processor.decode([*following]) == "USER: Why? ASSISTANT:"


def test_labels_are_the_answers_and_their_ends_of_every_turn(model: ChangeChat) -> None:
    prompts, history = model.prompts, (("Did it change?", "Yes"),)
    ids = prompts.ending("Why?", history, "A road.")
    learned = prompts.labels("Why?", history, "A road.")
    assert len(ids) == len(learned)
    answers = [id_ for id_, is_learned in zip(ids, learned, strict=True) if is_learned]
    assert answers.count(prompts.codec.eos) == 2
    assert prompts.decode(answers) == "Yes A road."
    assert ids[: len(prompts.ending("Why?", history))] == prompts.ending("Why?", history)


def test_a_question_that_is_too_long_is_refused(model: ChangeChat, pairs: tuple[Any, Any]) -> None:
    encoded = model.encode(*(date[:1] for date in pairs))
    with pytest.raises(ConfigError, match=r"has \d+ tokens, and tiny reads fewer than 2048; shorten it"):
        model.answer(encoded, [Question("long", "why " * 800)])


def test_facts_of_the_model(model: ChangeChat, changechat_folder: Path) -> None:
    assert (model.phrasebook, model.chip_px, model.training_gsd_m) == ("changechat-87k", 256, 0.5)
    assert not model.reads_context
    assert model.masks(model.encode(*np.zeros((2, 1, 3, 64, 64), np.uint8))) is None
    assert model.details["projector"] == "base"
    assert model.details["template"] == "v1"
    assert "alpha 8" in model.details["sources"]["lora"]
    spec = read_spec(str(changechat_folder))
    assert (spec.has_masks, spec.chip_px) == (False, 256)
    assert spec.weights_bytes == sum(path.stat().st_size for path in changechat_folder.glob("*.safetensors"))


def test_batches_follow_the_memory_of_the_caches(model: ChangeChat) -> None:
    assert model.auto_batch_size() == changechat_model.MAX_PAIRS
    seven = replace(model.config.language, hidden=4096, layers=32)
    large = replace(model, config=replace(model.config, language=seven))
    bytes_each = 2 * 32 * 4096 * (2 * 324 + sum(map(len, model.prompts.beginning))) * 4
    assert large.auto_batch_size() == max(1, changechat_model.CACHE_BYTES["cpu"] // bytes_each) == 1


def test_another_fingerprint_for_other_weights(
    changechat_folder: Path, tmp_path: Path, model: ChangeChat
) -> None:
    other = Path(shutil.copytree(changechat_folder, tmp_path / "tiny"))
    config = json.loads((other / "config.json").read_text())
    config["files"]["model.safetensors"] = "0" * 64
    (other / "config.json").write_text(json.dumps(config))
    assert load_model(str(other), device="cpu", dtype="fp32").fingerprint != model.fingerprint


@pytest.mark.parametrize("options", [{"beams": 5}, {"decode": "upstream"}, {"prompt_style": "raw"}])
def test_options_of_other_kinds_are_refused(changechat_folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="models of kind changechat do not support"):
        load_model(str(changechat_folder), device="cpu", **options)


def test_broken_checkpoints_are_refused(changechat_folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(changechat_folder, tmp_path / name))

    (broken("vocabulary") / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"cannot read the tokenizer .*tokenizer\.model"):
        load_model(str(tmp_path / "vocabulary"), device="cpu")
    path = broken("cut") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        load_model(str(tmp_path / "cut"), device="cpu")
    config = json.loads((broken("sizes") / "config.json").read_text())
    config["language"]["layers"] = 3
    (tmp_path / "sizes" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="keys missing"):
        load_model(str(tmp_path / "sizes"), device="cpu")
    config["feature_layer"] = 9
    (tmp_path / "sizes" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="feature_layer is 9"):
        load_model(str(tmp_path / "sizes"), device="cpu")


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    changechat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changechat_model, "free_memory", lambda device: 1000)
    monkeypatch.setattr(changechat_model, "read_tensors", lambda *_: pytest.fail("weights were read"))
    too_large = (
        r"needs about .* in fp32, and 1.0 kB are free; even `quantize=.int8.` with `dtype=.bf16.` needs"
    )
    with pytest.raises(InputError, match=too_large):
        load_model(str(changechat_folder), device="cpu", dtype="fp32")


def test_a_yes_is_scored_against_a_no(
    model: ChangeChat, pairs: tuple[Any, Any], changechat_files: Path
) -> None:
    asked = Question("change", "Please briefly describe the changes in these two images.", yes_no=True)
    scored = replace(model, yes_no=YesNo((260,), (270,)))
    ((reply,), *_) = scored.answer(scored.encode(*pairs), [replace(asked, max_new_tokens=4)])
    logits = load_file(changechat_files / "expected.safetensors")["p0q0/first_logits"]
    assert reply.score == pytest.approx(float(logits[[260, 270]].softmax(0)[0]), abs=1e-5)


def test_a_codec_needs_its_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        PromptCodec.load(tmp_path / "tokenizer.model", "v1")
