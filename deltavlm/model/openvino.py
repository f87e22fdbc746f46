"""OpenVINO runtime of a checkpoint that has graphs: the same answers on a CPU, without torch.

N pairs, R rows, S text tokens, V vocabulary, L language width; see `graphs` for the other letters.
"""

from __future__ import annotations

import hashlib
import json
import locale
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltavlm.errors import ConfigError, ModelError, ModelOutOfMemory
from deltavlm.files import parse_json, write_atomic
from deltavlm.model.answering import CheckpointModel, GeneratedRows
from deltavlm.model.config import DeltaVLMConfig, RuntimeOptions, ScoreCalibration
from deltavlm.model.constraint import Constraint
from deltavlm.model.folder import (
    CACHE,
    FEATURES,
    GRAPHS,
    LAYOUT,
    STEP,
    WEIGHTS,
    find_folder,
    fingerprint,
    layout_digest,
    read_config,
)
from deltavlm.model.images import resize_images
from deltavlm.model.interface import Masks, PairContext, Pixels, Question
from deltavlm.model.scope_numpy import NumpyScope
from deltavlm.model.tokenizer import Codec, load_codecs

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# Pairs of a batch, of which so many are encoded at once, and rows answered at once. More are hardly faster,
# and take much memory.
PAIRS, ENCODE_PAIRS, ROWS = 16, 2, 16
CACHE_BLOCK = 16  # by which the key/value cache grows
CHECKSUMS = "checksums.json"  # of the compiled graphs in a folder
UNUSED_DAYS = 30  # after which compiled graphs of other weights or versions are removed


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Question-independent features of N pairs."""

    masks: Floats  # (N, classes, rows, cols) probabilities
    evidence: Floats  # (N, A, D)
    keys: Floats  # (N, X, H, T, E)
    values: Floats
    counts: Floats  # (N, K) of the mask head

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of the tokens so far, in P places, which are not all filled.

    Their number grows by blocks, so that the graph runs with few shapes, for each of which OpenVINO prepares
    anew.
    """

    keys: Floats  # (Y, R, H, P, E)
    values: Floats
    mask: npt.NDArray[np.int64]  # (R, P), 1 where there is a token
    length: int  # of the places, those that are filled

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> KeyValueCache:
        """Cache of a shape (Y, R, H, P, E) without tokens."""
        mask = np.zeros((shape[1], shape[3]), np.int64)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32), mask, 0)

    @classmethod
    def of_prompt(cls, keys: Floats, values: Floats, mask_RS: npt.NDArray[np.int64]) -> KeyValueCache:
        """Cache of the S tokens of prompts, with room for others."""
        length = mask_RS.shape[1]
        cache = cls.empty((*keys.shape[:3], CACHE_BLOCK * (length // CACHE_BLOCK + 1), keys.shape[4]))
        cache.keys[..., :length, :], cache.values[..., :length, :] = keys, values
        cache.mask[:, :length] = mask_RS
        cache.length = length
        return cache

    def append(self, keys: Floats, values: Floats) -> None:
        """Add a token of each row, (Y, R, H, 1, E)."""
        if self.length == self.mask.shape[1]:
            room = [(0, 0)] * 3 + [(0, CACHE_BLOCK), (0, 0)]
            self.keys, self.values = np.pad(self.keys, room), np.pad(self.values, room)
            self.mask = np.pad(self.mask, [(0, 0), (0, CACHE_BLOCK)])
        self.keys[..., self.length, :], self.values[..., self.length, :] = keys[..., 0, :], values[..., 0, :]
        self.mask[:, self.length] = 1
        self.length += 1

    def select(self, rows: npt.NDArray[np.bool_]) -> KeyValueCache:
        """The cache of some rows."""
        keys, values = (tensor.compress(rows, axis=1) for tensor in (self.keys, self.values))
        return KeyValueCache(keys, values, self.mask[rows], self.length)

    def layers(self) -> dict[str, Floats]:
        """Keys and values of each layer, by the names of the graph's inputs."""
        return {
            f"{name}{layer}": each
            for name, tensors in zip(CACHE, (self.keys, self.values), strict=True)
            for layer, each in enumerate(tensors)
        }


@dataclass
class Graphs:
    """Compiled graphs of a checkpoint; each thread has its own inference requests."""

    compiled: Mapping[str, Any]
    requests: threading.local = field(default_factory=threading.local)

    def run(self, name: str, inputs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Outputs of a graph by name; they stay as they are when it runs again.

        Raises: ModelOutOfMemory, ModelError.
        """
        if not hasattr(self.requests, name):
            setattr(self.requests, name, self.compiled[name].create_infer_request())
        request = getattr(self.requests, name)
        with wrap_runtime_errors(name):
            results = request.infer(dict(inputs), share_inputs=True)
        return {alias: value for output, value in results.items() for alias in output.get_names()}


@dataclass(frozen=True, repr=False)
class GraphPredictor(CheckpointModel):
    """A ChangeModel: the graphs of a DeltaVLM with its tokenizers, on a CPU."""

    graphs: Graphs
    embeddings: Floats  # (V, L) of the language model's tokens
    config: DeltaVLMConfig
    questions: Codec
    codec: Codec
    fingerprint: str
    threads: int
    precision: str  # of the encoder
    scope: NumpyScope | None = None
    calibration: ScoreCalibration | None = None
    device: str = "cpu"

    @property
    def details(self) -> dict[str, Any]:
        openvino = import_openvino()
        version = openvino.__version__.partition("-")[0]
        return {
            "runtime": f"openvino {version}",
            "dtype": self.precision,
            "quantize": None,
            **super().details,
        }

    def init_worker(self) -> None:
        """Nothing to do: the streams of the compiled graphs have their threads."""

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> EncodedPairs:
        """Encode N pairs into features that every question about them shares.

        Args:
            before, after: (N, 3, H, W) uint8 RGB, of any size.
            contexts: not read.

        Raises: ModelOutOfMemory if the batch does not fit, ModelError.
        """
        size = self.config.vision.image_px
        images = np.stack([resize_images(date, size) for date in (before, after)])
        features: dict[str, Floats] = {}
        for start in range(0, max(1, len(before)), ENCODE_PAIRS):
            part = slice(start, start + ENCODE_PAIRS)
            outputs = self.graphs.run("encode", {"images": images[:, part]})
            for name in FEATURES:
                if name not in features:
                    features[name] = np.empty((len(before), *outputs[name].shape[1:]), np.float32)
                features[name][part] = outputs[name]
        return EncodedPairs(*(features[name] for name in FEATURES))

    def counts(self, encoded: EncodedPairs) -> Floats:
        return encoded.counts

    def masks(self, encoded: EncodedPairs) -> Masks | None:
        """Change masks of N pairs, (N, classes, rows, cols)."""
        assert self.config.dense is not None
        return Masks(self.config.dense.classes, encoded.masks)

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch."""
        return PAIRS

    def row_batch_size(self, questions: Sequence[Question]) -> int:
        """Number of rows that are generated at once."""
        return ROWS

    def generate_rows(
        self,
        encoded: EncodedPairs,
        rows: Sequence[tuple[int, Question]],
        stops: Sequence[tuple[int, int]],
        constraints: Sequence[Constraint | None],
    ) -> GeneratedRows:
        """Generate answers to one batch of rows; see `CheckpointModel.generate_rows`."""
        for_qformer, for_language = self.token_ids_of_rows(rows)
        ids, mask = self.questions.pad_rows(for_qformer, "right")
        pairs = [pair for pair, _ in rows]
        is_each_once = pairs == list(range(len(encoded)))
        evidence, keys, values = (
            each if is_each_once else each[pairs] for each in (encoded.evidence, encoded.keys, encoded.values)
        )
        asked = {"evidence": evidence, "keys": keys, "values": values, "ids": ids, "mask": mask}
        soft = self.graphs.run("query", asked)["soft"]
        text, text_mask = self.codec.pad_rows(for_language, "left")
        embeds = np.concatenate([soft, self.embeddings[text]], axis=1)
        attention = np.concatenate([np.ones(soft.shape[:2], np.int64), text_mask], axis=1)
        limit = max(question.max_new_tokens for _, question in rows)
        return self._decode(embeds, attention, limit, stops, constraints)

    def _decode(
        self,
        embeds_RSL: Floats,
        mask_RS: npt.NDArray[np.int64],
        max_new_tokens: int,
        stops: Sequence[tuple[int, int]],
        constraints: Sequence[Constraint | None],
    ) -> GeneratedRows:
        """Greedy decoding as in `DeltaVLM.generate`: finished rows leave the batch as soon as they are a
        quarter of it."""
        count, eos = len(embeds_RSL), self.codec.eos
        ids = np.full((count, max_new_tokens), self.codec.pad, np.int64)
        log_probs = np.zeros((count, max_new_tokens), np.float32)
        language = self.config.language
        cache = KeyValueCache.empty(
            (language.layers, count, language.heads, 0, language.hidden // language.heads)
        )
        rows, unfinished = np.arange(count), np.ones(count, bool)
        positions = np.maximum(mask_RS.cumsum(axis=1) - 1, 0)
        first_logits: Floats | None = None
        step = 0
        for step in range(max_new_tokens):
            mask = np.concatenate([cache.mask, mask_RS], axis=1)
            inputs = {"embeds": embeds_RSL, "mask": mask, "positions": positions}
            outputs = self.graphs.run("language", inputs | cache.layers())
            logits, keys, values = (outputs[name] for name in STEP)
            token = logits.argmax(axis=1)
            for index in np.flatnonzero(unfinished).tolist():
                constraint = constraints[rows[index]]
                if constraint is not None:
                    token[index] = constraint.choose(int(token[index]), logits[index])
            chosen = np.take_along_axis(log_softmax(logits), token[:, None], axis=1)[:, 0]
            ids[rows[unfinished], step] = token[unfinished]
            log_probs[rows[unfinished], step] = chosen[unfinished]
            unfinished = unfinished & (token != eos)
            if first_logits is None:
                first_logits = logits
                unfinished &= (token[:, None] != np.array(stops)).all(axis=1)
            remaining = int(unfinished.sum())
            if remaining == 0:
                break
            if step == 0:
                cache = KeyValueCache.of_prompt(keys, values, mask_RS)
            else:
                cache.append(keys, values)
            if remaining <= 0.75 * len(rows):
                rows, token, positions = (each[unfinished] for each in (rows, token, positions))
                cache = cache.select(unfinished)
                unfinished = unfinished[unfinished]
            embeds_RSL = self.embeddings[token][:, None]
            mask_RS = np.ones((len(rows), 1), np.int64)
            positions = positions[:, -1:] + 1
        assert first_logits is not None  # an answer has at least one token
        return GeneratedRows(ids[:, : step + 1], log_probs[:, : step + 1], first_logits)


def log_softmax(logits_RV: Floats) -> Floats:
    """Logarithm of the softmax over the last axis."""
    shifted = logits_RV - logits_RV.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


@contextmanager
def wrap_runtime_errors(work: str) -> Iterator[None]:
    """Raise errors of OpenVINO as ours. Raises: ModelOutOfMemory if memory ran out, else ModelError."""
    try:
        yield
    except MemoryError as error:
        raise ModelOutOfMemory(f"{work} does not fit into memory; ask for a smaller batch") from error
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if "alloc" in reason.lower():
            raise ModelOutOfMemory(f"{work} does not fit into memory; ask for a smaller batch") from error
        raise ModelError(f"{work} failed in OpenVINO: {reason}; try `runtime='torch'`") from error


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which asks for a home folder and would send usage data."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # cannot be imported
    return import_module("openvino")


def compile_graphs(folder: Path, identity: str, threads: int, dtype: str = "auto") -> tuple[Graphs, str]:
    """Graphs of a checkpoint folder compiled for this CPU, and the precision of the encoder.

    identity: fingerprint of the folder, which names the cache.

    The encoder computes in bf16 if `dtype` is "bf16"; the language model always in float32. Compiled graphs
    are cached in the user's cache folder, or in $OV_CACHE_DIR.

    Raises: ModelError if a graph cannot be read, or is of other weights; ConfigError for bf16 on a CPU
        without instructions for it.
    """
    openvino = import_openvino()
    core = openvino.Core()
    precision = "bf16" if dtype == "bf16" else "fp32"
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("`dtype='bf16'`: this CPU has no instructions for bf16; omit it")
    cache = cache_folder(f"{openvino.__version__.partition('-')[0]}-{identity}")
    intact = set() if cache is None else remove_damaged(cache)
    if cache is not None:
        remove_unused(cache)
    digest = layout_digest(folder / WEIGHTS)
    expected = {GRAPHS[0]: FEATURES, GRAPHS[-1]: STEP}

    def compile_graph(name: str) -> Any:
        path = folder / name
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 2 if threads > 1 else 1,
            "INFERENCE_PRECISION_HINT": "bf16" if name == GRAPHS[0] and precision == "bf16" else "f32",
        }
        if cache is not None:
            options["CACHE_DIR"] = str(cache)
        try:
            graph = core.read_model(path)
            has_layout = graph.has_rt_info(["framework", LAYOUT])
            layout = graph.get_rt_info(["framework", LAYOUT]).value if has_layout else ""
            if layout != digest:
                raise ModelError(
                    f"{path} is not of the weights beside it; write it again with deltavlm weights export"
                )
            outputs = {alias for output in graph.outputs for alias in output.get_names()}
            if not outputs >= {*expected.get(name, ())}:
                raise ModelError(
                    f"{path} is of an earlier version; write it again with deltavlm weights export"
                )
            return core.compile_model(graph, "CPU", options)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["?"])[-1]
            raise ModelError(f"cannot read {path}: {reason}; copy the checkpoint folder again") from error

    with locale_kept(), ThreadPoolExecutor(len(GRAPHS)) as pool:
        compiled = dict(
            zip((Path(name).stem for name in GRAPHS), pool.map(compile_graph, GRAPHS), strict=True)
        )
    if cache is not None:
        store_checksums(cache, intact)
    return Graphs(compiled), precision


@contextmanager
def locale_kept() -> Iterator[None]:
    """The locale of the process as it was before.

    OpenVINO sets the locale "C" while it reads a graph, and back afterwards; of two threads, the later one
    may take "C" for what was set before. Text would then be read as ASCII in the whole process.
    """
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def cache_folder(name: str = "") -> Path | None:
    """Folder for compiled graphs, made if it is not there; None where none can be written."""
    base = os.environ.get("OV_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "deltavlm" / "openvino" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def remove_damaged(folder: Path) -> set[str]:
    """Remove compiled graphs that are not as they were stored: OpenVINO would compute with their weights.

    Returns: file names of the others.
    """
    stored: Any = None
    with suppress(OSError, ValueError):
        stored = parse_json((folder / CHECKSUMS).read_text())
    expected = stored if isinstance(stored, dict) else {}
    checksums = blob_checksums(folder)
    damaged = {name for name, checksum in checksums.items() if expected.get(name) != checksum}
    for name in damaged:
        logger.info("%s is damaged, or was not stored completely: compiled again", folder / name)
        with suppress(OSError):  # open on Windows
            (folder / name).unlink()
    return checksums.keys() - damaged


def remove_unused(folder: Path) -> None:
    """Remove compiled graphs in the folders beside this one that were not used for UNUSED_DAYS: those of
    other weights, and of other versions of OpenVINO. The time of a folder is that of its last use."""
    with suppress(OSError):  # on a read-only disk nothing is removed
        os.utime(folder)
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for other in folder.parent.iterdir():
        with suppress(OSError):  # removed meanwhile, or open on Windows
            if other != folder and other.is_dir() and other.stat().st_mtime < oldest:
                for path in (*other.glob("*.blob"), other / CHECKSUMS):
                    path.unlink(missing_ok=True)
                other.rmdir()


def store_checksums(folder: Path, intact: set[str]) -> None:
    """Store the checksums of the compiled graphs in a folder, for `remove_damaged`.

    intact: files whose checksums are stored.
    """
    with suppress(OSError):  # a full disk; they are compiled again then
        if {path.name for path in folder.glob("*.blob")} != intact:
            write_atomic(folder / CHECKSUMS, json.dumps(blob_checksums(folder), indent=1).encode())


def blob_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each compiled graph in a folder, by file name."""
    checksums = {}
    for path in sorted(folder.glob("*.blob")):
        with suppress(OSError), path.open("rb") as file:  # removed meanwhile by another process
            checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def usable_cores() -> int:
    """Number of threads: $OMP_NUM_THREADS, else the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    with suppress(AttributeError):  # Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_tensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, Floats]:
    """Tensors whose names begin with a prefix, in float32. Raises: ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118  not a dict
            return {name: file.get_tensor(name).astype(np.float32) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the file again") from error


def load(name_or_folder: str, options: RuntimeOptions) -> GraphPredictor:
    """Load the graphs of a checkpoint by the name of a model, or by its folder; see `kinds.load_model`."""
    folder = find_folder(name_or_folder)
    config = options.apply_to(read_config(folder))
    identity, calibration = fingerprint(folder), options.calibration
    if calibration is not None:
        calibration.check_model(config.name, identity)
    threads = options.threads or usable_cores()
    graphs, precision = compile_graphs(folder, identity, threads, options.dtype)
    questions, codec = load_codecs(folder)
    tensors = read_tensors(folder / WEIGHTS, ("language.model.embed_tokens.weight", "scope."))
    scope = None if config.scope is None else NumpyScope.of_tensors(config.scope, tensors)
    embeddings = tensors["language.model.embed_tokens.weight"]
    return GraphPredictor(
        *(graphs, embeddings, config, questions, codec, identity, threads, precision, scope, calibration)
    )
