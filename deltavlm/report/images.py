"""The two images of a scene as small pictures, in the very colours that the model was shown."""

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
from deltavlm.geo.alignment import PixelGrid
from deltavlm.geo.decoding import complaints_told
from deltavlm.geo.grid import Window
from deltavlm.geo.location import gdal_settings
from deltavlm.geo.meeting import check_placed, meet
from deltavlm.geo.radiometry import Stretch
from deltavlm.geo.source import open_source
from deltavlm.geo.view import Source, View
from deltavlm.report.scenes import Scene, SceneImage

__all__ = ["ImageOptions", "OpenScene", "as_webp", "open_scene"]

BAND_BYTES = 24 * 2**20
"""Of the file, read at once for an overview: GDAL averages one colour after the other, and what its block
cache does not hold is decoded once for each."""
QUALITY = 80

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Where to look for images. `before` and `after` go before what the output names."""

    before: str | None = None
    after: str | None = None
    allow_vrt: bool = False
    allow_remote: bool = False  # a file should not make us ask a server


@dataclass(frozen=True, slots=True)
class OpenScene:
    """Both dates of a scene, open."""

    grid: PixelGrid
    sources: tuple[Source, Source]
    views: tuple[View, View]  # on the grid
    stretches: tuple[Stretch | None, Stretch | None]

    def overview(self, longest_px: int) -> tuple[Image.Image, Image.Image]:
        """Both dates whole, the long side at most `longest_px`; what has no data is transparent.

        Raises:
            RasterError: no part of one can be read.
        """
        scale = min(1.0, longest_px / max(self.grid.width, self.grid.height))
        size = tuple(max(1, round(length * scale)) for length in (self.grid.width, self.grid.height))
        before, after = (
            _whole(source, view, stretch, self.grid, size)
            for source, view, stretch in zip(self.sources, self.views, self.stretches, strict=True)
        )
        return before, after

    def crop(self, window: Window, longest_px: int) -> tuple[Image.Image, Image.Image]:
        """Both dates of a window, the long side at most `longest_px`.

        Raises:
            RasterError: a part of it cannot be read.
        """
        scale = min(1.0, longest_px / max(window.width, window.height))
        shape = max(1, round(window.height * scale)), max(1, round(window.width * scale))
        before, after = (
            _picture(*_coloured(*view.read(window, shape, averaged=scale < 1), stretch))
            for view, stretch in zip(self.views, self.stretches, strict=True)
        )
        return before, after


@contextmanager
def open_scene(scene: Scene, options: ImageOptions, beside: Path) -> Iterator[OpenScene]:
    """Open the images of a scene; those that are not where they were are looked for in the folder `beside`.

    Raises:
        RasterError: an image is missing, cannot be read, or is not the one that was analysed.
    """
    if scene.grid is None:
        raise RasterError(scene.reason or "nothing was asked about this pair")
    places = [
        _found(date.path, given, options, beside)
        for date, given in ((scene.before, options.before), (scene.after, options.after))
    ]
    with ExitStack() as stack:
        stack.enter_context(gdal_settings(*map(str, places)))
        sources = []
        for place, date in zip(places, (scene.before, scene.after), strict=True):
            try:
                source = stack.enter_context(
                    open_source(place, bands=date.bands, nodata=date.nodata, allow_vrt=options.allow_vrt)
                )
            except InputError as error:  # the bands, too, are the file's say
                raise RasterError(str(error)) from error
            _check_same(source, date)
            sources.append(source)
        before, after = sources
        stack.enter_context(complaints_told(" or ".join(dict.fromkeys((before.name, after.name)))))
        check_placed(before, after, allow_no_crs=True)
        meeting = meet(before, after, strict=False, resampling=scene.resampling, gsd_m=None)
        grid, offsets = scene.grid, (meeting.before_offset, meeting.after_offset)
        if not scene.has_recorded_grid:
            grid = meeting.grid
        elif (grid.width, grid.height) != (meeting.grid.width, meeting.grid.height):
            offsets = (None, None)  # it was resampled
        views = (
            stack.enter_context(before.seen_on(grid, offsets[0], scene.resampling)),
            stack.enter_context(after.seen_on(grid, offsets[1], scene.resampling)),
        )
        stretches = (_stretch(scene.before, views[0], grid), _stretch(scene.after, views[1], grid))
        yield OpenScene(grid, (before, after), views, stretches)


def as_webp(picture: Image.Image) -> bytes:
    """The picture as a WebP, small."""
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=4)
    return stream.getvalue()


def _found(path: str, given: str | None, options: ImageOptions, beside: Path) -> str:
    """Where an image is now."""
    if given is not None:
        return given
    if not path:
        raise RasterError("the output does not name its images; give --before and --after")
    if "://" in path or "/vsi" in path:
        if options.allow_remote:
            return path
        raise RasterError(f"{path}: lies elsewhere; --allow-remote fetches it, or give --before and --after")
    name = path.replace("\\", "/").rpartition("/")[2]
    for place in (Path(path), beside / path, beside / name):
        if place.is_file():
            return str(place)
    raise RasterError(f"{path}: no such file; give --before and --after, where the images are now")


def _check_same(source: Source, date: SceneImage) -> None:
    found = (source.grid.width, source.grid.height)
    if date.size is not None and found != date.size:
        raise RasterError(
            f"{source.name}: has {found[0]} x {found[1]} px, and the image that was analysed "
            f"{date.size[0]} x {date.size[1]}; give --before and --after, where the images are now"
        )


def _stretch(date: SceneImage, view: View, grid: PixelGrid) -> Stretch | None:
    """The one that was used; where the output does not tell it, one that shows something."""
    if date.stretch is not None:
        return Stretch(*date.stretch)
    if view.source.dtype == "uint8":
        return None
    values = view.sample(grid)
    if not values.size:
        return Stretch((0.0,) * 3, (1.0,) * 3)
    low, high = np.percentile(values, (2, 98), axis=1)
    return Stretch(tuple(low.tolist()), tuple(np.maximum(high, low + 1e-6).tolist()))


def _whole(
    source: Source, view: View, stretch: Stretch | None, grid: PixelGrid, size: tuple[int, ...]
) -> Image.Image:
    """A date on the grid at `size` (width, height), some rows at a time; what cannot be read is blank."""
    width, height = size
    pixels = np.zeros((3, height, width), np.uint8)
    valid = np.zeros((height, width), bool)
    small = replace(
        grid, transform=grid.transform * Affine.scale(grid.width / width, grid.height / height),
        width=width, height=height,
    )  # fmt: skip
    failures: list[RasterError] = []
    read = 0
    with ExitStack() as stack:
        if view.dataset is not source.dataset and (width, height) != (grid.width, grid.height):
            view, grid = stack.enter_context(source.seen_on(small, None, "average")), small
        deep = len(set(source.bands)) * np.dtype(source.dtype).itemsize
        step = max(1, int(BAND_BYTES / (grid.width * deep) * height / grid.height))
        for top in range(0, height, step):
            rows = slice(top, min(height, top + step))
            first, last = (math.floor(row * grid.height / height) for row in (rows.start, rows.stop))
            window = Window(0, first, grid.width, max(1, last - first))
            try:
                part, seen = view.read(window, (rows.stop - rows.start, width), averaged=True)
            except RasterError as error:
                failures.append(error)
                continue
            read += 1
            pixels[:, rows], valid[rows] = _coloured(part, seen, stretch)
    if not read:
        raise failures[0]
    return _picture(pixels, valid)


def _coloured(
    values: NDArray[np.generic], valid: NDArray[np.bool_], stretch: Stretch | None
) -> tuple[Pixels, NDArray[np.bool_]]:
    colours = values.astype(np.uint8, copy=False) if stretch is None else stretch.apply(values)
    return colours, valid


def _picture(pixels: Pixels, valid: NDArray[np.bool_]) -> Image.Image:
    """(3, rows, cols) as RGB, or as RGBA where something has no data."""
    rgb = np.moveaxis(pixels, 0, 2)
    if valid.all():
        return Image.fromarray(np.ascontiguousarray(rgb))
    alpha = np.where(valid, 255, 0).astype(np.uint8)[..., None]
    return Image.fromarray(np.concatenate([np.where(valid[..., None], rgb, 0), alpha], axis=2))
