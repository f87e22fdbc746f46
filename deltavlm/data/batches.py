"""Drawn scenes as training batches: cut, turned, dates swapped; with masks, densities and things to say.

B pairs, P pixels of a side, G patches of a side, U mask pixels of a patch's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic import talk, words
from deltavlm.data.synthetic.facts import SWAPPED, Facts, facts_of
from deltavlm.data.synthetic.nuisance import retone
from deltavlm.data.synthetic.truth import CODE
from deltavlm.data.warp import Warp
from deltavlm.tasks import caption, classify, count, dialogue, locate

if TYPE_CHECKING:
    Rng = np.random.Generator

PATCH_PX, UPSAMPLE = 16, 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Arrays of B pairs, and their facts."""

    before: npt.NDArray[np.uint8]  # (B, 3, P, P)
    after: npt.NDArray[np.uint8]  # (B, 3, P, P)
    mask: npt.NDArray[np.int64]  # (B, G U, G U) change codes
    density: npt.NDArray[np.float32]  # (B, 2, G, G) new roads, new buildings; each thing sums to 1
    facts: tuple[Facts, ...]


def density(
    change: npt.NDArray[np.uint8], things: npt.NDArray[np.uint8], facts: Facts
) -> npt.NDArray[np.float32]:
    """Where the counted things are, (2, G, G); truth arrays are at half the picture's resolution."""
    side = change.shape[0] // (PATCH_PX // 2)
    maps = np.zeros((2, side, side), np.float32)
    for index, kind in enumerate(("road_built", "building_built")):
        if facts.counts[kind]:
            here = np.where(change == CODE[kind], things, 0)
            sizes = np.bincount(here.ravel(), minlength=256).astype(np.float32)
            weight = np.zeros_like(sizes)
            seen = np.argsort(-sizes[1:])[: facts.counts[kind]] + 1  # the largest are the ones that count
            weight[seen] = 1 / sizes[seen]
            maps[index] = weight[here].reshape(side, PATCH_PX // 2, side, PATCH_PX // 2).sum(axis=(1, 3))
    return maps


Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # pictures (2, P, P, 3), truth (3, P / 2, P / 2)


def draw_pairs(
    rng: Rng,
    pictures: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    size: int,
    *,
    crop_px: int | None = None,
    centred: float = 0.75,
    swap: float = 0.15,
    toned: float = 0.0,
) -> list[Pair]:
    """`size` random pairs of a cache, varied.

    `crop_px` cuts squares, of which the share `centred` lies on a changed place; `swap` is the chance that
    the dates change places (what was built is then removed); `toned` the chance that the colours of a pair
    are developed anew, each date for itself.
    """
    chosen = rng.integers(len(pictures), size=size)
    return [vary(rng, pictures[index], truth[index], crop_px, centred, swap, toned) for index in chosen]


def vary(
    rng: Rng,
    pair: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    crop_px: int | None,
    centred: float,
    swap: float,
    toned: float,
    warp: Warp | None = None,
) -> Pair:
    """One pair and its truth, cut and turned; `warp` is a small crop and turn more."""
    if crop_px:
        room = pair.shape[1] - crop_px
        row, col = rng.integers(room // 2 + 1, size=2) * 2
        changed = np.flatnonzero(truth[0])
        if len(changed) and rng.random() < centred:
            spot = np.asarray(divmod(int(changed[rng.integers(len(changed))]), truth.shape[2])) * 2
            row, col = np.clip(spot - crop_px // 2 + rng.integers(-24, 25, 2), 0, room) // 2 * 2
        pair = pair[:, row : row + crop_px, col : col + crop_px]
        truth = truth[:, row // 2 : (row + crop_px) // 2, col // 2 : (col + crop_px) // 2]
    if rng.random() < swap:
        pair = pair[::-1]
        truth = np.stack([SWAPPED[truth[0]], truth[1], truth[2]])
    turns = int(rng.integers(4))
    pair, truth = np.rot90(pair, turns, (1, 2)), np.rot90(truth, turns, (1, 2))
    if rng.random() < 0.5:
        pair, truth = pair[:, :, ::-1], truth[:, :, ::-1]
    if warp is not None:
        pair = np.stack([warp(picture) for picture in pair])
        truth = np.stack([warp(codes, nearest=True) for codes in truth])
    if toned and rng.random() < toned:
        pair = np.stack([retone(rng, picture) for picture in pair])
    return pair, truth


def assemble(pairs: Sequence[Pair]) -> Batch:
    """A batch of pairs of one size."""
    facts = tuple(facts_of(truth[0], truth[1], truth[2]) for _, truth in pairs)
    pictures = np.stack([pair for pair, _ in pairs]).transpose(1, 0, 4, 2, 3)
    step = PATCH_PX // UPSAMPLE // 2
    return Batch(
        np.ascontiguousarray(pictures[0]),
        np.ascontiguousarray(pictures[1]),
        np.stack([truth[0][::step, ::step] for _, truth in pairs]).astype(np.int64),
        np.stack([density(truth[0], truth[1], fact) for (_, truth), fact in zip(pairs, facts, strict=True)]),
        facts,
    )


def lesson(rng: Rng, facts: Facts, extra: float = 0.5, plain: float = 0.8) -> list[tuple[str, str]]:
    """(prompt, answer) rows about one pair: the four standing questions, and `extra` more on average.

    One more is an open question, or a later turn of a dialogue or of a free conversation, with the true
    answers as its history. `plain` is the chance of the first of a pair's captions: were all five as likely,
    the few sentences that say "no change" would each outweigh the many that say what has changed, and greedy
    decoding would fall to them.
    """
    ways = words.captions(facts)
    told = ways[0] if rng.random() < plain else ways[int(rng.integers(len(ways)))]
    rows = [
        (caption.PROMPT, told),
        (classify.PROMPT, classify.format_answer(facts.changed)),
        (count.PROMPT, words.told_count(facts)),
        (locate.PROMPT, locate.format_answer(words.located(facts))),
    ]
    whole = int(extra)
    return rows + [_more(rng, facts) for _ in range(whole + (rng.random() < extra - whole))]


def _more(rng: Rng, facts: Facts) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.25:
        asked = words.open_questions(facts)
        turns = [asked[int(rng.integers(len(asked)))]]
    elif kind < 0.4:
        turns = list(words.dialogue(facts)[: int(rng.integers(2, 4))])
    else:
        turns = talk.conversation(rng, facts, turns=int(rng.integers(1, 6)))
    *past, last = turns
    if not past:
        return last.question, last.answer
    history = [(turn.question, turn.answer) for turn in past]
    return dialogue.prompt_with_history(history, last.question), last.answer
