"""Which pairs `deltavlm analyze` is about: one, a list of them, or two folders."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import parsing
from deltacli.console import console, pluralize
from deltacli.options import flag
from deltavlm.errors import InputError

if TYPE_CHECKING:
    from deltavlm.pipeline.pairs import PairList

MANY = "Many pairs"  # a group of flags in the help
_LISTED = 10  # names of unmatched files that are told


@dataclass(frozen=True, kw_only=True)
class PairFlags:
    """Many pairs instead of one."""

    pairs: Annotated[
        str | None,
        flag(
            "--pairs",
            panel=MANY,
            metavar="FILE|-",
            help="CSV, JSON lines or STAC items: before, after; if you like id, date, before_date, aoi. One "
            "output for all; -o FOLDER/ gives each pair its own.",
        ),
    ] = None
    before_dir: Annotated[
        Path | None,
        flag("--before-dir", panel=MANY, metavar="FOLDER", help="The earlier images, paired by name with"),
    ] = None
    after_dir: Annotated[
        Path | None, flag("--after-dir", panel=MANY, metavar="FOLDER", help="the later ones.")
    ] = None
    shard: Annotated[
        str | None,
        flag("--shard", panel=MANY, metavar="I/N", help="Only part I of N of the pairs, from 1/N to N/N."),
    ] = None

    def places(self, before: str | None, after: str | None) -> tuple[str, str] | None:
        """The one pair, or None where many are given.

        Raises: BadParameter where it is neither, or both.
        """
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
            return before, after
        if before is not None:
            raise typer.BadParameter(
                f"{before}: cannot be combined with {'--pairs' if self.pairs else '--before-dir'}; put the "
                "pair into the list, or leave one of the two out"
            )
        if self.pairs is not None and folders != (None, None):
            raise typer.BadParameter("--pairs cannot be combined with --before-dir and --after-dir")
        if self.pairs is None and None in folders:
            raise typer.BadParameter("--before-dir and --after-dir go together; give both")
        return None

    def read(self, suffix: str | None = None) -> PairList:
        """The pairs, those of the shard alone; says what is to be said of the list. `suffix`: that of files
        which are named by the ids of all its pairs.

        Raises: InputError naming file, line and column.
        """
        from deltavlm.pipeline.pair_lists import parse_pairs, read_pairs
        from deltavlm.pipeline.pairs import file_names, pairs_of_folders, part_of

        index, count = parsing.parse_shard(self.shard)
        if self.before_dir is not None and self.after_dir is not None:
            found = pairs_of_folders(self.before_dir, self.after_dir)
        elif self.pairs == "-":
            found = parse_pairs(sys.stdin.read(), "stdin", Path())
        else:
            found = read_pairs(Path(self.pairs or ""))
        for note in found.notes:
            console.info(note)
        for folder, names in zip((self.before_dir, self.after_dir), found.unmatched, strict=True):
            if names:
                more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                console.warning(
                    f"{pluralize(len(names), 'image')} in {folder} without a partner of the same name: "
                    f"{', '.join(Path(name).name for name in names[:_LISTED])}{more}"
                )
        if suffix is not None:
            file_names(found.pairs, suffix)
        part = part_of(found.pairs, index, count)
        if not part:
            raise InputError(
                f"--shard {self.shard}: {found.name} has {pluralize(len(found.pairs), 'pair')}, so this part "
                "is empty; take fewer parts"
            )
        if count > 1:
            console.info(f"part {index} of {count}: {len(part)} of {pluralize(len(found.pairs), 'pair')}")
        return replace(found, pairs=part)

    @property
    def target(self) -> str:
        """The output where none is named."""
        source = str(self.after_dir or ("pairs" if self.pairs == "-" else self.pairs))
        index, count = parsing.parse_shard(self.shard)
        part = f"_{index}of{count}" if count > 1 else ""
        return parsing.default_output(str(Path(source).absolute()), f"_changes{part}.gpkg")
