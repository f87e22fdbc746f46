"""Records of data sets, in the formats that the readers know."""

from __future__ import annotations

from typing import Any

from deltavlm.tasks import classify

PAIR = ["test/A/x.png", "test/B/x.png"]
IMTI_ROOT = "/data/coding/datasets/LEVIR-MCI-dataset/images"


def record(**changes: Any) -> dict[str, Any]:
    messages = [
        {"from": "human", "value": "<image> <image> " + classify.PROMPT},
        {"from": "gpt", "value": "yes"},
    ]
    values = {"id": "x_1", "image": PAIR, "changeflag": 1, "conversations": messages}
    return {key: value for key, value in (values | changes).items() if value is not None}


def caption_record(**changes: Any) -> dict[str, Any]:
    record = {"image_A": PAIR[0], "image_B": PAIR[1], "captions": ["a .", "b ."], "changeflag": 1}
    return {key: value for key, value in (record | changes).items() if value is not None}


def imti_record(name: str, *said: str, split: str = "test", **changes: Any) -> dict[str, Any]:
    """Record with alternating questions and answers."""
    speakers = ("human", "gpt")
    messages = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(said)]
    images = [f"{IMTI_ROOT}/{split}/{date}/{name}" for date in "AB"]
    return {"conversations": messages, "images": images} | changes
