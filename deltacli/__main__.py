"""`python -m deltacli` is `deltavlm`; `rio changes` is `deltavlm analyze`."""

from __future__ import annotations

import click  # of rasterio's rio, which is not Typer's


@click.command(
    "changes",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
    short_help="Ask what changed.",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def rio_changes(words: tuple[str, ...]) -> None:
    """Command of the entry point `rasterio.rio_plugins`: all its words go to `deltavlm analyze`."""
    from deltacli.main import app

    app(args=["analyze", *words], prog_name="deltavlm")


if __name__ == "__main__":
    from deltacli.main import app

    app(prog_name="deltavlm")
