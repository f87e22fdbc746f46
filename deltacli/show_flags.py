"""What `analyze` shows of its answers when they are safe: a page, a picture, a table, thumbnails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from deltacli.options import COMMON, OUTPUT, flag
from deltavlm.errors import ConfigError, DeltaVLMError, PartialFailure, WriteError

__all__ = ["ShowFlags"]


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """A report and a quicklook beside the output; what a terminal shows at the end."""

    html: Annotated[
        Path | None,
        flag("--html", panel=OUTPUT, metavar="FILE", help="A report too, as deltavlm report makes it."),
    ] = None
    quicklook: Annotated[
        Path | None,
        flag(
            "--quicklook",
            panel=OUTPUT,
            metavar="FILE.png",
            help="A picture too: before, after, and the changed chips marked.",
        ),
    ] = None
    top: Annotated[
        int,
        flag(
            "--top",
            panel=COMMON,
            metavar="N",
            min=0,
            max=10,
            help="Most changed chips in the table that ends a run on a terminal.",
        ),
    ] = 10
    thumbnails: Annotated[
        Literal["auto", "always", "never"],
        flag(
            "--thumbnails",
            panel=COMMON,
            help="Pictures of these chips, where a terminal has kitty's, iTerm2's or sixel graphics; always:"
            " sixel where that is not known.",
        ),
    ] = "auto"

    def check(self, path: Path | None, layer: str | None, overwrite: bool) -> None:
        """Whether what is wished can be made of the output, and written. Raises: ConfigError, OutputError."""
        from deltacli.report import HTML_SUFFIXES, PNG_SUFFIXES
        from deltavlm.geo.sinks import check_output

        for name, wished, suffixes in (
            ("--html", self.html, HTML_SUFFIXES),
            ("--quicklook", self.quicklook, PNG_SUFFIXES),
        ):
            if wished is None:
                continue
            if path is None:
                raise ConfigError(f"{name} is made of an output file; name one with -o")
            if layer not in (None, "chips"):
                raise ConfigError(f"{name} needs the layer chips; leave --layer {layer} out")
            check_output(wished, overwrite, suffixes)

    def refuse(self, what: str, which: str) -> None:
        """Raises: ConfigError where a page or a picture is wished of what has none."""
        for name, wished in (("--html", self.html), ("--quicklook", self.quicklook)):
            if wished is not None:
                raise ConfigError(
                    f"{name} cannot be had with {what}; deltavlm report makes it afterwards, of {which}"
                )

    def refuse_quicklook(self) -> None:
        """Raises: ConfigError where a picture of many pairs is wished."""
        if self.quicklook is not None:
            raise ConfigError(
                "--quicklook shows one pair; deltavlm report OUTPUT --pair ID --quicklook FILE.png makes it "
                "afterwards"
            )

    @contextmanager
    def afterwards(
        self, path: Path | None, images: tuple[str | None, str | None], allow_vrt: bool, overwrite: bool
    ) -> Iterator[None]:
        """Make what is wished of the output when the `with` has ended well, or with some chips failed.

        Raises: WriteError that says where the answers are, whatever went wrong here.
        """
        failed = None
        try:
            yield
        except PartialFailure as error:
            failed = error
        if path is not None and (self.html or self.quicklook):
            from deltacli.report import write_report
            from deltavlm.report.images import ImageOptions

            before, after = images
            image_options = ImageOptions(before=before, after=after, allow_vrt=allow_vrt, allow_remote=True)
            try:
                write_report(path, self.html, self.quicklook, image_options, overwrite=overwrite)
            except (DeltaVLMError, OSError, MemoryError) as error:
                told = str(error) or "out of memory"
                raise WriteError(f"{told}; the answers are safe in {path}") from error
        if failed is not None:
            raise failed
