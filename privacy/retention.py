"""What has been kept long enough is erased: old awards, and what a helpdesk left behind when it was disconnected.

Done in batches, some of them at each sweep of the worker, so that awards never wait for it; what is left is next
time's. Rows stay and their numbers with them: totals, caps and the ledger's books go on adding up.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection, delete, exists, or_, select, tuple_, update

from loyalty.journal import UNSETTLED
from oauth.accounts import AccountState
from privacy.rows import Eraser
from storage.database import Database
from storage.tables import accounts, awards, changes, connections, inspected_requests, members, oauth_states

BATCH = 500
# Of one sweep.
MOST_BATCHES = 20
MOST_ACCOUNTS = 100

_NOT_ERASED = (
    awards.c.erased_at.is_(None),
    # Somebody is still going on with the others; those that wait for a person have waited long enough.
    awards.c.state.not_in(UNSETTLED),
)


class Retention:
    """Erases what is past its time. `after_disconnect` counts from when an account was disconnected."""

    def __init__(
        self, database: Database, *, eraser: Eraser, awards_kept: timedelta, after_disconnect: timedelta
    ) -> None:
        self._database = database
        self._eraser = eraser
        self._awards_kept = awards_kept
        self._after_disconnect = after_disconnect

    def sweep(self) -> int:
        """Erase some of what is past its time; how many rows."""
        return sum(islice(self._batches(), MOST_BATCHES))

    def _batches(self) -> Iterator[int]:
        """Each step is one batch in a transaction of its own; what comes after is done only when it is asked for."""
        now = self._eraser.now()
        yield from self._awards(awards.c.created_at < now - self._awards_kept)
        yield self._sign_ins_given_up(now)
        for account_id in self._accounts_past_their_time(now):
            # One after the other: an index has each one's awards in their order.
            for connection_id in self._connections_of(account_id):
                yield from self._awards(awards.c.connection_id == connection_id)
            for store_id in self._stores_left_by_all(account_id, now):
                yield from self._members(store_id)
            self._forget(account_id, now)

    def _awards(self, *past: Any) -> Iterator[int]:
        place = tuple_(awards.c.created_at, awards.c.operation_id)
        next_rows = (
            select(awards.c.created_at, awards.c.operation_id)
            .where(*_NOT_ERASED, *past)
            .order_by(awards.c.created_at, awards.c.operation_id)
            .limit(BATCH)
        )
        last = None
        while True:
            with self._database.read(unhurried=True) as tx:
                # Going on behind the last one: those before it are erased, and need not be passed by once more.
                rows = tx.execute(next_rows if last is None else next_rows.where(place > last)).all()
            if not rows:
                return
            with self._database.write() as tx:
                self._eraser.whole_awards(tx, [row.operation_id for row in rows])
            last = tuple(rows[-1])
            yield len(rows)

    def _members(self, store_id: int) -> Iterator[int]:
        next_rows = (
            select(members.c.email_hmac, members.c.id)
            .where(members.c.store_id == store_id, members.c.erased_at.is_(None))
            .order_by(members.c.email_hmac)
            .limit(BATCH)
        )
        last = ""
        while True:
            with self._database.read(unhurried=True) as tx:
                rows = tx.execute(next_rows.where(members.c.email_hmac > last)).all()
            if not rows:
                return
            with self._database.write() as tx:
                self._eraser.faces_of_members(tx, [row.id for row in rows])
            last = rows[-1].email_hmac
            yield len(rows)

    def _sign_ins_given_up(self, now: datetime) -> int:
        with self._database.write() as tx:
            return tx.execute(delete(oauth_states).where(oauth_states.c.expires_at < now)).rowcount

    def _accounts_past_their_time(self, now: datetime) -> list[int]:
        with self._database.read(unhurried=True) as tx:
            return list(tx.scalars(select(accounts.c.id).where(*self._is_past(now)).limit(MOST_ACCOUNTS)))

    def _connections_of(self, account_id: int) -> list[int]:
        with self._database.read() as tx:
            return list(tx.scalars(select(connections.c.id).where(connections.c.account_id == account_id)))

    def _is_past(self, now: datetime) -> tuple[Any, ...]:
        return (
            accounts.c.state == AccountState.DISCONNECTED,
            accounts.c.disconnected_at < now - self._after_disconnect,
            or_(accounts.c.forgotten_at.is_(None), accounts.c.forgotten_at < accounts.c.disconnected_at),
        )

    def _stores_left_by_all(self, account_id: int, now: datetime) -> list[int]:
        """The account's stores that every other account has left long enough ago as well."""
        other, owner = connections.alias("other"), accounts.alias("owner")
        kept = (
            exists()
            .select_from(other.join(owner, owner.c.id == other.c.account_id))
            .where(
                other.c.store_id == connections.c.store_id,
                or_(
                    owner.c.state != AccountState.DISCONNECTED,
                    owner.c.disconnected_at.is_(None),
                    owner.c.disconnected_at >= now - self._after_disconnect,
                ),
            )
        )
        with self._database.read(unhurried=True) as tx:
            return list(tx.scalars(select(connections.c.store_id).where(connections.c.account_id == account_id, ~kept)))

    def _forget(self, account_id: int, now: datetime) -> None:
        """The rest about the account, and the word that it is done; not while awards of it are still under way."""
        mine = select(connections.c.id).where(connections.c.account_id == account_id)
        left = exists().where(awards.c.connection_id.in_(mine), awards.c.erased_at.is_(None))
        with self._database.write() as tx:
            forgotten = tx.execute(
                update(accounts)
                .where(accounts.c.id == account_id, *self._is_past(now), ~left)
                .values(forgotten_at=now, user_email_sealed=None, notice_url_sealed=None)
            )
            if forgotten.rowcount == 1:
                self._forget_what_people_did(tx, account_id, mine)

    def _forget_what_people_did(self, tx: Connection, account_id: int, mine: Any) -> None:
        tx.execute(delete(changes).where(changes.c.account_id == account_id))
        tx.execute(delete(inspected_requests).where(inspected_requests.c.connection_id.in_(mine)))
