"""Where a checkpoint's folder is and what its numbers are; known without torch or weights."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from deltavlm.config import from_mapping
from deltavlm.errors import ConfigError, InputError, ModelError
from deltavlm.model.config import DeltaVLMConfig

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
DENSE = "dense.safetensors"  # a mask head that was trained on top of a model that came without
SENTENCEPIECE, QUESTION_TOKENIZER = "tokenizer.model", "question_tokenizer.json"
SHIPPED = Path(__file__).resolve().parent.parent / "weights"


def home() -> Path:
    """Where models that were fetched live: $DELTAVLM_HOME, else deltavlm in the user's folder for data.

    Raises: InputError where the user has no folder, as a container's or a service's may not.
    """
    given = os.environ.get("DELTAVLM_HOME")
    if given:
        return Path(given).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(data) if data else Path.home() / ".local" / "share") / "deltavlm"
    except RuntimeError:
        raise InputError("this user has no home folder; set DELTAVLM_HOME to one for models") from None


def models() -> dict[str, Path]:
    """Folders of the models that are known by name: those fetched, and those that ship in the package."""
    places = [SHIPPED]
    with suppress(InputError):  # without a home there are those of the package
        places.insert(0, home())
    return {path.parent.name: path.parent for place in places for path in place.glob(f"*/{CONFIG}")}


def find_folder(name_or_folder: str) -> Path:
    """The folder of a model known by name, or any other by path. Raises: InputError."""
    known = models()
    folder = known.get(name_or_folder, Path(name_or_folder))
    if not folder.is_dir():
        fetch = "deltavlm weights fetch deltavlm-7b gets it, or " if name_or_folder == "deltavlm-7b" else ""
        raise InputError(
            f"no model {name_or_folder!r}; {fetch}give a known one ({', '.join(sorted(known)) or 'none'}) or "
            f"the path of a checkpoint folder"
        )
    return folder


def read_config(folder: Path) -> DeltaVLMConfig:
    """The numbers of a checkpoint. Raises: InputError where there is none, ModelError where it is broken."""
    path = folder / CONFIG
    try:
        return from_mapping(DeltaVLMConfig, json.loads(path.read_text()), where=str(path))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is not a checkpoint: it has no {CONFIG}; give a folder or a model's name"
        ) from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ModelError(f"cannot use {path}: {error}") from error
