"""The model: encoding, generation, and the invariants of training and inference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltavlm.config import load, shipped_config
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORE_INDEX, GenerationOptions, Text, build
from deltavlm.model.qformer import QFormer
from deltavlm.model.tokenizer import Codec
from tests.tiny import TINY, tiny_codec, tiny_model


def random_images(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    return torch.randn(pairs, 3, 64, 64), torch.randn(pairs, 3, 64, 64)


def limits(codec: Codec, max_new_tokens: int) -> GenerationOptions:
    return GenerationOptions(max_new_tokens, codec.bos, codec.eos, codec.pad)


def test_a_pair_alone_equals_the_pair_in_a_batch() -> None:
    model, (before, after) = tiny_model(), random_images(3)
    with torch.inference_mode():
        many = model.encode_pair(before, after)
        for index in range(3):
            alone = model.encode_pair(before[index : index + 1], after[index : index + 1])
            torch.testing.assert_close(alone.tokens[0], many.tokens[index], atol=2e-5, rtol=1e-4)


def test_swapping_the_dates_changes_the_features() -> None:
    """The sign of the difference matters: after minus before is not before minus after."""
    model, (before, after) = tiny_model(), random_images(1)
    with torch.inference_mode():
        forward, backward = model.encode_pair(before, after).tokens, model.encode_pair(after, before).tokens
    half = TINY.vision.grid**2
    assert not torch.allclose(forward[:, :half], backward[:, half : 2 * half], atol=1e-3)


def test_loss_and_generate_see_the_same_features(tmp_path: Path) -> None:
    """The log-probability of every generated token is what the loss gives for the same answer."""
    model, codec = tiny_model(), tiny_codec(tmp_path)
    ids = codec.encode("q please briefly describe the changes in these two images")
    question = codec.pad_batch([ids, ids], "right")
    prompt = codec.pad_batch([[codec.bos, *ids]] * 2, "left")
    with torch.inference_mode():
        tokens = model.encode_pair(*random_images(2)).tokens
        generation = model.generate(tokens, question, prompt, limits(codec, 9))
        answers = [[id_ for id_ in row if id_ != codec.pad] for row in generation.ids.tolist()]
        text = codec.pad_batch([[codec.bos, *ids, *answer] for answer in answers], "right")
        labels = text.ids.masked_fill(text.mask == 0, IGNORE_INDEX)
        labels[:, : len(ids) + 1] = IGNORE_INDEX
        losses = model.token_losses(tokens, question, text, labels)
    for row, answer in enumerate(answers):
        answer_losses = losses[row][len(ids) + 1 : len(ids) + 1 + len(answer)]
        torch.testing.assert_close(
            -answer_losses, generation.log_probs[row, : len(answer)], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_decoding_equals_that_of_transformers(tmp_path: Path, penalty: float) -> None:
    """Rows that end at different steps, so that some leave the batch early, alone and together."""
    untied = replace(TINY, language=replace(TINY.language, tied=False))  # more varied than a tied one
    model, codec = tiny_model(3, untied), tiny_codec(tmp_path)
    prompts = [codec.encode(q) for q in ("q yes", "q no", "q two houses", "q the bare land", "yes", "no new")]
    question = codec.pad_batch(prompts, "right")
    prompt = codec.pad_batch([[codec.bos, *row] for row in prompts], "left")
    with torch.inference_mode():
        tokens = model.encode_pair(*random_images(6)).tokens
        endless = replace(limits(codec, 12), eos=-1)
        endless_ids = model.generate(tokens, question, prompt, endless).ids
        end_steps = {
            t: (endless_ids == t).int().argmax(dim=1)[(endless_ids == t).any(dim=1)]
            for t in endless_ids.unique().tolist()
        }
        eos = max(end_steps, key=lambda t: len(set(end_steps[t].tolist())))  # most different lengths
        options = replace(endless, eos=eos, repetition_penalty=penalty)
        generation = model.generate(tokens, question, prompt, options)
        embeds, mask = model.prompt(model.query(tokens, question), prompt)
        language: Any = model.language
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the penalty does not look at the prompt
            reference = language.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=12,
                do_sample=False,
                repetition_penalty=penalty,
                bos_token_id=codec.bos,
                eos_token_id=eos,
                pad_token_id=codec.pad,
            )
    ids, logs = generation.ids, generation.log_probs
    assert ids.tolist() == reference.tolist()
    lengths = [row.index(eos) + 1 if eos in row else len(row) for row in ids.tolist()]
    assert len(set(lengths)) >= 2
    for row, length in enumerate(lengths):
        assert (logs[row, :length] < 0).all()
        assert (logs[row, length:] == 0).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_first_logits_are_those_of_the_first_generated_token(tmp_path: Path, beams: int) -> None:
    model, codec = tiny_model(), tiny_codec(tmp_path)
    long, short = codec.encode("q please judge whether these two images have changed"), codec.encode("q yes")
    question = codec.pad_batch([long, short], "right")
    prompt = codec.pad_batch([[codec.bos, *long], [codec.bos, *short]], "left")
    with torch.inference_mode():
        tokens = model.encode_pair(*random_images(2)).tokens
        first_logits = model.first_logits(tokens, question, prompt)
        options = replace(limits(codec, 2), beams=beams, repetition_penalty=1.5)
        generation = model.generate(tokens, question, prompt, options)
        plain = model.generate(tokens, question, prompt, limits(codec, 1))
    torch.testing.assert_close(generation.first_logits, first_logits, atol=1e-4, rtol=1e-4)
    assert first_logits.argmax(dim=1).tolist() == plain.ids[:, 0].tolist()
    torch.testing.assert_close(
        first_logits.log_softmax(dim=1).amax(dim=1), plain.log_probs[:, 0], atol=1e-4, rtol=1e-4
    )


def test_a_row_stops_after_its_first_token_if_that_is_a_stop_token(tmp_path: Path) -> None:
    """The other rows continue, with the same tokens as without it."""
    model, codec = tiny_model(3), tiny_codec(tmp_path)
    prompts = [codec.encode(q) for q in ("q yes", "q no", "q two houses")]
    question = codec.pad_batch(prompts, "right")
    prompt = codec.pad_batch([[codec.bos, *row] for row in prompts], "left")
    options = replace(limits(codec, 5), eos=-1)
    with torch.inference_mode():
        tokens = model.encode_pair(*random_images(3)).tokens
        endless = model.generate(tokens, question, prompt, options)
        stops = torch.full((3, 2), -1)
        stops[1, 1] = endless.ids[1, 0]
        generation = model.generate(tokens, question, prompt, options, stop_after_first_RK=stops)
    assert generation.ids[1].tolist() == [int(endless.ids[1, 0]), *[codec.pad] * 4]
    assert generation.ids[[0, 2]].tolist() == endless.ids[[0, 2]].tolist()


def test_padding_does_not_reach_the_answer(tmp_path: Path) -> None:
    """A short question in a batch with a long one has the same logits as alone."""
    model, codec = tiny_model(), tiny_codec(tmp_path)
    long, short = codec.encode("q please judge whether these two images have changed"), codec.encode("q yes")
    with torch.inference_mode():
        tokens = model.encode_pair(*random_images(1)).tokens
        alone = model.first_logits(
            tokens, codec.pad_batch([short], "right"), codec.pad_batch([[codec.bos, *short]], "left")
        )
        mixed = model.first_logits(
            tokens.expand(2, -1, -1),
            codec.pad_batch([long, short], "right"),
            codec.pad_batch([[codec.bos, *long], [codec.bos, *short]], "left"),
        )
    torch.testing.assert_close(alone[0], mixed[1], atol=1e-4, rtol=1e-4)


def test_the_question_changes_the_soft_prompt(tmp_path: Path) -> None:
    model, codec = tiny_model(), tiny_codec(tmp_path)
    with torch.inference_mode():
        tokens = model.encode_pair(*random_images(1)).tokens
        soft = [
            model.query(tokens, codec.pad_batch([codec.encode(q)], "right"))
            for q in ("q yes", "q two houses")
        ]
    assert soft[0].shape == (1, TINY.qformer.queries, TINY.language.hidden)
    assert not torch.allclose(soft[0], soft[1], atol=1e-4)


def test_anchored_queries_start_from_the_evidence() -> None:
    """Without attention, a change of one evidence token reaches only its own query."""
    config = replace(TINY.qformer, queries=12, anchored=10, layers=1, cross_every=9)
    torch.manual_seed(0)
    qformer = QFormer(config, TINY.vision.width).eval()
    attention = qformer.bert.encoder.layer[0].attention.attention
    torch.nn.init.zeros_(attention.value.weight)
    tokens, ids = torch.randn(1, 30, 32), torch.ones(1, 3, dtype=torch.long)
    layer = qformer.bert.encoder.layer[0]
    layer.has_cross_attention = False
    other = tokens.clone()
    other[:, -10] += torch.randn(32)  # the first of the ten
    moved = (qformer(tokens, ids, ids) - qformer(other, ids, ids)).abs().amax(dim=2)[0] > 1e-6
    assert moved.tolist() == [True] + [False] * 11


def test_anchored_queries_need_the_width_of_the_tokens() -> None:
    with pytest.raises(ValueError, match="anchored"):
        QFormer(replace(TINY.qformer, anchored=10), 2 * TINY.qformer.hidden)


def test_the_gradient_of_the_answer_reaches_the_vision_tower(tmp_path: Path) -> None:
    """The complete path difference tokens -> Q-Former -> language model is trained."""
    model, codec = tiny_model().train(), tiny_codec(tmp_path)
    model.set_attention("eager")
    tokens = model.encode_pair(*random_images(2)).tokens
    ids = codec.encode("q yes")
    text = codec.pad_batch([[codec.bos, *ids, codec.eos]] * 2, "right")
    labels = text.ids.masked_fill(text.ids != codec.eos, IGNORE_INDEX)
    model.loss(tokens, codec.pad_batch([ids] * 2, "right"), text, labels).backward()
    for module in (model.vision.tower, model.difference.context1, model.qformer, model.projection):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (
            "deltavlm-7b",
            {
                "vision.tower": 985_894_528,
                "vision.norm": 2_816,
                "difference": 1_982_464 + 1_983_872 + 1_982_464 + 1_983_872 + 5_948_800,
                "qformer.bert": 185_660_672 - 512,  # upstream counts the position_ids buffer
                "qformer.query_tokens": 24_576,
                "projection": 3_149_824,
                "language": 6_738_415_616,
            },
        ),
        ("nano", {"dense.place": 2_560}),
    ],
)
def test_shipped_configs_build_at_the_published_size(name: str, counts: dict[str, int]) -> None:
    """Parameter counts of every part of the published model, on the meta device."""
    with torch.device("meta"):
        model = build(load(shipped_config(f"{name}.yaml"), DeltaVLMConfig))
    for module, count in counts.items():
        parameters = (
            model.get_parameter(module).numel()
            if module.endswith(("tokens", "place"))
            else sum(p.numel() for p in model.get_submodule(module).parameters())
        )
        assert parameters == count, module


def test_text_moves_to_a_device() -> None:
    text = Text(torch.ones(1, 2), torch.ones(1, 2)).to("meta")
    assert text.ids.is_meta
    assert text.mask.is_meta
