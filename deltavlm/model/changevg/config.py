"""Configuration of ChangeVG, and its prompts; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from deltavlm.errors import ConfigError
from deltavlm.messages import preview
from deltavlm.model.config import check_ranges

MODEL, GUIDE = "model", "guide"  # folders in that of a checkpoint
IMAGE, GUIDE_MARK = "<image>", "<guide>"
"""Places in the text of a question: of the two images, and of the sentence of the guide."""
GUIDE_SENTENCE = "Please refer to this description:{caption}.Modify or correct it."
SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_TOKEN = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SPECIAL = (START, END, VISION_START, VISION_END, IMAGE_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeVGConfig:
    """Model configuration beside those of its language model and of its guide."""

    name: str
    kind: Literal["changevg"] = "changevg"
    image_px: int = 252  # side of an image, resized by Pillow before the processor, a multiple of 28
    guidance: Literal["none", "caption"] = "caption"
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

    @property
    def text(self) -> str:
        """The prompt as one text, with one token for each image."""
        return "".join(self.segments)


def guide_sentence(caption: str) -> str:
    """Sentence that tells the caption of the guide; its full stops are removed.

    >>> guide_sentence(" a road is built . ")
    'Please refer to this description:a road is built.Modify or correct it.'
    """
    return GUIDE_SENTENCE.format(caption=caption.replace(".", "").strip())


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
    images_first = images[0] == 0
    if images_first:
        texts[0] = f"Picture 1: {IMAGE}Picture 2: {IMAGE}{guide}{texts[0]}"
    segments = [START, f"system\n{SYSTEM}", END, "\n"]
    for index, text in enumerate(texts):
        parts = text.replace(GUIDE_MARK, guide).split(IMAGE)
        segments += [START, f"user\n{parts[0]}"]
        for part in parts[1:]:
            segments += [VISION_START, IMAGE_TOKEN, VISION_END, part]
        segments += [END, "\n", START]
        if index < len(turns):
            segments += [f"assistant\n{turns[index][1]}", END, "\n"]
    return Prompt((*(segment for segment in segments if segment), "assistant\n"), images_first)
