"""Jobs of `deltavlm.pipeline` for tests, run with a scripted model into memory, a journal or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from deltavlm.config import shipped_config
from deltavlm.geo.pair import ReadOptions
from deltavlm.model.interface import ChangeModel
from deltavlm.pipeline.analyze import analyze_chips
from deltavlm.pipeline.engine import LocalEngine
from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions, OutputOptions
from deltavlm.pipeline.journal.store import Journal, open_journal
from deltavlm.pipeline.pair_lists import read_pairs
from deltavlm.pipeline.pairs import Pair, PairList
from deltavlm.pipeline.provenance import journal_settings
from deltavlm.pipeline.reading import open_listed_pair
from deltavlm.pipeline.result_store import ResultStore
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.run import RunHooks, run
from deltavlm.pipeline.run_result import RunResult
from deltavlm.tasks.questions import QuestionSpec, load_questions
from tests.conftest import CHIP, Scene
from tests.scripted_model import ScriptedModel

QUESTIONS = load_questions(shipped_config("questions.yaml"))


def single_job(scene: Scene, questions: Sequence[QuestionSpec] = QUESTIONS, **options: Any) -> AnalyzeJob:
    """Job of one pair; `options` are those of `AnalyzeOptions`."""
    return AnalyzeJob(
        pairs=PairList.single(*scene.args),
        questions=questions,
        options=AnalyzeOptions(**({"chip_px": CHIP} | options)),
    )


def list_job(pairs: Sequence[Pair], **options: Any) -> AnalyzeJob:
    """Job of a list of pairs."""
    return AnalyzeJob(
        pairs=PairList(tuple(pairs), "list.csv"),
        questions=QUESTIONS,
        options=AnalyzeOptions(**({"chip_px": CHIP} | options)),
    )


def job_into(
    output: str | None,
    pairs: Scene | Path | tuple[Path, Path],
    *,
    read: ReadOptions | None = None,
    **fields: Any,
) -> AnalyzeJob:
    """Job whose output is written to a path, or to standard output; a path of `pairs` is a list of them.

    `fields` are those of `AnalyzeOptions` and `OutputOptions`. A path that ends in "/" is a folder with an
    output for each pair. Chips overlap by default as they do on the command line.
    """
    options = {name: fields.pop(name) for name in [*fields] if name in AnalyzeOptions.__dataclass_fields__}
    for name in {"mask", "probability"} & {*fields}:
        fields[name] = Path(fields[name])
    path = None if output is None else Path(output)
    written = OutputOptions(path=path, per_pair=(output or "").endswith("/"), **fields)
    if isinstance(pairs, Path):
        pair_list = read_pairs(pairs)
    else:
        pair_list = PairList.single(*map(str, pairs.args if isinstance(pairs, Scene) else pairs))
    return AnalyzeJob(
        pairs=pair_list,
        questions=QUESTIONS,
        read=read or ReadOptions(),
        options=AnalyzeOptions(**({"chip_px": CHIP} | options)),
        output=written,
    )


def run_job(job: AnalyzeJob, model: ChangeModel, notes: list[str] | None = None) -> RunResult:
    """Result of a run whose output is written; its messages for the user are appended to `notes`."""
    notes = [] if notes is None else notes
    return run(job, nullcontext(LocalEngine(model)), RunHooks(notify=notes.append))


@contextmanager
def interrupted_after(batches: int, model: ScriptedModel) -> Iterator[None]:
    """Interrupt the run in the `with` when the model is given one batch more than `batches`."""
    encode, limit = model.encode, len(model.batches) + batches

    def encode_or_interrupt(before: Any, after: Any, contexts: Any = ()) -> Any:
        if len(model.batches) == limit:
            raise KeyboardInterrupt
        return encode(before, after, contexts)

    with patch.object(model, "encode", encode_or_interrupt), pytest.raises(KeyboardInterrupt):
        yield


def with_output(job: AnalyzeJob, read: ReadOptions | None = None, **output: Any) -> AnalyzeJob:
    """The job with options of its output, and of reading."""
    return replace(job, output=replace(job.output, **output), read=read or job.read)


def analyzed(
    job: AnalyzeJob,
    model: ChangeModel,
    store: ResultStore,
    on_progress: Callable[[RunResult], None] = lambda result: None,
) -> RunResult:
    """Result of the analysis loop; a single pair is opened for it."""
    result = RunResult(is_single=job.is_single)
    engine = LocalEngine(model)
    if not job.is_single:
        analyze_chips(job, engine, store, result, on_progress=on_progress)
        return result
    with open_listed_pair(job.pairs.pairs[0], job.read) as opened:
        analyze_chips(job, engine, store, result, opened=opened, on_progress=on_progress)
    return result


def journaled(job: AnalyzeJob, model: ChangeModel, path: Path) -> tuple[list[ChipResult], RunResult]:
    """All results of a job whose journal is at `path`, resumed if it is there; and the result of the run."""
    with open_test_journal(job, model, path) as journal:
        result = analyzed(job, model, journal)
        return list(journal.results()), result


def open_test_journal(job: AnalyzeJob, model: ChangeModel, path: Path) -> Any:
    """Journal of a job with the settings of this model."""
    return open_journal(path, job, journal_settings(job, model))


class MemoryStore:
    """Store that keeps batches in memory; it raises KeyboardInterrupt after `limit` of them."""

    def __init__(self, limit: int = 99) -> None:
        self.batches: list[list[ChipResult]] = []
        self.limit = limit

    @property
    def results(self) -> list[ChipResult]:
        return [result for batch in self.batches for result in batch]

    def completed(self) -> Iterator[ChipResult]:
        return iter(())

    def record_of(self, pair: Pair) -> None:
        return None

    def is_done(self, pair: Pair, chip: object) -> bool:
        return False

    def begin_pair(self, pair: Pair, record: object) -> None:
        pass

    def fail_pair(self, pair: Pair, reason: str) -> None:
        pass

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        self.batches.append(results)
        if len(self.batches) == self.limit:
            raise KeyboardInterrupt


__all__ = [
    "QUESTIONS",
    "Journal",
    "MemoryStore",
    "OutputOptions",
    "analyzed",
    "interrupted_after",
    "job_into",
    "journaled",
    "list_job",
    "open_test_journal",
    "run_job",
    "single_job",
    "with_output",
]
