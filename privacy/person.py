"""Who is meant by an e-mail address, and where sealed columns mean the same person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Connection, select

from schemas.email import normalise
from storage.sealing import Hasher, Sealer


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person by their address. `hmacs` are what rows about them are found by."""

    email: str = field(repr=False)
    hmacs: tuple[str, ...] = field(repr=False)

    def is_meant_by(self, text: str) -> bool:
        """Whether `text`, as it was sealed, is this person's address."""
        return self.email in (normalise(text), text)


def person_of(typed: str, *, hasher: Hasher) -> Person | None:
    """The person with this address as somebody typed it; None when it is no e-mail address."""
    email = normalise(typed)
    if email is None:
        return None
    # Helpdesks name their users in small letters, but not always composed as members' addresses are.
    readings = dict.fromkeys((email, typed.strip().lower()))
    return Person(email=email, hmacs=tuple(hasher.email(reading) for reading in readings))


def rows_naming(
    tx: Connection, person: Person, *, sealed: Column[Any], also: tuple[Column[Any], ...], sealer: Sealer
) -> Iterator[Any]:
    """Every row, with the columns `also`, whose column `sealed` holds the person's address.

    Such a column has no hash to be found by, so each of its values is opened. Raises CannotOpen.
    """
    for row in tx.execute(select(sealed, *also).where(sealed.is_not(None))):
        if person.is_meant_by(sealer.open(row[0])):
            yield row
