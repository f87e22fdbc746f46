"""Models known to fit, from configs/models.yaml and a person's own models.yaml; none is installed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltavlm.config import from_mapping, read_yaml, shipped_config
from deltavlm.errors import ConfigError, InputError
from deltavlm.model.folder import home

__all__ = ["KnownModel", "known_models"]

FILE = "models.yaml"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Model that may be asked, as its publisher describes it."""

    name: str  # to type after --model
    size: str
    license: str
    ground: str  # ground size of a pixel that it suits
    tried: bool = False  # with its weights, by whoever wrote this down


def known_models() -> list[KnownModel]:
    """Models of the shipped list, then those of models.yaml in `home()`; a name there replaces the shipped.

    Raises: ConfigError naming file and key.
    """
    files = [shipped_config(FILE)]
    with suppress(InputError):  # no home folder
        own = home() / FILE
        files += [own] if own.exists() else []
    models = {model.name: model for path in files for model in _read(path)}
    return list(models.values())


def _read(path: Path) -> list[KnownModel]:
    entries = read_yaml(path) or []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of models, each with name, size, license and ground")
    return [
        from_mapping(KnownModel, entry, source=f"{path}, model {number}")
        for number, entry in enumerate(entries, start=1)
    ]
