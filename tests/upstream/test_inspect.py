"""Inspection of a checkpoint: its modules, the training of CSRM, and the vision base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deltavlm.upstream.convert import convert
from deltavlm.upstream.inspect import CSRM, csrm_trained, inspect, optimizer_indices
from tests.upstream.conftest import GOLDEN, sources


def fresh(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights, with a freshly initialized difference module."""
    fresh_weights = dict(weights)
    for name in CSRM:
        weight = fresh_weights[f"{name}.weight"]
        bound = 1 / math.sqrt(weight.shape[1])
        fresh_weights[f"{name}.weight"] = torch.empty_like(weight).uniform_(-bound, bound)
    return fresh_weights


def golden() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(GOLDEN / "checkpoint_best.pth", weights_only=True)
    return content


def test_modules_are_counted() -> None:
    inspection = inspect(GOLDEN / "checkpoint_best.pth")
    count = {module.name: module.tensors for module in inspection.modules}
    assert count["vision blocks"] == 2 * 13
    assert count["difference module (CSRM)"] == 8
    assert count["ignored"] == 8
    assert sum(module.tensors for module in inspection.modules) == len(golden()["model"])
    assert inspection.blocks == (1, 2)
    assert not inspection.unknown
    assert inspection.epoch == 7
    assert inspection.base_cosine is None


def test_weights_beyond_the_range_of_a_fresh_layer_were_trained() -> None:
    weights = golden()["model"]
    assert csrm_trained(weights, None)[0] is True
    verdict, evidence = csrm_trained(fresh(weights), None)
    assert verdict is False
    assert "within the range" in evidence[0]


def test_an_optimizer_state_proves_training() -> None:
    weights = fresh(golden()["model"])
    indices = optimizer_indices(weights)
    others = {i: {} for name, i in indices.items() if not name.startswith(CSRM)}
    assert csrm_trained(weights, {"state": others})[0] is False
    assert csrm_trained(weights, {"state": others | {indices["gate2.weight"]: {}}})[0] is True


def test_the_order_of_the_optimizer_is_that_of_the_published_run() -> None:
    """The indices that were derived for the 372 published tensors, by their names."""
    layers = []
    for n in range(12):
        kinds = [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ]
        if n % 2 == 0:
            kinds += [f"crossattention.self.{k}" for k in ("query", "key", "value")]
            kinds += ["crossattention.output.dense"]
        kinds += ["intermediate.dense", "output.dense", "intermediate_query.dense", "output_query.dense"]
        norms = ["attention.output.LayerNorm", "output.LayerNorm", "output_query.LayerNorm"]
        norms += ["crossattention.output.LayerNorm"] if n % 2 == 0 else []
        stem = f"Qformer.bert.encoder.layer.{n}."
        layers += [(f"{stem}{k}.{p}", 2 if p == "weight" else 1) for k in kinds for p in ("weight", "bias")]
        layers += [(f"{stem}{k}.{p}", 1) for k in norms for p in ("weight", "bias")]
    bert = "Qformer.bert.embeddings."
    table = [("query_tokens", 3), ("temp", 0)]
    table += [(f"visual_encoder.blocks.{b}.t{i}", 2) for b in (37, 38) for i in range(13)]
    table += [("ln_vision.weight", 1), ("ln_vision.bias", 1), (f"{bert}position_ids", 2)]
    table += [(f"{bert}word_embeddings.weight", 2), (f"{bert}position_embeddings.weight", 2)]
    table += [(f"{bert}LayerNorm.weight", 1), (f"{bert}LayerNorm.bias", 1), *layers]
    table += [("llm_proj.weight", 2), ("llm_proj.bias", 1), ("context1.weight", 2), ("context2.weight", 2)]
    table += [("context2.bias", 1), ("gate1.weight", 2), ("gate2.weight", 2), ("gate2.bias", 1)]
    table += [("context3.weight", 2), ("context3.bias", 1), ("vision_proj.weight", 2)]
    table += [("vision_proj.bias", 1), ("text_proj.weight", 2), ("text_proj.bias", 1)]
    index = optimizer_indices({name: torch.zeros([1] * ndim) for name, ndim in table})
    assert len(index) == 372
    assert [index[f"{name}.weight"] for name in CSRM] == [125, 126, 127, 128, 129]
    assert [index[f"{name}.bias"] for name in ("context2", "gate2", "context3")] == [367, 368, 369]
    assert [index[n] for n in ("query_tokens", "temp", "llm_proj.weight", "llm_proj.bias")] == [
        0,
        1,
        124,
        366,
    ]
    assert [index[f"{n}_proj.{p}"] for p in ("weight", "bias") for n in ("vision", "text")] == [
        130,
        131,
        370,
        371,
    ]


def test_auto_skips_an_untrained_difference_module_and_csrm_uses_it(files: Path) -> None:
    content = golden()
    content["model"] = fresh(content["model"])
    torch.save(content, files / "checkpoint_best.pth")
    assert convert(sources(files), files / "auto").config.difference.mode == "concat"
    assert convert(sources(files), files / "csrm", difference="csrm").config.difference.mode == "csrm"


def test_the_cosine_distinguishes_the_right_base(files: Path) -> None:
    other = inspect(GOLDEN / "checkpoint_best.pth", GOLDEN / "eva_vit_g.pth").base_cosine
    base = torch.load(files / "eva_vit_g.pth", weights_only=True)
    for name, tensor in golden()["model"].items():
        if name.startswith("visual_encoder."):
            base[name.removeprefix("visual_encoder.")] = tensor * 1.01
    torch.save(base, files / "eva_vit_g.pth")
    right = inspect(GOLDEN / "checkpoint_best.pth", files / "eva_vit_g.pth").base_cosine
    assert other is not None
    assert right == pytest.approx(1.0, abs=1e-4)
    assert other < 0.9
