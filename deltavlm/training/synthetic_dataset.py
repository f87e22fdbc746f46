"""Drawn scenes as samples: varied, with masks and densities, and with a lesson about each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from deltavlm.data.augment import Augmentation, LabeledPair, augment, random_warp, stack_pairs
from deltavlm.data.prompts import sample_prompts
from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import (
    FAR_SEED,
    RICH_SEED,
    STORMY_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    open_cache,
    render_cache,
)
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model.predictor import resize_image
from deltavlm.tasks import caption
from deltavlm.text_norm import normalise
from deltavlm.training.config import Phase, Scenes
from deltavlm.training.sampling import Sample

CENTRED, SWAP = 0.75, 0.15  # of crops, on a changed place; of pairs, with their dates swapped


def draw_all(scenes: Scenes, out: Path, workers: int | None = None) -> None:
    """Draws what is not drawn yet."""
    draw = partial(render_cache, size_px=scenes.size_px, workers=workers)
    draw(out / "scenes", scenes.train, seed=TRAIN_SEED, options=SceneOptions(change=scenes.change))
    draw(
        out / "validation",
        scenes.validation,
        seed=VALIDATION_SEED,
        options=SceneOptions(change=scenes.change),
    )
    if scenes.far:
        draw(out / "far", scenes.far, seed=FAR_SEED, options=SceneOptions(change=scenes.change, downsample=2))
    if scenes.stormy:
        draw(out / "stormy", scenes.stormy, seed=STORMY_SEED, options=SceneOptions(change=0.5, strength=2.0))
    if scenes.rich:
        draw(out / "rich", scenes.rich, seed=RICH_SEED, options=SceneOptions(change=scenes.change, rich=True))


def corpus(cache: Path, limit: int = 6000) -> list[str]:
    """Every prompt and answer of some scenes, normalised."""
    _, truth = open_cache(cache)
    rng, said = np.random.default_rng(0), []
    for change, instances, cover in truth[:limit]:
        for prompt, answer in sample_prompts(rng, facts_of(change, instances, cover), extra=2.0):
            said += [normalise(f"q {prompt}"), normalise(answer)]
    return said


class SceneSource:
    """The caches of a run as samples without end: any scene, cut, turned and swapped anew each time."""

    def __init__(self, out: Path, scenes: Scenes, phase: Phase, image_px: int, seed: list[int]) -> None:
        self.phase, self.image_px, self.seed = phase, image_px, seed
        shares = {name: getattr(phase, name) for name in ("far", "stormy", "rich") if getattr(scenes, name)}
        self.shares = {"scenes": max(0.0, 1 - sum(shares.values())), **shares}
        self.caches = {name: open_cache(out / name) for name in self.shares}

    def sample(self, number: int) -> Sample:
        phase, rng = self.phase, np.random.default_rng([*self.seed, number])
        shares = np.array(list(self.shares.values()))
        name = list(self.shares)[int(rng.choice(len(shares), p=shares / shares.sum()))]
        pictures, truth = self.caches[name]
        index = int(rng.integers(len(pictures)))
        warp = random_warp(rng, phase.cut, phase.turn_deg) if phase.cut or phase.turn_deg else None
        options = Augmentation(phase.crop_px, CENTRED, SWAP, phase.color_jitter)
        pair = augment(rng, pictures[index], truth[index], options, warp)
        return self.told(rng, pair)

    def told(self, rng: np.random.Generator, pair: LabeledPair) -> Sample:
        """A pair with a lesson: some of the questions about it, drawn anew every time."""
        phase = self.phase
        one = stack_pairs([pair])
        rows = sample_prompts(rng, one.facts[0], phase.extra)
        if phase.part == "align":
            rows = [row for row in rows if row[0] == caption.PROMPT][:1]
        before, after = one.before[0], one.after[0]
        if phase.crop_px is None and before.shape[-1] != self.image_px:
            before, after = resize_image(before, self.image_px), resize_image(after, self.image_px)
        return Sample(
            before,
            after,
            tuple(rows[place] for place in rng.permutation(len(rows))[: phase.rows]),
            one.facts[0].changed,
            one.mask[0],
            one.density[0],
        )


class ValidationScenes(SceneSource):
    """The validation scenes, each as it was drawn."""

    def __init__(self, out: Path, phase: Phase, image_px: int) -> None:
        self.phase, self.image_px, self.seed = phase, image_px, [0]
        self.pictures, self.truth = open_cache(out / "validation")

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, number: int) -> Sample:
        rng = np.random.default_rng([*self.seed, number])
        return self.told(rng, (self.pictures[number], self.truth[number]))
