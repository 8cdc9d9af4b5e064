"""Every way a connection can break, in every phase of talking to Rivo: what agents see, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import count
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import select

from loyalty import delivery, gate, members, rivo_program
from loyalty.journal import UNSETTLED
from loyalty.program import ProgramError
from storage.tables import awards
from tests.databases import Clock
from tests.house import House, running_house
from tests.reliability.proxy import Break, Proxy
from widget.connections import Connection

BASE = "/rivo/merchant_api/v1"
CUSTOMER, POINTS, TIERS = rf"{BASE}/customers/.*", rf"{BASE}/points_events", rf"{BASE}/vip_tiers"
# In place of 7, 8 and 15 seconds, where nobody wants to know how long it takes.
SHORT_S = 0.5


class Phase(StrEnum):
    """What Tallydesk is doing when the connection breaks."""

    CARD = "reading a member for a card"
    AWARD = "sending an award"
    READ_BACK = "reading the balance after an award"
    PROBE = "looking for an award in doubt"
    KEY = "trying a key on connecting"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What happened: seen at once, the award's states on the way, and what is in Rivo's book at the end."""

    seen: str
    states: tuple[str, ...] = ()
    sends: int = 0
    events: int | None = None
    seconds: float = 0.0

    def words(self) -> str:
        """Without the time, which differs from run to run."""
        parts = [self.seen]
        if self.states:
            parts.append(" → ".join(self.states))
        if self.events is not None:
            parts.append(f"sent {self.sends}×, {self.events} in the book")
        return "; ".join(parts)

    def told(self) -> dict[str, Any]:
        """For a file."""
        return {"words": self.words(), **asdict(self)}


class Rig:
    """The product, a Rivo, and the proxy between them."""

    def __init__(self, house: House, proxy: Proxy, connection: Connection) -> None:
        self.house = house
        self.proxy = proxy
        self.connection = connection
        self._numbers = count(1)
        self._store = house.sandbox.rivo("northwind")

    def cell(self, phase: Phase, kind: Break) -> Cell:
        """Break it, look, mend it, and look again. Raises AssertionError where a promise was not kept."""
        # The breaker is closed again, and no kept connection is young enough to be used.
        self.house.clock.advance(300)
        email = f"ana{next(self._numbers)}@example.com"
        self._store.add_customer(email, points=100)
        stories: dict[Phase, Callable[[Break, str], Cell]] = {
            Phase.CARD: self._card,
            Phase.AWARD: self._award,
            Phase.READ_BACK: self._read_back,
            Phase.PROBE: self._probe,
            Phase.KEY: self._key,
        }
        try:
            return stories[phase](kind, email)
        finally:
            self.proxy.calm()

    def _card(self, kind: Break, email: str) -> Cell:
        self.proxy.order(kind, method="GET", path=CUSTOMER)
        began = monotonic()
        answer = self.house.lookup(self.connection, email)
        seconds = monotonic() - began
        assert answer.status_code == 200
        shown = answer.json()
        assert shown["loyalty_status"] in ("Member", "Temporarily unavailable")
        assert seconds < self.house.services.settings.card_deadline_s + 2
        self.proxy.calm()
        self.house.clock.advance(300)
        self._settle_cards()
        assert self.house.lookup(self.connection, email).json()["points_balance"] == 100
        return Cell(seen=f"200 {shown['loyalty_status']}", seconds=seconds)

    def _award(self, kind: Break, email: str) -> Cell:
        self._know(email)
        self.proxy.order(kind, method="POST", path=POINTS)
        return self._follow(email)

    def _read_back(self, kind: Break, email: str) -> Cell:
        self._know(email)
        self.proxy.order(kind, method="GET", path=CUSTOMER, after=("POST", POINTS))
        return self._follow(email)

    def _probe(self, kind: Break, email: str) -> Cell:
        self._know(email)
        self.proxy.order(Break.RESET_AFTER, method="POST", path=POINTS)
        operation_id = self._press(email)[1]
        self.proxy.calm()
        assert self._state(operation_id) == "unknown"
        self.proxy.order(kind, method="GET", path=POINTS)
        self.house.clock.advance(3)
        began = monotonic()
        self.house.work()
        seconds = monotonic() - began
        met = self._state(operation_id)
        self._recover()
        return self._end(email, operation_id, seen="202 being_confirmed", states=("unknown", met), seconds=seconds)

    def _key(self, kind: Break, email: str) -> Cell:
        self.proxy.order(kind, method="GET", path=TIERS)
        services, key = self.house.services, self._store.key
        gate_name = services.stores.gate_of(self.connection.store.program, key)
        began = monotonic()
        try:
            services.rivo.try_key(key, gate=gate_name)
            seen = "taken"
        except ProgramError as error:
            seen = f"not taken: {error.reason}"
        seconds = monotonic() - began
        self.proxy.calm()
        self.house.clock.advance(300)
        services.rivo.try_key(key, gate=gate_name)
        return Cell(seen=seen, seconds=seconds)

    # -- within

    def _know(self, email: str) -> None:
        assert self.house.lookup(self.connection, email).json()["points_balance"] == 100
        self._settle_cards()

    def _settle_cards(self) -> None:
        self.house.services.members.settle(20)

    def _press(self, email: str) -> tuple[str, str, float]:
        began = monotonic()
        answer = self.house.award(self.connection, {"email": email, "points": 50})
        seconds = monotonic() - began
        told = answer.json()
        assert answer.status_code in (200, 202), told
        assert seconds < 10
        return f"{answer.status_code} {told['status']}", told["operation_id"], seconds

    def _follow(self, email: str) -> Cell:
        seen, operation_id, seconds = self._press(email)
        at_once = self._state(operation_id)
        self._recover()
        return self._end(email, operation_id, seen=seen, states=(at_once,), seconds=seconds)

    def _recover(self) -> None:
        self.proxy.calm()
        for _ in range(40):
            self.house.clock.advance(5)
            self.house.work()

    def _end(self, email: str, operation_id: str, *, seen: str, states: tuple[str, ...], seconds: float) -> Cell:
        last = self._state(operation_id)
        assert last not in UNSETTLED
        events = [row for row in self._store.events(email) if operation_id in row["internal_note"]]
        assert last == "applied"
        assert len(events) == 1, "an award is in the book exactly once"
        customer = self._store.customer(email)
        assert customer is not None
        assert customer["points_tally"] == 150
        self.house.lookup(self.connection, email)
        self._settle_cards()
        assert self.house.lookup(self.connection, email).json()["points_balance"] == 150
        way = tuple(state for number, state in enumerate((*states, last)) if (*states, last)[:number][-1:] != (state,))
        return Cell(seen=seen, states=way, sends=self._sends(operation_id), events=len(events), seconds=seconds)

    def _state(self, operation_id: str) -> str:
        with self.house.services.database.read() as tx:
            return str(tx.scalar(select(awards.c.state).where(awards.c.operation_id == operation_id)))

    def _sends(self, operation_id: str) -> int:
        with self.house.services.database.read() as tx:
            return int(tx.scalar(select(awards.c.sends).where(awards.c.operation_id == operation_id)) or 0)


@contextmanager
def rig(database_url: str, *, monkeypatch: pytest.MonkeyPatch, patient: bool) -> Iterator[Rig]:
    """Everything running. Not `patient`: every call gives up after SHORT_S, which changes times and nothing else."""
    limits: dict[str, Any] = {}
    if not patient:
        call = gate.Call

        def shorter(*, lane: gate.Lane, within_s: float) -> gate.Call:
            return call(lane=lane, within_s=min(within_s, SHORT_S))

        monkeypatch.setattr(rivo_program, "Call", shorter)
        monkeypatch.setattr(rivo_program, "BACKGROUND", call(lane=gate.Lane.BACKGROUND, within_s=SHORT_S))
        monkeypatch.setattr(delivery, "SEND_WITHIN_S", 2 * SHORT_S)
        monkeypatch.setattr(members, "ASK_WITHIN_S", 2 * SHORT_S)
        limits = {"card_deadline_s": 2 * SHORT_S}
    with (
        Proxy() as proxy,
        running_house(database_url, clock=Clock(), rivo_url=f"{proxy.url}{BASE}", **limits) as house,
    ):
        proxy.upstream = ("127.0.0.1", int(house.sandbox.url.rpartition(":")[2]))
        yield Rig(house, proxy, house.open_rivo())
