"""Stores whose program lives elsewhere, at rest: their key, whether the program still takes it, webhook secrets.

Each helpdesk account has a store of its own, also where two accounts bring the same key: replacing the key in one must
not give the other what it was never given. The gate is shared, since the program counts calls by key.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import NoResultFound

from loyalty.program import ProgramKind, ProgramReason, ProgramUnavailable, Store
from storage.database import Database, insert_into
from storage.sealing import CannotOpen, Hasher, Sealer
from storage.tables import stores


class KeyState(StrEnum):
    """Whether the program takes a store's key."""

    OK = "ok"
    REFUSED = "refused"
    """The program answered that the key is wrong or its plan lapsed; nothing is asked until it is replaced."""
    MISSING = "missing"
    """Disconnected: the key was wiped."""


# Of a key, enough to tell it from another and too little to guess the rest.
SHOWN_OF_KEY, LONG_ENOUGH = 4, 16


class KeyInUse(Exception):
    """Another store of this account has this very key, or had it last: the one with `store_id`."""

    def __init__(self, store_id: int) -> None:
        super().__init__(f"store {store_id} has this key")
        self.store_id = store_id


@dataclass(frozen=True, kw_only=True)
class StoreKey:
    """A store's key as it is now. `gate` names the gate through which calls with it go."""

    key: str = field(repr=False)
    version: int
    gate: str


@dataclass(frozen=True, kw_only=True)
class KeyStanding:
    """What a merchant should know about the key; `since` is set once it was refused.

    `ending` tells it from other keys; it is empty for one that is missing, or too short to show a part of it.
    """

    state: KeyState
    since: datetime | None
    has_webhook_secret: bool
    ending: str


class Stores:
    """All stores with a key."""

    def __init__(self, database: Database, *, sealer: Sealer, hasher: Hasher, now: Callable[[], datetime]) -> None:
        self._database = database
        self._sealer = sealer
        self._hasher = hasher
        self._now = now

    def open(self, tx: Connection, *, account: str, program: ProgramKind, key: str) -> Store:
        """The account's store with this key, which was just tried; made when there is none."""
        identity = self._identity(account, program, key)
        self._database.lock(tx, f"identity {identity}")
        tx.execute(
            insert_into(tx, stores)
            .values(program=program, identity=identity, created_at=self._now())
            .on_conflict_do_nothing()
        )
        store_id = tx.scalars(select(stores.c.id).where(stores.c.identity == identity)).one()
        tx.execute(update(stores).where(stores.c.id == store_id).values(self._in_use(key)))
        return Store(id=store_id, program=program)

    def replace_key(self, store: Store, *, account: str, key: str) -> None:
        """Use `key`, which was just tried, from now on; members, awards and their history stay. Raises KeyInUse.

        Another key has another version: what was done under the former may have been done in another store.
        """
        identity = self._identity(account, store.program, key)
        with self._database.write() as tx:
            self._database.lock(tx, f"identity {identity}")
            other = tx.scalar(select(stores.c.id).where(stores.c.identity == identity, stores.c.id != store.id))
            if other is not None:
                raise KeyInUse(other)
            tx.execute(
                update(stores)
                .where(stores.c.id == store.id, stores.c.identity != identity)
                .values(identity=identity, key_version=stores.c.key_version + 1)
            )
            tx.execute(update(stores).where(stores.c.id == store.id).values(self._in_use(key)))

    def key_of(self, store: Store) -> StoreKey:
        """The key to call with. Raises ProgramUnavailable(KEY_REFUSED) while the program refuses it."""
        row = self._with_key(store)
        key = self._sealer.open(row.key_sealed)
        return StoreKey(key=key, version=row.key_version, gate=self.gate_of(store.program, key))

    def gate_through(self, store: Store) -> str:
        """The name of the gate for calls with its key, which need not be opened for it. Raises as `key_of`."""
        return f"{store.program}:{self._with_key(store).identity.rpartition(':')[2]}"

    def gate_of(self, program: ProgramKind, key: str) -> str:
        """The name of the gate for calls with `key`."""
        return f"{program}:{self._hasher.program_key(key)}"

    def refused(self, store: Store, *, version: int) -> bool:
        """The program refused the key of this version. True when that is news; an older key's refusal says nothing."""
        with self._database.write() as tx:
            changed = tx.execute(
                update(stores)
                .where(stores.c.id == store.id, stores.c.key_version == version, stores.c.key_state == KeyState.OK)
                .values(key_state=KeyState.REFUSED, key_state_since=self._now())
            )
        return changed.rowcount == 1

    def standing(self, store: Store) -> KeyStanding:
        """How it stands with the key."""
        with self._database.read() as tx:
            row = tx.execute(
                select(
                    stores.c.key_state, stores.c.key_state_since, stores.c.key_sealed, stores.c.webhook_secret_sealed
                ).where(stores.c.id == store.id)
            ).one()
        key = ""
        if row.key_sealed is not None:
            # Sealed with a key of ours that is lost: the page that lists it must not fail with it.
            with suppress(CannotOpen):
                key = self._sealer.open(row.key_sealed)
        return KeyStanding(
            state=KeyState(row.key_state),
            since=row.key_state_since,
            has_webhook_secret=row.webhook_secret_sealed is not None,
            ending=key[-SHOWN_OF_KEY:] if len(key) >= LONG_ENOUGH else "",
        )

    def save_webhook_secret(self, store: Store, *, secret: str) -> None:
        """Trust webhooks signed with `secret`, and still those signed with the one before it. Empty: trust none."""
        with self._database.write() as tx:
            present = tx.scalars(select(stores.c.webhook_secret_sealed).where(stores.c.id == store.id)).one()
            if secret and present is not None and self._sealer.open(present) == secret:
                return
            tx.execute(
                update(stores)
                .where(stores.c.id == store.id)
                .values(
                    webhook_secret_sealed=self._sealer.seal(secret) if secret else None,
                    old_webhook_secret_sealed=present if secret else None,
                )
            )

    def webhook_secrets(self, store: Store) -> tuple[str, ...]:
        """The secrets that sign webhooks, newest first; empty when there is none."""
        with self._database.read() as tx:
            row = tx.execute(
                select(stores.c.webhook_secret_sealed, stores.c.old_webhook_secret_sealed).where(
                    stores.c.id == store.id
                )
            ).one()
        return tuple(self._sealer.open(sealed) for sealed in row if sealed is not None)

    def forget_secrets(self, store: Store) -> None:
        """Wipe the key and the webhook secrets. The store is found again when its key is brought back."""
        with self._database.write() as tx:
            tx.execute(
                update(stores)
                .where(stores.c.id == store.id, stores.c.key_sealed.is_not(None))
                .values(
                    key_sealed=None,
                    key_state=KeyState.MISSING,
                    key_state_since=self._now(),
                    webhook_secret_sealed=None,
                    old_webhook_secret_sealed=None,
                )
            )

    def _in_use(self, key: str) -> dict[str, Any]:
        return {"key_sealed": self._sealer.seal(key), "key_state": KeyState.OK, "key_state_since": None}

    def _with_key(self, store: Store) -> Any:
        row = next(iter(self._database.look_up(_KEY, of=store.id)), None)
        if row is None:
            raise NoResultFound("The store is gone.")
        if row.key_state != KeyState.OK or row.key_sealed is None:
            raise ProgramUnavailable(
                ProgramReason.KEY_REFUSED, "The program refused the key; it waits for a new one from the merchant."
            )
        return row

    def _identity(self, account: str, program: ProgramKind, key: str) -> str:
        return f"{program}:{account}:{self._hasher.program_key(key)}"


_KEY = select(stores.c.key_sealed, stores.c.key_version, stores.c.key_state, stores.c.identity).where(
    stores.c.id == bindparam("of")
)
