"""Predictor: images and questions in, answers with scores and change masks out; and `load`.

A pair is encoded once; many questions about many pairs are answered in one batch.
N pairs, R rows of (pair, question).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deltavlm.errors import ModelOutOfMemory
from deltavlm.messages import pluralize
from deltavlm.model import checkpoint
from deltavlm.model.answering import CheckpointModel, GeneratedRows
from deltavlm.model.config import Decoding, DeltaVLMConfig, RuntimeOptions, ScoreCalibration
from deltavlm.model.constraint import Constraint
from deltavlm.model.deltavlm import DeltaVLM, GenerationOptions, PairFeatures, Text
from deltavlm.model.device import (
    bf16_cpu,
    pick_dtype,
    plan_device,
    resolve_device,
    to_device,
    tune_malloc,
    wrap_torch_errors,
)
from deltavlm.model.folder import WEIGHTS, find_folder, read_config
from deltavlm.model.folder import fingerprint as fingerprint_of
from deltavlm.model.footprint import Footprint, Stored, check_fits, footprint_of, sizes_of
from deltavlm.model.images import resize_images
from deltavlm.model.interface import Masks, PairContext, Pixels, Question
from deltavlm.model.memory import (
    CPU_ENCODE_PAIRS,
    PAIRS,
    QUESTIONS,
    ROWS,
    CudaMeter,
    Meter,
    free_memory,
    pair_bytes,
    pairs_that_fit,
    row_bytes,
    rows_that_fit,
)
from deltavlm.model.quantize import describe
from deltavlm.model.scope import QuestionScope
from deltavlm.model.tokenizer import Codec, load_codecs


@dataclass(frozen=True, repr=False)
class Predictor(CheckpointModel):
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
    allow_bf16: bool = True  # of images on a CPU; False where float32 was asked for

    @property
    def details(self) -> dict[str, Any]:
        dtype = str(self.model.projection.weight.dtype).removeprefix("torch.")
        return {"dtype": dtype, "quantize": self.quantize, **super().details}

    def init_worker(self) -> None:
        """Limit the calling thread to its share of the CPU threads."""
        torch.set_num_threads(self.threads // self.workers)

    @torch.inference_mode()
    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> PairFeatures:
        """Encode N pairs into features that every question about them shares.

        On a CPU with bf16 matrix instructions the images are encoded in bf16, as in training, unless float32
        was asked for.

        Args:
            before, after: (N, 3, H, W) uint8 RGB, of any size.
            contexts: not read.

        Returns: features in the dtype of the weights, on the model's device.

        Raises: ModelOutOfMemory if the batch does not fit, ModelError.
        """
        use_bf16 = self.allow_bf16 and self.device == "cpu" and bf16_cpu()
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

    def masks(self, encoded: PairFeatures) -> Masks | None:
        """Change masks of N pairs, (N, classes, rows, cols); None without a mask head.

        Raises: ModelOutOfMemory, ModelError.
        """
        if encoded.mask_logits is None or self.config.dense is None:
            return None
        with wrap_torch_errors(f"masks of {pluralize(len(encoded), 'pair')}", self.device):
            probabilities = encoded.mask_logits.float().softmax(dim=1).cpu().numpy()
        return Masks(self.config.dense.classes, probabilities)

    def counts(self, encoded: PairFeatures) -> npt.NDArray[np.float32] | None:
        if encoded.density is None:
            return None
        totals: npt.NDArray[np.float32] = encoded.density.float().sum(dim=(2, 3)).cpu().numpy()
        return totals

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
        pixels = torch.from_numpy(np.ascontiguousarray(resize_images(images, size)))
        return self.model.vision.normalise(to_device(pixels, self.device))

    def tokenize(self, prompts: Sequence[str]) -> tuple[Text, Text]:
        """Token batches of R formatted prompts: for the Q-Former, padded on the right, and for the language
        model, padded on the left."""
        return self.pad(*self.token_ids(prompts))

    def pad(
        self, for_qformer: Sequence[Sequence[int]], for_language: Sequence[Sequence[int]]
    ) -> tuple[Text, Text]:
        """The same of R rows of token ids."""
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

    def generate_rows(
        self,
        encoded: PairFeatures,
        rows: Sequence[tuple[int, Question]],
        stops: Sequence[tuple[int, int]],
        constraints: Sequence[Constraint | None],
    ) -> GeneratedRows:
        """Generate answers to one batch of rows; see `CheckpointModel.generate_rows`."""
        question, text = self.pad(*self.token_ids_of_rows(rows))
        with wrap_torch_errors(pluralize(len(rows), "question"), self.device):
            pairs = torch.tensor([pair for pair, _ in rows], device=encoded.tokens.device)
            generation = self.model.generate(
                encoded.tokens[pairs],
                question,
                text,
                self.generation_options(
                    max(question.max_new_tokens for _, question in rows), self.config.decoding
                ),
                stop_after_first_RK=torch.tensor(stops, device=pairs.device),
                constraints=constraints,
            )
            return GeneratedRows(
                generation.ids.cpu().numpy(),
                generation.log_probs.cpu().numpy(),
                generation.first_logits.cpu().numpy(),
            )


def read_footprint(folder: Path, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint folder will take. Raises: InputError, ModelError."""
    config = options.apply_to(read_config(folder))
    device, dtype = plan_device(options, config.language.hidden)
    files = checkpoint.weight_files(folder, config)
    sizes = sizes_of(path for path in files if path.suffix != ".bin")
    pickles = [path.stat().st_size for path in files if path.suffix == ".bin"]  # not looked into
    linked = tuple((Stored(size // 2, size, "F16", quantizable=True),) for size in pickles)
    sizes = replace(sizes, files=(*sizes.files, *linked))
    kind = device.split(":")[0]
    return footprint_of(
        sizes,
        lambda itemsize: pair_bytes(config, itemsize),
        device=device,
        dtype=dtype,
        quantize=options.quantize,
        pairs=1 if kind == "cuda" else ROWS[kind] // QUESTIONS,  # a GPU's batches follow its memory
    )


def load(name_or_folder: str, options: RuntimeOptions) -> Predictor:
    """Load a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = find_folder(name_or_folder)
    device = resolve_device(options)
    config = options.apply_to(read_config(folder))
    fingerprint, calibration = fingerprint_of(folder), options.calibration
    if calibration is not None:
        calibration.check_model(config.name, fingerprint)
    dtype = pick_dtype(options.dtype, config.language.hidden, device)
    check_fits(config.name, read_footprint(folder, options), free_memory(device))
    try:
        _, model = checkpoint.load(folder, dtype=dtype, device=device, quantize=options.quantize)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{config.name} does not fit on {device}; try `quantize='int8'` or int4, or `device='cpu'`"
        ) from error
    if device == "cpu":
        tune_malloc()  # not before: what loading frees would be kept
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
        allow_bf16=options.dtype == "auto" or dtype != torch.float32,
    )
