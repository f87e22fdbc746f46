"""Dense head: change mask and per-class densities (counts) from the difference tokens.

B batch, N patches (G x G), D token width, C mask classes, K counted classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DenseConfig, VisionConfig
from deltavlm.model.difference import both_dates

UPSAMPLE = 4  # mask pixels along the side of a patch


class Up(nn.Module):
    """Upsample by 2 and add a skip connection from the tower's map of both dates, if it has one."""

    def __init__(self, channels: int, skip_channels: int, out: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(skip_channels, out, 1) if skip_channels else None
        self.mix = nn.Conv2d(channels + (out if skip_channels else 0), out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.look is not None and skip is not None:
            x = torch.cat([x, self.look(skip)], dim=1)
        return F.relu_(self.norm(self.mix(x)))


class TokenDecoder(nn.Module):
    """Decoder of the difference tokens, with skip connections from the tower's finer maps of both dates, if
    it has any (FC-Siam-conc, Daudt et al. 2018, arXiv 1810.08462)."""

    def __init__(self, width: int, config: DenseConfig, vision: VisionConfig) -> None:
        super().__init__()
        inner = config.width
        skips = [2 * channels for channels in vision.map_channels] or [0, 0]  # of both dates, finest first
        self.fuse = nn.Linear(2 * width, 2 * inner)
        self.ups = nn.ModuleList([Up(2 * inner, skips[1], inner), Up(inner, skips[0], inner)])
        self.mask = nn.Conv2d(inner, len(config.classes), 1)

    def forward(
        self, patches_BN2D: Tensor, maps: Sequence[Tensor], distances: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (B, C, 4 G, 4 G) and the features (B, width, 4 G, 4 G) below them."""
        side = int(patches_BN2D.shape[1] ** 0.5)
        x = F.relu(self.fuse(patches_BN2D)).transpose(1, 2).reshape(patches_BN2D.shape[0], -1, side, side)
        skips = [torch.cat(both_dates(m), dim=1) for m in maps]
        for up, skip in zip(self.ups, reversed(skips) if skips else (None, None), strict=True):
            x = up(x, skip)
        return self.mask(x), x


class Separable(nn.Module):
    """Residual depthwise-separable convolution, 5x5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(x + self.norm2(self.pointwise(y)))


class PyramidDecoder(nn.Module):
    """Top-down decoder of the tower's maps at strides 4, 8 and 16 (feature pyramid, Lin et al. 2017, arXiv
    1612.03144).

    With b and a the maps of both dates, standardized (`difference.Standardize`), and d their distance
    (`difference.feature_distance`), every level reads [b, a, a - b, |a - b|, d]. The distances of all levels
    are added to the logits by a linear term of each class, so that what differs without being known as an
    object has a short way to the output. It does not read the difference tokens: they are not standardized,
    and a head that learnt from them on synthetic scenes ranked real pairs worse (docs/nano.md).
    """

    def __init__(self, width: int, config: DenseConfig, vision: VisionConfig) -> None:
        super().__init__()
        channels, inner, levels = vision.map_channels, config.width, len(vision.map_channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.laterals = nn.ModuleList(nn.Conv2d(4 * count + 1, inner, 1, bias=False) for count in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(inner) for _ in channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Separable(inner) for _ in range(1 + (level == levels - 1))))
            for level in range(levels)
        )
        self.mask = nn.Conv2d(inner, len(config.classes), 1)
        self.direct = nn.Conv2d(levels, len(config.classes), 1, bias=False)
        nn.init.zeros_(self.direct.weight)

    def forward(
        self, patches_BN2D: Tensor, maps: Sequence[Tensor], distances: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (B, C, 4 G, 4 G) and the features (B, width, 4 G, 4 G) below them."""
        x: Tensor | None = None
        for level in reversed(range(len(maps))):
            before, after = both_dates(maps[level])
            diff = after - before
            features = self.dropout(torch.cat([before, after, diff, diff.abs()], dim=1))
            distance = distances[level].to(features.dtype)
            lateral = self.norms[level](self.laterals[level](torch.cat([features, distance], dim=1)))
            if x is not None:
                lateral = lateral + F.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            x = self.blocks[level](F.relu(lateral))
        assert x is not None
        size = x.shape[-2:]
        upsampled = [F.interpolate(d.to(x.dtype), size=size, mode="nearest") for d in distances]
        return self.mask(x) + self.direct(torch.cat(upsampled, dim=1)), x


class DenseHead(nn.Module):
    """Mask logits (B, C, 4 G, 4 G) and densities (B, K, G, G), whose sums are counts.

    Its auxiliary loss teaches the tokens where objects are; `evidence` passes its output to the Q-Former in
    ten tokens (the nine cells of the 3x3 grid, then the whole image).
    """

    def __init__(self, width: int, config: DenseConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.config = config
        classes, counted, inner = len(config.classes), len(config.counted), config.width
        decoders = {"tokens": TokenDecoder, "pyramid": PyramidDecoder}
        self.decoder = decoders[config.decoder](width, config, vision)
        token_width = 2 * width if config.decoder == "tokens" else 0
        self.density = nn.Linear(token_width + 2 * inner, counted)
        nn.init.constant_(self.density.bias, -6.0)  # almost every patch is empty
        if config.evidence:
            levels = len(vision.map_channels) if config.decoder == "pyramid" else 0
            facts = 2 * classes + counted * config.count_basis + 2 * levels
            self.totals = nn.Linear(facts, width)
            self.place = nn.Parameter(
                torch.randn(config.evidence_tokens, width) * 0.5
            )  # of the same scale as the facts
            self.norm = nn.LayerNorm(width)

    def forward(
        self, patches_BN2D: Tensor, maps: Sequence[Tensor] = (), distances: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and densities.

        Args:
            patches_BN2D: difference tokens of both dates, concatenated.
            maps: the tower's maps (2 B, C, h, w), before in the first half, finest first; may be empty.
            distances: of these maps, (B, 1, h, w); may be empty.
        """
        side = int(patches_BN2D.shape[1] ** 0.5)
        logits, x = self.decoder(patches_BN2D, maps, distances)
        pooled = (
            torch.cat([F.avg_pool2d(x, UPSAMPLE), F.max_pool2d(x, UPSAMPLE)], dim=1)
            .flatten(2)
            .transpose(1, 2)
        )
        if self.config.decoder == "tokens":
            pooled = torch.cat([patches_BN2D, pooled], dim=2)
        density = F.softplus(self.density(pooled))
        return logits, density.transpose(1, 2).reshape(x.shape[0], -1, side, side)

    def evidence(self, mask_logits: Tensor, density: Tensor, distances: Sequence[Tensor] = ()) -> Tensor:
        """Evidence tokens (B, 10, D): class shares and counts of each cell, row by row, and of the image, and
        the mean and maximum of the distances there."""
        share = mask_logits.float().softmax(dim=1)
        mean = torch.cat([thirds(share).flatten(2), share.mean(dim=(2, 3))[..., None]], dim=2)
        peak = torch.cat([peaks_of_thirds(share).flatten(2), share.amax(dim=(2, 3))[..., None]], dim=2)
        area = density.float().shape[-1] ** 2
        counts = torch.cat(
            [thirds(density.float()).flatten(2) * area / 9, density.float().sum(dim=(2, 3))[..., None]], dim=2
        )
        numbers = torch.arange(self.config.count_basis, device=counts.device)
        spread = torch.exp(-2 * (counts[..., None].clamp(max=float(numbers[-1])) - numbers) ** 2)
        spread = spread.permute(0, 2, 1, 3).flatten(2)
        facts = torch.cat([torch.log1p(100 * mean).transpose(1, 2), peak.transpose(1, 2), spread], dim=2)
        if distances:
            facts = torch.cat([facts, *(of_cells_and_image(d.float()) for d in distances)], dim=2)
        tokens: Tensor = self.norm(self.totals(facts.to(self.totals.weight.dtype)) + self.place)
        return tokens


def of_cells_and_image(map_B1HW: Tensor) -> Tensor:
    """Mean and maximum over the nine cells and over the image, (B, 10, 2)."""
    statistics = [
        torch.cat([thirds(map_B1HW).flatten(1), map_B1HW.mean(dim=(1, 2, 3))[:, None]], dim=1),
        torch.cat([peaks_of_thirds(map_B1HW).flatten(1), map_B1HW.amax(dim=(1, 2, 3))[:, None]], dim=1),
    ]
    return torch.stack(statistics, dim=2)


def thirds(maps_BCHW: Tensor) -> Tensor:
    """Means over the nine cells of the image, (B, C, 3, 3)."""
    return of_cells(maps_BCHW, lambda cell: cell.mean(dim=(2, 3)))


def peaks_of_thirds(maps_BCHW: Tensor) -> Tensor:
    """Maxima over the nine cells of the image, (B, C, 3, 3)."""
    return of_cells(maps_BCHW, lambda cell: cell.amax(dim=(2, 3)))


def of_cells(maps_BCHW: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Values (B, C, 3, 3) of a function of each of the nine cells of the image, which overlap by a pixel
    where a side is not divisible by 3. Slices, since adaptive pooling has no ONNX form."""
    rows, cols = (
        [slice(index * side // 3, -(-(index + 1) * side // 3)) for index in range(3)]
        for side in (int(maps_BCHW.shape[2]), int(maps_BCHW.shape[3]))
    )
    cells = [torch.stack([reduce(maps_BCHW[..., row, col]) for col in cols], dim=-1) for row in rows]
    return torch.stack(cells, dim=-2)
