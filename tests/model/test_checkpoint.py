"""Checkpoints: round trip, strict loading, and errors of broken folders."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deltavlm
from deltavlm.errors import InputError, ModelError
from deltavlm.model import checkpoint
from deltavlm.model.folder import CONFIG, WEIGHTS, fingerprint
from deltavlm.model.tensors import write_tensors
from tests.tiny import TINY, tiny_checkpoint


def test_round_trip(tmp_path: Path) -> None:
    saved = tiny_checkpoint(tmp_path)
    config, loaded = checkpoint.load(tmp_path)
    assert config == TINY
    before, after = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for model in (saved, loaded):
            model.eval()
        torch.testing.assert_close(
            loaded.encode_pair(before, after).tokens,
            saved.encode_pair(before, after).tokens,
            atol=2e-2,
            rtol=2e-2,
        )
    for name, tensor in saved.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_every_parameter_and_buffer_has_a_value(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    _, loaded = checkpoint.load(tmp_path)
    assert not [
        name for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()) if tensor.is_meta
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("projection.bias"), "1 keys missing: projection.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 keys unexpected: extra"),
        (lambda w: w.update({"projection.bias": torch.zeros(3)}), "projection.bias is (3,), should be (32,)"),
    ],
)
def test_loading_is_strict(tmp_path: Path, change: object, words: str) -> None:
    tiny_checkpoint(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    change(weights)  # type: ignore[operator]
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError) as caught:
        checkpoint.load(tmp_path)
    assert words in str(caught.value)


def test_truncated_weights_are_an_error(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        checkpoint.load(tmp_path)


def test_missing_files_and_bad_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a checkpoint"):
        checkpoint.load(tmp_path)
    tiny_checkpoint(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        checkpoint.load(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(values | {"visionn": 1}))
    with pytest.raises(ModelError, match="visionn"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"vision": {"heads": 5}}, {"vision": {"tower": "foo"}}, {"qformer": {"heads": 7}}]
)
def test_values_that_build_no_model(tmp_path: Path, wrong: dict[str, dict[str, object]]) -> None:
    tiny_checkpoint(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    for section, changes in wrong.items():
        values[section] |= changes
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"config\.json: no model can be built from its values"):
        checkpoint.load(tmp_path)


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "a", seed=0)
    tiny_checkpoint(tmp_path / "b", seed=0)
    tiny_checkpoint(tmp_path / "c", seed=1)
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len(a) == 16


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    provenance = {
        "commit": "abc",
        "command": "deltavlm train",
        "steps": "all 3",
        "trained_on": "scenes",
        "by": "us",
    }
    for name in "abcd":
        weights = {"projection.bias": torch.ones(3), "difference.context2.bias": torch.zeros(2)}
        checkpoint.save(tmp_path / name, TINY, weights, provenance=provenance)
    assert len({(tmp_path / name / WEIGHTS).read_bytes() for name in "abcd"}) == 1
    with safe_open(tmp_path / "a" / WEIGHTS, framework="pt") as file:
        assert json.loads(file.metadata()["deltavlm"]) == provenance


def test_weights_that_cannot_be_written_are_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        write_tensors(tmp_path / "gone" / WEIGHTS, {"bias": torch.ones(3)}, {})


def test_pickles_are_never_loaded_without_weights_only() -> None:
    """Every call of torch.load in the package says weights_only=True."""
    for path in Path(deltavlm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
