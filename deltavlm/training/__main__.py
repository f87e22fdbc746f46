"""Command for launchers of several processes: `torchrun -m deltavlm.training CONFIG -o DIR`.

The same as `deltavlm train`: `torchrun --nproc-per-node N -m deltavlm.training ...`, or `accelerate launch -m
deltavlm.training ...`; on a CPU one process per core with `--threads 1`.
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
from deltavlm.files.stderr import drop_what_stderr_refuses
from deltavlm.training.config import load_config
from deltavlm.training.distributed import init_process_group, world
from deltavlm.training.run import RunOptions, ignore_progress, train

log = logging.getLogger("deltavlm.training")

LINE_EVERY_S = 30.0


class ProgressLog:
    """Progress callback that logs a line with the remaining time, at most every 30 s."""

    def __init__(self) -> None:
        self.phase, self.started, self.first_step, self.last_line = "", 0.0, 0, 0.0

    def __call__(self, phase: str, step: int, steps: int, note: str) -> None:
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.started, self.first_step, self.last_line = phase, now, step, now
        elif step == steps or (note and now - self.last_line >= LINE_EVERY_S):
            remaining = (now - self.started) / max(1, step - self.first_step) * (steps - step)
            log.info("%s %d/%d %s, %.0f min left", phase, step, steps, note, remaining / 60)
            self.last_line = now


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deltavlm.training", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML of a run, such as configs/train_nano.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="dotted key; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="resume the run in the folder")
    parser.add_argument("--phase", help='train this phase alone; "none" only exports the model')
    parser.add_argument("--model-folder", type=Path, help="folder of the exported model (OUTPUT/model)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so many, with a checkpoint"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    args = parser.parse_args(arguments)
    drop_what_stderr_refuses()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = RunOptions(
        resume=args.resume,
        only=args.phase,
        until=time.time() + args.minutes * 60,
        model_folder=args.model_folder,
        recipe=args.config.name,
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    has_launcher = init_process_group()
    if world.rank:
        logging.disable(logging.INFO)
    try:
        config = load_config(args.config, args.set)
        result = train(config, args.output, options, ProgressLog() if world.rank == 0 else ignore_progress)
    except DeltaVLMError as error:
        if world.rank == 0:
            sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    if has_launcher:
        dist.destroy_process_group()
    if result.stop:
        if world.rank == 0:
            sys.stderr.write(f"{result.stop_message(args.output)}\n")
        return 128 + result.stop.signum if result.stop.signum else 0
    if result.model_folder:
        fit = result.calibration
        scores = f"; P(yes) = sigmoid({fit.scale:.3f} margin {fit.offset:+.3f})" if fit else ""
        log.info("wrote %s%s", result.model_folder, scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
