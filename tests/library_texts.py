"""Texts of the library's messages, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def library_texts() -> Iterator[str]:
    """Texts of the library that are no docstrings, each with its file; `{}` stands for a value."""
    for path in sorted((ROOT / "deltavlm").rglob("*.py")):
        tree = ast.parse(path.read_text())
        skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                skipped.update(map(id, node.values))
                parts = (each.value if isinstance(each, ast.Constant) else "{}" for each in node.values)
                yield f"{path.relative_to(ROOT)}: {''.join(map(str, parts))}"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                yield f"{path.relative_to(ROOT)}: {node.value}"
