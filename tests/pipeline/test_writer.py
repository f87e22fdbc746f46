"""CRS of an output: geometries are transformed to it, left as they are, or left empty."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from rasterio.crs import CRS
from shapely.geometry import box

from deltavlm.geo.geobox import LONLAT
from deltavlm.pipeline.pair_record import PairIdentity, PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.writer import OutputCRS

PAIR = Pair("one", "before.tif", "after.tif")
UTM = CRS.from_epsg(32631)
SHAPE = box(500_000, 5_000_000, 500_100, 5_000_100)


def record(crs: CRS | None, transform: Sequence[float] = (1, 0, 500_000, 0, -1, 5_000_100)) -> PairRecord:
    return PairRecord(
        identity=PairIdentity("before.tif", "after.tif", None, [None, None]),
        crs=crs and crs.to_wkt(),
        transform=[*transform],
        width=100,
        height=100,
        gsd_m=1.0,
        chips=1,
        notes=[],
        inputs="{}",
        dates=(None, None),
    )


def test_geometries_in_the_crs_of_the_output_stay() -> None:
    assert OutputCRS(UTM).transform_of(PAIR, record(UTM))(SHAPE) == SHAPE
    # also if the CRS, which goes through WKT, should not compare equal: the output has a single pair
    assert OutputCRS(CRS.from_epsg(32632), untransformed=True).transform_of(PAIR, record(UTM))(SHAPE) == SHAPE


def test_geometries_of_another_crs_become_longitude_and_latitude() -> None:
    crs = OutputCRS(LONLAT)
    west, south, _, _ = crs.transform_of(PAIR, record(UTM))(SHAPE).bounds
    assert (west, south) == pytest.approx((3.0, 45.15), abs=0.01)
    assert not crs.unplaced


@pytest.mark.parametrize(("output", "pair"), [(UTM, None), (None, UTM)])
def test_geometries_that_cannot_be_transformed_are_empty(output: CRS | None, pair: CRS | None) -> None:
    crs = OutputCRS(output)
    assert crs.transform_of(PAIR, record(pair))(SHAPE).is_empty
    assert crs.unplaced == {"one"}


@pytest.mark.parametrize(("west", "expected"), [(200.0, (-160, -159.9)), (-160.0, (-160, -159.9))])
def test_longitudes_of_a_list_are_counted_alike(west: float, expected: tuple[float, float]) -> None:
    """Pairs that count from 0 and from -180 were at both ends of one map."""
    pair = record(LONLAT, (0.001, 0, west, 0, -0.001, 10))
    placed = OutputCRS(LONLAT).transform_of(PAIR, pair)(box(west, 9.9, west + 0.1, 10))
    assert placed.bounds[::2] == pytest.approx(expected)
