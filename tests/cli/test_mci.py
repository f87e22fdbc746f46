"""Commands with a tiny random model of the kind mci: conversion, fetch, outputs, questions, evidence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from deltacli.main import app
from deltavlm.data.read import read_dataset
from deltavlm.errors import ModelError
from deltavlm.messages import UNSUPPORTED
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import WEIGHTS
from deltavlm.model.kinds import read_footprint
from deltavlm.model.mci.config import END, START
from deltavlm.model.mci.model import load_folder
from deltavlm.scoring.inference import group_by_pair, predict_batches
from deltavlm.tasks import count
from deltavlm.upstream import kinds
from deltavlm.upstream.components import MCI
from deltavlm.upstream.plan import plan
from tests.cli.conftest import ROOT, one_line
from tests.conftest import Scene
from tests.hub_server import FakeHub, FakeRepo, serve_hub
from tests.mci_reference import Reference
from tests.pairs import layer
from tests.tiny_hf import build

SMALL = ("--chip-size", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def reference(mci_files: Reference) -> Reference:
    return mci_files


@pytest.fixture(scope="module")
def tiny(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = {"checkpoint": reference.folder / "MCI_model.pth", "vocab": reference.folder / "vocab.json"}
    return kinds.convert("mci", paths, tmp_path_factory.mktemp("home") / "mci").folder


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> None:
    """The model has the name mci."""
    monkeypatch.setenv("DELTAVLM_HOME", str(tiny.parent))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*args: object, **settings: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], **settings)


def test_convert_inspect_and_verify(reference: Reference, tmp_path: Path) -> None:
    files = reference.folder
    words = ("--checkpoint", files / "MCI_model.pth", "--vocab", files / "vocab.json")
    result = run("weights", "convert", "--kind", "mci", *words, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["kind"] == "mci"
    assert record["tensors"] > 500
    assert "encoder_trans_dict/Dynamic_DIF_aware_TR.0.2.weight" in record["ignored"]
    verified = run("weights", "verify", tmp_path / "out", "--expected", files)
    assert verified.exit_code == 0, verified.stderr
    assert "ids, greedy, batched           1 of   1 equal" in verified.stdout
    shown = run("weights", "inspect", "--kind", "mci", files / "MCI_model.pth")
    assert "mask_neck_layers: 3" in shown.stdout
    as_json = run("weights", "inspect", "--kind", "mci", files / "MCI_model.pth", "--json")
    assert json.loads(as_json.stdout)["dims"]["words"] == 35
    refused = run("weights", "convert", "--kind", "mci", *words[:2], "-o", tmp_path / "other")
    assert refused.exit_code == 2
    assert "--vocab is missing; a model of kind mci is converted from --checkpoint" in one_line(refused)
    quantized = run("weights", "verify", tmp_path / "out", "--expected", files, "--quantize", "int8")
    assert quantized.exit_code == 2


def test_analyze_with_polygons_mask_and_report(scene: Scene) -> None:
    words = ("--polygons", "--mask", "mask.tif", "--overlap", 0)
    result = run("analyze", *scene.args, "--model", "mci", "-o", "out.gpkg", *SMALL, *words)
    assert result.exit_code == 0, result.stderr
    rows = layer("out.gpkg", "chips")
    assert {row["status"] for row in rows} == {"answered"}
    assert all(0 <= row["changed_score"] <= 1 and row["caption"] for row in rows)
    assert all(row["new_roads"] is not None and row["road_cells"] is not None for row in rows)
    assert Path("mask.tif").is_file()
    assert {row["class"] for row in layer("out.gpkg", "changes")} <= {"road", "building"}
    report = run("report", "out.gpkg", "-o", "out.html")
    assert report.exit_code == 0, report.stderr
    assert "mci" in Path("out.html").read_text()


def test_a_dry_run_of_a_large_model_tells_its_memory(
    scene: Scene, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not loaded for that, and what a run would be refused for is told."""
    monkeypatch.setattr("deltacli.dry_run.MAX_WEIGHTS", 0)
    monkeypatch.setattr("deltavlm.model.mci.model.read_tensors", lambda *_: pytest.fail("it was loaded"))
    footprint = read_footprint("mci", RuntimeOptions(device="cpu"))
    assert footprint is not None
    words = ("analyze", *scene.args, "--model", "mci", "-o", "out.gpkg", *SMALL, "--dry-run")
    estimate = json.loads(run(*words, "--limit", 3, "--json").stdout)["estimate"]
    assert estimate["unmeasured"].startswith("not estimated")
    assert estimate["memory_bytes"] == footprint.peak(3)
    assert estimate["needed_bytes"] == footprint.needed
    for free, told in ((footprint.needed, False), (footprint.needed - 1, True)):
        monkeypatch.setattr("deltavlm.model.memory.available_memory", lambda free=free: free)
        lines = run(*words).stdout
        assert "memory     about " in lines
        assert ("this run would be refused" in lines) is told


def test_doctor_tells_the_memory_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("it was loaded")

    monkeypatch.setattr("deltavlm.load_model", refuse)
    result = run("doctor", "--model", "mci", "--device", "cpu")
    assert re.search(
        r"mci needs about [\d.]+ [MG]B of memory, and .* are free\n.*it was loaded", result.stderr
    )


def test_ask_and_chat_know_the_standard_questions_alone(scene: Scene) -> None:
    questions = ("How many houses were built?", "Where did it change?", "Is the river wider?")
    asked = [word for question in questions for word in ("-q", question)]
    result = run("ask", *scene.args, "--model", "mci", "--device", "cpu", "--json", *asked)
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["status"] for record in records] == ["answered", "answered", "unsupported"]
    assert records[2]["answer"] == UNSUPPORTED
    text = "\n".join(questions)
    chat = run("chat", *scene.args, "--model", "mci", "--device", "cpu", "--json", input=text)
    assert chat.exit_code == 0, chat.stderr
    answers = [json.loads(line)["answer"] for line in chat.stdout.splitlines()]
    assert answers == [record["answer"] for record in records]


def test_masks_and_answers_are_evidence_for_a_model_that_reads_text(scene: Scene, tmp_path: Path) -> None:
    reader = f"hf:{build('llava', tmp_path / 'reader')}"
    words = ("--evidence", "mci", "--polygons", "--limit", 1, "--overlap", 0)
    result = run("analyze", *scene.args, "--model", reader, "-o", "out.gpkg", *SMALL, *words)
    assert result.exit_code == 0, result.stderr
    (row,) = layer("out.gpkg", "chips")
    assert "evidence of mci" in row["model"]
    refused = run("analyze", *scene.args, "--model", "mci", "--evidence", "nano", "-o", "other.gpkg", *SMALL)
    assert refused.exit_code == 2
    assert "reads its questions alone" in one_line(refused)


@pytest.fixture
def divided(tiny: Path, scene: Scene, tmp_path: Path) -> Path:
    """The model, changed so that it calls 8 of the 15 chips of the scene unchanged: the empty caption says no
    change, and the bias of its end is such that half of the chips get it."""
    folder = Path(shutil.copytree(tiny, tmp_path / "divided"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"no_change": [""]}))
    chips = []
    for path in scene.args:
        with rasterio.open(path) as image:
            pixels = image.read()
        chips.append(
            np.stack([pixels[:, r : r + 32, c : c + 32] for r, c in np.ndindex(65, 129) if not (r | c) % 32])
        )
    model = load_folder(folder)
    encoded = model.encode(chips[0], chips[1])
    with torch.inference_mode():
        scores = model.network.captioner.score(encoded.memory, torch.full((15, 1), START))[:, 0]
    is_end = torch.arange(scores.shape[1]) == END
    margins = scores[:, ~is_end].logsumexp(1) - scores[:, END]
    weights = load_file(folder / WEIGHTS)
    weights["captioner.classify.bias"][END] += margins.sort().values[7:9].mean()
    save_file(weights, folder / WEIGHTS)
    return folder


def test_a_cascade_asks_mci_about_changed_chips_alone(divided: Path, scene: Scene) -> None:
    words = ("--model", divided, *SMALL, "--overlap", 0)
    outputs = {}
    for name, flags in (("all", ()), ("cascade", ("--cascade", "--polygons"))):
        result = run("analyze", *scene.args, *words, *flags, "-o", f"{name}.gpkg", "--json")
        assert result.exit_code == 0, result.stderr
        outputs[name] = {row["chip_id"]: row for row in layer(f"{name}.gpkg", "chips")}
    assert json.loads(result.stdout)["cascaded"] == 8
    columns = ("status", "changed", "changed_score", "caption", "new_roads", "new_buildings", "road_cells")
    for chip, row in outputs["cascade"].items():
        alone = outputs["all"][chip]
        assert row["changed"] is alone["changed"]
        if row["changed"]:
            assert [row[name] for name in columns] == [alone[name] for name in columns]
        else:
            assert row["status"] == "cascaded"
            assert row["changed_score"] == alone["changed_score"]
            assert row["caption"] == "there is no difference"


@pytest.mark.slow
def test_a_cascade_asks_only_about_chips_that_mci_calls_changed(
    divided: Path, scene: Scene, tmp_path: Path
) -> None:
    reader = f"hf:{build('llava', tmp_path / 'reader')}"
    words = ("--evidence", divided, "--cascade", *SMALL, "--overlap", 0)
    result = run("analyze", *scene.args, "--model", reader, *words, "-o", "out.gpkg", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["answered"], record["cascaded"]) == (7, 8)
    rows = layer("out.gpkg", "chips")
    assert {(row["status"], row["evidence_changed"]) for row in rows} == {
        ("answered", True),
        ("cascaded", False),
    }
    assert all(row["evidence_score"] < 0.5 for row in rows if row["status"] == "cascaded")


def test_turns_of_a_dialogue_that_mean_a_standard_question_are_answered(tiny: Path) -> None:
    data = ROOT / "sample_data" / "changechat_mini"
    dataset = read_dataset(data, split="test", tasks=["dialogue"])
    pairs = group_by_pair(dataset.examples)[:1]
    ((predictions, problems),) = predict_batches(load_folder(tiny), pairs, data / "images", 1)
    assert not problems
    for prediction in predictions:
        assert prediction.answers[0] in ("yes", "no")
        assert count.parse(prediction.answers[1])
        assert prediction.answers[2] != UNSUPPORTED


@pytest.fixture
def hub(reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    repo = FakeRepo({"MCI_model.pth": (reference.folder / "MCI_model.pth").read_bytes()}, "ab" * 20)
    with serve_hub({MCI.repo: repo}, tmp_path, monkeypatch) as hub:
        monkeypatch.setattr("deltavlm.upstream.plan.plan", partial(plan, endpoint=hub.endpoint))
        monkeypatch.setenv("DELTAVLM_HOME", str(tmp_path / "home"))
        yield hub


def test_fetch_tells_terms_and_sizes_first(hub: FakeHub, reference: Reference, tmp_path: Path) -> None:
    fetch = ("weights", "fetch", "mci", "--cache-dir", tmp_path / "cache")
    refused = run(*fetch)
    assert refused.exit_code == 2
    assert "academic purposes only" in refused.stderr
    assert re.search(r"it will take about 1\.\d GB in fp32 of memory to run on a CPU", refused.stderr)
    assert "the repository has no vocab.json" in refused.stderr
    assert hub.downloads() == []
    vocabulary = ("--vocab", reference.folder / "vocab.json")
    planned = run(*fetch, *vocabulary, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert json.loads(planned.stdout)["parts"][MCI.repo]["missing"] > 100_000
    assert hub.downloads() == []
    result = run(*fetch, *vocabulary)
    assert result.exit_code == 0, result.stderr
    assert "use it with --model mci" in result.stderr
    assert (tmp_path / "home" / "mci" / "config.json").is_file()
