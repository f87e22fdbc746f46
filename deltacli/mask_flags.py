"""Flag groups of change masks: polygons, their outlines, and rasters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import parsing
from deltacli.doctor import ProjCommand
from deltacli.options import flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.pipeline.changes import ChangeOptions

__all__ = ["MASKS", "MaskFlags", "OutlineFlags", "PolygonsCommand"]

MASKS = "Change masks"  # panel of the help

_POLYGONS = {
    "changed": ("changed", "true", "1", "yes", "on", "t", "y"),
    "all": ("all",),
    "": ("no", "false", "0", "off", "f", "n"),
}


def _parse_polygons(value: object) -> str | None:
    """Chips whose polygons are drawn: "changed" or "all"; None for none.

    The words of a boolean flag, as in a configuration file, mean "changed" or none. Raises: BadParameter.
    """
    for chips, words in _POLYGONS.items():
        if str(value).strip().lower() in words:
            return chips or None
    raise typer.BadParameter(f"{value!r} is not changed or all")


_POLYGONS_WORDS = {"--polygons": "--polygons=changed", "--no-polygons": "--polygons=no"}


class PolygonsCommand(ProjCommand):
    """Command whose --polygons takes a value only where the next word is `changed` or `all`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after giving --polygons and --no-polygons their value."""
        end = args.index("--") if "--" in args else len(args)
        words: list[str] = []
        for previous, word in pairwise(["", *args[:end]]):
            if previous == "--polygons" and word in ("changed", "all"):
                words[-1] = f"--polygons={word}"
            elif previous == "--polygons" and _is_word(word):
                raise typer.BadParameter(f"{word!r} is not changed or all", param_hint="--polygons")
            else:
                words.append(_POLYGONS_WORDS.get(word, word))
        return super().parse_args(ctx, [*words, *args[end:]])


def _is_word(text: str) -> bool:
    """True for text that is neither a flag nor the location of an image."""
    return text.isalpha() and not Path(text).exists()


@dataclass(frozen=True, kw_only=True)
class OutlineFlags:
    """Polygons made of probabilities: threshold, smallest area, outlines."""

    min_area: Annotated[
        float | None,
        flag(
            "--min-area",
            panel=MASKS,
            metavar="M2",
            min=0,
            show_default="three mask pixels",
            help="Smallest area of a polygon; smaller ones are dropped.",
        ),
    ] = None
    simplify: Annotated[
        float | None,
        flag(
            "--simplify",
            panel=MASKS,
            metavar="PX",
            min=0,
            show_default="half a mask pixel, which is 2 px in chips of 256",
            help="Tolerance for simplifying outlines, in pixels; 0 keeps every vertex.",
        ),
    ] = None
    mask_threshold: Annotated[
        float,
        flag(
            "--mask-threshold",
            panel=MASKS,
            metavar="P",
            min=0.01,
            max=1,
            help="Lowest probability of a changed pixel.",
        ),
    ] = 0.5

    def check_numbers(self) -> None:
        """Raises: BadParameter for a number that is not finite."""
        for name in ("min_area", "simplify", "mask_threshold"):
            if not math.isfinite(getattr(self, name) or 0):
                raise typer.BadParameter(
                    f"{getattr(self, name)} is not a finite number", param_hint=parsing.flag_name(name)
                )

    def change_options(self, **others: Any) -> ChangeOptions:
        """Options of these flags, and others of `ChangeOptions`."""
        from deltavlm.pipeline.changes import ChangeOptions

        return ChangeOptions(
            threshold=self.mask_threshold, min_area_m2=self.min_area, simplify_px=self.simplify, **others
        )


@dataclass(frozen=True, kw_only=True)
class MaskFlags(OutlineFlags):
    """Polygons and rasters made of the model's change masks."""

    polygons: Annotated[
        str | None,
        flag(
            "--polygons",
            "--no-polygons",
            panel=MASKS,
            parser=_parse_polygons,
            metavar="[changed|all]",
            help="Write a layer of change polygons with class, area and score: of the chips called changed, "
            "or of all. With polygons or rasters, chips overlap by an eighth unless --overlap or --stride is "
            "given.",
        ),
    ] = None
    mask: Annotated[
        str | None,
        flag(
            "--mask",
            panel=MASKS,
            metavar="FILE.tif",
            help="Write a raster of classes: 0 none, 1 building, 2 road, 3 other, 255 nodata.",
        ),
    ] = None
    probability: Annotated[
        str | None,
        flag(
            "--probability",
            panel=MASKS,
            metavar="FILE.tif",
            help="Write a raster of probabilities, one band each for building, road and other.",
        ),
    ] = None

    def check(self, *, into_folder: bool) -> None:
        """Raises: BadParameter or ConfigError where the flags do not go together."""
        for name in ("min_area", "simplify"):
            if getattr(self, name) is not None and not self.polygons:
                raise typer.BadParameter(
                    "is for --polygons; add that, or leave it out", param_hint=parsing.flag_name(name)
                )
        self.check_numbers()
        from deltavlm.files import names_folder

        for name in ("mask", "probability"):
            text = getattr(self, name)
            if into_folder and text is not None and not names_folder(text):
                raise ConfigError(
                    f"--{name} {text}: is one file for many pairs; name a folder, such as --{name} rasters/"
                )

    def options(self) -> ChangeOptions:
        return self.change_options(chips="all" if self.polygons == "all" else "changed")
