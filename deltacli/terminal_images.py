"""Small pictures in a terminal that can show some: kitty's graphics, iTerm2's inline images, sixel."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from deltacli.console import console

if TYPE_CHECKING:
    from PIL.Image import Image

    from deltavlm.geo.pair import ChipPixels, PairReader
    from deltavlm.pipeline.job import AnalyzeJob
    from deltavlm.pipeline.summary import ChangedChip

__all__ = ["Protocol", "detect_protocol", "encode_image", "show_thumbnails"]

Protocol = Literal["kitty", "iterm", "sixel"]

SIDE, GAP, ACROSS = 96, 6, 4  # px of a thumbnail and between two; chips in a row
KITTY_PIECE = 4096  # characters of a command
_INLINE = ("iTerm.app", "WezTerm", "mintty")
_KITTY = ("xterm-kitty", "xterm-ghostty")
_SIXEL = ("foot", "mlterm", "yaft", "contour")


def detect_protocol(environ: Mapping[str, str]) -> Protocol | None:
    """How a terminal shows pictures, by what it says of itself; None where it does not, or a multiplexer is
    between, which swallows them.

    >>> detect_protocol({"TERM": "xterm-kitty"}), detect_protocol({"TERM": "xterm-256color"})
    ('kitty', None)
    """
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or environ.get("STY") or term.startswith(("screen", "tmux", "dumb")):
        return None
    if environ.get("KITTY_WINDOW_ID") or term in _KITTY or program == "ghostty":
        return "kitty"
    if program in _INLINE:
        return "iterm"
    if "sixel" in term or term.startswith(_SIXEL):
        return "sixel"
    return None


def show_thumbnails(
    job: AnalyzeJob,
    chips: Sequence[ChangedChip],
    when: Literal["auto", "always", "never"],
) -> None:
    """Print both dates of the chips of a single pair to stderr, if that is a terminal with graphics.

    A chip that cannot be read is left out.
    """
    if when == "never" or not console.on_terminal or console.verbosity < 0 or not chips or not job.is_single:
        return
    protocol = detect_protocol(os.environ) or ("sixel" if when == "always" else None)
    if protocol is None:
        return
    from deltavlm.pipeline.reading import open_listed_pair

    with open_listed_pair(job.pairs.pairs[0], job.read) as reader:
        shown = list(_read(reader, job.options.chip_px, chips))
    if shown:
        sys.stderr.write(encode_image(_sheet(shown), protocol) + "\n")
        sys.stderr.flush()


def _read(
    reader: PairReader, chip_px: int, chips: Sequence[ChangedChip]
) -> Iterator[tuple[ChangedChip, ChipPixels]]:
    """The chips with their pixels, but those that cannot be read."""
    from deltavlm.errors import RasterError
    from deltavlm.geo.grid import Chip, Window
    from deltavlm.report.scenes import chip_origin

    for one in chips:
        row, col = chip_origin({"chip_id": one.chip_id})
        window = Window(col, row, min(chip_px, reader.width), min(chip_px, reader.height))
        with suppress(RasterError):
            yield one, reader.read(Chip(0, 0, window, chip_px, reader.transform))


def _sheet(shown: Sequence[tuple[ChangedChip, ChipPixels]]) -> Image:
    """Before and after of each chip, and its name below; in the order of the table."""
    from PIL import Image, ImageDraw, ImageFont

    wide, high = 2 * SIDE + 4 * GAP, SIDE + 24
    size = wide * min(ACROSS, len(shown)), high * -(-len(shown) // ACROSS)
    sheet = Image.new("RGB", size, (24, 26, 31))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, (one, pixels) in enumerate(shown):
        left, top = index % ACROSS * wide, index // ACROSS * high
        for step, date in enumerate((pixels.before, pixels.after)):
            small = Image.fromarray(date.transpose(1, 2, 0)).resize((SIDE, SIDE))
            sheet.paste(small, (left + step * (SIDE + GAP), top))
        pen.text((left, top + SIDE + 3), f"{one.score:.2f}  {one.chip_id}", (220, 222, 228), font)
    return sheet


def encode_image(picture: Image, protocol: Protocol) -> str:
    """The control sequence that draws an RGB picture at the cursor."""
    if protocol == "sixel":
        return "".join(_sixel(picture))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={stream.tell()};width={picture.width}px:{text}\a"
    pieces = [text[start : start + KITTY_PIECE] for start in range(0, len(text), KITTY_PIECE)]
    more = [1] * (len(pieces) - 1) + [0]
    heads = ["a=T,f=100,q=2,", *[""] * (len(pieces) - 1)]
    return "".join(
        f"\x1b_G{head}m={rest};{piece}\x1b\\" for head, rest, piece in zip(heads, more, pieces, strict=True)
    )


def _sixel(picture: Image) -> Iterator[str]:
    """DEC's sixel: bands of six rows, one pass a colour; a character is six pixels of a column, the
    lowest bit on top."""
    import numpy as np

    few = picture.quantize(colors=128)
    palette, codes = few.getpalette() or [], np.asarray(few)
    yield f'\x1bP0;1;0q"1;1;{picture.width};{picture.height}'
    for number in range(len(palette) // 3):
        red, green, blue = (round(value / 2.55) for value in palette[3 * number : 3 * number + 3])
        yield f"#{number};2;{red};{green};{blue}"
    weights = 1 << np.arange(6)
    for top in range(0, picture.height, 6):
        band = codes[top : top + 6]
        for number in np.unique(band).tolist():
            bits = ((band == number) * weights[: len(band), None]).sum(axis=0)
            yield f"#{number}{_runs(bits.tolist())}$"
        yield "-"
    yield "\x1b\\"


def _runs(bits: Sequence[int]) -> str:
    """Sixels with their runs counted."""
    found, start = [], 0
    for end in range(1, len(bits) + 1):
        if end == len(bits) or bits[end] != bits[start]:
            char, length = chr(63 + bits[start]), end - start
            found.append(f"!{length}{char}" if length > 3 else char * length)
            start = end
    return "".join(found)
