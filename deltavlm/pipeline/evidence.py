"""Model with evidence: a model that reads text is told what another model, with a mask head, answers.

The other model sees a batch of pairs first. Its answers to the standard questions become sentences in the
context of each pair, and values in the output; the masks are its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deltavlm.errors import AnswerParseError, ConfigError
from deltavlm.model.calibration import apply_calibration, logits
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.interface import (
    ChangeModel,
    Labelled,
    Masks,
    ModelFacts,
    PairContext,
    Pixels,
    Question,
    Reply,
    standard_question,
)
from deltavlm.model.kinds import ModelSpec, kind_of, read_spec
from deltavlm.pipeline.answers import phrasebook_of
from deltavlm.pipeline.scale import Scale
from deltavlm.tasks import TASKS
from deltavlm.tasks.evidence import EVIDENCE_TASKS, Evidence
from deltavlm.tasks.phrasing import Phrase

__all__ = ["EvidencedModel", "check_evidence", "evidence_of", "evidence_options", "mask_model", "scales_of"]

_READS_NO_TEXT = (
    "model {name} reads its questions alone and cannot be told the evidence of {evidence}; leave `evidence` "
    "out, or ask a model that follows instructions"
)
_SAME = "`evidence='{evidence}'`: is the model that answers; name another one, such as nano"
_CALIBRATED = (
    "the calibration of {model} is of its scores without evidence; load it without one, and give one of the "
    "scores with evidence"
)
_NO_QUESTIONS = (
    "`evidence='{evidence}'`: does not answer the standard questions about change, counts and cells; name a "
    "model that does, such as nano"
)


@dataclass
class _EncodedPairs:
    """N pairs with their evidence; the model that answers encodes them when it is asked about them."""

    before: Pixels  # (N, 3, H, W) uint8 RGB
    after: Pixels
    contexts: Sequence[PairContext]  # with the evidence in words
    evidence: Sequence[Evidence]
    evidence_features: Any  # of the N pairs, by the evidence model
    features: Any = None  # of the pairs with the indices `encoded`, by the model that answers
    encoded: Sequence[int] = ()


class EvidencedModel(Labelled):
    """A ChangeModel that answers by `model`, which reads the evidence of `evidence_model` about each pair.

    Counts and cells are no evidence where the scale is far from that of the evidence model's training, unless
    `any_scale`. The masks are those of the evidence model. `calibration` is of the scores with evidence.

    Raises: ConfigError where `model` reads no text or is calibrated, the evidence model does not answer the
        standard questions, or both are the same; InputError for a calibration of another model.
    """

    def __init__(
        self,
        model: ChangeModel,
        evidence_model: ChangeModel,
        *,
        any_scale: bool = False,
        calibration: ScoreCalibration | None = None,
    ) -> None:
        if not model.reads_context:
            raise ConfigError(_READS_NO_TEXT.format(name=model.name, evidence=evidence_model.name))
        if model.fingerprint == evidence_model.fingerprint:
            raise ConfigError(_SAME.format(evidence=evidence_model.name))
        book = phrasebook_of(evidence_model)
        if not {*EVIDENCE_TASKS} <= book.phrases.keys():
            raise ConfigError(_NO_QUESTIONS.format(evidence=evidence_model.name))
        if model.details.get("calibration") is not None:
            raise ConfigError(_CALIBRATED.format(model=model.name))
        self.model = model
        self.evidence_model = evidence_model
        self.any_scale = any_scale
        self.calibration = calibration
        if calibration is not None:
            calibration.check_model(self.name, self.fingerprint)
        self._phrases = [book.phrase(task) for task in EVIDENCE_TASKS]
        self._questions = [
            standard_question(TASKS[task], phrase=book.other_words(task)) for task in EVIDENCE_TASKS
        ]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} on {self.device}>"

    @property
    def name(self) -> str:
        return f"{self.model.name} with evidence of {self.evidence_model.name}"

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of both fingerprints."""
        both = f"{self.model.fingerprint} {self.evidence_model.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    @property
    def device(self) -> str:
        return self.model.device

    @property
    def details(self) -> dict[str, Any]:
        """Details of the model that answers, both identities, and the details of the evidence model."""
        return {
            **self.model.details,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "answering": {"name": self.model.name, "fingerprint": self.model.fingerprint},
            "evidence": {
                "name": self.evidence_model.name,
                "fingerprint": self.evidence_model.fingerprint,
                "chip_px": self.evidence_model.chip_px,
                "training_gsd_m": self.evidence_model.training_gsd_m,
                **self.evidence_model.details,
            },
        }

    @property
    def chip_px(self) -> int:
        return self.model.chip_px

    @property
    def training_gsd_m(self) -> float | None:
        return self.model.training_gsd_m

    @property
    def phrasebook(self) -> str:
        return self.model.phrasebook

    @property
    def reads_context(self) -> bool:
        return True

    @property
    def workers(self) -> int:
        return self.model.workers

    def init_worker(self) -> None:
        """Set up the calling thread for both models."""
        self.evidence_model.init_worker()
        self.model.init_worker()

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch, which suits both models."""
        return min(self.evidence_model.auto_batch_size(), self.model.auto_batch_size())

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> _EncodedPairs:
        """Collect the evidence about N pairs; `before` and `after` are (N, 3, H, W) uint8 RGB.

        Raises: ModelOutOfMemory, ModelError.
        """
        contexts = contexts or [PairContext()] * len(before)
        features = self.evidence_model.encode(before, after, contexts)
        rows = self.evidence_model.answer(features, self._questions)
        evidence = [
            self._evidence(row, is_far=Scale.of(context.gsd_m, self.evidence_model, before.shape[-1]).is_far)
            for row, context in zip(rows, contexts, strict=True)
        ]
        contexts = [
            replace(context, evidence=each.sentences(self.evidence_model.name))
            for context, each in zip(contexts, evidence, strict=True)
        ]
        return _EncodedPairs(before, after, contexts, evidence, features)

    def answer(
        self, encoded: _EncodedPairs, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Answer every question about all pairs, or those with the indices `pairs`: [pair][question].

        Raises: ModelOutOfMemory, ModelError.
        """
        pairs = range(len(encoded.evidence)) if pairs is None else pairs
        index_of = self._encode(encoded, pairs)
        replies = self.model.answer(encoded.features, questions, [index_of[pair] for pair in pairs])
        return [[*map(self._calibrated, questions, row)] for row in replies]

    def answer_rows(self, encoded: _EncodedPairs, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answer rows of (index of a pair, question), in their order.

        Raises: ModelOutOfMemory, ModelError.
        """
        index_of = self._encode(encoded, [pair for pair, _ in rows])
        asked = [(index_of[pair], question) for pair, question in rows]
        replies = self.model.answer_rows(encoded.features, asked)
        return [self._calibrated(question, reply) for (_, question), reply in zip(rows, replies, strict=True)]

    def masks(self, encoded: _EncodedPairs) -> Masks | None:
        """Change masks of the evidence model; None if it has no mask head."""
        return self.evidence_model.masks(encoded.evidence_features)

    def _encode(self, encoded: _EncodedPairs, pairs: Sequence[int]) -> dict[int, int]:
        """Encode these pairs by the model that answers, unless they are; index of each encoded pair."""
        if encoded.features is None or not {*pairs} <= {*encoded.encoded}:
            chosen = sorted({*pairs})
            encoded.features = self.model.encode(
                encoded.before[chosen], encoded.after[chosen], [encoded.contexts[pair] for pair in chosen]
            )
            encoded.encoded = chosen
        return {pair: index for index, pair in enumerate(encoded.encoded)}

    def _calibrated(self, question: Question, reply: Reply) -> Reply:
        """Reply whose score, of a yes/no question, is calibrated."""
        if self.calibration is None or not question.yes_no or math.isnan(reply.score):
            return reply
        return replace(reply, score=float(apply_calibration(self.calibration, logits(reply.score))))

    def _evidence(self, replies: Sequence[Reply], *, is_far: bool) -> Evidence:
        """Evidence of the replies to the standard questions."""
        changed, counts, cells = (
            _read(phrase, reply) for phrase, reply in zip(self._phrases, replies, strict=True)
        )
        score = replies[0].score if math.isfinite(replies[0].score) else None
        if is_far and not self.any_scale:
            return Evidence(changed, score)
        return Evidence(changed, score, counts, cells)


def _read(phrase: Phrase, reply: Reply) -> Any:
    """Value of a reply; None where it cannot be parsed."""
    try:
        return phrase.read(reply.text)
    except AnswerParseError:
        return None


def evidence_of(encoded: Any) -> Sequence[Evidence] | None:
    """Evidence about each of the pairs that a model has encoded; None for a model without."""
    return encoded.evidence if isinstance(encoded, _EncodedPairs) else None


def mask_model(model: ModelFacts) -> ModelFacts:
    """Model whose masks an output has: the evidence model if there is one, else the model itself."""
    return getattr(model, "evidence_model", None) or model


def scales_of(gsd_m: float | None, model: ModelFacts, chip_px: int) -> list[Scale]:
    """Scales of chips of `chip_px` pixels for a model, and for its evidence model if there is one."""
    scales = [Scale.of(gsd_m, model, chip_px)]
    other = mask_model(model)
    if other is not model:
        scales.append(Scale.of_evidence(gsd_m, other, chip_px))
    return scales


def check_evidence(name: str, evidence: str) -> ModelSpec:
    """Check, before they are loaded, that the model `name` can be told the evidence of another.

    Returns: what is known of the other model.

    Raises: InputError where there is no such model as `evidence`; ConfigError where `name` reads no text, or
        is the same.
    """
    if not kind_of(name):
        raise ConfigError(_READS_NO_TEXT.format(name=name, evidence=evidence))
    if name == evidence:
        raise ConfigError(_SAME.format(evidence=evidence))
    return read_spec(evidence)


def evidence_options(options: RuntimeOptions) -> RuntimeOptions:
    """Options of the evidence model: of the device, the Hub and servers as for the model that answers."""
    return replace(
        options, dtype="auto", decode=None, beams=None, prompt_style=None, quantize=None, calibration=None
    )
