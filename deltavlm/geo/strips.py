"""Chips read by strips: whole rows of chips at once, so that each block of a file is decoded once.

Chips alone are slow where blocks are larger than they: of a file in strips one pixel high, every chip decodes
the full width. A strip is as high as its bytes allow. Both dates are read at the same time, for GDAL lets go
of the interpreter while it decodes.
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
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.geo.view import Raw, View

__all__ = ["read_chips"]

STRIP_BYTES = 32 * 2**20
"""Of one date, as the file has it: 1,365 rows of an RGB raster 8192 px wide, 512 of one 21,845 px wide."""
MOST_BYTES = 128 * 2**20  # of one date, where a single row of chips or of blocks takes more
STRIP_ROWS = 2048  # so that narrow rasters, too, are answered while they are read
SPARSE = 0.5  # a smaller share of a strip is read chip by chip
NOTHING = Window(0, 0, 0, 0)

Row = list[Chip]  # chips side by side, left to right


def read_chips(
    reader: PairReader, chips: Iterable[Chip]
) -> Generator[tuple[Chip, ChipPixels | RasterError], None, None]:
    """The pixels of chips of `reader.chips()`, in its order, or why they cannot be decoded.

    The same as `reader.read` of each. Of chips that are left out nothing is read, as far as blocks allow.
    Nothing else may be read from the reader before the iterator is at its end or closed.
    """
    with ThreadPoolExecutor(2, "reading", initializer=_settle) as threads:
        strips = _Strips(reader, threads)
        for rows in _grouped(chips, strips):
            yield from strips.read(rows)


def _settle() -> None:
    """GDAL's settings hold for the thread that makes them; they end with it."""
    gdal_env().__enter__()


def _grouped(chips: Iterable[Chip], strips: _Strips) -> Iterator[list[Row]]:
    """Rows of chips, as many together as a strip may hold; a row too long for that in parts."""
    rows: list[Row] = []
    window = NOTHING
    for _, members in groupby(chips, key=lambda chip: chip.row):
        row = list(members)
        own = around(chip.window for chip in row)
        window = around((window, own)) if rows else own
        if rows and not strips.holds(window):
            yield rows
            rows, window = [], own
        parts = -(-strips.bytes_of(own) // MOST_BYTES)
        if parts == 1:
            rows.append(row)
            continue
        length = -(-len(row) // parts)
        for start in range(0, len(row), length):
            yield [row[start : start + length]]
    if rows:
        yield rows


def around(windows: Iterable[Window]) -> Window:
    """The smallest window with all of these in it."""
    lefts, tops, widths, heights = zip(*windows, strict=True)
    left, top = min(lefts), min(tops)
    right = max(map(add, lefts, widths))
    bottom = max(map(add, tops, heights))
    return Window(left, top, right - left, bottom - top)


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """The length of the union of spans (start, length), which come in the order of their starts."""
    total = end = 0
    for start, length in spans:
        total += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return total


class _Strips:
    """The two dates of a pair, strip by strip."""

    def __init__(self, reader: PairReader, threads: ThreadPoolExecutor) -> None:
        self.reader = reader
        self.threads = threads
        self.bands = [_RowBuffer(view, reader.geobox.height) for view in reader.views]
        self.pixel_bytes = max(band.pixel_bytes for band in self.bands)
        self.full_width = any(band.full_width for band in self.bands)

    def bytes_of(self, window: Window) -> int:
        """What the larger of the two dates takes."""
        return window.height * window.width * self.pixel_bytes

    def holds(self, window: Window) -> bool:
        """Whether a strip may be as large."""
        return window.height <= STRIP_ROWS and self.bytes_of(window) <= STRIP_BYTES

    def read(self, rows: list[Row]) -> Iterator[tuple[Chip, ChipPixels | RasterError]]:
        """The chips of some rows: in one strip; where that is not good, row by row; else chip by chip."""
        window = around(chip.window for row in rows for chip in row)
        if not self._is_sparse(rows, window) and self._fill(window):
            for chip in (chip for row in rows for chip in row):
                yield chip, self.reader.to_chip_pixels(chip, [band.cut(chip.window) for band in self.bands])
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
        """Whether most of the strip would be decoded for nothing."""
        down = [row[0].window for row in rows]
        height = covered((one.row_off, one.height) for one in down)
        if self.full_width:
            return height < SPARSE * window.height
        widths = [covered((chip.window.col_off, chip.window.width) for chip in row) for row in rows]
        return height * sum(widths) / len(widths) < SPARSE * window.height * window.width

    def _fill(self, window: Window) -> bool:
        """Read the strip at both dates; False where a part of it cannot be decoded."""
        reads: list[Future[None]] = [self.threads.submit(band.read, window) for band in self.bands]
        wait(reads)
        try:
            for one in reads:
                one.result()
        except RasterError:
            return False
        return True


class _RowBuffer:
    """Rows of one date. What is read reaches to the end of a row of blocks, and what the next strip needs of
    it is kept, so that no block is decoded twice."""

    def __init__(self, view: View, height: int) -> None:
        pixel = view.allocate(1, 1)
        self.view = view
        self.height = height  # of the grid
        self.pixel_bytes = pixel.values.nbytes + (0 if pixel.mask is None else pixel.mask.nbytes)
        self.block_rows, block_cols = view.dataset.block_shapes[0]
        self.full_width = block_cols >= view.dataset.width  # whether blocks are as wide as the file
        self.room: Raw | None = None
        self.held = NOTHING  # what the room is filled with, from its upper left corner

    def read(self, window: Window) -> None:
        """Have the window in the room. Raises: RasterError."""
        col, top, width, height = window
        held, bottom = self.held, max(top + height, self._block_end(window))
        kept = 0
        if self.room is not None and (held.col_off, held.width) == (col, width) and held.row_off <= top:
            kept = max(0, held.row_off + held.height - top)
            if kept >= height:
                return  # where it is: to move rows within a room takes a copy of them
        self.held = NOTHING  # until the rest is there
        room = self._room_for(bottom - top, width, kept, top - held.row_off)
        if top + kept < bottom:
            rest = room.cut(slice(kept, bottom - top), slice(0, width))
            self.view.read_raw(rest, Window(col, top + kept, width, bottom - top - kept))
        self.held = Window(col, top, width, max(bottom - top, kept))

    def cut(self, window: Window) -> Raw:
        """The raw pixels of a window inside of what was read, not copied."""
        assert self.room is not None
        top, left = window.row_off - self.held.row_off, window.col_off - self.held.col_off
        return self.room.cut(slice(top, top + window.height), slice(left, left + window.width))

    def _block_end(self, window: Window) -> int:
        """Where the last row of blocks of the window ends, if that is near enough."""
        block, shift = self.block_rows, self.view.row_off
        bottom = window.row_off + window.height
        end = min(self.height, -(-(bottom + shift) // block) * block - shift)
        return end if (end - window.row_off) * window.width * self.pixel_bytes <= MOST_BYTES else bottom

    def _room_for(self, rows: int, cols: int, kept: int, start: int) -> Raw:
        """A room for so many pixels, in which `kept` rows from `start` on have come to the top."""
        old = self.room
        if old is not None and old.values.shape[2] == cols and old.values.shape[1] >= max(rows, kept):
            room = old
        else:
            if not kept:
                old = self.room = None  # before the new one is made
            room = self.room = self.view.allocate(max(rows, kept), cols)
        if kept and old is not None:
            for new, was in zip(room, old, strict=True):
                if new is not None and was is not None:
                    new[..., :kept, :] = was[..., start : start + kept, :]
        return room
