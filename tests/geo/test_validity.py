"""Pixels without data are recognized by nodata, mask or alpha, warped or not."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import RasterioIOError

from deltavlm.errors import ConfigError
from deltavlm.geo.warp import without_alpha
from tests.geo.reading import COLS, ROWS, SAME_IMAGE, SIZE, mosaic, opened, read_all, read_pair
from tests.rasters import moved, noise, smooth, write_raster

HOLE = np.zeros((ROWS, COLS), bool)
HOLE[20:60, 30:90] = True


def assert_hole(valid: np.ndarray) -> None:
    """The hole is invalid and the rest is not, apart from two pixels at edges, where a warp mixes."""
    assert not valid[22:58, 32:88].any()
    around = valid.copy()
    around[18:62, 28:92] = True
    assert around[:, 2:-2].all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("kind", ["mask", "nodata", "alpha"])
def test_holes_stay_holes(tmp_path: Path, before: Path, shift: float, dtype: str, kind: str) -> None:
    """An internal mask was lost in a warp, and alpha of int16 and float rasters was taken for fully valid."""
    pixels = smooth(3, dtype=dtype)
    profile: dict[str, Any] = {"transform": moved(shift, 0)}
    if kind == "mask":
        profile["mask"] = ~HOLE
    elif kind == "nodata":
        pixels[:, HOLE] = 0
        profile["nodata"] = 0
    else:
        opaque = 255 if dtype == "uint8" else 1 if dtype == "float32" else np.iinfo(dtype).max
        pixels = np.concatenate([pixels, np.where(HOLE, 0, opaque)[None].astype(dtype)])
        profile["colorinterp"] = ["red", "green", "blue", "alpha"]
    after = write_raster(tmp_path / "after.tif", pixels, **profile)
    images = read_pair(before, after)
    assert_hole(images[2])
    assert_hole(read_pair(after, before)[2])
    assert (images[0][:, ~images[2]] == images[1][:, ~images[2]]).all()


@pytest.mark.parametrize("kind", ["mask", "alpha"])
@pytest.mark.parametrize(
    ("nodata", "dtype"),
    [
        *itertools.product(["in the file", "as an option"], ["uint8", "int16", "uint16", "float32"]),
        ("nan", "float32"),
    ],
)
def test_nodata_and_masks_apply_together(
    tmp_path: Path, before: Path, shift: float, dtype: str, kind: str, nodata: str
) -> None:
    """A mask or alpha was ignored where a nodata value was known, but not by a warp."""
    mask_hole, nodata_hole = HOLE.copy(), HOLE.copy()
    mask_hole[:, 62:], nodata_hole[:, :58] = False, False  # they overlap, for at an edge a warp mixes
    value = np.nan if nodata == "nan" else 7
    pixels = smooth(3, dtype=dtype)
    pixels[:, nodata_hole] = value
    profile: dict[str, Any] = {"transform": moved(shift, 0)}
    if kind == "mask":
        profile["mask"] = ~mask_hole
    else:
        opaque = 255 if dtype == "uint8" else 1 if dtype == "float32" else np.iinfo(dtype).max
        pixels = np.concatenate([pixels, np.where(mask_hole, 0, opaque)[None].astype(dtype)])
        profile["colorinterp"] = ["red", "green", "blue", "alpha"]
    if nodata != "as an option":
        profile["nodata"] = value
    options = {"nodata": value} if nodata == "as an option" else {}
    after = write_raster(tmp_path / "after.tif", pixels, **profile)
    for pair in ((before, after), (after, before)):
        assert_hole(read_pair(*pair, **options)[2])


def test_the_least_number_as_nodata_makes_no_noise(tmp_path: Path, shift: float) -> None:
    """It overflows when it is scaled; warnings are errors here."""
    least = float(np.finfo("float32").min)
    pixels = smooth(dtype="float32") / 1000
    pixels[:, HOLE] = least
    for tags in ({}, {"scales": [10.0] * 3}):
        before = write_raster(tmp_path / "before.tif", pixels, nodata=least, tags=tags)
        after = write_raster(
            tmp_path / "after.tif", pixels, nodata=least, tags=tags, transform=moved(shift, 0)
        )
        assert_hole(read_pair(before, after)[2])


def test_not_a_number_is_no_data(tmp_path: Path, before: Path, shift: float) -> None:
    pixels = smooth(dtype="float32")
    pixels[0, HOLE] = np.nan
    for nodata in (None, np.nan):
        after = write_raster(tmp_path / "after.tif", pixels, nodata=nodata, transform=moved(shift, 0))
        assert_hole(read_pair(before, after)[2])


def test_nodata_is_an_option(tmp_path: Path, before: Path, shift: float) -> None:
    pixels = smooth()
    pixels[:, HOLE] = 7
    after = write_raster(tmp_path / "after.tif", pixels, transform=moved(shift, 0))
    assert read_pair(before, after)[2][5:-5, 5:-5].all()
    assert_hole(read_pair(before, after, nodata=7)[2])


@pytest.mark.parametrize("nodata", [-1, 256, 0.5, float("nan")])
def test_nodata_that_no_pixel_can_have(before: Path, nodata: float) -> None:
    with pytest.raises(
        ConfigError, match=r"before\.tif: nodata .* uint8 .*; give a whole number from 0 to 255"
    ):
        opened(before, before, nodata=nodata).__enter__()


def test_nodata_that_no_float_pixel_can_have(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "float.tif", smooth(dtype="float32"))
    with pytest.raises(ConfigError, match=r"nodata 1e\+39 .* float32 .*; give a number from -3\.4"):
        opened(path, path, nodata=1e39).__enter__()
    for nodata in (-np.inf, np.nan, 0.5):
        opened(path, path, nodata=nodata).__enter__()


def test_a_single_black_band_is_data(tmp_path: Path, before: Path) -> None:
    """Only a pixel with no data in any color is a hole: deep water is 0 in red."""
    pixels = smooth()
    pixels[0, HOLE] = 0
    after = write_raster(tmp_path / "after.tif", pixels, nodata=0)
    assert read_pair(before, after)[2].all()


@pytest.mark.parametrize(("dtype", "value"), [("float32", -9999), ("int16", -9999), ("uint16", 0)])
def test_a_hole_in_one_band_is_a_hole(
    tmp_path: Path, before: Path, shift: float, dtype: str, value: float
) -> None:
    """It counted as data, and -9999 became the lower limit of the stretch of that band."""
    pixels = smooth(dtype=dtype)
    pixels[1, HOLE] = value
    path = write_raster(
        tmp_path / "after.tif", pixels, nodata=value, photometric="RGB", transform=moved(shift, 0)
    )
    for pair in ((before, path), (path, before)):
        with opened(*pair) as reader:
            assert_hole(mosaic(reader, read_all(reader))[2])
            stretch = reader.stretches[pair.index(path)]
            assert stretch is not None
            assert min(stretch.low) >= 20


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_each_band_has_its_own_nodata(tmp_path: Path, before: Path, shift: float, dtype: str) -> None:
    """The value of the first chosen band was taken for all."""
    pixels = smooth(4, dtype=dtype)
    fills = (3, 5, 7, 20)
    for band, value in enumerate(fills):
        pixels[band, HOLE] = value
    after = write_raster(
        tmp_path / "after.tif", pixels, photometric="RGB", alpha="NO", transform=moved(shift, 0)
    )
    bands = "".join(
        f'<PAMRasterBand band="{band}"><NoDataValue>{value}</NoDataValue></PAMRasterBand>'
        for band, value in enumerate(fills, 1)
    )
    after.with_name("after.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    for pair in ((before, after), (after, before)):
        with opened(*pair) as reader:
            assert_hole(mosaic(reader, read_all(reader))[2])
            assert reader.provenance()["before" if pair[0] == after else "after"]["nodata"] == [3, 5, 7]  # type: ignore[index]


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", "-9999"), ("uint16", "nan"), ("float32", "1e39")])
def test_a_nodata_value_that_no_pixel_can_have(
    tmp_path: Path, before: Path, shift: float, dtype: str, nodata: str
) -> None:
    after = write_raster(tmp_path / "after.tif", smooth(dtype=dtype), transform=moved(shift, 0))
    band = f'<PAMRasterBand band="1"><NoDataValue>{nodata}</NoDataValue></PAMRasterBand>'
    after.with_name("after.tif.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    assert read_pair(before, after)[2][:, 2:-2].all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, -3.4028235e38, 9.96921e36])
def test_fill_that_no_image_holds(tmp_path: Path, before: Path, shift: float, value: float) -> None:
    """-3.4e38 that was not declared became the lower limit of the stretch."""
    pixels = smooth(dtype="float32")
    pixels[1, HOLE] = value
    after = write_raster(tmp_path / "after.tif", pixels, photometric="RGB", transform=moved(shift, 0))
    with opened(before, after) as reader:
        assert_hole(mosaic(reader, read_all(reader))[2])
        assert reader.stretches[1] is not None
        assert min(reader.stretches[1].low) >= 20


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", -9999), ("int16", -9999), ("int16", -32768), ("uint16", 65535)]
)
def test_usual_fill_that_is_not_declared_is_told(
    tmp_path: Path, before: Path, shift: float, dtype: str, value: int
) -> None:
    pixels = smooth(dtype=dtype)
    pixels[:, HOLE] = value
    after = write_raster(tmp_path / "after.tif", pixels, photometric="RGB", transform=moved(shift, 0))
    with opened(before, after) as reader:
        assert_hole(mosaic(reader, read_all(reader))[2])
        assert any(f"many of its values are {value}, far from all others" in note for note in reader.warnings)
    with opened(before, after, nodata=1) as reader:
        assert not any("far from all others" in note for note in reader.notes)
        assert mosaic(reader, read_all(reader))[2][:, 2:-2].all()


@pytest.mark.parametrize("declared", [0.0, np.nan])
def test_fill_beside_a_declared_value(tmp_path: Path, before: Path, shift: float, declared: float) -> None:
    pixels = smooth(dtype="float32")
    pixels[:, HOLE] = declared
    pixels[:, HOLE & (np.arange(COLS) < 60)] = -9999
    after = write_raster(
        tmp_path / "after.tif", pixels, nodata=declared, photometric="RGB", transform=moved(shift, 0)
    )
    with opened(before, after) as reader:
        valid = mosaic(reader, read_all(reader))[2]
        assert any("many of its values are -9999" in note for note in reader.warnings)
        assert reader.stretches[1] is not None
        assert min(reader.stretches[1].low) >= 20
    assert not valid[22:58, 32:58].any()
    assert not valid[22:58, 62:88].any()
    assert valid[:18, 2:-2].all()


def test_a_bright_roof_is_no_fill(tmp_path: Path) -> None:
    """Saturated pixels have one value too, but others come near it."""
    pixels = noise(dtype="uint16", low=200, high=3000)
    pixels[:, 5:20, 5:20] = 65535
    pixels[:, 30:60, 5:50] = np.linspace(3000, 65000, 45).astype("uint16")
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB")
    with opened(path, path) as reader:
        assert reader.warnings == (SAME_IMAGE,)
        assert mosaic(reader, read_all(reader))[2].all()


@pytest.mark.parametrize(
    ("dtype", "opaque"), [("uint8", 1), ("uint16", 1), ("uint16", 4095), ("uint16", 65535), ("uint8", 128)]
)
@pytest.mark.parametrize("gray", [False, True], ids=["rgba", "gray and alpha"])
def test_alpha_of_any_range(
    tmp_path: Path, before: Path, shift: float, dtype: str, opaque: int, gray: bool
) -> None:
    """An alpha band of 0 and 1, or of 12 bit, was taken for data, so that it hid nothing."""
    alpha = np.where(HOLE, 0, opaque)[None].astype(dtype)
    pixels = np.concatenate([smooth(1 if gray else 3, dtype=dtype), alpha])
    labels = ["gray", "alpha"] if gray else ["red", "green", "blue", "alpha"]
    after = write_raster(tmp_path / "after.tif", pixels, colorinterp=labels, transform=moved(shift, 0))
    for pair in ((before, after), (after, before)):
        assert_hole(read_pair(*pair)[2])


def test_an_external_mask_applies(tmp_path: Path, before: Path) -> None:
    """GDAL's shortcut for URLs hid `after.tif.msk` when it was used for files too."""
    after = write_raster(tmp_path / "after.tif", smooth())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(after, "r+") as raster:
        raster.write_mask(~HOLE)
    assert (tmp_path / "after.tif.msk").exists()
    assert_hole(read_pair(before, after)[2])


def test_near_infrared_labelled_alpha_hides_nothing(tmp_path: Path, before: Path, shift: float) -> None:
    """GDAL labels the fourth band of a plain 4-band uint8 file alpha, and warps by it unasked."""
    pixels = np.concatenate([smooth(3), noise(1, low=0)])
    pixels[3, HOLE] = 0
    after = write_raster(tmp_path / "after.tif", pixels, transform=moved(shift, 0))
    with rasterio.open(after) as raster:
        assert raster.colorinterp[3].name == "alpha"
    with opened(before, after) as reader:
        images = mosaic(reader, read_all(reader))
        assert any("alpha" in note for note in reader.notes)
    assert images[2][5:-5, 5:-5].all()
    assert np.abs(images[0].astype(int) - images[1])[:, images[2]].max() <= 12


def test_a_raster_without_its_alpha_label_is_opened_by_its_own_driver(tmp_path: Path) -> None:
    """A VRT opens its source by any driver that takes it: here a file that has become a PNG since."""
    pixels = np.concatenate([smooth(3), noise(1)])
    tiff, png = (write_raster(tmp_path / name, pixels, driver=name.upper()) for name in ("gtiff", "png"))
    with rasterio.open(tiff, driver="GTiff") as raster:
        assert raster.colorinterp[3].name == "alpha"
        with without_alpha(raster) as unlabelled:
            assert unlabelled.colorinterp[3].name == "undefined"
            assert (unlabelled.read() == pixels).all()
        with without_alpha(raster) as unlabelled:
            shutil.copy(png, tiff)
            with pytest.raises(RasterioIOError):
                unlabelled.read()


def test_alpha_with_soft_edges_is_alpha_unless_refused(tmp_path: Path, before: Path) -> None:
    alpha = np.where(HOLE, 0, 255)
    alpha[20, 30:90] = np.arange(60) * 4
    after = write_raster(tmp_path / "after.tif", np.concatenate([smooth(), alpha[None].astype("uint8")]))
    assert not read_pair(before, after)[2].all()
    assert read_pair(before, after, alpha_band="none")[2].all()


def test_outside_of_a_raster_is_no_data(tmp_path: Path) -> None:
    """A warp onto a larger grid filled up with black that counted as data."""
    before = write_raster(tmp_path / "before.tif", smooth(3, 200, 300))
    after = write_raster(
        tmp_path / "after.tif", smooth(3, 60, 60), transform=moved(40.5, 40) * Affine.rotation(30)
    )
    images = read_pair(before, after)
    assert 0.3 < images[2].mean() < 0.75
    assert (images[0][:, ~images[2]] == images[1][:, ~images[2]]).all()


def test_a_raster_smaller_than_a_chip_is_padded_alike(tmp_path: Path) -> None:
    first = write_raster(tmp_path / "b.tif", np.full((3, 20, 30), 100, np.uint8))
    second = write_raster(tmp_path / "a.tif", np.full((3, 20, 30), 200, np.uint8))
    with opened(first, second) as reader:
        (chip,) = reader.chips(SIZE)
        pixels = reader.read(chip)
    assert pixels.valid_fraction == 1
    assert pixels.valid.sum() == 20 * 30
    assert pixels.before.shape == pixels.after.shape == (3, SIZE, SIZE)
    assert (pixels.before[:, 20:] == 150).all()
    assert (pixels.after[:, :, 30:] == 150).all()


def test_a_chip_without_data(tmp_path: Path, before: Path) -> None:
    after = write_raster(tmp_path / "after.tif", np.zeros((3, ROWS, COLS), np.uint8), nodata=0)
    with opened(before, after) as reader:
        for pixels in read_all(reader):
            assert pixels.valid_fraction == 0
            assert (pixels.before == pixels.after).all()
