"""Models behind a server: requests, replies, scores, and every fault of a server."""

from __future__ import annotations

import json
import math
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.errors import ConfigError, DeltaVLMError, InputError, ModelError, ToolError
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.interface import PairContext, Question, standard_question
from deltavlm.model.kinds import load_model, read_spec
from deltavlm.model.openai import client as http
from deltavlm.model.openai.address import Address, parse_address
from deltavlm.model.openai.client import Client
from deltavlm.tasks import TASKS
from deltavlm.tasks.phrasing import GENERIC
from tests.chat_server import COUNT, KEY, Answer, Asked, ChatServer, chat_server, is_probe

pytestmark = pytest.mark.network

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("caption", "change", "count", "location")
QUESTIONS = [standard_question(TASKS[name], phrase=GENERIC.phrase(name)) for name in NAMES]
CAPTION, CHANGE, COUNTS = QUESTIONS[:3]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):  # which a server on this machine does not go through
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setattr(http, "MAX_PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as state:
        yield state


def pairs(*changed: bool, px: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of noise, (N, 3, px, px); where changed, with a white corner at the second date."""
    before = np.random.default_rng(3).integers(0, 255, (len(changed), 3, px, px)).astype(np.uint8)
    after = before.copy()
    after[np.array(changed), :, :8, :8] = 255
    return before, after


def ask(server: ChatServer, question: Question = CHANGE, **options: Any) -> Any:
    model = load_model(server.name, **options)
    ((reply,),) = model.answer(model.encode(*pairs(True)), [question])
    return reply


def failure(kind: type[DeltaVLMError], call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """One-line message of an error, without the key."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert KEY not in text
    return text


def test_a_question_with_both_images_in_order(server: ChatServer) -> None:
    model = load_model(server.name)
    before, after = pairs(True)
    context = PairContext("2015", "2024", 0.5, evidence="Another model counts 3 new buildings.")
    ((caption, change, count, location),) = model.answer(model.encode(before, after, [context]), QUESTIONS)
    assert (caption.text, change.text) == ("Two houses were built.", "Yes.")
    assert change.score == pytest.approx(0.9)
    assert caption.score == pytest.approx(-0.3)
    assert count == location
    assert json.loads(count.text)["new_buildings"] == 2
    assert len(server.questions) == 3  # counts and cells are one question
    for asked in server.questions:
        assert np.array_equal(asked.images[0], before[0].transpose(1, 2, 0))
        assert np.array_equal(asked.images[1], after[0].transpose(1, 2, 0))
        assert asked.body["temperature"] == 0
        assert asked.body["model"] == "tiny"
        assert "2015" in asked.texts[0]
        assert "Another model counts 3 new buildings." in asked.texts
    by_prompt = {asked.prompt: asked.body for asked in server.questions}
    assert by_prompt[CHANGE.prompt]["top_logprobs"] == 20
    schema = by_prompt[COUNT]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["new_roads", "new_buildings", "road_cells", "building_cells"]
    assert {path for path in server.paths} == {"/v1/models", "/v1/chat/completions"}


def test_facts_of_the_model(server: ChatServer) -> None:
    model = load_model(server.name)
    assert (model.name, model.phrasebook, model.reads_context) == ("tiny", "generic", True)
    assert model.training_gsd_m is None
    assert model.details["server"] == server.url
    assert "not known" in model.details["weights"]
    assert model.masks(model.encode(*pairs(True))) is None
    assert len(model.fingerprint) == 16
    assert model.fingerprint == load_model(server.name).fingerprint
    server.models["data"][0]["created"] = 1  # some servers tell the time of the reply
    assert model.fingerprint == load_model(server.name).fingerprint
    server.models["data"][0]["owned_by"] = "others"
    assert model.fingerprint != load_model(server.name).fingerprint
    spec = read_spec(server.name)
    assert (spec.has_masks, spec.weights_bytes, spec.sends_to) == (False, 0, "")


def test_the_history_is_told_as_turns(server: ChatServer) -> None:
    ask(server, Question("open", "Where?", history=(("What?", "a house"),)))
    (asked,) = server.questions
    assert [turn["role"] for turn in asked.body["messages"]] == ["user", "assistant", "user"]
    assert asked.prompt == "Where?"
    assert len(asked.images) == 2


def test_requests_run_at_the_same_time_up_to_the_limit(server: ChatServer) -> None:
    together = threading.Barrier(3)

    def script(asked: Asked) -> None:
        with suppress(threading.BrokenBarrierError):
            together.wait(2)

    server.script = script
    model = load_model(server.name, requests=3)
    assert model.auto_batch_size() == 3
    model.answer(model.encode(*pairs(True, False, True, False, True, False)), [CHANGE])
    assert server.most_at_once == 3


def test_no_torch_is_imported(server: ChatServer) -> None:
    code = (
        "import sys\nfrom deltavlm import load_model\n"
        f"model = load_model({server.name!r})\n"
        "assert model.name == 'tiny'\nassert 'torch' not in sys.modules\nassert 'openai' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# scores


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("Yes", {"Yes": 0.5, " yes": 0.1, "YES": 0.1, "No": 0.2, "no.": 0.1})], 0.7),
        ([("\u0120yes", {"\u0120yes": 0.6, "\u2581no": 0.2})], 0.75),
        ([("**", {"**": 1.0}), ("Yes", {"Yes": 0.3, "No": 0.1})], 0.75),
        ([("Yes", {"Yes": 0.9, "Maybe": 0.1})], 1.0),
        ([("Yes", {"Perhaps": 0.9})], 1.0),  # the token that was chosen counts too
        ([("<think>", {}), ("no", {"no": 0.9}), ("</think>", {}), ("Yes", {"Yes": 0.8, "No": 0.2})], 0.8),
        ([("Reasons", {"Reasons": 1.0}), ("Yes", {"Yes": 0.8, "No": 0.2})], math.nan),  # of other text
        ([], math.nan),
    ],
)
def test_p_yes_by_hand(server: ChatServer, tokens: list[Any], expected: float) -> None:
    content = [
        {
            "token": token,
            "logprob": math.log(max(shares.values(), default=0.5)),
            "top_logprobs": [{"token": each, "logprob": math.log(p)} for each, p in shares.items()],
        }
        for token, shares in tokens
    ]
    text = "".join(token for token, _ in tokens) if any(token == "</think>" for token, _ in tokens) else "Yes"
    if tokens and tokens[0][0] == "**":
        text = "**Yes**"
    elif tokens and tokens[0][0].endswith("yes"):
        text = "yes"
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": content}}
    server.script = lambda asked: Answer(body={"model": "tiny", "choices": [choice]})
    reply = ask(server)
    assert reply.text.strip("*").lower() == "yes"
    assert reply.score == pytest.approx(expected, nan_ok=True)


def test_without_probabilities_there_is_no_score_and_that_is_said_once(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    def script(asked: Asked) -> Answer | None:
        if "logprobs" in asked.body:
            return Answer(status=400, body={"error": {"message": "logprobs are not supported"}})
        return None

    server.script, server.probes = script, True
    model = load_model(server.name)
    replies = model.answer(model.encode(*pairs(True, False)), QUESTIONS)
    assert [row[1].text for row in replies] == ["Yes.", "No."]
    assert all(math.isnan(reply.score) for row in replies for reply in row)
    refused = [asked for asked in server.asked if "logprobs" in asked.body]
    assert len(refused) == 1  # and then it is remembered
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "no probabilities of yes and no" in message


def test_a_calibration_is_applied_and_checked(server: ChatServer) -> None:
    plain = load_model(server.name)
    values = {"method": "platt", "scale": 2.0, "offset": 0.0, "threshold": 0.5, "changed": 3, "unchanged": 3}
    fitted = ScoreCalibration(model="tiny", fingerprint=plain.fingerprint, **values)  # type: ignore[arg-type]
    assert ask(server, calibration=fitted).score == pytest.approx(81 / 82)
    other = ScoreCalibration(model="other", fingerprint="0" * 16, **values)  # type: ignore[arg-type]
    assert "the calibration is of other" in failure(InputError, load_model, server.name, calibration=other)


# what servers do not take


@pytest.mark.parametrize(
    "message", ["response_format is not supported", "json_schema: unknown", "Bad Request"]
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_json_schemas_is_asked_without(
    server: ChatServer, message: str, status: int
) -> None:
    def script(asked: Asked) -> Answer | None:
        refused = "response_format" in asked.body
        return Answer(status=status, body={"error": {"message": message}}) if refused else None

    server.script = script
    model = load_model(server.name, requests=1)
    replies = model.answer(model.encode(*pairs(True, True, px=40)), [COUNTS])
    assert {json.loads(row[0].text)["new_buildings"] for row in replies} == {2}
    assert sum("response_format" in asked.body for asked in server.questions) == 1
    assert all(asked.body["logprobs"] for asked in server.questions)


def test_other_names_and_limits_of_fields(server: ChatServer) -> None:
    def script(asked: Asked) -> Answer | None:
        if "max_tokens" in asked.body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        elif "temperature" in asked.body:
            text = "'temperature' does not support 0 with this model"
        elif asked.body.get("top_logprobs", 0) > 5:
            text = "top_logprobs must be at most 5"
        else:
            return None
        return Answer(status=400, body={"error": {"message": text}})

    server.script, server.probes = script, True
    assert ask(server).score == pytest.approx(0.9)
    (asked,) = server.questions
    assert asked.body["max_completion_tokens"] == 8
    assert asked.body["top_logprobs"] == 5
    assert not {"max_tokens", "temperature"} & asked.body.keys()


def test_reasoning_is_no_answer(server: ChatServer) -> None:
    server.script = lambda asked: Answer("<think>Is it yes or no? no</think>\n\nYes")
    assert ask(server).text == "Yes"
    server.script = lambda asked: Answer("no, no</think>Yes")  # the template opened it
    assert ask(server).text == "Yes"


@pytest.mark.parametrize(
    ("text", "is_cut", "is_warned"),
    [("Okay, the first image", True, True), ("Yes, since", True, False), ("They differ.", False, False)],
)
def test_a_model_that_seems_to_reason_without_a_mark_is_warned_about(
    server: ChatServer, caplog: pytest.LogCaptureFixture, text: str, is_cut: bool, is_warned: bool
) -> None:
    server.script, server.probes = (
        lambda asked: Answer(text, finish_reason="length" if is_cut else "stop"),
        True,
    )
    load_model(server.name)
    assert ("if it reasons first, start the server so that it marks reasoning" in caplog.text) == is_warned


@pytest.mark.parametrize("message", [{}, {"reasoning_content": "Let me see"}])
def test_a_model_that_reasons_first_gets_more_tokens(server: ChatServer, message: dict[str, Any]) -> None:
    def script(asked: Asked) -> Answer:
        if asked.body["max_tokens"] < 1000:
            return Answer("" if message else "<think>Let me", finish_reason="length", message=message)
        return Answer("<think>Let me see</think>Yes")

    server.script = script
    model = load_model(server.name, requests=1)
    replies = model.answer(model.encode(*pairs(True, True)), [CHANGE])
    assert [row[0].text for row in replies] == ["Yes", "Yes"]
    assert [asked.body["max_tokens"] < 1000 for asked in server.questions] == [True, False, False]
    server.script = lambda asked: Answer("<think>Let me", finish_reason="length")
    assert "tokens of reasoning" in failure(ModelError, ask, server)


# faults that may pass


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_failures_that_pass_are_retried(server: ChatServer, status: int) -> None:
    failing = [Answer(status=status, body=b"busy")] * 3
    server.script = lambda asked: failing.pop() if failing else None
    assert ask(server).text == "Yes."
    assert len(server.questions) == 4


def test_a_reply_that_breaks_off_is_retried(server: ChatServer) -> None:
    failing = [Answer("Yes", cut_at=20), Answer("Yes", cut_at=0)]
    server.script = lambda asked: failing.pop() if failing else None
    assert ask(server).text == "Yes."
    assert len(server.questions) == 3


def test_a_failure_that_stays_is_that_of_its_pair_alone(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other questions of the batch are asked once, also when it is repeated pair by pair."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    before, after = pairs(True, False, True)
    bad = before[1].transpose(1, 2, 0)

    def script(asked: Asked) -> Answer | None:
        if np.array_equal(asked.images[0], bad) and asked.body.get("response_format"):
            return Answer(status=500, body={"error": {"message": f"out of slots, {KEY}"}})
        return None

    server.script = script
    model = load_model(server.name)
    text = failure(ModelError, model.answer, model.encode(before, after), QUESTIONS)
    assert text.startswith(f"{server.url} did not answer in 5 tries (HTTP 500: out of slots")
    count = len(server.questions)
    assert count == 8 + 5 + 1  # and one that had been answered
    for index in (0, 2):
        single = model.encode(before[index : index + 1], after[index : index + 1])
        assert model.answer(single, QUESTIONS)[0][1].text == "Yes."
    failure(ModelError, model.answer, model.encode(before[1:2], after[1:2]), QUESTIONS)
    assert len(server.questions) == count
    server.script = lambda asked: None
    model.answer(model.encode(before[1:2], after[1:2]), QUESTIONS)  # asked anew, later
    assert len(server.questions) == count + 1


@pytest.fixture
def waits(server: ChatServer) -> Callable[..., list[float]]:
    """Pauses of a request that fails with these headers until the last try."""

    class Recorder(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            self.pauses: list[float] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.pauses.append(timeout or 0.0)
            return False

    def request(timeout_s: float = 300.0, **headers: str) -> list[float]:
        recorder = Recorder()
        server.script = lambda asked: Answer(status=429, body=b"", headers=headers)
        client = Client(Address(server.url, "tiny"), timeout_s=timeout_s, jitter=lambda: 1.0)
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]}
        with pytest.raises(ModelError, match="429") as caught:
            client.request("/chat/completions", body, stop=recorder)
        recorder.pauses.append(len(str(caught.value)))
        return recorder.pauses[:-1]

    return request


def test_pauses_grow(waits: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_PAUSE_S", 60.0)
    assert waits() == [1, 2, 4, 8]


def test_retry_after_is_obeyed(waits: Callable[..., list[float]]) -> None:
    assert waits(**{"Retry-After": "7"}) == [7, 7, 7, 7]
    (first, *_) = waits(**{"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    assert 25 < first <= 30
    assert waits(**{"Retry-After": "86400"}) == []  # beyond the time for all tries


def test_a_short_time_out_leaves_time_for_a_busy_server(waits: Callable[..., list[float]]) -> None:
    assert waits(timeout_s=2.0, **{"Retry-After": "30"}) == [30] * 4


def test_a_slow_server_is_given_up(server: ChatServer) -> None:
    ended = threading.Event()

    def script(asked: Asked) -> None:
        ended.wait(5)

    server.script = script
    model: Any = load_model(server.name)  # its first question may take longer on a busy machine
    model.client = replace(model.client, timeout_s=0.2)
    text = failure(ModelError, model.answer, model.encode(*pairs(True)), [CHANGE])
    ended.set()
    assert "did not answer in 2 tries (no whole answer in 0.2 s; a longer `timeout_s`" in text


def test_a_byte_now_and_then_is_no_answer() -> None:
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        while not ended.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-")
                    for _ in range(10):
                        ended.wait(0.05)
                        connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        name = f"openai:http://127.0.0.1:{listener.getsockname()[1]}/v1#tiny"
        text = failure(InputError, load_model, name, timeout_s=0.2)
        ended.set()
        thread.join()
    assert "no whole answer in 0.2 s" in text


def test_an_interruption_waits_for_no_request(server: ChatServer) -> None:
    ended = threading.Event()

    def script(asked: Asked) -> None:
        ended.wait(20)

    server.script = script
    code = (
        "from tests.model.test_openai import CHANGE, pairs\nfrom deltavlm import load_model\n"
        f"model = load_model({server.name!r})\n"
        "encoded = model.encode(*pairs(True, True))\n"
        "print('asking', flush=True)\nmodel.answer(encoded, [CHANGE])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    while not server.questions:
        time.sleep(0.01)
    process.send_signal(2)
    _, stderr = process.communicate(timeout=10)
    ended.set()
    assert stderr.strip().endswith("KeyboardInterrupt")


# replies that are none


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            Answer('{"new_roads": 1, "new_', finish_reason="length"),
            "the JSON of the answer is cut off at 200",
        ),
        (Answer("{}", choices=2), "2 choices, not one"),
        (Answer("{}", choices=0), "0 choices, not one"),
        (Answer(""), "the reply is empty"),
        (Answer(None, message={"refusal": "I cannot"}), "declines to answer: I cannot"),
        (Answer(None, finish_reason="content_filter"), "declines to answer: content_filter"),
        (Answer(body=b"<html>busy</html>"), "answers with an HTML page"),
        (Answer(body=b'{"choices": ['), "answers with no JSON"),
        (Answer(body={"error": "?"}), "no list of choices"),
        (Answer(body={"choices": [{}]}), "no message"),
        (Answer(body={"choices": [{"message": {"content": 5}}]}), "no text"),
        (Answer(status=400, body={"error": "too many tokens"}), "(HTTP 400): too many tokens"),
        (Answer(status=413, body=b"<html>"), "(HTTP 413): an HTML page"),
    ],
)
def test_a_reply_without_an_answer_is_an_error_of_its_pair(
    server: ChatServer, answer: Answer, expected: str
) -> None:
    server.script = lambda asked: answer
    with pytest.raises(ModelError) as caught:
        ask(server, COUNTS)
    assert expected in str(caught.value)


def test_tokens_of_turns_and_images_are_no_part_of_a_reply(server: ChatServer) -> None:
    """A server fails for a later turn that tells them as history."""
    server.script = lambda asked: Answer("<|vision_start|>Yes <|video_pad|><image>, a roof.<|im_end|>")
    assert ask(server, CAPTION).text == "Yes , a roof."
    server.script = lambda asked: Answer("<|im_end|>")
    assert "the reply is empty" in failure(ModelError, ask, server)


def test_content_in_parts_is_joined(server: ChatServer) -> None:
    parts = [{"type": "text", "text": "Y"}, {"type": "text", "text": "es"}]
    server.script = lambda asked: Answer(None, message={"content": parts})
    assert ask(server).text == "Yes"


def test_another_model_answers_and_that_is_said_once(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(server.name)
    server.served_model = "small"
    model.answer(model.encode(*pairs(True, False)), QUESTIONS)
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "answers as 'small', not tiny" in message


# faults of every pair, found before the first


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(status=401, body={"error": f"no key like {KEY}"}), "the key was refused; set OPENAI_API_KEY"),
        (Answer(status=403, body=b""), "the key was refused"),
        (
            Answer(status=404, body={"error": {"message": "model not found"}}),
            "model not found; no model tiny",
        ),
        (Answer(status=400, body={"error": {"message": "tiny reads no images"}}), "reads several images"),
        (Answer(status=500, body={"error": "image input is not supported"}), "; choose a model that reads"),
        (Answer(status=500, body=b""), "try again later, or is there no model tiny?"),
        (Answer(status=503, body={"error": "no image yet"}), "; try again later"),
        (Answer(body=b"<!DOCTYPE html>"), "OpenAI-compatible server?"),
        (Answer(body=b"[]"), "OpenAI-compatible server?"),
        (Answer(status=301, headers={"Location": "https://example.org/v1"}), "redirects to https://example"),
    ],
)
def test_a_server_that_refuses_everything(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, expected: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.script, server.probes = lambda asked: answer, True
    text = failure(InputError, load_model, server.name)
    assert expected in text
    if answer.status in (401, 403):
        monkeypatch.delenv("OPENAI_API_KEY")
        assert "it asks for a key" in failure(InputError, load_model, server.name)


def test_a_server_that_lists_what_it_has_loaded_has_one_fingerprint(server: ChatServer) -> None:
    """Else a run against a server that was started anew would not resume."""
    (loaded,), server.models["data"] = server.models["data"], []

    def script(asked: Asked) -> None:
        server.models["data"] = [loaded]

    server.script, server.probes = script, True
    assert load_model(server.name).fingerprint == load_model(server.name).fingerprint


def test_models_of_the_server_are_named_and_need_not_be_listed(server: ChatServer) -> None:
    server.models_status = 404
    assert load_model(server.name).name == "tiny"
    server.models_status, server.models = 200, {"data": [{"id": f"m{n}"} for n in range(10)]}
    assert load_model(server.name).name == "tiny"
    server.script, server.probes = lambda asked: Answer(status=404, body=b""), True
    text = failure(InputError, load_model, server.name)
    assert "it has m0, m1, m2, m3, m4, m5, m6, m7, ..." in text


def test_no_server_there(server: ChatServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    text = failure(InputError, load_model, f"openai:http://127.0.0.1:{port}/v1#tiny")
    assert f"no server at http://127.0.0.1:{port}/v1 (Connection refused); start it" in text
    assert time.monotonic() - started < 5
    assert "no server at" in failure(InputError, load_model, "openai:http://no-such.localhost:1/v1#tiny")


def test_a_server_that_goes_away_ends_the_run() -> None:
    with chat_server() as server:
        model = load_model(server.name)
    encoded = model.encode(*pairs(True, False))
    text = failure(ToolError, model.answer, encoded, QUESTIONS)
    assert "no server at" in text


@pytest.mark.parametrize(
    "fault", [Answer(status=429, body=b"busy"), Answer(status=503, body=b"busy"), Answer("Yes", cut_at=0)]
)
def test_a_server_that_answers_nothing_any_more_ends_the_run(server: ChatServer, fault: Answer) -> None:
    model = load_model(server.name, RuntimeOptions(requests=1))
    server.script, server.probes = lambda asked: fault, True
    text = failure(ToolError, model.answer, model.encode(*pairs(True, False)), QUESTIONS)
    assert "did not answer in 5 tries" in text
    assert text.endswith("nor to a question that it has answered before; try again later")
    assert 1 + 5 + 5 <= len(server.asked) <= 1 + 5 + 5 + 2  # of 8; the next one may have begun meanwhile


@pytest.mark.slow
def test_a_server_that_has_become_too_slow_ends_the_run(server: ChatServer) -> None:
    model = load_model(server.name, RuntimeOptions(requests=1, timeout_s=0.5))
    ends = threading.Event()
    server.script, server.probes = lambda asked: Answer("Yes") if ends.wait() else None, True
    text = failure(ToolError, model.answer, model.encode(*pairs(True, False)), [CHANGE])
    ends.set()
    assert "(no whole answer in 0.5 s; a longer `timeout_s` or fewer `requests` at a time may help)" in text
    assert "nor to a question" in text


def test_a_server_that_fails_for_every_pair_ends_the_run(server: ChatServer) -> None:
    """Also where it answers again what it has answered before; an answered pair begins the count anew."""
    model = load_model(server.name)
    before, after = pairs(*[True] * 12)
    good = before[3].transpose(1, 2, 0)

    def script(asked: Asked) -> Answer | None:
        return None if np.array_equal(asked.images[0], good) else Answer(status=500, body=b"out of memory")

    def answer(pair: int) -> Any:
        return model.answer(model.encode(before[[pair]], after[[pair]]), [CHANGE])

    server.script = script
    for pair in range(11):
        if pair == 3:
            assert answer(pair)[0][0].text == "Yes."
        else:
            failure(ModelError, answer, pair)
    text = failure(ToolError, answer, 11)
    asked = f"(HTTP 500: out of memory), to '{CHANGE.prompt[:20]}"
    assert asked in text
    assert text.endswith("for 8 pairs in a row; see the log of the server")


def test_a_server_that_fails_for_one_question_about_every_pair_ends_the_run(server: ChatServer) -> None:
    """Also where the others are answered before it, as with a cascade."""
    model = load_model(server.name)
    server.script = lambda asked: Answer(status=500, body=b"busy") if asked.prompt == CAPTION.prompt else None
    before, after = pairs(*[True] * 8)
    for index in range(8):
        pair = model.encode(before[[index]], after[[index]])
        assert model.answer(pair, [CHANGE])[0][0].text == "Yes."
        kind = ToolError if index == 7 else ModelError
        text = failure(kind, model.answer, pair, [CAPTION, COUNTS])
        assert (f"to '{CAPTION.prompt[:20]}" in text) == ("for 8 pairs in a row" in text) == (index == 7)
    assert sum(asked.prompt == CAPTION.prompt for asked in server.questions) == 8 * 5
    assert sum(asked.prompt == CHANGE.prompt for asked in server.questions) >= 8


@pytest.mark.parametrize("detail", ["failed to load the model's vocabulary for format", "internal error"])
def test_a_server_that_fails_for_a_json_schema_is_asked_without(server: ChatServer, detail: str) -> None:
    def script(asked: Asked) -> Answer | None:
        refused = "response_format" in asked.body
        return Answer(status=500, body={"error": detail}) if refused else None

    server.script = script
    model = load_model(server.name, requests=1)
    replies = model.answer(model.encode(*pairs(True, True, px=40)), [COUNTS])
    assert {json.loads(row[0].text)["new_buildings"] for row in replies} == {2}
    assert sum("response_format" in asked.body for asked in server.questions) == 5
    assert all(asked.body["logprobs"] for asked in server.questions)


def test_a_server_that_fails_for_logprobs_is_asked_without_where_it_names_them(server: ChatServer) -> None:
    """Else it may only be busy, as while it loads the model."""

    def script(asked: Asked) -> Answer | None:
        return Answer(status=500, body=words) if "logprobs" in asked.body else None

    server.script, server.probes, words = script, True, b"no logprobs here"
    assert math.isnan(ask(server).score)
    words = b"loading the model"
    assert "loading the model); try again later" in failure(InputError, load_model, server.name)


def test_a_field_that_was_answered_is_not_left_out(server: ChatServer) -> None:
    """The answers of a run would differ from those before."""
    model = load_model(server.name)
    before, after = pairs(True, True, px=40)
    assert json.loads(model.answer(model.encode(before[:1], after[:1]), [COUNTS])[0][0].text)
    server.script = lambda asked: Answer(status=500, body=b"response_format: busy")
    failure(ToolError, model.answer, model.encode(before[1:], after[1:]), [COUNTS])
    assert all("response_format" in asked.body for asked in server.questions)


def test_errors_survive_the_way_from_another_process(server: ChatServer) -> None:
    """As with Ray."""
    model = load_model(server.name)
    for status in (400, 500):
        server.script = lambda asked, status=status: Answer(status=status, body=b"no")
        with pytest.raises(ModelError) as caught:
            model.answer(model.encode(*pairs(True)), [CHANGE])
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("fault", [Answer(status=400, body=b"no"), Answer(""), Answer(body=b"<html>")])
def test_faults_of_pairs_do_not_end_the_run(server: ChatServer, fault: Answer) -> None:
    model = load_model(server.name)
    server.script = lambda asked: fault
    encoded = model.encode(*pairs(*[True] * 12))
    for index in range(12):
        failure(ModelError, model.answer, encoded, [CHANGE], [index])


def test_a_key_that_is_revoked_ends_the_run(server: ChatServer) -> None:
    model = load_model(server.name)
    server.script = lambda asked: Answer(status=401, body=b"")
    assert "asks for a key" in failure(InputError, model.answer, model.encode(*pairs(True, False)), QUESTIONS)


# names, keys and other machines


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse_address("openai:http://localhost:1/v1/#qwen2.5vl:7b")
    assert address == Address("http://localhost:1/v1", "qwen2.5vl:7b")
    assert parse_address("openai:http://[::1]:1/v1/chat/completions#m").url == "http://[::1]:1/v1"
    assert "no address; set OPENAI_BASE_URL" in failure(InputError, parse_address, "openai:#m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:2/v1")
    assert parse_address("openai:#m").url == "http://localhost:2/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:{KEY}@localhost:2/v1")
    assert "OPENAI_BASE_URL: the address holds a name" in failure(InputError, parse_address, "openai:#m")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:http://localhost:1/v1", "names no model"),
        ("openai:http://localhost:1/v1#", "names no model"),
        ("openai:localhost:1/v1#m", "is not the address"),
        ("openai:ftp://localhost/v1#m", "is not the address"),
        ("openai:http://[::1/v1#m", "is not the address"),
        ("openai:http://a b/v1#m", "is not the address"),
        ("openai:http://localhost:x/v1#m", "is not the address"),
        (f"openai:http://me:{KEY}@localhost/v1#m", "holds a name or password"),
        (f"openai:http://localhost/v1?key={KEY}#m", "has a query"),
        ("openai:http://localhost/v1#a\nb", "is not the name of a model"),
    ],
)
def test_names_that_cannot_be_used(name: str, expected: str) -> None:
    assert expected in failure(InputError, read_spec, name)
    assert expected in failure(InputError, load_model, name)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("127.3.2.1:80", True),
        ("[::1]:80", True),
        ("[::ffff:127.0.0.1]", True),
        ("0.0.0.0", True),
        ("10.0.0.1", False),
        ("192.168.1.2:8000", False),
        ("localhost.example.org", False),
        ("api.example.org", False),
    ],
)
def test_which_servers_are_on_this_machine(host: str, is_local: bool) -> None:
    name = f"openai:http://{host}/v1#m"
    assert parse_address(name).is_local is is_local
    assert (read_spec(name).sends_to == "") is is_local


def test_pictures_go_to_another_machine_only_where_that_is_allowed(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Address, "is_local", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    text = failure(InputError, load_model, server.name)
    assert "is not this machine, and the pictures would be sent there; `allow_upload=True`" in text
    assert not server.paths
    assert load_model(server.name, allow_upload=True).name == "tiny"


def test_the_key_goes_to_the_server_alone(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(server)
    assert "Authorization" not in server.questions[-1].headers
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    model = load_model(server.name)
    model.answer(model.encode(*pairs(True)), [CHANGE])
    assert server.questions[-1].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{model!r}{model.client!r}{model.details}{vars(model)}".replace(
        repr(model.client.key), ""
    )
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9")
    assert "no HTTP header" in failure(InputError, load_model, server.name)


@pytest.mark.parametrize(
    "options", [{"device": "cuda"}, {"dtype": "bf16"}, {"quantize": "int8"}, {"beams": 2}, {"offline": True}]
)
def test_options_of_models_on_this_machine(options: dict[str, Any]) -> None:
    (name,) = options
    text = failure(ConfigError, read_spec, "openai:http://localhost:1/v1#m", RuntimeOptions(**options))
    assert f"`{name}=" in text
    assert "leave it out" in text


def test_the_first_question_is_about_two_small_images(server: ChatServer) -> None:
    load_model(server.name)
    (asked,) = server.asked
    assert is_probe(asked)
    assert [image.shape for image in asked.images] == [(64, 64, 3)] * 2
    assert asked.changed
