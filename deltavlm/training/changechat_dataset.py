"""ChangeChat-format sets as samples: pictures from disk, a row for each turn, true answers as its history."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltavlm.data.augment import random_warp
from deltavlm.data.examples import missing_images
from deltavlm.data.images import read_image
from deltavlm.data.read import read_dataset
from deltavlm.errors import ConfigError, InputError
from deltavlm.model.predictor import resize_image
from deltavlm.scoring.inference import PairExamples, group_by_pair
from deltavlm.tasks import dialogue
from deltavlm.text_norm import normalise
from deltavlm.training.config import Phase, Records
from deltavlm.training.sampling import Sample

log = logging.getLogger(__name__)

SHOWN = 3  # missing pictures named in an error

# Words that stop being true when a picture is cut or turned.
PLACES = re.compile(
    r"\b(top|bottom|left|right|upper|lower|cent(er|re|ral)|middle|corner|edge|side|north|south|east|west)"
)
FIXED = frozenset({"location", "count"})  # tasks whose answers may stop being true


@dataclass(frozen=True, slots=True)
class Row:
    """One turn: what is asked, with what was said before it, and the answer."""

    prompt: str
    answer: str
    fixed: bool  # says where or how many: its picture is neither cut nor turned


@dataclass(frozen=True, slots=True)
class Split:
    """A set's pairs for training and those held out, and the folder of their pictures."""

    name: str
    images: Path
    training: tuple[PairExamples, ...]
    held_out: tuple[PairExamples, ...]


def read_records(name: str, records: Records, seed: int) -> Split:
    """A set of the configuration, its pictures all there.

    Raises: InputError when it cannot be read, or pictures are missing, with their paths.
    """
    try:
        data = read_dataset(records.path, records.split, records.tasks, keep_duplicates=True)
    except InputError as error:
        raise InputError(f"sets.{name}: {error}; --set sets.{name}.path=...") from error
    for kind, what in (("file", "files"), ("record", "records")):
        bad = [one for one in data.problems if one.kind == kind and "variant" not in one.message]
        if bad:
            first = f"{bad[0].location}: {bad[0].message}"
            told = f"sets.{name}: {len(bad)} {what} cannot be used, the first: {first}"
            if kind == "file":
                raise InputError(told)
            log.warning("%s; the rest is trained on, and deltavlm data check names all", told)
    cases = group_by_pair(data.examples)
    if not cases:
        raise ConfigError(
            f"sets.{name}: {records.path} has no record of the tasks {', '.join(records.tasks)}"
        )
    top = records.path if records.path.is_dir() else records.path.absolute().parent
    places = [records.images] if records.images else [top / "images", top.parent / "images"]
    images = next((folder for folder in places if folder.is_dir()), None)
    if images is None:
        raise InputError(
            f"sets.{name}: {places[0]} is no folder; give that of the pictures: sets.{name}.images"
        )
    if absent := missing_images(data.examples, images):
        told = ", ".join(str(images / problem.location) for problem in absent[:SHOWN])
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise InputError(
            f"sets.{name}: {len(absent)} pictures are missing: {told}{more}; set sets.{name}.images"
        )
    order = np.random.default_rng([seed, *name.encode()]).permutation(len(cases))
    out = [cases[at] for at in sorted(order[: records.held_out])]
    rest = [cases[at] for at in sorted(order[records.held_out :])]
    if records.weight and not rest:
        raise ConfigError(f"sets.{name}: held_out {records.held_out} leaves none of its {len(cases)} pairs")
    return Split(name, images, tuple(rest), tuple(out))


def turns_of(case: PairExamples) -> Iterator[Row]:
    """Each turn, and each of several references, as a row of its own."""
    for example in case.examples:
        past: list[tuple[str, str]] = []
        for turn in example.turns:
            prompt = dialogue.prompt_with_history(past, turn.question) if past else turn.question
            for answer in turn.answers:
                said = normalise(f"{prompt} {answer}")
                fixed = example.task in FIXED or (
                    example.task != "caption" and any(map(str.isdigit, normalise(answer)))
                )
                yield Row(prompt, answer, fixed or PLACES.search(said) is not None)
            past.append((turn.question, turn.answers[0]))


def texts(held: Split) -> list[str]:
    """Every prompt and answer, normalised: what a tokenizer is made from."""
    said = [(row.prompt, row.answer) for case in held.training for row in turns_of(case)]
    return [normalise(text) for prompt, answer in said for text in (f"q {prompt}", answer)]


class ChangeChatSource:
    """A set's pairs as samples without end, epoch after epoch, each in another order.

    In one epoch every turn comes once. A sample is a pair with up to `rows` of its turns (a phase with
    rows: 1 has one sample for each turn, as the published model was trained).
    """

    def __init__(
        self,
        cases: tuple[PairExamples, ...],
        images: Path,
        phase: Phase,
        image_px: int,
        seed: list[int],
        *,
        still: bool,
    ) -> None:
        self.cases, self.images, self.phase, self.image_px = cases, images, phase, image_px
        self.seed, self.still = seed, still  # still: the order of the file, and pictures as they are
        self.most = 1 if phase.part == "align" else phase.rows
        every = [tuple(turns_of(case)) for case in cases]
        if phase.part == "align":
            every = [
                tuple(row for row, task in zip(rows, _tasks(case), strict=True) if task == "caption")
                for case, rows in zip(cases, every, strict=True)
            ]
        self.rows = every
        self.sizes = [-(-len(rows) // self.most) for rows in every]
        if not len(self):
            raise ConfigError("a phase that aligns needs captions, and a set of it has none")
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return sum(self.sizes)

    def _epoch(self, number: int) -> tuple[list[tuple[int, int]], list[npt.NDArray[np.int64]]]:
        """(pair, piece of its turns) in the order of an epoch, and the order of every pair's turns."""
        pieces = [(pair, piece) for pair, size in enumerate(self.sizes) for piece in range(size)]
        if self.still:
            return pieces, [np.arange(len(rows)) for rows in self.rows]
        rng = np.random.default_rng([*self.seed, number])
        turns = [rng.permutation(len(rows)) for rows in self.rows]
        return [pieces[at] for at in rng.permutation(len(pieces))], turns

    def sample(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self))
        pieces, turns = self.epoch(epoch)
        pair, piece = pieces[place]
        case = self.cases[pair]
        chosen = turns[pair][piece * self.most : (piece + 1) * self.most]
        rows = [self.rows[pair][at] for at in chosen]
        before, after = (read_image(self.images / name) for name in (case.before, case.after))
        if before.shape != after.shape:
            sizes = " and ".join(f"{date.shape[2]} x {date.shape[1]}" for date in (before, after))
            raise InputError(
                f"{self.images / case.before} and {case.after} are {sizes} px; a pair has one size"
            )
        phase = self.phase
        if (phase.cut or phase.turn_deg) and not self.still and not any(row.fixed for row in rows):
            warp = random_warp(np.random.default_rng([*self.seed, 1, number]), phase.cut, phase.turn_deg)
            before, after = (warp(date.transpose(1, 2, 0)).transpose(2, 0, 1) for date in (before, after))
        if before.shape[1:] != (self.image_px, self.image_px):
            before, after = (resize_image(date, self.image_px) for date in (before, after))
        told = tuple((row.prompt, row.answer) for row in rows)
        return Sample(before, after, told, case.examples[0].changed)


def _tasks(case: PairExamples) -> Iterator[str]:
    """The task of each of `turns_of`."""
    for example in case.examples:
        for turn in example.turns:
            yield from [example.task] * len(turn.answers)
