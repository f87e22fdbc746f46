"""Dense head: change mask and per-class densities (counts) from the difference tokens.

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


class DenseHead(nn.Module):
    """Mask logits (B, C, 4 G, 4 G) and densities (B, K, G, G), whose sums are counts.

    A decoder with skip connections from the tower's finer maps of both dates, if it has any, up to a quarter
    of the image's resolution (FC-Siam-conc, Daudt et al. 2018, arXiv 1810.08462). Its auxiliary loss teaches
    the tokens where objects are; `evidence` passes its output to the Q-Former in ten tokens (the nine cells
    of the 3x3 grid, then the whole image).
    """

    def __init__(self, width: int, config: DenseConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.config = config
        classes, counted, inner = len(config.classes), len(config.counted), config.width
        skips = [2 * channels for channels, _ in vision.stages] or [0, 0]  # of both dates, finest first
        self.fuse = nn.Linear(2 * width, 2 * inner)
        self.ups = nn.ModuleList([Up(2 * inner, skips[1], inner), Up(inner, skips[0], inner)])
        self.mask = nn.Conv2d(inner, classes, 1)
        self.density = nn.Linear(2 * width + 2 * inner, counted)
        nn.init.constant_(self.density.bias, -6.0)  # almost every patch is empty
        if config.evidence:
            facts = 2 * classes + counted * config.count_basis
            self.totals = nn.Linear(facts, width)
            self.place = nn.Parameter(
                torch.randn(config.evidence_tokens, width) * 0.5
            )  # of the same scale as the facts
            self.norm = nn.LayerNorm(width)

    def forward(self, patches_BN2D: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mask logits and densities of difference tokens and maps.

        Args:
            patches_BN2D: difference tokens of both dates, concatenated.
            maps: the tower's maps of both dates, concatenated along channels, finest first; may be empty.
        """
        side = int(patches_BN2D.shape[1] ** 0.5)
        x = F.relu(self.fuse(patches_BN2D)).transpose(1, 2).reshape(len(patches_BN2D), -1, side, side)
        for up, skip in zip(self.ups, reversed(maps) if maps else (None, None), strict=True):
            x = up(x, skip)
        pooled = (
            torch.cat([F.avg_pool2d(x, UPSAMPLE), F.max_pool2d(x, UPSAMPLE)], dim=1)
            .flatten(2)
            .transpose(1, 2)
        )
        density = F.softplus(self.density(torch.cat([patches_BN2D, pooled], dim=2)))
        return self.mask(x), density.transpose(1, 2).reshape(len(x), -1, side, side)

    def evidence(self, mask_logits: Tensor, density: Tensor) -> Tensor:
        """Evidence tokens (B, 10, D): class shares and counts of each cell, row by row, and of the image."""
        share = mask_logits.float().softmax(dim=1)
        mean = torch.cat([thirds(share).flatten(2), share.mean(dim=(2, 3))[..., None]], dim=2)
        peak = torch.cat(
            [F.adaptive_max_pool2d(share, 3).flatten(2), share.amax(dim=(2, 3))[..., None]], dim=2
        )
        area = density.float().shape[-1] ** 2
        counts = torch.cat(
            [thirds(density.float()).flatten(2) * area / 9, density.float().sum(dim=(2, 3))[..., None]], dim=2
        )
        numbers = torch.arange(self.config.count_basis, device=counts.device)
        spread = torch.exp(-2 * (counts[..., None].clamp(max=float(numbers[-1])) - numbers) ** 2)
        spread = spread.permute(0, 2, 1, 3).flatten(2)
        facts = torch.cat([torch.log1p(100 * mean).transpose(1, 2), peak.transpose(1, 2), spread], dim=2)
        tokens: Tensor = self.norm(self.totals(facts.to(self.totals.weight.dtype)) + self.place)
        return tokens


def thirds(maps_BCHW: Tensor) -> Tensor:
    """Means over the nine cells of the image, (B, C, 3, 3)."""
    return F.adaptive_avg_pool2d(maps_BCHW, 3)
