"""Exponential moving average (EMA) of weights and buffers, which validation and the exported model use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from deltavlm.training.distributed import full_tensor, shard_like

__all__ = ["EMA"]


class EMA:
    """Average of floating-point tensors, which share their storage with the model; none with decay 0."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: weight for name, weight in weights.items() if decay and weight.is_floating_point()
        }
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}

    def __bool__(self) -> bool:
        return bool(self.averages)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step; the decay grows at first."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.weights[name], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averages as its weights."""
        backup = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._copy_to_weights(self.averages)
        try:
            yield
        finally:
            self._copy_to_weights(backup)

    @torch.no_grad()
    def _copy_to_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.weights[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages as full tensors (a collective: all ranks must call it)."""
        return {name: full_tensor(average) for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages from full tensors."""
        for name, average in self.averages.items():
            average.copy_(shard_like(state[name], average))
