"""Stages of a tiny MCI: what each trains, four made pairs to exact captions and masks, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deltavlm.config import shipped_config
from deltavlm.data.images import read_image, save_image
from deltavlm.errors import ConfigError, InputError
from deltavlm.model.folder import CONFIG, WEIGHTS
from deltavlm.model.kinds import load_model
from deltavlm.model.mci.config import END, NULL, START, UNKNOWN
from deltavlm.model.mci.losses import losses
from deltavlm.model.mci.model import MCIModel, load_folder
from deltavlm.scoring.score import Scores, Setup
from deltavlm.training import mci, run, validate
from deltavlm.training.config import Phase, RecordSet, TrainConfig, Validation, load_config
from deltavlm.upstream import kinds
from tests.mci_reference import Sizes, random_weights, write_published

PAIRS, PX = 8, 64
CAPTIONS = ("a road is built", "many houses are built", "the road has changed", "trees and a road. are built")
UNCHANGED = "the scene is the same as before"


def phase(part: str, steps: int, **changes: Any) -> Phase:
    values: dict[str, Any] = {"batch": PAIRS, "lr": 1e-2, "warmup": 0, "weight_decay": 0.0, "floor": 0.1}
    return Phase(part, steps, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint with random weights, of small images, and of one layer where the published one has more."""
    sizes = Sizes(depths=(1, 1, 1, 1), caption_layers=1, mask_layers=1, decoder_layers=1)
    paths = write_published(tmp_path_factory.mktemp("mci") / "published", random_weights(sizes=sizes))
    folder = kinds.convert("mci", paths, tmp_path_factory.mktemp("start") / "start").folder
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | {"image_px": PX}))
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Set of eight pairs."""
    return write_set(tmp_path_factory.mktemp("set"), PAIRS)


def write_set(folder: Path, pairs: int) -> Path:
    """Write pairs of blocks of color with a caption each and a mask; every second one is unchanged."""
    content: list[dict[str, Any]] = []
    for pair in range(pairs):
        rng = np.random.default_rng(pair)
        for date in "AB":
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((64, 64, 1))).astype(np.uint8)
            save_image(folder / "images" / "train" / date / f"{pair}.png", pixels)
        mask = np.zeros((256, 256), np.uint8)
        if pair % 2 == 0:
            corner = 32 * (pair // 2)
            mask[corner : corner + 64, corner : corner + 64] = 255 if pair % 4 else 128
        save_image(folder / "masks" / "train" / "label" / f"{pair}.png", mask)
        images = {f"image_{date}": f"train/{date}/{pair}.png" for date in "AB"}
        captions = ["there is no difference"] if pair % 2 else [CAPTIONS[pair // 2]]
        content.append({**images, "captions": captions, "changeflag": 1 - pair % 2})
    (folder / "made_train.json").write_text(json.dumps(content))
    return folder


def recipe(start: Path, records: Path, *phases: Phase, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "phases": {each.part.removeprefix("mci_"): each for each in phases},
        "sets": {"made": RecordSet(records, masks=records / "masks")},
        "ema": 0.0,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainConfig(str(start), **(options | changes))


def images(records: Path, pairs: int) -> list[np.ndarray]:
    return [
        np.stack([read_image(records / "images" / "train" / date / f"{pair}.png") for pair in range(pairs)])
        for date in "AB"
    ]


def source(config: TrainConfig, part: str = "mci_joint") -> mci.StageSource:
    """Samples of the set of a configuration."""
    inputs = mci.load_stage_inputs(config)
    (split,) = inputs.splits
    return mci.StageSource(split.train, split.image_folder, config.sets["made"], inputs.model, part, [0])


@pytest.mark.slow
def test_eight_pairs_are_learned_in_three_stages(start: Path, records: Path, tmp_path: Path) -> None:
    stages = [phase(f"mci_{name}", steps) for name, steps in (("joint", 50), ("caption", 50), ("mask", 40))]
    config = recipe(start, records, *stages)
    result = run.train(config, tmp_path / "run")
    model = load_model(str(result.model_folder), device="cpu")
    assert isinstance(model, MCIModel)
    encoded = model.encode(*images(records, PAIRS))
    expected = [text for caption in CAPTIONS for text in (caption.replace(".", ""), UNCHANGED)]
    assert [caption.text for caption in model.captions(encoded)] == expected
    samples = source(config)
    truth = np.stack([mci.read_labels(samples.records, pair, PX) for pair in samples.pairs])
    assert {0, 1, 2} == {*np.unique(truth).tolist()}
    assert (encoded.mask_logits.argmax(dim=1).numpy() == truth).mean() > 0.995
    values = json.loads((tmp_path / "run" / "model" / CONFIG).read_text())
    assert values["sources"]["trained_on"] == "made"
    assert values["sources"]["started_from"].startswith("start ")
    assert values["image_px"] == PX


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        ("mci_joint", {"backbone", "caption_neck", "mask_neck", "mask_head", "captioner"}),
        ("mci_caption", {"caption_neck", "captioner"}),
        ("mci_mask", {"mask_neck", "mask_head"}),
    ],
)
def test_a_stage_changes_its_modules_alone(
    start: Path, records: Path, tmp_path: Path, part: str, trained: set[str]
) -> None:
    run.train(recipe(start, records, phase(part, 2)), tmp_path / "run")
    before, after = (load_file(folder / WEIGHTS) for folder in (start, tmp_path / "run" / "model"))
    changed = {name.split(".")[0] for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed == trained  # statistics of batch norms are among the tensors
    assert set(before) == set(after)


def test_a_resumed_run_equals_an_uninterrupted_one(start: Path, records: Path, tmp_path: Path) -> None:
    config = recipe(start, records, phase("mci_joint", 4, batch=4, micro=2), phase("mci_mask", 2, batch=4))
    folders = [run.train(config, tmp_path / "whole").model_folder]
    steps = 0

    def stop_twice(name: str, step: int, total: int, note: str) -> None:
        nonlocal steps
        steps += 1
        if steps in (3, 6):
            os.kill(os.getpid(), signal.SIGINT)

    results = [run.train(config, tmp_path / "parts", on_progress=stop_twice)]
    while results[-1].stop:
        results.append(run.train(config, tmp_path / "parts", run.RunOptions(resume=True), stop_twice))
    assert len(results) > 1
    folders.append(results[-1].model_folder)
    whole, parts = (load_file(Path(str(folder)) / WEIGHTS) for folder in folders)
    assert all(tensor.equal(parts[name]) for name, tensor in whole.items())


def test_the_losses_are_those_of_the_original(start: Path, records: Path) -> None:
    """Sums divided by their terms are the means that are checked against the original's numbers."""
    samples = source(recipe(start, records, phase("mci_joint", 1)))
    drawn = [samples.sample(index) for index in range(3)]
    batch = mci.collate_stage(drawn)
    network = load_folder(start).network
    learner = mci.StageLearner(network).eval()
    with torch.no_grad():
        pixels = [network.normalise(date) for date in (batch.before, batch.after)]
        means = losses(network, pixels[0], pixels[1], batch.words, batch.labels)
        joint = {name: float(value / batch.terms[name]) for name, value in learner(batch).items()}
        words = mci.collate_stage([replace(sample, labels=None) for sample in drawn])
        caption = {name: float(value / words.terms[name]) for name, value in learner(words).items()}
        masks = mci.collate_stage([replace(sample, words=None) for sample in drawn])
        mask = {name: float(value / masks.terms[name]) for name, value in learner(masks).items()}
    assert joint == pytest.approx(
        {"joint": 2.0, "joint_caption": float(means["caption"]), "joint_mask": float(means["mask"])}
    )
    assert caption == pytest.approx({"caption": float(means["caption"])}, rel=1e-5)
    assert mask == pytest.approx({"mask": float(means["mask"])}, rel=1e-5)


def test_captions_are_words_of_the_vocabulary(start: Path, records: Path) -> None:
    samples = source(recipe(start, records, phase("mci_joint", 1)))
    words = samples.words
    by_pair = {}
    for index in range(PAIRS):
        pair = samples.pairs[samples.order(0)[index]]
        by_pair[pair.before] = samples.sample(index).words
    unchanged = [words.index(word) for word in UNCHANGED.split()]
    assert by_pair["train/A/1.png"] == [START, *unchanged, END]  # not the caption of the record
    expected = [words.index(word) for word in ("trees", "and", "a", "road", "are", "built")]
    assert by_pair["train/A/6.png"] == [START, *expected, END]
    assert mci.caption_ids("a bridge", words, 41) == [START, words.index("a"), UNKNOWN, END]
    assert mci.caption_ids("road " * 40, words, 12) == [START, *[words.index("road")] * 10, END]
    batch = mci.collate_stage([samples.sample(index) for index in range(PAIRS)])
    assert batch.words is not None
    assert batch.words.shape[1] == max(map(len, by_pair.values()))
    assert int((batch.words[:, 1:] != NULL).sum()) == sum(len(ids) - 1 for ids in by_pair.values())


def test_resized_labels_have_no_classes_between(
    start: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halfway between background (0) and building (2) is no road (1)."""
    samples = source(recipe(start, records, phase("mci_mask", 1)))
    stripes = np.repeat(np.array([0, 2] * 8, np.uint8), 6)[None].repeat(96, axis=0)
    monkeypatch.setattr(mci, "read_mask", lambda path, classes: stripes)
    labels = mci.read_labels(samples.records, samples.pairs[0], 50)
    assert labels.shape == (50, 50)
    assert np.unique(labels).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("metric", "expected"), [(None, False), ("made.stage", False), ("made.caption.all.meteor", True)]
)
def test_meteor_is_computed_in_validations_where_it_is_the_metric(
    start: Path, records: Path, monkeypatch: pytest.MonkeyPatch, metric: str | None, expected: bool
) -> None:
    """Java takes ten seconds to read its tables, at each validation."""
    setups: list[Setup] = []

    def note_setup(pairs: object, tasks: object, setup: Setup) -> Scores:
        setups.append(setup)
        return Scores(setup)

    monkeypatch.setattr(validate, "score", note_setup)
    sets = {"made": RecordSet(records, masks=records / "masks", held_out=2)}
    plan = Validation(every=1, metric=metric)
    config = recipe(start, records, phase("mci_caption", 1), sets=sets, validation=plan)
    validator = mci.StageValidator(config, next(iter(config.phases)), mci.load_stage_inputs(config), Mock())
    validator.score_split(validator.splits[0], [])
    assert [setup.with_meteor for setup in setups] == [expected]


def test_the_best_weights_of_a_stage_are_passed_on(start: Path, records: Path, tmp_path: Path) -> None:
    sets = {"made": RecordSet(records, masks=records / "masks", held_out=2)}
    plan = Validation(every=2, metric="made.stage")
    stages = (phase("mci_joint", 4, batch=2), phase("mci_caption", 2, batch=2), phase("mci_mask", 2, batch=2))
    run.train(recipe(start, records, *stages, sets=sets, validation=plan), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    metrics = {line["phase"]: line for line in lines if "made.stage" in line}
    assert set(metrics) == {"joint", "caption", "mask"}
    bleu, iou = "made.caption.all.bleu_4", "made.mask.mean_iou"
    assert metrics["joint"]["made.stage"] == pytest.approx(
        metrics["joint"].get(bleu, 0) + metrics["joint"][iou]
    )
    assert iou not in metrics["caption"]
    assert bleu not in metrics["mask"]
    assert metrics["mask"]["made.stage"] == metrics["mask"][iou]
    assert {"made.loss.joint", "made.loss.joint_mask"} <= set(metrics["joint"])
    assert "made.loss.caption" in metrics["caption"]


def test_what_cannot_be_trained_is_refused(start: Path, records: Path, tmp_path: Path) -> None:
    stage = phase("mci_mask", 1)
    with pytest.raises(ValueError, match=r"sets\.made has no masks; set sets\.made\.masks"):
        recipe(start, records, stage, sets={"made": RecordSet(records)})
    with pytest.raises(ValueError, match=r"phases\.mask\.rows; leave it out"):
        recipe(start, records, phase("mci_mask", 1, rows=2))
    with pytest.raises(ValueError, match="and the others are not"):
        recipe(start, records, stage, phase("language", 1, batch=8))
    with pytest.raises(ValueError, match=r"sets\.made\.masks are for phases of part mci_"):
        recipe(start, records, phase("language", 1, batch=8))
    nano = Path(mci.__file__).parent.parent / "weights" / "nano"
    with pytest.raises(ConfigError, match=r"train a model of kind mci; .* is of deltavlm"):
        mci.load_stage_inputs(recipe(nano, records, stage))
    shutil.copytree(records, tmp_path / "set")
    (tmp_path / "set" / "masks" / "train" / "label" / "3.png").unlink()
    with pytest.raises(
        InputError, match=r"sets.made: 1 mask of 8 pairs cannot be used, the first: .*3.png is missing"
    ):
        mci.load_stage_inputs(recipe(start, tmp_path / "set", stage))


def test_the_shipped_recipe_is_the_published_one() -> None:
    config = load_config(shipped_config("train_mci.yaml", "phases"))
    assert [each.part for each in config.phases.values()] == ["mci_joint", "mci_caption", "mci_mask"]
    assert all(
        (each.lr, each.batch, each.weight_decay, each.floor) == (1e-4, 64, 0.0, 1.0)
        for each in config.phases.values()
    )
