"""Files of the original at small size, and a checkpoint converted from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltavlm.upstream.components import Sources
from deltavlm.upstream.convert import convert

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tiny"


def sources(folder: Path = GOLDEN) -> Sources:
    return Sources(
        folder / "checkpoint_best.pth",
        folder / "eva_vit_g.pth",
        folder / "vicuna-7b-v1.5",
        folder / "bert-base-uncased",
    )


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert(sources(), folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the original's files, for tests that damage them."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "files"))
