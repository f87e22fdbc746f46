"""ChangeChat-105k's layout on disk: pictures in images/SPLIT/A and B, questions and answers in JSON files.

Two schemas (dataset card of hlwu/changechat-105k): captions as `{image_A, image_B, captions, changeflag}`,
everything else as `{id, image: [A, B], changeflag, conversations: [{from: human | gpt, value}, ...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic import words
from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.data.synthetic.scene import Scene
from deltavlm.tasks import caption, classify, count, locate

IMAGES = "<image> <image> "  # how the first question of a conversation begins


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Turns as messages; the first names the two pictures."""
    messages = []
    for index, (question, answer) in enumerate(turns):
        messages.append({"from": "human", "value": (IMAGES if index == 0 else "") + question})
        messages.append({"from": "gpt", "value": answer})
    return messages


def records(name: str, split: str, facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """What the files of a split say of one pair: file suffix ("" for captions) -> records."""
    paths = [f"{split}/{date}/{name}.png" for date in "AB"]
    flag = int(facts.changed)

    def instruction(kind: str, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return {
            "id": f"{name}_{kind}",
            "image": paths,
            "changeflag": flag,
            "conversations": conversation(turns),
        }

    return {
        "": [
            {
                "image_A": paths[0],
                "image_B": paths[1],
                "captions": list(words.captions(facts)),
                "changeflag": flag,
            }
        ],
        "_binary": [instruction("binary", [(classify.PROMPT, classify.format_answer(facts.changed))])],
        "_count": [instruction("count", [(count.PROMPT, words.told_count(facts))])],
        "_loc": [instruction("loc", [(locate.PROMPT, locate.format_answer(words.located(facts)))])],
        "_open": [
            instruction(f"open_{index}", [(turn.question, turn.answer)])
            for index, turn in enumerate(words.open_questions(facts))
        ],
        "_dialog": [instruction("dialog", [(turn.question, turn.answer) for turn in words.dialogue(facts)])],
    }


def training_records(name: str, split: str, facts: Facts) -> list[dict[str, Any]]:
    """One pair in the training file: every caption a record of its own, then all other instructions."""
    every = records(name, split, facts)
    paths, flag = every["_binary"][0]["image"], int(facts.changed)
    told = [
        {
            "id": f"{name}_caption_{index}",
            "image": paths,
            "changeflag": flag,
            "conversations": conversation([(caption.PROMPT, sentence)]),
        }
        for index, sentence in enumerate(words.captions(facts))
    ]
    return told + [record for suffix, part in every.items() if suffix for record in part]


def write_chip_set(folder: Path, split: str, scenes: Iterable[tuple[str, Scene]]) -> int:
    """Writes named scenes as a split: pictures, `label` maps of change codes, and JSON files; returns how
    many.

    The files are `synthetic_SPLIT.json` (captions) and `synthetic_SPLIT_binary.json`, `_count`, `_loc`,
    `_open`, `_dialog`; for "train" one `synthetic_train.json` of instructions, as ChangeChat-105k has it.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for name, scene in scenes:
        facts = facts_of(scene.change, scene.things, scene.cover)
        for part, pixels in (("A", scene.before), ("B", scene.after), ("label", scene.change)):
            save_png(folder / "images" / split / part / f"{name}.png", pixels)
        if split == "train":
            files.setdefault("", []).extend(training_records(name, split, facts))
        else:
            for suffix, part_records in records(name, split, facts).items():
                files.setdefault(suffix, []).extend(part_records)
        number += 1
    for suffix, content in files.items():
        path = folder / f"synthetic_{split}{suffix}.json"
        scratch = path.with_name(f".{path.name}.tmp")
        scratch.write_text(json.dumps(content, indent=1) + "\n")
        scratch.replace(path)
    return number


def save_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
