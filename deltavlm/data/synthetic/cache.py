"""Cache of synthetic scenes on disk: each is rendered once and used many times in a training run.

A cache folder holds `pictures.npy` (N, 2, size, size, 3) uint8, before then after, and `truth.npy`
(N, 3, size / 2, size / 2) uint8: change codes, instance ids (255 at most), cover before. Ground truth has
half the resolution: masks and captions need no more, and it is an eighth of the bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.ground import GroundTiles, make_ground_scene
from deltavlm.data.synthetic.scene import SceneOptions, make_scene

__all__ = [
    "FAR_SEED",
    "FAR_TEST_SEED",
    "GROUND_SEED",
    "GROUND_TEST_SEED",
    "GROUND_VALIDATION_SEED",
    "RICH_SEED",
    "RICH_TEST_SEED",
    "STORMY_SEED",
    "TEST_SEED",
    "TRAIN_SEED",
    "VALIDATION_SEED",
    "SceneCache",
    "halve",
    "open_cache",
    "render_cache",
]

# First seeds of the sets, whose ranges do not overlap. FAR: coarser pixels; STORMY: large differences
# of light, haze and contrast; RICH: `SceneOptions.rich`; GROUND: on real ground.
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 1_000_000, 500_000_000, 900_000_000
FAR_SEED, STORMY_SEED, FAR_TEST_SEED = 1_000_000_000, 1_200_000_000, 1_500_000_000
RICH_SEED, RICH_TEST_SEED = 1_600_000_000, 1_900_000_000
GROUND_SEED, GROUND_VALIDATION_SEED, GROUND_TEST_SEED = 2_000_000_000, 2_200_000_000, 2_300_000_000

STAMP = "drawn.txt"  # written last, so that only a complete cache has it
PARTS = "parts.txt"  # of an incomplete cache: its description, then "start stop" of each finished part
PART_SCENES = 16  # scenes that are rendered between two reports of progress


def halve(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Every second pixel of a ground truth array, as uint8."""
    halved: npt.NDArray[np.uint8] = np.minimum(array[::2, ::2], 255).astype(np.uint8)
    return halved


def ignore_count(rendered: int) -> None:
    """Progress callback that does nothing."""


@dataclass(frozen=True, slots=True)
class SceneCache:
    """Cache folder of `count` scenes with the seeds `seed`, `seed` + 1, ... and square sides of `size_px`.

    ground: folder of tiles that the scenes are drawn on (`tiles.GroundTiles`); None: the ground is drawn too.
    """

    folder: Path
    count: int
    seed: int
    size_px: int = 256
    options: SceneOptions = field(default_factory=lambda: SceneOptions(change=0.6))
    ground: Path | None = None

    @property
    def description(self) -> str:
        """Text that identifies the content. Raises: InputError for a folder without tiles."""
        digest = _tiles(self.ground).digest if self.ground else None
        return _describe(self.count, self.seed, self.size_px, self.options, digest)

    def count_rendered(self) -> int:
        """Number of scenes that the folder holds already, also of an interrupted rendering."""
        if self._is_complete():
            return self.count
        return sum(stop - start for start, stop in self._finished_parts())

    def render(self, workers: int | None = None, on_progress: Callable[[int], None] = ignore_count) -> None:
        """Render the scenes that are missing. `on_progress` gets the number of scenes that are there."""
        if self._is_complete():
            return
        finished = self._finished_parts()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not finished:
            self._create_arrays()
        starts = range(0, self.count, PART_SCENES)
        jobs = [(self, start, min(start + PART_SCENES, self.count)) for start in starts]
        jobs = [job for job in jobs if job[1:] not in finished]
        rendered = self.count_rendered()
        workers = min(workers or os.cpu_count() or 1, len(jobs))
        with ExitStack() as stack:
            parts = stack.enter_context((self.folder / PARTS).open("a", encoding="utf-8"))
            results: Iterable[tuple[int, int]]
            if workers > 1:
                pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_ignore_interrupts)
                results = stack.enter_context(pool).imap_unordered(_render_scenes, jobs)
            else:
                results = map(_render_scenes, jobs)
            for start, stop in results:
                parts.write(f"{start} {stop}\n")
                parts.flush()
                rendered += stop - start
                on_progress(rendered)
        (self.folder / STAMP).write_text(self.description)
        (self.folder / PARTS).unlink()

    def _is_complete(self) -> bool:
        stamp = self.folder / STAMP
        return stamp.exists() and stamp.read_text() == self.description

    def _finished_parts(self) -> set[tuple[int, int]]:
        """(start, stop) of the parts that an interrupted rendering of this cache has finished."""
        path = self.folder / PARTS
        if not path.exists():
            return set()
        description, _, text = path.read_text(encoding="utf-8").partition("\n")
        if description != self.description.strip():
            return set()
        lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return {(int(start), int(stop)) for start, stop in lines}

    def _create_arrays(self) -> None:
        (self.folder / STAMP).unlink(missing_ok=True)
        half_px = self.size_px // 2
        for name, shape in (
            ("pictures", (self.count, 2, self.size_px, self.size_px, 3)),
            ("truth", (self.count, 3, half_px, half_px)),
        ):
            np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        (self.folder / PARTS).write_text(self.description, encoding="utf-8")


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _tiles(folder: Path) -> GroundTiles:
    """Tiles of a folder, opened once in each process."""
    return GroundTiles(folder)


def _render_scenes(job: tuple[SceneCache, int, int]) -> tuple[int, int]:
    """Render the scenes start to stop - 1 into the arrays of a cache; returns start and stop."""
    cache, start, stop = job
    pictures, truth = open_cache(cache.folder, mode="r+")
    size = cache.size_px
    for index in range(start, stop):
        if cache.ground:
            scene = make_ground_scene(cache.seed + index, _tiles(cache.ground), size, size, cache.options)
        else:
            scene = make_scene(cache.seed + index, size, size, cache.options)
        pictures[index, 0], pictures[index, 1] = scene.before, scene.after
        truth[index] = np.stack([halve(scene.change), halve(scene.instances), halve(scene.cover)])
    return start, stop


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
    SceneCache(folder, count, seed, size_px, options).render(workers)


def _describe(count: int, seed: int, size_px: int, options: SceneOptions, ground: str | None) -> str:
    """Text that identifies the content of a cache; `ground` is the digest of the tiles."""
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
    if options.without:
        words.append(f"without {' and '.join(options.without)}")
    if ground is not None:
        words.append(f"on tiles {ground}")
    return ", ".join(words) + "\n"


def open_cache(
    folder: Path, mode: Literal["r", "r+"] = "r"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(images, ground truth) as memory maps."""
    return (
        np.load(folder / "pictures.npy", mmap_mode=mode),
        np.load(folder / "truth.npy", mmap_mode=mode),
    )
