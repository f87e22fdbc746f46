"""LoRA adapter of a checkpoint of kind changevg: chats with what its guide found, and batches.

    model without adapter -> `train` -> adapter_config.json, adapter_model.safetensors
      -> `weights convert --kind changevg --adapter` merges it

As in the original's training the linear layers of the language model and of the vision blocks get an adapter,
the merger does not, and the guide stays as it is. Questions and answers are in the words of ChangeIMTI, as
the model is asked: counts and cells of roads and of buildings are one chat each. Answers of all turns are
learned, with their ends.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from deltavlm.model.changevg.config import END, IMAGE_TOKEN, START, Guide, Prompt
from deltavlm.model.changevg.model import ChangeVGModel, load_model
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.folder import find_folder
from deltavlm.model.interface import Pixels
from deltavlm.scoring.inference import PairExamples
from deltavlm.tasks.phrasing import CHANGEIMTI
from deltavlm.training.config import TrainConfig
from deltavlm.training.lora import (
    AdapterTarget,
    Balance,
    Chat,
    ChatBatch,
    ChatSample,
    add_adapter,
    decoder_layers,
    pad_rows,
    phrased_chats,
)

VISION_BLOCKS = "model.visual.blocks"
ASSISTANT = "assistant\n"  # beginning of the segment of an answer


@dataclass(frozen=True)
class ChangeVGTarget(AdapterTarget):
    """A ChangeVG that an adapter is trained for."""

    model: ChangeVGModel
    guides: dict[bytes, tuple[Guide, Pixels]] = field(default_factory=dict)  # by a checksum of both images

    def chats(self, pair: PairExamples) -> list[Chat]:
        return phrased_chats(pair, CHANGEIMTI)

    def collate(self, samples: Sequence[ChatSample], balance: Balance) -> ChatBatch:
        """Patches of all images in the order of the prompts, and ids (R, S) with their types."""
        rows, labels, images = [], [], list[Pixels]()
        for sample in samples:
            ids, learned = self.token_ids(sample)
            pictures = [np.asarray(image).transpose(2, 0, 1) for image in sample.images]
            order = self.prompt(sample).images
            pictures += [self.guide(sample)[1]] * (2 in order)
            images += [pictures[index] for index in order]
            rows.append(ids)
            labels.append([id_ if on else IGNORE_INDEX for id_, on in zip(ids, learned, strict=True)])
        model = self.model
        patches = model.pixels(images)
        input_ids = pad_rows(rows, model.pad)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0),
            "mm_token_type_ids": (input_ids == model.special_ids[IMAGE_TOKEN]).int(),
            "pixel_values": patches["pixel_values"].to(model.model.dtype),
            "image_grid_thw": patches["image_grid_thw"],
        }
        return ChatBatch.of(inputs, pad_rows(labels, IGNORE_INDEX), balance)

    def token_ids(self, sample: ChatSample) -> tuple[list[int], list[bool]]:
        """Ids of a chat, and for each whether it is learned: answers of all turns and their ends."""
        segments = [*self.prompt(sample).segments, sample.chat.answer, END]
        answers = {len(segments) - 2: 0}  # index of the segment -> number of its ids before the answer
        heading = len(self._encode(ASSISTANT))
        for index, (before, segment) in enumerate(pairwise(segments[:-3]), start=1):
            if before == START and segment.startswith(ASSISTANT):
                answers[index] = heading
        ids: list[int] = []
        learned: list[bool] = []
        for index, segment in enumerate(segments):
            encoded = self._encode(segment)
            ids += encoded
            if index in answers:
                learned += [False] * answers[index] + [True] * (len(encoded) - answers[index])
            else:
                learned += [index - 1 in answers] * len(encoded)
        return ids, learned

    def _encode(self, segment: str) -> list[int]:
        return self.model.token_ids(Prompt((segment,), images_first=False))

    def prompt(self, sample: ChatSample) -> Prompt:
        """Prompt of a sample, with the guide as the model is asked."""
        question, guidance = sample.chat.question, self.model.config.guidance
        sentence = "" if guidance == "none" else self.guide(sample)[0].sentence(guidance)
        return self.model.prompt(sentence, question, question.prompt)

    def guide(self, sample: ChatSample) -> tuple[Guide, Pixels]:
        """Findings of the guide about a sample, and the picture of its mask; it is asked once."""
        pixels = [np.asarray(image).transpose(2, 0, 1)[None] for image in sample.images]
        key = hashlib.blake2b(b"".join(each.tobytes() for each in pixels), digest_size=16).digest()
        if key not in self.guides:
            model = self.model
            encoding = model.guide.encode(pixels[0], pixels[1])
            self.guides[key] = (model.guides(encoding)[0], model.mask_pictures(encoding)[0])
        return self.guides[key]

    def validation_copy(self, device: str) -> ChangeVGTarget:
        tokenizer, processor = copy.deepcopy(self.model.tokenizer), copy.deepcopy(self.model.processor)
        model = replace(self.model, tokenizer=tokenizer, processor=processor, device=device)
        return replace(self, model=model)


def load_target(config: TrainConfig) -> ChangeVGTarget:
    """Load the model with a new adapter. Raises: ConfigError, InputError, ModelError."""
    folder = find_folder(config.model)
    model = load_model(folder, RuntimeOptions(device="cpu", dtype=config.language_dtype))
    parents = (decoder_layers(model.model), VISION_BLOCKS)
    return ChangeVGTarget(model, add_adapter(config, model.model, parents, folder.name))
