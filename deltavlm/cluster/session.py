"""Connection to a Ray cluster, or a local one, for the duration of a run."""

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
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.cluster.engine import ClusterEngine
    from deltavlm.cluster.worker import LoadModel

__all__ = ["start_cluster"]

CPUS_PER_ACTOR = 4  # of an actor without a GPU, where there are as many
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_LOCAL_TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # of a cluster for this run only
_JOIN = {"RAY_gcs_server_port_wait_time_s": "2"}  # tries; each takes 40 s where a server does not answer
LOCAL = "local"
CONNECT_S = 10.0


@contextmanager
def start_cluster(
    load_model: LoadModel,
    *,
    address: str | None = None,
    actors: int | None = None,
    actor_cpus: int | None = None,
    device: str = "auto",
    environment: dict[str, str] | None = None,
) -> Iterator[ClusterEngine]:
    """Start an engine on the cluster at `address`, at $RAY_ADDRESS, or else on a local cluster.

    By default an actor for each GPU, with one CPU; without GPUs, or with a CPU as device, one for every four
    CPUs. `environment`: variables of readers and actors.

    Raises:
        ConfigError: there is no cluster, or it lacks the resources.
        ModelError: a worker cannot start.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    _check_reachable(address)
    with _connected(address):
        import ray

        from deltavlm.cluster.actors import ActorPool, ActorResources
        from deltavlm.cluster.engine import ClusterEngine

        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        on_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
        if on_gpu and not gpus:
            raise ConfigError(
                f"`device='{device}'`: the cluster has no GPU; omit it, or add machines that have some"
            )
        cpus_each = actor_cpus or (1 if on_gpu else min(CPUS_PER_ACTOR, max(1, cpus)))
        count = actors or (gpus if on_gpu else max(1, cpus // cpus_each))
        if address == LOCAL and (count * cpus_each > cpus or (on_gpu and count > gpus)):
            gpu = " and a GPU" if on_gpu else ""
            request = f"{pluralize(count, 'actor')} of {pluralize(cpus_each, 'CPU')}{gpu}"
            raise ConfigError(
                f"no room for {request} on this machine ({pluralize(cpus, 'CPU')}, "
                f"{pluralize(gpus, 'GPU')}); ask for fewer with `actors`, or name a "
                "cluster with `ray_address`"
            )
        per_actor = ActorResources(cpus_each, int(on_gpu), environment or {})
        yield ClusterEngine(ActorPool(load_model, per_actor, count))


def set_ray_environment(address: str) -> None:
    """Set variables that Ray reads when it is imported, unless they are set already."""
    if "ray" not in sys.modules:
        for name, value in (_QUIET | (_LOCAL_TOKEN if address == LOCAL else _JOIN)).items():
            os.environ.setdefault(name, value)


def _check_reachable(address: str) -> None:
    """Check the port first, since Ray waits for minutes. Raises: ConfigError."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"`ray_address='{address}'`: Ray's client is not supported; run on a machine of the cluster"
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"`ray_address='{address}'`: no cluster there ({error}); is it started?") from error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Raises: ConfigError where there is nothing to connect to."""
    set_ray_environment(address)

    import ray

    before = signal.getsignal(signal.SIGTERM)
    local_options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            **local_options,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        detail = str(error).strip().partition("\n")[0].rstrip(".:")
        if address == LOCAL:
            raise ToolError(
                f"Ray cannot be started here ({detail}); `engine='local'` does not need it"
            ) from error
        raise ConfigError(
            f"`ray_address='{address}'`: no cluster answers ({detail}); is it started, "
            "and has this machine its token (RAY_AUTH_MODE)?"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray installs one that exits without cleanup
    try:
        yield
    finally:
        ray.shutdown()
