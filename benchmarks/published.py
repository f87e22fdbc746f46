"""Random files of the published models at full size, in the layout in which they are published.

    paths = write("changevg", folder, layers=28)   # by the names of the options of `weights convert`

Values do not matter: all tensors are pieces of one table of random numbers, so that writing is as fast as the
disk. Language models may have fewer layers, all of full width. Files are written shard by shard, so that
memory holds one layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deltavlm.config import load, shipped_config
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.upstream.changevg import PREFIXES
from tests.changechat_reference import tokenizer_model
from tests.mci_reference import PUBLISHED, random_weights

Shapes = Mapping[str, tuple[int, ...]]
TABLE = 4_194_301  # numbers; a prime, so that rows of a matrix differ
LAYERS = {"deltavlm": 32, "mci": 0, "changechat": 32, "changevg": 28}  # of the published language models

WIDTH, INTERMEDIATE, VOCABULARY = 4096, 11_008, 32_000  # of a Llama-7B
LLAMA_LINEARS: Shapes = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INTERMEDIATE, WIDTH) for name in ("gate", "up")},
    "mlp.down_proj": (WIDTH, INTERMEDIATE),
}
TOWER, TOWER_LAYERS, TOWER_INTERMEDIATE, PATCHES = 1024, 24, 4096, 24 * 24  # of CLIP ViT-L/14-336
QWEN_TEXT = {
    **{"hidden_size": 3584, "intermediate_size": 18_944, "vocab_size": 152_064},
    **{"num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128_000},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
QWEN_TOWER = {
    **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
    **{"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112},
}
QWEN_LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "attn.proj")
TUNED = ("37", "38")  # vision blocks in the checkpoint of DeltaVLM


def write(kind: str, folder: Path, layers: int | None = None) -> dict[str, Path]:
    """Write random files of a model of this kind; paths by the names of the options of `weights convert`."""
    layers = LAYERS[kind] if layers is None else layers
    return WRITERS[kind](folder, layers)


@cache
def _table(dtype: torch.dtype) -> Tensor:
    return (0.02 * torch.randn(TABLE, generator=torch.Generator().manual_seed(0))).to(dtype)


def _random(shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> Tensor:
    """Tensor of repeated random numbers."""
    count = torch.Size(shape).numel()
    return _table(dtype).repeat(-(-count // TABLE))[:count].view(shape).clone()


def _filled(shapes: Shapes, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Tensors of these shapes; gains of norms are 1."""
    return {
        name: torch.ones(shape, dtype=dtype)
        if "norm" in name.lower() and name.endswith("weight")
        else _random(shape, dtype)
        for name, shape in shapes.items()
    }


def _write_shards(folder: Path, shards: Iterator[dict[str, Tensor]], suffix: str) -> None:
    """Write shards of a Llama or a Qwen with their index: .bin as torch writes it, or .safetensors."""
    holders: dict[str, str] = {}
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}{suffix}"
        if suffix == ".safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
        holders |= dict.fromkeys(shard, file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": holders}))


def _llama_shards(layers: int, others: Shapes) -> Iterator[dict[str, Tensor]]:
    """Tensors of a Llama: those outside of its blocks with `others`, then a block at a time."""
    tables = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    yield _filled({**tables, "model.norm.weight": (WIDTH,), **others})
    for number in range(layers):
        stem = f"model.layers.{number}"
        shapes = {f"{stem}.{name}.weight": shape for name, shape in LLAMA_LINEARS.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        yield _filled({**shapes, **{f"{stem}.{name}.weight": (WIDTH,) for name in norms}})


def _write_llama(folder: Path, layers: int, others: Shapes) -> None:
    folder.mkdir()
    config = {"hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 32}
    config |= {"intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    _write_shards(folder, _llama_shards(layers, others), ".bin")


def _write_lora(folder: Path, layers: Shapes, rank: int, alpha: int) -> None:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = (rank, shape[1])
        shapes[f"base_model.model.{name}.lora_B.weight"] = (shape[0], rank)
    save_file(_filled(shapes), folder / "adapter_model.safetensors")


def write_mci(folder: Path, layers: int) -> dict[str, Path]:
    """MCI_model.pth and vocab.json; `layers` is not used."""
    torch.save(random_weights(0, PUBLISHED), folder / "MCI_model.pth")
    words = ["<NULL>", "<UNK>", "<START>", "<END>", *(f"word{n}" for n in range(4, PUBLISHED.words))]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    return {"checkpoint": folder / "MCI_model.pth", "vocab": folder / "vocab.json"}


def write_changechat(folder: Path, layers: int) -> dict[str, Path]:
    """LLaVA-1.5-7B with its projector, CLIP ViT-L/14-336, and a LoRA on all linear layers."""
    base, vision, adapter = folder / "llava", folder / "clip", folder / "adapter"
    stem = "model.mm_projector."
    projector = {f"{stem}0.weight": (WIDTH, TOWER), f"{stem}2.weight": (WIDTH, WIDTH)}
    _write_llama(base, layers, {**projector, f"{stem}0.bias": (WIDTH,), f"{stem}2.bias": (WIDTH,)})
    vision.mkdir()
    tower = {"hidden_size": TOWER, "num_hidden_layers": TOWER_LAYERS, "num_attention_heads": 16}
    tower |= {"intermediate_size": TOWER_INTERMEDIATE, "patch_size": 14}
    (vision / "config.json").write_text(json.dumps({"vision_config": tower}))
    torch.save(_filled(_clip_shapes()), vision / "pytorch_model.bin")
    linears = {
        f"model.layers.{number}.{name}": shape
        for number in range(layers)
        for name, shape in LLAMA_LINEARS.items()
    }
    _write_lora(adapter, linears, rank=64, alpha=128)
    return {"base": base, "vision": vision, "adapter": adapter}


def _clip_shapes() -> Shapes:
    """Shapes of CLIP's vision tower."""
    stem = "vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{stem}embeddings.class_embedding": (TOWER,),
        f"{stem}embeddings.patch_embedding.weight": (TOWER, 3, 14, 14),
        f"{stem}embeddings.position_embedding.weight": (PATCHES + 1, TOWER),
    }
    norms = [f"{stem}pre_layrnorm", f"{stem}post_layernorm"]
    for layer in range(TOWER_LAYERS):
        block = f"{stem}encoder.layers.{layer}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        linears = {f"self_attn.{name}_proj": (TOWER, TOWER) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (TOWER_INTERMEDIATE, TOWER), "mlp.fc2": (TOWER, TOWER_INTERMEDIATE)}
        for name, shape in linears.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return shapes | {f"{name}.{part}": (TOWER,) for name in norms for part in ("weight", "bias")}


def write_deltavlm(folder: Path, layers: int) -> dict[str, Path]:
    """checkpoint_best.pth in float32, eva_vit_g.pth in float16, Vicuna-7B, and BERT's vocabulary."""
    config = load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig)
    with torch.device("meta"):
        model = build(replace(config, language=replace(config.language, layers=1)))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tower, tuned = dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]]()
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        if name.startswith("vision.tower."):
            rest = rest.removeprefix("tower.")
            tower[rest] = shape
            if rest.startswith(tuple(f"blocks.{number}." for number in TUNED)):
                tuned[f"visual_encoder.{rest}"] = shape
        elif name.startswith("vision.norm."):
            tuned[f"ln_vision.{rest.removeprefix('norm.')}"] = shape
        elif part == "qformer":
            inner = rest.replace("embeddings.layernorm.", "embeddings.LayerNorm.")
            inner = inner.replace("attention.attention.", "attention.self.")
            tuned[inner if inner == "query_tokens" else f"Qformer.{inner}"] = shape
        elif part in ("difference", "projection"):
            tuned[rest if part == "difference" else f"llm_proj.{rest}"] = shape
    weights = _filled(tuned, torch.float32)
    torch.save({"model": weights, "epoch": 1, "config": {}}, folder / "checkpoint_best.pth")
    torch.save(_filled(tower), folder / "eva_vit_g.pth")
    _write_llama(folder / "vicuna", layers, {})
    (folder / "bert").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{number}" for number in range(len(words), config.qformer.vocab - 1)]
    (folder / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    return {
        "checkpoint": folder / "checkpoint_best.pth",
        "vision": folder / "eva_vit_g.pth",
        "llm": folder / "vicuna",
        "bert": folder / "bert",
    }


def write_changevg(folder: Path, layers: int) -> dict[str, Path]:
    """Qwen2.5-VL-7B in bfloat16 with a tokenizer of few words, a LoRA, and MCI."""
    import transformers

    base, adapter, mci = folder / "qwen", folder / "lora", folder / "mci"
    for path in (base, mci):
        path.mkdir()
    config = _qwen_config(base, layers)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    shapes = {_published(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        words = name.split(".")
        key = ".".join(words[:3]) if name.startswith("model.layers.") else words[0]
        groups.setdefault(key, {})[name] = shape
    _write_shards(base, (_filled(group, torch.bfloat16) for group in groups.values()), ".safetensors")
    linears = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) == 2 and name.removesuffix(".weight").endswith(QWEN_LORA)
    }
    _write_lora(adapter, linears, rank=8, alpha=16)
    return {"base": base, "adapter": adapter, "mci": write_mci(mci, 0)["checkpoint"]}


def _published(name: str) -> str:
    """Published name of a tensor of Qwen2.5-VL, of that of transformers 5."""
    for published, ours in PREFIXES[2:]:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    raise KeyError(name)


def _qwen_config(folder: Path, layers: int) -> Any:
    """Write configuration, tokenizer and settings; return the configuration."""
    import transformers

    from tests.tiny_hf import SPECIAL, _tokenizer

    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**QWEN_TEXT, "num_hidden_layers": layers},
        vision_config=QWEN_TOWER,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessor(max_pixels=262_144).save_pretrained(folder)
    ends = {"eos_token_id": [ids["<|im_end|>"], ids["<pad>"]], "pad_token_id": ids["<pad>"]}
    (folder / "generation_config.json").write_text(json.dumps({**ends, "repetition_penalty": 1.05}))
    return config


WRITERS: Mapping[str, Callable[[Path, int], dict[str, Path]]] = {
    "deltavlm": write_deltavlm,
    "mci": write_mci,
    "changechat": write_changechat,
    "changevg": write_changevg,
}
