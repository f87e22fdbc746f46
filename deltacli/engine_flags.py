"""Where the work of `analyze` is done: in this process, or on many machines by Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltacli import parsing
from deltacli.console import console, pluralize
from deltacli.flag_groups import ModelFlags, RasterFlags
from deltacli.options import flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.pipeline.analyze import Engine

MACHINES = "Many machines"  # a group of flags in the help


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Where chips are read and asked."""

    engine: Annotated[
        Literal["local", "ray"],
        flag(
            "--engine",
            panel=MACHINES,
            help="ray: on a Ray cluster, with the same answers; needs pip install 'deltavlm[ray]'.",
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        flag(
            "--ray-address",
            panel=MACHINES,
            metavar="auto|HOST:PORT",
            show_default="RAY_ADDRESS, else this machine alone",
            help="The cluster.",
        ),
    ] = None
    actors: Annotated[
        int | None,
        flag(
            "--actors",
            panel=MACHINES,
            metavar="N",
            min=1,
            show_default="one a GPU, else as many as fit",
            help="Processes that hold a model.",
        ),
    ] = None
    actor_cpus: Annotated[
        int | None,
        flag(
            "--actor-cpus",
            panel=MACHINES,
            metavar="N",
            min=1,
            show_default="1 beside a GPU, else 4",
            help="CPUs of each, and the threads of its model.",
        ),
    ] = None

    def check(self) -> None:
        """Raises: BadParameter or ConfigError where the flags do not go together, or Ray is missing."""
        if self.engine == "local":
            for name in ("ray_address", "actors", "actor_cpus"):
                if getattr(self, name) is not None:
                    word = f"--{name.replace('_', '-')}"
                    raise typer.BadParameter(
                        "is for --engine ray; add that, or leave it out", param_hint=word
                    )
            return
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise ConfigError(
                "--engine ray: Ray is not installed; pip install 'deltavlm[ray]', also on the workers"
            )

    @contextmanager
    def started(self, asked: ModelFlags, rasters: RasterFlags) -> Iterator[tuple[Engine, float]]:
        """The engine with its model loaded, and how many seconds that took; says which it is."""
        if self.engine == "local":
            from deltavlm.pipeline.analyze import Here

            model, load_s = asked.load()
            yield Here(model), load_s
            return
        from deltavlm.cluster.session import started
        from deltavlm.cluster.worker import loaded

        began = time.monotonic()
        runtime = asked.runtime_options()
        with started(
            partial(loaded, asked.model, runtime),
            address=self.ray_address,
            actors=self.actors,
            actor_cpus=self.actor_cpus,
            device=runtime.device,
            environment=parsing.parse_gdal_config(rasters.gdal_config),
        ) as cluster:
            load_s, known = time.monotonic() - began, cluster.model
            console.info(
                f"model {known.name} ({known.fingerprint}) on {known.device}, held by "
                f"{pluralize(len(cluster.actors), 'actor')}, ready in {load_s:.1f} s"
            )
            yield cluster, load_s
