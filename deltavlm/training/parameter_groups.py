"""Trainable parameters, their learning-rate multipliers and train mode, by training phase; AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from deltavlm.config import suggest
from deltavlm.errors import ConfigError
from deltavlm.training.config import Objective, Phase

# The layers that turn the dense head's output into tokens are trained with the text, the rest with the masks.
EVIDENCE = ("dense.totals", "dense.place", "dense.norm")
MULTIPLIERS: dict[Objective, dict[str, float]] = {
    "vision": {"vision": 1, "difference": 1, "dense": 1, **dict.fromkeys(EVIDENCE, 0)},
    "language": {"qformer": 1, "projection": 1, "language": 1, **dict.fromkeys(EVIDENCE, 1)},
    "joint": {"": 1},
    "align": {"difference": 1, "qformer": 1},
    "instruct": {"": 1, "language": 0},
    "mci_joint": {"": 1},
    "mci_caption": {"caption_neck": 1, "captioner": 1},
    "mci_mask": {"mask_neck": 1, "mask_head": 1},
}
LORA = ".lora_"  # in the names of an adapter's weights, as peft gives them
HEADS = "heads"  # layers that a loss needs and the model does not have


def lr_multipliers(names: Iterable[str], phase: Phase) -> dict[str, float]:
    """Learning-rate multiplier of each parameter, 0 for a frozen one.

    Raises: ConfigError for a name in `rates` that is no module or parameter.
    """
    names = list(names)
    prefixes = {
        ".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)
    }
    for name in phase.rates:
        if name not in prefixes:
            raise ConfigError(f"rates: the model has no {name!r}{suggest(name, sorted(prefixes)[:4000])}")
    if phase.part == "adapter":
        rates = {f"{LORA}A.": 1.0, f"{LORA}B.": phase.b_rate}
        return {name: next((rates[each] for each in rates if each in name), 0.0) for name in names}
    rules = MULTIPLIERS[phase.part] | phase.rates
    return {name: _multiplier(name, rules) for name in names}


def _multiplier(name: str, rules: Mapping[str, float]) -> float:
    """Value of the longest prefix of `name` that has a rule."""
    if name.startswith(f"{HEADS}."):
        return 1.0
    path = name.split(".")
    for depth in range(len(path), -1, -1):
        if (multiplier := rules.get(".".join(path[:depth]))) is not None:
            return multiplier
    return 0.0


def named_parameters(learner: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a learner by name, those of its model without the prefix `model.`."""
    for name, parameter in learner.named_parameters():
        yield name.removeprefix("model."), parameter


def freeze(learner: nn.Module, phase: Phase) -> dict[str, float]:
    """Freeze parameters whose learning-rate multiplier is 0; put only modules with trainable ones into train
    mode. Returns the multipliers by name."""
    multipliers = lr_multipliers([name for name, _ in named_parameters(learner)], phase)
    for name, parameter in named_parameters(learner):
        parameter.requires_grad_(multipliers[name] > 0)
    set_train_mode(learner)
    return multipliers


def set_train_mode(learner: nn.Module) -> None:
    """Put modules with trainable parameters into train mode, the others into eval mode.

    Frozen layers with activation checkpointing are in train mode too, since transformers checkpoints in train
    mode only; those with dropout stay in eval mode.
    """
    _set_modes(learner, inherited=True)
    for module in learner.modules():
        if getattr(module, "gradient_checkpointing", False) and not any(
            isinstance(child, nn.Dropout) for child in module.modules()
        ):
            module.training = True


def _set_modes(module: nn.Module, inherited: bool) -> None:
    """Train mode where any parameter is trainable: a frozen batch norm keeps its statistics, and a module
    without parameters (dropout) has the mode of its parent."""
    trainable = [parameter.requires_grad for parameter in module.parameters()]
    module.training = any(trainable) if trainable else inherited
    for child in module.children():
        _set_modes(child, module.training)


def build_optimizer(learner: nn.Module, phase: Phase, multipliers: Mapping[str, float]) -> torch.optim.AdamW:
    """AdamW with a parameter group for each learning-rate multiplier (key `factor`); weight decay for
    matrices only. On a CPU it is torch's fused one, for the default takes long there."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters(learner):
        if parameter.requires_grad:
            groups.setdefault((multipliers[name], parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "factor": factor, "weight_decay": phase.weight_decay if is_matrix else 0.0}
            for (factor, is_matrix), params in groups.items()
        ],
        lr=phase.lr,
        betas=phase.betas,
        fused=True if all(p.device.type == "cpu" for params in groups.values() for p in params) else None,
    )


def count_parameters(learner: nn.Module, multipliers: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """(trainable, all) parameters of each top-level module, in the order of the model."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in named_parameters(learner):
        module = name.split(".")[0]
        trainable, total = counts.get(module, (0, 0))
        size = parameter.numel()
        counts[module] = (trainable + size * (multipliers[name] > 0), total + size)
    return counts
