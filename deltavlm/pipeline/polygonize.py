"""Polygons of change from the stored probabilities of a run, without asking the model again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import InputError
from deltavlm.files import parse_json
from deltavlm.geo.blend import BLOCK_PX, NODATA, Block
from deltavlm.geo.drivers import open_image
from deltavlm.geo.features import Feature
from deltavlm.geo.gdal import UNREADABLE, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.pipeline.answers import Answer
from deltavlm.pipeline.changes import MASK_PIXEL_TAG, ChangeOptions, vectorize
from deltavlm.pipeline.journal.blobs import Blob
from deltavlm.pipeline.mask_codec import CLASSES, KINDS
from deltavlm.pipeline.outputs_reader import POLYGONIZED, Output, Row, check_same_run
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import ANALYZED_STATUSES

__all__ = ["ProbabilityRaster", "open_probability", "polygonize", "polygons_record", "probability_path"]

HINT = "give the raster that deltavlm analyze --probability writes, or an output of that run"
TAG = "deltavlm"  # of a raster: the provenance of its run, as JSON


@dataclass(frozen=True)
class ProbabilityRaster:
    """Raster of probabilities, (classes and kinds, height, width) uint8, and the provenance of its run."""

    dataset: DatasetReader
    path: Path
    provenance: Mapping[str, Any]
    mask_pixel_px: float  # side of a pixel of the model's masks, pixels of the raster

    @property
    def geobox(self) -> GeoBox:
        """Pixel grid of the raster."""
        dataset = self.dataset
        return GeoBox(dataset.width, dataset.height, dataset.transform, dataset.crs or None)

    def blocks(self) -> Iterator[Block]:
        """Blocks in rows from the upper left. Raises: RasterError where one cannot be decoded."""
        width, height = self.dataset.width, self.dataset.height
        for top in range(0, height, BLOCK_PX):
            for left in range(0, width, BLOCK_PX):
                window = Window(left, top, min(BLOCK_PX, width - left), min(BLOCK_PX, height - top))
                with wrap_gdal_errors(str(self.path), *UNREADABLE):
                    values = self.dataset.read(window=RasterioWindow(*window))
                yield Block(window, values)


@contextmanager
def open_probability(path: Path) -> Iterator[ProbabilityRaster]:
    """Open a raster of probabilities. Raises: InputError for another raster."""
    with open_image(str(path)) as dataset:
        if dataset.descriptions != (*CLASSES, *KINDS) or {*dataset.dtypes} != {"uint8"}:
            raise InputError(f"{path}: is no raster of probabilities; {HINT}")
        tags = dataset.tags()
        try:
            provenance = parse_json(tags[TAG])
            mask_pixel_px = float(tags[MASK_PIXEL_TAG])
            options = provenance["options"]
            sizes = int(options["chip_px"]), int(options["overlap_px"])
            known = mask_pixel_px > 0 and sizes[0] > sizes[1] >= 0 and dataset.nodata == NODATA
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: its tags do not say how it was made ({error}); {HINT}") from error
        if not known:
            raise InputError(f"{path}: its tags do not say how it was made; {HINT}")
        yield ProbabilityRaster(dataset, path, provenance, mask_pixel_px)


def probability_path(output: Output) -> Path:
    """Raster of probabilities that was written with an output. Raises: InputError where there is none."""
    name = output.provenance.get("probability")
    if not isinstance(name, str) or not name:
        raise InputError(f"{output.path}: was written without a raster of probabilities; {HINT}")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(
            f"{output.path}: its raster is {name!r}, outside of its folder, which is not opened unasked; "
            "name it with `probability`"
        )
    path = output.path.parent / name
    if not path.is_file():
        raise InputError(f"{path}: no such file, and it belongs to {output.path}; name it with `probability`")
    return path


@dataclass
class _StoredMosaic:
    """Mosaic of a raster of probabilities, with the answers of its chips if the output is there."""

    raster: ProbabilityRaster
    chips: ChipGrid
    rows: Mapping[str, Row]  # of the analyzed chips, by their ids

    @property
    def geobox(self) -> GeoBox:
        return self.raster.geobox

    @property
    def mask_pixel_px(self) -> float:
        return self.raster.mask_pixel_px

    def blocks(self) -> Iterator[Block]:
        return self.raster.blocks()

    def result(self, chip: Chip) -> ChipResult | None:
        row = self.rows.get(chip.chip_id)
        if row is None:
            return None
        answers = {"change": Answer("change", "", row["changed"], row["changed_score"])}
        if row.get("caption") is not None:
            answers["caption"] = Answer("caption", row["caption"], row["caption"], None)
        return ChipResult(chip, row["status"], None, answers, mask=Blob(b""))


def polygonize(
    raster: ProbabilityRaster,
    options: ChangeOptions,
    *,
    output: Output | None = None,
    aoi: BaseGeometry | None = None,
) -> list[Feature]:
    """Polygons of change in the CRS of the raster, as rows of the layer `changes`.

    With the `output` of the run they have the ids, captions and dates of its chips, and only those of chips
    called changed are drawn, unless `options.chips` says otherwise; at the options of the run they are its
    polygons. Memory grows with the number of polygons, not with the raster.

    aoi: area of interest in the CRS of the raster, at which polygons end.

    Raises:
        InputError: the output is not of the run that wrote the raster.
        RasterError: a part of the raster cannot be decoded.
    """
    run = raster.provenance["options"]
    grid = ChipGrid(raster.geobox, int(run["chip_px"]), int(run["overlap_px"]), aoi)
    rows = {} if output is None else _rows(output, raster)
    features = vectorize(_StoredMosaic(raster, grid, rows), options)
    dates = _dates(output)
    return [Feature(feature.geometry, {**feature.properties, **dates}) for feature in features]


def polygons_record(
    raster: ProbabilityRaster, options: ChangeOptions, output: Output | None, target: Path
) -> dict[str, Any]:
    """Provenance of polygons that are written to `target`: that of the run, and what they were drawn from."""
    drawn: dict[str, Any] = {"output": None, "threshold": None}
    if output is not None:
        chips = (output.chips_path or output.path).absolute()
        relative = os.path.relpath(chips, target.absolute().parent)
        drawn = {"output": Path(relative).as_posix(), "threshold": output.threshold}
    return {**raster.provenance, "changes": asdict(options), POLYGONIZED: drawn}


def _rows(output: Output, raster: ProbabilityRaster) -> dict[str, Row]:
    """Rows of the analyzed chips of an output by their ids. Raises: InputError for one of another run."""
    check_same_run(
        output.provenance, raster.provenance, f"{output.path}: is not of the run that wrote {raster.path}"
    )
    return {row["chip_id"]: row for row in output.rows("chips") if row["status"] in ANALYZED_STATUSES}


def _dates(output: Output | None) -> dict[str, object]:
    row = next(iter(output.rows("chips")), {}) if output is not None else {}
    return {"before_date": row.get("before_date"), "after_date": row.get("after_date")}


@dataclass(frozen=True, slots=True)
class RunArea:
    """Area that a run was limited to, as its provenance says."""

    bbox: tuple[float, float, float, float] | None
    bbox_crs: str
    aoi: str | None  # path of a vector file


def run_area(raster: ProbabilityRaster) -> RunArea:
    """Area that the run which wrote a raster was limited to. Raises: InputError for other provenance."""
    try:
        inputs: Mapping[str, Any] = raster.provenance["inputs"]
        bbox, aoi = inputs["bbox"], inputs["aoi"]
        box = None
        if bbox is not None:
            xmin, ymin, xmax, ymax = (float(edge) for edge in bbox)
            box = xmin, ymin, xmax, ymax
        return RunArea(box, str(inputs["bbox_crs"] or "EPSG:4326"), None if aoi is None else str(aoi))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{raster.path}: its tags do not say which area was analyzed; {HINT}") from error
