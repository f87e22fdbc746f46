"""`deltavlm chat`: the same conversation through a pipe and at a terminal."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltavlm.files import lock
from deltavlm.messages import UNSUPPORTED
from deltavlm.model.interface import Question, Reply
from tests.cli.conftest import Run, one_line, program
from tests.conftest import Scene
from tests.scripted_model import ScriptedModel

SIX = ["1?", "2?", "3?", "4?", "5?", "6?"]


@pytest.fixture(autouse=True)
def echoing(model: ScriptedModel) -> None:
    def echo(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        return Reply(f"{len(question.prompt.split())} words", -0.5)

    model.script = echo


def typed(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def test_every_piped_line_gets_one_line(run: Run, scene: Scene) -> None:
    result = run("chat", *scene.args, input=typed(*SIX))
    assert result.exit_code == 0, result.stderr
    # q 1? a 1 words q 2? -- five words more with every turn
    assert result.stdout == "1 words\n7 words\n12 words\n17 words\n22 words\n27 words\n"


def test_a_turn_that_was_not_taught_is_saved_as_such(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.script = lambda before, after, question: Reply(
        UNSUPPORTED if "pool" in question.prompt else "no", -0.5
    )
    result = run("chat", *scene.args, "--save", "talk.jsonl", input=typed("any pool?", "any trees?"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{UNSUPPORTED}\nno\n"
    assert "Warning: not answered: any pool?" in result.stderr
    records = [json.loads(line) for line in Path("talk.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["unsupported", "answered"]
    result = run("chat", *scene.args, "--continue", "talk.jsonl", "--json", input=typed("how many?"))
    assert json.loads(result.stdout)["status"] == "answered"
    assert model.history[-1][0].prompt == "q any trees? a no q how many?"
    assert model.history[-1][0].after_answer


def test_commands(run: Run, scene: Scene, model: ScriptedModel) -> None:
    result = run(
        "chat",
        *scene.args,
        input=typed(
            *("1?", "/history", "/image", "/image 'both dates.png'", "/save talk.jsonl", "/help"),
            *("/at 3.0002,45.1532", "2?", "/quit", "never asked"),
        ),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "1 words\n1 words\n"  # at another chip the history starts over
    assert "> 1?" in result.stderr
    assert "160 x 96 px from column 0, row 0" in result.stderr
    assert "/at LON,LAT" in result.stderr
    assert len(Path("talk.jsonl").read_text().splitlines()) == 1
    with Image.open("both dates.png") as picture:
        assert picture.size == (256 + 8 + 256, 256)
    assert len(model.batches) == 2


def test_errors_do_not_end_a_conversation(run: Run, scene: Scene) -> None:
    Path("there.jsonl").touch()
    lines = (
        "/nope",
        "/at here",
        "/at 50,50",
        "/save",
        "/save a b",
        "/save there.jsonl",
        "/image x.nix",
        "1?",
    )
    result = run("chat", *scene.args, "--quiet", input=typed(*lines))
    assert result.exit_code == 3, result.stderr
    assert result.stdout == "\n"  # the last /at failed
    errors = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in errors)
    assert len(errors) == 9
    assert "no command /nope" in errors[0]
    assert "is not lon,lat" in errors[1]
    assert "outside" in errors[2]


def test_a_question_that_fails_gets_an_empty_line(run: Run, scene: Scene) -> None:
    for flags, lines in (((), ["1 words", "", "7 words"]), (("--json",), [None, None, None])):
        result = run("chat", *scene.args, *flags, input=typed("1?", "bell \x07", "2?"))
        assert result.exit_code == 3
        assert "1 question got no answer" in result.stderr.splitlines()[-1]
        answers = result.stdout.splitlines()
        assert len(answers) == 3
        if not flags:
            assert answers == lines
        else:
            assert json.loads(answers[1]) is None


def test_save_and_continue(run: Run, scene: Scene) -> None:
    assert run("chat", *scene.args, "--save", "talk.jsonl", input=typed("1?", "2?")).exit_code == 0
    result = run("chat", *scene.args, "--continue", "talk.jsonl", input=typed("3?"))
    assert result.stdout == "12 words\n"  # as the third of one conversation
    assert [json.loads(line)["question"] for line in Path("talk.jsonl").read_text().splitlines()] == SIX[:3]
    result = run("chat", *scene.args, "--continue", "talk.jsonl", "--save", "copy.jsonl", input=typed("4?"))
    assert result.stdout == "17 words\n"
    assert len(Path("talk.jsonl").read_text().splitlines()) == 3
    assert len(Path("copy.jsonl").read_text().splitlines()) == 4


def test_a_transcript_without_its_last_newline_is_continued(run: Run, scene: Scene) -> None:
    run("chat", *scene.args, "--save", "talk.jsonl", input=typed("1?"))
    path = Path("talk.jsonl")
    path.write_text(path.read_text().rstrip("\n"))
    assert run("chat", *scene.args, "--continue", "talk.jsonl", input=typed("2?")).exit_code == 0
    assert [json.loads(line)["question"] for line in path.read_text().splitlines()] == ["1?", "2?"]


def test_an_incomplete_last_turn_is_dropped(run: Run, scene: Scene) -> None:
    run("chat", *scene.args, "--save", "talk.jsonl", input=typed("1?", "2?"))
    path = Path("talk.jsonl")
    path.write_text(path.read_text()[:-40])
    result = run("chat", *scene.args, "--continue", "talk.jsonl", input=typed("3?"))
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["question"] for line in path.read_text().splitlines()] == ["1?", "3?"]


def test_a_failed_piped_at_blocks_questions_until_the_next_one(run: Run, scene: Scene) -> None:
    result = run("chat", *scene.args, input=typed("1?", "/at 99,9", "2?", "/at 3.0002,45.1532", "3?"))
    assert result.exit_code == 3
    assert result.stdout == "1 words\n\n1 words\n"
    assert "not asked: the last /at failed" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("1 question got no answer, 1 command failed")


def test_a_transcript_is_locked(run: Run, scene: Scene) -> None:
    run("chat", *scene.args, "--save", "talk.jsonl", input=typed("1?"))
    with lock(Path("talk.jsonl")):
        result = run("chat", *scene.args, "--continue", "talk.jsonl", input=typed("2?"))
    assert result.exit_code == 2
    assert "another run is writing it" in result.stderr.splitlines()[-1]
    assert run("chat", *scene.args, "--save", "empty.jsonl", input="").exit_code == 0
    assert not Path("empty.jsonl").exists()


def test_input_that_is_not_utf8_is_an_error_of_that_line(scene: Scene) -> None:
    process = program("chat", *scene.args, "-q", stdin=subprocess.PIPE)
    process.stdin.buffer.write(b"caf\xe9?\n")  # type: ignore[union-attr]
    out, err = process.communicate()
    assert (process.returncode, out) == (3, "\n")
    assert "the question is not UTF-8 text" in err


def test_continuing_with_another_model_warns(run: Run, scene: Scene, model: ScriptedModel) -> None:
    run("chat", *scene.args, "--save", "talk.jsonl", input=typed("1?"))
    model.fingerprint = "another"
    result = run("chat", *scene.args, "--continue", "talk.jsonl", input=typed("2?"))
    assert result.exit_code == 0
    assert "the conversation was with scripted 0123456789abcdef" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--continue", "nosuch.jsonl"], "nosuch.jsonl: no such file"),
        (["--continue", "text.jsonl"], "text.jsonl, line 1: is not a turn"),
        (["--continue", "other.jsonl"], "the conversation was about elsewhere.tif"),
        (["--continue", "far.jsonl"], "is not in the pair"),
        (["--save", "text.jsonl"], "text.jsonl exists already"),
        (["--save", "nosuch/talk.jsonl"], "there is no folder"),
        (["--at", "50,50"], "outside"),
        (["--model", "nana"], "nana"),
    ],
)
def test_errors_are_one_line(run: Run, scene: Scene, args: list[str], message: str) -> None:
    window = {"col_off": 0, "row_off": 0, "width": 16, "height": 16, "size": 32}
    before, after = scene.args
    record: dict[str, Any] = {"question": "a", "answer": "b", "model": "m", "before": before, "after": after}
    Path("text.jsonl").write_text("hello\n")
    Path("other.jsonl").write_text(json.dumps(record | {"window": window, "before": "elsewhere.tif"}) + "\n")
    Path("far.jsonl").write_text(json.dumps(record | {"window": window | {"col_off": 9999}}) + "\n")
    result = run("chat", *scene.args, *args, "--quiet", input=typed("1?"))
    assert result.exit_code == 2, result.stderr
    assert message in one_line(result)
    assert run.loads == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_six_turns_at_a_terminal_and_an_interrupted_answer(scene: Scene, tmp_path: Path) -> None:
    """Ctrl-C stops an answer and not the program; the interrupted question is not saved."""
    import pty

    ours, theirs = pty.openpty()
    process = program(
        *("chat", *scene.args, "--save", tmp_path / "talk.jsonl", "--no-progress"),
        pause=0.4,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    screen = Screen(ours)
    try:
        for number, question in enumerate(SIX):
            screen.until("> ", count=number + 1)
            screen.type(question)
        screen.until("> ", count=7)
        screen.type("interrupted?")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        screen.until("stopped")
        screen.type("/history")
        screen.until("6?", count=2)
        screen.type("/quit")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    saved = [json.loads(line)["question"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert saved == SIX
    assert "Traceback" not in screen.seen


class Screen:
    """Output of a pseudo-terminal."""

    def __init__(self, end: int) -> None:
        self.end, self.seen = end, ""

    def type(self, line: str) -> None:
        os.write(self.end, f"{line}\n".encode())

    def until(self, text: str, count: int = 1, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while self.seen.count(text) < count:
            ready, _, _ = select.select([self.end], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.end, 4096).decode(errors="replace")
