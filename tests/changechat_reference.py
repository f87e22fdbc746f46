"""Random published files of ChangeChat at small size, and results of an assembly of transformers.

    write_files(folder)    # the folders of the base, CLIP, adapters and a projector, expected.json, ...

The results come from `LlavaForConditionalGeneration` with whole prompts and no cache, weights merged by the
formula of LoRA on published names, and SentencePiece with its settings changed in its file; they share no
module and no table of names with the program. `benchmarks/parity.py` proves the program against numbers of
the original code. Layout and keys are those of its results.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from torch import Tensor
from torch.nn import functional as F

VOCABULARY, HIDDEN, LAYERS, HEADS, INTERMEDIATE = 340, 32, 2, 4, 48
WIDTH, TOWER_LAYERS, TOWER_HEADS, TOWER_INTERMEDIATE, PATCH_PX = 16, 3, 2, 24, 14
RANK, ALPHA, IMAGE_PX, PAIRS, NEW_TOKENS = 4, 8, 252, 3, 6
BASE, CLIP, ADAPTER, OWN = "llava", "clip", "adapter", "with-projector"
PROJECTOR = "mm_projector.bin"
MARGIN = 0.003  # smallest distance of the two best scores on a path, so that rounding changes no token
SEED = 5
SYSTEMS = {
    name: f"A chat between a curious {person} and an artificial intelligence assistant. The assistant gives "
    f"helpful, detailed, and polite answers to the {person}'s questions."
    for name, person in (("v1", "user"), ("llava_v1", "human"))
}
MARKS = {"v1": "<image>\n <image>\n ", "llava_v1": "<image>\n<image>\n"}
CAPTION = "Please briefly describe the changes in these two images."
CHANGED = "Please judge whether these two images have changed. Please answer yes or no."
COUNT = "If changes have occurred, count the number of road and building changes separately."
CASES = (  # pair, template, question
    (0, "v1", CAPTION),
    (1, "llava_v1", f"{CAPTION} "),
    (2, "v1", "Where?"),
)

TOKENIZER = "tokenizer.model"

Weights = dict[str, Tensor]


def write_files(folder: Path) -> None:
    """Write published files and expected results; those with the projector of an adapter in a folder OWN."""
    torch.manual_seed(SEED)
    base, clip = _base_weights(), _clip_weights()
    adapter, other = _adapter_weights(), _projector_weights("model.mm_projector")
    _write(folder / BASE, _base_config(), {})
    (folder / BASE / TOKENIZER).write_bytes(tokenizer_model())
    names = sorted(base)
    index = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(names)}
    for shard in sorted({*index.values()}):
        torch.save({name: base[name] for name in names if index[name] == shard}, folder / BASE / shard)
    (folder / BASE / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    _write(
        folder / CLIP, {"model_type": "clip", "vision_config": _tower_config()}, {"pytorch_model.bin": clip}
    )
    torch.save(other, folder / PROJECTOR)
    table = position_table(clip["vision_model.embeddings.position_embedding.weight"])
    saved = (
        "base_model.model.model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"
    )
    config: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    config["target_modules"] = [f"{name}_proj" for name in (*"qkvo", "gate", "up", "down")]
    for path, trained in (
        (folder / ADAPTER, {saved: table}),
        (
            folder / OWN / ADAPTER,
            {saved: table} | {f"base_model.model.{name}": t for name, t in other.items()},
        ),
    ):
        _write(
            path,
            {"model_type": "changechat"},
            {"adapter_model.bin": adapter, "non_lora_trainables.bin": trained},
        )
        (path / "adapter_config.json").write_text(json.dumps(config))
    merged = merge(base, adapter)
    images = _images()
    model = llava(merged, clip, table)
    values, arrays = _results(model, images, CASES)
    arrays["position_table"] = table
    with_other = llava(merged | other, clip, table)
    own_values, own_arrays = _results(with_other, images, CASES[:1])
    prompt_ids, _ = _ids("v1", [(CAPTION, None)])
    logits = _logits(with_other, _pixels(images, 0), prompt_ids)
    arrays["stage1/p0q0/first_logits"] = logits
    values["stage1"] = {"pair": 0, "prompt_index": 0, **_answer(with_other, _pixels(images, 0), prompt_ids)}
    values["train"] = _training(model, images, arrays)
    _write_results(folder, {"projector": "base", **values}, arrays)
    _write_results(folder / OWN, {"projector": "adapter", **own_values}, own_arrays)


@cache
def tokenizer_model() -> bytes:
    """SentencePiece model with the settings of Llama's: BPE with bytes, and text as it is."""
    texts = [*SYSTEMS.values(), CAPTION, CHANGED, COUNT, *["Yes", "No"] * 100, "some houses are built"]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 4),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def merge(base: Weights, adapter: Weights) -> Weights:
    """Weights of the base with the adapter: W + (alpha / rank) B A."""
    merged = dict(base)
    for name, up in adapter.items():
        if ".lora_B." in name:
            weight = name.removeprefix("base_model.model.").replace(".lora_B.", ".")
            down = adapter[name.replace(".lora_B.", ".lora_A.")]
            merged[weight] = base[weight] + ALPHA / RANK * up @ down
    return merged


def position_table(table: Tensor) -> Tensor:
    """Table for images of IMAGE_PX, resampled row by row and column by column with aligned corners."""
    side, grid = 24, IMAGE_PX // PATCH_PX
    weights = torch.zeros(grid, side)
    for row in range(grid):  # Keys' cubic kernel with a = -0.75, borders repeated
        center = row * (side - 1) / (grid - 1)
        start = int(center)
        for step in range(-1, 3):
            distance = abs(center - start - step)
            cubic = (
                1.25 * distance**3 - 2.25 * distance**2 + 1
                if distance <= 1
                else -0.75 * distance**3 + 3.75 * distance**2 - 6 * distance + 3
            )
            weights[row, min(max(start + step, 0), side - 1)] += cubic
    square = table[1:].reshape(side, side, -1)
    resampled = torch.einsum("ab,cd,bdw->acw", weights, weights, square)
    return torch.cat([table[:1], resampled.reshape(grid * grid, -1)])


def llava(weights: Weights, clip: Weights, table: Tensor) -> Any:
    """LLaVA of transformers, with one more word for the places of the images."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **_tower_config(), "image_size": IMAGE_PX},
            text_config={"model_type": "llama", **_base_config(), "vocab_size": VOCABULARY + 1},
            image_token_id=VOCABULARY,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            projector_hidden_act="gelu",
        )
    ).eval()
    state = {}
    for name in model.state_dict():
        if name.startswith("model.multi_modal_projector.linear_"):
            layer, kind = name.rpartition("linear_")[2].split(".")
            state[name] = weights[f"model.mm_projector.{2 * int(layer) - 2}.{kind}"]
        elif name.startswith("model.vision_tower."):
            published = (
                f"vision_model.{name.removeprefix('model.vision_tower.').removeprefix('vision_model.')}"
            )
            state[name] = table if "position_embedding" in name else clip[published]
        else:
            state[name] = weights[name.replace("model.language_model.", "model.")]
            if len(state[name]) == VOCABULARY:
                state[name] = torch.cat([state[name], torch.zeros(1, HIDDEN)])
    model.load_state_dict(state)
    return model


def _results(
    model: Any, images: Mapping[str, Tensor], cases: Sequence[tuple[int, str, str]]
) -> tuple[dict[str, Any], Weights]:
    """Expected values and arrays of these cases, and of a dialogue of two turns about pair 1."""
    arrays: Weights = dict(images)
    records: list[dict[str, Any]] = []
    for number, (pair, template, question) in enumerate(cases):
        record = {"pair": pair, "prompt_index": number, "template": template, "max_new_tokens": NEW_TOKENS}
        answer = _ask(model, images, pair, template, [(question, None)], arrays, f"p{pair}q{number}")
        records.append(record | {"question": question, **answer})
    if len(cases) == len(CASES):
        first = _ask(model, images, 1, "v1", [(CHANGED, None)], arrays, "d1t0")
        turns = [(CHANGED, first["text"]), (COUNT, None)]
        second = _ask(model, images, 1, "v1", turns, arrays, "d1t1")
        dialogue = [{"question": CHANGED, **first}, {"question": COUNT, **second}]
        records.append({"pair": 1, "template": "v1", "max_new_tokens": NEW_TOKENS, "turns": dialogue})
    for pair in range(PAIRS):
        pixels = _pixels(images, pair)
        with torch.no_grad():
            states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            projected = model.model.multi_modal_projector(states)
        for index, date in enumerate("AB"):
            arrays[f"pixel_{date}_{pair}"] = pixels[index, :, ::6, ::6].clone()
            arrays[f"p{pair}/vision_{date}"] = states[index, :: 1 if pair == 0 else 12].clone()
            arrays[f"p{pair}/projected_{date}"] = projected[index, :: 1 if pair == 0 else 12].clone()
    return {
        "kind": "changechat",
        "cases": records,
        "pixel_stride": 6,
        "full_pair": 0,
        "row_stride": 12,
    }, arrays


def _ask(
    model: Any,
    images: Mapping[str, Tensor],
    pair: int,
    template: str,
    turns: Sequence[tuple[str, str | None]],
    arrays: Weights,
    stem: str,
) -> dict[str, Any]:
    """Prompt, token ids and text of an answer; its first scores and ids of the prompt go to `arrays`."""
    ids, _ = _ids(template, turns)
    arrays[f"{stem}/input_ids"] = torch.tensor(ids)
    arrays[f"{stem}/first_logits"] = _logits(model, _pixels(images, pair), ids)
    return {"prompt": _prompt(template, turns), **_answer(model, _pixels(images, pair), ids)}


def _prompt(template: str, turns: Sequence[tuple[str, str | None]]) -> str:
    text = f"{SYSTEMS[template]} "
    for number, (question, answer) in enumerate(turns):
        text += f"USER: {'' if number else MARKS[template]}{question} ASSISTANT:"
        text += "" if answer is None else f" {answer}</s>"
    return text


def _ids(template: str, turns: Sequence[tuple[str, str | None]]) -> tuple[list[int], list[int]]:
    """Ids of a prompt with -200 for each image, and labels: ids of answers with their ends, else -100."""
    plain = SentencePieceProcessor(model_proto=tokenizer_model())
    settings = sentencepiece_model_pb2.ModelProto.FromString(tokenizer_model())
    settings.normalizer_spec.add_dummy_prefix = False
    inside = SentencePieceProcessor(model_proto=settings.SerializeToString())
    ids, labels = [1], [-100]
    for number, piece in enumerate(_prompt(template, turns).split("<image>")):
        if number:
            ids, labels = [*ids, -200], [*labels, -100]
        *ended, last = piece.split("</s>")
        for index, text in enumerate([*ended, last]):
            encode = inside.encode if index else plain.encode
            new = encode(text) if text else []
            asked = text[: text.index(" ASSISTANT:") + len(" ASSISTANT:")] if index < len(ended) else text
            start = len(encode(asked)) if asked else 0
            new = [*new, 2] if index < len(ended) else new
            ids += new
            labels += [-100] * min(start, len(new)) + new[start:]
    return ids, labels


def _logits(model: Any, pixels: Tensor, ids: Sequence[int], *, every: bool = False) -> Tensor:
    """Scores (V,) of the next token, or (S, V) of all, with 324 tokens for each image."""
    wide = [each for id_ in ids for each in ([VOCABULARY] * 324 if id_ == -200 else [id_])]
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([wide]), pixel_values=pixels).logits[0, :, :VOCABULARY]
    return logits if every else logits[-1].clone()


def _answer(model: Any, pixels: Tensor, ids: Sequence[int]) -> dict[str, Any]:
    """Token ids and text of the greedy answer."""
    new: list[int] = []
    while len(new) < NEW_TOKENS and 2 not in new:
        best, second = _logits(model, pixels, [*ids, *new]).topk(2)
        assert best[0] - best[1] > MARGIN, "another SEED is needed: two scores are too close"
        new.append(int(second[0]))
    processor = SentencePieceProcessor(model_proto=tokenizer_model())
    return {"token_ids": new, "text": processor.decode([id_ for id_ in new if id_ > 2]).strip()}


def _training(model: Any, images: Mapping[str, Tensor], arrays: Weights) -> list[dict[str, Any]]:
    """Two records of training with their losses."""
    dialogue = [(CHANGED, "Yes"), (COUNT, "1 road has changed, and no buildings has changed.")]
    records = []
    for number, turns in enumerate(([(CAPTION, "Some houses are built along the road.")], dialogue)):
        ids, labels = _ids("v1", turns)
        arrays[f"train{number}/input_ids"] = torch.tensor(ids)
        arrays[f"train{number}/labels"] = torch.tensor(labels)
        logits = _logits(model, _pixels(images, number), ids, every=True)
        learned = torch.tensor(labels[-(len(labels) - labels.index(next(filter(lambda x: x > 0, labels)))) :])
        loss = F.cross_entropy(logits[-len(learned) - 1 : -1], learned)
        texts = [text for turn in turns for text in turn]
        texts[0] = f"<image> <image> {texts[0]}"
        speakers = ("human", "gpt") * len(turns)
        messages = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=True)]
        records.append({"pair": number, "conversations": messages, "loss": float(loss)})
    return records


def _pixels(images: Mapping[str, Tensor], pair: int) -> Tensor:
    """Normalised pixels (2, 3, IMAGE_PX, IMAGE_PX) of both dates."""
    mean, std = (
        np.array(v) for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    resized = [
        np.asarray(Image.fromarray(images[f"uint8_{date}"][pair].numpy()).resize((IMAGE_PX,) * 2, 3))
        for date in "AB"
    ]
    return torch.from_numpy((np.stack(resized) / 255 - mean) / std).float().permute(0, 3, 1, 2)


def _images() -> Weights:
    """Images uint8_A and uint8_B, (PAIRS, 256, 256, 3)."""
    coarse = torch.rand(2 * PAIRS, 3, 12, 12) * 255
    smooth = F.interpolate(coarse, (256, 256), mode="bicubic") + 20 * torch.randn(2 * PAIRS, 3, 256, 256)
    pixels = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    return {"uint8_A": pixels[:PAIRS].clone(), "uint8_B": pixels[PAIRS:].clone()}


def _base_config() -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def _tower_config() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": TOWER_LAYERS,
        "num_attention_heads": TOWER_HEADS,
        "intermediate_size": TOWER_INTERMEDIATE,
        "patch_size": PATCH_PX,
        "image_size": 336,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _base_weights() -> Weights:
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN)}
    ones = ["model.norm"]
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        ones += [f"{stem}input_layernorm", f"{stem}post_attention_layernorm"]
        shapes |= {f"{stem}self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{stem}mlp.{name}_proj": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{stem}mlp.down_proj"] = (HIDDEN, INTERMEDIATE)
    weights = {f"{name}.weight": torch.randn(shape) * 0.25 for name, shape in shapes.items()}
    norms = {f"{name}.weight": 1 + 0.1 * torch.randn(HIDDEN) for name in ones}
    return weights | norms | _projector_weights("model.mm_projector")


def _projector_weights(stem: str) -> Weights:
    weights: Weights = {}
    for index, inputs in ((0, WIDTH), (2, HIDDEN)):
        weights[f"{stem}.{index}.weight"] = torch.randn(HIDDEN, inputs) * inputs**-0.5
        weights[f"{stem}.{index}.bias"] = torch.randn(HIDDEN) * 0.1
    return weights


def _clip_weights() -> Weights:
    """Weights of a whole CLIP, of which the text encoder is not read."""
    stem = "vision_model."
    weights = {
        f"{stem}embeddings.class_embedding": torch.randn(WIDTH),
        f"{stem}embeddings.patch_embedding.weight": torch.randn(WIDTH, 3, PATCH_PX, PATCH_PX) * 0.05,
        f"{stem}embeddings.position_embedding.weight": torch.randn(24 * 24 + 1, WIDTH),
        "text_model.embeddings.token_embedding.weight": torch.randn(5, 8),
        "logit_scale": torch.tensor(2.6),
    }
    norms = [f"{stem}pre_layrnorm", f"{stem}post_layernorm"]
    linears: dict[str, tuple[int, int]] = {}
    for layer in range(TOWER_LAYERS):
        block = f"{stem}encoder.layers.{layer}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        linears |= {f"{block}self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
        linears |= {
            f"{block}mlp.fc1": (TOWER_INTERMEDIATE, WIDTH),
            f"{block}mlp.fc2": (WIDTH, TOWER_INTERMEDIATE),
        }
    for name, shape in linears.items():
        weights |= {f"{name}.weight": torch.randn(shape) * 0.3, f"{name}.bias": torch.randn(shape[0]) * 0.1}
    for name in norms:
        weights |= {f"{name}.weight": 1 + 0.2 * torch.randn(WIDTH), f"{name}.bias": 0.1 * torch.randn(WIDTH)}
    return weights


def _adapter_weights() -> Weights:
    weights: Weights = {}
    for name, tensor in _base_weights().items():
        if "_proj." in name:
            stem, (outputs, inputs) = f"base_model.model.{name.removesuffix('.weight')}", tensor.shape
            weights[f"{stem}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.2
            weights[f"{stem}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.2
    return weights


def _write(folder: Path, config: Mapping[str, Any], files: Mapping[str, Weights]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, weights in files.items():
        torch.save(weights, folder / name)


def _write_results(folder: Path, values: Mapping[str, Any], arrays: Weights) -> None:
    (folder / "expected.json").write_text(json.dumps(values))
    save_file({name: tensor.contiguous() for name, tensor in arrays.items()}, folder / "expected.safetensors")
