"""What the program says: notes, warnings, errors, progress, tables. All of it on stderr; stdout is for data.

On a terminal Rich draws a bar and a table; elsewhere everything is one plain line at a time, fit for a log.
With `--log-format json` each line is an object, for a machine that reads the log.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

from deltacli.signals import Stop

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

    from deltavlm.data.examples import Problem
    from deltavlm.geo.pair import PairReader

__all__ = [
    "Color",
    "Console",
    "LogFormat",
    "console",
    "count_by_kind",
    "duration",
    "open_streams",
    "pluralize",
    "print_notes",
    "print_problems",
    "silence",
    "warn_about_scale",
]

Color = Literal["auto", "always", "never"]
LogFormat = Literal["text", "json"]

_LINE_EVERY_S = 30.0  # without a terminal: a progress line at each tenth of the work, and at least this often
_LINE_REST_S = 1.0
_LABELS = {"warning": ("Warning:", "33"), "error": ("Error:", "1;31")}
_FIELDS = ("pair", "chip", "status")  # what a record of the log may know besides its message


@dataclass
class Console:
    """How much is said and in which dress; one a process, set by the global flags."""

    verbosity: int = 0  # -1 quiet, 1 -v, 2 -vv
    show_progress: bool = True
    color: Color = "auto"
    log_format: LogFormat = "text"
    stop: Stop = field(default_factory=Stop)

    def reset(self, log_format: LogFormat = "text") -> None:
        """Back to the defaults, so that a second run in one process starts afresh."""
        self.verbosity, self.show_progress, self.color, self.stop = 0, True, "auto", Stop()
        self.log_format = log_format
        self.route_logging()

    @property
    def on_terminal(self) -> bool:
        """True when stderr is a terminal, where bars, boxes and tables are welcome."""
        return sys.stderr.isatty() and self.log_format == "text"

    def info(self, text: str, **fields: object) -> None:
        """A note, unless -q; `fields` are for logs in JSON, whose text has them in its words."""
        if self.verbosity >= 0:
            self._write(text, "info", fields)

    def warning(self, text: str, **fields: object) -> None:
        """A warning, unless -q."""
        if self.verbosity >= 0:
            self._write(text, "warning", fields)

    def error(self, text: str, **fields: object) -> None:
        """One line, always."""
        self._write(text, "error", fields)

    def traceback(self, error: BaseException) -> None:
        """The traceback, with -vv only."""
        if self.verbosity >= 2:
            import traceback

            told = "".join(traceback.format_exception(error))
            if self.log_format == "json":
                self._write(type(error).__name__, "debug", {"traceback": told})
            else:
                self._raw(told)

    @contextmanager
    def count_progress(
        self, total: int, what: str, *, begun: int = 0, beside_data: bool = False
    ) -> Iterator[Callable[[int, str], None]]:
        """Gives `tell(done, note)`: a bar with ETA on a terminal, now and then a plain line elsewhere.

        `tell` also heeds a signal that a library swallowed. `begun`: so many were done before.
        `beside_data`: stdout carries data; if it goes to the terminal, a bar would run through it.
        """
        with self._counter(total, what, begun, beside_data) as show:

            def tell(done: int, note: str) -> None:
                self.stop.check()
                show(done, note)

            yield tell

    @contextmanager
    def _counter(
        self, total: int, what: str, begun: int, beside_data: bool
    ) -> Iterator[Callable[[int, str], None]]:
        is_in_the_way = beside_data and sys.stdout.isatty()
        if not self.show_progress or self.verbosity < 0 or total == 0 or is_in_the_way:
            yield lambda done, note: None
        elif self.on_terminal:
            with self._bar(total, what, begun) as tell:
                yield tell
        else:
            yield self._lines(total, what, begun)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on a terminal, unless -q; nothing elsewhere."""
        if not self.on_terminal or self.verbosity < 0 or not rows:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: model words are not markup
        self._console().print(table)

    def route_logging(self) -> None:
        """Send the library's log to stderr: warnings by default, more with -v and -vv, errors with -q."""
        own = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(self.verbosity, logging.DEBUG)
        others = {0: logging.ERROR, 1: logging.WARNING}.get(self.verbosity, logging.INFO)
        handler = _ConsoleHandler(self)
        root = logging.getLogger()
        root.handlers = [old for old in root.handlers if not isinstance(old, _ConsoleHandler)] + [handler]
        root.setLevel(logging.CRITICAL if self.verbosity < 0 else others)
        logging.getLogger("deltavlm").setLevel(own)
        logging.captureWarnings(True)

    def _write(self, text: str, level: str, fields: dict[str, object]) -> None:
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        if self.log_format == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            told = {"time": now, "level": level, "message": line, **fields}
            line = json.dumps(told, ensure_ascii=False, default=str)
        elif level in _LABELS:
            label, style = _LABELS[level]
            dressed = f"\x1b[{style}m{label}\x1b[0m" if self._use_color() else label
            line = f"{dressed} {line}"
        self._raw(line + "\n")

    def _raw(self, text: str) -> None:
        try:
            sys.stderr.write(text.encode("utf-8", "replace").decode("utf-8"))
            sys.stderr.flush()
        except BrokenPipeError:
            silence(sys.stderr)

    def _use_color(self) -> bool:
        if self.color != "auto":
            return self.color == "always"
        return self.on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _console(self) -> RichConsole:
        from rich.console import Console as RichConsole

        return RichConsole(stderr=True, no_color=not self._use_color(), highlight=False)

    @contextmanager
    def _bar(self, total: int, what: str, begun: int) -> Iterator[Callable[[int, str], None]]:
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
        with Progress(*columns, console=self._console(), transient=True, redirect_stdout=False) as progress:
            task = progress.add_task(what, total=total, completed=begun, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)

    def _lines(self, total: int, what: str, begun: int) -> Callable[[int, str], None]:
        start = told = time.monotonic()
        told_done = begun

        def tell(done: int, note: str) -> None:
            nonlocal told, told_done
            now = time.monotonic()
            tenth = (done - told_done) * 10 >= total and now - told >= _LINE_REST_S
            if done < total and (tenth or now - told >= _LINE_EVERY_S):
                left_s = (now - start) / (done - begun) * (total - done) if done > begun else 0.0
                parts = [f"{what} {done}/{total} ({100 * done // total} %)", note, f"ETA {duration(left_s)}"]
                told_of = {"done": done, "total": total, "eta_seconds": round(left_s)}
                self.info(", ".join(part for part in parts if part), **told_of)
                told, told_done = now, done

        return tell


class _ConsoleHandler(logging.Handler):
    """Log records become lines of the console, one each."""

    def __init__(self, owner: Console) -> None:
        super().__init__()
        self.owner = owner

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        known = {name: getattr(record, name, None) for name in _FIELDS}
        fields = {name: value for name, value in known.items() if value is not None}
        if record.levelno >= logging.WARNING:
            self.owner.warning(text, **fields)
        else:
            self.owner.info(text, **fields)


def pluralize(number: int, thing: str) -> str:
    """`1 chip`, `2 chips`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def open_streams() -> None:
    """Give closed streams (`2>&-`) somewhere to write to, and all UTF-8 in every locale, as JSON is; what is
    piped in and is not becomes a replacement character."""
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def silence(stream: TextIO) -> None:
    """Point a stream whose reader has gone at nowhere, so that Python's flush at exit stays quiet."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stream without a file under it, as in tests
        pass


def duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


console = Console()


def count_by_kind(problems: Sequence[Problem]) -> dict[str, int]:
    """How many there are of each kind, in the order in which they came."""
    kinds: dict[str, int] = {}
    for problem in problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    return kinds


def print_problems(problems: Sequence[Problem], label: str, most: int = 3) -> None:
    """The first few of each kind, and how many there are."""
    for kind, number in count_by_kind(problems).items():
        told = [problem.what for problem in problems if problem.kind == kind]
        where = [problem.where for problem in problems if problem.kind == kind]
        shown = [
            what if place in what else f"{place}: {what}"
            for place, what in zip(where[:most], told[:most], strict=True)
        ]
        more = f"; and {number - most:,} more" if number > most else ""
        console.warning(f"{label}: {pluralize(number, kind)}: {'; '.join(shown)}{more}")


def print_notes(reader: PairReader) -> None:
    """What was found of the pair, and how large a pixel is."""
    for note in reader.notes:
        (console.warning if note in reader.warnings else console.info)(note)
    if reader.gsd_m is not None:
        console.info(f"a pixel is {reader.gsd_m:.3g} m on the ground")


def warn_about_scale(reader: PairReader, training_gsd_m: float, shrink: float) -> None:
    """Warn where the model, which sees pictures `shrink` times smaller, sees ground at a scale far from its
    training's."""
    from deltavlm.pipeline.reading import scale_warning

    warning = scale_warning(reader.gsd_m, training_gsd_m, shrink)
    if warning:
        console.warning(warning)
