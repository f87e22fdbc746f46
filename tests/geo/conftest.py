"""A raster and a shift that many tests of `geo` start from; laws are tried on few examples, to save time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.rasters import smooth, write_raster

settings.register_profile("geo", max_examples=25, deadline=None)
settings.load_profile("geo")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "before.tif", smooth())


@pytest.fixture(params=[0.0, 0.5], ids=["window", "warp"])
def shift(request: pytest.FixtureRequest) -> float:
    """Shift of `after` in pixels: 0 is read by windows, 0.5 warped."""
    return float(request.param)
