"""Scenes on real ground: determined by the seed and the tiles; what is no change is not in the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from PIL import Image, ImageDraw
from scipy import ndimage

from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import SceneCache, open_cache
from deltavlm.data.synthetic.events import subdivision
from deltavlm.data.synthetic.ground import GroundTiles, make_georeferenced_scene, make_ground_scene
from deltavlm.data.synthetic.ground_layout import Ground, GroundNeighborhood, guess_cover, hide_buildings
from deltavlm.data.synthetic.ground_renderer import GroundRenderer
from deltavlm.data.synthetic.ground_truth import CHANGE_CODE, COVER_CODE
from deltavlm.data.synthetic.imaging import random_light
from deltavlm.data.synthetic.plan import House, Patch, Plan, polygon, rectangle
from deltavlm.data.synthetic.render import Light
from deltavlm.data.synthetic.roofs import random_wings
from deltavlm.data.synthetic.scene import GroundPart
from deltavlm.data.synthetic.tiles import BUILDING, TileWindow, cut_out_buildings, gray_of
from deltavlm.errors import InputError
from deltavlm.geo.geotiff import write_geotiff


def write_tile(path: Path, seed: int = 0, side: int = 128, *, masked: bool = False) -> None:
    """Write a grass tile with a road and, in a masked one, two buildings."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal((110, 130, 80), 6, (side, side, 3))
    pixels[side // 2 : side // 2 + 8] = rng.normal(130, 4, (8, side, 1))
    classes = np.full((side, side), 4, np.uint8)
    for top in (12, side - 40):
        box = (slice(top, top + 20), slice(30, 64))
        pixels[box], classes[box] = rng.normal((190, 90, 70), 5, (20, 34, 3)), BUILDING
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    if masked:
        Image.fromarray(classes).save(path.with_suffix(".mask.png"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tile(folder / "plain" / "a.png", 1)
    write_tile(folder / "plain" / "b.jpg", 2)
    write_tile(folder / "masked" / "c.png", 3, side=160, masked=True)
    (folder / "plain" / "gsd.txt").write_text("0.5\n")
    return folder


def test_a_seed_and_the_tiles_determine_the_scene(folder: Path) -> None:
    """Also with tiles that other scenes were drawn on before."""
    used, fresh = GroundTiles(folder), GroundTiles(folder)
    for seed in range(3):
        make_ground_scene(seed, used, 96, 64)
    first, second = (make_ground_scene(4, tiles, 96, 64) for tiles in (used, fresh))
    assert first.before.shape == (64, 96, 3)
    assert first.change.shape == first.instances.shape == first.cover.shape == (64, 96)
    for name in ("before", "after", "change", "instances", "cover"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.after, make_ground_scene(5, fresh, 96, 64).after)


def test_the_share_of_changed_scenes_is_that_of_the_options(folder: Path) -> None:
    tiles = GroundTiles(folder)
    for change in (0.0, 1.0):
        changed = [
            bool(make_ground_scene(seed, tiles, 96, 96, SceneOptions(change=change)).change.any())
            for seed in range(8)
        ]
        assert np.mean(changed) == 0 if change == 0 else np.mean(changed) >= 0.6


def test_a_subdivision_has_dozens_of_houses_along_parallel_streets(tmp_path: Path) -> None:
    """So that counts beyond ten are taught: of all other events on real ground, one in 500 had more."""
    write_tile(tmp_path / "a.png", side=320)
    houses = []
    for seed in range(6):
        plan, rng = Plan((256, 256), 1.0), np.random.default_rng(seed)
        area = GroundNeighborhood(rng, plan, Ground(GroundTiles(tmp_path).read(tmp_path / "a.png")), None)
        subdivision(area)
        assert {house.when for house in plan.houses} == {"built"}
        streets = [road.line[-1] - road.line[0] for road in plan.roads]
        assert np.allclose(streets, streets[0])
        houses.append(len(plan.houses))
    assert np.median(houses) >= 15


def test_an_unchanged_pair_differs_in_its_pixels(folder: Path) -> None:
    scene = make_ground_scene(1, GroundTiles(folder), 64, 64, SceneOptions(change=0.0))
    assert np.abs(scene.before.astype(int) - scene.after).mean() > 1


def test_a_cut_out_building_fills_its_frame(folder: Path) -> None:
    tiles = GroundTiles(folder)
    cutouts = cut_out_buildings(tiles.read(folder / "masked" / "c.png"))
    assert len(cutouts) == 2
    for cutout in cutouts:
        assert cutout.pixels.shape == (19, 33, 3)  # from center to center of the outermost pixels
        assert np.abs(cutout.pixels.mean(axis=(0, 1)) - (190, 90, 70)).max() < 8
        assert np.abs(cutout.outline).max() == pytest.approx(0.5)
    assert cut_out_buildings(tiles.read(folder / "plain" / "a.png")) == []


def test_the_cover_comes_from_the_mask_or_from_colors(folder: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "c.png", masked=True)
    options = SceneOptions(change=0.0)
    cover = make_ground_scene(0, GroundTiles(tmp_path), 96, 96, options).cover
    assert {COVER_CODE["built"], COVER_CODE["grass"]} <= set(np.unique(cover))
    colors = {"grass": (120, 140, 90), "soil": (190, 160, 130), "trees": (50, 75, 45), "water": (25, 35, 45)}
    colors |= {"built": (150, 150, 146)}
    for name, color in colors.items():
        guessed = guess_cover(np.full((40, 40, 3), color, np.uint8))
        assert (guessed == COVER_CODE[name]).all(), name


def test_pixel_sizes_are_read_from_the_nearest_file(folder: Path, tmp_path: Path) -> None:
    tiles = GroundTiles(folder)
    assert tiles.read(folder / "plain" / "a.png").gsd_m == 0.5
    assert tiles.read(folder / "masked" / "c.png").gsd_m is None
    write_tile(tmp_path / "a.png")
    (tmp_path / "gsd.txt").write_text("half a meter")
    with pytest.raises(InputError, match=r"gsd\.txt must hold the meters per pixel"):
        make_ground_scene(0, GroundTiles(tmp_path), 64, 64)


def test_parts_can_be_left_out(folder: Path) -> None:
    """Without objects of both dates, an unchanged scene shows the tile alone; without distractors, the dates
    differ less."""
    tiles, seeds = GroundTiles(folder), range(8)
    differences = []
    for without in ((), ("distractors", "unchanged", "cutouts", "hidden")):
        options = SceneOptions(change=0.0, strength=0.0, without=without)
        scenes = [make_ground_scene(seed, tiles, 64, 64, options) for seed in seeds]
        differences.append(np.median([np.abs(s.before.astype(int) - s.after).mean() for s in scenes]))
    assert differences[1] < 0.9 * differences[0]
    cache = SceneCache(folder / "none", 1, 0, 64, SceneOptions(without=("cutouts",)), folder)
    assert "without cutouts" in cache.description


def test_growth_alters_the_texture_of_plants_and_little_of_built_land(tmp_path: Path) -> None:
    """Correlation of the fine texture of both dates, without any other difference between them."""
    write_tile(tmp_path / "a.png", masked=True)
    tiles = GroundTiles(tmp_path)
    parts: tuple[GroundPart, ...] = ("unchanged", "cutouts", "hidden")

    def correlation(*without: GroundPart) -> list[float]:
        correlations = []
        for seed in range(8):
            ground = Ground(tiles.draw_window(np.random.default_rng(seed), (96, 96)))
            rng = np.random.default_rng(seed)
            renderer = GroundRenderer(rng, Plan((96, 96), 1.0, rich=True), ground, [], (*parts, *without))
            dates = [renderer.pixels.copy() for _ in range(2)]
            for land in dates:
                if renderer.growth:
                    renderer.regrow(rng, land)
            fine = [gray_of(land) - ndimage.uniform_filter(gray_of(land), 5) for land in dates]
            is_wild = renderer.wild > 0.9
            correlations.append([np.corrcoef(*(f[m] for f in fine))[0, 1] for m in (is_wild, ~is_wild)])
        return [float(value) for value in np.mean(correlations, axis=0)]

    wild, built = correlation()
    assert wild < 0.3 < 0.4 < built
    assert correlation("growth") == pytest.approx([1, 1])


def test_relighting_retones_covers_apart_and_alters_the_relief(tmp_path: Path) -> None:
    """Covers get tones of their own, and what stood out does so less or more."""
    write_tile(tmp_path / "tile.png", masked=True)
    ground = Ground(GroundTiles(tmp_path).draw_window(np.random.default_rng(0), (96, 96)))
    ratios, reliefs = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        renderer = GroundRenderer(rng, Plan((96, 96), 1.0, rich=True), ground, [], ())
        land = renderer.pixels.copy()
        renderer.relight(rng, land)
        gains = [
            land[ground.cover == code].mean() / renderer.pixels[ground.cover == code].mean()
            for code in np.unique(ground.cover)
        ]
        ratios.append(max(gains) / min(gains))
        fine = [gray_of(p) - ndimage.uniform_filter(gray_of(p), 9) for p in (renderer.pixels, land)]
        reliefs.append(fine[1].std() / fine[0].std())
    assert np.median(ratios) > 1.05
    assert np.ptp(reliefs) > 0.1


def test_both_dates_are_relit_where_growth_is_not_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relit: list[int] = []
    monkeypatch.setattr(GroundRenderer, "relight", lambda self, rng, land: relit.append(land.shape[0]))
    tiles = GroundTiles(folder)
    make_ground_scene(0, tiles, 64, 64, SceneOptions(without=("growth",)))
    assert not relit
    make_ground_scene(0, tiles, 64, 64)
    assert len(relit) == 2


def test_winged_roofs_stay_on_their_houses_and_have_slopes_of_their_own_brightness(tmp_path: Path) -> None:
    write_tile(tmp_path / "tile.png", side=96)
    ground = Ground(GroundTiles(tmp_path).read(tmp_path / "tile.png"))
    house = House((48, 48), 40, 30, 0.4, 0, "hip")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        plan = Plan((96, 96), 1.0, rich=True)
        plan.houses.append(house)
        renderer = GroundRenderer(rng, plan, ground, [], ())
        renderer.wings = [random_wings(rng)]
        image = Image.new("RGB", (96, 96))
        light = Light(0.6, 0.3, 0.5, (0.0, 0.0))
        renderer.draw_roof(ImageDraw.Draw(image), house, np.array([120, 100, 90], np.float32), light)
        roof = np.asarray(image).any(axis=2)
        outline = Image.new("L", (96, 96))
        ImageDraw.Draw(outline).polygon(polygon(house.footprint), fill=1)
        footprint = np.asarray(outline, bool)
        assert (roof & ~ndimage.binary_dilation(footprint, iterations=2)).sum() == 0
        assert 0.5 < (roof & footprint).sum() / footprint.sum() <= 1
        assert len(np.unique(np.asarray(image)[roof], axis=0)) >= 4


def test_most_drawn_roofs_have_wings_and_some_have_none(folder: Path) -> None:
    ground = Ground(GroundTiles(folder).draw_window(np.random.default_rng(0), (96, 96)))
    plan = Plan((96, 96), 1.0, rich=True)
    plan.houses += [House((x, 48), 20, 15, 0, 5, "hip") for x in (20, 48, 76)]
    wings = [
        parts
        for seed in range(20)
        for parts in GroundRenderer(np.random.default_rng(seed), plan, ground, [], ()).wings
    ]
    assert 0.4 < np.mean([bool(parts) for parts in wings]) < 0.9


def test_cleared_ground_is_free_for_houses_whatever_the_tile_shows(folder: Path) -> None:
    ground = Ground(GroundTiles(folder).draw_window(np.random.default_rng(0), (96, 96)))
    ground.occupied[:] = 1.0
    plan = Plan((96, 96), 1.0, rich=True)
    area = GroundNeighborhood(np.random.default_rng(0), plan, ground, None)
    area.tolerance = 0.3
    house = House((48, 48), 20, 15, 0.0, 5, "hip")
    assert not area.fits(house)
    plan.patches.append(Patch(rectangle((48, 48), 60, 60, 0.0), "soil", "built"))
    assert area.fits(house)


def test_where_nothing_is_drawn_the_ground_stays_as_it_is(folder: Path) -> None:
    """Rounding is no drawing: noise and blur of drawn objects stay off untouched ground."""
    ground = Ground(GroundTiles(folder).draw_window(np.random.default_rng(0), (96, 96)))
    rng = np.random.default_rng(0)
    renderer = GroundRenderer(rng, Plan((96, 96), 1.0, rich=True), ground, [], ())
    land = ground.window.pixels.astype(np.float32) * 0.93
    drawn = land.astype(np.uint8)
    assert (renderer.blend(land, drawn) == drawn).all()
    drawn[40:50, 40:50] = 255
    blended = renderer.blend(land, drawn)
    assert (blended[:30, :30] == drawn[:30, :30]).all()
    assert blended[43:47, 43:47].mean() > 200


def two_dates() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Grass, and the same grass as darker soil with other texture, (96, 96, 3)."""
    grass, soil = (
        np.random.default_rng(seed).normal(color, 8, (96, 96, 3))
        for seed, color in enumerate([(120, 150, 90), (75, 60, 50)])
    )
    return grass.clip(0, 255).astype(np.uint8), soil.clip(0, 255).astype(np.uint8)


def test_each_date_of_a_tile_with_two_is_the_ground_of_that_date() -> None:
    """The land is that of the tile, and a house of both dates has the tone of the land at each."""
    before, after = two_dates()
    ground = Ground(TileWindow(before, None, 0.5, Path("a.png"), after=after))
    for house in (False, True):
        plan = Plan((96, 96), 1.0, rich=True)
        if house:
            plan.houses.append(House((48, 48), 40, 30, 0.3, 0, "flat"))
        rng = np.random.default_rng(0)
        renderer = GroundRenderer(rng, plan, ground, [], ())
        dates = [renderer.render(rng, date, random_light(rng)).astype(float) for date in (0, 1)]
        land = (slice(0, 20), slice(0, 20))  # without the house
        textures = [date[land].ravel() for date in (*dates, before, after)]
        likeness = np.corrcoef(textures)[:2, 2:]
        assert likeness.diagonal().min() > 0.7
        assert likeness[[0, 1], [1, 0]].max() < 0.5
        assert (
            np.abs([date[land].mean() for date in dates] - np.array([before.mean(), after.mean()])).max() < 12
        )
        if house:
            level = [date[44:52, 44:52].mean() for date in dates]
            assert level[1] / level[0] == pytest.approx(after.mean() / before.mean(), rel=0.25)


def test_a_tile_with_two_dates_has_either_first_and_no_change_of_its_own(tmp_path: Path) -> None:
    before, after = two_dates()
    Image.fromarray(before).save(tmp_path / "a.png")
    digest = GroundTiles(tmp_path).digest
    Image.fromarray(after).save(tmp_path / "a.after.png")
    tiles = GroundTiles(tmp_path)
    assert tiles.paths == [tmp_path / "a.png"]
    assert tiles.digest != digest
    is_grass_first = []
    for seed in range(8):
        window = tiles.draw_window(np.random.default_rng(seed), (64, 64))
        assert window.after is not None
        levels = [window.pixels.mean(), window.after.mean()]
        assert sorted(levels) == pytest.approx([after.mean(), before.mean()], abs=3)
        is_grass_first.append(levels[0] > levels[1])
    assert 0 < sum(is_grass_first) < 8
    unchanged = make_ground_scene(3, tiles, 64, 64, SceneOptions(change=0.0, strength=0.0))
    assert np.abs(unchanged.before.astype(float) - unchanged.after).mean() > 30
    assert not unchanged.change.any()


def test_the_other_date_goes_on_into_the_neighbors_of_a_tile(tmp_path: Path) -> None:
    """Window of many tiles, of which one has a second date: the others show the same at both."""
    before, after = two_dates()
    for name in ("a", "b", "c"):
        Image.fromarray(before[:40, :40]).save(tmp_path / f"{name}.png")
    Image.fromarray(after[:40, :40]).save(tmp_path / "a.after.png")
    tiles = GroundTiles(tmp_path)
    rng = np.random.default_rng(0)
    pixels, other, _ = tiles._mosaic(rng, tmp_path / "a.png", (80, 80))
    assert other is not None
    is_same = (pixels == other).all(axis=2)
    assert not is_same[:40, :40].any()
    assert is_same.any()


def test_the_other_date_must_have_the_size_of_the_tile(tmp_path: Path) -> None:
    before, after = two_dates()
    Image.fromarray(before).save(tmp_path / "a.png")
    Image.fromarray(after[:50]).save(tmp_path / "a.after.png")
    with pytest.raises(InputError, match=r"a\.after\.png must have the size of a\.png"):
        make_ground_scene(0, GroundTiles(tmp_path), 64, 64)


def write_grass_geotiff(path: Path, side: int = 160) -> None:
    """Write a grass GeoTIFF of 0.5 m pixels in UTM."""
    pixels = np.random.default_rng(0).normal((110, 130, 80), 6, (side, side, 3)).clip(0, 255).astype(np.uint8)
    write_geotiff(path, pixels, transform=Affine(0.5, 0, 300000, 0, -0.5, 4500000), crs="EPSG:32618")


def test_a_scene_on_a_geotiff_is_a_window_of_it(tmp_path: Path) -> None:
    write_grass_geotiff(tmp_path / "a.tif")
    write_tile(tmp_path / "b.png")
    tiles = GroundTiles(tmp_path)
    assert tiles.georeferenced == [tmp_path / "a.tif"]
    assert tiles.read(tmp_path / "a.tif").gsd_m == 0.5
    options = SceneOptions(change=0.0, strength=0.0, misregistration_px=0.0)
    scene, path, (row, col) = make_georeferenced_scene(2, tiles, 96, 80, options)
    assert path == tmp_path / "a.tif"
    assert scene.before.shape == (80, 96, 3)
    assert 16 <= row <= 160 - 80 - 16
    assert 16 <= col <= 160 - 96 - 16
    with pytest.raises(InputError, match="has 160 x 161 px, the size of the scene"):
        make_georeferenced_scene(2, tiles, 128, 129, options)


def test_pixels_that_are_not_8_bit_are_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif has pixels of Pillow's mode I;16"):
        make_ground_scene(0, GroundTiles(tmp_path), 64, 64)


def test_a_hidden_building_is_covered_by_free_ground(folder: Path) -> None:
    """Its mask is a building, and all that covers it is neither building nor road nor water."""
    tile = GroundTiles(folder).read(folder / "masked" / "c.png")
    window = TileWindow(tile.pixels, tile.classes, 0.5, folder / "masked" / "c.png")
    hidden = hide_buildings(np.random.default_rng(1), Ground(window), True)
    assert hidden
    for building in hidden:
        assert tile.classes is not None
        rows, cols = np.nonzero(building.mask)
        assert (tile.classes[rows, cols] == BUILDING).all()
        assert (tile.classes[rows + building.source[0], cols + building.source[1]] == 4).all()
        assert (building.cover[rows, cols] > 0.9).all()
    assert all(b.when == "both" for b in hide_buildings(np.random.default_rng(1), Ground(window), False))


def test_a_folder_without_tiles_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tiles"):
        GroundTiles(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        GroundTiles(tmp_path / "none")
    write_tile(tmp_path / "a.png", masked=True)
    Image.new("L", (8, 8)).save(tmp_path / "a.mask.png")
    with pytest.raises(InputError, match=r"a\.mask\.png must have one band and the size of a\.png"):
        make_ground_scene(0, GroundTiles(tmp_path), 64, 64)


def test_a_cache_of_scenes_on_tiles_is_named_by_their_content(folder: Path, tmp_path: Path) -> None:
    options = SceneOptions(change=1.0)
    cache = SceneCache(tmp_path / "cache", 2, 40, 64, options, folder)
    cache.render(workers=1)
    images, truth = open_cache(tmp_path / "cache")
    scene = make_ground_scene(41, GroundTiles(folder), 64, 64, options)
    assert np.array_equal(images[1, 1], scene.after)
    assert np.array_equal(truth[1, 0], scene.change[::2, ::2])
    assert cache.count_rendered() == 2
    write_tile(tmp_path / "other" / "a.png")
    other = SceneCache(tmp_path / "cache", 2, 40, 64, options, tmp_path / "other")
    assert other.count_rendered() == 0


def test_pasted_buildings_are_where_the_truth_says(folder: Path) -> None:
    """A building of one date differs more between clean dates than its surroundings do."""
    tiles, built = GroundTiles(folder), CHANGE_CODE["building_built"]
    ratios = []
    for seed in range(24):
        scene = make_ground_scene(seed, tiles, 96, 96, SceneOptions(change=1.0, strength=0.0))
        difference = np.abs(scene.before.astype(float) - scene.after).mean(axis=2)
        if (scene.change == built).sum() > 60:
            ratios.append(difference[scene.change == built].mean() / difference[scene.change == 0].mean())
    assert len(ratios) >= 4
    assert np.median(ratios) > 1.3
