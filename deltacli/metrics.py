"""Metrics of a run for Prometheus (`--metrics FILE`), read by node_exporter's textfile collector.

The file is written when the run starts, every few seconds, and at the end however the run ends; each time
atomically, so that the collector never reads a partial file. Text format 0.0.4:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deltacli.console import console
from deltavlm.errors import OutputError
from deltavlm.version import __version__

if TYPE_CHECKING:
    from deltavlm.files import NamedPath
    from deltavlm.model.interface import ModelFacts
    from deltavlm.pipeline.run_result import RunResult
    from deltavlm.pipeline.schema import ChipStatus

__all__ = ["Metric", "RunMetrics", "check_metrics_file", "format_metrics", "run_metrics"]

REFRESH_S = 10.0
CHIP_STATUSES: tuple[ChipStatus, ...] = ("answered", "cascaded", "nodata", "unreadable", "error")
PAIR_STATUSES = ("answered", "partly", "failed")
PAIR_STATUS_OF_EXIT_CODE = {0: "answered", 3: "partly", 1: "failed", 2: "failed"}  # a run over one pair
STAGES = ("read", "waited", "encode", "answer", "write")
FIRST_WORD = "# HELP "  # first bytes of every file that we write

Sample = tuple[Mapping[str, str], float]  # labels and a value


@dataclass(frozen=True, slots=True)
class Metric:
    """Metric family: samples under one name. It and the labels' names match `[a-zA-Z_][a-zA-Z0-9_]*`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Iterable[Sample]


class RunMetrics:
    """Progress and result of the run of this process; started by `analyze`, finished by the app."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last run, so that a second one in the same process starts afresh."""
        self.path: Path | None = None
        self.output = ""  # path of the output: the label that distinguishes runs
        self.start_time_s = time.time()
        self._start_s = time.monotonic()
        self.exit_code: int | None = None
        self._model: ModelFacts | None = None
        self._result: RunResult | None = None
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None

    def set_output(self, output: str, *, dry_run: bool) -> None:
        """Set the output of the run; a dry run has no metrics."""
        self.output = output if output == "-" else str(Path(output).absolute())
        if dry_run:
            self.path = None

    def start(self, written: Iterable[NamedPath], read: Iterable[NamedPath]) -> None:
        """Write the first metrics, and refresh them in a background thread.

        Raises: OutputError where the file cannot be written, or the run writes or reads it besides; then
            nothing is written to it, at the end of the run neither.
        """
        if self.path is None:
            return
        from deltavlm.files import check_distinct_files

        path, self.path = self.path, None
        check_distinct_files([("--metrics", path)], [*written, *read])
        self.path = path
        try:
            self._write(self.path)
        except OSError as error:
            raise OutputError(
                f"{self.path}: the metrics cannot be written ({error.strerror}); choose another file"
            ) from error
        self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)
        self._thread.start()

    def set_model(self, model: ModelFacts) -> None:
        """Set the model that the run asks."""
        self._model = model

    def watch(self, result: RunResult) -> None:
        """Report the counts of this result, which the run updates."""
        self._result = result

    def finish(self, exit_code: int) -> None:
        """Write the last metrics, with the exit code; a file that cannot be written is only a warning."""
        if self.path is None:
            return
        self._finished.set()
        if self._thread is not None:
            self._thread.join()
        self.exit_code = exit_code
        try:
            self._write(self.path)
        except OSError as error:
            console.warning(f"{self.path}: the metrics cannot be written ({error.strerror})")

    def _refresh(self) -> None:
        while not self._finished.wait(REFRESH_S):
            with suppress(OSError):  # reported by `finish`
                self._write(self.path)  # type: ignore[arg-type]  # started with a path

    def _write(self, path: Path) -> None:
        from deltavlm.files import atomic_file, create_file

        text = format_metrics(self.metrics(), {"output": self.output})
        with atomic_file(path, suffix=".part") as scratch, create_file(scratch) as stream:
            stream.write(text.encode())  # under a name that the collector, which reads *.prom, ignores

    def metrics(self) -> Iterator[Metric]:
        """Current values of all metrics."""
        from deltavlm.pipeline.consistency import RULES

        model, exit_code = self._model, self.exit_code
        summaries = [] if self._result is None else [self._result.summary]
        build = {"version": __version__, "python": platform.python_version()}
        yield Metric("deltavlm_build_info", "gauge", "Version of the program.", [(build, 1)])
        if model is not None:
            labels = {"model": model.name, "fingerprint": model.fingerprint, "device": model.device}
            yield Metric("deltavlm_model_info", "gauge", "Model of the run.", [(labels, 1)])
        yield Metric(
            "deltavlm_chips_total",
            "counter",
            "Chips by status, including those of a resumed run.",
            [
                ({"status": status}, sum(summary.statuses[status] for summary in summaries))
                for status in CHIP_STATUSES
            ],
        )
        resumed = sum(summary.resumed for summary in summaries)
        yield _counter("deltavlm_chips_resumed_total", "Chips answered by an earlier run.", resumed)
        changed = sum(summary.changed for summary in summaries)
        yield _counter("deltavlm_chips_changed_total", "Chips that the model calls changed.", changed)
        yield Metric(
            "deltavlm_conflicts_total",
            "counter",
            "Chips by the consistency rule that their answers break.",
            [
                ({"rule": rule.name}, sum(summary.conflicts[rule.name] for summary in summaries))
                for rule in RULES
            ],
        )
        conflicting = sum(summary.conflicting for summary in summaries)
        yield _counter(
            "deltavlm_chips_conflicting_total", "Chips whose answers contradict each other.", conflicting
        )
        polygons = sum(summary.polygons for summary in summaries)
        yield _counter("deltavlm_polygons_total", "Polygons of change.", polygons)
        yield from self._totals()
        yield Metric("deltavlm_pairs_total", "counter", "Pairs by status.", self._pair_samples())
        yield Metric(
            "deltavlm_stage_seconds_total",
            "counter",
            "Seconds by stage; reading runs in parallel with the model. waited: for chips to be read.",
            [
                ({"stage": stage}, sum(getattr(summary.stages, stage) for summary in summaries))
                for stage in STAGES
            ],
        )
        duration_s = time.monotonic() - self._start_s
        yield _gauge("deltavlm_run_duration_seconds", "Seconds since the start of the run.", duration_s)
        yield _gauge("deltavlm_run_start_timestamp_seconds", "Start of the run.", self.start_time_s)
        yield _gauge(
            "deltavlm_run_active", "1 during the run, and after one that was killed.", int(exit_code is None)
        )
        if exit_code is not None:
            yield _gauge("deltavlm_exit_code", "Exit code of the run.", exit_code)
            yield _gauge("deltavlm_last_run_timestamp_seconds", "End of the run.", time.time())

    def _totals(self) -> Iterator[Metric]:
        """Totals of the outputs that are written; in which all ground counts once."""
        totals = None if self._result is None else self._result.totals
        if totals is None or totals.basis is None:
            return
        km2 = {"analyzed": totals.analyzed_km2, "changed": totals.changed_km2}
        for name, value in km2.items():
            if value is not None:
                help_text = f"Ground that is {name}, in square metres."
                yield _gauge(f"deltavlm_{name}_ground_square_meters", help_text, 1e6 * value)
        for name, value in (("buildings", totals.new_buildings), ("roads", totals.new_roads)):
            if value is not None:
                yield _gauge(f"deltavlm_new_{name}", f"New {name}.", value)
        if totals.cloud_share is not None:
            help_text = "Share of the ground with data that cloud masks hide, 0 to 1."
            yield _gauge("deltavlm_cloud_ratio", help_text, totals.cloud_share)

    def _pair_samples(self) -> list[Sample]:
        if self._result is not None and not self._result.is_single:
            statuses: list[str] = [pair.status for pair in list(self._result.pairs.values())]
        elif self.exit_code in PAIR_STATUS_OF_EXIT_CODE:
            statuses = [PAIR_STATUS_OF_EXIT_CODE[self.exit_code]]
        else:
            statuses = []
        return [({"status": status}, statuses.count(status)) for status in PAIR_STATUSES]


def _counter(name: str, description: str, value: float) -> Metric:
    return Metric(name, "counter", description, [({}, value)])


def _gauge(name: str, description: str, value: float) -> Metric:
    return Metric(name, "gauge", description, [({}, value)])


def check_metrics_file(path: Path) -> Path:
    """Return `path` if metrics may be written there: it is new, or holds metrics. Raises: OutputError."""
    if str(path) == "-":
        raise OutputError("--metrics -: needs a file, because stdout is for data")
    try:
        if path.exists() and not (path.is_file() and _holds_metrics(path)):
            raise OutputError(f"{path}: exists and is not a metrics file; choose another file")
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: the metrics cannot be written (no such folder); create it first")
    except OSError as error:
        raise OutputError(f"{path}: the metrics cannot be written ({error.strerror})") from error
    return path


def _holds_metrics(path: Path) -> bool:
    """True for a file of ours, and for an empty one."""
    with path.open("rb") as stream:
        return stream.read(len(FIRST_WORD)) in (b"", FIRST_WORD.encode())


def format_metrics(metrics: Iterable[Metric], labels: Mapping[str, str]) -> str:
    """Format metrics as Prometheus text, ending with a newline; families without samples are left out.

    `labels` are appended to those of each sample.
    """
    lines = []
    for metric in metrics:
        samples = [
            _format_sample(metric.name, {**sample_labels, **labels}, value)
            for sample_labels, value in metric.samples
        ]
        if samples:
            help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [
                f"{FIRST_WORD}{metric.name} {help_text}",
                f"# TYPE {metric.name} {metric.kind}",
                *samples,
            ]
    return "".join(f"{line}\n" for line in lines)


def _format_sample(name: str, labels: Mapping[str, str], value: float) -> str:
    text = ",".join(f'{label}="{_escape(value)}"' for label, value in labels.items())
    return f"{name}{f'{{{text}}}' if text else ''} {value!r}"


def _escape(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # a path may hold bytes that are not UTF-8
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


run_metrics = RunMetrics()
