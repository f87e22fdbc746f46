"""What the published files call a tensor, and what we call it.

The published checkpoint holds what was trained, and buffers: the last vision blocks, the output norm, the
difference module, the Q-Former, the projection. The vision base and the language model come from elsewhere,
under names of their own.
"""

from __future__ import annotations

import re

# The published checkpoint's prefix -> ours. The first that fits counts.
ORGANS = (
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
# Inside of the Q-Former: LAVIS's BERT -> transformers' InstructBlipQFormerModel.
QFORMER = (
    ("embeddings.LayerNorm.", "embeddings.layernorm."),
    ("attention.self.", "attention.attention."),  # crossattention.self. too
)
# Tensors of the published checkpoint that no live code reads, and why.
IGNORED = (
    (r"llm_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "a buffer that is computed"),
    (r"Qformer\.bert\.embeddings\.position_ids", "a buffer that is computed"),
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


def ours(published: str) -> str | None:
    """Our name of a tensor of the published checkpoint; None for one that is ignored.

    Raises: KeyError for a name that is in neither list.

    >>> ours("Qformer.bert.encoder.layer.0.crossattention.self.key.bias")
    'qformer.bert.encoder.layer.0.crossattention.attention.key.bias'
    """
    if any(re.fullmatch(pattern, published) for pattern, _ in IGNORED):
        return None
    for theirs, our in ORGANS:
        if published.startswith(theirs):
            rest = published[len(theirs) :]
            if our == "qformer.bert.":
                for old, new in QFORMER:
                    rest = rest.replace(old, new)
            return our + rest
    raise KeyError(published)


def of_base(name: str) -> str | None:
    """LAVIS's name (`blocks.0.norm1.weight`) of a tensor of a vision base; None for one that is not part of
    the tower.

    >>> of_base("vision_model.encoder.layers.3.self_attn.projection.weight"), of_base("head.weight")
    ('blocks.3.attn.proj.weight', None)
    """
    name = name.removeprefix("visual_encoder.")
    for theirs, lavis in INSTRUCTBLIP:
        if name.startswith(theirs):
            name = lavis + name[len(theirs) :]
            for old, new in INSTRUCTBLIP_BLOCK:
                name = name.replace(old, new)
            return name
    tower = name.startswith(("blocks.", "cls_token", "pos_embed", "patch_embed."))
    return name if tower else None
