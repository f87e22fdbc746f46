"""`python -m deltavlm.training CONFIG -o DIR`: what `deltavlm train` does, for launchers of many processes.

`torchrun --nproc-per-node N -m deltavlm.training ...`, or `accelerate launch -m deltavlm.training ...`; on a
CPU one process a core with `--threads 1`.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from deltavlm.errors import DeltaVLMError
from deltavlm.training.config import load_config
from deltavlm.training.distributed import join, world
from deltavlm.training.run import train

log = logging.getLogger("deltavlm.training")

LINE_EVERY_S = 30.0


class Lines:
    """Progress as a log line now and then."""

    def __init__(self) -> None:
        self.phase, self.since, self.first, self.told = "", 0.0, 0, 0.0

    def __call__(self, phase: str, step: int, steps: int, note: str) -> None:
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.since, self.first, self.told = phase, now, step, now
        elif step == steps or (note and now - self.told >= LINE_EVERY_S):
            left = (now - self.since) / max(1, step - self.first) * (steps - step)
            log.info("%s %d/%d %s, %.0f min left", phase, step, steps, note, left / 60)
            self.told = now


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; its exit code."""
    ask = argparse.ArgumentParser(prog="python -m deltavlm.training", description=__doc__)
    ask.add_argument("config", type=Path, help="YAML of a TrainConfig, as configs/train_nano.yaml")
    ask.add_argument("-o", "--output", type=Path, required=True, help="the run's folder")
    ask.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="dotted key; repeatable")
    ask.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    ask.add_argument("--phase", help='run this phase alone; "none" only writes the model folder')
    ask.add_argument("--model-folder", type=Path, help="where the model goes (OUTPUT/model)")
    ask.add_argument("--minutes", type=float, default=math.inf, help="stop, with a checkpoint, after so many")
    ask.add_argument("--threads", type=int, help="of the CPU, in each process")
    args = ask.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    until = time.time() + args.minutes * 60
    if args.threads:
        torch.set_num_threads(args.threads)
    joined = join()
    if world.rank:
        logging.disable(logging.INFO)
    try:
        ended = train(
            load_config(args.config, args.set),
            args.output,
            resume=args.resume,
            only=args.phase,
            until=until,
            folder=args.model_folder,
            recipe=args.config.name,
            tell=Lines() if world.rank == 0 else lambda phase, step, steps, note: None,
        )
    except DeltaVLMError as error:
        if world.rank == 0:
            sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    if joined:
        dist.destroy_process_group()
    if ended.stop:
        if world.rank == 0:
            sys.stderr.write(f"{ended.told(args.output)}\n")
        return 128 + ended.stop.signum if ended.stop.signum else 0
    if ended.folder and ended.calibration:
        fit = ended.calibration
        log.info("wrote %s; P(yes) = sigmoid(%.3f margin %+.3f)", ended.folder, fit.scale, fit.offset)
    return 0


if __name__ == "__main__":
    sys.exit(main())
