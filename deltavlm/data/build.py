"""Builder of a question set from class masks and captions, like the rule-based part of ChangeChat-105k.

    sources = BuildSources(images, masks, captions)
    result = build_dataset(sources, "mine")
    SetOutput(folder, images, "mine").write(result)

Yes/no, counts, cells and dialogues of each pair come from its mask, in the schema and wording of a released
set (`layouts`); captions are those that people wrote. Open questions come from `write_questions`, e.g. a
language model (see `endpoint`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltavlm.data.changechat import NAME, Record, write_json_files
from deltavlm.data.examples import SPLITS, Problem
from deltavlm.data.images import image_size
from deltavlm.data.layouts import Layout, PairContent, files_of, records_of
from deltavlm.data.levircc import PairCaptions
from deltavlm.data.masks import (
    LEVIR_MCI,
    ClassMap,
    MaskRules,
    find_mask,
    find_polygons,
    measure_mask,
    read_mask,
)
from deltavlm.data.progress import CountProgress, no_progress
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.errors import ConfigError, InputError, OutputError
from deltavlm.files import refuse_existing, staged_folder
from deltavlm.messages import pluralize
from deltavlm.tasks import contours, count, locate

__all__ = ["BuildResult", "BuildSources", "PairFacts", "SetOutput", "build_dataset", "find_splits"]

NO_POLYGONS = contours.Contours()
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Facts about a pair: counts and cells of its mask, its captions and change flag."""

    counts: count.Counts
    cells: locate.Cells
    captions: tuple[str, ...]  # empty without a caption file
    changed: bool  # the annotators' flag; without captions, True when anything is counted
    polygons: contours.Contours = NO_POLYGONS  # of the set whose places they are


WriteQuestions = Callable[[str, PairFacts], Sequence[QuestionAnswer]]
"""(SPLIT/NAME, facts) -> open questions. Raises: ValueError where there is no usable reply."""


@dataclass(frozen=True, slots=True)
class BuildSources:
    """Inputs: images in IMAGES/SPLIT/A and B, masks in MASKS/SPLIT/label or MASKS/SPLIT, and captions; and
    how records are made of them."""

    images: Path
    masks: Path
    captions: Mapping[tuple[str, str], PairCaptions] | None = None
    rules: MaskRules = field(default_factory=MaskRules)
    classes: ClassMap = LEVIR_MCI
    layout: Layout = "changechat-105k"

    def image_names(self, split: str) -> list[str]:
        """File names of images of either date, sorted."""
        folders = (self.images / split / "A", self.images / split / "B")
        files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return sorted({path.name for path in files if path.suffix.lower() in IMAGE_SUFFIXES})

    def read_facts(self, split: str, file: str) -> PairFacts:
        """Facts about the pair of this file name. Raises: InputError when it lacks something."""
        path = find_mask(self.masks, f"{split}/A/{file}")
        mask = read_mask(path, self.classes)
        if min(mask.shape) < 3:
            raise InputError(f"{path} is {mask.shape[1]} x {mask.shape[0]} px, too small for nine cells")
        for date in "AB":
            size = image_size(self.images / split / date / file, decode=True)
            if size != mask.shape[::-1]:
                raise InputError(
                    f"{path} is {mask.shape[1]} x {mask.shape[0]} px, and {split}/{date}/{file}"
                    f" {size[0]} x {size[1]}"
                )
        counts, cells = measure_mask(mask, self.rules)
        polygons = find_polygons(mask) if self.layout == "changechat-87k" else NO_POLYGONS
        if self.captions is None:
            return PairFacts(counts, cells, (), counts != count.Counts(0, 0), polygons)
        captions = self.captions.get((split, file))
        if captions is None:
            raise InputError(f"{split}/{file} has no captions")
        return PairFacts(counts, cells, captions.captions, captions.changed, polygons)


@dataclass(slots=True)
class BuildResult:
    """Built set: records by file name, images that they name, pairs left out, and contradictions."""

    files: dict[str, list[Record]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    pairs: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def find_splits(images: Path, only: Sequence[str] | None = None) -> tuple[str, ...]:
    """Splits of a folder of images, or `only` some of them. Raises: InputError for a split without images."""
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; give the one that holds test/A and test/B")
    splits = tuple(split for split in SPLITS if (images / split / "A").is_dir())
    if not splits:
        raise InputError(f"{images} has no folder train/A, val/A or test/A; give the one that holds them")
    for split in only or ():
        if split not in splits:
            raise InputError(f"{images} has no split {split!r}; it has {', '.join(splits)}")
    return tuple(split for split in splits if only is None or split in only)


def build_dataset(
    sources: BuildSources,
    name: str = "built",
    splits: Sequence[str] | None = None,
    *,
    write_questions: WriteQuestions | None = None,
    count_progress: CountProgress = no_progress,
) -> BuildResult:
    """Build the records of all pairs; a pair that cannot be used is left out and becomes a problem.

    name: of the set, with which file names begin. splits: all of `sources.images` by default.

    Raises: InputError when there is no pair, or none that can be used; errors of `write_questions` other than
    ValueError.
    """
    if not sources.masks.is_dir():
        raise InputError(
            f"{sources.masks} is not a folder; give the one that holds test/label, or test with masks"
        )
    result = BuildResult()
    splits = splits or find_splits(sources.images)
    pairs = [(split, file) for split in splits for file in sources.image_names(split)]
    if not pairs:
        raise InputError(f"{sources.images} holds no images {', '.join(IMAGE_SUFFIXES)}")
    stems: set[tuple[str, str]] = set()
    with count_progress(len(pairs)) as update:
        for completed, (split, file) in enumerate(pairs, start=1):
            location, stem = f"{split}/{file}", Path(file).stem
            try:
                if (split, stem) in stems:
                    raise InputError(f"{location}: another image of this split is called {stem} too")
                stems.add((split, stem))
                facts = sources.read_facts(split, file)
            except InputError as error:
                result.problems.append(Problem("image", location, str(error)))
            else:
                questions = _open_questions(result, location, facts, write_questions)
                _add_pair(result, name, location, facts, questions, sources.layout)
            update(completed, "")
    if not result.pairs:
        first = result.problems[0].message
        raise InputError(f"none of {pluralize(len(pairs), 'pair')} can be used; the first: {first}")
    result.notes += _unused_captions(sources, pairs)
    return result


def _open_questions(
    result: BuildResult, location: str, facts: PairFacts, write_questions: WriteQuestions | None
) -> Sequence[QuestionAnswer] | None:
    """Open questions of a pair; none, and a problem, where there is no usable reply; None if not wanted."""
    if write_questions is None:
        return None
    try:
        return write_questions(location, facts)
    except ValueError as error:
        result.problems.append(Problem("record", location, f"no open questions: {error}"))
        return ()


def _add_pair(
    result: BuildResult,
    name: str,
    location: str,
    facts: PairFacts,
    questions: Sequence[QuestionAnswer] | None,
    layout: Layout,
) -> None:
    """Add the records of a pair, and a note when its flag contradicts its mask."""
    split, file = location.split("/", 1)
    content = PairContent(
        Path(file).stem,
        (f"{split}/A/{file}", f"{split}/B/{file}"),
        facts.changed,
        facts.counts,
        facts.cells,
        facts.polygons,
        facts.captions,
        questions,
    )
    for path, group in records_of(content, layout, name, split).items():
        result.files.setdefault(path, []).extend(group)
    result.images += content.paths
    result.pairs += 1
    if not facts.changed and facts.counts != count.Counts(0, 0):
        counts = count.format_answer(facts.counts)
        message = f"{location} is flagged as unchanged, and its mask has {counts}"
        result.notes.append(Problem("reference", location, message))


def _unused_captions(sources: BuildSources, pairs: Sequence[tuple[str, str]]) -> list[Problem]:
    """Notes on captions without images, in the splits that were built."""
    splits, keys = {split for split, _ in pairs}, set(pairs)
    return [
        Problem("record", f"{split}/{file}", f"{split}/{file} has captions and no images")
        for split, file in sorted((sources.captions or {}).keys() - keys)
        if split in splits
    ]


@dataclass(frozen=True, slots=True)
class SetOutput:
    """Output folder of a built set: the files of its layout, and FOLDER/images as a link or a copy.

    Raises: ConfigError for a name that no set may have.
    """

    folder: Path
    images: Path
    name: str = "built"
    copy_images: bool = False
    overwrite: bool = False
    layout: Layout = "changechat-105k"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", self.name, flags=re.ASCII):
            raise ConfigError(f"name {self.name!r} is not letters, digits, - and _; give another `name`")
        if self.name == NAME:  # figures on other data would be taken for those of the published set
            raise ConfigError(f"name {self.name!r} is the released set's; give another `name`")

    @property
    def reply_log(self) -> Path:
        """File of the language model's replies."""
        return self.folder / f"{self.name}_open_replies.jsonl"

    def files(self, splits: Sequence[str]) -> list[Path]:
        """JSON files that a build of these splits can have."""
        return [self.folder / file for split in splits for file in files_of(self.layout, self.name, split)]

    def check(self, splits: Sequence[str]) -> None:
        """Raises: OutputError when a file exists, or other images are in the way."""
        if not self.overwrite:
            refuse_existing(self.files(splits))
        self._has_images()

    def write(self, result: BuildResult, splits: Sequence[str]) -> None:
        """Write the set; files of an earlier build of these splits that have no new content are removed.

        Raises: OutputError, and then FOLDER is as it was.
        """
        with staged_folder(self.folder) as scratch:
            write_json_files(scratch, result.files)
            if not self._has_images():
                self._write_images(scratch / "images", result.images)
        for path in self.files(splits):  # an earlier build may have had captions, or open questions
            if str(path.relative_to(self.folder).as_posix()) not in result.files:
                path.unlink(missing_ok=True)

    def _has_images(self) -> bool:
        """True when FOLDER/images are the images already. Raises: OutputError when others are in the way."""
        target = self.folder / "images"
        if not os.path.lexists(target):
            return False
        if (
            target.exists()
            and target.samefile(self.images)
            and not (self.copy_images and target.is_symlink())
        ):
            return True
        if target.is_symlink() or not self.copy_images:  # copies must not go through a link to originals
            raise OutputError(f"{target} exists and leads elsewhere; delete it, or give another `output`")
        if not self.overwrite:
            refuse_existing([target])
        return False

    def _write_images(self, target: Path, paths: Sequence[str]) -> None:
        """Link to the images, or copy those that are named. Raises: OSError, OutputError."""
        if not self.copy_images:
            try:
                target.symlink_to(self.images.resolve(), target_is_directory=True)
            except (OSError, NotImplementedError) as error:
                raise OutputError(
                    f"cannot link to {self.images} ({error}); copy the images with `copy_images=True`"
                ) from error
            return
        for path in paths:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.images / path, target / path)
