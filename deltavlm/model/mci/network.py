"""Network of MCI: a Mix Transformer, two necks that compare the dates, mask head, caption decoder.

N pairs, C channels, H x W pixels of a map, T tokens, D width of the decoder, S words, V words of the
vocabulary. Formulas after Change-Agent (arXiv 2403.19646) and SegFormer (arXiv 2105.15203).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltavlm.model.mci.config import CLASSES, END, NULL, START, MCIConfig

BLOCK_EPS = 1e-6  # of the norms in blocks and at the ends of stages; all others have torch's 1e-5


def to_tokens(map_NCHW: Tensor) -> Tensor:
    """(N, H * W, C), row by row."""
    return map_NCHW.flatten(2).transpose(1, 2)


def to_map(tokens_NTC: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W); inverse of `to_tokens`."""
    return tokens_NTC.transpose(1, 2).reshape(len(tokens_NTC), -1, *size)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (N, T, C) to (N, S, C); `mask` (N, T, S) is True where a key is seen."""
    query, key, value = (
        each.view(len(each), -1, heads, each.shape[2] // heads).transpose(1, 2)
        for each in (query.contiguous(), key.contiguous(), value.contiguous())
    )
    mask = None if mask is None else mask[:, None]
    result: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return result.transpose(1, 2).flatten(2)


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a map that a strided convolution made smaller."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, reduction, reduction)
            self.reduce_norm = nn.LayerNorm(width)

    def forward(self, tokens_NTC: Tensor, size: tuple[int, int]) -> Tensor:
        source = tokens_NTC
        if self.reduction > 1:
            source = self.reduce_norm(to_tokens(self.reduce(to_map(source, size))))
        key, value = self.key_value(source).chunk(2, dim=2)
        result: Tensor = self.out(attend(self.query(tokens_NTC), key, value, self.heads))
        return result


class MixMLP(nn.Module):
    """Multilayer perceptron with a depthwise 3x3 convolution before its GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.depthwise = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens_NTC: Tensor, size: tuple[int, int]) -> Tensor:
        hidden = to_tokens(self.depthwise(to_map(self.fc1(tokens_NTC), size)))
        result: Tensor = self.fc2(F.gelu(hidden))
        return result


class Block(nn.Module):
    """Transformer block of a stage, with its norms before attention and perceptron."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.attention = ReducedAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.mlp = MixMLP(width)

    def forward(self, tokens_NTC: Tensor, size: tuple[int, int]) -> Tensor:
        attended: Tensor = tokens_NTC + self.attention(self.norm1(tokens_NTC), size)
        result: Tensor = attended + self.mlp(self.norm2(attended), size)
        return result


class Stage(nn.Module):
    """Stage of the Mix Transformer: overlapping patches, blocks, a norm."""

    def __init__(self, index: int, config: MCIConfig) -> None:
        super().__init__()
        width = config.widths[index]
        channels = config.widths[index - 1] if index else 3
        kernel, stride = (3, 2) if index else (7, 4)
        self.embed = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, config.backbone_heads[index], config.reductions[index])
            for _ in range(config.depths[index])
        )
        self.norm = nn.LayerNorm(width, eps=BLOCK_EPS)

    def forward(self, map_NCHW: Tensor) -> Tensor:
        embedded: Tensor = self.embed(map_NCHW)
        size = (embedded.shape[2], embedded.shape[3])
        tokens = self.embed_norm(to_tokens(embedded))
        for block in self.blocks:
            tokens = block(tokens, size)
        normed: Tensor = self.norm(tokens)
        return to_map(normed, size)


class Backbone(nn.Module):
    """Mix Transformer of one date: four maps at 1/4, 1/8, 1/16 and 1/32 of the resolution."""

    def __init__(self, config: MCIConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(index, config) for index in range(4))

    def forward(self, pixels_N3HW: Tensor) -> list[Tensor]:
        maps = [pixels_N3HW]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class ContextMix(nn.Module):
    """Depthwise convolutions of three shapes, joined by a 1x1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.square = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.row = nn.Conv2d(width, width, (1, 5), padding=(0, 2), groups=width)
        self.column = nn.Conv2d(width, width, (5, 1), padding=(2, 0), groups=width)
        self.norm = nn.BatchNorm2d(3 * width)
        self.project = nn.Conv2d(3 * width, width, 1)

    def forward(self, map_NCHW: Tensor) -> Tensor:
        joined = torch.cat([conv(map_NCHW) for conv in (self.square, self.row, self.column)], dim=1)
        result: Tensor = self.project(F.gelu(self.norm(joined)))
        return result


class NeckLayer(nn.Module):
    """Attention of the map of one date to its product with the difference of the dates."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_mix, self.key_mix = ContextMix(width), ContextMix(width)
        self.fuse, self.fuse_norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, map_NCHW: Tensor, other_NCHW: Tensor) -> Tensor:
        """Map of the date, compared with that of the other date."""
        map_NCHW = map_NCHW + self.query_mix(map_NCHW)
        other_NCHW = other_NCHW + self.key_mix(other_NCHW)
        fused = F.relu(self.fuse_norm(self.fuse(map_NCHW * (other_NCHW - map_NCHW))))
        tokens, source = to_tokens(map_NCHW), to_tokens(fused)
        attended = attend(self.query(tokens), self.key(source), self.value(source), self.heads)
        tokens = self.norm1(self.out(attended) + tokens)
        tokens = self.norm2(self.fc2(F.relu(self.fc1(tokens))) + tokens)
        return to_map(tokens, (map_NCHW.shape[2], map_NCHW.shape[3]))


class Neck(nn.Module):
    """Learned positions, and layers with weights of their own for each date.

    A neck in parallel computes both dates from the maps of the layer before. A neck in sequence computes
    `before` first, compares `after` with that, and adds the maps of the layer before.
    """

    def __init__(self, layers: int, config: MCIConfig, *, in_sequence: bool) -> None:
        super().__init__()
        width = config.widths[3]
        self.in_sequence = in_sequence
        self.column_positions = nn.Embedding(config.position_size, width // 2)  # first half of the channels
        self.row_positions = nn.Embedding(config.position_size, width // 2)
        self.layers = nn.ModuleList(
            nn.ModuleList(NeckLayer(width, config.heads) for _ in ("before", "after")) for _ in range(layers)
        )

    def positions(self, height: int, width: int) -> Tensor:
        """(C, H, W)."""
        columns = self.column_positions.weight[:width].T[:, None, :].expand(-1, height, -1)
        rows = self.row_positions.weight[:height].T[:, :, None].expand(-1, -1, width)
        return torch.cat([columns, rows])

    def forward(self, before_NCHW: Tensor, after_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        positions = self.positions(before_NCHW.shape[2], before_NCHW.shape[3])
        before, after = before_NCHW + positions, after_NCHW + positions
        for layer in self.layers:
            of_before, of_after = layer.children()
            if self.in_sequence:
                before = of_before(before, after) + before
                after = of_after(after, before) + after
            else:
                before, after = of_before(before, after), of_after(after, before)
        return before, after


class MaskHead(nn.Module):
    """Decoder of change masks: the difference of the dates at each level, upsampled from coarse to fine."""

    def __init__(self, config: MCIConfig) -> None:
        super().__init__()
        widths = config.widths
        self.difference = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)) for width in widths
        )
        self.fuse = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * width, 2 * width, 3, padding=1),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.Conv2d(2 * width, 2 * width, 1),
            )
            for width in widths
        )
        self.upsample = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width, 2 * width, 1),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.ConvTranspose2d(2 * width, 2 * finer, 4, stride=2, padding=1),
            )
            for width, finer in zip(widths, (widths[0], *widths), strict=False)
        )
        self.classify = nn.Sequential(
            nn.ConvTranspose2d(2 * widths[0], widths[0], 4, stride=2, padding=1),
            nn.Conv2d(widths[0], len(CLASSES), 1),
        )

    def forward(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        """Logits (N, classes, image, image) of four maps of each date, finest first."""
        upsampled: Tensor | None = None
        for level in (3, 2, 1, 0):
            first, second = before[level], after[level]
            similarity = F.cosine_similarity(first, second, dim=1)[:, None]
            difference = self.difference[level](second - first) + similarity
            fused = self.fuse[level](torch.cat([first, difference, second], dim=1))
            upsampled = self.upsample[level](fused if upsampled is None else fused + upsampled)
        logits: Tensor = self.classify(upsampled)
        return logits


class DecoderAttention(nn.Module):
    """Attention with one matrix for queries, keys and values, as torch stores it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def keys_values(self, source_NSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, S, D) each."""
        width = source_NSD.shape[2]
        weight, bias = self.in_proj.weight[width:], self.in_proj.bias[width:]
        key, value = F.linear(source_NSD, weight, bias).chunk(2, dim=2)
        return key, value

    def forward(
        self, tokens_NTD: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        width = tokens_NTD.shape[2]
        query = F.linear(tokens_NTD, self.in_proj.weight[:width], self.in_proj.bias[:width])
        result: Tensor = self.out(attend(query, *keys_values, self.heads, mask))
        return result


@dataclass
class LayerCache:
    """Keys and values of a decoder layer: of the words so far, and of the memory."""

    words: tuple[Tensor, Tensor] | None
    memory: tuple[Tensor, Tensor]


class DecoderLayer(nn.Module):
    """Decoder layer with its norms after each step, and a residual connection around the whole."""

    def __init__(self, config: MCIConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.self_attention = DecoderAttention(width, config.heads)
        self.cross_attention = DecoderAttention(width, config.heads)
        self.fc1 = nn.Linear(width, config.decoder_hidden)
        self.fc2 = nn.Linear(config.decoder_hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, tokens_NTD: Tensor, cache: LayerCache, mask_NTS: Tensor) -> Tensor:
        """Tokens after the layer; adds their keys and values to the cache."""
        new = self.self_attention.keys_values(tokens_NTD)
        if cache.words is not None:
            new = (torch.cat([cache.words[0], new[0]], dim=1), torch.cat([cache.words[1], new[1]], dim=1))
        cache.words = new
        hidden = self.norm1(tokens_NTD + self.self_attention(tokens_NTD, new, mask_NTS))
        hidden = self.norm2(hidden + self.cross_attention(hidden, cache.memory))
        hidden = self.norm3(hidden + self.fc2(F.relu(self.fc1(hidden))))
        result: Tensor = hidden + tokens_NTD
        return result


@dataclass(frozen=True)
class Captions:
    """Generated captions of N pairs, of S words at most."""

    ids: Tensor  # (N, S), END included; NULL after it
    scores: Tensor  # (N, S, V) of each step, before the softmax
    log_probs: Tensor  # (N, S), 0 after the end


class Captioner(nn.Module):
    """Caption decoder: joins both dates into a memory, and writes a caption about it word by word."""

    def __init__(self, config: MCIConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.max_words = config.max_words
        self.join = nn.Conv2d(2 * config.widths[3], width, 1)
        self.residual = nn.Sequential(
            nn.Conv2d(width, width // 2, 1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 1),
            nn.BatchNorm2d(width),
        )
        self.embedding = nn.Embedding(config.words, width)
        self.register_buffer("word_positions", torch.zeros(config.max_words, width))  # sinusoids
        self.word_positions: Tensor
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.classify = nn.Linear(width, config.words)

    def memory(self, before_NCHW: Tensor, after_NCHW: Tensor) -> Tensor:
        """Memory (N, H * W, D) of the maps of both dates."""
        joined = self.join(torch.cat([before_NCHW, after_NCHW], dim=1))
        return to_tokens(F.relu(self.residual(joined) + joined))

    def begin(self, memory_NTD: Tensor) -> list[LayerCache]:
        """Caches of a caption without any words."""
        layers: list[DecoderLayer] = list(self.layers)  # type: ignore[arg-type]
        return [LayerCache(None, layer.cross_attention.keys_values(memory_NTD)) for layer in layers]

    def read(self, words_NS: Tensor, cache: list[LayerCache], masked: Tensor) -> Tensor:
        """Scores (N, T, V) of the next word behind each of the last T words.

        Args:
            words_NS: all words so far, from START on.
            cache: of the words before the last T.
            masked: ids of words that no other word sees: NULL in inference, NULL and END in training.
        """
        start = 0 if not cache or cache[0].words is None else cache[0].words[0].shape[1]
        count = words_NS.shape[1]
        tokens = self.embedding(words_NS[:, start:]) + self.word_positions[start:count]
        order = torch.arange(count, device=words_NS.device)
        seen = order[start:, None] >= order
        mask = seen & ~torch.isin(words_NS, masked)[:, None, :]
        for layer, each in zip(self.layers, cache, strict=True):
            tokens = layer(tokens, each, mask)
        scores: Tensor = self.classify(tokens)
        return scores

    def score(self, memory_NTD: Tensor, words_NS: Tensor, masked: Sequence[int] = (NULL,)) -> Tensor:
        """Scores (N, S, V) of the next word behind each word, from START on."""
        return self.read(words_NS, self.begin(memory_NTD), torch.tensor(masked, device=words_NS.device))

    def write(self, memory_NTD: Tensor) -> Captions:
        """Captions of N pairs, each word the one with the best score."""
        count, device = len(memory_NTD), memory_NTD.device
        cache, masked = self.begin(memory_NTD), torch.tensor([NULL], device=device)
        words = torch.full((count, 1), START, device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        scores, log_probs = [], []
        while words.shape[1] <= self.max_words and not bool(ended.all()):
            step = self.read(words, cache, masked)[:, -1]
            best = step.argmax(dim=1).masked_fill(ended, NULL)
            log_prob = step.float().log_softmax(dim=1).gather(1, best[:, None])[:, 0]
            scores.append(step)
            log_probs.append(log_prob.masked_fill(ended, 0.0))
            words = torch.cat([words, best[:, None]], dim=1)
            ended = ended | (best == END)
        return Captions(words[:, 1:], torch.stack(scores, dim=1), torch.stack(log_probs, dim=1))


@dataclass(frozen=True)
class Encoding:
    """Encoded pairs: what the caption decoder reads, and the logits of the change mask."""

    memory: Tensor  # (N, T, D)
    mask_logits: Tensor  # (N, classes, image, image)

    def __len__(self) -> int:
        return len(self.memory)

    def select(self, pairs: Sequence[int]) -> Encoding:
        """The pairs with these indices."""
        rows = torch.tensor([*pairs], device=self.memory.device)
        return Encoding(self.memory[rows], self.mask_logits[rows])


class MCI(nn.Module):
    """Mask-and-caption model: pixels of two dates in, change mask and caption out."""

    def __init__(self, config: MCIConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.caption_neck = Neck(config.caption_neck_layers, config, in_sequence=False)
        self.mask_neck = Neck(config.mask_neck_layers, config, in_sequence=True)
        self.mask_head = MaskHead(config)
        self.captioner = Captioner(config)

    def normalise(self, images_N3HW: Tensor) -> Tensor:
        """Pixels in the dtype of the weights, of uint8 RGB."""
        weight = self.captioner.classify.weight
        mean, std = (
            torch.tensor(values, device=weight.device).view(1, 3, 1, 1) * 255
            for values in (self.config.mean, self.config.std)
        )
        return ((images_N3HW.to(weight.device).float() - mean) / std).to(weight.dtype)

    def maps(self, before_N3HW: Tensor, after_N3HW: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Four maps of each date, finest first, of pixels from `normalise`."""
        levels = self.backbone(torch.cat([before_N3HW, after_N3HW]))
        before, after = zip(*(level.chunk(2) for level in levels), strict=True)
        return before, after

    def memory(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        """Memory (N, T, D) of the captioner, of the maps of both dates."""
        return self.captioner.memory(*self.caption_neck(before[3], after[3]))

    def mask_logits(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        """Logits (N, classes, image, image) of the change mask, of the maps of both dates."""
        last = self.mask_neck(before[3], after[3])
        logits: Tensor = self.mask_head([*before[:3], last[0]], [*after[:3], last[1]])
        return logits

    def forward(self, before_N3HW: Tensor, after_N3HW: Tensor) -> Encoding:
        """Encode the pixels of N pairs, from `normalise`."""
        maps = self.maps(before_N3HW, after_N3HW)
        return Encoding(self.memory(*maps), self.mask_logits(*maps))
