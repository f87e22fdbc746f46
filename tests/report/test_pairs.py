"""Pairs of a report: windows and coordinates of chips are derived from their chip_id and the grid."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from shapely.geometry import box

from deltavlm.errors import InputError
from deltavlm.geo.geobox import LONLAT, project
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.pairs import Pair
from deltavlm.report.pairs import build_pairs, select_pair
from tests.conftest import CHIP, Analyzed, Scene, write_tiled
from tests.rasters import HALF_METRE, noise, write_raster
from tests.report.conftest import only_pair


def test_windows_and_points_are_those_of_the_chips(analyzed: Analyzed, tmp_path: Path) -> None:
    """A size that chips do not divide, and an overlap."""
    before = write_raster(tmp_path / "before.tif", noise(rows=75, cols=101))
    path = analyzed(before, before, overlap_px=7)
    pair = only_pair(path)
    with open_pair(RasterPair(str(before), str(before)), ReadOptions()) as reader:
        chips = list(reader.chips(CHIP, 7))
        middles = [chip.footprint.centroid for chip in chips]
        expected = project(np.array([(point.x, point.y) for point in middles]), reader.geobox.crs, LONLAT)
    assert pair.windows == [chip.window for chip in chips]
    np.testing.assert_allclose(np.array(pair.points, float), expected, atol=1e-9)
    assert pair.gsd_m == pytest.approx(0.5, rel=1e-3)
    assert pair.north == pytest.approx(0, abs=2)


def test_north_of_a_turned_raster(analyzed: Analyzed, tmp_path: Path) -> None:
    turned = HALF_METRE * Affine.rotation(30)
    before = write_raster(tmp_path / "before.tif", noise(rows=64, cols=64), transform=turned)
    assert only_pair(analyzed(before, before)).north == pytest.approx(-30, abs=2)


def test_without_a_crs_there_are_no_coordinates(analyzed: Analyzed, tmp_path: Path) -> None:
    before = write_raster(tmp_path / "before.tif", noise(), crs=None, transform=None)
    pair = only_pair(analyzed(before, before, read=ReadOptions(allow_no_crs=True)))
    assert set(pair.points) == {None}
    assert (pair.gsd_m, pair.north) == (None, None)
    assert pair.windows[-1] == (128, 64, 32, 32)


@pytest.mark.parametrize("suffix", ["gpkg", "geojson"])
def test_a_missing_grid_is_estimated_from_the_chips(analyzed: Analyzed, scene: Scene, suffix: str) -> None:
    output = read_output(analyzed(*scene.args, to=f"out.{suffix}"))
    (recorded,) = build_pairs(output)
    record = copy.deepcopy(output.provenance)
    del record["inputs"]["grid"]
    (estimated,) = build_pairs(replace(output, provenance=record))
    assert not estimated.has_recorded_geobox
    assert estimated.windows == recorded.windows
    np.testing.assert_allclose(np.array(estimated.points, float), np.array(recorded.points, float), atol=1e-6)


def test_polygons_of_change_are_laid_on_the_pixels(analyzed: Analyzed, scene: Scene) -> None:
    pair = only_pair(analyzed(*scene.args))
    x_min, y_max = 500_000 + 0.5 * 64, 5_000_000 - 0.5 * 32
    change: dict[str, Any] = {"geometry": box(x_min, y_max - 5, x_min + 10, y_max), "class": "building"}
    (ring,) = pair.rings(change)
    assert sorted(set(ring)) == [(64, 32), (64, 42), (84, 32), (84, 42)]


def test_pairs_are_sorted_by_their_highest_score(analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    still = write_tiled(tmp_path / "still.tif", noise())
    listed = [
        Pair("calm", str(still), str(still)),
        Pair("busy", *scene.args),
        Pair("lost", f"{tmp_path}/none.tif", str(still)),
    ]
    pairs = build_pairs(read_output(analyzed(listed)))
    assert [pair.name for pair in pairs] == ["busy", "calm", "lost"]
    assert [len(pair.chips) for pair in pairs] == [15, 15, 0]
    assert "no such file" in pairs[2].reason
    assert pairs[2].geobox is None
    assert select_pair(pairs, "calm") is pairs[1]
    with pytest.raises(InputError, match="no pair 'clam' in the output; did you mean 'calm'"):
        select_pair(pairs, "clam")
    alone = build_pairs(read_output(analyzed(*scene.args, to="alone.gpkg")))
    with pytest.raises(InputError, match="no pair 'calm': the output is of one pair, without a name"):
        select_pair(alone, "calm")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("inputs", "grid", "transform"), [0, 0, 0, 0, 0, 0]),
        (("inputs", "grid", "transform"), [1, 2]),
        (("inputs", "grid", "width"), -5),
        (("inputs", "grid", "width"), 10**12),
        (("inputs", "grid", "crs"), "EPSG:nonsense"),
        (("inputs", "before", "bands"), "red"),
        (("inputs", "before", "stretch"), {"low": [1], "high": [2]}),
        (("inputs", "alignment"), 3),
        (("options",), None),
        (("options", "chip_px"), 0),
        (("options", "chip_px"), 10**9),
    ],
)
def test_an_invalid_provenance_is_a_one_line_error(
    analyzed: Analyzed, scene: Scene, keys: tuple[str, ...], value: object
) -> None:
    output = read_output(analyzed(*scene.args))
    record = copy.deepcopy(output.provenance)
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(InputError) as refused:
        build_pairs(replace(output, provenance=record))
    assert str(refused.value).startswith(f"{output.path}: has an invalid record of its images")
    assert "\n" not in str(refused.value)


def test_an_invalid_chip_id_is_refused(analyzed: Analyzed, scene: Scene) -> None:
    output = read_output(analyzed(*scene.args))
    output.layers["chips"].loc[3, "chip_id"] = "number three"
    (pair,) = build_pairs(output)
    with pytest.raises(InputError, match="'number three': is not named by its pixels"):
        _ = pair.windows
