"""Memory that is told before a published model is fetched: counted from its architecture."""

from __future__ import annotations

import pytest
import torch

from deltavlm.config import load, shipped_config
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import build
from deltavlm.model.footprint import LANGUAGE_LINEAR
from deltavlm.model.mci.config import MCIConfig
from deltavlm.model.mci.network import MCI
from deltavlm.model.quantize import quantizable
from deltavlm.upstream import memory
from deltavlm.upstream.memory import PUBLISHED, published_footprint, published_memory


def test_numbers_are_those_of_the_architectures() -> None:
    with torch.device("meta"):
        models = {
            "mci": MCI(MCIConfig(name="mci")),
            "deltavlm-7b": build(load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig)),
        }
    assert models.keys() == PUBLISHED.keys()
    for name, model in models.items():
        state = model.state_dict()
        floats = [tensor.numel() for tensor in state.values() if tensor.is_floating_point()]
        linear = {key for key in state if LANGUAGE_LINEAR.fullmatch(key)}
        assert PUBLISHED[name].floats == sum(floats)
        language = sum(tensor.numel() for key, tensor in state.items() if key.startswith("language."))
        assert PUBLISHED[name].language == language
        assert PUBLISHED[name].quantizable == sum(state[key].numel() for key in linear)
        if linear:
            assert linear == quantizable(model)


def test_memory_is_told_in_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 20 * 10**9)
    (line,) = published_memory("deltavlm-7b")
    assert "in bf16, " in line
    assert "in int8, " in line
    assert line.endswith("in int4 of memory to run on a CPU; 20.0 GB free here")
    sizes = [published_footprint("deltavlm-7b", "bf16", form).peak() for form in (None, "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
