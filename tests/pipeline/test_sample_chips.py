"""Random chips of the pairs of a list: evenly, by the seed, and only with data at both dates."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from affine import Affine

from deltavlm.errors import InputError
from deltavlm.geo.pair import ReadOptions
from deltavlm.pipeline.pair_lists import read_pairs
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.reading import sample_chips
from tests.pairs import write_pairs
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel

MODEL = ScriptedModel()  # with chips of 32 px


def drawn(pairs: tuple[Pair, ...], limit: int, seed: int = 0) -> list[tuple[str, str]]:
    return [
        (pair.id, chip.chip.chip_id)
        for pair, chip, _ in sample_chips(pairs, ReadOptions(), MODEL, limit, seed)
    ]


def test_every_pair_gives_about_as_many_chips_and_the_seed_says_which(tmp_path: Path) -> None:
    pairs = read_pairs(write_pairs(tmp_path, 3, chips=6)).pairs
    chips = drawn(pairs, 7)
    assert sorted(Counter(name for name, _ in chips).values()) == [2, 2, 3]
    assert len(set(chips)) == 7
    assert len({name for seed in range(8) for name, _ in drawn(pairs, 1, seed)}) == 3
    assert drawn(pairs, 7) == chips
    assert drawn(pairs, 7, seed=1) != chips
    assert len(drawn(pairs, 100)) == 18
    (_, chip, gsd_m), *_ = sample_chips(pairs, ReadOptions(), MODEL, 1, 0)
    assert chip.before.shape == chip.after.shape == (3, 32, 32)
    assert gsd_m == pytest.approx(0.5, rel=0.01)


def test_a_broken_pair_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = read_pairs(write_pairs(tmp_path, 3, chips=4, broken=[1])).pairs
    counts = Counter(name for name, _ in drawn(pairs, 6))
    assert counts.keys() == {"p0", "p2"}
    assert 4 <= counts.total() <= 6  # the last one cannot be made up for
    assert "p1: left out: " in caplog.text


def test_chips_without_data_or_smaller_than_the_model_s_are_left_out(tmp_path: Path) -> None:
    pixels = noise(rows=32, cols=96)
    write_raster(tmp_path / "b.tif", pixels)
    pixels[:, :, 40:] = 0
    write_raster(tmp_path / "a.tif", pixels, nodata=0)
    write_raster(tmp_path / "small.tif", noise(rows=20, cols=20))
    pair = Pair("one", str(tmp_path / "b.tif"), str(tmp_path / "a.tif"))
    small = replace(pair, id="small", before=str(tmp_path / "small.tif"), after=str(tmp_path / "small.tif"))
    assert drawn((pair, small), 10) == [("one", "r00000_c00000")]


def test_a_pixel_size_far_from_the_training_is_an_error(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif"):
        write_raster(tmp_path / name, noise(), transform=Affine(10, 0, 500_000, 0, -10, 5_000_000))
    pair = Pair("far", str(tmp_path / "b.tif"), str(tmp_path / "a.tif"))
    with pytest.raises(InputError, match=r"^far: a pixel is 10 m, .* 20 times coarser"):
        drawn((pair,), 10)
