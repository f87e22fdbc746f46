"""One process or many: who is who, sums over all of them, and how a learner is spread over them.

torch's own DDP and FSDP2, started by `torchrun` or `accelerate launch`, which set the same variables. The
library accelerate is not used: on a CPU it takes an FSDP plugin and makes DDP of it without a word (1.15),
so that the sharded run could not be tested; what it would add to the rest is a dozen lines of torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltavlm.errors import ConfigError, ModelError
from deltavlm.model.device import pick_device
from deltavlm.training.config import Precision, TrainConfig

PATIENCE = timedelta(hours=2)  # the others wait while one draws scenes or scores
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class World:
    """This process among all; alone where no group was made."""

    @property
    def size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else 0

    def own(self, number: int) -> slice:
        """Where this process's rows are among all gathered ones, when each has `number`."""
        return slice(self.rank * number, (self.rank + 1) * number)

    def gathered(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks; gradients go back to each."""
        if self.size == 1:
            return tensor
        if tensor.requires_grad:
            return _Gather.apply(tensor)  # type: ignore[no-any-return]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def summed(self, numbers: list[float], device: torch.device) -> list[float]:
        """Sums of numbers over all processes."""
        if self.size == 1:
            return numbers
        flat = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(flat)
        return [float(number) for number in flat]

    def objects(self, thing: Any) -> list[Any]:
        """What every process has, in the order of their ranks."""
        if self.size == 1:
            return [thing]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing)
        return found

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


world = World()


class _Gather(torch.autograd.Function):
    """All processes' rows; a row's gradient is the sum of what all processes make of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.number = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[world.own(ctx.number)]


def join() -> bool:
    """Joins the group that a launcher announces; says whether there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ or dist.is_initialized():
        return dist.is_initialized()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return True


@dataclass(frozen=True)
class Machine:
    """Where and how exactly a learner is computed."""

    device: torch.device
    precision: Precision
    sharding: str

    def exact(self) -> torch.autocast:
        """What is inside is computed in the precision of the run."""
        low = self.precision != "fp32"
        return torch.autocast(self.device.type, DTYPES[self.precision] if low else None, enabled=low)

    def spread(self, learner: nn.Module) -> nn.Module:
        """The learner, one of many alike or each with a part of it."""
        if world.size == 1:
            return learner
        if self.sharding == "fsdp":
            return _sharded(learner, self.device)
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        # a piece of a step may have no masks, and then the mask layers have no gradient
        return DistributedDataParallel(learner, device_ids=ids, find_unused_parameters=True)

    @contextmanager
    def sharing(self, learner: nn.Module, last: bool) -> Iterator[None]:
        """Gradients of what is inside are shared now, or with those of the last piece of a step."""
        if world.size == 1 or last:
            if world.size > 1 and self.sharding == "fsdp":
                learner.set_requires_gradient_sync(True)  # type: ignore[operator]
            yield
        elif self.sharding == "fsdp":
            learner.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
        else:
            with learner.no_sync():  # type: ignore[operator]
                yield


def machine(config: TrainConfig) -> Machine:
    """The device of this process. Raises: ModelError, ConfigError for what it does not have."""
    name = pick_device("cpu" if config.device == "auto" and not torch.cuda.is_available() else config.device)
    if name == "cuda" and world.size > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(torch.device(name))
    if name.startswith("cuda") and config.precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise ModelError("this GPU does not compute in bf16; --set precision=fp16")
    if config.sharding == "fsdp" and world.size == 1:
        raise ConfigError(
            "sharding fsdp is for several processes; start with torchrun, or --set sharding=ddp"
        )
    return Machine(torch.device(name), config.precision, config.sharding)


def _sharded(learner: nn.Module, device: torch.device) -> nn.Module:
    """FSDP2: each layer a group of its own, so that one at a time is whole; what the model reaches by its own
    name (the embedding, the output layer) too, for weights of one group have one dtype."""
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
        raise ConfigError("sharding fsdp does not take a model with tied word embeddings; --set sharding=ddp")
    for module in (*layers, language.model.embed_tokens, language.lm_head, language.model):
        fully_shard(module, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    return learner


def whole(tensor: Tensor) -> Tensor:
    """A tensor, put together where each process has a part of it; all processes must call."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor
