"""Pictures and questions in, answers with scores out: what the pipeline calls.

Encodes each pair once, asks many questions of many pairs in one batch.
N pairs, R = rows of (pair, question).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltavlm.errors import ConfigError, ModelError, ModelOutOfMemory
from deltavlm.model import checkpoint
from deltavlm.model.config import Decoding, DeltaVLMConfig, RuntimeOptions
from deltavlm.model.deltavlm import DeltaVLM, PairFeatures, Text
from deltavlm.model.device import bf16_cpu, pick_device, pick_dtype, to_device, tune_malloc
from deltavlm.model.folder import find_folder, read_config
from deltavlm.model.interface import ChangeModel, Labelled, Masks, Pixels, Question, Reply
from deltavlm.model.memory import CudaMeter, Meter, pairs_that_fit, row_bytes, rows_that_fit
from deltavlm.model.quantize import check_quantize, describe
from deltavlm.model.tokenizer import Codec, load_codecs

# Rows answered together, and pairs looked at together. On a CPU, enough to fill it and few enough to stay in
# its caches; on a GPU, enough that reading the weights is no longer what a step waits for, if they fit.
PAIRS = {"cpu": 32, "mps": 64, "cuda": 64}
ENCODE_BATCH = 8  # pairs that a CPU looks at together: more are no faster, and their maps fill the memory
ROWS = {"cpu": 64, "mps": 64, "cuda": 256}


@dataclass(frozen=True)
class Predictor(Labelled):
    """A ChangeModel over a DeltaVLM and its tokenizer."""

    model: DeltaVLM
    config: DeltaVLMConfig
    questions: Codec  # of the Q-Former
    codec: Codec  # of the language model
    device: str
    fingerprint: str
    quantize: str | None = None  # how, and by what: for the record
    meter: Meter | None = None  # of memory that batches should follow
    threads: int = 1  # of the CPU

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
        }

    @property
    def chip_px(self) -> int:
        return self.config.chip_px

    @property
    def training_gsd_m(self) -> float:
        return self.config.training_gsd_m

    @torch.inference_mode()
    def encode(self, before: Pixels, after: Pixels) -> PairFeatures:
        """Features of N pairs; `before` and `after` are (N, 3, H, W) uint8 RGB. Raises: ModelOutOfMemory.

        On a CPU that multiplies bf16 in hardware the pictures are looked at in bf16, as in training.
        """
        half = self.device == "cpu" and bf16_cpu()
        step = ENCODE_BATCH if self.device == "cpu" and self.meter is None else max(1, len(before))
        with (
            wrap_torch_errors(f"{len(before)} pairs", self.device),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            found = [
                self.model.encode_pair(*(self.pixels(date[start : start + step]) for date in (before, after)))
                for start in range(0, max(1, len(before)), step)
            ]
        return PairFeatures.concat(found).to(self.model.projection.weight.dtype)

    @property
    def workers(self) -> int:
        """Two on a CPU: cores that share every matrix wait for each other after each, and where another
        process has one of them, they mostly wait."""
        return 2 if self.device == "cpu" and self.threads > 1 else 1

    def init_worker(self) -> None:
        """This thread computes with its share of the threads."""
        torch.set_num_threads(self.threads // self.workers)

    def auto_batch_size(self) -> int:
        """Pairs to ask about at once when nobody says how many: on a GPU as many as its memory holds, by
        probes."""
        if self.meter is None:
            return PAIRS[self.device.split(":")[0]]
        size = self.config.vision.image_px
        noise = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)

        def probe(count: int) -> None:
            many = noise.repeat(count, axis=0)
            self.encode(many, many)

        return pairs_that_fit(self.meter, probe)

    def answer(
        self, encoded: PairFeatures, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Replies as [pair][question], of all pairs or of those with these indices. Raises:
        ModelOutOfMemory."""
        pairs = range(len(encoded)) if pairs is None else pairs
        replies = self.answer_rows(encoded, [(pair, question) for question in questions for pair in pairs])
        return [replies[index :: len(pairs)] for index in range(len(pairs))]

    def answer_rows(self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """A reply for each (index of a pair, question).

        Rows of like length are asked together, so that little is padding; on a CPU of one length only, where
        a padded token costs more than a smaller batch. Where they do not fit into memory, half as many are
        tried. Raises: ModelOutOfMemory where one does not.
        """
        prompts = dict.fromkeys(asked.prompt for _, asked in rows)
        lengths = {prompt: len(self.codec.encode(self.format_prompt(prompt))) for prompt in prompts}
        order = sorted(range(len(rows)), key=lambda index: lengths[rows[index][1].prompt])
        replies: dict[int, Reply] = {}
        most, start = self.row_batch_size([asked for _, asked in rows]), 0
        while start < len(rows):
            part = order[start : start + most]
            if self.device == "cpu":
                length = lengths[rows[part[0]][1].prompt]
                part = [index for index in part if lengths[rows[index][1].prompt] == length]
            try:
                with wrap_torch_errors(f"{len(part)} questions", self.device):
                    said = self._answer(encoded, [rows[index] for index in part])
            except ModelOutOfMemory:
                if len(part) == 1:
                    raise
                most = len(part) // 2
                continue
            start += len(part)
            replies.update(zip(part, said, strict=True))
        return [replies[index] for index in range(len(rows))]

    def masks(self, encoded: PairFeatures) -> Masks | None:
        """What changed in each pair, pixel by pixel; None without a dense head. Raises:
        ModelOutOfMemory."""
        if encoded.mask_logits is None or self.config.dense is None:
            return None
        with wrap_torch_errors(f"masks of {len(encoded)} pairs", self.device):
            shares = encoded.mask_logits.float().softmax(dim=1).cpu().numpy()
        return Masks(self.config.dense.classes, shares)

    def row_batch_size(self, questions: Sequence[Question]) -> int:
        """How many rows of (pair, question) the language model is given together."""
        most = ROWS[self.device.split(":")[0]]
        if self.meter is None or not questions:
            return most
        tokens = self.config.qformer.queries + max(
            1 + len(self.codec.encode(self.format_prompt(asked.prompt))) + asked.max_new_tokens
            for asked in questions
        )
        itemsize = self.model.projection.weight.itemsize
        each = row_bytes(self.config, tokens, self.config.decoding.beams, itemsize)
        return rows_that_fit(self.meter, each, most)

    def pixels(self, images: Pixels) -> Tensor:
        """uint8 RGB of any size -> normalised pixels of the model's size."""
        size = self.config.vision.image_px
        if images.shape[-2:] != (size, size):
            images = np.stack([resized(image, size) for image in images])
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        return self.model.vision.normalise(to_device(pixels, self.device))

    def format_prompt(self, prompt: str) -> str:
        """The question as the model was trained to read it."""
        return self.config.prompt.format(prompt)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Text, Text]:
        """Questions as the Q-Former reads them, padded on the right, and as the language model reads them,
        padded on the left."""
        most = self.config.qformer.max_text_tokens
        asked = [self.questions.encode_question(prompt, most) for prompt in prompts]
        told = [[self.codec.start, *self.codec.encode(prompt)] for prompt in prompts]
        return (
            self.questions.pad_batch(asked, "right").to(self.device),
            self.codec.pad_batch(told, "left").to(self.device),
        )

    def _answer(self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Replies to one batch of rows: yes/no from the first logits, the rest written out."""
        tokens, question, text = self._inputs(encoded, rows)
        yes, no = self.codec.encode("yes")[0], self.codec.encode("no")[0]
        plain = self.config.decoding == Decoding()  # then a yes or no at the start is the whole answer
        short = [(yes, no) if asked.yes_no and plain else (-1, -1) for _, asked in rows]
        found = self.model.generate(
            tokens,
            question,
            text,
            max_new_tokens=max(asked.max_new_tokens for _, asked in rows),
            bos=self.codec.bos,
            eos=self.codec.eos,
            pad=self.codec.pad,
            beams=self.config.decoding.beams,
            repetition_penalty=self.config.decoding.repetition_penalty,
            whole_RK=torch.tensor(short, device=tokens.device),
        )
        fit = self.config.calibration
        yes_no = found.first_logits[:, yes] - found.first_logits[:, no]
        chances = torch.sigmoid(fit.scale * yes_no + fit.offset).tolist()
        replies = []
        for (_, asked), ids, logs, chance in zip(
            rows, found.ids.tolist(), found.log_probs.tolist(), chances, strict=True
        ):
            if asked.yes_no and plain and ids[0] in (yes, no):
                replies.append(Reply("yes" if chance >= 0.5 else "no", chance))
                continue
            said = ids[: asked.max_new_tokens]  # its own limit, whatever its neighbours were given
            length = max(1, sum(id_ != self.codec.pad for id_ in said))
            score = chance if asked.yes_no else sum(logs[:length]) / length
            replies.append(Reply(self.codec.decode(said), score))
        return replies

    def _inputs(
        self, encoded: PairFeatures, rows: Sequence[tuple[int, Question]]
    ) -> tuple[Tensor, Text, Text]:
        question, text = self.tokenize([self.format_prompt(asked.prompt) for _, asked in rows])
        room = self.config.language.context - self.config.qformer.queries
        for length, (_, asked) in zip(text.mask.sum(dim=1).tolist(), rows, strict=True):
            if length + asked.max_new_tokens > room:
                raise ConfigError(
                    f"question {asked.name!r} is {length - 1} word pieces long; {self.name} reads at most "
                    f"{room - asked.max_new_tokens - 1}; shorten it"
                )
        pairs = torch.tensor([pair for pair, _ in rows], device=encoded.tokens.device)
        return encoded.tokens[pairs], question, text


@contextmanager
def wrap_torch_errors(what: str, device: str) -> Iterator[None]:
    """torch's errors as ours: too much for the memory, or anything else that it cannot compute."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelOutOfMemory(f"{what} do not fit on {device}; ask for a smaller batch") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{what} failed on {device}: {reason}; try --device cpu") from error


def resized(image_CHW: Pixels, size: int) -> Pixels:
    """Bicubic with antialiasing by Pillow, as the published model was fed; transformers' own differs by a
    grey level."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def resolve_device(options: RuntimeOptions) -> str:
    """The device that a model will run on. Raises: InputError where it is not there, or cannot do what is
    wished."""
    where = pick_device(options.device)
    if options.quantize:
        check_quantize(options.quantize, where)
    return where


def load_model(
    name_or_folder: str = "nano", options: RuntimeOptions | None = None, **fields: Any
) -> ChangeModel:
    """Model by name, or checkpoint folder by path; `fields` are single fields of `RuntimeOptions`.

    Raises: InputError where there is none, ModelError where it cannot be used.
    """
    options = replace(options or RuntimeOptions(), **fields)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = find_folder(name_or_folder)
    where = resolve_device(options)
    config = options.apply_to(read_config(folder))
    dtype = pick_dtype(options.dtype, config, where)
    if where == "cpu":
        tune_malloc()
    try:
        _, model = checkpoint.load(folder, dtype=dtype, device=where, quantize=options.quantize)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{config.name} does not fit on {where}; try --quantize int8 or int4, or --device cpu"
        ) from error
    questions, codec = load_codecs(folder)
    return Predictor(
        model,
        config,
        questions,
        codec,
        where,
        checkpoint.fingerprint(folder),
        describe(options.quantize) if options.quantize else None,
        CudaMeter(where) if where.startswith("cuda") else None,
        torch.get_num_threads(),
    )
