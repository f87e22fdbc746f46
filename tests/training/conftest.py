"""Single-threaded torch, which for models as small as these is faster, and validations without Java."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def single_thread() -> Iterator[None]:
    """Set one thread for all tests of this folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _without_java(no_java: None) -> None:
    """Each validation would start a tokenizer."""
