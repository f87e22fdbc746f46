"""Defaults of flags from a TOML file: a table for each command, a key for each of its long flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from deltavlm.config import suggest
from deltavlm.errors import ConfigError
from deltavlm.files import describe_read_error, read_text

MAX_BYTES = 2**20


def read_defaults(ctx: typer.Context, value: Path | None) -> Path | None:
    """Callback of --config: make the file's values the defaults of the command. Raises: ConfigError."""
    if value is None or ctx.resilient_parsing:
        return value
    try:
        tables = tomllib.loads(read_text(value, MAX_BYTES))
    except RecursionError as error:
        raise ConfigError(f"{value}: not valid TOML: nested too deeply") from error
    except OSError as error:
        raise ConfigError(describe_read_error(value, error)) from error
    except ValueError as error:  # not UTF-8, or not TOML
        takes_model = any("--heads-config" in param.opts for param in ctx.command.params)
        hint = "; give a model's configuration with --heads-config" if takes_model else ""
        raise ConfigError(f"{value}: not valid TOML: {error}{hint}") from error
    defaults = _parse_table(ctx.find_root().command, tables, str(value), "")
    commands: list[str] = []
    context: Any = ctx
    while context.parent is not None:
        commands.insert(0, context.info_name)
        context = context.parent
    for command in commands:
        defaults = defaults.get(command, {})
    ctx.default_map = defaults
    return value


def _parse_table(command: Any, table: Mapping[str, Any], file: str, name: str) -> dict[str, Any]:
    """Convert the keys of a table to parameter names of its command, and tables in it to subcommands.

    Raises: ConfigError for a key that is neither.
    """
    commands: Mapping[str, Any] = getattr(command, "commands", {})
    flags = {
        word[2:]: param
        for param in command.params
        for word in (() if commands else param.opts)
        if word.startswith("--") and word not in ("--help", "--config")
    }
    defaults: dict[str, Any] = {}
    for key, setting in table.items():
        if isinstance(setting, dict) and commands:
            if key not in commands:
                raise ConfigError(f"{file}: no command {key!r}{suggest(key, commands)}")
            defaults[key] = _parse_table(commands[key], setting, file, f"{name}.{key}".strip("."))
            continue
        word = key.replace("_", "-")
        if word not in flags:
            position = f"in [{name}]" if name else "outside of a table such as [analyze]"
            raise ConfigError(f"{file}: unknown key {key!r} {position}{suggest(word, flags)}")
        param = flags[word]
        is_repeatable = getattr(param, "multiple", False)
        if is_repeatable and not isinstance(setting, list):
            setting = [setting]  # question = "How many roads?"
        elif isinstance(setting, list) and not is_repeatable:
            setting = ",".join(map(str, setting))  # bands = [3, 2, 1]
        defaults[param.name] = setting
    return defaults
