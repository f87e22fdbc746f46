"""In which numbers a model runs when nobody says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from deltavlm.config import load, shipped_config
from deltavlm.model import device
from deltavlm.model.config import DeltaVLMConfig


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bf16_where_it_is_fast(
    able: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "bf16_cpu", lambda: able)
    nano = load(shipped_config("nano.yaml"), DeltaVLMConfig)
    large = replace(nano, language=replace(nano.language, hidden=device.LARGE_HIDDEN))
    assert device.pick_dtype("auto", nano, "cpu") == device.pick_dtype("auto", large, "cpu") == dtype
    assert device.pick_dtype("fp32", large, "cpu") == torch.float32


def test_a_small_model_is_float32_elsewhere() -> None:
    nano = load(shipped_config("nano.yaml"), DeltaVLMConfig)
    large = replace(nano, language=replace(nano.language, hidden=device.LARGE_HIDDEN))
    assert device.pick_dtype("auto", nano, "mps") == torch.float32
    assert device.pick_dtype("auto", large, "mps") == torch.float16


FAULTS = """
import resource, sys
import numpy as np
from deltavlm.model.device import tune_malloc
if sys.argv[1] == "kept":
    tune_malloc()
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8_000_000, dtype=np.uint8)
before = count()
for _ in range(20):
    np.ones(8_000_000, dtype=np.uint8)
print(count() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    plain, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True
            ).stdout
        )
        for way in ("plain", "kept")
    )
    assert kept * 2 < plain
