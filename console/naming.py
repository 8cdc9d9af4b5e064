"""How a connection is named on the pages, so that two stores of one helpdesk are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from console.room import ConsoleRoom
from loyalty.activity import count_in_review
from loyalty.program import ProgramKind
from loyalty.stores import KeyStanding
from widget.connections import Connection

PROGRAMS = {ProgramKind.LEDGER: "Built-in ledger", ProgramKind.RIVO: "Rivo"}


@dataclass(frozen=True, kw_only=True)
class Named:
    """A connection with what the pages say of it.

    `name` is unique within the account. `standing` is None for the built-in ledger, which has no key. `in_review`
    counts the awards that wait for a person.
    """

    connection: Connection
    name: str
    standing: KeyStanding | None
    in_review: int


def all_named(room: ConsoleRoom, account_id: int) -> list[Named]:
    """Every connection of the account, oldest first."""
    found = room.connections.of_account(account_id)
    return _named(room, found, among=found)


def named(room: ConsoleRoom, connection: Connection) -> Named:
    """The connection, told apart from the others of its account."""
    return _named(room, [connection], among=room.connections.of_account(connection.account_id))[0]


def _named(room: ConsoleRoom, shown: Sequence[Connection], *, among: Sequence[Connection]) -> list[Named]:
    waiting = count_in_review(room.database, [connection.id for connection in shown])
    return [
        Named(
            connection=connection,
            name=_name(connection, among=among),
            standing=None if connection.store.program is ProgramKind.LEDGER else room.stores.standing(connection.store),
            in_review=waiting.get(connection.id, 0),
        )
        for connection in shown
    ]


def _name(connection: Connection, *, among: Sequence[Connection]) -> str:
    program = PROGRAMS[connection.store.program]
    alike = [other for other in among if other.store.program is connection.store.program]
    return program if len(alike) <= 1 else f"{program}, connection {connection.id}"
