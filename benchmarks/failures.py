"""Where a model is wrong, to look at: held-out made pairs that it answers worst, drawn beside what is true.

    python benchmarks/failures.py docs/images/nano_failures.jpg

Of `--scenes` held-out pairs of each kind (plain, and rich ones that the encoder never learned from) the most
confident wrong "yes", the most confident wrong "no", the counts that are farthest off and the captions that
are wrong although the model is surest of them; before, after, what is true, what was said. No choice by hand.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from deltavlm.data.synthetic import SceneOptions, phrases  # noqa: E402
from deltavlm.data.synthetic.cache import RICH_TEST_SEED, TEST_SEED, open_cache, render_cache  # noqa: E402
from deltavlm.data.synthetic.facts import Facts  # noqa: E402
from deltavlm.errors import AnswerParseError  # noqa: E402
from deltavlm.model.interface import Reply  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.scoring.synthetic import predict_scenes  # noqa: E402
from deltavlm.tasks import caption, count  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"seed": TEST_SEED},
    "rich": {"seed": RICH_TEST_SEED, "options": SceneOptions(change=0.6, rich=True)},
}
SIDE, GAP, TEXT = 200, 8, 66  # pixels: of a picture, between them, of the words below


def off(reply: Reply, facts: Facts) -> int:
    """How far the counts are off; 0 for what cannot be read."""
    true = phrases.counts_of(facts)
    try:
        said = count.parse(reply.text)
    except AnswerParseError:
        return 0
    return abs(said.roads - true.roads) + abs(said.buildings - true.buildings)


def worst(replies: list[list[Reply]], facts: list[Facts], each: int) -> list[tuple[str, int]]:
    """What is wrong, and the numbers of the pairs; none stands twice."""
    numbers = range(len(facts))
    wrong = {
        "a wrong yes": [
            (replies[i][1].score, i) for i in numbers if not facts[i].changed and replies[i][1].score >= 0.5
        ],
        "a wrong no": [
            (1 - replies[i][1].score, i) for i in numbers if facts[i].changed and replies[i][1].score < 0.5
        ],
        "a wrong count": [(float(far), i) for i in numbers if (far := off(replies[i][2], facts[i]))],
        "a wrong caption": [
            (replies[i][0].score, i)
            for i in numbers
            if not caption.score(replies[i][0].text, phrases.captions(facts[i]))["exact"]
        ],
    }
    seen: dict[int, str] = {}
    for what, ranked in wrong.items():
        order = [number for _, number in sorted(ranked, reverse=True) if number not in seen]
        seen |= dict.fromkeys(order[:each], what)
    return [(what, number) for number, what in seen.items()]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("picture", type=Path)
    ask.add_argument("--model", default="nano")
    ask.add_argument("--scenes", type=int, default=150)
    ask.add_argument("--each", type=int, default=1, help="pairs of each fault and kind")
    args = ask.parse_args()
    model, tiles = load_model(args.model, device="cpu"), []
    font = ImageFont.load_default(11)
    for kind, how in KINDS.items():
        with tempfile.TemporaryDirectory() as scratch:
            render_cache(Path(scratch), args.scenes, **how)
            replies, facts = predict_scenes(model, Path(scratch))
            pictures = open_cache(Path(scratch))[0]
            for what, number in worst(replies, facts, args.each):
                tile = Image.new("RGB", (2 * SIDE + 4, SIDE + TEXT), "white")
                for place, date in enumerate(pictures[number]):
                    shown = Image.fromarray(np.ascontiguousarray(date)).resize((SIDE, SIDE))
                    tile.paste(shown, (place * (SIDE + 4), 0))
                said, true = replies[number], facts[number]
                numbers = phrases.count_answer(true.changed, phrases.counts_of(true))
                lines = [
                    f"{kind}: {what}, P(yes) {said[1].score:.2f}",
                    f"true: {phrases.captions(true)[0]}; {numbers}",
                    f"said: {said[0].text}; {said[2].text}",
                ]
                pen, top = ImageDraw.Draw(tile), SIDE + 2
                for line in lines:
                    while line:
                        room = next(
                            end for end in range(len(line), 0, -1)
                            if pen.textlength(line[:end], font) <= 2 * SIDE
                            and (end == len(line) or line[end] == " ")
                        )  # fmt: skip
                        pen.text((0, top), line[:room], "black", font)
                        line, top = line[room:].strip(), top + 12
                tiles.append(tile)
    across = 2
    down = -(-len(tiles) // across)
    width, height = tiles[0].size
    sheet = Image.new("RGB", (across * (width + GAP) + GAP, down * (height + GAP) + GAP), "white")
    for place, tile in enumerate(tiles):
        col, row = place // down, place % down
        sheet.paste(tile, (GAP + col * (width + GAP), GAP + row * (height + GAP)))
    sheet.save(args.picture, quality=88)


if __name__ == "__main__":
    main()
