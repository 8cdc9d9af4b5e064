"""Databases of any size, filled by SQL: what the application would write, without its transactions one by one.

Everything in them is made up. E-mails are found by real HMACs and keys by real hashes, so that a card costs what it
costs; what is only carried along (a member's sealed e-mail, which no card opens) is one constant of the usual length.
"""

from __future__ import annotations

import hmac
import json
import os
from base64 import b32encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Table, make_url

from loyalty.ledger import Kind, identity_for
from loyalty.program import SHOWN_ACTIVITY, Activity, Member, MemberStatus, ProgramKind
from loyalty.snapshots import Known, _shown
from oauth.accounts import AccountState
from storage.database import Database
from storage.sealing import Hasher, Sealer, hash_of, load_root_key
from storage.tables import (
    EPOCH,
    MICROSECOND,
    accounts,
    connection_keys,
    connections,
    ledger_entries,
    ledger_transactions,
    members,
    metadata,
    snapshots,
    stores,
)
from tests.databases import FIRST_KEY, migrate
from widget.connections import ConnectionState, KeyPurpose

UNLIMITED = 2_000_000_000
POINTS = 10


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A filled database. Its `folder` is for what servers of it write, such as their logs.

    Every connection has a store of its own with the same `members`: e-mails `member-1@bench.example` and so on.
    `email_key` is what their HMACs are made with.
    """

    url: str
    folder: Path
    connection_ids: Sequence[int]
    members: int
    email_key: bytes = field(repr=False)


def email(number: int) -> str:
    """The e-mail of a member, from 1."""
    return f"member-{number}@bench.example"


def lookup_key(number: int) -> str:
    """The key of the card of a connection, from 1. In a Shape: `tdl_{k:064x}`."""
    return f"tdl_{number:064x}"


def award_key(number: int) -> str:
    """The key of the button of a connection, from 1. In a Shape: `tda_{k:064x}`."""
    return f"tda_{number:064x}"


def rivo_key(number: int) -> str:
    """The key of the Rivo store of a connection, from 1."""
    return f"bench-rivo-{number:020d}"


def fill(
    database_url: str,
    *,
    members: int,
    activity: int = 3,
    connections: int = 1,
    snapshots: bool = False,
    as_of: datetime | None = None,
    folder: Path | None = None,
) -> Filled:
    """Migrate an empty database and fill it: `connections`, each with a store that has `members`.

    The stores are ledgers with `activity` transactions for each member; with `snapshots`, Rivo stores whose members
    were read at `as_of` (else: now). `folder` must be given where the database is no file.
    """
    database = Database(database_url)
    try:
        migrate(database)
        sealer = Sealer((FIRST_KEY,))
        root = load_root_key(database, sealer=sealer, random_bytes=os.urandom)
        rows = _Rows(
            hasher=Hasher(lambda: root),
            sealer=sealer,
            members=members,
            activity=activity,
            connections=connections,
            snapshots=snapshots,
            at=as_of or datetime.now(UTC),
        )
        _load(database, rows.tables())
    finally:
        database.close()
    if folder is None:
        assert database.sqlite, "a database that is no file needs a folder for its servers' logs"
        folder = Path(make_url(database_url).database or "").resolve().parent
    return Filled(
        url=database_url,
        folder=folder,
        connection_ids=range(1, connections + 1),
        members=members,
        email_key=hmac.digest(root, b"email", "sha256"),
    )


Rows = tuple[Table, Sequence[str], Iterable[tuple[Any, ...]]]


class _Rows:
    def __init__(
        self,
        *,
        hasher: Hasher,
        sealer: Sealer,
        members: int,
        activity: int,
        connections: int,
        snapshots: bool,
        at: datetime,
    ) -> None:
        self._hasher = hasher
        self._sealer = sealer
        self._members = members
        self._activity = activity
        self._connections = range(1, connections + 1)
        self._snapshots = snapshots
        self._at = (at - EPOCH) // MICROSECOND
        # A Fernet token is as long for every e-mail of up to 31 bytes, and no card and no award opens this one.
        self._sealed = sealer.seal("somebody@bench.example")
        self._time = at

    def tables(self) -> Iterator[Rows]:
        """What goes into which columns of which table, in an order that foreign keys allow."""
        yield (
            accounts,
            _ACCOUNT,
            ((k, f"bench-{k}", AccountState.CONNECTED, *self._tokens()) for k in self._connections),
        )
        yield stores, _STORE, map(self._store, self._connections)
        yield connections, _CONNECTION, map(self._connection, self._connections)
        yield connection_keys, _KEY, self._keys()
        if self._snapshots:
            yield snapshots, _SNAPSHOT, self._snapshot_rows()
            return
        yield members, _MEMBER, self._member_rows()
        yield ledger_transactions, _TRANSACTION, self._transaction_rows()
        yield ledger_entries, _ENTRY, self._entry_rows()

    def _tokens(self) -> tuple[Any, ...]:
        later = self._at + timedelta(days=1) // MICROSECOND
        return self._sealed, self._sealed, later, later, self._at, self._at

    def _store(self, k: int) -> tuple[Any, ...]:
        if not self._snapshots:
            return k, ProgramKind.LEDGER, identity_for(f"bench-{k}"), None, self._at
        key = rivo_key(k)
        identity = f"{ProgramKind.RIVO}:bench-{k}:{self._hasher.program_key(key)}"
        return k, ProgramKind.RIVO, identity, self._sealer.seal(key), self._at

    def _connection(self, k: int) -> tuple[Any, ...]:
        limits = (UNLIMITED, UNLIMITED, UNLIMITED)
        return k, k, k, ConnectionState.ACTIVE, *limits, "[]", "[]", False, False, self._at

    def _keys(self) -> Iterator[tuple[Any, ...]]:
        for k in self._connections:
            for purpose, key in ((KeyPurpose.LOOKUP, lookup_key(k)), (KeyPurpose.AWARD, award_key(k))):
                yield k, purpose, hash_of(key), self._sealer.seal(key), self._at

    def _member_rows(self) -> Iterator[tuple[Any, ...]]:
        balance = self._activity * POINTS
        shown = [[self._at, what, POINTS] for _, what in self._turns()[-SHOWN_ACTIVITY:]]
        latest = json.dumps(shown, separators=(",", ":"))
        for k in self._connections:
            for n in range(1, self._members + 1):
                number = self._number(k, n)
                code = b32encode(number.to_bytes(10)).decode().lower()
                found_by = self._hasher.email(email(n))
                yield (
                    *(number, k, found_by, self._sealed, MemberStatus.MEMBER, code),
                    *(balance, balance, latest, self._at, self._at),
                )

    def _transaction_rows(self) -> Iterator[tuple[Any, ...]]:
        """One round of transactions after the other: a member's lie apart in the table, as they do in time."""
        number = 0
        for kind, what in self._turns():
            for k in self._connections:
                for n in range(1, self._members + 1):
                    number += 1
                    yield number, k, self._number(k, n), f"bench:{number}", kind, what, POINTS, self._at

    def _turns(self) -> list[tuple[Kind, str]]:
        """Of which kind each member's transactions are, and what they say."""
        return [
            (Kind.AWARD, "Late delivery") if turn else (Kind.OPENING, "Opening balance")
            for turn in range(self._activity)
        ]

    def _entry_rows(self) -> Iterator[tuple[Any, ...]]:
        number = 0
        for _ in range(self._activity):
            for k in self._connections:
                for n in range(1, self._members + 1):
                    number += 1
                    yield number, None, "debit", POINTS
                    yield number, self._number(k, n), "credit", POINTS

    def _number(self, k: int, n: int) -> int:
        """The id of member `n` in the store of connection `k`."""
        return (k - 1) * self._members + n

    def _snapshot_rows(self) -> Iterator[tuple[Any, ...]]:
        shown = json.dumps(_shown(self._member(), self._member().recent_activity))
        for k in self._connections:
            for n in range(1, self._members + 1):
                yield k, self._hasher.email(email(n)), Known.FOUND, self._sealed, shown, self._at, self._at

    def _member(self) -> Member:
        """What Rivo tells of somebody; the same of everybody."""
        return Member(
            email="",
            status=MemberStatus.MEMBER,
            points_balance=1_234,
            as_of=self._time,
            lifetime_points=2_345,
            vip_tier_name="Gold",
            referral_url="https://bench.example/referral/abcdefgh",
            recent_activity=tuple(
                Activity(when=self._time - timedelta(days=day), what="Late delivery", points=POINTS)
                for day in range(self._activity)
            ),
        )


_ACCOUNT = (
    *("id", "name", "state", "access_token_sealed", "refresh_token_sealed"),
    *("access_expires_at", "refresh_at", "connected_at", "updated_at"),
)
_STORE = ("id", "program", "identity", "key_sealed", "created_at")
_CONNECTION = (
    *("id", "account_id", "store_id", "state"),
    *("max_points_per_award", "max_points_per_agent_per_day", "max_points_per_day"),
    *("reasons", "presets", "allow_guests", "show_date_of_birth", "created_at"),
)
_KEY = ("connection_id", "purpose", "key_hash", "key_sealed", "created_at")
_MEMBER = (
    *("id", "store_id", "email_hmac", "email_sealed", "status", "referral_code"),
    *("balance", "lifetime_points", "latest_activity", "created_at", "updated_at"),
)
_TRANSACTION = ("id", "store_id", "member_id", "operation_id", "kind", "what", "points", "created_at")
_ENTRY = ("transaction_id", "member_id", "side", "points")
_SNAPSHOT = ("store_id", "email_hmac", "state", "email_sealed", "shown", "as_of", "touched_at")


def _load(database: Database, tables: Iterable[Rows]) -> None:
    """Everything in one transaction."""
    raw = database.engine.raw_connection()
    driver: Any = raw.driver_connection
    try:
        cursor = driver.cursor()
        if database.sqlite:
            # For the time of filling alone: what is cut off is filled anew.
            for pragma in ("synchronous=OFF", "foreign_keys=OFF", "cache_size=-1000000", "wal_autocheckpoint=0"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.execute("BEGIN")
        else:
            cursor.execute("SET statement_timeout = 0")
        for table, names, rows in tables:
            columns = ", ".join(names)
            if database.sqlite:
                marks = ", ".join("?" * len(names))
                cursor.executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", rows)
            else:
                with cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
        if not database.sqlite:
            _continue_counting(cursor)
        driver.commit()
        if database.sqlite:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        else:
            driver.autocommit = True
            # As autovacuum would in time: the planner knows the sizes.
            cursor.execute("VACUUM ANALYZE")
    finally:
        # With its settings of the filling it must not go back into the pool.
        raw.invalidate()
        raw.close()


def _continue_counting(cursor: Any) -> None:
    """New rows get ids after those that were given."""
    for table in metadata.sorted_tables:
        if "id" not in table.c or not table.c.id.primary_key:
            continue
        sequence = cursor.execute("SELECT pg_get_serial_sequence(%s, 'id')", (table.name,)).fetchone()[0]
        if sequence is not None:
            cursor.execute(
                f"SELECT setval(%s, (SELECT coalesce(max(id), 0) + 1 FROM {table.name}), false)", (sequence,)
            )
