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


def alike(groups_M: Tensor, groups_N: Tensor) -> Tensor:
    """Which of M things say the same as which of N, (M, N) bool."""
    return groups_M[:, None] == groups_N[None]


def contrastive_loss(logits_MN: Tensor, same_MN: Tensor) -> Tensor:
    """Sum over M rows of the cross-entropy against all that say the same, in equal shares."""
    shares = same_MN.float() / same_MN.sum(dim=1, keepdim=True)
    return -(shares * logits_MN.float().log_softmax(dim=1)).sum()


def hardest(logits_MN: Tensor, same_MN: Tensor, noise_MN: Tensor) -> Tensor:
    """For each of M rows one of N that does not say the same, drawn by its likelihood (Gumbel noise on the
    logits); -1 where there is none."""
    open_ = (logits_MN.detach().float() + noise_MN).masked_fill(same_MN, float("-inf"))
    return torch.where(same_MN.all(dim=1), -1, open_.argmax(dim=1))
