"""A DeltaVLM of a few thousand numbers, for tests: the same classes as nano and 7b."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from deltavlm.model import checkpoint
from deltavlm.model.config import (
    DeltaVLMConfig,
    DenseConfig,
    DifferenceConfig,
    LanguageConfig,
    PromptConfig,
    QFormerConfig,
    ScopeConfig,
    VisionConfig,
)
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.folder import TOKENIZER
from deltavlm.model.scope import CLASSES, QuestionScope
from deltavlm.model.tokenizer import Codec, train_codec

WORDS = [
    "q please briefly describe the changes in these two images",
    "q please judge whether these two images have changed please answer yes or no",
    "two houses are built on the bare land",
    "no new roads and 12 new buildings",
    "yes",
    "no",
] * 3

TINY = DeltaVLMConfig(
    name="tiny",
    vision=VisionConfig(
        tower="conv",
        image_px=64,
        patch_px=16,
        width=32,
        depth=1,
        heads=2,
        mlp_ratio=2.0,
        stem=8,
        stages=((8, 1), (16, 1)),
    ),
    difference=DifferenceConfig(dropout=0.0),
    dense=DenseConfig(
        classes=("none", *(f"kind{i}" for i in range(10))), counted=("kind3", "kind1"), width=8
    ),
    qformer=QFormerConfig(hidden=32, layers=2, heads=2, intermediate=32, queries=4, vocab=320, dropout=0.0),
    language=LanguageConfig(hidden=32, layers=2, heads=2, intermediate=48, vocab=320, context=256, tied=True),
    prompt=PromptConfig(normalise=True, prefix="q "),
    chip_px=64,
)


SCOPE = ScopeConfig(buckets=64, width=4, hidden=8)


def tiny_model(seed: int = 0, config: DeltaVLMConfig = TINY) -> DeltaVLM:
    torch.manual_seed(seed)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():  # livelier than a fresh start, so that differences show
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model.eval()


def tiny_codec(folder: Path) -> Codec:
    return train_codec(WORDS, TINY.language.vocab, folder / TOKENIZER)


def tiny_checkpoint(folder: Path, seed: int = 0) -> DeltaVLM:
    """A checkpoint folder; returns the model that was saved."""
    model = tiny_model(seed)
    checkpoint.save(folder, TINY, model.state_dict(), provenance={"made": "for a test"})
    tiny_codec(folder)
    return model


def constant_scope(name: str) -> QuestionScope:
    """A scope that puts every question into one class."""
    scope = QuestionScope(SCOPE)
    with torch.no_grad():
        scope.classes.weight.zero_()
        scope.classes.bias.fill_(-9)[CLASSES.index(name)] = 9  # type: ignore[call-overload]
    return scope.eval()


def save_with_scope(folder: Path, scope: QuestionScope | None) -> None:
    """A checkpoint folder with a question scope, or without one."""
    config = replace(TINY, scope=None if scope is None else SCOPE)
    weights = tiny_model().state_dict() | ({} if scope is None else checkpoint.scope_tensors(scope))
    checkpoint.save(folder, config, weights, provenance={"made": "for a test"})
    tiny_codec(folder)
