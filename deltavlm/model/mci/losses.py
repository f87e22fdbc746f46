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
    network: MCI,
    before_N3HW: Tensor,
    after_N3HW: Tensor,
    words_NS: Tensor | None,
    labels_NHW: Tensor | None,
) -> Mapping[str, Tensor]:
    """Losses `caption` and `mask` of a batch, and `joint` of both, for backpropagation.

    Args:
        network: in training or evaluation mode.
        before_N3HW, after_N3HW: pixels, from `MCI.normalise`.
        words_NS: captions from START to END, padded with NULL; no word sees NULL or END. None: no captions.
        labels_NHW: classes of the pixels. None: no masks.
    """
    maps = network.maps(before_N3HW, after_N3HW)
    values: dict[str, Tensor] = {}
    if words_NS is not None:
        scores = network.captioner.score(network.memory(*maps), words_NS, (NULL, END))
        values["caption"] = caption_loss(scores, words_NS)
    if labels_NHW is not None:
        values["mask"] = mask_loss(network.mask_logits(*maps), labels_NHW)
    if len(values) == 2:
        values["joint"] = joint_loss(values["mask"], values["caption"])
    return values
