"""Dry run: shapes, parameters, memory and steps of a run, and its time from a few measured steps."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import ConfigError, DeltaVLMError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.model.device import meta_device
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor
from deltavlm.training.build import (
    RunInputs,
    build_initial_model,
    build_learner,
    build_sampler,
    epochs_of,
    is_language_trainable,
    limit_epochs,
    load_inputs,
    load_model_config,
    prepare_tokenizers,
)
from deltavlm.training.calibrate import scene_margins
from deltavlm.training.collate import TrainLoader, collate
from deltavlm.training.config import STAGES, TrainConfig
from deltavlm.training.distributed import Machine, pick_machine, world
from deltavlm.training.export import write_model_folder
from deltavlm.training.learner import Learner
from deltavlm.training.loop import Trainer, TrainHooks, micro_batches, validates_start
from deltavlm.training.parameter_groups import count_parameters, lr_multipliers, named_parameters
from deltavlm.training.scope import measure_fit
from deltavlm.training.stop_signals import StopRequest
from deltavlm.training.synthetic_dataset import scene_caches
from deltavlm.training.validate import Validator

MAX_CPU_PARAMETERS = 200_000_000  # of models whose steps are measured without a GPU
MEASURED_PAIRS = 16  # of a step, of a validation and of the calibration, at most; times are scaled beyond
CPU_PAIRS = 8  # the same of a step and of a validation on a CPU, whose time is proportional to the pairs
MEASURED_STEPS, MEASURED_S = 10, 6.0  # steps after a warm-up step: at most so many, until so many seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """Size and cost of a run. `missing`: why the run cannot start here."""

    model: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    missing: DeltaVLMError | None
    unmeasured: str | None  # why no time was measured
    other_seconds: dict[str, float]  # time outside of the phases, by its kind; empty if not measured


def estimate_run(config: TrainConfig, notify: Callable[[str], None] = lambda text: None) -> Estimate:
    """Estimate a run without writing anything. Raises: ConfigError for a configuration that cannot work."""
    if config.adapter is not None or any(phase.part in STAGES for phase in config.phases.values()):
        raise ConfigError(
            "`dry_run` supports neither an adapter nor a model of kind mci; leave it out, and try a few steps"
        )
    machine, inputs, missing = None, None, None
    model_config = load_model_config(config)
    try:
        machine = pick_machine(config)
        config = machine.resolved(config)
        inputs = load_inputs(config)
        model_config = inputs.model
        config = limit_epochs(config, inputs)
    except DeltaVLMError as error:
        missing = error
    with meta_device():
        model = build(model_config)
        learners = {name: Learner(model, model_config, phase) for name, phase in config.phases.items()}
    phases = {name: _phase_estimate(config, name, learners[name], inputs) for name in config.phases}
    size = sum(parameter.numel() for parameter in model.parameters())
    unmeasured, other_seconds = None, dict[str, float]()
    if machine is None or inputs is None:
        unmeasured = "inputs are missing" if machine else "the run cannot start here"
    elif size > MAX_CPU_PARAMETERS and not torch.cuda.is_available():
        unmeasured = f"a model of {size / 1e9:.1f} billion parameters is not measured without a GPU"
    else:
        try:
            other_seconds = _measure(config, machine, inputs, phases, notify)
        except (RuntimeError, MemoryError) as error:
            unmeasured = f"a step failed: {str(error).splitlines()[0]}"
    return Estimate(_shapes(model_config, config), phases, missing, unmeasured, other_seconds)


def _shapes(model: DeltaVLMConfig, config: TrainConfig) -> dict[str, Any]:
    vision = model.vision
    tokens = 2 * (vision.grid**2 + vision.prefix_tokens)
    tokens += model.dense.evidence_tokens if model.dense else 0
    return {
        "name": model.name,
        "start": config.start or "random weights",
        "precision": config.precision,
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
        "epochs": {} if inputs is None else epochs_of(config, phase, inputs),
        "seconds": None,
        "time": {},
        "activation_bytes": None,
    }


def _measure(
    config: TrainConfig,
    machine: Machine,
    inputs: RunInputs,
    phases: dict[str, dict[str, Any]],
    notify: Callable[[str], None],
) -> dict[str, float]:
    """Fill in time and activation memory of each phase, from a few steps, a small validation and a checkpoint
    with few scenes in a temporary folder; returns the time of everything else by its kind."""
    other_seconds = {"start": time.process_time()}  # of this process: mostly the import of packages
    most = CPU_PAIRS if machine.device.type == "cpu" else MEASURED_PAIRS
    with tempfile.TemporaryDirectory(prefix="deltavlm-plan-") as folder:
        out = Path(folder)
        scenes = config.scenes
        if scenes:
            notify("measuring the drawing of scenes")
            other_seconds["drawing scenes"] = _measure_scenes(config, out)
            kinds = ("train", "validation", "far", "stormy", "rich", "ground")
            scenes = replace(scenes, **{kind: min(getattr(scenes, kind), MEASURED_PAIRS) for kind in kinds})
        started = time.monotonic()
        codecs = prepare_tokenizers(inputs, out, has_scenes=scenes is not None)
        other_seconds["start"] += time.monotonic() - started
        if inputs.model.scope is not None and inputs.start is None:
            notify("measuring the fit of the question scope")
            other_seconds["question scope"] = measure_fit(inputs.model.scope)
        for name, phase in config.phases.items():
            notify(f"measuring steps of {name}")
            started = time.monotonic()
            micro_batch_size, grad_accum_steps = micro_batches(name, phase)
            pairs = min(micro_batch_size, most)
            short_phase = replace(phase, steps=MEASURED_STEPS + 3, batch=pairs, micro=None)
            short = replace(config, scenes=scenes, phases={**config.phases, name: short_phase})
            learner = build_learner(short, name, inputs, build_initial_model(config, inputs), machine)
            loader = TrainLoader(
                build_sampler(short, name, inputs, out),
                partial(collate, phase=short_phase, config=inputs.model, codecs=codecs),
            )
            trainer = Trainer(short, name, learner, loader, machine, TrainHooks(out))
            start_seconds = time.monotonic() - started
            activations = _SavedTensors()
            step_seconds = _measure_steps(trainer, activations)
            scale = micro_batch_size / pairs * grad_accum_steps
            started = time.monotonic()
            trainer.save_checkpoint()
            checkpoint_seconds = time.monotonic() - started
            plan = config.validation
            validations = math.ceil(phase.steps / plan.every) if plan else 0
            validations += validates_start(config, phase)
            checkpoints = math.ceil(phase.steps / config.checkpoint_every) + validations
            seconds = {
                "steps": start_seconds + step_seconds * scale * phase.steps,
                "checkpoints": checkpoint_seconds * checkpoints,
            }
            if plan:
                with trainer.ema_weights():
                    validator = Validator(short, name, inputs, codecs, machine, out)
                    seconds["validation"] = validations * _measure_validation(
                        validator, learner, config, most
                    )
            phases[name]["time"] = seconds
            phases[name]["seconds"] = sum(seconds.values())
            phases[name]["activation_bytes"] = activations.total_bytes * micro_batch_size // pairs
        notify("measuring the model folder and its calibration")
        other_seconds["model folder"] = _measure_export(config, inputs, out)
    return other_seconds


def _measure_scenes(config: TrainConfig, out: Path) -> float:
    """Seconds that drawing all scenes takes; draws the first of each kind into `out`."""
    assert config.scenes is not None
    caches, seconds = scene_caches(config.scenes, out), 0.0
    workers = os.cpu_count() or 1
    for cache in caches:
        few = replace(cache, count=min(cache.count, MEASURED_PAIRS))
        started = time.monotonic()
        few.render(workers=1)
        scene_seconds = (time.monotonic() - started) / max(1, few.count)
        # the hard negatives of the calibration are as many as the validation scenes
        count = cache.count * (2 if cache.folder.name == "validation" else 1)
        seconds += scene_seconds * count / min(workers, math.ceil(cache.count / MEASURED_PAIRS) or 1)
    return seconds


def _measure_steps(trainer: Trainer, activations: _SavedTensors) -> float:
    """Seconds per step, with prefetched batches as in training; the first step counts activations instead."""
    started, steps = time.monotonic(), 0
    for step, batches in trainer.prefetch_steps():
        if step == 0:
            with torch.autograd.graph.saved_tensors_hooks(activations.pack, lambda tensor: tensor):
                trainer.train_step(step, batches, should_log=True)
            started = time.monotonic()
            continue
        trainer.train_step(step, batches, should_log=True)
        steps += 1
        if steps == MEASURED_STEPS or (steps >= 2 and time.monotonic() - started > MEASURED_S):
            break
    return (time.monotonic() - started) / steps


def _measure_validation(validator: Validator, learner: Learner, config: TrainConfig, most: int) -> float:
    """Seconds of a validation: each source is measured with at most `most` pairs."""
    plan, seconds = validator.plan, 0.0
    sources, splits = validator.sources, validator.splits
    validator.plan = replace(plan, pairs=min(plan.pairs, most))
    for name, source in sources.items():
        validator.sources = {name: source}
        held_out = [split for split in splits if split.name == name]
        validator.splits = [
            replace(split, held_out=split.held_out[: validator.plan.pairs]) for split in held_out
        ]
        count = len(held_out[0].held_out) if held_out else config.scenes.validation if config.scenes else 0
        count = min(count, plan.pairs)
        started = time.monotonic()
        validator(learner, StopRequest())
        seconds += (time.monotonic() - started) * max(1.0, count / most)
    return seconds


def _measure_export(config: TrainConfig, inputs: RunInputs, out: Path) -> float:
    """Seconds of writing the model folder and of calibrating its score on held-out pairs and scenes."""
    model = build_initial_model(config, inputs)
    started = time.monotonic()
    write_model_folder(model, inputs, {}, out, out / "model")
    seconds = time.monotonic() - started
    pairs = sum(len(split.held_out) for split in inputs.splits)
    pairs += 2 * config.scenes.validation if config.scenes else 0
    if config.scenes and config.scenes.validation:
        predictor = load_model(str(out / "model"), device="cpu")
        assert isinstance(predictor, Predictor)
        started = time.monotonic()
        scene_margins(predictor, out / "validation")
        seconds += (time.monotonic() - started) / min(config.scenes.validation, MEASURED_PAIRS) * pairs
    return seconds


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
