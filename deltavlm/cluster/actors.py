"""Ray actors that hold a model each: start, agreement on the model, restart after a death."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from deltavlm.cluster.worker import LoadModel, ModelActor, ModelInfo
from deltavlm.errors import ConfigError, DeltaVLMError, ModelError
from deltavlm.messages import pluralize
from deltavlm.version import __version__

__all__ = ["MAX_RETRIES", "ActorPool", "ActorResources", "ActorSlot"]

logger = logging.getLogger(__name__)

MAX_RETRIES = 2  # of work whose worker has died
WAIT_LOG_S = 30.0  # seconds between two messages while actors are waited for
START_S = 1800.0  # seconds that a worker may take to start and to load its model
BATCHES_PER_ACTOR = 3  # in flight: one is asked, one is queued behind it, one is finished and waits its turn


@dataclass(frozen=True, slots=True)
class ActorResources:
    """Resources of each actor."""

    cpus: int
    gpus: int = 0
    environment: dict[str, str] = field(default_factory=dict)  # variables, such as GDAL's settings


@dataclass(eq=False, slots=True)
class ActorSlot:
    """Slot of the pool, with the actor that is in it now."""

    handle: Any
    loading: Any = None  # reference to its ModelInfo while its model is being loaded; None once it is ready
    deaths: int = 0  # in a row, before it was ready


class ActorPool:
    """Pool of actors with the same model."""

    def __init__(self, load_model: LoadModel, resources: ActorResources, count: int) -> None:
        self.load_model = load_model
        self.resources = resources
        self.slots = [ActorSlot(None) for _ in range(count)]
        for slot in self.slots:
            self.restart(slot)
        self.max_in_flight = BATCHES_PER_ACTOR * count  # batches
        self.model = self._wait_for_all()

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def task_options(self) -> dict[str, Any]:
        """Options of Ray tasks and actors that carry the environment variables."""
        variables = self.resources.environment
        return {"runtime_env": {"env_vars": variables}} if variables else {}

    def restart(self, slot: ActorSlot) -> None:
        """Put a new actor into a slot; it is ready when it has loaded its model."""
        actor = ray.remote(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_restarts=0,  # we restart, since we must know which chips an actor died of
            scheduling_strategy="SPREAD",
            **self.task_options,
        )(ModelActor)
        slot.handle = actor.remote(self.load_model, self.resources.cpus)
        slot.loading = slot.handle.load.remote()

    def ready(self) -> list[ActorSlot]:
        """Slots whose actor can be asked; waits until there is one. Raises: ModelError if all have died."""
        begin = time.monotonic()
        while True:
            for slot in [slot for slot in self.slots if slot.loading is not None]:
                if ray.wait([slot.loading], timeout=0)[0]:
                    self._admit(slot)
            if not self.slots:
                raise ModelError("every worker has died; the results so far are kept")
            ready = [slot for slot in self.slots if slot.loading is None]
            if ready:
                return ready
            if not ray.wait([slot.loading for slot in self.slots], timeout=WAIT_LOG_S)[0]:
                logger.warning("no worker is ready; waiting for one")
                if time.monotonic() - begin > START_S:
                    raise ModelError(
                        f"no worker started in {START_S / 60:.0f} minutes; the results so far are kept"
                    )

    def _admit(self, slot: ActorSlot) -> None:
        """Admit a restarted actor that has loaded the pool's model; remove its slot if it cannot."""
        try:
            info = ray.get(slot.loading)
            problem = str(info) if isinstance(info, DeltaVLMError) else _difference(self.model, info)
        except RayError as error:
            slot.deaths += 1
            if slot.deaths <= MAX_RETRIES:
                self.restart(slot)
                return
            problem = type(error).__name__
        if problem:
            self.slots.remove(slot)
            logger.warning("a worker is not replaced, %d remain: %s", len(self.slots), problem)
        else:
            slot.loading, slot.deaths = None, 0

    def _wait_for_all(self) -> ModelInfo:
        """Model of the pool, once every actor has loaded it.

        Raises: the error of the first actor that cannot load it; ModelError where a worker does not start;
            ConfigError where workers have different models or versions.
        """
        loading = [slot.loading for slot in self.slots]
        begin = time.monotonic()
        while len(ready := ray.wait(loading, num_returns=len(loading), timeout=WAIT_LOG_S)[0]) < len(loading):
            logger.warning("waiting for workers: %d of %d are ready", len(ready), len(loading))
            if time.monotonic() - begin > START_S:
                raise ModelError(
                    f"{len(ready)} of {pluralize(len(loading), 'worker')} started in "
                    f"{START_S / 60:.0f} minutes; ask for fewer with `actors`, or wait until the cluster is "
                    "free"
                )
        try:
            infos = ray.get(loading)
        except RayError as error:
            detail = str(error).strip().rpartition("\n")[2]
            raise ModelError(
                f"a worker cannot start ({detail}); install deltavlm {__version__} on every machine"
            ) from error
        for info in infos:
            if isinstance(info, DeltaVLMError):
                raise info
            if problem := _difference(infos[0], info):
                raise ConfigError(f"workers differ: {problem}; install the same on all machines")
        if infos[0].version != __version__:
            raise ConfigError(f"the workers have deltavlm {infos[0].version}, this machine has {__version__}")
        for slot in self.slots:
            slot.loading = None
        smallest: ModelInfo = min(infos, key=lambda info: info.batch_size)
        return smallest


def _difference(first: ModelInfo, second: ModelInfo) -> str:
    """Difference for which two workers would answer differently; empty if there is none."""
    for name in ("version", "fingerprint", "details"):
        if getattr(first, name) != getattr(second, name):
            return f"{name} {getattr(first, name)} and {getattr(second, name)}"
    return ""
