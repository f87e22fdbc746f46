"""Many pairs: what one is, how it gets its name, and pairs found in two folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from shapely.geometry.base import BaseGeometry

from deltavlm.errors import InputError

__all__ = ["RASTER_SUFFIXES", "Pair", "PairList", "file_names", "named", "pairs_of_folders", "part_of"]

RASTER_SUFFIXES = frozenset(
    (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".img", ".vrt", ".webp", ".bmp", ".gif", ".nc", ".hdf")
)
_NOT_IN_A_FILE_NAME = str.maketrans(dict.fromkeys('/\\:*?"<>|', "_"))
_LONGEST_FILE_NAME = 150  # bytes; what lies beside an output has longer names than the output


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one place, as a list names them."""

    id: str
    before: str
    after: str
    before_date: str | None = None  # ISO 8601
    after_date: str | None = None
    aoi: Path | BaseGeometry | None = None  # a geometry is in longitude and latitude
    line: int = 0  # of the list, from 1; 0: from a folder


@dataclass(frozen=True, slots=True)
class PairList:
    """Pairs in the order of their list, and what is to be said about it."""

    pairs: tuple[Pair, ...]
    name: str  # of the list, for messages and the record
    notes: tuple[str, ...] = ()
    unmatched: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # of two folders: names in one alone


def part_of(pairs: Sequence[Pair], index: int, count: int) -> tuple[Pair, ...]:
    """Part `index` of `count`, from 1: every `count`-th pair."""
    return tuple(pairs[index - 1 :: count])


def named(pairs: Sequence[Pair], lines_of: str) -> tuple[Pair, ...]:
    """The pairs with an id each: those without one get the stem of AFTER; where that is not alone, with its
    folder before it; where that is not alone either, with a number behind.

    Raises: InputError for an id that two pairs have.
    """
    lines: dict[str, int] = {}
    for pair in pairs:
        if pair.id and lines.setdefault(pair.id, pair.line) != pair.line:
            raise InputError(
                f"{lines_of} {lines[pair.id]} and {pair.line}: both have the id {pair.id!r}; "
                "give each pair its own"
            )
    tails = [_tail(pair.after) for pair in pairs]
    stems = Counter(stem for (_, stem), pair in zip(tails, pairs, strict=True) if not pair.id)
    taken, numbers = set(lines), Counter[str]()
    done = []
    for (folder, stem), pair in zip(tails, pairs, strict=True):
        if not pair.id:
            wanted = stem if stems[stem] == 1 or not folder else f"{folder}_{stem}"
            name = wanted
            while name in taken:
                numbers[wanted] += 1
                name = f"{wanted}_{numbers[wanted] + 1}"
            taken.add(name)
            pair = replace(pair, id=name)
        done.append(pair)
    return tuple(done)


def _tail(location: str) -> tuple[str, str]:
    """`"https://host/a/after.tif?key"` -> `("a", "after")`: the folder's name and the stem."""
    path = urlsplit(location).path if "://" in location else location.replace("\\", "/")
    end = PurePosixPath(path.rstrip("/"))
    return end.parent.name, end.stem or "pair"


def file_names(pairs: Sequence[Pair], suffix: str) -> dict[str, str]:
    """A file name for each id, which must not differ from another's in case alone.

    Raises: InputError for an id that cannot be one, or for two that would be one.
    """
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for pair in pairs:
        name = pair.id.translate(_NOT_IN_A_FILE_NAME)
        if name.startswith(".") or len(name.encode()) > _LONGEST_FILE_NAME:
            raise InputError(f"pair {pair.id!r}: its id cannot be the name of a file; give it a plain one")
        other = owners.setdefault(name.casefold(), pair.id)
        if other != pair.id:
            raise InputError(
                f"pairs {other!r} and {pair.id!r}: would be one file, {name}{suffix}; change one id"
            )
        names[pair.id] = name + suffix
    return names


def pairs_of_folders(before: Path, after: Path) -> PairList:
    """Pairs of the images that have the same name in both folders, subfolders included; suffixes may differ.

    Raises: InputError where a folder cannot be read, a name is not alone, or none is in both.
    """
    found = [_images(folder) for folder in (before, after)]
    alone = [
        tuple(str(one[name]) for name in sorted(one.keys() - other.keys()))
        for one, other in (found, found[::-1])
    ]
    both = sorted(found[0].keys() & found[1].keys())
    if not both:
        example = f", such as {alone[0][0]} and {alone[1][0]}" if all(alone) else ""
        raise InputError(
            f"{before} and {after}: no image has the same name in both{example}; "
            "rename them, or write a list for --pairs"
        )
    pairs = [Pair(name, str(found[0][name]), str(found[1][name])) for name in both]
    return PairList(tuple(pairs), f"{before} and {after}", (), (alone[0], alone[1]))


def _images(folder: Path) -> dict[str, Path]:
    """The images under a folder by their path in it, without the suffix."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give the one that holds the images of a date")
    images: dict[str, Path] = {}
    for path in _walked(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if images.setdefault(name, path) != path:
            raise InputError(
                f"{images[name]} and {path}: have one name, so which to take is not clear; move one away, or "
                "write a list for --pairs"
            )
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"{str(path)!r}: is not UTF-8; rename the file") from None
    if not images:
        raise InputError(f"{folder}: holds no images ({' '.join(sorted(RASTER_SUFFIXES))})")
    return images


def _walked(folder: Path) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    for root, folders, files in os.walk(folder, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in RASTER_SUFFIXES and not name.startswith("."):
                yield Path(root) / name
