"""Tiles of real ground: images of one date or two, class masks, and buildings cut out of them.

A tile is an image file (JPEG, PNG, TIFF) anywhere below the folder. `NAME.mask.png` beside `NAME.jpg` has one
byte per pixel: 0 unknown, 1 building, 2 road, 3 bare land, 4 vegetation, 5 water. `NAME.after.png` is the
same ground at another date, on the same pixels, without a change. Meters per pixel come from
the georeference of a TIFF in a projected CRS, else from `gsd.txt` (one number) in the nearest folder above
the tile; where both are missing, a scene draws 0.3 to 1 m.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from deltavlm.data.images import image_size, open_image
from deltavlm.data.synthetic.plan import House, Points, Rng
from deltavlm.errors import InputError

__all__ = [
    "BARE",
    "BUILDING",
    "ROAD",
    "VEGETATION",
    "WATER",
    "Cutout",
    "CutoutHouse",
    "GroundTiles",
    "TileWindow",
]

Bytes = npt.NDArray[np.uint8]
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
MASK_SUFFIX, AFTER_SUFFIX, GSD_FILE = ".mask.png", ".after.png", "gsd.txt"
BUILDING, ROAD, BARE, VEGETATION, WATER = 1, 2, 3, 4, 5
MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "CMYK", "YCbCr")  # of Pillow, with 8 bits a band
PIXEL_SCALE_TAG, GEO_KEYS_TAG = 33550, 34735  # of GeoTIFF 1.1, https://docs.ogc.org/is/19-008r4/19-008r4.html
MODEL_TYPE_KEY, LINEAR_UNIT_KEY, METER = 1024, 3076, 9001
TYPICAL_GSD_M = 0.6
GSD_RANGE_M = (0.3, 1.0)  # of tiles without a known pixel size
ZOOM_RANGE = (0.5, 2.0)
TARGET_GSD_M = (0.28, 1.1)  # of most windows
CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Cutout:
    """Building cut out of a tile along its minimum rotated rectangle, the long side along the columns."""

    pixels: Bytes  # (depth, length, 3) RGB
    outline: Points  # (n, 2) in units of length and depth, from -0.5 to 0.5
    level: float  # mean gray value of the tile around it
    length_m: float  # by the tile's GSD, or TYPICAL_GSD_M where that is unknown


@dataclass(slots=True)
class CutoutHouse(House):
    """House with the roof of a real building."""

    cutout: Cutout | None = None

    @property
    def footprint(self) -> Points:
        assert self.cutout is not None
        x, y = (self.cutout.outline * (self.length, self.depth)).T
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([self.center[0] + x * cos - y * sin, self.center[1] + x * sin + y * cos], axis=1)


@dataclass(frozen=True, slots=True)
class Tile:
    """Decoded tile."""

    pixels: Bytes  # (height, width, 3) RGB
    classes: Bytes | None  # (height, width) codes of the mask
    after: Bytes | None  # (height, width, 3) RGB of the other date
    gsd_m: float | None
    mean: npt.NDArray[np.float32]  # (3,)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels of all dates."""
        return self.pixels.nbytes * (1 if self.after is None else 2)


@dataclass(frozen=True, slots=True)
class TileWindow:
    """Resampled window of a tile, as the ground of a scene."""

    pixels: Bytes  # (height, width, 3) RGB
    classes: Bytes | None  # (height, width) codes of the mask
    gsd_m: float  # after resampling
    path: Path  # of the tile
    offsets: tuple[int, int] | None = None  # (row, col) of a window that was cut without resampling
    after: Bytes | None = None  # (height, width, 3) RGB of the other date


class GroundTiles:
    """Tiles of a folder, in the order of their paths; decoded ones are kept up to CACHE_BYTES.

    Raises: InputError if there is no folder or no tile in it, or for an unusable file when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give a folder of image tiles")
        files = [Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names]
        self.paths = sorted(
            (
                path
                for path in files
                if path.suffix.lower() in SUFFIXES and not path.name.endswith((MASK_SUFFIX, AFTER_SUFFIX))
            ),
            key=lambda path: path.relative_to(folder).as_posix(),
        )
        if not self.paths:
            raise InputError(f"{folder} has no tiles; expected images ({', '.join(SUFFIXES)})")
        self._tiles: OrderedDict[Path, Tile] = OrderedDict()
        self._cached_bytes = 0
        self._cutouts: dict[Path, list[Cutout]] = {}

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the names and contents of all tiles, their masks, other dates
        and `gsd.txt`."""
        digest = hashlib.sha256()
        files = {*self.paths, *self.masked, *(path for path in map(self._gsd_file, self.paths) if path)}
        files |= {mask_path(path) for path in self.masked} | {after_path(path) for path in self.dated}
        for path in sorted(files, key=lambda path: path.relative_to(self.folder).as_posix()):
            digest.update(path.relative_to(self.folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    @cached_property
    def masked(self) -> list[Path]:
        """Tiles with a mask."""
        return [path for path in self.paths if mask_path(path).is_file()]

    @cached_property
    def dated(self) -> set[Path]:
        """Tiles with another date."""
        return {path for path in self.paths if after_path(path).is_file()}

    @cached_property
    def georeferenced(self) -> list[Path]:
        """GeoTIFFs in a projected CRS in meters."""
        paths = []
        for path in self.paths:
            if path.suffix.lower() in (".tif", ".tiff"):
                with open_image(path) as image:
                    if gsd_of_tags(image):
                        paths.append(path)
        return paths

    @cached_property
    def weights(self) -> npt.NDArray[np.float64]:
        """Probability of each tile, by its area to the power of 0.75: large ones show more."""
        areas = np.array([np.prod(image_size(path), dtype=float) ** 0.75 for path in self.paths])
        return np.asarray(areas / areas.sum())

    @cached_property
    def by_folder(self) -> dict[Path, list[Path]]:
        """Tiles of each folder."""
        folders: dict[Path, list[Path]] = {}
        for path in self.paths:
            folders.setdefault(path.parent, []).append(path)
        return folders

    def draw_window(self, rng: Rng, size: tuple[int, int]) -> TileWindow:
        """Random tile, scaled by 0.5 to 2, rotated, flipped and cropped to `size` (width, height).

        A tile that is too small is scaled up a little, or others of its folder are set beside it. Of one with
        another date, either is the first.
        """
        path = self.paths[int(rng.choice(len(self.paths), p=self.weights))]
        tile = self.read(path)
        gsd_m = tile.gsd_m or float(np.exp(rng.uniform(*np.log(GSD_RANGE_M))))
        zoom = float(np.exp(rng.uniform(*np.log(ZOOM_RANGE))))
        if rng.random() < 0.8:  # the pixels of aerial and very high resolution satellite images
            zoom = float(np.clip(gsd_m / np.exp(rng.uniform(*np.log(TARGET_GSD_M))), *ZOOM_RANGE))
        rows, cols = tile.pixels.shape[:2]
        fit = max(size[0] / cols, size[1] / rows)
        if zoom < fit < 1.3 and rng.random() < 0.6:
            zoom = fit
        angle, spread = 0.0, 1.0
        if fit * 1.3 < zoom and rng.random() < 0.6:
            angle = float(rng.uniform(-45, 45))
            spread = float(abs(np.cos(np.deg2rad(angle))) + abs(np.sin(np.deg2rad(angle))))
        shape_px = (round(size[1] * spread / zoom), round(size[0] * spread / zoom))  # rows, cols
        pixels, after, classes = self._mosaic(rng, path, shape_px)
        quarter, mirror = int(rng.integers(4)), bool(rng.random() < 0.5)

        def resample(array: Bytes, method: Image.Resampling) -> Bytes:
            image = Image.fromarray(array)
            image = image.resize((round(size[0] * spread), round(size[1] * spread)), method)
            if angle:
                image = image.rotate(angle, method)
                left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
                image = image.crop((left, top, left + size[0], top + size[1]))
            turned = np.rot90(np.asarray(image), quarter if size[0] == size[1] else quarter // 2 * 2)
            return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)

        if classes is not None:
            classes = resample(classes, Image.Resampling.NEAREST)
        pixels = resample(pixels, Image.Resampling.BICUBIC)
        if after is not None:
            after = resample(after, Image.Resampling.BICUBIC)
            if rng.random() < 0.5:
                pixels, after = after, pixels
        return TileWindow(pixels, classes, gsd_m / zoom, path, after=after)

    def cut_window(self, rng: Rng, size: tuple[int, int]) -> TileWindow:
        """Random window of `size` (width, height) of a georeferenced tile, as it is.

        Raises: InputError if no georeferenced tile is as large.
        """
        paths = [path for path in self.georeferenced if all(np.greater_equal(image_size(path), size))]
        if not paths:
            raise InputError(
                f"no georeferenced tile in {self.folder} has {size[0]} x {size[1]} px, the size of the scene "
                "with its margins; make a smaller scene"
            )
        path = paths[int(rng.integers(len(paths)))]
        tile = self.read(path)
        row, col = (int(rng.integers(tile.pixels.shape[axis] - size[1 - axis] + 1)) for axis in (0, 1))
        box = (slice(row, row + size[1]), slice(col, col + size[0]))
        classes = None if tile.classes is None else tile.classes[box].copy()
        after = None if tile.after is None else tile.after[box].copy()
        assert tile.gsd_m is not None
        return TileWindow(tile.pixels[box].copy(), classes, tile.gsd_m, path, (row, col), after)

    def _mosaic(
        self, rng: Rng, path: Path, shape: tuple[int, int]
    ) -> tuple[Bytes, Bytes | None, Bytes | None]:
        """Pixels, other date and classes of a window of `shape` (rows, cols) at random offsets in a tile;
        where the tile ends, another one of its folder goes on. A rest of up to a seventh of the tile is
        mirrored. A tile without another date shows the same at both."""
        tile = self.read(path)
        rows, cols = tile.pixels.shape[:2]
        if shape[0] <= rows * 8 / 7 and shape[1] <= cols * 8 / 7:
            index = [
                _mirrored(rng.integers(min(0, excess), max(0, excess) + 1) + np.arange(count), side)
                for count, side in zip(shape, (rows, cols), strict=True)
                for excess in [side - count]
            ]
            corner = np.ix_(*index)
            after, classes = (None if one is None else one[corner] for one in (tile.after, tile.classes))
            return tile.pixels[corner], after, classes
        neighbors = self.by_folder[path.parent]
        pixels, classes = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
        after, has_after, has_classes = pixels.copy(), False, True
        for top in range(0, shape[0], rows):
            for left in range(0, shape[1], cols):
                part = (min(rows, shape[0] - top), min(cols, shape[1] - left))
                other = path if top == left == 0 else neighbors[int(rng.integers(len(neighbors)))]
                other_rows, other_cols = self.read(other).pixels.shape[:2]
                if part[0] > other_rows * 8 / 7 or part[1] > other_cols * 8 / 7:
                    other = path
                box = (slice(top, top + part[0]), slice(left, left + part[1]))
                part_pixels, part_after, part_classes = self._mosaic(rng, other, part)
                has_after |= part_after is not None
                part_after = part_pixels if part_after is None else part_after
                if other is not path:  # neighbors of one flight have much the same light
                    shift = (tile.mean - self.read(other).mean) * 0.7
                    part_pixels, part_after = (
                        np.clip(date + shift, 0, 255).astype(np.uint8) for date in (part_pixels, part_after)
                    )
                pixels[box], after[box] = part_pixels, part_after
                has_classes &= part_classes is not None
                if part_classes is not None:
                    classes[box] = part_classes
        return pixels, after if has_after else None, classes if has_classes else None

    def draw_cutout(self, rng: Rng, length_m: float) -> Cutout | None:
        """Random building of about `length_m`, from tiles with masks; None where a few tiles have none."""
        if not self.masked:
            return None
        for _ in range(6):
            path = self.masked[int(rng.integers(len(self.masked)))]
            if path not in self._cutouts:
                self._cutouts[path] = cut_out_buildings(self.read(path))
            choices = [cut for cut in self._cutouts[path] if 0.6 < cut.length_m / length_m < 1.7]
            if choices:
                return choices[int(rng.integers(len(choices)))]
        return None

    def read(self, path: Path) -> Tile:
        """Read a tile with its mask and its other date. Raises: InputError naming the file."""
        if path in self._tiles:
            self._tiles.move_to_end(path)
            return self._tiles[path]
        with open_image(path) as image:
            if image.mode not in MODES:
                raise InputError(
                    f"{path} has pixels of Pillow's mode {image.mode}, not 8-bit colors; convert it, as "
                    "with gdal_translate -ot Byte -scale -b 1 -b 2 -b 3"
                )
            gsd_m = gsd_of_tags(image)
            pixels = np.asarray(image.convert("RGB"))
        classes = None
        if path in self.masked:
            with open_image(mask_path(path)) as image:
                classes = np.asarray(image)
            if classes.shape != pixels.shape[:2]:
                raise InputError(f"{mask_path(path)} must have one band and the size of {path.name}")
        after = None
        if path in self.dated:
            with open_image(after_path(path)) as image:
                after = np.asarray(image.convert("RGB"))
            if after.shape != pixels.shape:
                raise InputError(f"{after_path(path)} must have the size of {path.name}")
        mean = pixels[::4, ::4].mean(axis=(0, 1)).astype(np.float32)
        tile = Tile(pixels, classes, after, gsd_m or self._read_gsd(path), mean)
        self._tiles[path] = tile
        self._cached_bytes += tile.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._tiles) > 1:
            self._cached_bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def _gsd_file(self, path: Path) -> Path | None:
        for folder in path.parents:
            if (folder / GSD_FILE).is_file():
                return folder / GSD_FILE
            if folder == self.folder:
                break
        return None

    def _read_gsd(self, path: Path) -> float | None:
        file = self._gsd_file(path)
        if file is None:
            return None
        try:
            gsd_m = float(file.read_text(encoding="utf-8"))
        except ValueError:
            gsd_m = 0.0
        if not 0.01 <= gsd_m <= 100:
            raise InputError(f"{file} must hold the meters per pixel as one number, such as 0.3")
        return gsd_m


def gsd_of_tags(image: Image.Image) -> float | None:
    """Meters per pixel by the tags of a GeoTIFF; None for other files, geographic CRSs and other units."""
    tags = getattr(image, "tag_v2", {})
    scale, directory = tags.get(PIXEL_SCALE_TAG), tags.get(GEO_KEYS_TAG)
    if not scale or not directory:
        return None
    keys = {key: value for key, _, _, value in zip(*[iter(directory)] * 4, strict=False)}
    is_projected = keys.get(MODEL_TYPE_KEY) == 1 and keys.get(LINEAR_UNIT_KEY, METER) == METER
    return float(scale[0]) if is_projected and scale[0] > 0 else None


def gray_of(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Mean of the bands, (height, width)."""
    bands = pixels.astype(np.float32, copy=False)
    return (bands[..., 0] + bands[..., 1] + bands[..., 2]) / np.float32(3)


def mask_path(path: Path) -> Path:
    """Path of the mask of a tile."""
    return path.with_suffix(MASK_SUFFIX)


def after_path(path: Path) -> Path:
    """Path of the other date of a tile."""
    return path.with_suffix(AFTER_SUFFIX)


def _mirrored(index: npt.NDArray[np.intp], length: int) -> npt.NDArray[np.intp]:
    """Indices into an axis of `length` that is mirrored at both ends, again and again."""
    index = index % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def cut_out_buildings(tile: Tile) -> list[Cutout]:
    """Compact buildings of a tile's mask, 12 to 200 pixels long."""
    if tile.classes is None:
        return []
    labels, _ = ndimage.label(tile.classes == BUILDING)
    gray, gsd_m = gray_of(tile.pixels), tile.gsd_m or TYPICAL_GSD_M
    cutouts = []
    height, width = labels.shape
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        rows, cols = box
        if rows.start == 0 or cols.start == 0 or rows.stop == height or cols.stop == width:
            continue
        mask = labels[box] == label
        if not 120 <= mask.sum() <= 20_000:
            continue
        ys, xs = np.nonzero(mask)
        points = np.stack([xs, ys], axis=1)
        try:
            hull = points[ConvexHull(points).vertices].astype(float)
        except QhullError:  # all on one line
            continue
        corners = minimum_rectangle(hull)
        along, across = corners[1] - corners[0], corners[3] - corners[0]
        frame_px = (np.hypot(*along) + 1) * (np.hypot(*across) + 1)
        if mask.sum() < 0.72 * frame_px:
            continue
        if np.hypot(*along) < np.hypot(*across):
            corners = np.roll(corners, 1, axis=0)
            along, across = corners[1] - corners[0], corners[3] - corners[0]
        length, depth = float(np.hypot(*along)), float(np.hypot(*across))
        if not (12 <= length <= 200 and depth >= 8 and length <= 4 * depth):
            continue
        quad = corners + np.array([cols.start, rows.start]) + 0.5
        patch = Image.fromarray(tile.pixels).transform(
            (round(length), round(depth)),
            Image.Transform.QUAD,
            tuple(quad[[0, 3, 2, 1]].ravel().tolist()),
            Image.Resampling.BICUBIC,
        )
        outline = hull - corners[0]
        unit = np.stack([outline @ along / length**2, outline @ across / depth**2], axis=1) - 0.5
        values = gray[box][mask]
        if length > 50 and values.std() > 38:  # rows of houses that a mask has as one
            continue
        around = gray[max(0, rows.start - 40) : rows.stop + 40, max(0, cols.start - 40) : cols.stop + 40]
        cutouts.append(Cutout(np.asarray(patch), unit, float(around.mean()), length * gsd_m))
    return cutouts


def minimum_rectangle(hull: Points) -> Points:
    """Corners, in order, of the smallest rectangle around a convex polygon, one of whose edges it lies on."""
    best: tuple[float, Points] | None = None
    for x, y in np.roll(hull, -1, axis=0) - hull:
        axes = np.array([[x, y], [-y, x]]) / np.hypot(x, y)
        turned = hull @ axes.T
        low, high = turned.min(axis=0), turned.max(axis=0)
        area = float(np.prod(high - low))
        if best is None or area < best[0]:
            corners = np.array([low, (high[0], low[1]), high, (low[0], high[1])]) @ axes
            best = (area, corners)
    assert best is not None
    return best[1]
