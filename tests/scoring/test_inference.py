"""A model asked about a set: which questions it gets, in which batches, and what becomes of failures."""

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
from deltavlm.errors import InputError
from deltavlm.model.interface import Question, Reply
from deltavlm.scoring.inference import group_by_pair, predict_batches, run_id
from deltavlm.scoring.predictions import Prediction
from deltavlm.tasks.dialogue import TURNS
from tests.scripted_model import ScriptedModel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_chip_set(
        folder,
        "test",
        [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(5)],
    )
    return folder


@pytest.fixture
def data(made: Path) -> Dataset:
    return read_dataset(made)


def everything(model: ScriptedModel, data: Dataset, images: Path, batch: int = 2) -> list[Prediction]:
    return [
        one
        for found, _ in predict_batches(model, group_by_pair(data.examples), images, batch)
        for one in found
    ]


def test_every_example_is_answered_once_and_a_dialogue_twice(made: Path, data: Dataset) -> None:
    model = ScriptedModel()
    found = everything(model, data, made / "images")
    keys = [(one.task, one.id, one.history) for one in found]
    assert len(keys) == len(set(keys))
    wanted = {(e.task, e.id, "own") for e in data.examples}
    wanted |= {(e.task, e.id, "reference") for e in data.examples if e.task == "dialogue"}
    assert set(keys) == wanted
    assert model.batches == [2, 2, 1]  # each pair encoded once
    lengths = {(e.task, e.id): len(e.turns) for e in data.examples}
    assert all(len(one.answers) == lengths[one.task, one.id] for one in found)


def test_later_turns_see_the_answers_before_them(made: Path, data: Dataset) -> None:
    """Behind its own answers, and behind the reference's; the first turn is asked as any question is."""
    prompts: list[str] = []

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        if question.name == "dialogue":
            prompts.append(question.prompt)
        return Reply("Said it.", -0.5)

    one = replace(data, examples=tuple(e for e in data.examples if e.task == "dialogue")[:1])
    everything(ScriptedModel(script=script), one, made / "images")
    told = one.examples[0].turns[0].answers[0]
    assert prompts.count(TURNS[0]) == 2
    own = [prompt for prompt in prompts if prompt.startswith("q ") and " a said it q " in prompt]
    assert len(own) == 2
    assert [prompt for prompt in prompts if f" a {told} q " in prompt and "said it" not in prompt]


def test_yes_or_no_is_asked_as_such_also_in_a_dialogue(made: Path, data: Dataset) -> None:
    model = ScriptedModel()
    everything(model, data, made / "images")
    asked = {(q.name, q.prompt == TURNS[0], q.yes_no) for batch in model.history for q in batch}
    assert {one for one in asked if one[2]} == {("change", True, True), ("dialogue", True, True)}


def test_a_batch_that_does_not_fit_is_halved_and_one_bad_pair_is_named(made: Path, data: Dataset) -> None:
    cases = group_by_pair(data.examples)
    whole = everything(ScriptedModel(), data, made / "images")
    small = ScriptedModel(most=1)
    found = [one for part, _ in predict_batches(small, cases, made / "images", 4) for one in part]
    assert found == [
        one for part, _ in predict_batches(ScriptedModel(), cases, made / "images", 4) for one in part
    ]
    assert {(one.id, one.answers) for one in found} == {(one.id, one.answers) for one in whole}

    def script(before: np.ndarray, after: np.ndarray, question: Question) -> str:
        from deltavlm.errors import ModelError

        if np.array_equal(before, read_image(made / "images" / cases[1].before)):
            raise ModelError("this pair cannot be answered")
        return "something"

    results = list(predict_batches(ScriptedModel(script=script), cases, made / "images", 4))
    problems = [problem for _, troubles in results for problem in troubles]
    assert [(problem.kind, problem.location) for problem in problems] == [("answer", cases[1].before)]
    answered_ids = {one.id for part, _ in results for one in part}
    assert answered_ids == {e.id for case in cases if case is not cases[1] for e in case.examples}


def test_known_answers_are_not_asked_again_and_a_batch_is_asked_whole(made: Path, data: Dataset) -> None:
    cases = group_by_pair(data.examples)
    known = frozenset([*cases[0].keys, *cases[1].keys, *cases[2].keys[:1]])
    model = ScriptedModel()
    parts = list(predict_batches(model, cases, made / "images", 2, known))
    assert parts[0] == ([], [])
    assert model.batches == [2, 1]
    found = {(one.task, one.id, one.history) for part, _ in parts for one in part}
    assert found == {key for case in cases for key in case.keys} - known


def test_shards_are_disjoint_and_together_all(data: Dataset) -> None:
    every = group_by_pair(data.examples)
    shards = [group_by_pair(data.examples, (index, 3)) for index in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert sorted(case.before for shard in shards for case in shard) == sorted(case.before for case in every)
    assert group_by_pair(data.examples, limit=2) == every[:2]


def test_pictures_that_cannot_be_used_are_problems(made: Path, data: Dataset, tmp_path: Path) -> None:
    cases = group_by_pair(data.examples)[:4]
    for case in cases:
        for name in (case.before, case.after):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((made / "images" / name).read_bytes())
    (tmp_path / cases[0].after).unlink()
    cut = (tmp_path / cases[1].before).read_bytes()
    (tmp_path / cases[1].before).write_bytes(cut[: len(cut) // 2])
    Image.new("RGB", (32, 64)).save(tmp_path / cases[2].after)
    ((found, problems),) = predict_batches(ScriptedModel(), cases, tmp_path, 4)
    assert [problem.kind for problem in problems] == ["image"] * 3
    assert "is missing" in problems[0].message
    assert "cannot be read" in problems[1].message
    assert "64 x 64 and 32 x 64 px" in problems[2].message
    assert {one.id for one in found} == {e.id for e in cases[3].examples}


def test_pictures_of_different_sizes_go_in_batches_of_one_size(
    made: Path, data: Dataset, tmp_path: Path
) -> None:
    cases = group_by_pair(data.examples)[:2]
    for size, case in zip((64, 96), cases, strict=True):
        for name in (case.before, case.after):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), "green").save(tmp_path / name)
    model = ScriptedModel()
    ((found, problems),) = predict_batches(model, cases, tmp_path, 2)
    assert model.batches == [1, 1]
    assert not problems
    assert len(found) == sum(len(case.keys) for case in cases)


def test_a_picture_is_rgb_channels_first(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (3, 2, 3)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png cannot be read: not an image"):
        read_image(tmp_path / "text.png")


def test_a_run_is_named_by_model_its_way_and_the_set(data: Dataset) -> None:
    name = run_id(ScriptedModel(), data)
    assert name == run_id(ScriptedModel(), data)
    others = [
        run_id(ScriptedModel(fingerprint="f"), data),
        run_id(ScriptedModel(details={"beams": 5}), data),
        run_id(ScriptedModel(), replace(data, split="val")),
        run_id(ScriptedModel(), replace(data, examples=data.examples[1:])),
    ]
    assert len({name, *others}) == 5
