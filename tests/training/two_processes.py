"""Script for a launcher or a single process: a few steps with DDP and FSDP at one global batch size."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from deltavlm.training import build, run
from deltavlm.training.config import Phase, RecordSet, TrainConfig, Validation
from deltavlm.training.distributed import init_process_group, world
from tests.seven import SEVEN


class Killed(Exception):
    """Stand-in for a signal."""


def kill(phase: str, step: int, steps: int, note: str) -> None:
    """Progress callback that ends a run one step after a checkpoint."""
    if phase == "tune" and step == 3:
        raise Killed


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    init_process_group()
    build.shipped_config = lambda name, key: name  # type: ignore[assignment]
    build.load = lambda name, kind: SEVEN  # type: ignore[assignment]
    phases = {
        "align": Phase(part="align", steps=3, batch=4, lr=1e-3, warmup=1, cut=0.05, turn_deg=15.0),
        "tune": Phase(part="instruct", steps=3, batch=8, micro=2, lr=1e-3, warmup=1, balance="token"),
    }
    config = TrainConfig(
        model="seven",
        start=str(folder / "fresh"),
        fresh=("difference",),
        sets={"eight": RecordSet(folder / "set", held_out=2)},
        phases=phases,
        precision="fp32",
        device="cpu",
        log_every=1,
        checkpoint_every=2,
        validation=Validation(every=3, metric="eight.caption.all.bleu_4"),
    )
    for sharding in ("ddp", "fsdp") if world.size > 1 else ("ddp",):
        # with FSDP, answers are not scored, for no process has all weights
        plan = config.validation
        if sharding == "fsdp" and plan:
            plan = replace(plan, metric=None)
        sharded = replace(config, sharding=sharding, validation=plan)  # type: ignore[arg-type]
        if world.size == 1:
            run.train(sharded, out / sharding)
            continue
        with suppress(Killed):
            run.train(sharded, out / sharding, on_progress=kill)
        run.train(sharded, out / sharding, run.RunOptions(resume=True))
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
