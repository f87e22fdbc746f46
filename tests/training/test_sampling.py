"""What a step holds: a function of seed and step alone, whoever asks, and however it is cut."""

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
from deltavlm.training.changechat_dataset import ChangeChatSource, read_records, turns_of
from deltavlm.training.config import Phase, Records, Scenes
from deltavlm.training.sampling import MixedSampler, Sample
from deltavlm.training.synthetic_dataset import SceneSource

PHASE = Phase(part="instruct", steps=4, batch=6, lr=1e-3, rows=1)


class Numbered:
    """Samples that say their own number."""

    def __init__(self, name: int) -> None:
        self.name = name

    def sample(self, number: int) -> Sample:
        picture = np.full((3, 1, 1), self.name, np.uint8)
        mask = np.zeros((4, 4), np.int64) if self.name == 2 else None
        density = np.zeros((2, 1, 1), np.float32) if self.name == 2 else None
        return Sample(picture, picture, ((str(self.name), str(number)),), True, mask, density)


def test_a_mixture_deals_every_sample_once_by_weight() -> None:
    mixed = MixedSampler([(Numbered(1), 3.0), (Numbered(2), 1.0)], batch=8, steps=50, seed=[5])
    dealt = [row for step in range(50) for rows in mixed.take(step, 0, 8).rows for row in rows]
    names = Counter(name for name, _ in dealt)
    assert names["1"] / 400 == pytest.approx(0.75, abs=0.06)
    for name, number in names.items():
        assert sorted(int(at) for who, at in dealt if who == name) == list(range(number))


def test_however_a_step_is_cut_it_holds_the_same() -> None:
    """Two processes in two pieces each see what one sees, and a step does not hang on the steps before."""
    mixed = MixedSampler([(Numbered(1), 1.0), (Numbered(2), 1.0)], batch=8, steps=5, seed=[5])
    whole = mixed.take(3, 0, 8)
    again = MixedSampler([(Numbered(1), 1.0), (Numbered(2), 1.0)], batch=8, steps=9, seed=[5])  # more to come
    parts = [again.take(3, at, at + 2) for at in (4, 0, 6, 2)]
    assert sorted(whole.rows) == sorted(rows for part in parts for rows in part.rows)
    assert {part.noise for part in parts} == {whole.noise}
    assert whole.mask is not None
    assert len(whole.mask) == sum(rows[0][0] == "2" for rows in whole.rows)
    assert [rows[0][0] for rows in whole.rows][: len(whole.mask)] == ["2"] * len(whole.mask)  # masks first


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    scenes = [(f"train_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(5)]
    write_chip_set(folder, "train", scenes)
    return folder


def source(made: Path, phase: Phase = PHASE, image_px: int = 64) -> ChangeChatSource:
    held = read_records("made", Records(made), 0)
    return ChangeChatSource(held.training, held.images, phase, image_px, [0], still=False)


def test_an_epoch_has_every_turn_once(made: Path) -> None:
    """One sample a turn; the next epoch has the same in another order."""
    every = source(made)
    truth = [row for case in every.cases for row in turns_of(case)]
    assert len(every) == len(truth)
    epochs = [[every.sample(epoch * len(every) + at).rows[0] for at in range(len(every))] for epoch in (0, 1)]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter((row.prompt, row.answer) for row in truth)
    assert epochs[0] != epochs[1]


def test_several_turns_of_a_pair_come_together(made: Path) -> None:
    every = source(made, replace(PHASE, rows=4))
    samples = [every.sample(at) for at in range(len(every))]
    assert {len(one.rows) for one in samples} > {4}
    assert sum(len(one.rows) for one in samples) == len(source(made))


def test_a_dialogue_has_its_true_history(made: Path) -> None:
    case = source(made).cases[1]
    example = next(one for one in case.examples if one.task == "dialogue")
    prompts = [row.prompt for row in turns_of(replace(case, examples=(example,)))]
    assert prompts[0] == dialogue.TURNS[0]
    assert prompts[1].startswith("q please judge")
    assert " a yes q " in prompts[1]
    assert prompts[2].endswith(dialogue.prompt_with_history([], dialogue.TURNS[2]))


def test_aligning_takes_captions_alone(made: Path) -> None:
    every = source(made, replace(PHASE, part="align"))
    assert len(every) == 5 * 5  # five captions of five pairs
    assert {every.sample(at).rows[0][0] for at in range(25)} == {caption.PROMPT}


def test_pictures_are_cut_and_turned_where_words_stay_true(made: Path) -> None:
    """Both dates alike; a sample that says where or how many is left as it is."""
    moved = source(made, replace(PHASE, cut=0.05, turn_deg=15.0))
    plain = source(made)
    for at in range(len(plain)):
        one, other = moved.sample(at), plain.sample(at)
        assert one.rows == other.rows
        same = bool((one.before == other.before).all())
        prompt, answer = one.rows[0]
        assert (
            not same
            or "left" in f"{prompt}{answer}"
            or any(map(str.isdigit, answer))
            or prompt != caption.PROMPT
        )
        if prompt == locate.PROMPT:
            assert same
            assert (one.after == other.after).all()
    unchanged = next(case for case in moved.cases if not case.examples[0].changed)
    assert unchanged  # captions of no change name no place: at least those moved
    assert any(not (moved.sample(at).before == plain.sample(at).before).all() for at in range(len(plain)))


def test_pictures_have_the_models_size(made: Path) -> None:
    assert source(made, image_px=28).sample(0).before.shape == (3, 28, 28)


def test_what_is_held_out_is_not_trained_on(made: Path) -> None:
    held = read_records("made", Records(made, held_out=2), 0)
    trained, out = ({case.before for case in part} for part in (held.training, held.held_out))
    assert (len(trained), len(out)) == (3, 2)
    assert not trained & out
    assert held == read_records("made", Records(made, held_out=2), 0)
    with pytest.raises(ConfigError, match="leaves none of its 5 pairs"):
        read_records("made", Records(made, held_out=5), 0)
    assert len(read_records("made", Records(made, held_out=9, weight=0.0), 0).held_out) == 5


def test_repeated_ids_are_all_trained_on(tmp_path: Path) -> None:
    """In the training file a pair's five captions may share an id; scoring takes one, training takes all."""
    told = [
        {"from": "human", "value": caption.PROMPT},
        {"from": "gpt", "value": "a"},
    ]
    record = {"id": "x", "image": ["a.png", "b.png"], "changeflag": 1, "conversations": told}
    (tmp_path / "my_train.json").write_text(json.dumps([record] * 3))
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "images" / name, np.zeros((8, 8, 3), np.uint8))
    held = read_records("my", Records(tmp_path), 0)
    assert sum(len(case.examples) for case in held.training) == 3


def test_changeimti_is_trained_on_too(tmp_path: Path) -> None:
    """Its two captions of a pair are two rows."""

    def record(name: str, answer: str) -> dict[str, object]:
        told = [{"from": "human", "value": "Say <image> and <image>"}, {"from": "gpt", "value": answer}]
        return {"conversations": told, "images": [f"/x/images/train/{date}/{name}" for date in "AB"]}

    files = {
        "caption.json": [record("x.png", "a house is built"), record("x.png", "a villa appears")],
        "binary_class.json": [record("x.png", "Yes")],
    }
    (tmp_path / "train_task_data").mkdir()
    for name, records in files.items():
        (tmp_path / "train_task_data" / name).write_text(json.dumps(records))
    for date in "AB":
        save_image(tmp_path / "images" / "train" / date / "x.png", np.zeros((8, 8, 3), np.uint8))
    held = read_records("imti", Records(tmp_path, images=tmp_path / "images"), 0)
    drawn = ChangeChatSource(held.training, held.images, PHASE, 8, [0], still=False)
    said = {drawn.sample(at).rows[0] for at in range(len(drawn))}
    assert {(caption.PROMPT, "a house is built"), (caption.PROMPT, "a villa appears")} < said
    assert len(said) == 3


def test_a_broken_record_is_told_and_the_rest_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
    record = {"id": "x", "image": ["a.png", "a.png"], "changeflag": 1, "conversations": told}
    (tmp_path / "my_train.json").write_text(json.dumps([record, record | {"changeflag": 7}]))
    save_image(tmp_path / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    held = read_records("my", Records(tmp_path), 0)
    assert sum(len(case.examples) for case in held.training) == 1
    assert "1 records cannot be used, the first: my_train.json, record 2: changeflag is 7" in caplog.text


def test_missing_pictures_are_named_before_training(made: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "A").mkdir(parents=True)
    records = Records(made, images=tmp_path / "images")
    with pytest.raises(
        InputError, match=r"10 pictures are missing: .*train/A/train_0\.png.* and 7 more"
    ) as told:
        read_records("made", records, 0)
    assert "\n" not in str(told.value)


def test_pictures_of_two_sizes_are_no_pair(tmp_path: Path) -> None:
    told = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
    record = {"id": "x", "image": ["a.png", "b.png"], "changeflag": 1, "conversations": told}
    (tmp_path / "my_train.json").write_text(json.dumps([record]))
    for name, size in (("a.png", 8), ("b.png", 9)):
        save_image(tmp_path / "images" / name, np.zeros((size, size, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png and b\.png are 8 x 8 and 9 x 9 px"):
        source(tmp_path).sample(0)


@pytest.mark.parametrize("name", ["far", "stormy", "rich"])
def test_other_scenes_are_drawn_from_by_their_share(name: str, tmp_path: Path) -> None:
    for at, cache in enumerate(("scenes", name)):
        render_cache(
            tmp_path / cache, 2, seed=20 + 10 * at, size_px=64, workers=1, options=SceneOptions(change=1.0)
        )
    known = {np.sort(one, axis=None).tobytes() for pair in open_cache(tmp_path / name)[0] for one in pair}
    scenes = Scenes(2, 2, 64, **{name: 2})
    for share in (0.0, 0.5, 1.0):
        phase = replace(PHASE, part="joint", **{name: share})
        drawn = SceneSource(tmp_path, scenes, phase, 64, [0])
        found = [np.sort(drawn.sample(at).before, axis=None).tobytes() in known for at in range(24)]
        assert np.mean(found) == pytest.approx(share, abs=0.3 if share == 0.5 else 0)


def test_a_warp_moves_pictures_and_truth_alike() -> None:
    """A bright square stays under its code, at another resolution too."""
    picture, truth = np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32), np.uint8)
    picture[10:30, 36:52], truth[5:15, 18:26] = 255, 7
    warp = random_warp(np.random.default_rng(0), 0.05, 15.0)
    seen, codes = warp(picture), warp(truth, nearest=True)
    assert set(np.unique(codes)) == {0, 7}
    agree = (seen[::2, ::2, 0] > 127) == (codes == 7)
    assert agree.mean() > 0.97
    assert (codes != truth).any()
    assert (Warp(0.0, 1.0, (0.0, 0.0))(picture) == picture).all()
    quarter = Warp(90.0, 1.0, (0.0, 0.0))(picture)
    off = [np.abs(quarter.astype(int) - np.rot90(picture, way)).mean() for way in (1, -1)]
    assert min(off) < 1 < max(off)
