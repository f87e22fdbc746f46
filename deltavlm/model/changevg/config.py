"""Configuration of ChangeVG, and its prompts; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from deltavlm.errors import ConfigError
from deltavlm.messages import preview
from deltavlm.model.config import check_ranges

MODEL, GUIDE = "model", "guide"  # folders in that of a checkpoint
IMAGE, GUIDE_MARK, MASK_MARK = "<image>", "<guide>", "<mask>"
"""Places of the two images and of the sentence of the guide in the text of a question, and of the picture of
its mask in that sentence."""
Guidance = Literal["none", "caption", "findings", "mask"]
"""What the sentence of the guide tells: nothing; its caption, as in the published code; also its counts and
cells; also the picture of its mask."""
GUIDE_SENTENCE = "Please refer to this description:{caption}.Modify or correct it."
SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_TOKEN = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
CELL_WORDS: Mapping[str, str] = {
    "top-left": "top left corner",
    "top-center": "top",
    "top-right": "top right corner",
    "center-left": "left",
    "center-center": "center",
    "center-right": "right",
    "bottom-left": "lower left corner",
    "bottom-center": "lower",
    "bottom-right": "lower right corner",
}
"""Cells of the kind mci -> words of ChangeIMTI."""
SPECIAL = (START, END, VISION_START, VISION_END, IMAGE_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeVGConfig:
    """Model configuration beside those of its language model and of its guide."""

    name: str
    kind: Literal["changevg"] = "changevg"
    image_px: int = 252  # side of an image, resized by Pillow before the processor, a multiple of 28
    guidance: Guidance = "caption"
    guided: Literal["caption", "all"] = "caption"  # standard questions with the guide; others always have it
    repetition_penalty: float = 1.05  # where the images come before the text, see `Prompt`
    chip_px: int = 256
    training_gsd_m: float = 0.5
    sources: dict[str, str] = field(default_factory=dict)  # files that the checkpoint was converted from
    files: dict[str, str] = field(default_factory=dict)  # sha256 of its files, by name

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            image_px=(28, 1024),
            repetition_penalty=(0.01, 100),
            chip_px=(1, 16_384),
            training_gsd_m=(1e-6, 1e6),
        )
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ValueError(f"name {preview(self.name)} is not one line of up to 100 characters")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt of a question, as texts and special tokens in turns.

    Two forms exist. A question of the training set has each `<image>` where the image belongs ("inline"). Any
    other question comes behind both images ("images first"), with the guide before it, as in the authors'
    demonstration; only there the repetition penalty applies.
    """

    segments: tuple[str, ...]  # the members of SPECIAL are special tokens, and all others are plain text
    images_first: bool
    images: tuple[int, ...] = (0, 1)  # in their order: 0 before, 1 after, 2 the mask

    @property
    def text(self) -> str:
        """The prompt as one text, with one token for each image."""
        return "".join(self.segments)


def guide_sentence(caption: str, *details: str) -> str:
    """Sentence that tells the caption of the guide, without its full stops; `details` are further parts of
    the description.

    >>> guide_sentence(" a road is built . ")
    'Please refer to this description:a road is built.Modify or correct it.'
    """
    return GUIDE_SENTENCE.format(caption=", ".join((caption.replace(".", "").strip(), *details)))


@dataclass(frozen=True, slots=True)
class Guide:
    """Findings of the guide about a pair: a caption, and by class the number of objects and the cells that
    they are in, in the labels of the kind mci."""

    caption: str
    counts: Mapping[str, int]
    cells: Mapping[str, Sequence[str]]

    def sentence(self, guidance: Guidance) -> str:
        """Sentence of a prompt; empty without guidance.

        >>> guide = Guide("a road .", {"road": 1, "building": 0}, {"road": ("top-left",), "building": ()})
        >>> guide.sentence("mask")
        'Please refer to this description:a road, changed roads: 1 (top left corner), changed buildings: 0, \
changes: <mask>.Modify or correct it.'
        """
        if guidance == "none":
            return ""
        if guidance == "caption":
            return guide_sentence(self.caption)
        details = []
        for name, number in self.counts.items():
            cells = ",".join(CELL_WORDS[cell] for cell in self.cells[name])
            details.append(f"changed {name}s: {number}" + (f" ({cells})" if cells else ""))
        picture = [f"changes: {MASK_MARK}"] if guidance == "mask" else []
        return guide_sentence(self.caption, *details, *picture)


def make_prompt(turns: Sequence[tuple[str, str]], question: str, guide: str) -> Prompt:
    """Prompt of a question after earlier (question, answer) turns.

    guide: sentence of the guide; empty without guidance.

    Raises: ConfigError for a text that names another number of images than two, in the first turn, or none.

    >>> make_prompt((), "Is <image> older than <image>?", "").segments[6:]
    ('<|vision_start|>', '<|image_pad|>', '<|vision_end|>', ' older than ', '<|vision_start|>', \
'<|image_pad|>', '<|vision_end|>', '?', '<|im_end|>', '\\n', '<|im_start|>', 'assistant\\n')
    """
    texts = [*(text for text, _ in turns), question]
    images = [text.count(IMAGE) for text in texts]
    if images[0] not in (0, 2) or any(images[1:]):
        raise ConfigError(
            f"a question names two images, each by {IMAGE}, in the first turn, or none; this names "
            f"{' and '.join(map(str, images))}"
        )
    if MASK_MARK in guide and any(MASK_MARK in text for text in texts):
        raise ConfigError(f"a question names no {MASK_MARK}, which is the place of the guide's mask")
    images_first = images[0] == 0
    if images_first:
        texts[0] = f"Picture 1: {IMAGE}Picture 2: {IMAGE}{guide}{texts[0]}"
    segments, order = [START, f"system\n{SYSTEM}", END, "\n"], list[int]()
    for index, text in enumerate(texts):
        first, *marked = re.split(f"({IMAGE}|{MASK_MARK})", text.replace(GUIDE_MARK, guide))
        segments += [START, f"user\n{first}"]
        for mark, following in zip(marked[::2], marked[1::2], strict=True):
            if mark == MASK_MARK and MASK_MARK not in guide:
                segments.append(f"{mark}{following}")  # a word of the question
                continue
            segments += [VISION_START, IMAGE_TOKEN, VISION_END, following]
            order.append(2 if mark == MASK_MARK else sum(each < 2 for each in order))
        segments += [END, "\n", START]
        if index < len(turns):
            segments += [f"assistant\n{turns[index][1]}", END, "\n"]
    texts = [segment for segment in segments if segment]
    return Prompt((*texts, "assistant\n"), images_first, tuple(order))
