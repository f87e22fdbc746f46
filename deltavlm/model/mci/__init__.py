"""MCI, the mask-and-caption model of Change-Agent (arXiv 2403.19646), as a kind of checkpoint.

It answers the standard questions alone: a caption, whether anything changed, counts and cells of roads and
buildings; it knows no others. Imports no torch before `load`.
"""

from __future__ import annotations

from deltavlm.extras import require_torch
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import find_folder, read_config_as
from deltavlm.model.footprint import Footprint
from deltavlm.model.interface import ChangeModel
from deltavlm.model.kinds import GREEDY_ON_TORCH, ModelSpec, check_options
from deltavlm.model.mci.config import MCIConfig


def read_spec(name: str, options: RuntimeOptions) -> ModelSpec:
    """Facts about a checkpoint without its weights; see `kinds.read_spec`."""
    check_options("mci", options, {**GREEDY_ON_TORCH, "quantize": (None,)})
    folder = find_folder(name)
    config = read_config_as(MCIConfig, folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelSpec(config.name, config.chip_px, config.training_gsd_m, has_masks=True, weights_bytes=size)


def read_footprint(name: str, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint will take; see `kinds.read_footprint`."""
    check_options("mci", options, {**GREEDY_ON_TORCH, "quantize": (None,)})
    require_torch("a model of kind mci")
    from deltavlm.model.mci import model

    return model.read_footprint(find_folder(name), options)


def load(name: str, options: RuntimeOptions) -> ChangeModel:
    """Load a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    check_options("mci", options, {**GREEDY_ON_TORCH, "quantize": (None,)})
    require_torch("a model of kind mci")
    from deltavlm.model.mci.model import load_model

    return load_model(find_folder(name), options)
