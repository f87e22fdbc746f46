"""The loop: every part runs, learns, stops and goes on as if it had not stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import render_cache
from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES
from deltavlm.errors import ConfigError
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.tokenizer import Codec
from deltavlm.training.checkpoints import final_weights
from deltavlm.training.collate import collate_rows
from deltavlm.training.config import Phase, Scenes, TrainConfig, Validation
from deltavlm.training.distributed import machine
from deltavlm.training.learner import LOSSES, Learner, collate
from deltavlm.training.loop import Trainer, rate
from deltavlm.training.sampling import MixedSampler
from deltavlm.training.stop_signals import StopRequest
from deltavlm.training.synthetic_dataset import SceneSource
from tests.tiny import TINY, tiny_codec, tiny_model

PHASES = {
    "vision": Phase(part="vision", steps=4, batch=4, lr=1e-3, warmup=1, crop_px=64),
    "language": Phase(part="language", steps=3, batch=2, lr=1e-3, warmup=1),
    "joint": Phase(
        part="joint",
        steps=3,
        batch=2,
        lr=1e-3,
        warmup=1,
        far=0.5,
        color_jitter=0.5,
        token_dropout=0.3,
        evidence_noise=0.5,
        cut=0.05,
        turn_deg=9,
    ),
    "instruct": Phase(
        part="instruct", steps=3, batch=2, lr=1e-3, warmup=1, rates={"vision": 0.0, "dense": 0.0}
    ),
    "align": Phase(part="align", steps=3, batch=4, lr=1e-3, warmup=1),
}
CONFIG = TrainConfig(
    model="tiny",
    scenes=Scenes(4, 2, 64, far=4, stormy=4),
    phases=PHASES,
    checkpoint_every=2,
    log_every=1,
    device="cpu",
)
assert TINY.dense is not None
MODEL = replace(TINY, dense=replace(TINY.dense, classes=CHANGE_CLASSES))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    render_cache(folder / "scenes", 4, seed=11, size_px=64, workers=1, options=SceneOptions(change=1.0))
    render_cache(
        folder / "far", 4, seed=12, size_px=64, workers=1, options=SceneOptions(change=1.0, downsample=2)
    )
    render_cache(
        folder / "stormy", 4, seed=13, size_px=64, workers=1, options=SceneOptions(change=1.0, strength=2.0)
    )
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return tiny_codec(tmp_path_factory.mktemp("codec"))


def trainer(
    name: str, cache: Path, codec: Codec, out: Path, config: TrainConfig = CONFIG, **more: Any
) -> Trainer:
    out.mkdir(exist_ok=True)
    phase = config.phases[name]
    assert config.scenes is not None
    source = SceneSource(cache, config.scenes, phase, MODEL.vision.image_px, [0, 3])
    torch.manual_seed(0)
    learner = Learner(tiny_model(config=MODEL), MODEL, phase)
    learner.model.set_attention("eager")
    lessons = partial(collate, phase=phase, config=MODEL, codecs=(codec, codec))
    mixture = MixedSampler([(source, 1.0)], phase.batch, phase.steps, [0])
    return Trainer(config, name, learner, mixture, lessons, machine(config), out, **more)


def losses(out: Path, kind: str = "train") -> list[dict[str, Any]]:
    """What the log holds, without what hangs on the clock."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k != "pairs_per_s"} for one in records if one["kind"] == kind]


class StopAfter:
    """A wish to stop that comes after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left, self.signum = looks, None

    @property
    def wanted(self) -> bool:
        self.left -= 1
        return self.left < 0

    @wanted.setter
    def wanted(self, value: bool) -> None:
        self.left = -1 if value else self.left


MOVED = {
    "vision": {"vision", "difference", "dense"},
    "language": {"dense", "qformer", "projection", "language"},
    "joint": {"vision", "difference", "dense", "qformer", "projection", "language"},
    "instruct": {"difference", "qformer", "projection"},
    "align": {"difference", "qformer"},
}


@pytest.mark.parametrize("name", list(PHASES))
def test_every_part_runs_and_moves_what_it_fits_alone(
    name: str, cache: Path, codec: Codec, tmp_path: Path
) -> None:
    run = trainer(name, cache, codec, tmp_path)
    before = {key: tensor.clone() for key, tensor in run.learner.model.state_dict().items()}
    assert run.run(StopRequest()) == "done"
    after = run.learner.model.state_dict()
    moved = {
        key.split(".")[0]
        for key, tensor in after.items()
        if tensor.is_floating_point() and not torch.equal(tensor, before[key])
    }
    assert moved == MOVED[name]


@pytest.mark.parametrize("name", ["vision", "joint", "align"])
def test_a_resumed_run_is_an_unbroken_run(name: str, cache: Path, codec: Codec, tmp_path: Path) -> None:
    """Stopped after one step and started again: the same losses, weights and running mean, bit for bit."""
    whole = trainer(name, cache, codec, tmp_path / "whole")
    assert whole.run(StopRequest()) == "done"
    cut = trainer(name, cache, codec, tmp_path / "cut")
    assert cut.run(StopAfter(1)) == "stopped"  # type: ignore[arg-type]
    assert cut.step == 1
    resumed = trainer(name, cache, codec, tmp_path / "cut")
    assert resumed.step == 1
    assert resumed.run(StopRequest()) == "done"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "cut")) == PHASES[name].steps
    for kind in ("live", "mean"):
        for key, tensor in getattr(whole, kind).items():
            assert torch.equal(getattr(resumed, kind)[key], tensor), key


def test_killed_between_two_checkpoints_goes_on_from_the_first(
    cache: Path, codec: Codec, tmp_path: Path
) -> None:
    """What was logged after the checkpoint is logged anew, not twice; a half-written line is dropped."""
    whole = trainer("vision", cache, codec, tmp_path / "whole")
    whole.run(StopRequest())
    killed = trainer("vision", cache, codec, tmp_path / "killed")
    killed.keep = lambda **how: Trainer.keep(killed, **how) if killed.step == 2 else None  # type: ignore[method-assign]
    assert killed.run(StopAfter(3)) == "stopped"  # type: ignore[arg-type]
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"phase": "vision", "st')
    resumed = trainer("vision", cache, codec, tmp_path / "killed")
    assert resumed.step == 2
    resumed.run(StopRequest())
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_pieces_of_a_step_make_the_step(cache: Path, codec: Codec, tmp_path: Path) -> None:
    """Accumulated gradients are those of the whole batch: every answer weighs the same."""
    phase = replace(PHASES["language"], batch=4, steps=2, token_dropout=0.0)
    for name, micro in (("whole", None), ("pieces", 1)):
        config = replace(CONFIG, phases={"language": replace(phase, micro=micro)}, precision="fp32")
        trainer("language", cache, codec, tmp_path / name, config).run(StopRequest())
    one, other = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    assert [step["words"] for step in other] == pytest.approx([step["words"] for step in one], rel=1e-5)
    assert [step["norm"] for step in other] == pytest.approx([step["norm"] for step in one], rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused(cache: Path, codec: Codec, tmp_path: Path) -> None:
    config = replace(CONFIG, phases={"joint": replace(PHASES["joint"], batch=4, micro=3)})
    with pytest.raises(ConfigError, match="batch 4 does not divide"):
        trainer("joint", cache, codec, tmp_path, config)


def test_rates_differ_by_organ_and_unknown_names_are_told(cache: Path, codec: Codec, tmp_path: Path) -> None:
    phase = replace(PHASES["joint"], rates={"vision": 0.1, "vision.norm": 0.0, "language": 2.0})
    run = trainer("joint", cache, codec, tmp_path, replace(CONFIG, phases={"joint": phase}))
    lr_multipliers = {id(p): group["factor"] for group in run.optim.param_groups for p in group["params"]}
    model = run.learner.model
    assert lr_multipliers[id(model.vision.tower.pos_embed)] == 0.1
    assert id(model.vision.norm.weight) not in lr_multipliers
    assert lr_multipliers[id(model.language.model.norm.weight)] == 2.0
    assert lr_multipliers[id(model.projection.weight)] == 1.0
    assert not model.vision.norm.training
    wrong = replace(phase, rates={"vision.tower.blocks.9": 1.0})
    with pytest.raises(ConfigError, match=r"no 'vision.tower.blocks.9'; did you mean 'vision.tower.blocks"):
        trainer("joint", cache, codec, tmp_path, replace(CONFIG, phases={"joint": wrong}))


def test_what_is_held_still_keeps_its_statistics(cache: Path, codec: Codec, tmp_path: Path) -> None:
    run = trainer("language", cache, codec, tmp_path)
    assert not any(module.training for module in run.learner.model.vision.modules())
    assert not any(
        module.training for module in run.learner.model.modules() if isinstance(module, torch.nn.BatchNorm2d)
    )
    assert run.learner.model.dense is not None
    assert run.learner.model.dense.totals.training


@pytest.mark.slow
def test_the_loss_falls_on_a_few_pairs(cache: Path, codec: Codec, tmp_path: Path) -> None:
    phase = Phase(part="joint", steps=30, batch=4, lr=3e-3, warmup=1)
    run = trainer("joint", cache, codec, tmp_path, replace(CONFIG, phases={"joint": phase}))
    run.run(StopRequest())
    told = [sum(step[name] for name in LOSSES if name in step) for step in losses(tmp_path)]
    assert sum(told[-3:]) < 0.8 * sum(told[:3])


def test_the_best_is_kept_and_a_run_without_progress_ends(cache: Path, codec: Codec, tmp_path: Path) -> None:
    phase = replace(PHASES["language"], steps=9)
    plan = Validation(every=1, metric="scenes.error", lower=True, patience=2)
    config = replace(CONFIG, phases={"language": phase}, validation=plan)
    figures = iter([3.0, 1.0, 2.0, 4.0, 0.0])
    kept: list[torch.Tensor] = []

    def validate(learner: Learner, stop: StopRequest) -> dict[str, float]:
        assert not learner.training
        kept.append(learner.model.projection.weight.detach().clone())
        return {"scenes.error": next(figures)}

    run = trainer("language", cache, codec, tmp_path, config, validate=validate)
    assert run.run(StopRequest()) == "early"
    assert run.step == 4
    assert (run.best, run.best_step) == (1.0, 2)
    assert torch.equal(final_weights(tmp_path, "language", best=True)["projection.weight"], kept[1])
    assert torch.equal(final_weights(tmp_path, "language", best=False)["projection.weight"], kept[3])
    assert [step["scenes.error"] for step in losses(tmp_path, "validation")] == [3.0, 1.0, 2.0, 4.0]


def test_a_metric_that_is_not_there_names_the_nearest(cache: Path, codec: Codec, tmp_path: Path) -> None:
    only = {"language": PHASES["language"]}
    config = replace(CONFIG, phases=only, validation=Validation(every=1, metric="scenes.eror"))
    run = trainer(
        "language", cache, codec, tmp_path, config, validate=lambda learner, stop: {"scenes.error": 1.0}
    )
    with pytest.raises(ConfigError, match=r"did you mean 'scenes\.error'"):
        run.run(StopRequest())


def test_hiding_spares_the_evidence_and_hides_the_share(codec: Codec) -> None:
    learner = Learner(tiny_model(config=MODEL), MODEL, PHASES["joint"]).train()
    tokens = torch.ones(64, 40, 8)
    assert learner.drop_tokens(tokens, 0.0) is tokens
    hidden = learner.drop_tokens(tokens, 0.3)[..., 0]
    assert (hidden[:, -10:] == 1).all()
    shares = (hidden[:, :-10] == 0).float().mean(dim=1)
    assert shares.mean().item() == pytest.approx(0.3, abs=0.08)
    assert shares.max() - shares.min() > 0.3  # of each row another part
    assert learner.eval().drop_tokens(tokens, 0.3) is tokens


def test_fading_changes_the_evidence_of_its_share_of_the_pairs_alone(codec: Codec) -> None:
    model = tiny_model(config=MODEL)
    pictures = torch.randint(
        0, 256, (2, 32, 3, TINY.vision.image_px, TINY.vision.image_px), dtype=torch.uint8
    )
    with torch.no_grad():
        seen = model.encode_pair(*(model.vision.normalise(date) for date in pictures))
        learner = Learner(model, MODEL, replace(PHASES["language"], evidence_noise=0.5)).train()
        faded = learner.augment_evidence(seen)
        every = (
            Learner(model, MODEL, replace(PHASES["language"], evidence_noise=1.0))
            .train()
            .augment_evidence(seen)
        )
    assert faded.shape == seen.tokens.shape
    assert torch.equal(faded[:, :-10], seen.tokens[:, :-10])
    moved = (faded[:, -10:] - seen.tokens[:, -10:]).abs().amax(dim=(1, 2)) > 1e-4
    assert 6 <= int(moved.sum()) <= 26
    assert ((every[:, -10:] - seen.tokens[:, -10:]).abs().amax(dim=(1, 2)) > 1e-4).all()
    assert learner.eval().augment_evidence(seen) is seen.tokens
    assert Learner(model, MODEL, PHASES["language"]).train().augment_evidence(seen) is seen.tokens


def test_labels_are_the_answer_and_its_end(codec: Codec) -> None:
    lessons = [[("Has it changed?", "Yes.")], [("How many?", "2 new roads.")]]
    rows = collate_rows(TINY, (codec, codec), lessons, groups=1)[0]
    for index, answer in zip(rows.pairs.tolist(), ["yes", "2 new roads"], strict=True):
        told = rows.labels[rows.pairs.tolist().index(index)]
        ids = told[told != IGNORE_INDEX].tolist()
        assert ids[-1] == codec.eos
        assert codec.decode(ids) == answer
    first = rows.text.ids[:, 0].tolist()
    assert first == [codec.start] * 2


def test_rate_warms_up_and_comes_down() -> None:
    phase = Phase(part="joint", steps=100, batch=1, lr=1.0, warmup=10)
    rates = [rate(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02
    assert rates[10:] == sorted(rates[10:], reverse=True)
