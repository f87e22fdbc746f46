"""A question set made of class masks: the rule-based half of ChangeChat-105k's construction.

    built = build(images, masks, told)
    write_json_files(folder, built.files)

Yes/no, counts, cells and dialogues of each pair, in the released schema and wording; captions where people
wrote some. Open questions come from `ask`, where one is given (see `endpoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltavlm.data.changechat import ImagePair, training_records
from deltavlm.data.examples import Problem
from deltavlm.data.images import image_size
from deltavlm.data.levircc import PairCaptions
from deltavlm.data.masks import LEVIR_MCI, ClassMap, MaskRules, measure_mask, read_mask
from deltavlm.data.synthetic.phrases import Turn, count_answer, count_sentence
from deltavlm.errors import InputError
from deltavlm.tasks import classify, count, dialogue, locate

__all__ = ["SPLITS", "SUFFIXES", "BuildResult", "PairFacts", "build", "find_splits"]

SPLITS = ("train", "val", "test")
SUFFIXES = ("", "_binary", "_count", "_loc", "_open", "_dialog")
PICTURES = (".png", ".jpg", ".jpeg")
Counting = Callable[[int], AbstractContextManager[Callable[[int, str], None]]]


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What is known of a pair: of its mask, and what people said."""

    counts: count.Counts
    cells: locate.Cells
    captions: tuple[str, ...]  # none where there is no file of captions
    changed: bool  # as people flagged it; without captions, whether anything is counted


Ask = Callable[[str, PairFacts], Sequence[Turn]]  # of SPLIT/NAME; ValueError where there is no usable reply


@dataclass(slots=True)
class BuildResult:
    """The records by file name, the pictures they name, what was left out, and what is odd."""

    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    pairs: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def find_splits(images: Path) -> tuple[str, ...]:
    """The splits that a folder of pictures has. Raises: InputError when it has none."""
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; give the one that holds test/A and test/B")
    there = tuple(split for split in SPLITS if (images / split / "A").is_dir())
    if not there:
        raise InputError(f"{images} has no folder train/A, val/A or test/A; give the one that holds them")
    return there


def build(
    images: Path,
    masks: Path,
    told: Mapping[tuple[str, str], PairCaptions] | None = None,
    *,
    name: str = "built",
    splits: Sequence[str] | None = None,
    rules: MaskRules = MaskRules(),  # noqa: B008
    classes: ClassMap = LEVIR_MCI,
    ask: Ask | None = None,
    counting: Counting = lambda total: nullcontext(lambda done, note: None),
) -> BuildResult:
    """Records of all pairs IMAGES/SPLIT/A|B/NAME with a mask MASKS/SPLIT/label/NAME or MASKS/SPLIT/NAME.

    A pair that cannot be used is a problem and left out. `counting(pairs)` opens what is told of progress.

    Raises: InputError when there is no pair, or none that can be used; what `ask` raises, but for ValueError.
    """
    if not masks.is_dir():
        raise InputError(f"{masks} is not a folder; give the one that holds test/label, or test with masks")
    built = BuildResult()
    todo = [(split, pair) for split in splits or find_splits(images) for pair in _names(images, split)]
    if not todo:
        raise InputError(f"{images} holds no pictures {', '.join(PICTURES)}")
    stems: set[tuple[str, str]] = set()
    with counting(len(todo)) as tell:
        for done, (split, file) in enumerate(todo, start=1):
            where = f"{split}/{file}"
            try:
                stem = Path(file).stem
                if (split, stem) in stems:
                    raise InputError(f"{where}: another picture of this split is called {stem} too")
                stems.add((split, stem))
                facts = _facts(images, masks, split, file, told, rules, classes)
            except InputError as error:
                built.problems.append(Problem("image", where, str(error)))
            else:
                _add(built, name, split, file, facts, ask)
            tell(done, "")
    if not built.pairs:
        raise InputError(f"none of {len(todo)} pairs can be used; the first: {built.problems[0].message}")
    if told is not None:
        names = set(todo)
        for split, file in told.keys() - names:
            if split in {split for split, _ in names}:
                what = f"{split}/{file} has captions and no pictures"
                built.notes.append(Problem("record", f"{split}/{file}", what))
    return built


def _names(images: Path, split: str) -> list[str]:
    """File names of one date or the other."""
    folders = (images / split / "A", images / split / "B")
    return sorted(
        {
            path.name
            for folder in folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURES
        }
    )


def _facts(
    images: Path,
    masks: Path,
    split: str,
    file: str,
    told: Mapping[tuple[str, str], PairCaptions] | None,
    rules: MaskRules,
    classes: ClassMap,
) -> PairFacts:
    """Raises: InputError saying what the pair lacks."""
    labels = masks / split / "label"
    path = (labels if labels.is_dir() else masks / split) / file
    if not path.is_file():
        path = path.with_suffix(".png")  # a lossy picture may have a lossless mask
    mask = read_mask(path, classes)
    if min(mask.shape) < 3:
        raise InputError(f"{path} is {mask.shape[1]} x {mask.shape[0]} px, too small for nine cells")
    for date in "AB":
        size = image_size(images / split / date / file)
        if size != mask.shape[::-1]:
            raise InputError(
                f"{path} is {mask.shape[1]} x {mask.shape[0]} px, and {split}/{date}/{file}"
                f" {size[0]} x {size[1]}"
            )
    counts, cells = measure_mask(mask, rules)
    if told is None:
        return PairFacts(counts, cells, (), counts != count.Counts(0, 0))
    said = told.get((split, file))
    if said is None:
        raise InputError(f"{split}/{file} has no captions")
    return PairFacts(counts, cells, said.captions, said.changed)


def _add(built: BuildResult, name: str, split: str, file: str, facts: PairFacts, ask: Ask | None) -> None:
    """The records of a pair."""
    paths = (f"{split}/A/{file}", f"{split}/B/{file}")
    pair = ImagePair(Path(file).stem, paths, facts.changed)
    talk = [
        (dialogue.TURNS[0], classify.format_answer(facts.changed)),
        (dialogue.TURNS[1], count_sentence(facts.counts)),
    ]
    if facts.captions:
        talk.append((dialogue.TURNS[2], facts.captions[0]))
    every = {
        "_binary": [
            pair.conversation_record("binary", [(classify.PROMPT, classify.format_answer(facts.changed))])
        ],
        "_count": [
            pair.conversation_record("count", [(count.PROMPT, count_answer(facts.changed, facts.counts))])
        ],
        "_loc": [pair.conversation_record("loc", [(locate.PROMPT, locate.format_answer(facts.cells))])],
        "_dialog": [pair.conversation_record("dialog", talk)],
    }
    if facts.captions:
        every[""] = [pair.caption_record(facts.captions)]
    if ask is not None:
        try:
            turns = ask(f"{split}/{file}", facts)
        except ValueError as error:
            built.problems.append(Problem("record", f"{split}/{file}", f"no open questions: {error}"))
            turns = ()
        every["_open"] = [
            pair.conversation_record(f"open_{index}", [(turn.question, turn.answer)])
            for index, turn in enumerate(turns)
        ]
    if split == "train":
        every = {"": training_records(pair, every)}
    for suffix, part in every.items():
        built.files.setdefault(f"{name}_{split}{suffix}.json", []).extend(part)
    built.pictures += paths
    built.pairs += 1
    if not facts.changed and facts.counts != count.Counts(0, 0):
        what = f"{split}/{file} is flagged as unchanged, and its mask has {count.format_answer(facts.counts)}"
        built.notes.append(Problem("reference", f"{split}/{file}", what))
