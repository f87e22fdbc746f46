"""LoRA adapter of a tiny ChangeChat: labels as the model is asked, four made pairs to exact answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltavlm.data.images import read_image, save_image
from deltavlm.errors import ConfigError
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.interface import standard_question
from deltavlm.model.kinds import load_model
from deltavlm.tasks import TASKS, contours
from deltavlm.tasks.phrasing import CHANGECHAT_87K
from deltavlm.training import lora, run
from deltavlm.training.config import Adapter, Phase, RecordSet, TrainConfig, Validation
from deltavlm.upstream.changechat import Sources, convert
from tests.changechat_reference import BASE, CLIP

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls

PAIRS = 8
PHASE = Phase(
    part="adapter", steps=40, batch=4, lr=2e-2, warmup=5, weight_decay=0.0, balance="token", floor=0.1
)


@pytest.fixture(scope="module")
def base(changechat_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint without an adapter."""
    folder = tmp_path_factory.mktemp("base") / "base"
    convert(Sources(changechat_files / BASE, changechat_files / CLIP), folder)
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs, each with a yes or no; the first has a dialogue and polygons too."""
    folder = tmp_path_factory.mktemp("set")
    content: list[dict[str, Any]] = []

    def add(kind: int, pair: int, *texts: str) -> None:
        speakers = ("human", "gpt") * (len(texts) // 2)
        messages = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=True)]
        images = [f"{pair}_{date}.png" for date in "AB"]
        content.append({"id": f"{pair}_{kind}", "image": images, "conversations": messages, "type": kind})

    for pair in range(PAIRS):
        rng = np.random.default_rng(pair)
        for date in "AB":
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((64, 64, 1))).astype(np.uint8)
            save_image(folder / "images" / f"{pair}_{date}.png", pixels)
        add(2, pair, f"<image> <image> {TASKS['change'].prompt}", "Yes" if pair % 2 else "No")
    add(6, 0, "<image> <image> Any?", "No", "Why?", "no")
    add(4, 0, f"<image> <image> {contours.PROMPT}", contours.format_answer(contours.Contours()))
    (folder / "made_train.json").write_text(json.dumps(content))
    return folder


def recipe(base: Path, records: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "phases": {"tune": PHASE},
        "adapter": Adapter(rank=16, alpha=32, dropout=0.0),
        "sets": {"made": RecordSet(records, tasks=("change",))},
        "ema": 0.0,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainConfig(str(base), **(options | changes))


def test_records_are_chats_in_the_words_of_the_model(base: Path, records: Path) -> None:
    config = recipe(base, records, sets={"made": RecordSet(records)})
    inputs = lora.load_adapter_inputs(config)
    chats = [chat for pair, chat in inputs.sources[0].chats if pair.before == "0_A.png"]
    assert [(chat.question.prompt, chat.answer) for chat in chats] == [
        (TASKS["change"].prompt, "No"),
        ("Why?", "no"),
        (contours.PROMPT, contours.format_answer(contours.Contours())),
    ]
    assert chats[1].question.history == (("Any?", "No"),)
    target = inputs.target
    model = target.model
    samples = [inputs.sources[0].sample(index) for index in range(3)]
    batch = target.collate(samples, "token")
    for ids, labels, sample in zip(batch.inputs["input_ids"], batch.labels, samples, strict=True):
        question = sample.chat.question
        asked = [*model.beginning, *model.prompts.ending(question.prompt, question.history)]
        assert ids[: len(asked)].tolist() == asked  # the beginning is what the model is asked
        learned = labels[labels != IGNORE_INDEX].tolist()
        answers = [*(answer for _, answer in question.history), sample.chat.answer]
        assert model.prompts.decode(learned) == " ".join(answers)
        assert learned.count(model.prompts.codec.eos) == len(answers)


@pytest.mark.slow
def test_eight_pairs_are_learned_and_the_merged_adapter_answers_them(
    base: Path, records: Path, changechat_files: Path, tmp_path: Path
) -> None:
    result = run.train(recipe(base, records), tmp_path / "run")
    assert result.model_folder == tmp_path / "run" / "model"
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["base"] == "base"
    adapted = Sources(changechat_files / BASE, changechat_files / CLIP, tmp_path / "run" / "model")
    convert(adapted, tmp_path / "mine")
    before, after = (
        np.stack([read_image(records / "images" / f"{pair}_{date}.png") for pair in range(PAIRS)])
        for date in "AB"
    )
    question = standard_question(TASKS["change"], phrase=CHANGECHAT_87K.phrase("change"))
    texts = {}
    for folder in (base, tmp_path / "mine"):
        model = load_model(str(folder), device="cpu", dtype="fp32")
        texts[folder] = [reply.text for (reply,) in model.answer(model.encode(before, after), [question])]
    expected = ["Yes" if pair % 2 else "No" for pair in range(PAIRS)]
    assert texts[tmp_path / "mine"] == expected
    assert texts[base] != expected


def test_only_the_adapter_is_trained(base: Path, records: Path) -> None:
    inputs = lora.load_adapter_inputs(recipe(base, records))
    learner = lora.build_learner(recipe(base, records), inputs)
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name and ".layers." in name for name in trained)
    assert not any(parameter.requires_grad for parameter in learner.encoders[0].vision.parameters())


@torch.no_grad()
def test_the_loss_is_that_of_the_model(base: Path, records: Path) -> None:
    config = recipe(base, records)
    inputs = lora.load_adapter_inputs(config)
    target, learner = inputs.target, lora.build_learner(config, inputs)
    model = target.model
    samples = [inputs.sources[0].sample(index) for index in range(2)]
    total = learner(target.collate(samples, "token"))["words"]
    single = sum(learner(target.collate([each], "token"))["words"] for each in samples)
    assert float(total) == pytest.approx(float(single), rel=1e-4)
    (sample,) = samples[:1]
    pixels = torch.cat([model.pixels(np.asarray(image).transpose(2, 0, 1)[None]) for image in sample.images])
    ending = model.prompts.ending(sample.chat.question.prompt, (), sample.chat.answer)
    texts = [*model.prompts.beginning, ending]
    logits = model.model(inputs_embeds=model.network.embed(texts, model.network.image_tokens(pixels))).logits
    learned = model.prompts.labels(sample.chat.question.prompt, (), sample.chat.answer)
    rows = logits[0, -len(ending) - 1 : -1].log_softmax(1)
    expected = -sum(float(row[id_]) for row, id_, on in zip(rows, ending, learned, strict=True) if on)
    alone = learner(target.collate(samples[:1], "token"))["words"]
    assert float(alone) == pytest.approx(expected, rel=1e-4)


def test_held_out_pairs_are_asked(base: Path, records: Path, tmp_path: Path) -> None:
    phase = replace(PHASE, steps=2, batch=2)
    sets = {"made": RecordSet(records, tasks=("change",), held_out=2)}
    plan = Validation(every=1, metric="made.loss.words", lower=True)
    run.train(recipe(base, records, phases={"tune": phase}, sets=sets, validation=plan), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "made.loss.words" in line]
    assert [line["step"] for line in scored] == [1, 2]
    assert all("made.change.all.accuracy" in line for line in scored)


def test_what_cannot_be_trained_is_refused(base: Path, records: Path) -> None:
    nano = Path(lora.__file__).parent.parent / "weights" / "nano"
    with pytest.raises(ConfigError, match=r"or a folder of kind changechat or changevg; .* is of deltavlm"):
        lora.load_adapter_inputs(recipe(nano, records))
