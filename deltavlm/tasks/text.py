"""Text of answers: cleaning to one line, comparison, and sentences that state no change, or no answer."""

from __future__ import annotations

import re
import unicodedata

from deltavlm.messages import UNSUPPORTED

__all__ = ["NO_CHANGE", "clean", "says_no_change", "says_unsupported", "simplify"]

# The no-change sentences of LEVIR-CC, as `simplify` returns them.
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
    """Text on one line without control characters, valid in every output format.

    Line breaks, tabs and other control characters become a single space; lone surrogates and bidirectional
    formatting characters are removed.

    >>> clean(" a new road\\n\\x00 runs  north ")
    'a new road runs north'
    """
    chars = []
    for char in text:
        category = unicodedata.category(char)
        if category == "Cs" or ord(char) in _BIDI:
            continue
        chars.append(" " if category in ("Cc", "Zl", "Zp") else char)
    return " ".join("".join(chars).split())


def simplify(text: str) -> str:
    """Lower-case text with each run of characters other than letters and digits replaced by one space.

    >>> simplify("There is no difference.")
    'there is no difference'
    """
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def says_no_change(text: str) -> bool:
    """True if the sentence states that nothing changed.

    >>> says_no_change("The scene is the same as before."), says_no_change("no roads were removed")
    (True, False)
    """
    words = simplify(text)
    if words in NO_CHANGE:
        return True
    return _NO_CHANGES.fullmatch(words) is not None and "but" not in words.split()


def says_unsupported(text: str) -> bool:
    """True if the sentence states that the model was not taught to answer the question.

    >>> says_unsupported("This model was not taught to answer that question."), says_unsupported("no")
    (True, False)
    """
    return simplify(text) == UNSUPPORTED
