"""Training loop: each kind of phase runs, learns, stops and resumes as if it had not stopped."""

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
from deltavlm.training import distributed, loop
from deltavlm.training.checkpoints import final_weights, load_state, logged_precisions
from deltavlm.training.collate import TrainLoader, collate, collate_answers
from deltavlm.training.config import Phase, Precision, Scenes, TrainConfig, Validation
from deltavlm.training.distributed import DTYPES, pick_machine
from deltavlm.training.learner import LOSSES, Learner
from deltavlm.training.loop import Trainer, TrainHooks, Validate, lr_schedule
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
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def build_trainer(
    name: str,
    caches: Path,
    codec: Codec,
    out: Path,
    config: TrainConfig = CONFIG,
    validate: Validate | None = None,
) -> Trainer:
    out.mkdir(exist_ok=True)
    phase = config.phases[name]
    assert config.scenes is not None
    source = SceneSource(caches, config.scenes, phase, MODEL.vision.image_px, [0, 3])
    torch.manual_seed(0)
    learner = Learner(tiny_model(config=MODEL), MODEL, phase)
    learner.model.set_attention("eager")
    loader = TrainLoader(
        MixedSampler([(source, 1.0)], phase.batch, phase.steps, [0]),
        partial(collate, phase=phase, config=MODEL, codecs=(codec, codec)),
    )
    return Trainer(config, name, learner, loader, pick_machine(config), TrainHooks(out, validate))


def test_trainer_on_a_cpu_tunes_malloc(
    caches: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(loop, "tune_malloc", lambda: calls.append(None))
    build_trainer("vision", caches, codec, tmp_path)
    assert calls == [None]


def logged(out: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Records of the log, without the throughput, which depends on the clock."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key != "pairs_per_s"}
        for record in records
        if record["kind"] == kind
    ]


class StopAfter:
    """Stop request that is set after it was read so many times."""

    def __init__(self, reads: int) -> None:
        self.remaining, self.signum = reads, None

    @property
    def requested(self) -> bool:
        self.remaining -= 1
        return self.remaining < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        self.remaining = -1 if value else self.remaining


TRAINABLE = {
    "vision": {"vision", "difference", "dense"},
    "language": {"dense", "qformer", "projection", "language"},
    "joint": {"vision", "difference", "dense", "qformer", "projection", "language"},
    "instruct": {"difference", "qformer", "projection"},
    "align": {"difference", "qformer"},
}


@pytest.mark.parametrize("name", list(PHASES))
def test_each_part_trains_its_modules_alone(name: str, caches: Path, codec: Codec, tmp_path: Path) -> None:
    trainer = build_trainer(name, caches, codec, tmp_path)
    before = {key: tensor.clone() for key, tensor in trainer.learner.model.state_dict().items()}
    assert trainer.run(StopRequest()) == "done"
    after = trainer.learner.model.state_dict()
    changed = {
        key.split(".")[0]
        for key, tensor in after.items()
        if tensor.is_floating_point() and not torch.equal(tensor, before[key])
    }
    assert changed == TRAINABLE[name]


@pytest.mark.parametrize("name", ["vision", "joint", "align"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, caches: Path, codec: Codec, tmp_path: Path
) -> None:
    """Stopped after one step and resumed: the same losses, weights and EMA, bit for bit."""
    reference = build_trainer(name, caches, codec, tmp_path / "reference")
    assert reference.run(StopRequest()) == "done"
    stopped = build_trainer(name, caches, codec, tmp_path / "stopped")
    assert stopped.run(StopAfter(1)) == "stopped"  # type: ignore[arg-type]
    assert stopped.step == 1
    resumed = build_trainer(name, caches, codec, tmp_path / "stopped")
    assert resumed.step == 1
    assert resumed.run(StopRequest()) == "done"
    assert logged(tmp_path / "stopped") == logged(tmp_path / "reference")
    assert len(logged(tmp_path / "stopped")) == PHASES[name].steps
    for expected, tensors in (
        (reference.weights, resumed.weights),
        (reference.ema.averages, resumed.ema.averages),
    ):
        for key, tensor in expected.items():
            assert torch.equal(tensors[key], tensor), key


def test_a_run_killed_between_two_checkpoints_resumes_from_the_first(
    caches: Path, codec: Codec, tmp_path: Path
) -> None:
    """Steps logged after the checkpoint are logged again, not twice; an incomplete line is removed."""
    build_trainer("vision", caches, codec, tmp_path / "reference").run(StopRequest())
    killed = build_trainer("vision", caches, codec, tmp_path / "killed")
    killed.save_checkpoint = (  # type: ignore[method-assign]
        lambda **options: Trainer.save_checkpoint(killed, **options) if killed.step == 2 else None
    )
    assert killed.run(StopAfter(3)) == "stopped"  # type: ignore[arg-type]
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"phase": "vision", "st')
    resumed = build_trainer("vision", caches, codec, tmp_path / "killed")
    assert resumed.step == 2
    resumed.run(StopRequest())
    assert logged(tmp_path / "killed") == logged(tmp_path / "reference")


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp32"), ("bf16", "fp16"), ("fp16", "fp32")])
def test_a_run_goes_on_where_another_precision_is_picked(
    before: Precision,
    after: Precision,
    caches: Path,
    codec: Codec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On another machine the same configuration picks what that one computes in; lines of the log say it."""
    config = replace(CONFIG, phases={"language": PHASES["language"]})
    monkeypatch.setattr(distributed, "pick_compute_dtype", lambda device: DTYPES[before])
    assert build_trainer("language", caches, codec, tmp_path, config).run(StopAfter(1)) == "stopped"  # type: ignore[arg-type]
    assert load_state(tmp_path / "language.pt")["precision"] == before
    assert not caplog.messages
    monkeypatch.setattr(distributed, "pick_compute_dtype", lambda device: DTYPES[after])
    resumed = build_trainer("language", caches, codec, tmp_path, config)
    expected = f"language: computed in {before} to step 1, on this device in {after} from there"
    assert [message.split(";")[0] for message in caplog.messages] == [expected]
    assert resumed.run(StopRequest()) == "done"
    assert [record["precision"] for record in logged(tmp_path)] == [before, after, after]
    assert logged_precisions(tmp_path) == [before, after]
    assert load_state(tmp_path / "language.pt")["precision"] == after


def test_gradient_accumulation_equals_a_full_batch(caches: Path, codec: Codec, tmp_path: Path) -> None:
    """Gradients summed over micro-batches are those of the full batch: each answer has the same weight."""
    phase = replace(PHASES["language"], batch=4, steps=2, token_dropout=0.0)
    for name, micro in (("full", None), ("micro", 1)):
        config = replace(CONFIG, phases={"language": replace(phase, micro=micro)}, precision="fp32")
        build_trainer("language", caches, codec, tmp_path / name, config).run(StopRequest())
    full, micro_batches = logged(tmp_path / "full"), logged(tmp_path / "micro")
    for key, tolerance in (("words", 1e-5), ("norm", 1e-4)):
        values = [record[key] for record in micro_batches]
        assert values == pytest.approx([record[key] for record in full], rel=tolerance)


def test_a_batch_that_does_not_divide_is_refused(caches: Path, codec: Codec, tmp_path: Path) -> None:
    config = replace(CONFIG, phases={"joint": replace(PHASES["joint"], batch=4, micro=3)})
    with pytest.raises(ConfigError, match="batch 4 does not divide"):
        build_trainer("joint", caches, codec, tmp_path, config)


def test_learning_rates_differ_by_module_and_unknown_names_are_refused(
    caches: Path, codec: Codec, tmp_path: Path
) -> None:
    phase = replace(PHASES["joint"], rates={"vision": 0.1, "vision.norm": 0.0, "language": 2.0})
    trainer = build_trainer("joint", caches, codec, tmp_path, replace(CONFIG, phases={"joint": phase}))
    multipliers = {
        id(p): group["factor"] for group in trainer.optimizer.param_groups for p in group["params"]
    }
    model = trainer.learner.model
    assert multipliers[id(model.vision.tower.pos_embed)] == 0.1
    assert id(model.vision.norm.weight) not in multipliers
    assert multipliers[id(model.language.model.norm.weight)] == 2.0
    assert multipliers[id(model.projection.weight)] == 1.0
    assert not model.vision.norm.training
    wrong = replace(phase, rates={"vision.tower.blocks.9": 1.0})
    with pytest.raises(ConfigError, match=r"no 'vision.tower.blocks.9'; did you mean 'vision.tower.blocks"):
        build_trainer("joint", caches, codec, tmp_path, replace(CONFIG, phases={"joint": wrong}))


def test_frozen_batch_norms_keep_their_statistics(caches: Path, codec: Codec, tmp_path: Path) -> None:
    trainer = build_trainer("language", caches, codec, tmp_path)
    assert not any(module.training for module in trainer.learner.model.vision.modules())
    assert not any(
        module.training
        for module in trainer.learner.model.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    )
    assert trainer.learner.model.dense is not None
    assert trainer.learner.model.dense.totals.training


@pytest.mark.slow
def test_the_loss_falls_on_a_few_pairs(caches: Path, codec: Codec, tmp_path: Path) -> None:
    phase = Phase(part="joint", steps=30, batch=4, lr=3e-3, warmup=1)
    trainer = build_trainer("joint", caches, codec, tmp_path, replace(CONFIG, phases={"joint": phase}))
    trainer.run(StopRequest())
    sums = [sum(record[name] for name in LOSSES if name in record) for record in logged(tmp_path)]
    assert sum(sums[-3:]) < 0.8 * sum(sums[:3])


def test_the_best_weights_are_kept_and_early_stopping_ends_a_phase(
    caches: Path, codec: Codec, tmp_path: Path
) -> None:
    phase = replace(PHASES["language"], steps=9)
    plan = Validation(every=1, metric="scenes.error", lower=True, patience=2)
    config = replace(CONFIG, phases={"language": phase}, validation=plan)
    values = iter([3.0, 1.0, 2.0, 4.0, 0.0])
    validated: list[torch.Tensor] = []

    def validate(learner: Learner, stop: StopRequest) -> dict[str, float]:
        assert not learner.training
        validated.append(learner.model.projection.weight.detach().clone())
        return {"scenes.error": next(values)}

    trainer = build_trainer("language", caches, codec, tmp_path, config, validate=validate)
    assert trainer.run(StopRequest()) == "early"
    assert trainer.step == 4
    assert (trainer.best.value, trainer.best.step) == (1.0, 2)
    assert torch.equal(final_weights(tmp_path, "language", best=True)["projection.weight"], validated[1])
    assert torch.equal(final_weights(tmp_path, "language", best=False)["projection.weight"], validated[3])
    records = logged(tmp_path, "validation")
    assert [record["scenes.error"] for record in records] == [3.0, 1.0, 2.0, 4.0]


def test_a_start_is_kept_unless_training_improves_it(
    caches: Path, codec: Codec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phase = replace(PHASES["language"], steps=2)
    config = replace(
        CONFIG,
        phases={"language": phase},
        start="nano",
        validation=Validation(every=2, metric="scenes.accuracy"),
    )
    validated: list[torch.Tensor] = []
    results: list[float] = []

    def validate(learner: Learner, stop: StopRequest) -> dict[str, float]:
        validated.append(learner.model.projection.weight.detach().clone())
        return {"scenes.accuracy": results.pop(0)}

    for name, values, kept in (
        ("worse", [0.8, 0.7], -2),
        ("equal", [0.8, 0.8], -2),
        ("better", [0.8, 0.9], -1),
    ):
        results[:] = values
        caplog.clear()
        trainer = build_trainer("language", caches, codec, tmp_path / name, config, validate=validate)
        assert trainer.run(StopRequest()) == "done"
        assert not torch.equal(validated[-2], validated[-1])
        weights = final_weights(tmp_path / name, "language", best=True)["projection.weight"]
        assert torch.equal(weights, validated[kept])
        assert ("the weights that it started from are kept" in caplog.text) == (kept == -2)
        assert [record["step"] for record in logged(tmp_path / name, "validation")] == [0, 2]


def test_an_unknown_metric_names_the_nearest(caches: Path, codec: Codec, tmp_path: Path) -> None:
    only = {"language": PHASES["language"]}
    config = replace(CONFIG, phases=only, validation=Validation(every=1, metric="scenes.eror"))
    trainer = build_trainer(
        "language", caches, codec, tmp_path, config, validate=lambda learner, stop: {"scenes.error": 1.0}
    )
    with pytest.raises(ConfigError, match=r"did you mean 'scenes\.error'"):
        trainer.run(StopRequest())


def test_token_dropout_drops_its_share_of_all_but_the_evidence_tokens(codec: Codec) -> None:
    def learner(**options: float) -> Learner:
        return Learner(tiny_model(config=MODEL), MODEL, replace(PHASES["joint"], **options)).train()

    tokens = torch.ones(64, 40, 8)
    assert learner(token_dropout=0.0).drop_tokens(tokens) is tokens
    dropped = learner(token_dropout=0.3).drop_tokens(tokens)[..., 0]
    assert (dropped[:, -10:] == 1).all()
    shares = (dropped[:, :-10] == 0).float().mean(dim=1)
    assert shares.mean().item() == pytest.approx(0.3, abs=0.08)
    assert shares.max() - shares.min() > 0.3  # another share in each row
    assert learner(token_dropout=0.3).eval().drop_tokens(tokens) is tokens


def test_evidence_dropout_drops_all_evidence_of_its_share_of_the_rows_and_nothing_else(codec: Codec) -> None:
    phase = replace(PHASES["joint"], token_dropout=0.5, evidence_dropout=0.4)
    learner = Learner(tiny_model(config=MODEL), MODEL, phase).train()
    torch.manual_seed(0)
    kept = learner.drop_tokens(torch.ones(400, 40, 8))[..., 0]
    is_hidden = (kept[:, -10:] == 0).all(dim=1)
    assert is_hidden.float().mean().item() == pytest.approx(0.4, abs=0.08)
    assert (kept[~is_hidden, -10:] == 1).all()
    assert (kept[is_hidden, :-10] == 1).all()


def test_evidence_noise_changes_the_evidence_tokens_of_its_share_of_the_pairs(codec: Codec) -> None:
    model = tiny_model(config=MODEL)
    images = torch.randint(0, 256, (2, 32, 3, TINY.vision.image_px, TINY.vision.image_px), dtype=torch.uint8)
    with torch.no_grad():
        pair = model.encode_pair(*(model.vision.normalise(date) for date in images))
        half = Learner(model, MODEL, replace(PHASES["language"], evidence_noise=0.5)).train()
        degraded = half.augment_evidence(pair)
        always = Learner(model, MODEL, replace(PHASES["language"], evidence_noise=1.0)).train()
        all_degraded = always.augment_evidence(pair)
    assert degraded.shape == pair.tokens.shape
    assert torch.equal(degraded[:, :-10], pair.tokens[:, :-10])
    is_changed = (degraded[:, -10:] - pair.tokens[:, -10:]).abs().amax(dim=(1, 2)) > 1e-4
    assert 6 <= int(is_changed.sum()) <= 26
    assert ((all_degraded[:, -10:] - pair.tokens[:, -10:]).abs().amax(dim=(1, 2)) > 1e-4).all()
    assert half.eval().augment_evidence(pair) is pair.tokens
    assert Learner(model, MODEL, PHASES["language"]).train().augment_evidence(pair) is pair.tokens


def test_labels_are_the_answer_and_its_end(codec: Codec) -> None:
    turns = [[("Has it changed?", "Yes.")], [("How many?", "2 new roads.")]]
    rows = collate_answers(TINY, (codec, codec), turns, buckets=1)[0]
    pairs = rows.pair_index.tolist()
    for pair, answer in zip(pairs, ["yes", "2 new roads"], strict=True):
        labels = rows.labels[pairs.index(pair)]
        ids = labels[labels != IGNORE_INDEX].tolist()
        assert ids[-1] == codec.eos
        assert codec.decode(ids) == answer
    assert rows.text.ids[:, 0].tolist() == [codec.start] * 2


def test_the_learning_rate_warms_up_and_decays() -> None:
    phase = Phase(part="joint", steps=100, batch=1, lr=1.0, warmup=10)
    rates = [lr_schedule(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02
    assert rates[10:] == sorted(rates[10:], reverse=True)
