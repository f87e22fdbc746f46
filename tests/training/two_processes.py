"""Run by torchrun or alone: a few steps of each kind at one total batch, whole and sharded."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from deltavlm.training import run
from deltavlm.training.config import Phase, Records, TrainConfig, Validation
from deltavlm.training.distributed import join, world
from tests.seven import SEVEN


class Killed(Exception):
    pass


def kill(phase: str, step: int, steps: int, note: str) -> None:
    """Ends a run one step behind a checkpoint."""
    if phase == "tune" and step == 3:
        raise Killed


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    join()
    run.shipped = lambda name: name  # type: ignore[assignment]
    run.load = lambda name, kind: SEVEN  # type: ignore[assignment]
    phases = {
        "align": Phase(part="align", steps=3, batch=4, lr=1e-3, warmup=1, cut=0.05, turn_deg=15.0),
        "tune": Phase(part="instruct", steps=3, batch=8, micro=2, lr=1e-3, warmup=1, balance="token"),
    }
    config = TrainConfig(
        model="seven",
        start=str(folder / "fresh"),
        fresh=("difference",),
        sets={"eight": Records(folder / "set", held_out=2)},
        phases=phases,
        precision="fp32",
        device="cpu",
        log_every=1,
        checkpoint_every=2,
        validation=Validation(every=3, metric="eight.caption.all.bleu_4"),
    )
    ways = ("ddp", "fsdp") if world.size > 1 else ("ddp",)
    for way in ways:
        # answers are scored from weights that lie whole in each process, so not under fsdp
        plan = (
            replace(config.validation, metric=None)
            if way == "fsdp" and config.validation
            else config.validation
        )
        mine = replace(config, sharding=way, validation=plan)  # type: ignore[arg-type]
        if world.size == 1:
            run.train(mine, out / way)
            continue
        with suppress(Killed):
            run.train(mine, out / way, tell=kill)
        run.train(mine, out / way, resume=True)
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
