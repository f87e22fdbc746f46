"""Overviews and crops of both images of a scene, with the stretch to 8 bit that the model saw."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from deltavlm.errors import InputError, RasterError
from deltavlm.geo.alignment import align, check_georeferenced
from deltavlm.geo.gdal import gdal_env, log_decoder_warnings
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.radiometry import Stretch
from deltavlm.geo.source import open_source
from deltavlm.geo.view import Source, View
from deltavlm.report.scenes import Scene, SceneImage

__all__ = ["ImageOptions", "OpenScene", "as_webp", "open_scene"]

READ_BYTES = 24 * 2**20
"""Bytes of the file per read of an overview. GDAL averages band by band, and decodes blocks that its cache
does not hold once for each band."""

WEBP_QUALITY = 80

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Locations of the images, instead of those that the output records, and permissions to open them."""

    before: str | None = None
    after: str | None = None
    allow_vrt: bool = False
    allow_remote: bool = False  # off: a file from elsewhere must not make us contact a server


@dataclass(frozen=True, slots=True)
class OpenScene:
    """Both images of a scene, open on one grid."""

    grid: GeoBox
    sources: tuple[Source, Source]
    views: tuple[View, View]  # on `grid`
    stretches: tuple[Stretch | None, Stretch | None]

    def overview(self, long_side_px: int) -> tuple[Image.Image, Image.Image]:
        """Both images downsampled to at most `long_side_px`; nodata and unreadable rows are transparent.

        Raises:
            RasterError: an image cannot be read at all.
        """
        scale = min(1.0, long_side_px / max(self.grid.width, self.grid.height))
        size = tuple(max(1, round(length * scale)) for length in (self.grid.width, self.grid.height))
        before, after = (
            _overview(source, view, stretch, self.grid, size)
            for source, view, stretch in zip(self.sources, self.views, self.stretches, strict=True)
        )
        return before, after

    def crop(self, window: Window, long_side_px: int) -> tuple[Image.Image, Image.Image]:
        """Both images in a window, downsampled to at most `long_side_px`.

        Raises:
            RasterError: the window cannot be read in full.
        """
        scale = min(1.0, long_side_px / max(window.width, window.height))
        shape = max(1, round(window.height * scale)), max(1, round(window.width * scale))
        before, after = (
            _to_image(*_to_uint8(*view.read(window, shape, averaged=scale < 1), stretch))
            for view, stretch in zip(self.views, self.stretches, strict=True)
        )
        return before, after


@contextmanager
def open_scene(scene: Scene, options: ImageOptions, folder: Path) -> Iterator[OpenScene]:
    """Open the images of a scene; one that has been moved is looked for in `folder`, that of the output.

    Raises:
        RasterError: an image is missing, cannot be read, or is not the one that was analysed.
    """
    if scene.grid is None:
        raise RasterError(scene.reason or "this pair was not analyzed")
    paths = [
        _locate(image.path, override, options, folder)
        for image, override in ((scene.before, options.before), (scene.after, options.after))
    ]
    with ExitStack() as stack:
        stack.enter_context(gdal_env(*paths))
        sources = []
        for path, image in zip(paths, (scene.before, scene.after), strict=True):
            try:
                source = stack.enter_context(
                    open_source(path, bands=image.bands, nodata=image.nodata, allow_vrt=options.allow_vrt)
                )
            except InputError as error:  # the bands too come from the file
                raise RasterError(str(error)) from error
            _check_size(source, image)
            sources.append(source)
        before, after = sources
        stack.enter_context(log_decoder_warnings(" or ".join(dict.fromkeys((before.name, after.name)))))
        check_georeferenced(before, after, allow_no_crs=True)
        alignment = align(before, after, strict=False, resampling=scene.resampling, gsd_m=None)
        grid, offsets = scene.grid, (alignment.before_offset, alignment.after_offset)
        if not scene.has_recorded_grid:
            grid = alignment.geobox
        elif (grid.width, grid.height) != (alignment.geobox.width, alignment.geobox.height):
            offsets = (None, None)  # it was resampled
        views = (
            stack.enter_context(before.view_on(grid, offsets[0], scene.resampling)),
            stack.enter_context(after.view_on(grid, offsets[1], scene.resampling)),
        )
        stretches = (_stretch(scene.before, views[0], grid), _stretch(scene.after, views[1], grid))
        yield OpenScene(grid, (before, after), views, stretches)


def as_webp(image: Image.Image) -> bytes:
    """Image encoded as lossy WebP."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=WEBP_QUALITY, method=4)
    return stream.getvalue()


def _locate(path: str, override: str | None, options: ImageOptions, folder: Path) -> str:
    """Current location of an image: the override, else its recorded path, else the same name in `folder`."""
    if override is not None:
        return override
    if not path:
        raise RasterError("the output does not name its images; give --before and --after")
    if "://" in path or "/vsi" in path:
        if options.allow_remote:
            return path
        raise RasterError(
            f"{path}: is a remote image; --allow-remote fetches it, or give --before and --after"
        )
    name = path.replace("\\", "/").rpartition("/")[2]
    for candidate in (Path(path), folder / path, folder / name):
        if candidate.is_file():
            return str(candidate)
    raise RasterError(f"{path}: no such file; give --before and --after, where the images are now")


def _check_size(source: Source, image: SceneImage) -> None:
    size = (source.geobox.width, source.geobox.height)
    if image.size is not None and size != image.size:
        raise RasterError(
            f"{source.name}: has {size[0]} x {size[1]} px, and the image that was analysed "
            f"{image.size[0]} x {image.size[1]}; give --before and --after, where the images are now"
        )


def _stretch(image: SceneImage, view: View, grid: GeoBox) -> Stretch | None:
    """Recorded stretch to 8 bit; if the output has none, the 2nd to 98th percentile of a sample."""
    if image.stretch is not None:
        return Stretch(*image.stretch)
    if view.source.dtype == "uint8":
        return None
    values = view.sample(grid)
    if not values.size:
        return Stretch((0.0,) * 3, (1.0,) * 3)
    low, high = np.percentile(values, (2, 98), axis=1)
    return Stretch(tuple(low.tolist()), tuple(np.maximum(high, low + 1e-6).tolist()))


def _overview(
    source: Source, view: View, stretch: Stretch | None, grid: GeoBox, size: tuple[int, ...]
) -> Image.Image:
    """One image resampled to `size` (width, height), read in strips; unreadable strips are transparent."""
    width, height = size
    pixels = np.zeros((3, height, width), np.uint8)
    valid = np.zeros((height, width), bool)
    small = replace(
        grid, transform=grid.transform * Affine.scale(grid.width / width, grid.height / height),
        width=width, height=height,
    )  # fmt: skip
    failures: list[RasterError] = []
    strips_read = 0
    with ExitStack() as stack:
        if view.dataset is not source.dataset and (width, height) != (grid.width, grid.height):
            view, grid = stack.enter_context(source.view_on(small, None, "average")), small
        pixel_bytes = len(set(source.bands)) * np.dtype(source.dtype).itemsize
        strip_height = max(1, int(READ_BYTES / (grid.width * pixel_bytes) * height / grid.height))
        for top in range(0, height, strip_height):
            rows = slice(top, min(height, top + strip_height))
            first, last = (math.floor(row * grid.height / height) for row in (rows.start, rows.stop))
            window = Window(0, first, grid.width, max(1, last - first))
            try:
                values, mask = view.read(window, (rows.stop - rows.start, width), averaged=True)
            except RasterError as error:
                failures.append(error)
                continue
            strips_read += 1
            pixels[:, rows], valid[rows] = _to_uint8(values, mask, stretch)
    if not strips_read:
        raise failures[0]
    return _to_image(pixels, valid)


def _to_uint8(
    values: NDArray[np.generic], valid: NDArray[np.bool_], stretch: Stretch | None
) -> tuple[Pixels, NDArray[np.bool_]]:
    pixels = values.astype(np.uint8, copy=False) if stretch is None else stretch.apply(values)
    return pixels, valid


def _to_image(pixels: Pixels, valid: NDArray[np.bool_]) -> Image.Image:
    """Image from (3, rows, cols): RGB, or RGBA with alpha 0 where pixels are not valid."""
    rgb = np.moveaxis(pixels, 0, 2)
    if valid.all():
        return Image.fromarray(np.ascontiguousarray(rgb))
    alpha = np.where(valid, 255, 0).astype(np.uint8)[..., None]
    return Image.fromarray(np.concatenate([np.where(valid[..., None], rgb, 0), alpha], axis=2))
