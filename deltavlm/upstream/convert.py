"""The published files into a checkpoint folder of ours.

    checkpoint_best.pth + vision base + Llama folder + BERT's vocabulary
      -> config.json, model.safetensors, language-*.safetensors, tokenizer.model, question_tokenizer.json

Strict both ways: every published tensor has a name of ours or is on the list of those ignored, and every
tensor of ours is filled, in its shape. Tensors keep their dtype; the optimiser's state is left behind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from deltavlm.config import from_mapping, load, shipped
from deltavlm.errors import InputError, ModelError, OutputError
from deltavlm.model import checkpoint
from deltavlm.model.checkpoint import linked_name
from deltavlm.model.config import (
    DeltaVLMConfig,
    DifferenceConfig,
    LanguageConfig,
    QFormerConfig,
    VisionConfig,
)
from deltavlm.model.deltavlm import build
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, WEIGHTS
from deltavlm.model.tokenizer import bert_tokenizer, load_sentencepiece
from deltavlm.upstream import names
from deltavlm.upstream.inspect import Inspection, blocks_of, inspected, read_checkpoint
from deltavlm.upstream.read import shards, tensors

SHARD_BYTES = 2 << 30  # of the language model's files: what is held in memory at once
Difference = Literal["auto", "csrm", "concat"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the parts come from."""

    checkpoint: Path  # checkpoint_best.pth
    vision: Path  # file or folder of the EVA-ViT base
    language: Path  # folder of the Llama: config.json, weights, tokenizer.model
    bert: Path  # folder with BERT's vocab.txt
    config: Path | None = None  # numbers that weights cannot show; see `heads_of`


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
        spoken = load_sentencepiece(pieces).pieces.get_piece_size()
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
            if checkpoint.stored(name, tied=config.language.tied)
        }
    check({n: t.shape for n, t in own.items()}, wanted, sources.checkpoint, part=lambda n: not language(n))

    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        say("writing vision, difference module, Q-Former")
        made = {
            "checkpoint": _told(sources.checkpoint),
            "epoch": str(rest.get("epoch")),
            "vision": _told(sources.vision),
            "language": called(sources.language),
        }
        save(scratch / WEIGHTS, own, made)
        written = {WEIGHTS: digest(scratch / WEIGHTS)}
        shapes = {}
        if link_language:
            shapes = {our: t.shape for n, t in tensors(sources.language) if (our := linked_name(n))}
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


def read_tower(base: Path, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower in LAVIS's names: all of the base, under the checkpoint's own last blocks.

    The published file of EVA-CLIP-g has a 40th block and a head that this model does not use.
    Raises: InputError.
    """
    blocks = blocks_of(published)
    depth = blocks[-1] + 1 if blocks else 39
    found: dict[str, Tensor] = {}
    for name, tensor in tensors(base):
        lavis = names.of_base(name)
        if lavis is None:
            continue
        if lavis.startswith("blocks.") and int(lavis.split(".")[1]) >= depth:
            continue
        if lavis.endswith("attn.qkv.bias"):  # transformers: q, zeros, v in one
            query, key, value = tensor.chunk(3)
            if key.abs().max() > 1e-6:
                raise InputError(f"{base}: {name} has a bias of keys; it is no EVA-ViT")
            stem = lavis.removesuffix("qkv.bias")
            found[stem + "q_bias"], found[stem + "v_bias"] = query.clone(), value.clone()
            continue
        found[lavis] = tensor
    for needed in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"):
        if needed not in found:
            raise InputError(
                f"{base} has no {needed}; give the EVA-CLIP-g base: eva_vit_g.pth, or the folder of"
                f" instructblip-vicuna-7b"
            )
    own = {n.removeprefix("visual_encoder.") for n in published if n.startswith("visual_encoder.")}
    return {name: tensor for name, tensor in found.items() if name not in own}


def read_config(
    sources: Sources, published: Mapping[str, Tensor], tower: Mapping[str, Tensor]
) -> DeltaVLMConfig:
    """The model's numbers from the shapes of its tensors and the Llama's own configuration.

    Raises: InputError.
    """
    vision_heads, qformer_heads = heads_of(sources)
    width = tower["cls_token"].shape[-1]
    patch = tower["patch_embed.proj.weight"].shape[-1]
    side = round((tower["pos_embed"].shape[1] - 1) ** 0.5)
    blocks = blocks_of(published)
    depth = (
        blocks[-1] + 1 if blocks else 1 + max(int(n.split(".")[1]) for n in tower if n.startswith("blocks."))
    )
    mlp = tower["blocks.0.mlp.fc1.weight"].shape[0]
    stem = "Qformer.bert.encoder.layer."
    layers = 1 + max(int(n.removeprefix(stem).split(".")[0]) for n in published if n.startswith(stem))
    crossed = [n for n in range(layers) if f"{stem}{n}.crossattention.self.query.weight" in published]
    vocab, hidden = published["Qformer.bert.embeddings.word_embeddings.weight"].shape
    base = load(shipped("deltavlm-7b.yaml"), DeltaVLMConfig)
    return replace(
        base,
        vision=VisionConfig(
            tower=base.vision.tower,
            image_px=side * patch,
            patch_px=patch,
            width=width,
            depth=depth,
            heads=vision_heads,
            mlp_ratio=(mlp + 0.5) / width,  # timm rounds the product down
            prefix_tokens=1,
        ),
        qformer=QFormerConfig(
            hidden=hidden,
            layers=layers,
            heads=qformer_heads,
            intermediate=published[f"{stem}0.intermediate.dense.weight"].shape[0],
            queries=published["query_tokens"].shape[1],
            vocab=vocab,
            cross_every=crossed[1] - crossed[0] if len(crossed) > 1 else layers,
        ),
        language=language_config(sources.language),
        difference=DifferenceConfig(),
    )


def heads_of(sources: Sources) -> tuple[int, int]:
    """Numbers of attention heads of the vision tower and of the Q-Former, which no weight shows.

    From --config (a model configuration of ours, YAML or JSON, or a table `dims` with vheads and qheads),
    from such an expected.json beside the checkpoint, or those of the published model. Raises: InputError.
    """
    beside = sources.checkpoint.with_name("expected.json")
    path = sources.config or (beside if beside.is_file() else shipped("deltavlm-7b.yaml"))
    try:
        values = json.loads(path.read_text()) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if isinstance(values, dict) and "dims" in values:
        try:
            return int(values["dims"]["vheads"]), int(values["dims"]["qheads"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: dims lacks vheads or qheads") from error
    config = load(path, DeltaVLMConfig) if values is None else from_mapping(DeltaVLMConfig, values, str(path))
    return config.vision.heads, config.qformer.heads


def language_config(folder: Path) -> LanguageConfig:
    """A Llama folder's numbers, out of its config.json. Raises: InputError."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        values = values.get("text_config", values)  # LLaVA keeps its Llama's inside
        if values.get("num_key_value_heads", values["num_attention_heads"]) != values["num_attention_heads"]:
            raise InputError(
                f"{path}: grouped key and value heads are not supported; the model used Vicuna-7B v1.5"
            )
        return LanguageConfig(
            hidden=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            intermediate=values["intermediate_size"],
            vocab=values["vocab_size"],
            context=values.get("max_position_embeddings", 4096),
            rms_eps=values.get("rms_norm_eps", 1e-5),
            tied=bool(values.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a Llama: {error}") from error


def parts(folder: Path) -> Iterable[dict[str, Tensor]]:
    """The language model's tensors in our names, about SHARD_BYTES at a time."""
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors(folder):
        our = linked_name(name)
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
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({n: t.detach().contiguous().clone() for n, t in weights.items()}, path, metadata=dict(made))
        path.chmod(0o644)  # the library leaves it to the owner alone
    except SafetensorError as error:
        raise OSError(28, str(error)) from error


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(path: Path) -> str:
    """What a file or folder is called, and the start of its (first shard's) sha256, for the record."""
    return f"{called(path)} sha256:{digest(shards(path)[0])[:16]}"


def called(path: Path) -> str:
    """A file's or folder's name; in the Hub's cache, where that is a checksum, its repository and commit.

    >>> called(Path("/cache/models--lmsys--vicuna-7b-v1.5/snapshots/0123456789abcdef0123/config.json"))
    'lmsys/vicuna-7b-v1.5@0123456789ab/config.json'
    """
    steps = path.absolute().parts
    if "snapshots" not in steps[:-1]:
        return path.absolute().name
    at = steps.index("snapshots")
    repository = steps[at - 1].removeprefix("models--").replace("--", "/")
    return "/".join((f"{repository}@{steps[at + 1][:12]}", *steps[at + 2 :]))
