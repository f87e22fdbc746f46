"""`python -m deltavlm.training CONFIG OUT --export FOLDER`: draws scenes, runs the phases in order, writes a
model folder.

Phases "vision" and "language" do not need each other: two processes may run one each (`--phase NAME`) on
one core each. Run it again after an interruption: it goes on from the last checkpoint. Several processes
share a phase with `torchrun --nproc-per-node 2 -m deltavlm.training ...`.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from deltavlm.config import load, shipped
from deltavlm.data.batches import lesson
from deltavlm.data.synthetic.cache import TRAIN_SEED, VALIDATION_SEED, draw_cache, open_cache
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model import checkpoint
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.tokenizer import Codec, load_codec, train_codec
from deltavlm.training.config import TrainConfig
from deltavlm.training.export import export
from deltavlm.training.loop import Trainer, parameters
from deltavlm.wording import normalise

log = logging.getLogger("deltavlm.training")


def corpus(cache: Path, limit: int = 6000) -> list[str]:
    """Every prompt and answer of some scenes, normalised."""
    _, truth = open_cache(cache)
    rng, said = np.random.default_rng(0), []
    for change, things, cover in truth[:limit]:
        for prompt, answer in lesson(rng, facts_of(change, things, cover), extra=1.0):
            said += [normalise(f"q {prompt}"), normalise(answer)]
    return said


def codec_of(config: DeltaVLMConfig, cache: Path, out: Path) -> Codec:
    path = out / checkpoint.TOKENIZER
    return load_codec(path) if path.exists() else train_codec(corpus(cache), config.language.vocab, path)


def merge(model: DeltaVLM, out: Path, done: list[tuple[str, str]]) -> None:
    """Takes from each finished phase (name, part) the averaged weights of what it fitted."""
    for name, part in done:
        mean = torch.load(out / f"{name}.pt", weights_only=True)["mean"]
        state = model.state_dict()
        prefixes = {
            "vision": ("vision.", "difference.", "dense."),
            "language": ("qformer.", "projection.", "language."),
        }
        shared = ("dense.totals", "dense.place", "dense.norm")  # evidence: fitted with the language
        for key, tensor in mean.items():
            own = key.startswith(prefixes.get(part, ("",)))
            evidence = key.startswith(shared)
            if part == "joint" or (own and not evidence) or (evidence and part == "language"):
                state[key].copy_(tensor)


def main() -> None:
    ask = argparse.ArgumentParser(prog="python -m deltavlm.training", description=__doc__)
    ask.add_argument("config", type=Path, help="YAML of a TrainConfig, as configs/train_nano.yaml")
    ask.add_argument("out", type=Path, help="folder for caches, checkpoints and the result")
    ask.add_argument("--phase", help='run this phase alone; "none" only exports')
    ask.add_argument("--export", type=Path, help="at the end, write a model folder from the last joint phase")
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
    scenes, cache = config.scenes, args.out / "scenes"
    draw_cache(cache, scenes.train, seed=TRAIN_SEED, size_px=scenes.size_px, change=scenes.change)
    draw_cache(
        args.out / "validation",
        scenes.validation,
        seed=VALIDATION_SEED,
        size_px=scenes.size_px,
        change=scenes.change,
    )
    codec = codec_of(model_config, cache, args.out)
    done: list[tuple[str, str]] = []
    for name, phase in config.phases.items():
        if args.phase in (None, name):
            torch.manual_seed(config.seed)
            model = build(model_config).to(memory_format=torch.channels_last)
            if phase.part == "joint":
                merge(model, args.out, done)
            trainer = Trainer(config, model_config, model, codec, cache, args.out)
            log.info(
                "%s: %.1f M parameters fitted",
                name,
                sum(p.numel() for p in set(parameters(model, phase.part))) / 1e6,
            )
            if not trainer.run(name, until=until):
                break
        done.append((name, phase.part))
    joint = [name for name, phase in config.phases.items() if phase.part == "joint"][-1]
    if args.export and (not dist.is_initialized() or dist.get_rank() == 0):
        found = export(args.out, joint, model_config, args.export, args.config.name)
        log.info("wrote %s; P(yes) = sigmoid(%.3f margin %+.3f)", args.export, found.scale, found.offset)


if __name__ == "__main__":
    main()
