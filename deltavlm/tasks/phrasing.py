"""Phrasebooks: how each kind of model is asked the standard questions, and how it answers them.

A model names its phrasebook. Whatever the words are, the values, columns and scores are those of the task.

>>> GENERIC.phrase("count").prompt == GENERIC.phrase("location").prompt  # one question, one reply
True
>>> reply = '{"new_roads": 1, "new_buildings": 3, "road_cells": [], "building_cells": ["center"]}'
>>> GENERIC.phrase("count").read(reply), GENERIC.phrase("location").read(reply)
(Counts(roads=1, buildings=3), Cells(roads=(), buildings=('center-center',)))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import TASKS, TaskName, caption, classify, contours, count, dialogue, locate
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells
from deltavlm.tasks.questions import task_meant
from deltavlm.tasks.text import NO_CHANGE, clean

__all__ = [
    *("CELL_WORDS", "CHANGECHAT_87K", "CHANGEIMTI", "DELTAVLM", "GENERIC", "MCI", "PHRASEBOOKS"),
    *("Phrase", "Phrasebook"),
]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A standard question in the words that a kind of model understands, and the reader and writer of its
    replies."""

    prompt: str
    read: Callable[[str], Any]
    """Reply -> value of the task (str, bool, `Counts` or `Cells`). Raises: AnswerParseError."""
    write: Callable[[Mapping[TaskName, Any]], str | None]
    """Values of a pair by task -> reply, for training; None where the reply needs a value that is missing."""
    max_new_tokens: int
    schema: str = ""
    """JSON schema of the reply, for servers that can be told one; empty for plain text."""


@dataclass(frozen=True, slots=True)
class Phrasebook:
    """Standard questions in the words that a kind of model understands."""

    name: str
    phrases: Mapping[TaskName, Phrase]
    joins_history: bool
    """True if earlier turns are part of the prompt; False if the model is told them as turns."""
    agrees: bool
    """True if the model was taught the forms in which answers agree with each other (`Task.form`)."""
    reads_text: bool = True
    """False if the model knows the prompts of its phrases alone, as words of control."""
    any_words: bool = False
    """True if the model follows instructions in any words: what a person types is asked as it is."""

    def phrase(self, task: TaskName) -> Phrase:
        """Phrase of a task. Raises: KeyError for a task without a standard question."""
        return self.phrases[task]

    def other_words(self, task: TaskName) -> Phrase | None:
        """Phrase of a task for `standard_question`; None where the task's own words and forms are those."""
        return None if self.agrees else self.phrase(task)

    def task_for(self, question: str) -> TaskName | None:
        """Task whose phrase stands for a question of a model that reads no text; None for other models, and
        for questions that mean no task.

        >>> MCI.task_for("How many houses were built?"), GENERIC.task_for("How many houses were built?")
        ('count', None)
        """
        task = "open" if self.reads_text else task_meant(question)
        return task if task in self.phrases else None

    def place_history(
        self, turns: Sequence[tuple[str, str]], prompt: str
    ) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Prompt, and the (question, answer) turns before it that are not part of it, oldest first."""
        if turns and self.joins_history:
            return dialogue.prompt_with_history(turns, prompt), ()
        return prompt, tuple(turns)

    def in_words_of_task(self, task: TaskName, reply: str) -> str:
        """The reply to a standard question as DeltaVLM would write it; as it is where it cannot be read.

        >>> GENERIC.in_words_of_task("change", "Yes, two houses were built.")
        'yes'
        """
        if self.agrees:
            return reply
        try:
            return TASKS[task].format(self.phrase(task).read(reply))
        except AnswerParseError:
            return reply


_SCENE_RULES = (
    "Compare the ground only: ignore light, season, clouds, shadows, vehicles and differences in color."
)

_CHANGE = (
    f"Has anything changed on the ground between the two images? {_SCENE_RULES} "
    "Answer with one word, yes or no."
)
_CAPTION = (
    "In one sentence of at most 25 words, say what changed on the ground between the two images: what was "
    f"built, removed or altered, and where in the image. {_SCENE_RULES} If nothing changed, answer exactly: "
    "there is no difference."
)
_OBJECTS = (
    "Which roads and buildings in the second image are not in the first? Divide the image into a 3x3 grid; "
    f"its cells are {', '.join(LABELS)}. {_SCENE_RULES} Answer with JSON only, in this form: "
    '{"new_roads": 0, "new_buildings": 0, "road_cells": [], "building_cells": []}, where the numbers count '
    "the new roads and new buildings, and the lists name the cells with new, removed or altered roads and "
    "buildings."
)
_CELL_LIST = {"type": "array", "items": {"type": "string", "enum": list(LABELS)}}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": count.MAX_COUNT}
_OBJECT_KEYS = frozenset(["new_roads", "new_buildings", "road_cells", "building_cells"])
_OBJECTS_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "new_roads": _NUMBER,
            "new_buildings": _NUMBER,
            "road_cells": _CELL_LIST,
            "building_cells": _CELL_LIST,
        },
        "required": ["new_roads", "new_buildings", "road_cells", "building_cells"],
        "additionalProperties": False,
    }
)
_YES_NO = re.compile(r"\b(yes|no)\b")
_ALONE = re.compile(r"\bno\b(?!\s*[\w-])")  # not the "no" of "no houses"
_NO_CHANGE = re.compile(r"\bno (\w+ ){0,2}(change|difference)s?\b")
_NEGATED = re.compile(r"\bnot\b|n['\u2019]t\b")
_EXCEPT = re.compile(r"\b(but|except|other|apart|only|however)\b")
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")


def _read_change(reply: str) -> bool:
    """True for yes. A sentence is read too if it has only one of the two words, and that as its answer: the
    "no" of "there were no houses before" is none.

    >>> _read_change("**No.**"), _read_change("My answer is: yes"), _read_change("I see no difference")
    (False, True, False)

    Raises: AnswerParseError, also for a no beside something that was built or removed.
    """
    sentence = reply.lower()
    clauses = [clause for clause in re.split(r"[.,;:]", sentence) if not _NEGATED.search(clause)]
    is_named = any(caption.kinds_built(clause) or caption.kinds_removed(clause) for clause in clauses)
    try:
        is_changed = classify.parse(reply)
    except AnswerParseError:
        words = {*_YES_NO.findall(sentence)}
        is_denial = _NO_CHANGE.search(sentence) and not _EXCEPT.search(sentence)
        is_changed = words == {"yes"} and not _NEGATED.search(sentence)
        if not is_changed and (words != {"no"} or not (_ALONE.search(sentence) or is_denial)):
            raise
    if not is_changed and is_named:
        raise AnswerParseError(f"both no and something that was built or removed in {reply!r}")
    return is_changed


def _read_caption(reply: str) -> str:
    """The sentence without the quotes and asterisks around it. Raises: AnswerParseError."""
    return caption.parse(clean(reply).strip("\"'*` "))


def _read_object(reply: str) -> Mapping[str, Any] | None:
    """JSON object about roads and buildings in a reply, also inside other text, another object or a code
    fence; None where a reply in plain words has no brace.

    Raises: AnswerParseError where it is cut off or broken, or where there are two that differ.
    """
    text = _TRAILING_COMMA.sub("", reply)
    decoder = json.JSONDecoder(object_pairs_hook=_distinct)
    found: list[Mapping[str, Any]] = []
    start = text.find("{")
    if start < 0:
        return None
    while start >= 0:
        end = start + 1
        try:
            value, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value = {}
        if _OBJECT_KEYS & value.keys():
            found.append(value)
            end = stop
        start = text.find("{", end)
    if not found or any(value != found[0] for value in found):
        raise AnswerParseError(f"{'several JSON objects' if found else 'no whole JSON object'} in {reply!r}")
    return found[0]


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object of these members. Raises: ValueError where one has two values."""
    values = dict(pairs)
    if any(values[name] != value for name, value in pairs):
        raise ValueError("a member has two values")
    return values


def _read_counts(reply: str) -> Counts:
    """Counts of a JSON reply, or of plain words. Raises: AnswerParseError.

    >>> _read_counts('```json {"new_roads": "2", "new_buildings": 0} ```')
    Counts(roads=2, buildings=0)
    >>> _read_counts('{"new_roads": 2.0, "new_buildings": "1.0"}')
    Counts(roads=2, buildings=1)
    >>> _read_counts("one road, no buildings")
    Counts(roads=1, buildings=0)
    """
    value = _read_object(reply)
    if value is None:
        return count.parse(reply)
    return Counts(_number(value, "new_roads"), _number(value, "new_buildings"))


def _read_cells(reply: str) -> Cells:
    """Cells of a JSON reply, or of plain words. Raises: AnswerParseError.

    >>> _read_cells('{"road_cells": ["Top Left"], "building_cells": ["middle"]}')
    Cells(roads=('top-left',), buildings=('center-center',))
    """
    value = _read_object(reply)
    if value is None:
        return locate.parse(reply)
    lists = []
    for key in ("road_cells", "building_cells"):
        cells = value.get(key)
        if not isinstance(cells, list) or not all(isinstance(cell, str) for cell in cells):
            raise AnswerParseError(f"no list {key!r} in {reply!r}")
        lists.append(", ".join(cells))
    return locate.parse(f"roads [{lists[0]}] buildings [{lists[1]}]")


def _number(value: Mapping[str, Any], key: str) -> int:
    """Count as a JSON number, also 2.0, or as a string of one. Raises: AnswerParseError."""
    number = value.get(key)
    if isinstance(number, str) and re.fullmatch(r"\s*\d{1,9}(\.0*)?\s*", number):
        number = float(number)
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not 0 <= number <= count.MAX_COUNT
        or number % 1
    ):
        raise AnswerParseError(f"no whole number {key!r} from 0 to {count.MAX_COUNT} in {value!r}")
    return int(number)


def _write_caption(values: Mapping[TaskName, Any]) -> str:
    """The sentence; one that denies a change in the words that the question asks for.

    >>> _write_caption({"caption": "the two scenes seem identical"})
    'there is no difference'
    """
    sentence: str = values["caption"]
    return NO_CHANGE[0] if caption.denies_change(sentence) else caption.format_answer(sentence)


def _write_objects(values: Mapping[TaskName, Any]) -> str | None:
    """JSON of counts and cells; None if one of both is not known.

    >>> _write_objects({"count": Counts(roads=0, buildings=1), "location": Cells(buildings=("top-left",))})
    '{"new_roads": 0, "new_buildings": 1, "road_cells": [], "building_cells": ["top-left"]}'
    """
    counts, cells = values.get("count"), values.get("location")
    if counts is None or cells is None:
        return None
    return json.dumps(
        {
            "new_roads": counts.roads,
            "new_buildings": counts.buildings,
            "road_cells": cells.roads,
            "building_cells": cells.buildings,
        }
    )


def _writer(name: TaskName) -> Callable[[Mapping[TaskName, Any]], str]:
    """Writer of the value of a task as DeltaVLM words it."""
    return lambda values: TASKS[name].format(values[name])


def _read_contours(reply: str) -> Cells:
    """Cells that the polygons of a reply reach into. Raises: AnswerParseError.

    >>> _read_contours(
    ...     "The contours of the changed roads are:[], The contours of the changed buildings are:"
    ...     "[[[10,10],[40,10],[40,100],[10,100]]]."
    ... )
    Cells(roads=(), buildings=('top-left', 'center-left'))
    """
    return contours.cells_of(contours.parse(reply))


def _read_sentence(reply: str) -> str:
    """The sentence as `caption` has it: without an upper-case letter first and a full stop.

    >>> _read_sentence("Some houses are built.")
    'some houses are built'
    """
    sentence = caption.parse(reply).rstrip(" .")
    return f"{sentence[:1].lower()}{sentence[1:]}"


def _write_sentence(values: Mapping[TaskName, Any]) -> str:
    """The sentence with an upper-case letter first and a full stop.

    >>> _write_sentence({"caption": "some houses are built"})
    'Some houses are built.'
    """
    sentence = caption.format_answer(values["caption"]).rstrip(" .")
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _write_yes_no(values: Mapping[TaskName, Any]) -> str:
    return "Yes" if values["change"] else "No"


def _write_changed_counts(values: Mapping[TaskName, Any]) -> str:
    """Counts as in the dialogues of ChangeChat-87k.

    >>> _write_changed_counts({"count": Counts(roads=1, buildings=0)})
    '1 road has changed, and no buildings has changed.'
    """
    roads, buildings = (
        f"{number or 'no'} {noun}{'' if number == 1 else 's'} {'have' if number > 1 else 'has'} changed"
        for number, noun in ((values["count"].roads, "road"), (values["count"].buildings, "building"))
    )
    return f"{roads}, and {buildings}."


DELTAVLM = Phrasebook(
    "deltavlm",
    {
        name: Phrase(task.prompt, task.parse, _writer(name), task.max_new_tokens)
        for name, task in TASKS.items()
        if task.prompt
    },
    joins_history=True,
    agrees=True,
)
"""Questions of ChangeChat, which DeltaVLM was trained on."""

GENERIC = Phrasebook(
    "generic",
    {
        "caption": Phrase(_CAPTION, _read_caption, _write_caption, 80),
        "change": Phrase(_CHANGE, _read_change, _writer("change"), 8),
        "count": Phrase(_OBJECTS, _read_counts, _write_objects, 200, _OBJECTS_SCHEMA),
        "location": Phrase(_OBJECTS, _read_cells, _write_objects, 200, _OBJECTS_SCHEMA),
    },
    joins_history=False,
    agrees=False,
    any_words=True,
)
"""Questions for models that follow any instruction. Counts and cells are one question, answered in JSON."""

CELL_WORDS: Mapping[str, str] = {
    "top left corner": "top-left",
    "top": "top-center",
    "top right corner": "top-right",
    "left": "center-left",
    "center": "center-center",
    "right": "center-right",
    "lower left corner": "bottom-left",
    "lower": "bottom-center",
    "lower right corner": "bottom-right",
}
"""Cells of the grid in ChangeIMTI -> ours."""
_IN_IMAGES = "in these two images:<image> and <image>"
_NUMBER_ANSWER = re.compile(r"[0-9]{1,4}")


def _lines(reply: str) -> tuple[str, str]:
    """The lines of a reply about roads and about buildings. Raises: AnswerParseError."""
    lines = [line.strip().rstrip(".").strip() for line in reply.split("\n")]
    if len(lines) != 2:
        raise AnswerParseError(f"not two lines, of roads and of buildings: {reply!r}")
    return lines[0], lines[1]


def _read_numbers(reply: str) -> Counts:
    """Counts of two lines. Raises: AnswerParseError.

    >>> _read_numbers("1\\n12")
    Counts(roads=1, buildings=12)
    """
    lines = _lines(reply)
    if not all(_NUMBER_ANSWER.fullmatch(line) for line in lines):
        raise AnswerParseError(f"no two numbers in {reply!r}")
    return Counts(int(lines[0]), int(lines[1]))


def _read_cell_words(reply: str) -> Cells:
    """Cells of two lines. Raises: AnswerParseError.

    >>> _read_cell_words("No change\\ntop left corner,top")
    Cells(roads=(), buildings=('top-left', 'top-center'))
    """
    lists = []
    for line in _lines(reply):
        names = [] if line.lower() == "no change" else [name.strip().lower() for name in line.split(",")]
        unknown = [name for name in names if name not in CELL_WORDS]
        if unknown:
            raise AnswerParseError(f"unknown cell {unknown[0]!r} in {reply!r}")
        lists.append(", ".join(CELL_WORDS[name] for name in names))
    return locate.parse(f"roads [{lists[0]}] buildings [{lists[1]}]")


def _write_plain_sentence(values: Mapping[TaskName, Any]) -> str:
    """The sentence without full stops; one that denies a change in the words of the set.

    >>> _write_plain_sentence({"caption": "there is no difference"})
    'the scene is the same as before'
    """
    sentence: str = values["caption"]
    if caption.denies_change(sentence):
        return "the scene is the same as before"
    return caption.format_answer(sentence).replace(".", "").strip()


def _write_cell_words(values: Mapping[TaskName, Any]) -> str:
    """Two lines of cells.

    >>> _write_cell_words({"location": Cells(buildings=("top-left", "top-center"))})
    'No change\\ntop left corner,top'
    """
    words = {cell: word for word, cell in CELL_WORDS.items()}
    lists = (values["location"].roads, values["location"].buildings)
    return "\n".join(",".join(words[cell] for cell in cells) or "No change" for cells in lists)


CHANGEIMTI = Phrasebook(
    "changeimti",
    {
        "caption": Phrase(
            "<guide>Please describe the changes in <image> and <image>",
            caption.parse,
            _write_plain_sentence,
            64,
        ),
        "change": Phrase(
            f"Please check if there have been any changes to the roads or buildings {_IN_IMAGES}. "
            "Please answer yes or no.",
            classify.parse,
            lambda values: "Yes" if values["change"] else "No",
            4,
        ),
        "count": Phrase(
            "\n".join(f"How many {kind} have been changed {_IN_IMAGES}" for kind in ("roads", "buildings")),
            _read_numbers,
            lambda values: f"{values['count'].roads}\n{values['count'].buildings}",
            8,
        ),
        "location": Phrase(
            "\n".join(
                f"Please tell me where the {kind} have changed {_IN_IMAGES},"
                "if no change please output: No change."
                for kind in ("roads", "buildings")
            ),
            _read_cell_words,
            _write_cell_words,
            64,
        ),
    },
    joins_history=False,
    agrees=False,
)
"""Questions of ChangeIMTI, which ChangeVG was trained on. Each line is a question of its own, about roads or
about buildings, and its answer a line of the reply; `<guide>` is the place of the guide's caption."""

MCI = Phrasebook(
    "mci",
    {
        "caption": Phrase("caption", _read_caption, _writer("caption"), 41),
        "change": Phrase("changed", _read_change, _writer("change"), 1),
        "count": Phrase("count", count.parse, _writer("count"), 1),
        "location": Phrase("where", locate.parse, _writer("location"), 1),
    },
    joins_history=False,
    agrees=False,
    reads_text=False,
)
"""Control words of the kind mci, which reads no text: which of its outputs is asked for."""

CHANGECHAT_87K = Phrasebook(
    "changechat-87k",
    {
        "caption": Phrase(caption.PROMPT, _read_sentence, _write_sentence, 100),
        "change": Phrase(classify.PROMPT, classify.parse, _write_yes_no, 8),
        "count": Phrase(dialogue.TURNS[1], count.parse, _write_changed_counts, 100),
        "location": Phrase(contours.PROMPT, _read_contours, lambda values: None, contours.MAX_NEW_TOKENS),
    },
    joins_history=False,
    agrees=False,
)
"""Questions of ChangeChat-87k, which ChangeChat was trained on. Counts are the second turn of its dialogues,
the only counting question with fixed words; places are polygons, of which the cells are kept."""

PHRASEBOOKS: Mapping[str, Phrasebook] = {
    book.name: book for book in (DELTAVLM, GENERIC, CHANGEIMTI, MCI, CHANGECHAT_87K)
}
