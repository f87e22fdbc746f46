"""What all answers share: one clean line of text, and the sentences that say "nothing changed"."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["NO_CHANGE", "clean", "says_no_change", "simplified"]

# The no-change sentences of LEVIR-CC, simplified.
NO_CHANGE = (
    "there is no difference",
    "the two scenes seem identical",
    "the scene is the same as before",
    "no change has occurred",
    "almost nothing has changed",
)

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
_NO_CHANGES = re.compile(
    r"(there (is|are|were|has been|have been) )?(no|not any|nothing) chang(e|es|ed)( .*)?"
)


def clean(text: str) -> str:
    """One line without control characters, so that every output format stays valid.

    Line breaks, tabs and other control characters become a single space; lone surrogates and marks
    that change the direction of writing are dropped.

    >>> clean(" a new road\\n\\x00 runs  north ")
    'a new road runs north'
    """
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if category == "Cs" or ord(char) in _BIDI:
            continue
        kept.append(" " if category in ("Cc", "Zl", "Zp") else char)
    return " ".join("".join(kept).split())


def simplified(text: str) -> str:
    """Lower case, and every character that is not a letter or digit turned into a space.

    >>> simplified("There is no difference.")
    'there is no difference'
    """
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def says_no_change(text: str) -> bool:
    """True when the sentence says that the two scenes are the same.

    >>> says_no_change("The scene is the same as before."), says_no_change("no roads were removed")
    (True, False)
    """
    words = simplified(text)
    if words in NO_CHANGE:
        return True
    return _NO_CHANGES.fullmatch(words) is not None and "but" not in words.split()
