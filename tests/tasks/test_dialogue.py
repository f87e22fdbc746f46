"""Prompt of a later turn: in the form of the published model, and never without the question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deltavlm.tasks import dialogue
from deltavlm.text_norm import normalise

words = st.lists(st.sampled_from(["road", "house", "q", "a", "new", "?"]), min_size=1, max_size=30).map(
    " ".join
)


def test_normalise_keeps_what_upstream_keeps() -> None:
    text = normalise('Q: It\'s [a-b], *new*; "road"!  1/2 (yes?)')
    assert text == "q it's [a-b], new road 1/2 yes?"
    assert len(normalise("word " * 80, 50).split()) == 50


def test_history_has_upstreams_shape() -> None:
    turns = [("Q1?", "A1."), ("Q2?", "A2.")]
    assert dialogue.prompt_with_history(turns, "Q3?") == "q q1? a a1 q q2? a a2 q q3?"
    assert dialogue.prompt_with_history([], "Has it changed?") == "q has it changed?"


@given(st.lists(st.tuples(words, words), max_size=6), words)
def test_the_oldest_turns_are_dropped_but_not_the_question(
    turns: list[tuple[str, str]], question: str
) -> None:
    """Upstream's cap of 50 words cuts the current question out of long dialogues."""
    prompt = dialogue.prompt_with_history(turns, question)
    assert prompt.endswith("q " + question)
    assert len(prompt.split()) <= max(dialogue.MAX_WORDS, len(question.split()) + 1)
    uncut = dialogue.prompt_with_history(turns, question, max_words=10_000)
    assert uncut.endswith(prompt)


def test_three_canonical_turns_fit() -> None:
    answers = ["yes", "no roads has changed, and no buildings has changed"]
    prompt = dialogue.prompt_with_history(list(zip(dialogue.TURNS, answers, strict=False)), dialogue.TURNS[2])
    assert prompt.endswith("please describe the changes of these two images in detail")
    assert len(prompt.split()) <= dialogue.MAX_WORDS
