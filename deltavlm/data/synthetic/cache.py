"""Cache of synthetic scenes on disk: each is rendered once and used many times in a training run.

A cache folder holds `pictures.npy` (N, 2, size, size, 3) uint8, before then after, and `truth.npy`
(N, 3, size / 2, size / 2) uint8: change codes, instance ids (255 at most), cover before. Ground truth has
half the resolution: masks and captions need no more, and it is an eighth of the bytes.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.scene import SceneOptions, make_scene

__all__ = [
    "FAR_SEED",
    "FAR_TEST_SEED",
    "RICH_SEED",
    "RICH_TEST_SEED",
    "STORMY_SEED",
    "TEST_SEED",
    "TRAIN_SEED",
    "VALIDATION_SEED",
    "halve",
    "open_cache",
    "render_cache",
]

# First seeds of the sets, whose ranges do not overlap. FAR: coarser pixels; STORMY: large differences
# of light, haze and contrast; RICH: `SceneOptions.rich`.
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 1_000_000, 500_000_000, 900_000_000
FAR_SEED, STORMY_SEED, FAR_TEST_SEED = 1_000_000_000, 1_200_000_000, 1_500_000_000
RICH_SEED, RICH_TEST_SEED = 1_600_000_000, 1_900_000_000


def halve(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Every second pixel of a ground truth array, as uint8."""
    halved: npt.NDArray[np.uint8] = np.minimum(array[::2, ::2], 255).astype(np.uint8)
    return halved


def _render_scenes(job: tuple[str, int, int, int, int, SceneOptions]) -> int:
    """Render the scenes start to stop - 1 into the arrays of a cache; returns their number."""
    folder, start, stop, seed, size, options = job
    pictures, truth = open_cache(Path(folder), mode="r+")
    for index in range(start, stop):
        scene = make_scene(seed + index, size, size, options)
        pictures[index, 0], pictures[index, 1] = scene.before, scene.after
        truth[index] = np.stack([halve(scene.change), halve(scene.instances), halve(scene.cover)])
    return stop - start


def render_cache(
    folder: Path,
    count: int,
    *,
    seed: int,
    size_px: int = 256,
    options: SceneOptions = SceneOptions(change=0.6),  # noqa: B008
    workers: int | None = None,
) -> None:
    """Render scenes seed, seed + 1, ... into `folder`; does nothing where it holds them already."""
    stamp = folder / "drawn.txt"  # written last, so that only a complete cache has it
    description = _describe(count, seed, size_px, options)
    if stamp.exists() and stamp.read_text() == description:
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
    jobs = [
        (str(folder), start, min(start + step, count), seed, size_px, options)
        for start in range(0, count, step)
    ]
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        for _ in pool.imap_unordered(_render_scenes, jobs):
            pass
    stamp.write_text(description)


def _describe(count: int, seed: int, size_px: int, options: SceneOptions) -> str:
    """Text that identifies the content of a cache."""
    default = SceneOptions()
    words = [f"{count} scenes of {size_px} px from seed {seed}", f"change {options.change}"]
    if options.strength is not None:
        words.append(f"strength {options.strength}")
    if options.downsample > 1:
        words.append(f"reduced {options.downsample}")
    if options.rich:
        words.append("rich")
    if options.scale is not None:
        words.append(f"scale {options.scale}")
    if options.misregistration_px != default.misregistration_px:
        words.append(f"misregistration {options.misregistration_px} px")
    return ", ".join(words) + "\n"


def open_cache(
    folder: Path, mode: Literal["r", "r+"] = "r"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(images, ground truth) as memory maps."""
    return (
        np.load(folder / "pictures.npy", mmap_mode=mode),
        np.load(folder / "truth.npy", mmap_mode=mode),
    )
