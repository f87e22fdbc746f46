"""Models of the Hub that cannot be used: one line that says why and what to do; adapters, downloads, code."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from importlib import util
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deltavlm.errors import ConfigError, ModelError
from deltavlm.hub import Hub
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.device import DTYPES
from deltavlm.model.footprint import Footprint
from deltavlm.model.huggingface import loading, sizes
from deltavlm.model.huggingface.adapters import with_adapter
from deltavlm.model.huggingface.sizes import read_footprint
from deltavlm.model.huggingface.source import fingerprint, parse, plan
from deltavlm.model.interface import PairContext, Question
from deltavlm.model.kinds import load_model, read_spec
from deltavlm.model.quantize import tensor_bytes
from tests.hub_server import FakeHub, FakeRepo, refused, serve_hub
from tests.tiny_hf import BUILDERS, SIZES, build, build_adapter

COMMIT = "c" * 40
QUESTION = Question("change", "has anything changed?", yes_no=True, max_new_tokens=4)
_RANDOM = np.random.default_rng(4)
BEFORE, AFTER = (_RANDOM.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8) for _ in range(2))
needs_peft = pytest.mark.skipif(util.find_spec("peft") is None, reason="needs peft: pip install '.[peft]'")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llava", tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    pytest.importorskip("peft")
    return build_adapter(tiny, tmp_path / "adapter")


def load(name: object, **fields: Any) -> Any:
    return load_model(f"hf:{name}", device="cpu", dtype="fp32", **fields)


def edit(path: Path, **values: Any) -> None:
    """Change values of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def scores(model: Any) -> list[float]:
    return [reply.score for (reply,) in model.answer(model.encode(BEFORE, AFTER), [QUESTION])]


def test_names_of_models_and_adapters(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    model, adapter = parse(f"hf:{tmp_path / 'a+b'}")
    assert (model.name, adapter) == ("a+b", None)
    model, adapter = parse(f"hf:me/base@v1+{tmp_path / 'a+b'}".replace("a+b", ""))
    assert adapter is not None
    assert (model.name, model.revision, adapter.folder) == ("me/base", "v1", tmp_path.resolve())


@pytest.mark.parametrize(
    "name", ["nothing", "no/such/folder", "", "+me/adapter", "me/base@", "C:\\models\\x"]
)
def test_a_name_that_is_neither_folder_nor_repository(name: str) -> None:
    message = refused(read_spec, f"hf:{name}")
    assert "give an existing folder, or OWNER/NAME[@REVISION]" in message


@pytest.mark.parametrize(("field", "value"), [("decode", "upstream"), ("beams", 4), ("prompt_style", "raw")])
def test_options_of_deltavlm_are_refused(tiny: Path, field: str, value: object) -> None:
    for call in (read_spec, load_model):
        message = refused(call, f"hf:{tiny}", RuntimeOptions(**{field: value}), kind=ConfigError)
        assert f"do not support `{field}={value!r}`; omit it" in message
    assert read_spec(f"hf:{tiny}", RuntimeOptions(decode="fast", beams=1)).weights_bytes > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "qwen2"}, "(architecture 'qwen2') does not answer questions about images"),
        ({"model_type": "later_vl"}, "'later_vl', which transformers 5"),
        ({"model_type": None}, "pip install -U transformers"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "c.C"}}, "needs Python code of its own"),
    ],
)
def test_an_architecture_that_cannot_be_used(copied: Path, settings: dict[str, Any], words: str) -> None:
    edit(copied / "config.json", **settings)
    assert words in refused(load, copied)


def test_a_model_for_one_image(copied: Path) -> None:
    template = copied / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("<image>", "{{ '<image>' if loop.first else '' }}"))
    assert "takes one image only; give a model that takes two images" in refused(load, copied)
    template.write_text("{{ raise_exception('one image, please') }}")
    assert "takes no conversation with two images (one image, please)" in refused(load, copied)
    template.unlink()
    assert "has no chat template" in refused(load, copied)


def test_a_model_without_a_processor_for_images(copied: Path) -> None:
    for file in ("processor_config.json", "preprocessor_config.json"):
        (copied / file).unlink(missing_ok=True)
    message = refused(load, copied, kind=ModelError)
    assert "model cannot be loaded" in message or "transformers cannot load model" in message


def test_a_folder_that_lacks_files(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    message = refused(read_spec, f"hf:{copied}")
    assert "has no model.safetensors; only weights as safetensors are read" in message
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    (copied / "model-1.safetensors").touch()
    assert "has no model-2.safetensors" in refused(read_spec, f"hf:{copied}")
    index.write_text("{}")
    assert "cannot use" in refused(read_spec, f"hf:{copied}", kind=ModelError)
    (copied / "config.json").unlink()
    index.unlink()
    assert "has no config.json" in refused(read_spec, f"hf:{copied}")


def test_damaged_weights(copied: Path) -> None:
    weights = copied / "model.safetensors"
    tensors = load_file(weights)
    missing = next(name for name in tensors if "q_proj" in name)
    del tensors[missing]
    save_file(tensors, weights, {"format": "pt"})
    assert "lacks 1 tensors, such as" in refused(load, copied, kind=ModelError)
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "transformers cannot load model" in refused(load, copied, kind=ModelError)


def test_memory_is_told_and_too_little_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda device: 10**12)
    with caplog.at_level(logging.INFO, "deltavlm"):
        load(tiny)
    assert "needs about" in caplog.text
    assert "1.0 TB free" in caplog.text
    monkeypatch.setattr(loading, "free_memory", lambda device: None)
    load(tiny)


def test_only_what_would_fit_is_told(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((copied / "config.json").read_text())
    wide = {"hidden_size": 1024, "intermediate_size": 2016}
    deep = {"num_hidden_layers": 40, "layer_types": ["full_attention"] * 40}
    edit(copied / "config.json", text_config=config["text_config"] | wide | deep)
    needed = {
        (dtype, kind): read_tiny_footprint(copied, dtype, kind).needed
        for dtype, kind in product(("fp32", "bf16"), (None, "int8"))
    }
    assert needed["fp32", None] > needed["bf16", None] > needed["fp32", "int8"] > needed["bf16", "int8"]
    monkeypatch.setattr(loading, "_load_weights", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(loading, "free_memory", lambda device: needed["bf16", "int8"])
    message = refused(load, copied)
    assert message.startswith("model needs about ")
    assert " of memory in fp32, and " in message
    assert message.partition("; ")[2].startswith("`quantize='int8'` with `dtype='bf16'` (")
    assert message.endswith(") would fit")
    assert "int4" not in message  # the width of some layers is no multiple of 64
    monkeypatch.setattr(loading, "free_memory", lambda device: 1000)
    message = refused(load, copied)
    assert "even `quantize='int8'` with `dtype='bf16'` needs " in message
    assert "would fit" not in message


def read_tiny_footprint(folder: Path, dtype: str, quantize: Any = None, **settings: Any) -> Footprint:
    """Footprint by the configuration of a folder, with other settings."""
    values = json.loads((folder / "config.json").read_text()) | settings
    size = (folder / "model.safetensors").stat().st_size
    return read_footprint("tiny", values, size, device="cpu", dtype=DTYPES[dtype], quantize=quantize)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_memory_told_is_that_of_the_weights(tiny: Path, dtype: str) -> None:
    model = load_model(f"hf:{tiny}", device="cpu", dtype=dtype)
    assert read_tiny_footprint(tiny, dtype).weights == tensor_bytes(model.model) - sum(
        {id(each): each.nbytes for each in model.model.buffers()}.values()
    )


def test_the_memory_of_a_model_that_cannot_be_built_is_that_of_its_files(tiny: Path) -> None:
    size = (tiny / "model.safetensors").stat().st_size
    own = read_tiny_footprint(tiny, "bf16", model_type="own")
    assert own.weights == pytest.approx(size / 2, rel=0.01)
    awq = read_tiny_footprint(tiny, "fp32", quantization_config={"quant_method": "awq"})
    assert awq.weights == size  # as it is stored, whatever the dtype of the run
    assert own.smaller == awq.smaller == ()  # of which nothing is known


def test_quantized_weights_are_not_quantized_again(copied: Path) -> None:
    edit(copied / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "resolve_device", lambda options: "cpu")
        message = refused(load, copied, quantize="int8")
    assert message == "the weights of model are quantized already; omit `quantize`"


def test_a_model_without_layers_to_quantize_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its output would say int8 of weights in 32 bit."""
    monkeypatch.setattr(loading, "resolve_device", lambda options: "cpu")
    with monkeypatch.context() as patch:  # code of its own: nothing is known before it is loaded
        patch.setattr(loading, "linear_layers", lambda decoder: {})
        message = refused(load, tiny, quantize="int8")
    assert "has no linear layers to quantize to int8; omit `quantize`" in message
    monkeypatch.setattr(loading, "_load_weights", lambda *_: pytest.fail("weights were read"))
    message = refused(load, tiny, quantize="int4")
    assert message == (
        "`quantize='int4'` needs linear layers whose width is a multiple of 64, and the language model of"
        " tiny has others; use int8, or omit it"
    )
    monkeypatch.setattr(sizes, "linear_layers", lambda decoder: {})
    assert refused(load, tiny, quantize="int8").endswith(
        "needs linear layers, and the language model of tiny has none; omit it"
    )


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_layers_are_quantized_one_by_one_as_they_are_stored(
    stored: str, dtype: str, tiny: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With layers in the dtype of the run in their place, the model is the one without: nothing else is in
    memory in that dtype until all layers are quantized."""
    network = transformers.AutoModelForImageTextToText.from_pretrained(tiny, dtype=DTYPES[stored])
    with loading.quiet():
        network.save_pretrained(copied)
    plain = load_model(f"hf:{copied}", device="cpu", dtype=dtype)
    seen: list[torch.dtype] = []

    def same_layer(weight: torch.Tensor, *_: object) -> torch.nn.Module:
        assert weight.dtype == DTYPES[dtype]
        seen.append(network_of_run.dtype)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        return layer

    def load_weights(*args: Any) -> Any:
        nonlocal network_of_run
        network_of_run = original(*args)
        return network_of_run

    network_of_run: Any = None
    original = loading._load_weights
    monkeypatch.setattr(loading, "_load_weights", load_weights)
    monkeypatch.setattr(loading, "resolve_device", lambda options: "cpu")
    monkeypatch.setattr(loading, "describe", lambda kind: kind)
    monkeypatch.setattr(loading, "quantize_layer", same_layer)
    quantized = load_model(f"hf:{copied}", device="cpu", dtype=dtype, quantize="int8")
    assert seen == [DTYPES[stored]] * 14  # 7 layers in each of 2 blocks
    dtypes = {name: tensor.dtype for name, tensor in quantized.model.state_dict().items()}
    assert dtypes == {name: tensor.dtype for name, tensor in plain.model.state_dict().items()}
    assert quantized.model.config.dtype == quantized.model.config.text_config.dtype == DTYPES[dtype]
    assert scores(quantized) == scores(plain)


def test_an_error_of_an_architecture_is_one_of_the_model(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny)
    encoded = model.encode(BEFORE, AFTER)

    def generate(**_: object) -> None:
        raise TypeError("got an unexpected keyword")

    monkeypatch.setattr(model.model, "generate", generate)
    expected = "tiny cannot answer (TypeError: got an unexpected keyword); give another model"
    assert refused(model.answer, encoded, [QUESTION], kind=ModelError) == expected
    assert refused(model.encode, BEFORE, AFTER, kind=ModelError) == expected


def test_a_question_with_the_token_of_an_image(tiny: Path) -> None:
    model = load(tiny)
    encoded = model.encode(BEFORE, AFTER)
    question = replace(QUESTION, prompt="is <image> changed?")
    message = refused(model.answer, encoded, [question], kind=ModelError)
    assert "ask it in other words" in message


def test_calibration_of_the_score(tiny: Path) -> None:
    model = load(tiny)
    calibration = ScoreCalibration(
        model=model.name,
        fingerprint=model.fingerprint,
        method="platt",
        scale=2.0,
        offset=0.5,
        threshold=0.5,
        changed=1,
        unchanged=1,
    )
    margins = torch.logit(torch.tensor(scores(model)))
    calibrated = scores(load(tiny, calibration=calibration))
    assert calibrated == pytest.approx(torch.sigmoid(2 * margins + 0.5).tolist(), abs=1e-5)
    assert "fit another" in refused(load, tiny, calibration=replace(calibration, fingerprint="0" * 16))


def test_a_tokenizer_without_words_for_yes_and_no(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading.YesNo, "of", lambda vocabulary: loading.YesNo((), ()))
    model = load(tiny)
    assert "has no tokens for yes and no: answers have no probability" in caplog.text
    assert not model.details["yes_no_scores"]
    assert np.isnan(scores(model)).all()


@needs_peft
def test_an_adapter_is_merged(tiny: Path, adapter: Path) -> None:
    base, adapted = load(tiny), load(f"{tiny}+{adapter}")
    assert adapted.name == "tiny+adapter"
    assert adapted.details["adapter"] == "adapter"
    assert adapted.fingerprint != base.fingerprint
    assert np.abs(np.subtract(scores(adapted), scores(base))).min() > 1e-4
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    reference = parse(f"hf:{tiny}+{adapter}")
    assert reference[1] is not None
    with loading.quiet():
        unmerged = with_adapter(plain, reference[1], adapter, reference[0], merge=False).eval()
    unmerged.generation_config = adapted.model.generation_config
    assert scores(replace(adapted, model=unmerged)) == pytest.approx(scores(adapted), abs=1e-5)
    assert read_spec(f"hf:{tiny}+{adapter}").weights_bytes > read_spec(f"hf:{tiny}").weights_bytes


@pytest.mark.skipif(util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_quantized_answers_are_close(tiny: Path, adapter: Path) -> None:
    """Also with an adapter, which is then not merged."""
    for name in (f"{tiny}", f"{tiny}+{adapter}"):
        quantized = load(name, quantize="int8")
        assert quantized.details["quantize"].startswith("int8, bitsandbytes")
        assert scores(quantized) == pytest.approx(scores(load(name)), abs=0.05)
        assert scores(quantized) != scores(load(name))


@pytest.mark.skipif(util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_layers_that_are_wide_enough_are_quantized_to_4_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "hidden_size", 64)
    monkeypatch.setitem(SIZES, "intermediate_size", 128)
    wide = build("llava", tmp_path / "wide")
    plain, int8, int4 = (load(wide, quantize=kind) for kind in (None, "int8", "int4"))
    assert int4.details["quantize"].startswith("int4, bitsandbytes")
    lengths = [tensor_bytes(model.model.get_decoder().layers) for model in (plain, int8, int4)]
    assert lengths[0] > 3 * lengths[1] > 3 * lengths[2]
    assert scores(int8) == pytest.approx(scores(plain), abs=0.05)
    assert scores(int4) == pytest.approx(scores(plain), abs=0.2)
    assert len({*map(tuple, map(scores, (plain, int8, int4)))}) == 3


@pytest.mark.skipif(util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted({*BUILDERS} - {"smolvlm"}))
def test_every_architecture_answers_quantized(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of int4 in a batch are those alone; int8 chooses columns by the whole batch."""
    monkeypatch.setitem(SIZES, "hidden_size", 64)
    monkeypatch.setitem(SIZES, "intermediate_size", 128)
    wide = build(architecture, tmp_path / "wide")
    plain, int8 = (load(wide, quantize=kind) for kind in (None, "int8"))
    assert scores(int8) == pytest.approx(scores(plain), abs=0.1)
    assert scores(int8) != scores(plain)
    if architecture in ("gemma3", "mistral3", "qwen3_vl"):  # whose heads are narrower than the model
        assert "whose width is a multiple of 64, and" in refused(load, wide, quantize="int4")
        return
    int4 = load(wide, quantize="int4")
    batch = scores(int4)
    alone = [
        int4.answer(int4.encode(BEFORE[pair : pair + 1], AFTER[pair : pair + 1]), [QUESTION])[0][0].score
        for pair in range(2)
    ]
    assert batch == pytest.approx(alone, abs=1e-5)
    assert batch == pytest.approx(scores(plain), abs=0.4)
    assert batch != scores(plain)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bit_answers_are_close(tiny: Path, dtype: str) -> None:
    model = load_model(f"hf:{tiny}", device="cpu", dtype=dtype)
    assert model.details["dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    assert scores(model) == pytest.approx(scores(load(tiny)), abs=0.05)


@needs_peft
@pytest.mark.parametrize("architecture", ["qwen2_5_vl", pytest.param("smolvlm", marks=pytest.mark.slow)])
def test_an_adapter_of_another_base(
    architecture: str, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if architecture == "smolvlm":
        pytest.importorskip("num2words")
    other = build(architecture, tmp_path / "other")
    message = refused(load, f"{other}+{adapter}")
    assert message.startswith("the adapter adapter does not fit other: it was made for another base (")
    assert "answers may be worthless" not in caplog.text  # it is an error


@needs_peft
def test_an_adapter_of_a_base_of_the_same_shape_is_warned_about(
    tiny: Path, adapter: Path, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(base: Path) -> list[str]:
        caplog.clear()
        load(f"{base}+{adapter}")
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    config = adapter / "adapter_config.json"
    edit(config, base_model_name_or_path=None)
    assert warnings(tiny) == []  # it names no base
    edit(config, base_model_name_or_path="somebody/Tiny")  # of which the folder may be a copy
    assert warnings(tiny) == []
    other = "the adapter adapter was made for {}, not for this {}: answers may be worthless; give that one"
    assert warnings(copied) == [other.format("somebody/Tiny", "model")]
    training = adapter / "training.json"
    reference = parse(f"hf:{tiny}")[0]
    identity = fingerprint([(plan(reference, Hub("http://127.0.0.1:9", tmp_path, offline=True)), tiny)])
    training.write_text(json.dumps({"base_fingerprint": identity, "base_revision": None}))
    assert warnings(copied) == []  # the same weights by another name
    tensors = load_file(tiny / "model.safetensors")
    again = tmp_path / "again" / "tiny"
    shutil.copytree(tiny, again)
    save_file(
        {name: tensor * 2 for name, tensor in tensors.items()}, again / "model.safetensors", {"format": "pt"}
    )
    assert warnings(again) == [other.format("other weights of tiny", "tiny")]
    training.write_text("[]")
    assert "is no JSON object" in refused(load, f"{tiny}+{adapter}", kind=ModelError)


@needs_peft
def test_an_adapter_trained_without_dates_and_pixel_sizes_is_told_none(tiny: Path, adapter: Path) -> None:
    facts = [PairContext("2015", "2020", 0.5)] * 2
    question = replace(QUESTION, max_new_tokens=1)

    def asked(contexts: list[PairContext]) -> list[float]:
        model = load(f"{tiny}+{adapter}")
        return [reply.score for (reply,) in model.answer(model.encode(BEFORE, AFTER, contexts), [question])]

    assert asked(facts) != asked([])
    (adapter / "training.json").write_text(json.dumps({"tells_facts": False}))
    assert asked(facts) == asked([])
    told = [replace(context, evidence="It counts 2 new roads.") for context in facts]
    assert asked(told) != asked([])


def test_a_chat_template_that_begins_the_reasoning_is_noticed(copied: Path) -> None:
    assert not load(copied).always_reasons
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().rstrip() + "{% if add_generation_prompt %}<think>\n{% endif %}")
    assert load(copied).always_reasons


@needs_peft
def test_a_broken_adapter_is_told_from_one_of_another_base(tiny: Path, adapter: Path) -> None:
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    name, good = f"{tiny}+{adapter}", config.read_text()
    edit(config, peft_type="PROMPT_TUNING", num_virtual_tokens=2)
    assert refused(load, name) == (  # peft would drop its tokens, and the base would answer
        "the adapter adapter is of kind PROMPT_TUNING, which is no part of the weights; give a LoRA"
    )
    edit(config, peft_type="OF_TOMORROW")
    assert "is of kind OF_TOMORROW, which peft " in refused(load, name)
    config.write_text("{")
    assert "cannot read" in refused(load, name, kind=ModelError)
    config.write_text(good)
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(load, name, kind=ModelError)
    assert message.startswith("peft cannot load the adapter adapter: ")
    assert message.endswith("; copy or fetch it again")


@needs_peft
@pytest.mark.parametrize("values", [{"use_dora": True}, {"peft_type": "HRA"}])
def test_only_a_plain_lora_goes_with_quantized_layers(
    values: dict[str, Any], tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DoRA failed at the first chip, and kinds that turn the weights would have turned their codes."""
    edit(adapter / "adapter_config.json", **values)
    monkeypatch.setattr(loading, "resolve_device", lambda options: "cpu")
    message = refused(load, f"{tiny}+{adapter}", quantize="int8")
    assert message.startswith("the adapter adapter is no plain LoRA, ")
    assert message.endswith("; omit `quantize`")


def test_an_adapter_without_peft(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "peft" else find(name))
    (tmp_path / "adapter").mkdir()
    message = refused(load, f"{tiny}+{tmp_path / 'adapter'}")
    assert 'needs peft, which is not installed; pip install "deltavlm[peft]"' in message


def test_a_folder_that_is_no_adapter(tiny: Path) -> None:
    pytest.importorskip("peft")
    assert "is no adapter (peft): it has no adapter_config.json" in refused(load, f"{tiny}+{tiny}")


def test_the_fingerprint_follows_every_file(copied: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        reference = parse(f"hf:{folder}")[0]
        return fingerprint(
            [(plan(reference, Hub("http://127.0.0.1:9", tmp_path / "cache", offline=True)), folder)]
        )

    first = digest(copied)
    assert digest(shutil.copytree(copied, tmp_path / "again")) == first
    (copied / "README.md").write_text("a card")
    assert digest(copied) == first
    edit(copied / "tokenizer_config.json", model_max_length=17)
    second = digest(copied)
    large = copied / "model.safetensors"
    large.write_bytes(bytes(5_000_000))  # sampled
    third = digest(copied)
    large.write_bytes(bytes(4_999_999) + b"1")
    assert len({first, second, third, digest(copied)}) == 4


def repository(folder: Path, **settings: Any) -> FakeRepo:
    """Repository of the Hub with the files of a folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n# Tiny\n"
    files["training_args.bin"] = b"not needed"
    return FakeRepo(files, COMMIT, **settings)


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hub with the tiny model as me/tiny, and the same behind a gate as me/gated."""
    repos = {"me/tiny": repository(tiny), "me/gated": repository(tiny, gated=True)}
    with serve_hub(repos, tmp_path, monkeypatch) as served:
        monkeypatch.setattr(
            Hub,
            "configure",
            lambda offline: Hub(served.endpoint, tmp_path / "cache", offline=offline),
        )
        yield served


@pytest.mark.network
def test_a_repository_is_downloaded_once(hub: FakeHub, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = read_spec("hf:me/tiny")
    assert spec.weights_bytes == (tiny / "model.safetensors").stat().st_size
    assert hub.downloads() == []
    model = load("me/tiny")
    assert "downloading me/tiny at cccccccccccc: " in caplog.text
    assert "licence: apache-2.0" in caplog.text
    downloads = hub.downloads()
    assert "model.safetensors" in downloads
    assert "training_args.bin" not in downloads
    assert model.label == f"me/tiny {model.fingerprint}"
    assert model.details["revision"] == COMMIT
    hub.stop()  # nothing is asked of the Hub again
    again = load("me/tiny", offline=True)
    assert load("me/tiny").fingerprint == again.fingerprint == model.fingerprint
    assert scores(again) == scores(model) == pytest.approx(scores(load(tiny)))


@pytest.mark.network
def test_a_broken_download_goes_on(hub: FakeHub) -> None:
    """Weights come last, so that a cache with weights lacks nothing else."""
    hub.broken = "model.safetensors"
    refused(load, "me/tiny")
    assert {"config.json", "tokenizer.json", "processor_config.json"} <= {*hub.downloads()}
    hub.broken = ""
    load("me/tiny")
    assert hub.downloads() == ["model.safetensors"]


@pytest.mark.network
def test_repositories_that_cannot_be_had(hub: FakeHub, tmp_path: Path) -> None:
    assert "gated" in refused(load, "me/gated") or "hf auth login" in refused(load, "me/gated")
    assert "HF_TOKEN" in refused(load, "me/gated")
    assert "me/unknown" in refused(read_spec, "hf:me/unknown")
    assert "it has no revision 'v9'; give a branch, a tag" in refused(read_spec, "hf:me/tiny@v9")
    message = refused(load, "me/tiny", offline=True)
    assert "config.json of me/tiny" in message
    hub.stop()
    assert "no connection to" in refused(load, "me/tiny")


CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration
class MyConfig(LlavaConfig):
    model_type = "mine"
class MyModel(LlavaForConditionalGeneration):
    config_class = MyConfig
"""


@pytest.mark.network
@pytest.mark.slow
def test_code_of_a_repository_runs_only_if_it_is_named(hub: FakeHub, tiny: Path, copied: Path) -> None:
    (copied / "mine.py").write_text(CODE)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tiny)
    save_file(plain.state_dict(), copied / "model.safetensors", {"format": "pt"})
    edit(
        copied / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForImageTextToText": "mine.MyModel"},
    )
    hub.repos["me/mine"] = repository(copied)
    pinned = f"me/mine@{COMMIT}"
    message = refused(load, "me/mine")
    assert "which would run with your rights" in message
    assert message.endswith(f"then give `trust_remote_code='{pinned}'`")
    for other in ("me/mine", "me/mine@main", f"me/tiny@{COMMIT}", f"me/mine@{'d' * 40}"):
        assert "which would run with your rights" in refused(load, "me/mine", trust_remote_code=other)
    model = load("me/mine", trust_remote_code=pinned)
    assert scores(model) == pytest.approx(scores(load(tiny)), abs=1e-5)
    edit(copied / "config.json", auto_map={"AutoConfig": "you/other--mine.MyConfig"})
    hub.repos["me/theirs"] = repository(copied)
    assert "only code in the repository of a model" in refused(
        load, "me/theirs", trust_remote_code=f"me/theirs@{COMMIT}"
    )


def test_unused_contexts_are_optional(tiny: Path) -> None:
    model = load(tiny)
    assert scores(model) == [
        reply.score for (reply,) in model.answer(model.encode(BEFORE, AFTER, [PairContext()] * 2), [QUESTION])
    ]
