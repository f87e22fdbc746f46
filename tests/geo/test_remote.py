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
from tests.faults.crafted import vrt_of
from tests.geo.reading import opened
from tests.rasters import noise, write_raster

pytestmark = pytest.mark.network

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
        expected = [reader.read(chip) for chip in reader.chips()]
    with opened(f"{url}before.tif", f"{url}after.tif") as reader:
        results = [pixels for _, pixels in read_chips(reader, reader.chips())]
    assert len(results) == len(expected) == 16
    for result, pixels in zip(results, expected, strict=True):
        assert isinstance(result, ChipPixels)
        assert (result.before == pixels.before).all()
        assert (result.after == pixels.after).all()
    # its size, its header, its first block, an overview, four windows that show its shift, and all the others
    assert max(requests().values()) <= 10


def test_only_of_remote_files_gdal_keeps_a_copy(
    tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves requests there; of a local file it would save nothing, and cost memory and time."""
    url, _ = server
    path = write_raster(tmp_path / "here.tif", noise(3, 64, 64))

    def cache_setting(before: str | Path) -> object:
        with opened(before, path):
            return rasterio.env.getenv().get("VSI_CACHE")

    assert cache_setting(path) is None
    assert cache_setting(f"{url}here.tif") in (True, "TRUE")
    monkeypatch.setenv("VSI_CACHE", "FALSE")  # the user's word counts
    assert cache_setting(f"{url}here.tif") is None


@pytest.mark.parametrize("in_vrt", [False, True])
def test_nothing_beside_a_remote_image_is_requested(tmp_path: Path, server: Served, in_vrt: bool) -> None:
    """A server may answer with a VRT of any file. GDAL opens the sources of a VRT when they are read."""
    url, requests = server
    image = write_raster(tmp_path / "image.tif", noise(1))
    write_raster(tmp_path / "image.tif.msk", noise(1)[:1] * 0)
    location = f"{url}image.tif"
    if in_vrt:
        location = str(tmp_path / "mosaic.vrt")
        Path(location).write_text(vrt_of(f"/vsicurl/{url}image.tif", 160, 96))
    with opened(location, image, allow_vrt=True) as reader:
        assert all(reader.read(chip).valid.all() for chip in reader.chips(64))
    assert set(requests()) == {"image.tif"}
