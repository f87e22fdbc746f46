"""Processes of a training run: rank and world size, collectives, DDP and FSDP2, mixed precision.

torch's own DDP and FSDP2, started by `torchrun` or `accelerate launch`, which set the same environment
variables. The library accelerate is not used: on a CPU it accepts an FSDP plugin and silently makes DDP of it
(1.15), so that the sharded run could not be tested; the rest of it would replace a dozen lines of torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltavlm.errors import ConfigError, ModelError
from deltavlm.model.device import computes_in, pick_compute_dtype, pick_device
from deltavlm.training.config import Precision, PrecisionChoice, TrainConfig

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the other ranks wait while rank 0 renders scenes or scores answers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class World:
    """All processes of the run: rank, world size and collectives; a single process has rank 0 of 1."""

    @property
    def size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else 0

    def rank_slice(self, rows: int) -> slice:
        """Slice of this rank in the result of `all_gather`, where each rank has `rows` rows."""
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in rank order; differentiable."""
        if self.size == 1:
            return tensor
        if tensor.requires_grad:
            return _AllGather.apply(tensor)  # type: ignore[no-any-return]
        return _gather_rows(tensor)

    def all_reduce_sum(self, values: list[float], device: torch.device) -> list[float]:
        """Sum each value over all ranks, in float64."""
        if self.size == 1:
            return values
        flat = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(flat)
        return [float(value) for value in flat]

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Collect one picklable object from each rank, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


world = World()


def _gather_rows(tensor: Tensor) -> Tensor:
    chunks = [torch.empty_like(tensor) for _ in range(world.size)]
    dist.all_gather(chunks, tensor.contiguous())
    return torch.cat(chunks)


class _AllGather(torch.autograd.Function):
    """Differentiable all-gather: the gradient of a row is the sum of its gradients in all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return _gather_rows(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[world.rank_slice(ctx.rows)]


def init_process_group() -> bool:
    """Join the process group that a launcher announces in the environment; False without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ or dist.is_initialized():
        return dist.is_initialized()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return True


@dataclass(frozen=True)
class Machine:
    """Device, precision and sharding of this process."""

    device: torch.device
    precision: Precision
    sharding: str

    def resolved(self, config: TrainConfig) -> TrainConfig:
        """Configuration in which "auto" is replaced by the precision of this machine."""
        language: PrecisionChoice = config.language_dtype
        language = self.precision if language == "auto" else language
        return replace(config, precision=self.precision, language_dtype=language)

    def autocast(self) -> torch.autocast:
        """Mixed-precision context in the precision of the run; does nothing in fp32."""
        is_low = self.precision != "fp32"
        return torch.autocast(self.device.type, DTYPES[self.precision] if is_low else None, enabled=is_low)

    def wrap(self, learner: nn.Module) -> nn.Module:
        """Wrap the learner in DDP, or shard it with FSDP2; a single process gets it back as it is."""
        if world.size == 1:
            return learner
        if self.sharding == "fsdp":
            return _shard(learner, self.device)
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        # a micro-batch may have no masks, and then the mask layers get no gradient
        return DistributedDataParallel(learner, device_ids=ids, find_unused_parameters=True)

    @contextmanager
    def gradient_sync(self, wrapped: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Reduce gradients between ranks in the last micro-batch of a step only, and accumulate before."""
        if world.size == 1 or is_last:
            if world.size > 1 and self.sharding == "fsdp":
                wrapped.set_requires_gradient_sync(True)  # type: ignore[operator]
            yield
        elif self.sharding == "fsdp":
            wrapped.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
        else:
            with wrapped.no_sync():  # type: ignore[operator]
                yield


def pick_machine(config: TrainConfig) -> Machine:
    """Device and precision of this process, checked.

    The precision "auto" is the one that the device computes in (`pick_compute_dtype`), the same in all
    processes; fp16 has loss scaling.

    Raises:
        ModelError: the device is missing, or cannot compute in the precision of the run.
        ConfigError: FSDP with a single process.
    """
    name = pick_device("cpu" if config.device == "auto" and not torch.cuda.is_available() else config.device)
    if name == "cuda" and world.size > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(torch.device(name))
    if config.sharding == "fsdp" and world.size == 1:
        raise ConfigError(
            "sharding: fsdp needs several processes; start with torchrun, or use `set=sharding=ddp`"
        )
    return Machine(torch.device(name), _pick_precision(config, name), config.sharding)


def _pick_precision(config: TrainConfig, device: str) -> Precision:
    """Precision of the run on a device, the same in all processes: fp32 where they would pick different ones.

    Warns of a dtype that was asked for and that the device emulates.
    """
    for key in ("precision", "language_dtype"):
        name = getattr(config, key)
        if name != "auto" and not computes_in(DTYPES[name], device):
            log.warning(
                "%s: this device has no instructions for %s and is many times slower in it;"
                " use `set=%s=auto`",
                *(key, name, key),
            )
    if config.precision != "auto":
        if device.startswith("cuda") and config.precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ModelError("this GPU does not support bf16; use `set=precision=auto`")
        return config.precision
    dtype = pick_compute_dtype(device)
    names: set[Precision] = {name for name in get_args(Precision) if DTYPES[name] == dtype}
    picked = {*world.all_gather_objects(names.pop())}
    return picked.pop() if len(picked) == 1 else "fp32"


def _shard(learner: nn.Module, device: torch.device) -> nn.Module:
    """Shard with FSDP2, each layer a group of its own, so that only one at a time is gathered.

    Modules that the model reaches by name (embedding, output layer) are groups too, since all parameters of
    a group need one dtype.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model: Any = learner.model
    mesh = init_device_mesh(device.type, (world.size,))
    language = model.language
    layers = [
        *language.model.layers,
        *model.qformer.bert.encoder.layer,
        *getattr(model.vision.tower, "blocks", []),
    ]
    if model.language.config.tie_word_embeddings:
        raise ConfigError(
            "sharding: fsdp does not support a model with tied word embeddings; use `set=sharding=ddp`"
        )
    for module in (*layers, language.model.embed_tokens, language.lm_head, language.model):
        fully_shard(module, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    return learner


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor (a collective: all ranks must call it); a plain one is returned as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Distribute a full tensor with the device mesh and placements of `reference`."""
    if hasattr(reference, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)  # type: ignore[attr-defined]
    return tensor.to(reference.device)


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimizer with full tensors (a collective: all ranks must call it)."""
    state = optimizer.state_dict()
    sharded = state["state"]  # its inner dictionaries belong to the optimizer and must not change
    state["state"] = {
        index: {key: full_tensor(value) for key, value in moments.items()}
        for index, moments in sharded.items()
    }
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer from its state with full tensors, which are distributed as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):  # an optimizer numbers them in this order
        moments = state["state"].get(index, {})
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = shard_like(value, parameter)
    optimizer.load_state_dict(state)
