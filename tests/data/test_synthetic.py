"""Synthetic scenes: determined by the seed, with ground truth that survives crops, rotations and swaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.data.synthetic import Scene, SceneOptions, make_scene, phrases
from deltavlm.data.synthetic.cache import SceneCache, halve, open_cache, render_cache
from deltavlm.data.synthetic.facts import SWAPPED, Facts, cell_shares, facts_of
from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES, CHANGE_CODE, COVER_CODE
from deltavlm.data.synthetic.imaging import color_jitter
from deltavlm.data.synthetic.scene import make_plan
from deltavlm.tasks import classify, count, locate
from deltavlm.tasks.caption import denies_change, kinds_built, kinds_removed
from deltavlm.tasks.text import NO_CHANGE, clean

KINDS = ("building", "road")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(seed) for seed in range(12)]


def facts(scene: Scene) -> Facts:
    return facts_of(scene.change, scene.instances, scene.cover)


def test_a_seed_determines_the_scene(scenes: list[Scene]) -> None:
    again, other = make_scene(0), make_scene(1)
    assert np.array_equal(again.after, scenes[0].after)
    assert not np.array_equal(other.after, scenes[0].after)
    assert again.before.shape == (256, 256, 3)
    assert again.change.shape == again.instances.shape == again.cover.shape == (256, 256)


def test_some_scenes_change_and_some_do_not(scenes: list[Scene]) -> None:
    assert {facts(scene).changed for scene in scenes} == {True, False}


def test_an_unchanged_scene_differs_in_its_pixels(scenes: list[Scene]) -> None:
    """Season, light and noise are distractors: they differ although nothing has changed."""
    unchanged = [scene for scene in scenes if not scene.change.any()]
    assert unchanged
    for scene in unchanged:
        assert np.abs(scene.before.astype(int) - scene.after).mean() > 2


def test_without_change_nothing_changes() -> None:
    assert not any(make_scene(seed, 64, 64, SceneOptions(change=0.0)).change.any() for seed in range(8))


def test_instances_lie_on_changed_roads_and_buildings(scenes: list[Scene]) -> None:
    """Instance ids are 0 wherever the change map has no building or road."""
    for scene in scenes:
        kinds = np.isin(
            scene.change, [CHANGE_CODE[k] for k in CHANGE_CLASSES if k.startswith(("building", "road"))]
        )
        assert not scene.instances[~kinds].any()


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_rotating_a_scene_rotates_its_cells(scenes: list[Scene], quarter: int) -> None:
    for scene in scenes:
        original, rotated = facts(scene), facts(scene.rotated(quarter, mirror=False))
        assert original.counts == rotated.counts
        grid = np.array([label in original.building_cells for label in locate.LABELS]).reshape(3, 3)
        expected = np.rot90(grid, quarter).ravel()
        cells = [label in rotated.building_cells for label in locate.LABELS]
        assert np.sum(expected != cells) <= 1  # 256 px do not split into three equal parts


def test_swapping_the_dates_swaps_built_and_removed(scenes: list[Scene]) -> None:
    assert np.array_equal(SWAPPED[SWAPPED], np.arange(len(CHANGE_CLASSES)))
    for scene in scenes:
        original, swapped = facts(scene), facts_of(SWAPPED[scene.change], scene.instances, scene.cover)
        assert original.counts["building_built"] == swapped.counts["building_removed"]
        assert original.counts["road_built"] == swapped.counts["road_removed"]
        assert original.changed == swapped.changed


def test_windows_have_the_facts_of_their_pixels(scenes: list[Scene]) -> None:
    scene = next(s for s in scenes if facts(s).counts["building_built"] > 3)
    windows = [scene.window(row, col, 128) for row in (0, 128) for col in (0, 128)]
    assert sum(facts(p).counts["building_built"] for p in windows) >= facts(scene).counts["building_built"]


def test_cell_shares_add_up() -> None:
    mask = np.random.default_rng(0).random((100, 130)) < 0.3
    shares = cell_shares(mask)
    areas = np.outer(np.diff([0, 33, 67, 100]), np.diff([0, 43, 87, 130])).ravel()
    assert shares @ areas == pytest.approx(mask.sum())


def test_answers_are_parsed_as_the_truth(scenes: list[Scene]) -> None:
    """Parsing a formatted answer gives its value, for every task and scene."""
    for scene in scenes:
        fact = facts(scene)
        assert classify.parse(classify.format_answer(fact.changed)) == fact.changed
        counts = phrases.counts_of(fact)
        assert count.parse(phrases.count_answer(fact.changed, counts)) == counts
        assert locate.parse(locate.format_answer(phrases.cells_of(fact))) == phrases.cells_of(fact)
        turns = phrases.dialogue(fact)
        assert count.parse(turns[1].answer) == phrases.counts_of(fact)
        assert (phrases.captions(fact) == NO_CHANGE) == (not fact.changed)


def test_captions_say_what_is_built(scenes: list[Scene]) -> None:
    for scene in scenes:
        fact = facts(scene)
        built = {kind for kind in KINDS if fact.counts[f"{kind}_built"]}
        for sentence in phrases.captions(fact):
            assert denies_change(sentence) == (not fact.changed)
            assert kinds_built(sentence) == built
            assert kinds_removed(sentence) <= {kind for kind in KINDS if fact.counts[f"{kind}_removed"]}


def draw(*boxes: tuple[str, slice, slice], cover: str = "grass", road: slice | None = None) -> Facts:
    """Facts of 100 x 100 pixels with a change in each box, and a road of both dates in some columns."""
    change, instances = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint16)
    covers = np.full((100, 100), COVER_CODE[cover], np.uint8)
    if road is not None:
        covers[:, road] = COVER_CODE["road"]
    for number, (kind, rows, cols) in enumerate(boxes, start=1):
        change[rows, cols], instances[rows, cols] = CHANGE_CODE[kind], number
    return facts_of(change, instances, covers)


def test_a_caption_says_what_how_many_where_and_along_what() -> None:
    corner = [("building_built", slice(row, row + 6), slice(4, 10)) for row in (2, 12, 22)]
    cases = {
        "a house is built in the top left corner": draw(*corner[:1]),
        "two houses are built in the top left corner": draw(*corner[:2]),
        "several houses are built along the road in the top left corner": draw(*corner, road=slice(13, 17)),
        "several houses are built in the top left corner": draw(*corner, road=slice(30, 34)),  # too far
        "several houses and a road are built in the top left corner": draw(
            *corner, ("road_built", slice(0, 30), slice(13, 17))
        ),
        "a large building is built in the middle": draw(("building_built", slice(40, 62), slice(38, 60))),
        "a road is built on the farmland": draw(("road_built", slice(0, 100), slice(0, 100)), cover="crops"),
        "a house is built on the right and a house is demolished and the trees are removed": draw(
            ("building_built", slice(30, 36), slice(80, 86)),
            ("building_removed", slice(3, 9), slice(3, 9)),
            cover="trees",
        ),
        "a pond appears at the bottom": draw(("water_new", slice(75, 90), slice(45, 55))),
    }
    for sentence, fact in cases.items():
        assert phrases.captions(fact)[0] == sentence
    roadside = phrases.captions(draw(*corner, ("road_built", slice(0, 30), slice(13, 17))))
    assert "several houses are built along a new road in the top left corner" in roadside
    wooded = phrases.captions(draw(*corner, cover="trees"))
    assert "the trees are replaced by several houses in the top left corner" in wooded


def test_sentences_are_clean_and_differ(scenes: list[Scene]) -> None:
    for scene in scenes:
        captions = phrases.captions(facts(scene))
        assert len(set(captions)) >= 3
        for sentence in (*captions, *(turn.answer for turn in phrases.open_questions(facts(scene)))):
            assert sentence == clean(sentence)
            assert "  " not in sentence
            assert sentence == sentence.strip()


def test_a_cache_holds_the_scenes_of_its_seeds(tmp_path: Path) -> None:
    render_cache(tmp_path, 3, seed=40, size_px=64, workers=1)
    images, truth = open_cache(tmp_path)
    assert images.shape == (3, 2, 64, 64, 3)
    scene = make_scene(41, 64, 64, SceneOptions(change=0.6))
    assert np.array_equal(images[1, 0], scene.before)
    assert np.array_equal(truth[1, 0], halve(scene.change))
    stamp = (tmp_path / "pictures.npy").stat().st_mtime_ns
    render_cache(tmp_path, 3, seed=40, size_px=64, workers=1)
    assert (tmp_path / "pictures.npy").stat().st_mtime_ns == stamp


def test_rendering_resumes_with_the_parts_that_are_missing(tmp_path: Path) -> None:
    """Progress counts the scenes of the interrupted rendering, which are left as they are."""
    cache = SceneCache(tmp_path, 18, seed=40, size_px=32)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.render(1, interrupt)
    assert cache.count_rendered() == 16
    assert replace(cache, seed=41).count_rendered() == 0
    open_cache(tmp_path, "r+")[0][0] = 7  # would be drawn over
    counts: list[int] = []
    cache.render(1, counts.append)
    assert counts == [18]
    assert cache.count_rendered() == 18
    pictures = open_cache(tmp_path)[0]
    assert (pictures[0] == 7).all()
    assert np.array_equal(pictures[17, 0], make_scene(57, 32, 32, SceneOptions(change=0.6)).before)


def test_a_downsampled_scene_is_the_average_of_the_large_one() -> None:
    far = make_scene(9, 64, 64, SceneOptions(change=1.0, scale=1.0, downsample=2))
    near = make_scene(9, 160, 160, SceneOptions(change=1.0, scale=1.0))
    near = near.window(16, 16, 128)  # the margin is downsampled too
    assert far.change.any()
    assert np.array_equal(far.change, near.change[::2, ::2])
    assert np.array_equal(far.instances, near.instances[::2, ::2])
    mean = near.before.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(mean.ravel(), far.before.ravel())[0, 1] > 0.9  # light and noise are drawn anew


@pytest.mark.slow
def test_a_downsampled_scene_changes_as_often() -> None:
    far = sum(
        make_scene(seed, options=SceneOptions(change=0.5, downsample=2)).change.any() for seed in range(24)
    )
    assert 5 <= far <= 18  # 12 or so; 22 if each of the four neighborhoods that now fit had the whole chance


def test_color_jitter_keeps_the_order_of_values(scenes: list[Scene]) -> None:
    """One table per band: equal values stay equal, and their order stays."""
    rng = np.random.default_rng(1)
    for scene in scenes[:4]:
        new = color_jitter(rng, scene.before)
        assert new.shape == scene.before.shape
        assert new.dtype == np.uint8
        assert not np.array_equal(new, scene.before)
        for band in range(3):
            order = np.argsort(scene.before[..., band], axis=None, kind="stable")
            assert (np.diff(new[..., band].ravel()[order].astype(int)) >= 0).all()


def test_color_jitter_casts_a_color_on_gray() -> None:
    """Bands of a gray image differ by some 20 of 255, as old and new dates of one place do."""
    gray, rng = np.full((1, 1, 3), 110, np.uint8), np.random.default_rng(0)
    casts = [np.ptp(color_jitter(rng, gray).astype(int)) for _ in range(300)]
    assert 15 < np.median(casts) < 40


def test_every_neighborhood_of_a_large_scene_changes() -> None:
    scene = make_scene(2, 640, 320, SceneOptions(change=1.0))
    assert scene.before.shape == (320, 640, 3)
    assert scene.change[:, :320].any()
    assert scene.change[:, 320:].any()


@pytest.fixture(scope="module")
def rich_scenes() -> list[Scene]:
    return [make_scene(seed, options=SceneOptions(change=0.6, rich=True)) for seed in range(100, 106)]


def test_a_seed_determines_a_rich_scene(rich_scenes: list[Scene], tmp_path: Path) -> None:
    again = make_scene(103, options=SceneOptions(change=0.6, rich=True))
    assert np.array_equal(again.after, rich_scenes[3].after)
    assert not np.array_equal(make_scene(103, options=SceneOptions(change=0.6)).after, again.after)
    render_cache(tmp_path, 1, seed=103, workers=1, options=SceneOptions(change=0.6, rich=True))
    assert np.array_equal(open_cache(tmp_path)[0][0, 1], again.after)
    assert (tmp_path / "drawn.txt").read_text().rstrip().endswith("rich")


def test_rich_scenes_may_stay_unchanged() -> None:
    for seed in range(6):
        still = make_scene(seed, options=SceneOptions(change=0.0, rich=True))
        assert not still.change.any()
        assert np.abs(still.before.astype(int) - still.after).mean() > 2  # though the dates look different


def test_rich_scenes_have_rare_kinds_of_land() -> None:
    plans = [make_plan(np.random.default_rng(seed), (300, 300), change=0.6, rich=True) for seed in range(60)]
    changed = [
        any(house.when != "both" for house in plan.houses) or any(road.when != "both" for road in plan.roads)
        for plan in plans
    ]
    assert 20 <= sum(changed) <= 45
    grounds = {patch.ground for plan in plans for patch in plan.patches}
    assert {"glass", "pool"} <= grounds
    assert "rail" in {road.surface for plan in plans for road in plan.roads}
    assert max(house.length / house.depth for plan in plans for house in plan.houses) > 3  # terraces, slabs
