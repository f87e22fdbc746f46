"""Mask head added to a published model: a weight file of its own, and unchanged answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from deltacli.main import app
from deltavlm.errors import ModelError
from deltavlm.model.folder import DENSE
from deltavlm.model.interface import CHANGED_PIXEL, Masks, Question
from deltavlm.model.kinds import load_model
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.tasks import caption
from tests.seven import HEAD, seven_checkpoint, seven_with_head


def test_a_pixel_is_changed_where_its_changes_sum_to_the_threshold_of_polygons() -> None:
    """`ask -o` and scores take labels, `analyze` draws polygons: one rule, the flag's default too."""
    shares = np.array([[0.45, 0.35, 0.2], [0.55, 0.45, 0.0], [0.5, 0.2, 0.3]], np.float32)
    masks = Masks(("none", "road_built", "building_built"), shares.T[None, :, None])
    assert masks.labels.tolist() == [[[1, 0, 2]]]  # "none" is the most probable of the first and the last
    assert masks.labels.dtype == np.uint8
    flags = get_command(app).commands["polygonize"].params  # type: ignore[attr-defined]
    (default,) = (flag.default for flag in flags if "--mask-threshold" in flag.opts)
    assert ChangeOptions().threshold == CHANGED_PIXEL == default


def test_a_head_adds_masks_and_keeps_the_answers(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 28, 28), np.uint8)
    before, after = images
    question = Question("caption", caption.PROMPT)
    without_head = load_model(str(seven_checkpoint(tmp_path / "plain")), device="cpu", dtype="fp32")
    with_head = load_model(str(seven_with_head(tmp_path / "headed")), device="cpu", dtype="fp32")
    assert without_head.masks(without_head.encode(before, after)) is None
    encoded = with_head.encode(before, after)
    masks = with_head.masks(encoded)
    assert masks is not None
    assert masks.classes == HEAD.classes
    assert masks.probabilities.shape == (3, 4, 8, 8)  # four values along each of 2 x 2 patches
    np.testing.assert_allclose(masks.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(masks.probabilities) > 0.01
    replies = with_head.answer(encoded, [question])
    assert replies == without_head.answer(without_head.encode(before, after), [question])
    assert with_head.fingerprint != without_head.fingerprint


def test_another_head_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = seven_with_head(tmp_path)
    fingerprint = load_model(str(folder), device="cpu").fingerprint
    data = bytearray((folder / DENSE).read_bytes())
    data[-1] ^= 1
    (folder / DENSE).write_bytes(bytes(data))
    assert load_model(str(folder), device="cpu").fingerprint != fingerprint


def test_a_missing_head_is_an_error(tmp_path: Path) -> None:
    folder = seven_with_head(tmp_path)
    (folder / DENSE).unlink()
    with pytest.raises(ModelError, match="keys missing: dense"):
        load_model(str(folder), device="cpu")
