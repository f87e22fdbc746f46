"""What a published checkpoint is, and whether its difference module was ever trained.

The public training code leaves the difference module (CSRM) out, the public inference code uses it. If the
published run was made by the public code, its CSRM weights are random numbers. Two things in the file tell:
the optimiser keeps a state for each tensor that ever had a gradient, and fresh `nn.Linear` weights never
leave +-1/sqrt(fan in).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.upstream import names
from deltavlm.upstream.read import tensors, unpickled

CSRM = ("context1", "context2", "gate1", "gate2", "context3")
ORGAN_NAMES = {
    "vision.tower.": "vision blocks",
    "vision.norm.": "vision output norm",
    "difference.": "difference module (CSRM)",
    "qformer.query_tokens": "learned queries",
    "qformer.": "Q-Former",
    "projection.": "projection",
}
FITS = 0.9  # least cosine between fine-tuned blocks and those of the right base


@dataclass(frozen=True, slots=True)
class Organ:
    """One part of a checkpoint."""

    name: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look at a checkpoint found."""

    path: Path
    size: int  # bytes
    epoch: int | None
    organs: tuple[Organ, ...]
    unknown: tuple[str, ...]  # tensors that neither list of names knows
    blocks: tuple[int, ...]  # vision blocks that the checkpoint holds
    csrm_trained: bool | None  # None where nothing in the file tells
    evidence: tuple[str, ...]  # why, a line each
    base_cosine: float | None = None  # least cosine of the blocks with those of a vision base

    @property
    def difference(self) -> Literal["csrm", "concat"]:
        """What `difference: auto` becomes: "csrm", unless the weights say that it was never trained."""
        return "concat" if self.csrm_trained is False else "csrm"


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their published names, and the rest of the file. Raises: InputError."""
    found = unpickled(path)
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise InputError(f"{path} is no checkpoint of DeltaVLM: it has no table 'model'")
    weights = {name: tensor for name, tensor in found["model"].items() if isinstance(tensor, Tensor)}
    needed = ("query_tokens", "llm_proj.weight", "context1.weight", "ln_vision.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise InputError(f"{path} is no checkpoint of DeltaVLM: it lacks {', '.join(missing)}")
    return weights, {key: value for key, value in found.items() if key != "model"}


def inspect(path: Path, base: Path | None = None) -> Inspection:
    """Looks at a checkpoint, and at how its vision blocks fit a vision base. Raises: InputError."""
    return inspected(path, *read_checkpoint(path), base)


def inspected(
    path: Path, weights: Mapping[str, Tensor], rest: Mapping[str, Any], base: Path | None
) -> Inspection:
    """The same of a checkpoint that was read already. Raises: InputError."""
    unknown, organs = [], dict[str, list[Tensor]]()
    for name, tensor in weights.items():
        try:
            our = names.ours(name)
        except KeyError:
            unknown.append(name)
            continue
        organ = "ignored" if our is None else next(v for k, v in ORGAN_NAMES.items() if our.startswith(k))
        organs.setdefault(organ, []).append(tensor)
    trained, evidence = csrm_trained(weights, rest.get("optimizer"))
    epoch = rest.get("epoch")
    return Inspection(
        path=path,
        size=path.stat().st_size,
        epoch=epoch if isinstance(epoch, int) else None,
        organs=tuple(
            Organ(
                name,
                len(held),
                sum(t.numel() for t in held),
                tuple(sorted({str(t.dtype).removeprefix("torch.") for t in held})),
            )
            for name, held in organs.items()
        ),
        unknown=tuple(unknown),
        blocks=blocks_of(weights),
        csrm_trained=trained,
        evidence=evidence,
        base_cosine=None if base is None else base_cosine(weights, base),
    )


def blocks_of(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Numbers of the vision blocks in a checkpoint."""
    return tuple(sorted({int(n.split(".")[2]) for n in weights if n.startswith("visual_encoder.blocks.")}))


def csrm_trained(weights: Mapping[str, Tensor], optimizer: Any) -> tuple[bool | None, tuple[str, ...]]:
    """Whether the difference module was trained, and why we think so.

    A weight beyond the bound of a fresh layer says yes for certain, as does a state of the optimiser for one
    of the layers. Neither says no. None where the file lacks a layer.
    """
    missing = [name for name in CSRM if f"{name}.weight" not in weights]
    if missing:
        return None, (f"the file has no {', '.join(missing)}",)
    evidence = []
    beyond = {
        name: share
        for name in CSRM
        if (share := _share_of_bound(weights[f"{name}.weight"])) > 1 + 1e-4  # a fresh layer's largest is 1
    }
    verdict = bool(beyond)
    if beyond:
        evidence.append(
            "beyond the range of a fresh layer: "
            + ", ".join(f"{name} ({share:.2f} times)" for name, share in beyond.items())
        )
    else:
        evidence.append("all five layers lie within the range of a fresh layer")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    wanted = optimizer_indices(weights)
    if state:
        seen = [name for name in CSRM if wanted[f"{name}.weight"] in state]
        evidence.append(f"the optimiser has a state for {', '.join(seen) if seen else 'none of them'}")
        verdict = verdict or bool(seen)
    else:
        evidence.append("the file holds no state of an optimiser")
    return verdict, tuple(evidence)


def _share_of_bound(weight: Tensor) -> float:
    """Largest absolute value of a Linear's weight (out, in), in units of a fresh layer's bound."""
    return float(weight.abs().max()) * math.sqrt(weight.shape[1])


def optimizer_indices(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Index of each trained tensor in the published run's optimiser.

    It has three stretches: weights outside of the vision tower, in the file's order; the vision tower; then
    biases and norms outside of it. (The 0-d temperature counts as a weight.)
    """
    fitted = [name for name in weights if not name.endswith(("position_ids", "inv_freq"))]
    tower = [name for name in fitted if name.startswith("visual_encoder.")]
    rest = [name for name in fitted if not name.startswith("visual_encoder.")]

    def plain(name: str) -> bool:  # no weight decay
        return weights[name].ndim == 1 or name.endswith(".bias")

    order = [n for n in rest if not plain(n)] + tower + [n for n in rest if plain(n)]
    return {name: index for index, name in enumerate(order)}


def base_cosine(weights: Mapping[str, Tensor], base: Path) -> float | None:
    """Least cosine of a checkpoint's vision matrices with those of a base: close to 1 where the blocks were
    fine-tuned from it. None where the checkpoint has no blocks. Raises: InputError."""
    tuned = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("visual_encoder.blocks.") and tensor.ndim == 2
    }
    if not tuned:
        return None
    found = {}
    for name, tensor in tensors(base):
        lavis = names.of_base(name)
        if lavis in tuned:
            if tensor.shape != tuned[lavis].shape:
                raise InputError(
                    f"{base}: {name} is {tuple(tensor.shape)}, the checkpoint's is"
                    f" {tuple(tuned[lavis].shape)}; it is another vision model"
                )
            found[lavis] = float(
                torch.nn.functional.cosine_similarity(
                    tensor.float().flatten(), tuned[lavis].float().flatten(), dim=0
                )
            )
    missing = sorted(set(tuned) - set(found))
    if missing:
        raise InputError(
            f"{base} lacks {missing[0]} and {len(missing) - 1} more; it is no EVA-ViT of this depth"
        )
    return min(found.values())
