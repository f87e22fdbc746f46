"""Sources of the QGIS plugin: words can be translated, and nothing in them is of Qt 5 only."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "qgis" / "deltavlm_processing").glob("*.py"))
WITH_QT = [*FILES, ROOT / "docs" / "qgis_plugin_pictures.py", Path(__file__).with_name("qgis_run.py")]


def docstrings(tree: ast.Module) -> set[ast.expr]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    return {statement.value for statement in first if isinstance(statement, ast.Expr)}


def translated(tree: ast.Module) -> set[ast.expr]:
    """Texts in calls of `tr`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "tr"}


def all_words() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    return {ast.literal_eval(text) for tree in trees for text in translated(tree)}


def untranslated(path: Path) -> Iterator[str]:
    """Texts of two words or more that are neither translated nor a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = docstrings(tree) | translated(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in known:
            text = re.sub(r"\w+ \(\*\.\w+\)", "", node.value)  # HTML (*.html): a filter of files
            if re.search(r"[A-Za-z]{2,}[,;:]? +[A-Za-z]{2,}", text):
                yield f"{path.name}:{node.lineno}: {node.value}"


def test_every_sentence_is_translated() -> None:
    assert [line for path in FILES for line in untranslated(path)] == []
    assert not [text for text in all_words() if text != text.strip() and not text.startswith(" (")]


@pytest.mark.skipif(not (shutil.which("pylupdate5") and shutil.which("lrelease")), reason="no pylupdate5")
def test_pylupdate5_finds_every_word_in_the_context_that_is_looked_up(tmp_path: Path) -> None:
    file = tmp_path / "deltavlm_processing_de.ts"
    subprocess.run(["pylupdate5", *map(str, FILES), "-ts", str(file)], check=True, capture_output=True)
    (context,) = ET.parse(file).getroot().iter("context")
    assert context.findtext("name") == "@default"
    assert {message.findtext("source") for message in context.iter("message")} == all_words()
    subprocess.run(["lrelease", "-silent", str(file)], check=True)
    assert file.with_suffix(".qm").is_file()


def qt_names(tree: ast.Module) -> dict[str, str]:
    """Names that are imported from Qt -> their modules in PyQt."""
    return {
        alias.asname or alias.name: (node.module or "").removeprefix("qgis.PyQt.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qgis.PyQt.")
        for alias in node.names
    }


def chains(tree: ast.Module) -> set[str]:
    """Dotted names: `QLocale.system`."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", WITH_QT, ids=lambda path: path.name)
def test_enumerations_of_qt_are_in_the_long_form_which_qt6_asks_for(path: Path) -> None:
    """`QTreeView.PositionAtTop` is an AttributeError in PyQt6: `QTreeView.ScrollHint.PositionAtTop`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {"PyQt5", "PyQt6"}
    found = chains(tree)
    assert not [chain for chain in found if chain.endswith((".exec_", ".print_"))]
    names = qt_names(tree)
    enumerations = [
        chain for chain in found if re.fullmatch(rf"({'|'.join(names) or '-'})\.[A-Z]\w*(\.\w+)*", chain)
    ]
    short = [chain for chain in enumerations if not any(other.startswith(f"{chain}.") for other in found)]
    assert [chain for chain in short if chain.count(".") < 2] == []


@pytest.mark.skipif(importlib.util.find_spec("PyQt6") is None, reason="no PyQt6")
@pytest.mark.parametrize("path", WITH_QT, ids=lambda path: path.name)
def test_qt6_has_every_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = qt_names(tree)
    wanted = [chain for chain in chains(tree) if re.fullmatch(rf"({'|'.join(names) or '-'})(\.\w+)+", chain)]
    script = "".join(f"from PyQt6.{module} import {name}\n" for name, module in names.items())
    script += "\n".join(wanted)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
