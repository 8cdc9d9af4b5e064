"""A store of the sandbox's Rivo with one member, its card and its button, for tests that press it in every way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import requests
from sqlalchemy import func, select, update

from loyalty.awards import AwardRefused, AwardResult, Origin, Rules
from loyalty.journal import AwardState
from loyalty.ledger import identity_for, open_store
from loyalty.program import ProgramUnavailable
from loyalty.rivo_wire import read_internal_note
from sandbox.faults import Fault
from sandbox.rivo import RivoStore
from storage.tables import awards, connections, snapshots
from tests.awards_elsewhere.door import Door
from tests.databases import Clock
from tests.house import House, running_house
from widget.connections import Connection

ANA = "ana@example.com"
CUSTOMERS = r"/merchant_api/v1/customers/.*"
EVENTS = "/merchant_api/v1/points_events"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """What an agent has before them, and what Rivo has in its book."""

    house: House
    connection: Connection
    name: str = "northwind"

    @property
    def clock(self) -> Clock:
        return self.house.clock

    @property
    def rivo(self) -> RivoStore:
        store: RivoStore = self.house.sandbox.rivo(self.name)
        return store

    # -- the card and the button

    def card(self, email: str = ANA) -> dict[str, Any]:
        """The card; looked up as Gorgias does."""
        answer = self.house.lookup(self.connection, email)
        assert answer.status_code == 200, answer.text
        card: dict[str, Any] = answer.json()
        return card

    def refreshed(self, email: str = ANA) -> dict[str, Any]:
        """The card once what a stale one started behind itself has ended."""
        self.card(email)
        self.settle()
        card = self.card(email)
        # It may have been stale still, and have started the next one.
        self.settle()
        return card

    def settle(self) -> None:
        """Wait until nothing is being refreshed."""
        self.house.services.members.settle(20)

    def press(self, points: Any = 50, *, email: str = ANA, ticket_id: Any = 7, **fields: Any) -> requests.Response:
        return self.house.award(self.connection, {"email": email, "points": points, "ticket_id": ticket_id, **fields})

    def credit(self, amount: Any = "5.00", *, email: str = ANA, ticket_id: Any = 7, **fields: Any) -> requests.Response:
        """Press the button for store credit."""
        asked = {"email": email, "store_credit": amount, "ticket_id": ticket_id, **fields}
        return self.house.award(self.connection, asked)

    def applied(self, points: Any = 50, **fields: Any) -> str:
        """A press that must be applied at once; the operation id."""
        answer = self.press(points, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "applied"
        operation_id: str = answer.json()["operation_id"]
        return operation_id

    def queued(self, points: Any = 50, **fields: Any) -> str:
        """A press that must end in being confirmed; the operation id."""
        answer = self.press(points, **fields)
        assert answer.status_code == 202, answer.text
        assert answer.json()["status"] == "being_confirmed"
        operation_id: str = answer.json()["operation_id"]
        return operation_id

    def undo(self, operation_id: str, *, connection: Connection | None = None) -> AwardResult | str:
        """The undo's result, or the reason word of why it was refused."""
        origin = Origin(
            connection_id=(connection or self.connection).id,
            channel="console",
            agent_email="admin@example.com",
            agent_proven=True,
        )
        try:
            return self.house.services.awards.undo(operation_id=operation_id, origin=origin)
        except (AwardRefused, ProgramUnavailable) as error:
            return error.reason.value

    def rule(self, **values: Any) -> None:
        """Change a setting of the connection."""
        with self.house.services.database.write() as tx:
            tx.execute(update(connections).where(connections.c.id == self.connection.id).values(values))

    # -- trouble and time

    def fault(self, kind: str, *, path: str = EVENTS, method: str | None = "POST", **more: Any) -> Fault:
        """Order trouble at Rivo, by default with the next award."""
        return self.house.sandbox.faults.add(path=path, method=method, account="rivo", kind=kind, **more)

    def mend(self) -> None:
        """No more trouble."""
        self.house.sandbox.faults.clear()

    def work(self, seconds: float, *, step_s: float = 5) -> None:
        """Let time pass with a worker at work."""
        passed = 0.0
        while passed < seconds:
            self.clock.advance(step_s)
            passed += step_s
            self.house.work()

    # -- the truth

    def calls(self, path: str = CUSTOMERS, method: str = "GET") -> int:
        """How often Rivo was called so."""
        return len(self.house.sandbox.requests.filter(account="rivo", path=path, method=method))

    def all_calls(self) -> int:
        """How often Rivo was called at all."""
        return len(self.house.sandbox.requests.filter(account="rivo"))

    def book(self, email: str = ANA) -> list[tuple[str, int, Decimal]]:
        """Our points events in Rivo's book, oldest first: operation id, points, store credit."""
        found = [(read_internal_note(event["internal_note"] or ""), event) for event in self.rivo.events(email)]
        return [
            (note[0], event["points_diff"], Decimal(event["credits_diff"])) for note, event in found if note is not None
        ]

    def row(self, operation_id: str) -> Any:
        """The journal's row."""
        with self.house.services.database.read() as tx:
            return tx.execute(select(awards).where(awards.c.operation_id == operation_id)).one()

    def state(self, operation_id: str) -> AwardState:
        """Where an award stands."""
        return AwardState(self.row(operation_id).state)

    def awards(self) -> int:
        """How many awards the journal has."""
        with self.house.services.database.read() as tx:
            return tx.scalar(select(func.count()).select_from(awards)) or 0

    def snapshot(self, email: str = ANA) -> Any:
        """What is kept of a member, or None."""
        with self.house.services.database.read() as tx:
            return tx.execute(
                select(snapshots).where(
                    snapshots.c.store_id == self.connection.store.id,
                    snapshots.c.email_hmac == self.house.services.hasher.email(email),
                )
            ).one_or_none()


def ledger_connection(house: House, account: str = "acme") -> Connection:
    """A connection of `account`, which has one already, to the built-in ledger."""
    services = house.services
    found = services.accounts.named(account)
    assert found is not None
    with services.database.write() as tx:
        store = open_store(tx, identity=identity_for(account), now=house.clock())
        connection_id = services.connections.open(
            tx,
            account_id=found.id,
            store=store,
            rules=Rules(max_points_per_award=1_000, max_points_per_agent_per_day=10_000, max_points_per_day=50_000),
        )
    opened = services.connections.by_id(connection_id)
    assert opened is not None
    return opened


def wait_until(there: Callable[[], bool], *, within_s: float = 20) -> None:
    """Wait for something that another thread brings about."""
    ends = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.005)


@contextmanager
def running_shop(database_url: str, *, clock: Clock, door: Door | None = None, **overrides: Any) -> Iterator[Shop]:
    """A running house with a connection to northwind, where Ana is a member with 100 points and 25.00 of credit.

    `overrides` are for `running_house`. With `door`, Rivo is reached through it.
    """
    if door is not None:
        overrides["rivo_url"] = door.url
    with running_house(database_url, clock=clock, **overrides) as house:
        if door is not None:
            door.lead_to(house.sandbox.url)
        shop = Shop(house=house, connection=house.open_rivo())
        shop.rivo.add_customer(ANA, points=100, credits="25.00", tier="Gold", referral_code="ana-1")
        try:
            yield shop
        finally:
            # Nothing may still be asking when the database is closed.
            shop.mend()
            shop.settle()
