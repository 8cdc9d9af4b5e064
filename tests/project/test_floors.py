"""The floors of the house, for the single modules too.

import-linter (pyproject.toml) reads packages only: a module such as app.py cannot be one of its roots. This
reads the imports of every file instead, those inside functions included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from script.bootstrap import ROOT

FLOORS = [
    {"app", "on_granian", "serving"},
    {"api_description", "cli"},
    {"services"},
    {"engine_worker", "worker"},
    {"jobs", "watching"},
    {"privacy"},
    {"console", "oauth", "webhooks", "widget"},
    {"loyalty"},
    {
        "cores",
        "findings",
        "limiting",
        "notices",
        "outbound",
        "redaction",
        "schemas",
        "storage",
        "telemetry",
        "troubles",
        "settings",
        "threads",
    },
]
HOUSE = set().union(*FLOORS)
ROOMS = sorted(HOUSE | {"sandbox"})


def imports(room: str) -> Iterator[tuple[str, str]]:
    """Every (place, imported top-level name) in the files of `room`."""
    files = [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]
    files = [path for path in files if path.exists()]
    assert files, f"{room} is neither a module nor a package"
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name.partition(".")[0]


def may_use(room: str) -> set[str]:
    """The rooms on the floor of `room` and below; the sandbox stands apart."""
    if room == "sandbox":
        return {"sandbox"}
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    allowed = set().union(*FLOORS[floor:])
    return allowed - {"widget"} if room == "oauth" else allowed


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_only_its_own_floor_and_those_below(room: str) -> None:
    ours = HOUSE | {"sandbox", "script", "tests"}
    wrong = [f"{place} imports {name}" for place, name in imports(room) if name in ours - may_use(room)]
    assert wrong == []
