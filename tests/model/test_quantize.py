"""Quantization of the language model: sizes, unchanged modules, and errors."""

from __future__ import annotations

from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch

from deltavlm.errors import InputError, ModelError
from deltavlm.model import checkpoint, quantize
from deltavlm.model.changechat import model as changechat
from deltavlm.model.changechat.config import ChangeChatConfig
from deltavlm.model.config import LanguageConfig, RuntimeOptions
from deltavlm.model.folder import read_config_as
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor, resolve_device
from deltavlm.model.quantize import Kind, check_quantize, quantizable, quantize_layer, tensor_bytes
from tests.tiny import TINY, tiny_checkpoint, tiny_codec, tiny_model

needs_library = pytest.mark.skipif(
    util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install '.[quantize]'",
)
WIDE = replace(
    TINY,
    language=LanguageConfig(
        hidden=128, layers=3, heads=2, intermediate=256, vocab=320, context=256, tied=True
    ),
)
# Of float32: a number and its share of the scales. int8: 8 bits, a float32 for each row. int4: 4 bits, 8 of
# scale for 64 numbers, a float32 for 256 scales; the rest are tables of 1.1 kB a layer.
SHARES: dict[Kind, tuple[float, float]] = {"int8": (0.25, 0.27), "int4": (0.129, 0.17)}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    model = tiny_model(config=WIDE)
    checkpoint.save(folder, WIDE, model.state_dict(), provenance={})
    tiny_codec(folder)
    return folder


def first_logits(folder: Path, kind: Kind | None) -> tuple[Predictor, torch.Tensor]:
    """A model, and its first logits for two pairs."""
    model = load_model(str(folder), device="cpu", dtype="fp32", quantize=kind)
    assert isinstance(model, Predictor)
    rng = np.random.default_rng(3)
    before, after = (rng.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8) for _ in range(2))
    encoded = model.encode(before, after)
    assert len(model.answer(encoded, [Question("x", "how many roads?", max_new_tokens=5)])) == 2
    question, text = model.tokenize(["q how many roads?"] * 2)
    return model, model.model.first_logits(encoded.tokens, question, text)


@needs_library
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantization_shrinks_the_language_model_and_changes_logits_little(wide: Path, kind: Kind) -> None:
    full, expected = first_logits(wide, None)
    model, logits = first_logits(wide, kind)
    least, largest = SHARES[kind]
    blocks, full_blocks = model.model.language.model.layers, full.model.language.model.layers
    assert least < tensor_bytes(blocks) / tensor_bytes(full_blocks) < largest  # after the first answer, too
    spread = float(expected.std())
    assert 1e-4 * spread < float((logits - expected).abs().mean()) < 0.25 * spread
    assert model.details["quantize"].startswith(f"{kind}, bitsandbytes ")
    assert full.details["quantize"] is None


@needs_library
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_only_the_blocks_of_the_language_model_change(wide: Path, kind: Kind) -> None:
    _, full = checkpoint.load(wide)
    _, model = checkpoint.load(wide, quantize=kind)
    names = quantizable(full)
    assert len(names) == 3 * 7  # q k v o, gate up down
    quantized = {name for name in names if model.get_parameter(name).dtype in (torch.int8, torch.uint8)}
    assert quantized == names
    for name, tensor in full.state_dict().items():
        if name not in names:
            assert torch.equal(tensor, model.state_dict()[name]), name


@needs_library
def test_at_most_one_layer_is_in_full_precision(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is quantized before the next one is read."""
    events: list[str] = []
    real = quantize_layer
    monkeypatch.setattr(quantize, "quantize_layer", lambda *args: events.append("quantized") or real(*args))
    tensors = checkpoint._tensors

    def read_tensors(*args: object) -> object:
        for name, tensor in tensors(*args):  # type: ignore[arg-type]
            if ".layers." in name and tensor.ndim == 2:
                events.append("read")
            yield name, tensor

    monkeypatch.setattr(checkpoint, "_tensors", read_tensors)
    checkpoint.load(wide, quantize="int8")
    language = [event for event in events if event == "quantized"]
    assert len(language) == 21
    assert all(events[index - 1] == "read" for index, event in enumerate(events) if event == "quantized")


def test_quantized_layers_take_the_place_of_their_weights(
    wide: Path, changechat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With unquantized layers in their place, both loaders give the model that they give without."""
    replaced: list[torch.Tensor] = []

    def same_layer(weight: torch.Tensor, *_: object) -> torch.nn.Module:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight)
        replaced.append(weight)
        return layer

    monkeypatch.setattr(quantize, "quantize_layer", same_layer)
    config = read_config_as(ChangeChatConfig, changechat_folder)

    def load_network(options: RuntimeOptions) -> torch.nn.Module:
        return changechat.load_network(changechat_folder, config, options, device="cpu", dtype=torch.float32)

    loaders = (
        lambda kind: checkpoint.load(wide, quantize=kind)[1],
        lambda kind: load_network(RuntimeOptions(quantize=kind)),
    )
    for load, layers in zip(loaders, (WIDE.language.layers, config.language.layers), strict=True):
        replaced.clear()
        full, model = load(None).state_dict(), load("int8").state_dict()
        assert len(replaced) == 7 * layers
        assert full.keys() == model.keys()
        assert all(torch.equal(full[name], model[name]) for name in full)


@needs_library
def test_changechat_answers_in_8_bit(changechat_folder: Path) -> None:
    full, quantized = (
        load_model(str(changechat_folder), device="cpu", dtype="fp32", quantize=kind)
        for kind in (None, "int8")
    )
    assert isinstance(full, changechat.ChangeChat)
    assert isinstance(quantized, changechat.ChangeChat)
    assert quantized.details["quantize"].startswith("int8, bitsandbytes ")
    assert type(quantized.model.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    assert type(quantized.network.projector.linear_1) is torch.nn.Linear
    rng = np.random.default_rng(3)
    dates = [rng.integers(0, 256, (1, 3, 64, 64), dtype=np.uint8) for _ in range(2)]
    texts = [*full.prompts.beginning, full.prompts.ending("Where?")]
    with torch.no_grad():
        tokens = full.network.image_tokens(full.pixels(np.concatenate(dates)))
        logits = [
            each.model(inputs_embeds=each.network.embed(texts, tokens)).logits[0, -1]
            for each in (full, quantized)
        ]
    drift = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert 1e-4 < drift < 0.2
    assert (
        len(quantized.answer(quantized.encode(*dates), [Question("x", "Where?", max_new_tokens=5)])[0]) == 1
    )


@needs_library
def test_changechat_of_a_width_that_int4_cannot_have_is_refused(changechat_folder: Path) -> None:
    with pytest.raises(InputError, match="needs layers whose width is a multiple of 64"):
        load_model(str(changechat_folder), device="cpu", quantize="int4")


@needs_library
def test_a_wrong_shape_is_an_error(wide: Path, tmp_path: Path) -> None:
    weights = {
        **tiny_model(config=WIDE).state_dict(),
        "language.model.layers.0.mlp.up_proj.weight": torch.zeros(256, 64),
    }
    checkpoint.save(tmp_path, WIDE, weights, provenance={})
    with pytest.raises(ModelError, match=r"up_proj.weight is \(256, 64\), should be \(256, 128\)"):
        checkpoint.load(tmp_path, quantize="int4")


def test_widths_that_int4_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="a multiple of 64, and this language model has 48; use int8"):
        quantize_layer(torch.zeros(64, 48), "int4", "cpu")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(InputError, match=r'pip install "deltavlm\[quantize\]"'):
        load_model(str(tmp_path), quantize="int8", device="cpu")


def test_unsupported_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="`quantize='int4'` runs on cuda and cpu, not on mps"):
        check_quantize("int4", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(InputError, match="not on mps"):
        resolve_device(RuntimeOptions(device="mps", quantize="int8"))
    assert resolve_device(RuntimeOptions(device="cpu", quantize="int8")) == "cpu"
