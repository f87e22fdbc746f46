"""Set of four made pairs and a short configuration, to train adapters of tiny models on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deltavlm.data.images import save_image
from deltavlm.tasks import TASKS
from deltavlm.training.config import Adapter, Phase, RecordSet, TrainConfig

CAPTIONS = ("a house is built", "a road appears", "trees are cut", "the scene is the same as before")
OPEN = "What was there before?"
PHASE = Phase(
    part="adapter", steps=40, batch=8, lr=1e-2, warmup=5, weight_decay=0.0, balance="token", floor=0.05
)


def write_set(folder: Path) -> Path:
    """Write four pairs with a caption and a yes/no question, and other kinds of records for the first."""
    records: list[dict[str, Any]] = []
    for scene, sentence in enumerate(CAPTIONS):
        rng = np.random.default_rng(scene)
        for date in "AB":
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            save_image(folder / "images" / f"{scene}_{date}.png", pixels)
        turns = [
            [(TASKS["caption"].prompt, sentence)],
            [(TASKS["change"].prompt, "no" if scene == 3 else "yes")],
        ]
        if scene == 0:
            turns += [
                [(TASKS["count"].prompt, "There are 0 new roads and 2 new buildings.")],
                [(TASKS["location"].prompt, "roads [] buildings ['top-left']")],
                [(OPEN, "a field")],
                [("How many houses?", "two"), ("And roads?", "none")],
            ]
        for conversation in turns:
            messages: list[dict[str, str]] = []
            for question, answer in conversation:
                place = "" if messages else "<image> <image> "
                messages += [
                    {"from": "human", "value": f"{place}{question}"},
                    {"from": "gpt", "value": answer},
                ]
            records.append(
                {
                    "id": f"{scene}_{len(records)}",
                    "image": [f"{scene}_A.png", f"{scene}_B.png"],
                    "changeflag": int(scene != 3),
                    "conversations": messages,
                }
            )
    (folder / "made_train.json").write_text(json.dumps(records))
    return folder


def recipe(folder: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "phases": {"tune": PHASE},
        "adapter": Adapter(rank=16, alpha=32, dropout=0.0),
        "sets": {"made": RecordSet(folder / "set")},
        "ema": 0.0,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainConfig(f"hf:{folder / 'base'}", **(options | changes))
