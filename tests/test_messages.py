"""Text without secrets: addresses in every spelling lose user, password, query, fragment and headers."""

from __future__ import annotations

import re

import pytest

from deltavlm.errors import RasterError
from deltavlm.messages import redact, redact_address
from tests.library_texts import library_texts

SPELLINGS = {
    "https://me:SEKRIT@host:8080/a/x.tif?token=SEKRIT#SEKRIT": "https://host:8080/a/x.tif",
    "HTTPS://me:SEK@RIT@host/x.tif?SEKRIT": "HTTPS://host/x.tif",
    "https://SEKRIT@host/x.tif": "https://host/x.tif",
    "https://me:SEK/R?I#T@host/x.tif": "https://host/x.tif",
    "ftp://me:SEKRIT@host/x.tif": "ftp://host/x.tif",
    "//me:SEKRIT@host/x.tif": "//host/x.tif",
    "zip+http://me:SEKRIT@127.0.0.1:80/no.zip!x.tif?token=SEKRIT": "zip+http://127.0.0.1:80/no.zip!x.tif",
    "/vsicurl/https://me:SEKRIT@host/x.tif?token=SEKRIT": "/vsicurl/https://host/x.tif",
    "/vsizip/vsicurl/http://me:SEKRIT@host/no.zip/x.tif?t=SEKRIT": "/vsizip/vsicurl/http://host/no.zip/x.tif",
    "/vsizip//vsicurl/http://me:SEKRIT@host/no.zip/x.tif": "/vsizip//vsicurl/http://host/no.zip/x.tif",
    "/vsizip/{/vsicurl/http://me:SEKRIT@host/a.zip}/x.tif": "/vsizip/{/vsicurl/http://host/a.zip}/x.tif",
    "/vsicurl?header.Authorization=SEKRIT&url=http%3A%2F%2Fme%3ASEKRIT%40host%2Fx.tif%3Fsig%3DSEK%20RIT": (
        "/vsicurl/http://host/x.tif"
    ),
    "/vsicurl_streaming?header.X-Key=SEKRIT": "/vsicurl_streaming",
    "/vsicached?file=/vsicurl/http://me:SEKRIT@host/x.tif": "/vsicached?file=/vsicurl/http://host/x.tif",
    "http%253A%252F%252Fme%253ASEKRIT%2540host%252Fx.tif%253Fsig%253DSEKRIT": "http://host/x.tif",
    "http:/me:SEKRIT@host/x.tif?SEKRIT": "http:/host/x.tif",  # as a path of Python
    "x.tif?token=SEKRIT": "x.tif",  # as GDAL tells it in errors of reading
    "s3://AKIA:9/SEK/RIT@bucket/x.tif": "s3://bucket/x.tif",
    "/vsis3/AKIA:SEK/RIT@bucket/x.tif?versionId=SEKRIT": "/vsis3/bucket/x.tif",
    "/vsiaz/container/x.tif?sv=1&sig=SEKRIT": "/vsiaz/container/x.tif",
}
PLAIN = [
    "odd?name#1.tif",
    "/data//team@site/out.gpkg",
    "C:\\data@home\\x.tif",
    "file:///data/odd?name#1.tif",
    "/vsizip//data/odd?name.zip/x.tif",
    "https://host:8080/tiles/img@2x.tif",
    "s3://bucket/img@2x.tif",
    "GTIFF_DIR:1:/data/me@home/x.tif",
    "is it in out.tif? it is",
    "100 % of 7/8: what? yes@",
]


@pytest.mark.parametrize(("spelling", "shown"), SPELLINGS.items())
def test_an_address_keeps_no_secrets(spelling: str, shown: str) -> None:
    assert redact_address(spelling) == redact(spelling) == shown
    assert redact(redact(spelling)) == shown


@pytest.mark.parametrize(("spelling", "shown"), SPELLINGS.items())
def test_words_around_an_address_stay(spelling: str, shown: str) -> None:
    text = f"no.tif: cannot be read (`{spelling}'); copy {spelling}, or ask"
    cleaned = redact(text)
    assert "SEK" not in cleaned
    assert "RIT" not in cleaned
    assert cleaned.startswith(f"no.tif: cannot be read (`{shown}")
    assert cleaned.endswith("or ask")
    assert str(RasterError(text)) == cleaned


@pytest.mark.parametrize("text", PLAIN)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redact(text) == redact_address(text) == text


def test_an_address_may_have_spaces_in_its_secrets() -> None:
    for address in ("https://me:SEK RIT@host/my x.tif?q=SEK RIT", "https://host/my x.tif#a SEKRIT"):
        assert redact_address(address) == "https://host/my x.tif"


PROGRAMS = ("pip install", "deltavlm data fetch", "deltavlm analyze", "deltavlm report", "deltavlm ask")


def test_the_library_names_parameters_not_flags() -> None:
    """Errors of the Python API told its users to add --overwrite. A whole command may be named."""
    flag = re.compile(r"(?<![\w-])(--[a-z{]|-o\b)")
    others = (
        "deltavlm/training/__main__.py",  # argparse
        "deltavlm/training/export.py",  # arguments of git
        "deltavlm/mcp_server.py",  # runs the command line
    )
    assert [
        text
        for text in library_texts()
        if flag.search(text) and not text.startswith(others) and not any(name in text for name in PROGRAMS)
    ] == []
