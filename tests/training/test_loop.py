"""The loop: every part runs, learns, stops and goes on as if it had not stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deltavlm.config import load, shipped
from deltavlm.data.synthetic.cache import draw_cache
from deltavlm.data.synthetic.truth import CHANGES
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORED
from deltavlm.model.tokenizer import Codec
from deltavlm.training.config import Phase, Scenes, TrainConfig
from deltavlm.training.loop import Trainer, rate
from deltavlm.training.rows import make_rows
from tests.tiny import TINY, tiny_codec, tiny_model

PHASES = {
    "vision": Phase(part="vision", steps=4, batch=4, lr=1e-3, warmup=1, crop_px=64),
    "language": Phase(part="language", steps=3, batch=2, lr=1e-3, warmup=1),
    "joint": Phase(part="joint", steps=3, batch=2, lr=1e-3, warmup=1, far=0.5, toned=0.5, hidden=0.3),
}
CONFIG = TrainConfig(
    model="tiny", scenes=Scenes(4, 2, 64, far=4, stormy=4), phases=PHASES, checkpoint_every=2
)
assert TINY.dense is not None
MODEL = replace(TINY, dense=replace(TINY.dense, classes=CHANGES))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    draw_cache(folder / "scenes", 4, seed=11, size_px=64, change=1.0, workers=1)
    draw_cache(folder / "far", 4, seed=12, size_px=64, change=1.0, workers=1, reduce=2)
    draw_cache(folder / "stormy", 4, seed=13, size_px=64, change=1.0, workers=1, strength=2.0)
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return tiny_codec(tmp_path_factory.mktemp("codec"))


def trainer(cache: Path, codec: Codec, out: Path, config: TrainConfig = CONFIG) -> Trainer:
    out.mkdir(exist_ok=True)
    for name in ("scenes", "far", "stormy"):
        if not (out / name).exists():
            (out / name).symlink_to(cache / name)
    return Trainer(config, MODEL, tiny_model(config=MODEL), codec, out)


@pytest.mark.parametrize("name", list(PHASES))
def test_every_part_runs_and_moves_what_it_fits_alone(
    name: str, cache: Path, codec: Codec, tmp_path: Path
) -> None:
    run = trainer(cache, codec, tmp_path)
    before = {key: tensor.clone() for key, tensor in run.model.named_parameters()}
    assert run.run(name)
    moved = {
        key.split(".")[0]
        for key, tensor in run.model.named_parameters()
        if not torch.equal(tensor, before[key])
    }
    assert (
        moved
        == {
            "vision": {"vision", "difference", "dense"},
            "language": {"dense", "qformer", "projection", "language"},
            "joint": {"vision", "difference", "dense", "qformer", "projection", "language"},
        }[name]
    )


def test_a_resumed_run_is_an_unbroken_run(cache: Path, codec: Codec, tmp_path: Path) -> None:
    """Stopped after two steps and started again: the same weights and the same running mean."""
    whole = trainer(cache, codec, tmp_path / "whole")
    whole.run("vision")
    assert not trainer(cache, codec, tmp_path / "cut").run("vision", until=0.0)  # one step, then a checkpoint
    resumed = trainer(cache, codec, tmp_path / "cut")
    assert resumed.run("vision")
    for key, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], tensor, msg=key)


def test_the_loss_falls_on_a_few_pairs(cache: Path, codec: Codec, tmp_path: Path) -> None:
    phase = Phase(part="joint", steps=30, batch=4, lr=3e-3, warmup=1)
    run = trainer(cache, codec, tmp_path, replace(CONFIG, phases={"joint": phase}))
    batch, rng = run.batch("joint", phase, 0)
    first = sum(loss.item() for loss in run.loss(phase, batch, rng).values())
    run.run("joint")
    batch, rng = run.batch("joint", phase, 0)
    last = sum(loss.item() for loss in run.loss(phase, batch, rng).values())
    assert last < 0.8 * first


def test_hiding_spares_the_evidence_and_hides_the_share(cache: Path, codec: Codec, tmp_path: Path) -> None:
    run = trainer(cache, codec, tmp_path)
    tokens = torch.ones(64, 40, 8)
    assert run.hide(tokens, 0.0) is tokens
    hidden = run.hide(tokens, 0.3)[..., 0]
    assert (hidden[:, -10:] == 1).all()
    shares = (hidden[:, :-10] == 0).float().mean(dim=1)
    assert shares.mean().item() == pytest.approx(0.3, abs=0.08)
    assert shares.max() - shares.min() > 0.3  # of each row another part


@pytest.mark.parametrize("name", ["far", "stormy"])
def test_other_scenes_are_drawn_from_by_their_share(
    name: str, cache: Path, codec: Codec, tmp_path: Path
) -> None:
    run = trainer(cache, codec, tmp_path)
    none = replace(PHASES["joint"], batch=8, far=0.0, stormy=0.0, toned=0.0)
    known = {np.sort(picture, axis=None).tobytes() for pair in run.others[name][0] for picture in pair}
    drawn, _ = run.batch("joint", replace(none, **{name: 1.0}), 0)
    assert len(drawn.before) == 8
    assert all(np.sort(picture, axis=None).tobytes() in known for picture in drawn.before)
    drawn, _ = run.batch("joint", none, 0)
    assert not any(np.sort(picture, axis=None).tobytes() in known for picture in drawn.before)


def test_labels_are_the_answer_and_its_end(codec: Codec) -> None:
    rows = make_rows(TINY, codec, [[("Has it changed?", "Yes.")], [("How many?", "2 new roads.")]], groups=1)[
        0
    ]
    for index, answer in zip(rows.pairs.tolist(), ["yes", "2 new roads"], strict=True):
        told = rows.labels[rows.pairs.tolist().index(index)]
        ids = told[told != IGNORED].tolist()
        assert ids[-1] == codec.eos
        assert codec.decode(ids) == answer
    first = rows.text.ids[:, 0].tolist()
    assert first == [codec.bos] * 2


def test_rate_warms_up_and_comes_down() -> None:
    phase = Phase(part="joint", steps=100, batch=1, lr=1.0, warmup=10)
    rates = [rate(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_shipped_recipe_fits_the_shipped_model() -> None:
    recipe = load(shipped("train_nano.yaml"), TrainConfig)
    model = load(shipped(f"{recipe.model}.yaml"), DeltaVLMConfig)
    assert model.dense is not None
    assert model.dense.classes == CHANGES
    assert {phase.part for phase in recipe.phases.values()} == {"vision", "language", "joint"}
