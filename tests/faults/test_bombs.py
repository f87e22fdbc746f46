"""Decompression bombs: headers with excessive sizes are refused before a pixel is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from deltavlm.errors import ConfigError
from tests.faults.crafted import bare_tiff
from tests.geo.reading import opened
from tests.rasters import HALF_METRE, UTM, noise, write_raster

ROOT = Path(__file__).resolve().parents[2]

READ_ALL = """
import resource, sys
from deltavlm.errors import DeltaVLMError
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair

def address_space(): return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

resource.setrlimit(resource.RLIMIT_AS, (address_space() + 300 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        with open_pair(RasterPair(path, path), ReadOptions(allow_no_crs=True)) as reader:
            for chip in reader.chips(256):
                reader.read(chip)
    except DeltaVLMError as error:
        print(str(error).partition(": ")[2], flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_bombs_are_refused_without_allocating_memory(tmp_path: Path) -> None:
    """Regression: the first file took 10 s and 2 GB before it failed. The limit is 300 MB above the start."""
    size = {"width": 2_000_000, "height": 300_000, "count": 1, "dtype": "uint8", "crs": UTM}
    sparse = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "BIGTIFF": "YES", "SPARSE_OK": True}
    with rasterio.open(tmp_path / "e.tif", "w", driver="GTiff", transform=HALF_METRE, **size, **sparse):
        pass
    paths = [
        bare_tiff(tmp_path / "a.tif", 2 * 10**9, 2 * 10**9, 2 * 10**9),
        bare_tiff(tmp_path / "b.tif", 200_000, 200_000, 200_000),
        bare_tiff(tmp_path / "c.tif", 100_000, 100_000, 1),
        bare_tiff(tmp_path / "d.tif", 60_000, 60_000, 1, tile=32_768),
        tmp_path / "e.tif",
        bare_tiff(tmp_path / "f.tif", 60_000, 60_000, 30_000),
    ]
    command = [sys.executable, "-c", READ_ALL, *map(str, paths)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    messages = process.stdout.splitlines()
    assert len(messages) == len(paths), messages
    assert messages[0].startswith("says that it has 2000000000 x 2000000000 px, more than the 40,000,000,000")
    assert "cannot be read" in messages[1]  # GDAL reads a single strip row by row, so no block is too large
    assert "cannot be read" in messages[2]
    assert messages[3].startswith(
        "one of its blocks (32768 x 32768 px) takes 1024 MB, more than 256; write it"
    )
    assert messages[4].startswith("says that it has 2000000 x 300000 px")
    assert messages[5].startswith("one of its blocks (60000 x 30000 px) takes 1717 MB")


def test_grids_of_too_many_chips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "image.tif", noise(1, 4000, 4000))
    with opened(path, path, outlines_only=True) as reader:
        assert len(reader.chips(16)) == 62_500
        with pytest.raises(ConfigError, match=r"3985 x 3985 chips are more than 10,000,000; cut larger ones"):
            reader.chips(16, 15)
    monkeypatch.setattr("deltavlm.geo.alignment.MAX_PIXELS", 60_000_000)
    with pytest.raises(ConfigError, match=r"gsd 0\.25 m: makes \d+ x \d+ px, more than 60,000,000"):
        opened(path, path, gsd_m=0.25).__enter__()
