"""What changed as ground: polygons and rasters from the model's mask head, and where they go."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli.extras import Extras
from deltacli.options import flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.pipeline.changes import ChangeOptions

MASKS = "Change masks"  # a group of flags in the help
OVERLAP_SHARE = 8  # the default overlap of chips whose masks are laid together is an eighth of a chip


@dataclass(frozen=True, kw_only=True)
class MaskFlags:
    """What is made of the model's masks of change."""

    polygons: Annotated[
        bool,
        flag(
            "--polygons/--no-polygons",
            panel=MASKS,
            help="A layer changes: what changed, as polygons with class, area and score. For these and for "
            "the rasters chips overlap by an eighth, unless --overlap or --stride says otherwise.",
        ),
    ] = False
    mask: Annotated[
        str | None,
        flag(
            "--mask",
            panel=MASKS,
            metavar="FILE.tif",
            help="A raster of classes: 0 none, 1 building, 2 road, 3 other, 255 no data.",
        ),
    ] = None
    probability: Annotated[
        str | None,
        flag(
            "--probability",
            panel=MASKS,
            metavar="FILE.tif",
            help="A raster of probabilities, a band each for building, road and other.",
        ),
    ] = None
    min_area: Annotated[
        float | None,
        flag(
            "--min-area",
            panel=MASKS,
            metavar="M2",
            min=0,
            show_default="three pixels of the mask",
            help="Drop smaller polygons.",
        ),
    ] = None
    simplify: Annotated[
        float | None,
        flag(
            "--simplify",
            panel=MASKS,
            metavar="PX",
            min=0,
            show_default="half a pixel of the mask, 2 of a chip of 256",
            help="Straighten outlines by about so many pixels; 0 keeps every corner.",
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
            help="Changed is what is at least so probable.",
        ),
    ] = 0.5
    before_date: Annotated[
        str | None,
        flag("--before-date", panel=MASKS, metavar="DATE", help="ISO 8601, for the columns of polygons."),
    ] = None
    after_date: Annotated[
        str | None, flag("--after-date", panel=MASKS, metavar="DATE", help="The same of AFTER.")
    ] = None

    @property
    def asked(self) -> bool:
        """Whether masks are wanted of the model."""
        return self.polygons or self.mask is not None or self.probability is not None

    def overlap_px(self, chip_px: int, chosen_px: int, is_chosen: bool) -> int:
        """What neighbouring chips share: as was chosen, else enough to blend masks where there are any."""
        return chip_px // OVERLAP_SHARE if self.asked and not is_chosen else chosen_px

    def check(self, target: str, layer: str | None, *, many: bool) -> None:
        """Raises: BadParameter or ConfigError where the flags do not go together."""
        for name in ("min_area", "simplify", "before_date", "after_date"):
            if getattr(self, name) is not None and not self.polygons:
                word = f"--{name.replace('_', '-')}"
                raise typer.BadParameter("is for --polygons; add that, or leave it out", param_hint=word)
        for name in ("min_area", "simplify", "mask_threshold"):
            if not math.isfinite(getattr(self, name) or 0):
                word = f"--{name.replace('_', '-')}"
                raise typer.BadParameter(f"{getattr(self, name)} is no number to go by", param_hint=word)
        from deltavlm.pipeline.pair_lists import checked_date

        for name in ("before_date", "after_date"):
            if getattr(self, name) is not None:
                word = f"--{name.replace('_', '-')}"
                if many:
                    raise typer.BadParameter("is for one pair; a list has its own", param_hint=word)
                checked_date(getattr(self, name), word)
        if layer == "changes" and not self.polygons:
            raise ConfigError("--layer changes: there is no such layer without --polygons; add it")
        if self.asked and target == "-":
            raise ConfigError(
                "-o -: polygons and rasters of change are made when all chips are answered, so they need a "
                "file; name one"
            )

    def options(self) -> ChangeOptions:
        """What is made of the masks."""
        from deltavlm.pipeline.changes import ChangeOptions

        return ChangeOptions(
            threshold=self.mask_threshold,
            min_area_m2=self.min_area,
            simplify_px=self.simplify,
            before_date=self.before_date,
            after_date=self.after_date,
        )

    def record(self) -> dict[str, object]:
        """What is made of the masks as plain values, for the record in an output; nothing where it is
        nothing."""
        return {"changes": asdict(self.options())} if self.asked else {}

    def extras(self, path: Path | None, layer: str | None, stem: str | None = None) -> Extras:
        """What is written beside the output; `stem`: of a pair of many, whose rasters go into folders."""
        own = self.polygons and path is not None and layer != "changes"
        is_one_layer = path is not None and (path.suffix.lower() != ".gpkg" or layer is not None)
        mask, probability = (
            None if text is None else Path(text) if stem is None else Path(text) / f"{stem}.{name}.tif"
            for name, text in (("mask", self.mask), ("probability", self.probability))
        )
        beside = (
            path.with_name(f"{path.stem}.changes{path.suffix}") if path and own and is_one_layer else None
        )
        return Extras(path, mask, probability, beside)

    def folders(self) -> dict[str, str]:
        """Where rasters of many pairs go, a file each. Raises: ConfigError."""
        named = {"mask": self.mask, "probability": self.probability}
        found = {name: text for name, text in named.items() if text is not None}
        for name, text in found.items():
            if not (text.endswith(("/", os.sep)) or Path(text).is_dir()):
                raise ConfigError(
                    f"--{name} {text}: is one file for many pairs; name a folder, such as --{name} rasters/"
                )
        return found

    def refuse_rasters(self) -> None:
        """Raises: ConfigError where many pairs were to make one raster."""
        for word, text in (("--mask", self.mask), ("--probability", self.probability)):
            if text is not None:
                raise ConfigError(
                    f"{word} {text}: many pairs cannot be one raster; give each its own output, with "
                    f"-o FOLDER/ {word} FOLDER/"
                )
