"""ChangeChat: names, conversion and verification.

    LLaVA-1.5's folder + CLIP ViT-L/14-336 + adapter
      -> config.json, model.safetensors, language-*.safetensors, tokenizer.model

The adapter is merged into the language model. The position table of the tower is resampled to the size of the
images. Strict both ways: every tensor is mapped or on a list of ignored names, and every tensor of ours is
filled, in its shape. Tensors keep their dtype.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltavlm.config import to_mapping
from deltavlm.errors import InputError, ModelError
from deltavlm.files import folder_bytes, parse_json, read_text, write_atomic
from deltavlm.model.changechat.config import ChangeChatConfig, TowerConfig
from deltavlm.model.changechat.network import POSITIONS, ChangeChatNetwork
from deltavlm.model.changechat.prompt import PromptCodec
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.device import meta_device
from deltavlm.model.folder import CONFIG, SENTENCEPIECE, WEIGHTS
from deltavlm.upstream.adapters import CONFIG as ADAPTER_CONFIG
from deltavlm.upstream.adapters import Lora, check_all_merged, language_layer, read_adapter
from deltavlm.upstream.checks import Check
from deltavlm.upstream.kinds import Contents, Converted, Dtype
from deltavlm.upstream.read import describe_source, sha256_of, tensors
from deltavlm.upstream.sizes import language_config
from deltavlm.upstream.write import (
    check_new,
    check_resources,
    check_shapes,
    new_checkpoint,
    save_tensors,
    split_tensors,
)

TRAINED = "non_lora_trainables.bin"  # what an adapter's training changed beside the adapter

Table = Sequence[tuple[str, str | None]]
"""Regular expression of a published name -> ours; None for a tensor that is ignored."""

# Base in LLaVA-1.5's first layout; in that of llava-hf, where the language model is nested; and as in
# transformers 5, where all but the head of the language model is in `model.`.
BASE: Table = (
    (r"(model\.)?(mm|multi_modal)_projector\.(0|linear_1)\.(weight|bias)", r"projector.linear_1.\4"),
    (r"(model\.)?(mm|multi_modal)_projector\.(2|linear_2)\.(weight|bias)", r"projector.linear_2.\4"),
    (r"(language_model\.)?model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None),  # computed
    (r"(model\.)?vision_tower\..*", None),  # the tower comes from CLIP's own file
    (r"model\.language_model\.((embed_tokens|layers|norm)\..*)", r"language.model.\1"),
    (r"(language_model\.)?(model\.(embed_tokens|layers|norm)\..*|lm_head\.weight)", r"language.\2"),
)
CLIP: Table = (
    (r"vision_model\.embeddings\.position_ids", None),  # a computed buffer
    (r"vision_model\.(.*)", r"vision.\1"),
    (r"text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale", None),  # CLIP's text
)
# The table was resampled after the tower was frozen, so training saved it, unchanged.
TRAINED_NAMES: Table = (
    (r"(base_model\.)?(model\.)*vision_tower\..*\.position_embedding\.weight", None),
    (r"(base_model\.)?(model\.)*mm_projector\.0\.(weight|bias)", r"projector.linear_1.\3"),
    (r"(base_model\.)?(model\.)*mm_projector\.2\.(weight|bias)", r"projector.linear_2.\3"),
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Local files of ChangeChat's components."""

    base: Path  # folder of LLaVA-1.5: config.json, weights, tokenizer.model
    vision: Path  # folder of CLIP ViT-L/14-336: config.json, weights
    adapter: Path | None = None  # folder of the LoRA; None: the base alone, to train from
    projector: Path | None = None  # file of a projector in place of the adapter's and the base's


def convert(sources: Sources, folder: Path, notify: Callable[[str], None] = lambda text: None) -> Converted:
    """Convert the published files into the checkpoint `folder`, atomically.

    The language model is read and written in shards of 2 GB, each merged with the adapter.

    Raises: InputError for files that do not fit together, OutputError if `folder` exists or cannot be
        written.
    """
    check_new(folder)
    config = read_config(sources, folder.name)
    ignored: list[str] = []
    with meta_device():
        network = ChangeChatNetwork(config)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    adapter = None if sources.adapter is None else read_adapter(sources.adapter)
    small = dict(_renamed(sources.vision, CLIP, ignored))
    small[POSITIONS] = resample_positions(_required(small, POSITIONS, sources.vision), config)
    projector, config = _projector_of(sources, config, ignored)
    provenance = {
        "base": describe_source(sources.base),
        "vision": describe_source(sources.vision),
        **({} if sources.adapter is None else {"adapter": describe_source(sources.adapter)}),
        **({} if sources.projector is None else {"projector": describe_source(sources.projector)}),
        **({} if adapter is None else {"lora": f"rank {adapter.rank}, alpha {adapter.alpha:g}, merged"}),
    }
    files: dict[str, str] = {}
    shapes: dict[str, torch.Size] = {}
    check_resources(folder, sources.base, sources.vision)
    with new_checkpoint(folder) as scratch:
        merged = _merged(_renamed(sources.base, BASE, ignored), adapter)
        for number, shard in enumerate(split_tensors(_language_weights(merged, small)), start=1):
            name = f"language-{number:05d}.safetensors"
            notify(f"writing {name}")
            save_tensors(scratch / name, shard, provenance)
            files[name] = sha256_of(scratch / name)
            shapes |= {key: tensor.shape for key, tensor in shard.items()}
        if adapter is not None:
            check_all_merged(adapter, frozenset(map(language_layer, shapes)))
        small |= projector
        check_shapes(shapes | {key: tensor.shape for key, tensor in small.items()}, expected, sources.base)
        notify(f"writing {WEIGHTS}: vision tower and projector")
        save_tensors(scratch / WEIGHTS, small, provenance)
        files[WEIGHTS] = sha256_of(scratch / WEIGHTS)
        shutil.copyfile(sources.base / SENTENCEPIECE, scratch / SENTENCEPIECE)
        config = replace(config, sources=provenance, files=files)
        write_atomic(scratch / CONFIG, json.dumps(to_mapping(config), indent=1) + "\n")
    return Converted(folder, len(expected), tuple(ignored), folder_bytes(folder), provenance)


def inspect(path: Path) -> Contents:
    """Contents of the folder of the base, of CLIP or of an adapter, or of a file. Raises: InputError."""
    adapter = read_adapter(path) if (path / ADAPTER_CONFIG).is_file() else None
    files = [path]
    if adapter is not None:
        files = [path / TRAINED] if (path / TRAINED).is_file() else []
    modules: dict[str, list[Tensor]] = {}
    ignored, unknown = [], []
    for published, tensor in (item for file in files for item in tensors(file)):
        try:
            name = ours(published, (*TRAINED_NAMES, *BASE, *CLIP))
        except KeyError:
            unknown.append(published)
            continue
        if name is None:
            ignored.append(published)
        modules.setdefault("ignored" if name is None else name.partition(".")[0], []).append(tensor)
    dims: dict[str, Any] = {}
    if adapter is not None:
        modules["lora"] = [matrix for matrices in adapter.matrices.values() for matrix in matrices]
        dims = {"rank": adapter.rank, "alpha": adapter.alpha, "layers": len(adapter.matrices)}
    return Contents(
        path,
        folder_bytes(path) if path.is_dir() else path.stat().st_size,
        tuple(
            (
                name,
                len(group),
                sum(tensor.numel() for tensor in group),
                ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in group})),
            )
            for name, group in modules.items()
        ),
        tuple(ignored),
        tuple(unknown),
        dims,
    )


def verify(folder: Path, expected: Path, dtype: Dtype, device: str) -> list[Check]:
    """Compare all stages of a converted model with results of the original; see `changechat_checks`."""
    from deltavlm.upstream.changechat_checks import verify_changechat

    return verify_changechat(folder, expected, RuntimeOptions(device=device, dtype=dtype))


def read_config(sources: Sources, name: str) -> ChangeChatConfig:
    """Configuration, from those of the base and of CLIP. Raises: InputError."""
    for path, required in ((sources.base, SENTENCEPIECE), (sources.base, CONFIG), (sources.vision, CONFIG)):
        if not path.is_dir():
            raise InputError(f"no folder {path}; give the folder with its {required}")
        if not (path / required).is_file():
            raise InputError(f"{path} has no {required}; copy that file too")
    path = sources.vision / CONFIG
    try:
        values = parse_json(read_text(path))
        vision = values.get("vision_config", values)
        tower = TowerConfig(
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            intermediate=vision["intermediate_size"],
            patch_px=vision["patch_size"],
            norm_eps=vision.get("layer_norm_eps", 1e-5),
            activation=vision.get("hidden_act", "quick_gelu"),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of CLIP: {error}") from error
    language = language_config(sources.base)
    try:
        vocabulary = len(PromptCodec.load(sources.base / SENTENCEPIECE, "v1").get_vocab())
    except ModelError as error:
        raise InputError(str(error)) from error
    if vocabulary > language.vocab:
        raise InputError(
            f"{sources.base / SENTENCEPIECE} has {vocabulary} tokens, the language model {language.vocab};"
            " give the tokenizer of LLaVA-1.5"
        )
    return ChangeChatConfig(name=name, language=language, tower=tower)


def resample_positions(table: Tensor, config: ChangeChatConfig) -> Tensor:
    """Position table (1 + patches, width) for the size of the images, bicubic with its corners aligned.

    The first row, of the class token, stays. Interpolation without aligned corners, as transformers does at
    run time, gives another table. Raises: InputError if the table is no square.
    """
    grid = config.image_px // config.tower.patch_px
    side = round((len(table) - 1) ** 0.5)
    if side * side != len(table) - 1:
        raise InputError(f"the position table of CLIP has {len(table)} rows, not 1 and a square")
    square = table[1:].float().T.reshape(1, -1, side, side)
    resampled = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=True)
    return torch.cat([table[:1], resampled[0].flatten(1).T.to(table.dtype)])


def ours(name: str, table: Table) -> str | None:
    """Name in our model of a published tensor; None for an ignored one. Raises: KeyError for any other.

    >>> ours("model.mm_projector.2.bias", BASE), ours("logit_scale", CLIP)
    ('projector.linear_2.bias', None)
    """
    for pattern, replacement in table:
        if match := re.fullmatch(pattern, name):
            return None if replacement is None else match.expand(replacement)
    raise KeyError(name)


def _renamed(path: Path, table: Table, ignored: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a file or folder by our names; ignored ones are added to `ignored`. Raises: InputError."""
    for published, tensor in tensors(path):
        try:
            name = ours(published, table)
        except KeyError:
            raise InputError(
                f"{path}: {published} is no tensor of the model; these are files of another"
            ) from None
        if name is None:
            ignored.append(published)
        else:
            yield name, tensor


def _required(weights: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in weights:
        raise InputError(
            f"{path} has no {name.removeprefix('vision.')}; give the folder of CLIP ViT-L/14-336"
        )
    return weights[name]


def _projector_of(
    sources: Sources, config: ChangeChatConfig, ignored: list[str]
) -> tuple[dict[str, Tensor], ChangeChatConfig]:
    """Projector in place of the base's, and the configuration that says where it comes from; empty for the
    base's. That of a file comes before the adapter's. Raises: InputError, also for a part of one."""
    trained = None if sources.adapter is None else sources.adapter / TRAINED
    projector = dict(_renamed(trained, TRAINED_NAMES, ignored)) if trained and trained.is_file() else {}
    if trained and projector:
        _check_projector(projector, trained)
        config = replace(config, projector="adapter")
    if sources.projector is not None:
        projector = dict(_renamed(sources.projector, TRAINED_NAMES, ignored))
        config = replace(config, projector=sources.projector.name)
        _check_projector(projector, sources.projector)
    return projector, config


def _check_projector(projector: Mapping[str, Tensor], path: Path) -> None:
    """Raises: InputError if one of its tensors is missing, which would then be the base's."""
    for number in (1, 2):
        for part in ("weight", "bias"):
            if f"projector.linear_{number}.{part}" not in projector:
                raise InputError(
                    f"{path} has no mm_projector.{2 * number - 2}.{part}; give the whole projector"
                )


def _merged(weights: Iterator[tuple[str, Tensor]], adapter: Lora | None) -> Iterator[tuple[str, Tensor]]:
    """Weights with the adapter."""
    for name, tensor in weights:
        yield name, tensor if adapter is None else adapter.merge(language_layer(name), tensor)


def _language_weights(
    weights: Iterator[tuple[str, Tensor]], small: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the language model; others are added to `small`."""
    for name, tensor in weights:
        if name.startswith("language."):
            yield name, tensor
        else:
            small[name] = tensor
