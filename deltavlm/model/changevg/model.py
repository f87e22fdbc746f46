"""ChangeVG as a `ChangeModel`: features of both images once per pair, what the guide found in prompts.

A prompt of several lines is as many questions; their answers are the lines of the reply. Masks are those of
the guide. Rows are (pair, question).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from deltavlm.errors import ModelError, ModelOutOfMemory
from deltavlm.files import parse_json, read_text
from deltavlm.messages import first_line, pluralize
from deltavlm.model.changevg.config import (
    GUIDE,
    GUIDE_MARK,
    IMAGE,
    IMAGE_TOKEN,
    MODEL,
    SPECIAL,
    ChangeVGConfig,
    Guide,
    Prompt,
    make_prompt,
)
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.device import DTYPES, meta_device, plan_device, resolve_device, wrap_torch_errors
from deltavlm.model.folder import fingerprint as fingerprint_of
from deltavlm.model.folder import read_config_as
from deltavlm.model.footprint import (
    ITEMSIZE,
    Footprint,
    LanguageSizes,
    check_fits,
    footprint_of,
    sizes_of,
)
from deltavlm.model.huggingface.loading import quiet
from deltavlm.model.huggingface.scores import Recorder, YesNo
from deltavlm.model.huggingface.sizes import linear_layers
from deltavlm.model.images import resize_image
from deltavlm.model.interface import CheckpointFacts, Masks, PairContext, Pixels, Question, Reply
from deltavlm.model.mci.config import MCIConfig
from deltavlm.model.mci.model import MCIModel
from deltavlm.model.mci.model import load_folder as load_guide
from deltavlm.model.mci.network import Encoding
from deltavlm.model.memory import free_memory, run_in_batches
from deltavlm.model.quantize import Kind, describe, quantize_weights, replace_layers
from deltavlm.model.tensors import check_weights, read_tensors

PAIRS = {"cpu": 4, "mps": 4, "cuda": 32}  # per batch
ROWS = {"cpu": 8, "mps": 8, "cuda": 64}
MASK_COLORS = np.array([(0, 0, 0), (255, 255, 0), (255, 0, 0)], np.uint8)  # none, road, building
LANGUAGE_WIDTH = 3584  # of Qwen2.5-VL-7B
QUESTIONS, PROMPT_TOKENS = 6, 320  # lines of the standard questions; tokens of both images, text and answer


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs: features of both images and perhaps of the mask, what the guide found, and its encoding."""

    features: Tensor  # (N, 2 or 3, T, D)
    guides: tuple[Guide, ...]
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
            "guided": self.config.guided,
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
        dates = [before, after, *([self.mask_pictures(guide)] if self.config.guidance == "mask" else [])]
        with wrap_torch_errors(pluralize(len(before), "pair"), self.device):
            images = [image for pair in zip(*dates, strict=True) for image in pair]
            features = self.image_features(images).unflatten(0, (-1, len(dates)))  # type: ignore[no-untyped-call]
        return EncodedPairs(features, self.guides(guide), guide)

    def guides(self, encoding: Encoding) -> tuple[Guide, ...]:
        """Findings of the guide about each pair."""
        findings = zip(self.guide.captions(encoding), self.guide.findings(encoding), strict=True)
        return tuple(Guide(caption.text, each.counts, each.cells) for caption, each in findings)

    def mask_pictures(self, encoding: Encoding) -> Pixels:
        """Masks of the guide as pictures (N, 3, H, W), in the colors of Change-Agent's predictions: the most
        probable class of each pixel, without what is not counted."""
        labels = self.guide.masks(encoding).probabilities.argmax(axis=1)
        return np.ascontiguousarray(MASK_COLORS[labels].transpose(0, 3, 1, 2))

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
        sentences = [guide.sentence(self.config.guidance) for guide in encoded.guides]
        prompts = [self.prompt(sentences[pair], question, line) for pair, question, line in lines]
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
                    [prompts[index].images for index in batch],
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

    def prompt(self, guide: str, question: Question, line: str) -> Prompt:
        """Prompt of one line of a question about a pair with this sentence of the guide."""
        is_standard = not question.history and line.count(IMAGE) == 2
        if is_standard and GUIDE_MARK not in line:
            if self.config.guided == "all":
                line = f"{GUIDE_MARK}{line}"
            else:
                guide = ""
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
        self,
        encoded: EncodedPairs,
        pairs: Sequence[int],
        ids: Sequence[Sequence[int]],
        images: Sequence[tuple[int, ...]] = (),
    ) -> dict[str, Any]:
        """Inputs of the model for R rows of token ids about these pairs, padded on the left; `images` are
        those of each row, see `Prompt.images`.

        The types of tokens are among them: without them the positions are silently those of plain text.
        """
        length = max(map(len, ids))
        padded = torch.tensor([[self.pad] * (length - len(row)) + [*row] for row in ids], device=self.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids], device=self.device)
        grid = self.config.image_px // self.processor.patch_size
        orders = images or [(0, 1)] * len(pairs)
        features = torch.cat(
            [encoded.features[pair, list(order)] for pair, order in zip(pairs, orders, strict=True)]
        )
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
        images: Sequence[tuple[int, ...]] = (),
    ) -> list[tuple[list[int], list[float], float]]:
        """Token ids, the end included where it came, their log-probabilities, and the log-odds of yes at the
        first, of R greedy answers."""
        inputs = self.inputs(encoded, pairs, ids, images)
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


def load_folder(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", quantize: Kind | None = None
) -> ChangeVGModel:
    """Load a checkpoint folder; layers of the language model are quantized one by one as they are read.

    Raises: InputError, ModelError.
    """
    config = read_config_as(ChangeVGConfig, folder)
    guide = load_guide(folder / GUIDE, device=device)
    model_folder = folder / MODEL
    if not model_folder.is_dir():
        raise ModelError(f"{folder} has no folder {MODEL}; copy the whole checkpoint folder again")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(model_folder)
            processor = Qwen2VLImageProcessor.from_pretrained(model_folder)
            model = load_network(model_folder, dtype=dtype, device=device, quantize=quantize)
            settings = _generation_settings(model_folder, model)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"transformers cannot load {model_folder}: {first_line(error)}; copy the checkpoint folder again"
        ) from error
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
        model,
        tokenizer,
        processor,
        guide,
        config,
        device,
        fingerprint_of(folder),
        YesNo.of(tokenizer.get_vocab()),
        describe(quantize) if quantize else None,
    )


def _generation_settings(folder: Path, model: Any) -> GenerationConfig:
    """Settings of the folder; the whole of them would apply a penalty to all rows of a batch."""
    if not (folder / "generation_config.json").is_file():
        settings: GenerationConfig = model.generation_config
        return settings
    loader: Any = GenerationConfig  # its types differ between versions
    settings = loader.from_pretrained(folder)
    return settings


def load_network(folder: Path, *, dtype: torch.dtype, device: str, quantize: Kind | None = None) -> Any:
    """Qwen2.5-VL of a folder with one or more safetensors files, in evaluation mode, strictly.

    Beside the loaded weights memory holds one file, of which one layer after the other is converted or
    quantized. Raises: ModelError; errors of transformers for its configuration.
    """
    config: Any = AutoConfig.from_pretrained(folder)
    config.dtype = dtype
    with meta_device():
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # the frequencies of positions
            has_config = hasattr(module, "config")  # in transformers 5.0 the tower's has its sizes instead
            module.__init__(*((module.config,) if has_config else (module.dim, module.theta)))
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    names = frozenset(f"{prefix}.{name}.weight" for name in linear_layers(decoder))
    stored = (
        (name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(path, "cpu" if quantize else device)
    )
    layers: dict[str, nn.Module] = {}
    if quantize:
        weights, layers = quantize_weights(stored, names, quantize, device)
    else:
        weights = dict(stored)
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    expected = model.state_dict()
    check_weights(
        weights,
        {name: tensor for name, tensor in expected.items() if not (is_tied and name == "lm_head.weight")},
        str(folder),
    )
    model.load_state_dict(weights, strict=False, assign=True)
    if is_tied:
        model.tie_weights()
    replace_layers(model, layers)
    return model.eval().to(device)


def load_model(folder: Path, options: RuntimeOptions) -> ChangeVGModel:
    """Load a checkpoint folder with runtime options.

    Raises: InputError if it does not fit into memory; ModelOutOfMemory on a GPU.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options)
    footprint = read_footprint(folder, options)
    check_fits(str(folder), footprint, free_memory(device))
    try:
        model = load_folder(folder, dtype=DTYPES[footprint.dtype], device=device, quantize=options.quantize)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{folder} does not fit on {device}; try `quantize='int8'` or int4, or `device='cpu'`"
        ) from error
    if options.calibration is not None:
        options.calibration.check_model(model.name, model.fingerprint)
    return replace(model, calibration=options.calibration)


def read_footprint(folder: Path, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint folder will take, with that of its guide. Raises: InputError, ModelError."""
    device, dtype = plan_device(options, LANGUAGE_WIDTH)
    sizes = read_language_sizes(folder / MODEL)
    guide = read_config_as(MCIConfig, folder / GUIDE)

    def pair_bytes(itemsize: int) -> int:
        return max(QUESTIONS * sizes.row_bytes(PROMPT_TOKENS, itemsize), guide.pair_bytes(ITEMSIZE["fp32"]))

    return footprint_of(
        sizes_of(
            sorted((folder / MODEL).glob("*.safetensors")), keeps=(folder / GUIDE).glob("*.safetensors")
        ),
        pair_bytes,
        device=device,
        dtype=dtype,
        quantize=options.quantize,
        pairs=PAIRS[device.split(":")[0]],
    )


def read_language_sizes(folder: Path) -> LanguageSizes:
    """Sizes of the language model of a folder; those of Qwen2.5-VL-7B where config.json leaves one out.

    Raises: ModelError.
    """
    try:
        values = parse_json(read_text(folder / "config.json"))
        text = {**values, **values.get("text_config", {})}
        heads, hidden = int(text.get("num_attention_heads", 28)), int(text.get("hidden_size", LANGUAGE_WIDTH))
        return LanguageSizes(
            layers=int(text.get("num_hidden_layers", 28)),
            hidden=hidden,
            intermediate=int(text.get("intermediate_size", 18_944)),
            vocab=int(text.get("vocab_size", 152_064)),
            keys=hidden // heads * int(text.get("num_key_value_heads", 4)),
        )
    except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(
            f"cannot read {folder / 'config.json'}: {first_line(error)}; copy the checkpoint folder again"
        ) from error
