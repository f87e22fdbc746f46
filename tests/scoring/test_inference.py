"""Inference over a dataset: the questions, the batches, resuming, and failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltavlm.data.changechat import write_chip_set
from deltavlm.data.examples import Dataset
from deltavlm.data.images import read_image
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.errors import InputError, ModelError
from deltavlm.model.interface import Question, Reply
from deltavlm.scoring.inference import group_by_pair, predict_batches, run_id
from deltavlm.scoring.predictions import Prediction
from deltavlm.tasks.dialogue import TURNS
from tests.scripted_model import ScriptedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of five pairs with its images."""
    folder = tmp_path_factory.mktemp("dataset")
    write_chip_set(
        folder,
        "test",
        [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(5)],
    )
    return folder


@pytest.fixture
def data(folder: Path) -> Dataset:
    return read_dataset(folder)


def predict_all(model: ScriptedModel, data: Dataset, images: Path, batch_size: int = 2) -> list[Prediction]:
    pairs = group_by_pair(data.examples)
    return [p for batch, _ in predict_batches(model, pairs, images, batch_size) for p in batch]


def test_every_example_is_answered_once_and_a_dialogue_twice(folder: Path, data: Dataset) -> None:
    model = ScriptedModel()
    predictions = predict_all(model, data, folder / "images")
    keys = [(p.task, p.id, p.history) for p in predictions]
    assert len(keys) == len(set(keys))
    expected = {(e.task, e.id, "own") for e in data.examples}
    expected |= {(e.task, e.id, "reference") for e in data.examples if e.task == "dialogue"}
    assert set(keys) == expected
    assert model.batches == [2, 2, 1]  # each pair encoded once
    lengths = {(e.task, e.id): len(e.turns) for e in data.examples}
    assert all(len(p.answers) == lengths[p.task, p.id] for p in predictions)


def test_later_turns_see_the_answers_before_them(folder: Path, data: Dataset) -> None:
    """With its own answers and with those of the reference; the first turn has no history."""
    prompts: list[str] = []

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        if question.name == "dialogue":
            prompts.append(question.prompt)
        return Reply("Said it.", -0.5)

    dataset = replace(data, examples=tuple(e for e in data.examples if e.task == "dialogue")[:1])
    predict_all(ScriptedModel(script=script), dataset, folder / "images")
    reference = dataset.examples[0].turns[0].answers[0]
    assert prompts.count(TURNS[0]) == 2
    with_its_answers = [prompt for prompt in prompts if " a said it q " in prompt]
    assert len(with_its_answers) == 2
    assert [prompt for prompt in prompts if f" a {reference} q " in prompt and "said it" not in prompt]


def test_yes_no_questions_are_marked_in_dialogues_too(folder: Path, data: Dataset) -> None:
    model = ScriptedModel()
    predict_all(model, data, folder / "images")
    questions = {(q.name, q.prompt == TURNS[0], q.yes_no) for batch in model.history for q in batch}
    assert {p for p in questions if p[2]} == {("change", True, True), ("dialogue", True, True)}


def test_a_batch_out_of_memory_is_halved_and_a_failing_pair_reported(folder: Path, data: Dataset) -> None:
    pairs = group_by_pair(data.examples)
    expected = predict_all(ScriptedModel(), data, folder / "images")
    small = ScriptedModel(most=1)
    predictions = [p for batch, _ in predict_batches(small, pairs, folder / "images", 4) for p in batch]
    assert predictions == [
        p for batch, _ in predict_batches(ScriptedModel(), pairs, folder / "images", 4) for p in batch
    ]
    assert {(p.id, p.answers) for p in predictions} == {(p.id, p.answers) for p in expected}

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> str:
        if np.array_equal(before, read_image(folder / "images" / pairs[1].before)):
            raise ModelError("this pair cannot be answered")
        return "something"

    results = list(predict_batches(ScriptedModel(script=script), pairs, folder / "images", 4))
    problems = [problem for _, failures in results for problem in failures]
    assert [(problem.kind, problem.location) for problem in problems] == [("answer", pairs[1].before)]
    answered_ids = {p.id for batch, _ in results for p in batch}
    assert answered_ids == {e.id for pair in pairs if pair is not pairs[1] for e in pair.examples}


def test_a_turn_that_fails_costs_its_dialogue_alone(folder: Path, data: Dataset) -> None:
    """It had cost all answers about the pair."""
    pairs = group_by_pair(data.examples)

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> str:
        if " a said it q " in question.prompt:
            raise ModelError("no answer to this turn")
        return "said it"

    results = list(predict_batches(ScriptedModel(script=script), pairs, folder / "images", 4))
    problems = [problem for _, failures in results for problem in failures]
    dialogues = [example for example in data.examples if example.task == "dialogue"]
    assert {problem.location for problem in problems} == {example.before for example in dialogues}
    answered = {(p.task, p.id) for batch, _ in results for p in batch}
    assert answered == {(e.task, e.id) for e in data.examples if e.task != "dialogue"}


def test_batches_without_missing_predictions_are_skipped(folder: Path, data: Dataset) -> None:
    pairs = group_by_pair(data.examples)
    skip = frozenset([*pairs[0].keys, *pairs[1].keys, *pairs[2].keys[:1]])
    model = ScriptedModel()
    batches = list(predict_batches(model, pairs, folder / "images", 2, skip))
    assert batches[0] == ([], [])
    assert model.batches == [2, 1]
    predictions = {(p.task, p.id, p.history) for batch, _ in batches for p in batch}
    assert predictions == {key for pair in pairs for key in pair.keys} - skip


def test_shards_are_a_partition(data: Dataset) -> None:
    all_pairs = group_by_pair(data.examples)
    shards = [group_by_pair(data.examples, (index, 3)) for index in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert sorted(pair.before for shard in shards for pair in shard) == sorted(
        pair.before for pair in all_pairs
    )
    assert group_by_pair(data.examples, limit=2) == all_pairs[:2]


def test_unusable_images_are_problems(folder: Path, data: Dataset, tmp_path: Path) -> None:
    pairs = group_by_pair(data.examples)[:4]
    for pair in pairs:
        for name in (pair.before, pair.after):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((folder / "images" / name).read_bytes())
    (tmp_path / pairs[0].after).unlink()
    cut = (tmp_path / pairs[1].before).read_bytes()
    (tmp_path / pairs[1].before).write_bytes(cut[: len(cut) // 2])
    Image.new("RGB", (32, 64)).save(tmp_path / pairs[2].after)
    ((predictions, problems),) = predict_batches(ScriptedModel(), pairs, tmp_path, 4)
    assert [problem.kind for problem in problems] == ["image"] * 3
    assert "is missing" in problems[0].message
    assert "cannot be read" in problems[1].message
    assert "64 x 64 and 32 x 64 px" in problems[2].message
    assert {p.id for p in predictions} == {e.id for e in pairs[3].examples}


def test_images_of_several_sizes_are_batched_by_size(folder: Path, data: Dataset, tmp_path: Path) -> None:
    pairs = group_by_pair(data.examples)[:2]
    for size, pair in zip((64, 96), pairs, strict=True):
        for name in (pair.before, pair.after):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), "green").save(tmp_path / name)
    model = ScriptedModel()
    ((predictions, problems),) = predict_batches(model, pairs, tmp_path, 2)
    assert model.batches == [1, 1]
    assert not problems
    assert len(predictions) == sum(len(pair.keys) for pair in pairs)


def test_an_image_is_rgb_channels_first(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (3, 2, 3)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png cannot be read: not an image"):
        read_image(tmp_path / "text.png")


def test_the_run_id_depends_on_model_settings_and_dataset(data: Dataset) -> None:
    name = run_id(ScriptedModel(), data)
    assert name == run_id(ScriptedModel(), data)
    others = [
        run_id(ScriptedModel(fingerprint="f"), data),
        run_id(ScriptedModel(details={"beams": 5}), data),
        run_id(ScriptedModel(), replace(data, split="val")),
        run_id(ScriptedModel(), replace(data, examples=data.examples[1:])),
    ]
    assert len({name, *others}) == 5
