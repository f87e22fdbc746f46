"""Open questions from a local endpoint: requests, the log of replies, refusals and retries."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.build import PairFacts
from deltavlm.data.endpoint import Endpoint, QuestionWriter, ReplyLog, make_prompt, parse_reply
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.errors import DeltaVLMError, InputError, OutputError, ToolError
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells

pytestmark = pytest.mark.network

KEY = "sk-secret-of-somebody"
FACTS = PairFacts(Counts(0, 2), Cells(buildings=("top-left",)), ("two houses appear .",), True)
GOOD = [{"question": "How many houses were built?", "answer": "two"}]
TURNS = (QuestionAnswer("How many houses were built?", "two"),)


def response(content: Any) -> bytes:
    """Response of an OpenAI-compatible endpoint; None for a reply without text."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@dataclass
class Server:
    """Server that gives its answers in order, and repeats the last: (status, body) or a body."""

    answers: list[Any] = field(default_factory=lambda: [response(GOOD)])
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers["Content-Length"]))
        state.asked.append(json.loads(body))
        state.keys.append(self.headers["Authorization"])
        state.paths.append(self.path)
        answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        self.send_response(status)
        for name, value in state.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": state}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def stop() -> None:
        if thread.is_alive():
            http.shutdown()
            http.server_close()
            thread.join()

    state.url, state.stop = f"http://127.0.0.1:{http.server_address[1]}/v1", stop
    yield state
    stop()


class Pauses(threading.Event):
    """Event that notes how long it is waited for, and does not wait."""

    def __init__(self, waits: list[float]) -> None:
        super().__init__()
        self.waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        return False


@pytest.fixture
def waits() -> list[float]:
    return []


def assert_grow(waits: list[float], *expected: float) -> None:
    """Waits are random from half of the expected ones on."""
    assert len(waits) == len(expected)
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, expected, strict=True))


@pytest.fixture
def make_writer(server: Server, waits: list[float], tmp_path: Path) -> Callable[..., QuestionWriter]:
    def make(**options: Any) -> QuestionWriter:
        options = {"key": KEY, "stop": Pauses(waits)} | options
        return QuestionWriter(
            Endpoint(server.url, "small", **options), ReplyLog(tmp_path / "set" / "replies.jsonl")
        )

    return make


def refused(call: Callable[..., object], *args: Any, kind: type[DeltaVLMError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_the_request_and_the_parsed_reply(server: Server, make_writer: Callable[..., QuestionWriter]) -> None:
    writer = make_writer()
    assert writer("test/x.png", FACTS) == TURNS
    (asked,) = server.asked
    assert asked["model"] == "small"
    assert asked["messages"][-1] == {"role": "user", "content": make_prompt(FACTS)}
    for fact in ("no new roads and 2 new buildings", "top-left", "two houses appear .", "changed? yes"):
        assert fact in make_prompt(FACTS)
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in repr(writer.endpoint)
    assert KEY not in writer.log.path.read_text()
    make_writer(key=None)("test/y.png", FACTS)
    assert server.keys[-1] is None


def test_a_reply_is_logged_at_once_and_requested_once(
    server: Server, make_writer: Callable[..., QuestionWriter], waits: list[float]
) -> None:
    writer = make_writer()
    writer("test/x.png", FACTS)
    assert json.loads(writer.log.path.read_text())["questions"] == GOOD
    server.answers = [(503, b"")]
    assert writer("test/x.png", FACTS) == TURNS
    resumed = make_writer()
    assert resumed("test/x.png", FACTS) == TURNS
    assert (resumed.new_replies, len(server.asked), waits) == (0, 1, [])
    other = PairFacts(Counts(1, 2), FACTS.cells, FACTS.captions, True)
    refused(resumed, "test/x.png", other, kind=ToolError)  # other facts are asked anew


def test_an_incomplete_line_is_requested_again(
    server: Server, make_writer: Callable[..., QuestionWriter]
) -> None:
    writer = make_writer()
    writer("test/x.png", FACTS)
    writer("test/y.png", FACTS)
    path = writer.log.path
    text = path.read_text()
    path.write_text(text[:-30])
    resumed = make_writer()
    assert resumed("test/x.png", FACTS) == resumed("test/y.png", FACTS) == TURNS
    assert resumed.new_replies == 1
    first, *_, last = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in (first, last)] == ["test/x.png", "test/y.png"]
    assert make_writer().log.replies.keys() == resumed.log.replies.keys()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_are_retried_with_longer_waits(
    server: Server, make_writer: Callable[..., QuestionWriter], waits: list[float], status: int
) -> None:
    server.answers = [(status, b"")] * 3 + [response(GOOD)]
    assert make_writer()("test/x.png", FACTS) == TURNS
    assert_grow(waits, 1, 2, 4)


def test_retry_after_sets_the_wait(
    server: Server, make_writer: Callable[..., QuestionWriter], waits: list[float]
) -> None:
    server.answers, server.headers = [(429, b""), (429, b""), response(GOOD)], {"Retry-After": "7"}
    make_writer()("test/x.png", FACTS)
    server.answers, server.headers = [(429, b""), response(GOOD)], {"Retry-After": "86400"}
    assert "it asks to wait 86400 s" in refused(make_writer(), "test/y.png", FACTS, kind=ToolError)
    assert waits == [7, 7]


def test_a_permanent_failure_is_an_error(
    server: Server, make_writer: Callable[..., QuestionWriter], waits: list[float]
) -> None:
    writer = make_writer(tries=3)
    writer("test/a.png", FACTS)
    server.answers = [(503, b"")]
    text = refused(writer, "test/x.png", FACTS, kind=ToolError)
    assert f"{server.url} did not answer in 3 tries (HTTP 503: no reason given)" in text
    assert str(writer.log.path) in text
    assert_grow(waits, 1, 2)
    server.stop()
    text = refused(make_writer(tries=2), "test/x.png", FACTS, kind=ToolError)
    assert "refused" in text


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, f"bad key {KEY}", "the key was refused"),
        (403, "", "the key was refused"),
        (404, f"no model small\nfor {KEY}", "no model small for ***; check `llm_endpoint`"),
        (400, "", "no reason given; check"),
        (307, "", "check `llm_endpoint`"),
    ],
)
def test_refusals_are_not_retried(
    server: Server,
    make_writer: Callable[..., QuestionWriter],
    waits: list[float],
    status: int,
    body: str,
    says: str,
) -> None:
    server.answers = [(status, body.encode())]
    text = refused(make_writer(), "test/x.png", FACTS)
    assert f"(HTTP {status})" in text
    assert says in text
    assert (len(server.asked), waits) == (1, [])
    if status == 401:
        assert "it asks for a key; set DELTAVLM_LLM_KEY" in refused(
            make_writer(key=None), "test/x.png", FACTS
        )


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\n\r\n[", b"HTTP/1.1 404 No\r\n\r\n"]
)
def test_a_reply_without_an_end_is_given_up(tmp_path: Path, sent: bytes) -> None:
    """A server that goes on sending a byte now and then held the run for ever."""
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(sent)
            while not ended.wait(0.02):
                connection.sendall(b"x" if sent else b"")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: drip(listener.accept()[0]), daemon=True)
        thread.start()
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "small", KEY, timeout_s=0.3)
        writer = QuestionWriter(endpoint, ReplyLog(tmp_path / "replies.jsonl"))
        text = refused(writer, "test/x.png", FACTS, kind=ToolError)
        ended.set()
        thread.join()
    assert f"{endpoint.url} did not answer in 2 tries (no whole answer in 0.3 s" in text
    assert "`llm_timeout`" in text


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"choices": []}', b"\xff"])
def test_another_protocol_is_an_error(
    server: Server, make_writer: Callable[..., QuestionWriter], body: bytes
) -> None:
    server.answers = [body]
    assert "OpenAI-compatible" in refused(make_writer(), "test/x.png", FACTS)
    assert len(server.asked) == 1


def test_unusable_replies(server: Server, make_writer: Callable[..., QuestionWriter]) -> None:
    server.answers = [response("Sure! Here you are"), response(None), response(GOOD)]
    writer = make_writer()
    assert writer("test/a.png", FACTS) == TURNS
    server.answers = [response("Sure!")]
    for index in range(4):
        with pytest.raises(ValueError, match="3 replies of small could not be used; the last: not JSON"):
            writer(f"test/{index}.png", FACTS)
    assert "5 pairs in a row" in refused(writer, "test/4.png", FACTS, kind=ToolError)
    assert len(server.asked) == 3 + 5 * 3
    assert len(writer.log.replies) == 1


def test_code_fences_are_removed() -> None:
    for text in (json.dumps(GOOD), f"```json\n{json.dumps(GOOD)}\n```", f"```\n{json.dumps(GOOD)}```\n"):
        assert parse_reply(text) == TURNS


def entry(**changes: Any) -> dict[str, Any]:
    return GOOD[0] | changes


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([], "1 to 6"),
        ([entry(question=str(n)) for n in range(7)], "1 to 6"),
        ({"question": "a", "answer": "b"}, "1 to 6"),
        (["a"], "not an object"),
        ([entry(answer=None)], "answer is missing"),
        ([entry(answer=2)], "answer is missing"),
        ([entry(question="  ")], "question is missing"),
        ([entry(question="a" * 301)], "301 characters, more than 300"),
        ([entry(answer="a" * 601)], "more than 600"),
        ([entry(answer="two\nlines")], "characters that no record"),
        ([entry(answer="\x1b[31m")], "characters that no record"),
        ([entry(answer="\ud800")], "characters that no record"),
        ([entry(question="<image> what?")], "characters that no record"),
        ([entry(), entry()], "twice"),
    ],
)
def test_replies_are_checked(reply: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_reply(json.dumps(reply))


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "http://", "http://[a/v1", "http://a b/v1", "http://a:x/v1"]
)
def test_invalid_addresses(url: str) -> None:
    assert "is not the address" in refused(Endpoint, url, "small")


def test_keys_in_the_address_or_with_line_breaks_are_refused() -> None:
    assert "name or password" in refused(Endpoint, f"http://me:{KEY}@host/v1", "small")
    assert "header" in refused(Endpoint, "http://host/v1", "small", f"{KEY}\n")


def test_an_unusable_log(server: Server, make_writer: Callable[..., QuestionWriter], tmp_path: Path) -> None:
    (tmp_path / "set").write_text("in the way")
    assert "cannot write" in refused(make_writer(), "test/x.png", FACTS, kind=OutputError)
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    assert "delete it" in refused(ReplyLog, tmp_path / "bad.jsonl")
    (tmp_path / "odd.jsonl").write_text('5\n{"id": 1}\n{"id": "a", "asked": "b", "questions": []}\n')
    assert ReplyLog(tmp_path / "odd.jsonl").replies == {}
