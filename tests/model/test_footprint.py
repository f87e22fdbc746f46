"""Memory of models before they are loaded: sizes of tensors, refusals, and at most one layer in 16 bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.model import predictor, quantize
from deltavlm.model.changechat import model as changechat
from deltavlm.model.changevg import model as changevg
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.footprint import Footprint, Sizes, Stored, check_fits, footprint_of, sizes_of
from deltavlm.model.kinds import load_model, read_footprint
from deltavlm.model.mci import model as mci
from deltavlm.upstream import kinds
from tests.mci_reference import write_files as write_mci
from tests.tiny import tiny_checkpoint

GB = 10**9


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, changechat_folder: Path) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    pytest.importorskip("peft", reason="the reference of changevg needs peft: pip install '.[peft]'")
    from tests.changevg_reference import write_files as write_changevg

    folder = tmp_path_factory.mktemp("footprints")
    reference = write_mci(folder / "mci-published").folder
    write_changevg(folder / "vg-published")
    published = folder / "vg-published"
    tiny_checkpoint(folder / "deltavlm")
    paths = {"base": published / "base", "adapter": published / "adapter", "mci": published / "mci"}
    of_mci = {"checkpoint": reference / "MCI_model.pth", "vocab": reference / "vocab.json"}
    return {
        "deltavlm": folder / "deltavlm",
        "mci": kinds.convert("mci", of_mci, folder / "mci").folder,
        "changechat": changechat_folder,
        "changevg": kinds.convert("changevg", paths, folder / "changevg").folder,
    }


def loaded_bytes(model: Any) -> int:
    """Bytes of the tensors that a loaded model has read from files."""
    networks = {
        "Predictor": lambda: [model.model],
        "MCIModel": lambda: [model.network],
        "ChangeChat": lambda: [model.network],
        "ChangeVGModel": lambda: [model.model, model.guide.network],
    }[type(model).__name__]()
    tensors = {
        id(tensor): tensor
        for network in networks
        for name, tensor in network.state_dict(keep_vars=True).items()
        if not name.endswith("num_batches_tracked")
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["deltavlm", "mci", "changechat", "changevg"])
def test_the_weights_are_those_that_are_loaded(folders: dict[str, Path], kind: str, dtype: Any) -> None:
    options = RuntimeOptions(device="cpu", dtype=dtype, runtime="torch")
    footprint = read_footprint(str(folders[kind]), options)
    assert footprint is not None
    model = load_model(str(folders[kind]), options)
    assert footprint.weights == pytest.approx(loaded_bytes(model), rel=0.01)


@pytest.mark.parametrize(
    ("kind", "module"),
    [("deltavlm", predictor), ("mci", mci), ("changechat", changechat), ("changevg", changevg)],
)
def test_what_does_not_fit_is_refused_before_its_weights_are_read(
    folders: dict[str, Path], kind: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RuntimeOptions(device="cpu", dtype="fp32", runtime="torch")
    footprint = read_footprint(str(folders[kind]), options)
    assert footprint is not None
    for owner in (module, predictor.checkpoint, mci):
        monkeypatch.setattr(owner, "read_tensors", lambda *_: pytest.fail("weights were read"), raising=False)
    monkeypatch.setattr(module, "free_memory", lambda device: footprint.needed - 1)
    with pytest.raises(InputError, match=r"needs about .* of memory in fp32, and .* are free; "):
        load_model(str(folders[kind]), options)


def test_what_would_fit_is_told() -> None:
    blocks = tuple((Stored(GB, 2 * GB, "BF16", quantizable=True),) for _ in range(6))
    sizes = Sizes((*blocks, (Stored(2 * GB, 4 * GB, "BF16"),)))
    footprint = footprint_of(sizes, lambda itemsize: 0, device="cpu", dtype="fp32")
    assert footprint.needed == 36 * GB  # beside the weights the last file is open
    check_fits("seven", footprint, 36 * GB)
    check_fits("seven", footprint, None)
    with pytest.raises(InputError) as error:
        check_fits("seven", footprint, 12 * GB)
    assert str(error.value) == (
        "seven needs about 36.0 GB of memory in fp32, and 12.0 GB are free; `quantize='int8'` with"
        " `dtype='bf16'` (10.0 GB) or `quantize='int4'` with `dtype='bf16'` (7.1 GB) would fit"
    )
    with pytest.raises(InputError, match=r"even `quantize='int4'` with `dtype='bf16'` needs 7\.1 GB; free"):
        check_fits("seven", footprint, 5 * GB)
    plain = Sizes(((Stored(GB, 2 * GB, "BF16"),),))
    small = footprint_of(plain, lambda itemsize: 0, device="cuda", dtype="bf16")
    with pytest.raises(InputError, match=r"on the GPU in bf16, and 1\.0 GB are free; free more, or use"):
        check_fits("small", small, GB)


def test_loading_holds_a_converted_shard_or_a_layer(tmp_path: Path) -> None:
    block = "language.model.layers.0.mlp.up_proj.weight"
    other = "language.model.layers.1.mlp.up_proj.weight"
    save_file({block: torch.zeros(4, 8).half(), "vision.a": torch.zeros(10)}, tmp_path / "a.safetensors")
    save_file({other: torch.zeros(2, 8).half(), "ids": torch.arange(3)}, tmp_path / "b.safetensors")
    sizes = sizes_of(sorted(tmp_path.glob("*.safetensors")))
    assert sizes.quantizations("cuda:0") == ("int8",)  # layers are too narrow for int4
    assert sizes.quantizations("mps") == ()
    assert sizes.weights("fp16", None) == 2 * 58 + 24
    assert sizes.weights("fp16", "int8") == 48 + 2 * 10 + 24
    assert sizes.loading("fp16", None, "cpu") == 0  # what is converted is less than what is read later
    assert sizes.loading("fp32", None, "cpu") == 32  # the last file
    assert sizes.loading("bf16", None, "cpu") == 84 + 104 - 140  # the first file, none of it as it is stored
    assert sizes.loading("fp16", "int8", "cpu") == 52 + 104 - 92
    assert sizes.loading("fp16", None, "cuda:0") == 0
    assert sizes.loading("fp16", "int8", "cuda:0") == 64


def test_a_batch_takes_more_than_a_pair() -> None:
    footprint = Footprint(
        device="cpu", dtype="bf16", quantize=None, weights=10 * GB, loading=2 * GB, pair=GB, pairs=4
    )
    rest = footprint.libraries + 10 * GB
    assert footprint.needed == 12 * GB
    assert [footprint.peak(pairs) - rest for pairs in (1, 3, 9)] == [2 * GB, 3 * GB, 4 * GB]
    assert replace(footprint, device="cuda:1").libraries < footprint.libraries


def test_changevg_quantizes_each_layer_before_the_next_is_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With unquantized layers in their place, the model is the one without: biases stay."""
    events: list[str] = []

    def same_layer(weight: Tensor, *_: object) -> torch.nn.Module:
        events.append("quantized")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return layer

    read = changevg.read_tensors

    def read_tensors(*arguments: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read(*arguments):
            if ".layers." in name and tensor.ndim == 2:
                events.append("read")
            yield name, tensor

    folder = folders["changevg"]
    full = changevg.load_folder(folder).model.state_dict()
    monkeypatch.setattr(quantize, "quantize_layer", same_layer)
    monkeypatch.setattr(quantize, "trim_heap", lambda: events.append("trimmed"))
    monkeypatch.setattr(changevg, "read_tensors", read_tensors)
    monkeypatch.setattr(changevg, "describe", lambda kind: kind)
    model = changevg.load_folder(folder, quantize="int8")
    assert model.quantize == "int8"
    assert events == ["read", "quantized", "trimmed"] * (2 * 7)
    quantized = model.model.state_dict()
    assert quantized.keys() == full.keys()
    assert all(torch.equal(quantized[name], full[name]) for name in full)
    assert any(name.endswith("q_proj.bias") for name in full)
