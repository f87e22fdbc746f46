"""A model asked about a set, for `deltavlm eval`: where its pictures are, and which part is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltacli.console import console, pluralize
from deltacli.flag_groups import ModelFlags
from deltavlm.errors import ConfigError, InputError, ToolError

if TYPE_CHECKING:
    from deltavlm.data.examples import Dataset, Example, Problem
    from deltavlm.scoring.predictions import Prediction


def answer_set(
    dataset: Dataset,
    examples: Sequence[Example],
    images: Path,
    asked: ModelFlags,
    shard: tuple[int, int],
    limit: int | None,
    batch_size: int | None,
    targets: Sequence[Path],
    afresh: bool,
) -> tuple[list[Example], list[Prediction], list[Problem], dict[str, Any]]:
    """The examples of this shard, the model's answers to them, what got none, and who answered how."""
    from deltavlm.data.examples import missing_images
    from deltavlm.scoring.inference import group_by_pair, predict_batches, run_id
    from deltavlm.scoring.prediction_log import open_prediction_log

    cases = group_by_pair(examples, shard, limit)
    mine = [example for case in cases for example in case.examples]
    if not mine:
        raise ConfigError(f"--shard {shard[0]}/{shard[1]} is empty: there are fewer pairs than shards")
    absent = missing_images(mine, images)
    if len(absent) == len({name for case in cases for name in (case.before, case.after)}):
        raise InputError(f"none of the pictures is there, the first: {absent[0].message}; give --images DIR")
    model, _ = asked.load()
    who = model.label
    path = targets[2] if targets else None
    problems: list[Problem] = []
    with open_prediction_log(path, run_id(model, dataset), who, afresh) as answers:
        known = frozenset((one.task, one.id, one.history) for one in answers.predictions)
        before = sum(known.issuperset(case.keys) for case in cases)
        if path is None:
            console.info("answers are not kept; with -o they are, and an interrupted run can be gone on with")
        elif before:
            console.info(f"{pluralize(before, 'pair')} of {len(cases)} answered already in {path}; going on")
        batch = batch_size or model.auto_batch_size()
        done = 0
        try:
            with console.count_progress(len(cases), "pairs") as tell:
                for found, troubles in predict_batches(model, cases, images, batch, known):
                    answers.keep(found)
                    problems += troubles
                    done = min(done + batch, len(cases))
                    tell(done, f"{len(problems)} with trouble" if problems else "")
        except KeyboardInterrupt:
            if path is not None and answers.predictions:
                console.info(f"{len(answers.predictions)} answers are in {path}; the same command goes on")
            raise
        keys = {key for case in cases for key in case.keys}
        given = [one for one in answers.predictions if (one.task, one.id, one.history) in keys]
    if not given:
        raise ToolError(problems[0].message if problems else "the model gave no answer")
    order = {key: place for place, key in enumerate(key for case in cases for key in case.keys)}
    given.sort(key=lambda one: order[one.task, one.id, one.history])
    by = {"name": model.name, "fingerprint": model.fingerprint, **model.details}
    by |= {"limit": limit, "shard": None if shard == (1, 1) else f"{shard[0]}/{shard[1]}"}
    return mine, given, problems, by


def images_of(data: Path, images: Path | None) -> Path:
    """The folder of pictures. Raises: InputError when it is not there."""
    if images is not None:
        if not images.is_dir():
            raise InputError(f"{images} is not a folder; give that of the pictures with --images")
        return images
    top = data if data.is_dir() else data.absolute().parent
    for folder in (top / "images", top.parent / "images"):
        if folder.is_dir():
            return folder
    raise InputError(f"{top / 'images'} is not there; give the folder of the pictures with --images DIR")
