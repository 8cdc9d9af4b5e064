"""Connections: one helpdesk account showing one store, with its keys and the merchant's settings.

A connection has two keys. The integration's opens only the lookup; the buttons' opens only awards, since helpdesk users
may be able to read it. Both are found by hash and kept sealed, because repairing the placement writes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection as Transaction
from sqlalchemy import bindparam, delete, insert, select, update

from loyalty.awards import Rules
from loyalty.program import ProgramKind, Store
from storage.database import Database, insert_into
from storage.sealing import RandomBytes, Sealer, hash_of
from storage.tables import accounts, connection_keys, connections, stores

MAX_ID = 2**63 - 1  # what the database can compare with
# How long a process may go on with a key and its settings as it read them: what another process changed meanwhile
# counts from then on.
KNOWN_FOR = timedelta(seconds=1)
_NO_TIME = timedelta()


class KeyPurpose(StrEnum):
    """What a connection's key opens."""

    LOOKUP = "lookup"
    AWARD = "award"


class ConnectionState(StrEnum):
    """Whether the helpdesk shows the store."""

    ACTIVE = "active"
    REMOVED = "removed"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The ids of what we put into Gorgias for a connection, and the digest of what was put."""

    integration_id: int | None = None
    ticket_widget_id: int | None = None
    customer_widget_id: int | None = None
    macro_id: int | None = None
    digest: str | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a key opens, as far as a card needs it."""

    id: int
    account_name: str
    store: Store
    show_date_of_birth: bool
    # Until when requests are recorded for the inspector. Read with the key: no question of its own on a card's way.
    inspect_until: datetime | None


@dataclass(frozen=True, kw_only=True)
class Connection(Opened):
    """One connection as stored. `presets` are points of ready-made buttons."""

    account_id: int
    state: ConnectionState
    rules: Rules
    presets: tuple[int, ...]
    placed: Placed


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The newest keys of a connection, in plain text: handle only to write them into Gorgias."""

    lookup: str = field(repr=False)
    award: str = field(repr=False)
    ids: tuple[int, int]


class Connections:
    """All connections."""

    def __init__(
        self, database: Database, *, sealer: Sealer, now: Callable[[], datetime], random_bytes: RandomBytes
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._now = now
        self._random_bytes = random_bytes
        # By the key's hash; replaced by an empty one with every change made here. Grows with the keys that exist:
        # others open nothing.
        self._opened: dict[str, tuple[datetime, Opened]] = {}

    def opened_by(self, lookup_key: str) -> Opened | None:
        """The active connection whose cards `lookup_key` opens, as it was at most a second ago, or None."""
        key_hash = hash_of(lookup_key)
        now = self._now()
        known = self._opened.get(key_hash)
        if known is not None and _NO_TIME <= now - known[0] < KNOWN_FOR:
            return known[1]
        memory = self._opened
        rows = self._database.look_up(_OPENED, key_hash=key_hash)
        if not rows:
            memory.pop(key_hash, None)
            return None
        row = rows[0]
        opened = Opened(
            id=row.id,
            account_name=row.account_name,
            store=Store(id=row.store_id, program=ProgramKind(row.program)),
            show_date_of_birth=row.show_date_of_birth,
            inspect_until=row.inspect_until,
        )
        # Into the memory of before it was read: one that was replaced meanwhile learns nothing old.
        memory[key_hash] = now, opened
        return opened

    def by_award_key(self, award_key: str) -> Connection | None:
        """The active connection whose buttons carry `award_key`, or None."""
        rows = self._database.look_up(_BY_AWARD_KEY, key_hash=hash_of(award_key))
        return _connection(rows[0]) if rows else None

    def by_id(self, connection_id: int) -> Connection | None:
        """The connection with this id, whatever its state."""
        if connection_id > MAX_ID:
            return None
        with self._database.read() as tx:
            row = tx.execute(_CONNECTIONS.where(connections.c.id == connection_id)).one_or_none()
        return None if row is None else _connection(row)

    def of_account(self, account_id: int) -> list[Connection]:
        """The account's active connections, oldest first."""
        return self._select(connections.c.account_id == account_id)

    def all(self) -> list[Connection]:
        """Every active connection, oldest first."""
        return self._select()

    def stores_left(self, account_id: int) -> list[Store]:
        """The stores that the account showed once and shows no longer."""
        statement = _CONNECTIONS.where(
            connections.c.account_id == account_id, connections.c.state == ConnectionState.REMOVED
        )
        with self._database.read() as tx:
            return [_connection(row).store for row in tx.execute(statement)]

    def _select(self, *conditions: Any) -> list[Connection]:
        statement = _CONNECTIONS.where(connections.c.state == ConnectionState.ACTIVE, *conditions)
        with self._database.read() as tx:
            return [_connection(row) for row in tx.execute(statement.order_by(connections.c.id))]

    def open(self, tx: Transaction, *, account_id: int, store: Store, rules: Rules) -> int:
        """The id of the account's connection to `store`, made or taken up again; two callers at once get the same."""
        self._opened = {}
        connection_id: int = tx.execute(
            insert_into(tx, connections)
            .values(
                account_id=account_id,
                store_id=store.id,
                state=ConnectionState.ACTIVE,
                reasons=list(rules.reasons),
                presets=[],
                show_date_of_birth=False,
                created_at=self._now(),
                **_limits(rules),
            )
            .on_conflict_do_update(
                index_elements=[connections.c.account_id, connections.c.store_id],
                set_={"state": ConnectionState.ACTIVE},
            )
            .returning(connections.c.id)
        ).scalar_one()
        # The row stays locked until the transaction ends: nobody else adds first keys at the same time.
        if tx.scalar(select(connection_keys.c.id).where(connection_keys.c.connection_id == connection_id)) is None:
            self.add_keys(tx, connection_id)
        return connection_id

    def save_settings(
        self,
        tx: Transaction,
        connection_id: int,
        *,
        rules: Rules,
        presets: Sequence[int],
        show_date_of_birth: bool,
    ) -> None:
        """Keep what the merchant has chosen."""
        self._opened = {}
        tx.execute(
            update(connections)
            .where(connections.c.id == connection_id)
            .values(
                reasons=list(rules.reasons),
                presets=list(presets),
                show_date_of_birth=show_date_of_birth,
                **_limits(rules),
            )
        )

    def inspect(self, tx: Transaction, connection_id: int, *, until: datetime | None) -> None:
        """Have the requests of Gorgias recorded `until` then; None stops it."""
        self._opened = {}
        tx.execute(update(connections).where(connections.c.id == connection_id).values(inspect_until=until))

    def save_placed(self, connection_id: int, **values: Any) -> None:
        """Keep ids, digest or problem of the placement."""
        with self._database.write() as tx:
            tx.execute(update(connections).where(connections.c.id == connection_id).values(**values))

    def remove(self, connection_id: int, *, left_over: Sequence[str] = ()) -> None:
        """The helpdesk no longer shows the store: keys die, ids are forgotten; store, ledger and awards stay.

        `left_over` names what has to be deleted in Gorgias by hand; it is kept with the account until it is told.
        """
        with self._database.write() as tx:
            if left_over:
                _keep_left_over(tx, connection_id, left_over)
            tx.execute(delete(connection_keys).where(connection_keys.c.connection_id == connection_id))
            tx.execute(
                update(connections)
                .where(connections.c.id == connection_id)
                .values(
                    state=ConnectionState.REMOVED,
                    integration_id=None,
                    ticket_widget_id=None,
                    customer_widget_id=None,
                    macro_id=None,
                    placed_digest=None,
                    placement_problem=None,
                )
            )
        self._opened = {}

    def add_keys(self, tx: Transaction, connection_id: int) -> None:
        """A new pair of keys; older ones go on working until `retire_keys`."""
        for purpose in KeyPurpose:
            key = f"td{purpose.value[0]}_{self._random_bytes(32).hex()}"
            tx.execute(
                insert(connection_keys).values(
                    connection_id=connection_id,
                    purpose=purpose,
                    key_hash=hash_of(key),
                    key_sealed=self._sealer.seal(key),
                    created_at=self._now(),
                )
            )

    def newest_keys(self, connection_id: int) -> Keys:
        """The pair that belongs into Gorgias now."""
        with self._database.read() as tx:
            rows = tx.execute(
                select(connection_keys)
                .where(connection_keys.c.connection_id == connection_id)
                .order_by(connection_keys.c.id)
            ).all()
        newest = {row.purpose: row for row in rows}
        lookup, award = newest[KeyPurpose.LOOKUP], newest[KeyPurpose.AWARD]
        return Keys(
            lookup=self._sealer.open(lookup.key_sealed),
            award=self._sealer.open(award.key_sealed),
            ids=(lookup.id, award.id),
        )

    def retire_keys(self, connection_id: int, *, keep: Keys) -> None:
        """End every key older than the pair that is in place."""
        with self._database.write() as tx:
            tx.execute(
                delete(connection_keys).where(
                    connection_keys.c.connection_id == connection_id,
                    connection_keys.c.id < min(keep.ids),
                )
            )
        self._opened = {}


def _keep_left_over(tx: Transaction, connection_id: int, left_over: Sequence[str]) -> None:
    account_id = tx.scalars(select(connections.c.account_id).where(connections.c.id == connection_id)).one()
    mine = accounts.c.id == account_id
    before = tx.scalar(select(accounts.c.left_over).where(mine).with_for_update()) or []
    tx.execute(update(accounts).where(mine).values(left_over=[*before, *left_over]))


def _limits(rules: Rules) -> dict[str, Any]:
    return {
        "max_points_per_award": rules.max_points_per_award,
        "max_points_per_agent_per_day": rules.max_points_per_agent_per_day,
        "max_points_per_day": rules.max_points_per_day,
        "allow_guests": rules.allow_guests,
        "max_credit_cents_per_award": rules.max_credit_cents_per_award,
        "max_credit_cents_per_day": rules.max_credit_cents_per_day,
    }


_CONNECTIONS = (
    select(connections, accounts.c.name.label("account_name"), stores.c.program)
    .join(accounts, accounts.c.id == connections.c.account_id)
    .join(stores, stores.c.id == connections.c.store_id)
)

_BY_KEY = _CONNECTIONS.join(connection_keys, connection_keys.c.connection_id == connections.c.id).where(
    connection_keys.c.key_hash == bindparam("key_hash"),
    connections.c.state == ConnectionState.ACTIVE.value,
)
_BY_AWARD_KEY = _BY_KEY.where(connection_keys.c.purpose == KeyPurpose.AWARD.value)
_OPENED = _BY_KEY.where(connection_keys.c.purpose == KeyPurpose.LOOKUP.value).with_only_columns(
    connections.c.id,
    accounts.c.name.label("account_name"),
    connections.c.store_id,
    stores.c.program,
    connections.c.show_date_of_birth,
    connections.c.inspect_until,
)


def _connection(row: Any) -> Connection:
    return Connection(
        id=row.id,
        account_id=row.account_id,
        account_name=row.account_name,
        store=Store(id=row.store_id, program=ProgramKind(row.program)),
        state=ConnectionState(row.state),
        rules=Rules(
            max_points_per_award=row.max_points_per_award,
            max_points_per_agent_per_day=row.max_points_per_agent_per_day,
            max_points_per_day=row.max_points_per_day,
            reasons=tuple(row.reasons),
            allow_guests=row.allow_guests,
            max_credit_cents_per_award=row.max_credit_cents_per_award,
            max_credit_cents_per_day=row.max_credit_cents_per_day,
        ),
        presets=tuple(row.presets),
        show_date_of_birth=row.show_date_of_birth,
        inspect_until=row.inspect_until,
        placed=Placed(
            integration_id=row.integration_id,
            ticket_widget_id=row.ticket_widget_id,
            customer_widget_id=row.customer_widget_id,
            macro_id=row.macro_id,
            digest=row.placed_digest,
            problem=row.placement_problem,
        ),
    )
