"""Choice of the bands for red, green and blue: as asked, by name, by color interpretation, or a guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltavlm.errors import ConfigError

__all__ = ["BandChoice", "choose_bands"]

RGB = ("red", "green", "blue")
COLOR_WORDS = {
    word: color
    for color, words in {
        "red": "red rot rouge rojo rosso vermelho rood",
        "green": "green grün gruen vert verde groen",
        "blue": "blue blau bleu azul blu blauw",
    }.items()
    for word in words.split()
}
OTHER_WORDS = frozenset(
    (
        *("edge", "near", "nir", "infra", "infrared", "far", "short", "swir", "coastal", "deep", "i", "pan"),
        *("mask", "cloud", "qa", "quality", "std", "stddev", "variance", "count", "difference", "ratio"),
        "index",
    )
)
"""Words that make another quantity of a name with a color in it: coastal blue, red edge, near infrared. Of
PlanetScope's `green_i` and `green` the second is the usual green."""

LETTERS = {"r": "red", "g": "green", "b": "blue"}
CODE = re.compile(r"b0?(\d{1,2}a?)")
ESPA_CODE = re.compile(r"band0?(\d{1,2})")  # sr_band4
OLI_CODES, TM_CODES, MODIS_CODES = ("4", "3", "2"), ("3", "2", "1"), ("1", "4", "3")  # red, green, blue
TM_NAME = re.compile(r"l[tem]0?[4-7](?!\d)|landsat[ _-]?[4-7]")
OLI_NAME = re.compile(r"lc0?[89]|landsat[ _-]?[89]|(?<![a-z])s2[abc]?(?![a-z0-9])|sentinel|msil|hls")
NOT_RGB = {
    "CMYK": {"cyan", "magenta", "yellow"},
    "HSL": {"hue", "saturation", "lightness"},
    "YCbCr": {"Y", "Cb", "Cr"},
}  # color interpretations


@dataclass(frozen=True, slots=True)
class BandChoice:
    """Numbers of the bands (from 1) that serve as red, green and blue, and how they were found."""

    rgb: tuple[int, int, int]
    note: str | None = None
    is_guess: bool = False


def choose_bands(
    labels: Sequence[str],
    bands: Sequence[int] | None = None,
    names: Sequence[str | None] = (),
    file_name: str = "",
) -> BandChoice:
    """Choose the bands that serve as red, green and blue.

    labels: color interpretation of each band, as names of `rasterio`'s ColorInterp ("red", "gray", ...).
    bands: takes precedence: three bands, or one for all three.
    names: description of each band. They take precedence over the labels, which GDAL sets to red, green, blue
        for any raster of three 8-bit bands. `file_name` tells sensors apart that number their bands alike.

    Raises:
        ConfigError: `bands` names a band that does not exist, or is neither one nor three long; or the labels
            say that the colors are no RGB.
    """
    count = len(labels)
    if bands is not None:
        if len(bands) not in (1, 3) or any(not 1 <= band <= count for band in bands):
            text = ",".join(str(band) for band in bands)
            raise ConfigError(f"bands {text}: give one or three of its bands 1 to {count}")
        return BandChoice((bands[0], bands[len(bands) // 2], bands[-1]))
    labelled = _find({label: band for band, label in reversed(list(enumerate(labels, 1)))}, RGB)
    named = _by_words(names) or _by_codes(names, file_name)
    if named is not None:
        text = ", ".join(f"{band} ({names[band - 1]})" for band in named)
        note = f"red, green, blue are bands {text}, by their names"
        if labelled is None or labelled == named:
            return BandChoice(named, None if labelled else note)
        return BandChoice(
            named,
            f"{note}, although it labels {','.join(map(str, labelled))} as these (`before_bands` and "
            "`after_bands` choose)",
            is_guess=True,
        )
    if labelled is not None:
        return BandChoice(labelled)
    for model, components in NOT_RGB.items():
        if components <= set(labels):
            raise ConfigError(
                f"its colors are {model}; convert it to RGB, or choose bands with `before_bands` or "
                "`after_bands`"
            )
    colors = [band for band, label in enumerate(labels, 1) if label != "alpha"] or [1]
    if len(colors) < 3:
        note = f"two bands without colors: band {colors[0]} is taken for red, green and blue"
        return BandChoice((colors[0],) * 3, note if len(colors) == 2 else None, is_guess=len(colors) == 2)
    first = (colors[0], colors[1], colors[2])
    listed = [name for name in names if name]
    which = f" ({', '.join(listed[:8])}{', ...' if len(listed) > 8 else ''})" if listed else ""
    return BandChoice(
        first,
        f"no bands are named or labelled red, green and blue{which}: bands {','.join(map(str, first))} are "
        "taken (`before_bands` and `after_bands` choose others)",
        is_guess=True,
    )


def _find(bands: dict[str, int], keys: tuple[str, str, str]) -> tuple[int, int, int] | None:
    """Bands of three keys; None unless there are all three."""
    red, green, blue = (bands.get(key) for key in keys)
    return None if red is None or green is None or blue is None else (red, green, blue)


def _words(name: str | None) -> list[str]:
    return re.findall(r"[^\W_]+", (name or "").casefold())


def _by_words(names: Sequence[str | None]) -> tuple[int, int, int] | None:
    """Bands named red, green, blue in words. A band of that name alone precedes names with other words."""
    exact: dict[str, list[int]] = {color: [] for color in RGB}
    loose: dict[str, list[int]] = {color: [] for color in RGB}
    for band, name in enumerate(names, 1):
        words = _words(name)
        colors = {COLOR_WORDS[word] for word in words if word in COLOR_WORDS}
        if len(words) == 1:
            colors |= {LETTERS[words[0]]} if words[0] in LETTERS else set()
            for color in colors:
                exact[color].append(band)
        elif len(colors) == 1 and not OTHER_WORDS & set(words):
            loose[colors.pop()].append(band)
    chosen = {color: (exact[color] or loose[color]) for color in RGB}
    return _find({color: bands[0] for color, bands in chosen.items() if len(bands) == 1}, RGB)


def _by_codes(names: Sequence[str | None], file_name: str) -> tuple[int, int, int] | None:
    """Bands named by the numbers of a sensor's bands: B04, SR_B4, sr_band4, sur_refl_b01.

    None where it is not clear which sensor it is: B1 is blue of Landsat 4 to 7, coastal blue of Landsat 8.
    """
    bands: dict[str, int] = {}
    all_words: set[str] = set()
    for band, name in enumerate(names, 1):
        words = _words(name)
        espa = ESPA_CODE if {"sr", "toa"} & set(words) else CODE
        codes = [
            match[1] for word in words for match in (CODE.fullmatch(word), espa.fullmatch(word)) if match
        ]
        all_words.update(words)
        if codes and bands.setdefault(codes[0], band) != band:
            return None  # two dates, or statistics, in one file
    text, is_sr = file_name.casefold(), bool({"sr"} & all_words)
    if "refl" in all_words:
        return _find(bands, MODIS_CODES)
    if TM_NAME.search(text):
        return _find(bands, TM_CODES)
    is_padded = any(re.fullmatch(r"b0\da?", word) for word in all_words)
    is_oli = "1" not in bands or {"8a", "9", "10", "11", "12"} & bands.keys() or (is_sr and "6" in bands)
    if is_padded or is_oli or OLI_NAME.search(text):
        return _find(bands, OLI_CODES)
    return _find(bands, TM_CODES) if is_sr and "7" in bands else None
