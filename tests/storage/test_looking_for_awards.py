"""What is looked for over and over among all awards there ever were is found through an index of just those."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import event

from storage.database import Database
from tests.house import House


def plans(database: Database, asked: list[tuple[str, Any]]) -> list[str]:
    """How SQLite goes about each of these statements, where it looks into awards."""
    with database.read() as tx:
        return [
            "; ".join(row[3] for row in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters).all())
            for sql, parameters in asked
            if re.search(r"\b(FROM|UPDATE) awards\b", sql)
        ]


def test_no_sweep_and_no_check_reads_every_award(small_house: House) -> None:
    database = small_house.services.database
    asked: list[tuple[str, Any]] = []

    def collect(_tx: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        asked.append((sql, parameters))

    event.listen(database.engine, "before_cursor_execute", collect)
    small_house.services.jobs.sweep()
    small_house.services.health.everything()
    event.remove(database.engine, "before_cursor_execute", collect)
    found = plans(database, asked)
    assert sum("ix_awards_open" in plan for plan in found) == 3, found
    assert sum("ix_awards_note_due" in plan for plan in found) == 2, found
    for plan in found:
        assert not re.search(r"SCAN awards(?! USING (COVERING )?INDEX ix_awards_(open|note_due))", plan), plan
