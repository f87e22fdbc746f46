"""Comparison of a converted checkpoint with results of the original code, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from deltavlm.errors import InputError, ModelError
from deltavlm.files import parse_json, read_text
from deltavlm.upstream.read import tensors

TOLERANCE = 1e-4  # largest absolute difference in float32


@dataclass(frozen=True, slots=True)
class Check:
    """Comparison of one stage over all cases."""

    name: str
    cases: int
    equal: int  # cases within the tolerance, or equal token for token
    worst: float | None  # largest absolute difference; None for ids and texts
    size: float | None = None  # largest absolute expected value

    @property
    def passed(self) -> bool:
        return self.equal == self.cases


@dataclass(slots=True)
class Comparison:
    """Results by stage, in the order in which the stages are first compared."""

    results: dict[str, list[tuple[bool, float | None, float | None]]] = field(default_factory=dict)

    def tensors(self, name: str, actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
        """Compare two tensors by their largest absolute difference. Raises: ModelError for another shape."""
        if actual.shape != expected.shape:
            raise ModelError(
                f"{name} is {tuple(actual.shape)}, expected {tuple(expected.shape)}; the sizes differ"
            )
        error = float((actual.float().cpu() - expected.float()).abs().max())
        self.results.setdefault(name, []).append((error <= tolerance, error, float(expected.abs().max())))

    def values(self, name: str, actual: Any, expected: Any) -> None:
        """Compare two values, such as token ids or a text, for equality."""
        self.results.setdefault(name, []).append((actual == expected, None, None))

    def checks(self) -> list[Check]:
        """One check for each stage."""
        return [
            Check(
                name,
                len(rows),
                sum(is_equal for is_equal, _, _ in rows),
                max((error for _, error, _ in rows if error is not None), default=None),
                max((size for _, _, size in rows if size is not None), default=None),
            )
            for name, rows in self.results.items()
        ]


def read_results(folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Contents of expected.json and expected.safetensors, results of the original. Raises: InputError."""
    path = folder / "expected.json"
    if not path.is_file():
        raise InputError(f"no file {path}; give the folder of the original's results")
    try:
        values = parse_json(read_text(path))
        values["cases"][0]["token_ids"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path} is not a file of expected results: {error!r}") from error
    return values, dict(tensors(folder / "expected.safetensors"))
