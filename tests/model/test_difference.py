"""Difference perception, compared with its formula in numpy."""

from __future__ import annotations

import numpy as np
import torch

from deltavlm.model.config import DifferenceConfig
from deltavlm.model.difference import DifferencePerception, feature_distance


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


def test_feature_distance_is_the_formula() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5)
    u, v = (
        (x - x.mean(axis=(1, 2), keepdims=True)) / x.std(axis=(1, 2), keepdims=True)
        for x in (before[0].double().numpy(), after[0].double().numpy())
    )
    u, v = (x / np.linalg.norm(x, axis=0) for x in (u, v))
    expected = np.zeros((4, 5))
    for row in range(4):
        for col in range(5):
            near = [
                (min(max(row + y, 0), 3), min(max(col + x, 0), 4)) for y in (-1, 0, 1) for x in (-1, 0, 1)
            ]
            to_after = min(1 - u[:, row, col] @ v[:, r, c] for r, c in near)
            to_before = min(1 - v[:, row, col] @ u[:, r, c] for r, c in near)
            expected[row, col] = max(to_after, to_before)
    np.testing.assert_allclose(feature_distance(before, after)[0, 0].numpy(), expected, atol=1e-3)


def test_feature_distance_ignores_light_and_a_shift_of_one_cell_and_shows_what_went_or_came() -> None:
    torch.manual_seed(0)
    ground = torch.randn(1, 8, 16, 17)
    before, after = ground[..., :16], ground[..., 1:] * 1.7 + 3.0
    inside = feature_distance(before, after)[..., 1:-1, 1:-1]
    assert inside.max() < 0.05
    changed = after.clone()
    changed[0, :, 6:9, 6:9] = torch.randn(8, 1, 1) * 4 + 3.0  # uniform ground, so its neighbors do not help
    there = feature_distance(before, changed)[0, 0, 7, 7]
    assert there > 0.5
    assert torch.equal(feature_distance(before, changed), feature_distance(changed, before))
