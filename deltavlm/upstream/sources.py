"""Where the published parts lie, and what they are called in the record of a conversion."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from deltavlm.upstream.read import shards


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the parts come from."""

    checkpoint: Path  # checkpoint_best.pth
    vision: Path  # file or folder of the EVA-ViT base
    language: Path  # folder of the Llama: config.json, weights, tokenizer.model
    bert: Path  # folder with BERT's vocab.txt
    config: Path | None = None  # numbers that weights cannot show; see `heads_of`


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def told(path: Path) -> str:
    """What a file or folder is called, and the start of its (first shard's) sha256, for the record."""
    return f"{called(path)} sha256:{digest(shards(path)[0])[:16]}"


def called(path: Path) -> str:
    """A file's or folder's name; in the Hub's cache, where that is a checksum, its repository and commit.

    >>> called(Path("/cache/models--lmsys--vicuna-7b-v1.5/snapshots/0123456789abcdef0123/config.json"))
    'lmsys/vicuna-7b-v1.5@0123456789ab/config.json'
    """
    steps = path.absolute().parts
    if "snapshots" not in steps[:-1]:
        return path.absolute().name
    at = steps.index("snapshots")
    repository = steps[at - 1].removeprefix("models--").replace("--", "/")
    return "/".join((f"{repository}@{steps[at + 1][:12]}", *steps[at + 2 :]))
