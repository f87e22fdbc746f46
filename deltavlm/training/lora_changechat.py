"""LoRA adapter of a checkpoint of kind changechat: its chats, batches and learner.

    model without adapter -> `train` -> adapter_config.json, adapter_model.safetensors
      -> `weights convert --kind changechat --adapter` merges it

Questions and answers are in the words of ChangeChat-87k, as the model is asked. Answers of all turns are
learned, with their ends; vision tower and projector stay as they are. Both images are resized, not cropped.

R rows (a chat about a pair), S tokens, P tokens of an image, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltavlm.model.changechat.model import PLACEHOLDER, ChangeChat, load_changechat
from deltavlm.model.changechat.network import ChangeChatNetwork
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.deltavlm import IGNORE_INDEX
from deltavlm.model.folder import find_folder
from deltavlm.scoring.inference import PairExamples
from deltavlm.tasks.phrasing import CHANGECHAT_87K
from deltavlm.training.config import TrainConfig
from deltavlm.training.lora import (
    AdapterLearner,
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


class ChangeChatTarget(AdapterTarget):
    """A ChangeChat that an adapter is trained for."""

    model: ChangeChat

    def chats(self, pair: PairExamples) -> list[Chat]:
        return phrased_chats(pair, CHANGECHAT_87K)

    def collate(self, samples: Sequence[ChatSample], balance: Balance) -> ChatBatch:
        """Pixels (2R, 3, H, W), both dates of a pair in turn, and ids (R, S) with PLACEHOLDER for each token
        of an image."""
        model, rows, labels = self.model, [], []
        for sample in samples:
            question, answer = sample.chat.question, sample.chat.answer
            ending = model.prompts.ending(question.prompt, question.history, answer)
            learned = model.prompts.labels(question.prompt, question.history, answer)
            rows.append([*model.beginning, *ending])
            labels.append(
                [IGNORE_INDEX] * len(model.beginning)
                + [id_ if on else IGNORE_INDEX for id_, on in zip(ending, learned, strict=True)]
            )
        images = [np.asarray(image).transpose(2, 0, 1) for sample in samples for image in sample.images]
        inputs = {
            "pixels": torch.cat([model.pixels(image[None]) for image in images]),  # pairs may differ in size
            "input_ids": pad_rows(rows, PLACEHOLDER),
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0),
        }
        return ChatBatch.of(inputs, pad_rows(labels, IGNORE_INDEX), balance)

    def learner(self, balance: Balance) -> ChangeChatLearner:
        return ChangeChatLearner(self.adapted, self.model, balance)

    def validation_copy(self, device: str) -> ChangeChatTarget:
        modules: tuple[nn.Module, ...] = (self.model.network.vision, self.model.network.projector)
        for module in modules:
            module.to(device)
        return replace(self, model=replace(self.model, device=device, pads=device != "cpu", tokens={}))


class ChangeChatLearner(AdapterLearner):
    """A ChangeChat with an adapter, and the loss of answers. `forward`: a `ChatBatch` -> sums of losses."""

    def __init__(self, adapted: Any, model: ChangeChat, balance: Balance) -> None:
        super().__init__(adapted, balance)
        # in a tuple, so that its modules are no part of this one: they are neither trained nor saved
        self.encoders: tuple[ChangeChatNetwork] = (model.network,)
        start, between = map(len, model.prompts.beginning)
        tokens = model.config.image_tokens
        self.images = (
            slice(start, start + tokens),
            slice(start + tokens + between, len(model.beginning)),
        )

    def forward(self, batch: ChatBatch) -> dict[str, Tensor]:
        (network,) = self.encoders
        ids_RS, pixels = batch.inputs["input_ids"], batch.inputs["pixels"]
        with torch.no_grad():
            for module in (network.vision, network.projector):
                module.to(pixels.device)
            tokens_2RPD = network.image_tokens(pixels)
            base: Any = self.model
            embedded_RSD = base.get_base_model().get_input_embeddings()(ids_RS).to(tokens_2RPD.dtype)
            for date, columns in enumerate(self.images):
                embedded_RSD[:, columns] = tokens_2RPD[date::2]
        inputs = {"inputs_embeds": embedded_RSD, "attention_mask": batch.inputs["attention_mask"]}
        return super().forward(ChatBatch(inputs, batch.labels, batch.terms))


def load_target(config: TrainConfig) -> ChangeChatTarget:
    """Load the model with a new adapter. Raises: ConfigError, InputError, ModelError."""
    folder = find_folder(config.model)
    model = load_changechat(folder, RuntimeOptions(device="cpu", dtype=config.language_dtype))
    model.network.requires_grad_(False)
    adapted = add_adapter(config, model.model, (decoder_layers(model.model),), folder.name)
    return ChangeChatTarget(model, adapted)
