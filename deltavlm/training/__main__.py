"""`python -m deltavlm.training CONFIG OUT --export FOLDER`: draws scenes, runs the phases in order, writes a
model folder.

Run it again after an interruption: it goes on from the last checkpoint. Several processes share the work with
`torchrun --nproc-per-node 2 -m deltavlm.training ...`: on a CPU, one a core with `--threads 1`.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from deltavlm.config import load, shipped
from deltavlm.data.batches import lesson
from deltavlm.data.synthetic.cache import (
    FAR_SEED,
    STORMY_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    draw_cache,
    open_cache,
)
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.model.folder import TOKENIZER
from deltavlm.model.tokenizer import Codec, load_codec, train_codec
from deltavlm.training.config import Scenes, TrainConfig
from deltavlm.training.export import export
from deltavlm.training.loop import Trainer, parameters
from deltavlm.wording import normalise

log = logging.getLogger("deltavlm.training")


def corpus(cache: Path, limit: int = 6000) -> list[str]:
    """Every prompt and answer of some scenes, normalised."""
    _, truth = open_cache(cache)
    rng, said = np.random.default_rng(0), []
    for change, things, cover in truth[:limit]:
        for prompt, answer in lesson(rng, facts_of(change, things, cover), extra=2.0):
            said += [normalise(f"q {prompt}"), normalise(answer)]
    return said


def prepare(scenes: Scenes, out: Path) -> None:
    """Draws what is not drawn yet."""
    draw = partial(draw_cache, size_px=scenes.size_px)
    draw(out / "scenes", scenes.train, seed=TRAIN_SEED, change=scenes.change)
    draw(out / "validation", scenes.validation, seed=VALIDATION_SEED, change=scenes.change)
    if scenes.far:
        draw(out / "far", scenes.far, seed=FAR_SEED, change=scenes.change, reduce=2)
    if scenes.stormy:
        draw(out / "stormy", scenes.stormy, seed=STORMY_SEED, change=0.5, strength=2.0)


def codec_of(config: DeltaVLMConfig, out: Path) -> Codec:
    path = out / TOKENIZER
    if path.exists():
        return load_codec(path)
    return train_codec(corpus(out / "scenes"), config.language.vocab, path)


def main() -> None:
    ask = argparse.ArgumentParser(prog="python -m deltavlm.training", description=__doc__)
    ask.add_argument("config", type=Path, help="YAML of a TrainConfig, as configs/train_nano.yaml")
    ask.add_argument("out", type=Path, help="folder for caches, checkpoints and the result")
    ask.add_argument("--phase", help='run this phase alone; "none" only exports')
    ask.add_argument("--export", type=Path, help="at the end, write a model folder from the last phase")
    ask.add_argument(
        "--minutes", type=float, default=math.inf, help="stop (with a checkpoint) after so many minutes"
    )
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = ask.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    until = time.time() + args.minutes * 60
    torch.set_num_threads(args.threads)
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("gloo")
    config = load(args.config, TrainConfig)
    model_config = load(shipped(f"{config.model}.yaml"), DeltaVLMConfig)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        prepare(config.scenes, args.out)
        codec_of(model_config, args.out)
    if dist.is_initialized():
        dist.barrier()
    codec = codec_of(model_config, args.out)
    before: str | None = None
    for name, phase in config.phases.items():
        if args.phase in (None, name):
            torch.manual_seed(config.seed)
            model = build(model_config).to(memory_format=torch.channels_last)
            if before:
                model.load_state_dict(torch.load(args.out / f"{before}.pt", weights_only=True)["mean"])
            trainer = Trainer(config, model_config, model, codec, args.out)
            log.info(
                "%s: %.1f M parameters fitted",
                name,
                sum(p.numel() for p in set(parameters(model, phase.part))) / 1e6,
            )
            if not trainer.run(name, until=until):
                break
        before = name
    if args.export and first:
        found = export(args.out, name, model_config, args.export, args.config.name)
        log.info("wrote %s; P(yes) = sigmoid(%.3f margin %+.3f)", args.export, found.scale, found.offset)


if __name__ == "__main__":
    main()
