"""Fixtures that many tests share: rasters, a scripted model."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer.testing

import deltavlm
from deltavlm.geo.pair import ReadOptions
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.interface import Masks
from deltavlm.pipeline.job import AnalyzeOptions
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel

if TYPE_CHECKING:
    from tests.mci_reference import Reference

# Small tensors on several threads wait for each other: on two busy cores one file took 256 s instead of 13 s.
# Set before torch is imported, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Temporary folders in memory, where there is room: outputs are flushed to disk, which took most of the time.
MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

typer.testing._get_command = cache(typer.testing._get_command)  # 60 ms for each run of a command, else

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs like this
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it, and child processes inherit it

WIDTH, HEIGHT, CHIP = 160, 96, 32  # 5 x 3 chips of 32 px


@dataclass(frozen=True)
class Scene:
    """A pair of GeoTIFFs, 0.5 m per pixel, that differ only in chip r00032_c00064."""

    before: Path
    after: Path
    changed_chip: str = "r00032_c00064"

    @property
    def args(self) -> list[str]:
        return [str(self.before), str(self.after)]


def write_tiled(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
    """A GeoTIFF with one block per chip."""
    blocks = {"photometric": "RGB", "tiled": True, "blockxsize": CHIP, "blockysize": CHIP}
    return write_raster(path, pixels, **(blocks | profile))


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """Undo what a command does to the logging of the process: levels and the handler of the root logger."""
    root, library = logging.getLogger(), logging.getLogger("deltavlm")
    handlers, levels = list(root.handlers), (root.level, library.level)
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(levels[0])
    library.setLevel(levels[1])


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is scored without Java, which takes ten seconds to read METEOR's tables.

    The Java programs run in `tests/metrics/test_against_libraries.py` and in the tutorial `score-a-model`.
    """
    monkeypatch.setattr("deltavlm.metrics.java.shutil.which", lambda name: None)


@pytest.fixture
def pixels() -> np.ndarray:
    """(3, 96, 160) uint8 noise without 0."""
    return noise(3, HEIGHT, WIDTH)


@pytest.fixture
def scene(tmp_path: Path, pixels: np.ndarray) -> Scene:
    before = write_tiled(tmp_path / "before.tif", pixels)
    pixels = pixels.copy()
    pixels[:, 40:50, 70:80] = 255
    return Scene(before, write_tiled(tmp_path / "after.tif", pixels))


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


Analyzed = Callable[..., Path]


@pytest.fixture
def analyzed(model: ScriptedModel, tmp_path: Path) -> Analyzed:
    """`analyzed(before, after, to="out.gpkg")` or `analyzed(pairs)` writes an output of chips of 32 px.

    `read` are options of reading; other keywords are options of the analysis.
    """

    def run(*images: Any, to: str = "out.gpkg", read: ReadOptions | None = None, **options: Any) -> Path:
        path = tmp_path / to
        chosen = AnalyzeOptions(chip_px=CHIP, **options)
        deltavlm.analyze(*images, output=path, model=model, options=chosen, read=read)
        return path

    return run


@pytest.fixture
def bright(model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> ScriptedModel:
    """Model whose mask head sees a building of probability 1 in each white pixel of `after`, and a road of
    probability 0.6 in each other pixel that differs."""

    def masks(encoded: Any) -> Masks:
        shares = np.zeros((len(encoded), 3, 32, 32), np.float32)
        for share, (before, after) in zip(shares, encoded, strict=True):
            white = (after == 255).all(axis=0)
            share[1], share[2] = white, 0.6 * (before != after).any(axis=0) * ~white
            share[0] = 1 - share[1] - share[2]
        return Masks(("none", "building_built", "road_removed"), shares)

    monkeypatch.setattr(model, "masks", masks)
    return model


@pytest.fixture
def loads(model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, RuntimeOptions]]:
    """Make `deltavlm.load_model`, which every command calls, return the scripted model without torch.

    The list records name and options of each call. Programs of their own process assign the same attribute.
    """
    calls: list[tuple[str, RuntimeOptions]] = []

    def load_model(name: str = "nano", options: RuntimeOptions | None = None) -> ScriptedModel:
        calls.append((name, options or RuntimeOptions()))
        if options is not None and options.calibration is not None:
            model.calibration = options.calibration
            model.details = {"calibration": asdict(options.calibration)}
        return model

    monkeypatch.setitem(vars(deltavlm), "load_model", load_model)  # setattr would import the real one first
    return calls


@pytest.fixture(scope="session")
def changechat_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random published files of ChangeChat at small size, with expected results."""
    from tests.changechat_reference import write_files

    folder = tmp_path_factory.mktemp("changechat-files")
    write_files(folder)
    return folder


@pytest.fixture(scope="session")
def changechat_folder(changechat_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint converted from `changechat_files`."""
    from deltavlm.upstream.changechat import Sources, convert
    from tests.changechat_reference import ADAPTER, BASE, CLIP

    folder = tmp_path_factory.mktemp("changechat") / "tiny"
    convert(Sources(changechat_files / BASE, changechat_files / CLIP, changechat_files / ADAPTER), folder)
    return folder


@pytest.fixture(scope="session")
def changevg_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random published files of ChangeVG at small size, with expected results; needs peft."""
    from tests.changevg_reference import write_files

    folder = tmp_path_factory.mktemp("changevg") / "published"
    write_files(folder)
    return folder


@pytest.fixture(scope="session")
def mci_files(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Random published files of MCI at small size, with expected results of one pair."""
    from tests.mci_reference import write_files

    return write_files(tmp_path_factory.mktemp("mci") / "published", pairs=1)
