"""Difference perception, compared with its formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltavlm.model.config import DifferenceConfig
from deltavlm.model.difference import DifferencePerception, Standardize, feature_distance


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
    u, v = before[0].double().numpy(), after[0].double().numpy()
    weak = 3 * 0.25
    expected = np.zeros((4, 5))

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(1 - (x @ y + weak) / (np.linalg.norm(x) * np.linalg.norm(y) + weak))

    for row in range(4):
        for col in range(5):
            near = [
                (min(max(row + y, 0), 3), min(max(col + x, 0), 4)) for y in (-1, 0, 1) for x in (-1, 0, 1)
            ]
            to_after = min(distance(u[:, row, col], v[:, r, c]) for r, c in near)
            to_before = min(distance(v[:, row, col], u[:, r, c]) for r, c in near)
            expected[row, col] = max(to_after, to_before)
    np.testing.assert_allclose(feature_distance(before, after)[0, 0].numpy(), expected, atol=1e-5)


def test_feature_distance_ignores_a_shift_of_one_cell_and_shows_what_went_or_came() -> None:
    torch.manual_seed(0)
    ground = torch.randn(1, 8, 16, 17)
    before, after = ground[..., :16], ground[..., 1:]
    assert feature_distance(before, after)[..., 1:-1, 1:-1].max() < 1e-5
    changed = after.clone()
    changed[0, :, 6:9, 6:9] = torch.randn(8, 1, 1) * 2  # uniform ground, so its neighbors do not help
    assert feature_distance(before, changed)[0, 0, 7, 7] > 0.4
    assert torch.equal(feature_distance(before, changed), feature_distance(changed, before))


def test_weak_features_hardly_differ() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(2, 1, 32, 8, 8)
    strong, weak = feature_distance(before, after), feature_distance(0.1 * before, 0.1 * after)
    assert weak.max() < 0.1 < strong.min()


def test_standardize_is_the_formula_and_removes_light() -> None:
    torch.manual_seed(0)
    module = Standardize(2).eval()
    module.running_variance.copy_(torch.tensor([0.5, 2.0]))
    x = torch.randn(3, 2, 6, 7)
    mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True, correction=0)
    expected = (x - mean) / (variance + torch.tensor([0.5, 2.0])[:, None, None]).sqrt()
    assert torch.allclose(module(x), expected, atol=1e-3)
    assert torch.allclose(module(x + 5), module(x), atol=1e-4)
    assert module(0.01 * x).std() < 0.05  # little to see stays little


def test_standardize_learns_the_variance_of_images_in_training_only() -> None:
    torch.manual_seed(0)
    module, x = Standardize(1), 3 * torch.randn(8, 1, 32, 32) + torch.arange(8.0)[:, None, None, None]
    module(x)
    assert module.running_variance.item() == pytest.approx(9, rel=0.1)  # within images, not between them
    for _ in range(100):
        module(x / 3)
    assert 1 < module.running_variance.item() < 3
    before = module.running_variance.clone()
    module.eval()(x)
    assert torch.equal(module.running_variance, before)
