"""One pair, from questions to a whole output: what is left to ask is asked, the journal becomes the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from deltacli.console import console, pluralize
from deltacli.extras import Extras, write_changes
from deltacli.wanted import Wanted

if TYPE_CHECKING:
    from deltavlm.geo.pair import PairReader
    from deltavlm.geo.sinks import FeatureSink
    from deltavlm.pipeline.analyze import AnalyzeOptions, Engine, Progress, Summary
    from deltavlm.pipeline.pairs import Pair

_WRITTEN_AT_ONCE = 1024  # chips, from the journal to the output


@contextmanager
def kept(answered: Sized, path: Path) -> Iterator[None]:
    """Whatever ends a run inside says how many chips its journal keeps."""
    try:
        yield
    except BaseException:
        if len(answered):
            console.info(f"{pluralize(len(answered), 'chip')} kept in {path}; the same command goes on")
        raise


def answered_pair(
    reader: PairReader,
    engine: Engine,
    wanted: Wanted,
    run: AnalyzeOptions,
    path: Path | None,
    watch: Callable[[Progress], None],
    pair: Pair | None = None,
    extras: Extras | None = None,
) -> Summary:
    """Ask what is left to ask, and write the output: to stdout as answers come, to a file at the end.

    `pair`: what a list calls it, where it is one of many that get an output each; `extras`: what is written
    beside the output.
    """
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.analyze import analyze
    from deltavlm.pipeline.changes import CHANGES, Drawing
    from deltavlm.pipeline.journal import journal_path, open_journal
    from deltavlm.pipeline.layers import LOCATIONS, Origin, Stream, chips_layer, write_results
    from deltavlm.pipeline.pair_layers import OfPair, with_pair
    from deltavlm.pipeline.provenance import provenance, settings

    specs, out, model = wanted.specs, wanted.out, engine.model
    grid = reader.chips(run.chip_px, run.overlap_px)
    origin, layers = Origin.of(reader, model), [chips_layer(specs), LOCATIONS]
    extras = extras or Extras(path)
    if wanted.masks.polygons and extras.polygons is None:
        layers.append(CHANGES)
    record = provenance(reader, model, specs, run) | wanted.masks.record()
    if pair is not None:
        layers = [with_pair(layer) for layer in layers]

    def of_pair(sink: FeatureSink) -> FeatureSink:
        return sink if pair is None else OfPair(sink, pair)

    if path is None:
        with open_sink(path, layers, reader.geobox.crs, record, only_layer=out.layer) as sink:
            return analyze(reader, engine, specs, Stream(of_pair(sink), specs, origin), run, watch)
    taken = extras.replaceable()
    with open_journal(
        journal_path(path),
        settings(reader, model, run),
        specs,
        grid,
        afresh=not out.resume,
        retry=out.retry_failed,
        limit=run.limit,
        masks=run.masks,
    ) as journal:
        known = sum(1 for _ in journal.earlier())
        if known:
            total = min(len(grid), run.limit or len(grid))
            console.info(f"{pluralize(known, 'chip')} of {total} answered already; going on")
        with kept(journal, journal.path):
            size = min(run.batch_size, journal.batch_size or 4096)
            summary = analyze(reader, engine, specs, journal, replace(run, batch_size=size), watch)
            with (
                summary.stages.timed("write"),
                open_sink(
                    path, layers, reader.geobox.crs, record, overwrite=wanted.replaced, only_layer=out.layer
                ) as sink,
            ):
                results = journal.results()
                while part := list(islice(results, _WRITTEN_AT_ONCE)):
                    write_results(of_pair(sink), part, specs, origin)
                if journal.lines.sidecar is not None:
                    summary.polygons = write_changes(
                        Drawing(grid, reader.geobox, journal.result, journal.lines.sidecar.at),
                        wanted,
                        extras,
                        sink,
                        record,
                        journal.lines,
                        overwrite=wanted.replaced or bool(taken),
                        of_pair=of_pair,
                    )
        journal.finish()
    return summary
