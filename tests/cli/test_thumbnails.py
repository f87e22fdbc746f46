"""Thumbnails of the most changed chips: only a terminal gets them."""

from __future__ import annotations

from typing import Any

import pytest

from deltacli.console import Console
from tests.cli.conftest import Run
from tests.conftest import Scene

SMALL = ("--chip-size", "32")


@pytest.mark.parametrize(
    ("terminal", "term", "words", "mark"),
    [
        (True, "xterm-kitty", [], "\x1b_G"),
        (True, "xterm-kitty", ["--thumbnails", "never"], None),
        (True, "xterm-kitty", ["--top", "0"], None),
        (True, "xterm-kitty", ["-q"], None),
        (True, "xterm", [], None),
        (True, "xterm", ["--thumbnails", "always"], "\x1bP"),
        (False, "xterm-kitty", ["--thumbnails", "always"], None),
    ],
)
def test_only_a_terminal_gets_thumbnails(
    run: Run,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    term: str,
    words: list[Any],
    mark: str | None,
) -> None:
    monkeypatch.setattr(Console, "on_terminal", property(lambda self: terminal))
    for name in ("TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", term)
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--no-progress", *SMALL, *words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert [sign for sign in ("\x1b_G", "\x1bP", "\x1b]1337") if sign in result.stderr] == [mark] * bool(mark)
