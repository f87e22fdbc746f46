"""ChangeChat against a second implementation at small size: all stages, and each known trap."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from deltavlm.errors import InputError, ModelError
from deltavlm.model.changechat import model as changechat_model
from deltavlm.model.changechat import network, prompt
from deltavlm.model.folder import WEIGHTS
from deltavlm.upstream import changechat, kinds
from deltavlm.upstream.changechat import Sources, convert, inspect, verify
from deltavlm.upstream.checks import TOLERANCE, Check
from deltavlm.upstream.read import tensors
from deltavlm.upstream.sizes import language_config
from tests.changechat_reference import ADAPTER, ALPHA, BASE, CLIP, OWN, PROJECTOR, RANK
from tests.upstream.conftest import GOLDEN as DELTAVLM


def sources(folder: Path, **changes: Any) -> Sources:
    values: dict[str, Any] = {
        "base": folder / BASE,
        "vision": folder / CLIP,
        "adapter": folder / ADAPTER,
    }
    return Sources(**{**values, **changes})


def checks_of(folder: Path, expected: Path) -> dict[str, Check]:
    return {check.name: check for check in verify(folder, expected, "fp32", "cpu")}


def failed(folder: Path, expected: Path) -> list[str]:
    return [name for name, check in checks_of(folder, expected).items() if not check.passed]


@pytest.fixture(scope="module")
def few(changechat_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Expected results of the first caption and of the dialogue alone, for tests of what goes wrong."""
    folder = tmp_path_factory.mktemp("few")
    shutil.copy(changechat_files / "expected.safetensors", folder)
    values = json.loads((changechat_files / "expected.json").read_text())
    values["cases"] = [values["cases"][0], values["cases"][-1]]
    values["train"] = values["train"][:1]
    (folder / "expected.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def files(changechat_files: Path, tmp_path: Path) -> Path:
    """A copy of the published files, for tests that damage them."""
    return Path(shutil.copytree(changechat_files, tmp_path / "files"))


def test_everything_is_equal_in_float32(changechat_files: Path, changechat_folder: Path) -> None:
    checks = checks_of(changechat_folder, changechat_files)
    assert {name: (check.equal, check.cases) for name, check in checks.items() if not check.passed} == {}
    assert {name: check.cases for name, check in checks.items()} == {
        **{"position table": 1, "pixels": 6, "vision features": 6, "projected features": 6},
        **{"prompt": 5, "prompt ids": 5, "first logits": 5, "ids, greedy": 3, "text, greedy": 3},
        **{"ids, dialogue": 2, "text, dialogue": 2, "ids, batched": 5},
        **{"training ids": 2, "training labels": 2, "training loss": 2},
    }
    assert (checks["pixels"].worst or 0) < 1e-6
    assert max(check.worst or 0 for check in checks.values()) < TOLERANCE


def test_an_adapter_with_a_projector_of_its_own(changechat_files: Path, tmp_path: Path) -> None:
    folder = changechat_files / OWN
    convert(sources(changechat_files, adapter=folder / ADAPTER), tmp_path / "tiny")
    assert failed(tmp_path / "tiny", folder) == []
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["projector"] == "adapter"


def test_a_projector_from_a_file_comes_first(changechat_files: Path, tmp_path: Path) -> None:
    adapter = changechat_files / OWN / ADAPTER
    convert(sources(changechat_files, projector=changechat_files / PROJECTOR), tmp_path / "file")
    assert set(checks_of(tmp_path / "file", changechat_files)) == {"first logits", "ids, greedy"}
    assert failed(tmp_path / "file", changechat_files) == []
    convert(
        sources(changechat_files, adapter=adapter, projector=changechat_files / PROJECTOR), tmp_path / "both"
    )
    small, both = (load_file(tmp_path / name / WEIGHTS) for name in ("file", "both"))
    assert torch.equal(small["projector.linear_1.weight"], both["projector.linear_1.weight"])
    with pytest.raises(InputError, match=r"has the projector of mm_projector\.bin, and the results"):
        verify(tmp_path / "both", changechat_files / OWN, "fp32", "cpu")


def _as_transformers_saves_it(files: Path, folder: Path) -> dict[str, Tensor]:
    """Write the base as a LLaVA of transformers; returns its tensors by the names of the first layout."""
    values = json.loads((files / BASE / "config.json").read_text())
    tower = json.loads((files / CLIP / "config.json").read_text())["vision_config"]
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**values), vision_config=transformers.CLIPVisionConfig(**tower)
    )
    model = transformers.LlavaForConditionalGeneration(config)
    base = dict(tensors(files / BASE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = name.replace("model.language_model.", "model.").replace("multi_modal_", "mm_")
            key = key.replace("linear_1", "0").replace("linear_2", "2")
            if key in base:
                parameter.copy_(base[key])
    model.save_pretrained(folder)
    shutil.copy(files / BASE / "tokenizer.model", folder)
    return base


@pytest.mark.parametrize("layout", ["as saved", "transformers 5", "llava-hf"])
def test_a_base_in_the_layouts_of_transformers(changechat_files: Path, tmp_path: Path, layout: str) -> None:
    base = _as_transformers_saves_it(changechat_files, tmp_path / "base")
    nested = {"transformers 5": "model.language_model.", "llava-hf": "language_model.model."}
    if layout != "as saved":
        stem = "model." if layout == "transformers 5" else ""
        weights = {f"{stem}vision_tower.vision_model.x": torch.zeros(1)}
        for name, tensor in base.items():
            for old, new in (("0", "linear_1"), ("2", "linear_2")):
                name = name.replace(f"model.mm_projector.{old}", f"{stem}multi_modal_projector.{new}")
            if name.startswith("model.") and "projector" not in name:
                name = nested[layout] + name.removeprefix("model.")
            if name == "lm_head.weight" and layout == "llava-hf":
                name = "language_model.lm_head.weight"
            weights[name] = tensor.contiguous()
        (file,) = (tmp_path / "base").glob("*.safetensors")
        save_file(weights, file)
    for name, folder in (("first", changechat_files / BASE), ("nested", tmp_path / "base")):
        convert(sources(changechat_files, base=folder), tmp_path / name)
    first, nested_ = (
        {
            name: tensor
            for file in (tmp_path / each).glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        for each in ("first", "nested")
    )
    assert first.keys() == nested_.keys()
    assert all(torch.equal(tensor, nested_[name]) for name, tensor in first.items())


def test_the_sizes_that_a_nested_configuration_leaves_out(tmp_path: Path) -> None:
    """config.json of llava-hf/llava-1.5-7b-hf names few values of its Llama."""
    nested = {
        "model_type": "llama",
        "vocab_size": 32_064,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": nested}))
    config = language_config(tmp_path)
    assert (config.hidden, config.layers, config.heads, config.intermediate) == (4096, 32, 32, 11_008)
    assert config.vocab == 32_064


def test_half_precision_reports_its_drift(changechat_folder: Path, few: Path) -> None:
    checks = {check.name: check for check in verify(changechat_folder, few, "bf16", "cpu")}
    assert checks["prompt ids"].passed
    worst, size = checks["vision features"].worst, checks["vision features"].size
    assert worst is not None
    assert size is not None
    assert TOLERANCE < worst < 0.05 * size


def _interpolate(table: Tensor, size: Any, **options: Any) -> Tensor:
    return F.interpolate(table, size, **{**options, "align_corners": False})


@pytest.mark.parametrize(
    ("broken", "first"),
    [
        (lambda patch: patch.setattr(changechat, "F", _Module(interpolate=_interpolate)), "position table"),
        (lambda patch: patch.setattr(changechat_model, "resize_images", _crop), "pixels"),
        (lambda patch: patch.setattr(changechat_model, "resize_images", _bilinear), "pixels"),
        (lambda patch: patch.setattr(network.ChangeChatNetwork, "features", _last_layer), "vision features"),
        (lambda patch: patch.setattr(network.ChangeChatNetwork, "features", _normed), "vision features"),
        (lambda patch: patch.setattr(network.ChangeChatNetwork, "features", _wrong_end), "vision features"),
        (lambda patch: patch.setattr(network, "F", _Module(gelu=_tanh)), "projected features"),
        (lambda patch: patch.setattr(network.ChangeChatNetwork, "embed", _exchanged), "first logits"),
        (lambda patch: patch.setattr(prompt.PromptCodec, "_continue", _with_blank), "prompt ids"),
        (lambda patch: patch.setitem(prompt.TEMPLATES, "v1", _joined()), "prompt"),
        (lambda patch: patch.setitem(prompt.TEMPLATES, "v1", prompt.TEMPLATES["llava_v1"]), "prompt"),
    ],
    ids=[
        *("corners not aligned", "centre crop", "bilinear", "last layer", "post layer norm"),
        *("class token kept", "approximate gelu", "dates exchanged", "blank after the end", "no newline"),
        "template of the evaluation",
    ],
)
def test_each_trap_is_found_at_its_stage(
    changechat_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    few: Path,
    tmp_path: Path,
    broken: Callable[..., Any],
    first: str,
) -> None:
    broken(monkeypatch)
    convert(sources(changechat_files), tmp_path / "tiny")
    assert failed(tmp_path / "tiny", few)[0] == first


class _Module:
    """Stand-in for `torch.nn.functional` with some functions replaced."""

    def __init__(self, **functions: Any) -> None:
        self.functions = functions

    def __getattr__(self, name: str) -> Any:
        return self.functions.get(name) or getattr(F, name)


def _tanh(values: Tensor) -> Tensor:
    return F.gelu(values, approximate="tanh")


def _crop(images: Any, size: int) -> Any:
    margin = (images.shape[-1] - size) // 2
    return images[..., margin : margin + size, margin : margin + size]


def _bilinear(images: Any, size: int) -> Any:
    resized = [
        Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.Resampling.BILINEAR)
        for image in images
    ]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])


def _states(model: network.ChangeChatNetwork, pixels: Tensor, layer: int = -2) -> Tensor:
    states: Tensor = model.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    return states


def _last_layer(model: network.ChangeChatNetwork, pixels: Tensor) -> Tensor:
    return _states(model, pixels, -1)[:, 1:]


def _normed(model: network.ChangeChatNetwork, pixels: Tensor) -> Tensor:
    normed: Tensor = model.vision.post_layernorm(_states(model, pixels))[:, 1:]
    return normed


def _wrong_end(model: network.ChangeChatNetwork, pixels: Tensor) -> Tensor:
    return _states(model, pixels)[:, :-1]


_embed = network.ChangeChatNetwork.embed


def _exchanged(model: network.ChangeChatNetwork, texts: Any, images: Tensor) -> Tensor:
    return _embed(model, texts, images.flip(0))


def _with_blank(codec: prompt.PromptCodec, text: str) -> list[int]:
    return codec.codec.encode(text)


def _joined() -> prompt.Template:
    return prompt.Template(prompt.TEMPLATES["v1"].system, (" ", " "))


@pytest.mark.parametrize("alpha", [4, 32], ids=["scaling 1", "scaling alpha"])
def test_another_scaling_is_found(files: Path, few: Path, tmp_path: Path, alpha: int) -> None:
    path = files / ADAPTER / "adapter_config.json"
    config = json.loads(path.read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    path.write_text(json.dumps(config | {"lora_alpha": alpha}))
    convert(sources(files), tmp_path / "tiny")
    assert failed(tmp_path / "tiny", few)[0] == "first logits"


def test_a_base_without_the_adapter_is_found(changechat_files: Path, few: Path, tmp_path: Path) -> None:
    convert(sources(changechat_files, adapter=None), tmp_path / "tiny")
    assert failed(tmp_path / "tiny", few)[0] == "first logits"


def test_the_table_of_the_adapter_is_accepted_and_not_used(files: Path, few: Path, tmp_path: Path) -> None:
    path = files / ADAPTER / "non_lora_trainables.bin"
    table = torch.load(path, weights_only=True)
    torch.save({name: torch.zeros_like(tensor) for name, tensor in table.items()}, path)
    made = convert(sources(files), tmp_path / "tiny")
    assert set(table) <= set(made.ignored)
    assert failed(tmp_path / "tiny", few) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.model.layers.", "base_model.model.model.language_model.layers."),
        ("base_model.model.model.layers.", "base_model.model.language_model.model.layers."),
        (".weight", ".default.weight"),
    ],
)
def test_other_names_of_peft_are_the_same_adapter(
    files: Path, changechat_folder: Path, tmp_path: Path, old: str, new: str
) -> None:
    path = files / ADAPTER / "adapter_model.bin"
    adapter = torch.load(path, weights_only=True)
    save_file(
        {name.replace(old, new): tensor.contiguous() for name, tensor in adapter.items()},
        path.with_name("adapter_model.safetensors"),
    )
    path.unlink()
    convert(sources(files), tmp_path / "tiny")
    name = "language-00001.safetensors"
    weights, others = load_file(tmp_path / "tiny" / name), load_file(changechat_folder / name)
    assert all(torch.equal(weights[key], others[key]) for key in others)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls
def test_a_merged_adapter_equals_that_of_peft(
    changechat_files: Path, changechat_folder: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    convert(sources(changechat_files, adapter=None), tmp_path / "base")
    name = "language-00001.safetensors"
    config = json.loads((changechat_files / BASE / "config.json").read_text())
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    llama = LlamaForCausalLM(LlamaConfig(**{key: config[key] for key in keys}))
    base = {
        key.removeprefix("language."): value for key, value in load_file(tmp_path / "base" / name).items()
    }
    llama.load_state_dict(base)
    adapter = tmp_path / "adapter"
    shutil.copytree(changechat_files / ADAPTER, adapter)
    merged = peft.PeftModel.from_pretrained(llama, adapter).merge_and_unload().state_dict()
    ours = load_file(changechat_folder / name)
    worst = max(float((ours[f"language.{key}"] - value).abs().max()) for key, value in merged.items())
    assert worst < 1e-6
    assert any(not torch.equal(base[key], merged[key]) for key in base)


def test_a_checkpoint_has_the_published_layout_of_tensors() -> None:
    from deltavlm.model.changechat.config import ChangeChatConfig
    from deltavlm.model.config import LanguageConfig

    llama = LanguageConfig(hidden=4096, layers=32, heads=32, intermediate=11_008, vocab=32_000)
    with torch.device("meta"):
        full = network.ChangeChatNetwork(ChangeChatConfig(name="full", language=llama)).state_dict()
    assert len(full) == 686
    assert sum(tensor.numel() for tensor in full.values()) == 7_062_644_736


def _rename(path: Path, old: str, new: str) -> None:
    weights = torch.load(path, weights_only=True)
    torch.save({name.replace(old, new): tensor for name, tensor in weights.items()}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / BASE / "tokenizer.model").unlink(), "has no tokenizer.model"),
        (lambda f: shutil.copy(DELTAVLM / "vicuna-7b-v1.5" / "tokenizer.model", f / BASE), "line breaks"),
        (lambda f: (f / BASE / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / BASE / "config.json").write_text('{"model_type": "vit"}'), "of a Llama"),
        (
            lambda f: (f / CLIP / "config.json").write_text("{}"),
            "is not the configuration of CLIP",
        ),
        (
            lambda f: (f / CLIP / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut"),
            "is not a file of torch, or it is truncated",
        ),
        (
            lambda f: _rename(f / BASE / "pytorch_model-00001-of-00002.bin", "layers.0", "blocks.0"),
            "is no tensor of the model",
        ),
        (
            lambda f: _rename(f / CLIP / "pytorch_model.bin", "vision_model", "text_model"),
            "has no embeddings.position_embedding.weight",
        ),
        (lambda f: (f / ADAPTER / "adapter_config.json").unlink(), "is no adapter of peft"),
        (lambda f: (f / ADAPTER / "adapter_model.bin").unlink(), "has no adapter_model"),
        (
            lambda f: _rename(f / ADAPTER / "adapter_model.bin", "lora_B", "lora_C"),
            "is no tensor of a LoRA",
        ),
        (
            lambda f: _rename(f / ADAPTER / "adapter_model.bin", "layers.1.", "layers.7."),
            "the base has no layers.7",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(
    files: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(files)
    with pytest.raises(InputError, match=message.replace(".", r"\.")) as caught:
        convert(sources(files), tmp_path / "tiny")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("use_rslora", True), ("use_dora", True), ("bias", "all"), ("r", 8), ("peft_type", "IA3")),
        *(("init_lora_weights", "pissa"), ("alora_invocation_tokens", [1, 2])),
    ],
)
def test_only_a_plain_lora_of_its_rank_is_merged(files: Path, tmp_path: Path, key: str, value: Any) -> None:
    path = files / ADAPTER / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=r"rank|LoRA"):
        convert(sources(files), tmp_path / "tiny")


def test_a_matrix_under_two_names_is_refused(files: Path, tmp_path: Path) -> None:
    path = files / ADAPTER / "adapter_model.bin"
    adapter = torch.load(path, weights_only=True)
    name = next(iter(adapter))
    torch.save(adapter | {name.replace(".weight", ".default.weight"): adapter[name] + 1}, path)
    with pytest.raises(InputError, match=r"has lora_A of layers\.0\..* twice"):
        convert(sources(files), tmp_path / "tiny")


def test_a_part_of_a_projector_is_not_completed_by_the_base(files: Path, tmp_path: Path) -> None:
    projector = torch.load(files / PROJECTOR, weights_only=True)
    name = next(name for name in projector if name.endswith("mm_projector.2.bias"))
    del projector[name]
    torch.save(projector, files / PROJECTOR)
    with pytest.raises(InputError, match=r"mm_projector\.bin has no mm_projector\.2\.bias"):
        convert(sources(files, projector=files / PROJECTOR), tmp_path / "file")
    shutil.copy(files / PROJECTOR, files / ADAPTER / "non_lora_trainables.bin")
    with pytest.raises(InputError, match=r"non_lora_trainables\.bin has no mm_projector\.2\.bias"):
        convert(sources(files), tmp_path / "adapter")


def test_a_pickle_with_code_is_not_opened(files: Path, tmp_path: Path) -> None:
    torch.save({"x": print}, files / ADAPTER / "adapter_model.bin")
    with pytest.raises(InputError, match="holds code, not only weights"):
        convert(sources(files), tmp_path / "tiny")


def test_a_missing_file_of_a_checkpoint_is_named(
    changechat_files: Path, changechat_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(changechat_folder, tmp_path / "tiny"))
    (folder / "language-00001.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no language-00001\.safetensors"):
        verify(folder, changechat_files, "fp32", "cpu")


def test_results_of_another_kind_are_refused(changechat_folder: Path) -> None:
    with pytest.raises(InputError, match=r"of kind changechat, and .* has results of kind deltavlm"):
        kinds.verify(changechat_folder, DELTAVLM)


def test_contents_of_the_published_files(changechat_files: Path) -> None:
    adapter = inspect(changechat_files / OWN / ADAPTER)
    assert {name: tensors for name, tensors, *_ in adapter.parts} == {
        "ignored": 1,
        "projector": 4,
        "lora": 28,
    }
    assert adapter.dims == {"rank": 4, "alpha": 8, "layers": 14}
    base = inspect(changechat_files / BASE)
    assert {name: tensors for name, tensors, *_ in base.parts} == {"language": 21, "projector": 4}
    tower = inspect(changechat_files / CLIP)
    assert {name for name, *_ in tower.parts} == {"vision", "ignored"}
    assert base.unknown == tower.unknown == ()
