"""The published files into a checkpoint folder of ours.

    checkpoint_best.pth + vision base + Llama folder + BERT's vocabulary
      -> config.json, model.safetensors, language-*.safetensors, tokenizer.model, question_tokenizer.json

Strict both ways: every published tensor has a name of ours or is on the list of those ignored, and every
tensor of ours is filled, in its shape. Tensors keep their dtype; the optimiser's state is left behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from deltavlm.errors import InputError, ModelError, OutputError
from deltavlm.model import checkpoint
from deltavlm.model.checkpoint import checkpoint_name, write_tensors
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, WEIGHTS
from deltavlm.model.tokenizer import bert_tokenizer, load_sentencepiece
from deltavlm.upstream import names
from deltavlm.upstream.inspect import Inspection, inspected, read_checkpoint
from deltavlm.upstream.read import tensors
from deltavlm.upstream.sizes import read_config
from deltavlm.upstream.sources import Sources, called, digest, told
from deltavlm.upstream.tower import read_tower

SHARD_BYTES = 2 << 30  # of the language model's files: what is held in memory at once
Difference = Literal["auto", "csrm", "concat"]


@dataclass(frozen=True, slots=True)
class Converted:
    """What was done."""

    folder: Path
    config: DeltaVLMConfig
    inspection: Inspection
    filled: int  # tensors
    ignored: tuple[str, ...]
    bytes: int


def convert(
    sources: Sources,
    folder: Path,
    *,
    difference: Difference = "auto",
    link_language: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Converted:
    """Writes the checkpoint folder; it is whole or not there.

    `link_language` writes down where the Llama's files are instead of copying them. Raises: InputError for
    files that do not fit, OutputError where `folder` is taken or there is no room.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; give another folder, or delete it")
    pieces = sources.language / SENTENCEPIECE
    if not sources.language.is_dir():
        raise InputError(f"no folder {sources.language}; give that of the language model")
    if not pieces.is_file():
        raise InputError(
            f"{sources.language} has no {SENTENCEPIECE}; fetch that file of the language model too"
        )
    published, rest = read_checkpoint(sources.checkpoint)
    inspection = inspected(sources.checkpoint, published, rest, sources.vision)
    if inspection.unknown:
        raise InputError(
            f"{sources.checkpoint} holds {len(inspection.unknown)} tensors that are unknown here,"
            f" {inspection.unknown[0]} the first; it is not a checkpoint of the published model"
        )
    tower = read_tower(sources.vision, published)
    config = read_config(sources, published, tower)
    mode = inspection.difference if difference == "auto" else difference
    config = replace(config, name=folder.name, difference=replace(config.difference, mode=mode))
    tokenizer = bert_tokenizer(sources.bert / "vocab.txt")
    words = tokenizer.get_vocab_size()
    if words not in (config.qformer.vocab, config.qformer.vocab - 1):  # [DEC] is added, and never said
        raise InputError(
            f"{sources.bert / 'vocab.txt'} has {words} tokens, the Q-Former knows {config.qformer.vocab};"
            f" give the vocab.txt of bert-base-uncased"
        )
    try:
        spoken = load_sentencepiece(pieces).processor.get_piece_size()
    except ModelError as error:
        raise InputError(str(error)) from error
    if spoken > config.language.vocab:
        raise InputError(f"{pieces} has {spoken} pieces, the language model {config.language.vocab}")

    own: dict[str, Tensor] = {f"vision.tower.{name}": tensor for name, tensor in tower.items()}
    ignored = []
    for name, tensor in published.items():
        our = names.ours(name)
        if our is None:
            ignored.append(name)
        else:
            own[our] = tensor
    with torch.device("meta"):
        wanted = {
            name: tensor.shape
            for name, tensor in build(config).state_dict().items()
            if checkpoint.is_stored(name, tied=config.language.tied)
        }
    check({n: t.shape for n, t in own.items()}, wanted, sources.checkpoint, part=lambda n: not language(n))

    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        say("writing vision, difference module, Q-Former")
        made = {
            "checkpoint": told(sources.checkpoint),
            "epoch": str(rest.get("epoch")),
            "vision": told(sources.vision),
            "language": called(sources.language),
        }
        save(scratch / WEIGHTS, own, made)
        written = {WEIGHTS: digest(scratch / WEIGHTS)}
        shapes = {}
        if link_language:
            shapes = {our: t.shape for n, t in tensors(sources.language) if (our := checkpoint_name(n))}
            config = replace(
                config, language=replace(config.language, folder=str(sources.language.resolve()))
            )
        else:
            for index, part in enumerate(parts(sources.language)):
                name = f"language-{index + 1:05d}.safetensors"
                say(f"writing {name}")
                save(scratch / name, part, made)
                written[name] = digest(scratch / name)
                shapes |= {key: tensor.shape for key, tensor in part.items()}
        check(shapes, wanted, sources.language, part=language)
        shutil.copyfile(pieces, scratch / SENTENCEPIECE)
        tokenizer.save(str(scratch / QUESTION_TOKENIZER))
        config = replace(config, sources=made, files=written)
        checkpoint.save_config(scratch, config)
        scratch.replace(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror}; check the folder and the free disk"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Converted(folder, config, inspection, len(wanted), tuple(ignored), size)


def language(name: str) -> bool:
    """Whether one of our tensors belongs to the language model."""
    return name.startswith("language.")


def check(
    given: Mapping[str, torch.Size],
    wanted: Mapping[str, torch.Size],
    where: Path,
    part: Callable[[str], bool],
) -> None:
    """Names and shapes, both ways, of that part of a model. Raises: InputError naming the first fault."""
    needed = {name: shape for name, shape in wanted.items() if part(name)}
    missing, strange = sorted(set(needed) - set(given)), sorted(set(given) - set(needed))
    wrong = [name for name in needed if name in given and given[name] != needed[name]]
    if missing:
        raise InputError(f"{where}: nothing fills {missing[0]}{_more(missing)}; a part is missing or another")
    if strange:
        raise InputError(f"{where}: {strange[0]}{_more(strange)} has no place in the model")
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{where}: {name} is {tuple(given[name])}, should be {tuple(needed[name])}{_more(wrong)};"
            f" the parts are of different models"
        )


def _more(names_: list[str]) -> str:
    return f" (and {len(names_) - 1} more)" if len(names_) > 1 else ""


def parts(folder: Path) -> Iterable[dict[str, Tensor]]:
    """The language model's tensors in our names, about SHARD_BYTES at a time."""
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors(folder):
        our = checkpoint_name(name)
        if our is None:
            continue
        held[our] = tensor
        size += tensor.numel() * tensor.element_size()
        if size >= SHARD_BYTES:
            yield held
            held, size = {}, 0
    if held:
        yield held


def save(path: Path, weights: Mapping[str, Tensor], made: Mapping[str, str]) -> None:
    """A safetensors file. Raises: OSError."""
    alone = {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()}
    write_tensors(path, alone, made)
