"""What an award key was used for."""

from __future__ import annotations

from sqlalchemy import select

from loyalty.award_key import AwardKey
from storage.database import Database
from storage.tables import awards


def use_of(database: Database, *, connection_id: int, key: AwardKey) -> str | None:
    """The operation id of the connection's award that used `key` up, or None while it is unused."""
    statement = select(awards.c.operation_id).where(
        awards.c.connection_id == connection_id, awards.c.award_key_nonce == key.nonce
    )
    with database.read() as tx:
        return tx.scalar(statement)
