"""A mask head on top of a model that came without: its own file beside the weights, and answers as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltavlm.errors import ModelError
from deltavlm.model.folder import DENSE
from deltavlm.model.interface import Question
from deltavlm.model.predictor import load_model
from deltavlm.tasks import caption
from tests.seven import HEAD, seven_checkpoint, seven_with_head


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
