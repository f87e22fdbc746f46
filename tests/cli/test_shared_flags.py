"""Shared flags: every command has them, with one meaning, and takes its defaults from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from deltacli.flag_groups import CommonFlags
from deltacli.main import app
from tests.cli.conftest import Run, one_line

#: commands whose shared flags are still to come
PENDING = {"weights list", "weights fetch", "weights inspect", "weights convert", "weights verify"}


def leaves(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from leaves(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


APP = typer.main.get_command(app)
COMMANDS = dict(leaves(APP))


def flags_of(command: Any) -> dict[str, list[str]]:
    """Flags by the name of their parameter."""
    return {
        param.name: [*param.opts, *param.secondary_opts]
        for param in command.params
        if param.param_type_name == "option"
    }


@pytest.mark.parametrize("words", sorted(COMMANDS.keys() - PENDING))
def test_every_command_has_the_shared_flags(words: str) -> None:
    command, root = flags_of(COMMANDS[words]), flags_of(APP)
    for field in fields(CommonFlags):
        assert field.name in command, f"{words} lacks --{field.name}"
        if (words, field.name) == ("ask", "quiet"):  # -q is a question there
            assert command["quiet"] == ["--quiet"]
        else:
            assert command[field.name] == root[field.name]


@pytest.mark.parametrize("words", sorted(COMMANDS.keys() - PENDING))
def test_every_command_takes_its_defaults_from_a_file(run: Run, words: str) -> None:
    """A value of the wrong kind is named as that of the flag: the file is read, and for this command."""
    table = "[" + ".".join(words.split()) + "]\n"
    Path("c.toml").write_text(table + 'verbose = "very"\n')
    arguments = ["x"] * sum(
        param.param_type_name == "argument" and param.required for param in COMMANDS[words].params
    )
    result = run(*words.split(), *arguments, "--config", "c.toml")
    assert result.exit_code == 2
    assert "--verbose" in one_line(result)
    assert "very" in one_line(result)
    Path("c.toml").write_text(table + "no-such-flag = 1\n")
    result = run("--config", "c.toml", *words.split(), *arguments)
    assert result.exit_code == 2
    assert "unknown key 'no-such-flag'" in one_line(result)


def test_a_flag_that_can_be_repeated_takes_one_value_or_many(run: Run) -> None:
    """A list became one text, and Typer refused both it and a single value."""
    for text in ('question = ["How many?", "Where?"]', 'question = "How many?"'):
        Path("c.toml").write_text(f"[ask]\n{text}\n")
        assert "nosuch.tif: no such file" in one_line(run("ask", "nosuch.tif", "b.tif", "--config", "c.toml"))
