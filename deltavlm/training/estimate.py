"""What a run would be: shapes, what is fitted, memory, steps, and time from a few measured steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import DeltaVLMError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.training import run
from deltavlm.training.changechat_dataset import ChangeChatSource
from deltavlm.training.config import Phase, TrainConfig
from deltavlm.training.distributed import machine, world
from deltavlm.training.learner import Learner, collate
from deltavlm.training.loop import Trainer, pieces
from deltavlm.training.parameter_groups import counts, lr_multipliers, named
from deltavlm.training.synthetic_dataset import draw_all

LARGEST = 200_000_000  # parameters up to which steps are measured without a GPU
PAIRS, STEPS = 4, 2  # of the measured steps; one more before them is not counted


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it is made. `missing`: why it could not be started here."""

    model: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    missing: DeltaVLMError | None
    unknown: str | None  # why no time was measured


def plan(config: TrainConfig, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Raises: ConfigError for numbers that cannot be."""
    inputs, missing = None, None
    numbers = run.model_of(config)
    try:
        inputs = run.look(config)
        numbers = inputs.model
    except DeltaVLMError as error:
        missing = error
    with torch.device("meta"):
        model = build(numbers)
        learners = {name: Learner(model, numbers, phase) for name, phase in config.phases.items()}
    phases = {name: _phase(config, name, learners[name], inputs) for name in config.phases}
    size = sum(parameter.numel() for parameter in model.parameters())
    unknown = None
    if inputs is None:
        unknown = "what it starts from is not there"
    elif size > LARGEST and not torch.cuda.is_available():
        unknown = f"a model of {size / 1e9:.1f} billion parameters is not tried without a GPU"
    else:
        try:
            _measure(config, inputs, phases, say)
        except (RuntimeError, MemoryError) as error:
            unknown = f"a step failed: {str(error).splitlines()[0]}"
    return Plan(_shapes(numbers, config), phases, missing, unknown)


def _shapes(model: DeltaVLMConfig, config: TrainConfig) -> dict[str, Any]:
    vision = model.vision
    tokens = 2 * (vision.grid**2 + vision.prefix_tokens)
    tokens += model.dense.evidence_tokens if model.dense else 0
    return {
        "name": model.name,
        "start": config.start or "fresh weights",
        "pictures": [2, 3, vision.image_px, vision.image_px],
        "image_tokens": [tokens, vision.width],
        "queries": [model.qformer.queries, model.qformer.hidden],
        "soft_prompt": [model.qformer.queries, model.language.hidden],
        "vocabulary": model.language.vocab,
    }


def _phase(config: TrainConfig, name: str, learner: Learner, inputs: run.Inputs | None) -> dict[str, Any]:
    phase = config.phases[name]
    found = lr_multipliers([known for known, _ in named(learner)], phase)
    organs = counts(learner, found)
    fitted, every = (sum(pair[place] for pair in organs.values()) for place in (0, 1))
    low = 4 if config.language_dtype == "fp32" or run.language_is_fitted(config) else 2
    language = organs["language"][1]
    parts = {
        "weights": 4 * (every - language) + low * language,
        "gradients": 4 * fitted,
        "optimiser": 8 * fitted,
        "running mean": 4 * (every if config.start is None else fitted) * bool(config.ema),
    }
    share = world.size if config.sharding == "fsdp" else 1
    return {
        "part": phase.part,
        "steps": phase.steps,
        "batch": phase.batch,
        "pieces": pieces(name, phase)[1],
        "fitted": fitted,
        "organs": {organ: {"fitted": one, "all": all_} for organ, (one, all_) in organs.items()},
        "memory_bytes": {key: value // share for key, value in parts.items()},
        "epochs": _epochs(config, phase, inputs),
        "seconds": None,
        "activation_bytes": None,
    }


def _epochs(config: TrainConfig, phase: Phase, inputs: run.Inputs | None) -> dict[str, float]:
    """How often a phase goes through each set; scenes are drawn from at random."""
    if inputs is None:
        return {}
    weights = {name: records.weight for name, records in config.sets.items()}
    total = sum(weights.values()) + (config.scenes.weight if config.scenes else 0.0)
    found = {}
    for held in inputs.sets:
        if weights[held.name]:
            source = ChangeChatSource(held.training, held.images, phase, 1, [0], still=True)
            found[held.name] = phase.steps * phase.batch * weights[held.name] / total / len(source)
    return found


def _measure(
    config: TrainConfig, inputs: run.Inputs, phases: dict[str, dict[str, Any]], say: Callable[[str], None]
) -> None:
    """Some steps of each phase, with few pairs and few scenes, in a folder that is thrown away."""
    where = machine(config)
    scenes = config.scenes
    if scenes:
        few = {
            name: min(getattr(scenes, name), PAIRS)
            for name in ("train", "validation", "far", "stormy", "rich")
        }
        scenes = replace(scenes, **few)
    with tempfile.TemporaryDirectory(prefix="deltavlm-plan-") as folder:
        out = Path(folder)
        small = replace(config, scenes=scenes, validation=None)
        if scenes:
            draw_all(scenes, out, workers=1)
        codecs = run.codecs_of(inputs, out, scenes=scenes is not None)
        for name, phase in config.phases.items():
            say(f"measuring {STEPS} steps of {name}")
            pairs = min(phase.batch, phase.micro or PAIRS, PAIRS)
            tried = replace(phase, steps=STEPS + 1, batch=pairs, micro=None)
            one = replace(small, phases={name: tried})
            learner = run.learner_of(one, name, inputs, run.start_model(config, inputs), where)
            mixture = run.mixture_of(one, name, inputs, out)
            lessons = partial(collate, phase=tried, config=inputs.model, codecs=codecs)
            trainer = Trainer(one, name, learner, mixture, lessons, where, out)
            kept = _Kept()
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
                trainer.learn(0, trainer.batch(0), shown=True)
            started = time.monotonic()
            for step in range(1, STEPS + 1):
                trainer.learn(step, trainer.batch(step), shown=True)
            each = (time.monotonic() - started) / STEPS
            phases[name]["seconds"] = each * phase.batch / pairs * phase.steps
            at_once = phase.micro or phase.batch
            phases[name]["activation_bytes"] = kept.total * at_once // pairs


class _Kept:
    """How many bytes autograd keeps for the backward pass, each storage once, weights included."""

    def __init__(self) -> None:
        self.total, self.seen = 0, set[int]()

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
