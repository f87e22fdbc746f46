"""Parsers read formatted answers and typical model output, and raise AnswerParseError for all other text."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import ask, caption, classify, count, locate
from deltavlm.tasks.base import Form
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells
from deltavlm.tasks.text import NO_CHANGE
from deltavlm.text_norm import normalise

numbers = st.integers(0, count.MAX_COUNT)
labels = st.lists(st.sampled_from(LABELS), unique=True).map(
    lambda some: tuple(sorted(some, key=LABELS.index))
)


@given(st.booleans())
def test_yes_no_round_trip(value: bool) -> None:
    assert classify.parse(classify.format_answer(value)) is value


@given(numbers, numbers)
def test_count_round_trip(roads: int, buildings: int) -> None:
    value = Counts(roads, buildings)
    assert count.parse(count.format_answer(value)) == value
    assert count.parse(normalise(count.format_answer(value))) == value
    assert count.score(value, value)["exact"] == 1


@given(labels, labels)
def test_location_round_trip(roads: tuple[str, ...], buildings: tuple[str, ...]) -> None:
    value = Cells(roads, buildings)
    assert locate.parse(locate.format_answer(value)) == value
    assert locate.parse(normalise(locate.format_answer(value))) == value


@given(st.text(min_size=1).filter(lambda text: any(char.isalnum() for char in text)))
def test_text_round_trips(text: str) -> None:
    answer = caption.format_answer(text)
    assert caption.parse(answer) == answer
    assert ask.parse(ask.format_answer(answer)) == answer
    assert caption.score(answer, [answer])["exact"] == 1


@given(st.text())
def test_any_text_is_a_value_or_an_answer_parse_error(text: str) -> None:
    for task in (caption, classify, count, locate, ask):
        with suppress(AnswerParseError):
            task.parse(text)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("yes", True),
        (" YES!", True),
        ("Yes, there is no house left", True),
        ("no", False),
        ("No.", False),
        ("the scene is the same as before .", False),
        ("no change has occurred", False),
    ],
)
def test_yes_no_forms(text: str, changed: bool) -> None:
    assert classify.parse(text) is changed


@pytest.mark.parametrize("text", ["", "north", "yesterday", "yes or no", "maybe", "a new road", "not sure"])
def test_yes_no_refuses(text: str) -> None:
    with pytest.raises(AnswerParseError):
        classify.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("there are no changes in roads or buildings", Counts(0, 0)),
        ("There are no new roads or buildings.", Counts(0, 0)),
        ("no new roads and buildings", Counts(0, 0)),
        ("no roads has changed, and no buildings has changed", Counts(0, 0)),
        ("there is no difference", Counts(0, 0)),
        ("2 new roads and 5 new buildings", Counts(2, 5)),
        ("1 new road, 12 new buildings", Counts(1, 12)),
        ("no new roads and 1 new building", Counts(0, 1)),
        ("Three roads have changed, and twenty-one buildings have changed", Counts(3, 21)),
        ("a new road and two new buildings", Counts(1, 2)),
        ("there are 2 new roads and no new buildings north of the river", Counts(2, 0)),
        ("5 new buildings and 2 new roads", Counts(2, 5)),
        ("roads: 2, buildings: 7", Counts(2, 7)),
        ("Roads: none. Buildings: nineteen.", Counts(0, 19)),
        ("4 new buildings", Counts(0, 4)),
        ("1 new road has appeared and 3 new buildings; the 3 buildings are large", Counts(1, 3)),
    ],
)
def test_count_forms(text: str, value: Counts) -> None:
    assert count.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "north",
        "several new buildings",
        "a road and some buildings",
        "northern roads and buildings",  # upstream's substring search reads the "no" of "north" as zero
        "2 new buildings and 3 buildings",
        "99999999999999999999 new roads",
        "-3 new roads",
        "2.5 new roads",
        "² new roads",
        "2 new roads and buildings",
    ],
)
def test_count_refuses(text: str) -> None:
    with pytest.raises(AnswerParseError):
        count.parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("roads [] buildings []", Cells()),
        ("roads: ['top-left'] buildings: ['center-center']", Cells(("top-left",), ("center-center",))),
        ('Roads: ["top left"], Buildings: ["Bottom_Right"]', Cells(("top-left",), ("bottom-right",))),
        ("roads [top-left, top-left] buildings [center]", Cells(("top-left",), ("center-center",))),
        ("building ['centre-left'] road []", Cells((), ("center-left",))),
        ("roads ['bottom-left', 'top-left'] buildings []", Cells(("top-left", "bottom-left"), ())),
        ("there is no difference", Cells()),
    ],
)
def test_location_forms(text: str, value: Cells) -> None:
    assert locate.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "roads []",
        "roads ['top-left' buildings ['center-center']",
        "roads ['north'] buildings []",
        "roads ['top-left'] buildings ['center-center'",
        "roads [__import__('os').getcwd()] buildings []",
        "no changes in roads, buildings ['top-left']",
    ],
)
def test_location_refuses(text: str) -> None:
    with pytest.raises(AnswerParseError):
        locate.parse(text)


def test_cells_are_counted_from_the_top_left() -> None:
    cells = [(row, col) for row in range(3) for col in range(3)]
    assert [locate.position(label) for label in LABELS] == cells


def test_location_score_counts_true_and_false_positives_and_false_negatives() -> None:
    predicted = Cells(buildings=("top-left", "top-right"))
    truth = Cells(roads=("top-left",), buildings=("top-right",))
    metrics = locate.score(predicted, truth)
    assert (metrics["building_tp"], metrics["building_fp"], metrics["building_fn"]) == (1, 1, 0)
    assert (metrics["road_tp"], metrics["road_fp"], metrics["road_fn"]) == (0, 0, 1)
    assert (metrics["building_exact"], metrics["road_exact"]) == (0, 0)


def test_count_score() -> None:
    assert count.score(Counts(1, 5), Counts(2, 3)) == {"roads_error": 1, "buildings_error": 2, "exact": 0}


@given(st.booleans(), numbers, numbers, labels, labels)
def test_answers_of_a_form_are_the_standard_answers_that_agree(
    changed: bool, roads: int, buildings: int, road_cells: tuple[str, ...], building_cells: tuple[str, ...]
) -> None:
    """Each beginning of an answer that agrees may go on; one that contradicts another is not complete."""
    described = "houses are built" if changed else "there is no difference"
    counts, cells = Counts(roads, buildings), Cells(road_cells, building_cells)
    counted, located = count.format_answer(counts), locate.format_answer(cells)
    (draft, _), form = count.TASK.agrees_with, draft_form(changed)
    agrees = counts == Counts(0, 0) or changed
    assert form.ends(counted) == agrees
    assert all(form.begins(counted[:end]) for end in range(len(counted))) or not agrees
    assert draft.prompt == count.PROMPT
    if agrees:
        assert count.form(counted, described).ends(counted) == (not changed or buildings > 0)
    form = locate.form(described, counted)
    agrees = (roads > 0) == bool(road_cells) and (buildings > 0) == bool(building_cells)
    assert form.ends(located) == agrees
    assert all(form.begins(located[:end]) for end in range(len(located))) or not agrees


def draft_form(changed: bool) -> Form:
    draft, _ = count.TASK.agrees_with
    assert draft.form is not None
    return draft.form(classify.format_answer(changed))


def test_a_denial_of_change_is_excluded_from_its_first_words() -> None:
    form = caption.form("yes", "there is no difference")
    for text in ("there", "there is", "the two scenes", "no", "almost nothing", *NO_CHANGE):
        assert not form.begins(text)
    for text in ("the", "the trees are removed", "two houses", "a road is built near the old scene"):
        assert form.begins(text)
        assert form.ends(text)
    assert not form.ends("")
    assert caption.form("yes", "there is a new pond").ends("there is a new pond")
    assert not caption.form("no", "there is a new pond").begins("there is a")
    assert all(caption.form("no", "a road is built").ends(text) for text in NO_CHANGE)


def test_the_longest_answers_fit_in_single_letters() -> None:
    """A cut answer would not keep its form: every token adds a letter at least, one more ends the text."""
    assert count.TASK.max_new_tokens > len(count.format_answer(Counts(0, 0))) + 1
    assert count.TASK.max_new_tokens > len(count.format_answer(Counts(9999, 9999))) + 1
    assert caption.TASK.max_new_tokens > max(map(len, NO_CHANGE)) + 1
