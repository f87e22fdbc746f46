"""Parse and check the text of flags; a bad value is a usage error that names the flag."""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from deltavlm.files import NamedPath
from deltavlm.errors import InputError
from deltavlm.messages import redact_address

DEVICES = ("auto", "cpu", "cuda", "mps")


def check_location(argument: str, text: str) -> str:
    """Return a path or URL unchanged if it can be encoded as UTF-8, as all outputs are.

    Raises: BadParameter.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{text!r} is not UTF-8; rename the file", param_hint=argument) from None
    return text


def flag_name(parameter: str) -> str:
    """Flag of a parameter: `before_date` -> `--before-date`."""
    return f"--{parameter.replace('_', '-')}"


def named_files(files: Mapping[str, str | Path | Iterable[Path] | None]) -> list[NamedPath]:
    """Files of flags and arguments, each with its name; None and `-` are no files."""
    named: list[NamedPath] = []
    for name, value in files.items():
        paths = [Path(value)] if isinstance(value, str | Path) else value or ()
        named += [(name, path) for path in paths if str(path) != "-"]
    return named


def read_stdin() -> str:
    """All text of stdin. Raises: InputError where there is no end of it."""
    from deltavlm.files import MAX_TEXT_BYTES, format_bytes

    text = sys.stdin.read(MAX_TEXT_BYTES + 1)
    if len(text) > MAX_TEXT_BYTES:
        raise InputError(f"stdin: is larger than {format_bytes(MAX_TEXT_BYTES)}; give a part of it")
    return text


def standard_streams() -> list[NamedPath]:
    """Files that stdin, stdout and stderr are redirected to; not terminals, pipes and devices."""
    return [
        (name, Path(f"/dev/fd/{number}"))
        for number, name in enumerate(("stdin", "stdout", "stderr"))
        if os.name != "nt" and stat.S_ISREG(os.fstat(number).st_mode)
    ]


def check_files(written: Iterable[NamedPath], read: Mapping[str, str | Path | Iterable[Path] | None]) -> None:
    """Check, before any work, that a command writes no file twice, and none that it reads.

    Raises: OutputError.
    """
    from deltavlm.files import check_distinct_files

    check_distinct_files(written, [*named_files(read), *standard_streams()])


def parse_bands(flag: str, text: str | None) -> tuple[int, ...] | None:
    """`"3,2,1"` -> (3, 2, 1): one band or three, numbered from 1. Raises: BadParameter."""
    if text is None:
        return None
    try:
        bands = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        bands = ()
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise typer.BadParameter(
            f"{text!r} is not one band or three, such as 3,2,1, numbered from 1", param_hint=flag
        )
    return bands


def _parse_numbers(text: str) -> list[float]:
    """Numbers between commas or spaces, in brackets or not; empty if any is not a finite number."""
    try:
        numbers = [float(word) for word in text.strip("[]() ").replace(",", " ").split()]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def parse_bbox(text: str | None) -> tuple[float, float, float, float] | None:
    """`"xmin,ymin,xmax,ymax"`, with commas or spaces, -> four numbers. Raises: BadParameter."""
    if text is None:
        return None
    numbers = _parse_numbers(text)
    if len(numbers) != 4:
        raise typer.BadParameter(f"{text!r} is not xmin,ymin,xmax,ymax", param_hint="--bbox")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def parse_point(text: str) -> tuple[float, float]:
    """`"lon,lat"` -> two numbers. Raises: BadParameter."""
    numbers = _parse_numbers(text)
    if len(numbers) != 2:
        raise typer.BadParameter(f"{text!r} is not lon,lat", param_hint="--at")
    return numbers[0], numbers[1]


def resolve_overlap(chip_px: int, overlap_px: int | None, stride_px: int | None) -> int:
    """Overlap of neighbouring chips in pixels, from --overlap or --stride. Raises: BadParameter."""
    if overlap_px is not None and stride_px is not None:
        raise typer.BadParameter("cannot be combined with --overlap", param_hint="--stride")
    if stride_px is not None:
        if stride_px > chip_px:
            raise typer.BadParameter(
                f"{stride_px} is more than the chip size {chip_px}; there would be gaps between the chips",
                param_hint="--stride",
            )
        return chip_px - stride_px
    if overlap_px is not None and overlap_px >= chip_px:
        raise typer.BadParameter(
            f"{overlap_px} must be less than the chip size {chip_px}", param_hint="--overlap"
        )
    return overlap_px or 0


def check_gsd(gsd_m: float | None) -> float | None:
    """Return the ground sampling distance in metres if it is above 0. Raises: BadParameter."""
    if gsd_m is not None and not (math.isfinite(gsd_m) and gsd_m > 0):
        raise typer.BadParameter(f"{gsd_m:g} is not above 0 metres", param_hint="--gsd")
    return gsd_m


def parse_gdal_config(pairs: list[str] | None) -> dict[str, str]:
    """`["KEY=VALUE", ...]` -> a mapping. Raises: BadParameter."""
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            name = re.match(r"\s*\w*", key)  # what follows may be a password or a header
            raise typer.BadParameter(
                f"{name[0] if name else ''!r} is not followed by =VALUE; write KEY=VALUE",
                param_hint="--gdal-config",
            )
        settings[key.strip()] = value
    return settings


def parse_batch_size(text: str) -> int | None:
    """`"auto"` -> None, `"8"` -> 8. Raises: BadParameter."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= 4096):
        raise typer.BadParameter(
            f"{text!r} is neither auto nor a number from 1 to 4096", param_hint="--batch-size"
        )
    return int(text)


def check_device(text: str) -> str:
    """Return auto, cpu, cuda, cuda:N or mps unchanged. Raises: BadParameter."""
    family, colon, index = text.partition(":")
    if family in DEVICES and (not colon or (family == "cuda" and index.isdigit())):
        return text
    close = get_close_matches(text, DEVICES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(DEVICES)}"
    raise typer.BadParameter(f"{text!r} is not a device; {hint}", param_hint="--device")


def parse_shard(text: str | None) -> tuple[int, int]:
    """`"2/4"` -> (2, 4); None, which is everything, -> (1, 1). Raises: BadParameter."""
    if text is None:
        return 1, 1
    index, slash, count = text.partition("/")
    is_fraction = slash and all(
        number.isascii() and number.isdigit() and len(number) <= 9 for number in (index, count)
    )
    if is_fraction and 1 <= int(index) <= int(count) <= 10_000:
        return int(index), int(count)
    raise typer.BadParameter(f"{text!r} is not I/N, such as 1/4 to 4/4", param_hint="--shard")


def default_output(source: str, ending: str) -> str:
    """`<stem of source><ending>` in the current folder; `source` may be a path or a URL.

    >>> default_output("https://host/a/after.tif?key=1", "_changes.gpkg")
    'after_changes.gpkg'
    """
    source = redact_address(source)
    path = urlsplit(source).path if "://" in source else source.replace("\\", "/")
    stem = PurePosixPath(path.rstrip("/")).stem
    return f"{stem or 'raster'}{ending}"
