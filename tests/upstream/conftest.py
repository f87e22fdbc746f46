"""Files of the original at small size, and a checkpoint converted from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltavlm.upstream import names
from deltavlm.upstream.components import Sources
from deltavlm.upstream.convert import convert
from deltavlm.upstream.read import tensors

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tiny"


def sources(folder: Path = GOLDEN) -> Sources:
    return Sources(
        folder / "checkpoint_best.pth",
        folder / "eva_vit_g.pth",
        folder / "vicuna-7b-v1.5",
        folder / "bert-base-uncased",
    )


def as_instructblip(base: Path, folder: Path) -> Path:
    """Write the vision base with the names of transformers' InstructBLIP."""
    block = {new: old for old, new in names.INSTRUCTBLIP_BLOCK}
    outer = {new: old for old, new in names.INSTRUCTBLIP}
    renamed: dict[str, torch.Tensor] = {"language_model.lm_head.weight": torch.zeros(2, 2)}
    biases: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors(base):
        if name.endswith(("q_bias", "v_bias")):
            biases.setdefault(name[:-6], {})[name[-6:]] = tensor
            continue
        key_name = name
        for lavis, hf in outer.items():
            key_name = hf + key_name[len(lavis) :] if key_name.startswith(lavis) else key_name
        for lavis, hf in block.items():
            key_name = key_name.replace(lavis, hf)
        renamed[key_name] = tensor.contiguous()
    for stem, pair in biases.items():
        key = stem.replace("blocks.", "vision_model.encoder.layers.").replace("attn.", "self_attn.qkv.bias")
        renamed[key] = torch.cat([pair["q_bias"], torch.zeros_like(pair["q_bias"]), pair["v_bias"]])
    folder.mkdir()
    save_file(renamed, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert(sources(), folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the original's files, for tests that damage them."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "files"))
