"""Augmentation: ground truth that fits the images after every crop, rotation and swap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.data.augment import Augmentation, LabeledBatch, augment, stack_pairs
from deltavlm.data.prompts import sample_prompts
from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import open_cache, render_cache
from deltavlm.tasks import classify, count, locate


def draw_batch(
    seed: int, images: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], size: int, **options: Any
) -> LabeledBatch:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(images), size=size)
    return stack_pairs([augment(rng, images[i], truth[i], Augmentation(**options)) for i in chosen])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_cache(folder, 6, seed=5, workers=1, options=SceneOptions(change=1.0))
    return folder


def test_densities_sum_to_the_counts(cache: Path) -> None:
    images, truth = open_cache(cache)
    batch = draw_batch(0, images, truth, 12)
    for maps, facts in zip(batch.density, batch.facts, strict=True):
        assert maps[0].sum() == pytest.approx(facts.counts["road_built"], abs=1e-3)
        assert maps[1].sum() == pytest.approx(facts.counts["building_built"], abs=1e-3)


def test_a_batch_is_determined_by_its_generator(cache: Path) -> None:
    images, truth = open_cache(cache)
    first, equal, other = (draw_batch(seed, images, truth, 4, crop_px=128) for seed in (1, 1, 2))
    assert np.array_equal(first.before, equal.before)
    assert not np.array_equal(first.before, other.before)
    assert first.before.shape == (4, 3, 128, 128)
    assert first.mask.shape == (4, 32, 32)
    assert first.density.shape == (4, 2, 8, 8)


def test_masks_follow_the_images(cache: Path) -> None:
    """A scene whose image is its own change map: after any rotation the mask still matches it."""
    _, truth = open_cache(cache)
    change_maps = np.repeat(np.repeat(truth[:, 0], 2, axis=1), 2, axis=2)
    images = np.repeat(np.stack([change_maps, change_maps], axis=1)[..., None], 3, axis=-1)
    for seed in range(6):
        batch = draw_batch(seed, images, truth, 3, crop_px=[None, 128][seed % 2], swap_dates=0.0)
        assert batch.mask.any()
        assert np.array_equal(batch.before[:, 0, ::4, ::4], batch.mask)


def test_swapped_dates_swap_images_and_facts(cache: Path) -> None:
    images, truth = open_cache(cache)
    same = draw_batch(3, images, truth, 6, swap_dates=0.0)
    other = draw_batch(3, images, truth, 6, swap_dates=1.0)
    assert np.array_equal(same.before, other.after)
    for facts, swapped in zip(same.facts, other.facts, strict=True):
        assert facts.counts["building_built"] == swapped.counts["building_removed"]


def test_prompts_are_answered_by_the_truth(cache: Path) -> None:
    images, truth = open_cache(cache)
    batch = stack_pairs([(images[0], truth[0])])
    rows = dict(sample_prompts(np.random.default_rng(0), batch.facts[0], extra=0.0))
    assert classify.parse(rows[classify.PROMPT]) == batch.facts[0].changed
    assert count.parse(rows[count.PROMPT]).buildings == batch.facts[0].counts["building_built"]
    assert locate.parse(rows[locate.PROMPT]).buildings == batch.facts[0].building_cells
    prompts = [
        prompt
        for seed in range(40)
        for prompt, _ in sample_prompts(np.random.default_rng(seed), batch.facts[0], 1.0)[4:]
    ]
    assert any(prompt.startswith("q please judge") and " a " in prompt for prompt in prompts), (
        "no dialogue turn"
    )
    assert any(
        prompt.startswith(("Are there", "Where", "What", "Were", "Have", "Is there")) for prompt in prompts
    )
