"""Dry run: shapes, parameters, memory and steps of a run, and its time from a few measured steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import DeltaVLMError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.training.build import (
    RunInputs,
    build_initial_model,
    build_learner,
    build_sampler,
    is_language_trainable,
    load_inputs,
    load_model_config,
    prepare_tokenizers,
)
from deltavlm.training.changechat_dataset import ChangeChatSource
from deltavlm.training.collate import TrainLoader, collate
from deltavlm.training.config import Phase, TrainConfig
from deltavlm.training.distributed import pick_machine, world
from deltavlm.training.learner import Learner
from deltavlm.training.loop import Trainer, TrainHooks, micro_batches
from deltavlm.training.parameter_groups import count_parameters, lr_multipliers, named_parameters
from deltavlm.training.synthetic_dataset import render_scenes

MAX_CPU_PARAMETERS = 200_000_000  # of models whose steps are measured without a GPU
MEASURED_PAIRS, MEASURED_STEPS = 4, 2  # after a warm-up step, which also counts activations


@dataclass(frozen=True, slots=True)
class Estimate:
    """Size and cost of a run. `missing`: why the run cannot start here."""

    model: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    missing: DeltaVLMError | None
    unmeasured: str | None  # why no time was measured


def estimate_run(config: TrainConfig, notify: Callable[[str], None] = lambda text: None) -> Estimate:
    """Estimate a run without writing anything. Raises: ConfigError for a configuration that cannot work."""
    inputs, missing = None, None
    model_config = load_model_config(config)
    try:
        inputs = load_inputs(config)
        model_config = inputs.model
    except DeltaVLMError as error:
        missing = error
    with torch.device("meta"):
        model = build(model_config)
        learners = {name: Learner(model, model_config, phase) for name, phase in config.phases.items()}
    phases = {name: _phase_estimate(config, name, learners[name], inputs) for name in config.phases}
    size = sum(parameter.numel() for parameter in model.parameters())
    unmeasured = None
    if inputs is None:
        unmeasured = "inputs are missing"
    elif size > MAX_CPU_PARAMETERS and not torch.cuda.is_available():
        unmeasured = f"a model of {size / 1e9:.1f} billion parameters is not measured without a GPU"
    else:
        try:
            _measure(config, inputs, phases, notify)
        except (RuntimeError, MemoryError) as error:
            unmeasured = f"a step failed: {str(error).splitlines()[0]}"
    return Estimate(_shapes(model_config, config), phases, missing, unmeasured)


def _shapes(model: DeltaVLMConfig, config: TrainConfig) -> dict[str, Any]:
    vision = model.vision
    tokens = 2 * (vision.grid**2 + vision.prefix_tokens)
    tokens += model.dense.evidence_tokens if model.dense else 0
    return {
        "name": model.name,
        "start": config.start or "random weights",
        "images": [2, 3, vision.image_px, vision.image_px],
        "image_tokens": [tokens, vision.width],
        "queries": [model.qformer.queries, model.qformer.hidden],
        "soft_prompt": [model.qformer.queries, model.language.hidden],
        "vocabulary": model.language.vocab,
    }


def _phase_estimate(
    config: TrainConfig, name: str, learner: Learner, inputs: RunInputs | None
) -> dict[str, Any]:
    phase = config.phases[name]
    multipliers = lr_multipliers([name for name, _ in named_parameters(learner)], phase)
    modules = count_parameters(learner, multipliers)
    trainable = sum(count for count, _ in modules.values())
    total = sum(count for _, count in modules.values())
    language = modules["language"][1]
    is_fp32 = config.language_dtype == "fp32" or is_language_trainable(config)
    memory = {
        "weights": 4 * (total - language) + (4 if is_fp32 else 2) * language,
        "gradients": 4 * trainable,
        "optimizer": 8 * trainable,  # two moments of AdamW
        "EMA": 4 * (total if config.start is None else trainable) * bool(config.ema),
    }
    shards = world.size if config.sharding == "fsdp" else 1
    return {
        "part": phase.part,
        "steps": phase.steps,
        "batch": phase.batch,
        "grad_accum_steps": micro_batches(name, phase)[1],
        "trainable": trainable,
        "modules": {module: {"trainable": count, "all": all_} for module, (count, all_) in modules.items()},
        "memory_bytes": {key: value // shards for key, value in memory.items()},
        "epochs": _epochs(config, phase, inputs),
        "seconds": None,
        "activation_bytes": None,
    }


def _epochs(config: TrainConfig, phase: Phase, inputs: RunInputs | None) -> dict[str, float]:
    """Epochs of a phase over each set; scenes are drawn at random and have none."""
    if inputs is None:
        return {}
    weights = {name: records.weight for name, records in config.sets.items()}
    total = sum(weights.values()) + (config.scenes.weight if config.scenes else 0.0)
    epochs = {}
    for split in inputs.splits:
        if weights[split.name]:
            source = ChangeChatSource(split.train, split.image_folder, phase, 1, [0], train=False)
            epochs[split.name] = phase.steps * phase.batch * weights[split.name] / total / len(source)
    return epochs


def _measure(
    config: TrainConfig,
    inputs: RunInputs,
    phases: dict[str, dict[str, Any]],
    notify: Callable[[str], None],
) -> None:
    """Fill in time and activation memory from some steps of each phase, with few pairs and few scenes, in a
    temporary folder."""
    machine = pick_machine(config)
    scenes = config.scenes
    if scenes:
        kinds = ("train", "validation", "far", "stormy", "rich")
        scenes = replace(scenes, **{kind: min(getattr(scenes, kind), MEASURED_PAIRS) for kind in kinds})
    with tempfile.TemporaryDirectory(prefix="deltavlm-plan-") as folder:
        out = Path(folder)
        if scenes:
            render_scenes(scenes, out, workers=1)
        codecs = prepare_tokenizers(inputs, out, has_scenes=scenes is not None)
        for name, phase in config.phases.items():
            notify(f"measuring {MEASURED_STEPS} steps of {name}")
            pairs = min(phase.batch, phase.micro or MEASURED_PAIRS, MEASURED_PAIRS)
            short_phase = replace(phase, steps=MEASURED_STEPS + 1, batch=pairs, micro=None)
            short = replace(config, scenes=scenes, validation=None, phases={name: short_phase})
            learner = build_learner(short, name, inputs, build_initial_model(config, inputs), machine)
            loader = TrainLoader(
                build_sampler(short, name, inputs, out),
                partial(collate, phase=short_phase, config=inputs.model, codecs=codecs),
            )
            trainer = Trainer(short, name, learner, loader, machine, TrainHooks(out))
            activations = _SavedTensors()
            with torch.autograd.graph.saved_tensors_hooks(activations.pack, lambda tensor: tensor):
                trainer.train_step(0, trainer.load_step(0), should_log=True)
            started = time.monotonic()
            for step in range(1, MEASURED_STEPS + 1):
                trainer.train_step(step, trainer.load_step(step), should_log=True)
            step_seconds = (time.monotonic() - started) / MEASURED_STEPS
            phases[name]["seconds"] = step_seconds * phase.batch / pairs * phase.steps
            phases[name]["activation_bytes"] = activations.total_bytes * (phase.micro or phase.batch) // pairs


class _SavedTensors:
    """Bytes that autograd saves for the backward pass, each storage once, without the weights."""

    def __init__(self) -> None:
        self.total_bytes, self.storages = 0, set[int]()

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self.storages:
            self.storages.add(storage.data_ptr())
            self.total_bytes += storage.nbytes()
        return tensor
