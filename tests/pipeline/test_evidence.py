"""Evidence: a model that reads text is told what another model answers, and both are written."""

from __future__ import annotations

import json
import logging
import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deltavlm.cluster.worker import LoadEvidencedModel, ModelActor, ModelInfo
from deltavlm.errors import ConfigError, InputError, OutputError
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.interface import Masks, PairContext, Question, Reply
from deltavlm.pipeline.evidence import EvidencedModel, evidence_of, mask_model
from deltavlm.pipeline.inference import InferenceOptions, run_batches
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.lines import check_chip_line, line_of
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.schema import EVIDENCE_COLUMNS
from deltavlm.tasks.count import Counts
from deltavlm.tasks.evidence import Evidence
from deltavlm.tasks.locate import Cells
from deltavlm.tasks.phrasing import GENERIC, PHRASEBOOKS, Phrasebook
from deltavlm.tasks.questions import QuestionSpec
from tests import workers
from tests.conftest import Scene
from tests.jobs import QUESTIONS, MemoryStore, analyzed, interrupted_after, job_into, run_job, single_job
from tests.pairs import layer, write_pairs
from tests.scripted_model import ScriptedModel
from tests.text_reader import DENIALS, text_reader

pytestmark = pytest.mark.usefixtures("empty_folder")

COLUMNS = [column.name for column in EVIDENCE_COLUMNS]


def evidenced(model: ScriptedModel | None = None, **fields: Any) -> EvidencedModel:
    return EvidencedModel(model or text_reader(), ScriptedModel(**fields))


def evidence_job(output: str | None, pairs: Any, **fields: Any) -> AnalyzeJob:
    return replace(job_into(output, pairs, **fields), evidence=True)


def pictures(*changed: bool) -> tuple[Any, Any]:
    """(N, 3, 32, 32) before and after; the pairs differ in the number of their grey level."""
    before = np.stack([np.full((3, 32, 32), 10 * number, np.uint8) for number in range(len(changed))])
    after = before.copy()
    after[np.array(changed), :, :8, :8] = 255
    return before, after


def test_the_model_is_told_what_the_other_answers() -> None:
    model = evidenced()
    encoded = model.encode(*pictures(True, False), [PairContext("2020", "2021", 0.5), PairContext()])
    assert evidence_of(encoded) == [
        Evidence(True, 0.9, Counts(1, 2), Cells(("center-left",), ("top-left", "center-center"))),
        Evidence(False, 0.1, Counts(0, 0), Cells()),
    ]
    model.answer(encoded, [Question("change", GENERIC.phrase("change").prompt, yes_no=True)])
    first, second = model.model.contexts
    assert (first.before_date, first.after_date, first.gsd_m) == ("2020", "2021", 0.5)
    assert first.evidence == (
        "Another model, scripted, gives a probability of 0.90 that something changed, counts 1 new road and "
        "2 new buildings, and names the cells with changed roads (center-left) and with changed buildings "
        "(top-left, center-center). It may be wrong."
    )
    assert "0 new roads and 0 new buildings" in second.evidence
    assert "changed roads (none)" in second.evidence


def test_the_evidence_model_is_asked_in_its_own_words() -> None:
    other = text_reader(fingerprint="b" * 16)
    encoded = EvidencedModel(text_reader(), other).encode(*pictures(True))
    assert evidence_of(encoded) == [Evidence(False, 0.2, Counts(0, 0), Cells())]
    (questions,) = other.history
    assert [question.prompt for question in questions] == [
        GENERIC.phrase(task).prompt for task in ("change", "count", "location")
    ]


def test_replies_that_cannot_be_read_are_no_evidence() -> None:
    model = evidenced(script=lambda before, after, question: Reply("perhaps", math.nan))
    encoded = model.encode(*pictures(True))
    assert evidence_of(encoded) == [Evidence()]
    model.answer(encoded, [Question("change", "?")])
    assert [context.evidence for context in model.model.contexts] == [""]


@pytest.mark.parametrize(
    ("gsd_m", "any_scale", "is_counted"), [(0.5, False, True), (10.0, False, False), (10.0, True, True)]
)
def test_counts_and_cells_far_from_the_training_are_no_evidence(
    gsd_m: float, any_scale: bool, is_counted: bool
) -> None:
    model = EvidencedModel(text_reader(), ScriptedModel(), any_scale=any_scale)
    encoded = model.encode(*pictures(True), [PairContext(gsd_m=gsd_m)])
    (evidence,) = evidence_of(encoded) or ()
    assert (evidence.changed, evidence.score) == (True, 0.9)
    assert (evidence.counts is not None) is (evidence.cells is not None) is is_counted
    assert ("new building" in encoded.contexts[0].evidence) is is_counted


def test_pairs_are_encoded_when_they_are_asked_about_and_only_then() -> None:
    model = evidenced()
    encoded = model.encode(*pictures(True, False, True, False))
    assert model.model.batches == []
    question = Question("change", "?")
    assert [len(row) for row in model.answer(encoded, [question, question], [0, 2])] == [2, 2]
    assert model.model.batches == [2]
    model.answer_rows(encoded, [(2, question), (0, question), (2, question)])
    assert model.model.batches == [2]
    model.answer_rows(encoded, [(3, question)])
    model.answer(encoded, [question])
    model.answer(encoded, [question], [1])
    assert model.model.batches == [2, 1, 4]


def test_answers_are_those_of_the_pairs_asked_about() -> None:
    level = lambda before, after, question: Reply(str(before.max()), 0.5)  # noqa: E731
    model = evidenced(text_reader(script=level))
    encoded = model.encode(*pictures(True, False, True))
    question = Question("open", "?")
    assert [row[0].text for row in model.answer(encoded, [question], [2, 0])] == ["20", "0"]
    assert [reply.text for reply in model.answer_rows(encoded, [(1, question), (0, question)])] == ["10", "0"]


def test_masks_and_identity() -> None:
    model = evidenced()
    masks = model.masks(model.encode(*pictures(True, False)))
    assert isinstance(masks, Masks)
    assert masks.probabilities.shape[0] == 2
    assert model.name == "text:any with evidence of scripted"
    assert "any" in model.label
    assert "scripted" in model.label
    assert model.details["evidence"]["fingerprint"] == ScriptedModel().fingerprint
    assert model.details["answering"] == {"name": "text:any", "fingerprint": "a" * 16}
    others = evidenced(text_reader(fingerprint="c" * 16)), evidenced(fingerprint="d" * 16)
    assert len({model.fingerprint, *(each.fingerprint for each in others)}) == 3
    assert mask_model(model) is model.evidence_model
    assert mask_model(model.model) is model.model


def test_a_calibration_is_of_the_scores_with_evidence() -> None:
    question = Question("change", GENERIC.phrase("change").prompt, yes_no=True)
    plain = evidenced()
    calibration = ScoreCalibration(
        model=plain.name,
        fingerprint=plain.fingerprint,
        method="platt",
        scale=2.0,
        offset=0.5,
        threshold=0.5,
        changed=1,
        unchanged=1,
    )
    model = EvidencedModel(text_reader(), ScriptedModel(), calibration=calibration)
    encoded = model.encode(*pictures(True, False))
    right = [
        1 / (1 + np.exp(-(2 * np.log(reply.score / (1 - reply.score)) + 0.5)))
        for (reply,) in plain.answer(plain.encode(*pictures(True, False)), [question])
    ]
    assert [row[0].score for row in model.answer(encoded, [question])] == pytest.approx(right)
    rows = [(pair, question) for pair in (0, 1)]
    assert [reply.score for reply in model.answer_rows(encoded, rows)] == pytest.approx(right)
    assert model.details["calibration"]["scale"] == 2.0
    with pytest.raises(InputError, match="fit another by deltavlm calibrate"):
        EvidencedModel(text_reader(), ScriptedModel(), calibration=replace(calibration, fingerprint="0" * 16))
    alone = text_reader()
    alone.details = {"calibration": {}}
    with pytest.raises(ConfigError, match="is of its scores without evidence"):
        EvidencedModel(alone, ScriptedModel())


def test_models_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="reads its questions alone"):
        EvidencedModel(ScriptedModel(name="plain", fingerprint="e" * 16), ScriptedModel())
    with pytest.raises(ConfigError, match="is the model that answers"):
        EvidencedModel(text_reader(), text_reader())
    phrases = {"caption": GENERIC.phrase("caption")}
    book = Phrasebook("captions", phrases, joins_history=False, agrees=False)
    monkeypatch.setattr("deltavlm.pipeline.answers.PHRASEBOOKS", {**PHRASEBOOKS, "captions": book})
    with pytest.raises(ConfigError, match="does not answer the standard questions"):
        evidenced(phrasebook="captions")


def test_both_are_written(scene: Scene) -> None:
    run_job(evidence_job("out.gpkg", scene), evidenced())
    rows = [row for row in layer("out.gpkg", "chips") if row["status"] == "answered"]
    assert {row["changed"] for row in rows} == {False}
    assert {row["new_buildings"] for row in rows} == {0}
    changed = [row for row in rows if row["evidence_changed"]]
    assert 0 < len(changed) < len(rows)
    for row in changed:
        assert row["evidence_score"] == pytest.approx(0.9)
        assert (row["evidence_new_roads"], row["evidence_new_buildings"]) == (1, 2)
        assert row["evidence_road_cells"] == ["center-left"]
        assert row["evidence_building_cells"] == ["top-left", "center-center"]
    assert {row["evidence_new_buildings"] for row in rows if not row["evidence_changed"]} == {0}
    model = read_output(Path("out.gpkg")).provenance["model"]
    assert model["name"] == "text:any with evidence of scripted"
    assert model["evidence"]["name"] == "scripted"


def test_an_output_without_evidence_has_no_columns_of_it(scene: Scene) -> None:
    run_job(job_into("out.gpkg", scene), ScriptedModel())
    assert not {*COLUMNS} & {*layer("out.gpkg", "chips")[0]}


@pytest.mark.parametrize("output", ["out.geojson", "out.parquet", "out.fgb"])
def test_every_format_has_the_columns(scene: Scene, output: str) -> None:
    run_job(evidence_job(output, scene), evidenced())
    rows = read_output(Path(output)).rows("chips")
    assert {*COLUMNS} <= {*rows[0]}
    assert ["top-left", "center-center"] in [row["evidence_building_cells"] for row in rows]


def test_many_pairs_of_equal_pixels_are_asked_once(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 2)
    model = evidenced()
    run_job(evidence_job("out.gpkg", pairs), model)
    rows = layer("out.gpkg", "chips")
    assert all(row["evidence_score"] is not None for row in rows if row["status"] == "answered")
    assert {row["pair_id"] for row in rows} == {row["pair_id"] for row in layer("out.gpkg", "pairs")}
    assert sum(model.evidence_model.batches) == sum(model.model.batches) <= len(rows)


def test_a_resumed_run_has_equal_bytes(scene: Scene) -> None:
    whole, fields = evidenced(), {"batch_size": 2, "polygons": True}
    run_job(evidence_job("whole.geojson", scene, **fields), whole)
    cut = evidenced()
    job = evidence_job("cut.geojson", scene, **fields)
    with interrupted_after(1, cut.evidence_model):
        run_job(job, cut)
    notes: list[str] = []
    resumed = evidenced()
    run_job(job, resumed, notes)
    assert any(note.startswith("resuming") for note in notes)
    assert len(resumed.evidence_model.batches) < len(whole.evidence_model.batches)
    for suffix in (".geojson", ".changes.geojson"):
        assert Path(f"cut{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()


def test_a_journal_of_other_evidence_is_refused(scene: Scene) -> None:
    job = evidence_job("out.gpkg", scene, batch_size=2)
    model = evidenced()
    with interrupted_after(1, model.evidence_model):
        run_job(job, model)
    with pytest.raises(OutputError, match="evidence"):
        run_job(job_into("out.gpkg", scene, batch_size=2), text_reader())
    with pytest.raises(OutputError, match="fingerprint"):
        run_job(job, evidenced(fingerprint="f" * 16))


def test_lines_of_a_journal(scene: Scene) -> None:
    job = replace(single_job(scene), evidence=True)
    store = MemoryStore()
    analyzed(job, evidenced(), store)
    results = [result for result in store.results if result.evidence is not None]
    assert results
    for result in results:
        line = json.loads(json.dumps(line_of(result)))
        check_chip_line(line, list(result.answers))
        assert Evidence.from_dict(line["evidence"]) == result.evidence
    for wrong in ({"score": 2}, {"changed": "yes"}, {"new_roads": -1}, {"road_cells": ["nowhere"]}, 3):
        with pytest.raises(ValueError, match="evidence"):
            check_chip_line(
                {**line, "evidence": wrong if wrong == 3 else {**line["evidence"], **wrong}},
                [*line["answers"]],
            )


def test_a_worker_of_a_cluster_has_the_same_model(scene: Scene) -> None:
    load = LoadEvidencedModel(
        *(partial(workers.by_name, name, RuntimeOptions()) for name in ("text:any", "nano")), any_scale=True
    )
    actor = ModelActor(pickle.loads(pickle.dumps(load)), 1)
    info, model = actor.load(), EvidencedModel(text_reader(), ScriptedModel(), any_scale=True)
    assert isinstance(info, ModelInfo)
    assert (info.label, info.details, info.reads_context) == (model.label, model.details, True)
    assert info.batch_size == model.auto_batch_size()
    assert mask_model(info).label == model.evidence_model.label
    before, after = pictures(True, False)
    options = InferenceOptions(QUESTIONS, cascade=True, masks=True)
    contexts = [PairContext(gsd_m=10.0)] * 2
    there = actor.ask(options, [(0, 0), (0, 1)], 2, contexts, np.stack([before, after], axis=1))
    images = [
        SimpleNamespace(before=first, after=second) for first, second in zip(before, after, strict=True)
    ]
    here = run_batches(model, options, images, 2, contexts)
    assert there.chips == here.chips
    assert [chip.evidence.counts for chip in here.chips] == [Counts(1, 2), Counts(0, 0)]


@pytest.mark.parametrize("asks_change", [True, False])
def test_a_cascade_asks_only_about_chips_that_the_evidence_calls_changed(
    scene: Scene, asks_change: bool
) -> None:
    questions = (
        *([QuestionSpec("change", "change")] if asks_change else []),
        QuestionSpec("caption", "caption"),
        QuestionSpec("usage", "open", "What is built there?"),
    )
    model = evidenced()
    job = replace(evidence_job("out.gpkg", scene), questions=questions)
    job = replace(job, options=replace(job.options, cascade=True))
    run_job(job, model)
    rows = layer("out.gpkg", "chips")
    cascaded = [row for row in rows if row["status"] == "cascaded"]
    answered = [row for row in rows if row["status"] == "answered"]
    assert cascaded
    assert {row["evidence_changed"] for row in cascaded} == {False}
    assert {row["evidence_changed"] for row in answered} == {True}
    assert {row["changed"] for row in cascaded} == ({False} if asks_change else {None})
    assert {row["changed_score"] for row in cascaded} == {None}
    assert {row["caption"] for row in cascaded} == {"there is no difference"}
    assert {row["answer_usage"] for row in cascaded} == {None}
    assert {row["answer_usage"] for row in answered} == {"nothing to say"}
    assert sum(model.model.batches) < sum(model.evidence_model.batches)


def test_polygons_and_conflicts_come_from_the_masks_of_the_evidence(
    scene: Scene, bright: ScriptedModel
) -> None:
    def agree(before: Any, after: Any, question: Question) -> Reply:
        return Reply("Yes." if question.name == "change" else DENIALS[question.name], 0.8)

    model = EvidencedModel(text_reader(script=agree), bright)
    run_job(evidence_job("out.gpkg", scene, polygons=True, mask="mask.tif"), model)
    assert {row["kind"] for row in layer("out.gpkg", "changes")} == {"building_built"}
    conflicts = [{*row["conflicts"]} for row in layer("out.gpkg", "chips") if row["status"] == "answered"]
    assert any("changed_without_mask" in each for each in conflicts)
    assert any("changed_without_mask" not in each for each in conflicts)


def test_the_scale_of_the_evidence_model_is_warned_about(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "deltavlm"):
        run_job(evidence_job("out.gpkg", scene, mask="mask.tif"), evidenced(training_gsd_m=20.0))
    assert any("the evidence model scripted was trained at 20 m" in each.message for each in caplog.records)
    rows = [row for row in layer("out.gpkg", "chips") if row["status"] == "answered"]
    assert {row["evidence_new_buildings"] for row in rows} == {None}
    assert {row["new_buildings"] for row in rows} == {0}
