"""Training batches: truth that fits the pictures, whatever was cut and turned."""

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
    pictures, truth = open_cache(cache)
    batch = draw_batch(0, pictures, truth, 12)
    for maps, facts in zip(batch.density, batch.facts, strict=True):
        assert maps[0].sum() == pytest.approx(facts.counts["road_built"], abs=1e-3)
        assert maps[1].sum() == pytest.approx(facts.counts["building_built"], abs=1e-3)


def test_a_batch_is_decided_by_its_generator(cache: Path) -> None:
    pictures, truth = open_cache(cache)
    one, two, three = (draw_batch(seed, pictures, truth, 4, crop_px=128) for seed in (1, 1, 2))
    assert np.array_equal(one.before, two.before)
    assert not np.array_equal(one.before, three.before)
    assert one.before.shape == (4, 3, 128, 128)
    assert one.mask.shape == (4, 32, 32)
    assert one.density.shape == (4, 2, 8, 8)


def test_masks_follow_the_pictures(cache: Path) -> None:
    """A scene whose picture is its own change map: after any turn the mask still lies on it."""
    _, truth = open_cache(cache)
    painted = np.repeat(np.repeat(truth[:, 0], 2, axis=1), 2, axis=2)
    pictures = np.repeat(np.stack([painted, painted], axis=1)[..., None], 3, axis=-1)
    for seed in range(6):
        batch = draw_batch(seed, pictures, truth, 3, crop_px=[None, 128][seed % 2], swap_dates=0.0)
        assert batch.mask.any()
        assert np.array_equal(batch.before[:, 0, ::4, ::4], batch.mask)


def test_swapped_dates_swap_pictures_and_words(cache: Path) -> None:
    pictures, truth = open_cache(cache)
    same = draw_batch(3, pictures, truth, 6, swap_dates=0.0)
    other = draw_batch(3, pictures, truth, 6, swap_dates=1.0)
    assert np.array_equal(same.before, other.after)
    for one, two in zip(same.facts, other.facts, strict=True):
        assert one.counts["building_built"] == two.counts["building_removed"]


def test_lessons_teach_the_truth(cache: Path) -> None:
    pictures, truth = open_cache(cache)
    batch = stack_pairs([(pictures[0], truth[0])])
    rows = dict(sample_prompts(np.random.default_rng(0), batch.facts[0], extra=0.0))
    assert classify.parse(rows[classify.PROMPT]) == batch.facts[0].changed
    assert count.parse(rows[count.PROMPT]).buildings == batch.facts[0].counts["building_built"]
    assert locate.parse(rows[locate.PROMPT]).buildings == batch.facts[0].building_cells
    asked = [
        prompt
        for seed in range(40)
        for prompt, _ in sample_prompts(np.random.default_rng(seed), batch.facts[0], 1.0)[4:]
    ]
    assert any(prompt.startswith("q please judge") and " a " in prompt for prompt in asked), (
        "no dialogue turn"
    )
    assert any(
        prompt.startswith(("Are there", "Where", "What", "Were", "Have", "Is there")) for prompt in asked
    )
