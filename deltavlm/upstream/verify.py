"""Is a converted checkpoint equal to the original? Against what the original code itself computed.

A folder of expectations holds `expected.safetensors` (pictures, tokens, soft prompts, logits, token ids) and
`expected.json` (the generated ids and texts of each case), as made by running the original at any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from deltavlm.errors import InputError, ModelError
from deltavlm.model import checkpoint
from deltavlm.model.config import Decoding
from deltavlm.model.device import DTYPES, pick_device
from deltavlm.model.predictor import Predictor
from deltavlm.model.quantize import Kind, check_quantize
from deltavlm.model.tokenizer import load_codecs
from deltavlm.upstream.read import tensors

TOLERANCE = 1e-4  # largest absolute difference in float32
EXACT = ("pixels", "question ids", "text ids")
Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison over all cases."""

    name: str
    cases: int
    equal: int  # cases within the tolerance, or the same token for token
    worst: float | None  # largest absolute difference; None for ids and texts
    size: float | None = None  # largest absolute value expected

    @property
    def passed(self) -> bool:
        return self.equal == self.cases


def verify(
    folder: Path,
    expected: Path,
    *,
    dtype: Dtype = "fp32",
    device: str = "cpu",
    quantize: Kind | None = None,
) -> list[Check]:
    """Compares stage by stage. In fp32 everything must be equal; in 16 bit, or with the language model
    quantised, the list shows the drift.

    The difference module is run as the original's inference does ("csrm"), whatever the configuration says.
    Raises: InputError where the expectations cannot be read, ModelError where the checkpoint cannot.
    """
    arrays, cases = read_expected(expected)
    where = pick_device(device)
    if quantize:
        check_quantize(quantize, where)
    config, model = checkpoint.load(folder, dtype=DTYPES[dtype], device=where, quantize=quantize)
    model.difference.mode = "csrm"
    model.set_attention("eager")
    questions, codec = load_codecs(folder)
    predictor = Predictor(model, config, questions, codec, where, "")
    found: dict[str, list[tuple[bool, float | None, float | None]]] = {}

    def near(name: str, got: Tensor, want: Tensor) -> None:
        if got.shape != want.shape:
            raise ModelError(f"{name} is {tuple(got.shape)}, expected {tuple(want.shape)}; the sizes differ")
        off = float((got.float().cpu() - want.float()).abs().max())
        bound = 0.0 if name in EXACT else TOLERANCE
        found.setdefault(name, []).append((off <= bound, off, float(want.abs().max())))

    prompts = list(dict.fromkeys(case["prompt"] for case in cases))
    with torch.inference_mode():
        pixels = {
            date: predictor.pixels(arrays[f"uint8_{date}"].numpy().transpose(0, 3, 1, 2)) for date in "AB"
        }
        for date in "AB":
            near("pixels", pixels[date].float(), arrays[f"pixel_{date}"].to(DTYPES[dtype]).float())
        pairs = len(pixels["A"])
        for pair in range(pairs):
            before, after = pixels["A"][pair : pair + 1], pixels["B"][pair : pair + 1]
            tokens = model.encode_pair(before, after).tokens
            for index, prompt in enumerate(prompts):
                stem = f"p{pair}q{index}/"
                if stem + "first_logits" not in arrays:
                    continue
                near("vision tokens", model.vision(before)[0], arrays[stem + "vit_before"])
                near("vision tokens", model.vision(after)[0], arrays[stem + "vit_after"])
                near("difference tokens", tokens, arrays[stem + "difference_tokens"])
                question, text = predictor.tokenize([prompt])
                near("question ids", question.ids, arrays[stem + "qformer_input_ids"])
                near("text ids", text.ids, arrays[stem + "llm_input_ids"])
                near("soft prompt", model.query(tokens, question), arrays[stem + "soft_prompt"])
                logits = model.first_logits(tokens, question, text)
                vocab = logits.shape[-1]  # the original adds a row for padding, random and never chosen
                near("first logits", logits, arrays[stem + "first_logits"][..., :vocab])
        for name, same in answers(predictor, pixels, cases):
            found.setdefault(name, []).append((same, None, None))
    return [
        Check(
            name,
            len(rows),
            sum(ok for ok, _, _ in rows),
            max((off for _, off, _ in rows if off is not None), default=None),
            max((size for _, _, size in rows if size is not None), default=None),
        )
        for name, rows in found.items()
    ]


def answers(
    predictor: Predictor, pixels: dict[str, Tensor], cases: list[dict[str, Any]]
) -> Iterator[tuple[str, bool]]:
    """Every case generated: those marked `batched` together in one batch of mixed lengths, the rest alone."""
    singles = [[case] for case in cases if not case.get("batched")]
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for case in cases:
        if case.get("batched"):
            groups.setdefault((case["num_beams"], case["max_length"]), []).append(case)
    for group in (*singles, *groups.values()):
        beams = group[0]["num_beams"]
        for case, ids in zip(group, generated(predictor, pixels, group), strict=True):
            codec = predictor.codec
            want, got = (_up_to(row, codec.eos) for row in (case["token_ids"][1:], ids))  # [0] is a dummy
            name = (
                f"ids, {'greedy' if beams == 1 else f'{beams} beams'}{', batched' if len(group) > 1 else ''}"
            )
            yield name, got == want
            yield name.replace("ids", "text"), codec.decode(ids) == case["text"]


def _up_to(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def generated(
    predictor: Predictor, pixels: dict[str, Tensor], group: list[dict[str, Any]]
) -> list[list[int]]:
    """Token ids of a batch of cases, padding and all."""
    first = group[0]
    rows = [case["pair"] for case in group]
    tokens = predictor.model.encode_pair(pixels["A"][rows], pixels["B"][rows]).tokens
    question, text = predictor.tokenize([case["prompt"] for case in group])
    found = predictor.model.generate(
        tokens,
        question,
        text,
        predictor.generation_options(
            first["max_length"] - 1, Decoding(first["num_beams"], first["repetition_penalty"])
        ),
    )
    ids: list[list[int]] = found.ids.tolist()
    return ids


def read_expected(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """(arrays, cases). Raises: InputError."""
    path = folder / "expected.json"
    if not path.is_file():
        raise InputError(f"no file {path}; give the folder of what the original computed")
    try:
        cases = json.loads(path.read_text())["cases"]
        for case in cases:
            for key in ("pair", "prompt", "num_beams", "max_length", "token_ids", "text"):
                case[key]
            case.setdefault("repetition_penalty", 1.5)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a file of expectations: {error!r}") from error
    arrays = dict(tensors(folder / "expected.safetensors"))
    for name in ("uint8_A", "uint8_B", "pixel_A", "pixel_B"):
        if name not in arrays:
            raise InputError(f"{folder / 'expected.safetensors'} has no {name}")
    return arrays, cases
