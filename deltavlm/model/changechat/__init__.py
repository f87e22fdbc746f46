"""ChangeChat: LLaVA-1.5 that sees both dates, a checkpoint of the kind `changechat`; imports no torch."""

from __future__ import annotations

from deltavlm.extras import require_torch
from deltavlm.model.changechat.config import ChangeChatConfig
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import find_folder, read_config_as
from deltavlm.model.footprint import Footprint
from deltavlm.model.interface import ChangeModel
from deltavlm.model.kinds import ModelSpec, check_options


def read_spec(name_or_folder: str, options: RuntimeOptions) -> ModelSpec:
    """Facts about a checkpoint without its weights; see `kinds.read_spec`."""
    check_options("changechat", options)
    folder = find_folder(name_or_folder)
    config = read_config_as(ChangeChatConfig, folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelSpec(config.name, config.chip_px, config.training_gsd_m, has_masks=False, weights_bytes=size)


def read_footprint(name: str, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint will take; see `kinds.read_footprint`."""
    check_options("changechat", options)
    require_torch("a model of kind changechat")
    from deltavlm.model.changechat import model

    return model.read_footprint(find_folder(name), options)


def load(name_or_folder: str, options: RuntimeOptions) -> ChangeModel:
    """Load a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    check_options("changechat", options)
    require_torch("a model of kind changechat")
    from deltavlm.model.changechat.model import load_changechat

    return load_changechat(find_folder(name_or_folder), options)
