"""MCI: equal to its formulas at every stage, alone and batched, and what it answers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from deltavlm.errors import ConfigError, InputError, ModelError
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.polygonize import polygonize_chip
from deltavlm.messages import UNSUPPORTED
from deltavlm.model.folder import CONFIG, VOCABULARY, WEIGHTS, read_config
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model, read_spec
from deltavlm.model.mci import network as networks
from deltavlm.model.mci.config import NULL, MCIConfig
from deltavlm.model.mci.losses import losses
from deltavlm.model.mci.model import MCIModel, find_objects, load_folder
from deltavlm.model.mci.network import MCI, Encoding
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells
from deltavlm.tasks.phrasing import MCI as BOOK
from deltavlm.upstream import kinds
from deltavlm.upstream.mci import from_published
from tests.mci_reference import (
    MEAN,
    STD,
    Reference,
    mask_logits,
    memory,
    necks,
    next_scores,
    pyramid,
    random_images,
    random_weights,
    write_files,
)

OPEN = Question("question", "Is the river wider?")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return write_files(tmp_path_factory.mktemp("mci") / "published")


@pytest.fixture(scope="module")
def folder(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = {"checkpoint": reference.folder / "MCI_model.pth", "vocab": reference.folder / "vocab.json"}
    return kinds.convert("mci", paths, tmp_path_factory.mktemp("converted") / "mci").folder


@pytest.fixture(scope="module")
def model(folder: Path) -> MCIModel:
    return load_folder(folder)


def question(task: str, **fields: Any) -> Question:
    return Question(task, BOOK.phrase(task).prompt, **fields)  # type: ignore[arg-type]


def failed(folder: Path, reference: Reference) -> list[str]:
    return [check.name for check in kinds.verify(folder, reference.folder) if not check.passed]


def test_every_stage_is_equal_alone_and_batched(folder: Path, reference: Reference) -> None:
    checks = {check.name: check for check in kinds.verify(folder, reference.folder)}
    assert [name for name, check in checks.items() if not check.passed] == []
    assert set(checks) == {
        *("pixels", "level 1", "level 2", "level 3", "level 4", "mask neck", "caption neck", "memory"),
        *("mask logits", "mask", "caption logits", "caption logits, word by word"),
        *("ids, greedy", "text, greedy", "counts"),
        *("ids, greedy, batched", "text, greedy, batched", "counts, batched"),
    }
    cases = json.loads((reference.folder / "expected.json").read_text())["cases"]
    ids = [case["token_ids"] for case in cases]
    assert any(NULL in each[1:-2] for each in ids)  # what the captions are to cover
    assert {each[-1] == 3 for each in ids} == {True, False}


def straight_positions(neck: networks.Neck, height: int, width: int) -> Tensor:
    rows = neck.column_positions.weight[:height].T[:, :, None].expand(-1, -1, width)
    columns = neck.row_positions.weight[:width].T[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])


def swap_order(neck: networks.Neck, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    neck.in_sequence = not neck.in_sequence
    result = FORWARD[networks.Neck](neck, before, after)
    neck.in_sequence = not neck.in_sequence
    return result  # type: ignore[no-any-return]


def without_skip(layer: networks.DecoderLayer, tokens: Tensor, *rest: Any) -> Tensor:
    return FORWARD[networks.DecoderLayer](layer, tokens, *rest) - tokens  # type: ignore[no-any-return]


def read_with_null(captioner: networks.Captioner, words: Tensor, cache: Any, masked: Tensor) -> Tensor:
    return READ(captioner, words, cache, masked[:0])


def other_date_first(layer: networks.NeckLayer, first: Tensor, second: Tensor) -> Tensor:
    return FORWARD[networks.NeckLayer](layer, second, first)  # type: ignore[no-any-return]


FORWARD: dict[type[nn.Module], Callable[..., Any]] = {
    each: each.forward for each in (networks.Neck, networks.DecoderLayer, networks.NeckLayer)
}
READ = networks.Captioner.read
COSINE = F.cosine_similarity


@pytest.mark.parametrize(
    ("owner", "name", "trap", "first"),
    [
        (networks.Neck, "positions", straight_positions, "mask neck"),
        (networks.Neck, "forward", swap_order, "mask neck"),
        (networks.NeckLayer, "forward", other_date_first, "mask neck"),
        (networks.DecoderLayer, "forward", without_skip, "caption logits"),
        (networks.Captioner, "read", read_with_null, "caption logits"),
        (networks.F, "cosine_similarity", lambda a, b, dim: 0 * COSINE(a, b, dim), "mask logits"),
        (networks, "BLOCK_EPS", 1e-5, "level 1"),
        (
            networks.MCI,
            "normalise",
            lambda self, images: images.float() / 255,
            "pixels",
        ),
    ],
)
def test_a_trap_fails_at_the_first_stage_that_it_changes(
    folder: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    trap: Any,
    first: str,
) -> None:
    monkeypatch.setattr(owner, name, trap)
    assert failed(folder, reference)[0] == first


def test_a_batch_answers_as_its_pairs_alone(model: MCIModel, reference: Reference) -> None:
    questions = [question(task) for task in ("caption", "change", "count", "location")]
    together = model.answer(model.encode(*reference.images), questions)
    for pair in range(3):
        alone = model.encode(*(date[pair : pair + 1] for date in reference.images))
        for one, other in zip(model.answer(alone, questions)[0], together[pair], strict=True):
            assert one.text == other.text
            assert one.score == pytest.approx(other.score, abs=1e-5, nan_ok=True)
    assert [replies[0].text for replies in together] == reference.captions
    assert [BOOK.phrase("count").read(replies[2].text) for replies in together] == [
        Counts(each["road"], each["building"]) for each in reference.counts
    ]


def test_p_yes_is_one_minus_the_probability_of_the_no_change_sentences(
    model: MCIModel, reference: Reference
) -> None:
    encoded = model.encode(*reference.images)
    (reply,) = model.answer_rows(encoded, [(1, question("change", yes_no=True))])
    total = 0.0
    for sentence in model.config.no_change:
        words = ["<START>", *sentence.split(), "<END>"]
        if not {*words} <= {*model.words}:
            continue
        ids = torch.tensor([[model.words.index(word) for word in words]])
        with torch.inference_mode():
            scores = model.network.captioner.score(encoded.memory[1:2], ids[:, :-1])[0].log_softmax(dim=1)
        total += math.exp(sum(float(scores[step, ids[0, step + 1]]) for step in range(len(words) - 1)))
    assert reply.score == pytest.approx(1 - total, abs=1e-6)
    assert reply.text == "yes"


def test_questions_in_other_words_are_not_answered(model: MCIModel, reference: Reference) -> None:
    encoded = model.encode(*reference.images)
    rows = [
        (2, question("count")),
        (0, OPEN),
        (1, question("caption")),
    ]
    replies = model.answer_rows(encoded, rows)
    assert replies[1].text == UNSUPPORTED
    assert math.isnan(replies[1].score)
    assert replies[0] == model.answer_rows(encoded, rows[:1])[0]
    assert replies[2].text == reference.captions[1]


def test_masks_cover_the_image_with_probabilities(model: MCIModel, reference: Reference) -> None:
    masks = model.masks(model.encode(*reference.images))
    assert masks.classes == ("none", "road", "building")
    assert masks.probabilities.shape == (3, 3, 256, 256)
    assert masks.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    expected = load_file(reference.folder / "expected.safetensors")["p0/mask"].numpy()
    best = masks.probabilities[0].argmax(axis=0)
    drawn = best > 0  # of the others some are in components that are not counted
    assert (best == expected)[(expected != 255) & drawn].all()
    assert drawn.any()


def test_images_of_another_size_are_resized_before_anything_else(
    model: MCIModel, reference: Reference
) -> None:
    doubled = [date[:1].repeat(2, axis=2).repeat(2, axis=3) for date in reference.images]
    assert model.encode(*doubled).mask_logits.shape == (1, 3, 256, 256)


def test_what_is_not_counted_is_not_drawn(model: MCIModel) -> None:
    """The masks, from which polygons are made, have the components that the counts have."""
    logits = torch.zeros(1, 3, 32, 32)
    logits[0, 0] = 5
    logits[0, 1, 2, 2:7] = logits[0, 2, 20, 2:8] = 9  # 5 pixels of road, 6 of building
    for step in range(6):
        logits[0, 1, 8 + step, 8 + step] = 9  # 6 pixels that touch at corners
    encoded = Encoding(torch.zeros(1, 1, model.config.decoder_width), logits)
    (findings,) = model.findings(encoded)
    assert findings.counts == {"road": 1, "building": 1}
    (labels,) = model.masks(encoded).labels
    drawn = {code: int(ndimage.label(labels == code, np.ones((3, 3)))[1]) for code in (1, 2)}
    assert drawn == {1: 1, 2: 1}
    assert not labels[2].any()
    probabilities = model.masks(encoded).probabilities
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert probabilities[0, 0, 2, 4] == 1  # not a pixel that a lower threshold would draw


@pytest.mark.parametrize(("pixels", "count"), [(5, 0), (6, 1)])
def test_the_smallest_component_that_counts(pixels: int, count: int) -> None:
    labels = np.zeros((256, 256), np.uint8)
    labels[0, :pixels] = 1
    labels[200 + np.arange(6), 100 + np.arange(6)] = 2  # pixels that touch at a corner are one component
    found = find_objects(labels, 6)
    assert found.counts == {"road": count, "building": 1}
    cells = Cells(("top-left",) if count else (), ("bottom-center",))
    assert BOOK.phrase("location").read(found.cell_text) == cells


def test_parts_that_touch_at_a_corner_are_one_object_and_two_polygons() -> None:
    """Counts are 8-connected, as the original's; one outline of both parts would cross itself."""
    labels = np.zeros((16, 16), np.uint8)
    labels[2:5, 2:5] = labels[5:8, 5:8] = 2
    assert find_objects(labels, 6).counts == {"road": 0, "building": 1}
    geobox = GeoBox(16, 16, Affine(0.5, 0, 0, 0, -0.5, 8), None)
    (chip,) = ChipGrid(geobox, 16, 0)
    polygons = [polygon for _, polygon in polygonize_chip(labels, chip)]
    assert [polygon.area for polygon in polygons] == [9 / 4, 9 / 4]
    assert all(polygon.is_valid for polygon in polygons)
    assert not shapely.Polygon(
        [(2, 2), (5, 2), (5, 5), (8, 5), (8, 8), (5, 8), (5, 5), (2, 5)]
    ).is_valid  # the outline of both


def test_published_sizes() -> None:
    with torch.device("meta"):
        parameters = {name: value.numel() for name, value in MCI(MCIConfig(name="mci")).named_parameters()}
    total = sum(parameters.values())
    backbone = sum(count for name, count in parameters.items() if name.startswith("backbone."))
    assert round(backbone / 1e6, 2) == 13.15
    assert round(total / 1e6, 1) == round((130_502_679 - 12_750_000) / 1e6, 1)


def test_the_kind_is_read_from_config_json(folder: Path, tmp_path: Path) -> None:
    spec = read_spec(str(folder))
    assert (spec.name, spec.has_masks, spec.chip_px) == ("mci", True, 256)
    assert spec.weights_bytes == (folder / WEIGHTS).stat().st_size
    assert load_model(str(folder), device="cpu").phrasebook == "mci"
    with pytest.raises(InputError, match="is a checkpoint of kind 'mci'; this needs one of a DeltaVLM"):
        read_config(folder)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    values = json.loads((other / CONFIG).read_text()) | {"kind": "captions"}
    (other / CONFIG).write_text(json.dumps(values))
    with pytest.raises(ModelError, match="of kind 'captions', which this version does not know"):
        load_model(str(other))


def test_options_of_other_kinds_are_refused(folder: Path) -> None:
    for options in ({"beams": 5}, {"quantize": "int8"}, {"runtime": "openvino"}, {"decode": "upstream"}):
        with pytest.raises(ConfigError, match=f"`{next(iter(options))}="):
            load_model(str(folder), **options)


def test_damaged_folders_are_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / WEIGHTS)
    save_file({**weights, "more": torch.zeros(1)}, copy / WEIGHTS)
    with pytest.raises(ModelError, match="1 keys unexpected: more"):
        load_folder(copy)
    (copy / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        load_folder(copy)
    shutil.copy(folder / WEIGHTS, copy)
    (copy / VOCABULARY).write_text('{"<NULL>": 0}')
    with pytest.raises(ModelError, match="is not a vocabulary"):
        load_folder(copy)
    (copy / VOCABULARY).unlink()
    with pytest.raises(ModelError, match=r"no file .*vocab\.json"):
        load_folder(copy)


def test_losses_and_their_gradients_are_those_of_the_formulas(folder: Path) -> None:
    parts = random_weights()
    for weights in parts.values():
        for tensor in weights.values():
            if tensor.is_floating_point():
                tensor.requires_grad_()
    before, after = random_images(2, 7)
    captions = [[2, 8, 5, 6, 3], [2, 20, 3]]
    labels = torch.randint(0, 3, (2, 256, 256), generator=torch.Generator().manual_seed(0))
    words, masks = [], []
    for pair, ids in enumerate(captions):
        levels = [
            pyramid(parts["encoder_dict"], (torch.from_numpy(date[pair]).float() - MEAN) / STD)
            for date in (before, after)
        ]
        of_captions, of_masks = necks(parts["encoder_trans_dict"], levels[0][3], levels[1][3])
        attended = memory(parts["decoder_dict"], *of_captions)
        scores = next_scores(parts["decoder_dict"], attended, ids, hidden=(0, 3))
        words.append(F.cross_entropy(scores[:-1], torch.tensor(ids[1:]), reduction="none"))
        maps = ([*level[:3], last] for level, last in zip(levels, of_masks, strict=True))
        masks.append(
            F.cross_entropy(mask_logits(parts["encoder_trans_dict"], *maps)[None], labels[pair : pair + 1])
        )
    expected = {"caption": torch.cat(words).mean(), "mask": torch.stack(masks).mean()}
    network = load_folder(folder).network
    pixels = [network.normalise(torch.from_numpy(date)) for date in (before, after)]
    padded = torch.tensor([[*ids, *[NULL] * (5 - len(ids))] for ids in captions])
    for name, published in (
        ("caption", "encoder_trans_dict/h_embedding.weight"),
        ("caption", "decoder_dict/vocab_embedding.weight"),
        ("mask", "encoder_trans_dict/conv_dif.0.0.weight"),
        ("mask", "encoder_dict/cnn.segformer.patch_embed1.proj.bias"),
    ):
        part, _, key = published.partition("/")
        (gradient,) = torch.autograd.grad(expected[name], parts[part][key], retain_graph=True)
        loss = losses(network, pixels[0], pixels[1], padded, labels)
        assert loss[name].item() == pytest.approx(expected[name].item(), abs=1e-4)
        assert loss["joint"].item() == pytest.approx(2)
        network.zero_grad()
        loss[name].backward()
        ours = dict(network.named_parameters())[from_published(published) or ""].grad
        assert ours is not None
        assert (ours - gradient).abs().max().item() < 1e-3 * gradient.abs().max().item()


def test_without_torch_the_command_that_installs_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltavlm.extras.util.find_spec", lambda package: None)
    assert read_spec(str(folder)).name == "mci"
    with pytest.raises(
        InputError, match=r"a model of kind mci needs torch, which is not installed; pip install"
    ):
        load_model(str(folder))
