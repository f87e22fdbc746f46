"""`deltavlm analyze`: ask the model about each chip of a pair and write the answers as a map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, parsing
from deltacli.analyze_flags import DateFlags, EngineFlags, RunFlags, ShowFlags
from deltacli.console import console
from deltacli.dry_run import print_dry_run
from deltacli.flag_groups import (
    CalibratedModelFlags,
    ChipFlags,
    CommonFlags,
    OutputFlags,
    RasterFlags,
    grouped,
)
from deltacli.mask_flags import MaskFlags
from deltacli.metrics import run_metrics
from deltacli.options import MODEL, flag
from deltacli.report import write_report
from deltacli.summary import ProgressPrinter, print_summary, show_thumbnails, summary_dict
from deltavlm.config import shipped_config
from deltavlm.errors import DeltaVLMError, InputError, PartialFailure, WriteError
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.files import NamedPath
    from deltavlm.pipeline.job import AnalyzeJob
    from deltavlm.pipeline.pairs import PairList
    from deltavlm.tasks.questions import QuestionSpec

PAIRS = "Many pairs"  # panel of the help
_LISTED = 10  # unmatched files that are named


@dataclass(frozen=True, kw_only=True)
class PairFlags:
    """Many pairs instead of one."""

    pairs: Annotated[
        str | None,
        flag(
            "--pairs",
            panel=PAIRS,
            metavar="FILE|-",
            help="List of pairs as CSV, JSON lines or STAC items: before, after; optionally id, date, "
            "before_date, aoi. One output for all, or with -o FOLDER/ one per pair.",
        ),
    ] = None
    before_dir: Annotated[
        Path | None,
        flag("--before-dir", panel=PAIRS, metavar="FOLDER", help="Folder of earlier images."),
    ] = None
    after_dir: Annotated[
        Path | None,
        flag("--after-dir", panel=PAIRS, metavar="FOLDER", help="Folder of later images, paired by name."),
    ] = None
    shard: Annotated[
        str | None,
        flag("--shard", panel=PAIRS, metavar="I/N", help="Only shard I of N of the pairs, 1/N to N/N."),
    ] = None

    def check(self, before: str | None, after: str | None) -> None:
        """Raises: BadParameter unless either one pair or many are given."""
        folders = (self.before_dir, self.after_dir)
        if self.pairs is None and folders == (None, None):
            if before is None:
                raise typer.BadParameter(
                    "give BEFORE and AFTER, or many pairs by --pairs FILE, or by --before-dir and --after-dir"
                )
            if after is None:
                raise typer.BadParameter(f"only one image, {before}; give AFTER too")
            if self.shard is not None:
                raise typer.BadParameter("--shard is for many pairs, and this is one; leave it out")
            return
        if before is not None:
            raise typer.BadParameter(
                f"{before}: cannot be combined with {'--pairs' if self.pairs else '--before-dir'}; put the "
                "pair into the list, or leave one of the two out"
            )
        if self.pairs is not None and folders != (None, None):
            raise typer.BadParameter("--pairs cannot be combined with --before-dir and --after-dir")
        if self.pairs is None and None in folders:
            raise typer.BadParameter("--before-dir and --after-dir go together; give both")

    @property
    def default_target(self) -> str:
        """Output of many pairs, where none is named."""
        source = str(self.after_dir or ("pairs" if self.pairs == "-" else self.pairs))
        index, count = parsing.parse_shard(self.shard)
        ending = f"_changes_{index}of{count}.gpkg" if count > 1 else "_changes.gpkg"
        return parsing.default_output(str(Path(source).absolute()), ending)

    def read(self, *, as_file_names: bool) -> PairList:
        """Pairs of the list or the two folders, those of the shard only; prints notes about the list.

        `as_file_names` checks that the ids of the whole list can be names of output files.

        Raises: InputError naming file, line and column.
        """
        from deltavlm.pipeline.outputs import FOLDER_SUFFIX
        from deltavlm.pipeline.pair_lists import parse_pairs, read_pairs
        from deltavlm.pipeline.pairs import file_names, pairs_of_folders, shard

        index, count = parsing.parse_shard(self.shard)
        if self.before_dir is not None and self.after_dir is not None:
            pairs = pairs_of_folders(self.before_dir, self.after_dir)
        elif self.pairs == "-":
            pairs = parse_pairs(parsing.read_stdin(), "stdin", Path())
        else:
            pairs = read_pairs(Path(self.pairs or ""))
        self._print_notes(pairs)
        if as_file_names:
            file_names(pairs.pairs, FOLDER_SUFFIX)
        selected = shard(pairs.pairs, index, count)
        total = pluralize(len(pairs.pairs), "pair")
        if not selected:
            raise InputError(
                f"--shard {self.shard}: {pairs.name} has {total}, so this shard is empty; use fewer shards"
            )
        if count > 1:
            console.info(f"shard {index} of {count}: {len(selected)} of {total}")
        return replace(pairs, pairs=selected)

    def _print_notes(self, pairs: PairList) -> None:
        for note in pairs.notes:
            console.info(note)
        for folder, names in zip((self.before_dir, self.after_dir), pairs.unmatched, strict=True):
            if names:
                remainder = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                console.warning(
                    f"{pluralize(len(names), 'image')} in {folder} without a partner of the same name: "
                    f"{', '.join(Path(name).name for name in names[:_LISTED])}{remainder}"
                )


@grouped
def analyze(
    before: Annotated[
        str | None,
        typer.Argument(metavar="BEFORE", help="The earlier image: path, https://, s3:// or /vsi..."),
    ] = None,
    after: Annotated[
        str | None, typer.Argument(metavar="AFTER", help="The later image of the same place.")
    ] = None,
    *,
    many: PairFlags,
    out: OutputFlags,
    show: ShowFlags,
    questions: Annotated[
        Path | None,
        flag(
            *("--questions", "-Q"),
            panel=MODEL,
            metavar="FILE",
            help="YAML list of questions, instead of the built-in caption, change, count and location.",
        ),
    ] = None,
    ask: Annotated[
        str | None,
        flag("--ask", panel=MODEL, metavar="NAME,NAME", help="Only these questions of the set."),
    ] = None,
    model: CalibratedModelFlags,
    engine: EngineFlags,
    masks: MaskFlags,
    cascade: options.Cascade = False,
    threshold: options.Threshold = None,
    batch_size: options.BatchSize = "auto",
    chips: ChipFlags,
    rasters: RasterFlags,
    dates: DateFlags,
    common: CommonFlags,
    metrics: options.Metrics = None,
    json_summary: options.Json = False,
) -> None:
    """Ask chip by chip what changed from BEFORE to AFTER, and write the answers as a map.

    Without -o the result is <AFTER's stem>_changes.gpkg in the current folder. Many pairs, by a list or from
    two folders, go into one output, or with -o FOLDER/ into one each.
    """
    from deltavlm.tasks.questions import load_questions, pick_questions

    specs = load_questions(questions or shipped_config("questions.yaml"))
    if ask is not None:
        specs = pick_questions(specs, [name.strip() for name in ask.split(",")])
    flags = RunFlags(
        out=out,
        model=model,
        chips=chips,
        rasters=rasters,
        cascade=cascade,
        threshold=threshold,
        batch_size=batch_size,
        json_summary=json_summary,
        engine=engine,
        show=show,
        masks=masks,
        dates=dates,
    )
    many.check(before, after)
    read = parsing.named_files({"-Q": questions, "--config": common.config, "--pairs": many.pairs})
    if before is not None and after is not None:
        analyze_pair(before, after, specs, flags, read)
        return
    from deltavlm.files import names_folder

    target = out.output or many.default_target
    run_metrics.set_output(target, dry_run=out.dry_run)
    flags.check(target, many=True)
    pairs = many.read(as_file_names=target != "-" and names_folder(target))
    analyze_job(flags.job(pairs, specs, target), flags, read)


def analyze_pair(
    before: str, after: str, questions: Sequence[QuestionSpec], flags: RunFlags, read: Sequence[NamedPath]
) -> None:
    """Run over one pair; `read` are other files that were read. `ask --all-chips` calls this too."""
    before, after = (
        parsing.check_location(name, text) for name, text in (("BEFORE", before), ("AFTER", after))
    )
    target = flags.out.output or parsing.default_output(after, "_changes.gpkg")
    run_metrics.set_output(target, dry_run=flags.out.dry_run)
    flags.check(target, many=False)
    from deltavlm.pipeline.pairs import PairList

    dates = flags.dates.before_date, flags.dates.after_date
    analyze_job(flags.job(PairList.single(before, after, *dates), questions, target), flags, read)


def analyze_job(job: AnalyzeJob, flags: RunFlags, read: Sequence[NamedPath]) -> None:
    """Run a job, or show what it would do, and print its summary; `read` are other files that were read.

    Raises: PartialFailure if pairs or chips failed.
    """
    from deltavlm.pipeline.outputs import check_outputs, files_of_job
    from deltavlm.pipeline.plan import plan_run
    from deltavlm.pipeline.run import RunHooks, run

    reports = parsing.named_files({"--html": flags.show.html, "--quicklook": flags.show.quicklook})
    read = [*read, *flags.model.files(), *parsing.standard_streams()]
    check_outputs(job, also_written=reports, also_read=read)
    flags.show.check(job)
    written, read_by_job = files_of_job(job)
    run_metrics.start([*written, *reports], [*read, *read_by_job])
    spec = flags.check_model(job)
    if flags.has_automatic_overlap and job.options.overlap_px:
        console.info(
            f"chips overlap by {job.options.overlap_px} px, as their masks are merged, so there are more"
            " of them (--overlap 0: as many as without masks)"
        )
    if flags.out.dry_run:
        plans = plan_run(job, spec, flags.model.read_evidence_spec())
        print_dry_run(job, plans, flags, as_json=flags.json_summary)
        failed = [plan.reason for plan in plans if plan.reason]
        if failed:
            raise PartialFailure(
                f"{len(failed)} of {pluralize(len(plans), 'pair')} cannot be opened, the first because: "
                f"{failed[0]}"
            )
        return
    with ProgressPrinter(job) as progress:
        engine = flags.engine.start(flags.model, flags.rasters, any_scale=job.options.any_scale)
        result = run(job, engine, RunHooks(progress, console.info))
    print_summary(job, result, top=flags.show.top)
    show_thumbnails(job, result.most_changed[: flags.show.top], flags.show.thumbnails)
    if flags.json_summary:
        typer.echo(json.dumps(summary_dict(job, result), ensure_ascii=False))
    if flags.show.html or flags.show.quicklook:
        _write_reports(job, flags)
    result.raise_if_partial(_retry_hint(job))


def _write_reports(job: AnalyzeJob, flags: RunFlags) -> None:
    """Write the report and the quicklook of a finished output.

    Raises: WriteError that names the output, whatever went wrong here.
    """
    from deltavlm.report.build import open_report
    from deltavlm.report.images import ImageOptions

    path, show, pair = job.output.path, flags.show, job.pairs.pairs[0]
    assert path is not None  # checked by `ShowFlags.check`
    before, after = (pair.before, pair.after) if job.is_single else (None, None)
    images = ImageOptions(before=before, after=after, allow_vrt=job.read.allow_vrt, allow_remote=True)
    try:
        write_report(open_report(path, images), show.html, show.quicklook, overwrite=job.output.may_replace)
    except (DeltaVLMError, OSError, MemoryError) as error:
        raise WriteError(f"{str(error) or 'out of memory'}; the answers are safe in {path}") from error


def _retry_hint(job: AnalyzeJob) -> str:
    if job.output.path is None:
        return ""
    if job.output.per_pair:
        return "; the same command tries failed pairs again, --retry-failed failed chips too"
    return f"; --retry-failed tries {'them' if job.is_single else 'these'} again"
