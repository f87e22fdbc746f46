"""Cleaning of any text to one line, and sentences that state no change."""

from __future__ import annotations

import doctest
import importlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltavlm.tasks.text import NO_CHANGE, clean, says_no_change


@given(st.text())
def test_clean_text_is_a_single_line_that_is_valid_in_every_format(text: str) -> None:
    line = clean(text)
    assert len(line.splitlines()) <= 1
    assert all(char == " " or not char.isspace() for char in line)
    assert "\x00" not in line
    assert clean(line) == line
    line.encode("utf-8")
    assert json.loads(json.dumps(line)) == line


def test_lone_surrogates_and_direction_marks_are_dropped() -> None:
    assert clean("new \ud800road\u202e daor") == "new road daor"


@pytest.mark.parametrize(
    "sentence",
    [*NO_CHANGE, "There is no difference.", "No changes have occurred", "nothing changed", "no change"],
)
def test_sentences_that_say_nothing_changed(sentence: str) -> None:
    assert says_no_change(sentence)


@pytest.mark.parametrize(
    "sentence",
    ["", "no roads were removed", "no changes but a new house", "the road has changed", "northern change"],
)
def test_sentences_that_do_not(sentence: str) -> None:
    assert not says_no_change(sentence)


@pytest.mark.parametrize("name", ["text", "caption", "classify", "count", "locate", "dialogue", "questions"])
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"deltavlm.tasks.{name}")).failed == 0
