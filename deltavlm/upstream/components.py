"""Components of the published model: repositories, files, licences, and their local copies.

The checkpoint holds only what was trained. The vision base's stem and first blocks, the language model and
BERT's vocabulary are in repositories of others. Those are pinned to commits that other public code names
for the same use; for the checkpoint and timm's copy we know none, so a fetch records what `main` was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltavlm.config import suggest
from deltavlm.errors import InputError
from deltavlm.hub import Repository

CHECKPOINT, LANGUAGE, VOCABULARY, VISION = "checkpoint", "language", "question vocabulary", "vision base"
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "model*.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pytorch_model*.bin",
)


@dataclass(frozen=True, slots=True)
class Component:
    """Part of the published model that one repository provides."""

    name: str
    repo: str
    revision: str  # branch, tag or commit
    files: tuple[str, ...]  # glob patterns, at the top of the repository
    required: tuple[str, ...]  # files that must exist, in addition to weights if `files` has weights
    licence: str
    prefix: str = ""  # only weight files that hold tensors with this prefix are fetched
    alternative: str = ""  # another way to get the files, for messages

    @property
    def repository(self) -> Repository:
        return Repository(
            self.repo,
            self.revision,
            content=self.required[0] if self.required else self.files[0],
            alternative=self.alternative,
        )


# Terms as read in the checkpoint's card (hf_upload/README.md of its code), the cards of Vicuna v1.5 (13B),
# BAAI/EVA and BERT, and LAVIS's projects/instructblip/README.md.
COMPONENTS: tuple[Component, ...] = (
    Component(
        name=CHECKPOINT,
        repo="hlwu/DeltaVLM",
        revision="main",
        files=("checkpoint_best.pth",),
        required=("checkpoint_best.pth",),
        licence=(
            'its card says "other" and points to the terms of code, data and base model; the code has no'
            " licence file (an older branch has BSD-3-Clause, and MIT in its README); it was trained on"
            " LEVIR's images, for research use, and texts under CC-BY-4.0: ask the authors before any other"
            " use"
        ),
        alternative="or get checkpoint_best.pth from its authors (their older code names hanlinwu/DeltaVLM)",
    ),
    Component(
        name=LANGUAGE,
        repo="lmsys/vicuna-7b-v1.5",
        revision="3321f76e3f527bd14065daf69dad9344000a201d",
        files=(
            "config.json",
            "generation_config.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            *WEIGHT_FILES,
        ),
        required=("tokenizer.model", "config.json"),
        licence="Llama 2 Community License; its makers name research as its primary use",
        alternative="or use a local folder of Vicuna-7B v1.5",
    ),
    Component(
        name=VOCABULARY,
        repo="google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        files=("vocab.txt", "config.json"),
        required=("vocab.txt",),
        licence="Apache-2.0; BERT's weights are not needed",
        alternative="or use the vocab.txt of a local bert-base-uncased",
    ),
    Component(
        name=VISION,
        repo="Salesforce/instructblip-vicuna-7b",
        revision="52ba0cb2c44d96b2fcceed4e84141dc40d2b6a92",
        files=WEIGHT_FILES,
        required=(),
        licence=(
            "InstructBLIP is licensed for research use only, under LLaMA's and Vicuna's terms; of it only the"
            " EVA-CLIP weights are used, which BAAI published under MIT"
        ),
        prefix="vision_model.",
        alternative="or give a local eva_vit_g.pth as the vision base",
    ),
)
# Third in trust, after a local eva_vit_g.pth and InstructBLIP: most likely the same weights, never compared.
TIMM_BASE = Component(
    name=VISION,
    repo="timm/eva_giant_patch14_clip_224.laion400m",
    revision="main",
    files=("model.safetensors", "pytorch_model.bin"),
    required=(),
    licence="timm's copy of EVA-CLIP-g, which BAAI published under MIT; read the card of the repository",
    alternative="or give a local eva_vit_g.pth as the vision base",
)

MCI = Component(
    name=CHECKPOINT,
    repo="lcybuaa/Change-Agent",
    revision="main",
    files=("MCI_model.pth", "vocab.json"),
    required=("MCI_model.pth",),
    licence=(
        'the repository says MIT and also "academic purposes only"; trained on LEVIR-MCI, whose images'
        " are for research use, from a MiT-B1 of NVIDIA under a non-commercial license: ask the authors"
        " before any other use"
    ),
    alternative="or get MCI_model.pth from its authors",
)
"""Change-Agent's mask-and-caption model; its vocabulary is perhaps with the code alone."""


def select_components(*, language: bool = True, timm: bool = False) -> tuple[Component, ...]:
    """Components to fetch: with or without the language model; `timm` replaces InstructBLIP's vision base."""
    components = [component for component in COMPONENTS if language or component.name != LANGUAGE]
    return tuple(TIMM_BASE if timm and item.name == VISION else item for item in components)


def parse_revisions(pairs: Iterable[str], components: Iterable[Component]) -> dict[str, str]:
    """Revisions by the names of components, from texts REPO=COMMIT. Raises: InputError."""
    names = {component.repo: component.name for component in components}
    revisions = {}
    for pair in pairs:
        repo, equals, commit = pair.partition("=")
        if not (equals and commit and repo in names):
            raise InputError(f"`revision={pair}` is not REPO=COMMIT of a repository{suggest(repo, names)}")
        revisions[names[repo]] = commit
    return revisions


@dataclass(frozen=True, slots=True)
class Sources:
    """Local files of all components, the input of a conversion."""

    checkpoint: Path  # checkpoint_best.pth
    vision: Path  # file or folder of the EVA-ViT base
    llm: Path  # folder of the Llama: config.json, weights, tokenizer.model
    bert: Path  # folder with BERT's vocab.txt
    heads_config: Path | None = None  # numbers of attention heads, which weights do not show; see `heads_of`
