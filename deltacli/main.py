"""`deltavlm`: the app with its commands, `mcp` among them, and errors as one line and an exit code.

Exit codes: 0 success, 1 failure, 2 usage error or bad input, 3 finished with some chips failed,
130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 141 when the reader of stdout went away (`| head`).
Nothing heavy is imported here: every command imports what it needs in its body.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltacli import options
from deltacli.analyze import analyze
from deltacli.ask import ask
from deltacli.calibrate import calibrate
from deltacli.chat import chat
from deltacli.console import LogFormat, console, name_flag, open_streams, silence
from deltacli.data import data
from deltacli.doctor import ProjCommand, doctor
from deltacli.evaluate import evaluate
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.grid import grid
from deltacli.mask_flags import PolygonsCommand
from deltacli.metrics import run_metrics
from deltacli.polygonize import polygonize
from deltacli.report import report
from deltacli.signals import catch_signals
from deltacli.stac import stac
from deltacli.summarize import summarize
from deltacli.synth import synth
from deltacli.train import train
from deltacli.weights import weights
from deltavlm.errors import DeltaVLMError, InputError
from deltavlm.extras import EXTRAS, missing_package

__all__ = ["app"]

PREFIX = "DELTAVLM"  # of environment variables
CLOSED_PIPE = 141  # 128 + SIGPIPE, as a shell would report it
_TORCHVISION_ERRORS = (  # messages of timm and transformers where torchvision belongs to another torch
    "torchvision::nms",
    "Could not import module",
    "partially initialized module 'torchvision'",
)
_ON_TERMINAL = sys.stdout is not None and sys.stdout.isatty()  # None after `>&-`


class App(TyperGroup):
    """Group of all commands; the console script and `CliRunner` both call its `main`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _name_variables(self, PREFIX)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit with its code; every error becomes one line on stderr."""
        open_streams()
        console.reset(_early_log_format(sys.argv[1:] if args is None else args))
        run_metrics.reset()
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            code = 1
        except Exception as error:
            code = _report_error(error)
        code = _flush_stdout(code if isinstance(code, int) else 0)
        run_metrics.finish(code)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; signals and a closed pipe become exit codes after its clean-up."""
        with catch_signals() as state:
            console.signal_state = state
            try:
                return super().invoke(ctx)
            except BrokenPipeError as error:
                silence(sys.stdout)
                raise typer.Exit(CLOSED_PIPE) from error
            except BaseException as error:
                if state.signum is None:
                    raise
                console.traceback(error)
                console.error(f"stopped by {state.name}{state.hint}")
                raise typer.Exit(128 + state.signum) from error


def _name_variables(command: Any, prefix: str) -> None:
    """Name environment variables by flags: DELTAVLM_ASK_QUESTIONS. Click names them by parameters.

    The flags become known to messages of the library too.
    """
    for param in command.params:
        flag = next((name for name in param.opts if name.startswith("--")), None)
        for each in (*param.opts, *param.secondary_opts):
            if each.startswith("--"):
                name_flag(each)
        if flag is not None and param.allow_from_autoenv:
            param.envvar = f"{prefix}_{flag[2:].replace('-', '_').upper()}"
    for name, subcommand in getattr(command, "commands", {}).items():
        _name_variables(subcommand, f"{prefix}_{name.upper()}")


def _early_log_format(args: Sequence[str]) -> LogFormat:
    """Find --log-format among the words, for errors that occur before they are parsed."""
    words = [os.environ.get("DELTAVLM_LOG_FORMAT", ""), *args]
    is_json = "--log-format=json" in words or ("--log-format", "json") in pairwise(words)
    return "json" if is_json or words[0] == "json" else "text"


def _report_error(error: Exception) -> int:
    """Print the error on one line; return the exit code."""
    console.traceback(error)
    if isinstance(error, DeltaVLMError):
        console.error(str(error))
        return error.exit_code
    if hasattr(error, "format_message"):  # a usage error of Typer's own Click, which has no public name
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error), err=True)
        else:
            console.error(_usage_message(error))
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, ModuleNotFoundError) and (name := (error.name or "").partition(".")[0]) in EXTRAS:
        missing = missing_package(name, "this")
        console.error(str(missing))
        return missing.exit_code
    if isinstance(error, MemoryError):
        console.error("out of memory; a smaller --batch-size or --chip-size needs less")
        return 1
    if isinstance(error, OSError) and error.strerror:  # a full disk, a vanished folder
        console.error(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
        return 1
    first_line = str(error).strip().partition("\n")[0]
    if any(message in str(error) for message in _TORCHVISION_ERRORS):
        console.error(f"torch and torchvision do not fit together ({first_line}); run deltavlm doctor")
        return 1
    hint = "" if console.verbosity >= 2 else "; run again with -vv for the traceback"
    console.error(f"unexpected {type(error).__name__}: {first_line}{hint}")
    return 1


def _flush_stdout(code: int) -> int:
    """Flush what is left for stdout; return the exit code, which is not 0 where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        return code or _report_error(error)
    return code


def _usage_message(error: Any) -> str:
    """Complete Click's message of a usage error: a similar flag, the refused value, the command's help."""
    ctx = getattr(error, "ctx", None)
    text = str(error.format_message()).strip().rstrip(".").replace("Value error, ", "")
    option = getattr(error, "option_name", None)
    if ctx is not None and isinstance(option, str) and "No such option" in text:
        flags = [flag for param in ctx.command.params for flag in (*param.opts, *param.secondary_opts)]
        close = get_close_matches(option, flags, n=1)
        text = f"No such option: {option}{f'; did you mean {close[0]}?' if close else ''}"
    value = _refused_value(error)
    number = _expected_number(error)
    if number:
        text = f"{max(error.param.opts, key=len)} must be {number}"
    if value is not None and repr(value) not in text:
        text += f", not {value!r}"
    if ctx is not None:
        text += f" (see '{ctx.command_path} --help')"
    return text


def _refused_value(error: BaseException) -> Any:
    """Value that a flag refused, which Typer leaves out of its message; None if unknown."""
    try:
        return error.__cause__.errors()[0]["input"]  # type: ignore[union-attr]  # pydantic's ValidationError
    except (AttributeError, LookupError):
        return None


def _expected_number(error: Any) -> str:
    """What a flag of numbers takes, such as `a number from 0 to 1`; empty for another error."""
    try:
        runtime = error.param.get_runtime_param()
        kind, limits = runtime.annotation, runtime.parameter_info
        error.__cause__.errors()
    except AttributeError:
        return ""
    if kind not in (int, float):
        return ""
    noun = "a whole number" if kind is int else "a number"
    low, high = limits.min, limits.max
    if low is None:
        return noun if high is None else f"{noun} of at most {high:,}"
    return f"{noun} of at least {low:,}" if high is None else f"{noun} from {low:,} to {high:,}"


@grouped
def mcp(
    read: Annotated[
        list[Path] | None,
        options.flag("--read", panel=options.RASTERS, metavar="FOLDER", help="Folder of images; repeatable."),
    ] = None,
    write: Annotated[
        list[Path] | None,
        options.flag(
            "--write",
            panel=options.OUTPUT,
            metavar="FOLDER",
            help="Folder of results, which may be read too; repeatable.",
        ),
    ] = None,
    model: Annotated[
        str,
        options.flag(
            *("--model", "-m"),
            panel=options.MODEL,
            metavar="NAME|FOLDER|hf:MODEL|openai:URL#MODEL",
            help="Model that the tools ask.",
        ),
    ] = "nano",
    as_json: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Serve check_pair, analyze, ask, summarize, report and polygons as MCP tools on stdin and stdout.

    Only files in the folders that are named may be read and written; URLs and links out of them are refused.
    With --json the folders and tools are printed instead, and nothing is served. Needs the extra mcp.
    """
    from deltavlm.extras import require_package

    require_package("mcp", "deltavlm mcp")
    from deltavlm.mcp_server import TOOLS, Folders, serve

    if not (read or write):
        raise InputError("no folder may be read; name one by --read FOLDER, and one for results by --write")
    folders = Folders.of(read or [], write or [])
    if as_json:
        named = {"read": [*map(str, folders.read)], "write": [*map(str, folders.write)]}
        typer.echo(json.dumps({**named, "model": model, "tools": TOOLS}, ensure_ascii=False))
        return
    serve(folders, model)


app = typer.Typer(
    name="deltavlm",
    cls=App,
    help="Ask what changed between two images of one place, and put the answers on the map.",
    epilog="Start with: deltavlm analyze before.tif after.tif -o out.gpkg",
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX},
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if _ON_TERMINAL and not os.environ.get("NO_COLOR") else None,
)
app.command(cls=PolygonsCommand)(analyze)
app.command(cls=ProjCommand)(ask)
app.command(cls=ProjCommand)(chat)
app.command(cls=ProjCommand)(calibrate)
app.command(cls=ProjCommand)(grid)
app.command(cls=ProjCommand)(report)
app.command(cls=ProjCommand)(polygonize)
app.command(cls=ProjCommand)(summarize)
app.command(cls=ProjCommand)(stac)
app.command("eval")(evaluate)
app.command()(train)
app.command()(doctor)
app.command()(mcp)
app.add_typer(synth, name="synth")
app.add_typer(data, name="data")
app.add_typer(weights, name="weights")


@app.callback()
@grouped
def deltavlm(ctx: typer.Context, version: options.Version = False, *, common: CommonFlags) -> None:
    """Ask what changed between two images of one place, and put the answers on the map."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)
