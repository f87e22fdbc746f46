"""ChangeVG: equal to transformers and peft at every stage, prompts as bytes, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

pytest.importorskip("peft", reason="needs peft: pip install '.[peft]'")

from deltavlm.errors import ConfigError
from deltavlm.model.changevg import model as models
from deltavlm.model.changevg.config import (
    CELL_WORDS,
    ChangeVGConfig,
    Guide,
    guide_sentence,
    make_prompt,
)
from deltavlm.model.changevg.model import ChangeVGModel, load_folder
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model, read_spec
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells
from deltavlm.tasks.phrasing import CELL_WORDS as IMTI_CELLS
from deltavlm.tasks.phrasing import CHANGEIMTI
from deltavlm.upstream import kinds
from deltavlm.upstream.adapters import Lora

LORA_LINEARS = tuple(
    f"{name}.weight"
    for name in (
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("attn.qkv", "attn.proj"),
    )
)
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def published(changevg_files: Path) -> Path:
    return changevg_files


def convert(published: Path, folder: Path, adapter: str = "adapter") -> Path:
    paths = {"base": published / "base", "adapter": published / adapter, "mci": published / "mci"}
    return kinds.convert("changevg", paths, folder).folder


@pytest.fixture(scope="module")
def folder(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(published, tmp_path_factory.mktemp("converted") / "changevg")


@pytest.fixture(scope="module")
def model(folder: Path) -> ChangeVGModel:
    return load_folder(folder)


@pytest.fixture(scope="module")
def images(published: Path) -> list[np.ndarray]:
    from safetensors.torch import load_file

    arrays = load_file(published / "expected.safetensors")
    return [arrays[f"uint8_{date}"].permute(0, 3, 1, 2).numpy() for date in "AB"]


def failed(folder: Path, published: Path) -> list[str]:
    return [check.name for check in kinds.verify(folder, published) if not check.passed]


def test_every_stage_is_equal_alone_batched_and_in_turns(folder: Path, published: Path) -> None:
    checks = {check.name: check for check in kinds.verify(folder, published)}
    assert [name for name, check in checks.items() if not check.passed] == []
    assert set(checks) == {
        *("guide, caption", "guide, counts", "pixels", "features", "prompt", "prompt ids", "first logits"),
        *("ids, greedy", "text, greedy", "ids, dialogue", "text, dialogue", "ids, batched"),
    }
    assert checks["ids, dialogue"].cases == 4


def test_adapters_in_older_names_give_the_same_weights(folder: Path, published: Path, tmp_path: Path) -> None:
    other = convert(published, tmp_path / "changevg", "adapter-old-names")
    (file,) = (folder / "model").glob("*.safetensors")
    from safetensors.torch import load_file

    first, second = load_file(file), load_file(other / "model" / file.name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("scaling", [1.0, 12.0])
def test_another_scaling_of_the_adapter_fails(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: float
) -> None:
    monkeypatch.setattr(Lora, "scaling", scaling)
    assert failed(convert(published, tmp_path / "out"), published)[0] == "features"


def test_an_adapter_without_its_vision_layers_fails(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = Lora.merge
    monkeypatch.setattr(
        Lora, "merge", lambda self, layer, weight: weight if "visual" in layer else merge(self, layer, weight)
    )
    assert failed(convert(published, tmp_path / "out"), published)[0] == "features"


INPUTS, PENALTY = ChangeVGModel.inputs, models.RowPenalty.__init__


def without_types(self: ChangeVGModel, *args: Any) -> dict[str, Any]:
    return INPUTS(self, *args) | {"mm_token_type_ids": None}


def dates_exchanged(self: ChangeVGModel, encoded: Any, *args: Any) -> dict[str, Any]:
    swapped = models.EncodedPairs(encoded.features.flip(1), encoded.guides, encoded.guide)
    return INPUTS(self, swapped, *args)


def no_penalty(self: models.RowPenalty, penalties: Sequence[float], mask: Tensor) -> None:
    PENALTY(self, [1.0] * len(penalties), mask)


def penalty_of_new_tokens(self: models.RowPenalty, penalties: Sequence[float], mask: Tensor) -> None:
    PENALTY(self, penalties, torch.zeros_like(mask))


@pytest.mark.parametrize(
    ("owner", "name", "trap", "first"),
    [
        (ChangeVGModel, "inputs", without_types, "first logits"),
        (ChangeVGModel, "inputs", dates_exchanged, "first logits"),
        (models, "resize_image", lambda image, size: image, "pixels"),
        (models.RowPenalty, "__init__", no_penalty, "ids, dialogue"),
        (models.RowPenalty, "__init__", penalty_of_new_tokens, "ids, dialogue"),
    ],
)
def test_a_trap_fails_at_the_first_stage_that_it_changes(
    folder: Path,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    trap: Any,
    first: str,
) -> None:
    monkeypatch.setattr(owner, name, trap)
    assert failed(folder, published)[0] == first


def test_the_penalty_leaves_padding_out() -> None:
    mask = torch.tensor([[0, 1], [1, 1]])
    penalty = models.RowPenalty([2.0, 1.0], mask)
    ids = torch.tensor([[0, 1, 2], [0, 1, 2]])
    scores = torch.tensor([[4.0, 4.0, -4.0, 4.0]] * 2)
    assert penalty(ids, scores).tolist() == [[4.0, 2.0, -8.0, 4.0], [4.0, 4.0, -4.0, 4.0]]


@pytest.mark.parametrize("task", CHANGEIMTI.phrases)
def test_prompts_of_the_phrasebook_are_those_of_the_training(task: Any) -> None:
    guide = guide_sentence("a road . ")
    two = f"{PICTURE} and {PICTURE}"
    texts = {
        "caption": [
            "Please refer to this description:a road.Modify or correct it."
            f"Please describe the changes in {two}"
        ],
        "change": [
            "Please check if there have been any changes to the roads or buildings in these two images:"
            f"{two}. Please answer yes or no."
        ],
        "count": [
            f"How many {kind} have been changed in these two images:{two}" for kind in ("roads", "buildings")
        ],
        "location": [
            f"Please tell me where the {kind} have changed in these two images:{two},if no change please "
            "output: No change."
            for kind in ("roads", "buildings")
        ],
    }
    prompts = [make_prompt((), line, guide).text for line in CHANGEIMTI.phrase(task).prompt.split("\n")]
    assert prompts == [f"{HEAD}{text}{TAIL}" for text in texts[task]]


def test_prompts_of_other_questions_have_the_images_and_the_guide_first() -> None:
    history = (("what changed?", "a road"),)
    prompt = make_prompt(history, "and where?", "Guide.")
    assert prompt.images_first
    assert prompt.text == (
        f"{HEAD}Picture 1: {PICTURE}Picture 2: {PICTURE}Guide.what changed?{TAIL}a road<|im_end|>\n"
        f"<|im_start|>user\nand where?{TAIL}"
    )


GUIDE = Guide(
    "a road . ",
    {"road": 1, "building": 2},
    {"road": ("top-left", "top-center"), "building": ("center-center",)},
)
TOLD = {
    "none": "",
    "caption": "Please refer to this description:a road.Modify or correct it.",
    "findings": "Please refer to this description:a road, changed roads: 1 (top left corner,top), changed "
    "buildings: 2 (center).Modify or correct it.",
    "mask": "Please refer to this description:a road, changed roads: 1 (top left corner,top), changed "
    f"buildings: 2 (center), changes: {PICTURE}.Modify or correct it.",
}


@pytest.mark.parametrize("guided", ["caption", "all"])
@pytest.mark.parametrize("guidance", TOLD)
def test_the_prompt_tells_the_parts_of_the_guide_that_are_configured(
    model: ChangeVGModel, guidance: Any, guided: Any
) -> None:
    configured = replace(model, config=replace(model.config, guidance=guidance, guided=guided))
    sentence, told = GUIDE.sentence(guidance), TOLD[guidance]
    two, order = f"{PICTURE} and {PICTURE}", (0, 1) if guidance != "mask" else (2, 0, 1)
    standard = CHANGEIMTI.phrase("caption").prompt
    prompt = configured.prompt(sentence, Question("caption", standard), standard)
    assert prompt.text == f"{HEAD}{told}Please describe the changes in {two}{TAIL}"
    assert prompt.images == order
    road, _ = CHANGEIMTI.phrase("count").prompt.split("\n")
    prompt = configured.prompt(sentence, Question("count", road), road)
    before = told if guided == "all" else ""
    assert prompt.text == f"{HEAD}{before}How many roads have been changed in these two images:{two}{TAIL}"
    assert prompt.images == (order if guided == "all" else (0, 1))
    own = configured.prompt(sentence, Question("own", "and where?"), "and where?")
    assert own.text == f"{HEAD}Picture 1: {PICTURE}Picture 2: {PICTURE}{told}and where?{TAIL}"
    assert own.images == ((0, 1) if guidance != "mask" else (0, 1, 2))


def test_cells_of_the_guide_are_in_the_words_of_the_set() -> None:
    assert {word: cell for cell, word in CELL_WORDS.items()} == IMTI_CELLS


def test_only_the_guide_brings_a_picture_of_the_mask() -> None:
    assert make_prompt((), "What is <mask>?", "").text.endswith(f"What is <mask>?{TAIL}")
    with pytest.raises(ConfigError, match="a question names no <mask>"):
        make_prompt((), "What is <mask>?", GUIDE.sentence("mask"))


def test_the_picture_of_the_mask_reaches_the_model(model: ChangeVGModel, images: list[np.ndarray]) -> None:
    """Features of the mask are in the place of the prompt, and equal those of the picture."""
    configured = replace(model, config=replace(model.config, guidance="mask", guided="all"))
    encoded = configured.encode(images[0], images[1])
    plain = model.encode(images[0], images[1])
    assert encoded.features.shape[1] == 3
    assert torch.equal(encoded.features[:, :2], plain.features)
    picture = configured.mask_pictures(encoded.guide)
    colors = {tuple(color) for color in picture.transpose(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert colors <= {(0, 0, 0), (255, 255, 0), (255, 0, 0)}
    assert torch.equal(encoded.features[:, 2], configured.image_features(list(picture)))
    line = CHANGEIMTI.phrase("change").prompt
    prompt = configured.prompt(encoded.guides[0].sentence("mask"), Question("change", line), line)
    inputs = configured.inputs(encoded, [0], [configured.token_ids(prompt)], [prompt.images])
    sent = inputs["mm_encoder_outputs"]["image"].pooler_output
    assert all(torch.equal(sent[place], encoded.features[0, index]) for place, index in enumerate((2, 0, 1)))
    assert int(inputs["mm_token_type_ids"].sum()) == 3 * 81
    assert len(inputs["image_grid_thw"]) == 3
    question = Question("change", line, max_new_tokens=4)
    one, _ = configured.answer(encoded, [question, Question("own", "and where?", max_new_tokens=4)])[0]
    (alone,) = configured.answer_rows(encoded, [(0, question)])
    assert alone.text == one.text


@pytest.mark.parametrize(
    ("history", "text"),
    [((), "What is in <image>?"), ((("what?", "a road"),), "Where in <image> and <image>?")],
)
def test_no_literal_image_reaches_the_model(history: Any, text: str) -> None:
    with pytest.raises(ConfigError, match="a question names two images"):
        make_prompt(history, text, "")


def test_special_tokens_in_a_question_are_text(model: ChangeVGModel) -> None:
    plain = model.token_ids(make_prompt((), "Is it new?", ""))
    typed = model.token_ids(make_prompt((), "Is <|im_end|><|image_pad|> new?", ""))
    for token in ("<|im_end|>", "<|image_pad|>"):
        id_ = model.tokenizer.convert_tokens_to_ids(token)
        assert typed.count(id_) == plain.count(id_)


def test_answers_are_those_of_the_questions_alone(model: ChangeVGModel, images: list[np.ndarray]) -> None:
    encoded = model.encode(images[0], images[1])
    questions = [
        Question(task, phrase.prompt, yes_no=task == "change", max_new_tokens=6)
        for task, phrase in CHANGEIMTI.phrases.items()
    ]
    questions.append(Question("question", "and where?", max_new_tokens=6, history=(("what?", "a road"),)))
    together = model.answer(encoded, questions)
    for pair in range(2):
        alone = model.encode(images[0][pair : pair + 1], images[1][pair : pair + 1])
        for index, question in enumerate(questions):
            (reply,) = model.answer_rows(alone, [(0, question)])
            assert reply.text == together[pair][index].text
            assert reply.score == pytest.approx(together[pair][index].score, abs=1e-4)
    count = together[0][2]
    lines = questions[2].prompt.split("\n")
    single = [model.answer_rows(encoded, [(0, Question("x", line, max_new_tokens=6))])[0] for line in lines]
    assert count.text == "\n".join(reply.text for reply in single)
    assert 0 <= together[0][1].score <= 1


def test_published_sizes() -> None:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **{"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28},
            **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064},
        },
        vision_config={
            **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
            **{"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
        },
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        tensors = transformers.Qwen2_5_VLForConditionalGeneration(config).state_dict()
    assert len(tensors) == 729
    assert sum(tensor.numel() for tensor in tensors.values()) == 8_292_166_656
    adapted = [name for name in tensors if name.endswith(LORA_LINEARS) and tensors[name].ndim == 2]
    assert len(adapted) == 196 + 160


def test_replies_are_read_and_written_as_in_the_set() -> None:
    values = {
        "caption": "a road is built .",
        "change": True,
        "count": Counts(2, 11),
        "location": Cells(("top-left", "top-center"), ()),
    }
    replies = {task: phrase.write(values) for task, phrase in CHANGEIMTI.phrases.items()}
    assert replies == {
        "caption": "a road is built",
        "change": "Yes",
        "count": "2\n11",
        "location": "top left corner,top\nNo change",
    }
    for task, phrase in CHANGEIMTI.phrases.items():
        if task != "caption":
            assert phrase.read(replies[task] or "") == values[task]


def test_the_kind_is_read_from_config_json(folder: Path) -> None:
    spec = read_spec(str(folder))
    assert (spec.name, spec.has_masks) == ("changevg", True)
    loaded = load_model(str(folder), device="cpu", dtype="fp32")
    assert loaded.phrasebook == "changeimti"
    assert json.loads(json.dumps(loaded.details))["guide"]["kind"] == "mci"
    with pytest.raises(ConfigError, match="do not support `beams=3`"):
        load_model(str(folder), beams=3)
    with pytest.raises(ValueError, match="image_px is 0"):
        ChangeVGConfig(name="x", image_px=0)
