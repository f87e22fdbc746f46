"""One picture of a pair and what is said about it: a question of one's own, or a conversation.

The pictures are encoded once. A conversation goes to the model as it was trained to read one,
`q ... a ... q ...`, the oldest turns dropped first where all do not fit (`tasks.dialogue`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from deltavlm.errors import InputError, OutputError, RasterError
from deltavlm.geo.chips import chip_of_window
from deltavlm.geo.features import Feature
from deltavlm.geo.geobox import Window
from deltavlm.geo.geojson import to_lonlat
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.geo.polygonize import polygonize_chip
from deltavlm.model.interface import ChangeModel
from deltavlm.pipeline.answers import Answer, question_of, read_answer
from deltavlm.tasks import dialogue
from deltavlm.tasks.locate import LABELS, Cells, position
from deltavlm.tasks.questions import QuestionSpec, task_of

__all__ = [
    "Conversation",
    "EncodedChip",
    "answer_features",
    "answer_record",
    "answers",
    "chip_record",
    "encode_chip",
    "questions_of",
    "read_session",
]


@dataclass(frozen=True, slots=True)
class EncodedChip:
    """A chip of a pair, as the model has seen it."""

    pixels: ChipPixels
    encoded: Any

    @property
    def chip(self) -> Chip:
        return self.pixels.chip


def encode_chip(reader: PairReader, model: ChangeModel, chip: Chip) -> EncodedChip:
    """Read and encode a chip. Raises: RasterError when it cannot be read or holds no data."""
    pixels = reader.read(chip)
    if pixels.valid_fraction == 0:
        raise RasterError(f"chip {chip.chip_id}: has no place with data on both dates; ask about another one")
    return EncodedChip(pixels, model.encode(pixels.before[None], pixels.after[None]))


def questions_of(texts: Sequence[str]) -> tuple[QuestionSpec, ...]:
    """Questions in plain words, named `question`, `question_2` and so on.

    One in a task's own words is that task's; a second one is open, for a task has one column.
    """
    specs: list[QuestionSpec] = []
    for number, text in enumerate(texts, start=1):
        task = task_of(text)
        if any(spec.task == task for spec in specs):
            task = "open"
        specs.append(QuestionSpec("question" if number == 1 else f"question_{number}", task, text))
    return tuple(specs)


def answers(model: ChangeModel, picture: EncodedChip, specs: Sequence[QuestionSpec]) -> list[Answer]:
    """An answer to each question, none of which knows of the others."""
    replies = model.answer_rows(picture.encoded, [(0, question_of(spec)) for spec in specs])
    return [read_answer(spec, reply) for spec, reply in zip(specs, replies, strict=True)]


def answer_record(
    reader: PairReader, model: ChangeModel, picture: EncodedChip, question: str, answer: Answer
) -> dict[str, Any]:
    """A question and its answer as plain values, with all that they are about."""
    value = answer.value
    return {
        "question": question,
        "answer": answer.text,
        "task": answer.task,
        "value": asdict(value) if is_dataclass(value) and not isinstance(value, type) else value,
        "score": answer.score,
        **chip_record(reader, picture),
        "model": model.label,
    }


def chip_record(reader: PairReader, picture: EncodedChip) -> dict[str, Any]:
    """Which picture: the window in pixels, its bounds (west, south, east, north; None without a CRS), the
    share of it with data, and the images."""
    chip = picture.chip
    bounds = None
    if reader.geobox.crs is not None:
        try:
            shape = to_lonlat(reader.geobox.crs)(chip.footprint)
            bounds = None if shape.is_empty else list(shape.bounds)
        except OutputError:
            pass
    before, after = (view.source.name for view in reader.views)
    return {
        "window": {**chip.window._asdict(), "size": chip.size},
        "bounds": bounds,
        "valid_fraction": picture.pixels.valid_fraction,
        "gsd_m": reader.gsd_m,
        "before": before,
        "after": after,
    }


def answer_features(
    model: ChangeModel, picture: EncodedChip, asked: Sequence[tuple[str, Answer]]
) -> Iterator[Feature]:
    """The window with each question and answer, the cells that answers name, and the changed ground that the
    model's mask shows, if it has one."""
    chip, by = picture.chip, model.label
    for question, answer in asked:
        told = {"question": question, "answer": answer.text, "score": answer.score, "model": by}
        yield Feature(chip.footprint, {"kind": "window", **told})
        for kind, label in _cells(answer):
            cell = chip.cell(*position(label))
            if not cell.is_empty:
                yield Feature(cell, {"kind": "cell", "class": kind, "cell": label, **told})
    masks = model.masks(picture.encoded)
    if masks is not None:
        for value, polygon in polygonize_chip(masks.labels[0], chip):
            yield Feature(polygon, {"kind": "mask", "class": masks.classes[value], "model": by})


def _cells(answer: Answer) -> list[tuple[str | None, str]]:
    """What an answer names: class and cell; the class is None in an answer that is nothing but cells."""
    if isinstance(answer.value, Cells):
        kinds = (("road", answer.value.roads), ("building", answer.value.buildings))
        return [(kind, label) for kind, labels in kinds for label in labels]
    named = [part.strip() for part in answer.text.split(",")]
    return [(None, label) for label in named] if set(named) <= {*LABELS} else []


@dataclass
class Conversation:
    """Turns about one picture; at another picture it begins anew."""

    reader: PairReader
    model: ChangeModel
    picture: EncodedChip
    turns: list[tuple[str, str]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)  # of all pictures

    def ask(self, question: str) -> dict[str, Any]:
        """The record of the answer; a question that fails, or is interrupted, leaves no trace."""
        spec = QuestionSpec("question", task_of(question), question)
        asked = question_of(spec)
        if self.turns:
            asked = replace(asked, prompt=dialogue.prompt_with_history(self.turns, spec.prompt))
        (reply,) = self.model.answer_rows(self.picture.encoded, [(0, asked)])
        answer = read_answer(spec, reply)
        told = answer_record(self.reader, self.model, self.picture, spec.prompt, answer)
        self.turns.append((spec.prompt, answer.text))
        self.records.append(told)
        return told

    def go_to(self, chip: Chip) -> None:
        """Look at another chip; what was said of the one before is forgotten."""
        self.picture = encode_chip(self.reader, self.model, chip)
        self.turns = []


def read_session(path: Path) -> list[dict[str, Any]]:
    """The records of a saved conversation, a line each.

    Raises: InputError naming the line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, so no saved conversation") from error
    lines, is_whole = text.split("\n"), text.endswith("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines) and not is_whole and not _is_json(line):
            break  # it was cut off while it was written
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not _is_record(told):
            raise InputError(f"{path}, line {number}: is no turn of a conversation; give what --save wrote")
        records.append(told)
    if not records:
        raise InputError(f"{path} holds no turn of a conversation")
    return records


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _is_record(told: Any) -> bool:
    if not isinstance(told, Mapping) or not isinstance(told.get("window"), Mapping):
        return False
    numbers = [told["window"].get(key) for key in (*Window._fields, "size")]
    texts = [told.get(key) for key in ("question", "answer", "before", "after", "model")]
    return all(type(one) is int for one in numbers) and all(isinstance(one, str) for one in texts)


def continued(reader: PairReader, records: Sequence[Mapping[str, Any]]) -> tuple[Chip, list[tuple[str, str]]]:
    """The chip of the last turn, and the turns about it.

    Raises: InputError when the conversation was about other images.
    """
    last = records[-1]
    for date, view in zip(("before", "after"), reader.views, strict=True):
        if last[date] != view.source.name:
            raise InputError(f"the conversation was about {last[date]}, not {view.source.name}")
    chip = chip_of_window(
        reader, Window(*(last["window"][key] for key in Window._fields)), last["window"]["size"]
    )
    turns: list[tuple[str, str]] = []
    for told in reversed(records):
        if told["window"] != last["window"]:
            break
        turns.insert(0, (told["question"], told["answer"]))
    return chip, turns
