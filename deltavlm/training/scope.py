"""Training of the question scope: a classifier of questions, fitted to random questions of both kinds.

It reads no images, and is fitted apart from the other modules, in a few minutes of one core.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from deltavlm.data import unanswerable, wording
from deltavlm.data.synthetic import typed_questions
from deltavlm.model.config import ScopeConfig
from deltavlm.model.scope import CLASSES, QuestionClass, QuestionScope
from deltavlm.tasks import TASKS, dialogue

log = logging.getLogger(__name__)

Rng = np.random.Generator

SHARES = (0.46, 0.1, 0.44)  # of CLASSES among the questions
STANDARD_SHARE = 0.02  # of the answerable questions: in the words of a data set
SET_SHARE = 0.25  # of the answerable questions, where a run has sets: questions of these
OUTSIDE_FOLLOW_UPS = 0.18  # of the unsupported questions: follow-ups
STANDARD = (*(task.prompt for task in TASKS.values() if task.prompt), *dialogue.TURNS)
STEPS, BATCH, LR, WEIGHT_DECAY, SMOOTHING = 12_000, 256, 4e-3, 0.01, 0.02
POOL = 300_000  # questions that the classifier is fitted to
VALIDATION = 6_000  # others, that the threshold is chosen on
SEED = 20
MEASURED_QUESTIONS, MEASURED_STEPS = 500, 10


def fit_scope(config: ScopeConfig, set_questions: Sequence[str] = (), steps: int = STEPS) -> QuestionScope:
    """Fit a question scope to random questions; its threshold is that of equal error rates on others.

    set_questions: questions of data sets, which the model is taught too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        scope = QuestionScope(config)
    rng = np.random.default_rng(SEED)
    _fit(scope, [sample_question(rng, set_questions) for _ in range(POOL)], rng, steps)
    rng = np.random.default_rng([SEED, 1])
    threshold, error = choose_threshold(scope, [sample_question(rng) for _ in range(VALIDATION)])
    scope.set_threshold(threshold)
    log.info("question scope: threshold %.3f, %.1f %% of either kind misjudged", threshold, 100 * error)
    return scope


def _fit(scope: QuestionScope, pool: Sequence[tuple[str, QuestionClass]], rng: Rng, steps: int) -> None:
    """Minimize the cross-entropy of random batches of the questions."""
    optimizer = torch.optim.AdamW(scope.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    scope.train()
    for step in range(steps):
        questions = [pool[index] for index in rng.integers(0, len(pool), BATCH)]
        classes = torch.tensor([CLASSES.index(name) for _, name in questions])
        logits = scope([text for text, _ in questions])
        loss = F.cross_entropy(logits, classes, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 1000 == 0:
            log.info("question scope: step %d of %d, loss %.3f", step + 1, steps, loss.item())
    scope.eval()


def measure_fit(config: ScopeConfig) -> float:
    """Seconds that `fit_scope` takes, from a few questions and steps."""
    rng, started = np.random.default_rng(0), time.monotonic()
    pool = [sample_question(rng) for _ in range(MEASURED_QUESTIONS)]
    question_seconds = (time.monotonic() - started) / len(pool)
    started = time.monotonic()
    _fit(QuestionScope(config), pool, rng, MEASURED_STEPS)
    step_seconds = (time.monotonic() - started) / MEASURED_STEPS
    return question_seconds * (POOL + VALIDATION) + step_seconds * STEPS


def sample_question(rng: Rng, set_questions: Sequence[str] = ()) -> tuple[str, QuestionClass]:
    """Draw a question as people type it, and its class."""
    name: QuestionClass = CLASSES[int(rng.choice(len(CLASSES), p=SHARES))]
    if name == "answerable":
        text = _answerable(rng, set_questions)
    elif name == "follow_up":
        text, _ = typed_questions.sample_follow_up(rng, typed_questions.sample_question(rng)[1])
    elif rng.random() < OUTSIDE_FOLLOW_UPS:
        text = unanswerable.sample_follow_up(rng)
    else:
        text, _ = unanswerable.sample_question(rng)
    return wording.as_typed(rng, text), name


def _answerable(rng: Rng, set_questions: Sequence[str]) -> str:
    draw = rng.random()
    if draw < STANDARD_SHARE:
        return wording.choose(rng, STANDARD)
    if set_questions and draw < STANDARD_SHARE + SET_SHARE:
        return wording.choose(rng, set_questions)
    return typed_questions.sample_question(rng)[0]


@torch.inference_mode()
def choose_threshold(
    scope: QuestionScope, questions: Sequence[tuple[str, QuestionClass]]
) -> tuple[float, float]:
    """Threshold at which as many of the answerable questions are refused as of the others are answered, in
    shares, and that share. Follow-ups are after a turn that was answered."""
    chunks = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    logits = torch.cat([scope([text for text, _ in chunk]) for chunk in chunks])
    probabilities = 1 - logits.softmax(dim=1)[:, CLASSES.index("unsupported")].double().numpy()
    is_answerable = np.array([name != "unsupported" for _, name in questions])
    return equal_error(probabilities[is_answerable], probabilities[~is_answerable])


def equal_error(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Threshold at which the error rates of both classes are nearest to each other, and their mean.

    >>> equal_error(np.array([0.4, 0.8, 0.9, 0.9]), np.array([0.1, 0.2, 0.3, 0.6]))
    (0.5, 0.25)
    """
    values = np.unique(np.concatenate([positive, negative]))
    candidates = (values[1:] + values[:-1]) / 2
    refused = np.searchsorted(np.sort(positive), candidates) / len(positive)
    answered = 1 - np.searchsorted(np.sort(negative), candidates) / len(negative)
    best = int(np.abs(refused - answered).argmin())
    return float(candidates[best]), float(refused[best] + answered[best]) / 2
