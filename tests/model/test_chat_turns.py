"""Chat turns: both images in order with their dates, then what is known, then the question."""

from __future__ import annotations

from deltavlm.model.chat_turns import AFTER, BEFORE, chat_turns
from deltavlm.model.interface import PairContext, Question


def test_images_dates_evidence_and_question_in_order() -> None:
    context = PairContext("2015-06", "2024", 0.5, evidence="Another model counts 3 new buildings.")
    (turn,) = chat_turns(context, Question("change", "Has anything changed?"))
    assert turn["role"] == "user"
    assert [item.get("text", item.get("date")) for item in turn["content"]] == [
        "Two aerial or satellite images of the same place. First image, before (2015-06):",
        "before",
        "Second image, after (2024):",
        "after",
        "One pixel is 0.5 m on the ground.",
        "Another model counts 3 new buildings.",
        "Has anything changed?",
    ]


def test_what_is_not_known_is_not_said() -> None:
    (turn,) = chat_turns(PairContext(), Question("open", "Why?"))
    texts = [item["text"] for item in turn["content"] if item["type"] == "text"]
    assert texts[0].endswith("First image, before:")
    assert texts[1:] == ["Second image, after:", "Why?"]


def test_the_images_are_in_the_first_turn_of_a_conversation() -> None:
    history = (("Has anything changed?", "yes"), ("What?", "a house"))
    turns = chat_turns(PairContext(), Question("open", "Where?", history=history))
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [item for item in turns[0]["content"] if item["type"] == "image"] == [BEFORE, AFTER]
    assert all(item["type"] == "text" for turn in turns[1:] for item in turn["content"])
    assert [turn["content"][-1]["text"] for turn in turns] == [
        *("Has anything changed?", "yes", "What?", "a house", "Where?")
    ]
