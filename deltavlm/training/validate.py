"""How a model does on what it is not trained on: losses, and answers scored as by `deltavlm eval`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from deltavlm.model.config import Calibration, DeltaVLMConfig
from deltavlm.model.predictor import Predictor
from deltavlm.model.tokenizer import Codec
from deltavlm.scoring.inference import predict_batches
from deltavlm.scoring.predictions import Prediction, match
from deltavlm.scoring.score import Setup, score
from deltavlm.scoring.synthetic import predict_scenes, score_scenes
from deltavlm.training.changechat_dataset import ChangeChatSource, Split
from deltavlm.training.config import ASKING, TrainConfig
from deltavlm.training.distributed import Machine, world
from deltavlm.training.learner import Learner, collate
from deltavlm.training.sampling import stacked
from deltavlm.training.stop_signals import StopRequest
from deltavlm.training.synthetic_dataset import ValidationScenes

log = logging.getLogger(__name__)

TALLIES = ("tp", "fp", "fn", "tn")


class Validator:
    """Figures of one phase by name: SOURCE.loss.NAME, and SOURCE.TASK.GROUP.METRIC of answers."""

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        model: DeltaVLMConfig,
        codecs: tuple[Codec, Codec],
        machine: Machine,
        sets: Sequence[Split],
        out: Path,
    ) -> None:
        assert config.validation is not None
        self.plan, self.phase = config.validation, config.phases[name]
        self.model, self.codecs, self.machine, self.out = model, codecs, machine, out
        self.sets = [held for held in sets if held.held_out]
        still = replace(self.phase, crop_px=None)
        size = model.vision.image_px
        self.sources: dict[str, ValidationScenes | ChangeChatSource] = {}
        if config.scenes:
            self.sources["scenes"] = ValidationScenes(out, still, size)
        if self.phase.part != "vision":
            for held in self.sets:
                cases = held.held_out[: self.plan.pairs]
                self.sources[held.name] = ChangeChatSource(cases, held.images, still, size, [0], still=True)
        self.asks = self.plan.answers and self.phase.part in ASKING
        if self.asks and machine.sharding == "fsdp" and world.size > 1:
            self.asks = False
            log.warning("fsdp: validation has losses only; score the model folder with deltavlm eval")
        self.noted: set[str] = set()

    def __call__(self, learner: Learner, stop: StopRequest) -> dict[str, float] | None:
        found: dict[str, float] = {}
        for name, source in self.sources.items():
            found |= self.losses(learner, name, source)
        if self.asks:
            model = Predictor(
                learner.model,
                replace(self.model, calibration=Calibration()),
                *self.codecs,
                str(self.machine.device),
                "training",
            )
            with self.machine.exact():
                found |= self.answers(model, stop)
        if any(world.objects(stop.wanted)):
            stop.wanted = True
            return None
        first: dict[str, float] = world.objects(found)[0]
        return {name: value for name, value in first.items() if math.isfinite(value)}  # of nothing: no figure

    @torch.no_grad()
    def losses(
        self, learner: Learner, name: str, source: ValidationScenes | ChangeChatSource
    ) -> dict[str, float]:
        """Mean losses over at most `pairs` samples, evenly taken."""
        number = min(self.plan.pairs, len(source)) // world.size * world.size
        each = max(1, self.phase.micro or self.phase.batch // world.size)
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for start in range(0, number, each * world.size):
            share = min(each, (number - start) // world.size)
            first = start + world.rank * share
            samples = [source.sample(at * len(source) // number) for at in range(first, first + share)]
            lesson = collate(stacked(samples, noise=start), self.phase, self.model, self.codecs)
            with self.machine.exact():
                found = learner(lesson.to(self.machine.device))
            for key, value in found.items():
                sums[key] = sums.get(key, 0.0) + value.item()
                counts[key] = counts.get(key, 0.0) + lesson.counts[key]
        keys = sorted(sums)
        total = world.summed([*(sums[k] for k in keys), *(counts[k] for k in keys)], self.machine.device)
        means = [a / b for a, b in zip(total[: len(keys)], total[len(keys) :], strict=True)]
        return {
            f"{name}.{key}" if key == "recall_at_1" else f"{name}.loss.{key}": mean
            for key, mean in zip(keys, means, strict=True)
        }

    def answers(self, model: Predictor, stop: StopRequest) -> dict[str, float]:
        """Figures of the questions asked: of the validation scenes by the first process, of sets by all."""
        found: dict[str, float] = {}
        if "scenes" in self.sources and world.rank == 0:
            told = score_scenes(*predict_scenes(model, self.out / "validation", limit=self.plan.pairs))
            found |= {f"scenes.{key}": float(value) for key, value in told.items() if key != "pairs"}
        for held in self.sets:
            cases = held.held_out[: self.plan.pairs]
            mine: list[Prediction] = []
            for predictions, problems in predict_batches(
                model, cases[world.rank :: world.size], held.images, batch_size=16
            ):
                mine += predictions
                for problem in problems:
                    self.note(problem.message)
                if stop.wanted:
                    break
            every = [one for part in world.objects(mine) for one in part]
            if world.rank == 0 and not stop.wanted:
                found |= self.scored(held, every)
        return found

    def scored(self, held: Split, predictions: Sequence[Prediction]) -> Mapping[str, float]:
        examples = [example for case in held.held_out[: self.plan.pairs] for example in case.examples]
        tasks = tuple(dict.fromkeys(example.task for example in examples))
        setup = Setup(bootstrap_rounds=0, with_published=False)
        result = score(match(examples, predictions).pairs, tasks, setup)
        for line in result.notes:
            self.note(line)
        return {
            ".".join((held.name, one.task, one.group, one.metric))
            .replace(", ", "_")
            .replace(" ", "_"): one.value
            for one in result.metrics
            if one.metric not in TALLIES and "always empty" not in one.group
        }

    def note(self, text: str) -> None:
        """A warning, once."""
        if text not in self.noted:
            self.noted.add(text)
            log.warning("validation: %s", text)
