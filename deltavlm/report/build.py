"""Report of an output file: open it once, then render the HTML page and the quicklook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltavlm.errors import InputError
from deltavlm.pipeline.outputs_reader import Output, at_threshold, read_output
from deltavlm.pipeline.review import check_verdicts, read_review, with_review
from deltavlm.report.images import ImageOptions, candidate_files, open_images
from deltavlm.report.page import ImageLimits, report_html
from deltavlm.report.pairs import ReportPair, build_pairs, select_pair
from deltavlm.report.quicklook import quicklook_png

__all__ = ["Report", "open_report"]


@dataclass(frozen=True)
class Report:
    """Pairs of an output file, ready to be rendered."""

    output: Output
    pairs: Sequence[ReportPair]
    images: ImageOptions

    @property
    def chip_count(self) -> int:
        return sum(len(pair.chips) for pair in self.pairs)

    def image_files(self) -> list[Path]:
        """Local files that images of the pairs may be in, now or before they were moved."""
        folder = self.output.folder
        paths = [image.path for pair in self.pairs for image in (pair.before, pair.after) if image.path]
        return [file for path in paths for file in candidate_files(path, folder)]

    def html(
        self,
        limits: ImageLimits | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
        *,
        review: bool = False,
    ) -> tuple[str, dict[str, str]]:
        """Render the page; see `report_html`.

        Raises:
            InputError: as `report_html`, or an image that `images` names cannot be used.
        """
        if self.images.before or self.images.after:
            self.check_single_pair("`before` and `after`")
        text, missing = report_html(self.output, self.pairs, self.images, limits, on_progress, review=review)
        if self.images.before or self.images.after:
            for reason in missing.values():
                raise InputError(reason)
        return text, missing

    def quicklook(self) -> bytes:
        """Render the quicklook as PNG.

        Raises:
            InputError: several pairs.
            RasterError: an image is missing or cannot be read.
        """
        self.check_single_pair("`quicklook`")
        (pair,) = self.pairs
        with open_images(pair, self.images, self.output.folder) as opened:
            return quicklook_png(pair, opened)

    def check_single_pair(self, option: str) -> None:
        """Raise InputError if there are several pairs; `option` is what needs a single one."""
        if len(self.pairs) > 1:
            raise InputError(
                f"{self.output.path}: has {len(self.pairs)} pairs, and {option} is for one; choose it with "
                f"`pair`, such as `pair={self.pairs[0].name}`"
            )


def open_report(
    path: Path,
    images: ImageOptions,
    pair_id: str | None = None,
    *,
    threshold: float | None = None,
    review: Path | None = None,
) -> Report:
    """Read an output file, and select one pair of it if `pair_id` is given.

    threshold: chips have changed whose stored score reaches it; None: as the output says.
    review: file of verdicts on the output, beside those in its columns.

    Raises:
        InputError: not an output, no such pair, neither chips nor pairs, or a verdict that is none.
        ConfigError: a threshold that is not from 0 to 1.
    """
    opinions = None if review is None else read_review(review)
    if threshold is None and opinions is not None:
        threshold = opinions.threshold
    if opinions is None:
        output = read_output(path, threshold=threshold)
    else:
        output = at_threshold(with_review(read_output(path), opinions), threshold)
    check_verdicts(output)
    pairs = build_pairs(output)
    if pair_id is not None:
        pairs = [select_pair(pairs, pair_id)]
    if not pairs:
        raise InputError(f"{path}: holds neither chips nor pairs, so there is nothing to show")
    return Report(output, pairs, images)
