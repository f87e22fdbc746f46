"""Synthetic scenes as training samples: random scene, augmentation, masks, densities, questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deltavlm.data.augment import Augmentation, LabeledPair, augment, random_warp, stack_pairs
from deltavlm.data.prompts import sample_prompts
from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import (
    FAR_SEED,
    GROUND_SEED,
    RICH_SEED,
    STORMY_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    SceneCache,
    open_cache,
)
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model.images import resize_image
from deltavlm.tasks import caption
from deltavlm.text_norm import normalise
from deltavlm.training.config import Phase, Scenes
from deltavlm.training.sampling import Sample

SPECIAL_KINDS = ("far", "stormy", "rich", "ground")  # of scenes, with a share in each phase
CHANGE_CENTERED = 0.75  # share of crops around a changed pixel
SWAP_DATES = 0.15  # probability of exchanging before and after
CORPUS_SCENES = 6000  # scenes whose texts the tokenizer is trained on, at most


def scene_caches(scenes: Scenes, out: Path) -> list[SceneCache]:
    """Scene caches of a run, one for each kind of scenes that it has."""
    plain = SceneOptions(change=scenes.change)
    on_tiles = SceneOptions(change=0.55, misregistration_px=5.0, without=scenes.ground_without)
    kinds = [
        ("scenes", scenes.train, TRAIN_SEED, plain, None),
        ("validation", scenes.validation, VALIDATION_SEED, plain, None),
        ("far", scenes.far, FAR_SEED, replace(plain, downsample=2), None),
        ("stormy", scenes.stormy, STORMY_SEED, SceneOptions(change=0.5, strength=2.0), None),
        ("rich", scenes.rich, RICH_SEED, replace(plain, rich=True), None),
        ("ground", scenes.ground, GROUND_SEED, on_tiles, scenes.ground_folder),
    ]
    return [
        SceneCache(out / name, count, seed, scenes.size_px, options, tiles)
        for name, count, seed, options, tiles in kinds
        if count or name in ("scenes", "validation")
    ]


def render_scenes(
    caches: Sequence[SceneCache], on_progress: Callable[[int, int], None], workers: int | None = None
) -> None:
    """Render the scene caches of a run; finished scenes are left as they are.

    `on_progress` gets the number of scenes that are there, first those of an earlier run, and of all scenes.
    """
    total = sum(cache.count for cache in caches)
    rendered = [cache.count_rendered() for cache in caches]
    if sum(rendered) == total:
        return
    on_progress(sum(rendered), total)
    for index, cache in enumerate(caches):
        others = sum(rendered) - rendered[index]
        cache.render(workers, lambda count, others=others: on_progress(others + count, total))  # type: ignore[misc]
        rendered[index] = cache.count


def scene_corpus(cache: Path, limit: int = CORPUS_SCENES) -> list[str]:
    """Normalised prompts and answers of the first `limit` scenes, to train a tokenizer on."""
    _, truth = open_cache(cache)
    rng, texts = np.random.default_rng(0), []
    for change, instances, cover in truth[:limit]:
        for prompt, answer in sample_prompts(rng, facts_of(change, instances, cover), extra=2.0):
            texts += [normalise(f"q {prompt}"), normalise(answer)]
    return texts


class SceneSource:
    """Infinite samples of a run's scene caches: a random scene, augmented anew each time."""

    def __init__(self, out: Path, scenes: Scenes, phase: Phase, image_px: int, seed: list[int]) -> None:
        self.phase, self.image_px, self.seed = phase, image_px, seed
        shares = {kind: getattr(phase, kind) for kind in SPECIAL_KINDS if getattr(scenes, kind)}
        self.shares = {"scenes": max(0.0, 1 - sum(shares.values())), **shares}
        self.caches = {kind: open_cache(out / kind) for kind in self.shares}

    def sample(self, index: int) -> Sample:
        phase, rng = self.phase, np.random.default_rng([*self.seed, index])
        shares = np.array(list(self.shares.values()))
        kind = list(self.shares)[int(rng.choice(len(shares), p=shares / shares.sum()))]
        images, truth = self.caches[kind]
        scene = int(rng.integers(len(images)))
        warp = random_warp(rng, phase.cut, phase.turn_deg) if phase.cut or phase.turn_deg else None
        options = Augmentation(phase.crop_px, CHANGE_CENTERED, SWAP_DATES, phase.color_jitter)
        return self.with_questions(rng, augment(rng, images[scene], truth[scene], options, warp))

    def with_questions(self, rng: np.random.Generator, pair: LabeledPair) -> Sample:
        """Sample of a labeled pair with random questions, resized to the model's input."""
        phase = self.phase
        labels = stack_pairs([pair])
        turns = sample_prompts(rng, labels.facts[0], phase.extra)
        if phase.part == "align":
            turns = [turn for turn in turns if turn[0] == caption.PROMPT][:1]
        before, after = labels.before[0], labels.after[0]
        if phase.crop_px is None and before.shape[-1] != self.image_px:
            before, after = resize_image(before, self.image_px), resize_image(after, self.image_px)
        return Sample(
            before,
            after,
            tuple(turns[index] for index in rng.permutation(len(turns))[: phase.rows]),
            labels.facts[0].changed,
            labels.mask[0],
            labels.density[0],
        )


class ValidationScenes(SceneSource):
    """Validation scenes in order, not augmented."""

    def __init__(self, out: Path, phase: Phase, image_px: int) -> None:
        self.phase, self.image_px, self.seed = phase, image_px, [0]
        self.images, self.truth = open_cache(out / "validation")

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng([*self.seed, index])
        return self.with_questions(rng, (self.images[index], self.truth[index]))
