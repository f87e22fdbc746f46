"""Configuration of MCI, the mask-and-caption model of Change-Agent (arXiv 2403.19646)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deltavlm.errors import ModelError
from deltavlm.files import parse_json, read_text
from deltavlm.messages import preview
from deltavlm.model.config import DEPTHS, HEADS, VOCABULARY, WIDTHS, check_ranges

CLASSES = ("background", "road", "building")
NULL, UNKNOWN, START, END = range(4)
"""Ids of the special words: padding, a rare word, and the limits of a caption."""
SPECIAL = ("<NULL>", "<UNK>", "<START>", "<END>")
MAX_VOCABULARY_BYTES = 2**24
PAIR_NUMBERS = 2000  # of the activations of a pair at their largest, for each pixel of an image
NO_CHANGE = (
    "the scene is the same as before",
    "there is no difference",
    "the two scenes seem identical",
    "no change has occurred",
    "almost nothing has changed",
)
"""The no-change sentences of LEVIR-CC, on which the model was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MCIConfig:
    """Model configuration; all numbers but the heads can be read from the shapes of the weights.

    `widths`, `depths`, `backbone_heads` and `reductions` are those of the four stages of the Mix Transformer.
    """

    name: str
    kind: Literal["mci"] = "mci"
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    backbone_heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    heads: int = 8  # of both necks and of the caption decoder
    caption_neck_layers: int = 3
    mask_neck_layers: int = 3
    decoder_layers: int = 1
    decoder_width: int = 512
    decoder_hidden: int = 2048
    position_size: int = 16  # rows of the position tables: largest side of the last map
    words: int = 468
    max_words: int = 41  # of a caption
    image_px: int = 256
    mean: tuple[float, float, float] = (0.39073, 0.38623, 0.32989)
    std: tuple[float, float, float] = (0.15329, 0.14628, 0.13648)
    min_component_px: int = 6  # smallest connected component of a class that is counted
    no_change: tuple[str, ...] = NO_CHANGE
    chip_px: int = 256
    training_gsd_m: float = 0.5
    sources: dict[str, str] = field(default_factory=dict)  # files that the checkpoint was converted from
    files: dict[str, str] = field(default_factory=dict)  # sha256 of its weight files, by name

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            widths=WIDTHS,
            depths=DEPTHS,
            backbone_heads=HEADS,
            reductions=(1, 64),
            heads=HEADS,
            caption_neck_layers=DEPTHS,
            mask_neck_layers=DEPTHS,
            decoder_layers=DEPTHS,
            decoder_width=WIDTHS,
            decoder_hidden=WIDTHS,
            position_size=(1, 4096),
            words=(4, VOCABULARY[1]),
            max_words=(1, 4096),
            image_px=(32, 4096),
            mean=(-10, 10),
            std=(0.001, 10),
            min_component_px=(1, 2**20),
            chip_px=(1, 16_384),
            training_gsd_m=(1e-6, 1e6),
        )
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ValueError(f"name {preview(self.name)} is not one line of up to 100 characters")
        pairs = [*zip(self.widths, self.backbone_heads, strict=True)]
        pairs += [(self.widths[3], self.heads), (self.decoder_width, self.heads)]
        for width, heads in pairs:
            if width % heads:
                raise ValueError(f"{heads} heads do not divide a width of {width}")
        if self.widths[3] % 2 or self.decoder_width % 2:
            raise ValueError("the width of the last stage or of the decoder is odd")
        if self.image_px % 32 or self.image_px // 32 > self.position_size:
            raise ValueError(
                f"image_px is {self.image_px}, not a multiple of 32 up to {32 * self.position_size}"
            )

    def pair_bytes(self, itemsize: int) -> int:
        """Memory of a pair in a batch, in bytes; `itemsize` is that of a number."""
        return PAIR_NUMBERS * self.image_px**2 * itemsize


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Words in the order of their ids, from a JSON object {word: id}. Raises: ModelError."""
    try:
        ids = parse_json(read_text(path, MAX_VOCABULARY_BYTES))
        words = tuple(word for word, _ in sorted(ids.items(), key=lambda item: item[1]))
        if [ids[word] for word in words] != list(range(len(words))) or words[: len(SPECIAL)] != SPECIAL:
            raise ValueError(f"its ids are not 0, 1, 2, ..., those of {', '.join(SPECIAL)} first")
    except FileNotFoundError as error:
        raise ModelError(f"no file {path}; give the vocab.json of the model") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a vocabulary: {error}; give the vocab.json of the model") from error
    return words
