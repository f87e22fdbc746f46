"""Batches as a pure function of seed and step, so that a resumed run sees the same data.

A source yields its n-th sample independently of earlier calls; `MixedSampler` assigns the samples of its
sources to the slots of a step by weight. The content of a step depends neither on the number of processes nor
on the number of micro-batches.

B pairs, M of them with masks, P pixels of a side, G patches of a side, U mask pixels of a patch's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltavlm.model.interface import Pixels

Turn = tuple[str, str]  # (prompt, answer)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image pair with questions and answers about it, and its mask and density where they are known."""

    before: Pixels  # (3, P, P)
    after: Pixels  # (3, P, P)
    turns: tuple[Turn, ...]
    changed: bool
    mask: npt.NDArray[np.int64] | None = None  # (G U, G U) change codes
    density: npt.NDArray[np.float32] | None = None  # (K, G, G)


class SampleSource(Protocol):
    """Infinite dataset with random access."""

    def sample(self, index: int) -> Sample:
        """Sample 0, 1, 2, ... without end. Raises: InputError when its images cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """B stacked samples, those with masks first. `noise_seed` seeds the noise of the losses, the same in all
    processes."""

    before: Pixels  # (B, 3, P, P)
    after: Pixels  # (B, 3, P, P)
    turns: tuple[tuple[Turn, ...], ...]  # of each pair
    changed: tuple[bool, ...]
    mask: npt.NDArray[np.int64] | None  # (M, G U, G U)
    density: npt.NDArray[np.float32] | None  # (M, K, G, G)
    noise_seed: int = 0


class SlotPlan:
    """Fixed plan of all steps: which sample of which source, chosen by weight, is in a slot."""

    def __init__(self, weights: Sequence[float], batch_size: int, steps: int, seed: list[int]) -> None:
        self.batch_size, self.seed = batch_size, seed
        shares = np.array(weights, float) / np.sum(weights)
        counts = np.random.default_rng([*seed, 1]).multinomial(batch_size, shares, size=steps)
        self.counts = counts  # (steps, sources): samples from each source in each step
        self.offsets = np.cumsum(counts, axis=0) - counts  # and in all steps before it

    def slots(self, step: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(source, index of its sample) of slots `start` to `stop` of a step, which has `batch_size`."""
        source_of_slot = np.repeat(np.arange(self.counts.shape[1]), self.counts[step])
        index_of_slot = np.concatenate([np.arange(count) for count in self.counts[step]])
        shuffled = np.random.default_rng([*self.seed, 2, step]).permutation(self.batch_size)[start:stop]
        return [
            (source, int(self.offsets[step, source]) + index)
            for source, index in zip(
                source_of_slot[shuffled].tolist(), index_of_slot[shuffled].tolist(), strict=True
            )
        ]


class MixedSampler(SlotPlan):
    """Sampler that mixes several sources by weight, with a fixed plan for all steps."""

    def __init__(
        self, sources: Sequence[tuple[SampleSource, float]], batch_size: int, steps: int, seed: list[int]
    ) -> None:
        super().__init__([weight for _, weight in sources], batch_size, steps, seed)
        self.sources = [source for source, _ in sources]

    def batch(self, step: int, start: int, stop: int) -> Batch:
        """Slots `start` to `stop` of a step."""
        samples = [self.sources[source].sample(index) for source, index in self.slots(step, start, stop)]
        return stack_samples(samples, noise_seed=derive_seed(*self.seed, step))


def derive_seed(*numbers: int) -> int:
    """Hash several numbers into one seed, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def stack_samples(samples: Sequence[Sample], noise_seed: int = 0) -> Batch:
    """Stack samples into a batch, those with masks first."""
    samples = sorted(samples, key=lambda sample: sample.mask is None)
    masks = [sample.mask for sample in samples if sample.mask is not None]
    densities = [sample.density for sample in samples if sample.density is not None]
    return Batch(
        np.stack([sample.before for sample in samples]),
        np.stack([sample.after for sample in samples]),
        tuple(sample.turns for sample in samples),
        tuple(sample.changed for sample in samples),
        np.stack(masks) if masks else None,
        np.stack(densities) if densities else None,
        noise_seed,
    )
