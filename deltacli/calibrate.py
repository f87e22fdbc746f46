"""`deltavlm calibrate`: fit threshold and scale of the score of change to your own chips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, parsing
from deltacli.analyze_flags import RunFlags
from deltacli.console import console
from deltacli.flag_groups import (
    ChipFlags,
    CommonFlags,
    ModelFlags,
    OutputFlags,
    RasterFlags,
    given_flags,
    grouped,
)
from deltacli.options import OUTPUT, flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.pipeline.calibrate import ScoredChips
    from deltavlm.pipeline.pairs import PairList

LABELS = "Labels"  # panel of the help


@grouped
def calibrate(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Outputs of deltavlm analyze with verdicts, or folders of them; or lists of pairs, as of "
            "analyze --pairs, with a column changed (yes or no).",
        ),
    ],
    output: Annotated[
        Path,
        flag("--output", "-o", panel=OUTPUT, metavar="FILE.json", help="Calibration, for --calibration."),
    ] = Path("calibration.json"),
    overwrite: options.Overwrite = False,
    review: Annotated[
        Path | None,
        flag(
            "--review",
            panel=LABELS,
            metavar="FILE",
            show_default="the columns of SOURCE",
            help="Verdicts on the chips of SOURCE, as the page of report --review downloads them.",
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        flag(
            "--false-alarms",
            panel=LABELS,
            metavar="SHARE",
            min=0,
            max=1,
            help="Threshold that this share of the unchanged chips reaches, such as 0.05. Without labels all "
            "chips are taken as unchanged.",
        ),
    ] = None,
    *,
    model: ModelFlags,
    batch_size: options.BatchSize = "auto",
    chips: ChipFlags,
    rasters: RasterFlags,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Fit threshold and scale of the score of change to your own chips, for analyze --calibration.

    Of outputs the stored scores are used. About lists of pairs the model is asked, chip by chip, with the
    flags of analyze; the label of a pair is that of all its chips.
    """
    from deltavlm.geo.output_files import check_output
    from deltavlm.model.calibration import write_calibration
    from deltavlm.pipeline.calibrate import ScoredChips, check_labels, fit_calibration
    from deltavlm.pipeline.outputs_reader import output_paths_in
    from deltavlm.pipeline.pair_lists import is_pair_list, read_pairs

    lists = [path for path in sources if is_pair_list(path)]
    outputs = output_paths_in([path for path in sources if path not in lists])
    read = {"SOURCE": [*lists, *outputs], "--review": review, "--config": common.config}
    parsing.check_files([("-o", output)], read)
    check_output(output, overwrite, (".json",))
    flags = RunFlags(
        out=OutputFlags(),
        model=model,
        chips=chips,
        rasters=rasters,
        cascade=False,
        batch_size=batch_size,
        json_summary=False,
    )
    if review is not None and lists:
        raise ConfigError(f"--review: is of an output, and {lists[0]} is a list of pairs; give the output")
    _check_no_list_flags(flags, lists)
    scored = ScoredChips.of_outputs(outputs, review) if outputs else []
    pair_lists = [read_pairs(path, labels=True) for path in lists]
    if pair_lists:
        labels = [label for source in scored for label in source.labels]
        labels += [pair.changed for pairs in pair_lists for pair in pairs.pairs]
        check_labels(labels, false_alarms, str(sources[0]))
        scored += _ask(flags, pair_lists)
    fit = fit_calibration(scored, false_alarms=false_alarms)
    write_calibration(output, fit.calibration)
    for line in fit.lines():
        console.info(line)
    for warning in fit.warnings():
        console.warning(warning)
    console.info(f"calibration {output}; use it by deltavlm analyze --calibration {output}")
    if json_summary:
        typer.echo(json.dumps({"output": str(output), **fit.as_json()}, ensure_ascii=False))


def _ask(flags: RunFlags, lists: list[PairList]) -> list[ScoredChips]:
    """Scores of the chips of lists of pairs."""
    from deltacli.summary import ProgressPrinter
    from deltavlm.pipeline.calibrate import ScoredChips
    from deltavlm.tasks.questions import QuestionSpec

    flags.check("-", many=True)
    jobs = [flags.job(pairs, [QuestionSpec("change", "change")], "-") for pairs in lists]
    for job in jobs:
        flags.check_model(job)
    scored = []
    with flags.engine.start(flags.model, flags.rasters) as engine:
        for job in jobs:
            with ProgressPrinter(job) as progress:
                scored.append(ScoredChips.of_pairs(job, engine, progress))
    return scored


def _check_no_list_flags(flags: RunFlags, lists: list[Path]) -> None:
    """Raises: ConfigError for a flag that has an effect only on lists of pairs, where there is none."""
    names = given_flags(flags.model, flags.chips, flags.rasters)
    names += ["--batch-size"] * (flags.batch_size != "auto")
    if names and not lists:
        raise ConfigError(
            f"{names[0]} is for lists of pairs, and stored scores are used as they are; leave it out"
        )
