"""Laws of the chip grid: it covers the raster, cells cover the chip, and everything follows the affine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.grid import Chip, ChipGrid

ROTATED = Affine.translation(500_000, 5_000_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)

lengths = st.integers(1, 700)
sizes = st.integers(1, 300)
transforms = st.sampled_from([Affine.identity(), Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), ROTATED])


@st.composite
def grids(draw: st.DrawFn) -> ChipGrid:
    size = draw(st.integers(60, 300))
    overlap = draw(st.integers(0, size // 2))
    return ChipGrid(GeoBox(draw(lengths), draw(lengths), draw(transforms)), size, overlap)


@given(grids())
def test_chips_cover_every_pixel_and_are_full(grid: ChipGrid) -> None:
    counts = np.zeros((grid.geobox.height, grid.geobox.width), int)
    for chip in grid:
        col, row, width, height = chip.window
        assert (width, height) == (min(grid.size, grid.geobox.width), min(grid.size, grid.geobox.height))
        counts[row : row + height, col : col + width] += 1
        assert counts[row : row + height, col : col + width].shape == (height, width)
    assert counts.min() >= 1


@given(st.integers(1, 5), st.integers(1, 5), sizes, transforms)
def test_without_overlap_an_exact_grid_is_a_partition(
    rows: int, cols: int, size: int, transform: Affine
) -> None:
    """Every point of the ground lies in exactly one chip."""
    grid = ChipGrid(GeoBox(cols * size, rows * size, transform), size)
    assert len(grid) == rows * cols
    footprints = [chip.footprint for chip in grid]
    union = shapely.union_all(footprints, grid_size=1e-6)
    area = grid.geobox.width * grid.geobox.height * abs(transform.determinant)
    assert sum(footprint.area for footprint in footprints) == pytest.approx(area)
    assert union.area == pytest.approx(area)


@given(grids())
def test_chip_ids_are_unique_and_indices_invertible(grid: ChipGrid) -> None:
    chips = list(grid)
    assert len(chips) == len(grid) == grid.rows * grid.cols
    assert len({chip.chip_id for chip in chips}) == len(chips)
    assert chips == [grid[row, col] for row in range(grid.rows) for col in range(grid.cols)]


@given(grids())
def test_the_number_of_chips_is_minimal(grid: ChipGrid) -> None:
    """One chip fewer in a row would leave pixels out, or need a smaller overlap."""
    stride = grid.size - grid.overlap
    for count, length in ((grid.cols, grid.geobox.width), (grid.rows, grid.geobox.height)):
        assert count == 1 or (count - 2) * stride + grid.size < length


@given(st.integers(90, 300), st.integers(1, 400), st.integers(1, 400), transforms)
def test_cells_are_a_partition_of_the_chip(size: int, width: int, height: int, transform: Affine) -> None:
    """Also of a chip that is padded: its cells are thirds of the square, cut to the real pixels."""
    for chip in ChipGrid(GeoBox(width, height, transform), size):
        cells = [chip.cell(row, col) for row, col in itertools.product(range(3), repeat=2)]
        assert sum(cell.area for cell in cells) == pytest.approx(chip.footprint.area)
        tolerance = 1e-7 * max(abs(value) for value in chip.footprint.bounds)
        for cell in cells:
            assert cell.is_empty or chip.footprint.buffer(tolerance).contains(cell)
            assert cell.area <= chip.footprint.area / 9 * 1.0001 or (width < size or height < size)


def test_cell_of_a_padded_chip_is_a_third_of_the_square() -> None:
    """Once "top-right" was a third of what is visible: the model sees the padded square."""
    (chip,) = ChipGrid(GeoBox(200, 100, Affine.identity()), size=300)
    assert chip.cell(0, 0).bounds == (0, 0, 100, 100)
    assert chip.cell(0, 2).is_empty
    assert chip.cell(1, 1).is_empty


def test_rotated_footprint_has_rotated_corners() -> None:
    chip = Chip(0, 0, Window(10, 20, 256, 256), 256, ROTATED)
    expected = [ROTATED * corner for corner in ((10, 20), (10, 276), (266, 276), (266, 20))]
    assert np.array(chip.footprint.exterior.coords)[:-1] == pytest.approx(np.array(expected))
    assert chip.footprint.area == pytest.approx(256 * 256 * 0.25)
    assert shapely.box(*chip.footprint.bounds).area > 1.5 * chip.footprint.area


@pytest.mark.parametrize("row_col", [(3, 0), (0, 3), (-1, 0)])
def test_cell_outside_3x3(row_col: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="3x3"):
        Chip(0, 0, Window(0, 0, 9, 9), 9, Affine.identity()).cell(*row_col)


def test_chip_id_holds_pixel_offsets() -> None:
    assert ChipGrid(GeoBox(700, 600, Affine.identity()), 256, 56)[1, 2].chip_id == "r00200_c00400"
    assert ChipGrid(GeoBox(700, 600, Affine.identity()), 256)[2, 2].chip_id == "r00344_c00444"


@given(grids(), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.7))
def test_keep_selects_chips_that_share_area(grid: ChipGrid, x: float, y: float, radius: float) -> None:
    center = shapely.Point(grid.geobox.transform * (x * grid.geobox.width, y * grid.geobox.height))
    area = center.buffer(radius * grid.geobox.width * abs(grid.geobox.transform.determinant) ** 0.5)
    selected = ChipGrid(grid.geobox, grid.size, grid.overlap, area)
    shared = {chip.chip_id: chip.footprint.intersection(area).area for chip in grid}
    ids = {chip.chip_id for chip in selected}
    assert len(selected) == len(ids)
    assert ids <= set(shared)
    assert all(share < 1e-6 or name in ids for name, share in shared.items())
    assert all(shared[name] > 0 for name in ids)


def own_shares(grid: ChipGrid) -> dict[str, float]:
    """Shares of ground by counting, for each pixel, the chips that cover it."""
    cover = np.zeros((grid.geobox.height, grid.geobox.width))
    slices = {}
    for chip in grid:
        col, row, width, height = chip.window
        slices[chip.chip_id] = slice(row, row + height), slice(col, col + width)
        cover[slices[chip.chip_id]] += 1
    return {name: float(np.mean(1 / cover[pixels])) for name, pixels in slices.items()}


@given(grids())
def test_common_ground_is_divided_evenly(grid: ChipGrid) -> None:
    """Also at overlap 0, where a shifted edge chip has as little as a pixel of its own."""
    assert {chip.chip_id: chip.ground_share for chip in grid} == pytest.approx(own_shares(grid))
    assert all(chip.aoi_share is None for chip in grid)
    area = sum(chip.ground_share * chip.footprint.area for chip in grid)
    assert area == pytest.approx(grid.geobox.footprint.area)


@given(grids(), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.7))
def test_chips_of_an_area_divide_their_union(grid: ChipGrid, x: float, y: float, radius: float) -> None:
    """Chips outside of the area of interest take no part of the ground."""
    center = shapely.Point(grid.geobox.transform * (x * grid.geobox.width, y * grid.geobox.height))
    area = center.buffer(radius * grid.geobox.width * abs(grid.geobox.transform.determinant) ** 0.5)
    selected = ChipGrid(grid.geobox, grid.size, grid.overlap, area)
    own = own_shares(selected)
    assert all(chip.ground_share <= min(own[chip.chip_id], chip.aoi_share or 0) + 1e-9 for chip in selected)
    total = sum(chip.ground_share * chip.footprint.area for chip in selected)
    assert total == pytest.approx(grid.geobox.footprint.intersection(area).area, abs=1e-6)
    for chip in selected:
        inside = chip.footprint.intersection(area).area / chip.footprint.area
        assert chip.aoi_share == pytest.approx(inside, abs=1e-6)
    others = {(chip.row, chip.col) for chip in grid} - {(chip.row, chip.col) for chip in selected}
    assert all((selected[key].ground_share, selected[key].aoi_share) == (0, 0) for key in others)


@given(grids(), st.booleans(), st.integers(0, 2**32 - 1))
def test_ground_belongs_to_answered_chips(grid: ChipGrid, has_area: bool, seed: int) -> None:
    """Chips without an answer divide what no answered chip covers, also inside an area of interest."""
    width, height = grid.geobox.width, grid.geobox.height
    inside = np.ones((height, width), bool)
    if has_area:
        top, left = height // 3, width // 4
        inside[:top], inside[:, :left] = False, False
        corners = [(left, top), (width, top), (width, height), (left, height)]
        keep = shapely.Polygon([grid.geobox.transform * corner for corner in corners])
        grid = ChipGrid(grid.geobox, grid.size, grid.overlap, keep)
    present, answered = np.random.default_rng(seed).random((2, grid.rows, grid.cols)) < 0.7
    covers = {True: np.zeros((height, width)), False: np.zeros((height, width))}
    slices = {}
    for row, col in np.argwhere(present).tolist():
        x, y, w, h = grid[row, col].window
        slices[row, col] = slice(y, y + h), slice(x, x + w)
        covers[bool(answered[row, col])][slices[row, col]] += 1
    shares = grid.shares_among(present, answered)
    assert (shares[~present] == 0).all()
    for (row, col), pixels in slices.items():
        counts = inside & ((covers[True] == 0) | answered[row, col])
        cover = np.maximum(covers[bool(answered[row, col])], 1)
        assert shares[row, col] == pytest.approx(np.mean((counts / cover)[pixels]), abs=1e-6)


def test_a_neighbor_that_only_touches_is_not_selected() -> None:
    corner = shapely.box(0, 0, 512, 512) - shapely.box(256, 256, 512, 512)
    grid = ChipGrid(GeoBox(768, 768, Affine.identity()), keep=corner)
    assert [chip.chip_id for chip in grid] == ["r00000_c00000", "r00000_c00256", "r00256_c00000"]


def test_an_empty_area_selects_nothing() -> None:
    grid = ChipGrid(GeoBox(512, 512, Affine.identity()), keep=shapely.Polygon())
    assert (len(grid), list(grid)) == (0, [])


@pytest.mark.parametrize(
    ("width", "size", "overlap"), [(0, 256, 0), (512, 0, 0), (512, 256, 256), (512, 256, -1)]
)
def test_impossible_grids(width: int, size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="px"):
        ChipGrid(GeoBox(width, 512, Affine.identity()), size, overlap)


def test_index_outside_the_grid() -> None:
    with pytest.raises(IndexError):
        ChipGrid(GeoBox(512, 512, Affine.identity()))[2, 0]
