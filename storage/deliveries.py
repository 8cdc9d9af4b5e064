"""Deliveries of webhooks that were handled, so that each counts once. Only a hash is kept, and not for ever."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select

from storage.database import Database, insert_into
from storage.tables import webhook_deliveries

# Longer than any sender goes on trying. A signature without a time in it would be good for a repetition for ever; what
# such a repetition can do after that is to have a card refreshed.
DELIVERIES_KEPT = timedelta(days=7)


def was_handled(database: Database, store_id: int, delivery_hash: str) -> bool:
    """Whether this delivery was handled before."""
    with database.read() as tx:
        found = tx.scalar(
            select(webhook_deliveries.c.id).where(
                webhook_deliveries.c.store_id == store_id, webhook_deliveries.c.delivery_hash == delivery_hash
            )
        )
    return found is not None


def mark_handled(database: Database, store_id: int, delivery_hash: str, *, now: datetime) -> bool:
    """This delivery was handled; False when somebody else was handling it at the same time, and was faster."""
    with database.write() as tx:
        marked = tx.execute(
            insert_into(tx, webhook_deliveries)
            .values(store_id=store_id, delivery_hash=delivery_hash, received_at=now)
            .on_conflict_do_nothing()
            .returning(webhook_deliveries.c.id)
        ).one_or_none()
    return marked is not None
