"""`deltavlm weights`: conversion, verification, inspection, and errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import util
from pathlib import Path

import pyogrio
import pytest
from typer.testing import CliRunner, Result

from deltacli.main import app
from deltavlm.model import checkpoint
from deltavlm.model.folder import SHIPPED
from tests.cli.conftest import one_line
from tests.conftest import Scene
from tests.tiny import TINY, tiny_checkpoint, tiny_model
from tests.upstream.conftest import GOLDEN


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def converted(folder: Path, *extra: object) -> Result:
    return run(
        *("weights", "convert", "--checkpoint", GOLDEN / "checkpoint_best.pth"),
        *("--vision", GOLDEN / "eva_vit_g.pth", "--llm", GOLDEN / "vicuna-7b-v1.5"),
        *("--bert", GOLDEN / "bert-base-uncased", "-o", folder, *extra),
    )


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DELTAVLM_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.slow
def test_convert_verify_and_analyze(tmp_path: Path, scene: Scene) -> None:
    """All steps from the published files to an output, at small size with random weights."""
    folder = tmp_path / "home" / "deltavlm-7b"
    result = converted(folder, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["difference"] == "csrm"
    assert record["tensors"] == 189
    assert "smallest cosine" in result.stderr  # the base of the fixture differs on purpose
    verified = run("weights", "verify", folder, "--expected", GOLDEN)
    assert verified.exit_code == 0, verified.stderr
    assert "ids, 5 beams                   9 of   9 equal" in verified.stdout
    assert "equal to the original in fp32" in verified.stderr
    listed = run("weights", "list", "--json")
    assert [model["name"] for model in json.loads(listed.stdout)["models"]] == ["deltavlm-7b", "nano"]
    result = run("analyze", *scene.args, "-m", "deltavlm-7b", "-o", "out.gpkg", "--decode", "fast", "-q")
    assert result.exit_code == 0, result.stderr
    table = pyogrio.read_dataframe("out.gpkg", layer="chips")
    assert (table["model"].str.startswith("deltavlm-7b")).all()
    assert (table["status"] == "answered").all()


def test_a_model_that_is_not_equal_fails(tmp_path: Path) -> None:
    converted(tmp_path / "out")
    expected = Path(shutil.copytree(GOLDEN, tmp_path / "expected"))
    record = json.loads((expected / "expected.json").read_text())
    record["cases"][0]["token_ids"][3] += 1
    (expected / "expected.json").write_text(json.dumps(record))
    result = run("weights", "verify", tmp_path / "out", "--expected", expected)
    assert result.exit_code == 1
    assert "is not equal to the original: ids, greedy;" in one_line(result)


def test_half_precision_is_a_report_and_no_failure(tmp_path: Path) -> None:
    converted(tmp_path / "out")
    result = run("weights", "verify", tmp_path / "out", "--expected", GOLDEN, "--dtype", "bf16", "--json")
    assert result.exit_code == 0
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["soft prompt"]["passed"] is False
    assert checks["text ids"]["passed"] is True


@pytest.mark.skipif(
    util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install '.[quantize]'",
)
def test_quantized_is_a_report_and_no_failure(tmp_path: Path) -> None:
    converted(tmp_path / "out")
    result = run("weights", "verify", tmp_path / "out", "--expected", GOLDEN, "--quantize", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["soft prompt"]["passed"] is True  # what comes before the language model is untouched
    assert 0 < checks["first logits"]["worst"] < 0.1 * checks["first logits"]["size"]
    refused = run("weights", "verify", tmp_path / "out", "--expected", GOLDEN, "--quantize", "int4")
    assert refused.exit_code == 2
    assert "a multiple of 64, and this language model has 48" in one_line(refused)


def test_inspect_prints_modules_and_verdict() -> None:
    path = GOLDEN / "checkpoint_best.pth"
    result = run("weights", "inspect", path, "--vision", GOLDEN / "eva_vit_g.pth")
    assert result.exit_code == 0
    assert "vision blocks: 1, 2" in result.stdout
    assert "difference module was trained: beyond the range of a fresh layer" in result.stdout
    assert "difference: auto means csrm" in result.stdout
    assert "Warning: the vision base does not look like" in result.stderr
    as_json = run("weights", "inspect", path, "--vision", GOLDEN / "eva_vit_g.pth", "--json")
    assert "Warning: the vision base does not look like" in as_json.stderr
    assert json.loads(as_json.stdout)["base_fits"] is False
    record = json.loads(run("weights", "inspect", path, "--json").stdout)
    assert record["base_fits"] is None
    assert record["csrm_trained"] is True
    assert record["epoch"] == 7


def test_the_mode_of_the_difference_can_be_chosen(tmp_path: Path) -> None:
    result = converted(tmp_path / "out", "--difference", "concat")
    assert "difference: concat, as given" in result.stderr
    checked = run("weights", "verify", tmp_path / "out", "--expected", GOLDEN)
    assert checked.exit_code == 0
    assert "is configured with difference concat; it was compared with csrm" in checked.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["difference"]["mode"] == "concat"


def test_convert_reads_the_file_of_defaults(tmp_path: Path) -> None:
    """--config means the same as in every other command."""
    Path("defaults.toml").write_text('[weights.convert]\ndifference = "concat"\n', encoding="utf-8")
    result = converted(tmp_path / "out", "--config", "defaults.toml", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["difference"] == "concat"


def test_a_model_configuration_is_given_with_heads_config(tmp_path: Path) -> None:
    Path("model.json").write_text('{"dims": {"vheads": 5, "qheads": 2}}', encoding="utf-8")
    refused = converted(tmp_path / "out", "--config", "model.json")
    assert refused.exit_code == 2
    assert "give a model's configuration with --heads-config" in one_line(refused)
    expected = json.loads((GOLDEN / "expected.json").read_text())["dims"]
    Path("model.json").write_text(json.dumps({"dims": expected}), encoding="utf-8")
    assert converted(tmp_path / "out", "--heads-config", "model.json").exit_code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("inspect", "nowhere.pth"), "no file nowhere.pth"),
        (("inspect", GOLDEN / "expected.json"), "is not a file of torch, or it is truncated"),
        (("inspect", GOLDEN / "eva_vit_g.pth"), "is no checkpoint of DeltaVLM"),
        (("verify", "nowhere", "--expected", GOLDEN), "nowhere is not a checkpoint"),
        (("verify", SHIPPED / "nano", "--expected", "nowhere"), "no file nowhere/expected.json"),
        (("convert",), "Missing option '--output'"),
    ],
)
def test_bad_input_is_a_line_on_stderr(args: tuple[object, ...], words: str) -> None:
    result = run("weights", *args)
    assert result.exit_code == 2
    assert words in one_line(result)


def test_an_unknown_model_is_an_error_with_advice(scene: Scene) -> None:
    result = run("analyze", *scene.args, "-m", "deltavlm-7b")
    assert result.exit_code == 2
    assert "no model 'deltavlm-7b'; run deltavlm weights fetch deltavlm-7b" in result.stderr


def test_an_unsupported_prompt_style_is_refused(scene: Scene) -> None:
    result = run("analyze", *scene.args, "--prompt-style", "raw", "-n")
    assert result.exit_code == 2
    assert "nano was trained on normalised questions only" in result.stderr


def test_a_converted_model_reads_questions_either_way(tmp_path: Path, scene: Scene) -> None:
    """Also if its configuration has the style "trained", as that of nano, which supports no other."""
    folder = tmp_path / "out"
    assert converted(folder).exit_code == 0
    record = json.loads((folder / "config.json").read_text())
    record["prompt"] = {"normalise": True, "prefix": "q "}
    (folder / "config.json").write_text(json.dumps(record))
    for style in ("raw", "trained"):
        result = run("analyze", *scene.args, "-m", folder, "--prompt-style", style, "-n")
        assert result.exit_code == 0, result.stderr


def test_models_known_to_fit_are_listed_and_can_be_added(tmp_path: Path) -> None:
    known = json.loads(run("weights", "list", "--json").stdout)["known"]
    assert len(known) >= 8
    assert {*known[0]} == {"name", "size", "license", "ground", "tried"}
    assert not any(model["tried"] for model in known)
    home = tmp_path / "home"
    home.mkdir()
    own = {"name": "openai:#mine", "size": "1 GB", "license": "mine", "ground": "10 m", "tried": True}
    (home / "models.yaml").write_text(json.dumps([own, known[0] | {"size": "other"}]))
    result = run("weights", "list")
    assert "openai:#mine\n    1 GB; mine; 10 m; tried\n" in result.stdout
    assert f"{known[0]['name']}\n    other; " in result.stdout
    assert f"{known[1]['name']}\n    {known[1]['size']}; " in result.stdout
    (home / "models.yaml").write_text("- name: x\n  sise: 1\n")
    result = run("weights", "list")
    assert result.exit_code == 2
    assert "models.yaml, model 1: unknown key 'sise'; did you mean 'size'?" in one_line(result)
    (home / "models.yaml").write_text("name: x\n")
    assert "expected a list of models" in one_line(run("weights", "list"))


def test_exported_graphs_are_used(tmp_path: Path, scene: Scene) -> None:
    tiny_checkpoint(tmp_path)
    refused = run("analyze", *scene.args, "-o", "out.gpkg", "--model", tmp_path, "--runtime", "openvino")
    assert refused.exit_code == 2
    assert "has no graphs, which deltavlm weights export writes; use --runtime torch" in refused.stderr
    exported = run("weights", "export", tmp_path)
    assert exported.exit_code == 0, exported.stderr
    assert "wrote encode.onnx, query.onnx, language.onnx" in exported.stderr
    asked = ("What?", "--model", tmp_path, "--device", "cpu", "--json")
    assert run("ask", *scene.args, *asked).exit_code == 0
    assert run("ask", *scene.args, *asked, "--runtime", "openvino").exit_code == 0


def test_a_checkpoint_without_a_mask_head_is_not_exported(tmp_path: Path) -> None:
    config = replace(TINY, dense=None)
    checkpoint.save(tmp_path, config, tiny_model(config=config).state_dict(), provenance={})
    result = run("weights", "export", tmp_path)
    assert result.exit_code == 2
    assert "graphs are for a checkpoint with a mask head" in result.stderr
