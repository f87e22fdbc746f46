"""ChangeChat-105k's layout on disk: pictures in images/SPLIT/A and B, questions and answers in JSON files.

Two schemas (dataset card of hlwu/changechat-105k): captions as `{image_A, image_B, captions, changeflag}`,
everything else as `{id, image: [A, B], changeflag, conversations: [{from: human | gpt, value}, ...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic import phrases
from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.data.synthetic.scene import Scene
from deltavlm.tasks import caption, classify, count, locate

IMAGES = "<image> <image> "  # how the first question of a conversation begins
NAME, SIZE_PX = "changechat_105k", 256
RELEASED_RECORDS: Mapping[str, int] = {  # the files of ChangeChat-105k, with their records
    f"{NAME}_train.json": 87_935,
    f"{NAME}_train_loc.json": 87_935,
    f"{NAME}_test.json": 1_929,
    f"{NAME}_test_binary.json": 1_929,
    f"{NAME}_test_count.json": 1_929,
    f"{NAME}_test_loc.json": 1_929,
    f"{NAME}_test_dialog.json": 1_929,
    f"{NAME}_test_open.json": 7_527,
}


def conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Turns as messages; the first names the two pictures."""
    messages = []
    for index, (question, answer) in enumerate(turns):
        messages.append({"from": "human", "value": (IMAGES if index == 0 else "") + question})
        messages.append({"from": "gpt", "value": answer})
    return messages


@dataclass(frozen=True, slots=True)
class ImagePair:
    """What every record of a pair says: its name, its two pictures, whether it changed."""

    name: str
    paths: tuple[str, str]  # relative to the folder of images: SPLIT/A/NAME.png, SPLIT/B/NAME.png
    changed: bool

    def conversation_record(self, kind: str, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """A record of questions and answers; `kind` ends its id."""
        return {
            "id": f"{self.name}_{kind}",
            "image": list(self.paths),
            "changeflag": int(self.changed),
            "conversations": conversation(turns),
        }

    def caption_record(self, captions: Sequence[str]) -> dict[str, Any]:
        """A record of captions."""
        before, after = self.paths
        flag = int(self.changed)
        return {"image_A": before, "image_B": after, "captions": list(captions), "changeflag": flag}


def records(pair: ImagePair, facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """What the files of a split say of one pair: file suffix ("" for captions) -> records."""
    return {
        "": [pair.caption_record(phrases.captions(facts))],
        "_binary": [
            pair.conversation_record("binary", [(classify.PROMPT, classify.format_answer(facts.changed))])
        ],
        "_count": [
            pair.conversation_record(
                "count", [(count.PROMPT, phrases.count_answer(facts.changed, phrases.counts_of(facts)))]
            )
        ],
        "_loc": [
            pair.conversation_record("loc", [(locate.PROMPT, locate.format_answer(phrases.cells_of(facts)))])
        ],
        "_open": [
            pair.conversation_record(f"open_{index}", [(turn.question, turn.answer)])
            for index, turn in enumerate(phrases.open_questions(facts))
        ],
        "_dialog": [
            pair.conversation_record(
                "dialog", [(turn.question, turn.answer) for turn in phrases.dialogue(facts)]
            )
        ],
    }


def training_records(pair: ImagePair, every: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A pair's records as the training file has them: a caption a record, then all other instructions."""
    told = [
        pair.conversation_record(f"caption_{index}", [(caption.PROMPT, sentence)])
        for record in every.get("", ())
        for index, sentence in enumerate(record["captions"])
    ]
    return told + [record for suffix, part in every.items() if suffix for record in part]


def write_chip_set(
    folder: Path,
    split: str,
    scenes: Iterable[tuple[str, Scene]],
    *,
    compress: Literal["png", "jpeg"] = "png",
) -> int:
    """Writes named scenes as a split: pictures, `label` maps of change codes, and JSON files; returns how
    many.

    The files are `synthetic_SPLIT.json` (captions) and `synthetic_SPLIT_binary.json`, `_count`, `_loc`,
    `_open`, `_dialog`; for "train" one `synthetic_train.json` of instructions, as ChangeChat-105k has it.
    With "jpeg" the two pictures are NAME.jpg, lossy and a tenth of the size; labels are PNG always.
    """
    ending = {"png": ".png", "jpeg": ".jpg"}[compress]
    files: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for name, scene in scenes:
        facts = facts_of(scene.change, scene.instances, scene.cover)
        images = folder / "images"
        pair = ImagePair(name, (f"{split}/A/{name}{ending}", f"{split}/B/{name}{ending}"), facts.changed)
        for path, pixels in zip(pair.paths, (scene.before, scene.after), strict=True):
            save_image(images / path, pixels)
        save_image(images / split / "label" / f"{name}.png", scene.change)
        every = records(pair, facts)
        if split == "train":
            every = {"": training_records(pair, every)}
        for suffix, part in every.items():
            files.setdefault(suffix, []).extend(part)
        number += 1
    write_json_files(
        folder, {f"synthetic_{split}{suffix}.json": content for suffix, content in files.items()}
    )
    return number


def write_json_files(folder: Path, files: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """JSON files by name, each whole or not there."""
    for name, content in files.items():
        scratch = folder / f".{name}.tmp"
        scratch.write_text(json.dumps(content, indent=1) + "\n")
        scratch.replace(folder / name)


def save_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """In the format of the path's ending; JPEG with Pillow's own quality, 75."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
