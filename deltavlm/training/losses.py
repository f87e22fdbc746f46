"""Losses beside the cross-entropy of the text: masks, object densities, contrastive alignment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Changed pixels are rare, those of thin objects rarer: unchanged; buildings, roads; trees, water, ground.
CLASS_WEIGHTS = (1.0, 3.0, 3.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)


def mask_loss(logits_BCHW: Tensor, codes_BHW: Tensor, balance: float = 1.0) -> Tensor:
    """Weighted cross-entropy plus 0.3 times the soft Dice loss of the change classes in the batch.

    balance: power of the class weights; 0 gives all pixels the same weight, which makes the probabilities
    those of the data.
    """
    logits = logits_BCHW.float()
    weights = torch.tensor(CLASS_WEIGHTS[: logits.shape[1]], device=logits.device) ** balance
    entropy = F.cross_entropy(logits, codes_BHW, weight=weights)
    probs = logits.softmax(dim=1)
    target = F.one_hot(codes_BHW, logits.shape[1]).movedim(-1, 1).to(probs.dtype)
    hits, sizes = (probs * target).sum(dim=(0, 2, 3)), (probs + target).sum(dim=(0, 2, 3))
    is_present = target.sum(dim=(0, 2, 3)) > 0
    is_present[0] = False  # unchanged
    dice = 1 - 2 * hits / (sizes + 1)
    return entropy + 0.3 * (dice[is_present].mean() if is_present.any() else dice.sum() * 0)


def density_loss(density_BKGG: Tensor, target_BKGG: Tensor) -> Tensor:
    """Squared error of object density per patch, plus smooth L1 of the square roots of the total counts."""
    density = density_BKGG.float()
    patches = F.mse_loss(density, target_BKGG) * density.shape[-1] ** 2 / 4
    totals, targets = density.sum(dim=(2, 3)), target_BKGG.sum(dim=(2, 3))
    return patches + 0.5 * F.smooth_l1_loss(torch.sqrt(totals + 0.25), torch.sqrt(targets + 0.25), beta=0.25)


def same_group(groups_M: Tensor, groups_N: Tensor) -> Tensor:
    """Positive pairs: (M, N) bool, true where two items have the same group number."""
    return groups_M[:, None] == groups_N[None]


def contrastive_loss(logits_MN: Tensor, positives_MN: Tensor) -> Tensor:
    """Sum over M rows of the cross-entropy against all positives of the row, in equal shares."""
    targets = positives_MN.float() / positives_MN.sum(dim=1, keepdim=True)
    return -(targets * logits_MN.float().log_softmax(dim=1)).sum()


def sample_hard_negatives(logits_MN: Tensor, positives_MN: Tensor, gumbel_MN: Tensor) -> Tensor:
    """Index (M,) of a negative for each row, sampled by its likelihood; -1 for a row without negatives.

    Gumbel noise on the logits makes the argmax a sample of their softmax.
    """
    noisy = (logits_MN.detach().float() + gumbel_MN).masked_fill(positives_MN, float("-inf"))
    return torch.where(positives_MN.all(dim=1), -1, noisy.argmax(dim=1))
