"""Secrets and personal data at rest: sealed with Fernet to be shown again, hashed with a key to be found again.

The first of ENCRYPTION_KEYS seals, every one opens; `reseal_everything` moves all columns to the first one. The root
key behind all HMACs is random, made once, kept sealed in the database; rotation re-seals it and never changes it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from functools import cached_property
from threading import Lock

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select, update

from storage.database import Database, insert_into
from storage.tables import app_keys, metadata

RandomBytes = Callable[[int], bytes]

ROOT_KEY = "hmac-root"


class Stock:
    """`random_bytes` in large pieces, of which it gives small ones: whoever asks the system lets others run first.

    A process that is forked from another one draws its own.
    """

    PIECE = 4_096

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._random_bytes = random_bytes
        self._lock = Lock()
        self._left = b""
        self._of_process = os.getpid()

    def __call__(self, count: int) -> bytes:
        """So many random bytes; they are given once."""
        with self._lock:
            if len(self._left) < count or self._of_process != os.getpid():
                self._left, self._of_process = self._random_bytes(max(count, self.PIECE)), os.getpid()
            given, self._left = self._left[:count], self._left[count:]
        return given


class CannotOpen(Exception):
    """A sealed value opens with none of ENCRYPTION_KEYS; the text says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "The database holds secrets sealed with another key. Put the key it was made with "
            "back into ENCRYPTION_KEYS (after the first one, separated by a comma)."
        )


class Sealer:
    """Seals text and opens it again. `keys` are Fernet keys; the first one seals."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def seal(self, plain: str) -> str:
        """`plain`, encrypted and authenticated, as text."""
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, sealed: str) -> str:
        """The text behind `sealed`. Raises CannotOpen."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken as error:
            raise CannotOpen from error

    def reseal(self, sealed: str) -> str:
        """The same text under the first key. Raises CannotOpen."""
        try:
            return self._fernet.rotate(sealed).decode()
        except InvalidToken as error:
            raise CannotOpen from error


class Hasher:
    """Keyed HMACs, one independent key for each purpose, all derived from the root key.

    `load_root` gives the root key's bytes; it is called when the first HMAC is needed.
    """

    def __init__(self, load_root: Callable[[], bytes]) -> None:
        self._load_root = load_root
        # A card needs it twice: to find the member, and for its award key.
        self._last: tuple[str | None, str] = None, ""

    @cached_property
    def _keyed(self) -> tuple[hmac.HMAC, hmac.HMAC, hmac.HMAC]:
        root = self._load_root()
        email, award_key, program_key = (
            hmac.new(hmac.digest(root, purpose, "sha256"), digestmod="sha256")
            for purpose in (b"email", b"award key", b"program key")
        )
        return email, award_key, program_key

    def email(self, email: str) -> str:
        """What a normalised e-mail is found by: 32 hex digits."""
        last, code = self._last
        if email != last:
            code = _code(self._keyed[0], email.encode()).hex()
            self._last = email, code
        return code

    def award_key(self, message: bytes) -> bytes:
        """The 16-byte code that authenticates an award key."""
        return _code(self._keyed[1], message)

    def program_key(self, key: str) -> str:
        """What a loyalty program's key is found by: 32 hex digits."""
        return _code(self._keyed[2], key.encode()).hex()


def _code(keyed: hmac.HMAC, message: bytes) -> bytes:
    """A 16-byte code. Not by hmac.digest, before which other threads are let run: there are three codes in a card."""
    code = keyed.copy()
    code.update(message)
    return code.digest()[:16]


def load_hasher(database: Database, *, sealer: Sealer, random_bytes: RandomBytes) -> Hasher:
    """The hasher of this database, which is first asked when the first HMAC is needed.

    That raises CannotOpen where the keys do not fit. It must not happen inside a write transaction while there is no
    root key yet: making it would wait for that very transaction.
    """
    return Hasher(lambda: load_root_key(database, sealer=sealer, random_bytes=random_bytes))


def load_root_key(database: Database, *, sealer: Sealer, random_bytes: RandomBytes) -> bytes:
    """The root key of this database, 32 bytes; made on first use, by whoever comes first. Raises CannotOpen."""
    find = select(app_keys.c.sealed).where(app_keys.c.name == ROOT_KEY)
    with database.read() as tx:
        sealed = tx.scalar(find)
    if sealed is None:
        made = {"name": ROOT_KEY, "sealed": sealer.seal(random_bytes(32).hex())}
        with database.write() as tx:
            tx.execute(insert_into(tx, app_keys).values(made).on_conflict_do_nothing())
            sealed = tx.scalars(find).one()
    return bytes.fromhex(sealer.open(sealed))


def hash_of(secret: str) -> str:
    """What a random key or state of ours is found by. Plain SHA-256 serves: nobody can guess 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def reseal_everything(database: Database, *, sealer: Sealer, batch: int = 500) -> int:
    """Re-seal every sealed value with the first key; returns how many. Raises CannotOpen.

    Goes in short transactions, so that awards go on meanwhile; while it runs both keys are in use, and an interrupted
    run is simply repeated.
    """
    count = 0
    for table in metadata.sorted_tables:
        columns = [column for column in table.c if column.name == "sealed" or column.name.endswith("_sealed")]
        if not columns:
            continue
        key = next(iter(table.primary_key.columns))
        # Locked where the database has several writers: a token refreshed meanwhile is not overwritten.
        next_rows = select(key, *columns).order_by(key).limit(batch).with_for_update()
        last = None
        while True:
            with database.write() as tx:
                rows = tx.execute(next_rows if last is None else next_rows.where(key > last)).all()
                for key_value, *values in rows:
                    fresh = {
                        column.name: sealer.reseal(value)
                        for column, value in zip(columns, values, strict=True)
                        if value is not None
                    }
                    if fresh:
                        tx.execute(update(table).where(key == key_value).values(fresh))
                        count += len(fresh)
            if not rows:
                break
            last = rows[-1][0]
    return count
