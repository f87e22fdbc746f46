"""Commands with a model behind a server: outputs, failed chips, resuming, agreement, no key in any output."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import deltavlm
from deltacli.main import app
from deltavlm.model import kinds
from deltavlm.model.openai import client as http
from deltavlm.model.openai.address import Address
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.tasks.classify import PROMPT
from deltavlm.tasks.phrasing import GENERIC
from tests.chat_server import COUNT, KEY, Answer, Asked, ChatServer, chat_server, is_probe
from tests.cli.conftest import ROOT, one_line
from tests.conftest import Scene
from tests.pairs import layer, write_pairs

pytestmark = pytest.mark.network

SMALL = ("--chip-size", 32)
SILENT = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
WITHOUT_YES = {
    "choices": [
        {
            "message": {"content": "A house."},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "A", "logprob": -0.1}, {"token": " house.", "logprob": -0.1}]},
        }
    ]
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ChatServer]:
    """Server that knows a key; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(http, "MAX_PAUSE_S", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server() as state:
        yield state


def run(*args: object, **settings: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], **settings)


def analyze(scene: Scene, server: ChatServer, *args: object) -> Result:
    return run("analyze", *scene.args, "--model", server.name, "-o", "out.gpkg", *SMALL, *args)


@pytest.mark.parametrize("cascade", [False, True])
def test_analyze_writes_the_columns_of_every_model(scene: Scene, server: ChatServer, cascade: bool) -> None:
    result = analyze(scene, server, *["--cascade"] * cascade)
    assert result.exit_code == 0, result.stderr
    assert "model tiny (" in result.stderr
    rows = layer("out.gpkg", "chips")
    (changed,) = [row for row in rows if row["changed"]]
    assert changed["chip_id"] == scene.changed_chip
    assert changed["caption"] == "Two houses were built."
    assert (changed["new_roads"], changed["new_buildings"], changed["building_cells"]) == (
        1,
        2,
        ["top-left"],
    )
    assert changed["changed_score"] == pytest.approx(0.9)
    assert len(server.questions) == (15 + 2 if cascade else 3 * 15)
    assert read_output(Path("out.gpkg")).provenance["model"]["phrasebook"] == "generic"
    dates = {asked.texts[0] for asked in server.questions}
    assert len(dates) == 1
    report = run("report", "out.gpkg", "-o", "out.html")
    assert report.exit_code == 0, report.stderr
    assert "tiny" in Path("out.html").read_text()


def test_the_server_is_told_the_evidence(
    scene: Scene, server: ChatServer, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = vars(deltavlm)["load_model"]  # of `loads`, for every name
    monkeypatch.setitem(
        vars(deltavlm),
        "load_model",
        lambda name, runtime: (kinds.load_model if name == server.name else scripted)(name, runtime),
    )
    result = analyze(scene, server, "--evidence", "nano", "--cascade")
    assert result.exit_code == 0, result.stderr
    assert len(server.questions) == 3  # about the only changed chip
    for asked in server.questions:
        told = [text for text in asked.texts if text.startswith("Another model, scripted, gives")]
        assert len(told) == 1
        assert "2 new buildings" in told[0]
    (row,) = [row for row in layer("out.gpkg", "chips") if row["status"] == "answered"]
    assert (row["new_buildings"], row["evidence_new_buildings"]) == (2, 2)


def test_without_scores_the_word_decides_and_that_is_said(scene: Scene, server: ChatServer) -> None:
    def script(asked: Asked) -> Answer | None:
        return Answer(status=400, body={"error": "logprobs?"}) if "logprobs" in asked.body else None

    server.script, server.probes = script, True
    result = analyze(scene, server, "--threshold", 0.95, "--cascade")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("gives no probabilities of yes and no") == 1
    rows = layer("out.gpkg", "chips")
    assert [row["chip_id"] for row in rows if row["changed"]] == [scene.changed_chip]
    assert {row["changed_score"] for row in rows} == {None}


def test_chips_without_an_answer_are_retried_later(scene: Scene, server: ChatServer) -> None:
    broken: list[bytes] = []

    def script(asked: Asked) -> Answer | None:
        if asked.prompt == COUNT and asked.changed:
            broken.append(b"")
            return Answer('{"new_roads": 1,', finish_reason="length")
        return None

    server.script = script
    result = analyze(scene, server, "-v")
    assert result.exit_code == 3
    assert f"{scene.changed_chip}: error: the JSON of the answer is cut off at 200 tokens" in result.stderr
    assert len(broken) == 1
    assert len(server.questions) == 3 * 15
    rows = {row["chip_id"]: row for row in layer("out.gpkg", "chips")}
    assert rows[scene.changed_chip]["status"] == "error"
    assert sum(row["status"] == "answered" for row in rows.values()) == 14
    server.script = lambda asked: None
    result = analyze(scene, server, "--retry-failed")
    assert result.exit_code == 0, result.stderr
    assert len(server.questions) == 3 * 15 + 3
    assert sum(bool(row["changed"]) for row in layer("out.gpkg", "chips")) == 1


def test_a_server_that_goes_away_leaves_a_run_that_resumes(scene: Scene, server: ChatServer) -> None:
    gone: list[int] = []

    def script(asked: Asked) -> Answer | None:
        if len(server.questions) > 20:
            gone.append(1)
            return Answer(status=401, body=b"")
        return None

    server.script = script
    result = analyze(scene, server)
    assert result.exit_code == 2
    assert "the key was refused; set OPENAI_API_KEY" in result.stderr
    assert "kept in out.gpkg.journal.jsonl; the same command resumes" in result.stderr
    assert not Path("out.gpkg").exists()
    server.script = lambda asked: None
    result = analyze(scene, server)
    assert result.exit_code == 0, result.stderr
    assert "resuming: " in result.stderr
    assert len(layer("out.gpkg", "chips")) == 15


@pytest.mark.parametrize("fault", ["busy", "stopped"])
def test_a_server_that_fails_from_some_chip_on_leaves_a_run_that_resumes_to_the_same_bytes(
    scene: Scene, server: ChatServer, fault: str
) -> None:
    args = ("analyze", *scene.args, *SMALL, "--requests", 1, "--ask", "change")
    assert run(*args, "--model", server.name, "-o", "whole.geojson").exit_code == 0
    port = int(server.name.split(":")[3].split("/")[0])
    server.stop()

    def script(asked: Asked) -> Answer | None:
        if (is_probe(asked) and not failing.questions) or len(failing.questions) <= 3:
            return None
        if fault == "stopped":
            failing.stop()
        return Answer("Yes", cut_at=0) if fault == "stopped" else Answer(status=503, body=b"busy")

    with chat_server(script, port) as failing:
        failing.probes = True
        result = run(*args, "--model", failing.name, "-o", "out.geojson")
    assert result.exit_code == 1
    assert "Error: " in result.stderr.splitlines()[-1]
    assert "3 chips kept in out.geojson.journal.jsonl; the same command resumes" in result.stderr
    assert not Path("out.geojson").exists()
    with chat_server(port=port) as mended:
        result = run(*args, "--model", mended.name, "-o", "out.geojson")
        assert len(mended.questions) == 15 - 3
    assert result.exit_code == 0, result.stderr
    assert Path("out.geojson").read_bytes() == Path("whole.geojson").read_bytes()


@pytest.mark.slow
def test_a_cascade_whose_second_questions_fail_ends_and_loses_no_chip(server: ChatServer) -> None:
    pairs = write_pairs(Path("pairs"), 30)  # every third has changed
    args = (
        "analyze",
        "--pairs",
        pairs,
        *SMALL,
        "--model",
        server.name,
        "--cascade",
        "--ask",
        "change,caption",
    )
    assert run(*args, "-o", "whole.geojson").exit_code == 0
    caption = GENERIC.phrase("caption").prompt
    server.script = lambda asked: Answer(status=500, body=b"busy") if asked.prompt == caption else None
    result = run(*args, "-o", "out.geojson")
    assert result.exit_code == 1
    assert "for 8 pairs in a row" in result.stderr
    assert "the same command resumes" in result.stderr
    server.script = lambda asked: None
    assert run(*args, "-o", "out.geojson").exit_code == 3  # chips with an error stay until they are retried
    assert run(*args, "-o", "out.geojson", "--retry-failed").exit_code == 0
    assert Path("out.geojson").read_bytes() == Path("whole.geojson").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_resumes_to_the_same_bytes(scene: Scene, server: ChatServer) -> None:
    assert run("analyze", *scene.args, "--model", server.name, "-o", "whole.geojson", *SMALL).exit_code == 0
    server.script = lambda asked: time.sleep(0.1)
    words = ["analyze", *scene.args, "--model", server.name, *map(str, SMALL), "-o", "out.geojson"]
    command = [sys.executable, "-m", "deltacli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    journal = Path("out.geojson.journal.jsonl")
    while process.poll() is None and not (journal.exists() and journal.read_text().count("r000") > 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    server.script = lambda asked: None
    done = run(*words)  # here, to save the start of a program
    assert done.exit_code == 0, done.stderr
    assert "resuming: " in done.stderr
    assert Path("out.geojson").read_bytes() == Path("whole.geojson").read_bytes()


def test_a_server_that_is_not_there_is_found_before_any_chip(scene: Scene, server: ChatServer) -> None:
    name = "openai:http://127.0.0.1:1/v1#tiny"
    result = run("analyze", *scene.args, "--model", name, "-o", "out.gpkg", *SMALL)
    assert result.exit_code == 2
    assert "no server at http://127.0.0.1:1/v1" in result.stderr.splitlines()[-1]
    assert not [*Path().iterdir()]


@pytest.mark.parametrize("name", ["openai:", "openai:localhost:8000#tiny", "openai:http://localhost:8000/v1"])
def test_a_name_that_is_wrong_is_told_how_to_write_it(scene: Scene, name: str) -> None:
    """Also on a terminal, where URLs lose their fragments."""
    result = run("analyze", *scene.args, "--model", name, "-o", "out.gpkg")
    assert result.exit_code == 2
    assert "openai:URL#MODEL, where URL is such as http://localhost:11434/v1" in one_line(result)


def test_ask_and_chat_pass_the_words_of_a_person_through(scene: Scene, server: ChatServer) -> None:
    """Also a question that means a standard one, which other models are asked in its standard words."""
    replies = {
        "Why?": "Sun.",
        "Has anything changed?": "Yes, a house.",
        "How many houses were built?": "One.",
    }
    server.script = lambda asked: Answer(replies[asked.prompt])
    typed = [*replies]
    result = run("ask", *scene.args, *typed, "--model", server.name, "--json")
    assert result.exit_code == 0, result.stderr
    assert "asked as" not in result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(record["asked"], record["answer"]) for record in records] == [*replies.items()]
    values = [(record["task"], record["value"]) for record in records[1:]]
    assert values == [("change", True), ("open", "One.")]
    assert records[1]["score"] > 0.9  # P(yes)
    assert [asked.body["max_tokens"] for asked in server.questions] == [64] * 3  # room for a sentence
    result = run("chat", *scene.args, "--model", server.name, "--json", input="\n".join(typed))
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["answer"] for line in result.stdout.splitlines()] == [*replies.values()]
    messages = server.questions[-1].body["messages"]  # each question has the turns before it as its history
    assert [turn["content"][-1]["text"] for turn in messages] == [
        *("Why?", "Sun.", "Has anything changed?", "Yes, a house.", "How many houses were built?")
    ]


def test_questions_about_every_chip_are_asked_as_they_were_typed(scene: Scene, server: ChatServer) -> None:
    """Twice the same question was a traceback."""
    server.script = lambda asked: Answer("Yes, a house." if asked.changed else "No, nothing.")
    typed = ["Has anything changed?", PROMPT, "Has anything changed?"]
    result = run(
        *("ask", *scene.args, *typed, "--all-chips", "--model", server.name, *SMALL, "-o", "out.gpkg"),
        *("--limit", 5),
    )
    assert result.exit_code == 0, result.stderr
    assert {asked.prompt for asked in server.questions} == {*typed}
    for row in layer("out.gpkg", "chips"):
        assert row["answer_question"] == row["answer_question_2"] == row["answer_question_3"]
        assert row["changed"] == row["answer_question"].startswith("Yes") == (row["changed_score"] > 0.5)
    deltavlm.analyze(*scene.args, output="api.gpkg", model=server.name, questions=["What changed?"])
    assert server.questions[-1].prompt == "What changed?"


def test_the_words_of_an_own_question_are_no_reason_to_say_that_there_are_no_scores(
    scene: Scene, server: ChatServer
) -> None:
    ask = ("ask", *scene.args, "Has anything changed?", "--model", server.name, "--json")
    server.script = lambda asked: Answer(body=WITHOUT_YES)
    result = run(*ask)
    assert json.loads(result.stdout)["score"] is None
    assert "gives no probabilities" not in result.stderr
    server.script = lambda asked: Answer(body=SILENT)
    result = run(*ask)
    assert json.loads(result.stdout)["score"] is None
    assert "gives no probabilities of yes and no" in result.stderr


def test_eval_scores_the_answers(server: ChatServer) -> None:
    Path("images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    for name, value in {"a": 0, "b": 255}.items():
        pixels[:8] = value
        Image.fromarray(pixels).save(f"images/{name}.png")
    record = {
        "id": "x",
        "image": ["a.png", "b.png"],
        "conversations": [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": "yes"}],
        "changeflag": 1,
    }
    Path("test.json").write_text(json.dumps([record]))
    result = run("eval", "test.json", "--model", server.name, "-o", "report.json", "--bootstrap", 0)
    assert result.exit_code == 0, result.stderr + result.stdout
    report = json.loads(Path("report.json").read_text())
    assert report["sources"]["model"]["name"] == "tiny"
    assert "accuracy" in result.stdout


def test_a_calibration_to_a_list_of_pairs_is_that_of_the_server(server: ChatServer) -> None:
    pairs = write_pairs(Path("pairs"), 36)  # every third has changed
    head, *rows = pairs.read_text().splitlines()
    labelled = [f"{row},{index % 3 == 0}" for index, row in enumerate(rows)]
    Path("pairs/labelled.csv").write_text("\n".join([f"{head},changed", *labelled]))
    server.script = lambda asked: Answer("Yes.", probability=0.9 if asked.changed else 0.7)
    model = ("--model", server.name, *SMALL)
    result = run("calibrate", "pairs/labelled.csv", *model)
    assert result.exit_code == 0, result.stderr
    assert len(server.questions) == 36
    result = run("analyze", "--pairs", pairs, *model, "--calibration", "calibration.json", "-o", "out.gpkg")
    assert result.exit_code == 0, result.stderr
    assert {row["pair_id"] for row in layer("out.gpkg", "chips") if row["changed"]} == {
        f"p{index}" for index in range(0, 36, 3)
    }
    server.served_model = "another"
    result = run("analyze", "--pairs", pairs, *model, "--calibration", "calibration.json", "-o", "b.gpkg")
    assert result.exit_code == 2
    assert "fit another by deltavlm calibrate" in result.stderr


def test_a_calibration_of_a_server_without_scores_ends_with_the_first_batch(server: ChatServer) -> None:
    pairs = write_pairs(Path("pairs"), 36)
    server.script = lambda asked: Answer(body=SILENT)  # as `transformers serve`, which ignores logprobs
    result = run("calibrate", pairs, "--false-alarms", 0.1, "--model", server.name, *SMALL, "--requests", 2)
    assert result.exit_code == 2
    assert "the model answers yes or no without a probability" in result.stderr
    assert len(server.questions) <= 2 * 2  # the next batch may have begun
    assert not Path("calibration.json").exists()


@pytest.mark.slow
def test_a_time_out_is_set_by_a_flag_or_the_file_of_defaults(scene: Scene, server: ChatServer) -> None:
    ended = threading.Event()
    server.script = lambda asked: Answer("Yes.") if ended.wait(20) else None
    Path("defaults.toml").write_text("[ask]\ntimeout = 1\n")
    ask = ("ask", *scene.args, "Has anything changed?", "--model", server.name)
    for setting in (("--timeout", 1), ("--config", "defaults.toml")):
        result = run(*ask, *setting)
        assert result.exit_code == 1
        hint = "no whole answer in 1 s; a longer --timeout or fewer --requests at a time may help"
        assert hint in result.stderr.splitlines()[-1]
    ended.set()


def test_a_dry_run_asks_nothing(scene: Scene, server: ChatServer) -> None:
    result = analyze(scene, server, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "a server is asked nothing" in result.stdout
    assert not server.paths


def test_flags_of_models_on_this_machine_are_refused(scene: Scene, server: ChatServer) -> None:
    result = analyze(scene, server, "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cuda: is for models on this machine; leave it out" in one_line(result)


def test_sending_pictures_to_another_machine_needs_agreement(
    scene: Scene, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Address, "is_local", False)
    result = analyze(scene, server)
    assert result.exit_code == 2
    assert f"sent to {server.url}, which is not this machine; --yes agrees" in result.stderr
    assert not server.paths
    result = analyze(scene, server, "--yes")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(f"the pictures are sent to {server.url}, which is not this machine") == 1


def test_a_person_is_asked_on_a_terminal(
    scene: Scene, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltacli.flag_groups import ModelFlags

    monkeypatch.setattr(Address, "is_local", False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    answers = iter([False, True])
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda text, err: (asked.append(text), next(answers))[1])
    flags = ModelFlags(model=server.name)
    with pytest.raises(Exception, match="nothing was sent"):
        flags.loading_options()
    assert flags.loading_options().allow_upload
    assert "The pictures are sent to" in asked[0]


def test_the_key_is_in_no_output(scene: Scene, server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in files nor in messages, with success and where the server repeats it in its errors."""
    server.script = lambda asked: (
        Answer(status=400, body={"error": f"Bearer {KEY} at {asked.headers}"}) if asked.changed else None
    )
    results = [analyze(scene, server, "-vv"), run("report", "out.gpkg", "-o", "out.html")]
    assert results[0].exit_code == 3
    assert "error: " in results[0].stderr
    assert "Bearer ***" in results[0].stderr
    server.script, server.probes = lambda asked: Answer(status=403, body=f"no {KEY}".encode()), True
    results += [analyze(scene, server, "-vv", "--overwrite"), run("ask", *scene.args, "?", "-m", server.name)]
    server.script = lambda asked: Answer(status=500, body=f"no {KEY}".encode())
    results.append(run("ask", *scene.args, "What?", "--model", server.name, "--log-format", "json"))
    name = server.name.replace("http://", f"http://me:{KEY}@")
    results.append(run("analyze", *scene.args, "--model", name, "--dry-run"))
    for result in results:
        assert KEY not in result.output + result.stderr
    assert not [record for record in caplog.records if KEY in record.getMessage()]
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def doctor(server: ChatServer, *args: object) -> dict[str, Any]:
    """Findings of `doctor --model` by name, and the rest of its report."""
    result = run("doctor", "--model", server.name, "--json", *args)
    assert result.exit_code == 0, result.stderr + result.stdout
    report: dict[str, Any] = json.loads(result.stdout)
    return {check["name"]: check for check in report["checks"]} | report


def test_doctor_proves_a_model(server: ChatServer) -> None:
    report = doctor(server)
    assert report["ok"]
    assert report["model"]["name"] == "tiny"
    assert "yes" in report["changed pair"]["detail"]
    assert report["changed pair"]["status"] == "ok"
    assert "9 new buildings" in report["changed pair"]["detail"]
    assert report["same pair"]["status"] == "warning"  # the server compares pixels, and the light differs
    assert "the right answer is no" in report["same pair"]["remedy"]
    assert report["score"]["status"] == report["images"]["status"] == "ok"
    assert report["order"]["status"] == "warning"
    assert report["figures"]["seconds_per_chip"] > 0
    assert report["figures"]["memory_bytes"] > 1e6
    assert "versions" not in report


def test_doctor_finds_a_model_that_sees_nothing(server: ChatServer) -> None:
    server.script = lambda asked: Answer("Perhaps.", probability=0.5)
    report = doctor(server)
    assert report["images"]["status"] == report["order"]["status"] == "warning"
    assert "another first and second image" in report["images"]["detail"]
    assert "change, count, location" in report["reading"]["detail"]
    assert report["changed pair"]["status"] == "warning"


def test_doctor_finds_an_image_that_is_not_seen(server: ChatServer) -> None:
    server.script = lambda asked: Answer(f"{asked.images[1].sum()} yes", probability=0.5)
    report = doctor(server)
    assert "another first image" in report["images"]["detail"]
    assert report["order"]["status"] == "ok"


def test_doctor_says_that_there_is_no_score(server: ChatServer) -> None:
    def script(asked: Asked) -> Answer | None:
        return Answer(status=400, body={"error": "logprobs?"}) if "logprobs" in asked.body else None

    server.script = script
    assert "no probability" in doctor(server)["score"]["detail"]
    lines = run("doctor", "--model", server.name).stdout.splitlines()
    assert any("--threshold changes nothing" in line for line in lines)


def test_doctor_of_a_model_that_fails(server: ChatServer) -> None:
    server.script = lambda asked: Answer("")
    result = run("doctor", "--model", server.name)
    assert result.exit_code == 1
    assert "broken   model        the reply is empty" in result.stdout
    server.probes, server.script = True, lambda asked: Answer(status=401, body=b"")
    result = run("doctor", "--model", server.name)
    assert result.exit_code == 2
    assert "the key was refused" in one_line(result)
    result = run("doctor", "--requests", 2)
    assert result.exit_code == 2
    assert "--requests: is for a model; add --model" in one_line(result)


@pytest.mark.slow
def test_a_real_server_with_a_tiny_model(scene: Scene, server: ChatServer) -> None:
    """`transformers serve` with random weights: what it answers means nothing, and is the same each time."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name)
    tiny_hf = pytest.importorskip("tests.tiny_hf")
    tiny_hf.build("qwen2_5_vl", Path("tiny"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        args = ("--model", f"openai:http://127.0.0.1:{port}/v1#tiny")
        few = (*SMALL, "--limit", 1, "--ask", "change,count")
        for output in ("first.geojson", "second.geojson"):
            result = run("analyze", *scene.args, "-o", output, *args, *few)
            assert result.exit_code in (0, 3), result.stderr  # JSON that random weights begin may be cut off
        assert "gives no probabilities of yes and no" in result.stderr
        assert Path("first.geojson").read_bytes() == Path("second.geojson").read_bytes()
        result = run("ask", *scene.args, "Why?", *args, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["answer"]
        text = run("analyze", *scene.args, "--model", f"openai:http://127.0.0.1:{port}/v1#none").stderr
        assert text.count("Error: ") == 1
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server has ended")
