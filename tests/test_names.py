"""Measures of the code: vague names, docstrings without a noun, long parameter lists, circular imports.

The limits below may only fall. `python tests/test_names.py [PATH ...]` prints every place that counts, and
the measures, for the whole project or the paths named; `--root FOLDER` measures another checkout.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.imports import imports_of, module_name  # noqa: E402

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
PACKAGES = ("deltacli", "deltavlm")

VAGUE_SHARE = 0.01  # of all names that are bound
DOCSTRING_SHARE = 0.005  # of all docstrings
LONG_PARAMETER_LISTS = 4  # functions that are no command
CLI_FILES = 30
#: what benchmarks and tests of other packages may import of the command line
CLI_ENTRIES = frozenset({"deltacli.main", "deltacli.console"})
#: tests of the command line itself, and of the documents that describe it
CLI_TESTS = ("tests/cli/", "tests/test_docs.py")


def python_files(root: Path, packages: Sequence[str] = PACKAGES) -> list[Path]:
    return sorted(path for package in packages for path in (root / package).rglob("*.py"))


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each function, class, argument and assigned variable."""
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
    """Line, name and count of functions with more than six parameters, `self` apart; commands take flags."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any("command" in ast.unparse(d) or "grouped" in ast.unparse(d) for d in node.decorator_list):
                continue
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            if count > MAX_PARAMETERS:
                yield node.lineno, node.name, count


def import_graph(root: Path, packages: Sequence[str]) -> dict[str, set[str]]:
    """Modules that each module of these packages imports from them, wherever in the file."""
    files = {module_name(path, root): path for path in python_files(root, packages)}
    return {
        module: {name for _, name in imports_of(path, root) if name in files and name != module}
        for module, path in files.items()
    }


def circles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (strongly connected; Tarjan 1972)."""
    imports = import_graph(root, (*PACKAGES, "benchmarks"))
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for name in sorted(imports[module]):
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

    for module in imports:
        if module not in order:
            visit(module)
    return groups


def floors(imports: Mapping[str, Iterable[str]]) -> int:
    """Length of the longest chain of imports; a module of a circle counts once."""

    def height(module: str, above: frozenset[str]) -> int:
        if module not in heights:
            below = [name for name in imports[module] if name not in above]
            heights[module] = 1 + max((height(name, above | {module}) for name in below), default=0)
        return heights[module]

    heights: dict[str, int] = {}
    return max(height(module, frozenset()) for module in imports)


def cli_imports(root: Path) -> list[str]:
    """Imports of the command line's modules by benchmarks and by tests of other packages."""
    return sorted(
        f"{path.relative_to(root).as_posix()}:{line}: {name}"
        for path in python_files(root, ("tests", "benchmarks"))
        if not path.relative_to(root).as_posix().startswith(CLI_TESTS)
        for line, name in imports_of(path, root)
        if name.startswith("deltacli.") and name not in CLI_ENTRIES
    )


def measure(paths: Sequence[Path]) -> tuple[dict[str, float], list[str]]:
    """Measures by name, and a line `file:line: complaint` for each place that counts."""
    lines: list[str] = []
    counts = dict.fromkeys(("names", "vague", "docstrings", "no noun", "long"), 0)
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in bound_names(tree):
            counts["names"] += 1
            if is_vague(name):
                counts["vague"] += 1
                lines.append(f"{path}:{line}: vague name {name}")
        for line, text in docstrings(tree):
            counts["docstrings"] += 1
            if has_no_noun(text):
                counts["no noun"] += 1
                lines.append(f"{path}:{line}: docstring without a noun: {text.splitlines()[0]}")
        for line, name, count in long_parameter_lists(tree):
            counts["long"] += 1
            lines.append(f"{path}:{line}: {name} has {count} parameters")
    measures = {
        "vague names": counts["vague"] / max(1, counts["names"]),
        "docstrings without a noun": counts["no noun"] / max(1, counts["docstrings"]),
        "long parameter lists": counts["long"],
    }
    return measures, lines


def structure(root: Path) -> dict[str, int]:
    """Size of the code, and structure of the command line."""
    cli = python_files(root, ("deltacli",))
    imports = import_graph(root, ("deltacli",))
    return {
        "files": len(python_files(root)),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(root)),
        "deltacli files": len(cli),
        "deltacli lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in cli),
        "deltacli floors": floors(imports),
        "deltacli arrows": sum(map(len, imports.values())),
        "circles": len(circles(root)),
        "imports of deltacli by tests and benchmarks": len(cli_imports(root)),
    }


@cache
def measured() -> tuple[dict[str, float], list[str]]:
    """Measures and complaints of the whole project."""
    return measure(python_files(ROOT))


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
    assert not circles(ROOT)


def test_the_command_line_stays_small_and_is_entered_by_its_app() -> None:
    assert len(python_files(ROOT, ("deltacli",))) <= CLI_FILES
    assert not cli_imports(ROOT)


def test_a_circle_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "deltavlm"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text("from deltavlm.b import f\n", encoding="utf-8")
    (folder / "b.py").write_text("def f():\n    from deltavlm import a\n", encoding="utf-8")
    (folder / "c.py").write_text("from deltavlm import a\n", encoding="utf-8")
    assert circles(tmp_path) == [["deltavlm.a", "deltavlm.b"]]
    assert floors({"a": ["b"], "b": ["c"], "c": [], "d": ["c"]}) == 3


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure names, docstrings and structure of the code.")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; default: the whole project")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to measure")
    options = parser.parse_args()
    paths = [file for path in options.paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    measures, lines = measure(sorted(paths) or python_files(options.root))
    print("\n".join(lines))
    if not options.paths:
        print("\n".join(cli_imports(options.root)))
        measures |= structure(options.root)
    print({name: round(value, 4) for name, value in measures.items()})


if __name__ == "__main__":
    main()
