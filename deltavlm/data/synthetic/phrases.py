"""Facts in words: captions, answers, open questions and dialogues in the forms of LEVIR-CC and
ChangeChat-105k.

Our own sentences in their style. The captions of a pair say the same thing in up to five ways, as
LEVIR-CC's do.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltavlm.data.synthetic.facts import Facts
from deltavlm.tasks import classify, count, locate
from deltavlm.tasks import dialogue as talk
from deltavlm.tasks.text import NO_CHANGE

WORTH_ADDING = 0.02  # share of the picture from which changed ground is told beside new houses or roads
LAND = {
    "grass": "the grassland",
    "crops": "the farmland",
    "soil": "the bare land",
    "trees": "the woodland",
    "water": "the water",
    "built": "the built land",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer, as people would write them."""

    question: str
    answer: str


def quantify(number: int, noun: str) -> str:
    """ "a house", "some houses", "many houses": captions do not count, the count question does."""
    if number == 1:
        return f"a {noun}"
    return f"some {noun}s" if number <= 5 else f"many {noun}s"


def place(labels: tuple[str, ...]) -> str:
    """Where most of it is: "in the top-left corner", "on the right", "in the center", or nothing when it
    is everywhere."""
    spots = [locate.position(label) for label in labels]
    rows, cols = {row for row, _ in spots}, {col for _, col in spots}
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
    """Five ways to say it."""
    if not facts.changed:
        return NO_CHANGE
    built, gone = facts.counts["building_built"], facts.counts["building_removed"]
    roads, lost = facts.counts["road_built"], facts.counts["road_removed"]
    where = place(facts.where)
    spot = f" {where}" if where else ""
    land = LAND.get(facts.replaced or "", "the bare land")
    clauses: list[tuple[str, str]] = []  # (what, verb) in the order of importance
    if built:
        clauses.append((quantify(built, "house"), "is" if built == 1 else "are"))
    road = "a road" if roads == 1 else "roads"
    first: list[str] = []
    if built and roads:
        houses, verb = clauses[0]
        first = [
            f"{houses} and {road} are built on {land}{spot}",
            f"{houses} {verb} built along {road}{spot}",
            f"{land} is replaced by {houses} and {road}{spot}",
            f"{houses} with {road} appear{spot}",
            f"{road} and {houses} have been built{spot}",
        ]
    elif built:
        houses, verb = clauses[0]
        first = [
            f"{houses} {verb} built on {land}{spot}",
            f"{houses} {'appears' if built == 1 else 'appear'}{spot}",
            f"{houses} {'replaces' if built == 1 else 'replace'} {land}{spot}",
            f"{houses} {'has' if built == 1 else 'have'} been built{spot}",
            f"there {verb} {houses} built{spot}",
        ]
    elif roads:
        be = "is" if roads == 1 else "are"
        first = [
            f"{road} {be} built{spot}",
            f"{road} {'appears' if roads == 1 else 'appear'} on {land}{spot}",
            f"{road} {be} built across {land}{spot}",
            f"{road} {'has' if roads == 1 else 'have'} been built{spot}",
            f"there {be} {'a new road' if roads == 1 else 'new roads'}{spot}",
        ]
    more = _others(facts, gone, lost, WORTH_ADDING if first else 0.0)
    if not first:
        head, more = more[0], more[1:]
        first = [f"{way}{spot}" for way in _ways(head)]
    tail = f" and {more[0]}" if more else ""
    return tuple(sentence + tail for sentence in first)


def _others(facts: Facts, gone: int, lost: int, least: float) -> list[str]:
    """Everything but new houses and roads, largest first; ground from the share `least` on."""
    said: list[tuple[float, str]] = []
    if gone:
        said.append((1.0, f"{quantify(gone, 'house')} {'is' if gone == 1 else 'are'} demolished"))
    if lost:
        said.append((0.9, "a road is removed" if lost == 1 else "roads are removed"))
    phrases = {
        "trees_removed": "the trees are removed",
        "trees_planted": "trees are planted",
        "water_new": "a pond appears",
        "water_gone": "a pond disappears",
        "ground_opened": "the ground is opened for construction",
        "ground_closed": "a construction site is finished",
    }
    said += [
        (share, phrases[kind])
        for kind, share in facts.ground.items()
        if share >= least and not (kind == "trees_removed" and facts.replaced == "trees")  # said already
    ]
    return [phrase for _, phrase in sorted(said, key=lambda item: -item[0])]


def _ways(clause: str) -> list[str]:
    """A clause that stands alone, told in five ways where the language has them."""
    past = clause.replace(" is ", " has been ").replace(" are ", " have been ")
    ways = [
        clause,
        past,
        f"in the second image {clause}",
        f"the change is that {clause}",
        f"{clause} between the two dates",
    ]
    return list(dict.fromkeys(ways))


def counts_of(facts: Facts) -> count.Counts:
    return count.Counts(facts.counts["road_built"], facts.counts["building_built"])


def told_count(facts: Facts) -> str:
    return count_answer(facts.changed, counts_of(facts))


def count_answer(changed: bool, numbers: count.Counts) -> str:
    """The answer to the count question; a pair may have changed in something else than these."""
    if changed and numbers == count.Counts(0, 0):
        return "no new roads or buildings"
    return count.format_answer(numbers)


def count_sentence(numbers: count.Counts) -> str:
    """The same, as ChangeChat's dialogues say it."""
    roads = f"{numbers.roads or 'no'} road{'' if numbers.roads == 1 else 's'} has changed"
    buildings = f"{numbers.buildings or 'no'} building{'' if numbers.buildings == 1 else 's'} has changed"
    return f"{roads}, and {buildings}"


def cells_of(facts: Facts) -> locate.Cells:
    return locate.Cells(facts.road_cells, facts.building_cells)


def join_labels(labels: tuple[str, ...]) -> str:
    return ", ".join(labels) if labels else "nowhere"


def open_questions(facts: Facts) -> tuple[Turn, ...]:
    """Free questions with the answers that the facts give."""
    built, roads = facts.counts["building_built"], facts.counts["road_built"]
    gone = facts.counts["building_removed"]
    trees, water = facts.ground.get("trees_removed"), facts.ground.get("water_new")
    turns = [
        Turn(
            "Are there any new buildings?",
            f"yes, {quantify(built, 'new house')}" if built else "no, there are no new buildings",
        ),
        Turn(
            "Are there any new roads?",
            f"yes, {quantify(roads, 'new road')}" if roads else "no, there are no new roads",
        ),
        Turn("Where are the new buildings located?", join_labels(facts.cells["building_built"])),
        Turn("Where are the new roads located?", join_labels(facts.cells["road_built"])),
        Turn(
            "Were any buildings demolished?",
            f"yes, {quantify(gone, 'house')}" if gone else "no, no building was demolished",
        ),
        Turn(
            "Have trees been removed?",
            "yes, the trees are removed" if trees else "no, the trees are still there",
        ),
        Turn("Is there any new water?", "yes, a pond appears" if water else "no, there is no new water"),
        Turn("What is the main change between the two images?", captions(facts)[0]),
    ]
    if facts.replaced:
        turns.append(Turn("What was on the land before the new construction?", LAND[facts.replaced]))
    return tuple(turns)


def dialogue(facts: Facts) -> tuple[Turn, Turn, Turn]:
    """ChangeChat's three turns: changed? how many? describe it."""
    return (
        Turn(talk.TURNS[0], classify.format_answer(facts.changed)),
        Turn(talk.TURNS[1], count_sentence(counts_of(facts))),
        Turn(talk.TURNS[2], captions(facts)[0]),
    )
