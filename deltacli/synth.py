"""`deltavlm synth`: made scenes with known truth, as a set of chips or as one pair of GeoTIFFs."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options
from deltacli.console import console, pluralize
from deltacli.doctor import ProjCommand
from deltacli.flag_groups import CommonFlags, grouped

if TYPE_CHECKING:
    from deltavlm.data.synthetic import Scene

synth = typer.Typer(
    help="Make scenes with known truth: pairs to train and to score on, or one pair of GeoTIFFs.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; made if it is missing.")]
Seed = Annotated[
    int, typer.Option("--seed", show_envvar=False, min=0, help="The same seed gives the same scenes.")
]
Change = Annotated[
    float,
    typer.Option(
        "--change", min=0.0, max=1.0, metavar="SHARE", help="How many places of about 300 px change."
    ),
]
Compress = typer.Option("--compress", help="jpeg is lossy and a tenth of the size.")
LARGEST_PX = 8192

COLOURS = {
    0: (0, 0, 0),
    1: (228, 26, 28),
    2: (152, 78, 163),
    3: (255, 220, 0),
    4: (255, 127, 0),
    5: (77, 175, 74),
    6: (26, 120, 60),
    7: (55, 126, 184),
    8: (120, 180, 220),
    9: (166, 100, 50),
    10: (110, 90, 70),
}


def free(paths: list[Path], overwrite: bool) -> None:
    """Raises: OutputError when one of the paths is there and may not be replaced."""
    from deltavlm.errors import OutputError

    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; give another folder, or --overwrite to replace it")


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into: what is in it moves to `folder` at the end, or goes on any exception.

    It lies in `folder`, or in the nearest folder above that is there, so that moving is renaming.

    Raises: OutputError when one of the two cannot be made or written.
    """
    from deltavlm.errors import OutputError

    there = next(path for path in (folder, *folder.parents) if path.exists())
    part = there / f".deltavlm-{os.urandom(4).hex()}"  # named first: a signal may come right after `mkdir`
    try:
        part.mkdir()
        yield part
        console.signal_state.check()
        folder.parent.mkdir(parents=True, exist_ok=True)
        merge(part, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; check the path and the free disk space"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def merge(source: Path, target: Path) -> None:
    """Rename `source` to `target`; of two folders, what is inside, in the order of names."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            merge(path, target / path.name)
    else:
        source.replace(target)


@synth.command()
@grouped
def chips(
    folder: Folder,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="How many pairs.")] = 100,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option("--split", help="Name of the split.")
    ] = "test",
    size: Annotated[
        int, typer.Option("--size", min=64, max=1024, metavar="PX", help="Side of a picture.")
    ] = 256,
    seed: Seed = 0,
    change: Change = 0.6,
    compress: Annotated[Literal["png", "jpeg"], Compress] = "png",
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Pairs of pictures with questions and answers, in ChangeChat-105k's layout.

    FOLDER/images/SPLIT/A, B and label, and FOLDER/synthetic_SPLIT*.json. Pair i is the scene of seed + i.
    """
    from deltavlm.data.changechat import write_chip_set
    from deltavlm.data.synthetic import SceneOptions, make_scene

    free([folder / f"synthetic_{split}.json"], overwrite)
    width = len(str(count - 1))

    def scenes() -> Iterator[tuple[str, Scene]]:
        with console.count_progress(count, "pairs") as tell:
            for index in range(count):
                yield (
                    f"{split}_{index:0{width}d}",
                    make_scene(seed + index, size, size, SceneOptions(change=change)),
                )
                tell(index + 1, "")

    with whole(folder) as part:
        number = write_chip_set(part, split, scenes(), compress=compress)
        files = [str(folder / path.name) for path in sorted(part.glob("*.json"))]
    console.info(f"{pluralize(number, 'pair')} in {folder}")
    if json_summary:
        summary = {"folder": str(folder), "split": split, "pairs": number, "files": files}
        typer.echo(json.dumps(summary, ensure_ascii=False))


@synth.command(cls=ProjCommand)
@grouped
def scene(
    folder: Folder,
    width: Annotated[
        int, typer.Option("--width", min=64, max=LARGEST_PX, metavar="PX", help="Columns.")
    ] = 1024,
    height: Annotated[
        int, typer.Option("--height", min=64, max=LARGEST_PX, metavar="PX", help="Rows.")
    ] = 1024,
    seed: Seed = 0,
    change: Change = 0.6,
    crs: Annotated[str, typer.Option("--crs", help="A projected CRS in metres.")] = "EPSG:32633",
    origin: Annotated[
        str, typer.Option("--origin", metavar="X,Y", help="Top left corner, in the CRS.")
    ] = "500000,5400000",
    gsd: Annotated[
        float, typer.Option("--gsd", min=0.01, max=100.0, metavar="M", help="Metres a pixel.")
    ] = 0.5,
    scale: Annotated[
        float | None,
        typer.Option("--scale", min=0.2, max=3.0, help="Size of things; left out, the seed decides."),
    ] = None,
    compress: Annotated[Literal["deflate", "jpeg"], Compress] = "deflate",
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """One pair of GeoTIFFs: before.tif, after.tif, truth.tif (codes) and truth.json (what is true of each
    chip)."""
    from affine import Affine

    from deltavlm.data.synthetic import SceneOptions, make_scene
    from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES
    from deltavlm.geo.geotiff import write_geotiff

    names = ("before.tif", "after.tif", "truth.tif", "truth.json")
    left, top = corner(origin)
    metres(crs)
    free([folder / name for name in names], overwrite)
    transform = Affine(gsd, 0, left, 0, -gsd, top)
    with whole(folder) as part:
        pair = make_scene(seed, width, height, SceneOptions(change=change, scale=scale))
        for name, pixels in zip(names, (pair.before, pair.after), strict=False):
            write_geotiff(part / name, pixels, transform=transform, crs=crs, compress=compress)
        write_geotiff(part / names[2], pair.change, transform=transform, crs=crs, colormap=COLOURS)
        told = truth_of(pair)
        truth = {
            "seed": seed,
            "gsd_m": gsd,
            "crs": crs,
            "codes": dict(enumerate(CHANGE_CLASSES)),
            "chips": told,
        }
        (part / names[3]).write_text(json.dumps(truth, indent=1) + "\n")
    console.info(f"{width} x {height} px, {pluralize(len(told), 'chip')} in {folder}")
    if json_summary:
        summary = {"folder": str(folder), "width": width, "height": height, "chips": len(told)}
        summary["files"] = [str(folder / name) for name in names]
        typer.echo(json.dumps(summary, ensure_ascii=False))


def truth_of(pair: Scene, size: int = 256) -> dict[str, dict[str, Any]]:
    """What is true of each chip of the default grid, by chip_id, in the columns of `analyze`."""
    from affine import Affine

    from deltavlm.data.synthetic import phrases
    from deltavlm.data.synthetic.facts import facts_of
    from deltavlm.geo.geobox import GeoBox
    from deltavlm.geo.grid import ChipGrid

    height, width = pair.change.shape
    said = {}
    for chip in ChipGrid(GeoBox(width, height, Affine.identity()), size):
        col, row, cols, rows = chip.window
        cut = (slice(row, row + rows), slice(col, col + cols))
        facts = facts_of(pair.change[cut], pair.instances[cut], pair.cover[cut])
        said[chip.chip_id] = {
            "changed": facts.changed,
            "new_roads": facts.counts["road_built"],
            "new_buildings": facts.counts["building_built"],
            "road_cells": list(facts.road_cells),
            "building_cells": list(facts.building_cells),
            "captions": list(phrases.captions(facts)),
        }
    return said


def corner(text: str) -> tuple[float, float]:
    """Raises: BadParameter unless the text is two finite numbers."""
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"expected X,Y in metres, got {text!r}", param_hint="--origin")
    return numbers[0], numbers[1]


def metres(crs: str) -> None:
    """Raises: BadParameter unless the CRS is known, projected and in metres."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        known = CRS.from_user_input(crs)
    except CRSError as error:
        raise typer.BadParameter(f"unknown CRS {crs!r}; try EPSG:32633", param_hint="--crs") from error
    if not known.is_projected or known.axis_info[0].unit_conversion_factor != 1.0:
        raise typer.BadParameter(f"{crs} is not projected in metres; try a UTM zone", param_hint="--crs")
