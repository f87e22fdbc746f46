"""Parsers of the published evaluation, quirk by quirk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltavlm.errors import AnswerParseError, InputError
from deltavlm.scoring import paper
from deltavlm.tasks import count, locate
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells
from deltavlm.tasks.text import NO_CHANGE

WORDS = {"<pad>": 0, "a": 1, "house": 2, "<unk>": 9}


@pytest.mark.parametrize("roads", [0, 1, 12])
@pytest.mark.parametrize("buildings", [0, 1, 30])
def test_regular_counts_are_parsed_as_by_our_parser(roads: int, buildings: int) -> None:
    answer = count.format_answer(Counts(roads, buildings))
    assert paper.parse_count(answer) == count.parse(answer) == Counts(roads, buildings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no new roads or buildings", Counts(0, 0)),
        ("well there are no changes in roads or buildings today", Counts(0, 0)),
        ("2 new roads in the north and 3 new buildings", Counts(2, 0)),  # "north"
        ("there is nothing 5 new 6 new", Counts(0, 6)),  # "nothing"
        ("1 new road 4", Counts(1, 4)),
        ("4 renewed roads 5", Counts(4, 5)),  # "renewed"
    ],
)
def test_quirks_of_counts(text: str, expected: Counts) -> None:
    assert paper.parse_count(text) == expected


@pytest.mark.parametrize("text", ["", "2 roads", "two new roads and 3 new buildings", "9" * 5000 + " new 1"])
def test_counts_that_stop_the_original_cannot_be_parsed(text: str) -> None:
    with pytest.raises(AnswerParseError):
        paper.parse_count(text)


@pytest.mark.parametrize("cells", [Cells(), Cells(LABELS[:2], LABELS[5:]), Cells(LABELS, ())])
def test_regular_cells_are_parsed_as_by_our_parser(cells: Cells) -> None:
    answer = locate.format_answer(cells)
    assert paper.parse_cells(answer) == locate.parse(answer) == cells


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("roads ['top-left', 'top-left', 3, ('center-left',)] buildings ['x']", Cells(("top-left",), ())),
        ("buildings ['top-left'] roads  []", Cells((), ("top-left",))),
        (r"roads ['top-left', '\d'] buildings []", Cells(("top-left",), ())),
    ],
)
def test_quirks_of_cells(text: str, expected: Cells) -> None:
    assert paper.parse_cells(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "roads: ['top-left'] buildings: []",
        "roads [top-left] buildings ['top-left']",
        "roads ['top-left' buildings [",
        "roads [1 is 2] buildings []",
        f"roads [{'(' * 500}] buildings []",
        "no change has occurred",
    ],
)
def test_cells_that_stop_the_original_cannot_be_parsed(text: str) -> None:
    with pytest.raises(AnswerParseError):
        paper.parse_cells(text)


def test_only_the_five_sentences_are_no_change() -> None:
    assert not any(map(paper.changed, NO_CHANGE))
    for caption in ("no", "yes", "", "There is no difference", "there is no difference ", NO_CHANGE[0] + "."):
        assert paper.changed(caption)


def test_words_become_ids() -> None:
    assert paper.reference_ids("a . house .", WORDS) == "1 2"
    assert paper.reference_ids(" a house. ", WORDS) == "1 9"  # the stop stays on the word
    assert paper.answer_ids("a house.", WORDS) == "1 2"
    assert paper.answer_ids(" A  house .", WORDS) == "9 9 9 2 9"  # empty words are words
    assert paper.answer_ids("", WORDS) == "9"


@pytest.mark.parametrize("content", [[], {"a": 1}, {"a": "1", "<unk>": 2}, {"a": True, "<unk>": 2}])
def test_a_file_that_is_no_word_map(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="not a word map"):
        paper.read_word_map(path)
    path.write_text(json.dumps(WORDS))
    assert paper.read_word_map(path) == WORDS
