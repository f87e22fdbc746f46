"""Journal of one pair: results are on disk batch by batch, and read back as they were."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.errors import OutputError
from deltavlm.files import lock
from deltavlm.messages import UNSUPPORTED
from deltavlm.model.interface import Question, Reply
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.file import journal_path
from deltavlm.pipeline.pairs import PairList
from tests.conftest import Scene
from tests.jobs import MemoryStore, analyzed, journaled, open_test_journal, single_job, with_output
from tests.scripted_model import ScriptedModel


@pytest.fixture
def job(scene: Scene) -> AnalyzeJob:
    return single_job(scene, batch_size=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.gpkg.journal.jsonl"


def test_results_are_read_back_as_they_were(job: AnalyzeJob, path: Path) -> None:
    store = MemoryStore()
    analyzed(job, ScriptedModel(), store)
    results, _ = journaled(job, ScriptedModel(), path)
    assert results == store.results
    with open_test_journal(job, ScriptedModel(), path) as journal:
        assert list(journal.completed()) == store.results
        assert journal.completed_chips == 15


@pytest.mark.parametrize("cut", ["in a line", "in a group", "behind a group", "in the header"])
@pytest.mark.usefixtures("same_key")
def test_truncated_chips_are_asked_again_and_no_others(job: AnalyzeJob, path: Path, cut: str) -> None:
    journaled(job, ScriptedModel(), path)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)  # a header, the pair, and 15 chips in batches of 4
    truncated = {
        "in a line": b"".join(lines[:9]) + lines[9][:30],
        "in a group": b"".join(lines[:9]),
        "behind a group": b"".join(lines[:10]),
        "in the header": lines[0][:20],
    }[cut]
    path.write_bytes(truncated)
    model = ScriptedModel()
    with open_test_journal(job, model, path) as journal:
        resumed = len(journal)
        analyzed(job, model, journal)
    assert resumed == {"in a line": 4, "in a group": 4, "behind a group": 8, "in the header": 0}[cut]
    assert sum(model.batches) == 15 - resumed
    assert path.read_bytes() == content


def test_other_settings_are_refused_by_name(job: AnalyzeJob, path: Path) -> None:
    journaled(job, ScriptedModel(), path)
    other = ScriptedModel(fingerprint="f")
    with pytest.raises(OutputError, match=r"other settings \(model\.fingerprint"):
        journaled(job, other, path)
    with pytest.raises(OutputError, match=r"other settings \(questions"):
        journaled(replace(job, questions=job.questions[:1]), ScriptedModel(), path)
    with pytest.raises(OutputError, match=r"other settings \(reading\.scale"):
        journaled(with_output(job, replace(job.read, scale="none")), ScriptedModel(), path)
    with open_test_journal(with_output(job, resume=False), other, path) as journal:
        assert len(journal) == 0
    assert not path.exists()  # without results there is nothing to keep


def test_another_pair_or_changed_files_are_refused_by_name(job: AnalyzeJob, path: Path, scene: Scene) -> None:
    """A list begins such a pair anew; a single pair is what the output is about."""
    journaled(job, ScriptedModel(), path)
    swapped = replace(job, pairs=PairList.single(*reversed(scene.args)))
    with pytest.raises(OutputError, match=r"other settings \(identity\.address, identity\.after, "):
        journaled(swapped, ScriptedModel(), path)
    os.utime(scene.after, (1, 1))
    with pytest.raises(OutputError, match=r"other settings \(identity\.files\)"):
        journaled(job, ScriptedModel(), path)
    results, _ = journaled(with_output(job, retry_failed=True), ScriptedModel(), path)
    assert len(results) == 15  # a truncated file may have been copied again


def test_a_journal_of_another_version_is_refused(job: AnalyzeJob, path: Path) -> None:
    path.write_text('{"deltavlm_journal": 1, "settings": {}, "questions": []}\n')
    with pytest.raises(OutputError, match=r"format 1, .* add `resume=False`, which starts over"):
        journaled(job, ScriptedModel(), path)
    results, _ = journaled(with_output(job, resume=False), ScriptedModel(), path)
    assert len(results) == 15


def test_a_file_that_is_no_journal_is_refused(job: AnalyzeJob, path: Path) -> None:
    for content in ("precious\n", "a token without an end of line", "[1]\n"):
        path.write_text(content)
        for resume in (True, False):
            with pytest.raises(OutputError, match="is no journal of deltavlm; move it away"):
                journaled(with_output(job, resume=resume), ScriptedModel(), path)
        assert path.read_text() == content


NOT_A_CHIP: dict[str, tuple[object, ...]] = {
    "row": (-1, 99, 1.0, "0", True, None, 10**30),
    "col": (-1, 99, 0.5, [], 2**40),
    "status": ("done", None, 3, ["answered"]),
    "valid_fraction": (-0.1, 1.1, "1", float("nan"), float("inf"), True),
    "reason": (None, 3, []),
    "chip_id": (None, 0),
    "pair": ("another", None, 3, []),
    "answers": (
        None,
        [],
        {"caption": "text"},
        {"caption": ["text"]},
        {"caption": [1, 0.5]},
        {"other": ["", 0.5]},
    ),
    "digest": (3, None),
    "end": (0, -4, "4", 1.5),
    "mask": (None, 3, [1, 2], [-1, 2, 3], [0, -2, 3], [2**64, 2, 3], [0, 1.5, 3], ["0", 1, 2], [0, 1, 2, 3]),
    "valid": ([-1, 2, 3], {}),
}


@pytest.mark.parametrize("key", NOT_A_CHIP)
def test_a_line_that_no_run_has_written_is_refused(job: AnalyzeJob, path: Path, key: str) -> None:
    """JSON as it should be, with other values: one sentence, and the file stays."""
    journaled(job, ScriptedModel(), path)
    lines = path.read_text().splitlines()
    line = json.loads(lines[5])
    for value in NOT_A_CHIP[key]:
        lines[5] = json.dumps({**line, key: value})
        content = "\n".join(lines) + "\n"
        path.write_text(content)
        with pytest.raises(OutputError, match=r"jsonl, line 6: was not written by a run \(.*`resume=False`"):
            journaled(job, ScriptedModel(), path)
        assert path.read_text() == content
    results, _ = journaled(with_output(job, resume=False), ScriptedModel(), path)
    assert len(results) == 15


NOT_A_RECORD: tuple[dict[str, object], ...] = (
    {"width": 0},
    {"width": "160"},
    {"width": 10**9, "height": 10**9},
    {"chips": -1},
    {"chips": 10**6},
    {"crs": "no WKT"},
    {"crs": 7},
    {"transform": [1, 2, 3]},
    {"transform": [float("nan")] * 6},
    {"gsd_m": float("inf")},
    {"inputs": "{}"},
    {"inputs": "no JSON"},
    {"inputs": "[" * 100_000},
    {"inputs": '{"alignment": {"overlap_share": "x"}}'},
    {"notes": "one"},
    {"identity": None},
    {"identity": {"before": "a"}},
    {"aoi": "no WKB"},
    {"dates": ["2020"]},
    {"another": 1},
)


def test_a_record_that_no_run_has_written_is_refused(job: AnalyzeJob, path: Path) -> None:
    journaled(job, ScriptedModel(), path)
    lines = path.read_text().splitlines()
    line = json.loads(lines[1])
    for values in NOT_A_RECORD:
        lines[1] = json.dumps({**line, "record": {**line["record"], **values}})
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(OutputError, match=r"journal\.jsonl, line 2: was not written by a run \("):
            journaled(job, ScriptedModel(), path)


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"pair": ""},
        {"pair": "", "address": ""},
        {"pair": "", "address": "", "failed": 3},
        {"pair": "", "address": "", "failed": "reason", "identity": {"before": 3}},
        {"pair": "", "address": "", "record": []},
        {"finished": "yes"},
    ],
    ids=str,
)
def test_a_line_of_no_kind_is_refused(job: AnalyzeJob, path: Path, line: dict[str, object]) -> None:
    journaled(job, ScriptedModel(), path)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(OutputError, match=r"line 18: was not written by a run \("):
        journaled(job, ScriptedModel(), path)


def test_only_failed_chips_are_retried(job: AnalyzeJob, path: Path) -> None:
    bad = True

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        from deltavlm.errors import ModelError

        if bad and (before != after).any():
            raise ModelError("not now")
        return Reply("no", 0.1)

    model = ScriptedModel(script=script)
    with open_test_journal(job, model, path) as journal:
        analyzed(job, model, journal)
        assert [result.status for result in journal.results()].count("error") == 1
        journal.finish()
    assert path.exists()
    bad, model.batches = False, []
    retry = with_output(job, retry_failed=True)
    with open_test_journal(retry, model, path) as journal:
        assert len(list(journal.completed())) == journal.completed_chips == 14
        analyzed(retry, model, journal)
        assert model.batches == [1]
        assert [result.status for result in journal.results()] == ["answered"] * 15
        journal.finish()
    assert not path.exists()


def test_the_journal_of_a_finished_run_starts_over(job: AnalyzeJob, path: Path) -> None:
    with open_test_journal(job, ScriptedModel(), path) as journal:
        analyzed(job, ScriptedModel(most=0), journal)
        assert all(result.failed for result in journal.results())
        journal.finish()
    with open_test_journal(job, ScriptedModel(), path) as journal:
        assert len(journal) == 0


def test_scores_that_are_not_finite_survive(job: AnalyzeJob, path: Path) -> None:
    model = ScriptedModel(script=lambda *_: Reply("yes \u2028 \ud83c\udfe0", float("nan")))
    first, _ = journaled(job, model, path)
    assert first[0].answers["caption"].score is None
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            json.loads(line, parse_constant=lambda name: pytest.fail(name))
    with open_test_journal(job, model, path) as journal:
        assert list(journal.results()) == first


def test_an_answer_that_was_not_taught_is_read_back_as_such(job: AnalyzeJob, path: Path) -> None:
    model = ScriptedModel(script=lambda *_: Reply(UNSUPPORTED, float("nan")))
    first, _ = journaled(job, model, path)
    assert first[0].answers["caption"].status == "unsupported"
    assert first[0].answers["caption"].value is None
    with open_test_journal(job, model, path) as journal:
        assert list(journal.results()) == first


def test_two_runs_cannot_write_the_same_output(tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    with lock(output), pytest.raises(OutputError, match="another run is writing it"), lock(output):
        pass
    with lock(output):
        pass
    assert not list(tmp_path.iterdir())
    assert journal_path(output).name == "out.gpkg.journal.jsonl"


def test_a_run_is_resumed_with_another_threshold(scene: Scene, path: Path) -> None:
    """The journal keeps scores, and `changed` is made of them; unless they decided what was asked."""
    journaled(single_job(scene, threshold=0.95), ScriptedModel(), path)
    model = ScriptedModel()
    results, result = journaled(single_job(scene, threshold=0.05), model, path)
    assert (result.changed, result.summary.resumed, model.history) == (15, 15, [])
    assert all(each.answers["change"].value for each in results)


def test_a_run_of_consistent_answers_is_not_resumed_with_another_threshold(scene: Scene, path: Path) -> None:
    """Captions, counts and cells follow the yes/no answer, which the threshold decides."""
    model = ScriptedModel(details={"decoding": {"consistent": True}})
    journaled(single_job(scene, threshold=0.95), model, path)
    journaled(single_job(scene, threshold=0.95), model, path)
    with pytest.raises(OutputError, match=r"other settings \(threshold\)"):
        journaled(single_job(scene, threshold=0.05), model, path)


def test_a_cascade_is_not_resumed_with_another_threshold(scene: Scene, path: Path) -> None:
    journaled(single_job(scene, threshold=0.95, cascade=True), ScriptedModel(), path)
    with pytest.raises(OutputError, match=r"other settings \(options\.threshold\)"):
        journaled(single_job(scene, threshold=0.05, cascade=True), ScriptedModel(), path)
