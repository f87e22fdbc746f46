"""Summary of a run for the terminal: progress, table of the most changed chips, counts, JSON object."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from deltacli.console import WHAT_TO_ASK, console
from deltacli.metrics import run_metrics
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.pipeline.job import AnalyzeJob
    from deltavlm.pipeline.run_result import RunResult
    from deltavlm.pipeline.summary import ChangedChip

__all__ = ["ProgressPrinter", "print_summary", "show_thumbnails", "summary_dict"]


class ProgressPrinter:
    """Context manager that shows how far a run is: chips of one pair, or pairs of a list."""

    def __init__(self, job: AnalyzeJob) -> None:
        self._job = job
        self._stack = ExitStack()
        self._show: Callable[[int, str], None] | None = None

    def __enter__(self) -> ProgressPrinter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, result: RunResult) -> None:
        """Show the progress of `result`, and pass it to the metrics file."""
        run_metrics.watch(result)
        single, summary = self._job.is_single, result.summary
        if self._show is None:
            unit, stdout_has_data = "chips" if single else "pairs", self._job.output.path is None
            progress = console.count_progress(result.total or 0, unit, stdout_has_data=stdout_has_data)
            self._show = self._stack.enter_context(progress)
        changed = f"{summary.changed} changed, " if self._job.asks_change else ""
        note = f"{changed}{summary.chips_per_s:.1f} chips/s"
        if single:
            self._show(summary.chips, note)
        else:
            self._show(len(result.pairs), f"{pluralize(summary.chips, 'chip')}, {note}")


def print_summary(job: AnalyzeJob, result: RunResult, *, top: int) -> None:
    """Print the end of a run; `top`: rows in the table of the most changed chips."""
    run_metrics.watch(result)
    summary, target = result.summary, str(job.output.path or "on stdout")
    _print_table(job, result.most_changed[:top])
    if summary.unparsed:
        count = pluralize(summary.unparsed, "yes/no answer")
        console.warning(
            f"{count} could not be parsed; the replies as written are in the column answer_change"
        )
    if summary.unreadable_answers:
        numbers = ", ".join(f"{name} {number}" for name, number in summary.unreadable_answers.items())
        console.warning(
            f"other answers could not be parsed: {numbers}; the replies as written are in columns answer_*"
        )
    for question, number in summary.unsupported.items():
        chips = pluralize(number, "chip")
        console.warning(f"question {question}: not answered for {chips}; {WHAT_TO_ASK}")
    if summary.conflicting:
        rules = ", ".join(f"{name} {number}" for name, number in summary.conflicts.most_common())
        console.info(f"{pluralize(summary.conflicting, 'chip')} with conflicting answers: {rules}")
    if job.output.per_pair:
        for pair in result.failures:
            if pair.record is None:
                continue  # was warned about
            text = f"failed: {pair.pair.id}: {pair.failure}"
            console.info(text, pair=pair.pair.id, status=pair.status)
    counts = [_chip_counts(job, result)]
    if not job.is_single:
        failed = sum(pair.record is None for pair in result.pairs.values())
        counts.insert(0, f"{pluralize(len(result.pairs), 'pair')}{f', {failed} failed' if failed else ''}")
    left_out = len(job.pairs.pairs) - result.outputs_skipped - len(result.pairs)
    if not job.is_single and left_out > 0:
        console.info(f"--limit {job.options.limit}: {pluralize(left_out, 'pair')} left out")
    if job.asks_change and str(result.totals):
        console.info(str(result.totals))
    console.info(f"{'; '.join(counts)}; output {target}")
    products = [f"{pluralize(summary.polygons, 'polygon')} of change"] if job.output.polygons else []
    products += [f"{name} {path}" for name, path in result.files.items()]
    if products:
        console.info("; ".join(products))


def _print_table(job: AnalyzeJob, chips: list[ChangedChip]) -> None:
    """Table of the most changed chips, with longitude and latitude where the CRS leads there."""
    if job.is_single:
        all_lonlat = all(chip.lonlat for chip in chips)
        header = ("lon", "lat") if all_lonlat else ("x", "y")
        digits = 7 if all_lonlat else 0  # 1 cm: --at then takes the same pixels
    else:
        header, digits = ("lon or x", "lat or y"), 7
    has_conflicts = any(chip.conflicts for chip in chips)
    rows = []
    for chip in chips:
        x, y = chip.lonlat or (chip.x, chip.y)
        position = (f"{x:.{digits}f}", f"{y:.{digits}f}")
        pair = () if job.is_single else (chip.pair,)
        conflicts = (", ".join(chip.conflicts),) if has_conflicts else ()
        rows.append((*pair, chip.chip_id, *position, f"{chip.score:.2f}", chip.caption, *conflicts))
    columns = (*(() if job.is_single else ("pair",)), "chip", *header, "score", "caption")
    columns += ("conflicts",) if has_conflicts else ()
    console.table("Most changed chips", columns, rows)


def show_thumbnails(
    job: AnalyzeJob, chips: Sequence[ChangedChip], when: Literal["auto", "always", "never"]
) -> None:
    """Draw both dates of the chips of a single pair on stderr if it is a terminal, unless -q.

    `always` uses sixel where no protocol is detected.
    """
    if when == "never" or not console.on_terminal or console.verbosity < 0 or not chips or not job.is_single:
        return
    from deltavlm.pipeline.reading import open_listed_pair
    from deltavlm.report.terminal_images import contact_sheet, detect_protocol, encode_image

    protocol = detect_protocol(os.environ) or ("sixel" if when == "always" else None)
    if protocol is None:
        return
    with open_listed_pair(job.pairs.pairs[0], job.read) as reader:
        sheet = contact_sheet(reader, job.options.chip_px, chips)
    if sheet is not None:
        sys.stderr.write(encode_image(sheet, protocol) + "\n")
        sys.stderr.flush()


def _chip_counts(job: AnalyzeJob, result: RunResult) -> str:
    """`15 chips: 1 changed, 2 nodata; 0.7 s, 21.3 chips/s`."""
    summary = result.summary
    counts = [f"{summary.changed} changed"] if job.asks_change else []
    counts += [f"{count} {status}" for status, count in summary.statuses.items() if status != "answered"]
    text = ": ".join(filter(None, [pluralize(summary.chips, "chip"), ", ".join(counts)]))
    return f"{text}; {summary.seconds:.1f} s, {summary.chips_per_s:.1f} chips/s"


def summary_dict(job: AnalyzeJob, result: RunResult) -> dict[str, Any]:
    """Summary as plain values for `--json`; the key `pairs` is there for many pairs only."""
    from deltavlm.pipeline.schema import CHIP_STATUSES

    summary, model, failures = result.summary, result.model, result.failures
    first_failure = summary.first_failure if job.is_single else failures[0].failure if failures else None
    changes: dict[str, Any] = {"polygons": summary.polygons} if job.output.polygons else {}
    if result.files:
        changes["extras"] = {name: str(path) for name, path in result.files.items()}
    values: dict[str, Any] = {
        **({} if job.is_single else _pair_counts(job, result)),
        "chips": summary.chips,
        **{status: summary.statuses[status] for status in CHIP_STATUSES},
        "earlier": summary.resumed,
        "repeated": summary.deduplicated,
        "changed": summary.changed,
        "neither_yes_nor_no": summary.unparsed,
        "unreadable_answers": dict(summary.unreadable_answers),
        "unsupported": dict(summary.unsupported),
        "totals": result.totals.as_dict(),
        "conflicting": summary.conflicting,
        "conflicts": dict(summary.conflicts),
        "seconds": round(summary.seconds, 3),
        "chips_per_s": round(summary.chips_per_s, 3),
        **(_pair_notes(result) if job.is_single else {}),
        **changes,
        "model": model.name if model else None,
        "fingerprint": model.fingerprint if model else None,
        "device": model.device if model else None,
        "batch_size": summary.batch_size,
        "first_failure": first_failure or None,
        "most_changed": [_changed_chip(chip) for chip in result.most_changed],
        "load_seconds": round(result.load_seconds, 3),
        **({} if job.is_single else {"outputs_there_already": result.outputs_skipped}),
        "output": str(job.output.path or "-"),
    }
    return values | ({} if job.asks_change else {"changed": None, "neither_yes_nor_no": None})


def _pair_counts(job: AnalyzeJob, result: RunResult) -> dict[str, Any]:
    from deltavlm.pipeline.schema import PAIR_STATUSES

    statuses = [pair.status for pair in result.pairs.values()]
    return {
        "pairs": len(result.pairs),
        **{f"pairs_{status}": statuses.count(status) for status in PAIR_STATUSES},
        "failures": [
            {"pair_id": pair.pair.id, "status": pair.status, "reason": pair.failure}
            for pair in result.failures
        ],
        "unmatched": {"before": job.pairs.unmatched[0], "after": job.pairs.unmatched[1]},
    }


def _pair_notes(result: RunResult) -> dict[str, Any]:
    """Notes of a single pair."""
    record = result.pairs[""].record
    assert record is not None
    return {"gsd_m": record.gsd_m, "overlap_share": record.overlap_share, "notes": record.notes}


def _changed_chip(chip: ChangedChip) -> dict[str, Any]:
    names = ("lon", "lat") if chip.lonlat else ("x", "y")
    x, y = chip.lonlat or (chip.x, chip.y)
    return {
        **({"pair_id": chip.pair} if chip.pair else {}),
        "chip_id": chip.chip_id,
        "score": chip.score,
        names[0]: x,
        names[1]: y,
        "caption": chip.caption,
        "conflicts": list(chip.conflicts),
    }
