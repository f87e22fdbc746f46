"""Merge the vision tower from its base and the fine-tuned blocks of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.upstream import names
from deltavlm.upstream.inspect import blocks_of
from deltavlm.upstream.read import tensors


def read_tower(base: Path, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the base by LAVIS's names, without those that the checkpoint has itself.

    The published file of EVA-CLIP-g has a 40th block and a head that this model does not use.
    Raises: InputError.
    """
    blocks = blocks_of(published)
    depth = blocks[-1] + 1 if blocks else 39
    tower: dict[str, Tensor] = {}
    for name, tensor in tensors(base):
        lavis = names.from_vision_base(name)
        if lavis is None:
            continue
        if lavis.startswith("blocks.") and int(lavis.split(".")[1]) >= depth:
            continue
        if lavis.endswith("attn.qkv.bias"):  # transformers: q, zeros, v in one tensor
            query, key, value = tensor.chunk(3)
            if key.abs().max() > 1e-6:
                raise InputError(f"{base}: {name} has a bias of keys; it is not an EVA-ViT")
            stem = lavis.removesuffix("qkv.bias")
            tower[stem + "q_bias"], tower[stem + "v_bias"] = query.clone(), value.clone()
            continue
        tower[lavis] = tensor
    for required in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"):
        if required not in tower:
            raise InputError(
                f"{base} has no {required}; give the EVA-CLIP-g base: eva_vit_g.pth, or the folder of"
                f" instructblip-vicuna-7b"
            )
    tuned = {n.removeprefix("visual_encoder.") for n in published if n.startswith("visual_encoder.")}
    return {name: tensor for name, tensor in tower.items() if name not in tuned}
