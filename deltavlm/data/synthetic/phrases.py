"""Sentences about the facts of a scene: captions, answers, open questions, dialogues.

Written for this project, with what LEVIR-CC and ChangeChat-105k ask for: what changed, how many, where, along
what, and what was there. No sentence of LEVIR-CC is copied but the five that say "no change", by which its
evaluation knows unchanged pairs. The captions of a pair say the same in up to five ways, as LEVIR-CC's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltavlm.data.synthetic.facts import Facts
from deltavlm.tasks import classify, count, locate
from deltavlm.tasks import dialogue as dialogue_task
from deltavlm.tasks.caption import quantify
from deltavlm.tasks.text import NO_CHANGE

MIN_MENTIONED_SHARE = 0.02  # of the image; less changed ground is not mentioned beside new houses or roads
MAX_THINGS = 3  # that a caption names: houses, roads, and what else changed
LAND = {
    "grass": "the grass",
    "crops": "the farmland",
    "soil": "the bare land",
    "trees": "the trees",
    "water": "the water",
    "built": "the paved land",
}
_OPEN_LAND = ("grass", "crops", "soil")  # what something is built "on"
_OTHER_WORDS = {"two": "some", "several": "some", "many": "a lot of"}  # for numbers, in the last caption
_GROUND: Mapping[str, tuple[str, ...]] = {  # statements about ground in several wordings, the plain one first
    "trees_removed": (
        "the trees are removed",
        "the trees are cut down",
        "the trees have been removed",
        "the trees are cleared",
        "the trees disappear",
    ),
    "trees_planted": ("trees are planted", "new trees appear", "trees have been planted"),
    "water_new": ("a pond appears", "there is a new pond", "a pond has been dug"),
    "water_gone": ("a pond disappears", "the pond is filled", "a pond has been drained"),
    "ground_opened": (
        "the land is cleared for construction",
        "the land is opened for construction",
        "the land has been prepared for construction",
    ),
    "ground_closed": (
        "a construction site is finished",
        "the construction site is gone",
        "a construction site has been finished",
    ),
}


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its answer, as people would write them."""

    question: str
    answer: str


def describe_location(labels: tuple[str, ...]) -> str:
    """Phrase for main cells: "in the top left corner", "on the right", "in the middle"; empty when they span
    rows and columns.

    >>> describe_location(("top-left",)), describe_location(("top-left", "top-center", "top-right"))
    ('in the top left corner', 'at the top')
    >>> describe_location(("center-center",)), describe_location(())
    ('in the middle', '')
    """
    positions = [locate.position(label) for label in labels]
    rows, cols = {row for row, _ in positions}, {col for _, col in positions}
    row = ("top", "middle", "bottom")[next(iter(rows))] if len(rows) == 1 else ""
    col = ("left", "middle", "right")[next(iter(cols))] if len(cols) == 1 else ""
    if row in ("top", "bottom"):
        return f"in the {row} {col} corner" if col in ("left", "right") else f"at the {row}"
    if col in ("left", "right"):
        return f"on the {col}"
    return "in the middle" if row or col else ""


def captions(facts: Facts) -> tuple[str, ...]:
    """Five captions, each true and in other words; the first is the plain form.

    The plain form names at most MAX_THINGS: new houses and roads, then demolished ones, trees, water and
    ground, the largest first. It says how many in words, along which road and at which side of the image,
    and on which ground where neither is clear.
    """
    if not facts.changed:
        return NO_CHANGE
    statements = _other_statements(facts)
    new_kinds = (facts.counts["building_built"] > 0) + (facts.counts["road_built"] > 0)
    if new_kinds:
        sentences = _construction_sentences(facts)
    else:
        wordings, *statements = statements
        place = describe_location(facts.main_cells)
        sentences = [_join(wordings[index % len(wordings)], place) for index in range(5)]
    captions = []
    for index, sentence in enumerate(sentences):
        others = [
            wordings[index % len(wordings)]
            for wordings in statements[: MAX_THINGS - max(1, new_kinds)]
            if not (wordings == _GROUND["trees_removed"] and sentence.startswith("the trees"))
        ]
        captions.append(" and ".join([sentence, *others]))
    return tuple(captions)


def _construction_sentences(facts: Facts) -> list[str]:
    """Five sentences about new houses and roads, the plain one first."""
    built, roads = facts.counts["building_built"], facts.counts["road_built"]
    houses = [quantify(built, "large building" if facts.is_large else "house")] if built else []
    new = " and ".join(houses + ([quantify(roads, "road")] if roads else []))
    be, have, appear = ("is", "has", "appears") if built + roads == 1 else ("are", "have", "appear")
    place, land = describe_location(facts.construction_cells), LAND.get(facts.replaced_cover or "", "")
    on_land = f"on {land}" if facts.replaced_cover in _OPEN_LAND else ""
    along = "along the road" if facts.along == "road" and not roads else ""
    where = _join(along, place) or on_land
    sentences = [
        _join(new, be, "built", where),
        _join(new, appear, where),
        _join(new, have, "been built", on_land, place),
        _join(new, have, "been added", where),
        _join(_in_other_words(new), be, "constructed", where),
    ]
    if land:
        sentences[3] = _join(land, "are" if land == LAND["trees"] else "is", "replaced by", new, place)
    if houses and roads and facts.along:
        road = "a new road" if roads == 1 else "new roads"
        sentences[2] = _join(*houses, "is" if built == 1 else "are", "built along", road, place)
    return sentences


def _in_other_words(phrase: str) -> str:
    """Numbers of a phrase in other words, such as "some" for "several"."""
    return " ".join(_OTHER_WORDS.get(word, word) for word in phrase.split())


def _join(*parts: str) -> str:
    """Parts that are not empty, with a space between them."""
    return " ".join(part for part in parts if part)


def _other_statements(facts: Facts) -> list[tuple[str, ...]]:
    """Statements about all but new houses and roads, each in several wordings, the largest first; beside new
    ones about ground only from MIN_MENTIONED_SHARE on."""
    has_new = facts.counts["building_built"] + facts.counts["road_built"] > 0
    statements: list[tuple[float, tuple[str, ...]]] = []  # (weight, wordings)
    for weight, kind in ((2.0, "building"), (1.0, "road")):
        if number := facts.counts[f"{kind}_removed"]:
            is_large = kind == "building" and facts.is_large and not facts.counts["building_built"]
            noun = "large building" if is_large else "house" if kind == "building" else "road"
            gone, word = quantify(number, noun), "demolished" if kind == "building" else "removed"
            be, have = ("is", "has") if number == 1 else ("are", "have")
            wordings = (f"{gone} {be} {word}", f"{gone} {have} disappeared", f"{gone} {have} been {word}")
            statements.append((weight, wordings))
    shares = dict(facts.ground_shares)
    if facts.replaced_cover == "trees":  # under what is new, where no share counts them
        shares["trees_removed"] = max(shares.get("trees_removed", 0.0), MIN_MENTIONED_SHARE)
    statements += [
        (share, _GROUND[kind])
        for kind, share in shares.items()
        if share >= (MIN_MENTIONED_SHARE if has_new else 0.0)
    ]
    return [wordings for _, wordings in sorted(statements, key=lambda weighted: -weighted[0])]


def counts_of(facts: Facts) -> count.Counts:
    """Counts of new roads and buildings."""
    return count.Counts(facts.counts["road_built"], facts.counts["building_built"])


def count_answer(changed: bool, counts: count.Counts) -> str:
    """Answer to the count question; a pair with counts of 0 may have changed in something else."""
    if changed and counts == count.Counts(0, 0):
        return count.NONE_NEW
    return count.format_answer(counts)


def count_sentence(counts: count.Counts) -> str:
    """Answer to the second question of ChangeChat's dialogues, with its grammar."""
    roads = f"{counts.roads or 'no'} road{'' if counts.roads == 1 else 's'} has changed"
    buildings = f"{counts.buildings or 'no'} building{'' if counts.buildings == 1 else 's'} has changed"
    return f"{roads}, and {buildings}"


def cells_of(facts: Facts) -> locate.Cells:
    """Cells of changed roads and buildings."""
    return locate.Cells(facts.road_cells, facts.building_cells)


def join_labels(labels: tuple[str, ...]) -> str:
    """Labels separated by commas, or "nowhere"."""
    return ", ".join(labels) if labels else "nowhere"


def open_questions(facts: Facts) -> tuple[QuestionAnswer, ...]:
    """Open questions with the answers that follow from the facts."""
    built, roads = facts.counts["building_built"], facts.counts["road_built"]
    demolished = facts.counts["building_removed"]
    trees, water = facts.ground_shares.get("trees_removed"), facts.ground_shares.get("water_new")
    questions = [
        QuestionAnswer(
            "Are there any new buildings?",
            f"yes, {quantify(built, 'new house')}" if built else "no, there are no new buildings",
        ),
        QuestionAnswer(
            "Are there any new roads?",
            f"yes, {quantify(roads, 'new road')}" if roads else "no, there are no new roads",
        ),
        QuestionAnswer("Where are the new buildings located?", join_labels(facts.cells["building_built"])),
        QuestionAnswer("Where are the new roads located?", join_labels(facts.cells["road_built"])),
        QuestionAnswer(
            "Were any buildings demolished?",
            f"yes, {quantify(demolished, 'house')}" if demolished else "no, no building was demolished",
        ),
        QuestionAnswer(
            "Have trees been removed?",
            "yes, the trees are removed" if trees else "no, the trees are still there",
        ),
        QuestionAnswer(
            "Is there any new water?", "yes, a pond appears" if water else "no, there is no new water"
        ),
        QuestionAnswer("What is the main change between the two images?", captions(facts)[0]),
    ]
    if facts.replaced_cover:
        questions.append(
            QuestionAnswer("What was on the land before the new construction?", LAND[facts.replaced_cover])
        )
    return tuple(questions)


def dialogue(facts: Facts) -> tuple[QuestionAnswer, QuestionAnswer, QuestionAnswer]:
    """Three turns of ChangeChat's dialogues: changed or not, how many, a caption."""
    return (
        QuestionAnswer(dialogue_task.TURNS[0], classify.format_answer(facts.changed)),
        QuestionAnswer(dialogue_task.TURNS[1], count_sentence(counts_of(facts))),
        QuestionAnswer(dialogue_task.TURNS[2], captions(facts)[0]),
    )
