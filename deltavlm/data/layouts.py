"""Records of a pair in the layouts of the published question sets, for sets that are built from masks.

    changechat-105k    NAME_SPLIT*.json, see `changechat`
    changechat-87k     NAME_SPLIT.json, see `changechat_87k`; a place is a polygon
    changeimti         SPLIT_task_data/TASK.json, see `changeimti`; roads and buildings have their own records

Each layout has the label rule of its set (`masks.MaskRules.rule`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltavlm.data import changeimti
from deltavlm.data.changechat import ImagePair, Record, training_records
from deltavlm.data.synthetic.phrases import QuestionAnswer, count_answer, count_sentence
from deltavlm.tasks import caption, classify, contours, count, dialogue, locate
from deltavlm.tasks.phrasing import CHANGECHAT_87K, CHANGEIMTI

__all__ = ["LAYOUTS", "RULES", "Layout", "PairContent", "files_of", "records_of"]

Layout = Literal["changechat-105k", "changechat-87k", "changeimti"]
Files = dict[str, list[Record]]

RULES: Mapping[Layout, Literal["components", "changechat", "changeimti"]] = {
    "changechat-105k": "components",
    "changechat-87k": "changechat",
    "changeimti": "changeimti",
}
"""Layout -> label rule of its set. That of ChangeChat-105k is not published."""
SUFFIXES = ("", "_binary", "_count", "_loc", "_open", "_dialog")  # of the files of a test split
CHANGED_IMTI = (
    "Have there been any changes to the roads and buildings in these two images:<image> and <image>?"
)
DESCRIBE_IMTI = "Please describe the changes."


@dataclass(frozen=True, slots=True)
class PairContent:
    """Content of the records of a pair."""

    name: str  # of its files, without the suffix
    paths: tuple[str, str]  # SPLIT/A/NAME, SPLIT/B/NAME
    changed: bool
    counts: count.Counts
    cells: locate.Cells
    polygons: contours.Contours
    captions: tuple[str, ...]
    questions: Sequence[QuestionAnswer] | None  # open ones; None if they are not wanted

    @property
    def values(self) -> Mapping[Any, Any]:
        """Values of the tasks, as phrases write them."""
        return {"change": self.changed, "count": self.counts, "location": self.cells}


def records_of(content: PairContent, layout: Layout, name: str, split: str) -> Files:
    """Records of a pair by file; `name` is that of the set."""
    return LAYOUTS[layout](content, name, split)


def files_of(layout: Layout, name: str, split: str) -> list[str]:
    """All files that a split can have."""
    if layout == "changeimti":
        return [f"{split}_task_data/{file}" for file in changeimti.FILES]
    if layout == "changechat-87k" or split == "train":
        return [f"{name}_{split}.json"]
    return [f"{name}_{split}{suffix}.json" for suffix in SUFFIXES]


def changechat_105k(content: PairContent, name: str, split: str) -> Files:
    """Records of a file for each task; of a training split all in one."""
    pair = ImagePair(content.name, content.paths, content.changed)
    yes_no = classify.format_answer(content.changed)
    turns = [
        QuestionAnswer(dialogue.TURNS[0], yes_no),
        QuestionAnswer(dialogue.TURNS[1], count_sentence(content.counts)),
        *(QuestionAnswer(dialogue.TURNS[2], sentence) for sentence in content.captions[:1]),
    ]
    answers = {
        "binary": QuestionAnswer(classify.PROMPT, yes_no),
        "count": QuestionAnswer(count.PROMPT, count_answer(content.changed, content.counts)),
        "loc": QuestionAnswer(locate.PROMPT, locate.format_answer(content.cells)),
    }
    records = {f"_{kind}": [pair.conversation_record(kind, [turn])] for kind, turn in answers.items()}
    records["_dialog"] = [pair.conversation_record("dialog", turns)]
    if content.captions:
        records[""] = [pair.caption_record(content.captions)]
    if content.questions is not None:
        records["_open"] = pair.open_records(content.questions)
    if split == "train":
        records = {"": training_records(pair, records)}
    return {f"{name}_{split}{suffix}.json": group for suffix, group in records.items()}


def changechat_87k(content: PairContent, name: str, split: str) -> Files:
    """Records of the types 1 (one for each caption), 2, 4, 5 and 6; those of type 3 are written by hand."""
    book, pair = CHANGECHAT_87K, ImagePair(content.name, content.paths, content.changed)
    sentences = [str(book.phrase("caption").write({"caption": each})) for each in content.captions]
    counts = str(book.phrase("count").write(content.values))
    yes_no = str(book.phrase("change").write(content.values))
    turns = [(dialogue.TURNS[0], yes_no), (dialogue.TURNS[1], counts)]
    turns += [(dialogue.TURNS[2], sentence) for sentence in sentences[:1]]
    typed: list[tuple[int, str, Sequence[tuple[str, str]]]] = [
        *((1, f"caption_{index}", [(caption.PROMPT, each)]) for index, each in enumerate(sentences)),
        (2, "binary", [(classify.PROMPT, yes_no)]),
        (4, "contours", [(contours.PROMPT, contours.format_answer(content.polygons))]),
        *(
            (5, f"open_{index}", [(each.question, each.answer)])
            for index, each in enumerate(content.questions or ())
        ),
        (6, "dialog", turns),
    ]
    records = [
        pair.conversation_record(kind, [QuestionAnswer(*turn) for turn in exchange]) | {"type": number}
        for number, kind, exchange in typed
    ]
    return {f"{name}_{split}.json": records}


def changeimti_files(content: PairContent, name: str, split: str) -> Files:
    """Records of the seven task files; one caption and one dialogue for each reference, and one of an
    unchanged pair. A dialogue asks for the count or for the places, by the name of the pair."""
    book, values = CHANGEIMTI, content.values

    def record(*turns: tuple[str, str]) -> Record:
        messages = [
            {"from": sender, "value": text}
            for turn in turns
            for sender, text in zip(("human", "gpt"), turn, strict=True)
        ]
        return {"conversations": messages, "images": list(content.paths)}

    def single(task: Any) -> list[tuple[str, str]]:
        """Question and answer about roads, and about buildings."""
        phrase = book.phrase(task)
        answers = str(phrase.write(values)).split("\n")
        return list(zip(phrase.prompt.split("\n"), answers, strict=True))

    (change,) = single("change")
    number, location = single("count"), single("location")
    has_one_caption = bool(content.captions) and not content.changed
    references = ("there is no difference",) if has_one_caption else content.captions
    sentences = [str(book.phrase("caption").write({"caption": each})) for each in references]
    is_counted = [zlib.crc32(f"{content.name} {kind}".encode()) % 2 == 0 for kind in ("road", "building")]
    middle = [
        (question.replace(":<image> and <image>", "") + "?" * counted, answer)
        for counted, (question, answer) in zip(
            is_counted,
            ((number if counted else location)[index] for index, counted in enumerate(is_counted)),
            strict=True,
        )
    ]
    prompt = book.phrase("caption").prompt.removeprefix("<guide>")
    groups = {
        "caption.json": [record((prompt, sentence)) for sentence in sentences],
        "binary_class.json": [record(change)],
        "count_road.json": [record(number[0])],
        "count_build.json": [record(number[1])],
        "loc_road.json": [record(location[0])],
        "loc_build.json": [record(location[1])],
        "mul.json": [
            record((CHANGED_IMTI, change[1]), *middle, (DESCRIBE_IMTI, sentence)) for sentence in sentences
        ],
    }
    return {f"{split}_task_data/{file}": group for file, group in groups.items() if group}


LAYOUTS: Mapping[Layout, Callable[[PairContent, str, str], Files]] = {
    "changechat-105k": changechat_105k,
    "changechat-87k": changechat_87k,
    "changeimti": changeimti_files,
}
