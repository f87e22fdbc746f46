"""The arrows of docs/architecture.md, walked in the source: who may import whom, and what stays out.

Every import statement counts: at the top of a file, inside a function, under `TYPE_CHECKING`, relative or
not, and `importlib.import_module("...")` with a literal name. Knowing a type is knowing its module.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ARROWS, imports_of, module_name

ROOT = Path(__file__).resolve().parent.parent


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
    "extras": GROUND | TORCH | TERMINAL,
    "config": GROUND | TORCH | TERMINAL,
    "messages": GROUND | TORCH | TERMINAL,
    "deadline": GROUND | TORCH | TERMINAL,
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
    "mcp_server": TORCH | TERMINAL,
    "diagnostics": TERMINAL,
    "deltacli": frozenset(),
}

#: packages that `import deltacli.main` must not load, so that `--help` and completion answer at once
HEAVY = GROUND | TORCH | {"numpy", "pandas", "pyarrow", "PIL", "scipy", "cv2", "ray"}


def part_of(module: str) -> str | None:
    """The part of the house that holds `module`; None for a module of somebody else."""
    names = module.split(".")
    if names[0] == "deltacli":
        return "deltacli"
    if names[0] == "deltavlm":
        return names[1] if len(names) > 1 else "deltavlm"
    return None


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
        ("deltavlm/addons/x.py", "", "has no place"),
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


def test_no_test_module_imports_another() -> None:
    """Helpers that several test modules use live in modules that hold no tests, and in conftest.py."""
    imports = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in imports_of(path, ROOT)
        if name.startswith("tests.") and name.rpartition(".")[2].startswith("test_")
    ]
    assert imports == []


@pytest.mark.parametrize("module", ["deltacli.main", "deltavlm"])
def test_starting_loads_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert not HEAVY & set(json.loads(run.stdout)), (
        f"import {module} loads {HEAVY & set(json.loads(run.stdout))}"
    )
