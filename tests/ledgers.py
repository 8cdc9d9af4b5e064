"""An embedded ledger with members, for tests of everything that stands on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

from sqlalchemy import Connection, insert

from loyalty.ledger import Kind, Ledger, book, identity_for, new_referral_code, open_store
from loyalty.program import MemberStatus, NewPointsEvent, Store
from storage.database import Database
from storage.sealing import RandomBytes, Sealer, load_hasher
from storage.tables import members
from tests.databases import Clock

PUBLIC_URL = "http://localhost:8000"


class LedgerRoom:
    """A ledger program in `database`, with the stores of two helpdesk accounts."""

    def __init__(self, database: Database, *, sealer: Sealer, clock: Clock, random_bytes: RandomBytes) -> None:
        self.database = database
        self.sealer = sealer
        self.clock = clock
        self.random_bytes = random_bytes
        self.hasher = load_hasher(database, sealer=sealer, random_bytes=random_bytes)
        # Makes the root key now: the first HMAC of a new database must not fall inside a write transaction.
        self.hasher.email("")
        self.program = Ledger(database, sealer=sealer, hasher=self.hasher, public_url=PUBLIC_URL, now=clock)
        with database.write() as tx:
            self.store = open_store(tx, identity=identity_for("acme"), now=clock())
            self.other_store = open_store(tx, identity=identity_for("other"), now=clock())
        self._awards = 0

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction as callers of `add_points` hold one."""
        with self.database.write() as tx:
            yield tx

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass for the program."""
        self.clock.advance(seconds)

    def hmac(self, email: str) -> str:
        """What the program finds `email` by."""
        return self.hasher.email(email)

    def enrol(
        self,
        store: Store,
        *,
        email: str,
        status: MemberStatus = MemberStatus.MEMBER,
        points: int = 0,
        date_of_birth: date | None = None,
    ) -> int:
        """Make a member who has earned `points`; returns the id."""
        born = None if date_of_birth is None else self.sealer.seal(date_of_birth.isoformat())
        with self.database.write() as tx:
            member_id: int = tx.execute(
                insert(members)
                .values(
                    store_id=store.id,
                    email_hmac=self.hasher.email(email),
                    email_sealed=self.sealer.seal(email),
                    status=status,
                    date_of_birth_sealed=born,
                    referral_code=new_referral_code(self.random_bytes),
                    balance=0,
                    lifetime_points=0,
                    created_at=self.clock(),
                    updated_at=self.clock(),
                )
                .returning(members.c.id)
            ).scalar_one()
            if points:
                book(
                    tx,
                    store_id=store.id,
                    member_id=member_id,
                    operation_id=f"opening:{member_id}",
                    kind=Kind.OPENING,
                    points=points,
                    what="Opening balance",
                    now=self.clock(),
                )
        return member_id

    def award(
        self,
        email: str,
        points: int,
        *,
        operation_id: str | None = None,
        reverses: str | None = None,
        what: str = "Goodwill",
    ) -> int:
        """Add points in a transaction of its own; returns the new balance."""
        self._awards += 1
        event = NewPointsEvent(
            operation_id=operation_id or f"award-{self._awards}",
            email=email,
            points=points,
            what=what,
            reverses=reverses,
        )
        with self.database.write() as tx:
            balance = self.program.add_points(self.store, event=event, within=tx).points_balance
        assert balance is not None
        return balance
