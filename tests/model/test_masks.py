"""A mask head on top of a model that came without: its own file beside the weights, and answers as before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from deltavlm.config import to_mapping
from deltavlm.errors import ModelError
from deltavlm.model.config import DeltaVLMConfig, DenseConfig
from deltavlm.model.folder import CONFIG, DENSE
from deltavlm.model.interface import Question
from deltavlm.model.predictor import load_model
from deltavlm.tasks import caption
from tests.seven import SEVEN, seven_checkpoint
from tests.tiny import tiny_model

HEAD = DenseConfig(
    classes=("none", "building", "road", "other"), counted=("building",), width=8, evidence=False
)
WITH_HEAD: DeltaVLMConfig = replace(SEVEN, dense=HEAD)


def seven_with_head(folder: Path) -> Path:
    """The 7B's architecture at small size, to which a head is added: one file, one entry of config.json."""
    seven_checkpoint(folder)
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in tiny_model(5, WITH_HEAD).state_dict().items()
        if name.startswith("dense.") and tensor.is_floating_point()
    }
    save_file(weights, folder / DENSE)
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(told | {"dense": to_mapping(WITH_HEAD)["dense"]}))
    return folder


def test_masks_come_and_answers_stay(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 28, 28), np.uint8)
    before, after = pictures
    question = Question("caption", caption.PROMPT)
    plain = load_model(str(seven_checkpoint(tmp_path / "plain")), device="cpu", dtype="fp32")
    headed = load_model(str(seven_with_head(tmp_path / "headed")), device="cpu", dtype="fp32")
    assert plain.masks(plain.encode(before, after)) is None
    encoded = headed.encode(before, after)
    masks = headed.masks(encoded)
    assert masks is not None
    assert masks.classes == HEAD.classes
    assert masks.probabilities.shape == (3, 4, 8, 8)  # four values along each of 2 x 2 patches
    np.testing.assert_allclose(masks.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(masks.probabilities) > 0.01
    said = headed.answer(encoded, [question])
    assert said == plain.answer(plain.encode(before, after), [question])
    assert headed.fingerprint != plain.fingerprint


def test_another_head_is_another_model(tmp_path: Path) -> None:
    folder = seven_with_head(tmp_path)
    known = load_model(str(folder), device="cpu").fingerprint
    data = bytearray((folder / DENSE).read_bytes())
    data[-1] ^= 1
    (folder / DENSE).write_bytes(bytes(data))
    assert load_model(str(folder), device="cpu").fingerprint != known


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    folder = seven_with_head(tmp_path)
    (folder / DENSE).unlink()
    with pytest.raises(ModelError, match="keys missing: dense"):
        load_model(str(folder), device="cpu")
