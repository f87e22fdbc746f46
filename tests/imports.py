"""Imports of source files, and those that each part of the project may have."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LEAVES = frozenset({"version", "errors", "extras", "messages", "config", "text_norm", "files", "deadline"})

#: part of the project -> parts of deltavlm that it may import (itself is always allowed)
ARROWS: dict[str, frozenset[str]] = {
    "deltavlm": frozenset({"version", "api", "model"}),  # the package's own __init__
    "version": frozenset(),
    "errors": frozenset({"messages"}),
    "extras": frozenset({"errors"}),
    "config": frozenset({"errors", "messages", "files"}),
    "messages": frozenset(),
    "text_norm": frozenset({"errors", "messages"}),
    "files": frozenset({"errors", "messages"}),
    "deadline": frozenset(),
    "hub": frozenset({"errors", "messages", "files", "deadline"}),
    "geo": LEAVES,
    "model": LEAVES | {"hub"},
    "metrics": LEAVES,
    "tasks": LEAVES | {"metrics"},
    "data": LEAVES | {"hub", "model", "tasks", "metrics"},
    "pipeline": LEAVES | {"geo", "model", "tasks", "metrics"},
    "summaries": LEAVES | {"geo", "pipeline"},
    "training": LEAVES | {"data", "model", "tasks", "metrics", "scoring"},
    "scoring": LEAVES | {"data", "model", "tasks", "metrics"},
    "upstream": LEAVES | {"hub", "model"},
    "cluster": LEAVES | {"geo", "model", "tasks", "pipeline"},
    "report": LEAVES | {"geo", "tasks", "pipeline"},
    "mcp_server": LEAVES | {"geo", "pipeline", "report"},
    "api": LEAVES | {"geo", "model", "tasks", "pipeline"},
    "diagnostics": LEAVES | {"deltavlm", "geo", "model", "tasks", "data", "pipeline"},
    "deltacli": LEAVES
    | {
        "deltavlm",
        "geo",
        "model",
        "tasks",
        "metrics",
        "data",
        "pipeline",
        "cluster",
        "training",
        "scoring",
        "upstream",
        "report",
        "summaries",
        "diagnostics",
        "mcp_server",
    },
}


def module_name(path: Path, root: Path) -> str:
    """`deltavlm/geo/grid.py` -> `deltavlm.geo.grid`; a package's `__init__.py` -> the package."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(path: Path, root: Path) -> tuple[tuple[int, str], ...]:
    """Line and absolute dotted name of everything that a file imports, wherever in the file; read once."""
    return tuple(_imports_of(path, root))


def _imports_of(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    module = module_name(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                # `from deltavlm import geo` names a part; `from deltavlm import __version__` does not
                inside = root.joinpath(*base.split("."), alias.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value
