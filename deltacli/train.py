"""`deltavlm train`: a model fitted to made scenes and ChangeChat-format sets, as a configuration says."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options
from deltacli.console import console, duration
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import OUTPUT, flag, threads_flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.training.estimate import Plan

RUN = "Run"


@grouped
def train(
    config_file: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="YAML of a run, or the name of one that ships: train_nano.yaml and others."
        ),
    ],
    *,
    changes: Annotated[
        list[str] | None,
        flag(
            "--set",
            panel=RUN,
            metavar="KEY=VALUE",
            help="Change a key of it: seed=1, phases.words.steps=10; can be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="DIR",
            help="The run's folder: checkpoints, log.jsonl, and at the end DIR/model.",
        ),
    ] = None,
    resume: Annotated[
        bool, flag("--resume", panel=RUN, help="Go on with the run in DIR; it ends as if it had not stopped.")
    ] = False,
    threads: Annotated[int | None, threads_flag(RUN)] = None,
    print_config: Annotated[
        bool, flag("--print-config", panel=OUTPUT, help="Print the whole configuration as YAML, and stop.")
    ] = False,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run",
            "-n",
            panel=OUTPUT,
            help="Show shapes, what is fitted, memory, steps, and time from a few measured steps.",
        ),
    ] = False,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Train a model, or go on with it: phases in order, checkpoints, a log, validation, a model folder.

    Ctrl-C ends it with a checkpoint. For several GPUs: torchrun --nproc-per-node N -m deltavlm.training
    CONFIG -o DIR.
    """
    from deltavlm.config import dump, shipped_config
    from deltavlm.training.config import load_config

    path = Path(config_file)
    if not path.exists() and path.name == config_file:
        path = shipped_config(config_file if path.suffix else f"{config_file}.yaml")
    config = load_config(path, changes or ())
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    if not dry_run and output is None:
        raise ConfigError("where to? give -o DIR, or --dry-run")
    if threads:
        import torch

        torch.set_num_threads(threads)
    if dry_run:
        from deltavlm.training.estimate import plan

        found = plan(config, console.info)
        typer.echo(json.dumps(_record(found)) if json_summary else "\n".join(_lines(found)))
        if found.missing is not None:
            raise found.missing
        return

    from deltavlm.training.run import train as run

    assert output is not None
    with ExitStack() as stack, _told_of_validation():
        ended = run(config, output, resume=resume, recipe=path.name, tell=_progress(stack))
    if ended.stop is not None:
        console.error(ended.told(output))
        raise typer.Exit(128 + ended.stop.signum if ended.stop.signum else 1)
    console.info(f"trained to step {ended.step} of {ended.phase}; the model is in {ended.folder}")
    if json_summary:
        summary = {
            "folder": str(output),
            "model": str(ended.folder),
            "phase": ended.phase,
            "step": ended.step,
        }
        typer.echo(json.dumps(summary))


@contextmanager
def _told_of_validation() -> Iterator[None]:
    """While open, what the training logs (held-out figures) is said without -v too."""
    known = logging.getLogger("deltavlm.training")
    before = known.level
    if console.verbosity == 0:
        known.setLevel(logging.INFO)
    try:
        yield
    finally:
        known.setLevel(before)


def _progress(stack: ExitStack) -> Callable[[str, int, int, str], None]:
    """A counter for each phase, one after another."""
    shown: dict[str, Callable[[int, str], None]] = {}

    def tell(phase: str, step: int, steps: int, note: str) -> None:
        if not steps:
            console.info(f"{phase}: {note}")
            return
        if phase not in shown:
            stack.close()
            shown[phase] = stack.enter_context(console.count_progress(steps, f"{phase} steps", initial=step))
            return
        last = notes.get(phase, "")
        notes[phase] = note or last
        shown[phase](step, notes[phase])

    notes: dict[str, str] = {}
    return tell


def _record(found: Plan) -> dict[str, Any]:
    return {
        "model": found.model,
        "phases": found.phases,
        "missing": None if found.missing is None else str(found.missing),
        "unknown": found.unknown,
    }


def _lines(found: Plan) -> list[str]:
    """The plan for people."""
    model = found.model
    sizes = {key: " x ".join(map(str, value)) for key, value in model.items() if isinstance(value, list)}
    lines = [
        f"model {model['name']} from {model['start']}",
        f"  a pair of pictures {sizes['pictures']} -> image tokens {sizes['image_tokens']} -> queries "
        f"{sizes['queries']} -> soft prompt {sizes['soft_prompt']}, vocabulary {model['vocabulary']}",
    ]
    total = 0.0
    for name, phase in found.phases.items():
        pieces = f", in {phase['pieces']} pieces" if phase["pieces"] > 1 else ""
        lines.append(
            f"phase {name} ({phase['part']}): {phase['steps']} steps of {phase['batch']} pairs{pieces}"
        )
        organs = ", ".join(
            f"{organ} {one['fitted']:,} of {one['all']:,}" for organ, one in phase["organs"].items()
        )
        lines.append(f"  fitted: {phase['fitted']:,} parameters: {organs}")
        memory = phase["memory_bytes"]
        parts = ", ".join(f"{key} {_size(value)}" for key, value in memory.items() if value)
        more = phase["activation_bytes"]
        work = f"about {_size(more)} of activations (measured, scaled)" if more else "activations, not known"
        lines.append(f"  memory: {_size(sum(memory.values()))} ({parts}), and {work}")
        if phase["epochs"]:
            lines.append("  epochs: " + ", ".join(f"{k} {v:.3g}" for k, v in phase["epochs"].items()))
        if phase["seconds"]:
            total += phase["seconds"]
            lines.append(f"  time: about {duration(phase['seconds'])} on this machine as busy as it is")
    if found.unknown:
        lines.append(f"time: unknown, {found.unknown}")
    else:
        lines.append(f"time: about {duration(total)} in all, without drawing scenes and validating")
    return lines


def _size(number: float) -> str:
    """`1234567` -> `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
