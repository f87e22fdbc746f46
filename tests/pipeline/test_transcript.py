"""Transcripts of conversations: saved, read, resumed, repaired, refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import InputError, OutputError, WriteError
from deltavlm.files import JsonLines, lock
from deltavlm.geo.chips import chip_of_pair, chip_of_window
from deltavlm.geo.geobox import Window
from deltavlm.geo.pair import PairReader, RasterPair, open_pair
from deltavlm.pipeline.conversation import Conversation, encode_chip
from deltavlm.pipeline.transcript import last_turns, open_transcript, read_transcript
from tests.conftest import Scene
from tests.scripted_model import ScriptedModel

WINDOW = {"col_off": 0, "row_off": 0, "width": 16, "height": 16, "size": 32}


def turn(question: str) -> dict[str, Any]:
    return {
        "question": question,
        "answer": "é",
        "window": WINDOW,
        "before": "a",
        "after": "b",
        "model": "m",
    }


@pytest.fixture
def reader(scene: Scene) -> Iterator[PairReader]:
    with open_pair(RasterPair(*scene.args)) as reader:
        yield reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.jsonl"


def test_images_are_not_known_by_their_names_alone(reader: PairReader, path: Path, scene: Scene) -> None:
    """Images of one server may differ in the query alone, which no transcript holds."""
    model = ScriptedModel(queue=["a"])
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    record = json.loads(json.dumps(talk.ask("first")))
    images = record["images"]
    last_turns(reader, [record])
    other = {**record, "images": {**images, "address": images["address"][::-1]}}
    with pytest.raises(InputError, match=r"about images of another address than .*start a new conversation"):
        last_turns(reader, [other])
    for damaged in (
        None,
        3,
        {},
        {**images, "key": "x"},
        {**images, "files": [3, 4]},
        {**images, "files": []},
    ):
        with pytest.raises(InputError, match="does not say which images it was about"):
            last_turns(reader, [{**record, "images": damaged}])
    os.utime(scene.after, (1, 1))
    with open_pair(RasterPair(*scene.args)) as again, pytest.raises(InputError, match="changed since"):
        last_turns(again, [record])


def test_a_saved_conversation_is_resumed_at_its_chip(reader: PairReader, path: Path) -> None:
    model = ScriptedModel(queue=["a", "b", "c"])
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    talk.ask("elsewhere")
    talk.go_to(chip_of_window(reader, Window(64, 32, 32, 32), 40))
    talk.ask("first")
    talk.ask("second")
    with open_transcript(path, fresh=True, records=talk.records):
        pass
    chip, turns = last_turns(reader, read_transcript(path))
    assert chip == talk.chip.chip
    assert turns == talk.turns
    assert [question for question, _ in turns] == ["first", "second"]


def test_a_conversation_about_other_images_is_not_resumed(reader: PairReader) -> None:
    with pytest.raises(InputError, match="was about a, not "):
        last_turns(reader, [turn("1?")])


def test_turns_are_appended(path: Path) -> None:
    with open_transcript(path, fresh=True, records=[turn("1?")]) as transcript:
        transcript.append([turn("2?")])
        assert read_transcript(path) == [turn("1?"), turn("2?")]  # on disk at once
    with open_transcript(path, fresh=False, records=[turn("1?"), turn("2?")]) as transcript:
        transcript.append([turn("3?")])
    assert read_transcript(path) == [turn("1?"), turn("2?"), turn("3?")]
    with open_transcript(path, fresh=True, records=[turn("4?")]):
        pass
    assert read_transcript(path) == [turn("4?")]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_an_incomplete_last_line_is_dropped(path: Path, cut: int) -> None:
    """Its end was cut off while it was written, or (cut 1) an editor removed the newline."""
    line = json.dumps(turn("2?"), ensure_ascii=False)
    path.write_text(json.dumps(turn("1?")) + "\n" + f"{line}\n"[:-cut], encoding="utf-8")
    expected = [turn("1?"), turn("2?")][: 2 if cut == 1 else 1]
    assert read_transcript(path) == expected
    with open_transcript(path, fresh=False) as transcript:
        transcript.append([turn("3?")])
    assert read_transcript(path) == [*expected, turn("3?")]


def test_a_transcript_without_turns_is_deleted(path: Path) -> None:
    with open_transcript(path, fresh=True):
        assert path.exists()
    assert not list(path.parent.glob("*talk*"))


def test_one_process_writes_a_transcript(path: Path) -> None:
    with (
        lock(path),
        pytest.raises(OutputError, match="another run is writing it"),
        open_transcript(path, fresh=True),
    ):
        pass


def test_a_transcript_that_cannot_be_opened_is_named(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OutputError, match="cannot be written"), open_transcript(path, fresh=True):
        pass


def test_a_full_disk_is_a_write_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with open_transcript(path, fresh=True, records=[turn("1?")]) as transcript:
        monkeypatch.setattr(JsonLines, "append", fail)
        with pytest.raises(WriteError, match="No space left on device"):
            transcript.append([turn("2?")])


@pytest.mark.parametrize("line", ["no json", "[]", '{"question": "a"}', '{"window": {}}'])
def test_a_file_of_something_else_is_refused(path: Path, line: str) -> None:
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=r"talk\.jsonl, line 1: is not a turn"):
        read_transcript(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no turn"):
        read_transcript(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_transcript(path)
