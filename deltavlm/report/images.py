"""Overviews and crops of both images of a pair, with the stretch to 8 bit that the model saw."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deltavlm.errors import InputError, RasterError
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.location import local_file
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.geo.radiometry import Stretch, Stretches, to_uint8
from deltavlm.geo.resampling import parse_resampling
from deltavlm.geo.source import Source
from deltavlm.geo.view import View, open_view
from deltavlm.report.pairs import PairImage, ReportPair

__all__ = ["ImageOptions", "OpenImages", "as_webp", "candidate_files", "open_images"]

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
class OpenImages:
    """Both images of a pair, open on one grid."""

    pair: PairReader

    @property
    def geobox(self) -> GeoBox:
        return self.pair.geobox

    def overview(self, long_side_px: int) -> tuple[Image.Image, Image.Image]:
        """Both images downsampled to at most `long_side_px`; nodata and unreadable rows are transparent.

        Raises:
            RasterError: an image cannot be read at all.
        """
        scale = min(1.0, long_side_px / max(self.geobox.width, self.geobox.height))
        size = tuple(max(1, round(length * scale)) for length in (self.geobox.width, self.geobox.height))
        before, after = (
            _overview(view, stretch, self.geobox, size)
            for view, stretch in zip(self.pair.views, self.pair.stretches, strict=True)
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
            _to_image(*_read(view, stretch, window, shape, averaged=scale < 1))
            for view, stretch in zip(self.pair.views, self.pair.stretches, strict=True)
        )
        return before, after


@contextmanager
def open_images(pair: ReportPair, options: ImageOptions, folder: Path) -> Iterator[OpenImages]:
    """Open the images of a pair; one that has been moved is looked for in `folder`, that of the output.

    Raises:
        RasterError: an image is missing, cannot be read, or is not the one that was analyzed.
    """
    if pair.geobox is None:
        raise RasterError(pair.reason or "this pair was not analyzed")
    paths = [
        _locate(image.path, override, options, folder)
        for image, override in ((pair.before, options.before), (pair.after, options.after))
    ]
    rasters = RasterPair(*paths)
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(
                open_pair(
                    rasters,
                    _read_options(pair, options),
                    geobox=pair.geobox if pair.has_recorded_geobox else None,
                    stretches=_recorded_stretches(pair),
                    registration=pair.registration,
                )
            )
        except InputError as error:  # bands and resampling method come from the output's file too
            raise RasterError(str(error)) from error
        for view, image in zip(reader.views, (pair.before, pair.after), strict=True):
            _check_size(view.source, image)
        yield OpenImages(reader)


def _read_options(pair: ReportPair, options: ImageOptions) -> ReadOptions:
    """Options that read the pixels of the run again; `--nodata` applied to both images, or to none."""
    before, after = pair.before, pair.after
    return ReadOptions(
        resampling=parse_resampling(pair.resampling),
        before_bands=before.bands,
        after_bands=after.bands,
        scale="per-date",
        nodata=before.nodata if repr(before.nodata) == repr(after.nodata) else None,  # NaN, too
        allow_no_crs=True,
        allow_vrt=options.allow_vrt,
    )


def _recorded_stretches(pair: ReportPair) -> Stretches | None:
    """Stretches that the output records; None where it has none: images are 8-bit, or it names no inputs."""
    before, after = (
        None if image.stretch is None else Stretch(*image.stretch) for image in (pair.before, pair.after)
    )
    return (before, after) if before or after else None


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
        raise RasterError("the output does not name its images; give `before` and `after`")
    if "://" in path or "/vsi" in path:
        if options.allow_remote:
            return path
        raise RasterError(
            f"{path}: is a remote image; `allow_remote=True` fetches it, or give `before` and `after`"
        )
    for candidate in candidate_files(path, folder):
        if candidate.is_file():
            return str(candidate)
    raise RasterError(f"{path}: no such file; give `before` and `after`, where the images are now")


def candidate_files(path: str, folder: Path) -> tuple[Path, Path, Path]:
    """Files that an image with the recorded `path` may be in, in the order in which they are tried."""
    return local_file(path), folder / path, folder / path.replace("\\", "/").rpartition("/")[2]


def _check_size(source: Source, image: PairImage) -> None:
    size = (source.geobox.width, source.geobox.height)
    if image.size is not None and size != image.size:
        raise RasterError(
            f"{source.name}: has {size[0]} x {size[1]} px, and the image that was analyzed "
            f"{image.size[0]} x {image.size[1]}; give `before` and `after`, where the images are now"
        )


def _overview(view: View, stretch: Stretch | None, geobox: GeoBox, size: tuple[int, ...]) -> Image.Image:
    """One image resampled to `size` (width, height), read in strips; unreadable strips are transparent."""
    width, height = size
    pixels = np.zeros((3, height, width), np.uint8)
    valid = np.zeros((height, width), bool)
    source = view.source
    failures: list[RasterError] = []
    strips_read = 0
    with ExitStack() as stack:
        warped = view.dataset is not source.dataset and geobox.crs is not None
        if warped and (width, height) != (geobox.width, geobox.height):
            small = replace(geobox, transform=view.dataset.transform).zoom_to(width, height)
            view, geobox = stack.enter_context(open_view(source, small, None, "average")), small
        pixel_bytes = len(set(source.bands)) * np.dtype(source.dtype).itemsize
        strip_height = max(1, int(READ_BYTES / (geobox.width * pixel_bytes) * height / geobox.height))
        for top in range(0, height, strip_height):
            rows = slice(top, min(height, top + strip_height))
            first, last = (math.floor(row * geobox.height / height) for row in (rows.start, rows.stop))
            window = Window(0, first, geobox.width, max(1, last - first))
            try:
                strip = _read(view, stretch, window, (rows.stop - rows.start, width), averaged=True)
            except RasterError as error:
                failures.append(error)
                continue
            strips_read += 1
            pixels[:, rows], valid[rows] = strip
    if not strips_read:
        raise failures[0]
    return _to_image(pixels, valid)


def _read(
    view: View, stretch: Stretch | None, window: Window, shape: tuple[int, int], *, averaged: bool
) -> tuple[Pixels, NDArray[np.bool_]]:
    """RGB (3, rows, cols) and validity (rows, cols) of a window, decimated to `shape` (rows, cols)."""
    values, valid = view.read(window, shape, averaged=averaged)
    return to_uint8(values, stretch), valid


def _to_image(pixels: Pixels, valid: NDArray[np.bool_]) -> Image.Image:
    """Image from (3, rows, cols): RGB, or RGBA with alpha 0 where pixels are not valid."""
    rgb = np.moveaxis(pixels, 0, 2)
    if valid.all():
        return Image.fromarray(np.ascontiguousarray(rgb))
    alpha = np.where(valid, 255, 0).astype(np.uint8)[..., None]
    return Image.fromarray(np.concatenate([np.where(valid[..., None], rgb, 0), alpha], axis=2))
