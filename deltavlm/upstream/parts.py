"""The published model's parts: whose repositories hold them, which files, on what terms.

The checkpoint holds only what was trained. The vision base's stem and first blocks, the language model and
BERT's vocabulary lie in repositories of others. Those are pinned to commits that other public code names
for the same use; of the checkpoint and of timm we know none, and what `main` stood for is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

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
class Part:
    """One repository's share of the model."""

    name: str
    repo: str
    revision: str  # branch, tag or commit
    files: tuple[str, ...]  # glob patterns, at the top of the repository
    needed: tuple[str, ...]  # what must be among them, beside weights where `files` asks for weights
    licence: str
    holding: str = ""  # of the weight files, only those with tensors of this prefix
    otherwise: str = ""  # what to do where the repository cannot be had

    @property
    def told(self) -> str:
        """The file that a message names."""
        return self.needed[0] if self.needed else self.files[0]

    @property
    def page(self) -> str:
        """Where its page is, behind the Hub's address."""
        return self.repo

    @property
    def instead(self) -> str:
        """What to do otherwise, as the end of a message."""
        return f", {self.otherwise}" if self.otherwise else ""


# Terms as read in the checkpoint's card (hf_upload/README.md of its code), the cards of Vicuna v1.5 (13B),
# BAAI/EVA and BERT, and LAVIS's projects/instructblip/README.md.
PARTS: tuple[Part, ...] = (
    Part(
        name=CHECKPOINT,
        repo="hlwu/DeltaVLM",
        revision="main",
        files=("checkpoint_best.pth",),
        needed=("checkpoint_best.pth",),
        licence=(
            'its card says "other" and points to the terms of code, data and base model; the code has no'
            " licence file (an older branch has BSD-3-Clause, and MIT in its README); it learnt from LEVIR's"
            " images, for research use, and texts under CC-BY-4.0: ask the authors before any other use"
        ),
        otherwise="or get checkpoint_best.pth from its authors (their older code names hanlinwu/DeltaVLM)",
    ),
    Part(
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
        needed=("tokenizer.model", "config.json"),
        licence="Llama 2 Community License; its makers name research as its primary use",
        otherwise="or use a folder of Vicuna-7B v1.5 that you have",
    ),
    Part(
        name=VOCABULARY,
        repo="google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        files=("vocab.txt", "config.json"),
        needed=("vocab.txt",),
        licence="Apache-2.0; BERT's weights are not needed",
        otherwise="or use the vocab.txt of a bert-base-uncased that you have",
    ),
    Part(
        name=VISION,
        repo="Salesforce/instructblip-vicuna-7b",
        revision="52ba0cb2c44d96b2fcceed4e84141dc40d2b6a92",
        files=WEIGHT_FILES,
        needed=(),
        licence=(
            "InstructBLIP is licensed for research use only, under LLaMA's and Vicuna's terms; of it only the"
            " EVA-CLIP weights are used, which BAAI published under MIT"
        ),
        holding="vision_model.",
        otherwise="or give a local eva_vit_g.pth as the vision base",
    ),
)
# Third in trust, after a local eva_vit_g.pth and InstructBLIP: most likely the same weights, never compared.
TIMM_BASE = Part(
    name=VISION,
    repo="timm/eva_giant_patch14_clip_224.laion400m",
    revision="main",
    files=("model.safetensors", "pytorch_model.bin"),
    needed=(),
    licence="timm's copy of EVA-CLIP-g, which BAAI published under MIT; read the card of the repository",
    otherwise="or give a local eva_vit_g.pth as the vision base",
)
