"""Questions typed by hand: which of them a model answers, and which it says that it was not taught to answer.

    python benchmarks/questions.py [--model nano] [--set typed,second] [--draws 200000]

`questions.jsonl` has the questions: "typed" (100 answerable, 100 not) and "second" (30 and 30, as other
people would ask) were written before any result was seen and never used to choose anything; "development" was
used to choose patterns and sizes. None was made from the patterns that the model is trained with; `--draws`
says how many of them these patterns give all the same. A question is asked about the sample pair as
`deltavlm chat` asks it, after the turns before it.

Prints Markdown on stdout, the questions that were misjudged on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.geo.chips import chip_at  # noqa: E402
from deltavlm.geo.pair import PairReader, RasterPair, open_pair  # noqa: E402
from deltavlm.model.interface import ChangeModel  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.pipeline.conversation import Conversation, EncodedChip, encode_chip  # noqa: E402
from deltavlm.tasks.text import simplify  # noqa: E402
from deltavlm.training.scope import sample_question  # noqa: E402

POINT = (15.0009, 48.7501)  # of the sample pair; the images do not matter where the words decide
COLUMNS = {"answerable: answered": True, "others: refused": False}
NORMAL = 1.959964  # quantile of a 95 % interval


@dataclass(frozen=True, slots=True)
class TypedQuestion:
    """Question with the turns before it, and whether it can be answered."""

    group: str
    answerable: bool
    kind: str
    turns: tuple[str, ...]


def read_questions(path: Path) -> list[TypedQuestion]:
    """Questions of a file of JSON lines."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        TypedQuestion(record["set"], record["answerable"], record["kind"], tuple(record["turns"]))
        for record in records
    ]


def is_answered(
    reader: PairReader, model: ChangeModel, chip: EncodedChip, question: TypedQuestion
) -> tuple[bool, str]:
    """True if the last turn of a conversation is answered, and the answer."""
    talk = Conversation(reader, model, chip)
    for turn in question.turns:
        record = talk.ask(turn)
    return record["status"] == "answered", record["answer"]


def ask_each(
    model: ChangeModel, questions: Iterable[TypedQuestion]
) -> Iterator[tuple[TypedQuestion, bool, str]]:
    """Each question with whether it is answered, and the answer, about a chip of the sample pair."""
    pair = RasterPair(*(str(ROOT / "sample_data" / f"{date}.tif") for date in ("before", "after")))
    with open_pair(pair) as reader:
        chip = encode_chip(reader, model, chip_at(reader, *POINT, 256))
        for question in questions:
            yield question, *is_answered(reader, model, chip, question)


def wilson(hits: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z = hits / number, NORMAL**2 / number
    middle = (share + z / 2) / (1 + z)
    half = NORMAL * math.sqrt(share * (1 - share) / number + z / (4 * number)) / (1 + z)
    return middle - half, middle + half


def format_share(right: list[bool]) -> str:
    """`97 of 100 (0.970, 0.92 to 0.99)`."""
    hits, number = sum(right), len(right)
    low, high = wilson(hits, number)
    return f"{hits} of {number} ({hits / number:.3f}, {low:.2f} to {high:.2f})"


def drawn_texts(number: int) -> Iterator[str]:
    """Texts of random training questions."""
    rng = np.random.default_rng(20)
    for _ in range(number):
        yield simplify(sample_question(rng)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="name of a shipped model or a checkpoint folder")
    parser.add_argument("--set", default="typed,second", help="sets of questions, separated by commas")
    parser.add_argument(
        "--draws", type=int, default=0, help="random training questions to look for equal ones in"
    )
    args = parser.parse_args()
    groups = args.set.split(",")
    questions = [each for each in read_questions(ROOT / "benchmarks/questions.jsonl") if each.group in groups]
    model = load_model(args.model, device="cpu")
    right: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    by_kind: dict[tuple[str, bool, str], list[bool]] = defaultdict(list)
    for question, answered, answer in ask_each(model, questions):
        is_right = answered == question.answerable
        right[question.group, question.answerable].append(is_right)
        by_kind[question.group, question.answerable, question.kind].append(is_right)
        if not is_right:
            verdict = "answered" if answered else "refused"
            print(f"{question.group}: {verdict}: {' / '.join(question.turns)} -> {answer}", file=sys.stderr)
    print(heading(torch.get_num_threads()), f"model {model.label}\n", sep="; ")
    table = Table()
    for group in groups:
        rates = {text: format_share(right[group, flag]) for text, flag in COLUMNS.items()}
        table.row({"set": group, **rates})
    print()
    table = Table()
    for (group, answerable, kind), flags in by_kind.items():
        name = kind if answerable else f"{kind}, not answerable"
        table.row({"set": group, "kind": name, "right": f"{sum(flags)} of {len(flags)}"})
    if args.draws:
        texts = {simplify(question.turns[-1]) for question in questions if len(question.turns) == 1}
        found = texts & {*drawn_texts(args.draws)}
        print(
            f"\n{len(found)} of {len(texts)} questions without history are among {args.draws:,} drawn ones."
        )


if __name__ == "__main__":
    main()
