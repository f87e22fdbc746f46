"""`evaluate` as a library function: a model or predictions, without the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltavlm.data.changechat import write_chip_set
from deltavlm.data.examples import Dataset
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.errors import ConfigError, InputError, ModelError, PartialFailure
from deltavlm.model.interface import ChangeModel
from deltavlm.scoring.evaluate import evaluate
from deltavlm.scoring.inference import Inference
from deltavlm.scoring.predictions import Prediction, PredictionSet
from deltavlm.scoring.report import record
from deltavlm.scoring.score import Setup
from tests.scripted_model import ScriptedModel

SETUP = Setup(bootstrap_rounds=0)
PARSED = ("change", "count", "location")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    scenes = [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(3)]
    write_chip_set(folder, "test", scenes)
    return read_dataset(folder)


def test_a_model_and_its_predictions_have_equal_metrics(dataset: Dataset) -> None:
    inference = Inference(ScriptedModel, dataset.path / "images", batch_size=2)
    from_model = evaluate(dataset, inference, SETUP, PARSED)
    from_model.raise_if_partial()
    predictions = PredictionSet(from_model.predictions.predictions)
    from_predictions = evaluate(dataset, predictions, SETUP)
    assert from_predictions.scores.metrics == from_model.scores.metrics
    assert not from_model.setup.with_published  # the dataset is not the published one
    assert from_model.predictions.model is not None
    assert from_model.predictions.model["name"] == "scripted"
    assert record(from_model)["sources"]["data"] == str(dataset.path)


def test_a_model_is_loaded_after_all_checks(dataset: Dataset, tmp_path: Path) -> None:
    def load() -> ChangeModel:
        raise AssertionError("the model was loaded")

    for inference, tasks, error, message in (
        (Inference(load, tmp_path), PARSED, InputError, "none of the images exists"),
        (Inference(load, dataset.path / "images", shard=(9, 9)), PARSED, ConfigError, "`shard=9/9`"),
        (Inference(load, tmp_path), (), ConfigError, "has no example"),
    ):
        with pytest.raises(error, match=message):
            evaluate(dataset, inference, SETUP, tasks)
    with pytest.raises(ConfigError, match="`word_map`"):
        evaluate(dataset, Inference(load, dataset.path / "images"), Setup("paper"))


def test_progress_and_messages_are_reported(dataset: Dataset) -> None:
    messages: list[str] = []
    inference = Inference(ScriptedModel, dataset.path / "images", notify=messages.append)
    evaluate(dataset, inference, SETUP, PARSED)
    assert messages == [
        "predictions are not saved; with `output` they are, and an interrupted run can resume"
    ]


def test_tasks_that_are_not_scored_are_noted(dataset: Dataset) -> None:
    example = next(example for example in dataset.examples if example.task == "count")
    predictions = (
        Prediction(example.id, "count", ("no new roads or buildings",)),
        Prediction(example.id, "change", ("no",)),
    )
    evaluation = evaluate(dataset, PredictionSet(predictions), Setup("paper", bootstrap_rounds=0))
    assert {metric.task for metric in evaluation.scores.metrics} == {"count"}
    assert any("derives yes/no from captions" in note for note in evaluation.scores.notes)


def test_an_example_without_an_answer_is_a_partial_failure(dataset: Dataset) -> None:
    model = ScriptedModel()
    encode, batches = model.encode, iter([False, True, False])

    def fail_second(before: object, after: object) -> object:
        if next(batches):
            raise ModelError("out of order")
        return encode(before, after)  # type: ignore[arg-type]

    model.encode = fail_second  # type: ignore[method-assign, assignment]
    inference = Inference(lambda: model, dataset.path / "images", batch_size=1)
    evaluation = evaluate(dataset, inference, SETUP, ("count",))
    with pytest.raises(
        PartialFailure, match="1 of 3 examples without an answer, the first because: out of order"
    ):
        evaluation.raise_if_partial()
