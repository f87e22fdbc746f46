"""Transcript of a conversation: turns as JSON lines, read, checked, resumed and appended to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltavlm.errors import InputError, OutputError, WriteError
from deltavlm.files import JsonLines, describe_read_error, lock, parse_json, read_text
from deltavlm.geo.chips import chip_of_window
from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip
from deltavlm.geo.identity import address_digest, is_same
from deltavlm.geo.pair import PairReader

__all__ = ["Transcript", "last_turns", "open_transcript", "read_transcript"]

Record = dict[str, Any]  # one turn, as `conversation.answer_record` makes it


@dataclass(frozen=True, slots=True)
class Transcript:
    """Transcript file open for appending."""

    lines: JsonLines

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write turns to disk. Raises: WriteError."""
        try:
            self.lines.append(records)
        except OSError as error:
            raise WriteError(
                f"{self.lines.path}: writing failed ({error.strerror}); the turns before are in it"
            ) from error


@contextmanager
def open_transcript(
    path: Path, *, fresh: bool, records: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Transcript]:
    """Lock and open a transcript; `fresh` replaces what it holds by `records`.

    An incomplete last line is removed. A file without any turn at the end is deleted.

    Raises: OutputError where the file cannot be opened, or another process writes it.
    """
    with lock(path):
        try:
            with ExitStack() as stack:
                try:
                    lines = stack.enter_context(JsonLines.open(path, fresh=fresh))
                except OSError as error:
                    raise OutputError(
                        f"{path}: cannot be written ({error.strerror}); choose another name"
                    ) from error
                transcript = Transcript(lines)
                if fresh:
                    transcript.append(records)
                yield transcript
        finally:
            if path.exists() and not path.stat().st_size:
                path.unlink()


def read_transcript(path: Path) -> list[Record]:
    """Read the turns of a transcript, without an incomplete last line.

    Raises: InputError naming the line that is not a turn.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(describe_read_error(path, error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, so it is no saved conversation") from error
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError:
            if number == len(lines):  # without its newline: the process was killed while writing
                break
            record = None
        if not _is_turn(record):
            raise InputError(
                f"{path}, line {number}: is not a turn of a conversation; give a saved conversation"
            )
        records.append(record)
    if not records:
        raise InputError(f"{path} holds no turn of a conversation")
    return records


def _is_turn(record: Any) -> bool:
    if not isinstance(record, Mapping) or not isinstance(record.get("window"), Mapping):
        return False
    numbers = [record["window"].get(key) for key in (*Window._fields, "size")]
    texts = [record.get(key) for key in ("question", "answer", "before", "after", "model")]
    return all(type(number) is int for number in numbers) and all(isinstance(text, str) for text in texts)


def _check_images(reader: PairReader, images: Any) -> None:
    """Raises: InputError where the images have another address, or were written over since."""
    names = " and ".join(dict.fromkeys(view.source.name for view in reader.views))
    advice = "start a new conversation"
    try:
        digest = address_digest(
            bytes.fromhex(images["key"]), *(view.source.location for view in reader.views)
        )
        is_address, files = images["address"] == digest, images["files"]
        are_files = all(
            is_same(earlier, now, ignored=("inode",))
            for known, listed in zip(reader.files, files, strict=True)
            for earlier, now in zip(listed, known.values(), strict=True)
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        raise InputError(f"the saved conversation does not say which images it was about; {advice}") from None
    if not is_address:
        raise InputError(f"the conversation was about images of another address than {names}; {advice}")
    if not are_files:
        raise InputError(f"{names}: changed since the conversation; {advice}")


def last_turns(
    reader: PairReader, records: Sequence[Mapping[str, Any]]
) -> tuple[Chip, list[tuple[str, str]]]:
    """Chip of the last turn, and the turns (question, answer) about it, to resume the conversation.

    Raises: InputError when the conversation was about other images, or they have changed since.
    """
    last = records[-1]
    for date, view in zip(("before", "after"), reader.views, strict=True):
        if last[date] != view.source.name:
            raise InputError(f"the conversation was about {last[date]}, not {view.source.name}")
    if "images" in last:  # `ask --json` writes turns without
        _check_images(reader, last["images"])
    window = last["window"]
    chip = chip_of_window(reader, Window(*(window[key] for key in Window._fields)), window["size"])
    turns: list[tuple[str, str]] = []
    for record in reversed(records):
        if record["window"] != window:
            break
        turns.insert(0, (record["question"], record["answer"]))
    return chip, turns
