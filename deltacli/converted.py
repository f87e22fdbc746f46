"""What `weights fetch` and `weights convert` share: options, and what is told of a new checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltacli.console import console, pluralize

if TYPE_CHECKING:
    from deltavlm.upstream.convert import Converted
    from deltavlm.upstream.inspect import Inspection

Difference = Annotated[
    Literal["auto", "csrm", "concat"],
    typer.Option(
        "--difference",
        help="What stands between the two dates: csrm as in the paper, concat without it, auto as the "
        "inspection finds.",
    ),
]
LinkLanguage = Annotated[
    bool, typer.Option("--link-llm", help="Write down where the language model is instead of copying it.")
]


def print_converted(done: Converted, chosen: str) -> None:
    """What was made, and what to mind."""
    from deltavlm.upstream.disk import size_text

    mode = done.config.difference.mode
    console.info(
        f"{pluralize(done.filled, 'tensor')} in {done.folder} ({size_text(done.bytes)}),"
        f" {len(done.ignored)} ignored; language model {done.config.sources['language']}"
    )
    if chosen == "auto":
        found = done.inspection
        verdict = "was trained" if found.csrm_trained else "was NEVER trained"
        tell = console.info if mode == "csrm" else console.warning
        tell(f"difference: {mode}, because the difference module {verdict} ({'; '.join(found.evidence)})")
    else:
        console.info(f"difference: {mode}, as asked for")
    warn_of_base(done.inspection)


def warn_of_base(found: Inspection) -> None:
    from deltavlm.upstream.inspect import FITS

    if found.base_cosine is not None and found.base_cosine < FITS:
        console.warning(
            f"the vision base does not look like the one that was tuned: least cosine"
            f" {found.base_cosine:.2f}, expected close to 1; its answers may be wrong"
        )
