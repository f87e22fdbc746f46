"""Device and dtype selection, allocator tuning, copies to the device, and errors of torch."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from deltavlm.errors import ConfigError, InputError, ModelError, ModelOutOfMemory
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.quantize import check_quantize

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
LARGE_HIDDEN = 2048  # width of a language model from which on 16 bit is worth it


@contextmanager
def meta_device() -> Iterator[None]:
    """Context in which modules are built without memory for their weights, which are loaded afterwards.

    torchvision is imported before: in torch 2.6 that imports the compiler, which computes with tensors then.
    """
    import torchvision  # noqa: F401

    with torch.device("meta"):
        yield


def pick_device(device: str) -> str:
    """Device to use; "auto" is the first available of cuda, mps, cpu.

    Raises: InputError for a device that is unknown or not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, is_available in available.items() if is_available)
    kind, _, index = device.partition(":")
    if kind not in available or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"unknown device {device!r}; known are auto, cpu, cuda, cuda:N and mps")
    if not available[kind]:
        raise InputError(
            f"this machine has no {kind} device that torch can use; try `device='cpu'`, or run deltavlm "
            "doctor"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise InputError(
            f"there is no {device}: torch sees {torch.cuda.device_count()} cuda devices, counted from 0"
        )
    return device


def plan_device(options: RuntimeOptions, hidden: int) -> tuple[str, str]:
    """Device and name of the dtype of a run, see `pick_device` and `pick_dtype`. Raises: InputError,
    ConfigError."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, hidden, device)
    return device, next(name for name, value in DTYPES.items() if value == dtype)


def resolve_device(options: RuntimeOptions) -> str:
    """Device on which a model will run. Raises: InputError if it is missing, or cannot quantize."""
    device = pick_device(options.device)
    if options.quantize:
        check_quantize(options.quantize, device)
    return device


def pick_dtype(name: str, hidden: int, device: str) -> torch.dtype:
    """Dtype of the weights, by name ("fp16", as torch has it "float16") or "auto"; `hidden` is the
    width of the language model.

    "auto" is bf16 on a CPU with instructions for it, and float32 on another CPU. On a GPU it is float32 for
    a small model, and for a large one bf16 if the device computes it in hardware, else fp16.

    Raises: ConfigError for another name.
    """
    if name != "auto":
        dtypes = DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
        if str(name).removeprefix("torch.") not in dtypes:
            raise ConfigError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
        dtype = dtypes[str(name).removeprefix("torch.")]
        if not computes_in(dtype, device):
            _warn_slow_dtype(next(name for name, named in DTYPES.items() if named == dtype))
        return dtype
    if device != "cpu" and hidden < LARGE_HIDDEN:
        return torch.float32
    return pick_compute_dtype(device)


def pick_compute_dtype(device: str) -> torch.dtype:
    """Fastest dtype that a device computes in: bf16, else fp16 on a GPU and float32 on a CPU."""
    if device == "cpu":
        return torch.bfloat16 if bf16_cpu() else torch.float32
    if device.startswith("cuda") and computes_in(torch.bfloat16, device):
        return torch.bfloat16
    return torch.float16


def computes_in(dtype: torch.dtype, device: str) -> bool:
    """True if a device has instructions for matrix products in a dtype; without them torch emulates it."""
    if device == "cpu":
        has_instructions = {torch.bfloat16: bf16_cpu, torch.float16: fp16_cpu}
        return dtype not in has_instructions or has_instructions[dtype]()
    if device.startswith("cuda") and dtype == torch.bfloat16:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def bf16_cpu() -> bool:
    """True if this CPU has instructions for matrix products in bf16."""
    return _has_instructions("amx_bf16", "avx512_bf16")


def fp16_cpu() -> bool:
    """True if this CPU has instructions for matrix products in fp16."""
    return _has_instructions("amx_fp16", "avx512_fp16", "fp16_arith")


@cache
def _has_instructions(*names: str) -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in names)


@cache  # once in a process
def _warn_slow_dtype(name: str) -> None:
    log.warning(
        "`dtype=%r`: this device has no instructions for %s and is many times slower in it; omit it unless"
        " memory is short",
        *(name, name),
    )


def tune_malloc() -> None:
    """Make glibc's malloc keep freed memory for the next batch; does nothing with another C library.

    By default each large tensor is mapped and unmapped, and the kernel clears its pages every time: a sixth
    of a small model's time on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
        mallopt(name, value)


def to_device(tensor: Tensor, device: str) -> Tensor:
    """Copy a CPU tensor to the device; to a GPU asynchronously, from pinned memory, so that the second date
    is prepared while the first is being copied."""
    if not device.startswith("cuda"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def wrap_torch_errors(work: str, device: str) -> Iterator[None]:
    """Raise torch's errors as ours; `work` names what was computed.

    Raises: ModelOutOfMemory if memory ran out, ModelError for anything else that torch cannot compute.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelOutOfMemory(f"{work} do not fit on {device}; ask for a smaller batch") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{work} failed on {device}: {reason}; try `device='cpu'`") from error
