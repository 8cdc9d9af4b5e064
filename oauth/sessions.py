"""The console's sessions: Flask's signed cookie, under keys that one command replaces without signing anybody out.

The keys are random, sealed in the database, and mixed with SECRET_KEY: changing either ends every session. A session
stays under the key it began with, so that it ends for certain once that key is neither the present nor the former one.
Every web process notices new keys within seconds, and at once when it meets a session that was begun under them.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import structlog
from flask import Flask, Request, Response
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from itsdangerous import URLSafeTimedSerializer
from sqlalchemy import Connection, select

from storage.database import Database, insert_into
from storage.sealing import RandomBytes, Sealer
from storage.tables import app_keys
from storage.trouble import TROUBLE

PRESENT, FORMER = "session", "session-former"
# How long a process may go on with keys that were replaced meanwhile.
KNOWN_FOR = timedelta(seconds=5)

log = structlog.get_logger()


class SessionKeys:
    """The keys that sign sessions, newest first: the present one and, once it was replaced, the former one."""

    def __init__(
        self,
        database: Database,
        *,
        sealer: Sealer,
        secret_key: str,
        now: Callable[[], datetime],
        random_bytes: RandomBytes,
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._secret_key = secret_key.encode()
        self._now = now
        self._random_bytes = random_bytes
        self._known: tuple[datetime, tuple[str, ...]] | None = None

    def known(self) -> tuple[str, ...]:
        """The keys as they were at most a few seconds ago. Raises SQLAlchemyError or CannotOpen."""
        known = self._known
        if known is not None and timedelta() <= self._now() - known[0] < KNOWN_FOR:
            return known[1]
        return self.read()

    def read(self) -> tuple[str, ...]:
        """The keys as they are now; the first is made by whoever needs it. Raises SQLAlchemyError or CannotOpen."""
        read_at = self._now()
        with self._database.read() as tx:
            sealed = _sealed(tx)
        if PRESENT not in sealed:
            with self._database.write() as tx:
                tx.execute(insert_into(tx, app_keys).values(name=PRESENT, sealed=self._made()).on_conflict_do_nothing())
                sealed = _sealed(tx)
        keys = tuple(self._mixed(sealed[name]) for name in (PRESENT, FORMER) if name in sealed)
        self._known = (read_at, keys)
        return keys

    def rotate(self) -> None:
        """Sign new sessions with a new key. The former goes on opening its own; the one before that opens nothing."""
        with self._database.write() as tx:
            self._database.lock(tx, "session keys")
            present = _sealed(tx).get(PRESENT)
            for name, sealed in ((FORMER, present), (PRESENT, self._made())):
                if sealed is not None:
                    statement = insert_into(tx, app_keys).values(name=name, sealed=sealed)
                    tx.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"sealed": sealed}))

    def _made(self) -> str:
        return self._sealer.seal(self._random_bytes(32).hex())

    def _mixed(self, sealed: str) -> str:
        return hmac.digest(self._secret_key, b"session " + self._sealer.open(sealed).encode(), "sha256").hex()


def _sealed(tx: Connection) -> dict[str, str]:
    rows = tx.execute(select(app_keys.c.name, app_keys.c.sealed).where(app_keys.c.name.in_((PRESENT, FORMER))))
    return {row.name: row.sealed for row in rows}


class Session(SecureCookieSession):
    """A session that knows under which key it was opened and whose it was then, or why it could not be opened."""

    key: str | None = None
    opened_for: Any = None
    trouble: Exception | None = None

    def begun(self) -> Any:
        """What changes when somebody signs in; None while nobody is signed in."""
        visitor = self.get("visitor")
        return visitor.get("signed_in_at") if isinstance(visitor, dict) else None


class _UnderOneKey(SecureCookieSessionInterface):
    """Flask's own sessions under `key`."""

    session_class = Session

    def __init__(self, key: str) -> None:
        self._key = key

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._key,
            salt=self.salt,
            serializer=self.serializer,
            signer_kwargs={"key_derivation": self.key_derivation, "digest_method": self.digest_method},
        )


class Sessions(SecureCookieSessionInterface):
    """Sessions under `keys`, but none on what programs call: opening one costs as much as a whole lookup.

    While the keys cannot be read, asking who is signed in raises the reason, and no cookie is touched.
    """

    def __init__(self, keys: SessionKeys, *, outside: tuple[str, ...]) -> None:
        self._keys = keys
        self._outside = outside

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer:
        """What signs a session that begins now."""
        return _UnderOneKey(self._keys.known()[0]).get_signing_serializer(app)

    def open_session(self, app: Flask, request: Request) -> Session | None:
        if request.path.startswith(self._outside):
            # None makes Flask use a null session, which nobody can write to.
            return None
        if not request.cookies.get(self.get_cookie_name(app)):
            return Session()
        try:
            # Those read anew, when none of the known ones fits: it may have begun in another process just now.
            for keys in (self._keys.known, self._keys.read):
                for key in keys():
                    session = _UnderOneKey(key).open_session(app, request)
                    if isinstance(session, Session) and session:
                        session.key, session.opened_for = key, session.begun()
                        return session
        except TROUBLE as error:
            # Not raised here: Flask would find no way from here to a page that tells of it.
            unopened = Session()
            unopened.trouble = error
            return unopened
        return Session()

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if not isinstance(session, Session):
            return
        key = session.key if session.begun() == session.opened_for else None
        try:
            # An empty one is not signed: its cookie is deleted, if it has one.
            key = key or (self._keys.known()[0] if session else "")
        except TROUBLE as error:
            log.error("session", outcome="unavailable", kind=type(error).__name__)
            return
        _UnderOneKey(key).save_session(app, session, response)
