"""`deltavlm train`: train a model on synthetic scenes and ChangeChat-format sets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options, parsing
from deltacli.console import console, duration
from deltacli.flag_groups import CommonFlags, RasterFlags, grouped
from deltacli.options import OUTPUT, flag, threads_flag
from deltavlm.errors import ConfigError, OutputError
from deltavlm.extras import require_torch
from deltavlm.files import format_bytes
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.geo.pair import ReadOptions
    from deltavlm.training.config import TrainConfig
    from deltavlm.training.estimate import Estimate

RUN = "Run"
ADAPT_CONFIG = "adapt_nano.yaml"
ADAPT_CHIPS = 300  # at most


@grouped
def train(
    config_file: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            show_default=f"with --adapt {ADAPT_CONFIG}",
            help="YAML of a run, or the name of one that ships: train_nano.yaml and others.",
        ),
    ] = None,
    *,
    adapt: Annotated[
        str | None,
        flag(
            "--adapt",
            panel=RUN,
            metavar="PAIRS|-",
            help="Experimental: adapt a model to a list of pairs, as of analyze --pairs, without labels. "
            "The flags of rasters are for these.",
        ),
    ] = None,
    rasters: RasterFlags,
    changes: Annotated[
        list[str] | None,
        flag(
            "--set",
            panel=RUN,
            metavar="KEY=VALUE",
            help="Change a key of the configuration, such as seed=1 or phases.words.steps=10; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="DIR",
            help="Folder of the run: checkpoints, log.jsonl, and at the end the model folder DIR/model.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        flag("--resume", panel=RUN, help="Resume the run in DIR; the result is the same as without a break."),
    ] = False,
    threads: Annotated[int | None, threads_flag(RUN)] = None,
    print_config: Annotated[
        bool, flag("--print-config", panel=OUTPUT, help="Print the complete configuration as YAML and exit.")
    ] = False,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run",
            "-n",
            panel=OUTPUT,
            help="Show shapes, trainable parameters, memory, steps, and the time estimated from a few steps.",
        ),
    ] = False,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Train a model, or resume a run: phases in order, checkpoints, log, validation, model folder.

    Ctrl-C stops it with a checkpoint. For several GPUs: torchrun --nproc-per-node N -m deltavlm.training
    CONFIG -o DIR.
    """
    if config_file is None:
        if adapt is None:
            raise typer.BadParameter("give CONFIG, or --adapt PAIRS")
        config_file = ADAPT_CONFIG
    if adapt is None and rasters != RasterFlags():
        raise typer.BadParameter("flags of rasters are for the pairs of --adapt; give that too")
    if adapt is not None and dry_run:
        raise typer.BadParameter("--dry-run cannot be combined with --adapt; leave it out")
    from deltavlm.config import dump, shipped_config
    from deltavlm.training.config import load_config

    path = Path(config_file)
    if not path.exists() and path.name == config_file:
        path = shipped_config(config_file if path.suffix else f"{config_file}.yaml", "phases")
    config = load_config(path, changes or ())
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    if not dry_run and output is None:
        raise ConfigError("no output folder: give -o DIR, or --dry-run")
    require_torch("training")
    if threads:
        import torch

        torch.set_num_threads(threads)
    if dry_run:
        from deltavlm.training.estimate import estimate_run

        estimate = estimate_run(config, console.info)
        typer.echo(json.dumps(_as_json(estimate)) if json_summary else "\n".join(_as_text(estimate)))
        if estimate.missing is not None:
            raise estimate.missing
        return

    from deltavlm.training.checkpoints import CONFIG
    from deltavlm.training.run import RunOptions
    from deltavlm.training.run import train as run

    assert output is not None
    with ExitStack() as stack, _show_training_log():
        options = RunOptions(resume=resume, recipe=path.name)
        if adapt is not None:
            config, provenance = _make_ground(
                config, adapt, rasters.read_options(), output / "tiles", resume=resume
            )
            options = replace(options, recipe=f"--adapt {path.name}", provenance=provenance)
        try:
            result = run(config, output, options, _progress_callback(stack))
        except BaseException:  # perhaps of a signal, while scenes are drawn or the model folder is written
            if (output / CONFIG).is_file():
                console.signal_state.hint = f"; continue {output} with --resume"
            raise
    if result.stop is not None:
        console.error(result.stop_message(output))
        raise typer.Exit(128 + result.stop.signum if result.stop.signum else 1)
    console.info(f"trained to step {result.step} of {result.phase}; the model is in {result.model_folder}")
    if json_summary:
        summary = {
            "folder": str(output),
            "model": str(result.model_folder),
            "phase": result.phase,
            "step": result.step,
        }
        typer.echo(json.dumps(summary))


def _make_ground(
    config: TrainConfig, listed: str, read: ReadOptions, folder: Path, *, resume: bool
) -> tuple[TrainConfig, dict[str, str]]:
    """Cut chips of the listed pairs into tiles in `folder`, the ground of the configuration's scenes; returns
    it, and what the provenance of the model says. To resume, the tiles are there.

    Raises: InputError for pairs or a configuration that cannot be used, OutputError.
    """
    from deltavlm import load_model
    from deltavlm.geo.pair import check_options
    from deltavlm.model.config import RuntimeOptions
    from deltavlm.pipeline.pair_lists import parse_pairs, read_pairs
    from deltavlm.pipeline.reading import sample_chips
    from deltavlm.training.adapt import AdaptChip, read_summary, write_ground
    from deltavlm.training.build import load_inputs

    start, scenes = config.start, config.scenes
    if start is None or scenes is None or not scenes.ground:
        raise ConfigError(f"--adapt needs start and scenes.ground in CONFIG, as in {ADAPT_CONFIG}")
    config = replace(config, scenes=replace(scenes, ground_folder=folder))
    if resume:
        return config, read_summary(folder)
    for path in (folder.parent / "config.yaml", folder):
        if path.exists():
            raise OutputError(f"{path} exists, perhaps of a run; choose another -o, or use --resume")
    load_inputs(config)  # checks it before the slow part
    check_options(read)
    pairs = parse_pairs(parsing.read_stdin(), "stdin", Path()) if listed == "-" else read_pairs(Path(listed))
    for note in pairs.notes:
        console.info(note)
    model = load_model(start, RuntimeOptions(device=config.device))
    chips = []
    with console.count_progress(ADAPT_CHIPS, "chips") as update:
        for _, chip, gsd_m in sample_chips(pairs.pairs, read, model, ADAPT_CHIPS, config.seed):
            chips.append(AdaptChip(chip.before, chip.after, gsd_m))
            update(len(chips), "")
    with console.waiting("looking for unchanged chips"):
        return config, write_ground(folder, model, chips, pairs.name, config.seed)


@contextmanager
def _show_training_log() -> Iterator[None]:
    """Show the log of the training (validation metrics) without -v too."""
    logger = logging.getLogger("deltavlm.training")
    level = logger.level
    if console.verbosity == 0:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)


def _progress_callback(stack: ExitStack) -> Callable[[str, int, int, str], None]:
    """Progress callback with a bar for each phase, one after another; `stack` holds the current one."""
    bars: dict[str, Callable[[int, str], None]] = {}
    notes: dict[str, str] = {}  # last losses of a phase, shown until there are new ones

    def on_progress(phase: str, step: int, steps: int, note: str) -> None:
        if phase not in bars:
            stack.close()
            label = "drawing scenes" if note == "drawn" else f"{phase} steps"
            if note == "drawn":
                console.info(f"{label}: {step:,} of {steps:,} are there already", done=step, total=steps)
                note = ""
            bars[phase] = stack.enter_context(console.count_progress(steps, label, initial=step))
            return
        notes[phase] = "" if note == "drawn" else note or notes.get(phase, "")
        bars[phase](step, notes[phase])

    return on_progress


def _as_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "model": estimate.model,
        "phases": estimate.phases,
        "other_seconds": estimate.other_seconds,
        "missing": None if estimate.missing is None else str(estimate.missing),
        "unmeasured": estimate.unmeasured,
    }


def _as_text(estimate: Estimate) -> list[str]:
    """Lines of text for the terminal."""
    model = estimate.model
    shapes = {key: " x ".join(map(str, value)) for key, value in model.items() if isinstance(value, list)}
    lines = [
        f"model {model['name']} from {model['start']}, computed in {model['precision']}",
        f"  image pair {shapes['images']} -> image tokens {shapes['image_tokens']} -> queries "
        f"{shapes['queries']} -> soft prompt {shapes['soft_prompt']}, vocabulary {model['vocabulary']}",
    ]
    total_seconds = 0.0
    for name, phase in estimate.phases.items():
        accumulation = phase["grad_accum_steps"]
        suffix = f", gradients accumulated over {accumulation} micro-batches" if accumulation > 1 else ""
        lines.append(
            f"phase {name} ({phase['part']}): {pluralize(phase['steps'], 'step')} of "
            f"{pluralize(phase['batch'], 'pair')}{suffix}"
        )
        modules = ", ".join(
            f"{module} {count['trainable']:,} of {count['all']:,}"
            for module, count in phase["modules"].items()
        )
        lines.append(f"  trainable: {phase['trainable']:,} parameters: {modules}")
        memory = phase["memory_bytes"]
        items = ", ".join(f"{key} {format_bytes(value)}" for key, value in memory.items() if value)
        activations = (
            f"about {format_bytes(phase['activation_bytes'])} of activations (measured, scaled)"
            if phase["activation_bytes"]
            else "activations (unknown)"
        )
        lines.append(f"  memory: {format_bytes(sum(memory.values()))} ({items}), plus {activations}")
        if phase["epochs"]:
            lines.append("  epochs: " + ", ".join(f"{k} {v:.3g}" for k, v in phase["epochs"].items()))
        if phase["seconds"]:
            total_seconds += phase["seconds"]
            parts = ", ".join(f"{part} {duration(seconds)}" for part, seconds in phase["time"].items())
            lines.append(f"  time: about {duration(phase['seconds'])} ({parts})")
    if estimate.unmeasured:
        lines.append(f"time: unknown, {estimate.unmeasured}")
    else:
        total_seconds += sum(estimate.other_seconds.values())
        parts = ", ".join(f"{part} {duration(seconds)}" for part, seconds in estimate.other_seconds.items())
        lines.append(
            f"time: about {duration(total_seconds)} in total on this machine under its present load, "
            f"with {parts}"
        )
    return lines
