"""Where a model runs, in which numbers, and how pictures get there."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.model.config import DeltaVLMConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
LARGE = 2048  # width of a language model from which on 16 bit is worth it


def pick_device(device: str) -> str:
    """ "auto" is the first of cuda, mps, cpu that is there. Raises: InputError for one that is not."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in have.items() if there)
    kind, _, index = device.partition(":")
    if kind not in have or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"unknown device {device!r}; known are auto, cpu, cuda, cuda:N and mps")
    if not have[kind]:
        raise InputError(
            f"this machine has no {kind} device that torch can use; try --device cpu, or run deltavlm doctor"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise InputError(
            f"there is no {device}: torch sees {torch.cuda.device_count()} cuda devices, counted from 0"
        )
    return device


def pick_dtype(wanted: str, config: DeltaVLMConfig, device: str) -> torch.dtype:
    """ "auto" is bf16 on a CPU that multiplies it in hardware, and float32 on one that does not. Elsewhere it
    is float32 for a small model, and for a large one the best 16 bit that the device computes in hardware."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device == "cpu":
        return torch.bfloat16 if bf16_cpu() else torch.float32
    if config.language.hidden < LARGE:
        return torch.float32
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16


@cache
def bf16_cpu() -> bool:
    """Whether this CPU has instructions that multiply matrices of bf16."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def tune_malloc() -> None:
    """Lets glibc keep what a batch has freed for the next batch, where that is the C library.

    By default each large tensor is mapped anew and given back, and the kernel clears its pages every time:
    a sixth of a small model's time on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
        mallopt(name, value)


def to_device(tensor: Tensor, device: str) -> Tensor:
    """A tensor of the CPU on the device. To a GPU it goes from pinned memory, and nobody waits for it: the
    second date is made ready while the first is on its way."""
    if not device.startswith("cuda"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
