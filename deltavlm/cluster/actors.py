"""The processes that hold a model each: begun, agreed with each other, begun again when one has died."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from deltavlm.cluster.worker import Asker, Known, Load
from deltavlm.errors import ConfigError, DeltaVLMError, ModelError
from deltavlm.version import __version__

__all__ = ["AGAIN", "Actor", "Actors", "Needs"]

logger = logging.getLogger(__name__)

AGAIN = 2  # times that a thing is tried again of which a worker has died
TELL_S = 30.0  # how often it is told that actors are waited for
FLYING = 3  # groups an actor: one is asked, one waits behind it, one is done and waits for its turn


@dataclass(frozen=True, slots=True)
class Needs:
    """What each actor is given."""

    cpus: int
    gpus: int = 0
    environment: dict[str, str] = field(default_factory=dict)  # variables, such as GDAL's settings


@dataclass(eq=False, slots=True)
class Actor:
    """A place for an actor, whichever is in it now."""

    handle: Any
    begun: Any = None  # while its model is being loaded: what it will say of it
    deaths: int = 0  # in a row, before it was ready


class Actors:
    """The actors of a run."""

    def __init__(self, load: Load, needs: Needs, count: int) -> None:
        self.load = load
        self.needs = needs
        self.places = [Actor(None) for _ in range(count)]
        for place in self.places:
            self.revive(place)
        self.most_flying = FLYING * count  # groups that are on their way at once
        self.known = self._agreed()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def environment(self) -> dict[str, Any]:
        """The variables of workers in Ray's words."""
        variables = self.needs.environment
        return {"runtime_env": {"env_vars": variables}} if variables else {}

    def revive(self, place: Actor) -> None:
        """Put a new actor there; it is ready when it has loaded its model."""
        actor = ray.remote(
            num_cpus=self.needs.cpus,
            num_gpus=self.needs.gpus,
            max_restarts=0,  # by us: which chips it died of is to be known
            scheduling_strategy="SPREAD",
            **self.environment,
        )(Asker)
        place.handle = actor.remote(self.load, self.needs.cpus)
        place.begun = place.handle.begin.remote()

    def ready(self) -> list[Actor]:
        """Those that can be asked; waits until there is one. Raises: ModelError where all are gone."""
        while True:
            for place in [place for place in self.places if place.begun is not None]:
                if ray.wait([place.begun], timeout=0)[0]:
                    self._welcome(place)
            if not self.places:
                raise ModelError("every worker has died; what was answered is kept")
            found = [place for place in self.places if place.begun is None]
            if found:
                return found
            if not ray.wait([place.begun for place in self.places], timeout=TELL_S)[0]:
                logger.warning("no worker is ready; waiting for one")

    def _welcome(self, place: Actor) -> None:
        """A new actor instead of one that died has loaded its model, or has not."""
        try:
            found = ray.get(place.begun)
            trouble = str(found) if isinstance(found, DeltaVLMError) else _difference(self.known, found)
        except RayError as error:
            place.deaths += 1
            if place.deaths <= AGAIN:
                self.revive(place)
                return
            trouble = type(error).__name__
        if trouble:
            self.places.remove(place)
            logger.warning("a worker is not replaced, %d are left: %s", len(self.places), trouble)
        else:
            place.begun, place.deaths = None, 0

    def _agreed(self) -> Known:
        """What the model is, when all have loaded it.

        Raises: the error of the first that cannot load it; ModelError where a worker does not begin;
        ConfigError where workers have different models or versions.
        """
        begun = [place.begun for place in self.places]
        while len(ready := ray.wait(begun, num_returns=len(begun), timeout=TELL_S)[0]) < len(begun):
            logger.warning("waiting for workers: %d of %d are ready", len(ready), len(begun))
        try:
            found = ray.get(begun)
        except RayError as error:
            detail = str(error).strip().rpartition("\n")[2]
            raise ModelError(
                f"a worker cannot begin ({detail}); install deltavlm {__version__} on every machine"
            ) from error
        for one in found:
            if isinstance(one, DeltaVLMError):
                raise one
            if trouble := _difference(found[0], one):
                raise ConfigError(f"workers differ: {trouble}; install the same on all machines")
        if found[0].version != __version__:
            raise ConfigError(f"the workers have deltavlm {found[0].version}, and here is {__version__}")
        for place in self.places:
            place.begun = None
        known: Known = min(found, key=lambda one: one.batch_size)
        return known


def _difference(one: Known, other: Known) -> str:
    """What two workers would answer differently for; empty where there is nothing."""
    for name in ("version", "fingerprint", "details"):
        if getattr(one, name) != getattr(other, name):
            return f"{name} {getattr(one, name)} and {getattr(other, name)}"
    return ""
