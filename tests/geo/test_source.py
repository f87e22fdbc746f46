"""Colors of any raster, files that are no rasters or broken, and files over the wire."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from deltavlm.errors import ConfigError, RasterError
from deltavlm.messages import redact_address
from tests.geo.reading import COLS, ROWS, SAME_IMAGE, SIZE, mosaic, opened, read_all, read_pair
from tests.rasters import HALF_METRE, UTM, moved, noise, smooth, write_raster


def test_same_value_same_color_in_every_chip(tmp_path: Path) -> None:
    """A stretch per chip made unchanged pixels differ by a third of the range."""
    ramp = np.linspace(0, 9000, COLS).astype("uint16") * np.ones((3, ROWS, 1), "uint16")
    paths = [write_raster(tmp_path / f"{name}.tif", ramp, photometric="RGB") for name in "ba"]
    with opened(*paths) as reader:
        low, high = (reader.provenance()["before"]["stretch"][edge] for edge in ("low", "high"))  # type: ignore[index]
        grid = reader.chips(SIZE, 16)
        images = mosaic(reader, [reader.read(chip) for chip in grid])
    assert (images[0] == images[0][:, :1]).all()
    assert (np.diff(images[0][0, 0].astype(int)) >= 0).all()
    assert low == pytest.approx([180] * 3, rel=0.1)
    assert high == pytest.approx([8820] * 3, rel=0.1)


def test_scale_is_recorded_and_the_same_at_each_date(tmp_path: Path) -> None:
    first = write_raster(tmp_path / "b.tif", noise(dtype="uint16", high=3000), photometric="RGB")
    second = write_raster(tmp_path / "a.tif", noise(dtype="uint16", high=3300), photometric="RGB")
    with opened(first, second) as reader:
        described = reader.provenance()
        assert described["before"]["stretch"] == described["after"]["stretch"]  # type: ignore[index]
        assert json.loads(json.dumps(described)) == described
    images = read_pair(first, second, scale="0,6000")
    assert images[0].astype(int) == pytest.approx(noise(dtype="float", high=3000) * 255 / 6000, abs=0.51)


def test_a_large_raster_is_sampled_all_over(tmp_path: Path) -> None:
    """Without overviews small windows are sampled; they once came from the first blocks only."""
    ramp = np.linspace(0, 10_000, 1400).astype("uint16") * np.ones((1, 1300, 1), "uint16")
    path = write_raster(tmp_path / "large.tif", ramp)
    with opened(path, path) as reader:
        stretch = reader.stretches[0]
    assert stretch is not None
    assert (stretch.low[0], stretch.high[0]) == pytest.approx((200, 9800), abs=250)


def test_scale_and_offset_of_the_file_are_applied(tmp_path: Path) -> None:
    """Sentinel-2 since 2022 stores reflectance plus 1000."""
    plain = write_raster(tmp_path / "b.tif", noise(dtype="uint16", high=3000), photometric="RGB")
    lifted = write_raster(
        tmp_path / "a.tif",
        noise(dtype="uint16", high=3000) + 1000,
        photometric="RGB",
        tags={"offsets": [-1000.0] * 3},
    )
    images = read_pair(plain, lifted, scale="0,3000")
    assert (images[0] == images[1]).all()


@pytest.mark.parametrize("scale", [0.0, np.nan])
def test_a_scale_that_cannot_be_is_ignored(tmp_path: Path, scale: float) -> None:
    pixels = noise(dtype="uint16", high=3000)
    plain = write_raster(tmp_path / "b.tif", pixels, photometric="RGB")
    odd = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", tags={"scales": [scale] * 3})
    images = read_pair(plain, odd)
    assert (images[0] == images[1]).all()


def test_bands_by_label_by_wish_and_by_guess(tmp_path: Path) -> None:
    pixels = noise(4)
    labelled = write_raster(
        tmp_path / "b.tif",
        pixels,
        photometric="MINISBLACK",
        colorinterp=["blue", "green", "red", "undefined"],
    )
    plain = write_raster(tmp_path / "a.tif", pixels, photometric="MINISBLACK", alpha="NO")
    with opened(labelled, plain) as reader:
        images = mosaic(reader, read_all(reader))
        assert reader.notes == (
            "after: no bands are named or labelled red, green and blue: bands 1,2,3 are taken "
            "(`before_bands` and `after_bands` choose others)",
            "red, green, blue are bands 3,2,1 of before, and bands 1,2,3 of after",
        )
        assert reader.warnings == reader.notes[:1]  # a guess may make the answers wrong
    assert (images[0] == pixels[[2, 1, 0]]).all()
    assert (images[1] == pixels[[0, 1, 2]]).all()
    images = read_pair(labelled, plain, before_bands=(4, 4, 1), after_bands=(2,))
    assert (images[0] == pixels[[3, 3, 0]]).all()
    assert (images[1] == pixels[[1, 1, 1]]).all()
    with pytest.raises(ConfigError, match=r"b\.tif: bands 5,1,1"):
        opened(labelled, plain, before_bands=(5, 1, 1)).__enter__()


def test_a_single_band_is_repeated(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "grey.tif", noise(1))
    images = read_pair(path, path)
    assert (images[0] == noise(1)).all()
    assert images[0].shape[0] == 3


def test_a_palette_is_looked_up(tmp_path: Path, shift: float) -> None:
    """Numbers of a palette are names of colors: mixing them in a warp makes colors that are nowhere."""
    colors = {1: (10, 20, 30), 2: (200, 100, 50), 9: (0, 0, 255)}
    numbers = np.random.default_rng(1).choice([1, 2, 9], (1, ROWS, COLS)).astype("uint8")
    before = write_raster(tmp_path / "b.tif", numbers, palette=colors)
    after = write_raster(tmp_path / "a.tif", numbers, palette=colors, transform=moved(shift, 0))
    images = read_pair(before, after)
    for image in images[:2]:
        assert {tuple(pixel) for pixel in image[:, images[2]].T.tolist()} == set(colors.values())


def write_palette(
    path: Path, numbers: np.ndarray, colors: dict[int, tuple[int, ...]], **profile: object
) -> Path:
    """Raster of one band whose color table is in a `.aux.xml`, with as many entries as given."""
    write_raster(path, numbers, colorinterp=["palette"], photometric="MINISBLACK", **profile)
    entries = "".join(
        '<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*colors.get(number, (0, 0, 0, 255)))
        for number in range(max(colors) + 1)
    )
    path.with_name(path.name + ".aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><ColorInterp>Palette</ColorInterp>'
        f"<ColorTable>{entries}</ColorTable></PAMRasterBand></PAMDataset>"
    )
    return path


def test_a_palette_of_16_bit_is_looked_up(tmp_path: Path, shift: float) -> None:
    """An index beyond 255 was an unexpected IndexError."""
    colors = {1: (10, 20, 30), 299: (200, 100, 50), 60_000: (0, 0, 255)}
    numbers = np.random.default_rng(1).choice([1, 299, 60_000], (1, ROWS, COLS)).astype("uint16")
    before = write_raster(tmp_path / "b.tif", numbers, palette=colors, photometric="palette")
    after = write_raster(
        tmp_path / "a.tif", numbers, palette=colors, photometric="palette", transform=moved(shift, 0)
    )
    for scale in ("auto", "per-date", "0,3000"):
        with opened(before, after, scale=scale) as reader:
            images = mosaic(reader, read_all(reader))
            assert reader.stretches == (None, None)
        for image in images[:2]:
            assert {tuple(pixel) for pixel in image[:, images[2]].T.tolist()} == set(colors.values())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_values_without_a_color_are_no_data(tmp_path: Path, before: Path, shift: float, dtype: str) -> None:
    """A table may be shorter than the values, and its entries may be transparent."""
    numbers = np.full((1, ROWS, COLS), 2, dtype)
    numbers[0, :, :40], numbers[0, :, 40:80] = 7, 1
    after = write_palette(
        tmp_path / "a.tif", numbers, {1: (9, 9, 9, 0), 2: (40, 50, 60, 255)}, transform=moved(shift, 0)
    )
    with opened(before, after) as reader:
        images = mosaic(reader, read_all(reader))
    assert not images[2][:, :78].any()
    assert images[2][:, 82:-2].all()
    assert (images[1][:, 5, 100] == (40, 50, 60)).all()


def test_a_palette_that_is_not_there(tmp_path: Path, before: Path) -> None:
    """A band that is said to have a color table, and has none, was an unexpected ValueError."""
    after = write_raster(tmp_path / "a.tif", noise(1), colorinterp=["palette"], photometric="MINISBLACK")
    path = after.with_name("a.tif.aux.xml")
    path.write_text(
        '<PAMDataset><PAMRasterBand band="1"><ColorInterp>Palette</ColorInterp></PAMRasterBand></PAMDataset>'
    )
    with opened(before, after) as reader:
        images = mosaic(reader, read_all(reader))
        assert any("there is none: its values are shown as gray" in note for note in reader.warnings)
        assert any("after is gray and before has colors" in note for note in reader.warnings)
    assert (images[1] == noise(1)).all()


def test_a_color_table_in_one_date_alone_is_told(tmp_path: Path, before: Path) -> None:
    numbers = np.random.default_rng(1).choice([1, 2, 9], (1, ROWS, COLS)).astype("uint8")
    after = write_raster(
        tmp_path / "a.tif", numbers, palette={1: (10, 20, 30), 2: (200, 9, 50), 9: (0, 0, 255)}
    )
    for pair, name in (((before, after), "after"), ((after, before), "before")):
        with opened(*pair) as reader:
            assert any(f"only {name} is read through a color table" in note for note in reader.warnings)


def test_bands_named_by_their_descriptions(tmp_path: Path, shift: float) -> None:
    """Red and blue were swapped in one date alone, so that all of the ground changed."""
    pixels = noise(4, dtype="uint16", high=3000)
    before = write_raster(tmp_path / "b.tif", pixels[[2, 1, 0]], photometric="RGB")
    after = write_raster(tmp_path / "a.tif", pixels, transform=moved(shift, 0))
    with rasterio.open(after, "r+") as raster:
        raster.descriptions = ("blue", "green", "red", "nir")
    with opened(before, after) as reader:
        assert reader.views[1].source.bands == (3, 2, 1)
        assert reader.warnings == ()
        assert any("bands 3 (red), 2 (green), 1 (blue), by their names" in note for note in reader.notes)
        assert any("bands 1,2,3 of before, and bands 3,2,1 of after" in note for note in reader.notes)
        images = mosaic(reader, read_all(reader))
    if not shift:
        assert (images[0] == images[1]).all()


def test_colors_of_print_are_refused(tmp_path: Path, before: Path) -> None:
    """Those of 8 bit are converted by GDAL."""
    after = write_raster(tmp_path / "a.tif", noise(4, dtype="uint16"), photometric="CMYK")
    with pytest.raises(ConfigError, match=r"a\.tif: its colors are CMYK; convert it to RGB"):
        opened(before, after).__enter__()


def test_jpeg_in_tiff_is_rgb(tmp_path: Path) -> None:
    """GDAL decodes YCbCr to RGB."""
    path = write_raster(
        tmp_path / "a.tif", smooth(), compress="jpeg", photometric="YCbCr", interleave="pixel"
    )
    with opened(path, path) as reader:
        assert reader.warnings == (SAME_IMAGE,)
        images = mosaic(reader, read_all(reader))
    assert np.abs(images[0].astype(int) - smooth()).mean() < 8


@pytest.mark.parametrize(
    ("dtype", "nbits", "high"),
    [
        ("uint8", 1, 2),
        ("uint8", 4, 16),
        ("uint16", 12, 4096),
        ("int8", None, 127),
        ("uint32", None, 2**31 - 1),
    ],
)
def test_every_depth_fills_8_bit(tmp_path: Path, dtype: str, nbits: int | None, high: int) -> None:
    """Values of 1 or 4 bits were shown as they are: nearly black."""
    pixels = noise(dtype=dtype, low=0, high=high)
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", **({"nbits": nbits} if nbits else {}))
    with opened(path, path) as reader:
        images = mosaic(reader, read_all(reader))
        assert reader.stretches[0] is not None
        clipped = np.isin(images[0], (0, 255)).mean()
        # nothing but black and white
        assert (reader.warnings == (SAME_IMAGE,)) == (nbits != 1)
    assert (images[0].min(), images[0].max()) == (0, 255)
    assert clipped < 0.3 or nbits == 1


def test_large_integers_keep_their_differences(tmp_path: Path) -> None:
    """Stretched as float32, 32-bit values of 4 billion and some kept one in 256."""
    pixels = (4_000_000_000 + noise(dtype="uint32")).astype("uint32")
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB")
    images = read_pair(path, path, scale="4000000000,4000000255")
    assert (images[0] == noise()).all()


def test_plain_mistakes_have_plain_messages(tmp_path: Path, before: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("not a raster\n" * 100)
    bare = {"driver": "GTiff", "width": 9, "height": 9, "count": 1, "dtype": "complex64", "crs": UTM}
    with rasterio.open(tmp_path / "complex.tif", "w", transform=HALF_METRE, **bare) as raster:
        raster.write(np.ones((1, 9, 9), "complex64"))
    for name, words in {
        "nosuch.tif": "no such file; check the name",
        f"{'a' * 300}.tif": "File name too long.*; check the name",
        "": "is a folder",
        "empty.tif": r"0 bytes",
        "text.tif": r"cannot be read as a raster \(.*\); give",
        "complex.tif": "complex",
    }.items():
        path = str(tmp_path / name) if name else str(tmp_path)
        for pair in ((path, before), (before, path)):
            with pytest.raises(RasterError, match=words) as caught:
                opened(*pair).__enter__()
            assert path in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_corrupt_block_spoils_its_chips_only(tmp_path: Path, before: Path) -> None:
    after = write_raster(
        tmp_path / "after.tif", noise(), tiled=True, blockxsize=32, blockysize=32, compress="deflate"
    )
    with rasterio.open(after) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    content = bytearray(after.read_bytes())
    content[offset : offset + 64] = bytes(64)
    after.write_bytes(content)
    message = f"chip r00032_c00064: {after}: a part of it cannot be read "
    with opened(before, after) as reader:
        for chip in reader.chips(SIZE):
            if chip.chip_id == "r00032_c00064":
                with pytest.raises(RasterError, match=re.escape(message)) as caught:
                    reader.read(chip)
                assert "See previous exception" not in str(caught.value)
            else:
                assert reader.read(chip).valid.all()


@pytest.mark.parametrize("keep", [0.5, 0.02])
@pytest.mark.parametrize("kind", ["tif", "png", "jpg"])
def test_a_truncated_raster_is_a_clear_error(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / f"after.{kind}"
    if kind == "tif":
        write_raster(path, noise(dtype="uint16"), compress="deflate", crs=None, transform=None)
    else:
        Image.fromarray(noise().transpose(1, 2, 0)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with (
        pytest.raises(
            RasterError, match=rf"after\.{kind}: .* cannot be read|cannot be read as a raster"
        ) as caught,
        opened(path, path, allow_no_crs=True) as reader,
    ):
        read_all(reader)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the folder; in a process of its own, as GDAL may wait for it without letting Python run."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "0",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tmp_path),
    ]
    with (tmp_path / "requests.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()  # Serving HTTP on 127.0.0.1 port 43210 (http://127.0.0.1:43210/) ...
        yield line.partition("(")[2].partition(")")[0]
        process.terminate()
        process.communicate()


def test_urls_are_read_without_requests_for_sidecars(
    server: str, tmp_path: Path, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"{server}before.tif"
    with opened(f"{url}?token=secret", f"/vsicurl/{url}") as reader:
        read_all(reader)
        assert "secret" not in json.dumps(reader.provenance())
    paths = re.findall(r"(?:GET|HEAD) (/[^ ?]*)", (tmp_path / "requests.log").read_text())
    assert set(paths) == {"/before.tif"}
    with pytest.raises(RasterError, match=r"/nosuch\.tif: cannot be read as a raster") as caught:
        opened(url.replace("before", "nosuch") + "?token=secret", before).__enter__()
    assert "secret" not in str(caught.value)


def test_a_name_keeps_no_secrets() -> None:
    for location in (
        "https://me:secret@host/x.tif?sig=secret",
        "/vsicurl/https://me:secret@host/x.tif?sig=secret",
    ):
        assert redact_address(location) == location.replace("me:secret@", "").replace("?sig=secret", "")
    assert redact_address("odd?name.tif") == "odd?name.tif"


def test_a_vsi_path_is_a_raster(tmp_path: Path, before: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pair.zip", "w") as archive:
        archive.write(before, "before.tif")
    images = read_pair(f"/vsizip/{tmp_path}/pair.zip/before.tif", before)
    assert (images[0] == images[1]).all()
