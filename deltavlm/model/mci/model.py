"""MCI as a `ChangeModel`: captions from its decoder, counts and cells from its masks.

The model knows the four words of its phrasebook as questions:

    caption    the caption that the decoder writes
    changed    yes where P(yes) is at least 0.5; P(yes) is 1 minus the probability, by the decoder, of the
               no-change sentences of LEVIR-CC together
    count      connected components of road and of building in the mask, of `min_component_px` pixels or more
    where      cells of the 3x3 grid that hold a pixel of such a component
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from deltavlm.config import to_mapping
from deltavlm.errors import ModelError
from deltavlm.files import write_atomic
from deltavlm.files.atomic import atomic_file
from deltavlm.messages import UNSUPPORTED, pluralize
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.device import (
    DTYPES,
    meta_device,
    resolve_device,
    to_device,
    tune_malloc,
    wrap_torch_errors,
)
from deltavlm.model.folder import CONFIG, VOCABULARY, WEIGHTS, read_config_as
from deltavlm.model.folder import fingerprint as fingerprint_of
from deltavlm.model.footprint import Footprint, check_fits, footprint_of, sizes_of
from deltavlm.model.images import resize_images
from deltavlm.model.interface import CheckpointFacts, Masks, PairContext, Pixels, Question, Reply
from deltavlm.model.mci.config import CLASSES, END, NULL, START, MCIConfig, read_vocabulary
from deltavlm.model.mci.network import MCI, Encoding
from deltavlm.model.memory import free_memory
from deltavlm.model.tensors import fill, read_tensors, write_tensors

PAIRS = {"cpu": 8, "mps": 16, "cuda": 64}  # per batch
ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "center", "right")
CELLS = tuple(f"{row}-{column}" for row in ROWS for column in COLUMNS)


@dataclass(frozen=True, slots=True)
class Findings:
    """Roads and buildings in the change mask of a pair."""

    counts: Mapping[str, int]  # of the components, by class
    cells: Mapping[str, tuple[str, ...]]  # that hold a pixel of a component, by class

    @property
    def count_text(self) -> str:
        """Such as `2 roads and 5 buildings`."""
        return " and ".join(pluralize(number, name) for name, number in self.counts.items())

    @property
    def cell_text(self) -> str:
        """Such as `roads [top-left, top-center] buildings []`."""
        return " ".join(f"{name}s [{', '.join(cells)}]" for name, cells in self.cells.items())


def find_objects(labels: NDArray[np.integer], min_component_px: int) -> Findings:
    """Count and locate the 8-connected components of each class in labels (rows, cols).

    >>> labels = np.zeros((9, 9), int)
    >>> labels[0, :3] = labels[8, 8] = 1
    >>> find_objects(labels, 3).count_text, find_objects(labels, 3).cell_text
    ('1 road and 0 buildings', 'roads [top-left] buildings []')
    """
    counts, cells = {}, {}
    for code, name in enumerate(CLASSES[1:], start=1):
        components = label_components(labels == code, min_component_px)
        rows, cols = np.nonzero(components)
        edges = [np.linspace(0, length, 4).round()[1:3] for length in labels.shape]
        indices = 3 * np.searchsorted(edges[0], rows, "right") + np.searchsorted(edges[1], cols, "right")
        counts[name] = len(np.unique(components[rows, cols]))
        cells[name] = tuple(CELLS[index] for index in np.unique(indices))
    return Findings(counts, cells)


def label_components(mask: NDArray[np.bool_], min_component_px: int) -> NDArray[np.integer]:
    """8-connected components of a mask by number; 0 for the background and those of fewer pixels."""
    components, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    is_large = np.bincount(components.ravel()) >= min_component_px
    labelled: NDArray[np.integer] = np.where(is_large[components], components, 0)
    return labelled


@dataclass(frozen=True, slots=True)
class Caption:
    """Caption of a pair."""

    ids: tuple[int, ...]  # of its words, END included where it came
    text: str
    score: float  # mean log-probability of the ids


@dataclass(frozen=True, repr=False)
class MCIModel(CheckpointFacts):
    """A ChangeModel: an MCI with its vocabulary on one device."""

    network: MCI
    config: MCIConfig
    words: tuple[str, ...]
    device: str
    fingerprint: str
    calibration: ScoreCalibration | None = None  # of P(yes), to somebody's own chips

    @property
    def details(self) -> dict[str, Any]:
        return {
            "kind": self.config.kind,
            "dtype": str(self.network.captioner.classify.weight.dtype).removeprefix("torch."),
            "min_component_px": self.config.min_component_px,
            "sources": self.config.sources,
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    @property
    def phrasebook(self) -> str:
        return "mci"

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch."""
        return PAIRS[self.device.split(":")[0]]

    @torch.inference_mode()
    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> Encoding:
        """Encode N pairs.

        Args:
            before, after: (N, 3, H, W) uint8 RGB, of any size.
            contexts: not read.

        Raises: ModelOutOfMemory if the batch does not fit, ModelError.
        """
        size = self.config.image_px
        with wrap_torch_errors(pluralize(len(before), "pair"), self.device):
            pixels = [
                self.network.normalise(
                    to_device(torch.from_numpy(np.ascontiguousarray(resize_images(date, size))), self.device)
                )
                for date in (before, after)
            ]
            encoding: Encoding = self.network(*pixels)
            return encoding

    def answer(
        self, encoded: Encoding, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Answer every question about all pairs, or those with the indices `pairs`: [pair][question].

        Raises: ModelOutOfMemory, ModelError.
        """
        pairs = range(len(encoded)) if pairs is None else pairs
        replies = self.answer_rows(encoded, [(pair, question) for question in questions for pair in pairs])
        return [replies[index :: len(pairs)] for index in range(len(pairs))]

    def answer_rows(self, encoded: Encoding, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answer rows of (index of a pair, question), in their order; a question other than the words of the
        phrasebook is answered with `messages.UNSUPPORTED`.

        Raises: ModelOutOfMemory, ModelError.
        """
        pairs: dict[str, list[int]] = {}  # by question, each once
        for pair, question in rows:
            asked = pairs.setdefault(question.prompt, [])
            if pair not in asked:
                asked.append(pair)
        answers: Mapping[str, Callable[[Encoding], list[Reply]]] = {
            "caption": lambda chosen: [Reply(each.text, each.score) for each in self.captions(chosen)],
            "changed": self._changed,
            "count": lambda chosen: [Reply(each.count_text, math.nan) for each in self.findings(chosen)],
            "where": lambda chosen: [Reply(each.cell_text, math.nan) for each in self.findings(chosen)],
        }
        replies = {
            (pair, prompt): reply
            for prompt, asked in pairs.items()
            if prompt in answers
            for pair, reply in zip(asked, answers[prompt](encoded.select(asked)), strict=True)
        }
        unsupported = Reply(UNSUPPORTED, math.nan)
        return [replies.get((pair, question.prompt), unsupported) for pair, question in rows]

    def masks(self, encoded: Encoding) -> Masks:
        """Change masks of the pairs, at the resolution of the image; the first class is "none".

        Components that are too small to be counted are "none", so that what is drawn is what is counted.
        """
        with wrap_torch_errors(f"masks of {pluralize(len(encoded), 'pair')}", self.device):
            probabilities = encoded.mask_logits.float().softmax(dim=1).cpu().numpy()
        for planes in probabilities:
            labels = planes.argmax(axis=0)
            for code in range(1, len(CLASSES)):
                mask = labels == code
                is_speckle = mask & (label_components(mask, self.config.min_component_px) == 0)
                planes[:, is_speckle] = 0
                planes[0, is_speckle] = 1
        return Masks(("none", *CLASSES[1:]), probabilities)

    @torch.inference_mode()
    def captions(self, encoded: Encoding) -> list[Caption]:
        """Caption of each pair. Raises: ModelOutOfMemory, ModelError."""
        with wrap_torch_errors(f"captions of {pluralize(len(encoded), 'pair')}", self.device):
            written = self.network.captioner.write(encoded.memory)
        captions = []
        for row, log_probs in zip(written.ids.tolist(), written.log_probs.tolist(), strict=True):
            ids = tuple(row[: row.index(END) + 1] if END in row else row)
            words = (self.words[index] for index in ids if index not in (NULL, START, END))
            captions.append(Caption(ids, " ".join(words), sum(log_probs[: len(ids)]) / len(ids)))
        return captions

    def findings(self, encoded: Encoding) -> list[Findings]:
        """Roads and buildings in the mask of each pair."""
        labels = encoded.mask_logits.argmax(dim=1).cpu().numpy()
        return [find_objects(each, self.config.min_component_px) for each in labels]

    @torch.inference_mode()
    def _changed(self, encoded: Encoding) -> list[Reply]:
        """Yes or no, with P(yes)."""
        unchanged = np.zeros(len(encoded))
        with wrap_torch_errors(f"captions of {pluralize(len(encoded), 'pair')}", self.device):
            for ids in self._no_change_ids:
                words = torch.tensor([ids] * len(encoded), device=encoded.memory.device)
                scores = self.network.captioner.score(encoded.memory, words[:, :-1])
                log_probs = scores.double().log_softmax(dim=2).gather(2, words[:, 1:, None])
                unchanged += log_probs.flatten(1).sum(dim=1).exp().cpu().numpy()
        replies = []
        for probability in np.clip(unchanged, 1e-12, 1 - 1e-12).tolist():
            margin = math.log1p(-probability) - math.log(probability)
            if self.calibration is not None:
                margin = self.calibration.scale * margin + self.calibration.offset
            score = 1 / (1 + math.exp(-max(margin, -700.0)))
            replies.append(Reply("yes" if score >= 0.5 else "no", score))
        return replies

    @cached_property
    def _no_change_ids(self) -> list[list[int]]:
        """Word ids of the no-change sentences, from START to END; those with a word that is not in the
        vocabulary cannot be said."""
        index_of = {word: index for index, word in enumerate(self.words)}
        sentences = (sentence.split() for sentence in self.config.no_change)
        return [
            [START, *(index_of[word] for word in words), END]
            for words in sentences
            if all(word in index_of for word in words)
        ]


def save_folder(
    folder: Path,
    config: MCIConfig,
    words: Sequence[str],
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, str],
) -> None:
    """Write a checkpoint into an existing folder, each file atomically; `provenance` becomes its `sources`.

    Raises: OSError.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in weights.items()
        if not name.endswith("num_batches_tracked")
    }
    with atomic_file(folder / WEIGHTS) as scratch:
        write_tensors(scratch, tensors, provenance)
    vocabulary = {word: index for index, word in enumerate(words)}
    write_atomic(folder / VOCABULARY, json.dumps(vocabulary, ensure_ascii=False) + "\n")
    with (folder / WEIGHTS).open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    config = replace(config, sources=dict(provenance), files={WEIGHTS: checksum})
    write_atomic(folder / CONFIG, json.dumps(to_mapping(config), indent=1) + "\n")


def load_folder(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    calibration: ScoreCalibration | None = None,
) -> MCIModel:
    """Load a checkpoint folder; the network is in evaluation mode. Raises: InputError, ModelError."""
    config = read_config_as(MCIConfig, folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; copy the whole checkpoint folder again")
    words = read_vocabulary(folder / VOCABULARY)
    if len(words) != config.words:
        raise ModelError(
            f"{folder / VOCABULARY} has {len(words)} words, {folder / CONFIG} {config.words}; copy the whole "
            "checkpoint folder again"
        )
    with meta_device():
        network = MCI(config)
    weights = {name: tensor.to(dtype) for name, tensor in read_tensors(folder / WEIGHTS, device)}
    fill(network, weights, str(folder / WEIGHTS))
    network.eval()
    return MCIModel(network.to(device), config, words, device, fingerprint_of(folder), calibration)


def read_footprint(folder: Path, options: RuntimeOptions) -> Footprint:
    """Memory that a checkpoint folder will take. Raises: InputError, ModelError."""
    config = read_config_as(MCIConfig, folder)
    device = resolve_device(options)
    dtype = "fp32" if options.dtype == "auto" else options.dtype
    return footprint_of(
        sizes_of(folder.glob("*.safetensors")),
        config.pair_bytes,
        device=device,
        dtype=dtype,
        pairs=PAIRS[device.split(":")[0]],
    )


def load_model(folder: Path, options: RuntimeOptions) -> MCIModel:
    """Load a checkpoint folder with runtime options; the dtype "auto" is float32.

    Raises: InputError, also if it does not fit into the free memory; ModelError.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options)
    check_fits(str(folder), read_footprint(folder, options), free_memory(device))
    if device == "cpu":
        tune_malloc()
    dtype = DTYPES["fp32" if options.dtype == "auto" else options.dtype]
    model = load_folder(folder, dtype=dtype, device=device, calibration=options.calibration)
    if options.calibration is not None:
        options.calibration.check_model(model.name, model.fingerprint)
    return model
