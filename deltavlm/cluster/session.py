"""A connection to a Ray cluster, or a small one of this machine, for the time of a run."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deltavlm.errors import ConfigError, ToolError

if TYPE_CHECKING:
    from deltavlm.cluster.engine import Cluster
    from deltavlm.cluster.worker import Load

__all__ = ["started"]

CPUS = 4  # of an actor without a GPU, where there are as many
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_OWN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of a cluster for this run alone
LOCAL = "local"
CONNECT_S = 10.0


@contextmanager
def started(
    load: Load,
    *,
    address: str | None = None,
    actors: int | None = None,
    actor_cpus: int | None = None,
    device: str = "auto",
    environment: dict[str, str] | None = None,
) -> Iterator[Cluster]:
    """An engine on the cluster at `address`, at $RAY_ADDRESS, or else on one of this machine alone.

    Without numbers: an actor for each GPU, with a CPU; where there are none, or the device is a CPU, one for
    every four CPUs. `environment`: variables that readers and actors get.

    Raises:
        ConfigError: there is no cluster, or it has not what is asked for.
        ModelError: a worker cannot begin.
    """
    place = address or os.environ.get("RAY_ADDRESS") or LOCAL
    _check_reachable(place)
    with _connected(place):
        import ray

        from deltavlm.cluster.actors import Actors, Needs
        from deltavlm.cluster.engine import Cluster

        there = ray.cluster_resources()
        cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
        on_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
        if on_gpu and not gpus:
            raise ConfigError(
                f"--device {device}: the cluster has no GPU; leave it out, or join machines with some"
            )
        each = actor_cpus or (1 if on_gpu else min(CPUS, max(1, cpus)))
        count = actors or (gpus if on_gpu else max(1, cpus // each))
        if place == LOCAL and (count * each > cpus or (on_gpu and count > gpus)):
            what = f"{count} actors of {each} CPUs{' and a GPU' if on_gpu else ''}"
            raise ConfigError(
                f"{what} do not fit on this machine ({cpus} CPUs, {gpus} GPUs); give fewer by --actors, or "
                "--ray-address of a cluster"
            )
        yield Cluster(Actors(load, Needs(each, int(on_gpu), environment or {}), count))


def settle(place: str) -> None:
    """Variables that Ray reads when it is imported; those that are set stay."""
    if "ray" not in sys.modules:
        for name, value in (_QUIET | (_OWN if place == LOCAL else {})).items():
            os.environ.setdefault(name, value)


def _check_reachable(place: str) -> None:
    """Ray itself waits for minutes. Raises: ConfigError."""
    if place.startswith("ray://"):
        raise ConfigError(
            f"--ray-address {place}: Ray's client is not supported; run on a machine of the cluster"
        )
    host, colon, port = place.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"--ray-address {place}: no cluster there ({error}); is it started?") from error


@contextmanager
def _connected(place: str) -> Iterator[None]:
    """Raises: ConfigError where there is nothing to connect to."""
    settle(place)

    import ray

    before = signal.getsignal(signal.SIGTERM)
    own = {"include_dashboard": False} if place == LOCAL else {}
    try:
        ray.init(
            address=place,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        detail = str(error).strip().partition("\n")[0].rstrip(".:")
        if place == LOCAL:
            raise ToolError(f"Ray cannot be started here ({detail}); --engine local needs none") from error
        raise ConfigError(
            f"--ray-address {place}: no cluster answers ({detail}); is it started, "
            "and has this machine its token (RAY_AUTH_MODE)?"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there, which ends without cleaning up
    try:
        yield
    finally:
        ray.shutdown()
