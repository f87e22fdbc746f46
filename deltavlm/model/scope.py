"""Question scope: classifier of questions by whether a model was taught to answer them.

It reads the question alone (out-of-scope detection, Larson et al. 2019, arXiv 1909.02027). A word is
embedded as the vector of its hash plus the mean of those of its character n-grams (Bojanowski et al. 2017,
arXiv 1607.04606), so that one with a typing error is still like itself, and one that was never seen is unlike
every known one. Two convolutions over the words, their maximum and mean, and a linear layer give three
classes.

R questions, W words, E width of a word, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import ScopeConfig
from deltavlm.model.scope_numpy import CLASSES, KERNEL, QuestionClass, split_words, word_buckets

__all__ = ["CLASSES", "QuestionClass", "QuestionScope"]


class QuestionScope(nn.Module):
    """Classifier of questions. `forward`: R texts -> logits (R, 3) of CLASSES."""

    def __init__(self, config: ScopeConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.EmbeddingBag(config.buckets, config.width, mode="sum")
        self.first = nn.Conv1d(config.width, config.hidden, KERNEL, padding=KERNEL // 2)
        self.second = nn.Conv1d(config.hidden, config.hidden, KERNEL, padding=KERNEL // 2)
        self.classes = nn.Linear(2 * config.hidden, len(CLASSES))
        nn.init.normal_(self.words.weight, std=0.3)

    def forward(self, texts: Sequence[str]) -> Tensor:
        rows = [split_words(text) for text in texts]
        words = [word_buckets(word, self.config.buckets) for row in rows for word in row]
        lengths = torch.tensor([len(row) for row in rows])
        sizes = torch.tensor([len(buckets) for buckets in words])
        offsets = sizes.cumsum(0) - sizes
        weights = (1 / (sizes - 1)).repeat_interleave(sizes).index_fill(0, offsets, 1.0)  # the word itself: 1
        embedded = self.words(
            torch.tensor([bucket for buckets in words for bucket in buckets]),
            offsets,
            per_sample_weights=weights,
        )
        mask_RW = torch.arange(int(lengths.max())) < lengths[:, None]
        words_RWE = embedded.new_zeros(*mask_RW.shape, self.config.width)
        words_RWE[mask_RW] = embedded
        mask_R1W = mask_RW[:, None]
        hidden_RHW = F.gelu(self.first(words_RWE.transpose(1, 2))) * mask_R1W
        hidden_RHW = hidden_RHW + F.gelu(self.second(hidden_RHW)) * mask_R1W
        largest_RH = hidden_RHW.masked_fill(~mask_R1W, -torch.inf).amax(dim=2)
        mean_RH = hidden_RHW.sum(dim=2) / lengths[:, None]
        logits: Tensor = self.classes(torch.cat([largest_RH, mean_RH], dim=1))
        return logits

    @torch.inference_mode()
    def probability(self, question: str, *, after_answer: bool) -> float:
        """Probability that a question can be answered.

        after_answer: the turn before it was answered, so that a question that refers to it can be too.
        """
        answerable, follow_up, _ = self([question]).softmax(dim=1)[0].tolist()
        return float(answerable + follow_up * after_answer)

    def supports(self, question: str, *, after_answer: bool = False) -> bool:
        """True if a question can be answered."""
        return self.probability(question, after_answer=after_answer) >= 0.5

    def set_threshold(self, probability: float) -> None:
        """Shift the probabilities so that this one becomes 0.5."""
        with torch.no_grad():
            self.classes.bias[CLASSES.index("unsupported")] += math.log(probability / (1 - probability))
