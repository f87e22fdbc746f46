"""Conversion of MCI's published files: strict names, and errors that say what is wrong."""

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

from deltavlm.errors import ConfigError, InputError, OutputError
from deltavlm.upstream import kinds
from deltavlm.upstream.mci import IGNORED, PARTS, from_published, read_published
from tests.mci_reference import WORDS, Reference, random_weights


@pytest.fixture(scope="module")
def published(mci_files: Reference) -> Path:
    return mci_files.folder


@pytest.fixture
def files(published: Path, tmp_path: Path) -> Path:
    """A copy of the files, for tests that damage them."""
    return Path(shutil.copytree(published, tmp_path / "files"))


def convert(files: Path, folder: Path, **paths: Path | None) -> kinds.Converted:
    given = {"checkpoint": files / "MCI_model.pth", "vocab": files / "vocab.json"} | paths
    return kinds.convert("mci", given, folder)


def test_every_published_tensor_is_mapped_or_named(published: Path) -> None:
    names = list(read_published(published / "MCI_model.pth"))
    ignored = [name for name in names if from_published(name) is None]
    mapped = {from_published(name) for name in names} - {None}
    assert len(mapped) + len(ignored) == len(names)
    dead = ("PCM", "Q_LN", "fuse_conv2", ".2.weight", "fc_alpha", "embedding_1D", "num_batches_tracked")
    assert {word for word in dead for name in ignored if word in name} == {*dead}
    assert all(reason for _, reason in IGNORED)
    with pytest.raises(KeyError):
        from_published("decoder_dict/wdc2.weight")


def damage(change: Callable[[dict[str, dict[str, Any]]], None]) -> Callable[[Path], None]:
    def apply(files: Path) -> None:
        parts = random_weights()
        change(parts)
        torch.save(parts, files / "MCI_model.pth")

    return apply


def write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            damage(lambda parts: parts["decoder_dict"].pop("wdc.bias")),
            r"nothing fills captioner\.classify\.bias",
        ),
        (
            damage(lambda parts: parts["decoder_dict"].update(extra=torch.zeros(1))),
            r"1 unknown tensor, decoder_dict/extra the first",
        ),
        (
            damage(lambda parts: parts["decoder_dict"].update({"wdc.bias": torch.zeros(4)})),
            r"captioner\.classify\.bias is \(4,\), should be \(35,\)",
        ),
        (damage(lambda parts: parts.pop("encoder_dict")), "is no checkpoint of MCI: it lacks encoder_dict"),
        (
            damage(lambda parts: parts["decoder_dict"].pop("vocab_embedding.weight")),
            "is no checkpoint of MCI: it lacks 'captioner.embedding.weight'",
        ),
        (
            lambda files: write(files / "expected.json", {"backbone_heads": [1, 2, 5, 7], "heads": 8}),
            "7 heads do not divide a width of 24; give the numbers of heads with `heads_config`",
        ),
        (
            lambda files: write(files / "expected.json", {"heads": 8}),
            "does not tell backbone_heads and heads",
        ),
        (
            lambda files: (files / "vocab.json").write_text(
                json.dumps({w: i for i, w in enumerate(WORDS[:9])})
            ),
            "has 9 words, the checkpoint 35",
        ),
        (lambda files: (files / "vocab.json").unlink(), r"no file .*vocab\.json"),
        (lambda files: write(files / "vocab.json", [1]), "is not a vocabulary"),
        (
            lambda files: os.truncate(files / "MCI_model.pth", 9999),
            "not a file of torch, or it is truncated",
        ),
        (
            lambda files: (files / "MCI_model.pth").write_bytes(pickle.dumps(print, protocol=2)),
            "holds code, not only weights",
        ),
    ],
)
def test_files_that_do_not_fit(
    files: Path, tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(files)
    with pytest.raises(InputError, match=message):
        convert(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_paths_belong_to_the_kind(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`vocab` is missing; a model of kind mci is converted from"):
        convert(files, tmp_path / "out", vocab=None)
    with pytest.raises(ConfigError, match="`bert` is no file of kind mci"):
        convert(files, tmp_path / "out", bert=files)
    with pytest.raises(InputError, match="no published model of kind 'mcy'"):
        kinds.convert("mcy", {}, tmp_path / "out")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        convert(files, tmp_path / "out")


def test_results_of_another_kind_are_refused(files: Path, tmp_path: Path) -> None:
    folder = convert(files, tmp_path / "out").folder
    values = json.loads((files / "expected.json").read_text())
    (files / "expected.json").write_text(json.dumps(values | {"kind": "changevg"}))
    with pytest.raises(InputError, match=r"is of kind mci, and .* has results of kind changevg"):
        kinds.verify(folder, files)


def test_contents_of_a_file(files: Path) -> None:
    contents = kinds.inspect("mci", files / "MCI_model.pth")
    assert [part[0] for part in contents.parts] == list(PARTS)
    assert contents.unknown == ()
    assert contents.dims["widths"] == (8, 10, 15, 24)
    assert contents.dims["depths"] == (1, 2, 1, 1)
    assert contents.dims["caption_neck_layers"] == 2
    assert contents.dims["decoder_width"] == 16
