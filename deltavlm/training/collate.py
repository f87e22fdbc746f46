"""Collation of samples into padded tensors: images, masks, captions, questions with their answers.

B pairs, M of them with masks, R rows (a question and its answer), S tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORE_INDEX, Text
from deltavlm.model.tokenizer import Codec
from deltavlm.text_norm import normalise
from deltavlm.training.config import ANSWERING, Phase
from deltavlm.training.sampling import Batch, MixedSampler, Turn

MAX_ANSWER_TOKENS = 256  # as in the published training; longer answers are truncated
BUCKET_ROWS = 8  # at least, for each length bucket
MAX_BUCKETS = 6


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """R padded rows of a question and its answer."""

    pair_index: Tensor  # (R,) pair that a row is about
    question: Text  # for the Q-Former
    text: Text  # for the language model: begin, question, answer, end
    labels: Tensor  # (R, S) token ids of answer and end, else IGNORE_INDEX

    def to(self, device: torch.device) -> AnswerBatch:
        return AnswerBatch(
            self.pair_index.to(device), self.question.to(device), self.text.to(device), self.labels.to(device)
        )

    @property
    def label_tokens(self) -> int:
        """Number of tokens that carry a loss."""
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A micro-batch in tensors, with what the losses of its phase need.

    `terms`: number of terms that each sum of the learner has. It is known before anything is computed, so
    that the mean of a step can be over all its processes and micro-batches.
    """

    before: Tensor  # (B, 3, P, P) uint8
    after: Tensor
    terms: dict[str, float]
    mask: Tensor | None = None  # (M, ...) of the first M pairs
    density: Tensor | None = None
    answers: tuple[AnswerBatch, ...] = ()  # in buckets of like length
    caption: Text | None = None  # (B, S)
    caption_group: Tensor | None = None  # (B,) captions of one group have the same meaning
    noise_seed: int = 0

    def to(self, device: torch.device) -> TrainBatch:
        mask, density, caption_group = (
            None if tensor is None else tensor.to(device)
            for tensor in (self.mask, self.density, self.caption_group)
        )
        return replace(
            self,
            before=self.before.to(device),
            after=self.after.to(device),
            mask=mask,
            density=density,
            answers=tuple(answers.to(device) for answers in self.answers),
            caption=self.caption.to(device) if self.caption else None,
            caption_group=caption_group,
        )


@dataclass(frozen=True, slots=True)
class TrainLoader:
    """Loader of micro-batches: samples of the slots of a step, collated."""

    sampler: MixedSampler
    collate: Callable[[Batch], TrainBatch]

    def micro_batch(self, step: int, start: int, stop: int) -> TrainBatch:
        return self.collate(self.sampler.batch(step, start, stop))


def collate(batch: Batch, phase: Phase, config: DeltaVLMConfig, codecs: tuple[Codec, Codec]) -> TrainBatch:
    """Turn a batch into the tensors that the losses of a phase need.

    `codecs` tokenize the question for the Q-Former and the text for the language model.
    """
    tensors = TrainBatch(
        torch.from_numpy(batch.before), torch.from_numpy(batch.after), {}, noise_seed=batch.noise_seed
    )
    terms: dict[str, float] = {}
    if phase.part in ("vision", "joint"):
        has_masks = batch.mask is not None and batch.density is not None
        terms |= dict.fromkeys(("mask", "density"), float(has_masks))
        if batch.mask is not None and batch.density is not None:
            tensors = replace(
                tensors, mask=torch.from_numpy(batch.mask), density=torch.from_numpy(batch.density)
            )
    if phase.part in ANSWERING:
        buckets = tuple(collate_answers(config, codecs, batch.turns))
        by_token = phase.balance == "token"
        terms["words"] = float(
            sum(rows.label_tokens if by_token else len(rows.pair_index) for rows in buckets)
        )
        tensors = replace(tensors, answers=buckets)
    if phase.part == "align":
        captions = [normalise(turns[0][1]) for turns in batch.turns]
        max_tokens = config.qformer.max_text_tokens
        ids = [codecs[0].encode_question(text, max_tokens) for text in captions]
        # all captions that say that nothing has changed have the same meaning
        groups = [
            zlib.crc32(text.encode()) if changed else 0
            for text, changed in zip(captions, batch.changed, strict=True)
        ]
        terms |= dict.fromkeys(("contrastive", "matching", "recall_at_1"), float(len(captions)))
        tensors = replace(
            tensors, caption=codecs[0].pad_batch(ids, "right"), caption_group=torch.tensor(groups)
        )
    return replace(tensors, terms=terms)


@dataclass(frozen=True, slots=True)
class _TokenRow:
    """Token ids of one question and its answer."""

    pair: int
    question: list[int]
    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def collate_answers(
    config: DeltaVLMConfig,
    codecs: tuple[Codec, Codec],
    turns: Sequence[Sequence[Turn]],
    buckets: int | None = None,
) -> list[AnswerBatch]:
    """Tokenize and pad the turns of all pairs, in buckets of like length to save padding.

    Default of `buckets`: at most 6, of at least 8 rows each. Questions are formatted as at inference,
    answers are normalised. A prompt too long for the language model's context loses its beginning.
    """
    questions, codec = codecs
    rows: list[_TokenRow] = []
    for pair, pair_turns in enumerate(turns):
        for prompt, answer in pair_turns:
            text = config.prompt.format(prompt)
            question = questions.encode_question(text, config.qformer.max_text_tokens)
            answer_ids = [*codec.encode(normalise(answer))[: MAX_ANSWER_TOKENS - 1], codec.eos]
            max_prompt = config.language.context - config.qformer.queries - len(answer_ids) - 1
            rows.append(
                _TokenRow(pair, question, [codec.start, *codec.encode(text)[-max_prompt:]], answer_ids)
            )
    rows.sort(key=lambda row: row.length)
    buckets = buckets or min(max(len(rows) // BUCKET_ROWS, 1), MAX_BUCKETS)
    size = -(-len(rows) // buckets)
    return [_pad(questions, codec, rows[start : start + size]) for start in range(0, len(rows), size)]


def _pad(questions: Codec, codec: Codec, rows: Sequence[_TokenRow]) -> AnswerBatch:
    text = codec.pad_batch([[*row.prompt, *row.answer] for row in rows], "right")
    answer_starts = torch.tensor([len(row.prompt) for row in rows])
    labels = text.ids.masked_fill(text.mask == 0, IGNORE_INDEX)
    labels = labels.masked_fill(torch.arange(labels.shape[1])[None] < answer_starts[:, None], IGNORE_INDEX)
    question = questions.pad_batch([row.question for row in rows], "right")
    return AnswerBatch(torch.tensor([row.pair for row in rows]), question, text, labels)
