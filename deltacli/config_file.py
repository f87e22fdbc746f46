"""Defaults from a TOML file: a table for each command, a key for each of its long flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from deltavlm.config import suggest
from deltavlm.errors import ConfigError


def read_defaults(ctx: typer.Context, value: Path | None) -> Path | None:
    """Defaults from a TOML file: a table for each command, a key for each of its long flags."""
    if value is None or ctx.resilient_parsing:
        return value
    try:
        tables = tomllib.loads(value.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {value}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{value}: not valid TOML: {error}") from error
    defaults = _defaults_of(ctx.find_root().command, tables, str(value), "")
    names: list[str] = []
    context: Any = ctx
    while context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    for name in names:
        defaults = defaults.get(name, {})
    ctx.default_map = defaults
    return value


def _defaults_of(command: Any, keys: Mapping[str, Any], file: str, table: str) -> dict[str, Any]:
    """Keys of a table as parameters of its command, tables inside it as its commands. Raises: ConfigError."""
    commands: Mapping[str, Any] = getattr(command, "commands", {})
    flags = {
        word[2:]: param.name
        for param in command.params
        for word in (() if commands else param.opts)
        if word.startswith("--") and word not in ("--help", "--config")
    }
    defaults: dict[str, Any] = {}
    for key, setting in keys.items():
        if isinstance(setting, dict) and commands:
            if key not in commands:
                raise ConfigError(f"{file}: no command {key!r}{suggest(key, commands)}")
            defaults[key] = _defaults_of(commands[key], setting, file, f"{table}.{key}".strip("."))
            continue
        word = key.replace("_", "-")
        if word not in flags:
            place = f"in [{table}]" if table else "outside of a table such as [analyze]"
            raise ConfigError(f"{file}: unknown key {key!r} {place}{suggest(word, flags)}")
        if isinstance(setting, list) and word != "gdal-config":
            setting = ",".join(map(str, setting))  # bands = [3, 2, 1]
        defaults[flags[word]] = setting
    return defaults
