"""The sizes and arrows that keep the house simple, measured from the source itself."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "robench").rglob("*.py"))
MOST_LINES_A_FILE, MOST_LINES_A_FUNCTION = 400, 80


@cache
def _statements(path: Path) -> list[ast.AST]:
    """All of a file, with those inside others; a statement's expressions hold none."""
    found, due = [], [ast.parse(path.read_text())]
    while due:
        node = due.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            due += getattr(node, name, ())
        found.append(node)
    return found


def _functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in _statements(path) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports, for annotations and inside functions too."""
    found: set[str] = set()
    for node in _statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            # `from package import module` needs the module, not what else the package holds.
            found |= names or {node.module}
    return (found & modules) - {_module(path)}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one module that reach each other (Tarjan's components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(arrows):
        if name not in number:
            visit(name)
    return found


def test_circles_are_found():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(arrows) == [["a", "b", "c"]]


def test_no_import_circle():
    paths = {_module(path): path for path in FILES}
    modules = set(paths)
    arrows = {name: _imported(path, modules) for name, path in paths.items()}
    assert circles(arrows) == []


def test_files_and_functions_fit_on_a_few_screens():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {path: n for path, n in lines.items() if n > MOST_LINES_A_FILE} == {}
    functions = [(path, node) for path in FILES for node in _functions(path)]
    assert [
        (path, node.name, length)
        for path, node in functions
        if (length := node.end_lineno - node.lineno + 1) > MOST_LINES_A_FUNCTION
    ] == []
