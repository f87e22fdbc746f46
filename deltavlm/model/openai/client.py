"""HTTP client of a model server: requests with time-outs, and retries with growing pauses."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from deltavlm.deadline import call_within
from deltavlm.errors import ModelError, ToolError
from deltavlm.files import parse_json
from deltavlm.model.openai.address import Address
from deltavlm.version import __version__

__all__ = ["Client", "NoAnswer", "NoServer", "Response", "Stopped"]

CONNECT_S = 10.0
TRIES, TIMED_OUT_TRIES = 5, 2
RETRY_S = 600.0  # for all tries of a request, unless the time-outs allow more
MAX_PAUSE_S = 60.0  # of ours; a server may ask for a longer one
MAX_REPLY_BYTES = 16_000_000
RETRIED = frozenset({429, 500, 502, 503, 504})
MAX_DETAIL_CHARS = 200


class NoAnswer(ModelError):
    """A request that was tried several times and failed each time."""

    status: int | None = None  # of the last response; None where there was none
    detail: str = ""  # what the server says of it


class NoServer(ToolError):
    """A server that nobody reaches: no such host, or nothing that listens there."""


class _NoConnection(OSError):
    """A connection that could not be made."""


class Stopped(Exception):
    """End of a request whose answer nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class Response:
    """HTTP response: its status, what the server says of an error, and the content."""

    status: int
    content: bytes
    retry_after: str = ""
    location: str = ""  # of a redirect

    def json(self) -> Any:
        """Content as JSON. Raises: ValueError."""
        return parse_json(self.content)


@dataclass(frozen=True)
class Client:
    """Client of one server; its requests may run in several threads."""

    address: Address
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 300.0  # of a whole reply
    tries: int = TRIES
    jitter: Callable[[], float] = random.random
    timeout_hint: str = "a longer `timeout_s` or fewer `requests` at a time may help"

    @property
    def deadline_s(self) -> float:
        """Time for all tries of a request, and the pauses between them."""
        return max(RETRY_S, TIMED_OUT_TRIES * self.timeout_s)

    def request(
        self, path: str, body: Any = None, *, stop: threading.Event, is_first: bool = False
    ) -> Response:
        """Response to a GET of a path below the base URL, or to a POST of a body as JSON.

        Failures that may pass (429, 5xx, a connection that breaks) are tried again, and once more where there
        is no answer in time.

        Args:
            stop: ends the pauses between tries.
            is_first: a server that is not there is not waited for.

        Raises: NoServer, NoAnswer; Stopped.
        """
        end = time.monotonic() + self.deadline_s
        content = None if body is None else json.dumps(body).encode()
        timed_out = 0
        for attempt in range(self.tries):
            pause_s = min(MAX_PAUSE_S, 2.0**attempt) * (0.5 + 0.5 * self.jitter())
            is_gone, status, detail = False, None, ""
            try:
                response = self._send(path, content)
            except TimeoutError:
                timed_out += 1
                fault = f"no whole answer in {self.timeout_s:g} s; {self.timeout_hint}"
            except (HTTPException, OSError) as error:
                reason = getattr(error, "reason", error)
                is_gone = isinstance(reason, _NoConnection)
                fault = self.describe_fault(error)
            else:
                if response.status not in RETRIED:
                    return response
                status, detail = response.status, self.detail(response)
                fault = f"HTTP {status}: {detail}"
                pause_s = _seconds(response.retry_after, pause_s)
            is_last = attempt + 1 == self.tries or timed_out == TIMED_OUT_TRIES or (is_gone and is_first)
            if is_last or time.monotonic() + pause_s > end:
                break
            if stop.wait(pause_s):
                raise Stopped
        if is_gone:
            raise NoServer(f"no server at {self.address.url} ({fault})")
        if not is_last and pause_s > MAX_PAUSE_S:
            fault += f"; it asks to wait {pause_s:.0f} s"
        failure = NoAnswer(f"{self.address.url} did not answer in {attempt + 1} tries ({fault})")
        failure.status, failure.detail = status, detail
        raise failure

    def describe_fault(self, error: Exception) -> str:
        """Words for a connection that failed."""
        reason = getattr(error, "reason", error)
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return self._clean(words)

    def detail(self, response: Response) -> str:
        """Words of a server about its error, on one line and without the key."""
        try:
            value = response.json()
        except ValueError:
            text = response.content.decode("utf-8", "replace").strip()
            return "an HTML page" if text.startswith("<") else self._clean(text) or "no reason given"
        for name in ("error", "detail", "message"):
            while isinstance(value, dict) and value.get(name):
                value = value[name]
        return self._clean(value if isinstance(value, str) else json.dumps(value)) or "no reason given"

    def _clean(self, text: str) -> str:
        if self.key:
            text = text.replace(self.key, "***")
        text = re.sub(r"data:image/[^\s\"']*", "data:image/...", text)
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 3] + "..."

    def _send(self, path: str, content: bytes | None) -> Response:
        """Response to one try, within the time-out from the name of the host to the last byte.

        Raises: TimeoutError; HTTPException or OSError where the connection fails.
        """
        headers = {"Content-Type": "application/json", "User-Agent": f"deltavlm/{__version__}"}
        request = Request(self.address.url + path, content, headers)
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")

        def send() -> Response:
            try:
                response: Any = self._opener.open(request, timeout=self.timeout_s)
            except HTTPError as error:
                response = error
            with response:
                return _read(response)

        try:
            return call_within(self.timeout_s, send)  # a socket's time-out begins anew with every byte
        except URLError as error:
            raise error.reason if isinstance(error.reason, TimeoutError) else error from None

    @cached_property
    def _opener(self) -> OpenerDirector:
        """Opener that follows no redirect, as pictures would go elsewhere, and uses no proxy for this
        machine."""
        proxies = [ProxyHandler({})] if self.address.is_local else []
        return build_opener(_NoRedirect, _Plain, _Secure, *proxies)


def _read(response: HTTPResponse) -> Response:
    """Response with its content. Raises: IncompleteRead where it ends too early."""
    content = response.read(MAX_REPLY_BYTES)
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and len(content) < min(int(length), MAX_REPLY_BYTES):
        raise IncompleteRead(b"", int(length) - len(content))
    headers = response.headers
    return Response(response.status, content, headers.get("Retry-After", ""), headers.get("Location", ""))


def _seconds(retry_after: str, default: float) -> float:
    """Pause that a header Retry-After asks for, in seconds or as a date; at least 0.

    >>> _seconds("7", 1.0), _seconds("", 1.0), _seconds("Thu, 01 Jan 1970 00:00:00 GMT", 1.0)
    (7.0, 1.0, 0.0)
    """
    text = retry_after.strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return default


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """No request: the redirect is the response."""


class _ShortConnect:
    """Mixin of a connection that is made within CONNECT_S, whatever the time-out of its reads is."""

    timeout: Any
    sock: Any

    def connect(self) -> None:
        """Raises: _NoConnection, for whatever reason."""
        read_s, self.timeout = self.timeout, CONNECT_S
        try:
            super().connect()  # type: ignore[misc]
        except OSError as error:
            raise _NoConnection(error.strerror or str(error)) from error
        self.timeout = read_s
        self.sock.settimeout(read_s)


class _PlainConnection(_ShortConnect, HTTPConnection):
    pass


class _SecureConnection(_ShortConnect, HTTPSConnection):
    pass


class _Plain(HTTPHandler):
    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(_PlainConnection, request)


class _Secure(HTTPSHandler):
    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, request)
