"""The parts of the benchmark do what they are said to do: what is compared is comparable. No timing is a test."""

from __future__ import annotations

import http.client
import itertools
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from bench import awards as award_section
from bench import imports, store
from bench.__main__ import measure
from bench.baselines.bare_awards import POINTS
from bench.pace import Pace
from bench.program import Program, program
from loyalty.awards import AwardRequest, Origin, Rules, Status
from loyalty.ledger import verify
from loyalty.program import ProgramKind, Store
from services import build_services
from settings import load
from storage.database import Database
from storage.tables import awards, jobs, ledger_entries, ledger_transactions, members
from tests.processes.serving import environment

RULES = Rules(max_points_per_award=1_000, max_points_per_agent_per_day=10_000, max_points_per_day=50_000)


def test_the_program_answers_when_it_is_told_to_and_counts_its_calls(tmp_path: Path) -> None:
    with program(tmp_path) as rivo:
        assert b'"ana@example.com"' in _asked(rivo, "/customers/ana%40example.com")
        assert rivo.calls() == 1
        rivo.hang()
        with pytest.raises(TimeoutError):
            _asked(rivo, "/customers/ben%40example.com", within_s=0.2)
        rivo.answer_after(0.0)
        assert b'"data"' in _asked(rivo, "/points_events?filters[customer_identifier]=ana%40example.com")
        assert rivo.calls() == 3


def _asked(rivo: Program, path: str, *, within_s: float = 10.0) -> bytes:
    client = http.client.HTTPConnection("127.0.0.1", rivo.port, timeout=within_s)
    try:
        client.request("GET", path)
        return client.getresponse().read()
    finally:
        client.close()


@pytest.mark.parametrize("ticket", [True, False])
def test_bare_awards_write_the_same_rows_as_the_product(database: Database, tmp_path: Path, *, ticket: bool) -> None:
    filled = store.fill(database.url, members=3, folder=tmp_path)
    services = build_services(load(environment(database.url, port=1, folder=tmp_path), var=tmp_path))
    origin = Origin(
        connection_id=1, channel="button", ticket_id="7" if ticket else "", agent_email="agent-1@bench.example"
    )
    request = AwardRequest(emails=(store.email(1),), points=POINTS, reason="Late delivery", origin=origin)
    result = services.awards.award(Store(id=1, program=ProgramKind.LEDGER), request=request, rules=RULES)
    assert result.status is Status.APPLIED
    services.database.close()
    done = award_section.bare(filled.url, members=3, ticket=ticket, seconds=0.01, seeds=itertools.count(1), stores=1)

    with database.read() as tx:
        assert list(verify(tx)) == []
        rows = [dict(row._mapping) for row in tx.execute(select(awards))]
        assert tx.scalar(select(func.count()).select_from(jobs)) == (len(rows) if ticket else 0)
    [ours] = [row for row in rows if row["operation_id"] == result.operation_id]
    bare = [row for row in rows if row["operation_id"] != result.operation_id]
    assert len(bare) == done.count > 0
    for row in bare:
        assert _shape_of(row) == _shape_of(ours)


def _shape_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in every such award: words as they are, of everything else the kind, and how long it is."""
    differing = {"operation_id", "member_hmac", "member_email_sealed", "agent_hmac", "agent_email_sealed"}
    shape: dict[str, Any] = {}
    for name, value in row.items():
        if name in (*differing, "fingerprint"):
            shape[name] = len(value) // 16
        elif name in ("balance_after", "ticket_id") or isinstance(value, datetime):
            shape[name] = bool(value)
        else:
            shape[name] = value
    return shape


def test_the_plain_import_writes_what_the_command_writes(tmp_path: Path) -> None:
    file = tmp_path / "customers.csv"
    imports.write_export(file, rows=25)
    found = []
    for start in (imports.start_command, imports.start_plain):
        filled = store.fill(f"sqlite:///{tmp_path}/{start.__name__}.db", members=0)
        process = start(filled, file)
        told, errors = process.communicate()
        assert process.returncode == 0, (told, errors)
        found.append(_rows_of(filled, without=("id", "email_hmac")))
    assert found[0] == found[1]
    assert len(found[0][0]) == 25


def _rows_of(filled: store.Filled, *, without: tuple[str, ...]) -> tuple[list[Any], list[Any], list[Any]]:
    """Members, transactions and entries, without what is random or the time. E-mails have keys of their own here."""
    random = {"email_sealed", "referral_code", "created_at", "updated_at", "transaction_id", *without}
    database = Database(filled.url)
    try:
        with database.read() as tx:
            assert list(verify(tx)) == []
            booked = select(ledger_transactions.c.operation_id, ledger_entries).join(
                ledger_transactions, ledger_transactions.c.id == ledger_entries.c.transaction_id
            )
            queries = (
                select(members).order_by(members.c.id),
                select(ledger_transactions).order_by(ledger_transactions.c.operation_id),
                booked.order_by(ledger_transactions.c.operation_id, ledger_entries.c.side),
            )
            whole = [
                [{k: v for k, v in row._mapping.items() if k not in random} for row in tx.execute(query)]
                for query in queries
            ]
            for member in whole[0]:
                member["latest_activity"] = [entry[1:] for entry in member["latest_activity"]]
    finally:
        database.close()
    return whole[0], whole[1], whole[2]


@pytest.mark.parametrize(
    ("section", "targets"),
    [
        ("slow_program", {4, 5}),
        ("calls", {6}),
        ("awards", {7}),
        ("journal", {8}),
        ("growth", {9}),
        ("imports", {10}),
    ],
)
def test_a_short_run_of_a_section_runs(section: str, targets: set[int], tmp_path: Path) -> None:
    """Real servers, real loads, every subject."""
    document = tmp_path / "benchmarks.md"
    measure([section], pace=Pace(quick=True, rounds=1, seconds=0.1, members=640), document=document)
    told = document.read_text().partition("## Targets")[2].partition("## ")[0]
    assert {int(target) for target in re.findall(r"(?m)^\| (\d+) \| ", told)} == targets
