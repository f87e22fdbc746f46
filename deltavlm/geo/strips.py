"""Chip reader by strips: whole rows of chips per read, so that each block of a file is decoded once.

Reading chips one by one is slow where blocks are larger than chips: of a file in strips one pixel high, each
chip decodes the full width. A strip is as high as its byte limit allows. Both dates are read in parallel, as
GDAL releases the interpreter lock while it decodes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import groupby
from operator import add

from deltavlm.errors import RasterError
from deltavlm.geo.gdal import gdal_env
from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair_reader import ChipPixels, PairReader
from deltavlm.geo.view import Raw, View

__all__ = ["read_chips"]

STRIP_BYTES = 32 * 2**20
"""Size of a strip of one date, as stored in the file: 1,365 rows of an RGB raster 8192 px wide, 512 of one
21,845 px wide."""
MAX_BYTES = 128 * 2**20  # of one date, where a single row of chips or of blocks takes more
STRIP_ROWS = 2048  # at most, so that chips of a narrow raster are ready before all of it is read
MIN_FILL = 0.5  # share of a strip's pixels that must belong to chips; below it, chips are read one by one
EMPTY = Window(0, 0, 0, 0)

Row = list[Chip]  # chips of a grid row, left to right


def read_chips(
    reader: PairReader, chips: Iterable[Chip]
) -> Generator[tuple[Chip, ChipPixels | RasterError], None, None]:
    """Read chips of `reader.chips()`, in its order; yields each with its pixels, or why it cannot be decoded.

    Pixels equal those of `reader.read`. Blocks without a chip in `chips` are not read, where possible. Until
    the generator is exhausted or closed, nothing else may be read from the reader.
    """
    with ThreadPoolExecutor(2, "reading", initializer=_enter_gdal_env) as threads:
        strips = _StripReader(reader, threads)
        for rows in _group_rows(chips, strips):
            yield from strips.read(rows)


def _enter_gdal_env() -> None:
    """Set up GDAL in a thread: its settings are per thread, and end with it."""
    gdal_env().__enter__()


def _group_rows(chips: Iterable[Chip], strips: _StripReader) -> Iterator[list[Row]]:
    """Group rows of chips into strips; a row too large for one strip is split."""
    rows: list[Row] = []
    window = EMPTY
    for _, members in groupby(chips, key=lambda chip: chip.row):
        row = list(members)
        row_window = bounding_window(chip.window for chip in row)
        window = bounding_window((window, row_window)) if rows else row_window
        if rows and not strips.fits(window):
            yield rows
            rows, window = [], row_window
        splits = -(-strips.bytes_of(row_window) // MAX_BYTES)
        if splits == 1:
            rows.append(row)
            continue
        length = -(-len(row) // splits)
        for start in range(0, len(row), length):
            yield [row[start : start + length]]
    if rows:
        yield rows


def bounding_window(windows: Iterable[Window]) -> Window:
    """Smallest window that contains all of `windows`."""
    col_offs, row_offs, widths, heights = zip(*windows, strict=True)
    col_off, row_off = min(col_offs), min(row_offs)
    col_end = max(map(add, col_offs, widths))
    row_end = max(map(add, row_offs, heights))
    return Window(col_off, row_off, col_end - col_off, row_end - row_off)


def union_length(spans: Iterable[tuple[int, int]]) -> int:
    """Length of the union of spans (start, length), which are sorted by start."""
    total = end = 0
    for start, length in spans:
        total += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return total


class _StripReader:
    """Strips of both dates of a pair."""

    def __init__(self, reader: PairReader, threads: ThreadPoolExecutor) -> None:
        self.reader = reader
        self.threads = threads
        self.buffers = [_RowBuffer(view, reader.geobox.height) for view in reader.views]
        self.pixel_bytes = max(buffer.pixel_bytes for buffer in self.buffers)
        self.full_width = any(buffer.full_width for buffer in self.buffers)

    def bytes_of(self, window: Window) -> int:
        """Size of a window of the date with the larger pixels."""
        return window.height * window.width * self.pixel_bytes

    def fits(self, window: Window) -> bool:
        """True where a window is within the limits of a strip."""
        return window.height <= STRIP_ROWS and self.bytes_of(window) <= STRIP_BYTES

    def read(self, rows: list[Row]) -> Iterator[tuple[Chip, ChipPixels | RasterError]]:
        """Read rows of chips as one strip; if that is sparse or fails, row by row, then chip by chip."""
        window = bounding_window(chip.window for row in rows for chip in row)
        if not self._is_sparse(rows, window) and self._fill(window):
            for chip in (chip for row in rows for chip in row):
                raws = [buffer.cut(chip.window) for buffer in self.buffers]
                yield chip, self.reader.to_chip_pixels(chip, raws)
        elif len(rows) > 1:
            for row in rows:
                yield from self.read([row])
        else:
            for chip in rows[0]:
                try:
                    yield chip, self.threads.submit(self.reader.read, chip).result()
                except RasterError as error:
                    yield chip, error

    def _is_sparse(self, rows: list[Row], window: Window) -> bool:
        """True where most of the strip would be decoded for nothing."""
        row_windows = [row[0].window for row in rows]
        height = union_length((row_window.row_off, row_window.height) for row_window in row_windows)
        if self.full_width:
            return height < MIN_FILL * window.height
        widths = [union_length((chip.window.col_off, chip.window.width) for chip in row) for row in rows]
        return height * sum(widths) / len(widths) < MIN_FILL * window.height * window.width

    def _fill(self, window: Window) -> bool:
        """Read the strip of both dates; False where a block of it cannot be decoded."""
        reads: list[Future[None]] = [self.threads.submit(buffer.read, window) for buffer in self.buffers]
        wait(reads)
        try:
            for future in reads:
                future.result()
        except RasterError:
            return False
        return True


class _RowBuffer:
    """Rows of one date, read to the end of a row of blocks. Rows that the next strip needs are kept, so that
    no block is decoded twice."""

    def __init__(self, view: View, height: int) -> None:
        pixel = view.allocate(1, 1)
        self.view = view
        self.height = height  # of the grid
        self.pixel_bytes = sum(array.nbytes for array in pixel if array is not None)
        self.block_rows, block_cols = view.dataset.block_shapes[0]
        self.full_width = block_cols >= view.dataset.width  # blocks span the width of the file
        self.raw: Raw | None = None
        self.window = EMPTY  # of the pixels in `raw`, from its upper left corner

    def read(self, window: Window) -> None:
        """Load a window into the buffer. Raises: RasterError."""
        col, top, width, height = window
        loaded, bottom = self.window, max(top + height, self._block_end(window))
        reused = 0  # rows
        if self.raw is not None and (loaded.col_off, loaded.width) == (col, width) and loaded.row_off <= top:
            reused = max(0, loaded.row_off + loaded.height - top)
            if reused >= height:
                return  # all is loaded; moving rows within the buffer would copy them
        self.window = EMPTY  # until the read succeeds
        raw = self._resize(bottom - top, width, reused, top - loaded.row_off)
        if top + reused < bottom:
            target = raw.cut(slice(reused, bottom - top), slice(0, width))
            self.view.read_raw(target, Window(col, top + reused, width, bottom - top - reused))
        self.window = Window(col, top, width, max(bottom - top, reused))

    def cut(self, window: Window) -> Raw:
        """Raw pixels of a window inside the loaded one, not copied."""
        assert self.raw is not None
        row, col = window.row_off - self.window.row_off, window.col_off - self.window.col_off
        return self.raw.cut(slice(row, row + window.height), slice(col, col + window.width))

    def _block_end(self, window: Window) -> int:
        """End of the last row of blocks that the window touches; the window's own end, if that is too far."""
        block, shift = self.block_rows, self.view.row_off
        bottom = window.row_off + window.height
        end = min(self.height, -(-(bottom + shift) // block) * block - shift)
        return end if (end - window.row_off) * window.width * self.pixel_bytes <= MAX_BYTES else bottom

    def _resize(self, rows: int, cols: int, reused: int, start: int) -> Raw:
        """Buffer for `rows` x `cols` pixels, with `reused` rows of the old one, from `start` on, moved to its
        top."""
        old = self.raw
        if old is not None and old.values.shape[2] == cols and old.values.shape[1] >= max(rows, reused):
            raw = old
        else:
            if not reused:
                old = self.raw = None  # frees it before the new one is allocated
            raw = self.raw = self.view.allocate(max(rows, reused), cols)
        if reused and old is not None:
            for target, source in zip(raw, old, strict=True):
                if target is not None and source is not None:
                    target[..., :reused, :] = source[..., start : start + reused, :]
        return raw
