"""OpenVINO runtime: the answers and masks of torch, from graphs that hold no weights of their own."""

from __future__ import annotations

import locale
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deltavlm.errors import ConfigError, ModelError
from deltavlm.model import checkpoint
from deltavlm.model.answering import CheckpointModel
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import FEATURES, GRAPHS, WEIGHTS, layout_digest
from deltavlm.model.graphs import export_graphs
from deltavlm.model.interface import ChangeModel, Question, standard_question
from deltavlm.model.kinds import load_model
from deltavlm.model.openvino import CACHE_BLOCK, ENCODE_PAIRS, Graphs, KeyValueCache
from deltavlm.model.runtime import has_gpu, pick_runtime
from deltavlm.model.scope import QuestionScope
from deltavlm.model.scope_numpy import NumpyScope
from deltavlm.tasks import TASKS
from tests.tiny import SCOPE, TINY, tiny_checkpoint, tiny_model

STANDARD = [standard_question(TASKS[name]) for name in ("caption", "change", "count", "location")]
ROOMY = replace(TINY, language=replace(TINY.language, context=1024))  # its tokens are single letters
OPEN = Question("open", "Were any trees removed?", max_new_tokens=20)
LONG = Question("long", "q were any trees removed? a yes q how many were there, and where?", max_new_tokens=9)


@pytest.fixture(autouse=True)
def torch_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with instructions for bf16, torch encodes images in it, as in training."""
    monkeypatch.setattr("deltavlm.model.predictor.bf16_cpu", lambda: False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    model = tiny_checkpoint(folder)
    checkpoint.save_config(folder, ROOMY)
    export_graphs(model, folder)
    return folder


def images(count: int, side: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 256, (2, count, 3, side, side), dtype=np.uint8)
    return before, after


def both(folder: Path, **options: object) -> tuple[ChangeModel, ChangeModel]:
    return tuple(  # type: ignore[return-value]
        load_model(str(folder), device="cpu", runtime=runtime, **options) for runtime in ("openvino", "torch")
    )


def test_answers_scores_and_masks_are_those_of_torch(exported: Path) -> None:
    graphs, reference = both(exported, dtype="fp32")
    pairs = images(5)
    encoded, expected = (model.encode(*pairs) for model in (graphs, reference))
    masks = [model.masks(each) for model, each in ((graphs, encoded), (reference, expected))]
    assert masks[0] is not None
    assert masks[1] is not None
    assert np.abs(masks[0].probabilities - masks[1].probabilities).max() < 1e-5
    assert isinstance(graphs, CheckpointModel)
    assert isinstance(reference, CheckpointModel)
    assert graphs.counts(encoded) == pytest.approx(reference.counts(expected), abs=1e-4)
    questions = [*STANDARD, OPEN, LONG]
    for replies, right in zip(
        graphs.answer(encoded, questions), reference.answer(expected, questions), strict=True
    ):
        assert [reply.text for reply in replies] == [reply.text for reply in right]
        assert [reply.score for reply in replies] == pytest.approx([reply.score for reply in right], abs=1e-4)


def test_the_locale_of_the_process_stays(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two graphs read at the same time often left "C", so that text was read as ASCII from then on."""
    openvino = pytest.importorskip("openvino")
    compile_model = openvino.Core.compile_model

    def leaves_another_locale(*args: object) -> object:
        locale.setlocale(locale.LC_ALL, "C")
        return compile_model(*args)

    before = locale.setlocale(locale.LC_ALL)
    monkeypatch.setattr(openvino.Core, "compile_model", leaves_another_locale)
    load_model(str(exported), runtime="openvino")
    assert locale.setlocale(locale.LC_ALL) == before


def test_constrained_decoding_is_that_of_torch(tmp_path: Path) -> None:
    config = replace(ROOMY, decoding=replace(TINY.decoding, consistent=True))
    tiny_checkpoint(tmp_path)
    checkpoint.save_config(tmp_path, config)
    export_graphs(tiny_model(config=config), tmp_path)
    graphs, reference = both(tmp_path, dtype="fp32")
    pairs = images(4, seed=3)
    texts = [
        [[reply.text for reply in row] for row in model.answer(model.encode(*pairs), STANDARD)]
        for model in (graphs, reference)
    ]
    assert texts[0] == texts[1]
    assert {row[1] for row in texts[0]} <= {"yes", "no"}


def test_a_pair_has_the_same_answer_alone_and_in_any_batch(exported: Path) -> None:
    model = load_model(str(exported), device="cpu", runtime="openvino")
    before, after = images(9)
    together = model.answer(model.encode(before, after), [*STANDARD, OPEN])
    for index in (0, 4, 8):
        one = slice(index, index + 1)
        assert model.answer(model.encode(before[one], after[one]), [OPEN, *STANDARD])[0] == [
            together[index][-1],
            *together[index][:-1],
        ]


def test_the_encoder_gets_few_pairs_at_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their maps are most of a run's memory; the features are those of each pair alone."""
    model = load_model(str(exported), device="cpu", runtime="openvino")
    before, after = images(2 * ENCODE_PAIRS + 1)
    alone = [
        model.encode(before[index : index + 1], after[index : index + 1]) for index in range(len(before))
    ]
    sizes, run = [], Graphs.run

    def recorded_run(self: Graphs, name: str, inputs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        sizes.append(inputs["images"].shape[1])
        return run(self, name, inputs)

    monkeypatch.setattr(Graphs, "run", recorded_run)
    together = model.encode(before, after)
    assert sizes == [ENCODE_PAIRS, ENCODE_PAIRS, 1]
    for name in FEATURES:
        expected = np.concatenate([getattr(each, name) for each in alone])
        np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_resized(exported: Path) -> None:
    graphs, reference = both(exported, dtype="fp32")
    before, after = images(2, side=96)
    masks = [model.masks(model.encode(before, after)) for model in (graphs, reference)]
    assert np.abs(masks[0].probabilities - masks[1].probabilities).max() < 1e-5  # type: ignore[union-attr]


def test_threads_share_the_compiled_graphs(exported: Path) -> None:
    model = load_model(str(exported), device="cpu", runtime="openvino", threads=2)
    pairs = [images(3, seed=seed) for seed in range(4)]

    def answers(pair: tuple[np.ndarray, np.ndarray]) -> object:
        return model.answer(model.encode(*pair), STANDARD)

    alone = [answers(pair) for pair in pairs]
    with ThreadPoolExecutor(2, initializer=model.init_worker) as pool:
        assert list(pool.map(answers, pairs)) == alone


def test_the_graphs_hold_no_weights(exported: Path) -> None:
    import onnx

    for name in GRAPHS:
        graph = onnx.load(exported / name, load_external_data=False).graph
        large = [each for each in graph.initializer if np.prod(each.dims) > 64]
        assert large
        assert all(each.data_location == onnx.TensorProto.EXTERNAL for each in large)
        assert {entry.value for each in large for entry in each.external_data if entry.key == "location"} == {
            WEIGHTS
        }


def test_new_weights_of_the_same_layout_need_no_new_graphs(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    checkpoint.save(tmp_path, ROOMY, tiny_model(1).state_dict(), provenance={"made": "for a test"})
    assert layout_digest(tmp_path / WEIGHTS) == layout_digest(exported / WEIGHTS)
    graphs, reference = both(tmp_path, dtype="fp32")
    pairs = images(2)
    masks = [model.masks(model.encode(*pairs)) for model in (graphs, reference)]
    assert np.abs(masks[0].probabilities - masks[1].probabilities).max() < 1e-5  # type: ignore[union-attr]


def test_weights_of_another_layout_are_refused(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = replace(TINY, language=replace(TINY.language, intermediate=64))
    checkpoint.save(tmp_path, config, tiny_model(config=config).state_dict(), provenance={})
    with pytest.raises(ModelError, match=r"is not of the weights beside it; .* deltavlm weights export$"):
        load_model(str(tmp_path), device="cpu")


def test_an_encoder_without_counts_is_of_an_earlier_version(exported: Path, tmp_path: Path) -> None:
    """Its answers would be other ones, without a word, where the mask head counts."""
    import onnx

    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = onnx.load(exported / GRAPHS[0], load_external_data=False)
    graph.graph.output.pop()
    (tmp_path / GRAPHS[0]).write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match=r"is of an earlier version; .* deltavlm weights export$"):
        load_model(str(tmp_path), device="cpu", runtime="openvino")


def test_a_language_model_that_returns_the_whole_cache_is_of_an_earlier_version(
    exported: Path, tmp_path: Path
) -> None:
    import onnx

    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = onnx.load(exported / GRAPHS[-1], load_external_data=False)
    graph.graph.output.pop()
    (tmp_path / GRAPHS[-1]).write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match=r"language\.onnx is of an earlier version; .* weights export$"):
        load_model(str(tmp_path), device="cpu", runtime="openvino")


def test_the_cache_keeps_its_tokens_where_it_grows_and_rows_leave() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.normal(size=(2, 3, 1, 5, 4)).astype(np.float32)
    mask = np.ones((3, 5), np.int64)
    mask[0, :2] = 0
    cache = KeyValueCache.of_prompt(prompt, -prompt, mask)
    expected, kept_rows = prompt, np.array([True, False, True])
    for step in range(2 * CACHE_BLOCK):
        token = rng.normal(size=(2, len(cache.mask), 1, 1, 4)).astype(np.float32)
        cache.append(token, -token)
        expected = np.concatenate([expected, token], axis=3)
        if step == CACHE_BLOCK:
            cache, expected, mask = cache.select(kept_rows), expected[:, kept_rows], mask[kept_rows]
    assert (cache.keys[..., : cache.length, :] == expected).all()
    assert (cache.values == -cache.keys).all()
    assert (cache.mask[:, :5] == mask).all()
    assert (cache.mask.sum(axis=1) == mask.sum(axis=1) + 2 * CACHE_BLOCK).all()
    assert all(each.flags.c_contiguous for each in cache.layers().values())


def test_a_broken_graph_is_one_line(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / GRAPHS[0]).write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"^cannot read .*encode\.onnx: [^\n]*; copy the checkpoint folder"):
        load_model(str(tmp_path), device="cpu", runtime="openvino")


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.blob"))


@pytest.mark.slow
def test_damaged_compiled_graphs_are_compiled_again(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other bytes among the weights the answers were others, without a word from OpenVINO."""
    monkeypatch.setenv("OV_CACHE_DIR", str(tmp_path))
    pairs = images(2)

    def masks() -> np.ndarray:
        model = load_model(str(exported), device="cpu", runtime="openvino")
        found = model.masks(model.encode(*pairs))
        assert found is not None
        return found.probabilities

    expected = masks()
    whole = {path: path.read_bytes() for path in blobs(tmp_path)}
    assert len(whole) == len(GRAPHS)
    for damage in (
        lambda b: b[: len(b) // 10] + b"\x3f" * 8 + b[len(b) // 10 + 8 :],
        lambda b: b[: len(b) // 2].ljust(len(b), b"\0"),
        lambda b: b[:100],
        lambda b: b"",
    ):
        for path, content in whole.items():
            path.unlink()
            path.write_bytes(damage(content))
        assert (masks() == expected).all()
        assert [path.name for path in blobs(tmp_path)] == [path.name for path in whole]
        assert all(path.read_bytes() != damage(content) for path, content in whole.items())
        assert all(path.stat().st_size > 1000 for path in blobs(tmp_path))
    (checksums,) = tmp_path.rglob("checksums.json")
    for text in ("", "[1]", "{"):
        checksums.write_text(text)
        assert (masks() == expected).all()
    kept = [path.stat().st_mtime_ns for path in blobs(tmp_path)]
    assert (masks() == expected).all()
    assert [path.stat().st_mtime_ns for path in blobs(tmp_path)] == kept  # read, not written again


def test_compiled_graphs_that_are_not_used_are_removed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other weights stayed for ever."""
    monkeypatch.setenv("OV_CACHE_DIR", str(tmp_path))
    load_model(str(exported), device="cpu", runtime="openvino")
    (used,) = {path.parent for path in blobs(tmp_path)}
    old, recent, foreign = (used.with_name(name) for name in ("old", "recent", "foreign"))
    month = 31 * 24 * 3600
    for folder, age in ((old, month), (recent, month - 2 * 24 * 3600), (foreign, month), (used, month)):
        folder.mkdir(exist_ok=True)
        (folder / "1.blob").touch()
        (folder / "checksums.json").touch()
        if folder == foreign:
            (folder / "notes.txt").touch()
        os.utime(folder, (time.time() - age,) * 2)
    load_model(str(exported), device="cpu", runtime="openvino")
    assert sorted(path.name for path in used.parent.iterdir()) == sorted(["recent", "foreign", used.name])
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]
    assert time.time() - used.stat().st_mtime < month / 2


def test_a_cache_folder_that_cannot_be_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a read-only file system; tests run as root
    load_model(str(exported), device="cpu", runtime="openvino")
    assert blobs(tmp_path) == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("OV_CACHE_DIR", str(tmp_path / "file"))
    load_model(str(exported), device="cpu", runtime="openvino")


def test_without_openvino(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails
    assert pick_runtime(exported, RuntimeOptions(device="cpu")) == "torch"
    advice = r"the package openvino is not installed; pip install openvino; use `runtime='torch'`$"
    with pytest.raises(ConfigError, match=advice):
        load_model(str(exported), device="cpu", runtime="openvino")


def test_bf16_on_a_cpu_without_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *names: [])
    with pytest.raises(
        ConfigError, match=r"^`dtype='bf16'`: this CPU has no instructions for bf16; omit it$"
    ):
        load_model(str(exported), device="cpu", dtype="bf16")


def test_auto_is_openvino_on_a_cpu_and_torch_otherwise(exported: Path, tmp_path: Path) -> None:
    assert pick_runtime(exported, RuntimeOptions(device="cpu")) == "openvino"
    assert load_model(str(exported), device="cpu").details["dtype"] == "fp32"  # bf16 only if asked for
    assert pick_runtime(exported, RuntimeOptions()) == ("torch" if has_gpu() else "openvino")
    for options in (
        RuntimeOptions(device="cpu", runtime="torch"),
        RuntimeOptions(device="cuda"),
        RuntimeOptions(device="cpu", beams=3),
        RuntimeOptions(device="cpu", decode="upstream"),
        RuntimeOptions(device="cpu", quantize="int8"),
        RuntimeOptions(device="cpu", dtype="fp16"),
    ):
        assert pick_runtime(exported, options) == "torch"
    tiny_checkpoint(tmp_path)
    assert pick_runtime(tmp_path, RuntimeOptions(device="cpu")) == "torch"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cuda"}, "it runs on a CPU, not on `device='cuda'`"),
        ({"beams": 2}, "it decodes greedily without a penalty"),
    ],
)
def test_openvino_that_cannot_be_used_is_refused(
    exported: Path, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"{reason}.*; use `runtime='torch'`$"):
        load_model(str(exported), **{"device": "cpu", "runtime": "openvino", **options})


def test_a_folder_without_graphs_says_how_to_write_them(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="has no graphs, which deltavlm weights export writes;"):
        load_model(str(tmp_path), device="cpu", runtime="openvino")


def test_a_checkpoint_without_a_mask_head_has_no_graphs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="graphs are for a checkpoint with a mask head"):
        export_graphs(tiny_model(config=replace(TINY, dense=None)), tmp_path)


def test_the_scope_in_numpy_is_that_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scope = QuestionScope(SCOPE).eval()
    tensors = {name: tensor.numpy() for name, tensor in checkpoint.scope_tensors(scope).items()}
    numpy_scope = NumpyScope.of_tensors(SCOPE, tensors)
    for text in ("Were any trees removed?", "", "x", "why " * 40, "Wo sind die Häuser?"):
        with torch.inference_mode():
            expected = scope([text])[0].numpy()
        assert numpy_scope.logits(text) == pytest.approx(expected, abs=1e-5)
        for after_answer in (False, True):
            assert numpy_scope.probability(text, after_answer=after_answer) == pytest.approx(
                scope.probability(text, after_answer=after_answer), abs=1e-5
            )
    del tensors["scope.first.bias"]
    with pytest.raises(ModelError, match=r"no scope\.first\.bias of shape"):
        NumpyScope.of_tensors(SCOPE, tensors)


@pytest.mark.slow
def test_nano_answers_without_importing_torch() -> None:
    script = """
import sys
import numpy as np
from deltavlm import load_model
from deltavlm.model.interface import Question
model = load_model("nano", device="cpu")
black = np.zeros((1, 3, 256, 256), np.uint8)
replies = model.answer(model.encode(black, black), [
    Question("change", "Has anything changed?", yes_no=True),
    Question("open", "Has a swimming pool been built?", typed="Has a swimming pool been built?"),
])[0]
print([reply.text for reply in replies])
assert not {"torch", "transformers", "timm"} & {*sys.modules}, "torch was imported"
assert sys.modules.get("openvino_telemetry") is None, "telemetry was imported"
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['no', 'this model was not taught to answer that question']\n"


@pytest.mark.slow
def test_nano_gives_the_answers_of_torch() -> None:
    models = both(Path("nano"), dtype="fp32")
    assert all(isinstance(model, CheckpointModel) for model in models)
    pairs = images(3, side=256)
    questions = [*STANDARD, OPEN]
    texts = [
        [[reply.text for reply in row] for row in model.answer(model.encode(*pairs), questions)]
        for model in models
    ]
    assert texts[0] == texts[1]
