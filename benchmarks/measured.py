"""What `analyze.py` measures, each in a process of its own, by name and with its arguments as JSON.

Prints JSON. Memory is counted from when a process has what it needs (its libraries, its model) to its peak.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from benchmarks.memory import Peak
from deltavlm.geo.gdal import gdal_env
from deltavlm.geo.pair import RasterPair, open_pair
from deltavlm.geo.strips import read_chips

CHIP = 256
Told = dict[str, Any]


def timed(work: Callable[[], int]) -> Told:
    """How many chips `work` did, and in how many seconds, of the clock and of all its threads."""
    peak, start, cpu = Peak(), time.perf_counter(), time.process_time()
    chips = work()
    return {
        "chips": chips,
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": peak.mb,
    }


def by_strips(before: str, after: str) -> Told:
    """Every chip of the pair, as `analyze` reads it."""

    def work() -> int:
        with open_pair(RasterPair(before, after)) as reader:
            return sum(1 for _ in read_chips(reader, reader.chips(CHIP)))

    return timed(work)


def open_per_chip(before: str, after: str, chips: int) -> Told:
    """Chips from all over the pair, row by row, each with both files opened for it."""
    with rasterio.open(before) as raster:
        cols, rows = raster.width // CHIP, raster.height // CHIP
    places = np.linspace(0, cols * rows - 1, min(chips, cols * rows)).astype(int).tolist()

    def work() -> int:
        for place in places:
            window = Window(place % cols * CHIP, place // cols * CHIP, CHIP, CHIP)
            for path in (before, after):
                with rasterio.open(path) as raster:
                    raster.read([1, 2, 3], window=window)
        return len(places)

    with gdal_env():
        return timed(work)


def inflate(path: str) -> Told:
    """Bytes that one core inflates in a second, of the file's own blocks, with the library that GDAL has."""
    with rasterio.open(path) as raster:
        rows, cols = raster.block_shapes[0]
        size = rows * cols * raster.count * np.dtype(raster.dtypes[0]).itemsize
        across, down = -(-raster.width // cols), raster.height // rows
        places = []
        for block in range(min(across * down, 64 * 2**20 // size)):
            names = (f"BLOCK_{of}_{block % across}_{block // across}" for of in ("OFFSET", "SIZE"))
            places.append([int(raster.get_tag_item(name, "TIFF", bidx=1)) for name in names])
    content = Path(path).read_bytes()
    blocks = [content[offset : offset + length] for offset, length in places]
    name, one = _inflater(size)
    for block in blocks[:2]:
        one(block)
    start = time.process_time()
    for block in blocks:
        one(block)
    return {"library": name, "bytes_per_s": size * len(blocks) / (time.process_time() - start)}


def _inflater(size: int) -> tuple[str, Callable[[bytes], object]]:
    """libdeflate as it comes with rasterio, or else zlib, which is slower."""
    found = sorted((Path(rasterio.__file__).parent.parent / "rasterio.libs").glob("libdeflate*"))
    if not found:
        return "zlib", zlib.decompress
    library = ctypes.CDLL(str(found[0]))
    library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
    decompressor = ctypes.c_void_p(library.libdeflate_alloc_decompressor())
    room = ctypes.create_string_buffer(size)

    def one(block: bytes) -> None:
        done = library.libdeflate_zlib_decompress(
            decompressor, block, ctypes.c_size_t(len(block)), room, ctypes.c_size_t(size), None
        )
        if done:
            sys.exit(f"libdeflate gives {done}")

    return "libdeflate", one


def main(words: Sequence[str]) -> None:
    import benchmarks.answered as answered

    name, values = words
    known = {one.__name__: one for one in (by_strips, open_per_chip, inflate)} | answered.MEASURED
    print(json.dumps(known[name](**json.loads(values))))


if __name__ == "__main__":
    main(sys.argv[1:])
