"""Convert the published files into a checkpoint folder.

    checkpoint_best.pth + vision base + Llama folder + BERT's vocabulary
      -> config.json, model.safetensors, language-*.safetensors, tokenizer.model, question_tokenizer.json

Strict both ways: every published tensor is mapped to a name of ours or is on the list of ignored names, and
every tensor of ours is filled, in its shape. Tensors keep their dtype; the optimizer's state is dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from deltavlm.errors import InputError, ModelError
from deltavlm.files import folder_bytes
from deltavlm.messages import pluralize
from deltavlm.model import checkpoint
from deltavlm.model.checkpoint import checkpoint_name
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.model.device import meta_device
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, WEIGHTS
from deltavlm.model.tokenizer import bert_tokenizer, load_sentencepiece
from deltavlm.upstream import names
from deltavlm.upstream.components import Sources
from deltavlm.upstream.inspect import Inspection, inspect_weights, read_checkpoint
from deltavlm.upstream.read import describe_source, sha256_of, source_name, tensors
from deltavlm.upstream.sizes import read_config
from deltavlm.upstream.tower import read_tower
from deltavlm.upstream.write import (
    check_new,
    check_resources,
    check_shapes,
    new_checkpoint,
    save_tensors,
    split_tensors,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Difference = Literal["auto", "csrm", "concat"]


@dataclass(frozen=True, slots=True)
class Converted:
    """Result of a conversion."""

    folder: Path
    config: DeltaVLMConfig
    inspection: Inspection
    tensors: int
    ignored: tuple[str, ...]  # names of published tensors
    bytes: int


def convert(
    sources: Sources,
    folder: Path,
    *,
    difference: Difference = "auto",
    link_language: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Converted:
    """Convert the published files into the checkpoint `folder`, atomically.

    Args:
        sources: local files of all components.
        folder: checkpoint folder to create.
        difference: mode of the difference module; "auto" as the inspection of the checkpoint finds.
        link_language: store the path of the Llama's files instead of copying them.
        notify: called with a line of text for each file that is written.

    Raises: InputError for files that do not fit together, OutputError if `folder` exists or cannot be
        written.
    """
    check_new(folder)
    _check_language(sources.llm)
    published, metadata = read_checkpoint(sources.checkpoint)
    inspection = inspect_weights(sources.checkpoint, published, metadata, sources.vision)
    if inspection.unknown:
        raise InputError(
            f"{sources.checkpoint} has {pluralize(len(inspection.unknown), 'unknown tensor')}, "
            f"{inspection.unknown[0]} the first; it is not a checkpoint of the published model"
        )
    tower = read_tower(sources.vision, published)
    config = read_config(sources, published, tower)
    mode = inspection.difference if difference == "auto" else difference
    config = replace(config, name=folder.name, difference=replace(config.difference, mode=mode))
    tokenizer = _read_vocabulary(sources, config)
    weights, ignored = _rename(published, tower)
    with meta_device():
        expected = {
            name: tensor.shape
            for name, tensor in build(config).state_dict().items()
            if checkpoint.is_stored(name, tied=config.language.tied)
        }
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    check_shapes(shapes, {n: s for n, s in expected.items() if not _is_language(n)}, sources.checkpoint)
    provenance = {
        "checkpoint": describe_source(sources.checkpoint),
        "epoch": str(metadata.get("epoch")),
        "vision": describe_source(sources.vision),
        "language": source_name(sources.llm),
    }
    copied = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    language = None if link_language else sources.llm
    check_resources(folder, sources.checkpoint, sources.vision, language, copied=copied)
    with new_checkpoint(folder) as scratch:
        notify("writing vision, difference module, Q-Former")
        save_tensors(scratch / WEIGHTS, weights, provenance)
        files = {WEIGHTS: sha256_of(scratch / WEIGHTS)}
        if link_language:
            shapes = {
                name: tensor.shape for key, tensor in tensors(sources.llm) if (name := checkpoint_name(key))
            }
            linked = replace(config.language, folder=str(sources.llm.resolve()))
            config = replace(config, language=linked)
        else:
            shapes = _copy_language(sources.llm, scratch, provenance, files, notify)
        check_shapes(shapes, {n: s for n, s in expected.items() if _is_language(n)}, sources.llm)
        shutil.copyfile(sources.llm / SENTENCEPIECE, scratch / SENTENCEPIECE)
        tokenizer.save(str(scratch / QUESTION_TOKENIZER))
        config = replace(config, sources=provenance, files=files)
        checkpoint.save_config(scratch, config)
    return Converted(folder, config, inspection, len(expected), tuple(ignored), folder_bytes(folder))


def language_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The language model's tensors by our names."""
    for key, tensor in tensors(folder):
        name = checkpoint_name(key)
        if name is not None:
            yield name, tensor


def _check_language(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give that of the language model")
    if not (folder / SENTENCEPIECE).is_file():
        raise InputError(f"{folder} has no {SENTENCEPIECE}; fetch that file of the language model too")


def _read_vocabulary(sources: Sources, config: DeltaVLMConfig) -> Tokenizer:
    """BERT's tokenizer; checks both vocabularies against the sizes of the model. Raises: InputError."""
    tokenizer = bert_tokenizer(sources.bert / "vocab.txt")
    size = tokenizer.get_vocab_size()
    if size not in (
        config.qformer.vocab,
        config.qformer.vocab - 1,
    ):  # the model adds an unused [DEC]
        raise InputError(
            f"{sources.bert / 'vocab.txt'} has {size} tokens, the Q-Former {config.qformer.vocab};"
            f" give the vocab.txt of bert-base-uncased"
        )
    path = sources.llm / SENTENCEPIECE
    try:
        size = load_sentencepiece(path).processor.get_piece_size()
    except ModelError as error:
        raise InputError(str(error)) from error
    if size > config.language.vocab:
        raise InputError(f"{path} has {size} tokens, the language model {config.language.vocab}")
    return tokenizer


def _rename(
    published: Mapping[str, Tensor], tower: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by our names, names of ignored tensors), of the checkpoint and the vision base."""
    weights = {f"vision.tower.{name}": tensor for name, tensor in tower.items()}
    ignored = []
    for key, tensor in published.items():
        name = names.from_published(key)
        if name is None:
            ignored.append(key)
        else:
            weights[name] = tensor
    return weights, ignored


def _copy_language(
    source: Path,
    folder: Path,
    provenance: Mapping[str, str],
    files: dict[str, str],
    notify: Callable[[str], None],
) -> dict[str, torch.Size]:
    """Write the language model in shards, add their checksums to `files`, and return its tensors' shapes."""
    shapes: dict[str, torch.Size] = {}
    for number, shard in enumerate(split_tensors(language_weights(source)), start=1):
        name = f"language-{number:05d}.safetensors"
        notify(f"writing {name}")
        save_tensors(folder / name, shard, provenance)
        files[name] = sha256_of(folder / name)
        shapes |= {key: tensor.shape for key, tensor in shard.items()}
    return shapes


def _is_language(name: str) -> bool:
    return name.startswith("language.")
