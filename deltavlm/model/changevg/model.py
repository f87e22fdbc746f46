"""ChangeVG as a `ChangeModel`: features of both images once per pair, captions of the guide in prompts.

A prompt of several lines is as many questions; their answers are the lines of the reply. Masks are those of
the guide. Rows are (pair, question).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from deltavlm.errors import InputError, ModelError, ModelOutOfMemory
from deltavlm.files import format_bytes
from deltavlm.messages import first_line, pluralize
from deltavlm.model.changevg.config import (
    GUIDE,
    IMAGE_TOKEN,
    MODEL,
    SPECIAL,
    ChangeVGConfig,
    Prompt,
    guide_sentence,
    make_prompt,
)
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.device import pick_dtype, resolve_device, wrap_torch_errors
from deltavlm.model.folder import fingerprint as fingerprint_of
from deltavlm.model.folder import read_config_as
from deltavlm.model.huggingface.loading import linear_layers, quiet
from deltavlm.model.huggingface.scores import Recorder, YesNo
from deltavlm.model.images import resize_image
from deltavlm.model.interface import CheckpointFacts, Masks, PairContext, Pixels, Question, Reply
from deltavlm.model.mci.model import MCIModel
from deltavlm.model.mci.model import load_folder as load_guide
from deltavlm.model.mci.network import Encoding
from deltavlm.model.memory import CudaMeter, available_memory, run_in_batches
from deltavlm.model.quantize import describe, quantize_layer, replace_layers

PAIRS = {"cpu": 4, "mps": 4, "cuda": 32}  # per batch
ROWS = {"cpu": 8, "mps": 8, "cuda": 64}
MEMORY_FACTOR = 1.15  # of the weights: activations, cache, libraries
BITS = {"int8": 8, "int4": 5}  # of a quantized weight, on average with the layers that are not


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs: features of both images, captions of the guide, and its encoding for the masks."""

    features: Tensor  # (N, 2, T, D)
    captions: tuple[str, ...]
    guide: Encoding

    def __len__(self) -> int:
        return len(self.features)


class RowPenalty(LogitsProcessor):
    """Repetition penalty (CTRL, arXiv 1909.05858) of each row, over prompt and answer, not over padding."""

    def __init__(self, penalties: Sequence[float], mask_RT: Tensor) -> None:
        self.penalties = torch.tensor(penalties, device=mask_RT.device)[:, None]
        self.mask = mask_RT.bool()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows, length = input_ids.shape
        new = torch.ones(rows, length - self.mask.shape[1], dtype=torch.bool, device=input_ids.device)
        seen = torch.zeros(scores.shape, dtype=torch.int, device=scores.device)
        seen.scatter_add_(1, input_ids, torch.cat([self.mask, new], dim=1).int())
        penalised = torch.where(scores < 0, scores * self.penalties, scores / self.penalties)
        return torch.where(seen > 0, penalised.to(scores.dtype), scores)


@dataclass(frozen=True, repr=False)
class ChangeVGModel(CheckpointFacts):
    """A ChangeModel: Qwen2.5-VL with its tokenizer, and the guide, on one device."""

    model: Any  # Qwen2_5_VLForConditionalGeneration
    tokenizer: Any
    processor: Any  # of images
    guide: MCIModel
    config: ChangeVGConfig
    device: str
    fingerprint: str
    yes_no: YesNo
    quantize: str | None = None  # method and library version, for the record
    calibration: ScoreCalibration | None = None  # of P(yes), to somebody's own chips

    @property
    def details(self) -> dict[str, Any]:
        return {
            "kind": self.config.kind,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantize": self.quantize,
            "guidance": self.config.guidance,
            "repetition_penalty": self.config.repetition_penalty,
            "guide": self.guide.details,
            "sources": self.config.sources,
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    @property
    def phrasebook(self) -> str:
        return "changeimti"

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch."""
        return PAIRS[self.device.split(":")[0]]

    @torch.inference_mode()
    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> EncodedPairs:
        """Encode N pairs, and ask the guide about them.

        Args:
            before, after: (N, 3, H, W) uint8 RGB, of any size.
            contexts: not read.

        Raises: ModelOutOfMemory if the batch does not fit, ModelError.
        """
        guide = self.guide.encode(before, after)
        captions = tuple(caption.text for caption in self.guide.captions(guide))
        with wrap_torch_errors(pluralize(len(before), "pair"), self.device):
            images = [image for pair in zip(before, after, strict=True) for image in pair]
            features = self.image_features(images)
        return EncodedPairs(features.unflatten(0, (-1, 2)), captions, guide)  # type: ignore[no-untyped-call]

    def pixels(self, images: Sequence[Pixels]) -> dict[str, Tensor]:
        """Patches of images (3, H, W) and their grid, as the vision tower reads them. The images are resized
        by Pillow, as for the training, and not by the processor, which differs by a grey level."""
        size = self.config.image_px
        resized = [
            Image.fromarray(np.ascontiguousarray(resize_image(image, size).transpose(1, 2, 0)))
            for image in images
        ]
        inputs: dict[str, Tensor] = dict(self.processor(images=resized, return_tensors="pt"))
        return inputs

    def image_features(self, images: Sequence[Pixels]) -> Tensor:
        """Features (images, T, D) of images (3, H, W)."""
        inputs = self.pixels(images)
        output = self.model.get_image_features(
            inputs["pixel_values"].to(self.device, self.model.dtype), inputs["image_grid_thw"].to(self.device)
        )
        return torch.stack(list(output.pooler_output))

    def answer(
        self, encoded: EncodedPairs, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Answer every question about all pairs, or those with the indices `pairs`: [pair][question].

        Raises: ModelOutOfMemory, ModelError.
        """
        pairs = range(len(encoded)) if pairs is None else pairs
        replies = self.answer_rows(encoded, [(pair, question) for question in questions for pair in pairs])
        return [replies[index :: len(pairs)] for index in range(len(pairs))]

    def answer_rows(self, encoded: EncodedPairs, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answer rows of (index of a pair, question), in their order; equal rows are answered once.

        A batch that does not fit into memory is halved.

        Raises: ModelOutOfMemory if a single row does not fit, ModelError; ConfigError for a question that
            names another number of images than two or none.
        """
        lines = dict.fromkeys(
            (pair, question, line) for pair, question in rows for line in question.prompt.split("\n")
        )
        prompts = [self.prompt(encoded.captions[pair], question, line) for pair, question, line in lines]
        ids = [self.token_ids(prompt) for prompt in prompts]
        limits = [question.max_new_tokens for _, question, _ in lines]
        pairs = [pair for pair, _, _ in lines]
        yes_no = [question.yes_no for _, question, _ in lines]

        def answer_batch(batch: Sequence[int]) -> list[Reply]:
            with wrap_torch_errors(pluralize(len(batch), "question"), self.device):
                generated = self.generate(
                    encoded,
                    [pairs[index] for index in batch],
                    [ids[index] for index in batch],
                    [self._penalty(prompts[index]) for index in batch],
                    limits[batch[0]],
                )
            return [
                self._reply(*each, yes_no=yes_no[index]) for index, each in zip(batch, generated, strict=True)
            ]

        def key(index: int) -> Hashable:
            return limits[index]

        order = sorted(range(len(ids)), key=lambda index: (limits[index], len(ids[index])))
        replies = run_in_batches(order, ROWS[self.device.split(":")[0]], answer_batch, key)
        by_line = {line: replies[index] for index, line in enumerate(lines)}
        return [
            _joined([by_line[pair, question, line] for line in question.prompt.split("\n")])
            for pair, question in rows
        ]

    def masks(self, encoded: EncodedPairs) -> Masks:
        """Change masks of the guide."""
        return self.guide.masks(encoded.guide)

    def prompt(self, caption: str, question: Question, line: str) -> Prompt:
        """Prompt of one line of a question about a pair with this caption of the guide."""
        guide = guide_sentence(caption) if self.config.guidance == "caption" else ""
        return make_prompt(question.history, line, guide)

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, an image as its number of tokens; special tokens in plain text are text."""
        special, ids = self.special_ids, list[int]()
        for segment in prompt.segments:
            if segment == IMAGE_TOKEN:
                ids += [special[IMAGE_TOKEN]] * self._image_tokens
            elif segment in special:
                ids.append(special[segment])
            else:
                ids += self.tokenizer.encode(segment, add_special_tokens=False, split_special_tokens=True)
        return ids

    def inputs(
        self, encoded: EncodedPairs, pairs: Sequence[int], ids: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Inputs of the model for R rows of token ids about these pairs, padded on the left.

        The types of tokens are among them: without them the positions are silently those of plain text.
        """
        length = max(map(len, ids))
        padded = torch.tensor([[self.pad] * (length - len(row)) + [*row] for row in ids], device=self.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids], device=self.device)
        grid = self.config.image_px // self.processor.patch_size
        features = encoded.features[list(pairs)].flatten(0, 1)
        return {
            "input_ids": padded,
            "attention_mask": mask,
            "mm_token_type_ids": (padded == self.special_ids[IMAGE_TOKEN]).int(),
            "image_grid_thw": torch.tensor([[1, grid, grid]] * len(features), device=self.device),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tuple(features))},  # type: ignore[arg-type]
        }

    @torch.inference_mode()
    def generate(
        self,
        encoded: EncodedPairs,
        pairs: Sequence[int],
        ids: Sequence[Sequence[int]],
        penalties: Sequence[float],
        max_new_tokens: int,
    ) -> list[tuple[list[int], list[float], float]]:
        """Token ids, the end included where it came, their log-probabilities, and the log-odds of yes at the
        first, of R greedy answers."""
        inputs = self.inputs(encoded, pairs, ids)
        recorder = Recorder(self.yes_no)
        sequences = self.model.generate(
            **inputs,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(self._ends),
                pad_token_id=self.pad,
            ),
            logits_processor=LogitsProcessorList([recorder, RowPenalty(penalties, inputs["attention_mask"])]),
        )
        rows = []
        new = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        for row, log_probs, margins in zip(new, *recorder.rows(), strict=True):
            end = next((index for index, id_ in enumerate(row) if id_ in self._ends), len(row) - 1)
            rows.append((row[: end + 1], log_probs[: end + 1], margins[0]))
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _reply(self, ids: Sequence[int], log_probs: Sequence[float], margin: float, *, yes_no: bool) -> Reply:
        text = self.decode(ids).strip()
        if not yes_no:
            return Reply(text, sum(log_probs) / len(log_probs))
        if self.calibration is not None:
            margin = self.calibration.scale * margin + self.calibration.offset
        return Reply(text, math.nan if math.isnan(margin) else 1 / (1 + math.exp(-max(margin, -700.0))))

    def _penalty(self, prompt: Prompt) -> float:
        return self.config.repetition_penalty if prompt.images_first else 1.0

    @cached_property
    def special_ids(self) -> dict[str, int]:
        return {token: self.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}

    @cached_property
    def _image_tokens(self) -> int:
        side = self.config.image_px // self.processor.patch_size // self.processor.merge_size
        return int(side * side)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)

    @cached_property
    def pad(self) -> int:
        pad = self.model.generation_config.pad_token_id
        return int(self._ends[-1] if pad is None else pad)


def _joined(replies: Sequence[Reply]) -> Reply:
    """One reply of those to several questions: a line of text for each, and the mean score."""
    if len(replies) == 1:
        return replies[0]
    return Reply(
        "\n".join(reply.text for reply in replies), sum(reply.score for reply in replies) / len(replies)
    )


def load_folder(folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> ChangeVGModel:
    """Load a checkpoint folder. Raises: InputError, ModelError."""
    config = read_config_as(ChangeVGConfig, folder)
    guide = load_guide(folder / GUIDE, device=device)
    model_folder = folder / MODEL
    if not model_folder.is_dir():
        raise ModelError(f"{folder} has no folder {MODEL}; copy the whole checkpoint folder again")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(model_folder)
            processor = Qwen2VLImageProcessor.from_pretrained(model_folder)
            loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                model_folder, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"transformers cannot load {model_folder}: {first_line(error)}; copy the checkpoint folder again"
        ) from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[fault]:
            names = sorted(map(str, report[fault]))
            raise ModelError(f"{model_folder}: {len(names)} {fault.replace('_', ' ')}: {names[0]}")
    settings = model.generation_config  # generate would apply all of them, the penalty for the whole batch
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id, do_sample=False
    )
    unknown = tokenizer.unk_token_id
    missing = [token for token in SPECIAL if tokenizer.convert_tokens_to_ids(token) in (None, unknown)]
    if missing:
        raise ModelError(f"the tokenizer in {model_folder} has no {missing[0]}; give that of Qwen2.5-VL")
    if config.image_px % (processor.patch_size * processor.merge_size):
        raise ModelError(f"{folder}: image_px is {config.image_px}, no multiple of a merged patch")
    return ChangeVGModel(
        model.eval().to(device),
        tokenizer,
        processor,
        guide,
        config,
        device,
        fingerprint_of(folder),
        YesNo.of(tokenizer.get_vocab()),
    )


def load_model(folder: Path, options: RuntimeOptions) -> ChangeVGModel:
    """Load a checkpoint folder with runtime options.

    Raises: InputError if it does not fit into memory; ModelOutOfMemory on a GPU.
    """
    from dataclasses import replace

    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options)
    dtype = pick_dtype(options.dtype, 4096, device)
    _check_memory(folder, options, dtype, device)
    try:
        model = load_folder(folder, dtype=dtype, device="cpu" if options.quantize else device)
        if options.quantize:
            decoder = model.model.get_decoder()
            for name, module in linear_layers(decoder).items():
                layer = quantize_layer(module.weight.data, options.quantize, device, module.bias)
                replace_layers(decoder, {f"{name}.weight": layer})
            model.model.to(device)
            model = replace(
                model,
                guide=load_guide(folder / GUIDE, device=device),
                device=device,
                quantize=describe(options.quantize),
            )
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{folder} does not fit on {device}; try `quantize='int8'` or int4, or `device='cpu'`"
        ) from error
    if options.calibration is not None:
        options.calibration.check_model(model.name, model.fingerprint)
    return replace(model, calibration=options.calibration)


def _check_memory(folder: Path, options: RuntimeOptions, dtype: torch.dtype, device: str) -> None:
    """Raises: InputError if the language model does not fit into memory."""
    stored = sum(path.stat().st_size for path in folder.glob(f"{MODEL}/*.safetensors"))
    size = stored * dtype.itemsize / 2  # published in bf16
    if options.quantize:
        size = stored / 2 * BITS[options.quantize] / 8
    free = CudaMeter(device).free() if device.startswith("cuda") else available_memory()
    needed = int(size * MEMORY_FACTOR)
    if free is not None and needed > free:
        raise InputError(
            f"{folder} needs about {format_bytes(needed)} of memory, and {format_bytes(free)} are free; try"
            " `dtype='bf16'`, `quantize='int8'` or int4"
        )
