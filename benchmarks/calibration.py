"""Calls of a model on real pairs before and after a calibration to a few of them, as by `deltavlm calibrate`.

    python benchmarks/calibration.py FOLDER [--model nano] [--draws 100]

FOLDER has `pairs.csv` (pair_id, source, changed: yes or no) and `<pair_id>/before.png, after.png`. The model
is asked about every pair of a source once. Then DRAWS times some pairs are drawn at random, a calibration is
fitted to them, and all other pairs are called with it: so many changed and unchanged ones with their labels,
or half of the unchanged ones without, and a share of false alarms.

Prints Markdown on stdout, messages on stderr: medians over the draws, and the range of nine in ten.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.errors import InputError  # noqa: E402
from deltavlm.geo.pair import ReadOptions  # noqa: E402
from deltavlm.metrics import binary  # noqa: E402
from deltavlm.model.calibration import apply_calibration, logits  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.pipeline.calibrate import ErrorRates, ScoredChips, fit_calibration  # noqa: E402
from deltavlm.pipeline.engine import LocalEngine  # noqa: E402
from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions  # noqa: E402
from deltavlm.pipeline.pair_lists import read_pairs  # noqa: E402
from deltavlm.tasks.questions import QuestionSpec  # noqa: E402

MIN_PAIRS = 40  # of each kind, in a source
COUNTS = (10, 20, 30)  # labelled pairs of each kind
SHARES = (0.1, 0.2)  # of false alarms

Rows = NDArray[np.intp]


def sources_of(folder: Path, engine: LocalEngine) -> Iterator[tuple[str, ScoredChips]]:
    """Scores and labels of the sources with enough pairs of both kinds."""
    with (folder / "pairs.csv").open(encoding="utf-8") as stream:
        listed = [row for row in csv.DictReader(stream) if row["changed"] in ("yes", "no")]
    for name in dict.fromkeys(row["source"] for row in listed):
        rows = [row for row in listed if row["source"] == name]
        if min(sum(row["changed"] == label for row in rows) for label in ("yes", "no")) < MIN_PAIRS:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.csv"
            images = [(folder.absolute() / row["pair_id"], row["changed"]) for row in rows]
            lines = [f"{image}/before.png,{image}/after.png,{image.name},{label}" for image, label in images]
            path.write_text("\n".join(["before,after,id,changed", *lines]), encoding="utf-8")
            job = AnalyzeJob(
                pairs=read_pairs(path, labels=True),
                questions=[QuestionSpec("change", "change")],
                read=ReadOptions(allow_no_crs=True),
                options=AnalyzeOptions(any_scale=True),
            )
            yield name, ScoredChips.of_pairs(job, engine)


def rates(
    chips: ScoredChips, drawn: list[tuple[Rows, int]], share: float | None, draws: int
) -> tuple[list[ErrorRates], list[ErrorRates]]:
    """Error rates on the pairs outside of each fit, of the model itself and with the calibration.

    drawn: pairs, and how many of them are drawn for a fit; with their labels unless there is a share of false
    alarms.
    """
    rng = np.random.default_rng(0)
    labels = np.array(chips.labels, bool)
    before, after = [], []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(kind, count, replace=False) for kind, count in drawn])
        part = replace(
            chips,
            scores=chips.scores[rows],
            labels=tuple(labels[rows].tolist()) if share is None else (None,) * len(rows),
            groups=tuple(chips.groups[row] for row in rows),
        )
        others = np.setdiff1d(np.arange(len(labels)), rows)
        try:
            fit = fit_calibration([part], false_alarms=share).calibration
        except InputError:  # nothing to calibrate: the model stays as it is
            calls = chips.scores[others] >= 0.5
        else:
            calls = apply_calibration(fit, logits(chips.scores[others])) >= fit.threshold
        before.append(ErrorRates.of(chips.scores[others] >= 0.5, labels[others]))
        after.append(ErrorRates.of(calls, labels[others]))
    return before, after


def spread(values: list[float | None]) -> str:
    """Median, and the range of nine in ten."""
    low, median, high = np.quantile([value for value in values if value is not None], (0.05, 0.5, 0.95))
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    model = load_model(options.model)
    print(f"\n{heading(1)}, {model.label}\n")
    table = Table()
    for name, chips in sources_of(options.folder, LocalEngine(model)):
        labels = np.array(chips.labels, bool)
        area = binary.auc(chips.scores.tolist(), labels.tolist())
        yes, no = np.flatnonzero(labels), np.flatnonzero(~labels)
        plans: list[tuple[str, list[tuple[Rows, int]], float | None]] = [
            (f"{count} changed, {count} unchanged", [(yes, count), (no, count)], None) for count in COUNTS
        ]
        half = len(no) // 2
        plans += [
            (f"{half} taken as unchanged, false alarms {share}", [(no, half)], share) for share in SHARES
        ]
        for text, drawn, share in plans:
            both = rates(chips, drawn, share, options.draws)
            cells = {"source": name, "pairs": len(labels), "AUC": f"{area:.3f}", "fitted to": text}
            for column in ("balanced_accuracy", "false_alarms", "misses"):
                for when, each in zip(("before", "after"), both, strict=True):
                    values = [getattr(rate, column) for rate in each]
                    cells[f"{column.replace('_', ' ')}, {when}"] = spread(values)
            table.row(cells)


if __name__ == "__main__":
    main()
