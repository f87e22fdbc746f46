"""Which parameters a phase fits, how fast, and which parts of the model are in training mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from deltavlm.config import suggest
from deltavlm.errors import ConfigError
from deltavlm.training.config import Part, Phase

# What the language reads of the dense head belongs to what reads, the rest of the head to what sees.
EVIDENCE = ("dense.totals", "dense.place", "dense.norm")
PARTS: dict[Part, dict[str, float]] = {
    "vision": {"vision": 1, "difference": 1, "dense": 1, **dict.fromkeys(EVIDENCE, 0)},
    "language": {"qformer": 1, "projection": 1, "language": 1, **dict.fromkeys(EVIDENCE, 1)},
    "joint": {"": 1},
    "align": {"difference": 1, "qformer": 1},
    "instruct": {"": 1, "language": 0},
}
HEADS = "heads"  # what a loss needs and the model does not have


def lr_multipliers(names: Iterable[str], phase: Phase) -> dict[str, float]:
    """Parameter names -> factor on the learning rate, 0 for what is held still.

    Raises: ConfigError for a name in `rates` that fits nothing.
    """
    names = list(names)
    prefixes = {
        ".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)
    }
    for wanted in phase.rates:
        if wanted not in prefixes:
            raise ConfigError(f"rates: the model has no {wanted!r}{suggest(wanted, sorted(prefixes)[:4000])}")
    rules = PARTS[phase.part] | phase.rates
    return {name: _factor(name, rules) for name in names}


def _factor(name: str, rules: dict[str, float]) -> float:
    if name.startswith(f"{HEADS}."):
        return 1.0
    parts = name.split(".")
    for depth in range(len(parts), -1, -1):
        if (known := rules.get(".".join(parts[:depth]))) is not None:
            return known
    return 0.0


def named(learner: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a learner, those of its model without the word `model.` before them."""
    for name, parameter in learner.named_parameters():
        yield name.removeprefix("model."), parameter


def freeze(learner: nn.Module, phase: Phase) -> dict[str, float]:
    """Sets what needs gradients and what is in training mode; returns the lr_multipliers."""
    found = lr_multipliers([name for name, _ in named(learner)], phase)
    for name, parameter in named(learner):
        parameter.requires_grad_(found[name] > 0)
    training_modes(learner)
    return found


def training_modes(learner: nn.Module) -> None:
    """`set_modes`, and layers that recompute their activations do so although they are held still."""
    set_modes(learner)
    for module in learner.modules():
        if getattr(module, "gradient_checkpointing", False) and not any(
            isinstance(inner, nn.Dropout) for inner in module.modules()
        ):
            module.training = True


def set_modes(module: nn.Module, inherited: bool = True) -> None:
    """Training mode where something is fitted, else as in use: a batch norm that is held still keeps its
    statistics, and dropout rests with the layers around it."""
    fitted = [parameter.requires_grad for parameter in module.parameters()]
    module.training = any(fitted) if fitted else inherited
    for child in module.children():
        set_modes(child, module.training)


def optimiser(learner: nn.Module, phase: Phase, found: dict[str, float]) -> torch.optim.AdamW:
    """AdamW with a group for each factor; weight decay on matrices alone."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named(learner):
        if parameter.requires_grad:
            groups.setdefault((found[name], parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": held, "factor": factor, "weight_decay": phase.weight_decay if matrix else 0.0}
            for (factor, matrix), held in groups.items()
        ],
        lr=phase.lr,
        betas=phase.betas,
    )


def counts(learner: nn.Module, found: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Organ -> (parameters that are fitted, all), in the order of the model."""
    sums: dict[str, tuple[int, int]] = {}
    for name, parameter in named(learner):
        organ = name.split(".")[0]
        fitted, all_ = sums.get(organ, (0, 0))
        sums[organ] = (fitted + parameter.numel() * (found[name] > 0), all_ + parameter.numel())
    return sums
