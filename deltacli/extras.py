"""What `analyze` writes beside its output: rasters of change, and polygons where the output has one layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltacli.console import console, pluralize
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltacli.wanted import Wanted
    from deltavlm.geo.sinks import FeatureSink
    from deltavlm.pipeline.changes import Drawing
    from deltavlm.pipeline.lines import Lines
    from deltavlm.pipeline.many import Outcome
    from deltavlm.pipeline.pair_journal import PairJournal
    from deltavlm.pipeline.pair_layers import Ground

_MANY_CHIPS = 2_000  # with more, drawing takes long enough to be told


@dataclass(frozen=True, slots=True)
class Extras:
    """What is written of a pair beside its output."""

    path: Path | None  # the output
    mask: Path | None = None
    probability: Path | None = None
    polygons: Path | None = None  # a file of their own, where the output holds one layer

    @property
    def paths(self) -> list[Path]:
        """Those that there are."""
        return [one for one in (self.mask, self.probability, self.polygons) if one is not None]

    @property
    def told(self) -> dict[str, str]:
        """Those that there are, by what they are."""
        named = (("mask", self.mask), ("probability", self.probability), ("polygons", self.polygons))
        return {name: str(path) for name, path in named if path is not None}

    def replaceable(self) -> set[str]:
        """Those that a killed run has given their names already; asked before the journal is gone on with."""
        from deltavlm.pipeline.journal import journal_path
        from deltavlm.pipeline.lines import being_placed

        return set() if self.path is None else being_placed(journal_path(self.path))

    def check(self, overwrite: bool, inputs: Sequence[str]) -> None:
        """Find out before any work whether all can be written. Raises: OutputError or ConfigError."""
        from deltavlm.geo.cog import check_cog
        from deltavlm.geo.sinks import check_output

        taken = self.replaceable()
        for path in self.paths:
            may = overwrite or str(path.absolute()) in taken
            if path == self.polygons:
                check_output(path, may)
            else:
                check_cog(path, may, inputs)
        both = [str(path.resolve()) for path in self.paths]
        if len({*both}) < len(both):
            raise ConfigError(f"{self.mask}: --mask and --probability are one file; name two")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one run at a time writes them. Raises: OutputError."""
        from deltavlm.files import lock

        with ExitStack() as stack:
            for path in self.paths:
                stack.enter_context(lock(path))
            yield


def write_many_changes(
    outcomes: Iterable[Outcome],
    journal: PairJournal,
    cut: tuple[int, int],
    wanted: Wanted,
    extras: Extras,
    sink: FeatureSink,
    ground: Ground,
    record: Mapping[str, object],
    overwrite: bool,
) -> int:
    """Write the polygons of many pairs, each from its own grid, into `sink` or a file of their own; gives
    how many. `cut`: side and overlap of chips, px.

    Raises: OutputError or WriteError.
    """
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.changes import CHANGES, Drawing, draw
    from deltavlm.pipeline.pair_layers import OfPair, with_pair

    count = 0
    with ExitStack() as stack:
        if extras.polygons is not None:
            beside = open_sink(
                extras.polygons, (with_pair(CHANGES),), ground.crs, record, overwrite=overwrite
            )
            sink = stack.enter_context(beside)
        assert journal.lines.sidecar is not None
        for one in outcomes:
            if one.record is None:
                continue
            read, result = journal.lines.sidecar.at, journal.results_of(one.pair)
            drawing = Drawing(one.record.grid(*cut), one.record.pixels, result, read)
            features = draw(drawing, wanted.masks.options())
            OfPair(sink, one.pair, ground.place(one.pair, one.record)).write(CHANGES.name, features)
            count += len(features)
        if extras.paths:
            journal.lines.begin_placing(extras.paths)
    return count


def write_changes(
    drawing: Drawing,
    wanted: Wanted,
    extras: Extras,
    sink: FeatureSink,
    record: Mapping[str, object],
    lines: Lines,
    overwrite: bool,
    of_pair: Callable[[FeatureSink], FeatureSink] = lambda sink: sink,
) -> int:
    """Write the rasters, and the polygons into `sink` or a file of their own; gives how many they are.

    All is made before anything gets its name, and the journal's `lines` know of it first: a run that is
    killed there can be gone on with.

    Raises: OutputError or WriteError.
    """
    from deltavlm.geo.cog import open_cog
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.changes import CHANGES, MASK, PROBABILITY, draw

    grid, tags = drawing.grid, {"deltavlm": json.dumps(record, ensure_ascii=False)}
    with ExitStack() as stack:
        cogs = [
            None if path is None else stack.enter_context(open_cog(path, grid, look, tags))
            for path, look in ((extras.mask, MASK), (extras.probability, PROBABILITY))
        ]
        if extras.polygons is not None:
            beside = open_sink(extras.polygons, (CHANGES,), grid.crs, record, overwrite=overwrite)
            sink = stack.enter_context(beside)
        if len(drawing.chips) > _MANY_CHIPS:
            console.info(f"drawing what changed, from the masks of {pluralize(len(drawing.chips), 'chip')}")
        polygons, (mask, probability) = wanted.masks.polygons, cogs
        features = draw(
            drawing, wanted.masks.options(), polygons=polygons, mask=mask, probability=probability
        )
        if polygons:
            of_pair(sink).write(CHANGES.name, features)
        made = [cog for cog in cogs if cog is not None]
        for cog in made:
            cog.finish()
        if extras.paths:
            lines.begin_placing(extras.paths)
        for cog in made:
            cog.publish(overwrite)
    return len(features)
