"""Drawn scenes on disk, so that a training run draws each once and sees it many times.

A cache folder holds `pictures.npy` (N, 2, size, size, 3) uint8, before then after, and `truth.npy`
(N, 3, size / 2, size / 2) uint8: change codes, ids of changed things (255 at most), cover before.
Truth is kept at half the resolution: masks and words need no more, and it is an eighth of the bytes.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.scene import Scene, SceneOptions, make_scene

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 1_000_000, 500_000_000, 900_000_000
FAR_SEED, STORMY_SEED, FAR_TEST_SEED = 1_000_000_000, 1_200_000_000, 1_500_000_000
RICH_SEED, RICH_TEST_SEED = 1_600_000_000, 1_900_000_000


def half(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Every second pixel of a truth array, as uint8."""
    small: npt.NDArray[np.uint8] = np.minimum(array[::2, ::2], 255).astype(np.uint8)
    return small


def _draw(job: tuple[str, int, int, int, int, SceneOptions]) -> int:
    folder, start, stop, seed, size, options = job
    pictures, truth = open_cache(Path(folder), mode="r+")
    for index in range(start, stop):
        scene = make_scene(seed + index, size, size, options)
        pictures[index, 0], pictures[index, 1] = scene.before, scene.after
        truth[index] = np.stack([half(scene.change), half(scene.instances), half(scene.cover)])
    return stop - start


def draw_cache(
    folder: Path,
    count: int,
    *,
    seed: int,
    size_px: int = 256,
    options: SceneOptions = SceneOptions(change=0.6),  # noqa: B008
    workers: int | None = None,
) -> None:
    """Draws scenes seed, seed + 1, ... into `folder`; a finished cache of the same numbers is left as it
    is."""
    stamp = folder / "drawn.txt"
    numbers = f"{count} scenes of {size_px} px from seed {seed}, change {options.change}"
    numbers += f", strength {options.strength}" * (options.strength is not None)
    numbers += f", reduced {options.downsample}" * (options.downsample > 1) + ", rich" * options.rich + "\n"
    if stamp.exists() and stamp.read_text() == numbers:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    half_px = size_px // 2
    for name, shape in (
        ("pictures", (count, 2, size_px, size_px, 3)),
        ("truth", (count, 3, half_px, half_px)),
    ):
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
    step = 64
    jobs = [(str(folder), at, min(at + step, count), seed, size_px, options) for at in range(0, count, step)]
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        for _ in pool.imap_unordered(_draw, jobs):
            pass
    stamp.write_text(numbers)


def open_cache(
    folder: Path, mode: Literal["r", "r+"] = "r"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(pictures, truth) as memory maps."""
    return (
        np.load(folder / "pictures.npy", mmap_mode=mode),
        np.load(folder / "truth.npy", mmap_mode=mode),
    )


__all__ = [
    "FAR_SEED",
    "FAR_TEST_SEED",
    "RICH_SEED",
    "RICH_TEST_SEED",
    "STORMY_SEED",
    "TEST_SEED",
    "TRAIN_SEED",
    "VALIDATION_SEED",
    "Scene",
    "draw_cache",
    "half",
    "open_cache",
]
