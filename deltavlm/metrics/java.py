"""The two programs of the caption metrics that need Java: the PTB tokenizer, and METEOR 1.5.

Both lie as jars in pycocoevalcap. It starts them with pipes that may stay open and a scratch file in its own
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
from deltavlm.metrics.bootstrap import Array, Metric

__all__ = ["METEOR_PARTS", "meteor", "meteor_statistics", "ptb_tokenize", "pycocoevalcap_folder"]

METEOR_PARTS = 23
_TOKENIZER = "stanford-corenlp-3.4.1.jar"
_METEOR = "meteor-1.5.jar"


def ptb_tokenize(sentences: Sequence[str]) -> list[str]:
    """Sentences in lower case with a space between tokens and without punctuation, as COCO's captions are.

    Raises: ToolError when Java or pycocoevalcap is missing, or Java fails.
    """
    folder = pycocoevalcap_folder() / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    command = ["-cp", _TOKENIZER, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = _java([*command, "-encoding", "UTF-8"], folder, [" ".join(text.split()) for text in sentences])
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in lines]


def meteor_statistics(said: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """(sentences, 23): what METEOR counts of each sentence against the reference that suits it best.

    Raises: ToolError when Java or pycocoevalcap is missing, or Java fails.
    """
    folder = pycocoevalcap_folder() / "meteor"
    lines = [
        " ||| ".join(["SCORE", *map(_fenced, known), _fenced(text)])
        for text, known in zip(said, references, strict=True)
    ]
    answers = _java(["-Xmx2G", "-jar", _METEOR, "-", "-", "-stdio", "-l", "en", "-norm"], folder, lines)
    try:
        rows = [[float(number) for number in answer.split()] for answer in answers]
    except ValueError as error:
        raise ToolError(f"METEOR answered something that is not numbers: {error}") from error
    if any(len(row) != METEOR_PARTS for row in rows):
        raise ToolError(f"METEOR should answer {METEOR_PARTS} numbers for each sentence, and did not")
    found = np.asarray(rows, float).reshape(-1, METEOR_PARTS)
    whole = (found[:, 20] == 1) & (found[:, 21] == found[:, 0]) & (found[:, 22] == found[:, 1])
    found[whole, 20] = 0  # a sentence that matches from end to end has no chunks to be punished for
    return found


def meteor(rows: Array) -> Metric:
    """METEOR 1.5 for English from its counts: a weighted harmonic mean, less a penalty for disorder.

    Columns: length, reference length, function words of both, then matched content and function words of
    either side for exact, stem, synonym and paraphrase matches, then chunks and matched words of both.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.asarray([1.0, 0.6, 0.8, 0.6])

    def finish(sums: Array) -> float:
        matched = weights @ sums[4:20].reshape(
            4, 4
        )  # content said, content true, function said, function true
        shares = []
        for side in (0, 1):
            content, function = sums[side] - sums[2 + side], sums[2 + side]
            below = delta * content + (1 - delta) * function
            above = delta * matched[side] + (1 - delta) * matched[2 + side]
            shares.append(above / below if below > 0 else 0.0)
        if min(shares) <= 0:
            return 0.0
        fragments = sums[20] / ((sums[21] + sums[22]) / 2)
        return float((1 - gamma * fragments**beta) / ((1 - alpha) / shares[0] + alpha / shares[1]))

    return Metric(rows, finish)


def _fenced(text: str) -> str:
    """One line that cannot be taken for two."""
    return " ".join(text.replace("|||", " ").split())


def pycocoevalcap_folder() -> Path:
    """The folder of pycocoevalcap. Raises: ToolError when it is not installed."""
    try:
        import pycocoevalcap
    except ImportError as error:
        raise ToolError('pycocoevalcap is not installed: pip install "deltavlm[eval]"') from error
    return Path(next(iter(pycocoevalcap.__path__)))


def _java(arguments: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    """What a Java program answers, a line for each line. Raises: ToolError."""
    program = shutil.which("java")
    if program is None:
        raise ToolError("Java is not installed (any version from 8 on; the program java on the path)")
    if not lines:
        return []
    run = subprocess.run(
        [program, "-Dfile.encoding=UTF-8", *arguments],
        cwd=folder,
        input="".join(line + "\n" for line in lines).encode("utf-8", "replace"),
        capture_output=True,
        check=False,
    )
    said = run.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if run.returncode or len(said) != len(lines):
        reason = (run.stderr.decode("utf-8", "replace").strip() or "no message").splitlines()[0]
        raise ToolError(f"Java failed in {folder.name}: {reason}")
    return said
