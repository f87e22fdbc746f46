"""Shared flags: every command has them, with one meaning, and takes its defaults from a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from deltacli import options
from deltacli.console import with_flags
from deltacli.flag_groups import ChipFlags, CommonFlags, ModelFlags, OutputFlags, RasterFlags, WindowFlags
from deltacli.main import app
from tests.cli.conftest import Run, one_line
from tests.library_texts import library_texts


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


def registry() -> dict[str, tuple[str | None, list[str]]]:
    """Letter and commands of each flag in the docstring of `deltacli.options`."""
    text = re.sub(r",\n +", ", ", options.__doc__ or "")
    rows = re.findall(r"^    (?:(-\w) )?(--[\w-]+) +(.+)$", text, flags=re.MULTILINE)
    return {flag: (letter or None, commands.split(", ")) for letter, flag, commands in rows}


def test_the_registry_of_flags_is_that_of_the_app() -> None:
    by_flag: dict[str, list[str]] = {}
    letters: dict[str, set[str]] = {}
    for words, command in COMMANDS.items():
        for flags in flags_of(command).values():
            for flag in flags:
                by_flag.setdefault(flag, []).append(words)
            for letter in (flag for flag in flags if len(flag) == 2):
                letters.setdefault(letter, set()).update(flag for flag in flags if len(flag) > 2)
    table = registry()
    for flag, (_, commands) in table.items():
        assert by_flag[flag] == (list(COMMANDS) if commands == ["all"] else commands), flag
    expected = {letter: {flag} for flag, (letter, _) in table.items() if letter}
    exceptions = {"-q": {"--question"}, "-n": {"--count"}, "-b": {"--bidx"}}
    assert letters == {letter: flags | exceptions.get(letter, set()) for letter, flags in expected.items()}
    groups = (CommonFlags, ModelFlags, OutputFlags, ChipFlags, RasterFlags, WindowFlags)
    shared = {f"--{field.name.replace('_', '-')}" for group in groups for field in fields(group)}
    assert shared <= table.keys()


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_every_command_has_the_shared_flags(words: str) -> None:
    command, root = flags_of(COMMANDS[words]), flags_of(APP)
    for field in fields(CommonFlags):
        assert field.name in command, f"{words} lacks --{field.name}"
        if (words, field.name) == ("ask", "quiet"):  # -q is a question there
            assert command["quiet"] == ["--quiet"]
        else:
            assert command[field.name] == root[field.name]


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_every_command_takes_its_defaults_from_a_file(run: Run, words: str) -> None:
    """A value of the wrong kind is named as that of the flag: the file is read, and for this command."""
    table = "[" + ".".join(words.split()) + "]\n"
    Path("c.toml").write_text(table + 'verbose = "very"\n')
    required = [param for param in COMMANDS[words].params if param.required]
    arguments = [
        word
        for param in required
        for word in ([] if param.param_type_name == "argument" else [param.opts[0]]) + ["x"]
    ]
    result = run(*words.split(), *arguments, "--config", "c.toml")
    assert result.exit_code == 2
    assert "--verbose" in one_line(result)
    assert "very" in one_line(result)
    Path("c.toml").write_text(table + "no-such-flag = 1\n")
    result = run("--config", "c.toml", *words.split(), *arguments)
    assert result.exit_code == 2
    assert "unknown key 'no-such-flag'" in one_line(result)


def test_messages_of_the_library_name_flags_in_place_of_parameters() -> None:
    """Each parameter in backticks is a flag of some command."""
    text = "`overwrite=True`, `scale='per-date'`, `resume=False`, `output`, `gsd_m=0.5`; `torchrun`, `a b`"
    assert with_flags(text) == (
        "--overwrite, --scale per-date, --no-resume, -o, --gsd 0.5; `torchrun`, `a b`"
    )
    named = {match for text in library_texts() for match in re.findall(r"`[a-z][a-z0-9_]*(?:=[^`]*)?`", text)}
    assert len(named) > 50
    left = {name for name in named if with_flags(name) == name}
    assert not left


def test_variables_are_named_by_flags(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some had the name of the parameter: DELTAVLM_TRAIN_CHANGES for --set."""
    monkeypatch.setenv("DELTAVLM_TRAIN_SET", "seed=many")
    assert "many" in one_line(run("train", "train_nano.yaml", "--print-config"))


def test_a_flag_that_can_be_repeated_takes_one_value_or_many(run: Run) -> None:
    """A list became one text, and Typer refused both it and a single value."""
    for text in ('question = ["How many?", "Where?"]', 'question = "How many?"'):
        Path("c.toml").write_text(f"[ask]\n{text}\n")
        assert "nosuch.tif: no such file" in one_line(run("ask", "nosuch.tif", "b.tif", "--config", "c.toml"))
