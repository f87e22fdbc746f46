"""Layers of an output written from its journal, with the polygons and rasters of its masks of change."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

from deltavlm.geo.cog import Cog, open_cog
from deltavlm.geo.pair import PairReader
from deltavlm.geo.sinks import FeatureSink, open_sink
from deltavlm.messages import pluralize
from deltavlm.pipeline.changes import MASK_PIXEL_TAG, MASK_STYLE, PROBABILITY_STYLE, MaskMosaic, vectorize
from deltavlm.pipeline.engine import Engine
from deltavlm.pipeline.evidence import mask_model
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.store import Journal
from deltavlm.pipeline.outputs import OutputFiles, layers_of_job
from deltavlm.pipeline.pair_record import PairRecord, PairResult
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import provenance
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.scale import Scale
from deltavlm.pipeline.schema import CHANGES, with_pair_columns
from deltavlm.pipeline.writer import OutputCRS, ResultWriter, common_crs

__all__ = ["Output", "warn_unplaced", "write_layers"]

logger = logging.getLogger(__name__)

_MANY_CHIPS = 2_000  # from this many chips on, making polygons takes long enough for a message


Notify = Callable[[str], None]  # of messages for the user


@dataclass(frozen=True)
class Output:
    """Output that is being made. `opened` is the reader of its only pair, if it has only one."""

    job: AnalyzeJob
    files: OutputFiles
    engine: Engine
    result: RunResult
    opened: PairReader | None

    @property
    def pairs(self) -> list[PairResult]:
        """Results of those of its pairs that the run has come to."""
        ids = (pair.id for pair in self.job.pairs.pairs)
        return [self.result.pairs[name] for name in ids if name in self.result.pairs]

    @property
    def records(self) -> list[PairRecord]:
        return [pair.record for pair in self.pairs if pair.record is not None]

    @cached_property
    def provenance(self) -> dict[str, object]:
        inputs = None if self.opened is None else self.opened.provenance()
        return provenance(self.job, self.engine.model, inputs)

    def writer(self, sink: FeatureSink, crs: OutputCRS) -> ResultWriter:
        job, model = self.job, self.engine.model
        return ResultWriter(sink, job.questions, model.label, crs, job.output.changes.threshold)


def write_layers(output: Output, journal: Journal, notify: Notify, *, may_replace: bool) -> None:
    """Write all layers of an output, and the files next to it, which may be replaced if `may_replace`.

    Raises: OutputError or WriteError.
    """
    job, opened, path = output.job, output.opened, output.files.path
    assert path is not None
    if opened is not None:
        crs = OutputCRS(opened.geobox.crs, untransformed=True)
    else:
        crs = OutputCRS(common_crs(output.records))
    with open_sink(
        path,
        layers_of_job(job),
        crs.crs,
        output.provenance,
        overwrite=job.output.may_replace,
        only_layer=job.output.layer,
    ) as sink:
        writer = output.writer(sink, crs)
        writer.write_chips(journal.results(), output.result.pairs)
        if not job.one_pair_per_output:
            writer.write_pairs(output.pairs)
        if job.options.masks:
            polygons = _write_changes(output, journal, writer, notify, may_replace=may_replace)
            output.result.summary.polygons += polygons
    output.result.totals += writer.totals.totals
    several = len({each.crs for each in output.records}) > 1
    if several and path.suffix.lower() in (".gpkg", ".fgb", ".parquet"):
        notify("the pairs have several CRSs, so the output is in longitude and latitude (EPSG:4326)")
    warn_unplaced(crs)


def _write_changes(
    output: Output, journal: Journal, writer: ResultWriter, notify: Notify, *, may_replace: bool
) -> int:
    """Write polygons into the output or a file of their own, and the rasters; return the number of polygons.

    All files are complete before any gets its name, and the journal notes that first: a run that is killed
    there can be resumed.

    Raises: OutputError or WriteError.
    """
    options, files, count = output.job.output, output.files, 0
    with ExitStack() as stack:
        mask, probability = _open_rasters(output, stack)
        if files.polygons is not None:
            layer = CHANGES if output.job.is_single else with_pair_columns(CHANGES)
            sink = open_sink(
                files.polygons, (layer,), writer.crs.crs, output.provenance, overwrite=may_replace
            )
            writer = replace(writer, sink=stack.enter_context(sink))
        if options.polygons:
            writer.totals.add_polygons((), writer.crs.crs)  # an output without any polygon has some too
        for pair in output.pairs:
            if pair.record is None:
                continue
            mosaic = _mosaic(output, journal, pair.pair, pair.record)
            if len(mosaic.chips) > _MANY_CHIPS:
                notify(f"merging the masks of {pluralize(len(mosaic.chips), 'chip')}")
            features = vectorize(
                mosaic, options.changes, polygons=options.polygons, mask=mask, probability=probability
            )
            if options.polygons:
                writer.write_changes(pair.pair, pair.record, features)
            count += len(features)
            if probability is not None:
                probability.tag(MASK_PIXEL_TAG, mosaic.mask_pixel_px)
        rasters = [raster for raster in (mask, probability) if raster is not None]
        for raster in rasters:
            raster.finish()
        if files.by_name():
            journal.file.commit(files.by_name().values())
        for raster in rasters:
            raster.publish(may_replace)
    return count


def _open_rasters(output: Output, stack: ExitStack) -> tuple[Cog | None, Cog | None]:
    """Rasters of classes and of probabilities, where they are requested."""
    files, opened = output.files, output.opened
    if opened is None:
        return None, None
    tags = {"deltavlm": json.dumps(output.provenance, ensure_ascii=False)}
    mask, probability = (
        None if path is None else stack.enter_context(open_cog(path, opened.geobox, style, tags))
        for path, style in ((files.mask, MASK_STYLE), (files.probability, PROBABILITY_STYLE))
    )
    return mask, probability


def _mosaic(output: Output, journal: Journal, pair: Pair, record: PairRecord) -> MaskMosaic:
    """Masks of the chips of a pair on its pixel grid."""
    options, opened = output.job.options, output.opened
    if opened is not None:
        grid, geobox = opened.chips(*options.grid), opened.geobox
    else:
        grid, geobox = record.chip_grid(*options.grid), record.geobox
    model = mask_model(output.engine.model)
    far = Scale.of(record.gsd_m, model, options.chip_px).is_far and not options.any_scale
    change_class = "other" if far else None
    return MaskMosaic(grid, geobox, journal.lookup(pair), journal.file.read_blob, change_class=change_class)


def warn_unplaced(crs: OutputCRS) -> None:
    """Log the pairs whose rows have no polygon, because the CRS of the output cannot express it."""
    if crs.unplaced:
        logger.warning(
            "%s, such as %s, cannot be transformed to the CRS of the output, so their rows have no polygon; "
            "give them a CRS like the others', or write one output for each pair, with a folder as `output`",
            pluralize(len(crs.unplaced), "pair"),
            min(crs.unplaced),
        )
