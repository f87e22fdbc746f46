"""Vision-language models of the Hugging Face Hub, run by transformers.

    hf:OWNER/NAME[@REVISION]     repository of the Hub; without a revision its branch main
    hf:FOLDER                    model saved by `save_pretrained`, with its processor
    hf:...+ADAPTER               with an adapter of peft, a folder or OWNER/NAME[@REVISION]

Imports no torch before `load`.
"""

from __future__ import annotations

from deltavlm.extras import require_torch
from deltavlm.hub import Hub
from deltavlm.model.chat_turns import CHIP_PX
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.huggingface.source import parse, plan
from deltavlm.model.interface import ChangeModel
from deltavlm.model.kinds import ModelSpec, check_options


def read_spec(name: str, options: RuntimeOptions) -> ModelSpec:
    """Facts about a model from the names and sizes of its files; see `kinds.read_spec`.

    Asks the Hub if a file is not in its cache.
    """
    check_options("hf", options)
    hub = Hub.configure(offline=options.offline)
    size = sum(plan(reference, hub).weights_bytes for reference in parse(name) if reference is not None)
    return ModelSpec(name, CHIP_PX, None, has_masks=False, weights_bytes=size)


def load(name: str, options: RuntimeOptions) -> ChangeModel:
    """Load a model and its adapter; see `kinds.load_model`."""
    check_options("hf", options)
    require_torch(name)
    from deltavlm.model.huggingface.loading import load_chat_model

    return load_chat_model(name, options)
