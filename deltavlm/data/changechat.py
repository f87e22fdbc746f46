"""ChangeChat-105k: facts about the set, its record schemas, and a writer of sets in its layout.

- Content: visual instructions on image pairs: captions, yes/no, counts, locations in a 3x3 grid, open
  questions, dialogues of three turns.
- Size: 105,107 instructions on 8,744 pairs: 87,935 train (34,075 captions, five a pair; 6,815 each of yes/no,
  counts, locations and dialogues; 26,600 open questions), 17,172 test. `RELEASED_RECORDS` has the files.
- Splits: train 6,815 pairs, test 1,929; its validation file is not released.
- Images: those of LEVIR-CC, 256 x 256 px at 0.5 m, RGB, not part of the set; for academic use.
- Classes: what changed is told of roads and buildings.
- License: CC-BY-4.0 (texts).
- Source: https://huggingface.co/datasets/hlwu/changechat-105k
- Paper: DeltaVLM, https://doi.org/10.3390/rs18040541, arXiv 2507.22346.

Two schemas, in JSON lists: captions are `{image_A, image_B, captions, changeflag}`, everything else is
`{id, image: [A, B], changeflag, conversations: [{from: human | gpt, value}, ...]}`. Paths of images are
relative to a folder of images: SPLIT/A/NAME and SPLIT/B/NAME.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltavlm.data.images import save_image
from deltavlm.data.synthetic import phrases
from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.data.synthetic.scene import Scene
from deltavlm.files import write_atomic
from deltavlm.tasks import caption, classify, count, locate

IMAGE_MARKS = "<image> <image> "  # the first question of a conversation begins with these
NAME, SIZE_PX = "changechat_105k", 256
RELEASED_RECORDS: Mapping[str, int] = {  # of each released file
    f"{NAME}_train.json": 87_935,
    f"{NAME}_train_loc.json": 87_935,
    f"{NAME}_test.json": 1_929,
    f"{NAME}_test_binary.json": 1_929,
    f"{NAME}_test_count.json": 1_929,
    f"{NAME}_test_loc.json": 1_929,
    f"{NAME}_test_dialog.json": 1_929,
    f"{NAME}_test_open.json": 7_527,
}

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Name, image paths and change flag of a pair: the content that all of its records share."""

    name: str
    paths: tuple[str, str]  # relative to the folder of images: SPLIT/A/NAME.png, SPLIT/B/NAME.png
    changed: bool

    def caption_record(self, captions: Sequence[str]) -> Record:
        """Record in the schema of captions."""
        before, after = self.paths
        flag = int(self.changed)
        return {"image_A": before, "image_B": after, "captions": list(captions), "changeflag": flag}

    def conversation_record(self, kind: str, turns: Sequence[QuestionAnswer]) -> Record:
        """Record in the schema of conversations, with the id NAME_KIND."""
        messages = []
        for index, turn in enumerate(turns):
            question = (IMAGE_MARKS if index == 0 else "") + turn.question
            messages += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answer}]
        return {
            "id": f"{self.name}_{kind}",
            "image": list(self.paths),
            "changeflag": int(self.changed),
            "conversations": messages,
        }

    def open_records(self, turns: Sequence[QuestionAnswer]) -> list[Record]:
        """One record for each open question."""
        return [self.conversation_record(f"open_{index}", [turn]) for index, turn in enumerate(turns)]


def scene_records(pair: ImagePair, facts: Facts) -> dict[str, list[Record]]:
    """Records of a synthetic scene by file name suffix; that of the caption file is empty."""
    counts, cells = phrases.counts_of(facts), phrases.cells_of(facts)
    answers = {
        "binary": QuestionAnswer(classify.PROMPT, classify.format_answer(facts.changed)),
        "count": QuestionAnswer(count.PROMPT, phrases.count_answer(facts.changed, counts)),
        "loc": QuestionAnswer(locate.PROMPT, locate.format_answer(cells)),
    }
    return {
        "": [pair.caption_record(phrases.captions(facts))],
        **{f"_{kind}": [pair.conversation_record(kind, [turn])] for kind, turn in answers.items()},
        "_open": pair.open_records(phrases.open_questions(facts)),
        "_dialog": [pair.conversation_record("dialog", phrases.dialogue(facts))],
    }


def training_records(pair: ImagePair, records: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Records of a pair in the order of a training file: one for each caption, then the other tasks."""
    captions = [
        pair.conversation_record(f"caption_{index}", [QuestionAnswer(caption.PROMPT, sentence)])
        for record in records.get("", ())
        for index, sentence in enumerate(record["captions"])
    ]
    return captions + [record for suffix, group in records.items() if suffix for record in group]


def write_chip_set(
    folder: Path,
    split: str,
    scenes: Iterable[tuple[str, Scene]],
    *,
    compress: Literal["png", "jpeg"] = "png",
) -> int:
    """Write named scenes as one split: images, `label` maps of change codes, JSON files; returns the count.

    The files are `synthetic_SPLIT.json` (captions) and `synthetic_SPLIT_binary.json`, `_count`, `_loc`,
    `_open`, `_dialog`; for "train" a single `synthetic_train.json` of instructions, as in ChangeChat-105k.
    With "jpeg" images are lossy NAME.jpg, a tenth of the size; labels are always PNG.
    """
    suffix = {"png": ".png", "jpeg": ".jpg"}[compress]
    files: dict[str, list[Record]] = {}
    number = 0
    images = folder / "images"
    for name, scene in scenes:
        number += 1
        facts = facts_of(scene.change, scene.instances, scene.cover)
        pair = ImagePair(name, (f"{split}/A/{name}{suffix}", f"{split}/B/{name}{suffix}"), facts.changed)
        for path, pixels in zip(pair.paths, (scene.before, scene.after), strict=True):
            save_image(images / path, pixels)
        save_image(images / split / "label" / f"{name}.png", scene.change)
        records = scene_records(pair, facts)
        if split == "train":
            records = {"": training_records(pair, records)}
        for kind, group in records.items():
            files.setdefault(f"synthetic_{split}{kind}.json", []).extend(group)
    write_json_files(folder, files)
    return number


def write_json_files(folder: Path, files: Mapping[str, Sequence[Record]]) -> None:
    """Write JSON lists by file name, each atomically. Raises: OSError."""
    for name, records in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, json.dumps(records, indent=1) + "\n")
