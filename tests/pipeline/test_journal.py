"""What a run has found is on disk, group by group, and read back as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deltavlm.config import shipped_config
from deltavlm.errors import OutputError
from deltavlm.files import lock
from deltavlm.geo.pair import PairReader, RasterPair, open_pair
from deltavlm.model.interface import Question, Reply
from deltavlm.pipeline.analyze import AnalyzeOptions, analyze
from deltavlm.pipeline.journal import Journal, journal_path, open_journal
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.provenance import settings
from deltavlm.tasks.questions import load_questions
from tests.conftest import CHIP, Scene
from tests.scripted_model import ScriptedModel

SPECS = load_questions(shipped_config("questions.yaml"))
OPTIONS = AnalyzeOptions(chip_px=CHIP, batch_size=4)


@pytest.fixture
def reader(scene: Scene) -> Iterator[PairReader]:
    with open_pair(RasterPair(*scene.args)) as reader:
        yield reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.gpkg.journal.jsonl"


class Book:
    """All results in memory."""

    def __init__(self) -> None:
        self.results: list[ChipResult] = []

    def earlier(self) -> Iterator[ChipResult]:
        return iter(())

    def known(self, chip: object) -> bool:
        return False

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        self.results += results


def filled(reader: PairReader, model: ScriptedModel, journal: Journal) -> None:
    analyze(reader, model, SPECS, journal, OPTIONS)


def opened(reader: PairReader, path: Path, model: ScriptedModel | None = None, **flags: object):  # type: ignore[no-untyped-def]
    known = settings(reader, model or ScriptedModel(), OPTIONS)
    return open_journal(path, known, SPECS, reader.chips(CHIP), **flags)  # type: ignore[arg-type]


def test_results_are_read_back_as_they_were(reader: PairReader, path: Path) -> None:
    book = Book()
    analyze(reader, ScriptedModel(), SPECS, book, OPTIONS)
    with opened(reader, path) as journal:
        filled(reader, ScriptedModel(), journal)
        assert list(journal.results()) == book.results
    with opened(reader, path) as journal:
        assert list(journal.earlier()) == book.results


@pytest.mark.parametrize("cut", ["in a line", "in a group", "behind a group", "in the header"])
def test_what_was_cut_off_is_asked_again_and_nothing_else(reader: PairReader, path: Path, cut: str) -> None:
    with opened(reader, path) as journal:
        filled(reader, ScriptedModel(), journal)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)  # a header and 15 chips in groups of 4
    kept = {
        "in a line": b"".join(lines[:8]) + lines[8][:30],
        "in a group": b"".join(lines[:8]),
        "behind a group": b"".join(lines[:9]),
        "in the header": lines[0][:20],
    }[cut]
    path.write_bytes(kept)
    model = ScriptedModel()
    with opened(reader, path) as journal:
        known = len(journal)
        filled(reader, model, journal)
    assert known == {"in a line": 4, "in a group": 4, "behind a group": 8, "in the header": 0}[cut]
    assert sum(model.batches) == 15 - known
    assert path.read_bytes() == whole


def test_other_settings_are_refused_by_name(reader: PairReader, path: Path, scene: Scene) -> None:
    with opened(reader, path) as journal:
        filled(reader, ScriptedModel(), journal)
    with (
        pytest.raises(OutputError, match=r"other settings \(model\.fingerprint"),
        opened(reader, path, ScriptedModel(fingerprint="f")),
    ):
        pass
    known = settings(reader, ScriptedModel(), OPTIONS)
    with (
        pytest.raises(OutputError, match=r"other settings \(questions"),
        open_journal(path, known, SPECS[:1], reader.chips(CHIP)),
    ):
        pass
    with opened(reader, path, ScriptedModel(fingerprint="f"), afresh=True) as journal:
        assert len(journal) == 0
    assert not path.exists()  # nothing was found, so nothing is kept


def test_a_file_that_is_no_journal_is_refused(reader: PairReader, path: Path) -> None:
    path.write_text("precious\n")
    with pytest.raises(OutputError, match="is of a run with other settings"), opened(reader, path):
        pass
    assert path.read_text() == "precious\n"


def test_only_chips_that_failed_are_tried_again(reader: PairReader, path: Path) -> None:
    bad = True

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        from deltavlm.errors import ModelError

        if bad and (before != after).any():
            raise ModelError("not now")
        return Reply("no", 0.1)

    model = ScriptedModel(script=script)
    with opened(reader, path) as journal:
        filled(reader, model, journal)
        assert len(journal.failed) == 1
        journal.finish()
    assert path.exists()
    bad, model.batches = False, []
    with opened(reader, path, retry=True) as journal:
        assert len(list(journal.earlier())) == 14
        filled(reader, model, journal)
        assert model.batches == [1]
        assert [result.status for result in journal.results()] == ["answered"] * 15
        journal.finish()
    assert not path.exists()


def test_a_finished_run_is_begun_anew(reader: PairReader, path: Path) -> None:
    with opened(reader, path) as journal:
        filled(reader, ScriptedModel(most=0), journal)
        assert len(journal.failed) == 15
        journal.finish()
    with opened(reader, path) as journal:
        assert len(journal) == 0


def test_scores_that_are_no_numbers_survive(reader: PairReader, path: Path) -> None:
    model = ScriptedModel(script=lambda *_: Reply("yes \u2028 \ud83c\udfe0", float("nan")))
    with opened(reader, path) as journal:
        filled(reader, model, journal)
        first = list(journal.results())
    assert first[0].answers["caption"].score is None
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            json.loads(line, parse_constant=lambda name: pytest.fail(name))
    with opened(reader, path) as journal:
        assert list(journal.results()) == first


def test_one_run_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    with lock(output), pytest.raises(OutputError, match="another run is writing it"), lock(output):
        pass
    with lock(output):
        pass
    assert not list(tmp_path.iterdir())
    assert journal_path(output).name == "out.gpkg.journal.jsonl"
