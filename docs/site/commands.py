"""Generator of a Markdown page per command from the command line itself: purpose, arguments, options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, not an installed copy

from deltacli.main import app  # noqa: E402

__all__ = ["command_pages"]


def command_pages() -> dict[str, str]:
    """Markdown pages by the words of each command, such as `weights fetch`."""
    commands = _commands((), typer.main.get_command(app))
    return {" ".join(words): _page(words, command) for words, command in commands}


def _commands(words: tuple[str, ...], group: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield (*words, name), command
            yield from _commands((*words, name), command)


def _page(words: tuple[str, ...], command: Any) -> str:
    lines = [f"# deltavlm {' '.join(words)}", "", _plain_text(command.help or "")]
    subcommands = [name for name, sub in getattr(command, "commands", {}).items() if not sub.hidden]
    if subcommands:
        links = [f"[`{name}`]({'-'.join([*words, name])}.md)" for name in subcommands]
        return "\n".join([*lines, "", "Commands: " + ", ".join(links), ""])
    parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join(
        _metavar(argument) if argument.required else f"[{_metavar(argument)}]" for argument in arguments
    )
    lines += ["", "```text", f"deltavlm {' '.join(words)} [OPTIONS] {usage}".rstrip(), "```", ""]
    if arguments:
        lines += _table("argument", [(f"`{_metavar(argument)}`", argument) for argument in arguments])
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    for panel, members in groupby(sorted(options, key=_panel), key=_panel):
        lines += [f"## {panel}", "", *_table("option", [(_flags(option), option) for option in members])]
    return "\n".join(lines)


def _panel(option: Any) -> str:
    return getattr(option, "rich_help_panel", None) or "Options"


def _metavar(argument: Any) -> str:
    return (argument.metavar or argument.name.upper()).strip("[]{}")


def _flags(option: Any) -> str:
    names = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
    if option.is_flag or not option.metavar:
        return names
    return f"{names} {_escape_pipes(option.metavar)}"


def _table(head: str, rows: list[tuple[str, Any]]) -> list[str]:
    lines = [f"| {head} | meaning | default |", "|---|---|---|"]
    for name, parameter in rows:
        value = parameter.default
        default = "" if value in (None, (), [], False) or callable(value) else f"`{value}`"
        lines.append(f"| {name} | {_escape_pipes(_plain_text(parameter.help or ''))} | {default} |")
    return [*lines, ""]


def _escape_pipes(text: str) -> str:
    return text.replace("|", "\\|")


def _plain_text(text: str) -> str:
    """Help text with its paragraphs on one line each, and without HTML."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.replace("\f", "").split("\n\n")]
    return "\n\n".join(paragraphs).replace("<", "&lt;")
