"""Training run from start to end: check inputs, render scenes, train each phase, export the model."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deltavlm.errors import InputError, ModelOutOfMemory
from deltavlm.files import check_distinct_files
from deltavlm.messages import pluralize
from deltavlm.model.config import Calibration
from deltavlm.model.tokenizer import Codec
from deltavlm.training.build import (
    RunInputs,
    build_learner,
    build_model,
    build_sampler,
    limit_epochs,
    load_inputs,
    prepare_scope,
    prepare_tokenizers,
)
from deltavlm.training.checkpoints import logged_precisions, open_folder
from deltavlm.training.collate import TrainLoader, collate
from deltavlm.training.config import STAGES, TrainConfig
from deltavlm.training.distributed import Machine, pick_machine, world
from deltavlm.training.export import describe_commit, export_model
from deltavlm.training.loop import Trainer, TrainHooks
from deltavlm.training.stop_signals import StopRequest, catch_stop_signals
from deltavlm.training.synthetic_dataset import render_scenes, scene_caches
from deltavlm.training.validate import Validator

if TYPE_CHECKING:
    from deltavlm.training.lora import AdapterInputs
    from deltavlm.training.mci import StageInputs

log = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int, str], None]  # phase, step, number of steps, note


def ignore_progress(phase: str, step: int, steps: int, note: str) -> None:
    """Progress callback that does nothing."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run that are no part of its configuration."""

    resume: bool = False
    only: str | None = None  # train this phase alone; "none": only export the model
    until: float = math.inf  # time to stop at, in seconds since the epoch
    model_folder: Path | None = None  # of the exported model; default: `model` in the run's folder
    recipe: str = ""  # name of the configuration file, for the provenance
    provenance: Mapping[str, str] = field(default_factory=dict)  # what the model folder says beside that


@dataclass(frozen=True, slots=True)
class TrainResult:
    """End of a run: finished with an exported model, or stopped in a phase at a step."""

    phase: str
    step: int
    stop: StopRequest | None = None
    model_folder: Path | None = None
    calibration: Calibration | None = None

    def stop_message(self, out: Path) -> str:
        """One line about a run that was stopped."""
        reason = self.stop.reason if self.stop else "nobody"
        return f"stopped by {reason} at step {self.step} of {self.phase}; continue {out} with `resume=True`"


def train(
    config: TrainConfig,
    out: Path,
    options: RunOptions | None = None,
    on_progress: OnProgress = ignore_progress,
) -> TrainResult:
    """Train the phases that are not finished, in order, then export the model.

    Raises: InputError and its subclasses for input that cannot be used, ModelError, WriteError.
    """
    options = options or RunOptions()
    if options.only not in (None, "none", *config.phases):
        raise InputError(f"no phase {options.only!r}; there are {', '.join(config.phases)}")
    machine = pick_machine(config)
    is_staged = any(phase.part in STAGES for phase in config.phases.values())
    prepare = _prepare_stages if is_staged else _prepare if config.adapter is None else _prepare_adapter
    run = prepare(config, out, machine, options, on_progress)
    last, step = "", 0
    for name, phase in run.config.phases.items():
        last, step = name, phase.steps
        if options.only not in (None, name) or run.is_finished(name):
            continue
        step, stop = run.train_phase(name, options.until, on_progress)
        if stop:
            return TrainResult(name, step, stop)
    model_folder, calibration = None, None
    if world.rank == 0 and (options.only in (None, "none") or options.model_folder):
        model_folder = options.model_folder or out / "model"
        calibration = run.export(model_folder, options, f"{last} {step}")
    world.barrier()
    return TrainResult(last, step, None, model_folder, calibration)


def _prepare(
    config: TrainConfig, out: Path, machine: Machine, options: RunOptions, on_progress: OnProgress
) -> _Run:
    """Run of a DeltaVLM model: inputs are checked, scenes rendered, tokenizers made."""
    requested, config = config, machine.resolved(config)
    inputs = load_inputs(config)
    if inputs.start is not None:
        files = [path for path in inputs.start.iterdir() if path.is_file()]
        written = [
            ("the trained model", (options.model_folder or out / "model") / path.name) for path in files
        ]
        check_distinct_files(written, [("the model to start from", path) for path in files])
    if world.rank == 0:
        open_folder(out, requested, resume=options.resume)
    config = limit_epochs(config, inputs)
    if world.rank == 0 and config.scenes:
        caches = scene_caches(config.scenes, out)
        render_scenes(caches, lambda done, total: on_progress("scenes", done, total, "drawn"))
    world.barrier()
    codecs = prepare_tokenizers(inputs, out, has_scenes=config.scenes is not None)
    if world.rank == 0:
        prepare_scope(inputs, out)
    return _CheckpointRun(config, machine, out, inputs, codecs)


def _prepare_adapter(
    config: TrainConfig, out: Path, machine: Machine, options: RunOptions, on_progress: OnProgress
) -> _Run:
    """Run of an adapter: the model is loaded, and its sets are checked."""
    from deltavlm.training.lora import load_adapter_inputs

    requested, config = config, machine.resolved(config)
    inputs = load_adapter_inputs(config)
    if world.rank == 0:
        open_folder(out, requested, resume=options.resume)
    world.barrier()
    return _AdapterRun(config, machine, out, inputs)


def _prepare_stages(
    config: TrainConfig, out: Path, machine: Machine, options: RunOptions, on_progress: OnProgress
) -> _Run:
    """Run of the stages of a model of kind mci: the model is loaded, and its sets are checked."""
    from deltavlm.training.mci import load_stage_inputs

    requested, config = config, machine.resolved(config)
    inputs = load_stage_inputs(config)
    if world.rank == 0:
        open_folder(out, requested, resume=options.resume)
    world.barrier()
    return _StagedRun(config, machine, out, inputs)


@dataclass(frozen=True, slots=True)
class _Run(ABC):
    config: TrainConfig
    machine: Machine
    out: Path

    @abstractmethod
    def build_trainer(self, name: str, on_progress: OnProgress) -> Trainer:
        """Trainer of a phase."""

    @abstractmethod
    def export(self, folder: Path, options: RunOptions, steps: str) -> Calibration | None:
        """Write the model folder with its provenance; returns the calibration of yes/no scores."""

    def provenance(self, options: RunOptions, steps: str) -> dict[str, str]:
        """What the model folder says about its training."""
        config = self.config
        return {
            "trained_on": " and ".join(["synthetic scenes"] * bool(config.scenes) + list(config.sets)),
            "commit": describe_commit(),
            "command": f"deltavlm train {options.recipe}".strip(),
            "steps": steps,
            "precision": " and ".join(logged_precisions(self.out)) or self.machine.precision,
            **options.provenance,
        }

    def is_finished(self, name: str) -> bool:
        return (self.out / f"{name}.done").is_file()

    def train_phase(self, name: str, until: float, on_progress: OnProgress) -> tuple[int, StopRequest | None]:
        """Train one phase; returns its last step, and the request if it was stopped before its end."""
        trainer = self.build_trainer(name, on_progress)
        on_progress(name, trainer.step, trainer.phase.steps, "")
        with catch_stop_signals() as stop:
            try:
                end = trainer.run(stop, until)
            except (torch.OutOfMemoryError, MemoryError) as error:
                size = trainer.micro_batch_size
                raise ModelOutOfMemory(
                    f"phase {name}: micro-batches of {pluralize(size, 'pair')} do not fit into memory; use "
                    f"`set=phases.{name}.micro={max(1, size // 2)}`, or `set=recompute=true`"
                ) from error
            except InputError:  # an image that was there at the start
                if world.size == 1:
                    trainer.save_checkpoint()
                raise
            if end == "stopped":
                return trainer.step, stop
            if world.rank == 0:
                (self.out / f"{name}.done").write_text(f"{trainer.step}\n")
            world.barrier()
        return trainer.step, None


@dataclass(frozen=True, slots=True)
class _AdapterRun(_Run):
    """Run of an adapter."""

    inputs: AdapterInputs

    def build_trainer(self, name: str, on_progress: OnProgress) -> Trainer:
        from deltavlm.training.lora import AdapterValidator, build_learner, build_loader

        config, inputs = self.config, self.inputs
        phase = config.phases[name]
        hooks = TrainHooks(
            self.out,
            AdapterValidator(config, name, inputs, self.machine) if config.validation else None,
            lambda step, note: on_progress(name, step, phase.steps, note),
        )
        learner, loader = build_learner(config, inputs), build_loader(config, name, inputs)
        return Trainer(config, name, learner, loader, self.machine, hooks)

    def export(self, folder: Path, options: RunOptions, steps: str) -> None:
        from deltavlm.training.lora import export_adapter

        export_adapter(self.config, self.inputs, self.provenance(options, steps), self.out, folder)


@dataclass(frozen=True, slots=True)
class _StagedRun(_Run):
    """Run of a model of kind mci."""

    inputs: StageInputs

    def build_trainer(self, name: str, on_progress: OnProgress) -> Trainer:
        from deltavlm.training.mci import StageLearner, StageValidator, build_loader, build_network

        config, inputs = self.config, self.inputs
        hooks = TrainHooks(
            self.out,
            StageValidator(config, name, inputs, self.machine) if config.validation else None,
            lambda step, note: on_progress(name, step, config.phases[name].steps, note),
        )
        learner = StageLearner(build_network(config, inputs, self.out, name))
        return Trainer(config, name, learner, build_loader(config, name, inputs), self.machine, hooks)

    def export(self, folder: Path, options: RunOptions, steps: str) -> None:
        from deltavlm.training.mci import export_stages

        export_stages(self.config, self.inputs, self.provenance(options, steps), self.out, folder)


@dataclass(frozen=True, slots=True)
class _CheckpointRun(_Run):
    """Run of a DeltaVLM model."""

    inputs: RunInputs
    codecs: tuple[Codec, Codec]

    def build_trainer(self, name: str, on_progress: OnProgress) -> Trainer:
        config, inputs, machine, out = self.config, self.inputs, self.machine, self.out
        phase = config.phases[name]
        learner = build_learner(config, name, inputs, build_model(config, inputs, out, name), machine)
        loader = TrainLoader(
            build_sampler(config, name, inputs, out),
            partial(collate, phase=phase, config=inputs.model, codecs=self.codecs),
        )
        hooks = TrainHooks(
            out,
            Validator(config, name, inputs, self.codecs, machine, out) if config.validation else None,
            lambda step, note: on_progress(name, step, phase.steps, note),
        )
        return Trainer(config, name, learner, loader, machine, hooks)

    def export(self, folder: Path, options: RunOptions, steps: str) -> Calibration:
        provenance = self.provenance(options, steps)
        model = build_model(self.config, self.inputs, self.out, "")
        return export_model(model, self.config, self.inputs, provenance, self.out, folder)
