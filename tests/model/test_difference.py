"""Difference perception, compared with its formula in numpy."""

from __future__ import annotations

import numpy as np
import torch

from deltavlm.model.config import DifferenceConfig
from deltavlm.model.difference import DifferencePerception


def test_csrm_is_the_formula() -> None:
    torch.manual_seed(0)
    module = DifferencePerception(6, DifferenceConfig()).eval()
    before, after = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    w = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
    d = (after - before).double().numpy()
    expected = []
    for x in (before.double().numpy(), after.double().numpy()):
        context = np.tanh(d @ w["context1.weight"].T + x @ w["context2.weight"].T + w["context2.bias"])
        gate = 1 / (1 + np.exp(-(d @ w["gate1.weight"].T + x @ w["gate2.weight"].T + w["gate2.bias"])))
        expected.append(
            np.concatenate([x, d, gate * context], axis=-1) @ w["context3.weight"].T + w["context3.bias"]
        )
    np.testing.assert_allclose(
        module(before, after).detach().numpy(), np.concatenate(expected, axis=1), atol=1e-5
    )


def test_names_and_shapes_are_those_of_the_published_model() -> None:
    """context1 and gate1 have no bias; a checkpoint of the published model fits by name."""
    shapes = {
        name: tuple(t.shape) for name, t in DifferencePerception(4, DifferenceConfig()).state_dict().items()
    }
    assert shapes == {
        "context1.weight": (4, 4),
        "context2.weight": (4, 4),
        "context2.bias": (4,),
        "gate1.weight": (4, 4),
        "gate2.weight": (4, 4),
        "gate2.bias": (4,),
        "context3.weight": (4, 12),
        "context3.bias": (4,),
    }


def test_concat_returns_both_dates() -> None:
    module = DifferencePerception(4, DifferenceConfig(mode="concat"))
    before, after = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    assert torch.equal(module(before, after), torch.cat([before, after], dim=1))
    assert set(module.state_dict()) == set(DifferencePerception(4, DifferenceConfig()).state_dict())
