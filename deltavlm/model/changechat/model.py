"""Model of ChangeChat as a `ChangeModel`: images and questions in, answers with scores out.

Both images come before the question, so a pair is encoded once, into the cache of the beginning of all
conversations about it. Rows are (pair, question).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from deltavlm.errors import ConfigError, ModelError, ModelOutOfMemory
from deltavlm.model.changechat.config import ChangeChatConfig
from deltavlm.model.changechat.network import ChangeChatNetwork
from deltavlm.model.changechat.prompt import PromptCodec
from deltavlm.model.checkpoint import load_weights
from deltavlm.model.config import Decoding, RuntimeOptions
from deltavlm.model.device import meta_device, pick_dtype, plan_device, resolve_device
from deltavlm.model.folder import SENTENCEPIECE, WEIGHTS, fingerprint, read_config_as
from deltavlm.model.footprint import (
    ITEMSIZE,
    Footprint,
    LanguageSizes,
    check_fits,
    footprint_of,
    sizes_of,
)
from deltavlm.model.huggingface.chat_model import ChatModel, EncodedPair
from deltavlm.model.huggingface.prefix import Prefix
from deltavlm.model.huggingface.scores import YesNo
from deltavlm.model.images import resize_images
from deltavlm.model.interface import PairContext, Pixels, Question
from deltavlm.model.language import cache_argument
from deltavlm.model.memory import CudaMeter, free_memory
from deltavlm.model.quantize import describe, quantizable, quantize_weights, replace_layers
from deltavlm.model.tensors import read_tensors

logger = logging.getLogger(__name__)

PLACEHOLDER = 0  # stands where the tokens of an image are; their embeddings are in the cache
MAX_PAIRS = 32  # per batch; the cache of each is kept until all questions are answered
CACHE_BYTES = {"cpu": 1 << 30, "mps": 1 << 30, "cuda": 8 << 30}  # of the caches of a batch of pairs
BEGINNING_TOKENS = 45  # of a prompt without its images
QUESTION_TOKENS = 100  # of a question with its answer
SMALLER = "try `quantize='int8'` or int4"


@dataclass(frozen=True)
class PromptProcessor:
    """Tokenizer under the name by which `ChatModel` finds it."""

    tokenizer: PromptCodec


@dataclass(frozen=True, repr=False, kw_only=True)
class ChangeChat(ChatModel):
    """A ChangeModel: ChangeChat on one device; `model` is its language model."""

    config: ChangeChatConfig
    network: ChangeChatNetwork

    @property
    def chip_px(self) -> int:
        return self.config.chip_px

    @property
    def training_gsd_m(self) -> float:  # type: ignore[override]
        return self.config.training_gsd_m

    @property
    def phrasebook(self) -> str:
        return "changechat-87k"

    @property
    def reads_context(self) -> bool:
        return False

    @property
    def prompts(self) -> PromptCodec:
        """Tokenizer of prompts."""
        codec: PromptCodec = self.processor.tokenizer
        return codec

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch: as many as their caches may take memory."""
        cache = cache_bytes(
            self.config, self.model.dtype.itemsize, tokens=sum(map(len, self.prompts.beginning))
        )
        return min(MAX_PAIRS, max(1, CACHE_BYTES[self.device.split(":")[0]] // cache))

    @torch.inference_mode()
    def generate(
        self, encoded: Sequence[EncodedPair], rows: Sequence[tuple[int, Question]]
    ) -> list[list[int]]:
        """Token ids of the answers to rows of (index of a pair, question) in one batch, with the end."""
        inputs = self._continued([(encoded[pair], question) for pair, question in rows])
        limit = max(question.max_new_tokens for _, question in rows)
        sequences = self.model.generate(**inputs, generation_config=self._generation_config(limit))
        ends, answers = self._ends, []
        for ids in sequences[:, inputs["input_ids"].shape[1] :].tolist():
            length = next((index for index, id_ in enumerate(ids, start=1) if id_ in ends), len(ids))
            answers.append(ids[:length])
        return answers

    def pixels(self, images: Pixels) -> Tensor:
        """Normalised pixels (N, 3, image_px, image_px) on the device, of uint8 RGB (N, 3, H, W)."""
        resized = torch.from_numpy(np.ascontiguousarray(resize_images(images, self.config.image_px)))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.mean, self.config.std))
        normalised = (resized.float() / 255 - mean) / std
        return normalised.to(self.device, self.network.projector.linear_1.weight.dtype)

    def prefix(self, images_2PD: Tensor) -> Prefix:
        """Cache of the beginning of all prompts, up to the second image, of the embeddings of both images."""
        cache = DynamicCache(config=self.model.config)
        embedded = self.network.embed(self.prompts.beginning, images_2PD)
        self.model.model(inputs_embeds=embedded, use_cache=True, **{cache_argument(): cache})
        return Prefix(self.beginning, cache, None)

    @property
    def beginning(self) -> tuple[int, ...]:
        """Ids of the beginning of all prompts, with PLACEHOLDER for each token of an image."""
        start, between = self.prompts.beginning
        image = (PLACEHOLDER,) * self.config.image_tokens
        return (*start, *image, *between, *image)

    def _encode_pair(self, images: tuple[Image.Image, Image.Image], context: PairContext) -> EncodedPair:
        pixels = self.pixels(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))
        return EncodedPair(images, context, self.prefix(self.network.image_tokens(pixels)))

    def _token_ids(self, pair: EncodedPair, question: Question) -> tuple[int, ...]:
        key = (question.prompt, question.history)
        ids = self.tokens.get(key)
        if ids is None:
            ids = self.tokens[key] = (*self.beginning, *self.prompts.ending(*key))
            if len(ids) >= self.config.language.context:
                raise ConfigError(
                    f"question {question.name!r} with the turns before it has {len(ids)} tokens, and"
                    f" {self.name} reads fewer than {self.config.language.context}; shorten it"
                )
        return ids


def load_changechat(folder: Path, options: RuntimeOptions) -> ChangeChat:
    """Load a checkpoint folder.

    Raises: InputError if it does not fit into memory, or the calibration is of another model; ModelError if
        it is broken; ModelOutOfMemory on a GPU.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    config = read_config_as(ChangeChatConfig, folder)
    device = resolve_device(options)
    dtype = pick_dtype(options.dtype, config.language.hidden, device)
    identity = fingerprint(folder)
    if options.calibration is not None:
        options.calibration.check_model(config.name, identity)
    network = load_network(folder, config, options, device=device, dtype=dtype)
    codec = PromptCodec.load(folder / SENTENCEPIECE, config.template)
    return changechat(network, codec, identity, device, options)


def load_network(
    folder: Path, config: ChangeChatConfig, options: RuntimeOptions, *, device: str, dtype: torch.dtype
) -> ChangeChatNetwork:
    """Network of a checkpoint folder, in evaluation mode; layers are quantized one by one as they are read.

    Raises: InputError if it does not fit into memory, ModelError if it is broken, ModelOutOfMemory on a GPU.
    """
    files = weight_files(folder, config)
    check_fits(config.name, read_footprint(folder, options), free_memory(device))
    with meta_device():
        network = ChangeChatNetwork(config)
    to_quantize = quantizable(network) if options.quantize else frozenset()
    stored = (
        (name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        for path in files
        for name, tensor in read_tensors(path, "cpu" if options.quantize else device)
    )
    layers: dict[str, nn.Module] = {}
    try:
        if options.quantize:
            weights, layers = quantize_weights(stored, to_quantize, options.quantize, device)
        else:
            weights = dict(stored)
        load_weights(network, weights, str(folder / WEIGHTS), tied=config.language.tied)
        replace_layers(network, layers)
        return network.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(f"{config.name} does not fit on {device}; {SMALLER}") from error


def weight_files(folder: Path, config: ChangeChatConfig) -> list[Path]:
    """Weight files of a checkpoint folder. Raises: ModelError if one is missing."""
    files = [folder / name for name in config.files] or [folder / WEIGHTS]
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise ModelError(f"{folder} has no {missing.name}; copy the whole checkpoint folder again")
    return files


def read_footprint(folder: Path, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint folder will take. Raises: InputError, ModelError."""
    config = read_config_as(ChangeChatConfig, folder)
    device, dtype = plan_device(options, config.language.hidden)
    cache = cache_bytes(config, ITEMSIZE[dtype])
    return footprint_of(
        sizes_of(weight_files(folder, config)),
        lambda itemsize: pair_bytes(config, itemsize),
        device=device,
        dtype=dtype,
        quantize=options.quantize,
        pairs=min(MAX_PAIRS, max(1, CACHE_BYTES[device.split(":")[0]] // cache)),
    )


def language_sizes(config: ChangeChatConfig) -> LanguageSizes:
    """Sizes of the language model."""
    language = config.language
    return LanguageSizes(
        layers=language.layers,
        hidden=language.hidden,
        intermediate=language.intermediate,
        vocab=language.vocab,
        keys=language.hidden,
    )


def cache_bytes(config: ChangeChatConfig, itemsize: int, tokens: int = BEGINNING_TOKENS) -> int:
    """Memory of the cache of a pair, in bytes: of both images and so many tokens of text before them."""
    return language_sizes(config).cache_bytes(2 * config.image_tokens + tokens, itemsize)


def pair_bytes(config: ChangeChatConfig, itemsize: int) -> int:
    """Memory of a pair in a batch, in bytes: its cache, and a row that continues a copy of it."""
    tokens = 2 * config.image_tokens + BEGINNING_TOKENS + QUESTION_TOKENS
    return cache_bytes(config, itemsize) + language_sizes(config).row_bytes(tokens, itemsize)


def changechat(
    network: ChangeChatNetwork, codec: PromptCodec, identity: str, device: str, options: RuntimeOptions
) -> ChangeChat:
    """Model of a network with its weights, and its tokenizer; `identity` is the fingerprint."""
    config, language = network.config, network.language
    language.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=[codec.codec.eos], pad_token_id=codec.codec.pad, do_sample=False
    )
    yes_no = YesNo.of(codec.get_vocab())
    if not yes_no.yes:
        logger.warning(
            "the tokenizer of %s has no tokens for yes and no: answers have no probability", config.name
        )
    details = {
        "architecture": config.kind,
        "dtype": str(network.projector.linear_1.weight.dtype).removeprefix("torch."),
        "quantize": describe(options.quantize) if options.quantize else None,
        "template": config.template,
        "projector": config.projector,
        "sources": config.sources,
        "transformers": metadata.version("transformers"),
        "decoding": asdict(Decoding()),  # greedy
        "yes_no_scores": bool(yes_no.yes),
        "calibration": None if options.calibration is None else asdict(options.calibration),
    }
    return ChangeChat(
        model=language,
        processor=PromptProcessor(codec),
        name=config.name,
        fingerprint=identity,
        device=device,
        details=details,
        yes_no=yes_no,
        uses_prefix=True,
        pads=device != "cpu",
        calibration=options.calibration,
        meter=CudaMeter(device) if device.startswith("cuda") else None,
        config=config,
        network=network,
    )
