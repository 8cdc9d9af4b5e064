"""What Gorgias asked, without its values, for a merchant who wonders why a macro is blank.

Recorded only while a merchant has switched it on, and never on the way of an answer: what was seen goes into a short
queue in memory, from which a thread of this process writes it down. When the queue is full or the database is in
trouble, records are lost and answers are not. Kept are no keys, no free text, and of an address its first letters.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

import structlog
from sqlalchemy import delete, insert, select

from schemas.email import read_addresses
from storage.database import Database
from storage.tables import inspected_requests
from storage.trouble import TROUBLE, trouble_sentence

WATCHED_FOR = timedelta(minutes=10)
INSPECTED_KEPT = timedelta(hours=1)
KEPT_OF_CONNECTION = 500
MAX_WAITING = 200
MAX_BATCH = 50
MAX_FIELDS = 12

log = structlog.get_logger()


class Kind(StrEnum):
    """What stood in a field."""

    EMPTY = "empty"
    VARIABLE = "variable"
    """A template that Gorgias did not fill in."""
    ADDRESS = "address"
    NO_ADDRESS = "no_address"
    """Something else where an address was expected."""
    NUMBER = "number"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a request. `shown` is what may be told of its value: a variable, a number, a masked address."""

    name: str
    kind: Kind
    shown: str
    length: int


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One request as recorded. `fields` is None when the request could not be read."""

    at: datetime
    route: str
    outcome: str
    status: int
    took_ms: int
    fields: tuple[Field, ...] | None
    caller: str

    def field(self, name: str) -> Field | None:
        """The field with this name, if it came."""
        return next((field for field in self.fields or () if field.name == name), None)


class Inspector:
    """Takes notes of requests while answers go out, and writes them down behind."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[dict[str, Any]] = deque()
        self._writing = False
        self._dropped = 0
        self._changed = threading.Condition()

    def note(
        self,
        *,
        connection_id: int,
        at: datetime,
        route: str,
        outcome: str,
        status: int,
        took_ms: int,
        sent: Iterable[tuple[str, Any]] | None,
        user_agent: str,
    ) -> None:
        """Remember one request; `sent` are its fields as they came, None when they could not be read. Waits for
        nothing and raises nothing."""
        try:
            fields = None if sent is None else [_seen(name, value) for name, value in list(sent)[:MAX_FIELDS]]
            row = {
                "connection_id": connection_id,
                "at": at,
                "route": route,
                "outcome": outcome,
                "status": status,
                "took_ms": took_ms,
                "seen": {"fields": fields, "caller": _caller(user_agent)},
            }
            with self._changed:
                if len(self._waiting) >= MAX_WAITING:
                    self._dropped += 1
                    return
                self._waiting.append(row)
                if self._writing:
                    return
                # A daemon: what it does is lost without harm, and nobody waits for it when the process ends.
                threading.Thread(target=self._write, name="inspect", daemon=True).start()
                self._writing = True
        except Exception:
            log.exception("inspect", outcome="crashed")

    def settle(self, timeout_s: float) -> None:
        """Wait until everything is written down. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._writing, timeout=timeout_s):
                raise TimeoutError

    def _write(self) -> None:
        while True:
            with self._changed:
                batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                dropped, self._dropped = self._dropped, 0
                if not batch:
                    self._writing = False
                    self._changed.notify_all()
            if dropped:
                log.warning("inspect", outcome="queue_full", dropped=dropped)
            if not batch:
                return
            try:
                self._keep(batch)
            except TROUBLE as error:
                log.error("inspect", outcome="storage_trouble", dropped=len(batch), trouble=trouble_sentence(error))
            except Exception:
                log.exception("inspect", outcome="crashed")

    def _keep(self, batch: Sequence[Mapping[str, Any]]) -> None:
        ids = inspected_requests.c.id
        with self._database.write() as tx:
            tx.execute(insert(inspected_requests), list(batch))
            for connection_id in {row["connection_id"] for row in batch}:
                mine = inspected_requests.c.connection_id == connection_id
                oldest = select(ids).where(mine).order_by(ids.desc()).offset(KEPT_OF_CONNECTION - 1).limit(1)
                tx.execute(delete(inspected_requests).where(mine, ids < oldest.scalar_subquery()))


def inspected(database: Database, connection_id: int) -> list[Inspected]:
    """What was recorded of the connection's requests, newest first."""
    statement = (
        select(inspected_requests)
        .where(inspected_requests.c.connection_id == connection_id)
        .order_by(inspected_requests.c.id.desc())
        .limit(KEPT_OF_CONNECTION)
    )
    with database.read() as tx:
        rows = tx.execute(statement).all()
    return [
        Inspected(
            at=row.at,
            route=row.route,
            outcome=row.outcome,
            status=row.status,
            took_ms=row.took_ms,
            fields=None if row.seen["fields"] is None else tuple(map(_field, row.seen["fields"])),
            caller=row.seen["caller"],
        )
        for row in rows
    ]


def _field(kept: Mapping[str, Any]) -> Field:
    return Field(name=kept["name"], kind=Kind(kept["kind"]), shown=kept["shown"], length=kept["length"])


_ADDRESSES = ("email", "agent_email")
_NUMBERS = ("points", "store_credit", "ticket_id")


def _seen(name: str, value: Any) -> dict[str, Any]:
    """What may be kept of one field."""
    text = "" if value is None else str(value)
    kind, shown = _kind(name, text)
    # A merchant may have edited the address: whatever stands for a name there is shown only if it can be one.
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name)
    return {"name": name if plain else "(another)", "kind": kind, "shown": shown, "length": len(text)}


def _kind(name: str, text: str) -> tuple[Kind, str]:
    if not text.strip():
        return Kind.EMPTY, ""
    if text in ("None", "null", "undefined"):
        return Kind.EMPTY, text
    # As much decoding as schemas.email does: Gorgias may encode what it fills in once more.
    reading = text if "@" in text else unquote(text)
    if "{{" in reading:
        found = re.search(r"\{\{ ?[A-Za-z_][A-Za-z0-9_.\[\]-]{0,99} ?\}\}", reading)
        return Kind.VARIABLE, found[0] if found else "{{…}}"
    if name in _ADDRESSES:
        addresses = read_addresses([text])
        return (Kind.ADDRESS, ", ".join(map(masked, addresses))) if addresses else (Kind.NO_ADDRESS, "")
    if name in _NUMBERS and re.fullmatch(r"[0-9]{1,12}(?:[.,][0-9]{1,2})?", text.strip()):
        return Kind.NUMBER, text.strip()
    return Kind.TEXT, ""


def masked(address: str) -> str:
    """Enough of an address to know one's own test by: `j…@e….com`. A domain of one's own names a person, too."""
    local, _, domain = address.rpartition("@")
    host, _, ending = domain.rpartition(".")
    return f"{local[:1]}…@{host[:1]}….{ending}"


def _caller(user_agent: str) -> str:
    """The kind of program that asked: a browser, or the product's name; UNKNOWN what Gorgias calls itself."""
    if user_agent.startswith("Mozilla/"):
        return "a browser"
    product = re.match(r"[A-Za-z][A-Za-z0-9_-]{0,29}(?=/|$)", user_agent)
    return product[0] if product else ""
