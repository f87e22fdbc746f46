"""Images in a terminal that can show them: kitty graphics, iTerm2 inline images, or sixel."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deltavlm.errors import RasterError
from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.pipeline.summary import ChangedChip
from deltavlm.report.pairs import chip_origin

__all__ = ["Protocol", "contact_sheet", "detect_protocol", "encode_image"]

Protocol = Literal["kitty", "iterm", "sixel"]

THUMBNAIL_PX, GAP_PX, COLUMNS = 96, 6, 4  # side of a thumbnail, gap between two, chips in a row
KITTY_CHUNK = 4096  # largest payload of one kitty command, in characters
ITERM_PROGRAMS = ("iTerm.app", "WezTerm", "mintty")
KITTY_TERMS = ("xterm-kitty", "xterm-ghostty")
SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")


def detect_protocol(environ: Mapping[str, str]) -> Protocol | None:
    """Detect the image protocol of the terminal from its environment variables.

    None where it has none, or inside a multiplexer (tmux, screen), which swallows images.

    >>> detect_protocol({"TERM": "xterm-kitty"}), detect_protocol({"TERM": "xterm-256color"})
    ('kitty', None)
    """
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or environ.get("STY") or term.startswith(("screen", "tmux", "dumb")):
        return None
    if environ.get("KITTY_WINDOW_ID") or term in KITTY_TERMS or program == "ghostty":
        return "kitty"
    if program in ITERM_PROGRAMS:
        return "iterm"
    if "sixel" in term or term.startswith(SIXEL_TERMS):
        return "sixel"
    return None


def contact_sheet(reader: PairReader, chip_px: int, chips: Sequence[ChangedChip]) -> Image.Image | None:
    """Before and after of each chip with its score and id below, in this order; chips that cannot be read are
    left out. None if none can be read."""
    readable = list(_read_chips(reader, chip_px, chips))
    if not readable:
        return None
    cell_width, cell_height = 2 * THUMBNAIL_PX + 4 * GAP_PX, THUMBNAIL_PX + 24
    size = cell_width * min(COLUMNS, len(readable)), cell_height * -(-len(readable) // COLUMNS)
    sheet = Image.new("RGB", size, (24, 26, 31))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, (chip, pixels) in enumerate(readable):
        x, y = index % COLUMNS * cell_width, index // COLUMNS * cell_height
        for column, date in enumerate((pixels.before, pixels.after)):
            thumbnail = Image.fromarray(date.transpose(1, 2, 0)).resize((THUMBNAIL_PX, THUMBNAIL_PX))
            sheet.paste(thumbnail, (x + column * (THUMBNAIL_PX + GAP_PX), y))
        draw.text((x, y + THUMBNAIL_PX + 3), f"{chip.score:.2f}  {chip.chip_id}", (220, 222, 228), font)
    return sheet


def _read_chips(
    reader: PairReader, chip_px: int, chips: Sequence[ChangedChip]
) -> Iterator[tuple[ChangedChip, ChipPixels]]:
    """Pixels of the chips, except those that cannot be read."""
    for changed_chip in chips:
        row, col = chip_origin({"chip_id": changed_chip.chip_id})
        window = Window(col, row, min(chip_px, reader.geobox.width), min(chip_px, reader.geobox.height))
        with suppress(RasterError):
            yield changed_chip, reader.read(Chip(0, 0, window, chip_px, reader.geobox.transform))


def encode_image(image: Image.Image, protocol: Protocol) -> str:
    """Encode an RGB image as the control sequence that draws it at the cursor."""
    if protocol == "sixel":
        return "".join(_encode_sixel(image))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={stream.tell()};width={image.width}px:{text}\a"
    commands = []
    for start in range(0, len(text), KITTY_CHUNK):
        options = "" if start else "a=T,f=100,q=2,"
        has_next = int(start + KITTY_CHUNK < len(text))
        commands.append(f"\x1b_G{options}m={has_next};{text[start : start + KITTY_CHUNK]}\x1b\\")
    return "".join(commands)


def _encode_sixel(image: Image.Image) -> Iterator[str]:
    """Encode as DEC sixel: bands of six rows, one pass per colour.

    A character stands for six pixels of a column, the lowest bit on top.
    """
    quantized = image.quantize(colors=128)
    palette, indices = quantized.getpalette() or [], np.asarray(quantized)
    yield f'\x1bP0;1;0q"1;1;{image.width};{image.height}'
    for number in range(len(palette) // 3):
        red, green, blue = (round(value / 2.55) for value in palette[3 * number : 3 * number + 3])
        yield f"#{number};2;{red};{green};{blue}"
    weights = 1 << np.arange(6)
    for top in range(0, image.height, 6):
        band = indices[top : top + 6]
        for number in np.unique(band).tolist():
            bits = ((band == number) * weights[: len(band), None]).sum(axis=0)
            yield f"#{number}{_run_length_encode(bits.tolist())}$"
        yield "-"
    yield "\x1b\\"


def _run_length_encode(bits: Sequence[int]) -> str:
    """Sixel characters, runs of more than three as `!<count><character>`."""
    runs, start = [], 0
    for end in range(1, len(bits) + 1):
        if end == len(bits) or bits[end] != bits[start]:
            char, length = chr(63 + bits[start]), end - start
            runs.append(f"!{length}{char}" if length > 3 else char * length)
            start = end
    return "".join(runs)
