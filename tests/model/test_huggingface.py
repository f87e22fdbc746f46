"""Models of the Hub: tiny random ones of each architecture, against plain transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import util
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from deltavlm.model.chat_turns import REASONING_TOKENS, chat_turns, drop_reasoning
from deltavlm.model.huggingface.adapters import with_adapter
from deltavlm.model.huggingface.loading import quiet
from deltavlm.model.huggingface.prefix import TESTED_TYPES
from deltavlm.model.huggingface.scores import YesNo, answer_start
from deltavlm.model.huggingface.sizes import linear_layers
from deltavlm.model.huggingface.source import parse
from deltavlm.model.interface import PairContext, Question, Reply
from deltavlm.model.kinds import follows_instructions, load_model, read_spec
from deltavlm.tasks.phrasing import PHRASEBOOKS
from tests.tiny_hf import BUILDERS, build, build_adapter

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = ("qwen2_5_vl", "gemma3", "lfm2_vl")  # positions in 3D; sliding windows; convolutions
ARCHITECTURES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]
needs_peft = pytest.mark.skipif(util.find_spec("peft") is None, reason="needs peft: pip install '.[peft]'")
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

CHANGED = Question("change", "has anything changed? yes or no", yes_no=True, max_new_tokens=4)
CAPTION = Question("caption", "say in one sentence what changed between the two images", max_new_tokens=6)
FOLLOWING = Question(
    "question", "and where?", max_new_tokens=6, history=(("what changed?", "two houses were built"),)
)
QUESTIONS = (CHANGED, CAPTION, FOLLOWING)
CONTEXTS = [PairContext("2015", "2020", 0.5), PairContext("2015", "2020", 0.5), PairContext("2015", "2020")]
_RANDOM = np.random.default_rng(3)
BEFORE, AFTER = (_RANDOM.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8) for _ in range(2))


@dataclass(frozen=True)
class Tiny:
    """A tiny model as deltavlm loads it, and as transformers does."""

    folder: Path

    @cached_property
    def model(self) -> Any:
        return load_model(f"hf:{self.folder}", dtype="fp32", device="cpu")

    @cached_property
    def processor(self) -> Any:
        return transformers.AutoProcessor.from_pretrained(self.folder)

    @cached_property
    def plain(self) -> Any:
        return transformers.AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32
        ).eval()

    def first_logits(self, pair: int, question: Question) -> torch.Tensor:
        """Logits of the first token of an answer, (V,), by plain transformers."""
        turns = chat_turns(CONTEXTS[pair], question)
        images = iter([_image(BEFORE[pair]), _image(AFTER[pair])])
        for turn in turns:
            for item in turn["content"]:
                if item["type"] == "image":
                    item["image"] = next(images)
        inputs = self.processor.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits: torch.Tensor = self.plain(**inputs).logits[0, -1]
        return logits


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Tiny model of an architecture, built when it is first asked for."""
    built: dict[str, Tiny] = {}

    def get(architecture: str) -> Tiny:
        if architecture not in built:
            if architecture == "smolvlm":
                pytest.importorskip("num2words")
            built[architecture] = Tiny(build(architecture, tmp_path_factory.mktemp("hf") / architecture))
        return built[architecture]

    return get


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def ask(model: Any, questions: Sequence[Question] = QUESTIONS, contexts: Any = None) -> list[list[Reply]]:
    """Replies about all pairs in one batch."""
    replies: list[list[Reply]] = model.answer(model.encode(BEFORE, AFTER, contexts or CONTEXTS), questions)
    return replies


def ask_alone(model: Any, questions: Sequence[Question] = QUESTIONS, contexts: Any = None) -> Any:
    """Replies, each asked about a pair that was encoded for it alone."""
    contexts = contexts or CONTEXTS
    return [
        [
            model.answer(
                model.encode(BEFORE[pair : pair + 1], AFTER[pair : pair + 1], contexts[pair : pair + 1]),
                [question],
            )[0][0]
            for question in questions
        ]
        for pair in range(len(BEFORE))
    ]


def assert_equal(replies: list[list[Reply]], others: list[list[Reply]]) -> None:
    for reply, other in zip(chain(*replies), chain(*others), strict=True):
        assert reply.text == other.text
        assert reply.score == pytest.approx(other.score, abs=1e-5)


@every_architecture
def test_answers_alone_equal_those_in_a_batch(architecture: str, tiny_of: Callable[[str], Tiny]) -> None:
    model = tiny_of(architecture).model
    assert_equal(ask(model), ask_alone(model))


@every_architecture
def test_rows_of_different_lengths_share_a_batch(architecture: str, tiny_of: Callable[[str], Tiny]) -> None:
    """Questions are padded where a GPU answers them together, with and without the cache of the pair."""
    model = tiny_of(architecture).model
    questions = [replace(question, max_new_tokens=6) for question in QUESTIONS]
    contexts = [
        PairContext("2015", "2020", 0.5),
        PairContext(),
        PairContext("2015-06-01", "", None, "1 road"),
    ]
    alone = ask_alone(model, questions, contexts)
    assert_equal(ask(replace(model, pads=True), questions, contexts), alone)
    assert_equal(ask(replace(model, pads=True, uses_prefix=False), questions, contexts), alone)


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "lfm2_vl"])
def test_pairs_of_other_sizes_keep_their_positions(architecture: str, tiny_of: Callable[[str], Tiny]) -> None:
    """Some models number the tokens after an image by its shape, alone and in a batch."""
    model = tiny_of(architecture).model
    square = model.encode(BEFORE[:1], AFTER[:1])
    wide = model.encode(BEFORE[:1, :, :32], AFTER[:1, :, :32])
    again = [replace(model, uses_prefix=False).answer(pair, QUESTIONS)[0] for pair in (square, wide)]
    assert_equal([model.answer(pair, QUESTIONS)[0] for pair in (square, wide)], again)
    assert_equal(replace(model, pads=True).answer([*square, *wide], QUESTIONS), again)


@every_architecture
def test_the_cache_of_a_pair_changes_no_answer(architecture: str, tiny_of: Callable[[str], Tiny]) -> None:
    model = tiny_of(architecture).model
    assert model.details["architecture"] == architecture
    assert model.uses_prefix
    encoded = model.encode(BEFORE, AFTER, CONTEXTS)
    replies = model.answer(encoded, QUESTIONS)
    assert_equal(replies, model.answer(encoded, QUESTIONS))  # the cache is as it was
    assert_equal(replies, ask(replace(model, uses_prefix=False)))  # images encoded again for each question


@every_architecture
def test_the_probability_of_yes_is_the_softmax_of_its_tokens(
    architecture: str, tiny_of: Callable[[str], Tiny]
) -> None:
    tiny = tiny_of(architecture)
    words = [
        tiny.processor.tokenizer.decode([id_]).strip().lower() for id_ in range(len(tiny.processor.tokenizer))
    ]
    for pair, (reply, *_) in enumerate(ask(tiny.model)):
        probabilities = tiny.first_logits(pair, CHANGED).softmax(dim=0)
        yes, no = (
            sum(float(probabilities[id_]) for id_, known in enumerate(words) if known == word)
            for word in ("yes", "no")
        )
        assert 0 < yes < 1
        assert reply.score == pytest.approx(yes / (yes + no), abs=1e-5)


@every_architecture
def test_the_history_of_a_chat_is_told(architecture: str, tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of(architecture)
    question = replace(FOLLOWING, max_new_tokens=1)
    for pair, (reply,) in enumerate(ask(tiny.model, [question])):
        logits = tiny.first_logits(pair, question)
        assert reply.score == pytest.approx(float(logits.log_softmax(dim=0).max()), abs=1e-4)
        without = tiny.first_logits(pair, replace(question, history=()))
        assert not torch.allclose(logits, without, atol=1e-3)


@every_architecture
def test_both_images_are_seen_in_their_order(architecture: str, tiny_of: Callable[[str], Tiny]) -> None:
    model = tiny_of(architecture).model
    (forward,), (backward,), (equal,) = (
        model.answer(model.encode(before[:1], after[:1], CONTEXTS[:1]), [CHANGED])
        for before, after in ((BEFORE, AFTER), (AFTER, BEFORE), (BEFORE, BEFORE))
    )
    scores = [reply.score for (reply,) in (forward, backward, equal)]
    assert (
        min(abs(first - second) for first, second in zip(scores, scores[1:] + scores[:1], strict=True)) > 1e-5
    )


@needs_peft
@every_architecture
def test_a_merged_adapter_answers_as_one_that_is_not(
    architecture: str, tiny_of: Callable[[str], Tiny], tmp_path: Path
) -> None:
    tiny = tiny_of(architecture)
    folder = build_adapter(tiny.folder, tmp_path / "adapter")
    base, adapter = parse(f"hf:{tiny.folder}+{folder}")
    assert adapter is not None
    replies = []
    for merge in (True, False):
        plain = transformers.AutoModelForImageTextToText.from_pretrained(tiny.folder, dtype=torch.float32)
        with quiet():
            network = with_adapter(plain, adapter, folder, base, merge=merge).eval()
        assert merge != any("lora_A" in name for name, _ in network.named_modules())
        network.generation_config = tiny.model.model.generation_config
        replies.append(ask(replace(tiny.model, model=network)))
    merged, unmerged = replies
    assert_equal(merged, unmerged)
    changed, without = ([row[0].score for row in each] for each in (merged, ask(tiny.model)))
    assert np.abs(np.subtract(changed, without)).min() > 1e-4


@every_architecture
def test_the_layers_to_quantize_are_those_of_the_language_model(
    architecture: str, tiny_of: Callable[[str], Tiny]
) -> None:
    model = tiny_of(architecture).model.model
    layers = linear_layers(model.get_decoder())
    assert len(layers) == (12 if architecture == "lfm2_vl" else 14)  # 2 blocks
    vision = [module for name, module in model.named_modules() if "vis" in name]
    assert vision
    assert not {*map(id, layers.values())} & {*map(id, vision)}


def test_the_documented_architectures_are_those_of_these_tests() -> None:
    table = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("| architecture (")[2]
    cells = [line.split("|")[1::2] for line in table.partition("\n\n")[0].splitlines()[2:]]
    encoded_once = {name for kinds, once in cells if once.strip() == "yes" for name in kinds.split("`")[1::2]}
    assert encoded_once == {*BUILDERS} == TESTED_TYPES
    assert len(BUILDERS) >= 10


def test_facts_and_details(tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("qwen2_5_vl")
    name = f"hf:{tiny.folder}"
    spec, model = read_spec(name), tiny.model
    assert spec.training_gsd_m is model.training_gsd_m is None
    assert spec.chip_px == model.chip_px == 256
    assert not spec.has_masks
    assert model.masks([]) is None
    assert spec.weights_bytes == (tiny.folder / "model.safetensors").stat().st_size
    assert model.phrasebook == "generic"
    assert follows_instructions(name)
    assert PHRASEBOOKS[model.phrasebook].any_words
    assert model.reads_context
    assert model.label == f"qwen2_5_vl {model.fingerprint}"
    assert model.details | {"transformers": ""} == {
        "architecture": "qwen2_5_vl",
        "dtype": "float32",
        "quantize": None,
        "revision": None,
        "adapter": None,
        "transformers": "",
        "decoding": {"beams": 1, "repetition_penalty": 1.0, "consistent": False, "counts": "language"},
        "encodes_once": True,
        "yes_no_scores": True,
        "tells_facts": True,
        "calibration": None,
    }


def test_equal_questions_are_answered_once(
    tiny_of: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts and places are one question of the generic phrasebook."""
    model = tiny_of("qwen2_5_vl").model
    encoded = model.encode(BEFORE[:1], AFTER[:1])
    rows: list[int] = []
    generate = model.model.generate
    monkeypatch.setattr(
        model.model,
        "generate",
        lambda **inputs: [rows.append(len(inputs["input_ids"])), generate(**inputs)][1],
    )
    count, location = model.answer(
        encoded, [replace(CAPTION, name="count"), replace(CAPTION, name="location")]
    )[0]
    assert count == location
    assert rows == [1]


class _Tokens:
    """Tokenizer whose tokens are the strings of a list."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens[id_] for id_ in ids)


def test_reasoning_before_the_answer_is_dropped() -> None:
    assert drop_reasoning("<think>\nTwo roofs.\n</think>\n\nyes") == "yes"
    assert drop_reasoning("Two roofs.</think> yes") == "yes"  # it began in the prompt
    assert drop_reasoning("<think>Two") == ""
    assert drop_reasoning(" yes") == "yes"
    tokens = _Tokens("<think>", "Two", "</think>", "\n\n", " yes")
    assert answer_start(tokens, [0, 1, 2, 3, 4]) == 4
    assert answer_start(tokens, [1, 2, 3, 4]) == 3
    assert answer_start(tokens, [0, 1]) == 2  # there is no answer
    assert answer_start(tokens, [4]) == 0
    assert answer_start(tokens, [4], reasons=True) == 1
    assert answer_start(tokens, [1, 2, 4], reasons=True) == 2


def replies_of_script(
    model: Any, *scripts: str, monkeypatch: pytest.MonkeyPatch, caption: Question = CAPTION
) -> tuple[list[Reply], list[int]]:
    """Replies to CHANGED and `caption` of a model that writes `scripts`, and the limits that it was given."""
    tokenizer = model.processor.tokenizer
    parts = (tokenizer.encode(script, add_special_tokens=False) for script in scripts)
    written = [*chain(*parts), tokenizer.eos_token_id]
    limits: list[int] = []

    def generate(**inputs: Any) -> torch.Tensor:
        limits.append(inputs["generation_config"].max_new_tokens)
        rows = inputs["input_ids"]
        for id_ in written[: limits[-1]]:
            logits = torch.zeros(len(rows), len(tokenizer))
            logits[:, id_] = 9
            inputs["logits_processor"][0](rows, logits)
        return torch.cat([rows, torch.tensor(written[: limits[-1]]).expand(len(rows), -1)], dim=1)

    monkeypatch.setattr(model.model, "generate", generate)
    (replies,) = model.answer(model.encode(BEFORE[:1], AFTER[:1]), [CHANGED, caption])
    return replies, limits


@pytest.mark.parametrize("begun", [False, True])
def test_a_model_that_reasons_has_room_for_it(
    begun: bool, tiny_of: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it begins by itself, or the chat template does."""
    model = replace(tiny_of("qwen2_5_vl").model, uses_prefix=False, always_reasons=begun)
    thought = f"{'' if begun else '<think>'}two roofs, no and yes and no</think>"
    (changed, caption), limits = replies_of_script(model, f"{thought}\n Yes", monkeypatch=monkeypatch)
    assert (changed.text, caption.text) == ("Yes", "Yes")
    assert changed.score > 0.99
    roomy = [each + REASONING_TOKENS for each in (CHANGED.max_new_tokens, CAPTION.max_new_tokens)]
    assert limits == (roomy if begun else [CHANGED.max_new_tokens, CAPTION.max_new_tokens, *roomy])
    (changed, caption), _ = replies_of_script(model, f"{thought}yes {'and ' * 99}", monkeypatch=monkeypatch)
    assert 3 < len(changed.text) < len(caption.text) < 40  # cut at its own length


def test_reasoning_without_an_end_is_no_answer(
    tiny_of: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = replace(tiny_of("qwen2_5_vl").model, uses_prefix=False, warned=set())
    for _ in range(2):
        replies, _ = replies_of_script(model, "<think>" + "yes no " * 5000, monkeypatch=monkeypatch)
        assert [reply.text for reply in replies] == ["", ""]
        assert all(math.isnan(reply.score) for reply in replies)
    assert caplog.text.count("reasons for more than 4096 tokens") == 1


def test_a_reply_that_spells_the_token_of_an_image_is_cleaned(
    tiny_of: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next turn, which tells it as history, would have three images."""
    model = tiny_of("qwen2_5_vl").model
    with monkeypatch.context() as patch:
        (_, caption), _ = replies_of_script(
            *(replace(model, uses_prefix=False), "a <|image", "_pad|>", "<ima", "ge>b"),
            monkeypatch=patch,
            caption=replace(CAPTION, max_new_tokens=99),
        )
    assert caption.text == "a b"
    following = replace(FOLLOWING, history=((CAPTION.prompt, caption.text),))
    assert model.answer(model.encode(BEFORE[:1], AFTER[:1]), [following])


def test_words_for_yes_and_no_in_a_vocabulary() -> None:
    vocabulary = {"yes": 0, "ĠYes": 1, "▁YES": 2, "yesterday": 3, "no": 4, "ĠNo": 5, "now": 6}
    assert YesNo.of(vocabulary) == YesNo((0, 1, 2), (4, 5))
    without = YesNo.of({"y": 0, "es": 1, "no": 2})
    assert without == YesNo((), ())
    assert math.isnan(float(without.margin(torch.zeros(1, 3))[0]))
