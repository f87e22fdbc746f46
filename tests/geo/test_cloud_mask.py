"""Cloud masks: quality rasters of classes, bits or values, whose pixels are no data on that date."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.cloud_mask import CloudMask, parse_cloud_mask, parse_qa_band
from deltavlm.geo.strips import read_chips
from tests.geo.reading import COLS, ROWS, SIZE, mosaic, opened, read_all
from tests.rasters import HALF_METRE, moved, noise, smooth, spoil, write_raster

CLOUD = np.zeros((ROWS, COLS), bool)
CLOUD[20:60, 30:90] = True


def scl(path: Path, code: int = 9, **profile: object) -> Path:
    """Scene classification with a cloud of this class over vegetation."""
    return write_raster(path, np.where(CLOUD, code, 4)[None].astype("uint8"), **profile)


def valid_of(before: Path, after: Path, **options: object) -> np.ndarray:
    with opened(before, after, **options) as reader:
        return mosaic(reader, read_all(reader))[2]


@pytest.fixture
def after(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "after.tif", noise(3))


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("clouds.tif", CloudMask("clouds.tif", None, None, ())),
        ("T33_SCL_20m.jp2", CloudMask("T33_SCL_20m.jp2", None, "scl", ())),
        ("LC08_QA_PIXEL.TIF=cloud,Snow", CloudMask("LC08_QA_PIXEL.TIF", None, "qa_pixel", ("cloud", "snow"))),
        ("LC08_QA_PIXEL.TIF=22280", CloudMask("LC08_QA_PIXEL.TIF", None, None, ("22280",))),
        ("a.tif:SCL", CloudMask("a.tif", None, "scl", ())),
        ("a.tif:scl=3,8-10", CloudMask("a.tif", None, "scl", ("3", "8-10"))),
        ("a.tif:2:bits=3,4", CloudMask("a.tif", 2, "bits", ("3", "4"))),
        ("a.tif=40-100", CloudMask("a.tif", None, None, ("40-100",))),
        ("a.tif=-1,-9--5", CloudMask("a.tif", None, None, ("-1", "-9--5"))),
        ("https://host:80/a.tif?sig=3", CloudMask("https://host:80/a.tif?sig=3", None, None, ())),
        ("https://host/a.tif?sig=b:scl=3", CloudMask("https://host/a.tif?sig=b", None, "scl", ("3",))),
        ("GTIFF_DIR:2:a.tif", CloudMask("GTIFF_DIR:2:a.tif", None, None, ())),
    ],
)
def test_cloud_masks_are_parsed(text: str, mask: CloudMask) -> None:
    assert parse_cloud_mask(text) == mask


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("SCL", CloudMask(None, "SCL", "scl", ())),
        ("5:qa_pixel", CloudMask(None, 5, "qa_pixel", ())),
        ("5=3,8,9", CloudMask(None, 5, None, ("3", "8", "9"))),
        ("QA_PIXEL=cloud,cloud_shadow", CloudMask(None, "QA_PIXEL", "qa_pixel", ("cloud", "cloud_shadow"))),
        ("clear mask=0", CloudMask(None, "clear mask", None, ("0",))),
    ],
)
def test_qa_bands_are_parsed(text: str, mask: CloudMask) -> None:
    assert parse_qa_band(text) == mask


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.tif:scl=clouds", "'clouds' is no class of SCL; is cloud meant?"),
        ("a.tif:qa_pixel=haze", "'haze' is no bit of QA_PIXEL; there are fill, dilated_cloud"),
        ("a.tif:sc1", "'sc1' is no kind of mask; is scl meant?"),
        ("a.tif=cloud", "'cloud' is no number; of what are these names?"),
        ("a.tif=9-3", "9-3: the first number must not be above the second"),
        ("a.tif:bits", "bits: give their numbers"),
        ("a.tif:bits=64", "bits: give their numbers"),
        ("", "names no file"),
        (":scl", "names no file"),
    ],
)
def test_cloud_masks_that_cannot_be_parsed(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="cloud mask") as caught:
        parse_cloud_mask(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("5", "what do its values mean"), (":scl", "write a band"), ("SCL=ice", "no class of SCL")],
)
def test_qa_bands_that_cannot_be_parsed(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_qa_band(text)


@pytest.mark.parametrize(
    ("code", "spec", "is_hidden"),
    [
        *((code, ":scl", code in (0, 1, 3, 8, 9, 10)) for code in range(12)),
        (11, ":scl=snow", True),
        (9, ":scl=snow", False),
        (8, ":scl=cloud,cloud_shadow", True),
        (9, ":scl=8-10", True),
        (7, "=3,8-10", False),
        (0b1000, ":qa_pixel", True),
        (0b100000, ":qa_pixel", False),
        (0b100000, ":qa_pixel=snow", True),
        (0b1010100, ":qa_pixel=cloud", False),
        (0b1000, ":bits=3", True),
        (0b0111, ":bits=3", False),
    ],
)
def test_classes_and_bits_that_hide(
    tmp_path: Path, before: Path, after: Path, code: int, spec: str, is_hidden: bool
) -> None:
    clear = 64 if "qa_pixel" in spec else 4
    mask = write_raster(tmp_path / "mask.tif", np.where(CLOUD, code, clear)[None].astype("uint8"))
    valid = valid_of(before, after, after_cloud_mask=f"{mask}{spec}")
    assert valid[~CLOUD].all()
    assert (valid[CLOUD] != is_hidden).all()


def test_all_but_0_and_nodata_hide_by_default(tmp_path: Path, before: Path, after: Path) -> None:
    values = CLOUD[None].astype("uint8")
    values[0, :, 100:] = 255
    mask = write_raster(tmp_path / "mask.tif", values, nodata=255)
    assert (valid_of(before, after, before_cloud_mask=str(mask)) == ~CLOUD).all()
    probability = write_raster(tmp_path / "p.tif", np.where(CLOUD, 80.5, np.nan)[None].astype("float32"))
    assert (valid_of(before, after, before_cloud_mask=f"{probability}=40-100") == ~CLOUD).all()
    assert (valid_of(before, after, before_cloud_mask=str(probability)) == ~CLOUD).all()


def test_hidden_pixels_are_no_data_of_either_date(
    tmp_path: Path, before: Path, after: Path, shift: float
) -> None:
    """They have one color in both dates, chips know their share, and strips read as single chips do."""
    if shift:
        after = write_raster(tmp_path / "shifted.tif", smooth(), transform=moved(shift, 0))
    mask = scl(tmp_path / "scl.tif")
    with opened(before, after, before_cloud_mask=str(mask)) as reader:
        chips = read_all(reader)
        images = mosaic(reader, chips)
        strips = [pixels for _, pixels in read_chips(reader, reader.chips(SIZE))]
        assert reader.notes[0].startswith(
            f"before: cloud mask {mask}, band 1: no_data, saturated_or_defective"
        )
        assert reader.provenance()["before"]["cloud_mask"] == {  # type: ignore[index]
            "path": str(mask),
            "band": 1,
            "kind": "scl",
            "hidden": [
                *("no_data", "saturated_or_defective", "cloud_shadows"),
                *("cloud_medium_probability", "cloud_high_probability", "thin_cirrus"),
            ],
        }
    cloud = CLOUD[:, CLOUD.shape[1] - images[2].shape[1] :]  # the common grid begins where `after` does
    assert not images[2][cloud].any()
    assert (images[0][:, ~images[2]] == images[1][:, ~images[2]]).all()
    for chip, strip in zip(chips, strips, strict=True):
        assert (chip.valid == strip.valid).all()  # type: ignore[union-attr]
        assert chip.cloud_share == strip.cloud_share  # type: ignore[union-attr]
        assert chip.cloud_share is not None
        if not shift:
            assert chip.valid_fraction + chip.cloud_share == pytest.approx(1)
    assert sum(chip.cloud_share or 0 for chip in chips) == pytest.approx(CLOUD.sum() / SIZE**2, rel=0.03)


def test_without_a_mask_there_is_no_share(before: Path, after: Path) -> None:
    with opened(before, after) as reader:
        assert read_all(reader)[0].cloud_share is None


def test_what_the_image_lacks_is_no_cloud(tmp_path: Path, before: Path) -> None:
    pixels = smooth()
    pixels[:, 20:40] = 0
    after = write_raster(tmp_path / "after.tif", pixels, nodata=0)
    mask = scl(tmp_path / "scl.tif", 0)
    with opened(before, after, after_cloud_mask=str(mask)) as reader:
        shares = [chip.cloud_share or 0 for chip in read_all(reader)]
    assert sum(shares) * SIZE**2 == CLOUD[40:].sum()


def test_a_mask_of_another_resolution_and_crs(tmp_path: Path, before: Path, after: Path) -> None:
    """SCL has pixels of 20 m, the image of 10 m. Classes are never mixed: 4 and 10 are not 7."""
    coarse = np.where(CLOUD, 10, 4)[None, ::2, ::2].astype("uint8")
    mask = write_raster(tmp_path / "scl.tif", coarse, transform=HALF_METRE * Affine.scale(2))
    assert (valid_of(before, after, after_cloud_mask=str(mask)) == ~CLOUD).all()
    assert valid_of(before, after, after_cloud_mask=f"{mask}=5-9").all()
    other = tmp_path / "scl_3857.tif"
    with rasterio.open(mask) as source:
        transform, width, height = rasterio.warp.calculate_default_transform(
            source.crs, "EPSG:3857", source.width, source.height, *source.bounds, resolution=0.3
        )
        values = np.zeros((1, height, width), np.uint8)
        rasterio.warp.reproject(
            rasterio.band(source, 1), values, dst_transform=transform, dst_crs="EPSG:3857"
        )
    write_raster(other, values, crs="EPSG:3857", transform=transform)
    valid = valid_of(before, after, after_cloud_mask=f"{other}:scl=thin_cirrus")
    assert (valid != ~CLOUD).mean() < 0.03


def test_clouds_do_not_enter_the_stretch(tmp_path: Path) -> None:
    pixels = noise(dtype="uint16", low=200, high=1000)
    bright = pixels.copy()
    bright[:, CLOUD] = 9000
    before = write_raster(tmp_path / "b.tif", pixels, photometric="RGB")
    after = write_raster(tmp_path / "a.tif", bright, photometric="RGB")
    mask = scl(tmp_path / "scl.tif")
    with opened(before, after, after_cloud_mask=str(mask)) as reader:
        assert reader.stretches[1] is not None
        assert max(reader.stretches[1].high) < 1000


def test_a_band_of_the_images(tmp_path: Path, shift: float) -> None:
    """Each date has its own band, which is never mixed where the image is."""
    paths = []
    for name, cloud, offset in (("b", CLOUD, 0.0), ("a", CLOUD[::-1], shift)):
        classes = np.where(cloud, 9, 4)[None]
        pixels = np.concatenate([smooth(), classes]).astype("uint16")
        path = write_raster(tmp_path / f"{name}.tif", pixels, photometric="RGB", transform=moved(offset, 0))
        with rasterio.open(path, "r+") as raster:
            raster.descriptions = ("red", "green", "blue", "scl")
        paths.append(path)
    for spec in ("SCL", "4:scl", "4=9"):
        valid = valid_of(*paths, qa_band=spec)
        expected = ~(CLOUD | CLOUD[::-1])[:, COLS - valid.shape[1] :]
        assert (valid == expected)[:, 2:-2].mean() > (0.97 if shift else 0.999)
    mask = scl(tmp_path / "none.tif", 4)
    if not shift:  # a file takes precedence over the band
        assert (valid_of(*paths, qa_band="SCL", after_cloud_mask=f"{mask}:scl") == ~CLOUD).all()


def test_a_mask_that_covers_a_part(tmp_path: Path, before: Path, after: Path) -> None:
    """Outside of it nothing is known, and nothing hidden, with a warning."""
    mask = write_raster(tmp_path / "scl.tif", np.zeros((1, ROWS, 80), np.uint8))
    with opened(before, after, after_cloud_mask=f"{mask}:scl") as reader:
        assert (
            f"after: cloud mask {mask} covers 50.0% of the pair; elsewhere it hides nothing"
            in reader.warnings
        )
        valid = mosaic(reader, read_all(reader))[2]
    assert not valid[:, :80].any()
    assert valid[:, 80:].all()


def test_images_without_a_crs(tmp_path: Path) -> None:
    bare = {"crs": None, "transform": None}
    before = write_raster(tmp_path / "b.tif", smooth(), **bare)
    after = write_raster(tmp_path / "a.tif", noise(), **bare)
    mask = scl(tmp_path / "scl.tif", **bare)
    assert (valid_of(before, after, allow_no_crs=True, after_cloud_mask=str(mask)) == ~CLOUD).all()
    small = write_raster(tmp_path / "small_scl.tif", np.zeros((1, 9, 9), np.uint8), **bare)
    with pytest.raises(RasterError, match="without a CRS both must have the same size"):
        valid_of(before, after, allow_no_crs=True, after_cloud_mask=str(small))


def test_bad_masks_are_told_in_one_line(tmp_path: Path, before: Path, after: Path) -> None:
    far = scl(tmp_path / "far_scl.tif", transform=moved(5000, 0))
    bare = scl(tmp_path / "bare_scl.tif", crs=None, transform=None)
    several = write_raster(tmp_path / "several.tif", noise(3))
    (tmp_path / "text.tif").write_text("no raster")
    cases = {
        f"{tmp_path}/nosuch.tif": "no such file",
        f"{tmp_path}/nosuch.tif:scl": "no such file",
        f"{tmp_path}/text.tif": "cannot be read as a raster",
        str(far): "far_scl.tif: the cloud mask does not overlap the pair",
        str(bare): "bare_scl.tif: the cloud mask has no CRS, and the pair has one; assign one",
        str(several): "several.tif: has 3 bands; which is the mask",
        f"{several}:4": "several.tif: has no band 4; there are 1 to 3",
    }
    for spec, words in cases.items():
        with pytest.raises((RasterError, ConfigError)) as caught:
            valid_of(before, after, after_cloud_mask=spec)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    for band, words in (
        ("SCL", "before.tif: has no single band named 'SCL'; there are 1, 2, 3"),
        ("9=1", "no band 9"),
    ):
        with pytest.raises(ConfigError, match=words):
            valid_of(before, after, qa_band=band)


def test_a_broken_block_of_a_mask_spoils_its_chips(tmp_path: Path, before: Path, after: Path) -> None:
    mask = scl(tmp_path / "scl.tif", tiled=True, blockxsize=32, blockysize=32, compress="deflate")
    spoil(mask, [(1, 2)])
    with opened(before, after, after_cloud_mask=str(mask)) as reader:
        failed = {
            chip.chip_id
            for chip, pixels in read_chips(reader, reader.chips(SIZE))
            if isinstance(pixels, RasterError)
        }
    assert failed == {"r00032_c00064"}


@pytest.mark.parametrize("has_crs", [True, False])
def test_a_mask_is_corrected_with_its_image(tmp_path: Path, has_crs: bool) -> None:
    """Image and mask of one date are misregistered alike."""
    bare = {} if has_crs else {"crs": None, "transform": None}
    ground, cloud = noise(3, 136, 136), np.zeros((136, 136), bool)
    cloud[40:70, 50:90] = True
    before = write_raster(tmp_path / "b.tif", ground[:, 4:-4, 4:-4], **bare)
    after = write_raster(tmp_path / "a.tif", ground[:, 5:-3, 1:-7], **bare)
    mask = write_raster(tmp_path / "scl.tif", np.where(cloud, 9, 4)[None, 5:-3, 1:-7].astype("uint8"), **bare)
    options = {"after_cloud_mask": str(mask), "register": True, "allow_no_crs": not has_crs}
    with opened(before, after, **options) as reader:
        assert reader.registration.corrected
        images = mosaic(reader, read_all(reader))
    assert (images[2] == ~cloud[4:-4, 4:-4])[8:-8, 8:-8].mean() > 0.995
