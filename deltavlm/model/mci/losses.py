"""Losses of MCI's training: of the caption, of the mask, and of both jointly.

N pairs, S words, V words of the vocabulary, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from deltavlm.model.mci.config import END, NULL
from deltavlm.model.mci.network import MCI

SMALLEST = 1e-6

__all__ = ["caption_loss", "joint_loss", "losses", "mask_loss"]


def caption_loss(scores_NSV: Tensor, words_NS: Tensor) -> Tensor:
    """Mean cross-entropy of each word but START, given those before it; NULL pads the captions."""
    return F.cross_entropy(
        scores_NSV[:, :-1].flatten(0, 1).float(), words_NS[:, 1:].flatten(), ignore_index=NULL
    )


def mask_loss(logits_NCHW: Tensor, labels_NHW: Tensor) -> Tensor:
    """Mean cross-entropy of the class of each pixel."""
    return F.cross_entropy(logits_NCHW.float(), labels_NHW)


def joint_loss(mask: Tensor, caption: Tensor) -> Tensor:
    """Sum of both losses, each divided by its own value: always 2, and only its direction counts.

    A loss below SMALLEST is divided by that: the quotient would be no number at 0.
    """
    return sum(loss / loss.detach().abs().clamp(min=SMALLEST) for loss in (mask, caption))  # type: ignore[return-value]


def losses(
    network: MCI, before_N3HW: Tensor, after_N3HW: Tensor, words_NS: Tensor, labels_NHW: Tensor
) -> Mapping[str, Tensor]:
    """Losses `caption`, `mask` and `joint` of a batch, for backpropagation.

    Args:
        network: in training or evaluation mode.
        before_N3HW, after_N3HW: pixels, from `MCI.normalise`.
        words_NS: captions from START to END, padded with NULL; no word sees NULL or END.
        labels_NHW: classes of the pixels.
    """
    encoding = network(before_N3HW, after_N3HW)
    scores = network.captioner.score(encoding.memory, words_NS, (NULL, END))
    caption, mask = caption_loss(scores, words_NS), mask_loss(encoding.mask_logits, labels_NHW)
    return {"caption": caption, "mask": mask, "joint": joint_loss(mask, caption)}
