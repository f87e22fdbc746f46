"""The dense head: a change mask and counts, read from the difference tokens patch by patch.

B batch, N patches of one date (G x G), D token width, C mask classes, K counted classes, U upsampling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DenseConfig


class DenseHead(nn.Module):
    """Mask logits (B, C, G U, G U) and densities (B, K, G, G), whose sums are counts.

    Trained as an auxiliary loss it teaches the tokens where things are; `evidence` hands what it saw, in ten tokens
    (the nine cells of the 3x3 grid, then the whole), to the Q-Former.
    """

    def __init__(self, width: int, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        classes, counted, inner = len(config.classes), len(config.counted), config.width
        self.fuse = nn.Linear(2 * width, inner * config.upsample**2)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1)
        self.mask = nn.Conv2d(inner, classes, 1)
        self.density = nn.Linear(2 * width, counted)
        nn.init.constant_(self.density.bias, -6.0)  # almost every patch holds nothing
        if config.evidence:
            facts = 2 * classes + counted * config.count_basis
            self.totals = nn.Linear(facts, width)
            self.place = nn.Parameter(torch.randn(10, width) * 0.02)
            self.norm = nn.LayerNorm(width)

    def forward(self, patches_B2ND: Tensor) -> tuple[Tensor, Tensor]:
        before, after = patches_B2ND.chunk(2, dim=1)
        both = torch.cat([before, after], dim=-1)
        side = int(both.shape[1] ** 0.5)
        density = F.softplus(self.density(both)).transpose(1, 2).unflatten(2, (side, side))
        grid = self.fuse(both).transpose(1, 2).unflatten(2, (side, side))
        return self.mask(F.relu(self.mix(F.relu(F.pixel_shuffle(grid, self.config.upsample))))), density

    def evidence(self, mask_logits: Tensor, density: Tensor) -> Tensor:
        """Ten tokens (B, 10, D): for each cell, row by row, and for the whole, how much of which class, and how many."""
        share = mask_logits.float().softmax(dim=1)
        mean = torch.cat([thirds(share).flatten(2), share.mean(dim=(2, 3))[..., None]], dim=2)
        most = torch.cat([F.adaptive_max_pool2d(share, 3).flatten(2), share.amax(dim=(2, 3))[..., None]], dim=2)
        area = density.float().shape[-1] ** 2
        counts = torch.cat([thirds(density.float()).flatten(2) * area / 9, density.float().sum(dim=(2, 3))[..., None]], dim=2)
        numbers = torch.arange(self.config.count_basis, device=counts.device)
        spread = torch.exp(-2 * (counts[..., None].clamp(max=float(numbers[-1])) - numbers) ** 2)
        spread = spread.permute(0, 2, 1, 3).flatten(2)
        facts = torch.cat([torch.log1p(100 * mean).transpose(1, 2), most.transpose(1, 2), spread], dim=2)
        tokens: Tensor = self.norm(self.totals(facts.to(self.totals.weight.dtype)) + self.place)
        return tokens


def thirds(maps_BCHW: Tensor) -> Tensor:
    """Means over the nine cells of the picture, (B, C, 3, 3)."""
    return F.adaptive_avg_pool2d(maps_BCHW, 3)
