"""What is minimised, beside the words' own cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Change is rare, thin change rarer: none, buildings, roads, then trees, water, ground.
CLASS_WEIGHTS = (1.0, 3.0, 3.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)


def mask_loss(logits_BCHW: Tensor, codes_BHW: Tensor) -> Tensor:
    """Weighted cross-entropy plus soft Dice of the classes that the batch holds."""
    logits = logits_BCHW.float()
    weights = torch.tensor(CLASS_WEIGHTS[: logits.shape[1]], device=logits.device)
    entropy = F.cross_entropy(logits, codes_BHW, weight=weights)
    share = logits.softmax(dim=1)
    truth = F.one_hot(codes_BHW, logits.shape[1]).movedim(-1, 1).to(share.dtype)
    hits, sizes = (share * truth).sum(dim=(0, 2, 3)), (share + truth).sum(dim=(0, 2, 3))
    there = truth.sum(dim=(0, 2, 3)) > 0
    there[0] = False
    dice = 1 - 2 * hits / (sizes + 1)
    return entropy + 0.3 * (dice[there].mean() if there.any() else dice.sum() * 0)


def density_loss(density_BKGG: Tensor, truth_BKGG: Tensor) -> Tensor:
    """Where the counted things are, patch by patch, and how many there are in all (on a root scale)."""
    density = density_BKGG.float()
    patches = F.mse_loss(density, truth_BKGG) * density.shape[-1] ** 2 / 4
    totals, wanted = density.sum(dim=(2, 3)), truth_BKGG.sum(dim=(2, 3))
    return patches + 0.5 * F.smooth_l1_loss(torch.sqrt(totals + 0.25), torch.sqrt(wanted + 0.25), beta=0.25)
