"""Images over HTTP: how many requests they cost, counted by a server that knows byte ranges."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rasterio.env
import rasterio.shutil

from deltavlm.geo.pair import ChipPixels
from deltavlm.geo.strips import read_chips
from tests import range_server
from tests.geo.reading import opened
from tests.rasters import noise, write_raster

SIDE = 1024

Served = tuple[str, Callable[[], Counter[str]]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A URL, and how many requests for each file there have been."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    log = tmp_path / "requests.log"
    command = [sys.executable, range_server.__file__, str(tmp_path)]
    with log.open("w") as talk:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True)
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        yield (
            f"http://127.0.0.1:{port}/",
            lambda: Counter(line.split()[1].strip("/") for line in log.read_text().splitlines()),
        )
        process.terminate()
        process.communicate()


@pytest.mark.parametrize(("block", "compress"), [(256, "deflate"), (512, "JPEG")])
def test_a_pair_costs_few_requests(tmp_path: Path, server: Served, block: int, compress: str) -> None:
    """Chip by chip it took a dozen, and one more for each further row of blocks."""
    url, requests = server
    plain = write_raster(tmp_path / "plain.tif", noise(3, SIDE, SIDE), photometric="RGB")
    for name in ("before", "after"):
        rasterio.shutil.copy(
            str(plain), str(tmp_path / f"{name}.tif"), driver="COG", blocksize=block, compress=compress
        )
    with opened(tmp_path / "before.tif", tmp_path / "after.tif") as reader:
        expected = [reader.read(chip) for chip in reader.grid()]
    with opened(f"{url}before.tif", f"{url}after.tif") as reader:
        found = [pixels for _, pixels in read_chips(reader, reader.grid())]
    assert len(found) == len(expected) == 16
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, ChipPixels)
        assert (one.before == other.before).all()
        assert (one.after == other.after).all()
    # its size, its header, a look at its first block, and all the others at once
    assert requests() == {"before.tif": 4, "after.tif": 4}


def test_a_copy_of_a_remote_files_bytes_saves_requests(
    tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a local file's bytes would save nothing, and cost memory and time."""
    url, requests = server
    pixels = noise(3, 4 * SIDE, 2 * SIDE)
    for name in ("plain", "other", "copied", "copied_other"):
        write_raster(tmp_path / f"{name}.tif", pixels, compress="deflate")
    with opened(tmp_path / "plain.tif", tmp_path / "other.tif"):
        assert "VSI_CACHE" not in rasterio.env.getenv()
    for before, after in (("copied", "copied_other"), ("plain", "other")):
        with opened(f"{url}{before}.tif", f"{url}{after}.tif") as reader:
            assert sum(1 for _ in read_chips(reader, reader.grid())) == 128
        monkeypatch.setenv("VSI_CACHE", "FALSE")  # the user's word counts
    assert requests()["copied.tif"] < 0.8 * requests()["plain.tif"]
