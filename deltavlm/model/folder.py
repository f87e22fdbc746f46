"""Where a checkpoint's folder is and what its numbers are; known without torch or weights."""

from __future__ import annotations

import json
from pathlib import Path

from deltavlm.config import from_mapping
from deltavlm.errors import ConfigError, InputError, ModelError
from deltavlm.model.config import DeltaVLMConfig

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
SHIPPED = Path(__file__).resolve().parent.parent / "weights"


def find_folder(name_or_folder: str) -> Path:
    """The folder of a model that ships in the package, by name, or any other by path. Raises: InputError."""
    shipped = SHIPPED / name_or_folder
    folder = shipped if (shipped / CONFIG).is_file() else Path(name_or_folder)
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in SHIPPED.glob("*/"))) or "none"
        raise InputError(
            f"no model {name_or_folder!r}; give a shipped one ({known}) or the path of a checkpoint folder"
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
