"""How text is written for the model: the normaliser that the published model was trained with. A leaf.

Shared by `model` (which words its prompts so) and `tasks` (which builds dialogues so).
"""

from __future__ import annotations

import re

_DROPPED = re.compile(r"[.!\"()*#:;~]")


def normalise(text: str, max_words: int | None = None) -> str:
    """Lower case, some punctuation gone, single spaces, the first `max_words` words.

    The marks ``. ! " ( ) * # : ; ~`` become spaces; ``? , ' - [ ] /`` survive (BLIP's caption processor).

    >>> normalise("Roads: ['top-left']. How many?")
    "roads ['top-left'] how many?"
    """
    return " ".join(_DROPPED.sub(" ", text.lower()).split()[:max_words])
