"""Sentences against references: BLEU, ROUGE-L and CIDEr as pycocoevalcap has them, and S*m with METEOR.

Sentences come tokenised, with a space between tokens; what a token is, the protocol decides.
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
    """Words in lower case without punctuation, for machines without Java; close to the PTB tokenizer, not it.

    >>> simple_tokenize("It's a car-park, isn't it?")
    "it 's a car-park isn 't it"
    """
    return " ".join(_WORD.findall(text.lower()))


def compute_metrics(
    said: Sequence[str], references: Sequence[Sequence[str]], meteor_counts: Array | None = None
) -> dict[str, Metric]:
    """BLEU-1 to 4, METEOR, ROUGE-L, CIDEr, and S*m, the mean of BLEU-4, METEOR, ROUGE-L and CIDEr.

    meteor_counts: of `java.meteor_statistics`, a row a sentence; without it neither METEOR nor S*m.
    CIDEr's word weights come from the references given here, and are kept while an interval is drawn.

    Raises: ToolError when pycocoevalcap is missing.
    """
    found = {
        **{f"bleu_{order}": tally for order, tally in enumerate(bleu(said, references), start=1)},
        **({} if meteor_counts is None else {"meteor": meteor(meteor_counts)}),
        "rouge_l": rouge_l(said, references),
        "cider": cider(said, references),
    }
    if meteor_counts is not None:
        found["s_m"] = average([found[name] for name in SM_METRICS])
    return found


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """BLEU-1 to 4 of the whole corpus, against the reference of the closest length.

    Papineni, Roukos, Ward, Zhu: BLEU, ACL 2002.
    """
    pycocoevalcap_folder()
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for text, known in zip(said, references, strict=True):
        scorer += (text, list(known))
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
        small, tiny = 1e-9, 1e-15  # what pycocoevalcap adds to avoid a division by zero
        product = math.prod((sums[6 + n] + tiny) / (sums[2 + n] + small) for n in range(order))
        ratio = (sums[0] + tiny) / (sums[1] + small)
        return float(product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0))

    return [Metric(rows, partial(finish, order=order)) for order in (1, 2, 3, 4)]


def rouge_l(said: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Mean F-measure (beta 1.2) of the longest common subsequence; best precision and best recall may come
    from different references.

    Lin: ROUGE, ACL workshop on text summarization, 2004.
    """
    pycocoevalcap_folder()
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return mean_metric([scorer.calc_score([text], list(k)) for text, k in zip(said, references, strict=True)])


def cider(said: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Mean CIDEr-D (0 to 10): likeness of word sequences, each weighted by how few pairs' references have it.

    0 where all references are alike, because nothing then tells a pair from the others.
    Vedantam, Zitnick, Parikh: CIDEr, arXiv 1411.5726.
    """
    pycocoevalcap_folder()
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    if not any(text.split() for known in references for text in known):
        return mean_metric([0.0] * len(said))
    scorer = CiderScorer(n=4, sigma=6.0)
    for text, known in zip(said, references, strict=True):
        scorer += (text, list(known))
    return mean_metric(scorer.compute_score()[1])


def average(parts: Sequence[Metric]) -> Metric:
    """The mean of several figures of the same examples."""
    ends = np.cumsum([part.rows.shape[1] for part in parts])

    def finish(sums: Array) -> float:
        pieces = np.split(sums, ends[:-1])
        return float(np.mean([part.finish(piece) for part, piece in zip(parts, pieces, strict=True)]))

    return Metric(np.concatenate([part.rows for part in parts], axis=1), finish)
