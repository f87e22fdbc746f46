"""Answering of questions by a DeltaVLM checkpoint: rounds, batches and scores; without torch.

N pairs, R rows of (pair, question), S tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deltavlm.errors import ConfigError
from deltavlm.messages import UNSUPPORTED, pluralize
from deltavlm.model.config import DeltaVLMConfig, ScoreCalibration
from deltavlm.model.constraint import AnyAnswer, Constraint
from deltavlm.model.interface import AnswerForm, CheckpointFacts, Question, Reply
from deltavlm.model.memory import run_in_batches
from deltavlm.model.tokenizer import Codec

BUILDINGS = "building_built"  # class whose number the answers give


class Scope(Protocol):
    """Question scope: tells which questions a model was taught to answer."""

    def supports(self, question: str, *, after_answer: bool = False) -> bool:
        """True if a question can be answered."""
        ...


@dataclass(frozen=True, slots=True)
class GeneratedRows:
    """Generated tokens of R rows, N at most per row."""

    ids: npt.NDArray[np.int64]  # (R, N), padded after the end of an answer
    log_probs: npt.NDArray[np.float32]  # (R, N) log-probability of each token, 0 on padding
    first_logits: npt.NDArray[np.float32]  # (R, vocabulary) of the first token, before any penalty


class CheckpointModel(CheckpointFacts, ABC):
    """A ChangeModel of a DeltaVLM checkpoint; a runtime adds `encode`, `masks` and `generate_rows`."""

    config: DeltaVLMConfig
    questions: Codec  # of the Q-Former
    codec: Codec  # of the language model
    device: str
    fingerprint: str
    threads: int  # of the CPU
    scope: Scope | None  # None: every question is answered
    calibration: ScoreCalibration | None  # to somebody's own chips, for the record; `config` has its effect

    @property
    def details(self) -> dict[str, Any]:
        return {
            "decoding": asdict(self.config.decoding),
            "prompt": asdict(self.config.prompt),
            "difference": self.config.difference.mode,
            "sources": self.config.sources,
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    @property
    def phrasebook(self) -> str:
        return "deltavlm"

    @property
    def workers(self) -> int:
        """Two on a CPU: cores that share every matrix product wait for each other after each, and mostly
        wait where another process uses one of them."""
        return 2 if self.device == "cpu" and self.threads > 1 else 1

    @abstractmethod
    def generate_rows(
        self,
        encoded: Any,
        rows: Sequence[tuple[int, Question]],
        stops: Sequence[tuple[int, int]],
        constraints: Sequence[Constraint | None],
    ) -> GeneratedRows:
        """Generate answers to one batch of rows, whose prompts are of equal length on a CPU.

        stops: token ids of each row; a greedy row stops after its first token if that is one of them.

        Raises: ModelOutOfMemory if the batch does not fit, ModelError.
        """

    @abstractmethod
    def counts(self, encoded: Any) -> npt.NDArray[np.float32] | None:
        """Numbers (N, K) of the new objects that the mask head counts; None without one."""

    def new_buildings(self, encoded: Any) -> Sequence[int | None]:
        """New buildings of each of N pairs by the mask head; None where the language model counts them."""
        dense, counts = self.config.dense, None
        if self.config.decoding.counts == "dense" and dense is not None and BUILDINGS in dense.counted:
            counts = self.counts(encoded)
        if dense is None or counts is None:
            return [None] * len(encoded)
        return [round(float(number)) for number in counts[:, dense.counted.index(BUILDINGS)]]

    @abstractmethod
    def row_batch_size(self, questions: Sequence[Question]) -> int:
        """Number of rows that are generated at once, for the longest of these questions."""

    def answer(
        self, encoded: Any, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Answer every question about every pair.

        Args:
            encoded: features of N pairs, from `encode`.
            questions: asked of each pair.
            pairs: indices of the pairs to ask about; None for all.

        Returns: replies as [pair][question].

        Raises: ModelOutOfMemory, ModelError; ConfigError if a question is too long.
        """
        pairs = range(len(encoded)) if pairs is None else pairs
        replies = self.answer_rows(encoded, [(pair, question) for question in questions for pair in pairs])
        return [replies[index :: len(pairs)] for index in range(len(pairs))]

    def answer_rows(self, encoded: Any, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answer R rows, each an index into `encoded` and a question, in the order of the rows.

        Rows of similar length share a batch, so that little is padding; on a CPU, where a padded token costs
        more than a smaller batch, only rows of equal length do. A batch that does not fit is halved. The
        language model is not asked questions outside of the scope.

        A model that decodes consistently answers in rounds: each question after those that it agrees with, so
        that its answer is the same whatever else is asked.

        Raises: ModelOutOfMemory if a single row does not fit, ModelError; ConfigError if a question is too
            long.
        """
        distinct = dict.fromkeys(question for _, question in rows)
        unsupported = {question for question in distinct if not self.supports(question)}
        supported_rows = [row for row in rows if row[1] not in unsupported]
        replies = iter(
            self._redecode_declined(encoded, supported_rows, self._answer_supported(encoded, supported_rows))
        )
        return [
            Reply(UNSUPPORTED, math.nan) if question in unsupported else next(replies) for _, question in rows
        ]

    def supports(self, question: Question) -> bool:
        """True if the model was taught to answer a question, as far as it can tell."""
        if self.scope is None or not question.typed:
            return True
        return self.scope.supports(question.typed, after_answer=question.after_answer)

    def _redecode_declined(
        self, encoded: Any, rows: Sequence[tuple[int, Question]], replies: Sequence[Reply]
    ) -> list[Reply]:
        """Replies to R rows of supported questions, where those that the language model declined are decoded
        again without its sentence: with a question scope, that alone decides what is unsupported."""
        replies = list(replies)
        if self.scope is None or self.config.decoding.beams > 1:
            return replies
        declined = [
            index
            for index, (row, reply) in enumerate(zip(rows, replies, strict=True))
            if row[1].typed and UNSUPPORTED in reply.text
        ]
        forms = [AnyAnswer()] * len(declined)
        again = self._answer_round(encoded, [rows[index] for index in declined], forms)
        for index, reply in zip(declined, again, strict=True):
            replies[index] = reply
        return replies

    def _answer_supported(self, encoded: Any, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answers of the language model to R rows, in their order; see `Decoding.consistent`."""
        if not self.config.decoding.is_constrained:
            return self._answer_round(encoded, rows, [None] * len(rows))
        replies: dict[tuple[int, Question], Reply] = {}
        buildings = self.new_buildings(encoded)
        pending = list(dict.fromkeys((pair, each) for pair, asked in rows for each in in_order(asked)))
        while pending:
            forms: dict[tuple[int, Question], AnswerForm | None] = {}  # of the rows of this round
            for pair, question in pending:
                if not all((pair, each) in replies for each in question.agrees_with):
                    continue
                earlier = [replies[pair, each] for each in question.agrees_with]
                counted = {"counted": buildings[pair]} if question.counted else {}
                form = question.form and question.form(*(reply.text for reply in earlier), **counted)
                drafts = [
                    reply
                    for each, reply in zip(question.agrees_with, earlier, strict=True)
                    if form and each.prompt == question.prompt and form.ends(reply.text)
                ]
                if drafts:
                    replies[pair, question] = drafts[0]
                elif form and form.only_text is not None:
                    replies[pair, question] = Reply(form.only_text, 0.0)
                else:
                    forms[pair, question] = form
            ready = list(forms)  # empty where the earlier answers left nothing to ask
            replies.update(zip(ready, self._answer_round(encoded, ready, list(forms.values())), strict=True))
            pending = [row for row in pending if row not in replies]
        return [replies[row] for row in rows]

    def _answer_round(
        self, encoded: Any, rows: Sequence[tuple[int, Question]], forms: Sequence[AnswerForm | None]
    ) -> list[Reply]:
        """Answers to R rows that need no other answers, each in its form."""
        if not rows:
            return []
        prompts = dict.fromkeys(question.prompt for _, question in rows)  # each is tokenized once
        tokens = {prompt: len(self.codec.encode(self.format_prompt(prompt))) for prompt in prompts}
        lengths = [tokens[question.prompt] for _, question in rows]

        def answer_batch(batch: Sequence[int]) -> list[Reply]:
            return self._answer_batch(
                encoded, [rows[index] for index in batch], [forms[index] for index in batch]
            )

        replies = run_in_batches(
            sorted(range(len(rows)), key=lambda index: lengths[index]),
            self.row_batch_size([question for _, question in rows]),
            answer_batch,
            key=lengths.__getitem__ if self.device == "cpu" else None,
        )
        return [replies[index] for index in range(len(rows))]

    def _answer_batch(
        self, encoded: Any, rows: Sequence[tuple[int, Question]], forms: Sequence[AnswerForm | None]
    ) -> list[Reply]:
        """Answer one batch: yes/no questions from the first logits, others by generating text."""
        is_plain = self.config.decoding.is_plain
        generated = self.generate_rows(
            encoded,
            [(pair, self._shortened(question)) for pair, question in rows],
            [self._yes_no_ids() if question.yes_no and is_plain else (-1, -1) for _, question in rows],
            [None if form is None else Constraint(form, self._pieces, self.codec.eos) for form in forms],
        )
        return self._score(generated, [question for _, question in rows])

    def _shortened(self, question: Question) -> Question:
        """The question with one token for its answer, where P(yes) of the first decides alone."""
        return replace(question, max_new_tokens=1) if self._is_decided_by_score(question) else question

    def _is_decided_by_score(self, question: Question) -> bool:
        return question.yes_no and self.config.decoding.is_constrained and not question.typed

    def format_prompt(self, prompt: str) -> str:
        """The question in the format of the model's training."""
        return self.config.prompt.format(prompt)

    def token_ids(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of R formatted prompts: for the Q-Former, and for the language model."""
        max_tokens = self.config.qformer.max_text_tokens
        for_qformer = [self.questions.encode_question(prompt, max_tokens) for prompt in prompts]
        return for_qformer, [[self.codec.start, *self.codec.encode(prompt)] for prompt in prompts]

    def token_ids_of_rows(
        self, rows: Sequence[tuple[int, Question]]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of R questions. Raises: ConfigError for a question that is too long."""
        for_qformer, for_language = self.token_ids(
            [self.format_prompt(question.prompt) for _, question in rows]
        )
        available = self.config.language.context - self.config.qformer.queries
        for ids, (_, question) in zip(for_language, rows, strict=True):
            if len(ids) + question.max_new_tokens > available:
                raise ConfigError(
                    f"question {question.name!r} has {pluralize(len(ids) - 1, 'token')}; "
                    f"{self.name} reads at most {available - question.max_new_tokens - 1}; shorten it"
                )
        return for_qformer, for_language

    @cached_property
    def _pieces(self) -> list[str]:
        return self.codec.pieces(self.config.language.vocab)

    def _yes_no_ids(self) -> tuple[int, int]:
        return self.codec.encode("yes")[0], self.codec.encode("no")[0]

    def _score(self, generation: GeneratedRows, questions: Sequence[Question]) -> list[Reply]:
        """Decode R generated rows and score them; see `Reply.score`.

        In plain greedy decoding a "yes" or "no" as first token is a complete answer. Where answers have to
        agree, P(yes) alone decides on the standard question.
        """
        decoding = self.config.decoding
        yes, no = self._yes_no_ids()
        calibration = self.config.calibration
        yes_no_logit = generation.first_logits[:, yes] - generation.first_logits[:, no]
        exponent = np.clip(calibration.scale * yes_no_logit + calibration.offset, -80, 80)
        probabilities = (1 / (1 + np.exp(-exponent))).tolist()
        replies = []
        for question, ids, log_probs, probability in zip(
            questions, generation.ids.tolist(), generation.log_probs.tolist(), probabilities, strict=True
        ):
            if self._is_decided_by_score(question):
                replies.append(Reply("yes" if probability >= question.threshold else "no", probability))
                continue
            if question.yes_no and decoding.is_plain and ids[0] in (yes, no):
                replies.append(Reply("yes" if probability >= 0.5 else "no", probability))
                continue
            answer = ids[: question.max_new_tokens]  # its own limit; the batch ran to the largest
            length = max(1, sum(id_ != self.codec.pad for id_ in answer))
            score = probability if question.yes_no else sum(log_probs[:length]) / length
            replies.append(Reply(self.codec.decode(answer), score))
        return replies


def in_order(question: Question) -> Iterator[Question]:
    """Questions that a question agrees with, directly or not, and itself as the last; some repeatedly."""
    for each in question.agrees_with:
        yield from in_order(each)
    yield question
