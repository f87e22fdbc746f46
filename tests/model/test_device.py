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


def test_a_gpu_computes_in_fp16_where_it_would_emulate_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default torch counts a GPU that emulates bf16 as one that supports it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert device.pick_compute_dtype("cuda:0") == torch.float16
    assert device.pick_dtype("auto", device.LARGE_HIDDEN, "cuda:0") == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert device.pick_compute_dtype("cuda:0") == torch.bfloat16


def test_a_dtype_without_instructions_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device._warn_slow_dtype.cache_clear()
    monkeypatch.setattr(device, "bf16_cpu", lambda: False)
    for name in ("bf16", "bfloat16", "fp32", "auto"):
        device.pick_dtype(name, 256, "cpu")
    assert [message.split(";")[0] for message in caplog.messages] == [
        "`dtype='bf16'`: this device has no instructions for bf16 and is many times slower in it"
    ]


def test_a_small_model_is_float32_on_other_devices() -> None:
    assert device.pick_dtype("auto", 256, "mps") == torch.float32
    assert device.pick_dtype("auto", device.LARGE_HIDDEN, "mps") == torch.float16


FAULTS = """
import resource
import numpy as np
from deltavlm.model.device import tune_malloc

def faults():
    count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8_000_000, dtype=np.uint8)
    before = count()
    for _ in range(20):
        np.ones(8_000_000, dtype=np.uint8)
    return count() - before

default = faults()
tune_malloc()
print(default, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    """In a process of its own, where nothing has tuned it yet."""
    process = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    default, tuned = map(int, process.stdout.split())
    assert tuned * 2 < default
