"""LoRA adapters of tiny random models hf:...: chats, masks of the loss, training, resume, bad input."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from deltavlm.data.images import read_image
from deltavlm.errors import ConfigError, InputError
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.huggingface.loading import load_chat_model
from deltavlm.model.interface import Question, standard_question
from deltavlm.model.kinds import load_model
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.phrasing import GENERIC
from deltavlm.training import lora, lora_hf, run
from deltavlm.training.changechat_dataset import load_split
from deltavlm.training.config import Adapter, RecordSet, TrainConfig, Validation, load_config
from deltavlm.training.estimate import estimate_run
from tests.tiny_hf import build
from tests.training.made_pairs import CAPTIONS, OPEN, PHASE, recipe, write_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    build("qwen2_5_vl", folder / "random")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder / "random")
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # so that answers can be certain
    shutil.copytree(folder / "random", folder / "base")
    model.save_pretrained(folder / "base")
    write_set(folder / "set")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def first_pair_chats(folder: Path) -> list[lora.Chat]:
    split = load_split("made", RecordSet(folder / "set"), 0)
    return lora_hf.pair_chats(split.train[0])


def test_records_become_chats_in_the_form_that_the_phrasebook_asks_for(folder: Path) -> None:
    def standard(task: TaskName, answer: str) -> lora.Chat:
        return lora.Chat(standard_question(TASKS[task], phrase=GENERIC.phrase(task)), answer)

    objects = {"new_roads": 0, "new_buildings": 2, "road_cells": [], "building_cells": ["top-left"]}
    assert first_pair_chats(folder) == [
        standard("caption", "a house is built"),
        standard("change", "yes"),
        standard("count", json.dumps(objects)),  # with the cells, and once
        lora.Chat(Question("open", OPEN), "a field"),
        lora.Chat(Question("dialogue", "How many houses?"), "two"),
        lora.Chat(Question("dialogue", "And roads?", history=(("How many houses?", "two"),)), "none"),
    ]


def test_counts_without_cells_keep_the_words_of_their_record(folder: Path) -> None:
    split = load_split("made", RecordSet(folder / "set", tasks=("count",)), 0)
    (chat,) = lora_hf.pair_chats(split.train[0])
    assert chat.question.prompt == TASKS["count"].prompt
    assert chat.answer == "There are 0 new roads and 2 new buildings."


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "gemma3", "smolvlm"])
def test_the_loss_is_on_the_answer_and_its_end_alone(architecture: str, folder: Path, tmp_path: Path) -> None:
    if architecture == "smolvlm":
        pytest.importorskip("num2words")
    model = load_chat_model(f"hf:{build(architecture, tmp_path / 'base')}", RuntimeOptions(device="cpu"))
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (0, 255)]
    chats = first_pair_chats(folder)
    samples = [lora.ChatSample((images[0], images[1]), chat) for chat in chats]
    batch = lora_hf.collate_chats(model, samples, "token")
    ids, attention = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    for row, chat in enumerate(chats):
        labels = batch.labels[row][batch.labels[row] != IGNORE_INDEX]
        assert model.processor.tokenizer.decode(labels) == f"{chat.answer}<|im_end|>"
        (positions,) = (batch.labels[row] != IGNORE_INDEX).nonzero(as_tuple=True)
        assert positions.tolist() == list(range(int(positions[0]), int(positions[-1]) + 1))
        asked = model._token_ids(lora_pair(images), chat.question)  # as at inference
        assert tuple(ids[row, : positions[0]].tolist()) == asked
        assert int(attention[row].sum()) - 1 in (int(positions[-1]), int(positions[-1]) + 1)
    assert batch.terms == {"words": float((batch.labels != IGNORE_INDEX).sum())}


def lora_pair(images: list[Image.Image]) -> Any:
    from deltavlm.model.huggingface.chat_model import EncodedPair
    from deltavlm.model.interface import PairContext

    return EncodedPair((images[0], images[1]), PairContext(), None)


@pytest.mark.slow
def test_an_adapter_learns_pairs_exactly_and_leaves_the_base_as_it_is(folder: Path, tmp_path: Path) -> None:
    base = files(folder / "base")
    tasks: tuple[TaskName, ...] = ("caption", "change")
    config = recipe(folder, sets={"made": RecordSet(folder / "set", tasks=tasks)})
    result = run.train(config, tmp_path / "run")
    assert result.model_folder == tmp_path / "run" / "model"
    assert files(folder / "base") == base
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["words"] < 0.05
    settings = json.loads((result.model_folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    weights = load_file(result.model_folder / "adapter_model.safetensors")
    assert weights
    assert all("language_model.layers" in name for name in weights)  # none of the vision encoder
    facts = json.loads((result.model_folder / "training.json").read_text())
    assert (facts["base"], facts["steps"], facts["trained_on"]) == ("base", "tune 40", "made")
    adapted, plain = (
        load_model(f"hf:{folder / 'base'}{suffix}", dtype="fp32", device="cpu")
        for suffix in (f"+{result.model_folder}", "")
    )
    images = folder / "set" / "images"
    before, after = (
        np.stack([read_image(images / f"{scene}_{date}.png") for scene in range(4)]) for date in "AB"
    )
    questions = [standard_question(TASKS[task], phrase=GENERIC.phrase(task)) for task in tasks]
    expected = [*((caption, "yes") for caption in CAPTIONS[:3]), ("there is no difference", "no")]
    answers, others = (
        [tuple(reply.text for reply in row) for row in model.answer(model.encode(before, after), questions)]
        for model in (adapted, plain)
    )
    assert answers == expected
    assert others != expected


def short(folder: Path, **changes: Any) -> TrainConfig:
    """Four steps with dropout, in micro-batches."""
    phase = replace(PHASE, steps=4, batch=4, micro=2)
    options: dict[str, Any] = {"adapter": Adapter(rank=2, dropout=0.2), "phases": {"tune": phase}}
    return recipe(folder, log_every=1, **(options | changes))


def test_a_resumed_run_equals_one_without_a_break(folder: Path, tmp_path: Path) -> None:
    config = short(folder)
    whole = run.train(config, tmp_path / "whole").model_folder

    def interrupt(phase: str, step: int, steps: int, note: str) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    stopped = run.train(config, tmp_path / "parts", on_progress=interrupt)
    assert (stopped.step, stopped.model_folder) == (2, None)
    state = torch.load(tmp_path / "parts" / "tune.pt", weights_only=True)
    assert all(".lora_" in name for name in state["weights"])  # no copy of the base
    resumed = run.train(config, tmp_path / "parts", run.RunOptions(resume=True)).model_folder
    assert whole is not None
    assert resumed is not None
    assert files(resumed) == files(whole)


def test_held_out_pairs_validate_and_the_best_weights_are_exported(folder: Path, tmp_path: Path) -> None:
    tasks: tuple[TaskName, ...] = ("caption", "change")
    plan = Validation(every=1, pairs=4, metric="made.loss.words")  # the highest, so that it is not the last
    phase = replace(PHASE, steps=3, batch=4)
    config = short(
        folder,
        phases={"tune": phase},
        validation=plan,
        sets={"made": RecordSet(folder / "set", tasks=tasks, held_out=1)},
    )
    exported = run.train(config, tmp_path / "run").model_folder
    assert exported is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    validations = {line["step"]: line for line in lines if "made.loss.words" in line}
    losses = {step: line["made.loss.words"] for step, line in validations.items()}
    assert [*losses] == [1, 2, 3]
    assert "made.change.all.accuracy" in validations[3]
    best = max(losses, key=lambda step: losses[step])
    assert best < 3
    inputs = lora.load_adapter_inputs(config)
    (split,) = inputs.splits
    held_out = lora.chat_source(inputs.target, split.held_out, split.image_folder, [0])
    assert len(held_out) == 2
    adapted = load_chat_model(f"{config.model}+{exported}", RuntimeOptions(device="cpu", dtype="fp32"))
    learner = lora.AdapterLearner(inputs.target.adapted, "token").eval()
    learner.model = WithBase(adapted.model)
    batch = lora_hf.collate_chats(
        inputs.target.model, [held_out.sample(index) for index in range(2)], "token"
    )
    with torch.no_grad():
        loss = float(learner(batch)["words"]) / batch.terms["words"]
    assert loss == pytest.approx(losses[best], rel=1e-3)


class WithBase(torch.nn.Module):
    """Model that the learner calls as one of peft."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def forward(self, **inputs: Any) -> Any:
        return self.base(**inputs)


def test_recomputed_activations_give_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    adapters = [
        run.train(short(folder, recompute=recompute), tmp_path / str(recompute)).model_folder
        for recompute in (False, True)
    ]
    weights = [load_file(adapter / "adapter_model.safetensors") for adapter in adapters if adapter]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nano"}, "adapter is for a model hf:"),
        ({"adapter": None}, "only an adapter can be trained"),
        ({"sets": {}}, "nothing to train on"),
        ({"max_epochs": 3}, "does not support max_epochs"),
        ({"start": "nano"}, "does not support start;"),
        (
            {"phases": {"tune": replace(PHASE, start_weight=0.5)}},
            r"does not support phases\.tune\.start_weight",
        ),
        ({"phases": {"tune": replace(PHASE, cut=0.1)}}, r"does not support phases\.tune\.cut"),
        ({"phases": {"tune": replace(PHASE, part="language")}}, "one phase, of part adapter"),
        ({"model": "nano", "adapter": None}, "needs the key adapter"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(recipe(tmp_path), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda base: {"adapter": Adapter(target_modules=("q_proj", "qproj"))}, "no 'qproj'; did you mean"),
        (lambda base: {"model": f"hf:{base}+{base}"}, "has an adapter already"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_before_anything_is_written(
    changes: Callable[[Path], dict[str, Any]], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run.train(replace(recipe(folder), **changes(folder / "base")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_always_reasons_is_refused(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    template = base / "chat_template.jinja"
    template.write_text(template.read_text().rstrip() + "{% if add_generation_prompt %}<think>\n{% endif %}")
    with pytest.raises(InputError, match="begins every answer with reasoning"):
        run.train(replace(recipe(folder), model=f"hf:{base}"), tmp_path / "run")


def test_without_peft_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'needs peft, which is not installed; pip install "deltavlm\[peft\]"'
    ):
        run.train(recipe(folder), tmp_path / "run")


def test_the_shipped_configuration_is_valid_and_has_no_dry_run() -> None:
    config = load_config(
        Path("configs/lora_hf.yaml"), ["model=hf:me/model", "adapter.target_modules=[q_proj]"]
    )
    assert (config.model, config.adapter) == ("hf:me/model", Adapter(16, 32, 0.05, ("q_proj",)))
    with pytest.raises(ConfigError, match="`dry_run` supports neither an adapter"):
        estimate_run(config)


@pytest.mark.parametrize("architecture", ["qwen3_vl", "gemma3", "lfm2_vl"])
def test_the_loss_of_a_batch_is_that_of_its_chats_alone(
    architecture: str, folder: Path, tmp_path: Path
) -> None:
    config = replace(short(folder), model=f"hf:{build(architecture, tmp_path / 'base')}")
    inputs = lora.load_adapter_inputs(config)
    learner = lora.build_learner(config, inputs).eval()
    samples = [inputs.sources[0].sample(index) for index in range(4)]

    def loss(*indices: int) -> float:
        rows = [samples[index] for index in indices]
        losses = learner(lora_hf.collate_chats(inputs.target.model, rows, "token"))
        return float(losses["words"].item())

    assert len({sample.chat.question.prompt for sample in samples}) > 1  # of different lengths
    assert loss(0, 1, 2, 3) == pytest.approx(sum(map(loss, range(4))), rel=1e-4)
    learner.crops_logits = False
    assert loss(0, 1) == pytest.approx(loss(0) + loss(1), rel=1e-4)
