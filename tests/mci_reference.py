"""Random published files of MCI at small size, and a second implementation of its formulas on their names.

    reference = write_files(folder)    # MCI_model.pth, vocab.json, expected.json, expected.safetensors

The formulas are written with functions of torch, directly on the published names, so that they share neither
modules nor the table of names with `deltavlm.model.mci`; `benchmarks/parity.py` proves the product against
numbers of the original code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

WIDTHS, DEPTHS, HEADS, REDUCTIONS = (8, 10, 15, 24), (1, 2, 1, 1), (1, 2, 5, 8), (8, 4, 2, 1)
NECK_HEADS, CAPTION_LAYERS, MASK_LAYERS, DECODER_LAYERS = 8, 2, 3, 2
WIDTH, HIDDEN, POSITIONS, MAX_WORDS, IMAGE_PX = 16, 40, 9, 12, 256
WORDS = [
    *("<NULL>", "<UNK>", "<START>", "<END>", "a", "almost", "and", "are", "as", "bareland", "before"),
    *("built", "change", "difference", "has", "houses", "identical", "is", "many", "no", "nothing"),
    *("occurred", "of", "on", "road", "same", "scene", "scenes", "seem", "the", "there", "top", "trees"),
    *("two", "changed"),
]
MEAN = 255 * torch.tensor([0.39073, 0.38623, 0.32989]).view(3, 1, 1)
STD = 255 * torch.tensor([0.15329, 0.14628, 0.13648]).view(3, 1, 1)

NULL, START, END = 0, 2, 3
SEED, SAID_EARLY, SAID_LATE = 4, 28, 9
"""With this seed these two words are said; exchanged with NULL and END, captions have NULL in the middle, an
end by END, and a full run without END."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """Published files in a folder, and the images that the expected results are of."""

    folder: Path
    images: tuple[np.ndarray, np.ndarray]  # (pairs, 3, 256, 256) uint8, before and after
    captions: list[str]
    counts: list[dict[str, int]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of random weights; those of the published model are in `PUBLISHED`."""

    widths: tuple[int, ...] = WIDTHS
    depths: tuple[int, ...] = DEPTHS
    reductions: tuple[int, ...] = REDUCTIONS
    caption_layers: int = CAPTION_LAYERS
    mask_layers: int = MASK_LAYERS
    decoder_layers: int = DECODER_LAYERS
    width: int = WIDTH  # of the decoder
    hidden: int = HIDDEN
    positions: int = POSITIONS
    max_words: int = MAX_WORDS
    words: int = len(WORDS)


PUBLISHED = Sizes((64, 128, 320, 512), (2, 2, 2, 2), (8, 4, 2, 1), 3, 3, 1, 512, 2048, 16, 41, 468)


def random_weights(seed: int = SEED, sizes: Sizes | None = None) -> dict[str, Weights]:
    """The three state dicts of MCI_model.pth, with the tensors that nothing reads."""
    sizes = sizes or Sizes()
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Weights] = {"encoder_dict": {}, "encoder_trans_dict": {}, "decoder_dict": {}}

    def add(part: str, name: str, *shape: int, scale: float = 1.0) -> None:
        fan = math.prod(shape[1:]) or 1
        values = torch.randn(shape, generator=generator) * scale / math.sqrt(fan)
        parts[part][name] = values

    def norm(part: str, name: str, width: int, *, batch: bool = False) -> None:
        parts[part][f"{name}.weight"] = 0.5 + torch.rand(width, generator=generator)
        parts[part][f"{name}.bias"] = 0.3 * torch.randn(width, generator=generator)
        if batch:
            parts[part][f"{name}.running_mean"] = 0.3 * torch.randn(width, generator=generator)
            parts[part][f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
            parts[part][f"{name}.num_batches_tracked"] = torch.tensor(3)

    def layer(part: str, name: str, *shape: int, outputs: int | None = None, scale: float = 1.0) -> None:
        add(part, f"{name}.weight", *shape, scale=scale)
        parts[part][f"{name}.bias"] = 0.3 * torch.randn(outputs or shape[0], generator=generator)

    for index, width in enumerate(sizes.widths):
        part, number = "encoder_dict", index + 1
        stem = "cnn.segformer."
        kernel = 3 if index else 7
        layer(part, f"{stem}patch_embed{number}.proj", width, (3, *sizes.widths)[index], kernel, kernel)
        norm(part, f"{stem}patch_embed{number}.norm", width)
        for block in range(sizes.depths[index]):
            name = f"{stem}block{number}.{block}"
            norm(part, f"{name}.norm1", width)
            layer(part, f"{name}.attn.q", width, width)
            layer(part, f"{name}.attn.kv", 2 * width, width)
            layer(part, f"{name}.attn.proj", width, width)
            if sizes.reductions[index] > 1:
                layer(part, f"{name}.attn.sr", width, width, sizes.reductions[index], sizes.reductions[index])
                norm(part, f"{name}.attn.norm", width)
            norm(part, f"{name}.norm2", width)
            layer(part, f"{name}.mlp.fc1", 4 * width, width)
            layer(part, f"{name}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            layer(part, f"{name}.mlp.fc2", width, 4 * width)
        norm(part, f"{stem}norm{number}", width)
    part, width = "encoder_trans_dict", sizes.widths[3]
    for neck, suffix, layers in (
        ("Dynamic_DIF_aware_TR", "", sizes.caption_layers),
        ("Transformer_aug_CD", "_CD", sizes.mask_layers),
    ):
        for side in "hw":
            add(part, f"{side}_embedding{suffix}.weight", sizes.positions, width // 2, scale=2.0)
        for index in range(layers):
            for date in range(2):
                name = f"{neck}.{index}.{date}"
                for member in ("to_q", "to_k", "to_v", "to_out.0"):
                    layer(part, f"{name}.att.{member}", width, width)
                for member in "QKV":
                    norm(part, f"{name}.att.{member}_LN", width)
                layer(part, f"{name}.att.fuse_conv.0", width, width, 1, 1)
                norm(part, f"{name}.att.fuse_conv.1", width, batch=True)
                layer(part, f"{name}.att.fuse_conv2.0", width, 2 * width, 1, 1)
                norm(part, f"{name}.att.fuse_conv2.1", width, batch=True)
                layer(part, f"{name}.feedforward.net.0", 4 * width, width)
                layer(part, f"{name}.feedforward.net.3", width, 4 * width)
                norm(part, f"{name}.norm1", width)
                norm(part, f"{name}.norm2", width)
                for mix in "QK":
                    layer(part, f"{name}.{mix}_d_conv.d_conv_3x3", width, 1, 3, 3)
                    layer(part, f"{name}.{mix}_d_conv.d_conv_1x5", width, 1, 1, 5)
                    layer(part, f"{name}.{mix}_d_conv.d_conv_5x1", width, 1, 5, 1)
                    norm(part, f"{name}.{mix}_d_conv.BN", 3 * width, batch=True)
                    layer(part, f"{name}.{mix}_d_conv.conv_1", width, 3 * width, 1, 1)
                layer(part, f"{name}.PCM.0", width, 1, 3, 3)
                norm(part, f"{name}.PCM.1", width, batch=True)
                layer(part, f"{name}.PCM.3", width, width, 1, 1)
            if not suffix:
                layer(part, f"{neck}.{index}.2", width, 2 * width)
    for index, width in enumerate(sizes.widths):
        finer = (sizes.widths[0], *sizes.widths)[index]
        layer(part, f"conv_dif.{index}.0", width, width, 1, 1)
        norm(part, f"conv_dif.{index}.1", width, batch=True)
        layer(part, f"conv_fuse.{index}.0", 2 * width, 3 * width, 3, 3)
        norm(part, f"conv_fuse.{index}.1", 2 * width, batch=True)
        layer(part, f"conv_fuse.{index}.3", 2 * width, 2 * width, 1, 1)
        layer(part, f"to_fused.{index}.0", 2 * width, 2 * width, 1, 1)
        norm(part, f"to_fused.{index}.1", 2 * width, batch=True)
        layer(part, f"to_fused.{index}.3", 2 * width, 2 * finer, 4, 4, outputs=2 * finer)
    layer(part, "to_seg.0", 2 * sizes.widths[0], sizes.widths[0], 4, 4, outputs=sizes.widths[0])
    layer(part, "to_seg.1", 3, sizes.widths[0], 1, 1)
    part = "decoder_dict"
    layer(part, "Conv1", sizes.width, 2 * sizes.widths[3], 1, 1)
    for index, shape in (
        (0, (sizes.width // 2, sizes.width, 1, 1)),
        (3, (sizes.width // 2,) * 2 + (3, 3)),
        (6, (sizes.width, sizes.width // 2, 1, 1)),
    ):
        layer(part, f"LN.left.{index}", *shape)
        norm(part, f"LN.left.{index + 1}", shape[0], batch=True)
    add(part, "vocab_embedding.weight", sizes.words, sizes.width, scale=2.5)
    for index in range(sizes.decoder_layers):
        name = f"transformer.layers.{index}"
        for member in ("self_attn", "multihead_attn"):
            add(part, f"{name}.{member}.in_proj_weight", 3 * sizes.width, sizes.width, scale=2.0)
            parts[part][f"{name}.{member}.in_proj_bias"] = 0.3 * torch.randn(
                3 * sizes.width, generator=generator
            )
            layer(part, f"{name}.{member}.out_proj", sizes.width, sizes.width)
        layer(part, f"{name}.linear1", sizes.hidden, sizes.width)
        layer(part, f"{name}.linear2", sizes.width, sizes.hidden)
        for member in ("norm1", "norm2", "norm3"):
            norm(part, f"{name}.{member}", sizes.width)
        for member in ("fc_alpha1", "fc_alpha2", "fc_alpha3"):
            layer(part, f"{name}.{member}", sizes.width, 2 * sizes.width)
    place = torch.arange(sizes.max_words)[:, None] * torch.exp(
        -math.log(10_000.0) * torch.arange(0, sizes.width, 2) / sizes.width
    )
    parts[part]["position_encoding.pe"] = torch.stack([place.sin(), place.cos()], dim=2).reshape(
        sizes.max_words, 1, sizes.width
    )
    add(part, "position_encoding.embedding_1D.weight", 5, sizes.width)
    layer(part, "wdc", sizes.words, sizes.width, scale=3.0)
    for name in ("vocab_embedding.weight", "wdc.weight", "wdc.bias"):
        rows = parts[part][name]
        rows[[NULL, SAID_EARLY, END, SAID_LATE]] = rows[[SAID_EARLY, NULL, SAID_LATE, END]]
    return parts


def _layer_norm(weights: Weights, name: str, tokens: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _batch_norm(weights: Weights, name: str, maps: Tensor) -> Tensor:
    mean, var, weight, bias = (
        weights[f"{name}.{each}"].view(-1, 1, 1) for each in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / (var + 1e-5).sqrt() * weight + bias


def _linear(weights: Weights, name: str, tokens: Tensor) -> Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _conv(weights: Weights, name: str, maps: Tensor, **options: Any) -> Tensor:
    return F.conv2d(maps[None], weights[f"{name}.weight"], weights[f"{name}.bias"], **options)[0]


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Attention head by head, of (T, C) to (S, C); `hidden` (T, S) is True where a key is not seen."""
    size = query.shape[1] // heads
    results = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        results.append(scores.softmax(dim=1) @ value[:, part])
    return torch.cat(results, dim=1)


def pyramid(weights: Weights, pixels_3HW: Tensor) -> list[Tensor]:
    """Four maps (C, H, W) of one date."""
    maps, levels = pixels_3HW, []
    for index in range(4):
        number = index + 1
        stem = "cnn.segformer."
        options = {"stride": 2, "padding": 1} if index else {"stride": 4, "padding": 3}
        maps = _conv(weights, f"{stem}patch_embed{number}.proj", maps, **options)
        channels, height, width = maps.shape
        tokens = _layer_norm(weights, f"{stem}patch_embed{number}.norm", maps.reshape(channels, -1).T)
        for block in range(DEPTHS[index]):
            name = f"{stem}block{number}.{block}"
            normed = _layer_norm(weights, f"{name}.norm1", tokens, 1e-6)
            source = normed
            if REDUCTIONS[index] > 1:
                reduced = _conv(
                    weights,
                    f"{name}.attn.sr",
                    normed.T.reshape(channels, height, width),
                    stride=REDUCTIONS[index],
                )
                source = _layer_norm(weights, f"{name}.attn.norm", reduced.reshape(channels, -1).T)
            keys_values = _linear(weights, f"{name}.attn.kv", source)
            attended = _attention(
                _linear(weights, f"{name}.attn.q", normed),
                keys_values[:, :channels],
                keys_values[:, channels:],
                HEADS[index],
            )
            tokens = tokens + _linear(weights, f"{name}.attn.proj", attended)
            hidden = _linear(weights, f"{name}.mlp.fc1", _layer_norm(weights, f"{name}.norm2", tokens, 1e-6))
            hidden = _conv(
                weights,
                f"{name}.mlp.dwconv.dwconv",
                hidden.T.reshape(-1, height, width),
                padding=1,
                groups=4 * channels,
            )
            tokens = tokens + _linear(weights, f"{name}.mlp.fc2", F.gelu(hidden.flatten(1).T))
        maps = _layer_norm(weights, f"{stem}norm{number}", tokens, 1e-6).T.reshape(channels, height, width)
        levels.append(maps)
    return levels


def _mix(weights: Weights, name: str, maps: Tensor) -> Tensor:
    groups = len(maps)
    joined = torch.cat(
        [
            _conv(weights, f"{name}.d_conv_3x3", maps, padding=1, groups=groups),
            _conv(weights, f"{name}.d_conv_1x5", maps, padding=(0, 2), groups=groups),
            _conv(weights, f"{name}.d_conv_5x1", maps, padding=(2, 0), groups=groups),
        ]
    )
    return _conv(weights, f"{name}.conv_1", F.gelu(_batch_norm(weights, f"{name}.BN", joined)))


def neck_layer(weights: Weights, name: str, maps: Tensor, other: Tensor) -> Tensor:
    maps, other = (
        maps + _mix(weights, f"{name}.Q_d_conv", maps),
        other + _mix(weights, f"{name}.K_d_conv", other),
    )
    fused = _conv(weights, f"{name}.att.fuse_conv.0", maps * (other - maps))
    source = _batch_norm(weights, f"{name}.att.fuse_conv.1", fused).relu().flatten(1).T
    tokens = maps.flatten(1).T
    attended = _attention(
        _linear(weights, f"{name}.att.to_q", tokens),
        _linear(weights, f"{name}.att.to_k", source),
        _linear(weights, f"{name}.att.to_v", source),
        NECK_HEADS,
    )
    tokens = _layer_norm(
        weights, f"{name}.norm1", _linear(weights, f"{name}.att.to_out.0", attended) + tokens
    )
    hidden = _linear(weights, f"{name}.feedforward.net.0", tokens).relu()
    tokens = _layer_norm(
        weights, f"{name}.norm2", _linear(weights, f"{name}.feedforward.net.3", hidden) + tokens
    )
    return tokens.T.reshape(maps.shape)


def necks(
    weights: Weights, before: Tensor, after: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Maps of both dates from the caption neck, and from the mask neck."""

    def with_positions(maps: Tensor, suffix: str) -> Tensor:
        _, height, width = maps.shape
        table = torch.zeros(maps.shape)
        half = len(maps) // 2
        for row in range(height):
            for column in range(width):
                table[:half, row, column] = weights[f"h_embedding{suffix}.weight"][column]
                table[half:, row, column] = weights[f"w_embedding{suffix}.weight"][row]
        return maps + table

    a, b = with_positions(before, ""), with_positions(after, "")
    for index in range(CAPTION_LAYERS):
        name = f"Dynamic_DIF_aware_TR.{index}"
        a, b = neck_layer(weights, f"{name}.0", a, b), neck_layer(weights, f"{name}.1", b, a)
    c, d = with_positions(before, "_CD"), with_positions(after, "_CD")
    for index in range(MASK_LAYERS):
        name = f"Transformer_aug_CD.{index}"
        c = neck_layer(weights, f"{name}.0", c, d) + c
        d = neck_layer(weights, f"{name}.1", d, c) + d
    return (a, b), (c, d)


def mask_logits(weights: Weights, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """(3, 256, 256)."""
    up: Tensor | None = None

    def transposed(name: str, maps: Tensor) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv_transpose2d(maps[None], weight, bias, stride=2, padding=1)[0]

    for level in (3, 2, 1, 0):
        a, b = before[level], after[level]
        difference = _batch_norm(weights, f"conv_dif.{level}.1", _conv(weights, f"conv_dif.{level}.0", b - a))
        difference = difference + (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-8)
        fused = _conv(weights, f"conv_fuse.{level}.0", torch.cat([a, difference, b]), padding=1)
        fused = _conv(
            weights, f"conv_fuse.{level}.3", _batch_norm(weights, f"conv_fuse.{level}.1", fused).relu()
        )
        fused = fused if up is None else fused + up
        hidden = _batch_norm(
            weights, f"to_fused.{level}.1", _conv(weights, f"to_fused.{level}.0", fused)
        ).relu()
        up = transposed(f"to_fused.{level}.3", hidden)
    assert up is not None
    return _conv(weights, "to_seg.1", transposed("to_seg.0", up))


def memory(weights: Weights, before: Tensor, after: Tensor) -> Tensor:
    """(64, D)."""
    joined = _conv(weights, "Conv1", torch.cat([before, after]))
    hidden = joined
    for index, options in ((0, {}), (3, {"padding": 1}), (6, {})):
        hidden = _conv(weights, f"LN.left.{index}", hidden, **options)
        hidden = _batch_norm(weights, f"LN.left.{index + 1}", hidden)
        hidden = hidden if index == 6 else hidden.relu()
    return (hidden + joined).relu().flatten(1).T


def next_scores(
    weights: Weights, memory_TD: Tensor, ids: Sequence[int], hidden: tuple[int, ...] = (NULL,)
) -> Tensor:
    """Scores (S, V) of the next word behind each word, all computed at once; `hidden`: ids that none sees."""
    tokens = weights["vocab_embedding.weight"][list(ids)] + weights["position_encoding.pe"][: len(ids), 0]
    hidden_keys = torch.ones(len(ids), len(ids)).triu(1).bool() | torch.isin(
        torch.tensor(ids), torch.tensor(hidden)
    )
    for index in range(DECODER_LAYERS):
        name = f"transformer.layers.{index}"

        def project(member: str, source: Tensor, kind: int, name: str = name) -> Tensor:
            rows = slice(kind * WIDTH, (kind + 1) * WIDTH)
            return (
                source @ weights[f"{name}.{member}.in_proj_weight"][rows].T
                + weights[f"{name}.{member}.in_proj_bias"][rows]
            )

        def attend(member: str, x: Tensor, source: Tensor, hidden: Tensor | None, name: str = name) -> Tensor:
            attended = _attention(
                project(member, x, 0),
                project(member, source, 1),
                project(member, source, 2),
                NECK_HEADS,
                hidden,
            )
            return _linear(weights, f"{name}.{member}.out_proj", attended)

        y = _layer_norm(weights, f"{name}.norm1", tokens + attend("self_attn", tokens, tokens, hidden_keys))
        y = _layer_norm(weights, f"{name}.norm2", y + attend("multihead_attn", y, memory_TD, None))
        inner = _linear(weights, f"{name}.linear2", _linear(weights, f"{name}.linear1", y).relu())
        tokens = _layer_norm(weights, f"{name}.norm3", y + inner) + tokens
    return _linear(weights, "wdc", tokens)


def greedy(weights: Weights, memory_TD: Tensor) -> tuple[list[int], Tensor]:
    """Ids from START on, and the scores (steps, V)."""
    ids, scores = [START], []
    while len(ids) <= MAX_WORDS and ids[-1] != END:
        scores.append(next_scores(weights, memory_TD, ids)[-1])
        ids.append(int(scores[-1].argmax()))
    return ids, torch.stack(scores)


def count_components(labels: np.ndarray, smallest: int = 6) -> dict[str, int]:
    counts = {}
    for code, name in ((1, "road"), (2, "building")):
        components, number = ndimage.label(labels == code, structure=np.ones((3, 3)))
        counts[name] = sum(int((components == index).sum()) >= smallest for index in range(1, number + 1))
    return counts


def random_images(pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blurred noise (pairs, 3, 256, 256); the last pair is unchanged."""
    random = np.random.default_rng(seed)
    images = [
        ndimage.gaussian_filter(random.normal(size=(pairs, 3, IMAGE_PX, IMAGE_PX)), (0, 0, 6, 6))
        for _ in range(2)
    ]
    before, after = ((127 + 100 * each / each.std()).clip(0, 255).astype(np.uint8) for each in images)
    after[-1] = before[-1]
    return before, after


def write_published(folder: Path, parts: Mapping[str, Weights] | None = None) -> dict[str, Path]:
    """Write the published files alone, by default of `random_weights`; returns what a conversion reads."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"checkpoint": folder / "MCI_model.pth", "vocab": folder / "vocab.json"}
    torch.save(parts or random_weights(), paths["checkpoint"])
    paths["vocab"].write_text(json.dumps({word: index for index, word in enumerate(WORDS)}))
    return paths


def write_files(folder: Path, *, pairs: int = 3, seed: int = SEED) -> Reference:
    """Write the published files, and what the formulas give for some pairs of images."""
    parts = random_weights(seed)
    write_published(folder, parts)
    before, after = random_images(pairs, seed)
    arrays = {
        "uint8_A": torch.from_numpy(before).permute(0, 2, 3, 1).contiguous(),
        "uint8_B": torch.from_numpy(after).permute(0, 2, 3, 1).contiguous(),
    }
    cases: list[Mapping[str, Any]] = []
    for pair in range(pairs):
        levels = {}
        for date, images in (("A", before), ("B", after)):
            pixels = (torch.from_numpy(images[pair]).float() - MEAN) / STD
            arrays[f"pixel_{date}_{pair}"] = pixels[:, ::8, ::8].contiguous()
            levels[date] = pyramid(parts["encoder_dict"], pixels)
            for number, level in enumerate(levels[date], start=1):
                arrays[f"p{pair}/level{number}_{date}"] = level
        weights = parts["encoder_trans_dict"]
        caption_maps, mask_maps = necks(weights, levels["A"][3], levels["B"][3])
        for date, caption_map, mask_map in zip("AB", caption_maps, mask_maps, strict=True):
            arrays[f"p{pair}/caption_neck_{date}"] = caption_map
            arrays[f"p{pair}/mask_neck_{date}"] = mask_map
        logits = mask_logits(weights, [*levels["A"][:3], mask_maps[0]], [*levels["B"][:3], mask_maps[1]])
        best, second = logits.topk(2, dim=0).values
        labels = logits.argmax(dim=0).to(torch.uint8)
        attended = memory(parts["decoder_dict"], *caption_maps)
        ids, scores = greedy(parts["decoder_dict"], attended)
        arrays |= {
            f"p{pair}/memory": attended,
            f"p{pair}/mask_logits": logits[:, ::4, ::4],
            f"p{pair}/mask": labels.masked_fill(best - second < 1e-3, 255),
            f"p{pair}/caption_logits": scores,
        }
        text = " ".join(WORDS[index] for index in ids if index not in (NULL, START, END))
        counts = count_components(labels.numpy())
        cases.append({"pair": pair, "token_ids": ids, "text": text, "counts": counts})
    save_file({name: tensor.contiguous() for name, tensor in arrays.items()}, folder / "expected.safetensors")
    dims = {"backbone_heads": HEADS, "heads": NECK_HEADS}
    expected = {"kind": "mci", "dims": dims, "pixel_stride": 8, "mask_logits_stride": 4, "cases": cases}
    (folder / "expected.json").write_text(json.dumps(expected))
    return Reference(
        folder, (before, after), [str(case["text"]) for case in cases], [case["counts"] for case in cases]
    )
