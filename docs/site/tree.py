"""Generator of the file tree in docs/architecture.md: a line per module, with its docstring's first sentence.

    python docs/site/tree.py

rewrites the block between the comments `<!-- tree -->` and `<!-- /tree -->`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("deltacli", "deltavlm")
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->\n"
COLUMN = 27  # at which the sentences begin

__all__ = ["PAGE", "replace_tree", "tree"]


def tree() -> str:
    """The tree of both packages as text: first the modules of a folder, then its folders, sorted by name."""
    return "\n".join(line for package in PACKAGES for line in _lines(ROOT / package, 0))


def replace_tree(page: str) -> str:
    """The text of the page with a new tree. Raises ValueError unless it has each comment once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE.name} should hold {BEGIN.strip()} and {END.strip()} once each")
    before, after = page.split(BEGIN)
    return f"{before}{BEGIN}```text\n{tree()}\n```\n{END}{after.split(END)[1]}"


def summary(module: Path) -> str:
    """The first sentence of a module's docstring, without its full stop; empty without a docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"), filename=str(module))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].removesuffix(".")


def _lines(folder: Path, depth: int) -> Iterator[str]:
    yield _line(f"{folder.name}/", folder / "__init__.py", depth)
    for module in sorted(folder.glob("*.py")):
        if module.name != "__init__.py":
            yield _line(module.name, module, depth + 1)
    for below in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from _lines(below, depth + 1)


def _line(name: str, module: Path, depth: int) -> str:
    return f"{'  ' * depth + name:<{COLUMN - 1}} {summary(module)}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(replace_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
