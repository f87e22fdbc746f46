"""Images of a scene have the pixels that the model saw; missing images are a one-line error."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltavlm.errors import RasterError
from deltavlm.geo.geobox import Window
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from deltavlm.report.images import ImageOptions, OpenImages, open_images
from tests.conftest import CHIP, Analyzed, Scene, write_tiled
from tests.rasters import moved, noise, smooth, spoil, write_raster
from tests.report.conftest import only_pair, opened


def colours(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["bytes", "uint16", "float", "shifted", "resampled", "cut"])
def test_a_crop_has_the_pixels_that_the_model_saw(analyzed: Analyzed, tmp_path: Path, kind: str) -> None:
    pixels = smooth(rows=96, cols=128)
    if kind == "uint16":
        pixels = pixels.astype("uint16") * 40
    if kind == "float":
        pixels = pixels.astype("float32") / 7
    before = write_raster(tmp_path / "before.tif", pixels)
    profile = {"shifted": {"transform": moved(3.4, 5.2)}, "cut": {"transform": moved(7, 9)}}.get(kind, {})
    after = write_raster(tmp_path / "after.tif", pixels[:, ::-1].copy(), **profile)
    read = ReadOptions(gsd_m=0.8 if kind == "resampled" else None)
    path = analyzed(before, after, read=read)
    with (
        open_pair(RasterPair(str(before), str(after)), read) as reader,
        opened(path) as pair,
    ):
        for chip in reader.chips(CHIP):
            chip_pixels = reader.read(chip)
            pictures = pair.crop(chip.window, 256)
            _, _, width, height = chip.window
            for picture, model_saw in zip(pictures, (chip_pixels.before, chip_pixels.after), strict=True):
                valid = chip_pixels.valid[:height, :width]
                assert (colours(picture)[:, valid] == model_saw[:, :height, :width][:, valid]).all()


def test_an_overview_is_the_mean_of_the_pixels(analyzed: Analyzed, tmp_path: Path) -> None:
    """Also of an image that must be warped."""
    pixels = smooth(rows=96, cols=160)
    before = write_raster(tmp_path / "before.tif", pixels)
    after = write_raster(tmp_path / "after.tif", pixels, transform=moved(0.3, 0.3))
    with opened(analyzed(before, after)) as pair:
        pictures = pair.overview(40)
    means = pixels.reshape(3, 24, 4, 40, 4).mean(axis=(2, 4))
    for picture in pictures:
        assert picture.size == (40, 24)
        inside = np.abs(colours(picture).astype(float) - means)[:, 1:-1, 1:-1]
        assert inside.max() < 8


def test_nodata_is_transparent(analyzed: Analyzed, tmp_path: Path) -> None:
    pixels = noise()
    pixels[:, :, :40] = 0
    before = write_raster(tmp_path / "before.tif", pixels, nodata=0)
    with opened(analyzed(before, before)) as pair:
        picture, _ = pair.overview(2048)
    alpha = np.asarray(picture.getchannel("A"))
    assert (alpha == np.where(np.arange(160) < 40, 0, 255)).all()


def test_unreadable_rows_are_transparent(
    analyzed: Analyzed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (
        write_tiled(tmp_path / name, noise(), compress="deflate") for name in ("before.tif", "after.tif")
    )
    path = analyzed(before, after)
    spoil(after, [(1, 2)])
    monkeypatch.setattr("deltavlm.report.images.READ_BYTES", 160 * 3 * 32)  # a row of blocks at a time
    with opened(path) as pair:
        intact, holed = pair.overview(2048)
        with pytest.raises(RasterError, match="cannot be read"):
            pair.crop(Window(64, 32, 32, 32), 32)
    assert intact.mode == "RGB"
    alpha = np.asarray(holed.getchannel("A"))
    assert (alpha[32:64] == 0).all()
    assert (alpha[:32] == 255).all()
    assert (alpha[64:] == 255).all()
    spoil(after, [(row, col) for row in range(3) for col in range(5)])
    with pytest.raises(RasterError, match="a part of it cannot be read"), opened(path) as pair:
        pair.overview(2048)


def test_images_are_looked_for_in_the_folder_of_the_output(
    analyzed: Analyzed, scene: Scene, tmp_path: Path
) -> None:
    path = analyzed(*scene.args)
    folder = tmp_path / "sent by mail"
    folder.mkdir()
    for file in (path, scene.before, scene.after):
        shutil.move(file, folder / file.name)
    with opened(folder / path.name) as pair:
        assert isinstance(pair, OpenImages)


def refusal(path: Path, options: ImageOptions | None = None) -> str:
    with pytest.raises(RasterError) as refused, opened(path, options):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_images_that_are_gone_or_others_are_refused(analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    path = analyzed(*scene.args)
    other = write_tiled(tmp_path / "other.tif", noise(rows=64, cols=64))
    message = refusal(path, ImageOptions(after=str(other)))
    assert message.startswith(f"{other}: has 64 x 64 px, and the image that was analyzed 160 x 96;")
    scene.before.unlink()
    message = refusal(path)
    assert message.startswith(f"{scene.before}: no such file;")
    assert "`before` and `after`" in message
    (tmp_path / "text.tif").write_text("no image")
    assert "cannot be read as a raster" in refusal(path, ImageOptions(before=str(tmp_path / "text.tif")))


@pytest.mark.parametrize(
    "location", ["https://example.org/before.tif", "/vsicurl/https://example.org/a.tif", "s3://a/b.tif"]
)
def test_remote_images_are_not_fetched_by_default(
    analyzed: Analyzed, scene: Scene, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    path = analyzed(*scene.args)
    pair = only_pair(path)
    object.__setattr__(pair.before, "path", location)
    monkeypatch.setattr("deltavlm.report.images.open_pair", pytest.fail)
    with (
        pytest.raises(RasterError, match="is a remote image; `allow_remote=True`"),
        open_images(pair, ImageOptions(), path),
    ):
        pass
