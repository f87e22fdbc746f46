"""Questions about one chip of a pair: independent of each other, or as a conversation with history.

The chip is encoded once. A conversation reaches the model in the form of its training, `q ... a ... q ...`;
the oldest turns are dropped where the prompt would be too long (`tasks.dialogue`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from typing import Any

from deltavlm.errors import OutputError, RasterError
from deltavlm.geo.features import Feature
from deltavlm.geo.grid import Chip
from deltavlm.geo.identity import address_digest
from deltavlm.geo.lonlat import lonlat_bounds, to_lonlat
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.geo.polygonize import polygonize_chip
from deltavlm.model.interface import ChangeModel
from deltavlm.pipeline.answers import (
    Answer,
    in_words_of_task,
    phrasebook_of,
    question_of,
    read_answer,
    with_history,
)
from deltavlm.pipeline.engine import context_of
from deltavlm.pipeline.evidence import evidence_of, mask_model
from deltavlm.tasks.locate import LABELS, Cells, position
from deltavlm.tasks.questions import QuestionSpec, question_spec
from deltavlm.tasks.text import says_unsupported

__all__ = [
    "Conversation",
    "EncodedChip",
    "answer_features",
    "answer_record",
    "answers",
    "chip_record",
    "encode_chip",
    "questions_of",
]


@dataclass(frozen=True, slots=True)
class EncodedChip:
    """Pixels of a chip, and what `ChangeModel.encode` made of them."""

    pixels: ChipPixels
    encoded: Any

    @property
    def chip(self) -> Chip:
        """Window and position of the chip."""
        return self.pixels.chip


def encode_chip(reader: PairReader, model: ChangeModel, chip: Chip) -> EncodedChip:
    """Read and encode a chip. Raises: RasterError when it cannot be read or holds no data."""
    pixels = reader.read(chip)
    if pixels.valid_fraction == 0:
        raise RasterError(f"chip {chip.chip_id}: has no pixel with data on both dates; ask about another one")
    return EncodedChip(pixels, model.encode(pixels.before[None], pixels.after[None], [context_of(reader)]))


def questions_of(
    texts: Sequence[str], *, one_per_task: bool = True, any_words: bool = False
) -> tuple[QuestionSpec, ...]:
    """Make questions of plain text, named `question`, `question_2` and so on.

    A text that means a standard question becomes that task, in its standard words, or with `any_words` in
    its own; see `question_spec`. With `one_per_task`, as in a question set, a second one is open, with the
    same words.
    """
    specs: list[QuestionSpec] = []
    for number, text in enumerate(texts, start=1):
        name = "question" if number == 1 else f"question_{number}"
        spec = question_spec(name, text, any_words=any_words)
        if one_per_task and any(spec.task == earlier.task for earlier in specs):
            spec = QuestionSpec(spec.name, "open", spec.prompt)
        specs.append(spec)
    return tuple(specs)


def answers(model: ChangeModel, chip: EncodedChip, questions: Sequence[QuestionSpec]) -> list[Answer]:
    """Answer each question independently of the others."""
    book = phrasebook_of(model)
    replies = model.answer_rows(chip.encoded, [(0, question_of(spec, book=book)) for spec in questions])
    return [
        read_answer(spec, in_words_of_task(spec, reply, book))
        for spec, reply in zip(questions, replies, strict=True)
    ]


def answer_record(
    reader: PairReader, model: ChangeModel, chip: EncodedChip, spec: QuestionSpec, answer: Answer, text: str
) -> dict[str, Any]:
    """JSON object of a question and its answer, with the chip and the model; `text` is the question as it was
    typed."""
    value = answer.value
    return {
        "question": text,
        "asked": question_of(spec, book=phrasebook_of(model)).prompt,
        "answer": answer.text,
        "status": answer.status,
        "task": answer.task,
        "value": asdict(value) if is_dataclass(value) and not isinstance(value, type) else value,
        "score": answer.score,
        **chip_record(reader, chip),
        "model": model.label,
        **_evidence_record(model, chip),
    }


def _evidence_record(model: ChangeModel, chip: EncodedChip) -> dict[str, Any]:
    """Member `evidence` of a record: the evidence model, and its answers; empty without one."""
    evidence = evidence_of(chip.encoded)
    return {} if not evidence else {"evidence": {"model": mask_model(model).label, **evidence[0].as_dict()}}


def chip_record(reader: PairReader, chip: EncodedChip) -> dict[str, Any]:
    """JSON object of a chip: window in pixels, bounds (west, south, east, north in lon/lat; west > east over
    180 degrees; None without a CRS), shares of pixels with data and under clouds, and the images."""
    bounds = None
    if reader.geobox.crs is not None:
        with suppress(OutputError):
            shape = to_lonlat(reader.geobox.crs)(chip.chip.footprint)
            bounds = None if shape.is_empty else list(lonlat_bounds(shape))
    before, after = (view.source.name for view in reader.views)
    return {
        "window": {**chip.chip.window._asdict(), "size": chip.chip.size},
        "bounds": bounds,
        "valid_fraction": chip.pixels.valid_fraction,
        "cloud_share": chip.pixels.cloud_share,
        "gsd_m": reader.gsd_m,
        "before": before,
        "after": after,
    }


def answer_features(
    model: ChangeModel, chip: EncodedChip, turns: Sequence[tuple[str, Answer]]
) -> Iterator[Feature]:
    """Features of answers: the window with each question and answer, the cells that answers name, and the
    polygons of the model's change mask, if it has one."""
    for question, answer in turns:
        columns = {
            "question": question,
            "answer": answer.text,
            "status": answer.status,
            "score": answer.score,
            "model": model.label,
        }
        yield Feature(chip.chip.footprint, {"kind": "window", **columns})
        for class_name, label in _named_cells(answer):
            cell = chip.chip.cell(*position(label))
            if not cell.is_empty:
                yield Feature(cell, {"kind": "cell", "class": class_name, "cell": label, **columns})
    masks = model.masks(chip.encoded)
    if masks is not None:
        for value, polygon in polygonize_chip(masks.labels[0], chip.chip):
            yield Feature(polygon, {"kind": "mask", "class": masks.classes[value], "model": model.label})


def _named_cells(answer: Answer) -> list[tuple[str | None, str]]:
    """Cells that an answer names, with their class; None in an answer that is only a list of cells."""
    if isinstance(answer.value, Cells):
        labels = (("road", answer.value.roads), ("building", answer.value.buildings))
        return [(class_name, label) for class_name, cells in labels for label in cells]
    words = [word.strip() for word in answer.text.split(",")]
    return [(None, word) for word in words] if set(words) <= {*LABELS} else []


@dataclass
class Conversation:
    """Turns about one chip; at another chip the history starts over."""

    reader: PairReader
    model: ChangeModel
    chip: EncodedChip
    turns: list[tuple[str, str]] = field(default_factory=list)  # question and answer
    records: list[dict[str, Any]] = field(default_factory=list)  # turns about all chips

    @cached_property
    def images(self) -> dict[str, Any]:
        """What the images are known by when the conversation is resumed: a digest of their addresses, with
        its random key, and size and time of the files."""
        key = secrets.token_bytes(16)
        locations = [view.source.location for view in self.reader.views]
        files = [list(map(dict, known.values())) for known in self.reader.files]
        return {"key": key.hex(), "address": address_digest(key, *locations), "files": files}

    def ask(self, question: str) -> dict[str, Any]:
        """Answer a question and return the record; one that fails or is interrupted leaves no trace.

        An open question has the turns so far as its history, and so has every question to a model that
        follows instructions, which is asked as it was typed. A standard question is complete in itself, and
        is asked alone, as `analyze` and `ask` do, so that its answer is theirs. Turns that the model was not
        taught to answer are no history, and a question that refers to one is not answered either.
        """
        book = phrasebook_of(self.model)
        spec = question_spec("question", question, any_words=book.any_words)
        prompted = question_of(spec, book=book)
        history = [turn for turn in self.turns if not says_unsupported(turn[1])]
        if history and (book.any_words or spec.task == "open"):
            prompted = replace(
                with_history(prompted, history, book), after_answer=not says_unsupported(self.turns[-1][1])
            )
        (reply,) = self.model.answer_rows(self.chip.encoded, [(0, prompted)])
        answer = read_answer(spec, in_words_of_task(spec, reply, book))
        record = answer_record(self.reader, self.model, self.chip, spec, answer, question)
        record["images"] = self.images
        self.turns.append((question, answer.text))
        self.records.append(record)
        return record

    def go_to(self, chip: Chip) -> None:
        """Encode another chip and clear the history."""
        self.chip = encode_chip(self.reader, self.model, chip)
        self.turns = []
