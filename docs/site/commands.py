"""A page in Markdown of each command, from the program itself: what it is for, its arguments and options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # of this checkout, not of an installed copy

from deltacli.main import app  # noqa: E402

__all__ = ["command_pages"]


def command_pages() -> dict[str, str]:
    """Markdown by the words of each command, such as `weights fetch`."""
    return {
        " ".join(words): _page(words, command) for words, command in _walk((), typer.main.get_command(app))
    }


def _walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield (*words, name), below
            yield from _walk((*words, name), below)


def _page(words: tuple[str, ...], command: Any) -> str:
    lines = [f"# deltavlm {' '.join(words)}", "", _plain(command.help or "")]
    below = [name for name, one in getattr(command, "commands", {}).items() if not one.hidden]
    if below:
        links = [f"[`{name}`]({'-'.join([*words, name])}.md)" for name in below]
        return "\n".join([*lines, "", "Commands: " + ", ".join(links), ""])
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    given = [one for one in shown if one.param_type_name == "argument"]
    usage = " ".join(f"[{_metavar(one)}]" if not one.required else _metavar(one) for one in given)
    lines += ["", "```text", f"deltavlm {' '.join(words)} [OPTIONS] {usage}".rstrip(), "```", ""]
    if given:
        lines += _table("argument", [(f"`{_metavar(one)}`", one) for one in given])
    options = [one for one in shown if one.param_type_name == "option"]
    for panel, members in groupby(sorted(options, key=_panel), key=_panel):
        lines += [f"## {panel}", "", *_table("option", [(_flags(one), one) for one in members])]
    return "\n".join(lines)


def _panel(option: Any) -> str:
    return getattr(option, "rich_help_panel", None) or "Options"


def _metavar(one: Any) -> str:
    return (one.metavar or one.name.upper()).strip("[]")


def _flags(option: Any) -> str:
    names = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
    return (
        names
        if option.is_flag or not option.metavar
        else f"{names} {option.metavar.replace('|', chr(92) + '|')}"
    )


def _table(head: str, rows: list[tuple[str, Any]]) -> list[str]:
    lines = [f"| {head} | what it does | default |", "|---|---|---|"]
    for name, one in rows:
        default = "" if one.default in (None, (), [], False) or callable(one.default) else f"`{one.default}`"
        lines.append(f"| {name} | {_plain(one.help or '').replace('|', chr(92) + '|')} | {default} |")
    return [*lines, ""]


def _plain(text: str) -> str:
    """Help with the line breaks of its paragraphs, and nothing that a page would take for HTML."""
    parts = [" ".join(part.split()) for part in text.replace("\f", "").split("\n\n")]
    return "\n\n".join(parts).replace("<", "&lt;")
