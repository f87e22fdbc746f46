"""Script for torchrun or a single process: an adapter of a model hf:..., killed and resumed."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from deltavlm.training import run
from deltavlm.training.config import Adapter, RecordSet
from deltavlm.training.distributed import init_process_group, world
from tests.training.made_pairs import PHASE, recipe
from tests.training.two_processes import Killed, kill


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    init_process_group()
    config = recipe(
        folder,
        phases={"tune": replace(PHASE, steps=4, batch=8, micro=2)},
        adapter=Adapter(rank=4, alpha=8, dropout=0.0),  # dropout is drawn in each process
        sets={"made": RecordSet(folder / "set")},
        log_every=1,
        checkpoint_every=2,
    )
    if world.size > 1:
        with suppress(Killed):
            run.train(config, out, on_progress=kill)
    run.train(config, out, run.RunOptions(resume=world.size > 1))
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
