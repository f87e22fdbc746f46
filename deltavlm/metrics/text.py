"""Metrics of sentences against references: BLEU, ROUGE-L and CIDEr of pycocoevalcap, METEOR, and S*m.

Sentences are tokenized, with a space between tokens; the protocol decides what a token is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from deltavlm.metrics.bootstrap import Array, Metric, mean_metric
from deltavlm.metrics.java import meteor, pycocoevalcap_folder

__all__ = ["SM_METRICS", "compute_metrics", "simple_tokenize"]

SM_METRICS = ("bleu_4", "meteor", "rouge_l", "cider")
_WORD = re.compile(r"'?[^\W_]+(?:[-.,/][^\W_]+)*")


def simple_tokenize(text: str) -> str:
    """Words in lower case without punctuation: an approximation of the PTB tokenizer without Java.

    >>> simple_tokenize("It's a car-park, isn't it?")
    "it 's a car-park isn 't it"
    """
    return " ".join(_WORD.findall(text.lower()))


def compute_metrics(
    sentences: Sequence[str], references: Sequence[Sequence[str]], meteor_statistics: Array | None = None
) -> dict[str, Metric]:
    """BLEU-1 to 4, METEOR, ROUGE-L, CIDEr, and S*m, the mean of BLEU-4, METEOR, ROUGE-L and CIDEr.

    meteor_statistics: result of `java.meteor_statistics`; without it METEOR and S*m are left out. The word
    weights of CIDEr come from these references, and stay the same in every bootstrap draw.

    Raises: ToolError when pycocoevalcap is missing.
    """
    metrics = {
        **{f"bleu_{order}": metric for order, metric in enumerate(bleu(sentences, references), start=1)},
        **({} if meteor_statistics is None else {"meteor": meteor(meteor_statistics)}),
        "rouge_l": rouge_l(sentences, references),
        "cider": cider(sentences, references),
    }
    if meteor_statistics is not None:
        metrics["s_m"] = average_metric([metrics[name] for name in SM_METRICS])
    return metrics


def bleu(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """Corpus BLEU-1 to 4, with the reference of the closest length.

    Papineni, Roukos, Ward, Zhu: BLEU, ACL 2002.
    """
    pycocoevalcap_folder()
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for sentence, group in zip(sentences, references, strict=True):
        scorer += (sentence, list(group))
    rows = np.asarray(
        [
            [
                counts["testlen"],
                min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1],
                *counts["guess"],
                *counts["correct"],
            ]
            for counts in scorer.ctest
        ],
        float,
    ).reshape(-1, 10)

    def finish(sums: Array, order: int) -> float:
        small, tiny = 1e-9, 1e-15  # added by pycocoevalcap to avoid a division by zero
        product = math.prod((sums[6 + n] + tiny) / (sums[2 + n] + small) for n in range(order))
        ratio = (sums[0] + tiny) / (sums[1] + small)
        return float(product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0))

    return [Metric(rows, partial(finish, order=order)) for order in (1, 2, 3, 4)]


def rouge_l(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Mean ROUGE-L: F-measure (beta 1.2) of the longest common subsequence; best precision and best recall
    may come from different references.

    Lin: ROUGE, ACL workshop on text summarization, 2004.
    """
    pycocoevalcap_folder()
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return mean_metric(
        [
            scorer.calc_score([sentence], list(group))
            for sentence, group in zip(sentences, references, strict=True)
        ]
    )


def cider(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Mean CIDEr-D (0 to 10): similarity of n-grams, weighted by their inverse document frequency.

    0 where all references are equal, since no n-gram then distinguishes a pair.
    Vedantam, Zitnick, Parikh: CIDEr, arXiv 1411.5726.
    """
    pycocoevalcap_folder()
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    if not any(reference.split() for group in references for reference in group):
        return mean_metric([0.0] * len(sentences))
    scorer = CiderScorer(n=4, sigma=6.0)
    for sentence, group in zip(sentences, references, strict=True):
        scorer += (sentence, list(group))
    return mean_metric(scorer.compute_score()[1])


def average_metric(metrics: Sequence[Metric]) -> Metric:
    """Mean of several metrics of the same examples."""
    ends = np.cumsum([metric.rows.shape[1] for metric in metrics])

    def finish(sums: Array) -> float:
        groups = np.split(sums, ends[:-1])
        return float(np.mean([metric.finish(group) for metric, group in zip(metrics, groups, strict=True)]))

    return Metric(np.concatenate([metric.rows for metric in metrics], axis=1), finish)
