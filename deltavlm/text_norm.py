"""Text normalisation of the published model's training data, used for prompts and dialogues."""

from __future__ import annotations

import re

_DROPPED = re.compile(r"[.!\"()*#:;~]")


def normalise(text: str, max_words: int | None = None) -> str:
    """Normalise as BLIP's caption processor: lower case, less punctuation, the first `max_words` words.

    The characters ``. ! " ( ) * # : ; ~`` become spaces, and runs of spaces one; ``? , ' - [ ] /`` stay.

    >>> normalise("Roads: ['top-left']. How many?")
    "roads ['top-left'] how many?"
    """
    return " ".join(_DROPPED.sub(" ", text.lower()).split()[:max_words])
