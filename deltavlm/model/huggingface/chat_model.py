"""Chat model: a vision-language model of transformers as a `ChangeModel`.

A pair is encoded once into the cache of the beginning of the conversation, which ends with the second image;
every question continues from there. Architectures that were not tested with this cache (see `prefix`) get
the whole conversation with each question. Rows are (pair, question).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import GenerationConfig, LogitsProcessorList

from deltavlm.errors import ModelError
from deltavlm.messages import first_line, pluralize
from deltavlm.model.chat_turns import (
    REASONING_TOKENS,
    THINK,
    ChatFacts,
    chat_turns,
    drop_marks,
    drop_reasoning,
)
from deltavlm.model.config import ScoreCalibration
from deltavlm.model.device import wrap_torch_errors
from deltavlm.model.huggingface.prefix import Prefix, can_pad, continue_from, cut_after_images, run_prefix
from deltavlm.model.huggingface.scores import Recorder, YesNo, answer_start
from deltavlm.model.interface import PairContext, Pixels, Question, Reply
from deltavlm.model.memory import ROWS, Meter, rows_that_fit, run_in_batches

logger = logging.getLogger(__name__)

PAIRS = {"cpu": 8, "mps": 8, "cuda": 32}  # per batch; the cache of each is kept until all are answered
IMAGE = {"type": "image"}  # in the words of chat templates
CACHED_TEXTS = 4096  # token lists that are kept


@dataclass(frozen=True)
class EncodedPair:
    """Pair with the cache of the beginning of all conversations about it."""

    images: tuple[Image.Image, Image.Image]
    context: PairContext
    prefix: Prefix | None  # None for an architecture that is not asked with a cache


@dataclass(frozen=True, repr=False)
class ChatModel(ChatFacts):
    """A ChangeModel: a vision-language model with its processor on one device."""

    model: Any  # PreTrainedModel
    processor: Any
    name: str
    fingerprint: str
    device: str
    details: dict[str, Any]
    yes_no: YesNo
    uses_prefix: bool
    pads: bool = False  # questions of different lengths share a batch
    always_reasons: bool = False  # the chat template begins the reasoning of every answer
    tells_facts: bool = True  # dates and ground size of a pixel are in the prompt
    calibration: ScoreCalibration | None = None  # of P(yes), to somebody's own chips
    meter: Meter | None = None  # of the memory that batch sizes follow; None for fixed sizes
    tokens: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)  # by text and size of the images
    warned: set[str] = field(default_factory=set)  # messages that were logged

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} on {self.device}>"

    @torch.inference_mode()
    def encode(
        self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()
    ) -> list[EncodedPair]:
        """Encode N pairs, one by one.

        Args:
            before, after: (N, 3, H, W) uint8 RGB, of any size.
            contexts: one for each pair, or none.

        Raises: ModelOutOfMemory if a pair does not fit, ModelError.
        """
        contexts = contexts or [PairContext()] * len(before)
        if not self.tells_facts:
            contexts = [PairContext(evidence=context.evidence) for context in contexts]
        with wrap_torch_errors(pluralize(len(before), "pair"), self.device):
            return [
                self._encode_pair((to_image(first), to_image(second)), context)
                for first, second, context in zip(before, after, contexts, strict=True)
            ]

    def answer(
        self, encoded: list[EncodedPair], questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Answer every question about all pairs, or those with the indices `pairs`: [pair][question].

        Raises: ModelOutOfMemory, ModelError.
        """
        pairs = range(len(encoded)) if pairs is None else pairs
        replies = self.answer_rows(encoded, [(pair, question) for question in questions for pair in pairs])
        return [replies[index :: len(pairs)] for index in range(len(pairs))]

    @torch.inference_mode()
    def answer_rows(self, encoded: list[EncodedPair], rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answer rows of (index of a pair, question), in their order; equal rows are answered once.

        A batch that does not fit into memory is halved. Rows that end while the model reasons are asked again
        with more room.

        Raises: ModelOutOfMemory if a single row does not fit, ModelError.
        """
        room = REASONING_TOKENS if self.always_reasons else 0
        replies = dict.fromkeys(rows)
        for extra in dict.fromkeys((room, REASONING_TOKENS)):
            missing = [row for row, reply in replies.items() if reply is None]
            replies.update(zip(missing, self._answer_distinct(encoded, missing, extra), strict=True))
        if None in replies.values():
            self._warn_once(
                f"{self.name} reasons for more than {REASONING_TOKENS} tokens: some answers are empty"
            )
        return [replies[row] or Reply("", math.nan) for row in rows]

    def _answer_distinct(
        self, encoded: list[EncodedPair], rows: Sequence[tuple[int, Question]], extra: int
    ) -> list[Reply | None]:
        """Answer rows, none twice, in their order; `extra` tokens are for reasoning. None for a row that ends
        while the model reasons."""
        asked = [(encoded[pair], question) for pair, question in rows]
        with wrap_torch_errors(pluralize(len(rows), "question"), self.device):
            lengths = [self._lengths(*row) for row in asked]

        def key(index: int) -> Hashable:
            """Rows with an equal key may share a batch."""
            prefix, limit = asked[index][0].prefix, asked[index][1].max_new_tokens
            padded = self.pads and (prefix is None or can_pad(prefix))
            return (limit, () if padded else lengths[index])

        def answer_batch(batch: Sequence[int]) -> list[Reply | None]:
            with wrap_torch_errors(pluralize(len(batch), "question"), self.device):
                return self._answer([asked[index] for index in batch], extra)

        order = sorted(range(len(rows)), key=lambda index: (asked[index][1].max_new_tokens, lengths[index]))
        limit = self._row_batch_size(max((sum(each) for each in lengths), default=1) + extra, rows)
        replies = run_in_batches(order, limit, answer_batch, key)
        return [replies[index] for index in range(len(rows))]

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch."""
        return PAIRS[self.device.split(":")[0]]

    def _encode_pair(self, images: tuple[Image.Image, Image.Image], context: PairContext) -> EncodedPair:
        pair = EncodedPair(images, context, None)
        if not self.uses_prefix:
            return pair
        inputs = self._inputs([(pair, Question("", ""))])
        inputs = cut_after_images(inputs, image_token(self.model.config))
        with self._model_errors():
            prefix = run_prefix(self.model, inputs, generation_config=self._generation_config(1))
        return EncodedPair(images, context, prefix)

    def _answer(self, rows: Sequence[tuple[EncodedPair, Question]], extra: int) -> list[Reply | None]:
        """Answer one batch; see `_answer_distinct`."""
        inputs = self._continued(rows) if self.uses_prefix else self._inputs(rows)
        recorder = Recorder(self.yes_no)
        limit = max(question.max_new_tokens for _, question in rows) + extra
        with self._model_errors():
            sequences = self.model.generate(
                **inputs,
                generation_config=self._generation_config(limit),
                logits_processor=LogitsProcessorList([recorder]),
            )
        new = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        log_probs, margins = recorder.rows()
        return [
            self._reply(question, extra, *generated)
            for (_, question), *generated in zip(rows, new, log_probs, margins, strict=True)
        ]

    @contextmanager
    def _model_errors(self) -> Iterator[None]:
        """Raise errors of the code of an architecture, other than torch's own, as ModelError."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(f"{self.name} cannot answer ({reason}); give another model") from error

    def _reply(
        self,
        question: Question,
        extra: int,
        ids: Sequence[int],
        log_probs: Sequence[float],
        margins: Sequence[float],
    ) -> Reply | None:
        """Text and score of a generated row, see `Reply.score`; None if it ends while the model reasons.

        Reasoning before the answer does not count; the score is NaN if there is nothing else, or if the
        tokenizer has no tokens for yes and no.
        """
        ids = ids[: question.max_new_tokens + extra]  # its own limit; the batch ran to the largest
        end = next((index for index, id_ in enumerate(ids) if id_ in self._ends), len(ids))
        tokenizer = self.processor.tokenizer
        start = answer_start(tokenizer, ids[:end], reasons=self.always_reasons)
        if start == end == len(ids):
            return None
        end = min(end, start + question.max_new_tokens)
        length = min(end + 1, start + question.max_new_tokens, len(ids))
        before = THINK if self.always_reasons else ""
        text = drop_reasoning(before + tokenizer.decode(ids[:end], skip_special_tokens=True))
        text = drop_marks(text, self._marks)
        if start >= length:
            return Reply(text, math.nan)
        if question.yes_no:
            margin = margins[start]
            if self.calibration is not None:
                margin = self.calibration.scale * margin + self.calibration.offset
            return Reply(text, math.nan if math.isnan(margin) else 1 / (1 + math.exp(-max(margin, -700.0))))
        return Reply(text, sum(log_probs[start:length]) / (length - start))

    @cached_property
    def _marks(self) -> list[str]:
        """Special tokens that are marks, and no words."""
        return [token for token in self.processor.tokenizer.all_special_tokens if token[0] in "<["]

    def _warn_once(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            logger.warning("%s", message)

    def _text(self, pair: EncodedPair, question: Question) -> str:
        """Conversation in the words of the chat template."""
        return chat_text(self.processor, chat_turns(pair.context, question))

    def _inputs(self, rows: Sequence[tuple[EncodedPair, Question]]) -> dict[str, Any]:
        """Inputs of `generate` for whole conversations, padded on the left."""
        texts = [self._text(pair, question) for pair, question in rows]
        return self._process(texts, [list(pair.images) for pair, _ in rows])

    def _process(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, Any]:
        inputs = read_chats(self.processor, texts, images, padding_side="left", name=self.name)
        return {name: self._to_device(value) for name, value in inputs.items()}

    def _to_device(self, value: Any) -> Any:
        """Tensor on the device, pixels in the dtype of the weights; any other value as it is."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)

    def _continued(self, rows: Sequence[tuple[EncodedPair, Question]]) -> dict[str, Any]:
        """Inputs of `generate` for rows that continue from the prefixes of their pairs."""
        prefixes = [pair.prefix for pair, _ in rows if pair.prefix is not None]
        tails = [
            self._token_ids(pair, question)[len(prefix.ids) :]
            for (pair, question), prefix in zip(rows, prefixes, strict=True)
        ]
        return continue_from(self.model, prefixes, tails, self._pad, self.device)

    def _token_ids(self, pair: EncodedPair, question: Question) -> tuple[int, ...]:
        """Tokens of a conversation, those of the images included; they depend on the sizes of the images
        only."""
        text = self._text(pair, question)
        sizes = tuple(image.size for image in pair.images)
        ids = self.tokens.get((text, sizes))
        if ids is None:
            blank = [Image.new("RGB", size) for size in sizes]
            ids = tuple(self._process([text], [blank])["input_ids"][0].tolist())
            if len(self.tokens) >= CACHED_TEXTS:
                self.tokens.clear()
            self.tokens[text, sizes] = ids
        prefix = pair.prefix
        if prefix is not None and ids[: len(prefix.ids)] != prefix.ids:
            raise ModelError(f"{self.name}: a question changes the tokens before it; ask it in other words")
        return ids

    def _lengths(self, pair: EncodedPair, question: Question) -> tuple[int, int]:
        """Numbers of tokens of prefix and tail."""
        ids = self._token_ids(pair, question)
        length = 0 if pair.prefix is None else len(pair.prefix.ids)
        return length, len(ids) - length

    def _row_batch_size(self, tokens: int, rows: Sequence[tuple[int, Question]]) -> int:
        """Number of rows that are generated at once; `tokens` is the length of the longest conversation."""
        limit = ROWS[self.device.split(":")[0]]
        if self.meter is None or not rows:
            return limit
        tokens += max(question.max_new_tokens for _, question in rows)
        return rows_that_fit(self.meter, _row_bytes(self.model, tokens), limit)

    @property
    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)

    @property
    def _pad(self) -> int:
        pad: int = self.model.generation_config.pad_token_id
        return pad

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(self._ends),
            pad_token_id=self._pad,
        )


def chat_text(processor: Any, turns: Sequence[Mapping[str, Any]], *, asks: bool = True) -> str:
    """Turns of `chat_turns` in the words of the chat template; `asks`: the turn of the answer begins."""
    contents = [[IMAGE if item["type"] == "image" else item for item in turn["content"]] for turn in turns]
    text: str = processor.apply_chat_template(
        [{**turn, "content": content} for turn, content in zip(turns, contents, strict=True)],
        tokenize=False,
        add_generation_prompt=asks,
        enable_thinking=False,
    )
    return text


def read_chats(
    processor: Any,
    texts: list[str],
    images: list[list[Image.Image]],
    *,
    padding_side: Literal["left", "right"],
    name: str,
) -> Mapping[str, Any]:
    """Inputs of a model for texts of `chat_text` with their images. Raises: ModelError about model `name`."""
    bos = processor.tokenizer.bos_token
    starts = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
    try:
        inputs: Mapping[str, Any] = processor(
            text=texts, images=images, padding=True, padding_side=padding_side, return_tensors="pt", **starts
        )
    except (ValueError, IndexError, StopIteration) as error:  # a question with the token of an image
        raise ModelError(
            f"{name} cannot read a question: {first_line(error)}; ask it in other words"
        ) from error
    return inputs


def image_token(config: Any) -> int:
    """Token of an image in a configuration of transformers; -1 if it has none."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return -1


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Image of (3, H, W) uint8."""
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _row_bytes(model: Any, tokens: int) -> int:
    """Peak memory of one row, in bytes: keys and values twice, since the cache of a pair is copied for a
    batch; activations of one layer; a handful of logits in float32."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    head_px = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    size = model.dtype.itemsize
    cache = 2 * 2 * config.num_hidden_layers * key_heads * head_px * tokens * size
    intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = tokens * (8 * config.hidden_size + 4 * intermediate) * size + 2 * tokens**2 * 4
    return int(cache + layer + 6 * config.vocab_size * 4)
