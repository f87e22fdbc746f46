"""Configuration of runs: shipped ones fit their models and the paper; changes by `--set`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltavlm.config import dump, from_mapping, load, read_yaml, shipped_config, to_mapping
from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES
from deltavlm.errors import ConfigError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.training.config import (
    STAGES,
    Phase,
    RecordSet,
    Scenes,
    TrainConfig,
    config_differences,
    load_config,
)
from deltavlm.training.distributed import pick_machine
from deltavlm.training.learner import Learner
from deltavlm.training.parameter_groups import count_parameters, lr_multipliers, named_parameters

ROOT = Path(__file__).parents[2]
SHIPPED = [
    path.name
    for path in shipped_config("train_nano.yaml").parent.glob("*.yaml")
    if "phases:" in path.read_text()
]


def test_all_four_recipes_ship() -> None:
    assert {*SHIPPED} >= {
        "train_stage1.yaml",
        "train_stage2.yaml",
        "train_nano.yaml",
        "finetune_nano_changechat.yaml",
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_run_fits_its_model(name: str) -> None:
    run = load_config(shipped_config(name))
    assert from_mapping(TrainConfig, to_mapping(run), "again") == run
    if run.adapter is not None or all(phase.part in STAGES for phase in run.phases.values()):
        return  # of a model that is no DeltaVLM
    model_config = load(shipped_config(f"{run.model}.yaml"), DeltaVLMConfig)
    with torch.device("meta"):
        model = build(model_config)
        learners = [Learner(model, model_config, phase) for phase in run.phases.values()]
    for learner in learners:
        multipliers = lr_multipliers([name for name, _ in named_parameters(learner)], learner.phase)
        assert any(multipliers.values())
    if run.scenes:
        assert model_config.dense is not None
        assert model_config.dense.classes == CHANGE_CLASSES


def test_stage_two_trains_the_parameters_of_the_paper() -> None:
    """253,216,384 parameters: those of the published checkpoint without its unused contrastive heads."""
    run = load_config(shipped_config("train_stage2.yaml"))
    model_config = load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig)
    with torch.device("meta"):
        learner = Learner(build(model_config), model_config, run.phases["tune"])
    multipliers = lr_multipliers([name for name, _ in named_parameters(learner)], learner.phase)
    counts = count_parameters(learner, multipliers)
    assert sum(trainable for trainable, _ in counts.values()) == 253_216_384
    assert counts["vision"][0] == 50_497_536 + 2_816
    assert counts["difference"] == (13_881_472, 13_881_472)
    assert counts["language"][0] == 0
    tune = run.phases["tune"]
    assert (tune.lr, tune.weight_decay, tune.cut, tune.turn_deg, tune.rows) == (1e-5, 0.05, 0.05, 15.0, 1)


def test_nano_is_trained_by_the_recipe() -> None:
    """The shipped weights are the result of the recipe as it is, from nothing but a pretrained encoder."""
    run = load_config(shipped_config("train_nano.yaml"))
    shipped = read_yaml(ROOT / "docs" / "nano" / "config.yaml")
    assert from_mapping(TrainConfig, shipped, "docs/nano/config.yaml") == run
    assert (run.start, run.pretrained) == (None, True)
    last = [*run.phases][-1]
    weights = read_yaml(ROOT / "deltavlm" / "weights" / "nano" / "config.json")
    assert weights["sources"]["steps"] == f"{last} {run.phases[last].steps}"


def test_scenes_on_tiles_need_a_folder() -> None:
    recipe = shipped_config("train_nano.yaml")
    with pytest.raises(ConfigError, match=r"scenes\.ground needs scenes\.ground_folder"):
        load_config(recipe, ["scenes.ground_folder=null"])
    changes = ["scenes.ground=4", "scenes.ground_folder=tiles", "scenes.ground_without=[cutouts]"]
    scenes = load_config(recipe, changes).scenes
    assert scenes is not None
    assert (scenes.ground, scenes.ground_folder, scenes.ground_without) == (4, Path("tiles"), ("cutouts",))


def test_changes_reach_their_keys(tmp_path: Path) -> None:
    run = load_config(
        shipped_config("train_nano.yaml"),
        [
            "seed=3",
            "phases.words.lr=1e-4",
            "phases.words.rates.language=0.5",
            "validation.every=7",
            "validation.metric=scenes.yes_no_auc",
            "scenes.far=0",
        ],
    )
    assert (run.seed, run.phases["words"].lr, run.phases["words"].rates) == (3, 1e-4, {"language": 0.5})
    assert run.validation is not None
    assert (run.validation.every, run.validation.metric) == (7, "scenes.yes_no_auc")
    saved = tmp_path / "again.yaml"
    saved.write_text(dump(run))
    assert load_config(saved) == run
    different = config_differences(
        to_mapping(load_config(shipped_config("train_nano.yaml"))), to_mapping(run)
    )
    assert {line.split(" ")[0] for line in different} == {
        *("scenes.far", "phases.words.lr", "phases.words.rates.language", "seed")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sed=1", "no key 'sed'; did you mean 'seed'"),
        ("phases.wrods.steps=1", r"no key 'phases\.wrods'; did you mean 'words'"),
        ("phases.words.step=1", "did you mean 'steps'"),
        ("phases.words.steps=many", "expected a whole number, got 'many'"),
        ("phases.words.steps=0", "steps is 0, less than 1"),
        ("phases.words.cut=2", "cut is 2.0, not between 0 and 1"),
        ("seed", "expected KEY=VALUE"),
        ("seed=[", "not valid YAML"),
        ("seed.more=1", "no key"),
        ("validation.evry=1", "did you mean 'every'"),
        ("scenes=null", "nothing to train on"),
        ("validation={every: 1, metric: made.auc}", "does not begin with one of scenes"),
        ("validation={every: 1, patience: 2}", "patience needs validation.metric"),
    ],
)
def test_a_wrong_change_is_an_error_of_one_line(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config(shipped_config("train_nano.yaml"), [change])
    assert "\n" not in str(error.value)


def test_masks_need_scenes() -> None:
    phases = {"all": Phase(part="joint", steps=1, batch=1, lr=1.0)}
    with pytest.raises(ValueError, match="only scenes have them"):
        TrainConfig("nano", phases, scenes=Scenes(1, 1, weight=0.0), sets={"x": RecordSet(Path("x"))})


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_computes_in_bf16_only_with_instructions_for_it(
    has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deltavlm.model.device.bf16_cpu", lambda: has_bf16)
    config = load_config(shipped_config("train_stage2.yaml"), ["device=cpu"])
    machine = pick_machine(config)
    assert machine.precision == precision
    resolved = machine.resolved(config)
    assert (resolved.precision, resolved.language_dtype) == (precision, precision)
    assert not caplog.messages
    for key, asked in (
        ("precision", replace(config, precision="bf16")),
        ("language_dtype", replace(config, precision="fp32", language_dtype="bf16")),
    ):
        assert pick_machine(asked).precision == asked.precision
        assert [message.split(":")[0] for message in caplog.messages] == ([] if has_bf16 else [key])
        caplog.clear()


@pytest.mark.parametrize("name", SHIPPED)
def test_no_recipe_asks_for_a_dtype_that_some_cpus_emulate(name: str) -> None:
    config = load_config(shipped_config(name))
    assert {config.precision, config.language_dtype} <= {"auto", "fp32"}


def test_a_picked_precision_is_no_other_configuration() -> None:
    """Of a run that another machine began, or an earlier version, whose default was bf16."""
    for before, after, names in (
        ("auto", "auto", []),
        ("bf16", "auto", []),
        ("auto", "fp32", []),
        ("bf16", "fp32", ["precision (bf16, now fp32)"]),
    ):
        assert config_differences({"precision": before}, {"precision": after}) == names
