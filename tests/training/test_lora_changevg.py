"""LoRA adapter of a tiny ChangeVG: labels as the model is asked, four made pairs to exact answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltavlm.config import shipped_config
from deltavlm.data.images import read_image, save_image
from deltavlm.model.changevg.model import ChangeVGModel
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.interface import standard_question
from deltavlm.model.kinds import load_model
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.phrasing import CHANGEIMTI
from deltavlm.training import lora, run
from deltavlm.training.config import Adapter, Phase, RecordSet, TrainConfig, Validation, load_config
from deltavlm.training.lora_changevg import ChangeVGTarget
from deltavlm.training.parameter_groups import lr_multipliers
from deltavlm.upstream import kinds
from tests.mci_reference import write_published

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls

PAIRS = 8
TRAINED: tuple[TaskName, ...] = ("change", "count")
PHASE = Phase(
    part="adapter", steps=80, batch=6, lr=1e-2, warmup=5, weight_decay=0.0, balance="token", floor=0.05
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published files without an adapter, and the checkpoint `start` of them."""
    from tests.changevg_reference import tiny_base

    folder = tmp_path_factory.mktemp("changevg")
    tiny_base(folder / "base")
    (file,) = (folder / "base").glob("*.safetensors")
    weights = load_file(file)  # with random scales of its norms a model is hard to train
    norms = {name: torch.ones_like(each) for name, each in weights.items() if "norm" in name}
    save_file(weights | norms, file, metadata={"format": "pt"})
    write_published(folder / "mci")
    convert(folder, folder / "start")
    return folder


def convert(files: Path, folder: Path, **paths: Path) -> Path:
    return kinds.convert("changevg", {"base": files / "base", "mci": files / "mci"} | paths, folder).folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs, each with a yes or no and counts; the first has a caption, cells and a dialogue too."""
    folder = tmp_path_factory.mktemp("set")
    content: list[dict[str, Any]] = []

    def add(pair: int, *texts: str) -> None:
        speakers = ("human", "gpt") * (len(texts) // 2)
        messages = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=True)]
        images = [f"{pair}_{date}.png" for date in "AB"]
        content.append(
            {"id": f"{len(content)}", "image": images, "changeflag": pair % 2, "conversations": messages}
        )

    for pair in range(PAIRS):
        rng = np.random.default_rng(pair)
        for date in "AB":
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
            save_image(folder / "images" / f"{pair}_{date}.png", pixels)
        add(pair, TASKS["change"].prompt, "yes" if pair % 2 else "no")
        add(pair, TASKS["count"].prompt, f"There are {pair // 2} new roads and {pair} new buildings.")
    add(0, TASKS["caption"].prompt, "the scene is the same as before")
    add(0, TASKS["location"].prompt, "roads [] buildings ['top-left', 'top-center']")
    add(0, "Any?", "No", "Why?", "no change")
    (folder / "made_train.json").write_text(json.dumps(content))
    return folder


def recipe(files: Path, records: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "phases": {"tune": PHASE},
        "adapter": Adapter(rank=16, alpha=32, dropout=0.0),
        "sets": {"made": RecordSet(records, tasks=TRAINED)},
        "ema": 0.0,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainConfig(str(files / "start"), **(options | changes))


def target_of(inputs: lora.AdapterInputs) -> ChangeVGTarget:
    assert isinstance(inputs.target, ChangeVGTarget)
    return inputs.target


def test_rows_are_what_the_model_is_asked_and_answers_are_learned(files: Path, records: Path) -> None:
    inputs = lora.load_adapter_inputs(recipe(files, records, sets={"made": RecordSet(records)}))
    target, source = target_of(inputs), inputs.sources[0]
    model = target.model
    chats = [(chat.question.prompt, chat.answer) for pair, chat in source.chats if pair.before == "0_A.png"]
    where = CHANGEIMTI.phrase("location").prompt.split("\n")
    counted = CHANGEIMTI.phrase("count").prompt.split("\n")
    assert chats == [
        (CHANGEIMTI.phrase("change").prompt, "No"),
        *zip(counted, ("0", "0"), strict=True),
        (CHANGEIMTI.phrase("caption").prompt, "the scene is the same as before"),
        *zip(where, ("No change", "top left corner,top"), strict=True),
        ("Why?", "no change"),
    ]
    samples = [source.sample(index) for index in range(len(source))]
    batch = target.collate(samples, "token")
    for ids, labels, sample in zip(batch.inputs["input_ids"], batch.labels, samples, strict=True):
        question = sample.chat.question
        pixels = [np.asarray(image).transpose(2, 0, 1)[None] for image in sample.images]
        (guide,) = model.encode(pixels[0], pixels[1]).guides  # as at inference
        prompt = model.prompt(guide.sentence("caption"), question, question.prompt)
        assert (guide.sentence("caption") in prompt.text) is (
            "describe the changes" in prompt.text or prompt.images_first
        )
        asked = model.token_ids(prompt)
        assert ids[: len(asked)].tolist() == asked
        learned = labels[labels != IGNORE_INDEX].tolist()
        answers = [*(answer for _, answer in question.history), sample.chat.answer]
        assert model.tokenizer.decode(learned) == "".join(f"{answer}<|im_end|>" for answer in answers)
        assert (batch.inputs["mm_token_type_ids"].sum(dim=1) == 2 * 81).all()


def test_language_model_and_vision_blocks_are_trained_and_nothing_else(files: Path, records: Path) -> None:
    config = recipe(files, records)
    learner = lora.build_learner(config, lora.load_adapter_inputs(config))
    names = [name for name, _ in learner.named_parameters()]
    rates = lr_multipliers(names, replace(PHASE, b_rate=16.0))
    trained = {
        name.split(".lora_")[0].removeprefix("model.base_model.model.model.") for name in names if rates[name]
    }
    blocks = ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    layers = [f"self_attn.{side}_proj" for side in "qkvo"] + [
        f"mlp.{side}_proj" for side in ("gate", "up", "down")
    ]
    expected = {f"visual.blocks.{number}.{name}" for number in range(2) for name in blocks}
    expected |= {f"language_model.layers.{number}.{name}" for number in range(2) for name in layers}
    assert trained == expected
    assert {rates[name] for name in names if ".lora_A." in name} == {1.0}
    assert {rates[name] for name in names if ".lora_B." in name} == {16.0}


@torch.no_grad()
def test_the_loss_is_that_of_the_model(files: Path, records: Path) -> None:
    config = recipe(files, records)
    inputs = lora.load_adapter_inputs(config)
    target, learner = target_of(inputs), lora.build_learner(config, inputs).eval()
    model = target.model
    samples = [inputs.sources[0].sample(index) for index in range(4)]
    total = float(learner(target.collate(samples, "token"))["words"])
    expected = 0.0
    for sample in samples:
        pixels = [np.asarray(image).transpose(2, 0, 1)[None] for image in sample.images]
        encoded = model.encode(pixels[0], pixels[1])
        ids, learned = target.token_ids(sample)
        logits = model.model(**model.inputs(encoded, [0], [ids])).logits[0].log_softmax(dim=1)
        expected -= sum(float(logits[at - 1, id_]) for at, id_ in enumerate(ids) if learned[at])
    assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_eight_pairs_are_learned_and_the_merged_adapter_answers_them(
    files: Path, records: Path, tmp_path: Path
) -> None:
    guide = (files / "start" / "guide" / "model.safetensors").read_bytes()
    result = run.train(recipe(files, records), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["base"] == "start"
    assert result.model_folder is not None
    convert(files, tmp_path / "mine", adapter=result.model_folder)
    assert (tmp_path / "mine" / "guide" / "model.safetensors").read_bytes() == guide
    before, after = (
        np.stack([read_image(records / "images" / f"{pair}_{date}.png") for pair in range(PAIRS)])
        for date in "AB"
    )
    questions = [standard_question(TASKS[task], phrase=CHANGEIMTI.phrase(task)) for task in TRAINED]
    texts = {}
    for folder in (files / "start", tmp_path / "mine"):
        model = load_model(str(folder), device="cpu", dtype="fp32")
        assert isinstance(model, ChangeVGModel)
        rows = model.answer(model.encode(before, after), questions)
        texts[folder] = [[reply.text for reply in row] for row in rows]
    expected = [["Yes" if pair % 2 else "No", f"{pair // 2}\n{pair}"] for pair in range(PAIRS)]
    assert texts[tmp_path / "mine"] == expected
    assert texts[files / "start"] != expected


def test_held_out_pairs_are_asked_and_a_run_resumes(files: Path, records: Path, tmp_path: Path) -> None:
    phase = replace(PHASE, steps=2, batch=2)
    sets = {"made": RecordSet(records, tasks=TRAINED, held_out=2)}
    plan = Validation(every=1, metric="made.loss.words", lower=True)
    config = recipe(files, records, phases={"tune": phase}, sets=sets, validation=plan)
    whole = run.train(config, tmp_path / "whole").model_folder
    stopped = run.train(config, tmp_path / "parts", run.RunOptions(until=1.0))
    assert stopped.stop is not None
    resumed = run.train(config, tmp_path / "parts", run.RunOptions(resume=True)).model_folder
    weights = [load_file(Path(str(folder)) / lora.WEIGHTS) for folder in (whole, resumed)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    lines = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "made.loss.words" in line]
    assert [line["step"] for line in scored] == [1, 2]
    assert all("made.change.all.accuracy" in line for line in scored)


def test_the_shipped_recipe_is_the_published_one() -> None:
    config = load_config(shipped_config("lora_changevg.yaml", "phases"))
    (phase,) = config.phases.values()
    assert config.adapter == Adapter(rank=8, alpha=16, dropout=0.0)
    assert (phase.lr, phase.b_rate, phase.batch, phase.warmup) == (1e-4, 16.0, 24, 373)
