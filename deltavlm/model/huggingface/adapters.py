"""Adapters of peft for models of the Hub: loading, and a warning where one was made for another base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from deltavlm.errors import InputError, ModelError
from deltavlm.messages import first_line
from deltavlm.model.huggingface.source import (
    ADAPTER_CONFIG,
    PlannedSource,
    Reference,
    fingerprint,
    read_object,
)

logger = logging.getLogger(__name__)

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def with_adapter(model: Any, adapter: Reference, folder: Path, base: Reference, *, merge: bool) -> Any:
    """Model with an adapter of peft, merged into its weights if `merge`.

    Raises: InputError if the adapter is of another base, or of a kind that is not in the weights; ModelError
        if its files are broken.
    """
    import peft
    from peft.tuners.tuners_utils import BaseTuner
    from safetensors import SafetensorError, safe_open

    made_for, kind = _base_name(folder), _kind(folder)
    if kind not in peft.PeftType.__members__:
        raise InputError(
            f"the adapter {adapter.name} is of kind {kind or 'unknown'}, which peft"
            f" {metadata.version('peft')} does not know; pip install -U peft, or give another"
        )
    if not issubclass(peft.PEFT_TYPE_TO_TUNER_MAPPING.get(peft.PeftType[kind], object), BaseTuner):
        raise InputError(
            f"the adapter {adapter.name} is of kind {kind}, which is no part of the weights; give a LoRA"
        )
    if not merge and (kind != "LORA" or read_object(folder / ADAPTER_CONFIG).get("use_dora")):
        raise InputError(  # others compute with the weights of the layer, which are codes then
            f"the adapter {adapter.name} is no plain LoRA, which alone goes with quantized layers;"
            " omit `quantize`"
        )
    other = InputError(
        f"the adapter {adapter.name} does not fit {base.name}: it was made for another base"
        f"{f' ({made_for})' if made_for else ''}; give that one"
    )
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as stored:
            names = {*stored.keys()}
        adapted = peft.PeftModel.from_pretrained(model, folder)
    except (SafetensorError, OSError, TypeError) as error:
        raise ModelError(
            f"peft cannot load the adapter {adapter.name}: {first_line(error)}; copy or fetch it again"
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise other from error
    has_embeddings = any(part in name for name in names for part in ("embed_tokens", "lm_head"))
    # told, since peft would ask the Hub for the base's configuration to find out
    if names != {*peft.get_peft_model_state_dict(adapted, save_embedding_layers=has_embeddings)}:
        raise other
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


def warn_of_other_base(
    adapter: Reference, folder: Path, training: Mapping[str, Any], base: PlannedSource, base_folder: Path
) -> None:
    """Warn where an adapter was made for another base than that which it is given with; one of the same shape
    loads all the same.

    Folders and repositories are compared by their names, as a folder may be a copy; the base of an adapter
    that was trained here also by commit, or by the checksum of its folder.
    """
    name, made_for = base.reference.name, _base_name(folder)
    if training.get("base_fingerprint") == fingerprint([(base, base_folder)]):
        return
    trained_revision = training.get("base_revision")
    is_other = made_for and Path(made_for).name.lower() != Path(name).name.lower()
    is_changed = "base_fingerprint" in training and (base.commit is None) == (trained_revision is None)
    if is_other or is_changed:
        revision = f" at {trained_revision}" if trained_revision and not is_other else ""
        other = f"{made_for or name}{revision}" if is_other or revision else f"other weights of {name}"
        logger.warning(
            "the adapter %s was made for %s, not for this %s: answers may be worthless; give that one",
            *(adapter.name, other, name),
        )


def _base_name(folder: Path) -> str:
    """Base of an adapter, as its configuration names it; empty if it does not. Raises: ModelError."""
    return str(read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "").rstrip("/\\")


def _kind(folder: Path) -> str:
    """Kind of an adapter as peft names it, such as LORA; empty if it is not said. Raises: ModelError."""
    return str(read_object(folder / ADAPTER_CONFIG).get("peft_type") or "").upper()
