"""Conversion of ChangeVG's published files: errors that say what is wrong; and commands with the result."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

pytest.importorskip("peft", reason="needs peft: pip install '.[peft]'")

from deltacli.main import app
from deltavlm.errors import InputError, ModelError
from deltavlm.model.changevg.model import load_folder
from deltavlm.upstream import kinds
from tests.conftest import Scene
from tests.pairs import layer


@pytest.fixture(scope="module")
def published(changevg_files: Path) -> Path:
    return changevg_files


@pytest.fixture
def files(published: Path, tmp_path: Path) -> Path:
    """A copy of the files, for tests that damage them."""
    return Path(shutil.copytree(published, tmp_path / "files"))


def convert(files: Path, folder: Path, **paths: Path) -> kinds.Converted:
    given = {"base": files / "base", "adapter": files / "adapter", "mci": files / "mci"} | paths
    return kinds.convert("changevg", given, folder)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def of_another_base(files: Path) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".layers.1." in name]:
            weights[name.replace(".layers.1.", ".layers.7.")] = weights.pop(name)

    edit_tensors(files / "adapter" / "adapter_model.safetensors", rename)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda files: (files / "base" / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
        (
            lambda files: edit(files / "base" / "config.json", model_type="llava"),
            "is not the configuration of Qwen2.5-VL",
        ),
        (
            lambda files: edit_tensors(
                files / "base" / "model.safetensors", lambda weights: weights.pop("lm_head.weight")
            ),
            r"nothing fills lm_head\.weight",
        ),
        (
            lambda files: edit_tensors(
                files / "base" / "model.safetensors", lambda weights: weights.update(extra=torch.zeros(1))
            ),
            "extra is no tensor of Qwen2.5-VL",
        ),
        (lambda files: os.truncate(files / "base" / "model.safetensors", 9999), "cannot read .*safetensors"),
        (of_another_base, "the base has no model.language_model.layers.7"),
        (
            lambda files: edit(files / "adapter" / "adapter_config.json", use_dora=True),
            "use_dora is True, and only a plain LoRA can be merged",
        ),
        (lambda files: shutil.rmtree(files / "adapter"), "no folder .*adapter"),
        (
            lambda files: (files / "mci" / "MCI_model.pth").write_bytes(pickle.dumps(print, protocol=2)),
            "holds code, not only weights",
        ),
        (lambda files: (files / "mci" / "vocab.json").unlink(), r"no file .*vocab\.json"),
    ],
)
def test_files_that_do_not_fit(
    files: Path, tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(files)
    with pytest.raises(InputError, match=message):
        convert(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_converted_guide_is_taken_as_it_is(files: Path, tmp_path: Path) -> None:
    paths = {"checkpoint": files / "mci" / "MCI_model.pth", "vocab": files / "mci" / "vocab.json"}
    guide = kinds.convert("mci", paths, tmp_path / "mci").folder
    first, second = (
        convert(files, tmp_path / name, mci=path) for name, path in (("a", files / "mci"), ("b", guide))
    )
    encodings = [load_folder(each.folder).guide.network.state_dict() for each in (first, second)]
    assert all(torch.equal(encodings[0][name], encodings[1][name]) for name in encodings[0])


def test_the_size_of_a_checkpoint_is_that_of_all_its_folders(files: Path, tmp_path: Path) -> None:
    made = convert(files, tmp_path / "out")
    assert made.bytes == sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())


def test_damaged_folders_are_named(files: Path, tmp_path: Path) -> None:
    folder = convert(files, tmp_path / "out").folder
    (weights,) = (folder / "model").glob("*.safetensors")
    edit_tensors(weights, lambda tensors: tensors.pop("lm_head.weight"))
    index = folder / "model" / "model.safetensors.index.json"
    holders = json.loads(index.read_text())
    del holders["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(holders))
    with pytest.raises(ModelError, match=r"does not fit its config\.json: 1 keys missing: lm_head\.weight"):
        load_folder(folder)
    shutil.rmtree(folder / "model")
    with pytest.raises(ModelError, match="has no folder model"):
        load_folder(folder)


def test_commands_from_conversion_to_map(
    files: Path, tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ("--base", files / "base", "--adapter", files / "adapter", "--mci", files / "mci")

    def run(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    made = run("weights", "convert", "--kind", "changevg", *paths, "-o", "vg")
    assert made.exit_code == 0, made.stderr
    verified = run("weights", "verify", "vg", "--expected", files)
    assert verified.exit_code == 0, verified.stderr
    small = ("--chip-size", 32, "--overlap", 0, "--limit", 2, "--device", "cpu", "--dtype", "fp32")
    result = run("analyze", *scene.args, "--model", "vg", "-o", "out.gpkg", "--polygons", *small)
    assert result.exit_code == 0, result.stderr
    rows = layer("out.gpkg", "chips")
    assert [row["status"] for row in rows] == ["answered"] * 2
    assert all(row["answer_caption"] for row in rows)
    asked = run(
        *("ask", *scene.args, "--model", "vg", "--device", "cpu", "--dtype", "fp32", "--json"),
        *("-q", "Is the river wider?"),
    )
    assert asked.exit_code == 0, asked.stderr
    assert json.loads(asked.stdout)["status"] == "answered"
