"""Construction of a run's parts: model config and inputs, tokenizers, model, sampler, learner."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltavlm.config import load, shipped_config
from deltavlm.errors import ConfigError
from deltavlm.messages import pluralize
from deltavlm.model import checkpoint
from deltavlm.model.config import PROMPT_STYLES, DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.dense import DenseHead
from deltavlm.model.device import meta_device
from deltavlm.model.difference import DifferencePerception
from deltavlm.model.folder import (
    QUESTION_TOKENIZER,
    SENTENCEPIECE,
    TOKENIZER,
    WEIGHTS,
    find_folder,
    read_config,
)
from deltavlm.model.qformer import QFormer
from deltavlm.model.tensors import write_tensors
from deltavlm.model.tokenizer import Codec, load_codecs, train_codec
from deltavlm.model.vision import EfficientNetTower, VisionEncoder
from deltavlm.training.changechat_dataset import (
    ChangeChatSource,
    Split,
    load_split,
    split_corpus,
    split_questions,
)
from deltavlm.training.checkpoints import final_weights
from deltavlm.training.config import Phase, TrainConfig
from deltavlm.training.distributed import DTYPES, Machine, world
from deltavlm.training.learner import Learner
from deltavlm.training.loop import micro_batches
from deltavlm.training.parameter_groups import lr_multipliers
from deltavlm.training.pretrained import load_encoder
from deltavlm.training.sampling import MixedSampler, SampleSource
from deltavlm.training.scope import fit_scope
from deltavlm.training.synthetic_dataset import SceneSource, scene_corpus

log = logging.getLogger(__name__)

SCOPE = "scope.safetensors"  # question scope of a run
MANY_EPOCHS = 50  # over a set; the paper trains 30


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Inputs of a run, read and checked before anything is computed."""

    model: DeltaVLMConfig
    start: Path | None  # checkpoint folder to start from
    splits: tuple[Split, ...]


def load_model_config(config: TrainConfig) -> DeltaVLMConfig:
    """Read the model config, with the prompt style of training; check that all phases can train such a model.

    Raises: ConfigError.
    """
    model = load(shipped_config(f"{config.model}.yaml", "vision"), DeltaVLMConfig)
    with meta_device():
        names = [name for name, _ in build(model).named_parameters()]
    for name, phase in config.phases.items():
        micro_batches(name, phase)
        lr_multipliers(names, phase)
        if phase.part in ("vision", "joint") and model.dense is None:
            raise ConfigError(
                f"phase {name}: {model.name} has no dense head; its phases can be of part align, instruct or "
                "language"
            )
    # what is in the scope of questions is what the scenes teach
    scope = model.scope if config.scenes and config.scenes.weight else None
    return replace(model, prompt=PROMPT_STYLES["trained"], scope=scope)


def load_inputs(config: TrainConfig) -> RunInputs:
    """Read the model config, find the checkpoint to start from, and read the sets.

    Raises: ConfigError, InputError naming what is missing.
    """
    model, start = load_model_config(config), None
    if config.start is not None:
        start = find_folder(config.start)
        start_model = read_config(start)
        modules = [name for name in ("vision", "qformer", "dense") if name not in config.fresh]
        differing = [name for name in modules if getattr(start_model, name) != getattr(model, name)]
        if replace(start_model.language, folder=None) != replace(model.language, folder=None):
            differing.append("language")
        has_distances = [one.difference.distances for one in (start_model, model)]
        if "difference" not in config.fresh and has_distances[0] != has_distances[1]:
            differing.append("difference")
        if differing:
            raise ConfigError(
                f"start {config.start} has another {' and '.join(differing)} than {config.model}; "
                "set model to the one that it was trained as"
            )
        # training goes through the difference module, even if the checkpoint's mode bypasses it
        anew = {name: getattr(model, name) for name in ("vision", "dense") if name in config.fresh}
        model = replace(start_model, difference=model.difference, prompt=model.prompt, **anew)
    splits = tuple(load_split(name, records, config.seed) for name, records in config.sets.items())
    if any(teaches_counts(split) for split in splits):
        model = replace(model, decoding=replace(model.decoding, counts="language"))
    return RunInputs(model, start, splits)


def teaches_counts(split: Split) -> bool:
    """True if a set has numbers of buildings, which the language model learns and the mask head does not."""
    return any(example.task in ("count", "dialogue") for pair in split.train for example in pair.examples)


def epochs_of(config: TrainConfig, phase: Phase, inputs: RunInputs) -> dict[str, float]:
    """Epochs of a phase over each set; scenes are drawn at random and have none."""
    weights = {name: records.weight for name, records in config.sets.items()}
    total = sum(weights.values()) + (config.scenes.weight if config.scenes else 0.0)
    epochs = {}
    for split in inputs.splits:
        if weights[split.name]:
            source = ChangeChatSource(split.train, split.image_folder, phase, 1, [0], train=False)
            epochs[split.name] = phase.steps * phase.batch * weights[split.name] / total / len(source)
    return epochs


def limit_epochs(config: TrainConfig, inputs: RunInputs) -> TrainConfig:
    """Configuration with no more than `max_epochs` epochs of each phase over the sets, no more scenes of each
    kind than its phases sample, and no more of them in a validation than the sets hold out; unchanged without
    `max_epochs`, with a warning of MANY_EPOCHS."""
    splits = [split for split in inputs.splits if config.sets[split.name].weight]
    if config.max_epochs is None:
        _warn_of_many_epochs(config, inputs)
    if config.max_epochs is None or not splits:
        return config
    weight = sum(config.sets[split.name].weight for split in splits)
    share = weight / (weight + (config.scenes.weight if config.scenes else 0.0))
    phases = {}
    for name, phase in config.phases.items():
        samples = sum(
            len(ChangeChatSource(split.train, split.image_folder, phase, 1, [0], train=False))
            for split in splits
        )
        steps = min(phase.steps, math.ceil(config.max_epochs * samples / (phase.batch * share)))
        phases[name] = replace(phase, steps=steps, warmup=min(phase.warmup, -(-steps // 4)))
    if all(phases[name].steps == phase.steps for name, phase in config.phases.items()):
        return config
    steps_text = " and ".join(
        f"{pluralize(phase.steps, 'step')} of {name} instead of {config.phases[name].steps}"
        for name, phase in phases.items()
    )
    pairs = sum(len(split.train) for split in splits)
    log.info("%s: %s (max_epochs is %g)", pluralize(pairs, "training pair"), steps_text, config.max_epochs)
    scenes = config.scenes
    if scenes:
        samples = math.ceil(sum(phase.steps * phase.batch for phase in phases.values()) * (1 - share))
        kinds = ("train", "far", "stormy", "rich", "ground")
        scenes = replace(scenes, **{kind: min(getattr(scenes, kind), samples) for kind in kinds})
    validation, held_out = config.validation, max(len(split.held_out) for split in inputs.splits)
    if validation and held_out:
        validation = replace(validation, pairs=min(validation.pairs, held_out))
    return replace(config, phases=phases, scenes=scenes, validation=validation)


def _warn_of_many_epochs(config: TrainConfig, inputs: RunInputs) -> None:
    pairs = {split.name: pluralize(len(split.train), "training pair") for split in inputs.splits}
    for name, phase in config.phases.items():
        for set_name, epochs in epochs_of(config, phase, inputs).items():
            if epochs > MANY_EPOCHS:
                log.warning(
                    "phase %s: %d steps are %.0f epochs over the %s of sets.%s, which the model will learn "
                    "by heart; add pairs, or limit the steps with `set=max_epochs=3`",
                    *(name, phase.steps, epochs, pairs[set_name], set_name),
                )


def prepare_tokenizers(inputs: RunInputs, out: Path, *, has_scenes: bool) -> tuple[Codec, Codec]:
    """Load the tokenizers of the run's folder; rank 0 copies them from the start, or trains one first."""
    if world.rank == 0 and not any((out / name).exists() for name in (TOKENIZER, SENTENCEPIECE)):
        if inputs.start:
            for name in (TOKENIZER, SENTENCEPIECE, QUESTION_TOKENIZER):
                if (inputs.start / name).is_file():
                    shutil.copyfile(inputs.start / name, out / name)
        else:
            corpus = scene_corpus(out / "scenes") if has_scenes else []
            corpus += [text for split in inputs.splits for text in split_corpus(split)]
            train_codec(corpus, inputs.model.language.vocab, out / TOKENIZER)
    world.barrier()
    return load_codecs(out)


def prepare_scope(inputs: RunInputs, out: Path) -> None:
    """Write the question scope of the run's folder, where the model has one: that of the start, or a new one
    without a start, or where the sets have questions that it does not support. Rank 0 only."""
    path, config = out / SCOPE, inputs.model.scope
    if config is None or path.exists():
        return
    questions = sorted({text for split in inputs.splits for text in split_questions(split)})
    scope = None
    if inputs.start is not None:
        scope = checkpoint.load_scope(inputs.start / WEIGHTS, config)
        refused = [text for text in questions if not scope.supports(text)]
        if refused:
            log.info(
                "%s of the sets outside of the question scope, such as %r",
                pluralize(len(refused), "question"),
                refused[0],
            )
            scope = None
    scope = scope or fit_scope(config, questions)
    write_tensors(path, checkpoint.scope_tensors(scope), {})


def build_initial_model(config: TrainConfig, inputs: RunInputs) -> DeltaVLM:
    """Model with random weights, or those of the start with its `fresh` modules initialized anew.

    A language model that no phase trains gets the dtype `language_dtype`.
    """
    torch.manual_seed(config.seed)
    frozen_dtype = DTYPES[config.language_dtype]
    if inputs.start is None:
        model = build(inputs.model)
    else:
        is_trainable = is_language_trainable(config)
        _, model = checkpoint.load(inputs.start, language_dtype=None if is_trainable else frozen_dtype)
        model.difference.mode = inputs.model.difference.mode
    vision, dense, width = inputs.model.vision, inputs.model.dense, inputs.model.vision.width
    constructors: dict[str, Callable[[], nn.Module | None]] = {
        "vision": partial(VisionEncoder, vision),
        "dense": lambda: DenseHead(width, dense, vision) if dense else None,
        "difference": partial(DifferencePerception, width, inputs.model.difference, vision.map_channels),
        "qformer": partial(QFormer, inputs.model.qformer, width),
        "projection": partial(nn.Linear, inputs.model.qformer.hidden, inputs.model.language.hidden),
    }
    for name in config.fresh:
        setattr(model, name, constructors[name]())
    is_new = inputs.start is None or "vision" in config.fresh
    if is_new and config.pretrained and isinstance(model.vision.tower, EfficientNetTower):
        load_encoder(model.vision.tower.encoder)
    if not is_language_trainable(config):
        for parameter in model.language.parameters():  # not .to(): rotary frequencies stay exact
            parameter.data = parameter.data.to(frozen_dtype)
    if (
        inputs.model.vision.map_channels
    ):  # convolutional: nearly twice as fast on a CPU; FSDP needs others as they are
        model = model.to(memory_format=torch.channels_last)
    return model


def build_model(config: TrainConfig, inputs: RunInputs, out: Path, phase: str) -> DeltaVLM:
    """Model at the beginning of a phase: initial weights, then the final ones of each phase before it, or
    their mean with those that it started from (`Phase.start_weight`).

    A `phase` that is not in the config ("") gives the model at the end of the run.
    """
    names = list(config.phases)
    earlier = names[: names.index(phase)] if phase in names else names
    model = build_initial_model(config, inputs)
    best = config.validation is not None and config.validation.metric is not None
    has_mean = any(config.phases[name].start_weight for name in earlier)
    # without a start, checkpoints have all weights
    for name in earlier if config.start or has_mean else earlier[-1:]:
        load_trained(model, final_weights(out, name, best=best), config.phases[name].start_weight)
    return model


@torch.no_grad()
def load_trained(model: DeltaVLM, weights: Mapping[str, Tensor], start_weight: float) -> None:
    """Load a phase's final weights, by name, into the model that it started from: (1 - start_weight) of them
    and `start_weight` of the model's own.

    The mean of both keeps more of what the start knew of other images than the trained weights, and has most
    of what they learned. Source: Wortsman et al., Robust fine-tuning of zero-shot models, arXiv 2109.01903.
    """
    starts = [tensor.clone() for tensor in model.state_dict().values()] if start_weight else []
    model.load_state_dict(weights, strict=False)
    if not start_weight:
        return
    averaged: set[int] = set()  # tied weights have two names and are averaged once
    for trained, start in zip(model.state_dict().values(), starts, strict=True):
        if trained.is_floating_point() and trained.data_ptr() not in averaged:
            averaged.add(trained.data_ptr())
            trained.lerp_(start, start_weight)


def is_language_trainable(config: TrainConfig) -> bool:
    """True if any phase trains the language model or a module of it."""
    name = "language.model.norm.weight"
    for phase in config.phases.values():
        rates = {module: rate for module, rate in phase.rates.items() if module.split(".")[0] == "language"}
        has_trainable_layer = any(rate for module, rate in rates.items() if "." in module)
        model_rates = {"language": rates["language"]} if "language" in rates else {}
        if has_trainable_layer or lr_multipliers([name], replace(phase, rates=model_rates))[name]:
            return True
    return False


def build_sampler(config: TrainConfig, name: str, inputs: RunInputs, out: Path) -> MixedSampler:
    """Sampler of a phase, over scenes and sets with a weight."""
    phase, size = config.phases[name], inputs.model.vision.image_px
    seed = [config.seed, *name.encode()]
    sources: list[tuple[SampleSource, float]] = []
    if config.scenes and config.scenes.weight:
        sources.append((SceneSource(out, config.scenes, phase, size, [*seed, 3]), config.scenes.weight))
    for index, split in enumerate(inputs.splits):
        if weight := config.sets[split.name].weight:
            source_seed = [*seed, 4, index]
            source = ChangeChatSource(split.train, split.image_folder, phase, size, source_seed, train=True)
            sources.append((source, weight))
    return MixedSampler(sources, phase.batch, phase.steps, seed)


def build_learner(
    config: TrainConfig, name: str, inputs: RunInputs, model: DeltaVLM, machine: Machine
) -> Learner:
    """Model with the losses of a phase, attention kernel and activation checkpointing set."""
    model.set_attention("eager" if machine.device.type == "cpu" else "sdpa")
    if config.recompute:
        for transformer in (model.language, model.qformer.bert):
            enable_activation_checkpointing(transformer)
        tower: Any = model.vision.tower
        if hasattr(tower, "set_grad_checkpointing"):
            tower.set_grad_checkpointing(True)
    torch.manual_seed(config.seed)
    return Learner(model, inputs.model, config.phases[name])


def enable_activation_checkpointing(transformer: Any) -> None:
    """Activation checkpointing of transformers, which has renamed the method and warns of the old name."""
    options = {"use_reentrant": False}
    if hasattr(transformer, "activation_checkpointing_enable"):
        transformer.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
