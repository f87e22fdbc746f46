"""`deltavlm chat`: a conversation about a pair of images, on a terminal or through a pipe."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, parsing
from deltacli.console import console, print_remarks
from deltacli.flag_groups import (
    CalibratedModelFlags,
    CommonFlags,
    RasterFlags,
    WindowFlags,
    grouped,
    open_rasters,
)
from deltacli.options import COMMON, OUTPUT, flag
from deltacli.signals import interactive_sigint
from deltavlm.config import suggest
from deltavlm.errors import DeltaVLMError, InputError, OutputError, PartialFailure, WriteError
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.geo.pair import ChipPixels
    from deltavlm.pipeline.conversation import Conversation
    from deltavlm.pipeline.transcript import Transcript

MAX_LINE_CHARS = 1_000_000
HELP = {
    "/help": "these commands",
    "/image [FILE.png]": "describe the image; with a file name, save both dates side by side",
    "/at LON,LAT": "go to the chip around another point; the conversation starts over",
    "/history": "turns so far",
    "/save FILE": "write the conversation, one JSON object a line; --continue FILE resumes it",
    "/quit": "end, as Ctrl-D does; Ctrl-C stops only an answer",
}


@grouped
def chat(
    before: options.Before,
    after: options.After,
    *,
    model: CalibratedModelFlags,
    window: WindowFlags,
    save: Annotated[
        Path | None,
        flag(
            "--save", panel=OUTPUT, metavar="FILE", help="Save the conversation, turn by turn, as JSON lines."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        flag(
            "--continue",
            panel=OUTPUT,
            metavar="FILE",
            help="Resume a saved conversation and append to it; with --save, write a copy instead.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: Annotated[
        bool,
        flag(
            "--json",
            panel=COMMON,
            allow_from_autoenv=False,
            help="One JSON object for each answer: question, answer, status, score, window, model.",
        ),
    ] = False,
    rasters: RasterFlags,
    common: CommonFlags,
) -> None:
    """Talk about a pair of images; every answer takes the earlier turns into account.

    /help lists the commands. With a pipe on stdin, each line is a question and gets one line as its answer.
    """
    from deltavlm.geo.location import local_file
    from deltavlm.pipeline.conversation import Conversation, encode_chip
    from deltavlm.pipeline.transcript import last_turns, open_transcript, read_transcript

    records = [] if resume is None else read_transcript(resume)
    path = save or resume
    is_new = path != resume
    if path is not None and is_new:
        read = {"BEFORE": local_file(before), "AFTER": local_file(after), "--continue": resume}
        parsing.check_files([("--save", path)], {**read, "--config": common.config})
        _check_new(path, overwrite, hint=", or --overwrite")
    with open_rasters(before, after, window, rasters) as reader:
        model.read_spec()
        model.read_evidence_spec()
        model.check_device()
        turns: list[tuple[str, str]] = []
        if records:
            chip, turns = last_turns(reader, records)
            if window != WindowFlags():
                raise InputError(
                    "--continue keeps the window of the conversation; leave out --at, --bbox and --chip-size"
                )
        else:
            chip = window.select(reader)
        change_model = model.load_for(reader, chip)
        if records and records[-1]["model"] != change_model.label:
            console.warning(f"the conversation was with {records[-1]['model']}")
        encoded = encode_chip(reader, change_model, chip)
        conversation = Conversation(reader, change_model, encoded, turns, list(records))
        saved = nullcontext() if path is None else open_transcript(path, fresh=is_new, records=records)
        with saved as transcript:
            ChatSession(conversation, window.chip_size, as_json, transcript).run()


@dataclass
class ChatSession:
    """Loop of a conversation: reads questions and commands, prints the answers."""

    conversation: Conversation
    chip_px: int
    as_json: bool
    transcript: Transcript | None
    unanswered: int = 0
    failed_commands: int = 0  # of a pipe
    is_lost: bool = False  # a piped /at failed: the next question would be about the wrong chip

    def run(self) -> None:
        """Handle lines until they end. Raises: PartialFailure when a piped line failed."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            with suppress(ImportError):  # not on Windows
                import readline  # noqa: F401  # gives `input` a history and editing
            console.info("/help lists the commands; Ctrl-D ends")
            if self.conversation.turns:
                console.info(f"{pluralize(len(self.conversation.turns), 'turn')} so far; /history shows them")
        with interactive_sigint() if is_terminal else nullcontext():
            for line in _typed_lines() if is_terminal else _piped_lines():
                try:
                    if not self.handle(line.strip()):
                        break
                except KeyboardInterrupt:
                    if not is_terminal:
                        raise
                    console.info("stopped")
                except WriteError:
                    raise
                except DeltaVLMError as error:
                    console.error(str(error))
                    if not is_terminal:
                        self._count_failure(line)
        if self.unanswered or self.failed_commands:
            message = f"{pluralize(self.unanswered, 'question')} got no answer"
            if self.failed_commands:
                message += f", {pluralize(self.failed_commands, 'command')} failed"
            raise PartialFailure(message)

    def _count_failure(self, line: str) -> None:
        """Count a piped line that failed; a question still gets its line of output."""
        if line.startswith("/"):
            self.failed_commands += 1
            self.is_lost = self.is_lost or line.startswith("/at")
        else:
            self.unanswered += 1
            typer.echo("null" if self.as_json else "")

    def handle(self, line: str) -> bool:
        """Handle a command or a question; False ends the loop."""
        if line.startswith("/"):
            name, _, argument = line.partition(" ")
            return self.run_command(name, argument.strip())
        if line:
            self.answer(line)
        return True

    def answer(self, text: str) -> None:
        """Ask the model, print the answer and save the turn."""
        from deltavlm.tasks.ask import question

        if self.is_lost:
            raise InputError("not asked: the last /at failed")
        record = self.conversation.ask(question(text))
        print_remarks(record)
        typer.echo(json.dumps(record, ensure_ascii=False) if self.as_json else record["answer"])
        sys.stdout.flush()
        if self.transcript is not None:
            self.transcript.append([record])

    def run_command(self, name: str, argument: str) -> bool:
        """Run a command; False ends the loop. Raises: InputError for an unknown one."""
        commands: dict[str, Callable[[str], None]] = {
            "/help": self.help,
            "/image": self.image,
            "/at": self.at,
            "/history": self.history,
            "/save": self.save,
        }
        if name in ("/quit", "/exit"):
            return False
        if name not in commands:
            raise InputError(f"no command {name}{suggest(name, [*commands, '/quit'])}; /help lists them")
        commands[name](argument)
        return True

    def help(self, argument: str) -> None:
        """`/help`: list the commands."""
        for usage, description in HELP.items():
            console.info(f"{usage}: {description}")

    def image(self, argument: str) -> None:
        """`/image [FILE.png]`: describe the image, and save it."""
        from deltavlm.pipeline.conversation import chip_record

        encoded = self.conversation.chip
        record = chip_record(self.conversation.reader, encoded)
        window = record["window"]
        text = f"{record['before']} and {record['after']}, {window['width']} x {window['height']} px from "
        text += f"column {window['col_off']}, row {window['row_off']}"
        if record["bounds"]:
            text += " (lon/lat {:.5f}, {:.5f} to {:.5f}, {:.5f})".format(*record["bounds"])
        if record["valid_fraction"] < 1:
            text += f"; {1 - record['valid_fraction']:.0%} nodata"
        console.info(text)
        if argument:
            path = _file_name(argument)
            _check_new(path, overwrite=False)
            _save_image(path, encoded.pixels)
            console.info(f"before | after in {path}")

    def at(self, argument: str) -> None:
        """`/at LON,LAT`: go to the chip around a point."""
        from deltavlm.geo.chips import chip_at

        try:
            point = parsing.parse_point(argument)
        except typer.BadParameter:
            raise InputError(f"{argument!r} is not lon,lat; write for example /at 15.003,48.751") from None
        self.conversation.go_to(chip_at(self.conversation.reader, *point, self.chip_px))
        self.is_lost = False
        self.image("")

    def history(self, argument: str) -> None:
        """`/history`: print the turns about this image."""
        if not self.conversation.turns:
            console.info("no turns yet")
        for question, answer in self.conversation.turns:
            console.info(f"> {question}")
            console.info(f"  {answer}")

    def save(self, argument: str) -> None:
        """`/save FILE`: write all turns to a new file."""
        from deltavlm.pipeline.transcript import open_transcript

        records = self.conversation.records
        if not argument:
            raise InputError("/save needs a file name")
        if not records:
            raise InputError("there are no turns to save yet")
        path = _file_name(argument)
        _check_new(path, overwrite=False)
        with open_transcript(path, fresh=True, records=records):
            console.info(f"{pluralize(len(records), 'turn')} in {path}")


def _piped_lines() -> Iterator[str]:
    """Lines of stdin until its end; a line without an end comes in parts."""
    return iter(lambda: sys.stdin.readline(MAX_LINE_CHARS), "")


def _typed_lines() -> Iterator[str]:
    """Lines from the keyboard until Ctrl-D; Ctrl-C drops the line that is being typed."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()


def _file_name(text: str) -> Path:
    """Parse a file name, which may be quoted. Raises: InputError."""
    try:
        words = shlex.split(text, posix=sys.platform != "win32")
    except ValueError:
        words = []
    if len(words) != 1:
        raise InputError(f"{text!r} is not one file name; put it in quotes")
    return Path(words[0])


def _check_new(path: Path, overwrite: bool, hint: str = "") -> None:
    """Raises: OutputError unless a file can be created at `path`."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name{hint}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.absolute().parent}; create it first")


def _save_image(path: Path, pixels: ChipPixels) -> None:
    """Save both dates side by side, 8 px apart. Raises: OutputError."""
    import numpy as np
    from PIL import Image

    gap = np.full((3, pixels.before.shape[1], 8), 255, np.uint8)
    side_by_side = np.concatenate([pixels.before, gap, pixels.after], axis=2).transpose(1, 2, 0)
    try:
        Image.fromarray(np.ascontiguousarray(side_by_side)).save(path)
    except (OSError, ValueError) as error:  # ValueError: an unknown suffix
        raise OutputError(f"{path}: cannot be written ({error}); name a .png") from error
