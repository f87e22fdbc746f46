"""Verification of a converted ChangeChat against results of the original code, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltavlm.errors import InputError
from deltavlm.model.changechat.model import ChangeChat, PromptProcessor, load_changechat
from deltavlm.model.changechat.network import POSITIONS
from deltavlm.model.changechat.prompt import IMAGE, IMAGE_ID, TEMPLATES, PromptCodec
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.interface import Question
from deltavlm.upstream.checks import Check, Comparison, read_results

History = Sequence[tuple[str, str]]


@torch.inference_mode()
def verify_changechat(folder: Path, expected: Path, options: RuntimeOptions) -> list[Check]:
    """Compare all stages of the model. In fp32 they must be equal; in other dtypes the checks show the drift.

    Raises: InputError if the expected results cannot be read, or are of another model; ModelError if the
        checkpoint cannot.
    """
    values, arrays = read_results(expected)
    model = load_changechat(folder, options)
    comparison = Comparison()
    source = model.config.projector
    if source != values["projector"]:
        if "stage1" not in values or source in ("base", "adapter"):
            raise InputError(
                f"{folder} has the projector of {source}, and the results in {expected} are of that of"
                f" {values['projector']}; give others, or convert it again"
            )
        _compare_stage1(model, comparison, values, arrays)
        return comparison.checks()
    encoded = {
        name: _with_template(model, name).encode(*(_images(arrays, date) for date in "AB"))
        for name in dict.fromkeys(case["template"] for case in values["cases"])
    }
    _compare_features(model, comparison, values, arrays)
    rows: dict[tuple[str, int], list[tuple[int, Question, dict[str, Any]]]] = {}
    for number, case in enumerate(values["cases"]):
        prompts = _with_template(model, case["template"])
        for turn, (record, history) in enumerate(_turns(case)):
            stem = f"d{case['pair']}t{turn}" if "turns" in case else f"p{case['pair']}q{case['prompt_index']}"
            ids = prompts.prompts.prompt_ids(record["question"], history)
            text = prompts.prompts.template.format(record["question"], history)
            comparison.values("prompt", text, record["prompt"])
            comparison.values("prompt ids", ids, arrays[f"{stem}/input_ids"].tolist())
            question = Question(
                str(number),
                record["question"],
                max_new_tokens=case["max_new_tokens"],
                history=tuple(history),
            )
            pair = encoded[case["template"]][case["pair"]]
            logits = first_logits(prompts, arrays, case["pair"], question)
            comparison.tensors("first logits", logits, arrays[f"{stem}/first_logits"])
            (answer,) = prompts.generate([pair], [(0, question)])
            kind = "dialogue" if "turns" in case else "greedy"
            comparison.values(f"ids, {kind}", answer, record["token_ids"])
            comparison.values(f"text, {kind}", prompts.prompts.decode(answer).strip(), record["text"])
            batch = rows.setdefault((case["template"], case["max_new_tokens"]), [])
            batch.append((case["pair"], question, record))
    for (name, _), batch in rows.items():  # questions of all lengths and pairs at once
        answers = _with_template(model, name).generate(
            encoded[name], [(pair, question) for pair, question, _ in batch]
        )
        for answer, (_, _, record) in zip(answers, batch, strict=True):
            comparison.values("ids, batched", answer, record["token_ids"])
    _compare_training(model, comparison, values, arrays)
    return comparison.checks()


def _compare_stage1(
    model: ChangeChat, comparison: Comparison, values: Mapping[str, Any], arrays: Mapping[str, Tensor]
) -> None:
    """Compare the answer with a projector from a file; the results have one case of it."""
    expected = values["stage1"]
    index, pair = expected["prompt_index"], expected["pair"]
    (case,) = (case for case in values["cases"] if (case["pair"], case.get("prompt_index")) == (pair, index))
    question = Question("stage1", case["question"], max_new_tokens=case["max_new_tokens"])
    encoded = model.encode(*(_images(arrays, date)[pair : pair + 1] for date in "AB"))
    logits = first_logits(model, arrays, pair, question)
    comparison.tensors("first logits", logits, arrays[f"stage1/p{pair}q{index}/first_logits"])
    comparison.values("ids, greedy", model.generate(encoded, [(0, question)]), [expected["token_ids"]])


def first_logits(model: ChangeChat, arrays: Mapping[str, Tensor], pair: int, question: Question) -> Tensor:
    """Scores (V,) of the first token of an answer, of a whole prompt without a cache."""
    tokens = model.network.image_tokens(model.pixels(_images(arrays, "AB", pair)))
    texts = [*model.prompts.beginning, model.prompts.ending(question.prompt, question.history)]
    logits: Tensor = model.model(inputs_embeds=model.network.embed(texts, tokens)).logits[0, -1]
    return logits


def _compare_features(
    model: ChangeChat, comparison: Comparison, values: Mapping[str, Any], arrays: Mapping[str, Tensor]
) -> None:
    """Compare pixels, position table, features and projected features of all pairs."""
    if "position_table" in arrays:
        table = dict(model.network.named_parameters())[POSITIONS]
        comparison.tensors("position table", table, arrays["position_table"])
    for pair in range(len(arrays["uint8_A"])):
        pixels = model.pixels(_images(arrays, "AB", pair))
        features = model.network.features(pixels)
        projected = model.network.projector(features)
        stride, rows = values["pixel_stride"], 1 if pair == values["full_pair"] else values["row_stride"]
        for index, date in enumerate("AB"):
            thinned = pixels[index, :, ::stride, ::stride]
            comparison.tensors("pixels", thinned, arrays[f"pixel_{date}_{pair}"], 1e-6)
            for name, tensor in (("vision", features), ("projected", projected)):
                if (key := f"p{pair}/{name}_{date}") in arrays:
                    comparison.tensors(f"{name} features", tensor[index, ::rows], arrays[key])


def _compare_training(
    model: ChangeChat, comparison: Comparison, values: Mapping[str, Any], arrays: Mapping[str, Tensor]
) -> None:
    """Compare ids, labels and loss of training records."""
    for number, record in enumerate(values.get("train", ())):
        texts = [message["value"].replace(IMAGE, "").strip() for message in record["conversations"]]
        *history, (question, answer) = zip(texts[::2], texts[1::2], strict=True)
        prompts = model.prompts
        ending = prompts.ending(question, history, answer)
        learned = prompts.labels(question, history, answer)
        start, between = prompts.beginning
        ids = [*start, IMAGE_ID, *between, IMAGE_ID, *ending]
        labels = [
            id_ if is_learned else IGNORE_INDEX for id_, is_learned in zip(ending, learned, strict=True)
        ]
        beginning = [IGNORE_INDEX] * (len(ids) - len(ending))
        comparison.values("training ids", ids, arrays[f"train{number}/input_ids"].tolist())
        comparison.values("training labels", beginning + labels, arrays[f"train{number}/labels"].tolist())
        tokens = model.network.image_tokens(model.pixels(_images(arrays, "AB", record["pair"])))
        embedded = model.network.embed([*prompts.beginning, ending], tokens)
        logits = model.model(inputs_embeds=embedded).logits[0, -len(ending) - 1 : -1]
        loss = F.cross_entropy(logits.float(), torch.tensor(labels, device=logits.device))
        comparison.tensors("training loss", loss, torch.tensor(record["loss"]))


def _turns(case: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], History]]:
    """Turns of a case with the turns before each: all of a dialogue, or the only one."""
    history: list[tuple[str, str]] = []
    for record in case.get("turns", [case]):
        yield record, tuple(history)
        history.append((record["question"], record["text"]))


def _with_template(model: ChangeChat, template: str) -> ChangeChat:
    """The model with another template. Raises: InputError for one that is not known."""
    for name, words in TEMPLATES.items():
        if name == template:
            codec = PromptCodec(model.prompts.codec, words)
            return replace(model, processor=PromptProcessor(codec), tokens={})
    raise InputError(f"the expected results have the template {template!r}; known are {', '.join(TEMPLATES)}")


def _images(arrays: Mapping[str, Tensor], dates: str, pair: int | None = None) -> Any:
    """Images (N, 3, H, W) uint8 of a date, or those of both dates of a pair."""
    if pair is None:
        return arrays[f"uint8_{dates}"].permute(0, 3, 1, 2).numpy()
    return torch.stack([arrays[f"uint8_{date}"][pair].permute(2, 0, 1) for date in dates]).numpy()
