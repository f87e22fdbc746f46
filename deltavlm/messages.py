"""Words of messages: a number with its noun, short forms of values, and text without secrets."""

from __future__ import annotations

import re
import reprlib
from typing import Any
from urllib.parse import unquote

__all__ = [
    "NOTE",
    "UNSUPPORTED",
    "first_line",
    "format_number",
    "pluralize",
    "preview",
    "redact",
    "redact_address",
]

NOTE = 25
"""Level of log records that a person should see although they warn of nothing, between INFO and WARNING."""
UNSUPPORTED = "this model was not taught to answer that question"
"""Answer to a question that a model was not taught to answer; `tasks.text.says_unsupported` recognizes it."""

_STORE = r"vsi(?:s3|gs|az|adls|oss|swift|webhdfs|hdfs)(?:_streaming)?"
_NETWORK = rf"(?:{_STORE}|vsicurl(?:_streaming)?)"
_CURL_OPTIONS = re.compile(r"(/vsicurl(?:_streaming)?)\?(\S*)", re.IGNORECASE)
"""`/vsicurl?header.Authorization=...&url=...`: all but the URL may be secret."""
_CURL_URL = re.compile(r"(?:^|&)url=([^&]*)", re.IGNORECASE)
_STORE_KEYS = re.compile(
    rf"((?:\b(?:s3|gs|az|oss)://)|/{_STORE}/)(?:[^/?#\s]*@|[^/?#\s@]*:\S*@)", re.IGNORECASE
)
_USER = re.compile(
    r"(\b[a-z][\w+.-]+:/{1,3}|/vsicurl(?:_streaming)?/)(?:[^/?#\s]*@|[^/?#\s@]*:(?!\d*(?:[/?#\s]|$))\S*@)"
    r"|(?<![:/])(//)[^/?#\s@:]*:[^/?#\s]*@",
    re.IGNORECASE,
)
"""A colon that begins no port begins a password, whatever its characters; Python's paths have one slash."""
_BEHIND = r"\S*?(?=[)\]}>\"'`.,;:]*(?:\s|$))"  # to the end of a word, without punctuation
_QUERY = re.compile(
    rf"((?:\b(?![\w+.-]*file:)[a-z][\w+.-]+:/{{1,3}}|/{_NETWORK}/)[^\s?#]*)[?#]{_BEHIND}"
    rf"|(\.[a-z][a-z0-9]{{1,4}})\?(?=[\w%]){_BEHIND}",
    re.IGNORECASE,
)
"""Of a URL, and of a file name with a suffix, as GDAL tells it."""
_ENCODED = re.compile(r"[a-z][a-z0-9+.-]*%(?:25)*3a(?:%(?:25)*2f){2}\S*", re.IGNORECASE)
"""URL in percent-encoding, once or several times."""
_SPACE, _END = "\ue000", "\ue001"  # stand for a space in an address, and for its end

MAX_PREVIEW_CHARS = 60


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Number with its noun, and a verb where `plural` has one: by default the noun with an s.

    >>> pluralize(1, "chip"), pluralize(1200, "chip"), pluralize(2, "image is", "images are")
    ('1 chip', '1,200 chips', '2 images are')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def format_number(number: float) -> str:
    """`12.8`, `1,200`: with one decimal, unless it is a whole number.

    >>> format_number(1199.97)
    '1,200'
    """
    return f"{number:,.1f}".removesuffix(".0")


def first_line(error: BaseException) -> str:
    """First line of an error's message; the name of its class where there is none.

    >>> first_line(ValueError("two\\nlines")), first_line(KeyError())
    ('two', 'KeyError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _Preview(reprlib.Repr):
    """`repr` that stops early, at any size and depth of the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = 4 * MAX_PREVIEW_CHARS

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 1024 else f"a number of {x.bit_length()} bits"


def preview(value: Any, max_chars: int = MAX_PREVIEW_CHARS) -> str:
    """`repr` of a value for a message, in at most `max_chars` characters; `nothing` for None.

    >>> preview({"a": [1, 2]}), preview("x" * 100, 9)
    ("{'a': [1, 2]}", "'xxxxx...")
    """
    text = "nothing" if value is None else _Preview().repr(value)
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


def redact(text: str) -> str:
    """Text in which no URL and no path of GDAL has a user, password, query, fragment or header.

    >>> redact("(`/vsicurl/https://me:secret@example.org/x.tif?token=secret' is missing)")
    "(`/vsicurl/https://example.org/x.tif' is missing)"
    """
    if not any(mark in text.lower() for mark in (":/", "//", "/vsi", "%", "?")):
        return text
    text = _CURL_OPTIONS.sub(_without_options, text)
    text = _STORE_KEYS.sub(r"\1", text)
    text = _USER.sub(lambda match: match[1] or match[2], text)
    text = _QUERY.sub(lambda match: match[1] or match[2], text)
    return _ENCODED.sub(lambda match: redact_address(_decoded(match[0])), text)


def redact_address(address: str) -> str:
    """`redact` of one path or URL, which may have spaces in its secrets.

    >>> redact_address("https://me:my secret@example.org/x.tif?title=my secret")
    'https://example.org/x.tif'
    """
    return redact(address.replace(" ", _SPACE) + _END).replace(_END, "").replace(_SPACE, " ")


def _without_options(match: re.Match[str]) -> str:
    url = _CURL_URL.search(match[2])
    return f"{match[1]}/{redact_address(unquote(url[1]))}" if url else match[1]


def _decoded(text: str) -> str:
    """Text without percent-encoding, however often it was encoded."""
    while (plain := unquote(text)) != text:
        text = plain
    return text
