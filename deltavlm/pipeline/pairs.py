"""Pairs of images, their ids, and pairs matched by file name in two folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from shapely.geometry.base import BaseGeometry

from deltavlm.errors import InputError
from deltavlm.geo.cloud_mask import parse_cloud_mask
from deltavlm.geo.location import normalize_location
from deltavlm.messages import redact_address

__all__ = ["RASTER_SUFFIXES", "Pair", "PairList", "file_names", "pairs_of_folders", "shard", "with_ids"]

RASTER_SUFFIXES = frozenset(
    (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".img", ".vrt", ".webp", ".bmp", ".gif", ".nc", ".hdf")
)
_NOT_IN_A_FILE_NAME = str.maketrans(dict.fromkeys('/\\:*?"<>|', "_"))
_LONGEST_FILE_NAME = 150  # bytes; what lies beside an output has longer names than the output


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one place. The id is empty for a single pair that is not from a list."""

    id: str
    before: str
    after: str
    before_date: str | None = None  # ISO 8601
    after_date: str | None = None
    aoi: Path | BaseGeometry | None = None  # a geometry is in longitude and latitude
    line: int = 0  # line of the list, from 1; 0: not from a list
    before_cloud_mask: str | None = None  # as `geo.cloud_mask.parse_cloud_mask` reads it
    after_cloud_mask: str | None = None
    changed: bool | None = None  # label of its chips, for a calibration

    @property
    def cloud_masks(self) -> tuple[str, ...]:
        """Cloud masks of before and after as text; one is empty if only the other is there, none without."""
        masks = self.before_cloud_mask or "", self.after_cloud_mask or ""
        return masks if any(masks) else ()

    @property
    def locations(self) -> tuple[list[str], list[str]]:
        """Image of each date, and the file of its cloud mask if there is one.

        Raises: ConfigError for a mask that cannot be parsed.
        """
        masks = (
            [] if text is None else [parse_cloud_mask(text).location or ""]
            for text in (self.before_cloud_mask, self.after_cloud_mask)
        )
        before, after = ([image, *mask] for image, mask in zip((self.before, self.after), masks, strict=True))
        return before, after


@dataclass(frozen=True, slots=True)
class PairList:
    """Pairs in the order of their list, with notes for the user."""

    pairs: tuple[Pair, ...]
    name: str  # name of the list, for messages and provenance
    notes: tuple[str, ...] = ()
    unmatched: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # files in one of two folders only

    @classmethod
    def single(
        cls, before: str, after: str, before_date: str | None = None, after_date: str | None = None
    ) -> PairList:
        """One pair that is not from a list; dates in ISO 8601."""
        before, after = normalize_location(before), normalize_location(after)
        return cls((Pair("", before, after, before_date, after_date),), redact_address(after))

    @property
    def is_single(self) -> bool:
        return len(self.pairs) == 1 and not self.pairs[0].id


def shard(pairs: Sequence[Pair], index: int, count: int) -> tuple[Pair, ...]:
    """Shard `index` of `count`, from 1: every `count`-th pair."""
    return tuple(pairs[index - 1 :: count])


def with_ids(pairs: Sequence[Pair], source: str) -> tuple[Pair, ...]:
    """The pairs with an id each. A missing id becomes the stem of AFTER, preceded by the name of its folder
    where the stem is not unique, followed by a number where that is not unique either.

    `source` begins the error message, such as "pairs.csv, lines".

    Raises: InputError for an id that two pairs have.
    """
    lines: dict[str, int] = {}
    for pair in pairs:
        if pair.id and lines.setdefault(pair.id, pair.line) != pair.line:
            raise InputError(
                f"{source} {lines[pair.id]} and {pair.line}: both have the id {pair.id!r}; "
                "give each pair its own"
            )
    tails = [_folder_and_stem(pair.after) for pair in pairs]
    stems = Counter(stem for (_, stem), pair in zip(tails, pairs, strict=True) if not pair.id)
    used, numbers = set(lines), Counter[str]()
    named = []
    for (folder, stem), pair in zip(tails, pairs, strict=True):
        if not pair.id:
            base = stem if stems[stem] == 1 or not folder else f"{folder}_{stem}"
            name = base
            while name in used:
                numbers[base] += 1
                name = f"{base}_{numbers[base] + 1}"
            used.add(name)
            pair = replace(pair, id=name)
        named.append(pair)
    return tuple(named)


def _folder_and_stem(location: str) -> tuple[str, str]:
    """`"https://host/a/after.tif?key"` -> `("a", "after")`: name of the folder, and the stem."""
    location = redact_address(location)
    path = urlsplit(location).path if "://" in location else location.replace("\\", "/")
    tail = PurePosixPath(path.rstrip("/"))
    return tail.parent.name, tail.stem or "pair"


def file_names(pairs: Sequence[Pair], suffix: str) -> dict[str, str]:
    """File name of each pair by its id; no two may differ in case alone.

    Raises: InputError for an id that is no file name, or two that would be the same.
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
    """Match images by their name in both folders, subfolders included; suffixes may differ.

    Raises: InputError where a folder cannot be read, a name is not unique, or no name is in both.
    """
    images = [_images(folder) for folder in (before, after)]
    unmatched = [
        tuple(str(paths[name]) for name in sorted(paths.keys() - partners.keys()))
        for paths, partners in (images, images[::-1])
    ]
    names = sorted(images[0].keys() & images[1].keys())
    if not names:
        example = f", such as {unmatched[0][0]} and {unmatched[1][0]}" if all(unmatched) else ""
        raise InputError(
            f"{before} and {after}: no image has the same name in both{example}; "
            "rename them, or write a list of pairs"
        )
    pairs = [Pair(name, str(images[0][name]), str(images[1][name])) for name in names]
    return PairList(tuple(pairs), f"{before} and {after}", (), (unmatched[0], unmatched[1]))


def _images(folder: Path) -> dict[str, Path]:
    """Images below a folder by their relative path without the suffix."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; give the folder with the images of one date")
    images: dict[str, Path] = {}
    for path in _image_paths(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if images.setdefault(name, path) != path:
            raise InputError(
                f"{images[name]} and {path}: have the same name, so the pair is ambiguous; move one away, or "
                "write a list of pairs"
            )
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"{str(path)!r}: is not UTF-8; rename the file") from None
    if not images:
        raise InputError(f"{folder}: holds no images ({' '.join(sorted(RASTER_SUFFIXES))})")
    return images


def _image_paths(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in RASTER_SUFFIXES and not name.startswith("."):
                yield Path(root) / name
