"""Conversion of the published files: every tensor is mapped, and files that do not fit are errors."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltavlm.errors import DeltaVLMError, InputError, ModelError, OutputError
from deltavlm.model import checkpoint
from deltavlm.model.folder import CONFIG, SENTENCEPIECE, WEIGHTS, read_config
from deltavlm.model.kinds import load_model
from deltavlm.upstream import kinds, names
from deltavlm.upstream.convert import convert
from deltavlm.upstream.read import shards, tensors
from tests.upstream.conftest import GOLDEN, as_instructblip, sources


def published(folder: Path = GOLDEN) -> dict[str, Any]:
    checkpoint_file: dict[str, Any] = torch.load(folder / "checkpoint_best.pth", weights_only=True)
    return checkpoint_file


def test_every_published_tensor_is_copied_bit_for_bit_or_ignored(converted: Path) -> None:
    weights = load_file(converted / WEIGHTS)
    base = dict(tensors(GOLDEN / "eva_vit_g.pth"))
    filled = set()
    for name, tensor in published()["model"].items():
        our = names.from_published(name)
        if our is not None:
            assert torch.equal(weights[our], tensor), name
            filled.add(our)
    for our in set(weights) - filled:  # the other tensors are those of the vision base
        assert torch.equal(weights[our], base[our.removeprefix("vision.tower.")]), our
    assert not torch.equal(weights["vision.tower.blocks.2.mlp.fc1.weight"], base["blocks.2.mlp.fc1.weight"])


def test_the_configuration_is_read_from_the_tensors(converted: Path) -> None:
    config, dims = read_config(converted), json.loads((GOLDEN / "expected.json").read_text())["dims"]
    assert (config.vision.image_px, config.vision.width, config.vision.depth, config.vision.heads) == (
        *(dims[key] for key in ("img", "vdim", "vdepth", "vheads")),
    )
    assert (config.qformer.hidden, config.qformer.layers, config.qformer.heads, config.qformer.queries) == (
        *(dims[key] for key in ("qh", "ql", "qheads", "nq")),
    )
    assert (config.language.hidden, config.language.layers, config.language.vocab) == (
        *(dims[key] for key in ("lh", "ll", "lvocab")),
    )
    assert config.sources["language"] == "vicuna-7b-v1.5"
    assert config.sources["epoch"] == "7"


def test_a_linked_language_model_is_read_from_its_folder(converted: Path, tmp_path: Path) -> None:
    result = convert(sources(), tmp_path / "linked", link_language=True)
    assert not list(result.folder.glob("language-*"))
    _, copied = checkpoint.load(converted)
    _, linked = checkpoint.load(result.folder)
    for name, tensor in copied.state_dict().items():
        assert torch.equal(linked.state_dict()[name], tensor), name
    away = replace(result.config, language=replace(result.config.language, folder=str(tmp_path / "nowhere")))
    checkpoint.save_config(result.folder, away)
    with pytest.raises(ModelError, match="nowhere, which has no weights"):
        checkpoint.load(result.folder)


def test_a_language_model_in_pickled_shards_gives_the_same_model(converted: Path, files: Path) -> None:
    """Vicuna is published as .bin shards with an index."""
    folder = files / "vicuna-7b-v1.5"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    listed = sorted(weights)
    weight_map = {}
    for index, keys in enumerate((listed[:9], listed[9:])):
        name = f"pytorch_model-0000{index + 1}-of-00002.bin"
        torch.save({key: weights[key] for key in keys}, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _, expected = checkpoint.load(converted)
    for link in (False, True):
        result = convert(sources(files), files / f"out{link}", link_language=link)
        _, actual = checkpoint.load(result.folder)
        for key, tensor in expected.state_dict().items():
            assert torch.equal(actual.state_dict()[key], tensor), key
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"lacks pytorch_model-00002-of-00002\.bin"):
        convert(sources(files), files / "more")


def test_the_vision_tower_of_instructblip_gives_the_same_model(converted: Path, tmp_path: Path) -> None:
    base = as_instructblip(GOLDEN / "eva_vit_g.pth", tmp_path / "instructblip")
    result = convert(replace(sources(), vision=base), tmp_path / "out")
    expected, actual = load_file(converted / WEIGHTS), load_file(result.folder / WEIGHTS)
    assert set(expected) == set(actual)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_the_last_block_and_the_head_of_the_published_base_are_ignored(files: Path) -> None:
    base = torch.load(files / "eva_vit_g.pth", weights_only=True)
    base |= {name.replace("blocks.2.", "blocks.3."): t for name, t in base.items() if "blocks.2." in name}
    base |= {"head.weight": torch.zeros(3, 3), "norm.weight": torch.zeros(3)}
    torch.save(base, files / "eva_vit_g.pth")
    assert convert(sources(files), files / "out").config.vision.depth == 3


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out_of_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", run_out_of_space)
    with pytest.raises(OutputError, match="No space left"):
        convert(sources(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["deltavlm", "mci", "changechat"])
@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ("free_bytes", "on the disk of .*, and 10 B are free"),
        ("available_memory", "memory, and 10 B are free"),
    ],
)
def test_a_conversion_that_has_no_room_is_not_begun(
    kind: str,
    resource: str,
    message: str,
    changechat_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests import changechat_reference as chat
    from tests.mci_reference import write_files

    reference = write_files(tmp_path / "published").folder if kind == "mci" else tmp_path
    base, vision = changechat_files / chat.BASE, changechat_files / chat.CLIP
    paths = {
        "mci": {"checkpoint": reference / "MCI_model.pth", "vocab": reference / "vocab.json"},
        "changechat": {"base": base, "vision": vision, "adapter": changechat_files / chat.ADAPTER},
    }
    monkeypatch.setattr(f"deltavlm.upstream.write.{resource}", lambda *_: 10)
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: pytest.fail("a file was written"))
    begin: dict[str, Callable[[], object]] = {
        "deltavlm": lambda: convert(sources(), tmp_path / "out"),
        "mci": lambda: kinds.convert("mci", paths["mci"], tmp_path / "out"),
        "changechat": lambda: kinds.convert("changechat", paths["changechat"], tmp_path / "out"),
    }
    with pytest.raises(InputError, match=message):
        begin[kind]()
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(OutputError, match="exists already"):
        convert(sources(), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "here"


def damage_pickle(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("code was run",))

    with (folder / "checkpoint_best.pth").open("wb") as file:
        pickle.dump({"model": Evil()}, file)


def damage_torch_pickle(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("code was run",))

    torch.save({"model": Evil()}, folder / "checkpoint_best.pth")


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def another_model(folder: Path) -> None:
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, folder / "checkpoint_best.pth")


def with_tensor(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        checkpoint_file = published(folder)
        checkpoint_file["model"][name] = torch.zeros(3)
        torch.save(checkpoint_file, folder / "checkpoint_best.pth")

    return damage


def without_tensor(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        checkpoint_file = published(folder)
        del checkpoint_file["model"][name]
        torch.save(checkpoint_file, folder / "checkpoint_best.pth")

    return damage


def other_base(folder: Path) -> None:
    base = torch.load(folder / "eva_vit_g.pth", weights_only=True)
    torch.save({name: t[..., :16].clone() for name, t in base.items()}, folder / "eva_vit_g.pth")


def headless_base(folder: Path) -> None:
    base = torch.load(folder / "eva_vit_g.pth", weights_only=True)
    torch.save({n: t for n, t in base.items() if n.startswith("blocks.")}, folder / "eva_vit_g.pth")


def shallow_base(folder: Path) -> None:
    base = torch.load(folder / "eva_vit_g.pth", weights_only=True)
    torch.save({n: t for n, t in base.items() if "mlp.fc2" not in n}, folder / "eva_vit_g.pth")


def gone(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def long_vocab(folder: Path) -> None:
    path = folder / "bert-base-uncased" / "vocab.txt"
    path.write_text(path.read_text() + "\n".join(f"word{i}" for i in range(50)))


def other_vocab(folder: Path) -> None:
    (folder / "bert-base-uncased" / "vocab.txt").write_text("a\nb\n")


def narrow_llama(folder: Path) -> None:
    path = folder / "vicuna-7b-v1.5" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 32}))


def no_llama(folder: Path) -> None:
    (folder / "vicuna-7b-v1.5" / "config.json").write_text("{}")


LLM = "vicuna-7b-v1.5"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_pickle, "checkpoint_best.pth (holds code|is not a file of torch)"),
        (damage_torch_pickle, "checkpoint_best.pth holds code"),
        (cut("checkpoint_best.pth"), "checkpoint_best.pth is not a file of torch, or it is truncated"),
        (cut("eva_vit_g.pth"), "eva_vit_g.pth is not a file of torch, or it is truncated"),
        (cut(f"{LLM}/model.safetensors"), "cannot read .*model.safetensors"),
        (cut(f"{LLM}/{SENTENCEPIECE}"), "cannot read the tokenizer"),
        (another_model, "is no checkpoint of DeltaVLM: it lacks query_tokens"),
        (with_tensor("mask_decoder.weight"), "1 unknown tensor, mask_decoder.weight"),
        (without_tensor("gate1.weight"), "gate1|nothing fills"),
        (without_tensor("llm_proj.bias"), "nothing fills projection.bias"),
        (other_base, "it is another vision model"),
        (headless_base, "eva_vit_g.pth has no cls_token; give the EVA-CLIP-g base"),
        (shallow_base, "eva_vit_g.pth lacks blocks.1.mlp.fc2.weight"),
        (gone("eva_vit_g.pth"), "no file or folder .*eva_vit_g.pth"),
        (gone("checkpoint_best.pth"), "no file .*checkpoint_best.pth"),
        (gone(f"{LLM}/{SENTENCEPIECE}"), "has no tokenizer.model; fetch that file"),
        (gone(f"{LLM}/model.safetensors"), "has no weights"),
        (gone(f"{LLM}/config.json"), "is not the configuration of a Llama"),
        (gone("bert-base-uncased"), "cannot read the vocabulary"),
        (long_vocab, "the Q-Former 177"),
        (other_vocab, r"lacks \[PAD\] \[UNK\]"),
        (narrow_llama, "nothing fills|should be"),
        (no_llama, "is not the configuration of a Llama"),
    ],
)
def test_files_that_do_not_fit_are_errors(
    files: Path, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(files)
    with pytest.raises(DeltaVLMError, match=words) as caught:
        convert(sources(files), files / "out")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "code was run" not in capsys.readouterr().out
    assert not (files / "out").exists()
    assert not list(files.glob(".*"))


def test_shards_prefers_safetensors_and_checks_the_index(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert shards(tmp_path) == [tmp_path / "b.safetensors"]
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="is not an index of shards"):
        shards(tmp_path)


def test_a_converted_checkpoint_answers(converted: Path) -> None:
    model = load_model(str(converted), device="cpu")
    assert model.name == "tiny"  # of its folder
    assert model.chip_px == 256
    assert len(model.fingerprint) == 16
    before = torch.randint(0, 255, (2, 3, 256, 256), dtype=torch.uint8).numpy()
    from deltavlm.model.interface import Question

    questions = (Question("a", "what changed?", max_new_tokens=4), Question("b", "changed?", yes_no=True))
    replies = model.answer(model.encode(before, before[::-1]), questions)
    assert len(replies) == 2
    assert all(0 <= row[1].score <= 1 for row in replies)


def test_a_missing_shard_is_an_error(converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "copy"))
    (folder / "language-00001.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no language-00001\.safetensors"):
        checkpoint.load(folder)
    assert (folder / CONFIG).is_file()
