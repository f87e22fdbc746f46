"""Content of a training step: a function of seed and step alone, whatever the processes and micro-batches."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.data.augment import Warp, random_warp
from deltavlm.data.changechat import save_image, write_chip_set
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.data.synthetic.cache import open_cache, render_cache
from deltavlm.errors import ConfigError, InputError
from deltavlm.tasks import caption, dialogue, locate
from deltavlm.training import changechat_dataset
from deltavlm.training.build import RunInputs, limit_epochs
from deltavlm.training.changechat_dataset import ChangeChatSource, load_split, turn_samples
from deltavlm.training.config import Phase, RecordSet, Scenes, TrainConfig, Validation
from deltavlm.training.sampling import MixedSampler, Sample
from deltavlm.training.synthetic_dataset import SceneSource
from tests.tiny import TINY

PHASE = Phase(part="instruct", steps=4, batch=6, lr=1e-3, rows=1)


class NumberedSource:
    """Source whose samples have its name and their own index as prompt and answer; source 2 has masks."""

    def __init__(self, name: int) -> None:
        self.name = name

    def sample(self, index: int) -> Sample:
        image = np.full((3, 1, 1), self.name, np.uint8)
        mask = np.zeros((4, 4), np.int64) if self.name == 2 else None
        density = np.zeros((2, 1, 1), np.float32) if self.name == 2 else None
        return Sample(image, image, ((str(self.name), str(index)),), True, mask, density)


def sampler(weights: tuple[float, float], steps: int) -> MixedSampler:
    sources = [(NumberedSource(name), weight) for name, weight in zip((1, 2), weights, strict=True)]
    return MixedSampler(sources, batch_size=8, steps=steps, seed=[5])


def test_a_mixed_sampler_draws_each_sample_once_by_weight() -> None:
    mixed = sampler((3.0, 1.0), steps=50)
    turns = [turn for step in range(50) for pair in mixed.batch(step, 0, 8).turns for turn in pair]
    counts = Counter(name for name, _ in turns)
    assert counts["1"] / 400 == pytest.approx(0.75, abs=0.06)
    for name, count in counts.items():
        assert sorted(int(index) for source, index in turns if source == name) == list(range(count))


def test_a_step_has_the_same_content_however_it_is_split() -> None:
    """Two processes with two micro-batches each see what one sees, and steps do not depend on each other."""
    full = sampler((1.0, 1.0), steps=5).batch(3, 0, 8)
    longer = sampler((1.0, 1.0), steps=9)
    micro_batches = [longer.batch(3, start, start + 2) for start in (4, 0, 6, 2)]
    assert sorted(full.turns) == sorted(turns for batch in micro_batches for turns in batch.turns)
    assert {batch.noise_seed for batch in micro_batches} == {full.noise_seed}
    assert full.mask is not None
    names = [turns[0][0] for turns in full.turns]
    assert len(full.mask) == names.count("2")
    assert names[: len(full.mask)] == ["2"] * len(full.mask)  # those with masks first


@pytest.fixture(scope="module")
def chip_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    scenes = [(f"train_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(5)]
    write_chip_set(folder, "train", scenes)
    return folder


def source_of(folder: Path, phase: Phase = PHASE, image_px: int = 64) -> ChangeChatSource:
    split = load_split("made", RecordSet(folder), 0)
    return ChangeChatSource(split.train, split.image_folder, phase, image_px, [0], train=True)


def test_an_epoch_has_every_turn_once(chip_set: Path) -> None:
    """One sample per turn; the next epoch has the same ones in another order."""
    source = source_of(chip_set)
    expected = [turn for pair in source.pairs for turn in turn_samples(pair)]
    count = len(source)
    assert count == len(expected)
    epochs = [[source.sample(epoch * count + index).turns[0] for index in range(count)] for epoch in (0, 1)]
    assert (
        Counter(epochs[0]) == Counter(epochs[1]) == Counter((turn.prompt, turn.answer) for turn in expected)
    )
    assert epochs[0] != epochs[1]


def test_several_turns_of_a_pair_come_together(chip_set: Path) -> None:
    source = source_of(chip_set, replace(PHASE, rows=4))
    counts = [len(source.sample(index).turns) for index in range(len(source))]
    assert {*counts} > {4}
    assert sum(counts) == len(source_of(chip_set))


def test_a_dialogue_has_its_true_history(chip_set: Path) -> None:
    pair = source_of(chip_set).pairs[1]
    example = next(example for example in pair.examples if example.task == "dialogue")
    prompts = [turn.prompt for turn in turn_samples(replace(pair, examples=(example,)))]
    assert prompts[0] == dialogue.TURNS[0]
    assert prompts[1].startswith("q please judge")
    assert " a yes q " in prompts[1]
    assert prompts[2].endswith(dialogue.prompt_with_history([], dialogue.TURNS[2]))


def test_a_phase_that_aligns_has_captions_alone(chip_set: Path) -> None:
    source = source_of(chip_set, replace(PHASE, part="align"))
    assert len(source) == 5 * 5  # five captions of five pairs
    assert {source.sample(index).turns[0][0] for index in range(25)} == {caption.PROMPT}


def test_images_are_warped_where_the_answer_stays_true(chip_set: Path) -> None:
    """Both dates alike; a sample with a position or a number is not warped."""
    warped = source_of(chip_set, replace(PHASE, cut=0.05, turn_deg=15.0))
    plain = source_of(chip_set)
    for index in range(len(plain)):
        sample, original = warped.sample(index), plain.sample(index)
        assert sample.turns == original.turns
        is_same = bool((sample.before == original.before).all())
        prompt, answer = sample.turns[0]
        assert (
            not is_same
            or "left" in f"{prompt}{answer}"
            or any(map(str.isdigit, answer))
            or prompt != caption.PROMPT
        )
        if prompt == locate.PROMPT:
            assert is_same
            assert (sample.after == original.after).all()
    # captions of unchanged pairs name no position: at least those are warped
    assert any(not pair.examples[0].changed for pair in warped.pairs)
    assert any(
        not (warped.sample(index).before == plain.sample(index).before).all() for index in range(len(plain))
    )


def test_images_have_the_size_of_the_models_input(chip_set: Path) -> None:
    assert source_of(chip_set, image_px=28).sample(0).before.shape == (3, 28, 28)


def test_held_out_pairs_are_not_trained_on(chip_set: Path) -> None:
    split = load_split("made", RecordSet(chip_set, held_out=2), 0)
    train, held_out = ({pair.before for pair in pairs} for pairs in (split.train, split.held_out))
    assert (len(train), len(held_out)) == (3, 2)
    assert not train & held_out
    assert split == load_split("made", RecordSet(chip_set, held_out=2), 0)
    with pytest.raises(ConfigError, match="leaves none of its 5 pairs"):
        load_split("made", RecordSet(chip_set, held_out=5), 0)
    assert len(load_split("made", RecordSet(chip_set, held_out=9, weight=0.0), 0).held_out) == 5


def test_a_small_set_gets_fewer_steps_and_scenes(
    chip_set: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`held_out: auto` refuses fewer than 10 pairs; `max_epochs` limits steps, warm-up and scenes."""
    with pytest.raises(ConfigError, match="has 5 pairs, too few"):
        load_split("made", RecordSet(chip_set, held_out="auto"), 0)
    monkeypatch.setattr(changechat_dataset, "MIN_AUTO_PAIRS", 5)
    split = load_split("made", RecordSet(chip_set, held_out="auto"), 0)
    assert (len(split.train), len(split.held_out)) == (4, 1)
    phase = Phase("language", steps=500, batch=4, lr=1e-4, warmup=100, rows=99)
    config = TrainConfig(
        "nano",
        {"read": phase},
        Scenes(1000, 8, weight=0.5),
        {"made": RecordSet(chip_set, held_out="auto", weight=0.5)},
    )
    inputs = RunInputs(TINY, None, (split,))
    assert limit_epochs(config, inputs) == config
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "phase read: 500 steps are 250 epochs over the 4 training pairs of sets.made" in warning
    assert "`set=max_epochs=3`" in warning
    caplog.clear()
    plan = Validation(every=10, pairs=200)
    limited = limit_epochs(replace(config, max_epochs=3, validation=plan), inputs)
    assert limited.validation == replace(plan, pairs=1)  # as many scenes as pairs are held out
    assert limited.phases["read"].steps == 6  # 3 epochs of 4 samples, 2 in a step
    assert limited.phases["read"].warmup == 2
    assert limited.scenes == Scenes(12, 8, weight=0.5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_repeated_ids_are_all_trained_on(tmp_path: Path) -> None:
    """In a training file the five captions of a pair may share an id; scoring uses one, training all."""
    messages = [
        {"from": "human", "value": caption.PROMPT},
        {"from": "gpt", "value": "a"},
    ]
    record = {"id": "x", "image": ["a.png", "b.png"], "changeflag": 1, "conversations": messages}
    (tmp_path / "my_train.json").write_text(json.dumps([record] * 3))
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "images" / name, np.zeros((8, 8, 3), np.uint8))
    split = load_split("my", RecordSet(tmp_path), 0)
    assert sum(len(pair.examples) for pair in split.train) == 3


def test_changeimti_is_read_too(tmp_path: Path) -> None:
    """Two captions of a pair are two samples."""

    def record(name: str, answer: str) -> dict[str, object]:
        messages = [{"from": "human", "value": "Say <image> and <image>"}, {"from": "gpt", "value": answer}]
        return {"conversations": messages, "images": [f"/x/images/train/{date}/{name}" for date in "AB"]}

    files = {
        "caption.json": [record("x.png", "a house is built"), record("x.png", "a villa appears")],
        "binary_class.json": [record("x.png", "Yes")],
    }
    (tmp_path / "train_task_data").mkdir()
    for name, records in files.items():
        (tmp_path / "train_task_data" / name).write_text(json.dumps(records))
    for date in "AB":
        save_image(tmp_path / "images" / "train" / date / "x.png", np.zeros((8, 8, 3), np.uint8))
    split = load_split("imti", RecordSet(tmp_path, images=tmp_path / "images"), 0)
    source = ChangeChatSource(split.train, split.image_folder, PHASE, 8, [0], train=True)
    turns = {source.sample(index).turns[0] for index in range(len(source))}
    assert {(caption.PROMPT, "a house is built"), (caption.PROMPT, "a villa appears")} < turns
    assert len(turns) == 3


def test_a_broken_record_is_logged_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
    record = {"id": "x", "image": ["a.png", "a.png"], "changeflag": 1, "conversations": messages}
    (tmp_path / "my_train.json").write_text(json.dumps([record, record | {"changeflag": 7}]))
    save_image(tmp_path / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    split = load_split("my", RecordSet(tmp_path), 0)
    assert sum(len(pair.examples) for pair in split.train) == 1
    assert "1 record cannot be used, the first: my_train.json, record 2: changeflag is 7" in caplog.text


def test_missing_images_are_named_before_training(
    chip_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images" / "train" / "A").mkdir(parents=True)
    records = RecordSet(chip_set, images=tmp_path / "images")
    with pytest.raises(
        InputError, match=r"10 images of 5 pairs cannot be used, the first: .*train_0\.png is missing; repair"
    ) as error:
        load_split("made", records, 0)
    assert "\n" not in str(error.value)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 10
    assert all("is missing" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_truncated_images_are_named_before_training(suffix: str, tmp_path: Path) -> None:
    """A truncated image has an intact header; it ended a run at the step that read it."""
    messages = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
    names = [f"a{suffix}", f"b{suffix}"]
    record = {"id": "x", "image": names, "changeflag": 1, "conversations": messages}
    (tmp_path / "my_train.json").write_text(json.dumps([record]))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in names:
        save_image(tmp_path / "images" / name, pixels)
    assert load_split("my", RecordSet(tmp_path), 0).train
    damaged = tmp_path / "images" / names[1]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(InputError, match=rf"1 image of 1 pair cannot be used, .*b\{suffix} cannot be read"):
        load_split("my", RecordSet(tmp_path), 0)


def test_images_of_a_pair_must_have_one_size(tmp_path: Path) -> None:
    messages = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
    record = {"id": "x", "image": ["a.png", "b.png"], "changeflag": 1, "conversations": messages}
    (tmp_path / "my_train.json").write_text(json.dumps([record]))
    for name, size in (("a.png", 8), ("b.png", 9)):
        save_image(tmp_path / "images" / name, np.zeros((size, size, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png and b\.png are 8 x 8 and 9 x 9 px"):
        load_split("my", RecordSet(tmp_path), 0)


@pytest.mark.parametrize("name", ["far", "stormy", "rich", "ground"])
def test_kinds_of_scenes_are_sampled_by_their_share(name: str, tmp_path: Path) -> None:
    for number, cache in enumerate(("scenes", name)):
        options = SceneOptions(change=1.0)
        render_cache(tmp_path / cache, 2, seed=20 + 10 * number, size_px=64, workers=1, options=options)
    images = open_cache(tmp_path / name)[0]
    pixels_of_kind = {np.sort(image, axis=None).tobytes() for pair in images for image in pair}
    scenes = Scenes(2, 2, 64, **{name: 2}, ground_folder=tmp_path)
    for share in (0.0, 0.5, 1.0):
        phase = replace(PHASE, part="joint", **{name: share})
        source = SceneSource(tmp_path, scenes, phase, 64, [0])
        samples = [source.sample(index) for index in range(24)]
        is_kind = [np.sort(sample.before, axis=None).tobytes() in pixels_of_kind for sample in samples]
        assert np.mean(is_kind) == pytest.approx(share, abs=0.3 if share == 0.5 else 0)


def test_a_warp_moves_images_and_labels_alike() -> None:
    """A bright square stays under its code, at another resolution too."""
    image, codes = np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32), np.uint8)
    image[10:30, 36:52], codes[5:15, 18:26] = 255, 7
    warp = random_warp(np.random.default_rng(0), 0.05, 15.0)
    warped_image, warped_codes = warp(image), warp(codes, nearest=True)
    assert set(np.unique(warped_codes)) == {0, 7}
    agrees = (warped_image[::2, ::2, 0] > 127) == (warped_codes == 7)
    assert agrees.mean() > 0.97
    assert (warped_codes != codes).any()
    assert (Warp(0.0, 1.0, (0.0, 0.0))(image) == image).all()
    rotated = Warp(90.0, 1.0, (0.0, 0.0))(image)
    errors = [np.abs(rotated.astype(int) - np.rot90(image, quarters)).mean() for quarters in (1, -1)]
    assert min(errors) < 1 < max(errors)
