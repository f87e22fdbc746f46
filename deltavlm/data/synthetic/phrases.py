"""Sentences about the facts of a scene: captions, answers, open questions, dialogues.

Written for this project in the style of LEVIR-CC and ChangeChat-105k. The captions of a pair say the same in
up to five ways, as LEVIR-CC's do.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltavlm.data.synthetic.facts import Facts
from deltavlm.tasks import classify, count, locate
from deltavlm.tasks import dialogue as dialogue_task
from deltavlm.tasks.text import NO_CHANGE

MIN_MENTIONED_SHARE = 0.02  # of the image; less changed ground is not mentioned beside new houses or roads
LAND = {
    "grass": "the grassland",
    "crops": "the farmland",
    "soil": "the bare land",
    "trees": "the woodland",
    "water": "the water",
    "built": "the built land",
}


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its answer, as people would write them."""

    question: str
    answer: str


def quantify(number: int, noun: str) -> str:
    """Phrase for a number: "a house", "some houses", "many houses"; captions of LEVIR-CC do not count."""
    if number == 1:
        return f"a {noun}"
    return f"some {noun}s" if number <= 5 else f"many {noun}s"


def describe_location(labels: tuple[str, ...]) -> str:
    """Phrase for cells: "in the top-left corner", "on the right", "in the center"; empty when they span rows
    and columns."""
    positions = [locate.position(label) for label in labels]
    rows, cols = {row for row, _ in positions}, {col for _, col in positions}
    row = ("at the top", "", "at the bottom")[next(iter(rows))] if len(rows) == 1 else None
    col = ("on the left", "", "on the right")[next(iter(cols))] if len(cols) == 1 else None
    if row is None and col is None:
        return ""
    if row and col:
        return f"in the {row.split()[-1]}-{col.split()[-1]} corner"
    if row == col == "":
        return "in the center"
    return row or col or ""


def captions(facts: Facts) -> tuple[str, ...]:
    """Five captions that say the same."""
    if not facts.changed:
        return NO_CHANGE
    built, roads = facts.counts["building_built"], facts.counts["road_built"]
    location = describe_location(facts.main_cells)
    suffix = f" {location}" if location else ""
    land = LAND.get(facts.replaced_cover or "", "the bare land")
    houses, verb = quantify(built, "house"), "is" if built == 1 else "are"
    road = "a road" if roads == 1 else "roads"
    sentences: list[str] = []
    if built and roads:
        sentences = [
            f"{houses} and {road} are built on {land}{suffix}",
            f"{houses} {verb} built along {road}{suffix}",
            f"{land} is replaced by {houses} and {road}{suffix}",
            f"{houses} with {road} appear{suffix}",
            f"{road} and {houses} have been built{suffix}",
        ]
    elif built:
        sentences = [
            f"{houses} {verb} built on {land}{suffix}",
            f"{houses} {'appears' if built == 1 else 'appear'}{suffix}",
            f"{houses} {'replaces' if built == 1 else 'replace'} {land}{suffix}",
            f"{houses} {'has' if built == 1 else 'have'} been built{suffix}",
            f"there {verb} {houses} built{suffix}",
        ]
    elif roads:
        verb = "is" if roads == 1 else "are"
        sentences = [
            f"{road} {verb} built{suffix}",
            f"{road} {'appears' if roads == 1 else 'appear'} on {land}{suffix}",
            f"{road} {verb} built across {land}{suffix}",
            f"{road} {'has' if roads == 1 else 'have'} been built{suffix}",
            f"there {verb} {'a new road' if roads == 1 else 'new roads'}{suffix}",
        ]
    clauses = _other_clauses(facts, MIN_MENTIONED_SHARE if sentences else 0.0)
    if not sentences:
        main_clause, *clauses = clauses
        sentences = [f"{sentence}{suffix}" for sentence in _paraphrase(main_clause)]
    tail = f" and {clauses[0]}" if clauses else ""
    return tuple(sentence + tail for sentence in sentences)


def _other_clauses(facts: Facts, min_share: float) -> list[str]:
    """Clauses about all but new houses and roads, largest first; about ground only from `min_share` on."""
    demolished, roads = facts.counts["building_removed"], facts.counts["road_removed"]
    clauses: list[tuple[float, str]] = []  # (weight, clause)
    if demolished:
        verb = "is" if demolished == 1 else "are"
        clauses.append((1.0, f"{quantify(demolished, 'house')} {verb} demolished"))
    if roads:
        clauses.append((0.9, "a road is removed" if roads == 1 else "roads are removed"))
    phrases = {
        "trees_removed": "the trees are removed",
        "trees_planted": "trees are planted",
        "water_new": "a pond appears",
        "water_gone": "a pond disappears",
        "ground_opened": "the ground is opened for construction",
        "ground_closed": "a construction site is finished",
    }
    clauses += [
        (share, phrases[kind])
        for kind, share in facts.ground_shares.items()
        # the main clause says "replaces the woodland" already
        if share >= min_share and not (kind == "trees_removed" and facts.replaced_cover == "trees")
    ]
    return [clause for _, clause in sorted(clauses, key=lambda weighted: -weighted[0])]


def _paraphrase(clause: str) -> list[str]:
    """Up to five sentences with the meaning of a clause."""
    past = clause.replace(" is ", " has been ").replace(" are ", " have been ")
    sentences = [
        clause,
        past,
        f"in the second image {clause}",
        f"the change is that {clause}",
        f"{clause} between the two dates",
    ]
    return list(dict.fromkeys(sentences))


def counts_of(facts: Facts) -> count.Counts:
    """Counts of new roads and buildings."""
    return count.Counts(facts.counts["road_built"], facts.counts["building_built"])


def count_answer(changed: bool, counts: count.Counts) -> str:
    """Answer to the count question; a pair with counts of 0 may have changed in something else."""
    if changed and counts == count.Counts(0, 0):
        return "no new roads or buildings"
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
