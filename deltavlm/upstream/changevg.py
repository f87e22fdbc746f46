"""ChangeVG, Qwen2.5-VL with a LoRA and MCI as its guide: names, conversion, verification.

    Qwen2.5-VL's folder + adapter + MCI_model.pth + vocab.json
      -> config.json, model/ (as transformers reads it, the LoRA merged), guide/ (a checkpoint of kind mci)

Strict both ways: every tensor of the base is one of the model, every tensor of the model is filled, in its
shape, and every matrix of the adapter is merged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from deltavlm.config import to_mapping
from deltavlm.errors import InputError
from deltavlm.files import folder_bytes, parse_json, read_text, write_atomic
from deltavlm.messages import first_line
from deltavlm.model.changevg.config import (
    GUIDE,
    GUIDE_MARK,
    MODEL,
    ChangeVGConfig,
    guide_sentence,
    make_prompt,
)
from deltavlm.model.changevg.model import ChangeVGModel, EncodedPairs, load_folder
from deltavlm.model.device import DTYPES, meta_device, pick_device
from deltavlm.model.folder import CONFIG, DEFAULT_KIND, KIND
from deltavlm.model.huggingface.loading import quiet
from deltavlm.upstream import mci
from deltavlm.upstream.adapters import Lora, check_all_merged, read_adapter
from deltavlm.upstream.checks import Check, Comparison, read_results
from deltavlm.upstream.kinds import Contents, Converted, Dtype
from deltavlm.upstream.read import describe_source, sha256_of, shards, source_name, tensors
from deltavlm.upstream.write import (
    check_new,
    check_resources,
    check_shapes,
    new_checkpoint,
    save_tensors,
    split_tensors,
)

INDEX = "model.safetensors.index.json"
REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = (
    *("generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
)
"""Files of the base that are copied as they are."""
# Beginning of a published name -> that of transformers 5, which also writes these names itself; the first
# match counts.
PREFIXES = (
    ("model.visual.", "model.visual."),
    ("model.language_model.", "model.language_model."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Local files, the input of a conversion."""

    base: Path  # folder of Qwen2.5-VL
    mci: Path  # MCI_model.pth, a folder with it and vocab.json, or a checkpoint of kind mci
    adapter: Path | None = None  # folder of the LoRA; None: the base alone, to train from
    vocab: Path | None = None  # vocab.json of the guide


def from_published(name: str) -> str:
    """Name in transformers 5 of a tensor of Qwen2.5-VL. Raises: KeyError for another.

    >>> from_published("visual.merger.ln_q.weight"), from_published("model.layers.0.mlp.up_proj.weight")
    ('model.visual.merger.ln_q.weight', 'model.language_model.layers.0.mlp.up_proj.weight')
    """
    for published, ours in PREFIXES:
        if name.startswith(published):
            return ours + name.removeprefix(published)
    raise KeyError(name)


def from_adapter(layer: str) -> str:
    """Name in transformers 5 of a layer of an adapter, in the names of newer and older versions of peft.

    >>> from_adapter("layers.1.self_attn.q_proj"), from_adapter("visual.blocks.0.attn.qkv")
    ('model.language_model.layers.1.self_attn.q_proj', 'model.visual.blocks.0.attn.qkv')
    """
    if layer.startswith("layers."):
        return f"model.language_model.{layer}"
    return layer if layer.startswith("model.") else f"model.{layer}"


def convert(sources: Sources, folder: Path, notify: Callable[[str], None] = lambda text: None) -> Converted:
    """Convert the published files into the checkpoint `folder`, atomically.

    Raises: InputError for files that do not fit together, OutputError if `folder` exists or cannot be
        written.
    """
    check_new(folder)
    expected = _expected_shapes(sources.base)
    adapter = None if sources.adapter is None else _read_adapter(sources.adapter, frozenset(expected))
    provenance = {
        "base": source_name(sources.base),
        **({} if adapter is None else {"adapter": describe_source(adapter.path)}),
        "guide": describe_source(_guide_file(sources.mci)),
    }
    check_resources(folder, sources.base, _guide_file(sources.mci))
    with new_checkpoint(folder) as scratch:
        guide = _convert_guide(sources, scratch / GUIDE, notify)
        (scratch / MODEL).mkdir()
        for name in (*REQUIRED, *OPTIONAL):
            if (sources.base / name).is_file():
                shutil.copyfile(sources.base / name, scratch / MODEL / name)
        shapes = _write_weights(sources.base, adapter, scratch / MODEL, provenance, notify)
        check_shapes(shapes, expected, sources.base)
        files = {
            str(path.relative_to(scratch).as_posix()): sha256_of(path)
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        config = ChangeVGConfig(
            name=folder.name,
            repetition_penalty=_repetition_penalty(sources.base),
            sources=provenance,
            files=files,
        )
        write_atomic(scratch / CONFIG, json.dumps(to_mapping(config), indent=1) + "\n")
    size = sum(folder_bytes(path) for path in (folder, folder / MODEL, folder / GUIDE))
    return Converted(folder, len(shapes) + guide.tensors, guide.ignored, size, provenance)


def _read_adapter(folder: Path, weights: frozenset[str]) -> Lora:
    """Adapter by the names of transformers 5. Raises: InputError, also for a layer that is not among the
    weights."""
    adapter = read_adapter(folder)
    adapter = replace(adapter, matrices={from_adapter(each): pair for each, pair in adapter.matrices.items()})
    check_all_merged(adapter, frozenset(name.removesuffix(".weight") for name in weights))
    return adapter


def _expected_shapes(base: Path) -> dict[str, torch.Size]:
    """Shapes of the tensors that the model has, by its config.json. Raises: InputError."""
    for name in REQUIRED:
        if not (base / name).is_file():
            raise InputError(f"{base} has no {name}; give the whole folder of Qwen2.5-VL")
    try:
        with quiet():
            values = parse_json(read_text(base / "config.json"))
            if values["model_type"] != "qwen2_5_vl":
                raise ValueError(f"it is of the architecture {values['model_type']!r}, not qwen2_5_vl")
            config = AutoConfig.from_pretrained(base)
            with meta_device():
                model = Qwen2_5_VLForConditionalGeneration(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{base / 'config.json'} is not the configuration of Qwen2.5-VL: {first_line(error)}"
        ) from error
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if not (is_tied and name == "lm_head.weight")
    }


def _guide_file(path: Path) -> Path:
    """File of the guide's weights."""
    inside = path / "MCI_model.pth"
    return inside if inside.is_file() else path


def _convert_guide(sources: Sources, folder: Path, notify: Callable[[str], None]) -> Converted:
    """Convert or copy the guide into a checkpoint folder of kind mci. Raises: InputError."""
    if (sources.mci / CONFIG).is_file():
        values = parse_json(read_text(sources.mci / CONFIG))
        if not isinstance(values, dict) or values.get(KIND, DEFAULT_KIND) != "mci":
            raise InputError(
                f"{sources.mci} is no checkpoint of kind mci; give MCI_model.pth, or such a folder"
            )
        shutil.copytree(sources.mci, folder)
        return Converted(folder, 0, (), folder_bytes(folder), {})
    file = _guide_file(sources.mci)
    vocab = sources.vocab or file.with_name("vocab.json")
    return mci.convert(mci.Sources(file, vocab), folder, notify)


def _write_weights(
    base: Path,
    adapter: Lora | None,
    folder: Path,
    provenance: Mapping[str, str],
    notify: Callable[[str], None],
) -> dict[str, torch.Size]:
    """Write the weights with the adapter merged, in shards with an index; return their shapes."""
    shapes: dict[str, torch.Size] = {}
    holders: dict[str, str] = {}
    for number, shard in enumerate(split_tensors(_merged(base, adapter)), start=1):
        file = f"model-{number:05d}.safetensors"
        notify(f"writing {file}")
        save_tensors(folder / file, shard, provenance)
        shapes |= {name: tensor.shape for name, tensor in shard.items()}
        holders |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": holders}
    write_atomic(folder / INDEX, json.dumps(index, indent=1) + "\n")
    return shapes


def _merged(base: Path, adapter: Lora | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the base by the names of transformers 5, with the adapter.

    Raises: InputError for a tensor that is not Qwen2.5-VL's.
    """
    for key, tensor in tensors(base):
        try:
            name = from_published(key)
        except KeyError:
            raise InputError(f"{base}: {key} is no tensor of Qwen2.5-VL") from None
        yield name, tensor if adapter is None else adapter.merge(name.removesuffix(".weight"), tensor)


def _repetition_penalty(base: Path) -> float:
    """Repetition penalty of the base's generation settings; 1 where there is none. Raises: InputError."""
    path = base / "generation_config.json"
    if not path.is_file():
        return 1.0
    try:
        return float(parse_json(read_text(path)).get("repetition_penalty", 1.0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no generation configuration: {error}") from error


def inspect(path: Path) -> Contents:
    """Contents of the folder of an adapter. Raises: InputError."""
    adapter = read_adapter(path)
    parts = []
    for name, prefix in (("language model", "model.language_model."), ("vision tower", "model.visual.")):
        group = [pair for each, pair in adapter.matrices.items() if from_adapter(each).startswith(prefix)]
        numbers = sum(tensor.numel() for pair in group for tensor in pair)
        dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for pair in group for t in pair}))
        parts.append((name, 2 * len(group), numbers, dtypes))
    known = ("model.language_model.layers.", "model.visual.blocks.")
    unknown = tuple(each for each in adapter.matrices if not from_adapter(each).startswith(known))
    dims = {"rank": adapter.rank, "alpha": adapter.alpha, "scaling": adapter.scaling}
    size = sum(file.stat().st_size for file in shards(path))
    return Contents(path, size, tuple(parts), (), unknown, dims)


def verify(folder: Path, expected: Path, dtype: Dtype = "fp32", device: str = "cpu") -> list[Check]:
    """Compare all stages of the model, each case alone, and all single turns as one batch.

    Raises: InputError if the expected results cannot be read, ModelError if the checkpoint cannot.
    """
    values, arrays = read_results(expected)
    model = load_folder(folder, dtype=DTYPES[dtype], device=pick_device(device))
    comparison = Comparison()
    images = [arrays[f"uint8_{date}"].permute(0, 3, 1, 2).numpy() for date in "AB"]
    with torch.inference_mode():
        encoded = model.encode(images[0], images[1])
        _compare_pairs(comparison, model, encoded, images, values, arrays)
        for case in values["cases"]:
            _compare_case(comparison, model, encoded, case, arrays)
        _compare_batch(comparison, model, encoded, values["cases"])
    return comparison.checks()


def _compare_pairs(
    comparison: Comparison,
    model: ChangeVGModel,
    encoded: EncodedPairs,
    images: Sequence[Any],
    values: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
) -> None:
    """Compare captions and counts of the guide, patches and features of each pair."""
    stride = values["pixel_row_stride"]
    findings = model.guide.findings(encoded.guide)
    for guide in values["guides"]:
        pair = guide["pair"]
        comparison.values("guide, caption", encoded.guides[pair].caption, guide["caption"])
        comparison.values("guide, counts", dict(findings[pair].counts), guide["counts"])
    for pair in range(len(encoded)):
        for index, date in enumerate("AB"):
            if f"p{pair}/pixel_values_{date}" in arrays:
                patches = model.pixels([images[index][pair]])["pixel_values"][::stride]
                comparison.tensors("pixels", patches, arrays[f"p{pair}/pixel_values_{date}"])
            comparison.tensors("features", encoded.features[pair, index], arrays[f"p{pair}/features_{date}"])


def _turns(case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    turns: list[Mapping[str, Any]] = case.get("turns") or [case]
    return turns


def _marked(text: str, caption: str, *, images_first: bool) -> str:
    """Text of a turn with a mark in place of the guide's sentence; without it where that comes by itself."""
    return text.replace(guide_sentence(caption), "" if images_first else GUIDE_MARK)


def _compare_case(
    comparison: Comparison,
    model: ChangeVGModel,
    encoded: EncodedPairs,
    case: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
) -> None:
    """Compare prompts, token ids, positions, first logits and answers of a case, turn by turn."""
    pair, stem = case["pair"], f"c{case['case']}"
    caption = encoded.guides[pair].caption
    images_first = case["template"] == "images-first"
    history: list[tuple[str, str]] = []
    for number, turn in enumerate(_turns(case)):
        text = _marked(turn["text_of_turn"], caption, images_first=images_first)
        prompt = make_prompt(history, text, guide_sentence(caption))
        comparison.values("prompt", prompt.text, turn["prompt"])
        ids = model.token_ids(prompt)
        prefix = f"{stem}t{number}" if "turns" in case else stem
        comparison.values("prompt ids", ids, arrays[f"{prefix}/input_ids"].tolist())
        inputs = model.inputs(encoded, [pair], [ids])
        if f"{prefix}/position_ids" in arrays:
            positions, _ = model.model.model.get_rope_index(
                inputs["input_ids"],
                mm_token_type_ids=inputs["mm_token_type_ids"],
                image_grid_thw=inputs["image_grid_thw"],
                attention_mask=inputs["attention_mask"],
            )
            comparison.tensors("positions", positions[:, 0], arrays[f"{prefix}/position_ids"], 0.0)
        logits = model.model(**inputs).logits[0, -1]
        comparison.tensors("first logits", logits, arrays[f"{prefix}/first_logits"])
        (answer,) = model.generate(
            encoded, [pair], [ids], [case["repetition_penalty"]], case["max_new_tokens"]
        )
        name = "dialogue" if "turns" in case else "greedy"
        comparison.values(f"ids, {name}", answer[0], turn["token_ids"])
        comparison.values(f"text, {name}", model.decode(answer[0]), turn["text"])
        history.append((text, turn["text"]))


def _compare_batch(
    comparison: Comparison, model: ChangeVGModel, encoded: EncodedPairs, cases: Sequence[Mapping[str, Any]]
) -> None:
    """Compare the answers to all turns in one batch of mixed lengths and penalties."""
    rows = []
    for case in cases:
        caption, history = encoded.guides[case["pair"]].caption, list[tuple[str, str]]()
        for turn in _turns(case):
            text = _marked(turn["text_of_turn"], caption, images_first=case["template"] == "images-first")
            ids = model.token_ids(make_prompt(history, text, guide_sentence(caption)))
            rows.append((case["pair"], ids, case["repetition_penalty"], turn["token_ids"]))
            history.append((text, turn["text"]))
    pairs, ids_of_rows, penalties, wanted = zip(*rows, strict=True)
    limit = max(case["max_new_tokens"] for case in cases)
    answers = model.generate(encoded, pairs, ids_of_rows, penalties, limit)
    for answer, expected in zip(answers, wanted, strict=True):
        comparison.values("ids, batched", answer[0][: len(expected)], expected)
