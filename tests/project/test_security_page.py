"""docs/security.md names a test for every defence, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache

from script.bootstrap import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


@cache
def _tests_in(path: str) -> set[str]:
    """The tests of a file, by name; none where there is no such file."""
    file = ROOT / path
    if not file.is_file():
        return set()
    defined = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))
    return {node.name for node in defined if node.name.startswith("test_")}


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 50
    assert [f"{path}::{name}" for path, name in named if name not in _tests_in(path)] == []


def test_every_defence_names_what_shows_it_and_the_list_is_whole() -> None:
    defended, _, not_defended = PAGE.partition("## What is not defended")
    tables = defended.partition("## OWASP")[2]
    rows = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| threat | ")]
    rows = [row for row in rows if not row.startswith("| point | ")]
    assert [row[:60] for row in rows if "`tests/" not in row] == []
    assert [number for number in range(1, 11) if f"| API{number} " not in PAGE] == []
    assert not_defended.count("\n- **") > 5
