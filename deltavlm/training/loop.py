"""Training loop of all phases: gradient accumulation, EMA, checkpoints, validation, early stopping.

The batches of a `TrainLoader` and the losses of a `Learner` are functions of seed and step, so a resumed run
computes what an uninterrupted one computes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from deltavlm.config import suggest
from deltavlm.errors import ConfigError
from deltavlm.messages import pluralize
from deltavlm.model.device import tune_malloc
from deltavlm.training.checkpoints import TrainLog, load_state, save_state
from deltavlm.training.config import ANSWERING, Phase, TrainConfig, Validation
from deltavlm.training.distributed import (
    Machine,
    full_optimizer_state,
    full_tensor,
    load_optimizer_state,
    world,
)
from deltavlm.training.ema import EMA
from deltavlm.training.learner import LOSSES
from deltavlm.training.parameter_groups import build_optimizer, freeze, set_train_mode
from deltavlm.training.sampling import derive_seed
from deltavlm.training.stop_signals import StopRequest

log = logging.getLogger(__name__)

RunEnd = Literal["done", "early", "stopped"]  # all steps, early stopping, or a stop request
Metrics = dict[str, float]
Validate = Callable[[Any, StopRequest], Metrics | None]  # of a learner; None: stopped halfway


class StepBatch(Protocol):
    """Micro-batch of a learner; see `TrainBatch`."""

    @property
    def terms(self) -> dict[str, float]: ...

    def to(self, device: torch.device) -> StepBatch: ...


class Loader(Protocol):
    """Loader of micro-batches: the slots `start` to `stop` of a step."""

    def micro_batch(self, step: int, start: int, stop: int) -> StepBatch: ...


def ignore_step(step: int, note: str) -> None:
    """Progress callback that does nothing."""


@dataclass(frozen=True, slots=True)
class TrainHooks:
    """Folder and callbacks of a trainer."""

    out: Path  # checkpoints and log
    validate: Validate | None = None
    on_progress: Callable[[int, str], None] = ignore_step  # steps done, and the losses where they are logged


@dataclass(slots=True)
class BestMetric:
    """Best value of the metric of validation so far; NaN before the first."""

    value: float = math.nan
    step: int = 0
    validations_since: int = 0

    def update(self, value: float, step: int, *, lower: bool) -> bool:
        """Note the value of a validation; True if it is the best one. `lower`: lower values are better."""
        is_best = math.isnan(self.value) or (value < self.value if lower else value > self.value)
        if is_best:
            self.value, self.step = value, step
        self.validations_since = 0 if is_best else self.validations_since + 1
        return is_best


def lr_schedule(phase: Phase, step: int) -> float:
    """Learning rate at a step as a share of `phase.lr`: linear warmup, then cosine decay to `phase.floor`."""
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    progress = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return phase.floor + (1 - phase.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def micro_batches(name: str, phase: Phase) -> tuple[int, int]:
    """Micro-batch size of a process, and its number of gradient accumulation steps.

    Raises: ConfigError when the batch does not divide evenly.
    """
    per_process, remainder = divmod(phase.batch, world.size)
    micro_batch_size = phase.micro or per_process
    if remainder or not per_process or per_process % micro_batch_size:
        raise ConfigError(
            f"phase {name}: batch {phase.batch} does not divide into {world.size} processes "
            f"with micro-batches of {phase.micro or 'equal size'}"
        )
    return micro_batch_size, per_process // micro_batch_size


def validates_start(config: TrainConfig, phase: Phase) -> bool:
    """True where the weights that a phase starts from are validated too, to be kept unless training improves
    the metric: those of a model that can answer already."""
    plan = config.validation
    is_trained = config.start is not None and not config.fresh
    return is_trained and plan is not None and plan.metric is not None and phase.part in ANSWERING


class Trainer:
    """Trainer of one phase; resumes from the phase's checkpoint in `hooks.out` if there is one.

    Checkpoints hold all weights when the run starts from random ones (no `start`, no `adapter`), else only
    those that the phase can change: trainable parameters and buffers.
    """

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        learner: nn.Module,
        loader: Loader,
        machine: Machine,
        hooks: TrainHooks,
    ) -> None:
        self.config, self.name, self.phase = config, name, config.phases[name]
        self.learner, self.loader, self.machine, self.hooks = learner, loader, machine, hooks
        self.step, self.validation_due = 0, False
        self.best = BestMetric()
        self.micro_batch_size, self.grad_accum_steps = micro_batches(name, self.phase)
        if machine.device.type == "cpu":
            tune_malloc()
        multipliers = freeze(learner, self.phase)
        path = hooks.out / f"{name}.pt"
        state = load_state(path) if path.exists() else None
        if state:
            learner.load_state_dict(state["weights"], strict=False)
        learner.to(machine.device)
        self.wrapped = machine.wrap(learner)
        self.optimizer = build_optimizer(learner, self.phase, multipliers)
        self.trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        is_new, has_adapter = config.start is None and config.adapter is None, config.adapter is not None
        parameters = learner.named_parameters(remove_duplicate=not has_adapter)  # tied ones by both names
        frozen = {name for name, p in parameters if not p.requires_grad}
        self.weights: dict[str, Tensor] = {  # these share their storage with the learner
            name: tensor for name, tensor in learner.state_dict().items() if is_new or name not in frozen
        }
        self.ema = EMA(self.weights, config.ema)
        if state:
            self.load_checkpoint(state)
        elif validates_start(config, self.phase):
            self.validation_due = True

    def run(self, stop: StopRequest, until: float = math.inf) -> RunEnd:
        """Train from the current step to the end of the phase, or to a stop request between two steps.

        `until`: time (seconds since the epoch) to stop at. Both kinds of stop save a checkpoint.
        """
        train_log = None
        if world.rank == 0:
            train_log = TrainLog(self.hooks.out, self.name, self.step, self.machine.precision)
        try:
            if self.validation_due and (end := self.validate(train_log, stop)):
                return end
            timer, timer_step = time.monotonic(), self.step  # throughput is measured from here
            for step, micro_batches in self.prefetch_steps():
                if self.should_stop(stop, until):
                    self.save_checkpoint()
                    return "stopped"
                is_last = step + 1 == self.phase.steps
                should_log = is_last or (step + 1) % self.config.log_every == 0
                metrics = self.train_step(step, micro_batches, should_log)
                self.step = step + 1
                losses = " ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name in LOSSES)
                if metrics:
                    seconds = max(time.monotonic() - timer, 1e-9)
                    metrics["pairs_per_s"] = (self.step - timer_step) * self.phase.batch / seconds
                    timer, timer_step = time.monotonic(), self.step
                    if train_log:
                        train_log.write(self.step, "train", metrics)
                self.hooks.on_progress(self.step, losses)
                if self.should_validate(is_last):
                    self.validation_due = True
                    if end := self.validate(train_log, stop):
                        return end
                    timer, timer_step = time.monotonic(), self.step
                elif is_last or self.step % self.config.checkpoint_every == 0:
                    self.save_checkpoint()
            self.tell_kept_start()
            return "done"
        finally:
            if train_log:
                train_log.close()

    def prefetch_steps(self) -> Iterator[tuple[int, list[StepBatch]]]:
        """Remaining steps with their micro-batches, which `workers` threads prefetch."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            pending: dict[int, Future[list[StepBatch]]] = {}
            try:
                for step in range(self.step, self.phase.steps):
                    for upcoming in range(step, min(step + 1 + self.config.workers, self.phase.steps)):
                        if upcoming not in pending:
                            pending[upcoming] = pool.submit(self.load_step, upcoming)
                    yield step, pending.pop(step).result()
            finally:
                for future in pending.values():
                    future.cancel()

    def load_step(self, step: int) -> list[StepBatch]:
        """Micro-batches of this process in a step."""
        stride = self.micro_batch_size * world.size
        offset = world.rank * self.micro_batch_size
        starts = [micro_step * stride + offset for micro_step in range(self.grad_accum_steps)]
        return [self.loader.micro_batch(step, start, start + self.micro_batch_size) for start in starts]

    def should_stop(self, stop: StopRequest, until: float = math.inf) -> bool:
        """True in all processes if any of them has a stop request or is out of time."""
        must_stop = stop.requested or time.time() > until
        if world.all_reduce_sum([float(must_stop)], self.machine.device)[0] == 0:
            return False
        stop.requested = True
        return True

    def train_step(self, step: int, micro_batches: list[StepBatch], should_log: bool) -> Metrics:
        """One optimizer step with gradient accumulation over micro-batches.

        Returns mean losses, learning rate and gradient norm to log; empty on steps that are not logged.
        """
        # number of terms of each loss in the whole step, over all micro-batches and processes
        names = sorted(micro_batches[0].terms)
        local_terms = [sum(batch.terms[name] for batch in micro_batches) for name in names]
        global_terms = world.all_reduce_sum(local_terms, self.machine.device)
        terms = dict(zip(names, global_terms, strict=True))

        # learning rate
        lr_scale = lr_schedule(self.phase, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.lr * group["factor"] * lr_scale

        # forward and backward
        self.optimizer.zero_grad(set_to_none=True)
        totals = dict.fromkeys(names, torch.zeros((), device=self.machine.device))
        for micro_step, batch in enumerate(micro_batches):
            torch.manual_seed(derive_seed(self.config.seed, step, micro_step, world.rank))
            is_last = micro_step + 1 == self.grad_accum_steps
            with self.machine.gradient_sync(self.wrapped, is_last=is_last):
                with self.machine.autocast():
                    sums = self.wrapped(batch.to(self.machine.device))
                # DDP and FSDP average gradients over processes: times their number, the average is the sum
                losses = [sums[name].float() * (world.size / terms[name]) for name in sums if name in LOSSES]
                self.scaler.scale(torch.stack(losses).sum()).backward()  # type: ignore[no-untyped-call]
            for name, value in sums.items():
                totals[name] = totals[name] + value.detach().float()

        # optimizer step
        self.scaler.unscale_(self.optimizer)
        grad_norm = full_tensor(nn.utils.clip_grad_norm_(self.trainable, self.config.clip))
        if self.scaler.is_enabled() or torch.isfinite(grad_norm):  # the scaler skips non-finite ones itself
            self.scaler.step(self.optimizer)
        else:
            log.warning("%s step %d: gradients are not finite; step skipped", self.name, step + 1)
        self.scaler.update()
        self.ema.update(step)

        if not should_log:
            return {}
        values = world.all_reduce_sum([totals[name].item() for name in names], self.machine.device)
        means = {name: value / terms[name] for name, value in zip(names, values, strict=True) if terms[name]}
        return means | {"lr": self.phase.lr * lr_scale, "norm": grad_norm.item()}

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Context in which the learner has the EMA weights and is in eval mode."""
        try:
            with self.ema.applied():
                self.learner.eval()
                yield
        finally:
            set_train_mode(self.learner)

    def should_validate(self, is_last: bool) -> bool:
        plan = self.config.validation
        return bool(plan and self.hooks.validate and (is_last or self.step % plan.every == 0))

    def validate(self, train_log: TrainLog | None, stop: StopRequest) -> RunEnd | None:
        """Validate the EMA weights and save checkpoints; returns the end of the phase where it ends here."""
        plan = self.config.validation
        assert plan is not None
        assert self.hooks.validate is not None
        with self.ema_weights():
            metrics = self.hooks.validate(self.learner, stop)
        if metrics is None:  # stopped halfway: validation stays due, to be repeated on resume
            self.save_checkpoint()
            return "stopped"
        self.validation_due = False
        if train_log:
            train_log.write(self.step, "validation", metrics)
            names = [name for name in metrics if ".loss." in name or name == plan.metric]
            summary = ", ".join(f"{name} {metrics[name]:.4g}" for name in names)
            log.info("%s step %d, validation: %s", self.name, self.step, summary)
        if plan.metric is None:
            self.save_checkpoint()
            return None
        if plan.metric not in metrics:
            self.save_checkpoint()
            self.check_metric(plan.metric, metrics)
            return None
        if self.best.update(metrics[plan.metric], self.step, lower=plan.lower):
            self.save_checkpoint(best=True)
        self.save_checkpoint()
        return self.early_stop(plan)

    def check_metric(self, metric: str, metrics: Metrics) -> None:
        """Accept that this phase lacks the metric if other phases may have it.

        Only a run that has phases both with and without answers may lack it. Raises: ConfigError.
        """
        if len({phase.part in ANSWERING for phase in self.config.phases.values()}) == 1:
            raise ConfigError(f"validation.metric: there is no {metric!r}{suggest(metric, metrics)}")
        log.info("%s has no metric %s: its last weights are used", self.name, metric)

    def tell_kept_start(self) -> None:
        """Say where a phase has not improved the weights that it started from, which are its result then."""
        plan, is_first = self.config.validation, self.best.step == 0 and not math.isnan(self.best.value)
        if plan and is_first and validates_start(self.config, self.phase):
            log.warning(
                "%s: %s did not improve from %.4g, so the weights that it started from are kept",
                *(self.name, plan.metric, self.best.value),
            )

    def early_stop(self, plan: Validation) -> RunEnd | None:
        if not plan.patience or self.best.validations_since < plan.patience or self.step >= self.phase.steps:
            return None
        self.tell_kept_start()
        log.info(
            "%s: early stopping, no better value than at step %d in %s",
            self.name,
            self.best.step,
            pluralize(self.best.validations_since, "validation"),
        )
        return "early"

    def save_checkpoint(self, *, best: bool = False) -> None:
        """Save all that `load_checkpoint` needs, or with `best` the weights that were just validated."""
        state: dict[str, Any] = {
            "mean": self.ema.state_dict(),
            "step": self.step,
            "precision": self.machine.precision,
            "best": [self.best.value, self.best.step, self.best.validations_since],
        }
        if not best or not self.ema:
            state["weights"] = {name: full_tensor(tensor) for name, tensor in self.weights.items()}
        if not best:
            state |= {
                "owed": self.validation_due,
                "scaler": self.scaler.state_dict(),
                "optim": full_optimizer_state(self.optimizer),
            }
        if world.rank == 0:
            save_state(self.hooks.out, f"{self.name}.best" if best else self.name, state)
        world.barrier()

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Restore everything but the weights; the precision may be another one, as on another machine."""
        self.step, self.validation_due = int(state["step"]), bool(state["owed"])
        self.best = BestMetric(*state["best"])
        self.ema.load_state_dict(state["mean"])
        if state["scaler"]:  # empty of a run in bf16 or fp32
            self.scaler.load_state_dict(state["scaler"])
        before, now = state.get("precision"), self.machine.precision
        if before not in (None, now):
            log.warning(
                "%s: computed in %s to step %d, on this device in %s from there; losses differ by rounding",
                *(self.name, before, self.step, now),
            )
        load_optimizer_state(self.optimizer, state["optim"])
