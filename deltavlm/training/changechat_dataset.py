"""ChangeChat-format sets as training samples: images from disk, a question and answer for each turn."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltavlm.data.augment import random_warp
from deltavlm.data.check import unusable_pairs
from deltavlm.data.examples import Dataset
from deltavlm.data.images import read_image
from deltavlm.data.read import read_dataset
from deltavlm.errors import ConfigError, InputError
from deltavlm.messages import pluralize
from deltavlm.model.images import resize_image
from deltavlm.scoring.inference import PairExamples, group_by_pair
from deltavlm.tasks import dialogue
from deltavlm.text_norm import normalise
from deltavlm.training.config import Phase, RecordSet
from deltavlm.training.distributed import world
from deltavlm.training.sampling import Sample

log = logging.getLogger(__name__)

MIN_AUTO_PAIRS, MAX_AUTO_PAIRS, AUTO_SHARE = 10, 200, 0.2  # of `held_out: auto`
MAX_LISTED = 10  # unusable images that are logged, a line each
MANY_PAIRS = 1000  # whose check takes seconds, so that it is announced

# Words that may become untrue when an image is cropped or rotated.
POSITION_WORDS = re.compile(
    r"\b(top|bottom|left|right|upper|lower|cent(er|re|ral)|middle|corner|edge|side|north|south|east|west)"
)
FIXED_TASKS = frozenset({"location", "count"})  # their answers may become untrue


@dataclass(frozen=True, slots=True)
class TurnSample:
    """One turn of a conversation: the prompt with all turns before it, and the answer."""

    prompt: str
    answer: str
    can_warp: bool  # stays true when the images are cropped or rotated: has no position and no number


@dataclass(frozen=True, slots=True)
class Split:
    """Image pairs of a set with their examples, split into training and held-out ones."""

    name: str
    image_folder: Path
    train: tuple[PairExamples, ...]
    held_out: tuple[PairExamples, ...]


def load_split(name: str, records: RecordSet, seed: int) -> Split:
    """Read a set of the configuration, check all of its images, and split it by the seed.

    Raises:
        InputError: it cannot be read, or images cannot be used; with their paths.
        ConfigError: it has no pairs to train on.
    """
    try:
        dataset = read_dataset(records.path, records.split, records.tasks, keep_duplicates=True)
    except InputError as error:
        raise InputError(f"sets.{name}: {error}; `set=sets.{name}.path=...`") from error
    _report_problems(name, dataset)
    pairs = group_by_pair(dataset.examples)
    if not pairs:
        raise ConfigError(
            f"sets.{name}: {records.path} has no record of the tasks {', '.join(records.tasks)}"
        )
    image_folder = _image_folder(name, records)
    _check_images(name, pairs, image_folder)
    held_out_count = _held_out_count(name, records, len(pairs))
    order = np.random.default_rng([seed, *name.encode()]).permutation(len(pairs))
    held_out = [pairs[index] for index in sorted(order[:held_out_count])]
    train = [pairs[index] for index in sorted(order[held_out_count:])]
    if records.weight and not train:
        raise ConfigError(
            f"sets.{name}: held_out {records.held_out} leaves none of its "
            f"{pluralize(len(pairs), 'pair')} to train on; "
            f"set sets.{name}.held_out to a smaller number, or to auto"
        )
    flags = {pair.examples[0].changed for pair in train}
    if records.weight and len(flags) == 1:
        log.warning(
            "sets.%s: all %d training pairs are %s, so it learns one answer; add pairs of the other kind",
            *(name, len(train), "changed" if flags.pop() else "unchanged"),
        )
    return Split(name, image_folder, tuple(train), tuple(held_out))


def _held_out_count(name: str, records: RecordSet, pairs: int) -> int:
    """Number of held-out pairs. Raises: ConfigError when the set is too small for "auto"."""
    if records.held_out != "auto":
        return records.held_out
    if pairs < MIN_AUTO_PAIRS:
        raise ConfigError(
            f"sets.{name}: {records.path} has {pluralize(pairs, 'pair')}, too few to train and "
            f"validate on; use at least {MIN_AUTO_PAIRS}, or set sets.{name}.held_out=0 and validation=null"
        )
    return min(int(pairs * AUTO_SHARE), MAX_AUTO_PAIRS)


def _report_problems(name: str, dataset: Dataset) -> None:
    """Log unusable records. Raises: InputError for an unusable file."""
    for kind in ("file", "record"):
        problems = [
            problem
            for problem in dataset.problems
            if problem.kind == kind and "variant" not in problem.message
        ]
        if not problems:
            continue
        first = f"{problems[0].location}: {problems[0].message}"
        message = f"sets.{name}: {pluralize(len(problems), kind)} cannot be used, the first: {first}"
        if kind == "file":
            raise InputError(message)
        log.warning("%s; training uses the others, and `deltavlm data check` lists all", message)


def _check_images(name: str, pairs: Sequence[PairExamples], image_folder: Path) -> None:
    """Decode every image, each rank its share of the pairs, and log the first that cannot be used.

    Raises: InputError, in all ranks, when there is any.
    """
    paths = [(pair.before, pair.after) for pair in pairs]
    if len(paths) > MANY_PAIRS:
        log.info("sets.%s: checking the images of %d pairs", name, len(paths))
    problems = unusable_pairs(paths[world.rank :: world.size], image_folder)
    messages = [problem.message for rank in world.all_gather_objects(problems) for problem in rank]
    if not messages:
        return
    for message in messages[:MAX_LISTED] if len(messages) > 1 else ():
        log.warning("sets.%s: %s", name, message)
    raise InputError(
        f"sets.{name}: {pluralize(len(messages), 'image')} of {pluralize(len(paths), 'pair')} cannot be "
        f"used, the first: {messages[0]}; repair them or remove their records, or set sets.{name}.images"
    )


def _image_folder(name: str, records: RecordSet) -> Path:
    folder = records.path if records.path.is_dir() else records.path.absolute().parent
    candidates = [records.images] if records.images else [folder / "images", folder.parent / "images"]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(
        f"sets.{name}: {candidates[0]} is not a folder; set sets.{name}.images to the folder of the images"
    )


def turn_samples(pair: PairExamples) -> Iterator[TurnSample]:
    """Samples of a pair: one for each turn, and for each reference answer of it."""
    for example in pair.examples:
        history: list[tuple[str, str]] = []
        for turn in example.turns:
            prompt = dialogue.prompt_with_history(history, turn.question) if history else turn.question
            for answer in turn.answers:
                text = normalise(f"{prompt} {answer}")
                has_number = any(map(str.isdigit, normalise(answer)))
                is_fixed = example.task in FIXED_TASKS or (example.task != "caption" and has_number)
                yield TurnSample(prompt, answer, not is_fixed and POSITION_WORDS.search(text) is None)
            history.append((turn.question, turn.answers[0]))


def split_corpus(split: Split) -> list[str]:
    """Normalised prompts and answers of the training pairs, to train a tokenizer on."""
    turns = [turn for pair in split.train for turn in turn_samples(pair)]
    return [normalise(text) for turn in turns for text in (f"q {turn.prompt}", turn.answer)]


def split_questions(split: Split) -> Iterator[str]:
    """Questions of the training pairs that need no history."""
    for pair in split.train:
        for example in pair.examples:
            yield example.turns[0].question


class ChangeChatSource:
    """Infinite samples of a set's pairs, epoch by epoch; an epoch has each turn once.

    A sample is a pair with up to `rows` of its turns. With `rows: 1` each turn is a sample, as in the
    published training. `train`: each epoch in another order, augmented; else in the order of the file.
    """

    def __init__(
        self,
        pairs: Sequence[PairExamples],
        image_folder: Path,
        phase: Phase,
        image_px: int,
        seed: list[int],
        *,
        train: bool,
    ) -> None:
        self.pairs, self.image_folder, self.phase, self.image_px = pairs, image_folder, phase, image_px
        self.seed, self.train = seed, train
        self.max_turns = 1 if phase.part == "align" else phase.rows
        turns = [tuple(turn_samples(pair)) for pair in pairs]
        if phase.part == "align":
            turns = [
                tuple(turn for turn, task in zip(samples, _tasks(pair), strict=True) if task == "caption")
                for pair, samples in zip(pairs, turns, strict=True)
            ]
        self.turns = turns  # of each pair
        self.samples_per_pair = [-(-len(samples) // self.max_turns) for samples in turns]
        if not len(self):
            raise ConfigError("a phase of part align needs captions, and one of its sets has none")
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return sum(self.samples_per_pair)

    def _epoch(self, epoch: int) -> tuple[list[tuple[int, int]], list[npt.NDArray[np.int64]]]:
        """(pair, group of its turns) of each sample of an epoch, and the order of the turns of each pair."""
        samples = [
            (pair, group) for pair, count in enumerate(self.samples_per_pair) for group in range(count)
        ]
        if not self.train:
            return samples, [np.arange(len(turns)) for turns in self.turns]
        rng = np.random.default_rng([*self.seed, epoch])
        turn_orders = [rng.permutation(len(turns)) for turns in self.turns]
        return [samples[index] for index in rng.permutation(len(samples))], turn_orders

    def sample(self, index: int) -> Sample:
        epoch, position = divmod(index, len(self))
        samples, turn_orders = self.epoch(epoch)
        pair_index, group = samples[position]
        pair = self.pairs[pair_index]
        order = turn_orders[pair_index][group * self.max_turns : (group + 1) * self.max_turns]
        turns = [self.turns[pair_index][turn] for turn in order]
        before, after = (read_image(self.image_folder / name) for name in (pair.before, pair.after))
        phase = self.phase
        if self.train and (phase.cut or phase.turn_deg) and all(turn.can_warp for turn in turns):
            warp = random_warp(np.random.default_rng([*self.seed, 1, index]), phase.cut, phase.turn_deg)
            before, after = (warp(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in (before, after))
        if before.shape[1:] != (self.image_px, self.image_px):
            before, after = (resize_image(image, self.image_px) for image in (before, after))
        prompts_and_answers = tuple((turn.prompt, turn.answer) for turn in turns)
        return Sample(before, after, prompts_and_answers, pair.examples[0].changed)


def _tasks(pair: PairExamples) -> Iterator[str]:
    """Task of each of `turn_samples`."""
    for example in pair.examples:
        for turn in example.turns:
            yield from [example.task] * len(turn.answers)
