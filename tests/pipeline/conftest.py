"""Fixtures of the tests of the pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from deltavlm.pipeline.journal import header


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty current folder, so that outputs have short names."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every journal the same key, so that a journal begun anew has the same bytes."""
    monkeypatch.setattr(header, "secrets", SimpleNamespace(token_hex=lambda size: "07" * size))
