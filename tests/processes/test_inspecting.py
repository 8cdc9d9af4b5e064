"""The inspector over several processes: each writes down what it was asked itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from storage.database import Database
from tests.processes.serving import serving, wait_for
from widget.connections import KNOWN_FOR
from widget.inspector import inspected

JANE = "jane@example.com"


def _has_passed(moment: datetime) -> bool:
    return datetime.now(UTC) >= moment


def test_both_workers_record_while_a_merchant_watches_and_neither_before_nor_after(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with serving(sqlite_database.url, folder=tmp_path) as server:
        house, connection = server.house, server.connection
        now = datetime.now(UTC)
        for until in (None, now + timedelta(minutes=10), now - timedelta(seconds=1)):
            with house.services.database.write() as tx:
                house.services.connections.inspect(tx, connection.id, until=until)
            changed = datetime.now(UTC)
            wait_for(partial(_has_passed, changed + KNOWN_FOR), "the clock stands still")
            for _ in range(20):
                assert house.lookup(connection, JANE).json()["points_balance"] == 100
            if until is not None and until > now:
                wait_for(lambda: len(inspected(house.services.database, connection.id)) == 20, "not all were recorded")
        assert server.log.read_text().count('"event":"lookup"') == 60
    recorded = inspected(sqlite_database, connection.id)
    assert {(request.outcome, request.status) for request in recorded} == {("found", 200)}
    assert len(recorded) == 20
