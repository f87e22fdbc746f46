"""The arrows of docs/architecture.md, walked in the source: who may import whom, and what stays out.

Every import statement counts: at the top of a file, inside a function, under `TYPE_CHECKING`, relative or
not, and `importlib.import_module("...")` with a literal name. Knowing a type is knowing its module.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEAVES = frozenset({"version", "errors", "config", "text_norm", "files"})

#: part of the house -> parts of deltavlm that it may import (itself is always allowed)
ARROWS: dict[str, frozenset[str]] = {
    "deltavlm": frozenset({"version", "api"}),  # the package's own __init__
    "version": frozenset(),
    "errors": frozenset(),
    "config": frozenset({"errors"}),
    "text_norm": frozenset({"errors"}),
    "files": frozenset({"errors"}),
    "hub": frozenset({"errors", "files"}),
    "geo": LEAVES,
    "model": LEAVES,
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
    "api": LEAVES | {"geo", "model", "tasks", "pipeline"},
    "diagnostics": LEAVES | {"deltavlm", "geo", "model", "tasks"},
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
    },
}

GROUND = frozenset({"rasterio", "geopandas", "shapely", "pyogrio", "pyproj", "fiona", "osgeo"})
TORCH = frozenset(
    {
        "torch",
        "torchvision",
        "transformers",
        "timm",
        "safetensors",
        "tokenizers",
        "sentencepiece",
        "huggingface_hub",
        "bitsandbytes",
    }
)
TERMINAL = frozenset({"typer", "rich", "click"})

#: part of the house -> third-party packages that never appear in it
FORBIDDEN: dict[str, frozenset[str]] = {
    "deltavlm": TERMINAL,
    "version": GROUND | TORCH | TERMINAL,
    "api": TORCH | TERMINAL,
    "files": GROUND | TORCH | TERMINAL,
    "hub": GROUND | TERMINAL,
    "errors": GROUND | TORCH | TERMINAL,
    "config": GROUND | TORCH | TERMINAL,
    "text_norm": GROUND | TORCH | TERMINAL,
    "geo": TORCH | TERMINAL,
    "model": GROUND | TERMINAL,
    "metrics": GROUND | TORCH | TERMINAL,
    "tasks": GROUND | TORCH | TERMINAL,
    "data": GROUND | TERMINAL,
    "pipeline": TORCH | TERMINAL,
    "summaries": TORCH | TERMINAL,
    "training": GROUND | TERMINAL,
    "scoring": GROUND | TORCH | TERMINAL,
    "upstream": GROUND | TERMINAL,
    "cluster": TORCH | TERMINAL,
    "report": TORCH | TERMINAL,
    "diagnostics": TERMINAL,
    "deltacli": frozenset(),
}

#: packages that `import deltacli.main` must not load, so that `--help` and completion answer at once
HEAVY = GROUND | TORCH | {"numpy", "pandas", "pyarrow", "PIL", "scipy", "cv2", "ray"}


def module_name(path: Path, root: Path) -> str:
    """`deltavlm/geo/grid.py` -> `deltavlm.geo.grid`; a package's `__init__.py` -> the package."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str | None:
    """The part of the house that holds `module`; None for a module of somebody else."""
    names = module.split(".")
    if names[0] == "deltacli":
        return "deltacli"
    if names[0] == "deltavlm":
        return names[1] if len(names) > 1 else "deltavlm"
    return None


def imports_of(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, wherever in the file."""
    module = module_name(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            for alias in node.names:
                # `from deltavlm import geo` names a part; `from deltavlm import __version__` does not
                inside = root.joinpath(*base.split("."), alias.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def broken_arrows(root: Path) -> list[str]:
    """One line for every import under `root` that the house does not allow."""
    found = []
    for path in sorted([*root.glob("deltavlm/**/*.py"), *root.glob("deltacli/**/*.py")]):
        part = part_of(module_name(path, root))
        assert part is not None
        where = path.relative_to(root).as_posix()
        if part not in ARROWS:
            found.append(f"{where}: '{part}' has no place in the house yet; give it one in ARROWS")
            continue
        for line, name in imports_of(path, root):
            target = part_of(name)
            if target is None:
                if name.split(".")[0] in FORBIDDEN[part]:
                    found.append(f"{where}:{line}: {part} imports {name}")
            elif target != part and target not in ARROWS[part]:
                found.append(f"{where}:{line}: {part} -> {target} ({name})")
    return found


def test_no_arrow_is_broken() -> None:
    assert not broken_arrows(ROOT), "\n".join(broken_arrows(ROOT))


def test_the_tables_agree_with_each_other() -> None:
    """A ban on packages holds only if no allowed arrow leads to a part that may use them.

    `pipeline` is the exception by design: it may know the model's interface, which has no torch in it,
    and `geo`, whose packages it may use too.
    """
    assert set(ARROWS) == set(FORBIDDEN)
    for part, allowed in ARROWS.items():
        if FORBIDDEN[part] >= GROUND:
            for other in allowed:
                assert FORBIDDEN[other] >= GROUND, f"{part} -> {other} brings in rasterio and its kin"
        assert "deltacli" not in allowed, f"{part} must not know the command line"
    siblings = {"geo", "model", "tasks"}
    for part in siblings:
        assert not ARROWS[part] & siblings, f"{part} must not know its siblings"


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("deltavlm/geo/pair.py", "from deltavlm.model import interface", "geo -> model"),
        ("deltavlm/geo/pair.py", "from ..tasks.count import parse", "geo -> tasks"),
        ("deltavlm/geo/__init__.py", "from ..model import interface", "geo -> model"),
        ("deltavlm/tasks/count.py", "def f():\n    from deltavlm import geo", "tasks -> geo"),
        ("deltavlm/errors.py", "import deltacli.main", "errors -> deltacli"),
        ("deltavlm/data/x.py", "def f():\n    import rasterio.windows", "data imports rasterio.windows"),
        (
            "deltavlm/model/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shapely",
            "model imports shapely",
        ),
        (
            "deltavlm/metrics/x.py",
            "import importlib\nimportlib.import_module('torch.nn')",
            "metrics imports torch.nn",
        ),
        ("deltavlm/pipeline/x.py", "from rich.progress import Progress", "pipeline imports rich.progress"),
        ("deltavlm/extras/x.py", "", "has no place"),
    ],
)
def test_a_broken_arrow_is_seen(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    for part in ("geo", "tasks", "model"):
        folder = tmp_path / "deltavlm" / part
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    complaints = broken_arrows(tmp_path)
    assert len(complaints) == 1, complaints
    assert complaint in complaints[0]


@pytest.mark.parametrize("module", ["deltacli.main", "deltavlm"])
def test_starting_loads_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert not HEAVY & set(json.loads(run.stdout)), (
        f"import {module} loads {HEAVY & set(json.loads(run.stdout))}"
    )
