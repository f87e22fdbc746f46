"""Validation on held-out data: losses, and scores of the answers as `deltavlm eval` computes them."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from deltavlm.model.config import Calibration
from deltavlm.model.interface import ChangeModel
from deltavlm.model.predictor import Predictor
from deltavlm.model.tokenizer import Codec
from deltavlm.scoring.inference import predict_batches
from deltavlm.scoring.predictions import Prediction, match
from deltavlm.scoring.score import Setup, score
from deltavlm.scoring.synthetic import predict_scenes, score_scenes
from deltavlm.training.build import RunInputs
from deltavlm.training.changechat_dataset import ChangeChatSource, Split
from deltavlm.training.collate import collate
from deltavlm.training.config import ANSWERING, Phase, TrainConfig, Validation
from deltavlm.training.distributed import Machine, world
from deltavlm.training.learner import Learner
from deltavlm.training.loop import StepBatch
from deltavlm.training.sampling import stack_samples
from deltavlm.training.stop_signals import StopRequest
from deltavlm.training.synthetic_dataset import ValidationScenes

log = logging.getLogger(__name__)

CONFUSION_COUNTS = ("tp", "fp", "fn", "tn")
BATCH_SIZE = 16  # pairs whose answers are generated together


class ValidationSource(Protocol):
    """Samples of held-out data."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Any:
        """Sample of an index below the length."""
        ...


class BaseValidator(ABC):
    """Validation of one phase: metrics of a learner, SOURCE.loss.NAME and SOURCE.TASK.GROUP.METRIC."""

    plan: Validation
    phase: Phase
    machine: Machine
    splits: Sequence[Split]  # with the held-out pairs that are used
    sources: Mapping[str, ValidationSource]
    asks_questions: bool

    def __init__(self, config: TrainConfig, name: str, splits: Sequence[Split], machine: Machine) -> None:
        assert config.validation is not None
        self.plan, self.phase, self.machine = config.validation, config.phases[name], machine
        self.splits = [
            replace(split, held_out=split.held_out[: self.plan.pairs]) for split in splits if split.held_out
        ]
        self.logged_warnings: set[str] = set()

    @abstractmethod
    def make_batch(self, samples: Sequence[Any], noise_seed: int) -> StepBatch:
        """Batch of samples, with the same noise each time."""

    @abstractmethod
    def answering_model(self, learner: Any) -> ChangeModel:
        """Model of a learner as it is asked questions."""

    def __call__(self, learner: Any, stop: StopRequest) -> dict[str, float] | None:
        """Finite metrics of all sources, the same in all processes; None if a stop was requested."""
        metrics: dict[str, float] = {}
        for name, source in self.sources.items():
            metrics |= self.losses(learner, name, source)
        if self.asks_questions:
            model = self.answering_model(learner)
            with self.machine.autocast():
                metrics |= self.answer_metrics(model, stop)
        if any(world.all_gather_objects(stop.requested)):
            stop.requested = True
            return None
        of_rank_0: dict[str, float] = world.all_gather_objects(metrics)[0]
        return {name: value for name, value in of_rank_0.items() if math.isfinite(value)}

    @torch.no_grad()
    def losses(self, learner: Any, name: str, source: ValidationSource) -> dict[str, float]:
        """Mean losses over at most `pairs` evenly spaced samples of a source, shared between processes."""
        total = min(self.plan.pairs, len(source)) // world.size * world.size
        batch_size = max(1, self.phase.micro or self.phase.batch // world.size)
        sums: dict[str, float] = {}
        terms: dict[str, float] = {}
        for start in range(0, total, batch_size * world.size):
            count = min(batch_size, (total - start) // world.size)
            first = start + world.rank * count
            indices = [number * len(source) // total for number in range(first, first + count)]
            batch = self.make_batch([source.sample(index) for index in indices], noise_seed=start)
            with self.machine.autocast():
                batch_sums = learner(batch.to(self.machine.device))
            for key, value in batch_sums.items():
                sums[key] = sums.get(key, 0.0) + value.item()
                terms[key] = terms.get(key, 0.0) + batch.terms[key]
        keys = sorted(sums)
        local = [*(sums[key] for key in keys), *(terms[key] for key in keys)]
        reduced = world.all_reduce_sum(local, self.machine.device)
        totals, counts = reduced[: len(keys)], reduced[len(keys) :]
        return {
            f"{name}.{key}" if key == "recall_at_1" else f"{name}.loss.{key}": value / count
            for key, value, count in zip(keys, totals, counts, strict=True)
        }

    def answer_metrics(self, model: ChangeModel, stop: StopRequest) -> dict[str, float]:
        """Scores of generated answers about the held-out pairs of the sets, shared between processes."""
        metrics: dict[str, float] = {}
        for split in self.splits:
            local = split.held_out[world.rank :: world.size]
            predictions: list[Prediction] = []
            for batch, problems in predict_batches(model, local, split.image_folder, batch_size=BATCH_SIZE):
                predictions += batch
                for problem in problems:
                    self.warn_once(problem.message)
                if stop.requested:
                    break
            gathered = world.all_gather_objects(predictions)
            if world.rank == 0 and not stop.requested:
                metrics |= self.score_split(split, [prediction for rank in gathered for prediction in rank])
        return metrics

    def score_split(self, split: Split, predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Scores of the answers about the held-out pairs of a set."""
        examples = [example for pair in split.held_out for example in pair.examples]
        tasks = tuple(dict.fromkeys(example.task for example in examples))
        setup = Setup(
            bootstrap_rounds=0,
            with_published=False,
            with_meteor=(self.plan.metric or "").endswith((".meteor", ".s_m")),
        )
        scores = score(match(examples, predictions).pairs, tasks, setup)
        for note in scores.notes:
            self.warn_once(note)
        return {
            ".".join((split.name, metric.task, metric.group, metric.metric))
            .replace(", ", "_")
            .replace(" ", "_"): metric.value
            for metric in scores.metrics
            if metric.metric not in CONFUSION_COUNTS and "always empty" not in metric.group
        }

    def warn_once(self, text: str) -> None:
        if text not in self.logged_warnings:
            self.logged_warnings.add(text)
            log.warning("validation: %s", text)


class Validator(BaseValidator):
    """Validation of a phase of a DeltaVLM, on scenes too."""

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        inputs: RunInputs,
        codecs: tuple[Codec, Codec],
        machine: Machine,
        out: Path,
    ) -> None:
        super().__init__(config, name, inputs.splits, machine)
        self.model_config, self.codecs, self.out = inputs.model, codecs, out
        uncropped = replace(self.phase, crop_px=None)
        size = inputs.model.vision.image_px
        sources: dict[str, ValidationSource] = {}
        if config.scenes:
            sources["scenes"] = ValidationScenes(out, uncropped, size)
        if self.phase.part != "vision":
            for split in self.splits:
                sources[split.name] = ChangeChatSource(
                    split.held_out, split.image_folder, uncropped, size, [0], train=False
                )
        self.sources = sources
        self.asks_questions = self.plan.answers and self.phase.part in ANSWERING
        if self.asks_questions and machine.sharding == "fsdp" and world.size > 1:
            self.asks_questions = False
            log.warning("with fsdp, validation has losses only; score the model folder with `deltavlm eval`")

    def make_batch(self, samples: Sequence[Any], noise_seed: int) -> StepBatch:
        stacked = stack_samples(samples, noise_seed=noise_seed)
        return collate(stacked, self.phase, self.model_config, self.codecs)

    def answering_model(self, learner: Learner) -> ChangeModel:
        config = replace(self.model_config, calibration=Calibration())
        return Predictor(learner.model, config, *self.codecs, str(self.machine.device), "training")

    def answer_metrics(self, model: ChangeModel, stop: StopRequest) -> dict[str, float]:
        """Scores of generated answers: rank 0 asks about the validation scenes, all ranks about the sets."""
        metrics: dict[str, float] = {}
        if "scenes" in self.sources and world.rank == 0:
            scores = score_scenes(*predict_scenes(model, self.out / "validation", limit=self.plan.pairs))
            metrics |= {f"scenes.{key}": float(value) for key, value in scores.items() if key != "pairs"}
        return metrics | super().answer_metrics(model, stop)
