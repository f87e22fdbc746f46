"""`--metrics FILE`: how a run goes and how it ended, for Prometheus, by node_exporter's textfile collector.

Written when the run begins, every few seconds while it goes on, and at its end however it ends; each time to
a temporary file that takes the name, so that a reader never sees half of one.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deltacli.console import console
from deltavlm import __version__
from deltavlm.errors import OutputError

if TYPE_CHECKING:
    from deltavlm.model.interface import ModelFacts
    from deltavlm.pipeline.run_result import RunResult
    from deltavlm.pipeline.schema import ChipStatus

__all__ = ["Metric", "RunMetrics", "check_metrics_file", "format_metrics", "run_metrics"]

REFRESH_S = 10.0
_CHIPS: tuple[ChipStatus, ...] = ("answered", "cascaded", "nodata", "unreadable", "error")
_PAIRS = ("answered", "partly", "failed")
_STAGES = ("read", "waited", "encode", "answer", "write")
_ENDS = {0: "answered", 3: "partly", 1: "failed", 2: "failed"}  # exit codes of a run over one pair

FIRST = "# HELP "  # how a text of ours begins

Sample = tuple[Mapping[str, str], float]  # labels and a value


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of samples; `name` and the names of labels are `[a-zA-Z_][a-zA-Z0-9_]*`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Iterable[Sample]


class RunMetrics:
    """What is known of the run of this process; one a process, begun by `analyze` and ended by the bridge."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing is watched, so that a second run in one process starts afresh."""
        self.path: Path | None = None
        self.output = ""  # where the features go: what tells two runs apart
        self.began_s = time.time()
        self._clock_s = time.monotonic()
        self.code: int | None = None
        self._model: ModelFacts | None = None
        self._result: RunResult | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, output: str, *, dry_run: bool) -> None:
        """The run begins; a dry run is none. Raises: OutputError where the file cannot be written."""
        self.output = output if output == "-" else str(Path(output).absolute())
        if dry_run:
            self.path = None
        if self.path is None:
            return
        try:
            self._write(self.path)
        except OSError as error:
            raise OutputError(
                f"{self.path}: the metrics cannot be written ({error.strerror}); choose another file"
            ) from error
        self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)
        self._thread.start()

    def set_model(self, model: ModelFacts) -> None:
        """This model is asked."""
        self._model = model

    def watch(self, result: RunResult) -> None:
        """Report the counts of this run, which goes on."""
        self._result = result

    def finish(self, code: int) -> None:
        """The run has ended with this exit code; a file that cannot be written is a warning only."""
        if self.path is None:
            return
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.code = code
        try:
            self._write(self.path)
        except OSError as error:
            console.warning(f"{self.path}: the metrics cannot be written ({error.strerror})")

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH_S):
            with suppress(OSError):  # told at the end
                self._write(self.path)  # type: ignore[arg-type]  # begun with a path

    def _write(self, path: Path) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}.part")  # the collector reads *.prom alone
        try:
            part.write_text(format_metrics(self.metrics(), {"output": self.output}), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def metrics(self) -> Iterator[Metric]:
        """All that is known now."""
        model, code = self._model, self.code
        summaries = [] if self._result is None else [self._result.summary]
        built = {"version": __version__, "python": platform.python_version()}
        yield Metric("deltavlm_build_info", "gauge", "The program that ran.", [(built, 1)])
        if model is not None:
            asked = {"model": model.name, "fingerprint": model.fingerprint, "device": model.device}
            yield Metric("deltavlm_model_info", "gauge", "The model that was asked.", [(asked, 1)])
        chips = [({"status": one}, sum(each.statuses[one] for each in summaries)) for one in _CHIPS]
        yield Metric(
            "deltavlm_chips_total", "counter", "Chips by status, those of a run gone on with included.", chips
        )
        for name, told, count in (
            ("resumed", "Chips that an earlier run had answered.", sum(one.resumed for one in summaries)),
            ("changed", "Chips that the model calls changed.", sum(one.changed for one in summaries)),
        ):
            yield Metric(f"deltavlm_chips_{name}_total", "counter", told, [({}, count)])
        polygons = sum(one.polygons for one in summaries)
        yield Metric("deltavlm_polygons_total", "counter", "Polygons of what changed.", [({}, polygons)])
        yield Metric("deltavlm_pairs_total", "counter", "Pairs by status.", self._of_pairs())
        stages = [({"stage": one}, sum(getattr(each.stages, one) for each in summaries)) for one in _STAGES]
        yield Metric(
            "deltavlm_stage_seconds_total",
            "counter",
            "Seconds by what they went into. Chips are read while others are answered; waited: for reading.",
            stages,
        )
        spent_s = time.monotonic() - self._clock_s
        yield Metric(
            "deltavlm_run_duration_seconds", "gauge", "Seconds since the run began.", [({}, spent_s)]
        )
        yield Metric(
            "deltavlm_run_start_timestamp_seconds", "gauge", "When the run began.", [({}, self.began_s)]
        )
        yield Metric(
            "deltavlm_run_active",
            "gauge",
            "1 while the run goes on, and after one that was killed.",
            [({}, int(code is None))],
        )
        if code is not None:
            yield Metric("deltavlm_exit_code", "gauge", "Exit code of the run that ended.", [({}, code)])
            yield Metric(
                "deltavlm_last_run_timestamp_seconds", "gauge", "When the run ended.", [({}, time.time())]
            )

    def _of_pairs(self) -> list[tuple[dict[str, str], float]]:
        if self._result is None or self._result.is_single:
            found = [_ENDS[self.code]] if self.code in _ENDS else []
        else:
            found = [pair.status for pair in [*self._result.pairs.values()]]
        return [({"status": one}, found.count(one)) for one in _PAIRS]


def check_metrics_file(path: Path) -> Path:
    """The file, if metrics may be written there: one named by mistake stays whole. Raises: OutputError."""
    if str(path) == "-":
        raise OutputError("--metrics -: needs a file, for stdout is for data")
    try:
        if path.exists() and not (path.is_file() and _is_ours(path)):
            raise OutputError(f"{path}: is there, and is no file of metrics; choose another file")
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: the metrics cannot be written (no such folder); make it first")
    except OSError as error:
        raise OutputError(f"{path}: the metrics cannot be written ({error.strerror})") from error
    return path


def _is_ours(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(FIRST)) in (b"", FIRST.encode())


def format_metrics(metrics: Iterable[Metric], labels: Mapping[str, str]) -> str:
    """The text of all metrics; each sample has these `labels` after its own. Ends with a newline.

    Families without samples are left out.
    """
    lines = []
    for metric in metrics:
        samples = [_line(metric.name, {**own, **labels}, value) for own, value in metric.samples]
        if samples:
            help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"{FIRST}{metric.name} {help_text}", f"# TYPE {metric.name} {metric.kind}", *samples]
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{f'{{{told}}}' if told else ''} {value!r}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # a path may hold bytes that are no UTF-8
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


run_metrics = RunMetrics()
