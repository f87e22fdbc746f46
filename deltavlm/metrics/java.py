"""Java programs of the caption metrics: the PTB tokenizer and METEOR 1.5.

Both are jars in pycocoevalcap, which starts them with pipes that may stay open and a scratch file in its own
folder; here each is started once, gets all its lines, and ends.

Marcus, Santorini, Marcinkiewicz: Building a large annotated corpus of English, CL 19 (1993).
Denkowski, Lavie: Meteor universal, WMT 2014.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltavlm.errors import ToolError
from deltavlm.extras import install_command
from deltavlm.metrics.bootstrap import Array, Metric

__all__ = ["METEOR_STATISTICS", "meteor", "meteor_statistics", "ptb_tokenize", "pycocoevalcap_folder"]

METEOR_STATISTICS = 23
_TOKENIZER = "stanford-corenlp-3.4.1.jar"
_METEOR = "meteor-1.5.jar"


def ptb_tokenize(sentences: Sequence[str]) -> list[str]:
    """Tokenize as in the COCO caption evaluation: lower case, no punctuation, a space between tokens.

    Raises: ToolError when Java or pycocoevalcap is missing, or Java fails.
    """
    folder = pycocoevalcap_folder() / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    command = ["-cp", _TOKENIZER, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = _java([*command, "-encoding", "UTF-8"], folder, [" ".join(text.split()) for text in sentences])
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in lines]


def meteor_statistics(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """Statistics of METEOR for each sentence against its best reference, (sentences, 23).

    Raises: ToolError when Java or pycocoevalcap is missing, or Java fails.
    """
    folder = pycocoevalcap_folder() / "meteor"
    lines = [
        " ||| ".join(["SCORE", *map(_one_line, group), _one_line(sentence)])
        for sentence, group in zip(sentences, references, strict=True)
    ]
    answers = _java(["-Xmx2G", "-jar", _METEOR, "-", "-", "-stdio", "-l", "en", "-norm"], folder, lines)
    try:
        rows = [[float(number) for number in answer.split()] for answer in answers]
    except ValueError as error:
        raise ToolError(f"METEOR printed something other than numbers: {error}") from error
    if any(len(row) != METEOR_STATISTICS for row in rows):
        raise ToolError(f"METEOR did not print {METEOR_STATISTICS} numbers for each sentence")
    statistics = np.asarray(rows, float).reshape(-1, METEOR_STATISTICS)
    in_one_chunk = statistics[:, 20] == 1
    is_full_match = (statistics[:, 21] == statistics[:, 0]) & (statistics[:, 22] == statistics[:, 1])
    statistics[in_one_chunk & is_full_match, 20] = 0  # METEOR has no penalty for a full match
    return statistics


def meteor(rows: Array) -> Metric:
    """METEOR 1.5 for English from its statistics: a weighted harmonic mean, less a fragmentation penalty.

    Columns: length, reference length, function words of both; matched content and function words of either
    side for exact, stem, synonym and paraphrase matches; chunks, and matched words of both.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.asarray([1.0, 0.6, 0.8, 0.6])

    def finish(sums: Array) -> float:
        # content words of the sentence and of the reference, then function words of both
        matched = weights @ sums[4:20].reshape(4, 4)
        scores = []
        for side in (0, 1):
            content, function = sums[side] - sums[2 + side], sums[2 + side]
            total = delta * content + (1 - delta) * function
            hits = delta * matched[side] + (1 - delta) * matched[2 + side]
            scores.append(hits / total if total > 0 else 0.0)
        precision, recall = scores
        if min(precision, recall) <= 0:
            return 0.0
        fragmentation = sums[20] / ((sums[21] + sums[22]) / 2)
        return float((1 - gamma * fragmentation**beta) / ((1 - alpha) / precision + alpha / recall))

    return Metric(rows, finish)


def _one_line(text: str) -> str:
    """Text without line breaks, and without METEOR's separator."""
    return " ".join(text.replace("|||", " ").split())


def pycocoevalcap_folder() -> Path:
    """Folder of the installed pycocoevalcap. Raises: ToolError when it is not installed."""
    try:
        import pycocoevalcap
    except ImportError as error:
        raise ToolError(f"pycocoevalcap is not installed; {install_command('pycocoevalcap')}") from error
    return Path(next(iter(pycocoevalcap.__path__)))


def _java(arguments: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    """Run a Java program on `lines` and return its output, one line for each. Raises: ToolError."""
    program = shutil.which("java")
    if program is None:
        raise ToolError("Java is not installed (any version from 8 on; the program java must be on the PATH)")
    if not lines:
        return []
    run = subprocess.run(
        [program, "-Dfile.encoding=UTF-8", *arguments],
        cwd=folder,
        input="".join(line + "\n" for line in lines).encode("utf-8", "replace"),
        capture_output=True,
        check=False,
    )
    output = run.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if run.returncode or len(output) != len(lines):
        reason = (run.stderr.decode("utf-8", "replace").strip() or "no message").splitlines()[0]
        raise ToolError(f"Java failed in {folder.name}: {reason}")
    return output
