"""Runtime of a checkpoint: torch, or OpenVINO on a CPU; imports neither before it is chosen."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from deltavlm.errors import ConfigError
from deltavlm.extras import require_torch
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import find_folder, has_graphs, read_config
from deltavlm.model.footprint import Footprint
from deltavlm.model.interface import ChangeModel
from deltavlm.model.kinds import ModelSpec

NVIDIA = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"), Path("/dev/dxg"))  # where a driver is loaded


def read_spec(name_or_folder: str, options: RuntimeOptions) -> ModelSpec:
    """What is known of a checkpoint without its weights; see `kinds.read_spec`."""
    folder = find_folder(name_or_folder)
    config = options.apply_to(read_config(folder))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelSpec(config.name, config.chip_px, config.training_gsd_m, config.dense is not None, size)


def read_footprint(name: str, options: RuntimeOptions) -> Footprint | None:
    """Memory that a checkpoint will take; see `kinds.read_footprint`. None for OpenVINO's small models."""
    folder = find_folder(name)
    if pick_runtime(folder, options) == "openvino":
        return None
    from deltavlm.model import predictor

    return predictor.read_footprint(folder, options)


def load(name_or_folder: str, options: RuntimeOptions) -> ChangeModel:
    """Load a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    if pick_runtime(find_folder(name_or_folder), options) == "openvino":
        from deltavlm.model import openvino

        return openvino.load(name_or_folder, options)
    from deltavlm.model import predictor

    return predictor.load(name_or_folder, options)


def pick_runtime(folder: Path, options: RuntimeOptions) -> str:
    """Runtime of a checkpoint folder: "torch" or "openvino".

    "auto" is OpenVINO where the folder has graphs, the device is a CPU, and no option needs torch.

    Raises: ConfigError if OpenVINO is asked for and cannot be used; InputError if torch is needed and not
        installed.
    """
    if options.runtime == "torch":
        require_torch("`runtime='torch'`")
        return "torch"
    reason = why_not_openvino(folder, options)
    if reason is None:
        return "openvino"
    if options.runtime == "openvino":
        raise ConfigError(f"`runtime='openvino'`: {reason}; use `runtime='torch'`")
    require_torch(f"without OpenVINO ({reason}), the model {folder.name}")
    return "torch"


def why_not_openvino(folder: Path, options: RuntimeOptions) -> str | None:
    """Reason why OpenVINO cannot run a checkpoint with these options; None if it can."""
    if options.device != "cpu" and not (options.device == "auto" and not has_gpu()):
        return f"it runs on a CPU, not on `device='{options.device}'`"
    if not has_graphs(folder):
        return f"{folder} has no graphs, which deltavlm weights export writes"
    config = options.apply_to(read_config(folder))
    if not config.decoding.is_plain or options.quantize or options.dtype not in ("auto", "fp32", "bf16"):
        return "it decodes greedily without a penalty, in bf16 or fp32 and not quantized"
    if find_spec("openvino") is None:
        return "the package openvino is not installed; pip install openvino"
    return None


def has_gpu() -> bool:
    """True if torch might find a GPU; without importing it, which takes seconds."""
    return find_spec("torch") is not None and (
        sys.platform == "darwin" or any(path.exists() for path in NVIDIA)
    )
