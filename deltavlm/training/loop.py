"""The training loop, one for all phases: an optimiser with a rate for each organ, a schedule, a running mean
of the weights, checkpoints to resume from, a log, validation.

What is learnt comes from a `MixedSampler` (what a step holds) and a `Learner` (what is made of it); both are
functions of seed and step, so a resumed run computes what an unbroken one computes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltavlm.config import suggest
from deltavlm.errors import ConfigError
from deltavlm.training.checkpoints import Log, load_state, save_state
from deltavlm.training.config import ASKING, Phase, TrainConfig
from deltavlm.training.distributed import Machine, whole, world
from deltavlm.training.learner import LOSSES, Learner, TrainBatch
from deltavlm.training.parameter_groups import freeze, optimiser, training_modes
from deltavlm.training.sampling import Batch, MixedSampler, mixed_seed
from deltavlm.training.stop_signals import StopRequest

log = logging.getLogger(__name__)

Ended = Literal["done", "early", "stopped"]
Validate = Callable[[Learner, StopRequest], dict[str, float] | None]  # None: stopped in the middle


def rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then a cosine to the floor, by step."""
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return phase.floor + (1 - phase.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def pieces(name: str, phase: Phase) -> tuple[int, int]:
    """Pairs that this process looks at at once, and how often in a step.

    Raises: ConfigError where a batch cannot be dealt evenly.
    """
    share, rest = divmod(phase.batch, world.size)
    micro = phase.micro or share
    if rest or not share or share % micro:
        raise ConfigError(
            f"phase {name}: batch {phase.batch} does not divide into {world.size} processes "
            f"with pieces of {phase.micro or 'equal size'}"
        )
    return micro, share // micro


class Trainer:
    """One phase on its way. `everything`: checkpoints hold all weights, not only those that can change."""

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        learner: Learner,
        mixture: MixedSampler,
        lessons: Callable[[Batch], TrainBatch],
        machine: Machine,
        out: Path,
        *,
        everything: bool = True,
        validate: Validate | None = None,
        tell: Callable[[int, str], None] = lambda done, note: None,
    ) -> None:
        self.config, self.name, self.phase = config, name, config.phases[name]
        self.learner, self.mixture, self.lessons, self.machine = learner, mixture, lessons, machine
        self.out, self.validate, self.tell = out, validate, tell
        self.step, self.best, self.best_step, self.misses, self.owed = 0, math.nan, 0, 0, False
        self.micro, self.pieces = pieces(name, self.phase)
        found = freeze(learner, self.phase)
        path = out / f"{name}.pt"
        state = load_state(path) if path.exists() else None
        if state:
            learner.load_state_dict(state["weights"], strict=False)
        learner.to(machine.device)
        self.spread = machine.spread(learner)
        self.optim = optimiser(learner, self.phase, found)
        self.fitted = [p for group in self.optim.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        changing = {name for name, p in learner.named_parameters() if p.requires_grad}
        fixed = {name for name, p in learner.named_parameters() if not p.requires_grad}
        self.live: dict[str, Tensor] = {  # these share their storage with the learner
            name: tensor
            for name, tensor in learner.state_dict().items()
            if everything or name in changing or name not in fixed
        }
        self.mean = {
            name: tensor.detach().clone()
            for name, tensor in self.live.items()
            if config.ema and tensor.is_floating_point()
        }
        if state:
            self.load_checkpoint(state)

    def batch(self, step: int) -> list[TrainBatch]:
        """This process's share of a step, in pieces."""
        each = self.micro * world.size
        starts = [piece * each + world.rank * self.micro for piece in range(self.pieces)]
        return [self.lessons(self.mixture.take(step, at, at + self.micro)) for at in starts]

    def run(self, stop: StopRequest, until: float = math.inf) -> Ended:
        """Runs the phase on from where it is. Stops between two steps, with a checkpoint."""
        journal = Log(self.out, self.name, self.step) if world.rank == 0 else None
        try:
            if self.owed and (ended := self.check(journal, stop)):
                return ended
            since, told = time.monotonic(), self.step
            for step, pieces in self.ahead():
                if self.should_stop(stop, until):
                    self.keep()
                    return "stopped"
                is_last = step + 1 == self.phase.steps
                shown = is_last or (step + 1) % self.config.log_every == 0
                numbers = self.learn(step, pieces, shown)
                self.step = step + 1
                if numbers:
                    now = time.monotonic()
                    numbers["pairs_per_s"] = (self.step - told) * self.phase.batch / max(now - since, 1e-9)
                    since, told = now, self.step
                    if journal:
                        journal.write(self.step, "train", numbers)
                    self.tell(self.step, " ".join(f"{k} {v:.3f}" for k, v in numbers.items() if k in LOSSES))
                else:
                    self.tell(self.step, "")
                plan = self.config.validation
                if plan and self.validate and (is_last or self.step % plan.every == 0):
                    self.owed = True
                    if ended := self.check(journal, stop):
                        return ended
                    since, told = time.monotonic(), self.step
                elif is_last or self.step % self.config.checkpoint_every == 0:
                    self.keep()
            return "done"
        finally:
            if journal:
                journal.close()

    def ahead(self) -> Iterator[tuple[int, list[TrainBatch]]]:
        """Steps and what they hold; the next ones are read while one is learnt."""
        with ThreadPoolExecutor(self.config.workers) as reader:
            asked: dict[int, Future[list[TrainBatch]]] = {}
            try:
                for step in range(self.step, self.phase.steps):
                    for near in range(step, min(step + 1 + self.config.workers, self.phase.steps)):
                        if near not in asked:
                            asked[near] = reader.submit(self.batch, near)
                    yield step, asked.pop(step).result()
            finally:
                for future in asked.values():
                    future.cancel()

    def should_stop(self, stop: StopRequest, until: float = math.inf) -> bool:
        """Whether any process was told to, or the time is up."""
        mine = stop.wanted or time.time() > until
        wanted = world.summed([float(mine)], self.machine.device)[0] > 0
        if wanted:
            stop.wanted = True
        return wanted

    def learn(self, step: int, pieces: list[TrainBatch], shown: bool) -> dict[str, float]:
        """One step of the optimiser; what it was like, where that is to be shown."""
        scale = rate(self.phase, step)
        for group in self.optim.param_groups:
            group["lr"] = self.phase.lr * group["factor"] * scale
        names = sorted(pieces[0].counts)
        counted = world.summed(
            [sum(lesson.counts[name] for lesson in pieces) for name in names], self.machine.device
        )
        counts = dict(zip(names, counted, strict=True))
        self.optim.zero_grad(set_to_none=True)
        seen = dict.fromkeys(names, torch.zeros((), device=self.machine.device))
        for number, lesson in enumerate(pieces):
            torch.manual_seed(mixed_seed(self.config.seed, step, number, world.rank))
            with self.machine.sharing(self.spread, last=number + 1 == len(pieces)):
                with self.machine.exact():
                    sums = self.spread(lesson.to(self.machine.device))
                # the mean over processes that follows makes these the sum over all, divided by all
                terms = [sums[k].float() * (world.size / counts[k]) for k in sums if k in LOSSES]
                self.scaler.scale(torch.stack(terms).sum()).backward()  # type: ignore[no-untyped-call]
            for name, value in sums.items():
                seen[name] = seen[name] + value.detach().float()
        self.scaler.unscale_(self.optim)
        norm = whole(nn.utils.clip_grad_norm_(self.fitted, self.config.clip))
        if self.scaler.is_enabled() or torch.isfinite(norm):  # the scaler looks itself
            self.scaler.step(self.optim)
        else:
            log.warning("%s step %d: gradients are not finite; left out", self.name, step + 1)
        self.scaler.update()
        self.average(step)
        if not shown:
            return {}
        values = world.summed([seen[name].item() for name in names], self.machine.device)
        found = {
            name: value / counts[name] for name, value in zip(names, values, strict=True) if counts[name]
        }
        return found | {"lr": self.phase.lr * scale, "norm": norm.item()}

    def average(self, step: int) -> None:
        """Exponential moving average of weights and statistics, short at first."""
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.lerp_(self.live[name], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While open, the learner has the averaged weights and is as in use."""
        kept = {name: self.live[name].detach().clone() for name in self.mean}
        with torch.no_grad():
            for name, mean in self.mean.items():
                self.live[name].copy_(mean)
        self.learner.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in kept.items():
                    self.live[name].copy_(tensor)
            training_modes(self.learner)

    def check(self, journal: Log | None, stop: StopRequest) -> Ended | None:
        """Validates, keeps, and says whether that is the end of the phase."""
        plan = self.config.validation
        assert plan is not None
        assert self.validate is not None
        with self.averaged():
            found = self.validate(self.learner, stop)
        if found is None:  # stopped in the middle: to be done again
            self.keep()
            return "stopped"
        self.owed = False
        if journal:
            journal.write(self.step, "validation", found)
            shown = [name for name in found if ".loss." in name or name == plan.metric]
            told = ", ".join(f"{name} {found[name]:.4g}" for name in shown)
            log.info("%s step %d, held out: %s", self.name, self.step, told)
        if plan.metric is not None:
            if plan.metric not in found:
                self.keep()
                asks = {phase.part in ASKING for phase in self.config.phases.values()}
                if len(asks) == 1:
                    raise ConfigError(
                        f"validation.metric: there is no {plan.metric!r}{suggest(plan.metric, found)}"
                    )
                log.info("%s has no figure %s: its last weights count", self.name, plan.metric)
                return None
            value = found[plan.metric]
            if math.isnan(self.best) or (value < self.best if plan.lower else value > self.best):
                self.best, self.best_step, self.misses = value, self.step, 0
                self.keep(best=True)
            else:
                self.misses += 1
        self.keep()
        if plan.patience and self.misses >= plan.patience and self.step < self.phase.steps:
            log.info(
                "%s: not better than at step %d for %d times; ended", self.name, self.best_step, self.misses
            )
            return "early"
        return None

    def keep(self, *, best: bool = False) -> None:
        """Writes all that `load_checkpoint` needs, or the weights that are best."""
        state: dict[str, Any] = {
            "mean": {name: whole(tensor) for name, tensor in self.mean.items()},
            "step": self.step,
            "best": [self.best, self.best_step, self.misses],
        }
        if not best or not self.mean:
            state["weights"] = {name: whole(tensor) for name, tensor in self.live.items()}
        if not best:
            state |= {"owed": self.owed, "scaler": self.scaler.state_dict(), "optim": self._optim_state()}
        if world.rank == 0:
            save_state(self.out, f"{self.name}.best" if best else self.name, state)
        world.wait()

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Everything but the weights from a checkpoint."""
        self.step, self.owed = int(state["step"]), bool(state["owed"])
        self.best, self.best_step, self.misses = state["best"]
        for name, mean in self.mean.items():
            mean.copy_(_like(state["mean"][name], mean))
        self.scaler.load_state_dict(state["scaler"])
        optim = state["optim"]
        for number, parameter in enumerate(self.fitted):  # in the optimiser's own order
            for key, value in optim["state"].get(number, {}).items():
                if value.shape == parameter.shape:
                    optim["state"][number][key] = _like(value, parameter)
        self.optim.load_state_dict(optim)

    def _optim_state(self) -> dict[str, Any]:
        """The optimiser's state, put together where each process has a part of it."""
        state = self.optim.state_dict()
        held = state["state"]  # its inner dictionaries are the optimiser's own
        state["state"] = {p: {key: whole(value) for key, value in held[p].items()} for p in held}
        return state


def _like(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A whole tensor, spread as another is."""
    if hasattr(wanted, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(wanted.device), wanted.device_mesh, wanted.placements)  # type: ignore[attr-defined]
    return tensor.to(wanted.device)
