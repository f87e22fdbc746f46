"""Measures of the code: vague names, docstrings without a noun, long parameter lists, circular imports.

The limits below may only fall. `python tests/test_names.py [PATH ...]` prints the measures and every place
that counts, for the whole project or the paths named.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

#: words that do not say what a value is; a name is vague if a word of it (split at `_`) is among them
VAGUE = frozenset(
    """
    one ones told found known wanted asked there said place places kept seen look looks whole beside held
    part parts piece pieces rest most more thing things given left own again taken made wished where what here
    shown done sent room spot both whichever
    """.split()  # noqa: SIM905
)
#: first words of a docstring that avoids naming its subject
NO_NOUN = frozenset(
    ["what", "where", "who", "whether", "how", "those", "from", "which", "whatever", "whoever", "when"]
)

MAX_PARAMETERS = 6

VAGUE_SHARE = 0.1204  # of all names that are bound
DOCSTRING_SHARE = 0.20  # of all docstrings
LONG_PARAMETER_LISTS = 29  # functions that are no command
CIRCLES = 0


def sources(paths: Sequence[Path] = ()) -> list[Path]:
    roots = paths or [ROOT / "deltacli", ROOT / "deltavlm"]
    return sorted(path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py")))


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each function, class, argument and assigned variable or attribute of a dataclass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def is_vague(name: str) -> bool:
    return not VAGUE.isdisjoint(name.lower().strip("_").split("_"))


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def has_no_noun(docstring: str) -> bool:
    return docstring.split()[0].strip("`'\".,:;").lower() in NO_NOUN


def long_parameter_lists(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """Line, name and count of functions that take more than six values, `self` apart; commands take flags."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any("command" in ast.unparse(d) or "grouped" in ast.unparse(d) for d in node.decorator_list):
                continue
            every = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in every if name not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                yield node.lineno, node.name, count


def circles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (strongly connected; Tarjan 1972)."""
    from tests.test_arrows import imports_of, module_name

    files = {module_name(path, root): path for name in HOUSE for path in (root / name).rglob("*.py")}
    imports = {
        module: sorted({name for _, name in imports_of(path, root) if name in files and name != module})
        for module, path in files.items()
    }
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for name in imports[module]:
            if name not in order:
                visit(name)
                low[module] = min(low[module], low[name])
            elif name in stack:
                low[module] = min(low[module], order[name])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in files:
        if module not in order:
            visit(module)
    return groups


HOUSE = ("deltacli", "deltavlm", "benchmarks")


def measured(paths: Sequence[Path] = ()) -> tuple[dict[str, float], list[str]]:
    """The measures by name, and a line `file:line: complaint` for each place that counts."""
    lines: list[str] = []
    counts = dict.fromkeys(("names", "vague", "docstrings", "no noun", "long"), 0)
    for path in sources(paths):
        tree, where = ast.parse(path.read_text(encoding="utf-8")), path.absolute()
        file = where.relative_to(ROOT).as_posix() if where.is_relative_to(ROOT) else path.as_posix()
        for line, name in bound_names(tree):
            counts["names"] += 1
            if is_vague(name):
                counts["vague"] += 1
                lines.append(f"{file}:{line}: vague name {name}")
        for line, text in docstrings(tree):
            counts["docstrings"] += 1
            if has_no_noun(text):
                counts["no noun"] += 1
                lines.append(f"{file}:{line}: docstring without a noun: {text.splitlines()[0]}")
        for line, name, count in long_parameter_lists(tree):
            counts["long"] += 1
            lines.append(f"{file}:{line}: {name} has {count} parameters")
    measures = {
        "vague names": counts["vague"] / max(1, counts["names"]),
        "docstrings without a noun": counts["no noun"] / max(1, counts["docstrings"]),
        "long parameter lists": counts["long"],
    }
    return measures, lines


def test_few_names_are_vague() -> None:
    measures, lines = measured()
    share = measures["vague names"]
    assert share <= VAGUE_SHARE, f"{share:.1%} of the names are vague\n" + "\n".join(lines)


def test_docstrings_begin_with_a_noun() -> None:
    measures, lines = measured()
    share = measures["docstrings without a noun"]
    assert share <= DOCSTRING_SHARE, f"{share:.1%}\n" + "\n".join(lines)


def test_functions_take_few_parameters() -> None:
    measures, lines = measured()
    assert measures["long parameter lists"] <= LONG_PARAMETER_LISTS, "\n".join(lines)


def test_modules_do_not_import_each_other_in_circles() -> None:
    assert len(circles(ROOT)) <= CIRCLES, circles(ROOT)


def test_a_circle_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "deltavlm"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text("from deltavlm.b import f\n", encoding="utf-8")
    (folder / "b.py").write_text("def f():\n    from deltavlm import a\n", encoding="utf-8")
    (folder / "c.py").write_text("from deltavlm import a\n", encoding="utf-8")
    assert circles(tmp_path) == [["deltavlm.a", "deltavlm.b"]]


def test_what_counts_is_seen() -> None:
    tree = ast.parse(
        '''
def whole_text(wanted, b, c, d, e, f, g):
    """What is told."""
    place = 1
    size = 2
'''
    )
    assert [name for _, name in bound_names(tree) if is_vague(name)] == ["whole_text", "wanted", "place"]
    assert [has_no_noun(text) for _, text in docstrings(tree)] == [True]
    assert [(name, count) for _, name, count in long_parameter_lists(tree)] == [("whole_text", 7)]


if __name__ == "__main__":
    measures, lines = measured([Path(name) for name in sys.argv[1:]])
    print("\n".join(lines))
    print({name: round(value, 4) for name, value in measures.items()})
    if len(sys.argv) == 1:
        print("circles:", circles(ROOT))
