"""Comparison with results of the original, at small size with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltavlm.errors import InputError
from deltavlm.model.folder import WEIGHTS
from deltavlm.upstream.checks import TOLERANCE
from deltavlm.upstream.verify import verify
from tests.upstream.conftest import GOLDEN


def test_everything_is_equal_in_float32(converted: Path) -> None:
    checks = {check.name: check for check in verify(converted, GOLDEN)}
    assert {name: (check.equal, check.cases) for name, check in checks.items() if not check.passed} == {}
    assert set(checks) == {
        *("pixels", "vision tokens", "difference tokens", "question ids", "text ids", "soft prompt"),
        *("first logits", "ids, greedy", "text, greedy", "ids, 5 beams", "text, 5 beams"),
        *("ids, greedy, batched", "text, greedy, batched"),
    }
    cases = json.loads((GOLDEN / "expected.json").read_text())["cases"]
    assert sum(check.cases for name, check in checks.items() if name.startswith("ids")) == len(cases) == 21
    assert checks["pixels"].worst == checks["question ids"].worst == checks["text ids"].worst == 0
    assert max(check.worst or 0 for check in checks.values()) < TOLERANCE


def test_half_precision_reports_its_drift(converted: Path) -> None:
    checks = {check.name: check for check in verify(converted, GOLDEN, dtype="bf16")}
    assert checks["text ids"].passed
    worst, size = checks["vision tokens"].worst, checks["vision tokens"].size
    assert worst is not None
    assert size is not None
    assert TOLERANCE < worst < 0.05 * size


@pytest.mark.parametrize(
    ("tensor", "first"),
    [
        ("vision.tower.blocks.0.attn.qkv.weight", "vision tokens"),
        ("difference.gate1.weight", "difference tokens"),
        ("qformer.bert.encoder.layer.3.output_query.dense.weight", "soft prompt"),
    ],
)
def test_a_wrong_tensor_fails_at_the_first_stage_that_uses_it(
    converted: Path, tmp_path: Path, tensor: str, first: str
) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "wrong"))
    weights = load_file(folder / WEIGHTS)
    weights[tensor] = weights[tensor] * 1.05
    save_file(weights, folder / WEIGHTS)
    failed = [check.name for check in verify(folder, GOLDEN) if not check.passed]
    assert failed[0] == first


def test_another_token_or_character_is_a_difference(converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "expected"))
    record = json.loads((folder / "expected.json").read_text())
    record["cases"][0]["token_ids"][5] += 1
    record["cases"][1]["text"] += "x"
    (folder / "expected.json").write_text(json.dumps(record))
    failed = {
        check.name: check.cases - check.equal for check in verify(converted, folder) if not check.passed
    }
    assert failed == {"ids, greedy": 1, "text, 5 beams": 1}


def test_unreadable_expected_results(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*expected\.json"):
        verify(converted, tmp_path)
    shutil.copy(GOLDEN / "expected.json", tmp_path)
    with pytest.raises(InputError, match=r"no file or folder .*expected\.safetensors"):
        verify(converted, tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "expected.safetensors")
    with pytest.raises(InputError, match="has no uint8_A"):
        verify(converted, tmp_path)
