"""The kernels as text: functions that can be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "kernels"
MOST_LINES = 120
DEEPEST = 4
_NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = [
    node
    for path in sorted(ROOT.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, _FUNCTIONS)
]


def depth(body: list[ast.stmt]) -> int:
    """Of blocks within blocks; an elif is as deep as its if."""
    return max((_depth_of(statement) for statement in body), default=0)


def _depth_of(statement: ast.stmt) -> int:
    if isinstance(statement, _FUNCTIONS):
        return 0  # a function by itself
    deeper = int(isinstance(statement, _NESTING))
    return max((deeper + depth(body) - chained for body, chained in _bodies(statement)), default=0)


def _bodies(statement: ast.stmt) -> Iterator[tuple[list[ast.stmt], int]]:
    """Blocks of a statement, and by how much each is less deep than it looks."""
    for field in ("body", "orelse", "finalbody"):
        body = getattr(statement, field, [])
        chained = isinstance(statement, ast.If) and field == "orelse" and _is_elif(body)
        yield body, int(chained)
    for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
        yield part.body, 0


def _is_elif(body: list[ast.stmt]) -> bool:
    return len(body) == 1 and isinstance(body[0], ast.If)


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_functions_fit_two_screens():
    assert FUNCTIONS
    assert not {each.name for each in FUNCTIONS if lines(each) > MOST_LINES}


def test_functions_are_not_nested_deeper():
    assert not {each.name for each in FUNCTIONS if depth(each.body) > DEEPEST}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", 0),
        ("if a:\n    x = 1\nelif b:\n    x = 2\nelse:\n    x = 3", 1),
        ("if a:\n    pass\nelse:\n    for b in c:\n        while d:\n            pass", 3),
        (
            "for a in b:\n    try:\n        pass\n    except E:\n        with c:\n            pass",
            3,
        ),
        ("if a:\n    def f():\n        for b in c:\n            pass", 1),
    ],
)
def test_depth_is_counted(text, expected):
    assert depth(ast.parse(text).body) == expected
