"""From the text of a flag to its value; each complains in Typer's own way, naming the flag."""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import typer


def check_location(name: str, text: str) -> str:
    """A path or URL as it is, if it can be written in UTF-8, which all outputs are."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{text!r} is not UTF-8; rename the file", param_hint=name) from None
    return text


def parse_bands(name: str, text: str | None) -> tuple[int, ...] | None:
    """`"3,2,1"` -> (3, 2, 1): one band or three, counted from 1."""
    if text is None:
        return None
    try:
        bands = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        bands = ()
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise typer.BadParameter(
            f"{text!r} is not one band or three, such as 3,2,1, counted from 1", param_hint=name
        )
    return bands


def parse_bbox(text: str | None) -> tuple[float, float, float, float] | None:
    """`"xmin,ymin,xmax,ymax"`, with commas or spaces, -> four numbers."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.strip("[]() ").replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"{text!r} is not xmin,ymin,xmax,ymax", param_hint="--bbox")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def parse_point(text: str) -> tuple[float, float]:
    """`"lon,lat"` -> two numbers."""
    try:
        numbers = [float(part) for part in text.strip("[]() ").replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"{text!r} is not lon,lat", param_hint="--at")
    return numbers[0], numbers[1]


def resolve_overlap(chip_px: int, overlap_px: int | None, stride_px: int | None) -> int:
    """The overlap from --overlap or --stride, whichever is given."""
    if overlap_px is not None and stride_px is not None:
        raise typer.BadParameter("cannot be combined with --overlap", param_hint="--stride")
    if stride_px is not None:
        if stride_px > chip_px:
            raise typer.BadParameter(
                f"{stride_px} is more than the chip size {chip_px}; ground would be left out",
                param_hint="--stride",
            )
        return chip_px - stride_px
    if overlap_px is not None and overlap_px >= chip_px:
        raise typer.BadParameter(
            f"{overlap_px} must be less than the chip size {chip_px}", param_hint="--overlap"
        )
    return overlap_px or 0


def check_gsd(value: float | None) -> float | None:
    """Metres a pixel, above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value:g} is not above 0 metres", param_hint="--gsd")
    return value


def parse_gdal_config(pairs: list[str] | None) -> dict[str, str]:
    """`["KEY=VALUE", ...]` -> a mapping."""
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--gdal-config")
        settings[key.strip()] = value
    return settings


def parse_batch_size(text: str) -> int | None:
    """`"auto"` -> None, `"8"` -> 8."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise typer.BadParameter(
            f"{text!r} is neither auto nor a number from 1 to 4096", param_hint="--batch-size"
        )
    return int(text)


def check_device(text: str) -> str:
    """auto, cpu, cuda, cuda:N or mps."""
    family, colon, index = text.partition(":")
    known = ("auto", "cpu", "cuda", "mps")
    if family in known and (not colon or (family == "cuda" and index.isdigit())):
        return text
    close = get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
    raise typer.BadParameter(f"{text!r} is not a device; {hint}", param_hint="--device")


def parse_shard(text: str | None) -> tuple[int, int]:
    """`"2/4"` -> (2, 4); all of it is (1, 1)."""
    if text is None:
        return 1, 1
    index, slash, number = text.partition("/")
    whole = slash and all(one.isascii() and one.isdigit() for one in (index, number))
    if whole and 1 <= int(index) <= int(number) <= 10_000:
        return int(index), int(number)
    raise typer.BadParameter(f"{text!r} is not I/N, such as 1/4 to 4/4", param_hint="--shard")


def default_output(source: str, ending: str) -> str:
    """`<stem of source><ending>` in the current folder; `source` may be a path or a URL.

    >>> default_output("https://host/a/after.tif?key=1", "_changes.gpkg")
    'after_changes.gpkg'
    """
    path = urlsplit(source).path if "://" in source else source.replace("\\", "/")
    stem = PurePosixPath(path.rstrip("/")).stem
    return f"{stem or 'raster'}{ending}"
