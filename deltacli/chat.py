"""`deltavlm chat`: a conversation about a pair of images, on a terminal or through a pipe."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options, parsing
from deltacli.console import console, pluralize, warn_about_scale
from deltacli.flag_groups import CommonFlags, ModelFlags, RasterFlags, WindowFlags, grouped, open_rasters
from deltacli.options import COMMON, OUTPUT, flag
from deltacli.signals import interactive_sigint
from deltavlm.config import suggest
from deltavlm.errors import DeltaVLMError, InputError, OutputError, PartialFailure, WriteError

if TYPE_CHECKING:
    from deltavlm.pipeline.conversation import Conversation

_HELP = {
    "/help": "these commands",
    "/image [FILE.png]": "what the conversation is about; with a name, both dates side by side as a picture",
    "/at LON,LAT": "look at the chip around another point; the conversation begins anew",
    "/history": "what was said so far",
    "/save FILE": "write the conversation, a JSON object a line; --continue FILE goes on with it",
    "/quit": "end, as Ctrl-D does; Ctrl-C stops an answer only",
}


@grouped
def chat(
    before: options.Before,
    after: options.After,
    *,
    asked: ModelFlags,
    place: WindowFlags,
    save: Annotated[
        Path | None,
        flag(
            "--save", panel=OUTPUT, metavar="FILE", help="Keep the conversation, turn by turn, as JSON lines."
        ),
    ] = None,
    go_on: Annotated[
        Path | None,
        flag(
            "--continue",
            panel=OUTPUT,
            metavar="FILE",
            help="Go on with a kept conversation, and keep it there; with --save keep it elsewhere.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json_records: Annotated[
        bool,
        flag(
            "--json",
            panel=COMMON,
            allow_from_autoenv=False,
            help="A JSON object for each answer: question, answer, score, window, model.",
        ),
    ] = False,
    rasters: RasterFlags,
    common: CommonFlags,
) -> None:
    """Talk about a pair of images; every answer knows what was said before.

    /help lists the commands. With a pipe on stdin a line in is a question, and a line out its answer.
    """
    from deltavlm.files import lock
    from deltavlm.pipeline.conversation import Conversation, continued, encode_chip, read_session

    earlier = [] if go_on is None else read_session(go_on)
    kept = save or go_on
    if save is not None and save != go_on:
        _check_new(save, overwrite, at_start=True)
    runtime = asked.runtime_options()
    with open_rasters(before, after, place, rasters) as reader:
        from deltavlm.model.folder import find_folder, read_config

        runtime.apply_to(read_config(find_folder(asked.model)))
        asked.check_device()
        turns: list[tuple[str, str]] = []
        if earlier:
            chip, turns = continued(reader, earlier)
            if place != WindowFlags():
                raise InputError("--continue stays at its place; leave --at, --bbox and --chip-size out")
        else:
            chip = place.select(reader)
        model, _ = asked.load()
        warn_about_scale(reader, model.training_gsd_m, chip.size / model.chip_px)
        if earlier and earlier[-1]["model"] != model.label:
            console.warning(f"the conversation was with {earlier[-1]['model']}")
        conversation = Conversation(reader, model, encode_chip(reader, model, chip), turns, list(earlier))
        with (
            nullcontext() if kept is None else lock(kept),
            _stream(kept, afresh=kept != go_on) as stream,
        ):
            if stream is not None and kept != go_on:
                _keep(stream, earlier, kept)
            try:
                ChatSession(conversation, place, json_records, stream, kept).sit()
            finally:
                if kept is not None and not kept.stat().st_size:
                    kept.unlink()  # nothing was said


@dataclass
class ChatSession:
    """Where questions come in and answers go out."""

    conversation: Conversation
    place: WindowFlags
    json_records: bool
    stream: IO[str] | None
    kept: Path | None
    unanswered: int = 0
    failed: int = 0  # piped commands
    is_lost: bool = False  # a piped /at failed: nobody knows what the next question is about

    def sit(self) -> None:
        """Until the questions end. Raises: PartialFailure when a piped question got no answer."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            with suppress(ImportError):  # not on Windows
                import readline  # noqa: F401  # gives `input` a history and editing
            console.info("/help lists the commands; Ctrl-D ends")
            if self.conversation.turns:
                console.info(f"{pluralize(len(self.conversation.turns), 'turn')} so far; /history shows them")
        with interactive_sigint() if is_terminal else nullcontext():
            for line in _typed() if is_terminal else sys.stdin:
                try:
                    if not self.hear(line.strip()):
                        break
                except KeyboardInterrupt:
                    if not is_terminal:
                        raise
                    console.info("stopped")
                except WriteError:
                    raise
                except DeltaVLMError as error:
                    console.error(str(error))
                    if is_terminal:
                        continue
                    if line.startswith("/"):
                        self.failed += 1
                        self.is_lost = self.is_lost or line.startswith("/at")
                    else:
                        self.unanswered += 1
                        typer.echo("null" if self.json_records else "")  # a line out for a line in
        if self.unanswered or self.failed:
            told = f"{pluralize(self.unanswered, 'question')} got no answer"
            raise PartialFailure(
                f"{told}, {pluralize(self.failed, 'command')} failed" if self.failed else told
            )

    def hear(self, line: str) -> bool:
        """A command or a question; False ends it."""
        from deltavlm.tasks.ask import question

        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            return self.obey(name, rest.strip())
        if not line:
            return True
        if self.is_lost:
            raise InputError("not asked: the last /at failed")
        record = self.conversation.ask(question(line))
        typer.echo(json.dumps(record, ensure_ascii=False) if self.json_records else record["answer"])
        sys.stdout.flush()
        if self.stream is not None:
            _keep(self.stream, [record], self.kept)
        return True

    def obey(self, name: str, rest: str) -> bool:
        """A command; False ends it."""
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
        commands[name](rest)
        return True

    def help(self, rest: str) -> None:
        for usage, what in _HELP.items():
            console.info(f"{usage}: {what}")

    def image(self, rest: str) -> None:
        from deltavlm.pipeline.conversation import chip_record

        picture = self.conversation.picture
        told = chip_record(self.conversation.reader, picture)
        window = told["window"]
        text = f"{told['before']} and {told['after']}, {window['width']} x {window['height']} px from "
        text += f"column {window['col_off']}, row {window['row_off']}"
        if told["bounds"]:
            text += " (lon/lat {:.5f}, {:.5f} to {:.5f}, {:.5f})".format(*told["bounds"])
        if told["valid_fraction"] < 1:
            text += f"; {1 - told['valid_fraction']:.0%} without data"
        console.info(text)
        if rest:
            path = _named(rest)
            _check_new(path, overwrite=False)
            _write_picture(path, picture.pixels.before, picture.pixels.after)
            console.info(f"before | after in {path}")

    def at(self, rest: str) -> None:
        from deltavlm.geo.chips import chip_at

        try:
            point = parsing.parse_point(rest)
        except typer.BadParameter:
            raise InputError(f"{rest!r} is not lon,lat; write for example /at 15.003,48.751") from None
        talk = self.conversation
        chip = chip_at(talk.reader, *point, self.place.chip_size)
        talk.go_to(chip)
        self.is_lost = False
        self.image("")

    def history(self, rest: str) -> None:
        if not self.conversation.turns:
            console.info("nothing was said yet")
        for asked, answered in self.conversation.turns:
            console.info(f"> {asked}")
            console.info(f"  {answered}")

    def save(self, rest: str) -> None:
        if not rest:
            raise InputError("/save needs the name of a file")
        if not self.conversation.records:
            raise InputError("nothing was said yet")
        path = _named(rest)
        _check_new(path, overwrite=False)
        with _stream(path, afresh=True) as stream:
            assert stream is not None
            _keep(stream, self.conversation.records, path)
        console.info(f"{pluralize(len(self.conversation.records), 'turn')} in {path}")


def _typed() -> Iterator[str]:
    """Lines from the keyboard until Ctrl-D; Ctrl-C drops the line that is being typed."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()


def _named(text: str) -> Path:
    """A file name, which may be quoted."""
    try:
        words = shlex.split(text, posix=sys.platform != "win32")
    except ValueError:
        words = []
    if len(words) != 1:
        raise InputError(f"{text!r} is not one file name; put it in quotes")
    return Path(words[0])


def _check_new(path: Path, overwrite: bool, *, at_start: bool = False) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists already; choose another name{', or --overwrite' if at_start else ''}"
        )
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.absolute().parent}; create it first")


def _stream(path: Path | None, *, afresh: bool) -> Any:
    """A file to keep turns in; nothing without a path."""
    if path is None:
        return nullcontext()
    try:
        stream = path.open("w" if afresh else "a+", encoding="utf-8", newline="\n")
        if not afresh:
            _mend(path, stream)
        return stream
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another name") from error


def _mend(path: Path, stream: IO[str]) -> None:
    """A last line without its end was cut off while it was written, and goes; or an editor took the end."""
    content = path.read_bytes()
    start = content.rfind(b"\n") + 1
    if start == len(content):
        return
    try:
        json.loads(content[start:])
        stream.write("\n")
    except ValueError:
        stream.truncate(start)


def _keep(stream: IO[str], records: list[dict[str, Any]], path: Path | None) -> None:
    try:
        stream.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        stream.flush()
    except OSError as error:
        raise WriteError(f"{path}: writing failed ({error.strerror}); the turns before are in it") from error


def _write_picture(path: Path, before: Any, after: Any) -> None:
    """Both dates side by side. Raises: OutputError."""
    import numpy as np
    from PIL import Image

    gap = np.full((3, before.shape[1], 8), 255, np.uint8)
    both = np.concatenate([before, gap, after], axis=2).transpose(1, 2, 0)
    try:
        Image.fromarray(np.ascontiguousarray(both)).save(path)
    except (OSError, ValueError) as error:  # ValueError: an unknown suffix
        raise OutputError(f"{path}: cannot be written ({error}); name a .png") from error
