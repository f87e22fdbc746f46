"""Diagnosis of a model: it answers the standard questions about two made pairs whose answers are known.

The changed pair is also asked about with its dates swapped, and with either image at both dates: a model that
sees both images, and their order, answers otherwise then.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.data.synthetic.scene import SceneOptions, make_scene
from deltavlm.diagnostics.installation import Finding
from deltavlm.errors import ModelError
from deltavlm.files import format_bytes
from deltavlm.messages import pluralize, preview
from deltavlm.model.interface import ChangeModel, PairContext, Pixels, Reply
from deltavlm.pipeline.answers import Answer, in_words_of_task, phrasebook_of, question_of, read_answer
from deltavlm.tasks import TASKS, SingleTurnTask
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["ModelDiagnosis", "diagnose_model"]

CHANGED_SEED, UNCHANGED_SEED = 44, 1
SIZE_PX, GSD_M = 256, 0.5
SAME_SCORE = 1e-3  # scores that differ by less are equal
STANDARD: tuple[SingleTurnTask, ...] = ("change", "caption", "count", "location")
EXPECTED_HINT = "a good model answers both right; try another, or measure it by deltavlm eval"


@dataclass(frozen=True, slots=True)
class ModelDiagnosis:
    """Findings about a model, and the measured figures as plain values."""

    findings: tuple[Finding, ...]
    figures: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class _Answered:
    """Replies and answers of a model about one pair, by task."""

    replies: Mapping[SingleTurnTask, Reply]
    answers: Mapping[SingleTurnTask, Answer]
    seconds: float

    def equals(self, other: _Answered) -> bool:
        """True if no text differs, and no score by more than a rounding error."""
        return all(
            reply.text == (twin := other.replies[task]).text and _equal_scores(reply.score, twin.score)
            for task, reply in self.replies.items()
        )


def diagnose_model(model: ChangeModel, load_s: float) -> ModelDiagnosis:
    """Ask a loaded model, and judge what it answers; one that cannot answer is a finding too.

    load_s: seconds that loading it took.
    """
    try:
        return _diagnose(model, load_s)
    except ModelError as error:
        finding = Finding("model", "broken", str(error), "try other options, or another model")
        return ModelDiagnosis((finding,), {"load_s": load_s})


def _diagnose(model: ChangeModel, load_s: float) -> ModelDiagnosis:
    before, after, facts = _made_pair(CHANGED_SEED, change=1.0)
    same_before, same_after, _ = _made_pair(UNCHANGED_SEED, change=0.0)
    changed, unchanged, swapped, first_twice, second_twice = pairs = [
        _ask(model, *dates)
        for dates in (
            (before, after),
            (same_before, same_after),
            (after, before),
            (before, before),
            (after, after),
        )
    ]
    seconds = statistics.median(pair.seconds for pair in pairs[1:])  # the first may be slower
    figures = {"load_s": load_s, "seconds_per_chip": seconds, **_memory(model.device)}
    has_masks = model.masks(model.encode(before, after)) is not None
    identity = f"{model.name} ({model.fingerprint}) on {model.device}, loaded in {load_s:.1f} s"
    new_buildings = pluralize(facts.counts["building_built"], "new building")
    findings = (
        Finding("model", "ok", f"{identity}; {'has a mask head' if has_masks else 'has no mask head'}"),
        _judge("changed pair", changed, new_buildings, expected=True),
        _judge("same pair", unchanged, "nothing changed but the light", expected=False),
        *_unread(changed, unchanged),
        _score_finding(changed, unchanged),
        *_image_findings(changed, swapped, first_twice, second_twice),
        Finding("time", "ok", f"{seconds:.2f} s for the {len(STANDARD)} standard questions about a chip"),
        _memory_finding(figures),
    )
    return ModelDiagnosis(findings, figures)


def _made_pair(seed: int, change: float) -> tuple[Pixels, Pixels, Facts]:
    """Images of both dates, (1, 3, SIZE_PX, SIZE_PX) each, and the facts of a made scene."""
    options = SceneOptions(change=change, scale=1.0, misregistration_px=0.0, strength=0.3)
    scene = make_scene(seed, SIZE_PX, SIZE_PX, options)
    before, after = (
        np.ascontiguousarray(date.transpose(2, 0, 1)[None]) for date in (scene.before, scene.after)
    )
    return before, after, facts_of(scene.change, scene.instances, scene.cover)


def _ask(model: ChangeModel, before: Pixels, after: Pixels) -> _Answered:
    book = phrasebook_of(model)
    specs = [QuestionSpec(name, name, TASKS[name].prompt) for name in STANDARD]
    start = time.monotonic()
    encoded = model.encode(before, after, [PairContext(gsd_m=GSD_M)])
    (replies,) = model.answer(encoded, [question_of(spec, book=book) for spec in specs])
    seconds = time.monotonic() - start
    answers = {
        spec.task: read_answer(spec, in_words_of_task(spec, reply, book))
        for spec, reply in zip(specs, replies, strict=True)
    }
    return _Answered(dict(zip(STANDARD, replies, strict=True)), answers, seconds)


def _judge(name: str, answered: _Answered, truth: str, *, expected: bool) -> Finding:
    """Finding about the answers to a pair, by the yes/no question."""
    texts = [f"{task}: {preview(answer.text, 100)}" for task, answer in answered.answers.items()]
    change = answered.answers["change"]
    score = "" if change.score is None else f" (P(yes) {change.score:.2f})"
    texts[0] += score
    detail = f"{truth}; {'; '.join(texts)}"
    if change.value is expected:
        return Finding(name, "ok", detail)
    return Finding(
        name, "warning", detail, f"the right answer is {'yes' if expected else 'no'}; {EXPECTED_HINT}"
    )


def _unread(*pairs: _Answered) -> Iterator[Finding]:
    tasks = {task for pair in pairs for task, answer in pair.answers.items() if answer.value is None}
    if tasks:
        names = ", ".join(task for task in STANDARD if task in tasks)
        yield Finding(
            "reading",
            "warning",
            f"answers that cannot be read: {names}; these columns are null then",
            "see the replies above; another model may follow the instructions better",
        )


def _score_finding(*pairs: _Answered) -> Finding:
    scores = [pair.answers["change"].score for pair in pairs]
    if None in scores:
        return Finding(
            "score",
            "warning",
            "yes/no answers have no probability: no ranking, no calibration, and `threshold` changes nothing",
            "choose a model with words for yes and no; a server has to give top_logprobs, as vLLM does",
        )
    return Finding("score", "ok", "yes/no answers have a probability")


def _image_findings(
    changed: _Answered, swapped: _Answered, first_twice: _Answered, second_twice: _Answered
) -> Iterator[Finding]:
    """Findings on whether the answers depend on either image, and on their order."""
    unseen = [
        name for name, twin in (("first", second_twice), ("second", first_twice)) if changed.equals(twin)
    ]
    if unseen:
        yield Finding(
            "images",
            "warning",
            f"the answers are the same with another {' and '.join(unseen)} image: it may not be seen",
            "choose a model that reads two images in one message",
        )
    else:
        yield Finding("images", "ok", "the answers depend on both images")
    if changed.equals(swapped):
        yield Finding(
            "order",
            "warning",
            "the answers are the same with the dates swapped: new and gone may be confused",
            "choose a model that knows the order of images",
        )
    else:
        yield Finding("order", "ok", "the answers depend on the order of the images")


def _memory(device: str) -> dict[str, float | None]:
    """Largest memory of this process so far, and of its tensors on a GPU, in bytes."""
    process: float | None = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        process = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    gpu: float | None = None
    if device.startswith("cuda"):
        import torch

        gpu = float(torch.cuda.max_memory_allocated(device))
    return {"memory_bytes": process, "gpu_bytes": gpu}


def _memory_finding(figures: Mapping[str, float | None]) -> Finding:
    process, gpu = figures["memory_bytes"], figures["gpu_bytes"]
    texts = [] if process is None else [f"{format_bytes(int(process))} in this process at most"]
    texts += [] if gpu is None else [f"{format_bytes(int(gpu))} on the GPU at most"]
    return Finding("memory", "ok", ", ".join(texts) or "not measured on this system")


def _equal_scores(first: float, second: float) -> bool:
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    return abs(first - second) < SAME_SCORE
