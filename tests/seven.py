"""Model of the 7B's structure with a few thousand parameters, and eight examples for it that only the
difference module can tell apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from deltavlm.config import to_mapping
from deltavlm.data.changechat import save_image
from deltavlm.model import checkpoint
from deltavlm.model.config import DeltaVLMConfig, DenseConfig, DifferenceConfig, VisionConfig
from deltavlm.model.folder import CONFIG, DENSE, TOKENIZER
from deltavlm.model.tokenizer import train_codec
from deltavlm.tasks import caption
from tests.tiny import TINY, tiny_model

SEVEN: DeltaVLMConfig = replace(
    TINY,
    name="seven",
    vision=VisionConfig(
        tower="eva_giant_patch14_clip_224",
        image_px=28,
        patch_px=14,
        width=32,
        depth=3,
        heads=2,
        mlp_ratio=2.0,
        prefix_tokens=1,
    ),
    difference=DifferenceConfig(mode="csrm", dropout=0.0),
    dense=None,
    qformer=replace(TINY.qformer, queries=8),
    language=replace(TINY.language, hidden=64, intermediate=96, tied=False),
    chip_px=28,
)

HEAD = DenseConfig(
    classes=("none", "building", "road", "other"), counted=("building",), width=8, evidence=False
)
WITH_HEAD: DeltaVLMConfig = replace(SEVEN, dense=HEAD)

# A pair and the same with exchanged dates have the same images, and the Q-Former's keys have no order: if the
# tokens of both dates were passed on unchanged, nothing could tell the two apart.
CAPTIONS = (
    ("a house is built", "a house is removed"),
    ("a road appears", "a road is gone"),
    ("trees are planted", "trees are cut"),
    ("water comes", "water dries up"),
)
HINTS = ("hut", "lane", "wood", "lake")


def eight_examples(folder: Path, *, hinted: bool = False) -> Path:
    """Write four scenes with both orders of their dates as a training set in ChangeChat's format.

    hinted: the question has the answer in other words, so that the language model learns to use the text
    before an answer, as one that was trained on much text does.
    """
    records = []
    for scene, captions in enumerate(CAPTIONS):
        rng = np.random.default_rng(scene)
        dates = [np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((7, 7, 1))).astype(np.uint8) for _ in "AB"]
        for date, pixels in zip("AB", dates, strict=True):
            save_image(folder / "images" / f"{scene}_{date}.png", pixels)
        for order, answer in zip(("AB", "BA"), captions, strict=True):
            question = f"{HINTS[scene]} {order}" if hinted else caption.PROMPT
            messages = [
                {"from": "human", "value": f"<image> <image> {question}"},
                {"from": "gpt", "value": answer},
            ]
            images = [f"{scene}_{date}.png" for date in order]
            records.append(
                {"id": f"{scene}_{order}", "image": images, "changeflag": 1, "conversations": messages}
            )
    (folder / "eight_train.json").write_text(json.dumps(records))
    return folder


def seven_checkpoint(folder: Path, config: DeltaVLMConfig = SEVEN) -> Path:
    """Write a checkpoint with random weights and its tokenizer, to start a training from."""
    model = tiny_model(3, config)
    checkpoint.save(folder, config, model.state_dict(), provenance={"made": "for a test"})
    corpus = [f"q {caption.PROMPT.lower().strip('.')}"] + [
        answer for captions in CAPTIONS for answer in captions
    ]
    corpus += [f"{hint} {order}" for hint in HINTS for order in ("ab", "ba")]
    train_codec(corpus * 3, config.language.vocab, folder / TOKENIZER)
    return folder


def seven_with_head(folder: Path) -> Path:
    """The 7B's architecture at small size, to which a head is added: one file, one entry of config.json."""
    seven_checkpoint(folder)
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in tiny_model(5, WITH_HEAD).state_dict().items()
        if name.startswith("dense.") and tensor.is_floating_point()
    }
    save_file(weights, folder / DENSE)
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | {"dense": to_mapping(WITH_HEAD)["dense"]}))
    return folder
