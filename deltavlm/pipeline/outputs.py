"""Output files of a job: the output, and the rasters and polygons next to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from deltavlm.errors import ConfigError, OutputError
from deltavlm.files import NamedPath, check_distinct_files, lock, lock_path
from deltavlm.geo.aoi import aoi_file
from deltavlm.geo.cog import check_cog
from deltavlm.geo.features import Layer
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.location import local_file
from deltavlm.geo.output_files import check_output, files_of_output
from deltavlm.geo.pair import PairReader
from deltavlm.geo.sinks import check_can_hold, is_in_lonlat
from deltavlm.pipeline.job import AnalyzeJob, OutputOptions
from deltavlm.pipeline.journal.file import files_in_commit, journal_files, journal_path
from deltavlm.pipeline.journal.store import check_journal
from deltavlm.pipeline.pairs import Pair, file_names
from deltavlm.pipeline.schema import output_layers

__all__ = [
    "OutputFiles",
    "check_format",
    "check_format_of_list",
    "check_outputs",
    "files_of_job",
    "is_complete",
    "layers_of_job",
    "output_paths",
    "polygons_path",
]

FOLDER_SUFFIX = ".gpkg"  # of the outputs in a folder
_PARTS = 8  # along the longer side of a grid, of which one at least must have a place in the output


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """Output file and the files written next to it; no path means standard output."""

    path: Path | None
    mask: Path | None = None
    probability: Path | None = None
    polygons: Path | None = None  # a file of their own, where the output has room for one layer only

    @classmethod
    def of(cls, options: OutputOptions) -> OutputFiles:
        """Files of one output."""
        path, layer = options.path, options.layer
        polygons = None
        has_one_layer = path is not None and (path.suffix.lower() != ".gpkg" or layer is not None)
        if path is not None and has_one_layer and options.polygons and layer != "changes":
            polygons = polygons_path(path)
        return cls(path, options.mask, options.probability, polygons)

    def by_name(self) -> dict[str, Path]:
        """Files next to the output that there are, by their kind."""
        named = {"mask": self.mask, "probability": self.probability, "polygons": self.polygons}
        return {name: path for name, path in named.items() if path is not None}

    def named(self) -> list[NamedPath]:
        """The output and the files next to it, with their names in messages."""
        output = [] if self.path is None else [("output", self.path)]
        return [*output, *self.by_name().items()]

    def written(self) -> list[NamedPath]:
        """Every file that a run into this output writes, for a while at least."""
        files: list[NamedPath] = []
        for name, path in self.named():
            files += files_of_output(f"the {name}", path)
            files.append((f"the lock of the {name}", lock_path(path)))
        if self.path is not None:
            journal, masks = journal_files(self.path)
            files += [("the journal of the run", journal), ("the masks of the journal", masks)]
        return files

    @property
    def interrupted_renames(self) -> set[str]:
        """Files next to the output that a killed run had begun to rename; read before it is resumed."""
        return set() if self.path is None else files_in_commit(journal_path(self.path))

    def check(self, *, may_replace: bool) -> None:
        """Check before any work that all files can be written; changes nothing.

        Raises: OutputError or ConfigError.
        """
        if self.path is not None:
            check_output(self.path, may_replace)
        interrupted_renames = self.interrupted_renames
        for name, path in self.by_name().items():
            replace = may_replace or str(path.absolute()) in interrupted_renames
            if name == "polygons":
                check_output(path, replace)
            else:
                check_cog(path, replace)

    def check_images(self, reader: PairReader) -> None:
        """Check that no file is written over one that GDAL reads for the images, such as a source of a VRT.

        Raises: OutputError.
        """
        sources = [view.source for view in reader.views if view.source.server is None]  # else requests
        read = [Path(file) for source in sources for file in source.dataset.files]
        check_distinct_files(self.written(), [("a file of the images", path) for path in read])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks of all files. Raises: OutputError if another process has one."""
        with ExitStack() as stack:
            for path in (self.path, *self.by_name().values()):
                stack.enter_context(nullcontext() if path is None else lock(path))
            yield


def polygons_path(path: Path) -> Path:
    """File of polygons beside an output of one layer: `out.geojson` -> `out.changes.geojson`."""
    return path.with_name(f"{path.stem}.changes{path.suffix}")


def output_paths(job: AnalyzeJob) -> dict[str, Path]:
    """Output file of each pair by its id, in the folder of a job with an output for each pair.

    Raises: InputError for an id that is no file name.
    """
    assert job.output.path is not None
    return {name: job.output.path / file for name, file in file_names(job.pairs.pairs, FOLDER_SUFFIX).items()}


def is_complete(path: Path, options: OutputOptions) -> bool:
    """True if an output in a folder exists and is kept; `retry_failed` replaces those with failed chips."""
    replace = options.overwrite or (options.retry_failed and journal_path(path).exists())
    return path.exists() and not replace


def layers_of_job(job: AnalyzeJob) -> tuple[Layer, ...]:
    """Layers of an output of a job, `chips` first."""
    return output_layers(
        job.questions,
        changes=job.output.polygons and OutputFiles.of(job.output).polygons is None,
        pair_columns=not job.is_single,
        pairs=not job.one_pair_per_output,
        evidence=job.evidence,
    )


def check_format(job: AnalyzeJob, geobox: GeoBox) -> None:
    """Check before any work that the output of a job can hold chips of this grid. Raises: OutputError."""
    parts = ChipGrid(geobox, max(1, max(geobox.width, geobox.height) // _PARTS))
    polygons = [part.footprint for part in islice(parts, _PARTS**2)]
    options = job.output
    check_can_hold(options.path, layers_of_job(job), geobox.crs, polygons, only_layer=options.layer)


def check_format_of_list(job: AnalyzeJob, geoboxes: Iterable[tuple[Pair, GeoBox]]) -> None:
    """Check before any work that the output of a list can hold the chips of these pairs.

    Other formats than GeoJSON have the CRS of the pairs, or one that all can be transformed to, so the first
    pair tells.

    Raises: OutputError that names the pair.
    """
    for pair, geobox in geoboxes:
        try:
            check_format(job, geobox)
        except OutputError as error:
            raise OutputError(f"pair {pair.id}: {error}") from error
        if not is_in_lonlat(job.output.path):
            return


def files_of_job(job: AnalyzeJob) -> tuple[list[NamedPath], list[NamedPath]]:
    """Files that a job writes, and local files that it reads; of a folder the outputs and rasters alone.

    Raises: InputError for an id that is no file name.
    """
    if job.output.per_pair:
        files = (OutputFiles.of(job.output.for_pair(path)) for path in output_paths(job).values())
        written = [(f"an {name}", path) for each in files for name, path in each.named()]
    else:
        written = OutputFiles.of(job.output).written()
    read: list[NamedPath] = []
    for pair in job.pairs.pairs:
        of_pair = f" of pair {pair.id}" if pair.id else ""
        for date, locations in zip(("earlier", "later"), pair.locations, strict=True):
            names = f"the {date} image{of_pair}", f"the cloud mask of the {date} image{of_pair}"
            read += [(name, local_file(each)) for name, each in zip(names, locations, strict=False)]
        if isinstance(pair.aoi, Path):
            read.append((f"the area of interest{of_pair}", aoi_file(pair.aoi)))
    if isinstance(job.read.aoi, Path):
        read.append(("the area of interest", aoi_file(job.read.aoi)))
    return written, read


def check_outputs(
    job: AnalyzeJob, *, also_written: Sequence[NamedPath] = (), also_read: Sequence[NamedPath] = ()
) -> None:
    """Check before any work that the output of a job can be written, that it is no file which the run reads
    or writes besides, and that there is something to retry.

    The outputs of a folder are checked one by one, when it is their turn. `also_written` and `also_read` are
    files that the job does not know of, such as a report. Raises: OutputError or ConfigError.
    """
    options = job.output
    if options.per_pair:
        for folder in (options.path, options.mask, options.probability):
            if folder is not None and not folder.absolute().parent.is_dir():
                raise OutputError(f"{folder}: there is no folder {folder.parent}; create it first")
    else:
        OutputFiles.of(options).check(may_replace=options.may_replace)
    written, read = files_of_job(job)
    check_distinct_files([*written, *also_written], [*read, *also_read])
    if options.per_pair:
        return
    if options.path is not None and options.resume:
        check_journal(journal_path(options.path), job)
    if options.retry_failed and (options.path is None or not journal_path(options.path).exists()):
        raise ConfigError(
            f"`retry_failed=True`: there is no journal of a run into {options.path or '-'} with chips "
            "that failed"
        )
