"""The rows of an award and nothing else: transactions by hand, one after the other, as durable as the product's.

`python -m bench.baselines.bare_awards` reads an order as JSON on standard input (`url` of a filled database, `members`,
`connections`, `ticket`, `seconds`, `seed`), and prints how many transactions a second there were. It writes what the
product has written when an award is done, in the last state at once; it checks and reads nothing, and seals nothing.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import psycopg

AWARD = (
    "INSERT INTO awards (operation_id, store_id, connection_id, state, member_hmac, member_email_sealed, points, "
    "credit_cents, reason, channel, ticket_id, agent_hmac, agent_email_sealed, agent_proof, fingerprint, "
    "balance_after, created_at, settled_at, settled_by, key_version, sends, looks, note_state, note_attempts, "
    "note_due_at) VALUES (?, ?, ?, 'applied', ?, ?, ?, 0, 'Late delivery', 'button', ?, ?, ?, 'claimed', ?, ?, ?, ?, "
    "'answer', 0, 0, 0, ?, 0, ?)"
)
TRANSACTION = (
    "INSERT INTO ledger_transactions (store_id, member_id, operation_id, kind, what, points, created_at) "
    "VALUES (?, ?, ?, 'award', 'Late delivery', ?, ?) RETURNING id"
)
ENTRIES = (
    "INSERT INTO ledger_entries (transaction_id, member_id, side, points) VALUES (?, NULL, 'debit', ?), "
    "(?, ?, 'credit', ?)"
)
MEMBER = (
    "UPDATE members SET balance = balance + ?, lifetime_points = lifetime_points + ?, updated_at = ?, "
    "latest_activity = json_remove(json_insert(latest_activity, '$[#]', json_array(?, 'Late delivery', ?)), "
    "CASE WHEN json_array_length(latest_activity) >= 5 THEN '$[0]' ELSE '$[5]' END) WHERE id = ? RETURNING balance"
)
MEMBER_ON_POSTGRESQL = (
    "UPDATE members SET balance = balance + ?, lifetime_points = lifetime_points + ?, updated_at = ?, "
    "latest_activity = CASE WHEN jsonb_array_length(latest_activity) >= 5 THEN latest_activity - 0 "
    "ELSE latest_activity END || jsonb_build_array(jsonb_build_array(?::bigint, 'Late delivery', ?::bigint)) "
    "WHERE id = ? RETURNING balance"
)
JOB = "INSERT INTO jobs (name, ref, run_at) VALUES ('award_settled', ?, ?)"
JOB_ON_POSTGRESQL = (
    "INSERT INTO procrastinate_jobs (task_name, lock, queue_name, args, scheduled_at) "
    "VALUES ('award_settled', ?, 'tallydesk', ?::jsonb, now())"
)
# A Fernet token of an address as long as the made-up ones, an HMAC and a hash, as long as they are.
SEALED, HMAC, HASH = "g" * 120, "a" * 32, "f" * 64
POINTS = 10

Execute = Callable[[str, Sequence[Any]], Any]


def main() -> None:
    """Carry out the order."""
    order = json.load(sys.stdin)
    url = order.pop("url")
    run = _on_sqlite if url.startswith("sqlite") else _on_postgresql
    print(json.dumps(run(url, **order)))


def _on_sqlite(url: str, **asked: Any) -> dict[str, float]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=5)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    execute = connection.execute
    begin = partial(execute, "BEGIN IMMEDIATE")
    return _measured(execute, begin=begin, commit=connection.commit, member=MEMBER, job=JOB, **asked)


def _on_postgresql(url: str, **asked: Any) -> dict[str, float]:
    connection = psycopg.connect(url.replace("postgresql+psycopg:", "postgresql:"), prepare_threshold=1)
    cursor = connection.cursor()

    def execute(sql: str, values: Sequence[Any] = ()) -> Any:
        return cursor.execute(sql.replace("?", "%s").encode(), values)

    # psycopg begins a transaction with its first statement.
    return _measured(
        execute,
        begin=lambda: None,
        commit=connection.commit,
        member=MEMBER_ON_POSTGRESQL,
        job=JOB_ON_POSTGRESQL,
        **asked,
    )


def _measured(
    execute: Execute,
    *,
    begin: Callable[[], Any],
    commit: Callable[[], None],
    member: str,
    job: str,
    members: int,
    connections: int,
    ticket: bool,
    seconds: float,
    seed: int,
) -> dict[str, float]:
    random = Random(seed)
    # No two of these are alike, in this run or another.
    prefix = secrets.token_hex(6)
    took: list[float] = []
    began = now = time.perf_counter()
    while now < began + seconds:
        number = len(took)
        k, n = random.randint(1, connections), random.randint(1, members)
        member_id = (k - 1) * members + n
        operation_id = f"td_{prefix}{number:012d}"
        at = time.time_ns() // 1000
        begin()
        [balance] = execute(member, (POINTS, POINTS, at, at, POINTS, member_id)).fetchone()
        [transaction_id] = execute(TRANSACTION, (k, member_id, operation_id, POINTS, at)).fetchone()
        execute(ENTRIES, (transaction_id, POINTS, transaction_id, member_id, POINTS))
        who = (HMAC[:20] + f"{member_id:012d}", SEALED, POINTS, f"{number}" if ticket else "", HMAC, SEALED, HASH)
        note = ("due", at) if ticket else ("none", None)
        execute(AWARD, (operation_id, k, k, *who, balance, at, at, *note))
        if ticket:
            execute(job, (operation_id, at) if job == JOB else (operation_id, json.dumps({"ref": operation_id})))
        commit()
        before, now = now, time.perf_counter()
        took.append(now - before)
    took.sort()
    return {
        "count": len(took),
        "per_s": len(took) / (now - began),
        "p50_ms": 1000 * took[len(took) // 2],
        "p99_ms": 1000 * took[min(len(took) - 1, len(took) * 99 // 100)],
        "max_ms": 1000 * took[-1],
    }


if __name__ == "__main__":
    main()
