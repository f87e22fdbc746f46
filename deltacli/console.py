"""Messages, progress and tables on stderr, without secrets of URLs; stdout carries data only.

On a terminal Rich draws a progress bar and tables; elsewhere everything is one plain line at a time, fit for
a log file. With `--log-format json` each line is a JSON object.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

from deltacli.signals import SignalState
from deltavlm.files.stderr import drop_what_stderr_refuses
from deltavlm.messages import NOTE, pluralize, redact

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

    from deltavlm.data.examples import Problem
    from deltavlm.geo.pair import PairReader
    from deltavlm.model.interface import ModelFacts

__all__ = [
    "Color",
    "Console",
    "LogFormat",
    "console",
    "count_by_kind",
    "duration",
    "name_flag",
    "open_streams",
    "print_notes",
    "print_problems",
    "print_remarks",
    "silence",
    "warn_about_scale",
    "with_flags",
]

Color = Literal["auto", "always", "never"]
LogFormat = Literal["text", "json"]

MAX_LINE_CHARS = 2000
_PROGRESS_EVERY_S = 30.0  # without a terminal: a line at each tenth of the work, and at least this often
_PROGRESS_PAUSE_S = 1.0  # and no more often than this
_LABELS = {"warning": ("Warning:", "33"), "error": ("Error:", "1;31")}  # ANSI styles: yellow, bold red
_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")  # of a function or options, in messages
_FLAGS = {
    "gsd_m": "--gsd",
    "output": "-o",
    "allow_upload": "--yes",
    "timeout_s": "--timeout",
}  # by parameter, where another name is better
_LOG_FIELDS = ("pair", "chip", "status")  # extra attributes of log records that JSON lines keep

WHAT_TO_ASK = "deltavlm ask --help says which questions are answered"

Update = Callable[[int, str], None]  # completed count and a note such as "3 changed"


@dataclass
class Console:
    """Writer of all messages, with the verbosity and format that the shared flags set; one per process."""

    verbosity: int = 0  # -1 quiet, 1 -v, 2 -vv
    show_progress: bool = True
    color: Color = "auto"
    log_format: LogFormat = "text"
    signal_state: SignalState = field(default_factory=SignalState)

    def reset(self, log_format: LogFormat = "text") -> None:
        """Restore the defaults, so that a second command in one process starts afresh."""
        self.verbosity, self.show_progress, self.color = 0, True, "auto"
        self.signal_state = SignalState()
        self.log_format = log_format
        self.route_logging()

    @property
    def on_terminal(self) -> bool:
        """True when stderr is a terminal, where bars, boxes and tables are welcome."""
        return sys.stderr.isatty() and self.log_format == "text"

    def info(self, text: str, **fields: object) -> None:
        """Print a note, unless -q; `fields` are added to the object of `--log-format json`."""
        if self.verbosity >= 0:
            self._write(text, "info", fields)

    def warning(self, text: str, **fields: object) -> None:
        """Print a warning, unless -q."""
        if self.verbosity >= 0:
            self._write(text, "warning", fields)

    def error(self, text: str, **fields: object) -> None:
        """Print an error on one line, with -q too."""
        self._write(text, "error", fields)

    def traceback(self, error: BaseException) -> None:
        """Print the traceback, with -vv only."""
        if self.verbosity >= 2:
            import traceback

            text = "".join(traceback.format_exception(error))
            if self.log_format == "json":
                self._write(type(error).__name__, "debug", {"traceback": text})
            else:
                self._write_raw(redact(text))

    @contextmanager
    def count_progress(
        self, total: int, label: str, *, initial: int = 0, stdout_has_data: bool = False
    ) -> Iterator[Update]:
        """Show progress: a bar with ETA on a terminal, a plain line now and then elsewhere.

        Yields `update(completed, note)`, which also raises `SignalReceived` after a signal whose exception a
        library swallowed. `initial`: completed before this run. `stdout_has_data`: no bar if stdout is the
        terminal too, where it would run through the data.
        """
        with self._progress(total, label, initial, stdout_has_data) as show:

            def update(completed: int, note: str) -> None:
                self.signal_state.check()
                show(completed, note)

            yield update

    @contextmanager
    def _progress(self, total: int, label: str, initial: int, stdout_has_data: bool) -> Iterator[Update]:
        is_enabled = self.show_progress and self.verbosity >= 0 and total > 0
        if not is_enabled or (stdout_has_data and sys.stdout.isatty()):
            yield lambda completed, note: None
        elif self.on_terminal:
            with self._progress_bar(total, label, initial) as update:
                yield update
        else:
            yield self._progress_lines(total, label, initial)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show on a terminal that something takes its time; nothing elsewhere, nor with -q."""
        if not self.on_terminal or not self.show_progress or self.verbosity < 0:
            yield
            return
        with self._rich_console().status(redact(text)):
            yield

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table on a terminal, unless -q; nothing elsewhere."""
        if not self.on_terminal or self.verbosity < 0 or not rows:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: the model's words are not markup
        self._rich_console().print(table)

    def route_logging(self) -> None:
        """Send the library's log to stderr: notes and warnings by default, more with -v and -vv, errors with
        -q."""
        library_level = {-1: logging.ERROR, 0: NOTE, 1: logging.INFO}.get(self.verbosity, logging.DEBUG)
        other_level = {0: logging.ERROR, 1: logging.WARNING}.get(self.verbosity, logging.INFO)
        root = logging.getLogger()
        root.handlers = [old for old in root.handlers if not isinstance(old, _ConsoleHandler)]
        root.addHandler(_ConsoleHandler(self))
        root.setLevel(logging.CRITICAL if self.verbosity < 0 else other_level)
        logging.getLogger("deltavlm").setLevel(library_level)
        logging.captureWarnings(True)

    def _write(self, text: str, level: str, fields: dict[str, object]) -> None:
        text = with_flags(text[: 50 * MAX_LINE_CHARS])  # it may repeat a whole file of others
        line = redact(" ".join("".join(char if char.isprintable() else " " for char in text).split()))
        if len(line) > MAX_LINE_CHARS:
            line = f"{line[: MAX_LINE_CHARS // 2]} ... {line[-MAX_LINE_CHARS // 2 :]}"
        fields = {key: redact(value) if isinstance(value, str) else value for key, value in fields.items()}
        if self.log_format == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            record = {"time": now, "level": level, "message": line, **fields}
            line = json.dumps(record, ensure_ascii=False, default=str)
        elif level in _LABELS:
            label, style = _LABELS[level]
            line = f"\x1b[{style}m{label}\x1b[0m {line}" if self._use_color() else f"{label} {line}"
        self._write_raw(line + "\n")

    def _write_raw(self, text: str) -> None:
        sys.stderr.write(text.encode("utf-8", "replace").decode("utf-8"))
        sys.stderr.flush()

    def _use_color(self) -> bool:
        if self.color != "auto":
            return self.color == "always"
        return self.on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _rich_console(self) -> RichConsole:
        from rich.console import Console as RichConsole

        return RichConsole(stderr=True, no_color=not self._use_color(), highlight=False)

    @contextmanager
    def _progress_bar(self, total: int, label: str, initial: int) -> Iterator[Update]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        ]
        # redirect_stdout: Rich would draw the features of `-o - | ...` above the bar, on stderr
        with Progress(
            *columns, console=self._rich_console(), transient=True, redirect_stdout=False
        ) as progress:
            task = progress.add_task(label, total=total, completed=initial, note="")
            yield lambda completed, note: progress.update(task, completed=completed, note=note)

    def _progress_lines(self, total: int, label: str, initial: int) -> Update:
        start = last_time = time.monotonic()
        last_count = initial

        def update(completed: int, note: str) -> None:
            nonlocal last_time, last_count
            now = time.monotonic()
            is_tenth = (completed - last_count) * 10 >= total and now - last_time >= _PROGRESS_PAUSE_S
            if completed == total or not (is_tenth or now - last_time >= _PROGRESS_EVERY_S):
                return
            new_count = completed - initial
            eta_s = (now - start) / new_count * (total - completed) if new_count > 0 else 0.0
            percent = 100 * completed // total
            words = [f"{label} {completed}/{total} ({percent} %)", note, f"ETA {duration(eta_s)}"]
            fields = {"done": completed, "total": total, "eta_seconds": round(eta_s)}
            self.info(", ".join(filter(None, words)), **fields)
            last_time, last_count = now, completed

        return update


def name_flag(flag: str) -> None:
    """Make a long flag known to `with_flags`."""
    _FLAGS.setdefault(flag.removeprefix("--").replace("-", "_"), flag)


def with_flags(text: str) -> str:
    """Text of the library with flags in place of parameters, which it names in backticks.

    "add `overwrite=True`, `scale='none'` or `resume=False`" -> "add --overwrite, --scale none or --no-resume"
    """

    def replaced(match: re.Match[str]) -> str:
        name, value = match.groups()
        flag = _FLAGS.get(name)
        if flag is None:
            return match[0]
        if value == "False":
            return f"--no-{flag[2:]}"
        return flag if value in (None, "True") else f"{flag} {value.strip(chr(39))}"

    return _PARAMETER.sub(replaced, text)


class _ConsoleHandler(logging.Handler):
    """Print each log record as one line of the console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        values = {name: getattr(record, name, None) for name in _LOG_FIELDS}
        fields = {name: value for name, value in values.items() if value is not None}
        write = self.console.warning if record.levelno >= logging.WARNING else self.console.info
        write(record.getMessage(), **fields)
        if record.exc_info and record.exc_info[1]:
            self.console.traceback(record.exc_info[1])


def duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def open_streams() -> None:
    """Replace closed streams (`2>&-`), and make all of them UTF-8 in every locale, as JSON is.

    What cannot be written to stderr is dropped, by whatever library: a log that cannot be written ends no
    run. Data for a closed stdout are an error. Piped input that is not UTF-8 is decoded with replacement
    characters.
    """
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:  # else an output might be opened as stderr
        pass
    os.close(number)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  writing is an error
    drop_what_stderr_refuses()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def silence(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to the null device: Python's flush at exit is quiet then."""
    try:
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)
    except (OSError, ValueError):  # a stream without a file descriptor, as in tests
        pass


console = Console()


def count_by_kind(problems: Sequence[Problem]) -> dict[str, int]:
    """Count the problems of a dataset by kind, in order of first appearance."""
    return dict(Counter(problem.kind for problem in problems))


def print_problems(problems: Sequence[Problem], label: str, limit: int = 3) -> None:
    """Warn about the problems of a dataset: for each kind the count and the first `limit` of them."""
    for kind, count in count_by_kind(problems).items():
        examples = [problem for problem in problems if problem.kind == kind][:limit]
        texts = [
            problem.message
            if problem.location in problem.message
            else f"{problem.location}: {problem.message}"
            for problem in examples
        ]
        hidden = f"; and {count - limit:,} more" if count > limit else ""
        console.warning(f"{label}: {pluralize(count, kind)}: {'; '.join(texts)}{hidden}")


def print_notes(reader: PairReader, *, pixel_size: bool = True) -> None:
    """Print the notes and warnings from opening a pair, and how large a pixel is on the ground."""
    for note in reader.notes:
        (console.warning if note in reader.warnings else console.info)(note)
    if pixel_size and reader.gsd_m is not None:
        console.info(f"pixel size {reader.gsd_m:.3g} m")


def print_remarks(record: Mapping[str, Any]) -> None:
    """Print the words in which a question was asked, where they are not those that were typed; warn about one
    that the model was not taught to answer."""
    from deltavlm.tasks.text import simplify

    if record["status"] == "unsupported":
        console.warning(f"not answered: {record['question']}; {WHAT_TO_ASK}")
    if simplify(record["asked"]) != simplify(record["question"]):
        console.info(f"asked as: {record['asked']}")


def warn_about_scale(reader: PairReader, model: ModelFacts, chip_px: int) -> None:
    """Warn where the model, or its evidence model, sees the ground at a scale far from that of its training.

    chip_px: side of the chip.
    """
    from deltavlm.pipeline.evidence import scales_of

    for scale in scales_of(reader.gsd_m, model, chip_px):
        warning = scale.warning()
        if warning:
            console.warning(warning)
