"""Measurements of an open pair by samples of its pixels: stretches, shift of the dates, color match."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import Chip
from deltavlm.geo.matching import ColorMatch, block_means, fit_colors
from deltavlm.geo.pair_reader import ChipPixels, PairReader
from deltavlm.geo.radiometry import Stretch, Stretches, contrast_warning, parse_scale, plan_stretches
from deltavlm.geo.registration import Registration, lattice_windows
from deltavlm.geo.sampling import FEW_WINDOWS, SAMPLE_WINDOWS
from deltavlm.geo.view import View

__all__ = ["StretchPlan", "check_stretches", "measure_colors", "measure_registration", "measure_stretches"]


@dataclass(frozen=True, slots=True)
class StretchPlan:
    """Stretch of each date, and what is to be said of them."""

    stretches: Stretches
    notes: tuple[str, ...] = ()
    warnings: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # of before and after


def measure_stretches(views: tuple[View, View], geobox: GeoBox, scale: str) -> StretchPlan:
    """Stretches that `scale` (as `parse_scale` reads it) asks for, with a warning for each date of which its
    stretch leaves nothing to see.

    Raises:
        RasterError: no part of a file can be read.
    """
    spec = parse_scale(scale)
    for view in views:
        view.check_readable(geobox)
    before, after = (
        view.sample(geobox, FEW_WINDOWS if view.source.is_8bit else SAMPLE_WINDOWS) for view in views
    )
    planned, notes = plan_stretches(spec, before, after)
    stretches = (  # values of a color table are colors, whatever the scale
        None if views[0].source.palette is not None else planned[0],
        None if views[1].source.palette is not None else planned[1],
    )
    contrast = []
    for view, values, stretch in zip(views, (before, after), stretches, strict=True):
        warning = _contrast_warning(view, values, stretch, scale)
        if warning and view.source.is_8bit:  # look again, at more of it
            warning = _contrast_warning(view, view.sample(geobox), stretch, scale)
        contrast.append((warning,) if warning else ())
    return StretchPlan(stretches, notes, (contrast[0], contrast[1]))


def _contrast_warning(view: View, values: NDArray[Any], stretch: Stretch | None, scale: str) -> str | None:
    return contrast_warning(values, stretch, scale, view.source.scale_offset is not None)


def check_stretches(views: tuple[View, View], stretches: Stretches) -> None:
    """Raises: ConfigError for a date without a stretch that needs one."""
    for view, stretch in zip(views, stretches, strict=True):
        if stretch is None and not view.source.is_8bit:
            raise ConfigError(f"{view.source.name}: has values of {view.source.dtype}, which need a stretch")


def measure_registration(reader: PairReader) -> Registration:
    """Registration by windows in the area of interest."""
    shifts = [pixels.measure_shift() for pixels in _sample_windows(reader)]
    measured = [shift for shift in shifts if shift is not None]
    return Registration.of(measured, correct=reader.options.register)


def measure_colors(reader: PairReader) -> ColorMatch | None:
    """Match of the colors by windows in the area of interest; None where it cannot be found."""
    means = [block_means((pixels.before, pixels.after), pixels.valid) for pixels in _sample_windows(reader)]
    samples = np.concatenate(means, axis=2) if means else np.empty((2, 3, 0))
    return fit_colors(samples[0], samples[1])


def _sample_windows(reader: PairReader) -> Iterator[ChipPixels]:
    """Windows in the area of interest; those that cannot be read are left out."""
    for window in lattice_windows(reader.aoi_window):
        chip = Chip(0, 0, window, max(window.width, window.height), reader.geobox.transform)
        with suppress(RasterError):
            yield reader.read(chip)
