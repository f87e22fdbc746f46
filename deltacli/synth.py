"""`deltavlm synth`: synthetic scenes with ground truth, as a question set or as a pair of GeoTIFFs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options, parsing
from deltacli.console import console
from deltacli.doctor import ProjCommand
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import OUTPUT, flag
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from affine import Affine

    from deltavlm.data.synthetic import Scene, SceneOptions
    from deltavlm.data.synthetic.ground import GroundTiles

synth = typer.Typer(
    help="Make synthetic scenes with ground truth: a question set, or one pair of GeoTIFFs.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

SCENE, GEOTIFF = "Scene", "Georeference"

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder; created if missing.")]
Seed = Annotated[int, flag("--seed", panel=SCENE, min=0, help="The same seed gives the same scenes.")]
Change = Annotated[
    float,
    flag(
        "--change",
        panel=SCENE,
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Share of areas of about 300 px that change.",
    ),
]
Ground = Annotated[
    Path | None,
    flag(
        "--ground",
        panel=SCENE,
        metavar="FOLDER",
        help="Folder of single-date image tiles, the ground of both dates: the changes are drawn on them.",
    ),
]
Compress = flag("--compress", panel=OUTPUT, help="jpeg is lossy and a tenth of the size.")
MAX_PX = 8192

COLORS = {
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
"""Color table of truth.tif by change code."""


@synth.command()
@grouped
def chips(
    folder: Folder,
    count: Annotated[
        int, flag("--count", "-n", panel=SCENE, min=1, max=1_000_000, help="Number of pairs.")
    ] = 100,
    split: Annotated[
        Literal["train", "val", "test"], flag("--split", panel=SCENE, help="Name of the split.")
    ] = "test",
    size: Annotated[
        int, flag("--size", panel=SCENE, min=64, max=1024, metavar="PX", help="Width and height of an image.")
    ] = 256,
    seed: Seed = 0,
    change: Change = 0.6,
    ground: Ground = None,
    compress: Annotated[Literal["png", "jpeg"], Compress] = "png",
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Write image pairs with questions and answers, in the layout of ChangeChat-105k.

    FOLDER/images/SPLIT/A, B and label, and FOLDER/synthetic_SPLIT*.json. Pair i is the scene of seed + i.
    """
    from deltavlm.data.changechat import write_chip_set
    from deltavlm.data.synthetic import SceneOptions
    from deltavlm.files import refuse_existing, staged_folder

    file = folder / f"synthetic_{split}.json"
    parsing.check_files([("FOLDER", file)], {"--config": common.config})
    if not overwrite:
        refuse_existing([file])
    digits = len(str(count - 1))
    make = scene_maker(open_tiles(ground), SceneOptions(change=change))

    def scenes() -> Iterator[tuple[str, Scene]]:
        with console.count_progress(count, "pairs") as update:
            for index in range(count):
                yield f"{split}_{index:0{digits}d}", make(seed + index, size, size)
                update(index + 1, "")

    with staged_folder(folder) as scratch:
        number = write_chip_set(scratch, split, scenes(), compress=compress)
        files = [str(folder / path.name) for path in sorted(scratch.glob("*.json"))]
    console.info(f"{pluralize(number, 'pair')} in {folder}")
    if json_summary:
        summary = {"folder": str(folder), "split": split, "pairs": number, "files": files}
        typer.echo(json.dumps(summary, ensure_ascii=False))


@synth.command(cls=ProjCommand)
@grouped
def scene(
    folder: Folder,
    width: Annotated[
        int, flag("--width", panel=SCENE, min=64, max=MAX_PX, metavar="PX", help="Columns.")
    ] = 1024,
    height: Annotated[
        int, flag("--height", panel=SCENE, min=64, max=MAX_PX, metavar="PX", help="Rows.")
    ] = 1024,
    seed: Seed = 0,
    change: Change = 0.6,
    ground: Ground = None,
    crs: Annotated[
        str | None,
        flag("--crs", panel=GEOTIFF, show_default="EPSG:32633", help="Projected CRS in meters."),
    ] = None,
    origin: Annotated[
        str | None,
        flag(
            "--origin",
            panel=GEOTIFF,
            metavar="X,Y",
            show_default="500000,5400000",
            help="Upper left corner in the CRS.",
        ),
    ] = None,
    gsd: Annotated[
        float | None,
        flag(
            "--gsd",
            panel=GEOTIFF,
            min=0.01,
            max=100.0,
            metavar="M",
            show_default="0.5",
            help="Meters per pixel.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        flag(
            "--scale",
            panel=SCENE,
            min=0.2,
            max=3.0,
            show_default="from the seed",
            help="Size of objects; 1: as at 0.5 m per pixel.",
        ),
    ] = None,
    compress: Annotated[Literal["deflate", "jpeg"], Compress] = "deflate",
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Write one pair of GeoTIFFs, before.tif and after.tif, with truth.tif (change codes) and truth.json.

    truth.json has the counts, cells and captions of each chip. With --ground and GeoTIFFs in a projected CRS,
    the scene is a window of one of them, and has its georeference.
    """
    from affine import Affine

    from deltavlm.data.synthetic import SceneOptions
    from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES
    from deltavlm.files import refuse_existing, staged_folder
    from deltavlm.geo.geotiff import write_geotiff

    names = ("before.tif", "after.tif", "truth.tif", "truth.json")
    given = [
        name for name, value in (("--crs", crs), ("--origin", origin), ("--gsd", gsd)) if value is not None
    ]
    xmin, ymax = parse_origin(origin or "500000,5400000")
    place = Place(crs or "EPSG:32633", Affine(gsd or 0.5, 0, xmin, 0, -(gsd or 0.5), ymax))
    check_crs(place.crs)
    parsing.check_files([("FOLDER", folder / name) for name in names], {"--config": common.config})
    if not overwrite:
        refuse_existing([folder / name for name in names])
    scene_options = SceneOptions(change=change, scale=scale)
    tiles = open_tiles(ground)
    if tiles and tiles.georeferenced and given:
        raise typer.BadParameter(f"the tiles of {ground} have their own georeference", param_hint=given[0])
    with staged_folder(folder) as scratch:
        if tiles and tiles.georeferenced:
            pair, place = scene_in_place(seed, tiles, (width, height), scene_options)
        else:
            pair = scene_maker(tiles, scene_options)(seed, width, height)
        for name, pixels in zip(names, (pair.before, pair.after), strict=False):
            write_geotiff(scratch / name, pixels, transform=place.transform, crs=place.crs, compress=compress)
        write_geotiff(
            scratch / names[2], pair.change, transform=place.transform, crs=place.crs, colormap=COLORS
        )
        chips = chip_truth(pair)
        truth = {
            "seed": seed,
            "gsd_m": place.transform.a,
            "crs": place.crs,
            "codes": dict(enumerate(CHANGE_CLASSES)),
            "chips": chips,
        }
        (scratch / names[3]).write_text(json.dumps(truth, indent=1) + "\n")
        console.signal_state.check()
    console.info(f"{width} x {height} px, {pluralize(len(chips), 'chip')} in {folder}")
    if json_summary:
        summary = {"folder": str(folder), "width": width, "height": height, "chips": len(chips)}
        summary["files"] = [str(folder / name) for name in names]
        typer.echo(json.dumps(summary, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class Place:
    """Georeference of a scene."""

    crs: str
    transform: Affine


def open_tiles(ground: Path | None) -> GroundTiles | None:
    """Tiles of --ground. Raises: InputError for a folder without tiles."""
    from deltavlm.data.synthetic.ground import GroundTiles

    return None if ground is None else GroundTiles(ground)


def scene_maker(tiles: GroundTiles | None, options: SceneOptions) -> Callable[[int, int, int], Scene]:
    """Function from (seed, width, height) to a scene, on tiles where there are some."""
    from deltavlm.data.synthetic import make_scene
    from deltavlm.data.synthetic.ground import make_ground_scene

    if tiles is None:
        return lambda seed, width, height: make_scene(seed, width, height, options)
    return lambda seed, width, height: make_ground_scene(seed, tiles, width, height, options)


def scene_in_place(
    seed: int, tiles: GroundTiles, size: tuple[int, int], options: SceneOptions
) -> tuple[Scene, Place]:
    """Scene of `size` (width, height) on a window of a GeoTIFF, and its place on the ground."""
    from affine import Affine

    from deltavlm.data.synthetic.ground import make_georeferenced_scene
    from deltavlm.geo.drivers import open_image

    pair, path, (row, col) = make_georeferenced_scene(seed, tiles, *size, options)
    with open_image(str(path)) as raster:
        return pair, Place(raster.crs.to_string(), raster.transform * Affine.translation(col, row))


def chip_truth(pair: Scene, size: int = 256) -> dict[str, dict[str, Any]]:
    """Ground truth of each chip of the default grid by chip_id, in the columns of `analyze`."""
    from affine import Affine

    from deltavlm.data.synthetic import phrases
    from deltavlm.data.synthetic.facts import facts_of
    from deltavlm.geo.geobox import GeoBox
    from deltavlm.geo.grid import ChipGrid

    height, width = pair.change.shape
    truth = {}
    for chip in ChipGrid(GeoBox(width, height, Affine.identity()), size):
        col, row, cols, rows = chip.window
        crop = (slice(row, row + rows), slice(col, col + cols))
        facts = facts_of(pair.change[crop], pair.instances[crop], pair.cover[crop])
        truth[chip.chip_id] = {
            "changed": facts.changed,
            "new_roads": facts.counts["road_built"],
            "new_buildings": facts.counts["building_built"],
            "road_cells": list(facts.road_cells),
            "building_cells": list(facts.building_cells),
            "captions": list(phrases.captions(facts)),
        }
    return truth


def parse_origin(text: str) -> tuple[float, float]:
    """Parse X,Y. Raises: BadParameter unless the text is two finite numbers."""
    try:
        numbers = [float(number) for number in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"expected X,Y in meters, got {text!r}", param_hint="--origin")
    return numbers[0], numbers[1]


def check_crs(crs: str) -> None:
    """Raises: BadParameter unless the CRS is known, projected and in meters."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        parsed = CRS.from_user_input(crs)
    except CRSError as error:
        raise typer.BadParameter(f"unknown CRS {crs!r}; try EPSG:32633", param_hint="--crs") from error
    if not parsed.is_projected or parsed.axis_info[0].unit_conversion_factor != 1.0:
        raise typer.BadParameter(f"{crs} is not projected in meters; try a UTM zone", param_hint="--crs")
