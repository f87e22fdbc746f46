"""`deltavlm data build`: build a question set from class masks, and captions where there are some."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options, parsing
from deltacli.console import console, print_problems
from deltacli.flag_groups import CommonFlags, given_flags, grouped
from deltacli.options import OUTPUT, flag
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.data.build import BuildResult
    from deltavlm.data.endpoint import QuestionWriter
    from deltavlm.data.examples import Problem
    from deltavlm.data.layouts import Layout
    from deltavlm.data.masks import ClassMap, MaskRules

RULES, REVIEW, OPEN_QUESTIONS = "Rules", "Review", "Open questions"
KEY = "DELTAVLM_LLM_KEY"


@dataclass(frozen=True, kw_only=True)
class SetFlags:
    """Folder, name and splits of the set."""

    output: Annotated[
        Path, flag("--output", "-o", panel=OUTPUT, metavar="DIR", help="Folder of the set.")
    ] = Path("built")
    name: Annotated[
        str,
        flag("--name", panel=OUTPUT, metavar="NAME", help="Name of the set: files are NAME_SPLIT*.json."),
    ] = "built"
    records: Annotated[
        Literal["changechat-105k", "changechat-87k", "changeimti"],
        flag(
            "--records",
            panel=OUTPUT,
            help="Layout, wording and label rules of the set; changeimti: files in SPLIT_task_data.",
        ),
    ] = "changechat-105k"
    copy_images: Annotated[
        bool, flag("--copy-images", panel=OUTPUT, help="Copy the images into DIR, instead of linking IMAGES.")
    ] = False
    split: Annotated[
        list[str] | None,
        flag(
            "--split",
            panel=OUTPUT,
            metavar="SPLIT",
            show_default="all in IMAGES",
            help="train, val or test; repeatable.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReviewFlags:
    """Reviewed output of `analyze` in place of images and masks."""

    review: Annotated[
        Path | None,
        flag(
            "--review",
            panel=REVIEW,
            metavar="OUT",
            help="Make images and masks of the chips of this output that a person has reviewed, instead of "
            "IMAGES and MASKS.",
        ),
    ] = None
    review_file: Annotated[
        Path | None,
        flag(
            "--review-file",
            panel=REVIEW,
            metavar="FILE",
            show_default="the columns of OUT",
            help="Verdicts on OUT, as the page of report --review downloads them.",
        ),
    ] = None

    def files(self) -> dict[str, Path | None]:
        """Files that are read, by flag."""
        return {"--review": self.review, "--review-file": self.review_file}

    @contextmanager
    def folders(
        self, images: Path | None, masks: Path | None, target: SetFlags
    ) -> Iterator[tuple[Path, Path, SetFlags]]:
        """Folders of images and masks, and the flags of the set; those of a review exist inside the `with`.

        Raises: BadParameter unless either the folders or a review are given.
        """
        if self.review is None:
            if images is None or masks is None:
                raise typer.BadParameter("give IMAGES and MASKS, or a reviewed output by --review")
            if self.review_file is not None:
                raise typer.BadParameter("is for --review; add that", param_hint="--review-file")
            yield images, masks, target
            return
        if images is not None:
            raise typer.BadParameter(f"cannot be combined with IMAGES {images}", param_hint="--review")
        from deltavlm.report.build import open_report
        from deltavlm.report.images import ImageOptions
        from deltavlm.report.review_chips import export_chips

        splits = target.split or ["train"]
        if len(splits) != 1 or splits[0] not in ("train", "val", "test"):
            raise typer.BadParameter("is one of train, val, test for a review", param_hint="--split")
        with tempfile.TemporaryDirectory() as scratch:
            report = open_report(self.review, ImageOptions(allow_remote=True), review=self.review_file)
            exported = export_chips(report, Path(scratch), splits[0])
            left_out = [f"{count} ({reason})" for reason, count in exported.left_out.items()]
            console.info(
                f"{pluralize(exported.written, 'reviewed chip')}"
                f"{'; left out ' + ', '.join(left_out) if left_out else ''}"
            )
            yield Path(scratch), Path(scratch), replace(target, copy_images=True, split=splits)


@dataclass(frozen=True, kw_only=True)
class RuleFlags:
    """Rules that turn masks into counts and cells."""

    connectivity: Annotated[
        Literal["4", "8"],
        flag("--connectivity", panel=RULES, help="8: pixels that touch at a corner are one object."),
    ] = "8"
    min_area: Annotated[
        int, flag("--min-area", panel=RULES, metavar="PX", min=1, help="Ignore smaller objects.")
    ] = 1
    cell_rule: Annotated[
        Literal["any", "share", "centroid"],
        flag(
            "--cell-rule",
            panel=RULES,
            help="Cells that are named: those with any pixel, with a share of pixels, or with a centroid.",
        ),
    ] = "any"
    cell_share: Annotated[
        float,
        flag("--cell-share", panel=RULES, min=0.0, max=1.0, metavar="SHARE", help="For --cell-rule share."),
    ] = 0.01
    classes: Annotated[
        str | None,
        flag(
            "--class-map",
            panel=RULES,
            metavar="CLASS=VALUE,...",
            show_default="LEVIR-MCI's",
            help="For example road=1,building=2 or road=#ffff00; 0 is always background.",
        ),
    ] = None

    def mask_rules(self, records: Layout) -> MaskRules:
        """Options of `measure_mask`. Raises: BadParameter for one beside the rules of a published set."""
        from deltavlm.data.layouts import RULES
        from deltavlm.data.masks import MaskRules

        if RULES[records] != "components":
            flags = given_flags(replace(self, classes=None))
            if flags:
                raise typer.BadParameter(
                    f"does not apply to --records {records}, which has rules of its own", param_hint=flags[0]
                )
            return MaskRules(RULES[records])
        connectivity: Literal[4, 8] = 8 if self.connectivity == "8" else 4
        return MaskRules("components", connectivity, self.min_area, self.cell_rule, self.cell_share)

    def class_map(self) -> ClassMap:
        """Class codes of mask values. Raises: ConfigError."""
        from deltavlm.data.masks import LEVIR_MCI, parse_class_map

        return LEVIR_MCI if self.classes is None else parse_class_map(self.classes)


@dataclass(frozen=True, kw_only=True)
class EndpointFlags:
    """Language model that writes open questions."""

    llm_endpoint: Annotated[
        str | None,
        flag(
            "--llm-endpoint",
            panel=OPEN_QUESTIONS,
            metavar="URL",
            help=f"OpenAI-compatible endpoint, up to /v1, that writes open questions; its key is in {KEY}.",
        ),
    ] = None
    llm_model: Annotated[
        str | None, flag("--llm-model", panel=OPEN_QUESTIONS, metavar="NAME", help="Model of the endpoint.")
    ] = None

    llm_timeout: Annotated[
        float,
        flag(
            "--llm-timeout",
            panel=OPEN_QUESTIONS,
            metavar="S",
            min=1,
            max=3600,
            help="Seconds for one whole reply of the endpoint.",
        ),
    ] = 60.0

    def question_writer(self, log: Path) -> QuestionWriter | None:
        """Writer of open questions; None without an endpoint. Raises: ConfigError, InputError."""
        from deltavlm.data.endpoint import Endpoint, QuestionWriter, ReplyLog
        from deltavlm.errors import ConfigError

        if self.llm_endpoint is None and self.llm_model is None:
            return None
        if self.llm_endpoint is None or self.llm_model is None:
            raise ConfigError("--llm-endpoint and --llm-model belong together; give both")
        endpoint = Endpoint(
            self.llm_endpoint, self.llm_model, os.environ.get(KEY) or None, timeout_s=self.llm_timeout
        )
        writer = QuestionWriter(endpoint, ReplyLog(log))
        if writer.log.replies:
            console.info(f"{pluralize(len(writer.log.replies), 'pair')} answered before, in {log}")
        return writer


@grouped
def build(
    images: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGES", help="Folder of images: SPLIT/A/NAME and SPLIT/B/NAME."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Argument(metavar="MASKS", help="Folder of masks: SPLIT/label/NAME or SPLIT/NAME."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Argument(
            metavar="CAPTIONS", help="LevirCCcaptions.json, or a file like it.", show_default=False
        ),
    ] = None,
    *,
    target: SetFlags,
    reviewed: ReviewFlags,
    rules: RuleFlags,
    endpoint: EndpointFlags,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Build yes/no, counts, places and dialogues from masks of roads and buildings, as in a published set.

    Pairs that cannot be used are reported and left out; the exit code is then 3.
    """
    with reviewed.folders(images, masks, target) as (image_folder, mask_folder, set_flags):
        read = {"CAPTIONS": captions, "--config": common.config, **reviewed.files()}
        flags = _Build(set_flags, rules, endpoint, overwrite, json_summary)
        flags.run(image_folder, mask_folder, captions, read)


@dataclass(frozen=True)
class _Build:
    """Flags of one build."""

    target: SetFlags
    rules: RuleFlags
    endpoint: EndpointFlags
    overwrite: bool
    json_summary: bool

    def run(self, images: Path, masks: Path, captions: Path | None, read: dict[str, Path | None]) -> None:
        """Build the set. Raises: PartialFailure if pairs were left out."""
        from deltavlm.data.build import BuildSources, SetOutput, build_dataset, find_splits
        from deltavlm.data.levircc import read_captions
        from deltavlm.errors import PartialFailure

        target = self.target
        output = SetOutput(
            target.output, images, target.name, target.copy_images, self.overwrite, target.records
        )
        splits = find_splits(images, target.split)
        written = [("-o", path) for path in (*output.files(splits), output.reply_log)]
        parsing.check_files(written, read)
        output.check(splits)
        class_map, rules = self.rules.class_map(), self.rules.mask_rules(target.records)
        sentences, problems = (None, []) if captions is None else read_captions(captions)
        writer = self.endpoint.question_writer(output.reply_log)
        result = build_dataset(
            BuildSources(images, masks, sentences, rules, class_map, target.records),
            target.name,
            splits,
            write_questions=writer,
            count_progress=lambda total: console.count_progress(total, "pairs"),
        )
        problems += result.problems
        output.write(result, splits)
        _print_result(result, output.folder, writer)
        if self.json_summary:
            typer.echo(json.dumps(_summary(result, output.folder, problems)))
        if problems:
            print_problems(problems, "Left out")
            number = pluralize(len(problems), "problem")
            raise PartialFailure(f"{output.folder} is written, with {number}; --json lists all of them")


def _print_result(result: BuildResult, folder: Path, writer: QuestionWriter | None) -> None:
    print_problems(result.notes, "Contradictions, kept as they are")
    for file, records in result.files.items():
        console.info(f"{folder / file}: {pluralize(len(records), 'record')}")
    if writer is not None:
        number = pluralize(writer.new_replies, "pair")
        console.info(
            f"{writer.endpoint.model} was asked about {number}; all replies are in {writer.log.path}"
        )
    console.info(f"{pluralize(result.pairs, 'pair')} in {folder}")


def _summary(result: BuildResult, folder: Path, problems: list[Problem]) -> dict[str, Any]:
    """JSON object of the result."""
    return {
        "folder": str(folder),
        "pairs": result.pairs,
        "files": {file: len(records) for file, records in result.files.items()},
        "problems": [{"where": problem.location, "what": problem.message} for problem in problems],
        "notes": [{"where": note.location, "what": note.message} for note in result.notes],
    }
