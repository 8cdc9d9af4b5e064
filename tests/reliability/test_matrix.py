"""A proxy breaks the connection to Rivo in every way and phase, and the table in docs/reliability.md says what happens.

`TALLYDESK_RELIABILITY_FOLDER` names a folder in which each phase leaves what it found, measured with the product's real
patience; script/reliability makes the table of it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from script.reliability import table
from storage.database import Database
from tests.reliability.matrix import Phase, rig
from tests.reliability.proxy import Break

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
FOLDER = os.environ.get("TALLYDESK_RELIABILITY_FOLDER")


@pytest.mark.timeout(400 if FOLDER else 120)
@pytest.mark.parametrize("phase", list(Phase))
def test_what_happens_when_the_connection_breaks_is_what_the_table_says(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    with rig(sqlite_database.url, monkeypatch=monkeypatch, patient=bool(FOLDER)) as running:
        found = {kind: running.cell(phase, kind) for kind in Break}
    if FOLDER:
        told = {kind.value: cell.told() for kind, cell in found.items()}
        (Path(FOLDER) / f"{phase.name}.json").write_text(json.dumps(told))
    else:
        written = read_table(DOCUMENT.read_text())
        assert {kind.value: written[kind.value, phase.value] for kind in Break} == {
            kind.value: cell.words() for kind, cell in found.items()
        }, "the table is out of date: run script/reliability"


def test_the_table_that_is_written_is_the_table_that_is_read() -> None:
    cells = {"refused": {"words": "200 Member", "seconds": 0.1}, "silent": {"words": "202 a → b", "seconds": 7.02}}
    written = table({"CARD": cells, "KEY": cells}, {"CARD": "a card", "KEY": "a key"})
    assert "| silent | 202 a → b; 7.0 s |" in written
    assert read_table(f"Before\n<!-- matrix -->\n{written}\n<!-- /matrix -->\nafter") == {
        ("refused", "a card"): "200 Member",
        ("refused", "a key"): "200 Member",
        ("silent", "a card"): "202 a → b",
        ("silent", "a key"): "202 a → b",
    }


def read_table(text: str) -> dict[tuple[str, str], str]:
    """The cells of the table, by fault and phase, without their times."""
    table = text.partition("<!-- matrix -->")[2].partition("<!-- /matrix -->")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    head, rows = lines[0], lines[2:]
    return {
        (row[0], phase): re.sub(r"; (under )?[0-9.]+ s$", "", cell)
        for row in rows
        for phase, cell in zip(head[1:], row[1:], strict=True)
    }
