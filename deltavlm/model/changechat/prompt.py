"""Prompts of ChangeChat, as text and as token ids; without torch.

    {system} USER: <image>\\n <image>\\n {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT:

The text before, between and after the images is tokenized separately, so that each begins with the blank
that SentencePiece puts in front of a text; what follows `</s>` does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltavlm.errors import ConfigError, ModelError
from deltavlm.model.changechat.config import TemplateName
from deltavlm.model.tokenizer import SentencePiece, load_sentencepiece

IMAGE, END = "<image>", "</s>"
IMAGE_ID = -200  # of an image in lists of ids, before it is widened to the tokens of the image
_NEWLINE = "\n"  # tokenized as a byte, so that no token joins it with the text after it

History = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Template:
    """Words around the turns: the system line, and what stands after the first and the second image."""

    system: str
    after_images: tuple[str, str]

    @property
    def start(self) -> str:
        """Text before the first image."""
        return f"{self.system} USER: "

    def first_turn(self, question: str) -> str:
        """Text after the second image, up to the answer."""
        return f"{self.after_images[1]}{question} ASSISTANT:"

    def next_turn(self, question: str) -> str:
        """Text after the end of an answer, up to the next answer."""
        return f"USER: {question} ASSISTANT:"

    def format(self, question: str, history: History = ()) -> str:
        """Whole prompt, with `<image>` for each image and `</s>` after each answer."""
        questions = [*(earlier for earlier, _ in history), question]
        text = f"{self.start}{IMAGE}{self.after_images[0]}{IMAGE}{self.first_turn(questions[0])}"
        for (_, answer), following in zip(history, questions[1:], strict=True):
            text += f" {answer}{END}{self.next_turn(following)}"
        return text


_SYSTEM = (
    "A chat between a curious {person} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
)
TEMPLATES: Mapping[TemplateName, Template] = {
    "v1": Template(_SYSTEM.format(person="user"), ("\n ", "\n ")),  # of the training
    "llava_v1": Template(_SYSTEM.format(person="human"), ("\n", "\n")),  # of the published evaluation
}


@dataclass(frozen=True)
class PromptCodec:
    """Tokenizer of prompts and answers, with the methods of a tokenizer of transformers that are used."""

    codec: SentencePiece
    template: Template

    @classmethod
    def load(cls, path: Path, template: TemplateName) -> PromptCodec:
        """Codec of a `tokenizer.model`. Raises: ModelError, also for one that does not keep line breaks."""
        codec = load_sentencepiece(path)
        if not codec.encode(_NEWLINE):
            raise ModelError(f"the tokenizer {path} drops line breaks; it is not that of LLaVA-1.5")
        return cls(codec, TEMPLATES[template])

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """Marks that are no words of an answer."""
        return (IMAGE, *map(self.codec.processor.id_to_piece, (self.codec.bos, self.codec.eos)))

    @cached_property
    def beginning(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before the first image, and between both images: those of every prompt."""
        start = (self.codec.bos, *self.codec.encode(self.template.start))
        return start, tuple(self.codec.encode(self.template.after_images[0]))

    def ending(self, question: str, history: History = (), answer: str | None = None) -> tuple[int, ...]:
        """Ids after the second image; with `answer` also those of the answer and its end.

        Raises: ConfigError for a question that has the mark of an image.
        """
        return tuple(id_ for ids, _ in self._segments(question, history, answer) for id_ in ids)

    def labels(self, question: str, history: History, answer: str) -> list[bool]:
        """For each id of `ending` with an answer: true where it is learned, in the answers of all turns and
        their ends."""
        return [
            learned
            for ids, start in self._segments(question, history, answer)
            for learned in [False] * start + [True] * (len(ids) - start)
        ]

    def prompt_ids(self, question: str, history: History = ()) -> list[int]:
        """Ids of a whole prompt, with IMAGE_ID for each image."""
        start, between = self.beginning
        return [*start, IMAGE_ID, *between, IMAGE_ID, *self.ending(question, history)]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids; special tokens are never part of it."""
        special = (self.codec.pad, self.codec.bos, self.codec.eos)
        return self.codec.detokenize([int(id_) for id_ in ids if id_ not in special])

    def get_vocab(self) -> dict[str, int]:
        """Pieces and their ids."""
        processor = self.codec.processor
        return {processor.id_to_piece(id_): id_ for id_ in range(processor.get_piece_size())}

    def _segments(self, question: str, history: History, answer: str | None) -> list[tuple[list[int], int]]:
        """Turns as (ids, number of ids before the answer): question, answer and the end of the answer."""
        questions = [*(earlier for earlier, _ in history), question]
        for text in questions:
            if IMAGE in text:
                raise ConfigError(
                    f"the question {text!r} has {IMAGE}, which stands for an image in the model's prompt;"
                    " leave it out"
                )
        answers = [*(reply for _, reply in history), answer]
        segments = []
        for number, (text, reply) in enumerate(zip(questions, answers, strict=True)):
            encode = self._continue if number else self.codec.encode
            turn = self.template.next_turn(text) if number else self.template.first_turn(text)
            question_ids = encode(turn)
            if reply is None:
                segments.append((question_ids, len(question_ids)))
            else:
                segments.append(([*encode(f"{turn} {reply}"), self.codec.eos], len(question_ids)))
        return segments

    def _continue(self, text: str) -> list[int]:
        """Ids of a text without a blank in front of it."""
        return self.codec.encode(_NEWLINE + text)[len(self.codec.encode(_NEWLINE)) :]
