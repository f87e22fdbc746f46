"""Stages of a checkpoint of kind mci: captions and masks of a set, their losses, and the model folder.

Parts of phases, as Change-Agent trains them: `mci_joint` (all modules, both losses, each divided by its own
value), `mci_caption` (caption neck and decoder), `mci_mask` (mask neck and head).

N pairs, S words, H x W pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from deltavlm.data.images import read_image
from deltavlm.data.masks import LEVIR_MCI, find_mask, parse_class_map, read_mask
from deltavlm.errors import ConfigError, InputError
from deltavlm.messages import pluralize
from deltavlm.model.folder import find_folder, read_kind
from deltavlm.model.images import resize_image
from deltavlm.model.interface import ChangeModel, Pixels
from deltavlm.model.mci.config import CLASSES, END, NULL, START, UNKNOWN
from deltavlm.model.mci.losses import losses
from deltavlm.model.mci.model import MCIModel, load_folder, save_folder
from deltavlm.model.mci.network import MCI
from deltavlm.scoring.inference import PairExamples
from deltavlm.training.changechat_dataset import Split, load_split
from deltavlm.training.checkpoints import final_weights, wrap_write_errors
from deltavlm.training.config import Phase, RecordSet, TrainConfig
from deltavlm.training.distributed import Machine, world
from deltavlm.training.loop import Loader, micro_batches
from deltavlm.training.sampling import SlotPlan
from deltavlm.training.stop_signals import StopRequest
from deltavlm.training.validate import BATCH_SIZE, BaseValidator

MIN_CAPTION_IDS = 2  # START and END


@dataclass(frozen=True, slots=True)
class StageInputs:
    """Inputs of a run, read and checked before anything is computed."""

    model: MCIModel  # on the CPU, as the first stage starts from it
    splits: tuple[Split, ...]  # with examples of captions alone


@dataclass(frozen=True, slots=True)
class StageSample:
    """A pair with a caption and the classes of its pixels; None for what a stage does not train on."""

    before: Pixels  # (3, H, W)
    after: Pixels
    words: list[int] | None  # from START to END
    labels: npt.NDArray[np.uint8] | None  # (H, W)


@dataclass(frozen=True, slots=True)
class StageBatch:
    """Batch of N pairs in tensors; `terms`: number of terms of each sum of the learner."""

    before: Tensor  # (N, 3, H, W) uint8
    after: Tensor
    words: Tensor | None  # (N, S), padded with NULL
    labels: Tensor | None  # (N, H, W)
    terms: dict[str, float]

    def to(self, device: torch.device) -> StageBatch:
        words, labels = (None if each is None else each.to(device) for each in (self.words, self.labels))
        return StageBatch(self.before.to(device), self.after.to(device), words, labels, self.terms)


def caption_ids(sentence: str, words: Sequence[str], limit: int) -> list[int]:
    """Ids of a caption from START to END, `limit` at most: lower case, without full stops and question marks;
    commas and semicolons are words, and a word that is not in the vocabulary is UNKNOWN.

    >>> caption_ids("A road, rebuilt.", ("<NULL>", "<UNK>", "<START>", "<END>", "a", "road", ","), 41)
    [2, 4, 5, 6, 1, 3]
    """
    index_of = {word: index for index, word in enumerate(words)}
    tokens = re.sub(r"([,;])", r" \1 ", re.sub(r"[.?]", " ", sentence.lower())).split()
    ids = [index_of.get(token, UNKNOWN) for token in tokens]
    return [START, *ids[: limit - MIN_CAPTION_IDS], END]


class StageSource:
    """Infinite samples of the pairs of a set, epoch by epoch; an epoch has each pair once, with one of its
    captions. All unchanged pairs have the same one, the first of the model's no-change sentences."""

    def __init__(
        self,
        pairs: Sequence[PairExamples],
        image_folder: Path,
        records: RecordSet,
        model: MCIModel,
        part: str,
        seed: list[int],
    ) -> None:
        self.pairs, self.image_folder, self.records, self.seed = pairs, image_folder, records, seed
        self.config, self.words = model.config, model.words
        self.has_words, self.has_labels = part != "mci_mask", part != "mci_caption"
        self.order = lru_cache(maxsize=2)(self._order)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([*self.seed, epoch]).permutation(len(self.pairs)).tolist()
        return order

    def sample(self, index: int) -> StageSample:
        """Sample 0, 1, 2, ... without end. Raises: InputError when a file of it cannot be read."""
        epoch, position = divmod(index, len(self.pairs))
        pair = self.pairs[self.order(epoch)[position]]
        size = self.config.image_px
        before, after = (
            resize_image(read_image(self.image_folder / name), size) for name in (pair.before, pair.after)
        )
        words = None
        if self.has_words:
            sentences = pair.examples[0].turns[0].answers
            drawn = np.random.default_rng([*self.seed, 1, index]).integers(len(sentences))
            sentence = sentences[drawn] if pair.examples[0].changed else self.config.no_change[0]
            words = caption_ids(sentence, self.words, self.config.max_words)
        labels = read_labels(self.records, pair, size) if self.has_labels else None
        return StageSample(before, after, words, labels)


def read_labels(records: RecordSet, pair: PairExamples, size: int | None = None) -> npt.NDArray[np.uint8]:
    """Classes of the pixels of a pair, resized to (size, size) without new values. Raises: InputError."""
    assert records.masks is not None
    classes = LEVIR_MCI if records.class_map is None else parse_class_map(records.class_map)
    labels = read_mask(find_mask(records.masks, pair.before), classes)
    if size is None or labels.shape == (size, size):
        return labels
    return np.asarray(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST))


def collate_stage(samples: Sequence[StageSample]) -> StageBatch:
    """Batch of samples of one stage."""
    before, after = (
        torch.from_numpy(np.stack([getattr(sample, date) for sample in samples]))
        for date in ("before", "after")
    )
    words, labels, terms = None, None, dict[str, float]()
    captions = [sample.words for sample in samples if sample.words is not None]
    if captions:
        longest = max(map(len, captions))
        words = torch.tensor([[*ids, *[NULL] * (longest - len(ids))] for ids in captions])
        terms["caption"] = float(sum(len(ids) - 1 for ids in captions))
    masks = [sample.labels for sample in samples if sample.labels is not None]
    if masks:
        labels = torch.from_numpy(np.stack(masks)).long()
        terms["mask"] = float(labels.numel())
    if captions and masks:
        pairs = float(len(samples))
        terms = {"joint": pairs, "joint_caption": pairs, "joint_mask": pairs}
    return StageBatch(before, after, words, labels, terms)


@dataclass(frozen=True)
class StageLoader:
    """Loader of micro-batches of pairs."""

    plan: SlotPlan
    sources: Sequence[StageSource]

    def micro_batch(self, step: int, start: int, stop: int) -> StageBatch:
        slots = self.plan.slots(step, start, stop)
        return collate_stage([self.sources[source].sample(index) for source, index in slots])


class StageLearner(nn.Module):
    """The network with the losses of a stage. `forward`: a `StageBatch` -> sums of losses by name.

    In the joint stage `joint` is optimized, and `joint_caption` and `joint_mask` are what it is made of.
    """

    def __init__(self, model: MCI) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: StageBatch) -> dict[str, Tensor]:
        before, after = self.model.normalise(batch.before), self.model.normalise(batch.after)
        means = losses(self.model, before, after, batch.words, batch.labels)
        if "joint" in means:
            means = {name if name == "joint" else f"joint_{name}": value for name, value in means.items()}
        return {name: value * batch.terms[name] for name, value in means.items()}


def load_stage_inputs(config: TrainConfig) -> StageInputs:
    """Read the sets with their masks, and load the model.

    Raises: ConfigError, InputError, ModelError naming what is missing or cannot be used.
    """
    folder = find_folder(config.model)
    if (kind := read_kind(folder)) != "mci":
        raise ConfigError(f"phases of part mci_... train a model of kind mci; {folder} is of {kind}")
    for name, phase in config.phases.items():
        micro_batches(name, phase)
    splits = []
    for name, records in config.sets.items():
        split = load_split(name, replace(records, tasks=("caption",)), config.seed)
        _check_masks(name, records, (*split.train, *split.held_out))
        splits.append(split)
    return StageInputs(load_folder(folder), tuple(splits))


def _check_masks(name: str, records: RecordSet, pairs: Sequence[PairExamples]) -> None:
    """Read the mask of each pair. Raises: InputError, in all processes, if any cannot be used."""
    if records.masks is None:
        return
    messages = []
    for pair in pairs[world.rank :: world.size]:
        try:
            read_labels(records, pair)
        except InputError as error:
            messages.append(str(error))
    messages = [message for rank in world.all_gather_objects(messages) for message in rank]
    if messages:
        raise InputError(
            f"sets.{name}: {pluralize(len(messages), 'mask')} of {pluralize(len(pairs), 'pair')} cannot be "
            f"used, the first: {messages[0]}; set sets.{name}.masks to the folder that holds SPLIT/label"
        )


def build_network(config: TrainConfig, inputs: StageInputs, out: Path, phase: str) -> MCI:
    """Network at the beginning of a phase, which has the weights of the phase before it; at the end of the
    run for "". Raises: ModelError if a phase before it has no checkpoint."""
    names = list(config.phases)
    earlier = names[: names.index(phase)] if phase else names
    network = inputs.model.network
    if earlier:
        best = config.validation is not None and config.validation.metric is not None
        network.load_state_dict(final_weights(out, earlier[-1], best=best), strict=False)
    return network


def build_loader(config: TrainConfig, name: str, inputs: StageInputs) -> Loader:
    """Loader of the micro-batches of a phase."""
    phase, seed = config.phases[name], [config.seed, *name.encode()]
    weighted = [split for split in inputs.splits if config.sets[split.name].weight]
    sources = [
        StageSource(
            split.train,
            split.image_folder,
            config.sets[split.name],
            inputs.model,
            phase.part,
            [*seed, number],
        )
        for number, split in enumerate(weighted)
    ]
    weights = [config.sets[split.name].weight for split in weighted]
    return StageLoader(SlotPlan(weights, phase.batch, phase.steps, seed), sources)


class StageValidator(BaseValidator):
    """Validation of a stage: losses, scores of its captions, mean IoU of its masks, and SOURCE.stage, by
    which the original selects: BLEU-4, mean IoU, or the sum of both in the joint stage."""

    def __init__(self, config: TrainConfig, name: str, inputs: StageInputs, machine: Machine) -> None:
        super().__init__(config, name, inputs.splits, machine)
        self.model, self.records = inputs.model, config.sets
        self.sources = {split.name: self._source(split, self.phase) for split in self.splits}
        self.asks_questions = self.plan.answers

    def _source(self, split: Split, phase: Phase) -> StageSource:
        records = self.records[split.name]
        return StageSource(split.held_out, split.image_folder, records, self.model, phase.part, [0])

    def make_batch(self, samples: Sequence[StageSample], noise_seed: int) -> StageBatch:
        return collate_stage(samples)

    def answering_model(self, learner: StageLearner) -> MCIModel:
        return replace(self.model, network=learner.model, device=str(self.machine.device))

    def answer_metrics(self, model: ChangeModel, stop: StopRequest) -> dict[str, float]:
        assert isinstance(model, MCIModel)
        has_captions = self.phase.part != "mci_mask"
        metrics = super().answer_metrics(model, stop) if has_captions else {}
        if self.phase.part != "mci_caption":
            metrics |= {f"{each.name}.mask.mean_iou": self._mean_iou(model, each) for each in self.splits}
        for split in self.splits:
            terms = [f"{split.name}.caption.all.bleu_4", f"{split.name}.mask.mean_iou"]
            values = [metrics[term] for term in terms if term in metrics]
            if values:
                metrics[f"{split.name}.stage"] = sum(values)
        return metrics

    @torch.inference_mode()
    def _mean_iou(self, model: MCIModel, split: Split) -> float:
        """Mean over the classes, background included, of the IoU of all pixels of the held-out pairs."""
        source = self._source(split, replace(self.phase, part="mci_mask"))
        confusion_KK = np.zeros((len(CLASSES), len(CLASSES)))
        indices = range(len(source))[world.rank :: world.size]
        for start in range(0, len(indices), BATCH_SIZE):
            batch = collate_stage([source.sample(index) for index in indices[start : start + BATCH_SIZE]])
            assert batch.labels is not None
            encoded = model.encode(batch.before.numpy(), batch.after.numpy())
            predicted = encoded.mask_logits.argmax(dim=1).cpu().numpy()
            codes = len(CLASSES) * batch.labels.numpy() + predicted
            confusion_KK += np.bincount(codes.ravel(), minlength=len(CLASSES) ** 2).reshape(
                confusion_KK.shape
            )
        reduced = world.all_reduce_sum(confusion_KK.ravel().tolist(), self.machine.device)
        return mean_iou(np.array(reduced).reshape(confusion_KK.shape))


def mean_iou(confusion_KK: npt.NDArray[np.float64]) -> float:
    """Mean of the IoU of the classes that occur, in the labels or among the predictions.

    confusion_KK: number of pixels by class in the labels and predicted class.

    >>> mean_iou(np.array([[2.0, 0, 0], [1, 1, 0], [0, 0, 0]]))
    0.5833333333333333
    """
    hits = confusion_KK.diagonal()
    unions = confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - hits
    return float((hits[unions > 0] / unions[unions > 0]).mean())


def export_stages(
    config: TrainConfig, inputs: StageInputs, provenance: Mapping[str, str], out: Path, folder: Path
) -> None:
    """Write the model folder `folder` of the run in `out`. Raises: WriteError, ModelError."""
    model = inputs.model
    weights: dict[str, Any] = build_network(config, inputs, out, "").state_dict()
    sources = {**model.config.sources, **provenance, "started_from": model.label}
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_folder(folder, model.config, model.words, weights, sources)
