"""Shift between the dates of a pair, measured by phase correlation of the Laplacian.

The Laplacian, the divergence of the gradient, has neither brightness nor shading, and is 0 at nodata. The
cross-power spectrum of both windows is whitened (Kuglin and Hines 1975) and weighted by a band-pass, so that
its transform is a peak at the shift (below 0 where contrast is inverted), which a parabola locates to a
fraction of a pixel. A peak that does not stand out from the rest of the search area, as over water or after
complete change, is no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.messages import pluralize

__all__ = ["Registration", "Shift", "consensus", "lattice_windows", "measure_shift", "shift_caveat"]

NOTED_PX = 1.0
"""Length from which a shift is worth a warning."""
MIN_CORRECTED_PX = 0.25  # resampling blurs more than so small a shift disturbs
MAX_CORRECTED_PX = 8.0  # beyond it, something else may be wrong

MAX_PX = 32  # search limit of a shift along each axis
WINDOW_PX = 256  # side of the centre of a larger image that is measured
MIN_WINDOW_PX = 32
MIN_VALID = 0.5  # share of a window
LATTICE, LATTICE_STEP_PX = 4, 1024  # windows along a side of a pair, at most, and distance between them
MIN_PEAK = 7.0
"""Height of a peak relative to the root mean square of the rest of the search area."""
PEAK_RADIUS_PX = 6  # of the area that belongs to the peak
CUTOFF = 0.15  # cycles per pixel: where noise, blur and JPEG blocks begin to outweigh the ground

AGREEMENT_PX = 1.0  # windows of one shift differ by less

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shift:
    """Displacement of `after` in pixels of the grid: what `before` shows at (col, row) is at
    (col + dx, row + dy) in `after`. dx is positive to the right, dy downwards."""

    dx: float
    dy: float
    peak: float = field(default=MIN_PEAK, compare=False)  # its height, as MIN_PEAK is

    @property
    def length(self) -> float:
        """Length in pixels."""
        return math.hypot(self.dx, self.dy)


def measure_shift(
    before: NDArray[np.uint8], after: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> Shift | None:
    """Shift between two images (3, rows, cols) of one ground, to about 0.1 px; None where there is no clear
    peak. Of images larger than WINDOW_PX only the centre counts.

    valid: (rows, cols), True where both have data.
    """
    crop = tuple(slice((side - size) // 2, (side + size) // 2) for side, size in _cropped(valid.shape))
    valid = valid[crop]
    if min(valid.shape) < MIN_WINDOW_PX or valid.mean() < MIN_VALID:
        return None
    interior = None if valid.all() else _interior(valid)
    spectra = [np.fft.rfft2(_laplacian(image[:, *crop], interior)) for image in (before, after)]
    cross = spectra[0].conj() * spectra[1]
    magnitude = np.abs(cross)
    if not magnitude.any():
        return None
    cross *= _band_pass(valid.shape) / np.maximum(magnitude, np.finfo(np.float32).tiny)
    surface = np.fft.irfft2(cross, valid.shape)
    reach = min(MAX_PX, min(valid.shape) // 4)
    return _peak(np.abs(np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]), reach)


def _cropped(shape: Sequence[int]) -> list[tuple[int, int]]:
    return [(side, min(side, WINDOW_PX)) for side in shape]


def _interior(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Valid pixels whose four neighbours are valid."""
    interior = valid.copy()
    interior[1:] &= valid[:-1]
    interior[:-1] &= valid[1:]
    interior[:, 1:] &= valid[:, :-1]
    interior[:, :-1] &= valid[:, 1:]
    return interior


def _laplacian(image: NDArray[np.uint8], interior: NDArray[np.bool_] | None) -> Floats:
    """Tapered Laplacian of the sum of the bands, (rows, cols)."""
    gray = image.sum(axis=0, dtype=np.float32)
    laplacian: Floats = np.zeros_like(gray)
    inner = laplacian[1:-1, 1:-1]
    np.multiply(gray[1:-1, 1:-1], 4, out=inner)
    for neighbour in (gray[2:, 1:-1], gray[:-2, 1:-1], gray[1:-1, 2:], gray[1:-1, :-2]):
        inner -= neighbour
    laplacian *= _taper(gray.shape) if interior is None else _taper(gray.shape) * interior
    return laplacian


@lru_cache(maxsize=8)
def _taper(shape: tuple[int, int]) -> Floats:
    """Hann window: opposite edges of an image, which are neighbours in its spectrum, have no weight."""
    rows, cols = (np.hanning(side + 2)[1:-1] for side in shape)
    taper: Floats = np.outer(rows, cols).astype(np.float32)
    return taper


@lru_cache(maxsize=8)
def _band_pass(shape: tuple[int, int]) -> Floats:
    """Weights of half a spectrum, as `rfft2` gives it: the frequency times a Gaussian."""
    rows, cols = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    frequency = np.hypot(rows[:, None], cols)
    weights: Floats = (frequency * np.exp(-0.5 * (frequency / CUTOFF) ** 2)).astype(np.float32)
    return weights


def _peak(surface: Floats, reach: int) -> Shift | None:
    """Shift at the peak of a search area of (2 reach + 1)^2 px; None where it does not stand out."""
    row, col = divmod(int(surface.argmax()), surface.shape[1])
    if not (0 < row < 2 * reach and 0 < col < 2 * reach):
        return None
    radius = min(PEAK_RADIUS_PX, reach // 2)
    is_far = np.ones(surface.shape, bool)
    is_far[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1] = False
    peak = float(surface[row, col] / math.sqrt(np.square(surface[is_far]).mean() or 1))
    if peak < MIN_PEAK:
        return None
    dx = _vertex(*surface[row, col - 1 : col + 2].tolist())
    dy = _vertex(*surface[row - 1 : row + 2, col].tolist())
    return Shift(round(col - reach + dx, 2), round(row - reach + dy, 2), peak)


def _vertex(y0: float, y1: float, y2: float) -> float:
    """Position of the vertex of a parabola with these values at -1, 0 and 1, of which y1 is the highest."""
    bend = y0 - 2 * y1 + y2
    return (y0 - y2) / (2 * bend) if bend else 0.0


def consensus(shifts: Sequence[Shift]) -> tuple[Shift | None, int]:
    """Shift that most windows agree on, the median over them weighted by their peaks, and their number; None
    where these are not more than half of all."""
    points = np.array([(shift.dx, shift.dy) for shift in shifts]).reshape(-1, 2)
    if not len(points):
        return None, 0
    near = np.hypot(*(points[:, None] - points).transpose(2, 0, 1)) < AGREEMENT_PX
    is_agreeing = near[near.sum(axis=1).argmax()]
    agreeing = int(is_agreeing.sum())
    if 2 * agreeing <= len(points):
        return None, agreeing
    peaks = np.array([shift.peak for shift in shifts])[is_agreeing]
    dx, dy = (_weighted_median(axis[is_agreeing], peaks) for axis in points.T)
    return Shift(dx, dy), agreeing


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Smallest value up to which lies half of the weight."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(sums, sums[-1] / 2)])


def shift_caveat(lengths_px: Sequence[float]) -> str | None:
    """Sentence on the shifts measured in chips, where there are none or their median is above NOTED_PX."""
    if not len(lengths_px):
        return "The shift between the dates is not known in any chip, so misregistration goes unnoticed."
    median = float(np.median(lengths_px))
    if median <= NOTED_PX:
        return None
    chips = pluralize(len(lengths_px), "chip")
    return (
        f"The dates lie {median:.1f} px apart (median of {chips} where it could be measured), so edges can "
        f"look like change; deltavlm analyze --register corrects up to {MAX_CORRECTED_PX:g} px."
    )


def lattice_windows(area: Window) -> Iterator[Window]:
    """Windows spread over an area, at most LATTICE x LATTICE, to measure the shift of a pair by."""
    offsets = []
    for start, length in ((area.row_off, area.height), (area.col_off, area.width)):
        count = min(LATTICE, 1 + -(-(length - WINDOW_PX) // LATTICE_STEP_PX))
        last = start + max(0, length - WINDOW_PX)
        offsets.append(np.linspace(start, last, count).astype(int).tolist())
    width, height = min(area.width, WINDOW_PX), min(area.height, WINDOW_PX)
    for row_off in offsets[0]:
        for col_off in offsets[1]:
            yield Window(col_off, row_off, width, height)


@dataclass(frozen=True, slots=True)
class Registration:
    """Shift of a pair as measured in windows of it, and whether `after` is read without it."""

    shift: Shift | None = None  # None: it could not be measured
    windows: int = 0  # measured ones
    agreeing: int = 0  # those of them that the shift is the median of
    corrected: bool = False

    @classmethod
    def of(cls, shifts: Sequence[Shift], *, correct: bool = False) -> Registration:
        """Registration by the shift that most of the measured windows agree on, corrected on request where
        it is neither too small nor too large for that."""
        shift, agreeing = consensus(shifts)
        can = shift is not None and MIN_CORRECTED_PX <= shift.length <= MAX_CORRECTED_PX
        return cls(shift, len(shifts), agreeing, correct and can)

    @property
    def correction(self) -> tuple[float, float] | None:
        """Columns and rows by which `after` is read elsewhere; None without a correction."""
        return (self.shift.dx, self.shift.dy) if self.shift is not None and self.corrected else None

    def record(self, geobox: GeoBox) -> dict[str, object]:
        """Plain values, ready for JSON; metres are None without a CRS."""
        shift = self.shift or Shift(math.nan, math.nan)
        size_m = geobox.pixel_size_m() or (math.nan, math.nan)
        dx_m, dy_m = shift.dx * size_m[0], shift.dy * size_m[1]
        lengths = {
            "shift_px": shift.length,
            "dx_px": shift.dx,
            "dy_px": shift.dy,
            "shift_m": math.hypot(dx_m, dy_m),
            "dx_m": dx_m,
            "dy_m": dy_m,
        }
        return {
            **{name: round(value, 3) if math.isfinite(value) else None for name, value in lengths.items()},
            "windows": self.windows,
            "windows_agreeing": self.agreeing,
            "corrected": self.corrected,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Registration:
        """Inverse of `record`. Raises: ValueError for a correction that cannot have been made."""
        dx, dy = record["dx_px"], record["dy_px"]
        shift = None if dx is None or dy is None else Shift(float(dx), float(dy))
        corrected = bool(record["corrected"])
        if corrected and not (shift is not None and shift.length <= MAX_CORRECTED_PX):
            raise ValueError(f"a correction by {dx}, {dy} px")
        return cls(shift, int(record["windows"]), int(record["windows_agreeing"]), corrected)

    def note(self, geobox: GeoBox, *, requested: bool) -> tuple[str, bool] | None:
        """Note for the user, and True if it is a warning; `requested`: by --register."""
        if self.shift is None:
            text = "the shift between the dates cannot be measured, so `register=True` corrects nothing"
            return (text, True) if requested else None
        length_m = self.record(geobox)["shift_m"]
        length = f"{self.shift.length:.1f} px" + ("" if length_m is None else f" ({length_m:.2g} m)")
        if self.corrected:
            return f"after: moved by {length}, so that it lies on before", False
        if requested and self.shift.length < MIN_CORRECTED_PX:
            return f"after: lies {length} off before, too little to correct", False
        if self.shift.length <= NOTED_PX:
            return None
        if self.shift.length <= MAX_CORRECTED_PX:
            advice = "`register=True` corrects it"
        else:
            advice = f"`register=True` corrects up to {MAX_CORRECTED_PX:g} px, so register the images first"
        return f"after: lies {length} off before, so edges can look like change; {advice}", True
