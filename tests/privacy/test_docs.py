"""docs/privacy.md says where everything is; a column that comes later has to be said there too."""

from __future__ import annotations

import re

from script.bootstrap import ROOT
from storage.tables import metadata

PAGE = (ROOT / "docs" / "privacy.md").read_text()


def columns_told() -> set[tuple[str, str]]:
    """(table, column) for each name in code quotes of a row about that table."""
    told = set()
    for row in re.findall(r"(?m)^\| (`.*)$", PAGE):
        first, *others = row.split(" | ")
        for table in re.findall(r"`(\w+)`", first):
            told |= {(table, name) for name in re.findall(r"`(\w+)`", " ".join(others))}
            told.add((table, ""))
    return told


def test_every_table_and_every_column_with_something_private_is_told() -> None:
    told = columns_told()
    missing = [
        f"{table.name}.{column}"
        for table in metadata.sorted_tables
        for column in ("", *table.c.keys())
        if (table.name, column) not in told
        and (column == "" or column == "sealed" or column.endswith(("_sealed", "_hmac")))
    ]
    assert missing == []


def test_nothing_is_told_of_columns_that_there_are_not() -> None:
    for table, column in columns_told():
        assert table in metadata.tables
        assert column == "" or column.isupper() or column in metadata.tables[table].c, f"{table}.{column}"


def test_the_times_are_those_of_the_code() -> None:
    from console.changes import CHANGES_KEPT
    from loyalty.attempts import ATTEMPTS_KEPT
    from loyalty.members import NOT_FOUND_KEPT
    from settings import _Environment
    from storage.deliveries import DELIVERIES_KEPT
    from widget.inspector import INSPECTED_KEPT

    for name, days in re.findall(r"`([A-Z_]+_DAYS)` \((\d+)\)", PAGE):
        assert _Environment().fields[name].load_default == int(days), name
    row = {table: line for line in PAGE.splitlines() for table in re.findall(r"^\| `(\w+)`", line)}
    assert f"{ATTEMPTS_KEPT.days} days" in row["award_attempts"]
    assert f"{CHANGES_KEPT.days} days" in row["changes"]
    assert f"({DELIVERIES_KEPT.days} days)" in row["connections"]
    assert NOT_FOUND_KEPT.total_seconds() == 3600
    assert INSPECTED_KEPT.total_seconds() == 3600
