"""Open questions from an endpoint of our own on this machine: what is sent, kept, refused and tried again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
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


def said(content: Any) -> bytes:
    """An answer of an OpenAI-compatible endpoint; None is what it says where it will not speak."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@dataclass
class Server:
    """Answers in turn, the last one for ever: (status, body) or a body."""

    answers: list[Any] = field(default_factory=lambda: [said(GOOD)])
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


@pytest.fixture
def rests() -> list[float]:
    return []


@pytest.fixture
def asker(server: Server, rests: list[float], tmp_path: Path) -> Callable[..., QuestionWriter]:
    def make(**options: Any) -> QuestionWriter:
        options = {"key": KEY, "sleep": rests.append} | options
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


def test_what_is_asked_and_what_comes_of_it(server: Server, asker: Callable[..., QuestionWriter]) -> None:
    one = asker()
    assert one("test/x.png", FACTS) == TURNS
    (asked,) = server.asked
    assert asked["model"] == "small"
    assert asked["messages"][-1] == {"role": "user", "content": make_prompt(FACTS)}
    for fact in ("no new roads and 2 new buildings", "top-left", "two houses appear .", "changed? yes"):
        assert fact in make_prompt(FACTS)
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in repr(one.endpoint)
    assert KEY not in one.log.path.read_text()
    asker(key=None)("test/y.png", FACTS)
    assert server.keys[-1] is None


def test_a_reply_is_kept_at_once_and_asked_for_once(
    server: Server, asker: Callable[..., QuestionWriter], rests: list[float]
) -> None:
    one = asker()
    one("test/x.png", FACTS)
    assert json.loads(one.log.path.read_text())["questions"] == GOOD
    server.answers = [(503, b"")]
    assert one("test/x.png", FACTS) == TURNS
    again = asker()
    assert again("test/x.png", FACTS) == TURNS
    assert (again.new_replies, len(server.asked), rests) == (0, 1, [])
    other = PairFacts(Counts(1, 2), FACTS.cells, FACTS.captions, True)
    refused(again, "test/x.png", other, kind=ToolError)  # other facts are asked anew


def test_a_line_that_was_cut_off_is_asked_again(server: Server, asker: Callable[..., QuestionWriter]) -> None:
    one = asker()
    one("test/x.png", FACTS)
    one("test/y.png", FACTS)
    path = one.log.path
    text = path.read_text()
    path.write_text(text[:-30])
    two = asker()
    assert two("test/x.png", FACTS) == two("test/y.png", FACTS) == TURNS
    assert two.new_replies == 1
    first, *_, last = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in (first, last)] == ["test/x.png", "test/y.png"]
    assert asker().log.replies.keys() == two.log.replies.keys()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_is_tried_again_with_longer_rests(
    server: Server, asker: Callable[..., QuestionWriter], rests: list[float], status: int
) -> None:
    server.answers = [(status, b"")] * 3 + [said(GOOD)]
    assert asker()("test/x.png", FACTS) == TURNS
    assert rests == [1, 2, 4]


def test_the_endpoint_says_how_long_to_rest(
    server: Server, asker: Callable[..., QuestionWriter], rests: list[float]
) -> None:
    server.answers, server.headers = [(429, b""), (429, b""), said(GOOD)], {"Retry-After": "7"}
    asker()("test/x.png", FACTS)
    server.answers, server.headers = [(429, b""), said(GOOD)], {"Retry-After": "86400"}
    asker()("test/y.png", FACTS)
    assert rests == [7, 7, 60]


def test_trouble_that_stays(server: Server, asker: Callable[..., QuestionWriter], rests: list[float]) -> None:
    one = asker(tries=3)
    one("test/a.png", FACTS)
    server.answers = [(503, b"")]
    text = refused(one, "test/x.png", FACTS, kind=ToolError)
    assert f"{server.url} did not answer in 3 tries (HTTP 503)" in text
    assert str(one.log.path) in text
    assert rests == [1, 2]
    server.stop()
    text = refused(asker(tries=2), "test/x.png", FACTS, kind=ToolError)
    assert "refused" in text


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, f"bad key {KEY}", "the key was refused"),
        (403, "", "the key was refused"),
        (404, f"no model small\nfor {KEY}", "no model small for ***; check --llm-endpoint"),
        (400, "", "Bad Request; check"),
    ],
)
def test_refusals_are_not_tried_again(
    server: Server,
    asker: Callable[..., QuestionWriter],
    rests: list[float],
    status: int,
    body: str,
    says: str,
) -> None:
    server.answers = [(status, body.encode())]
    text = refused(asker(), "test/x.png", FACTS)
    assert f"(HTTP {status})" in text
    assert says in text
    assert (len(server.asked), rests) == (1, [])
    if status == 401:
        assert "it asks for a key; set DELTAVLM_LLM_KEY" in refused(asker(key=None), "test/x.png", FACTS)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"choices": []}', b"\xff"])
def test_what_is_no_endpoint_stops_the_run(
    server: Server, asker: Callable[..., QuestionWriter], body: bytes
) -> None:
    server.answers = [body]
    assert "OpenAI-compatible" in refused(asker(), "test/x.png", FACTS)
    assert len(server.asked) == 1


def test_replies_that_cannot_be_used(server: Server, asker: Callable[..., QuestionWriter]) -> None:
    server.answers = [said("Sure! Here you are"), said(None), said(GOOD)]
    one = asker()
    assert one("test/a.png", FACTS) == TURNS
    server.answers = [said("Sure!")]
    for index in range(4):
        with pytest.raises(ValueError, match="3 replies of small could not be used; the last: not JSON"):
            one(f"test/{index}.png", FACTS)
    assert "5 pairs in a row" in refused(one, "test/4.png", FACTS, kind=ToolError)
    assert len(server.asked) == 3 + 5 * 3
    assert len(one.log.replies) == 1


def test_a_code_fence_is_no_matter() -> None:
    for text in (json.dumps(GOOD), f"```json\n{json.dumps(GOOD)}\n```", f"```\n{json.dumps(GOOD)}```\n"):
        assert parse_reply(text) == TURNS


def entry(**changes: Any) -> dict[str, Any]:
    return GOOD[0] | changes


@pytest.mark.parametrize(
    ("reply", "what"),
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
def test_replies_are_checked(reply: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_reply(json.dumps(reply))


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "http://", "http://[a/v1", "http://a b/v1", "http://a:x/v1"]
)
def test_addresses_that_are_none(url: str) -> None:
    assert "is not the address" in refused(Endpoint, url, "small")


def test_secrets_in_the_wrong_place() -> None:
    assert "name or password" in refused(Endpoint, f"http://me:{KEY}@host/v1", "small")
    assert "header" in refused(Endpoint, "http://host/v1", "small", f"{KEY}\n")


def test_a_store_that_cannot_be_used(
    server: Server, asker: Callable[..., QuestionWriter], tmp_path: Path
) -> None:
    (tmp_path / "set").write_text("in the way")
    assert "cannot write" in refused(asker(), "test/x.png", FACTS, kind=OutputError)
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    assert "delete it" in refused(ReplyLog, tmp_path / "bad.jsonl")
    (tmp_path / "odd.jsonl").write_text('5\n{"id": 1}\n{"id": "a", "asked": "b", "questions": []}\n')
    assert ReplyLog(tmp_path / "odd.jsonl").replies == {}
