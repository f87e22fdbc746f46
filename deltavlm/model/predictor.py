"""Predictor: images and questions in, answers with scores and change masks out; and `load`.

A pair is encoded once; many questions about many pairs are answered in one batch.
N pairs, R rows of (pair, question).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltavlm.errors import ConfigError, ModelOutOfMemory
from deltavlm.messages import UNSUPPORTED, pluralize
from deltavlm.model import checkpoint
from deltavlm.model.config import Decoding, DeltaVLMConfig, RuntimeOptions, ScoreCalibration
from deltavlm.model.constraint import Constraint
from deltavlm.model.deltavlm import DeltaVLM, Generation, GenerationOptions, PairFeatures, Text
from deltavlm.model.device import (
    bf16_cpu,
    pick_dtype,
    resolve_device,
    to_device,
    tune_malloc,
    wrap_torch_errors,
)
from deltavlm.model.folder import WEIGHTS, find_folder, read_config
from deltavlm.model.interface import AnswerForm, Labelled, Masks, PairContext, Pixels, Question, Reply
from deltavlm.model.kinds import ModelSpec
from deltavlm.model.memory import (
    CPU_ENCODE_PAIRS,
    PAIRS,
    ROWS,
    CudaMeter,
    Meter,
    pairs_that_fit,
    row_bytes,
    rows_that_fit,
    run_in_batches,
)
from deltavlm.model.quantize import describe
from deltavlm.model.scope import QuestionScope
from deltavlm.model.tokenizer import Codec, load_codecs


@dataclass(frozen=True, repr=False)
class Predictor(Labelled):
    """A ChangeModel: a DeltaVLM with its tokenizers on one device."""

    model: DeltaVLM
    config: DeltaVLMConfig
    questions: Codec  # of the Q-Former
    codec: Codec  # of the language model
    device: str
    fingerprint: str
    quantize: str | None = None  # method and library version, for the record
    meter: Meter | None = None  # of the memory that batch sizes follow; None for fixed sizes
    threads: int = 1  # of the CPU
    scope: QuestionScope | None = None  # None: every question is answered
    calibration: ScoreCalibration | None = (
        None  # to somebody's own chips, for the record; `config` has its effect
    )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} on {self.device}>"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def details(self) -> dict[str, Any]:
        return {
            "dtype": str(self.model.projection.weight.dtype).removeprefix("torch."),
            "quantize": self.quantize,
            "decoding": asdict(self.config.decoding),
            "prompt": asdict(self.config.prompt),
            "difference": self.config.difference.mode,
            "sources": self.config.sources,
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    @property
    def chip_px(self) -> int:
        return self.config.chip_px

    @property
    def training_gsd_m(self) -> float:
        return self.config.training_gsd_m

    @property
    def workers(self) -> int:
        """Two on a CPU: cores that share every matrix product wait for each other after each, and mostly
        wait where another process uses one of them."""
        return 2 if self.device == "cpu" and self.threads > 1 else 1

    def init_worker(self) -> None:
        """Limit the calling thread to its share of the CPU threads."""
        torch.set_num_threads(self.threads // self.workers)

    @torch.inference_mode()
    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> PairFeatures:
        """Encode N pairs into features that every question about them shares.

        On a CPU with bf16 matrix instructions the images are encoded in bf16, as in training.

        Args:
            before, after: (N, 3, H, W) uint8 RGB, of any size.
            contexts: not read.

        Returns: features in the dtype of the weights, on the model's device.

        Raises: ModelOutOfMemory if the batch does not fit, ModelError.
        """
        use_bf16 = self.device == "cpu" and bf16_cpu()
        step = CPU_ENCODE_PAIRS if self.device == "cpu" and self.meter is None else max(1, len(before))
        with (
            wrap_torch_errors(pluralize(len(before), "pair"), self.device),
            torch.autocast("cpu", torch.bfloat16, enabled=use_bf16),
        ):
            batches = [
                self.model.encode_pair(*(self.pixels(date[start : start + step]) for date in (before, after)))
                for start in range(0, max(1, len(before)), step)
            ]
        return PairFeatures.concat(batches).to(self.model.projection.weight.dtype)

    def answer(
        self, encoded: PairFeatures, questions: Sequence[Question], pairs: Sequence[int] | None = None
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

    def answer_rows(self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
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
        replies = iter(self._answer_supported(encoded, supported_rows))
        return [
            Reply(UNSUPPORTED, math.nan) if question in unsupported else next(replies) for _, question in rows
        ]

    def supports(self, question: Question) -> bool:
        """True if the model was taught to answer a question, as far as it can tell."""
        if self.scope is None or not question.typed:
            return True
        return self.scope.supports(question.typed, after_answer=question.after_answer)

    def _answer_supported(self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answers of the language model to R rows, in their order; see `Decoding.consistent`."""
        if not self.config.decoding.is_constrained:
            return self._answer_round(encoded, rows, [None] * len(rows))
        replies: dict[tuple[int, Question], Reply] = {}
        pending = list(dict.fromkeys((pair, each) for pair, asked in rows for each in in_order(asked)))
        while pending:
            forms: dict[tuple[int, Question], AnswerForm | None] = {}  # of the rows of this round
            for pair, question in pending:
                if not all((pair, each) in replies for each in question.agrees_with):
                    continue
                earlier = [replies[pair, each] for each in question.agrees_with]
                form = question.form and question.form(*(reply.text for reply in earlier))
                drafts = [
                    reply
                    for each, reply in zip(question.agrees_with, earlier, strict=True)
                    if form and each.prompt == question.prompt and form.ends(reply.text)
                ]
                if drafts:
                    replies[pair, question] = drafts[0]
                else:
                    forms[pair, question] = form
            ready = list(forms)
            replies.update(zip(ready, self._answer_round(encoded, ready, list(forms.values())), strict=True))
            pending = [row for row in pending if row not in replies]
        return [replies[row] for row in rows]

    def _answer_round(
        self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]], forms: Sequence[AnswerForm | None]
    ) -> list[Reply]:
        """Answers to R rows that need no other answers, each in its form."""
        prompts = dict.fromkeys(question.prompt for _, question in rows)  # each is tokenized once
        tokens = {prompt: len(self.codec.encode(self.format_prompt(prompt))) for prompt in prompts}
        lengths = [tokens[question.prompt] for _, question in rows]

        def answer_batch(batch: Sequence[int]) -> list[Reply]:
            with wrap_torch_errors(pluralize(len(batch), "question"), self.device):
                return self._answer(
                    encoded, [rows[index] for index in batch], [forms[index] for index in batch]
                )

        replies = run_in_batches(
            sorted(range(len(rows)), key=lambda index: lengths[index]),
            self.row_batch_size([question for _, question in rows]),
            answer_batch,
            key=lengths.__getitem__ if self.device == "cpu" else None,
        )
        return [replies[index] for index in range(len(rows))]

    def masks(self, encoded: PairFeatures) -> Masks | None:
        """Change masks of N pairs, (N, classes, rows, cols); None without a mask head.

        Raises: ModelOutOfMemory, ModelError.
        """
        if encoded.mask_logits is None or self.config.dense is None:
            return None
        with wrap_torch_errors(f"masks of {pluralize(len(encoded), 'pair')}", self.device):
            probabilities = encoded.mask_logits.float().softmax(dim=1).cpu().numpy()
        return Masks(self.config.dense.classes, probabilities)

    @property
    def phrasebook(self) -> str:
        return "deltavlm"

    @property
    def reads_context(self) -> bool:
        return False

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch; on a GPU as many as its memory holds, measured with noise."""
        if self.meter is None:
            return PAIRS[self.device.split(":")[0]]
        size = self.config.vision.image_px
        noise = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)

        def probe(count: int) -> None:
            batch = noise.repeat(count, axis=0)
            self.encode(batch, batch)

        return pairs_that_fit(self.meter, probe)

    def row_batch_size(self, questions: Sequence[Question]) -> int:
        """Number of rows that the language model generates at once, for the longest of these questions."""
        limit = ROWS[self.device.split(":")[0]]
        if self.meter is None or not questions:
            return limit
        tokens = self.config.qformer.queries + max(
            1 + len(self.codec.encode(self.format_prompt(question.prompt))) + question.max_new_tokens
            for question in questions
        )
        itemsize = self.model.projection.weight.itemsize
        bytes_each = row_bytes(self.config, tokens, self.config.decoding.beams, itemsize)
        return rows_that_fit(self.meter, bytes_each, limit)

    def pixels(self, images: Pixels) -> Tensor:
        """Normalised pixels (N, 3, image_px, image_px) on the device, of uint8 RGB (N, 3, H, W)."""
        size = self.config.vision.image_px
        if images.shape[-2:] != (size, size):
            images = np.stack([resize_image(image, size) for image in images])
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        return self.model.vision.normalise(to_device(pixels, self.device))

    def format_prompt(self, prompt: str) -> str:
        """The question in the format of the model's training."""
        return self.config.prompt.format(prompt)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Text, Text]:
        """Token batches of R formatted prompts: for the Q-Former, padded on the right, and for the language
        model, padded on the left."""
        max_tokens = self.config.qformer.max_text_tokens
        for_qformer = [self.questions.encode_question(prompt, max_tokens) for prompt in prompts]
        for_language = [[self.codec.start, *self.codec.encode(prompt)] for prompt in prompts]
        return (
            self.questions.pad_batch(for_qformer, "right").to(self.device),
            self.codec.pad_batch(for_language, "left").to(self.device),
        )

    def generation_options(self, max_new_tokens: int, decoding: Decoding) -> GenerationOptions:
        """Options for `DeltaVLM.generate` with this tokenizer's special tokens."""
        codec = self.codec
        return GenerationOptions(
            max_new_tokens, codec.bos, codec.eos, codec.pad, decoding.beams, decoding.repetition_penalty
        )

    def _answer(
        self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]], forms: Sequence[AnswerForm | None]
    ) -> list[Reply]:
        """Answer one batch: yes/no questions from the first logits, others by generating text."""
        tokens, question_text, text = self._inputs(encoded, rows)
        yes_no = self._yes_no_ids()
        is_plain = self.config.decoding.is_plain
        stops = [yes_no if question.yes_no and is_plain else (-1, -1) for _, question in rows]
        generation = self.model.generate(
            tokens,
            question_text,
            text,
            self.generation_options(
                max(question.max_new_tokens for _, question in rows), self.config.decoding
            ),
            stop_after_first_RK=torch.tensor(stops, device=tokens.device),
            constraints=[
                None if form is None else Constraint(form, self._pieces, self.codec.eos) for form in forms
            ],
        )
        return self._score(generation, [question for _, question in rows])

    @cached_property
    def _pieces(self) -> list[str]:
        return self.codec.pieces(self.config.language.vocab)

    def _yes_no_ids(self) -> tuple[int, int]:
        return self.codec.encode("yes")[0], self.codec.encode("no")[0]

    def _score(self, generation: Generation, questions: Sequence[Question]) -> list[Reply]:
        """Decode R generated rows and score them; see `Reply.score`.

        In plain greedy decoding a "yes" or "no" as first token is a complete answer. Where answers have to
        agree, P(yes) alone decides on the standard question.
        """
        decoding = self.config.decoding
        yes, no = self._yes_no_ids()
        calibration = self.config.calibration
        yes_no_logit = generation.first_logits[:, yes] - generation.first_logits[:, no]
        probabilities = torch.sigmoid(calibration.scale * yes_no_logit + calibration.offset).tolist()
        replies = []
        for question, ids, log_probs, probability in zip(
            questions, generation.ids.tolist(), generation.log_probs.tolist(), probabilities, strict=True
        ):
            if question.yes_no and decoding.is_constrained and not question.typed:
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

    def _inputs(
        self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]]
    ) -> tuple[Tensor, Text, Text]:
        """Inputs of `DeltaVLM.generate`. Raises: ConfigError for a question that is too long."""
        question_text, text = self.tokenize([self.format_prompt(question.prompt) for _, question in rows])
        available = self.config.language.context - self.config.qformer.queries
        for length, (_, question) in zip(text.mask.sum(dim=1).tolist(), rows, strict=True):
            if length + question.max_new_tokens > available:
                raise ConfigError(
                    f"question {question.name!r} has {pluralize(length - 1, 'token')}; "
                    f"{self.name} reads at most {available - question.max_new_tokens - 1}; shorten it"
                )
        pairs = torch.tensor([pair for pair, _ in rows], device=encoded.tokens.device)
        return encoded.tokens[pairs], question_text, text


def in_order(question: Question) -> Iterator[Question]:
    """Questions that a question agrees with, directly or not, and itself as the last; some repeatedly."""
    for each in question.agrees_with:
        yield from in_order(each)
    yield question


def resize_image(image_CHW: Pixels, size: int) -> Pixels:
    """Resize to (C, size, size), bicubic with antialiasing by Pillow, the preprocessing of the published
    model; that of transformers differs by a grey level."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def read_spec(name_or_folder: str, options: RuntimeOptions) -> ModelSpec:
    """What is known of a checkpoint without its weights; see `kinds.read_spec`."""
    folder = find_folder(name_or_folder)
    config = options.apply_to(read_config(folder))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelSpec(config.name, config.chip_px, config.training_gsd_m, config.dense is not None, size)


def load(name_or_folder: str, options: RuntimeOptions) -> Predictor:
    """Load a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = find_folder(name_or_folder)
    device = resolve_device(options)
    config = options.apply_to(read_config(folder))
    fingerprint, calibration = checkpoint.fingerprint(folder), options.calibration
    if calibration is not None:
        calibration.check_model(config.name, fingerprint)
    dtype = pick_dtype(options.dtype, config.language.hidden, device)
    if device == "cpu":
        tune_malloc()
    try:
        _, model = checkpoint.load(folder, dtype=dtype, device=device, quantize=options.quantize)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{config.name} does not fit on {device}; try `quantize='int8'` or int4, or `device='cpu'`"
        ) from error
    questions, codec = load_codecs(folder)
    return Predictor(
        model,
        config,
        questions,
        codec,
        device,
        fingerprint,
        describe(options.quantize) if options.quantize else None,
        CudaMeter(device) if device.startswith("cuda") else None,
        torch.get_num_threads(),
        checkpoint.load_scope(folder / WEIGHTS, config.scope) if config.scope else None,
        calibration,
    )
