"""Random questions: patterns, answers that follow from the facts, and questions that none answers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.data import unanswerable, wording
from deltavlm.data.prompts import sample_prompts
from deltavlm.data.synthetic import make_scene, phrases, typed_questions
from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.data.synthetic.typed_questions import Topic, answer
from deltavlm.messages import UNSUPPORTED
from deltavlm.tasks.locate import LABELS


@pytest.fixture(scope="module")
def scenes() -> list[Facts]:
    made = (make_scene(seed) for seed in range(12))
    return [facts_of(scene.change, scene.instances, scene.cover) for scene in made]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_pattern_gives_each_of_its_texts(rng: np.random.Generator) -> None:
    lists = {"noun": ["road(s|)", "house"]}
    texts = {wording.sample(rng, "(a|the (old|) ){noun} x", lists) for _ in range(300)}
    articles, nouns = ("a", "the ", "the old "), ("road", "roads", "house")
    assert texts == {" ".join(f"{article}{noun} x".split()) for article in articles for noun in nouns}


def test_an_open_parenthesis_is_an_error(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="open"):
        wording.sample(rng, "a (b|c", {})


def test_every_pattern_of_the_package_can_be_drawn(rng: np.random.Generator) -> None:
    patterns = typed_questions.load_patterns()
    for (subject, _, aspect), texts in patterns.questions.items():
        things = typed_questions.lists_of(subject, "grass" if aspect == "is_cover" else "")
        for text in texts:
            assert wording.sample(rng, text, things)
    assert {unanswerable.sample_question(rng)[1] for _ in range(2000)} == {*unanswerable.KINDS}
    assert all(unanswerable.sample_follow_up(rng) for _ in range(500))


def test_a_typing_error_leaves_most_letters(rng: np.random.Generator) -> None:
    typed = [wording.as_typed(rng, "were new houses built") for _ in range(200)]
    assert len({*typed}) > 50
    assert sum("houses" in text for text in typed) > 120


def test_yes_no_and_their_negation_are_opposites(scenes: list[Facts]) -> None:
    """ "Is it unchanged?" is no where "Has it changed?" is yes."""
    subjects = ("change", "building", "road", "tree", "water", "ground")
    for facts, subject, event in itertools.product(scenes, subjects, ("either", "gained", "lost")):
        topic = Topic(subject, event)  # type: ignore[arg-type]
        said, negated = answer(facts, topic), answer(facts, replace(topic, aspect="not"))
        assert {said.split(",")[0], negated.split(",")[0]} == {"yes", "no"}
        happened = any(facts.counts.get(kind) or facts.ground_shares.get(kind) for kind in topic.kinds)
        assert said.startswith("yes") == happened


def test_answers_about_cells_are_those_of_the_facts(scenes: list[Facts]) -> None:
    for facts in scenes:
        for label in LABELS:
            said = answer(facts, Topic("building", "gained", "any", (label,)))
            assert said == (f"yes, {label}" if label in facts.cells["building_built"] else "no, not there")
        counted = [answer(facts, Topic("building", "gained", "count", (label,))) for label in LABELS]
        numbers = [int(text.split()[0].replace("no", "0")) for text in counted]
        assert sum(numbers) == facts.counts["building_built"]
        where = answer(facts, Topic("building", "gained", "where"))
        assert where == phrases.join_labels(facts.cells["building_built"])
        assert (answer(facts, Topic("change", aspect="where")) == "nowhere") == (not facts.changed)


def test_a_phrase_of_place_names_its_cells(rng: np.random.Generator) -> None:
    places = [typed_questions.sample_region(rng) for _ in range(300)]
    for text, labels in places:
        words = {*text.replace("-", " ").split()}
        if words & {"top", "upper"}:
            assert all(label.startswith("top") for label in labels), text
        if words & {"right"} and not words & {"hand"}:
            assert all(label.endswith("right") for label in labels), text
    assert {len(labels) for _, labels in places} == {1, 3}


def test_questions_about_trees_water_and_ground_are_answered_from_their_cells(scenes: list[Facts]) -> None:
    for facts in scenes:
        assert facts.ground_cells.keys() == facts.ground_shares.keys()
        assert all(facts.ground_cells.values())
        assert facts.changed_share >= sum(facts.ground_shares.values()) - 1e-9


def test_a_follow_up_keeps_or_changes_one_part_of_the_topic(rng: np.random.Generator) -> None:
    for _ in range(300):
        _, topic = typed_questions.sample_question(rng)
        text, later = typed_questions.sample_follow_up(rng, topic)
        assert text
        assert later.event == topic.event
        assert later.subject == topic.subject or later.aspect == topic.aspect


def test_some_prompts_cannot_be_answered_and_most_can(scenes: list[Facts], rng: np.random.Generator) -> None:
    answers = [row[1] for facts in scenes for row in sample_prompts(rng, facts, extra=20.0)[4:]]
    assert 0.1 < answers.count(UNSUPPORTED) / len(answers) < 0.25


def test_questions_typed_by_hand_are_as_many_as_told() -> None:
    path = Path(__file__).parent.parent.parent / "benchmarks" / "questions.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter((record["set"], record["answerable"]) for record in records)
    assert (counts["typed", True], counts["typed", False]) == (100, 100)
    assert (counts["second", True], counts["second", False]) == (30, 30)
    texts = Counter(tuple(record["turns"]) for record in records)
    assert max(texts.values()) == 1
