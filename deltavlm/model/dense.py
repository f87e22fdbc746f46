"""The dense head: a change mask and counts, read from the difference tokens patch by patch.

B batch, N patches (G x G), D token width, C mask classes, K counted classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DenseConfig, VisionConfig

UPSAMPLE = 4  # mask pixels along the side of a patch


class Up(nn.Module):
    """Twice the resolution, and what the tower saw at it on both dates."""

    def __init__(self, channels: int, seen: int, out: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(seen, out, 1) if seen else None
        self.mix = nn.Conv2d(channels + (out if seen else 0), out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.look is not None and seen is not None:
            x = torch.cat([x, self.look(seen)], dim=1)
        return F.relu_(self.norm(self.mix(x)))


class DenseHead(nn.Module):
    """Mask logits (B, C, 4 G, 4 G) and densities (B, K, G, G), whose sums are counts.

    The difference tokens say what changed; on the way up to a quarter of the picture's resolution they
    meet the tower's finer maps of both dates, if it has any (the decoder of FC-Siam-conc, Daudt et al.
    2018, arXiv 1810.08462). Trained as an auxiliary loss the head teaches the tokens where things are;
    `evidence` hands what it saw, in ten tokens (the nine cells of the 3x3 grid, then the whole), to the
    Q-Former.
    """

    def __init__(self, width: int, config: DenseConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.config = config
        classes, counted, inner = len(config.classes), len(config.counted), config.width
        seen = [2 * channels for channels, _ in vision.stages] or [0, 0]  # of both dates, finest first
        self.fuse = nn.Linear(2 * width, 2 * inner)
        self.ups = nn.ModuleList([Up(2 * inner, seen[1], inner), Up(inner, seen[0], inner)])
        self.mask = nn.Conv2d(inner, classes, 1)
        self.density = nn.Linear(2 * width + 2 * inner, counted)
        nn.init.constant_(self.density.bias, -6.0)  # almost every patch holds nothing
        if config.evidence:
            facts = 2 * classes + counted * config.count_basis
            self.totals = nn.Linear(facts, width)
            self.place = nn.Parameter(
                torch.randn(config.evidence_tokens, width) * 0.5
            )  # as loud as the facts
            self.norm = nn.LayerNorm(width)

    def forward(self, patches_BN2D: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Difference tokens of both dates side by side (B, N, 2 D), and the tower's maps of both dates,
        finest first."""
        side = int(patches_BN2D.shape[1] ** 0.5)
        x = F.relu(self.fuse(patches_BN2D)).transpose(1, 2).reshape(len(patches_BN2D), -1, side, side)
        for up, seen in zip(self.ups, reversed(maps) if maps else (None, None), strict=True):
            x = up(x, seen)
        inside = (
            torch.cat([F.avg_pool2d(x, UPSAMPLE), F.max_pool2d(x, UPSAMPLE)], dim=1)
            .flatten(2)
            .transpose(1, 2)
        )
        density = F.softplus(self.density(torch.cat([patches_BN2D, inside], dim=2)))
        return self.mask(x), density.transpose(1, 2).reshape(len(x), -1, side, side)

    def evidence(self, mask_logits: Tensor, density: Tensor) -> Tensor:
        """Ten tokens (B, 10, D): for each cell, row by row, and for the whole, how much of which class,
        and how many."""
        share = mask_logits.float().softmax(dim=1)
        mean = torch.cat([thirds(share).flatten(2), share.mean(dim=(2, 3))[..., None]], dim=2)
        most = torch.cat(
            [F.adaptive_max_pool2d(share, 3).flatten(2), share.amax(dim=(2, 3))[..., None]], dim=2
        )
        area = density.float().shape[-1] ** 2
        counts = torch.cat(
            [thirds(density.float()).flatten(2) * area / 9, density.float().sum(dim=(2, 3))[..., None]], dim=2
        )
        numbers = torch.arange(self.config.count_basis, device=counts.device)
        spread = torch.exp(-2 * (counts[..., None].clamp(max=float(numbers[-1])) - numbers) ** 2)
        spread = spread.permute(0, 2, 1, 3).flatten(2)
        facts = torch.cat([torch.log1p(100 * mean).transpose(1, 2), most.transpose(1, 2), spread], dim=2)
        tokens: Tensor = self.norm(self.totals(facts.to(self.totals.weight.dtype)) + self.place)
        return tokens


def thirds(maps_BCHW: Tensor) -> Tensor:
    """Means over the nine cells of the picture, (B, C, 3, 3)."""
    return F.adaptive_avg_pool2d(maps_BCHW, 3)
