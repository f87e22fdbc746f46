"""Tensor names: from those of the published files to those of our modules.

The published checkpoint holds trained weights and buffers: the last vision blocks, the output norm, the
difference module, the Q-Former, the projection. The vision base and the language model come from other
repositories, with other names.
"""

from __future__ import annotations

import re

# Prefix in the published checkpoint -> ours; the first match counts.
PREFIXES = (
    ("visual_encoder.", "vision.tower."),
    ("ln_vision.", "vision.norm."),
    ("query_tokens", "qformer.query_tokens"),
    ("Qformer.bert.", "qformer.bert."),
    ("llm_proj.", "projection."),
    ("context1.", "difference.context1."),
    ("context2.", "difference.context2."),
    ("context3.", "difference.context3."),
    ("gate1.", "difference.gate1."),
    ("gate2.", "difference.gate2."),
)
# In the Q-Former: LAVIS's BERT -> transformers' InstructBlipQFormerModel.
QFORMER = (
    ("embeddings.LayerNorm.", "embeddings.layernorm."),
    ("attention.self.", "attention.attention."),  # crossattention.self. too
)
# Tensors of the published checkpoint that no live code reads, and why.
IGNORED = (
    (r"llm_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "a computed buffer"),
    (r"Qformer\.bert\.embeddings\.position_ids", "a computed buffer"),
    (r"vision_proj\.(weight|bias)", "head of a contrastive loss that is commented out"),
    (r"text_proj\.(weight|bias)", "head of a contrastive loss that is commented out"),
    (r"temp", "temperature of that loss"),
)
# InstructBLIP's vision tower in transformers' names -> LAVIS's. Its bias of q, k, v is one tensor.
INSTRUCTBLIP = (
    ("vision_model.embeddings.class_embedding", "cls_token"),
    ("vision_model.embeddings.position_embedding", "pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "patch_embed.proj."),
    ("vision_model.encoder.layers.", "blocks."),
)
INSTRUCTBLIP_BLOCK = (
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("self_attn.qkv.", "attn.qkv."),
    ("self_attn.projection.", "attn.proj."),
)


def from_published(name: str) -> str | None:
    """Name in our model of a tensor of the published checkpoint; None for an ignored one.

    Raises: KeyError for a name in neither list.

    >>> from_published("Qformer.bert.encoder.layer.0.crossattention.self.key.bias")
    'qformer.bert.encoder.layer.0.crossattention.attention.key.bias'
    """
    if any(re.fullmatch(pattern, name) for pattern, _ in IGNORED):
        return None
    for published_prefix, prefix in PREFIXES:
        if name.startswith(published_prefix):
            suffix = name.removeprefix(published_prefix)
            if prefix == "qformer.bert.":
                for old, new in QFORMER:
                    suffix = suffix.replace(old, new)
            return prefix + suffix
    raise KeyError(name)


def from_vision_base(name: str) -> str | None:
    """Name in LAVIS (`blocks.0.norm1.weight`) of a tensor of a vision base; None if not part of the tower.

    >>> from_vision_base("vision_model.encoder.layers.3.self_attn.projection.weight")
    'blocks.3.attn.proj.weight'
    >>> from_vision_base("head.weight") is None
    True
    """
    name = name.removeprefix("visual_encoder.")
    for instructblip, lavis in INSTRUCTBLIP:
        if name.startswith(instructblip):
            name = lavis + name.removeprefix(instructblip)
            for old, new in INSTRUCTBLIP_BLOCK:
                name = name.replace(old, new)
            return name
    is_tower = name.startswith(("blocks.", "cls_token", "pos_embed", "patch_embed."))
    return name if is_tower else None
