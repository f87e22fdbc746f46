"""Default dtypes, and the tuning of malloc."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deltavlm.model import device


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_with_bf16_instructions_uses_bf16(
    has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "bf16_cpu", lambda: has_bf16)
    large = device.LARGE_HIDDEN
    assert device.pick_dtype("auto", 256, "cpu") == device.pick_dtype("auto", large, "cpu") == dtype
    assert device.pick_dtype("fp32", large, "cpu") == torch.float32


def test_a_small_model_is_float32_on_other_devices() -> None:
    assert device.pick_dtype("auto", 256, "mps") == torch.float32
    assert device.pick_dtype("auto", device.LARGE_HIDDEN, "mps") == torch.float16


FAULTS = """
import resource, sys
import numpy as np
from deltavlm.model.device import tune_malloc
if sys.argv[1] == "tuned":
    tune_malloc()
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8_000_000, dtype=np.uint8)
before = count()
for _ in range(20):
    np.ones(8_000_000, dtype=np.uint8)
print(count() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    default, tuned = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("plain", "tuned")
    )
    assert tuned * 2 < default
