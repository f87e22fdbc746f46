"""The vision tower, put together from its base and the blocks that were tuned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.upstream import names
from deltavlm.upstream.inspect import blocks_of
from deltavlm.upstream.read import tensors


def read_tower(base: Path, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower in LAVIS's names: all of the base, under the checkpoint's own last blocks.

    The published file of EVA-CLIP-g has a 40th block and a head that this model does not use.
    Raises: InputError.
    """
    blocks = blocks_of(published)
    depth = blocks[-1] + 1 if blocks else 39
    found: dict[str, Tensor] = {}
    for name, tensor in tensors(base):
        lavis = names.of_base(name)
        if lavis is None:
            continue
        if lavis.startswith("blocks.") and int(lavis.split(".")[1]) >= depth:
            continue
        if lavis.endswith("attn.qkv.bias"):  # transformers: q, zeros, v in one
            query, key, value = tensor.chunk(3)
            if key.abs().max() > 1e-6:
                raise InputError(f"{base}: {name} has a bias of keys; it is no EVA-ViT")
            stem = lavis.removesuffix("qkv.bias")
            found[stem + "q_bias"], found[stem + "v_bias"] = query.clone(), value.clone()
            continue
        found[lavis] = tensor
    for needed in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"):
        if needed not in found:
            raise InputError(
                f"{base} has no {needed}; give the EVA-CLIP-g base: eva_vit_g.pth, or the folder of"
                f" instructblip-vicuna-7b"
            )
    own = {n.removeprefix("visual_encoder.") for n in published if n.startswith("visual_encoder.")}
    return {name: tensor for name, tensor in found.items() if name not in own}
