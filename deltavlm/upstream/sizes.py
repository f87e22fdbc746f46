"""Configuration of a published model, from the shapes of its tensors and its configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from deltavlm.config import from_mapping, load, shipped_config
from deltavlm.errors import InputError
from deltavlm.files import parse_json, read_text
from deltavlm.model.config import (
    DeltaVLMConfig,
    DifferenceConfig,
    LanguageConfig,
    QFormerConfig,
    VisionConfig,
)
from deltavlm.upstream.components import Sources
from deltavlm.upstream.inspect import blocks_of

LLAMA_7B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "vocab_size": 32_000,
}
"""Values of transformers that a nested configuration leaves out."""


def read_config(
    sources: Sources, published: Mapping[str, Tensor], tower: Mapping[str, Tensor]
) -> DeltaVLMConfig:
    """Model configuration from the shapes of its tensors and the Llama's configuration.

    Args:
        sources: local files of all components.
        published: tensors of the checkpoint, by published names.
        tower: tensors of the vision base, by LAVIS's names.

    Raises: InputError.
    """
    vision_heads, qformer_heads = heads_of(sources)
    width = tower["cls_token"].shape[-1]
    patch = tower["patch_embed.proj.weight"].shape[-1]
    side = round((tower["pos_embed"].shape[1] - 1) ** 0.5)
    blocks = blocks_of(published)
    depth = (
        blocks[-1] + 1 if blocks else 1 + max(int(n.split(".")[1]) for n in tower if n.startswith("blocks."))
    )
    mlp = tower["blocks.0.mlp.fc1.weight"].shape[0]
    stem = "Qformer.bert.encoder.layer."
    layers = 1 + max(int(n.removeprefix(stem).split(".")[0]) for n in published if n.startswith(stem))
    crossed = [n for n in range(layers) if f"{stem}{n}.crossattention.self.query.weight" in published]
    vocab, hidden = published["Qformer.bert.embeddings.word_embeddings.weight"].shape
    base = load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig)
    return replace(
        base,
        vision=VisionConfig(
            tower=base.vision.tower,
            image_px=side * patch,
            patch_px=patch,
            width=width,
            depth=depth,
            heads=vision_heads,
            mlp_ratio=(mlp + 0.5) / width,  # timm rounds the product down
            prefix_tokens=1,
        ),
        qformer=QFormerConfig(
            hidden=hidden,
            layers=layers,
            heads=qformer_heads,
            intermediate=published[f"{stem}0.intermediate.dense.weight"].shape[0],
            queries=published["query_tokens"].shape[1],
            vocab=vocab,
            cross_every=crossed[1] - crossed[0] if len(crossed) > 1 else layers,
        ),
        language=language_config(sources.llm),
        difference=DifferenceConfig(),
    )


def heads_of(sources: Sources) -> tuple[int, int]:
    """Numbers of attention heads of vision tower and Q-Former, which the shapes of weights do not show.

    They are read from `sources.heads_config` (a model configuration, YAML or JSON, or a JSON object `dims`
    with vheads and qheads), else from expected.json in the checkpoint's folder, else from the configuration
    of the published model. Raises: InputError.
    """
    expected = sources.checkpoint.with_name("expected.json")
    path = sources.heads_config or (expected if expected.is_file() else shipped_config("deltavlm-7b.yaml"))
    try:
        values = parse_json(read_text(path)) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if isinstance(values, dict) and "dims" in values:
        try:
            return int(values["dims"]["vheads"]), int(values["dims"]["qheads"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: dims lacks vheads or qheads") from error
    config = load(path, DeltaVLMConfig) if values is None else from_mapping(DeltaVLMConfig, values, str(path))
    return config.vision.heads, config.qformer.heads


def language_config(folder: Path) -> LanguageConfig:
    """Configuration of a Llama folder, from its config.json. Raises: InputError."""
    path = folder / "config.json"
    try:
        values = parse_json(read_text(path))
        if "text_config" in values:  # LLaVA nests that of its Llama, without what every Llama-7B has
            values = LLAMA_7B | values["text_config"]
        if values.get("num_key_value_heads", values["num_attention_heads"]) != values["num_attention_heads"]:
            raise InputError(
                f"{path}: grouped key and value heads are not supported; the model used Vicuna-7B v1.5"
            )
        return LanguageConfig(
            hidden=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            intermediate=values["intermediate_size"],
            vocab=values["vocab_size"],
            context=values.get("max_position_embeddings", 4096),
            rms_eps=values.get("rms_norm_eps", 1e-5),
            tied=bool(values.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a Llama: {error}") from error
