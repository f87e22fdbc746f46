"""ChangeVG (arXiv 2509.23105): Qwen2.5-VL with a LoRA, guided by the captions of MCI.

A checkpoint folder of this kind holds `config.json`, `model/` as transformers reads it, with the LoRA merged,
and `guide/`, a checkpoint of kind mci. Imports no torch before `load`.
"""

from __future__ import annotations

from deltavlm.extras import require_torch
from deltavlm.model.changevg.config import GUIDE, MODEL, ChangeVGConfig
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import find_folder, read_config_as
from deltavlm.model.footprint import Footprint
from deltavlm.model.interface import ChangeModel
from deltavlm.model.kinds import ModelSpec, check_options


def read_spec(name: str, options: RuntimeOptions) -> ModelSpec:
    """Facts about a checkpoint without its weights; see `kinds.read_spec`."""
    check_options("changevg", options)
    folder = find_folder(name)
    config = read_config_as(ChangeVGConfig, folder)
    files = [*folder.glob(f"{MODEL}/*.safetensors"), *folder.glob(f"{GUIDE}/*.safetensors")]
    size = sum(path.stat().st_size for path in files)
    return ModelSpec(config.name, config.chip_px, config.training_gsd_m, has_masks=True, weights_bytes=size)


def read_footprint(name: str, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint will take; see `kinds.read_footprint`."""
    check_options("changevg", options)
    require_torch("a model of kind changevg")
    from deltavlm.model.changevg import model

    return model.read_footprint(find_folder(name), options)


def load(name: str, options: RuntimeOptions) -> ChangeModel:
    """Load a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    check_options("changevg", options)
    require_torch("a model of kind changevg")
    from deltavlm.model.changevg.model import load_model

    return load_model(find_folder(name), options)
