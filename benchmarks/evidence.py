"""Bounds of what `--evidence` is worth, by scripted readers: measured without a vision-language model.

    python benchmarks/evidence.py FOLDER... --scenes 300

A reader that copies the evidence out of its prompt is the ceiling of a model that trusts the evidence and
adds nothing of its own; the rule of the mask head is the floor of what the evidence model knows. A reader
without evidence says the same about every pair: yes or no, whichever is right more often, no new objects,
every cell. The difference between the copy and the evidence model's own answers is what the sentence loses.

Synthetic scenes are those of `nano_scores.py`; a FOLDER of real pairs is as `compare_weights.py` reads it.
Prints a Markdown table on stdout, messages on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402

from benchmarks.compare_weights import Answered, Truth, ask, read_truths  # noqa: E402
from benchmarks.nano_scores import KINDS, cells_of  # noqa: E402
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.data.synthetic.cache import render_cache  # noqa: E402
from deltavlm.data.synthetic.facts import MIN_GROUND_SHARE, MIN_INSTANCE_SHARE  # noqa: E402
from deltavlm.metrics import sets  # noqa: E402
from deltavlm.model.chat_turns import chat_turns  # noqa: E402
from deltavlm.model.interface import (  # noqa: E402
    ChangeModel,
    Labelled,
    Masks,
    PairContext,
    Pixels,
    Question,
    Reply,
)
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.pipeline.evidence import EvidencedModel  # noqa: E402
from deltavlm.scoring.synthetic import predict_scenes, score_scenes  # noqa: E402
from deltavlm.tasks import TASKS  # noqa: E402
from deltavlm.tasks.count import Counts  # noqa: E402
from deltavlm.tasks.locate import LABELS, Cells  # noqa: E402

_SENTENCE = re.compile(
    r"probability of (?P<score>[\d.]+) .*counts (?P<roads>[\d,]+) new roads? and (?P<buildings>[\d,]+) new "
    r"buildings?.*roads \((?P<road_cells>[^)]*)\).*buildings \((?P<building_cells>[^)]*)\)"
)


@dataclass(frozen=True)
class Statement:
    """Answers about one pair."""

    score: float  # probability of change
    counts: Counts
    cells: Cells

    def reply(self, question: Question) -> Reply:
        """The answer to a standard question, in the words of its task."""
        changed = self.score >= 0.5
        values = {"change": changed, "count": self.counts, "location": self.cells}
        text = TASKS[question.name].format(values[question.name]) if question.name in values else ""  # type: ignore[index]
        return Reply(text, self.score if question.yes_no else 0.0)


@dataclass
class ScriptedReader(Labelled):
    """A ChangeModel without weights: a statement about each pair, from what `encode` makes of it."""

    state: Callable[[Any], list[Statement]]
    encode_pairs: Callable[[Pixels, Pixels, Sequence[PairContext]], Any]
    name: str = "scripted reader"
    fingerprint: str = "0" * 16
    device: str = "cpu"
    details: dict[str, Any] = field(default_factory=dict)
    chip_px: int = 256
    training_gsd_m: float | None = None
    phrasebook: str = "generic"
    reads_context: bool = True
    workers: int = 1

    def auto_batch_size(self) -> int:
        return 16

    def init_worker(self) -> None:
        """Nothing to set up."""

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> Any:
        return self.encode_pairs(before, after, contexts or [PairContext()] * len(before))

    def answer(
        self, encoded: Any, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        statements = self.state(encoded)
        chosen = statements if pairs is None else [statements[pair] for pair in pairs]
        return [[each.reply(question) for question in questions] for each in chosen]

    def answer_rows(self, encoded: Any, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        statements = self.state(encoded)
        return [statements[pair].reply(question) for pair, question in rows]

    def masks(self, encoded: Any) -> Masks | None:
        return None


@dataclass
class _EncodedOnce:
    """The evidence model, which encodes each batch once for all readers."""

    model: Any
    batches: dict[bytes, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> Any:
        key = hashlib.sha256(before.tobytes() + after.tobytes()).digest()
        if key not in self.batches:
            self.batches[key] = self.model.encode(before, after)
        return self.batches[key]


def copy_of(context: PairContext) -> Statement:
    """Statement in the text of a prompt. Raises: ValueError where there is none."""
    turns = chat_turns(context, Question("change", "?"))
    text = " ".join(item.get("text", "") for item in turns[0]["content"])
    match = _SENTENCE.search(text)
    if match is None:
        raise ValueError(f"no evidence in {text!r}")
    roads, buildings = (int(match[name].replace(",", "")) for name in ("roads", "buildings"))
    road_cells, building_cells = (
        () if match[name] == "none" else tuple(match[name].split(", "))
        for name in ("road_cells", "building_cells")
    )
    return Statement(float(match["score"]), Counts(roads, buildings), Cells(road_cells, building_cells))


def copying_reader() -> ScriptedReader:
    """Reader that copies the evidence out of its prompt."""
    return ScriptedReader(
        lambda contexts: [copy_of(each) for each in contexts], lambda before, after, contexts: contexts
    )


def constant_reader() -> ScriptedReader:
    """Reader without evidence: yes, no new objects, every cell."""
    statement = Statement(1.0, Counts(0, 0), Cells(LABELS, LABELS))
    return ScriptedReader(
        lambda count: [statement] * count, lambda before, after, contexts: len(before), name="constant"
    )


def rule_reader(model: Any) -> ScriptedReader:
    """Reader of the mask head's rule; see `nano_scores.score_rule`."""

    def state(encoded: Any) -> list[Statement]:
        masks = model.masks(encoded)
        assert masks is not None
        sums = model.counts(encoded).round().astype(int).tolist()
        return [
            _by_rule(labels, len(masks.classes), Counts(*numbers))
            for labels, numbers in zip(masks.labels, sums, strict=True)
        ]

    return ScriptedReader(state, lambda before, after, contexts: model.encode(before, after), name="rule")


def _by_rule(labels: Pixels, classes: int, counts: Counts) -> Statement:
    """Statement of a mask: yes where a class covers enough of it, and the cells that it covers enough of."""
    shares = np.bincount(labels.ravel(), minlength=classes) / labels.size
    changed = (shares[1:5] >= MIN_INSTANCE_SHARE).any() or (shares[5:] >= MIN_GROUND_SHARE).any()
    buildings, roads = (tuple(cells_of(np.isin(labels, codes))) for codes in ((1, 2), (3, 4)))
    return Statement(float(changed), counts, Cells(roads, buildings))


def score_made(model: ChangeModel, cache: Path) -> dict[str, float]:
    """Scores on the scenes of a cache."""
    scores = score_scenes(*predict_scenes(model, cache))
    return {
        "yes/no accuracy": scores["yes_no_accuracy"],
        "count, mean error": scores["count_mae_all"],
        "cells F1, buildings": scores["cell_f1_buildings"],
        "cells F1, roads": scores["cell_f1_roads"],
    }


def score_real(model: ChangeModel, truths: Sequence[Truth]) -> dict[str, float]:
    """Scores on real pairs: of buildings alone, as their masks are of buildings or of any object."""
    answers: list[Answered] = ask(model, truths)
    changed = [(a.p_yes >= 0.5, a.truth.changed) for a in answers if a.truth.changed is not None]
    errors = [abs(a.buildings - a.truth.buildings) for a in answers if a.truth.buildings is not None]
    return {
        "yes/no accuracy": float(np.mean([answer == truth for answer, truth in changed])),
        "count, mean error": float(np.mean(errors)) if errors else float("nan"),
        "cells F1, buildings": sets.micro_average(
            [a.cells for a in answers], [a.truth.cells for a in answers]
        ).f1,
        "cells F1, roads": float("nan"),
    }


def print_rows(
    table: Table, name: str, nano: ChangeModel, score: Callable[[ChangeModel], dict[str, float]]
) -> None:
    """One row for each reader."""
    for reader, model in (
        ("same answer for every pair", constant_reader()),
        ("rule of the mask head", rule_reader(nano)),
        ("nano's own answers", nano),
        ("copy of the evidence", EvidencedModel(copying_reader(), nano)),
    ):
        values = score(model)
        if reader.startswith("same"):
            values["yes/no accuracy"] = max(values["yes/no accuracy"], 1 - values["yes/no accuracy"])
        cells = {key: "" if np.isnan(value) else f"{value:.3f}" for key, value in values.items()}
        table.row({"pairs": name, "reader": reader, **cells})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="folders of real pairs")
    parser.add_argument("--model", default="nano", help="evidence model")
    parser.add_argument("--scenes", type=int, default=300, help="synthetic scenes to score; 0 for none")
    args = parser.parse_args()
    model: Any = _EncodedOnce(load_model(args.model))
    table = Table()
    print(f"{heading(1)}; {model.label}\n")
    if args.scenes:
        with tempfile.TemporaryDirectory() as scratch:
            cache = Path(scratch)
            render_cache(cache, args.scenes, **KINDS["made"][1])
            print_rows(table, f"synthetic ({args.scenes})", model, partial(score_made, cache=cache))
    for folder in args.folders:
        truths = [each for each in read_truths(folder) if each.changed is not None]
        for source in dict.fromkeys(each.source for each in truths):
            pairs = [each for each in truths if each.source == source]
            print_rows(table, f"{source} ({len(pairs)})", model, partial(score_real, truths=pairs))


if __name__ == "__main__":
    main()
