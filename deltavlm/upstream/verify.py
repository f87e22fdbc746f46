"""Verify a converted checkpoint against results of the original code.

A folder of expected results has `expected.safetensors` (images, tokens, soft prompts, logits, token ids) and
`expected.json` (generated ids and text of each case), made by running the original at any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.files import parse_json, read_text
from deltavlm.model import checkpoint
from deltavlm.model.config import Decoding
from deltavlm.model.device import DTYPES, pick_device
from deltavlm.model.predictor import Predictor
from deltavlm.model.quantize import Kind, check_quantize
from deltavlm.model.tokenizer import load_codecs
from deltavlm.upstream.checks import TOLERANCE, Check, Comparison
from deltavlm.upstream.read import tensors

EXACT = ("pixels", "question ids", "text ids")
Dtype = Literal["fp32", "bf16", "fp16"]


def verify(
    folder: Path,
    expected: Path,
    *,
    dtype: Dtype = "fp32",
    device: str = "cpu",
    quantize: Kind | None = None,
) -> list[Check]:
    """Compare all stages of the model. In fp32 they must be equal; in 16 bit, or with a quantized language
    model, the checks show the drift.

    The difference module runs in mode "csrm", as in the original's inference, whatever the configuration
    says. Raises: InputError if the expected results cannot be read, ModelError if the checkpoint cannot.
    """
    arrays, cases = read_expected(expected)
    device = pick_device(device)
    if quantize:
        check_quantize(quantize, device)
    config, model = checkpoint.load(folder, dtype=DTYPES[dtype], device=device, quantize=quantize)
    model.difference.mode = "csrm"
    model.set_attention("eager")
    questions, codec = load_codecs(folder)
    predictor = Predictor(model, config, questions, codec, device, "")
    comparison = Comparison()

    def compare(name: str, actual: Tensor, expected: Tensor) -> None:
        comparison.tensors(name, actual, expected, 0.0 if name in EXACT else TOLERANCE)

    prompts = list(dict.fromkeys(case["prompt"] for case in cases))
    with torch.inference_mode():
        pixels = {
            date: predictor.pixels(arrays[f"uint8_{date}"].numpy().transpose(0, 3, 1, 2)) for date in "AB"
        }
        for date in "AB":
            compare("pixels", pixels[date].float(), arrays[f"pixel_{date}"].to(DTYPES[dtype]).float())
        pairs = len(pixels["A"])
        for pair in range(pairs):
            before, after = pixels["A"][pair : pair + 1], pixels["B"][pair : pair + 1]
            tokens = model.encode_pair(before, after).tokens
            for index, prompt in enumerate(prompts):
                stem = f"p{pair}q{index}/"
                if stem + "first_logits" not in arrays:
                    continue
                compare("vision tokens", model.vision(before)[0], arrays[stem + "vit_before"])
                compare("vision tokens", model.vision(after)[0], arrays[stem + "vit_after"])
                compare("difference tokens", tokens, arrays[stem + "difference_tokens"])
                question, text = predictor.tokenize([prompt])
                compare("question ids", question.ids, arrays[stem + "qformer_input_ids"])
                compare("text ids", text.ids, arrays[stem + "llm_input_ids"])
                compare("soft prompt", model.query(tokens, question), arrays[stem + "soft_prompt"])
                logits = model.first_logits(tokens, question, text)
                vocab = logits.shape[-1]  # the original adds a random row for padding
                compare("first logits", logits, arrays[stem + "first_logits"][..., :vocab])
        for name, is_equal in _compare_answers(predictor, pixels, cases):
            comparison.values(name, is_equal, True)
    return comparison.checks()


def _compare_answers(
    predictor: Predictor, pixels: dict[str, Tensor], cases: list[dict[str, Any]]
) -> Iterator[tuple[str, bool]]:
    """Compare generated answers: cases marked `batched` in one batch of mixed lengths, others alone."""
    singles = [[case] for case in cases if not case.get("batched")]
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for case in cases:
        if case.get("batched"):
            groups.setdefault((case["num_beams"], case["max_length"]), []).append(case)
    for group in (*singles, *groups.values()):
        beams = group[0]["num_beams"]
        for case, ids in zip(group, _generate(predictor, pixels, group), strict=True):
            codec = predictor.codec
            expected = _until(case["token_ids"][1:], codec.eos)  # [0] is a dummy
            name = (
                f"ids, {'greedy' if beams == 1 else f'{beams} beams'}{', batched' if len(group) > 1 else ''}"
            )
            yield name, _until(ids, codec.eos) == expected
            yield name.replace("ids", "text"), codec.decode(ids) == case["text"]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _generate(
    predictor: Predictor, pixels: dict[str, Tensor], group: list[dict[str, Any]]
) -> list[list[int]]:
    """Token ids of a batch of cases, with padding."""
    first = group[0]
    rows = [case["pair"] for case in group]
    tokens = predictor.model.encode_pair(pixels["A"][rows], pixels["B"][rows]).tokens
    question, text = predictor.tokenize([case["prompt"] for case in group])
    generation = predictor.model.generate(
        tokens,
        question,
        text,
        predictor.generation_options(
            first["max_length"] - 1, Decoding(first["num_beams"], first["repetition_penalty"])
        ),
    )
    ids: list[list[int]] = generation.ids.tolist()
    return ids


def read_expected(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """(arrays, cases). Raises: InputError."""
    path = folder / "expected.json"
    if not path.is_file():
        raise InputError(f"no file {path}; give the folder of the original's results")
    try:
        cases = parse_json(read_text(path))["cases"]
        for case in cases:
            for key in ("pair", "prompt", "num_beams", "max_length", "token_ids", "text"):
                case[key]
            case.setdefault("repetition_penalty", 1.5)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a file of expected results: {error!r}") from error
    arrays = dict(tensors(folder / "expected.safetensors"))
    for name in ("uint8_A", "uint8_B", "pixel_A", "pixel_B"):
        if name not in arrays:
            raise InputError(f"{folder / 'expected.safetensors'} has no {name}")
    return arrays, cases
