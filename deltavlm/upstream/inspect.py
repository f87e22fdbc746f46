"""Inspect a published checkpoint: its modules, and whether its difference module was trained.

The public training code omits the difference module (CSRM), the public inference code uses it. If the
published run was made by the public code, its CSRM weights are random numbers. The file shows it in two ways:
the optimizer keeps a state for each tensor that ever had a gradient, and freshly initialized `nn.Linear`
weights are within +-1/sqrt(fan in).
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
from deltavlm.upstream.read import tensors, unpickle

CSRM = ("context1", "context2", "gate1", "gate2", "context3")
MODULE_NAMES = {
    "vision.tower.": "vision blocks",
    "vision.norm.": "vision output norm",
    "difference.": "difference module (CSRM)",
    "qformer.query_tokens": "learned queries",
    "qformer.": "Q-Former",
    "projection.": "projection",
}
MIN_BASE_COSINE = 0.9  # between fine-tuned blocks and those of the base that they were tuned from


@dataclass(frozen=True, slots=True)
class ModuleSummary:
    """Tensors of one module of a checkpoint."""

    name: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of inspecting a checkpoint."""

    path: Path
    size: int  # bytes
    epoch: int | None
    modules: tuple[ModuleSummary, ...]
    unknown: tuple[str, ...]  # tensors in neither list of names
    blocks: tuple[int, ...]  # vision blocks that the checkpoint holds
    csrm_trained: bool | None  # None if the file does not show it
    evidence: tuple[str, ...]  # reasons for that verdict
    base_cosine: float | None = None  # smallest cosine of the blocks with those of a vision base

    @property
    def difference(self) -> Literal["csrm", "concat"]:
        """Mode of the difference module for "auto": "csrm", unless the weights show no training."""
        return "concat" if self.csrm_trained is False else "csrm"

    @property
    def base_fits(self) -> bool | None:
        """True if the vision base is the one that was fine-tuned; None without a base."""
        return None if self.base_cosine is None else self.base_cosine >= MIN_BASE_COSINE


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by their published names, other entries of the file). Raises: InputError."""
    content = unpickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path} is no checkpoint of DeltaVLM: it has no entry 'model'")
    weights = {name: tensor for name, tensor in content["model"].items() if isinstance(tensor, Tensor)}
    required = ("query_tokens", "llm_proj.weight", "context1.weight", "ln_vision.weight")
    missing = [name for name in required if name not in weights]
    if missing:
        raise InputError(f"{path} is no checkpoint of DeltaVLM: it lacks {', '.join(missing)}")
    return weights, {key: value for key, value in content.items() if key != "model"}


def inspect(path: Path, base: Path | None = None) -> Inspection:
    """Inspect a checkpoint, and compare its vision blocks with a vision base. Raises: InputError."""
    return inspect_weights(path, *read_checkpoint(path), base)


def inspect_weights(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any], base: Path | None
) -> Inspection:
    """Inspect a checkpoint that was read already, see `read_checkpoint`. Raises: InputError."""
    unknown, modules = [], dict[str, list[Tensor]]()
    for key, tensor in weights.items():
        try:
            name = names.from_published(key)
        except KeyError:
            unknown.append(key)
            continue
        module = "ignored" if name is None else next(v for k, v in MODULE_NAMES.items() if name.startswith(k))
        modules.setdefault(module, []).append(tensor)
    trained, evidence = csrm_trained(weights, metadata.get("optimizer"))
    epoch = metadata.get("epoch")
    return Inspection(
        path=path,
        size=path.stat().st_size,
        epoch=epoch if isinstance(epoch, int) else None,
        modules=tuple(
            ModuleSummary(
                module,
                len(group),
                sum(t.numel() for t in group),
                tuple(sorted({str(t.dtype).removeprefix("torch.") for t in group})),
            )
            for module, group in modules.items()
        ),
        unknown=tuple(unknown),
        blocks=blocks_of(weights),
        csrm_trained=trained,
        evidence=evidence,
        base_cosine=None if base is None else base_cosine(weights, base),
    )


def blocks_of(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Indices of the vision blocks in a checkpoint."""
    return tuple(sorted({int(n.split(".")[2]) for n in weights if n.startswith("visual_encoder.blocks.")}))


def csrm_trained(weights: Mapping[str, Tensor], optimizer: Any) -> tuple[bool | None, tuple[str, ...]]:
    """Verdict whether the difference module was trained, and the evidence for it.

    A weight beyond the bound of a fresh layer proves training, as does an optimizer state for one of the
    layers. Without either the verdict is False; None if the file lacks a layer.
    """
    missing = [name for name in CSRM if f"{name}.weight" not in weights]
    if missing:
        return None, (f"the file has no {', '.join(missing)}",)
    evidence = []
    beyond = {
        name: ratio
        for name in CSRM
        if (ratio := _relative_to_bound(weights[f"{name}.weight"])) > 1 + 1e-4  # at most 1 in a fresh layer
    }
    verdict = bool(beyond)
    if beyond:
        evidence.append(
            "beyond the range of a fresh layer: "
            + ", ".join(f"{name} ({ratio:.2f} times)" for name, ratio in beyond.items())
        )
    else:
        evidence.append("all five layers are within the range of a fresh layer")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    indices = optimizer_indices(weights)
    if state:
        updated = [name for name in CSRM if indices[f"{name}.weight"] in state]
        evidence.append(f"the optimizer has a state for {', '.join(updated) if updated else 'none of them'}")
        verdict = verdict or bool(updated)
    else:
        evidence.append("the file has no optimizer state")
    return verdict, tuple(evidence)


def _relative_to_bound(weight: Tensor) -> float:
    """Largest absolute value of a Linear's weight (out, in), relative to a fresh layer's bound."""
    return float(weight.abs().max()) * math.sqrt(weight.shape[1])


def optimizer_indices(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Index of each trained tensor in the optimizer of the published run.

    It has three groups: weights outside of the vision tower, in the file's order; the vision tower; biases
    and norms outside of it. (The 0-d temperature counts as a weight.)
    """
    trained = [name for name in weights if not name.endswith(("position_ids", "inv_freq"))]
    tower = [name for name in trained if name.startswith("visual_encoder.")]
    others = [name for name in trained if not name.startswith("visual_encoder.")]

    def has_decay(name: str) -> bool:
        return weights[name].ndim != 1 and not name.endswith(".bias")

    order = [n for n in others if has_decay(n)] + tower + [n for n in others if not has_decay(n)]
    return {name: index for index, name in enumerate(order)}


def base_cosine(weights: Mapping[str, Tensor], base: Path) -> float | None:
    """Smallest cosine similarity of a checkpoint's vision matrices with those of a base: close to 1 if the
    blocks were fine-tuned from it. None if the checkpoint has no blocks. Raises: InputError."""
    tuned = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("visual_encoder.blocks.") and tensor.ndim == 2
    }
    if not tuned:
        return None
    cosines = {}
    for name, tensor in tensors(base):
        lavis = names.from_vision_base(name)
        if lavis in tuned:
            if tensor.shape != tuned[lavis].shape:
                raise InputError(
                    f"{base}: {name} is {tuple(tensor.shape)}, the checkpoint's is"
                    f" {tuple(tuned[lavis].shape)}; it is another vision model"
                )
            cosines[lavis] = float(
                torch.nn.functional.cosine_similarity(
                    tensor.float().flatten(), tuned[lavis].float().flatten(), dim=0
                )
            )
    missing = sorted(set(tuned) - set(cosines))
    if missing:
        raise InputError(
            f"{base} lacks {missing[0]} and {len(missing) - 1} others; it is not an EVA-ViT of this depth"
        )
    return min(cosines.values())
