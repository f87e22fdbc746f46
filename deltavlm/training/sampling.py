"""Where batches come from: a pure function of the step, so that a resumed run sees what an unbroken one sees.

A source gives its n-th sample, whatever was asked before; a mixture deals the samples of its sources into the
slots of a step by weight. How many processes share a step, and in how many pieces each takes its share, does
not change what the step holds.

B pairs, M of them with masks, P pixels of a side, G patches of a side, U mask pixels of a patch's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltavlm.model.interface import Pixels


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair of pictures and what is said about it."""

    before: Pixels  # (3, P, P)
    after: Pixels  # (3, P, P)
    rows: tuple[tuple[str, str], ...]  # (prompt, answer)
    changed: bool
    mask: npt.NDArray[np.int64] | None = None  # (G U, G U) change codes
    density: npt.NDArray[np.float32] | None = None  # (K, G, G)


class Source(Protocol):
    def sample(self, number: int) -> Sample:
        """Sample 0, 1, 2, ... without end. Raises: InputError when its pictures cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """B pairs, those with masks first. `noise` seeds what the losses draw, alike in all processes."""

    before: Pixels  # (B, 3, P, P)
    after: Pixels  # (B, 3, P, P)
    rows: tuple[tuple[tuple[str, str], ...], ...]  # (prompt, answer) of each pair
    changed: tuple[bool, ...]
    mask: npt.NDArray[np.int64] | None  # (M, G U, G U)
    density: npt.NDArray[np.float32] | None  # (M, K, G, G)
    noise: int = 0


class MixedSampler:
    """Samples of several sources by weight."""

    def __init__(
        self, sources: Sequence[tuple[Source, float]], batch: int, steps: int, seed: list[int]
    ) -> None:
        self.sources = [source for source, _ in sources]
        self.batch, self.seed = batch, seed
        shares = np.array([weight for _, weight in sources], float)
        dealt = np.random.default_rng([*seed, 1]).multinomial(batch, shares / shares.sum(), size=steps)
        self.dealt = dealt  # (steps, sources): samples of each source in each step
        self.before = np.cumsum(dealt, axis=0) - dealt  # and in all steps before it

    def take(self, step: int, start: int, stop: int) -> Batch:
        """Slots start to stop of a step."""
        order = np.repeat(np.arange(len(self.sources)), self.dealt[step])
        place = np.concatenate([np.arange(number) for number in self.dealt[step]])
        mixed = np.random.default_rng([*self.seed, 2, step]).permutation(self.batch)[start:stop]
        samples = [
            self.sources[which].sample(int(self.before[step, which]) + at)
            for which, at in zip(order[mixed].tolist(), place[mixed].tolist(), strict=True)
        ]
        return stacked(samples, noise=mixed_seed(*self.seed, step))


def mixed_seed(*numbers: int) -> int:
    """One seed of many numbers, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def stacked(samples: Sequence[Sample], noise: int = 0) -> Batch:
    """Samples as one batch, those with masks first."""
    samples = sorted(samples, key=lambda one: one.mask is None)
    masks = [one.mask for one in samples if one.mask is not None]
    densities = [one.density for one in samples if one.density is not None]
    return Batch(
        np.stack([one.before for one in samples]),
        np.stack([one.after for one in samples]),
        tuple(one.rows for one in samples),
        tuple(one.changed for one in samples),
        np.stack(masks) if masks else None,
        np.stack(densities) if densities else None,
        noise,
    )
