"""Calibration of the score of change to somebody's own chips: their scores and labels, and the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.config import from_mapping
from deltavlm.errors import ConfigError, InputError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import check_options
from deltavlm.messages import pluralize
from deltavlm.metrics import binary
from deltavlm.model.calibration import apply_calibration, fit_platt, logits
from deltavlm.model.config import Calibration, ScoreCalibration
from deltavlm.pipeline.analyze import analyze_chips
from deltavlm.pipeline.engine import Engine
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.outputs_reader import Output, true_change
from deltavlm.pipeline.pair_record import PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.review import read_reviewed
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.schema import ANALYZED_STATUSES

__all__ = ["CalibrationFit", "ErrorRates", "ScoredChips", "check_labels", "fit_calibration"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_CHIPS = 10  # changed ones, and unchanged ones, that a fit needs
FOLDS = 10  # of the cross-validation
EVEN = 0.5  # threshold of a score at even odds
WORSE = 0.01  # balanced accuracy lost
MIN_SCALE = 1e-3  # of a fit in which the score tells anything
MIN_AUC = 0.6  # below, the best threshold has a balanced accuracy of about 0.57
HINT = (
    "give verdicts (deltavlm report --review) or a column 'changed', or `false_alarms=0.05` if nothing has "
    "changed in its chips"
)


@dataclass(frozen=True)
class ScoredChips:
    """Chips with the score of one model, and a label where somebody said whether they have changed."""

    source: str  # for messages
    model: str  # name
    fingerprint: str
    scores: Floats  # (chips,): P(yes) of the model itself, without a calibration to other chips
    labels: tuple[bool | None, ...]
    groups: tuple[str, ...]  # pair of each chip

    @classmethod
    def of_outputs(cls, paths: Sequence[Path], review: Path | None = None) -> list[ScoredChips]:
        """Analyzed chips of outputs, with stored scores and verdicts.

        review: file of verdicts on a single output, beside those in its columns.

        Raises:
            InputError: a file is not an output, a verdict is none, or the model is not known.
            ConfigError: a review of one of several outputs.
        """
        return [cls._of_output(output) for output in read_reviewed(paths, review)]

    @classmethod
    def of_pairs(
        cls, job: AnalyzeJob, engine: Engine, on_progress: Callable[[RunResult], None] = lambda result: None
    ) -> ScoredChips:
        """Chips of a list of pairs, which the model is asked about; the label of a pair is that of its chips.

        job: asks the yes/no question; its output is not written.

        Raises: InputError where the first chips that are answered, or all, have no score; RasterError,
            ModelError with `on_error="fail"`.
        """
        check_options(job.read)
        store = _ScoreStore(job.pairs.name)
        analyze_chips(job, engine, store, RunResult(total=len(job.pairs.pairs)), on_progress=on_progress)
        labels = {pair.id: pair.changed for pair in job.pairs.pairs}
        answers = [(chip.pair, chip.of_task("change")) for chip in store.results if not chip.failed]
        rows = [
            (pair, answer.score)
            for pair, answer in answers
            if answer is not None and answer.score is not None
        ]
        if not rows:
            raise InputError(f"{job.pairs.name}: no chip has a score; the log says why")
        return cls(
            job.pairs.name,
            engine.model.name,
            engine.model.fingerprint,
            np.array([score for _, score in rows]),
            tuple(labels[pair] for pair, _ in rows),
            tuple(f"{job.pairs.name} {pair}" for pair, _ in rows),
        )

    @classmethod
    def _of_output(cls, output: Output) -> ScoredChips:
        path, model = output.path, output.provenance.get("model", {})
        if not {"name", "fingerprint"} <= model.keys():
            raise InputError(f"{path}: has lost its provenance, so its model is not known; run analyze again")
        rows = [row for row in output.rows("chips") if row["status"] in ANALYZED_STATUSES]
        if not rows:
            raise InputError(f"{path}: has no chip that was analyzed")
        for row in rows:
            if row["changed_score"] is None:
                raise InputError(
                    f"{path}, chip {row['chip_id']}: has no score of change; run analyze with the yes/no "
                    "question, by a model that gives probabilities, without a cascade after an evidence model"
                )
        scores = np.array([float(row["changed_score"]) for row in rows])
        if model.get("calibration") is not None:
            applied = from_mapping(ScoreCalibration, model["calibration"], f"{path}: provenance, calibration")
            inverse = Calibration(1 / applied.scale, -applied.offset / applied.scale)
            scores = apply_calibration(inverse, logits(scores))
        return cls(
            str(path),
            model["name"],
            model["fingerprint"],
            scores,
            tuple(map(true_change, rows)),
            tuple(f"{path} {row.get('pair_id') or ''}" for row in rows),
        )


@dataclass
class _ScoreStore:
    """Store of the results of a run that is not resumed, and ends where the model gives no scores."""

    source: str  # for messages
    results: list[ChipResult] = field(default_factory=list)
    has_scores: bool = False

    def completed(self) -> Iterator[ChipResult]:
        return iter(self.results)

    def record_of(self, pair: Pair) -> None:
        return None

    def is_done(self, pair: Pair, chip: Chip) -> bool:
        return False

    def begin_pair(self, pair: Pair, record: PairRecord) -> None:
        """Nothing to keep."""

    def fail_pair(self, pair: Pair, reason: str) -> None:
        """Drop the chips of a pair whose files changed while they were read."""
        self.results = [result for result in self.results if result.pair != pair.id]

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        """Raises: InputError where none of the first chips that are answered has a score."""
        self.results += results
        answers = [answer for chip in results if (answer := chip.of_task("change")) is not None]
        self.has_scores = self.has_scores or any(answer.score is not None for answer in answers)
        if answers and not self.has_scores:
            raise InputError(
                f"{self.source}: the model answers yes or no without a probability, so there is nothing to "
                "calibrate; choose one that gives it"
            )


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Error rates of calls, each a share; None where there is no such chip."""

    false_alarms: float | None  # of unchanged chips, those called changed
    misses: float | None  # of changed chips, those called unchanged

    @classmethod
    def of(cls, called: Flags, changed: Flags) -> ErrorRates:
        """Rates of (chips,) calls against labels."""
        alarms, hits = called[~changed], called[changed]
        return cls(
            float(alarms.mean()) if len(alarms) else None, 1 - float(hits.mean()) if len(hits) else None
        )

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the accuracies on changed and on unchanged chips."""
        if self.false_alarms is None or self.misses is None:
            return None
        return 1 - (self.false_alarms + self.misses) / 2

    def __str__(self) -> str:
        """`balanced accuracy 0.81, false alarms 12 %, misses 25 %`, those that are known."""
        known = [] if self.balanced_accuracy is None else [f"balanced accuracy {self.balanced_accuracy:.2f}"]
        shares = (("false alarms", self.false_alarms), ("misses", self.misses))
        return ", ".join([*known, *(f"{name} {share:.0%}" for name, share in shares if share is not None)])


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """Calibration, and what it is worth."""

    calibration: ScoreCalibration
    auc: float | None  # None without labels
    auc_interval: tuple[float, float] | None  # 95 %
    before: ErrorRates  # of the model's own score from 0.5 on
    after: ErrorRates  # with labels of chips that were held out of the fit, in cross-validation

    def warnings(self) -> list[str]:
        """Sentences about a fit that does not help: a score that hardly tells, calls that are no better."""
        if self.auc is None or self.auc_interval is None:
            return []
        low, high = self.auc_interval
        if self.auc < MIN_AUC or low <= EVEN:
            return [
                f"AUC {self.auc:.2f} ({low:.2f} to {high:.2f}; 0.5 is chance): the score hardly tells "
                "changed from unchanged chips here, so no threshold helps; label more chips, or fine-tune "
                "the model"
            ]
        before, after = self.before.balanced_accuracy or 0, self.after.balanced_accuracy or 0
        if self.calibration.false_alarms is None and after < before - WORSE:
            return [
                f"chips that were held out are called worse than before (balanced accuracy {after:.2f}, "
                f"before {before:.2f}); label more chips, or leave the calibration out"
            ]
        return []

    def lines(self) -> list[str]:
        """Sentences for people."""
        fit = self.calibration
        if self.auc is None or self.auc_interval is None:
            return [
                f"{pluralize(fit.unchanged, 'chip')}, taken as unchanged",
                f"before, from {EVEN} on: {self.before}",
                f"after, from {fit.threshold:.3f} on: {self.after}",
            ]
        low, high = self.auc_interval
        return [
            f"{fit.changed} changed and {fit.unchanged} unchanged chips; AUC {self.auc:.2f} "
            f"({low:.2f} to {high:.2f})",
            f"before, from {EVEN} on: {self.before}",
            f"after, from {fit.threshold:.3f} on, cross-validated: {self.after}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Figures as plain values, ready for JSON."""
        rates = {
            name: {**asdict(each), "balanced_accuracy": each.balanced_accuracy}
            for name, each in (("before", self.before), ("after", self.after))
        }
        interval = None if self.auc_interval is None else list(self.auc_interval)
        return {**asdict(self.calibration), "auc": self.auc, "auc_interval": interval, **rates}


def fit_calibration(sources: Sequence[ScoredChips], *, false_alarms: float | None = None) -> CalibrationFit:
    """Calibration of a model's score to chips that it has scored.

    With labels, scale and offset are those of Platt scaling (`fit_platt`), where changed and unchanged chips
    have the same weight, and the threshold is best by balanced accuracy (`binary.best_cutoff`); chips without
    a label are left out. Without any, all chips are taken as unchanged, and scores stay as they are.

    Args:
        sources: chips of one model, by `ScoredChips.of_outputs` or `ScoredChips.of_pairs`.
        false_alarms: share of the unchanged chips that may reach the threshold, which is then the 1 -
            `false_alarms` quantile of their scores; required without labels.

    Raises:
        InputError: the chips are of several models, too few, all of one label, or scored no higher where they
            have changed.
        ConfigError: a share that is not between 0 and 1.
    """
    names = [f"{source.model} ({source.fingerprint})" for source in sources]
    if len({*names}) != 1:
        other = next(index for index, name in enumerate(names) if name != names[0])
        raise InputError(
            f"{sources[other].source}: is of model {names[other]}, and {sources[0].source} of {names[0]}; "
            "calibrate one model at a time"
        )
    labels = [label for source in sources for label in source.labels]
    check_labels(labels, false_alarms, ", ".join(source.source for source in sources[:3]))
    margins = logits(np.concatenate([source.scores for source in sources]))
    is_labelled = np.array([label is not None for label in labels])
    if not is_labelled.any():
        is_labelled[:] = True
    changed = np.array(labels, object)[is_labelled].astype(bool)
    chips = _Chips(
        margins[is_labelled],
        changed,
        np.array([group for source in sources for group in source.groups])[is_labelled],
        false_alarms,
    )
    counts = {"changed": int(changed.sum()), "unchanged": int((~changed).sum())}
    for name, count in counts.items():
        if changed.any() and count < MIN_CHIPS:
            raise InputError(f"{pluralize(count, f'{name} chip')}: a fit needs {MIN_CHIPS}; label more")
    if false_alarms is not None and counts["unchanged"] * false_alarms < 1 - 1e-9:
        raise InputError(
            f"{pluralize(counts['unchanged'], 'unchanged chip')}: `false_alarms={false_alarms:g}` needs "
            f"{math.ceil(1 / false_alarms - 1e-9)}"
        )
    return _fit(chips, sources[0], counts)


def check_labels(labels: Sequence[bool | None], false_alarms: float | None, source: str) -> None:
    """Check that labels are of both kinds, or that there are none and a share of false alarms is given.

    Raises: InputError, ConfigError as `fit_calibration` does.
    """
    if false_alarms is not None and not 0 < false_alarms < 1:
        raise ConfigError(f"`false_alarms={false_alarms}`: is not between 0 and 1")
    kinds = {label for label in labels if label is not None}
    if len(kinds) == 1:
        name, other = ("changed", "unchanged") if True in kinds else ("unchanged", "changed")
        raise InputError(f"{source}: all labels are {name}; a fit needs {MIN_CHIPS} {other} chips too")
    if not kinds and false_alarms is None:
        raise InputError(f"{source}: has no labels; {HINT}")


@dataclass(frozen=True)
class _Chips:
    """Chips that a calibration is fitted to, as arrays (chips,)."""

    margins: Floats
    changed: Flags
    groups: NDArray[np.str_]
    false_alarms: float | None

    def part(self, rows: Flags) -> _Chips:
        return _Chips(self.margins[rows], self.changed[rows], self.groups[rows], self.false_alarms)

    def fit(self) -> tuple[Calibration, float]:
        """Calibration and threshold."""
        calibration = Calibration()
        if self.changed.any():
            calibration = fit_platt(self.margins.tolist(), self.changed.tolist())
        if self.false_alarms is None:
            cutoff = binary.best_cutoff(self.margins.tolist(), self.changed.tolist())
            return calibration, float(apply_calibration(calibration, cutoff))
        unchanged = apply_calibration(calibration, self.margins[~self.changed])
        return calibration, _threshold_of(unchanged, self.false_alarms)

    def held_out_calls(self) -> Flags:
        """Calls of each chip by a fit to the others, fold by fold."""
        calls, folds = np.zeros(len(self.margins), bool), self._folds()
        for fold in range(FOLDS):
            calibration, threshold = self.part(folds != fold).fit()
            calls[folds == fold] = apply_calibration(calibration, self.margins[folds == fold]) >= threshold
        return calls

    def _folds(self) -> NDArray[np.intp]:
        """Fold of each chip, stratified by label; chips of a pair share one, where that leaves changed and
        unchanged chips in the others."""
        folds: NDArray[np.intp] = np.empty(0, np.intp)
        for names in (self.groups, np.arange(len(self.groups))):
            _, index = np.unique(names, return_inverse=True)
            shares = np.bincount(index, self.changed) / np.bincount(index)
            folds = (np.argsort(np.argsort(shares, kind="stable")) % FOLDS)[index]
            others = [self.changed[folds != fold] for fold in range(FOLDS)]
            if len(shares) >= FOLDS and all(each.any() and not each.all() for each in others):
                break
        return folds


def _fit(chips: _Chips, source: ScoredChips, counts: dict[str, int]) -> CalibrationFit:
    """Calibration of checked chips. Raises: InputError as `fit_calibration` does."""
    calibration, threshold = chips.fit()
    scores, has_labels = apply_calibration(calibration, chips.margins), bool(chips.changed.any())
    area = binary.auc(chips.margins.tolist(), chips.changed.tolist()) if has_labels else None
    if area is not None and (area <= EVEN or calibration.scale < MIN_SCALE):
        raise InputError(
            f"changed chips score no higher than unchanged ones (AUC {area:.2f}), so there is nothing to "
            "calibrate; look at the labels, or fine-tune the model"
        )
    calls = scores >= threshold
    is_highest = chips.margins >= logits(1.0)  # as a model's scores are rounded to 1
    alarms = (calls | is_highest)[~chips.changed].mean()
    if chips.false_alarms is not None and alarms > chips.false_alarms + 1e-9:
        raise InputError(
            f"more than {chips.false_alarms:g} of the unchanged chips have the highest score, so no "
            "threshold leaves them out"
        )
    return CalibrationFit(
        ScoreCalibration(
            model=source.model,
            fingerprint=source.fingerprint,
            method="platt" if has_labels else "quantile",
            scale=calibration.scale,
            offset=calibration.offset,
            threshold=threshold,
            **counts,
            false_alarms=chips.false_alarms,
        ),
        area,
        None if area is None else binary.auc_interval(area, counts["changed"], counts["unchanged"]),
        ErrorRates.of(chips.margins >= 0, chips.changed),
        ErrorRates.of(chips.held_out_calls() if has_labels else calls, chips.changed),
    )


def _threshold_of(scores: Floats, share: float) -> float:
    """Threshold that at most this share of the scores reaches: halfway between the highest score below it and
    the next one, or 1 where there is none."""
    ordered = np.sort(scores)[::-1]
    highest = ordered[int(share * len(ordered) + 1e-9)]
    above = ordered[ordered > highest]
    return float((highest + (above[-1] if len(above) else 1.0)) / 2)
