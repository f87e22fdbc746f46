"""A whole run: its inputs are looked at, scenes drawn, phases run in order, a model folder written."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltavlm.config import load, shipped_config
from deltavlm.errors import ConfigError, InputError, ModelOutOfMemory
from deltavlm.model import checkpoint
from deltavlm.model.config import PROMPT_STYLES, Calibration, DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.difference import DifferencePerception
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, TOKENIZER, find_folder, read_config
from deltavlm.model.qformer import QFormer
from deltavlm.model.tokenizer import Codec, load_codecs, train_codec
from deltavlm.training.changechat_dataset import ChangeChatSource, Split, read_records, texts
from deltavlm.training.checkpoints import final_weights, open_folder
from deltavlm.training.config import TrainConfig
from deltavlm.training.distributed import DTYPES, Machine, machine, world
from deltavlm.training.export import commit, export
from deltavlm.training.learner import Learner, collate
from deltavlm.training.loop import Trainer, pieces
from deltavlm.training.parameter_groups import lr_multipliers
from deltavlm.training.sampling import MixedSampler, Source
from deltavlm.training.stop_signals import StopRequest, catch_stop_signals
from deltavlm.training.synthetic_dataset import SceneSource, corpus, draw_all
from deltavlm.training.validate import Validator

log = logging.getLogger(__name__)

Tell = Callable[[str, int, int, str], None]  # phase, step, of so many steps, note


def say_nothing(phase: str, step: int, steps: int, note: str) -> None:
    """The `Tell` of a run that nobody watches."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run starts from, looked at before anything is computed."""

    model: DeltaVLMConfig
    start: Path | None
    sets: tuple[Split, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: finished with a model folder, or stopped in a phase at a step."""

    phase: str
    step: int
    stop: StopRequest | None = None
    folder: Path | None = None
    calibration: Calibration | None = None

    def told(self, out: Path) -> str:
        """One line on a run that was stopped."""
        by = self.stop.by if self.stop else "nobody"
        return f"stopped by {by} at step {self.step} of {self.phase}; {out} holds it, --resume goes on"


def model_of(config: TrainConfig) -> DeltaVLMConfig:
    """The numbers of the model. Raises: ConfigError where the phases ask for what it does not have."""
    model = load(shipped_config(f"{config.model}.yaml"), DeltaVLMConfig)
    return checked(model, config)


def checked(model: DeltaVLMConfig, config: TrainConfig) -> DeltaVLMConfig:
    """The numbers for training: questions worded as in training, whatever style they came with."""
    with torch.device("meta"):
        known = [name for name, _ in build(model).named_parameters()]
    for name, phase in config.phases.items():
        pieces(name, phase)
        lr_multipliers(known, phase)
        if phase.part in ("vision", "joint") and model.dense is None:
            raise ConfigError(
                f"phase {name}: {model.name} has no dense head; it can align, instruct, or learn language"
            )
    return replace(model, prompt=PROMPT_STYLES["trained"])


def look(config: TrainConfig) -> Inputs:
    """Reads what a run needs. Raises: ConfigError, InputError naming what is missing."""
    model, start = model_of(config), None
    if config.start is not None:
        start = find_folder(config.start)
        found = read_config(start)
        parts = ("vision", "qformer", "dense")
        other = [name for name in parts if getattr(found, name) != getattr(model, name)]
        if replace(found.language, folder=None) != replace(model.language, folder=None):
            other.append("language")
        if other:
            raise ConfigError(
                f"start {config.start} has another {' and '.join(other)} than {config.model}; name its model"
            )
        # the training goes through the difference module, whatever the checkpoint did
        model = replace(found, difference=model.difference, prompt=model.prompt)
    sets = tuple(read_records(name, records, config.seed) for name, records in config.sets.items())
    return Inputs(model, start, sets)


def codecs_of(inputs: Inputs, out: Path, scenes: bool) -> tuple[Codec, Codec]:
    """The tokenizers, from the run's folder; the first process puts them there."""
    if world.rank == 0 and not any((out / name).exists() for name in (TOKENIZER, SENTENCEPIECE)):
        if inputs.start:
            for name in (TOKENIZER, SENTENCEPIECE, QUESTION_TOKENIZER):
                if (inputs.start / name).is_file():
                    shutil.copyfile(inputs.start / name, out / name)
        else:
            said = corpus(out / "scenes") if scenes else []
            said += [text for held in inputs.sets for text in texts(held)]
            train_codec(said, inputs.model.language.vocab, out / TOKENIZER)
    world.wait()
    return load_codecs(out)


def model_at(config: TrainConfig, inputs: Inputs, out: Path, phase: str) -> DeltaVLM:
    """The model as a phase finds it: the start, and what each phase before it handed on."""
    names = list(config.phases)
    earlier = names[: names.index(phase)] if phase in names else names
    model = start_model(config, inputs)
    best = config.validation is not None and config.validation.metric is not None
    for name in earlier if config.start else earlier[-1:]:  # without a start each has everything
        model.load_state_dict(final_weights(out, name, best=best), strict=False)
    return model


def start_model(config: TrainConfig, inputs: Inputs) -> DeltaVLM:
    """Fresh weights, or those of the start, with the organs that begin anew; a language model that no phase
    fits is in its low precision."""
    torch.manual_seed(config.seed)
    low = DTYPES[config.language_dtype]
    if inputs.start is None:
        model = build(inputs.model)
    else:
        is_fitted = language_is_fitted(config)
        _, model = checkpoint.load(inputs.start, language_dtype=None if is_fitted else low)
        model.difference.mode = inputs.model.difference.mode
    width = inputs.model.vision.width
    anew: dict[str, Callable[[], nn.Module]] = {
        "difference": partial(DifferencePerception, width, inputs.model.difference),
        "qformer": partial(QFormer, inputs.model.qformer, width),
        "projection": partial(nn.Linear, inputs.model.qformer.hidden, inputs.model.language.hidden),
    }
    for organ in config.fresh:
        setattr(model, organ, anew[organ]())
    if not language_is_fitted(config):
        for parameter in model.language.parameters():  # not .to(): rotary frequencies stay exact
            parameter.data = parameter.data.to(low)
    if inputs.model.vision.tower == "conv":  # nearly twice as fast on a CPU; FSDP wants others as they are
        model = model.to(memory_format=torch.channels_last)
    return model


def language_is_fitted(config: TrainConfig) -> bool:
    """Whether any phase fits the language model."""
    names = ["language.model.norm.weight"]
    for phase in config.phases.values():
        rates = {name: factor for name, factor in phase.rates.items() if name.split(".")[0] == "language"}
        if any(name.count(".") for name, factor in rates.items() if factor) or any(
            lr_multipliers(
                names, replace(phase, rates={k: v for k, v in rates.items() if k == "language"})
            ).values()
        ):
            return True
    return False


def mixture_of(config: TrainConfig, name: str, inputs: Inputs, out: Path) -> MixedSampler:
    """What the steps of a phase hold."""
    phase, size = config.phases[name], inputs.model.vision.image_px
    seed = [config.seed, *name.encode()]
    sources: list[tuple[Source, float]] = []
    if config.scenes and config.scenes.weight:
        sources.append((SceneSource(out, config.scenes, phase, size, [*seed, 3]), config.scenes.weight))
    for place, held in enumerate(inputs.sets):
        if weight := config.sets[held.name].weight:
            source = ChangeChatSource(held.training, held.images, phase, size, [*seed, 4, place], still=False)
            sources.append((source, weight))
    return MixedSampler(sources, phase.batch, phase.steps, seed)


def learner_of(config: TrainConfig, name: str, inputs: Inputs, model: DeltaVLM, where: Machine) -> Learner:
    """The model with what a phase asks of it."""
    model.set_attention("eager" if where.device.type == "cpu" else "sdpa")
    if config.recompute:
        for part in (model.language, model.qformer.bert):
            _recompute(part)
        tower: Any = model.vision.tower
        if hasattr(tower, "set_grad_checkpointing"):
            tower.set_grad_checkpointing(True)
    torch.manual_seed(config.seed)
    return Learner(model, inputs.model, config.phases[name])


def _recompute(part: Any) -> None:
    """transformers has renamed it, and the old name warns."""
    how = {"use_reentrant": False}
    if hasattr(part, "activation_checkpointing_enable"):
        part.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        part.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    only: str | None = None,
    until: float = math.inf,
    folder: Path | None = None,
    recipe: str = "",
    tell: Tell = say_nothing,
) -> Outcome:
    """Runs the phases that are not done, in order, then writes the model folder (`out`/model).

    `only` runs one phase, or with "none" just writes the folder; `until` is the time to stop at.

    Raises: InputError and its kin for what cannot be used, ModelError, WriteError.
    """
    if only not in (None, "none", *config.phases):
        raise InputError(f"no phase {only!r}; there are {', '.join(config.phases)}")
    where, inputs = machine(config), look(config)
    if world.rank == 0:
        open_folder(out, config, resume=resume)
        if config.scenes:
            tell("scenes", 0, 0, "drawing those that are not drawn yet")
            draw_all(config.scenes, out)
    world.wait()
    codecs = codecs_of(inputs, out, scenes=config.scenes is not None)
    last, step = "", 0
    for name, phase in config.phases.items():
        last, step = name, phase.steps
        if only not in (None, name) or _is_done(out, name):
            continue
        learner = learner_of(config, name, inputs, model_at(config, inputs, out, name), where)
        trainer = Trainer(
            config,
            name,
            learner,
            mixture_of(config, name, inputs, out),
            partial(collate, phase=phase, config=inputs.model, codecs=codecs),
            where,
            out,
            everything=config.start is None,
            validate=Validator(config, name, inputs.model, codecs, where, inputs.sets, out)
            if config.validation
            else None,
            tell=lambda done, note, name=name, steps=phase.steps: tell(name, done, steps, note),  # type: ignore[misc]
        )
        tell(name, trainer.step, phase.steps, "")
        with catch_stop_signals() as stop:
            try:
                ended = trainer.run(stop, until)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise ModelOutOfMemory(
                    f"phase {name}: {trainer.micro} pairs at once do not fit; --set phases.{name}.micro="
                    f"{max(1, trainer.micro // 2)}, and --set recompute=true needs less too"
                ) from error
            if ended == "stopped":
                return Outcome(name, trainer.step, stop)
            if world.rank == 0:
                (out / f"{name}.done").write_text(f"{trainer.step}\n")
            world.wait()
        step = trainer.step
        del trainer, learner
    target, found = folder or out / "model", None
    if world.rank == 0 and (only in (None, "none") or folder):
        about = {
            "trained_on": " and ".join(["synthetic scenes"] * bool(config.scenes) + list(config.sets)),
            "commit": commit(),
            "command": f"deltavlm train {recipe}".strip(),
            "steps": f"{last} {step}",
        }
        model = model_at(config, inputs, out, "")
        found = export(out, model, inputs.model, config, about, target, inputs.start, inputs.sets)
    world.wait()
    return Outcome(last, step, None, target if found else None, found)


def _is_done(out: Path, name: str) -> bool:
    return (out / f"{name}.done").is_file()
