"""Damaged images: flipped bits.

Truncated files and zeroed blocks are in `tests/cli/test_bad_input.py` and `tests/geo/test_source.py`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyogrio
import pytest

from tests.cli.conftest import Run
from tests.rasters import smooth, write_raster

TILES = {"tiled": True, "blockxsize": 32, "blockysize": 32, "interleave": "pixel"}
CODECS = {
    "jpeg": {"compress": "jpeg", "photometric": "YCbCr"},
    "deflate": {"compress": "deflate", "predictor": 2},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "none": {},
}


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_affect_only_their_chips(run: Run, tmp_path: Path, codec: str) -> None:
    """Every chip has a row, the exit code is 0 or 3, and there is no unexpected error."""
    before = write_raster(tmp_path / "before.tif", smooth(3, 96, 160), **TILES | CODECS[codec])
    after = tmp_path / "after.tif"
    rng = random.Random(codec)
    codes = set()
    for trial in range(5):
        content = bytearray(before.read_bytes())
        for _ in range(rng.choice([1, 64])):
            content[rng.randrange(400, len(content))] ^= 1 << rng.randrange(8)
        after.write_bytes(content)
        result = run("analyze", before, after, "-o", f"{trial}.geojson", "--chip-size", 32)
        codes.add(result.exit_code)
        assert result.exit_code in (0, 2, 3), result.stderr
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == (result.exit_code != 0)
        if result.exit_code != 2:  # 2: the header is damaged
            assert len(pyogrio.raw.read(f"{trial}.geojson")[2]) == 15
    assert codes & {0, 3}


def test_warnings_of_a_decoder_are_passed_on(run: Run, tmp_path: Path) -> None:
    """A flipped bit in a JPEG changes pixels without an error: GDAL only logs a warning."""
    before = write_raster(tmp_path / "before.tif", smooth(3, 96, 160), **TILES | CODECS["jpeg"])
    after = tmp_path / "after.tif"
    content = bytearray(before.read_bytes())
    end = content.rindex(b"\xff\xd9")  # of the last tile
    content[end - 40 : end - 30] = b"\xff\xd9" * 5
    after.write_bytes(content)
    result = run("analyze", before, after, "-o", "out.geojson", "--chip-size", 32)
    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if "a decoder complains" in line]
    assert warnings
    assert warnings[0].startswith(f"Warning: {before} or {after}: a decoder complains (JPEGLib:")
    assert len(warnings) == len({*warnings})
    assert "CPLE_" not in result.stderr  # GDAL's own messages stay in its log
    assert "a decoder" not in run("analyze", before, before, "-o", "b.geojson", "--chip-size", 32).stderr
