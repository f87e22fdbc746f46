"""Images in terminals: each protocol encodes the image."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from deltavlm.report.terminal_images import detect_protocol, encode_image
from tests.rasters import noise


def picture(width: int = 97, height: int = 53) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(noise(3, height, width).transpose(1, 2, 0)))


def same(image: Image.Image, png: bytes) -> bool:
    return bool((np.asarray(image) == np.asarray(Image.open(io.BytesIO(png)))).all())


def test_kitty_encodes_the_image_in_chunks() -> None:
    chunks = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", encode_image(picture(), "kitty"))
    assert len(chunks) > 2
    assert all(len(text) <= 4096 for _, text in chunks)
    assert chunks[0][0] == "a=T,f=100,q=2,m=1"
    assert {head for head, _ in chunks[1:-1]} == {"m=1"}
    assert chunks[-1][0] == "m=0"
    assert same(picture(), base64.b64decode("".join(text for _, text in chunks)))


def test_iterm_encodes_the_image_as_png() -> None:
    match = re.fullmatch(
        "\x1b]1337;File=inline=1;size=(\\d+);width=97px:(.*)\a", encode_image(picture(), "iterm")
    )
    assert match is not None
    content = base64.b64decode(match[2])
    assert len(content) == int(match[1])
    assert same(picture(), content)


def decoded_sixel(text: str) -> np.ndarray:
    """Image as a terminal would draw it, (rows, cols, 3) of 0 to 100."""
    head = re.match('\x1bP0;1;0q"1;1;(\\d+);(\\d+)', text)
    assert head is not None
    assert text.endswith("\x1b\\")
    width, height = int(head[1]), int(head[2])
    drawn = np.full((height + 6, width, 3), -1)
    palette: dict[int, list[int]] = {}
    colour, x, top = 0, 0, 0
    words = re.findall(r"#(\d+)((?:;\d+){4})?|(?:!(\d+))?([?-~$-])", text[head.end() : -2])
    for number, rgb, run, char in words:
        if number:
            colour = int(number)
            if rgb:
                palette[colour] = [int(word) for word in rgb.split(";")[2:]]
        elif char == "$":
            x = 0
        elif char == "-":
            x, top = 0, top + 6
        else:
            end = x + int(run or 1)
            for bit in range(6):
                if (ord(char) - 63) >> bit & 1:
                    drawn[top + bit, x:end] = palette[colour]
            x = end
    assert (drawn[height:] == -1).all()
    return drawn[:height]


def test_sixel_draws_every_pixel() -> None:
    flat = Image.new("RGB", (40, 20), (255, 0, 0))
    flat.paste((0, 0, 255), (10, 5, 30, 14))
    drawn = decoded_sixel(encode_image(flat, "sixel"))
    assert (drawn == np.round(np.asarray(flat) / 2.55)).all()
    noisy = decoded_sixel(encode_image(picture(), "sixel"))
    assert noisy.shape == (53, 97, 3)
    assert (noisy >= 0).all()
    assert np.abs(noisy * 2.55 - np.asarray(picture())).mean() < 30


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "dumb"}, None),
        ({}, None),
    ],
)
def test_the_protocol_is_detected_from_the_environment(environ: dict[str, str], protocol: str | None) -> None:
    assert detect_protocol(environ) == protocol
