"""Chips read by strips equal chips read one by one, in any layout, and no block is decoded in vain."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from deltavlm.errors import RasterError
from deltavlm.geo import strips, view
from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.geo.strips import read_chips
from deltavlm.geo.view import Raw, View
from tests.geo.reading import opened
from tests.rasters import HALF_METRE, moved, noise, smooth, spoil, write_raster

ROWS, COLS, SIZE = 210, 330, 32
TILES = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
STRIPS = {"blockysize": 1, "compress": "deflate"}
BOX = (3.0003, 45.1524, 3.0009, 45.1530)  # lon/lat
RGB = {"photometric": "RGB", "interleave": "pixel"}

PairFiles = tuple[Path, Path, dict[str, Any]]


def pixels(bands: int = 3, dtype: str = "uint8", **limits: int) -> NDArray[Any]:
    return noise(bands, ROWS, COLS, dtype, **limits)


def written(folder: Path, first: NDArray[Any], second: NDArray[Any], **profile: Any) -> tuple[Path, Path]:
    return (
        write_raster(folder / "before.tif", first, **RGB | profile),
        write_raster(folder / "after.tif", second, **RGB | profile),
    )


def holed(values: NDArray[Any], fill: float) -> NDArray[Any]:
    values = values.copy()
    values[:, 40:90, 20:70] = fill
    values[:, 100:102] = fill
    return values


def plain(folder: Path, **profile: Any) -> PairFiles:
    return *written(folder, pixels(), 255 - pixels(), **profile), {}


def mixed(folder: Path) -> PairFiles:
    """Tiles before, and strips after, which has one more row and column at its upper left."""
    before = write_raster(folder / "before.tif", pixels(), **RGB, **TILES)
    larger = np.pad(255 - pixels(), ((0, 0), (7, 0), (11, 0)))
    return before, write_raster(folder / "after.tif", larger, **RGB, **STRIPS, transform=moved(-11, -7)), {}


def masked(folder: Path) -> PairFiles:
    mask = np.ones((ROWS, COLS), bool)
    mask[30:60, 100:180] = False
    before, _ = written(folder, pixels(), pixels(), **TILES)
    return before, write_raster(folder / "after.tif", pixels(), mask=mask, **RGB, **TILES), {}


def alpha(folder: Path) -> PairFiles:
    values = np.concatenate([pixels(), np.full((1, ROWS, COLS), 255, "uint8")])
    values[3, 50:120, 40:200] = 0
    return *written(folder, values, values, **TILES, colorinterp=["red", "green", "blue", "alpha"]), {}


def palette(folder: Path) -> PairFiles:
    colors = {number: (number, 255 - number, number // 2) for number in range(256)}
    paths = [
        write_raster(folder / f"{name}.tif", pixels(1), palette=colors, photometric="PALETTE", **TILES)
        for name in ("before", "after")
    ]
    return *paths, {}


def floats(folder: Path) -> PairFiles:
    values = pixels(dtype="float32") / 255
    return *written(folder, values, holed(values, np.nan), **TILES), {}


def tagged(folder: Path) -> PairFiles:
    values = pixels(dtype="uint16", high=4000)
    tags = {"scales": [0.5] * 3, "offsets": [-100.0] * 3}
    return *written(folder, values, values, **STRIPS, tags=tags), {"scale": "0,2000"}


def warped(folder: Path, **options: Any) -> PairFiles:
    before = write_raster(folder / "before.tif", smooth(3, ROWS, COLS), **RGB, **TILES)
    after = write_raster(
        folder / "after.tif", smooth(3, ROWS, COLS), **RGB, **STRIPS, transform=moved(0.5, 3.3), nodata=0
    )
    return before, after, options


def warped_with_alpha(folder: Path) -> PairFiles:
    before = write_raster(folder / "before.tif", smooth(3, ROWS, COLS), **RGB, **TILES)
    return before, write_raster(folder / "after.tif", smooth(3, ROWS, COLS), transform=moved(0.5, 3.3)), {}


def turned(folder: Path) -> PairFiles:
    """Another CRS, and a mask that is warped by itself."""
    before = write_raster(folder / "before.tif", smooth(3, ROWS, COLS), **RGB, **TILES)
    with rasterio.open(before) as source:
        transform, width, height = rasterio.warp.calculate_default_transform(
            source.crs, "EPSG:3857", source.width, source.height, *source.bounds
        )
    mask = np.ones((height, width), bool)
    mask[30:60, 100:180] = False
    georeference = {"crs": "EPSG:3857", "transform": transform, "nodata": 0}
    return (
        before,
        write_raster(folder / "after.tif", smooth(3, height, width), mask=mask, **RGB, **georeference),
        {},
    )


def pictures(folder: Path) -> PairFiles:
    paths = [folder / "before.png", folder / "after.jpg"]
    for path in paths:
        Image.fromarray(smooth(3, ROWS, COLS).transpose(1, 2, 0)).save(path)
    return *paths, {"allow_no_crs": True}


LAYOUTS: dict[str, Callable[[Path], PairFiles]] = {
    "tiles": lambda folder: plain(folder, **TILES),
    "strips": lambda folder: plain(folder, **STRIPS),
    "one strip": lambda folder: plain(folder, blockysize=ROWS, compress="deflate"),
    "band by band": lambda folder: plain(folder, interleave="band"),
    "tiles and strips, shifted": mixed,
    "uint16": lambda folder: (*written(folder, *[pixels(dtype="uint16", high=3000)] * 2, **TILES), {}),
    "nodata": lambda folder: (*written(folder, pixels(), holed(pixels(), 0), **STRIPS, nodata=0), {}),
    "mask": masked,
    "alpha": alpha,
    "palette": palette,
    "one band": lambda folder: (*written(folder, *[pixels(1)] * 2, photometric="MINISBLACK", **TILES), {}),
    "bands in another order": lambda folder: (*plain(folder, **TILES)[:2], {"before_bands": (3, 1, 2)}),
    "float with NaN": floats,
    "scale and offset": tagged,
    "warped": warped,
    "warped, with alpha": warped_with_alpha,
    "both resampled": lambda folder: warped(folder, gsd_m=0.7),
    "another CRS and a mask": turned,
    "pictures": pictures,
    "an area of interest": lambda folder: (*plain(folder, **TILES)[:2], {"bbox": BOX}),
}  # fmt: skip


@pytest.fixture(params=["small strips", "one strip"])
def strip_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of chips at most, or all of them."""
    if request.param == "small strips":
        monkeypatch.setattr(strips, "STRIP_ROWS", 3 * SIZE)


def equal(result: ChipPixels | RasterError, expected: ChipPixels) -> bool:
    assert isinstance(result, ChipPixels)
    names = ("before", "after", "valid")
    arrays = [(getattr(result, name), getattr(expected, name)) for name in names]
    return result.chip == expected.chip and all(
        first.dtype == second.dtype and np.array_equal(first, second) for first, second in arrays
    )


@pytest.mark.parametrize(("size", "overlap"), [(SIZE, 0), (SIZE, 10), (256, 0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pixels_are_those_of_chip_by_chip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, size: int, overlap: int
) -> None:
    """In strips of three rows of chips at most, whose rows of blocks are read one by one, and in one strip of
    all rows."""
    before, after, options = LAYOUTS[layout](tmp_path)
    with opened(before, after, **options) as reader:
        expected = [reader.read(chip) for chip in reader.chips(size, overlap)]
        for strip_rows, reread_bytes in ((3 * SIZE, 1), (strips.STRIP_ROWS, view.REREAD_BYTES)):
            monkeypatch.setattr(strips, "STRIP_ROWS", strip_rows)
            monkeypatch.setattr(view, "REREAD_BYTES", reread_bytes)
            results = list(read_chips(reader, reader.chips(size, overlap)))
            assert [chip for chip, _ in results] == [pixels.chip for pixels in expected]
            assert all(equal(result, pixels) for (_, result), pixels in zip(results, expected, strict=True))


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Window]]:
    """Windows that are read of each file, in order."""
    read = View.read_raw
    windows: dict[str, list[Window]] = {"before.tif": [], "after.tif": []}

    def record(self: View, buffer: Raw, window: Window, **options: Any) -> Raw:
        windows[Path(self.source.location).name].append(window)
        return read(self, buffer, window, **options)

    monkeypatch.setattr(View, "read_raw", record)
    return windows


def read_all(reader: PairReader, windows: dict[str, list[Window]], chips: list[Chip]) -> None:
    for recorded in windows.values():
        recorded.clear()
    for (chip, result), expected in zip(read_chips(reader, iter(chips)), chips, strict=True):
        assert chip == expected
        assert isinstance(result, ChipPixels)


def test_no_row_of_blocks_is_decoded_twice(
    tmp_path: Path, windows: dict[str, list[Window]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chips with overlap, and blocks that their edges cut: what one strip has decoded the next one keeps."""
    monkeypatch.setattr(strips, "STRIP_ROWS", 2 * SIZE)
    before, after, _ = mixed(tmp_path)
    with opened(before, after) as reader:
        read_all(reader, windows, list(reader.chips(SIZE, 10)))
    for name, block, shift in (("before.tif", 64, 0), ("after.tif", 1, 7)):
        edge = 0
        for window in windows[name]:
            assert window.row_off == edge
            assert window.width == COLS
            edge += window.height
            assert edge == ROWS or (edge + shift) % block == 0
        assert edge == ROWS


@pytest.mark.parametrize("layout", [alpha, warped_with_alpha])
def test_alpha_is_read_while_the_cache_holds_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[[Path], PairFiles]
) -> None:
    """After the colors of the same blocks; after those of a whole strip, blocks are decoded again."""
    monkeypatch.setattr(view, "REREAD_BYTES", 1)
    reads: list[tuple[Any, int, int]] = []

    class Recorder:
        def __init__(self, dataset: Any) -> None:
            self.dataset = dataset

        def __getattr__(self, name: str) -> Any:
            return getattr(self.dataset, name)

        def read(self, bands: Any, window: Any, **options: Any) -> Any:
            reads.append((bands, window.row_off, window.height))
            return self.dataset.read(bands, window=window, **options)

    before, after, options = layout(tmp_path)
    with opened(before, after, **options) as reader:
        date = reader.views[1]
        recorder: Any = Recorder(date.dataset)
        block_rows = date.dataset.block_shapes[0][0]
        layers = tuple(each._replace(dataset=recorder) for each in date.layers)
        recorded = replace(date, layers=layers, mask=recorder, alpha=4)
        recorded.read_raw(recorded.allocate(100, COLS), Window(0, 50, COLS, 100))
    edges = [50, *range(-(-51 // block_rows) * block_rows, 150, block_rows), 150]
    expected = [(top, bottom - top) for top, bottom in pairwise(edges)]
    assert len(expected) > 1
    assert reads == [(bands, *rows) for rows in expected for bands in ([1, 2, 3], 4)]


def test_rows_in_the_buffer_are_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two rows of chips: the second row of chips is cut from what the first one needed."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 0)
    moves: list[int] = []
    resize = strips._RowBuffer._resize

    def record(buffer: strips._RowBuffer, rows: int, cols: int, reused: int, start: int) -> Raw:
        moves.append(reused)
        return resize(buffer, rows, cols, reused, start)

    monkeypatch.setattr(strips._RowBuffer, "_resize", record)
    before, after, _ = plain(tmp_path, **TILES)
    with opened(before, after) as reader:
        rows = reader.chips(SIZE).rows
        assert sum(1 for _ in read_chips(reader, reader.chips(SIZE))) == rows * reader.chips(SIZE).cols
    assert len(moves) == 2 * -(-ROWS // 64) < 2 * rows


def test_windows_without_chips_are_not_read(tmp_path: Path, windows: dict[str, list[Window]]) -> None:
    before, after, _ = plain(tmp_path, **TILES)
    with opened(before, after) as reader:
        grid = reader.chips(SIZE)
        read_all(reader, windows, [grid[2, col] for col in range(3)])  # a limit, or an area of interest
        assert windows["before.tif"] == windows["after.tif"] == [Window(0, 64, 96, 64)]
        apart = [grid[0, 0], grid[0, 9], grid[5, 4]]
        read_all(reader, windows, apart)  # chips that failed in the run before
        assert windows["after.tif"] == [chip.window for chip in apart]


def test_of_a_file_in_strips_no_chip_is_read_alone(tmp_path: Path, windows: dict[str, list[Window]]) -> None:
    before, after, _ = plain(tmp_path, **STRIPS)
    with opened(before, after) as reader:
        grid = reader.chips(SIZE)
        read_all(reader, windows, [grid[0, 0], grid[0, 9], grid[5, 4], grid[5, 8]])
        assert windows["after.tif"] == [Window(0, 0, 320, SIZE), Window(128, 160, 160, SIZE)]


def test_a_row_of_chips_that_is_too_long_is_cut(
    tmp_path: Path, windows: dict[str, list[Window]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "MAX_BYTES", 3 * SIZE * COLS // 2)
    monkeypatch.setattr(strips, "STRIP_BYTES", 0)
    before, after, _ = plain(tmp_path, **TILES)
    with opened(before, after) as reader:
        read_all(reader, windows, list(reader.chips(SIZE)))
    assert all(window.width <= COLS // 2 + SIZE for window in windows["after.tif"])


@pytest.mark.parametrize("layout", ["tiles", "strips"])
def test_a_block_that_cannot_be_decoded_takes_its_chips_only(
    tmp_path: Path, layout: str, strip_size: None
) -> None:
    before, after, _ = LAYOUTS[layout](tmp_path)
    spoil(after, [(1, 1)] if layout == "tiles" else [(64, 0), (96, 0)])
    with opened(before, after) as reader:
        results = dict(read_chips(reader, reader.chips(SIZE)))
        for chip, result in results.items():
            if isinstance(result, ChipPixels):
                assert equal(result, reader.read(chip))
            else:
                with pytest.raises(RasterError, match=chip.chip_id) as failure:
                    reader.read(chip)
                assert str(result) == str(failure.value)
        bad = {chip.chip_id for chip, result in results.items() if isinstance(result, RasterError)}
        cols = range(2, 4) if layout == "tiles" else range(reader.chips(SIZE).cols)
        assert bad == {reader.chips(SIZE)[row, col].chip_id for row in (2, 3) for col in cols}


def test_no_thread_stays_when_reading_is_stopped(tmp_path: Path) -> None:
    before, after, _ = plain(tmp_path, **TILES)
    with opened(before, after) as reader:
        chips = read_chips(reader, reader.chips(SIZE))
        next(chips)
        assert any(thread.name.startswith("reading") for thread in threading.enumerate())
        chips.close()
    assert not any(thread.name.startswith("reading") for thread in threading.enumerate())


def test_a_chip_keeps_its_pixels_when_the_next_strip_is_read(tmp_path: Path) -> None:
    """A strip of one chip is read into a buffer of its size, which is then filled again."""
    values = pixels()[:, : 3 * SIZE, :SIZE]
    before, after = written(tmp_path, values, values, blockysize=SIZE, transform=HALF_METRE * Affine.scale(1))
    with opened(before, after) as reader:
        for chip, result in read_chips(reader, list(reader.chips(SIZE))):
            assert isinstance(result, ChipPixels)
            assert result.before.base is None
            assert (result.before == values[:, chip.window.row_off :][:, :SIZE]).all()
