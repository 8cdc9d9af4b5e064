"""Helpdesk accounts at rest: their sealed tokens, refreshed by one process at a time, and the OAuth dance's states.

A refresh happens under a lease in the database, so that over all threads, processes and hosts one asks and the
others read what it stored. The new token is stored before anyone uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from oauth.gorgias_api import (
    AccessToken,
    GorgiasError,
    GorgiasReason,
    InvalidGrant,
    TokenEndpoint,
    TokenSource,
)
from oauth.wire import OAuthRefused, TokenSet, read_tokens
from storage.database import Database
from storage.sealing import RandomBytes, Sealer, hash_of
from storage.tables import accounts, oauth_states
from telemetry import TOKEN_REFRESHES

STATE_LIFE = timedelta(minutes=10)
REFRESH_BEFORE_END = timedelta(minutes=5)
# Longer than the token call can take (3 s to connect, 10 s to read, once again after a dropped connection).
LEASE = timedelta(seconds=30)
WAIT_FOR_REFRESH = timedelta(seconds=12)
POLL_S = 0.05


class AccountState(StrEnum):
    """Whether we can act in a helpdesk."""

    CONNECTED = "connected"
    NEEDS_REAUTH = "needs_reauth"
    DISCONNECTED = "disconnected"


class Purpose(StrEnum):
    """Why someone is sent to the helpdesk's consent page."""

    CONNECT = "connect"
    SIGN_IN = "sign_in"


@dataclass(frozen=True, kw_only=True)
class Account:
    """One Gorgias helpdesk. `name` is its subdomain."""

    id: int
    name: str
    state: AccountState
    connected_at: datetime
    access_expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class PendingSignIn:
    """What was remembered when the browser was sent away."""

    account: str
    purpose: Purpose
    nonce: str


class Accounts:
    """Accounts and their tokens."""

    def __init__(
        self,
        database: Database,
        *,
        sealer: Sealer,
        endpoint: TokenEndpoint,
        now: Callable[[], datetime],
        sleep: Callable[[float], None],
        random_bytes: RandomBytes,
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._endpoint = endpoint
        self._now = now
        self._sleep = sleep
        self._random_bytes = random_bytes

    def remember_state(self, *, account: str, purpose: Purpose, browser: str) -> tuple[str, str]:
        """A new state and nonce, bound to the secret in this browser's cookie, good once and for ten minutes."""
        state, nonce = self._random_bytes(32).hex(), self._random_bytes(16).hex()
        now = self._now()
        with self._database.write() as tx:
            tx.execute(delete(oauth_states).where(oauth_states.c.expires_at < now))
            tx.execute(
                insert(oauth_states).values(
                    state_hash=hash_of(state),
                    browser_hash=hash_of(browser),
                    account=account,
                    purpose=purpose,
                    nonce=nonce,
                    expires_at=now + STATE_LIFE,
                )
            )
        return state, nonce

    def consume_state(self, state: str, *, browser: str) -> PendingSignIn | None:
        """What `state` stands for, once; None when it is unknown, used, too old or of another browser."""
        with self._database.write() as tx:
            row = tx.execute(
                delete(oauth_states)
                .where(
                    oauth_states.c.state_hash == hash_of(state),
                    oauth_states.c.browser_hash == hash_of(browser),
                )
                .returning(
                    oauth_states.c.account,
                    oauth_states.c.purpose,
                    oauth_states.c.nonce,
                    oauth_states.c.expires_at,
                )
            ).one_or_none()
        if row is None or row.expires_at < self._now():
            return None
        return PendingSignIn(account=row.account, purpose=Purpose(row.purpose), nonce=row.nonce)

    def named(self, name: str) -> Account | None:
        """The account with this subdomain, whatever its state."""
        with self._database.read() as tx:
            row = tx.execute(select(accounts).where(accounts.c.name == name)).one_or_none()
        return None if row is None else _account(row)

    def by_id(self, account_id: int) -> Account | None:
        """The account with this id, whatever its state."""
        with self._database.read() as tx:
            row = tx.execute(select(accounts).where(accounts.c.id == account_id)).one_or_none()
        return None if row is None else _account(row)

    def connect(self, name: str, *, tokens: TokenSet, user_email: str) -> Account:
        """Keep an admin's tokens, sealed; a known account is connected anew."""
        now = self._now()
        values = {
            "state": AccountState.CONNECTED,
            "state_reason": None,
            "access_token_sealed": self._sealer.seal(tokens.access_token),
            "refresh_token_sealed": None if tokens.refresh_token is None else self._sealer.seal(tokens.refresh_token),
            "access_expires_at": tokens.expires_at,
            "user_email_sealed": self._sealer.seal(user_email),
            "lease_owner": None,
            "lease_until": None,
            "connected_at": now,
            "updated_at": now,
        }
        insert_or_update = sqlite_insert if self._database.sqlite else postgresql_insert
        with self._database.write() as tx:
            row = tx.execute(
                insert_or_update(accounts)
                .values(name=name, token_version=1, **values)
                .on_conflict_do_update(
                    index_elements=[accounts.c.name],
                    set_={**values, "token_version": accounts.c.token_version + 1},
                )
                .returning(accounts)
            ).one()
        return _account(row)

    def user_email(self, account_id: int) -> str:
        """The e-mail of the admin who connected the account: notes are posted in their name."""
        with self._database.read() as tx:
            sealed = tx.scalar(select(accounts.c.user_email_sealed).where(accounts.c.id == account_id))
        return "" if sealed is None else self._sealer.open(sealed)

    def withdraw(self, account_id: int, *, reason: str) -> None:
        """Gorgias no longer accepts our tokens: from here on only connecting anew helps."""
        with self._database.write() as tx:
            tx.execute(
                update(accounts)
                .where(accounts.c.id == account_id, accounts.c.state == AccountState.CONNECTED)
                .values(state=AccountState.NEEDS_REAUTH, state_reason=reason, updated_at=self._now())
            )

    def disconnect(self, account_id: int) -> GorgiasError | None:
        """Revoke the tokens, then wipe them. Returns what went wrong with revoking, if anything; wiped they are."""
        problem = None
        with self._database.read() as tx:
            row = tx.execute(select(accounts).where(accounts.c.id == account_id)).one()
        if row.refresh_token_sealed is not None:
            try:
                self._endpoint.revoke(row.name, token=self._sealer.open(row.refresh_token_sealed))
            except GorgiasError as error:
                problem = error
        with self._database.write() as tx:
            tx.execute(
                update(accounts)
                .where(accounts.c.id == account_id)
                .values(
                    state=AccountState.DISCONNECTED,
                    state_reason=None,
                    access_token_sealed=None,
                    refresh_token_sealed=None,
                    user_email_sealed=None,
                    access_expires_at=None,
                    token_version=accounts.c.token_version + 1,
                    updated_at=self._now(),
                )
            )
        return problem

    def access_token(self, account_id: int, *, rejected: AccessToken | None = None) -> AccessToken:
        """A working access token, refreshed when it ends soon or when Gorgias has `rejected` the one in use.

        Raises GorgiasError with NOT_CONNECTED, NEEDS_REAUTH, BUSY or UNREACHABLE.
        """
        give_up_at = self._now() + WAIT_FOR_REFRESH
        while True:
            row = self._read(account_id)
            now = self._now()
            usable = row.access_expires_at > now and (rejected is None or rejected.version != row.token_version)
            if usable and row.access_expires_at - now > REFRESH_BEFORE_END:
                return self._opened(row)
            owner = self._random_bytes(12).hex()
            if self._take_lease(row, owner=owner, now=now):
                try:
                    return self._refresh(row, owner=owner)
                except GorgiasError as error:
                    if usable and error.reason not in (GorgiasReason.NEEDS_REAUTH, GorgiasReason.NOT_CONNECTED):
                        return self._opened(row)
                    raise
            if usable:
                return self._opened(row)
            if now >= give_up_at:
                raise GorgiasError(GorgiasReason.UNREACHABLE, "The connection to Gorgias is being renewed. Try again.")
            self._sleep(POLL_S)

    def token_source(self, account_id: int) -> TokenSource:
        """`access_token` of this account, in the form that a client takes."""

        def token(*, rejected: AccessToken | None = None) -> AccessToken:
            return self.access_token(account_id, rejected=rejected)

        return token

    def _read(self, account_id: int) -> Any:
        with self._database.read() as tx:
            row = tx.execute(select(accounts).where(accounts.c.id == account_id)).one_or_none()
        if row is None or row.state == AccountState.DISCONNECTED:
            raise GorgiasError(GorgiasReason.NOT_CONNECTED, "This helpdesk is not connected.")
        if row.state == AccountState.NEEDS_REAUTH:
            raise GorgiasError(
                GorgiasReason.NEEDS_REAUTH, "Gorgias has withdrawn our access. An admin must connect again."
            )
        return row

    def _opened(self, row: Any) -> AccessToken:
        return AccessToken(value=self._sealer.open(row.access_token_sealed), version=row.token_version)

    def _take_lease(self, row: Any, *, owner: str, now: datetime) -> bool:
        with self._database.write() as tx:
            taken = tx.execute(
                update(accounts)
                .where(
                    accounts.c.id == row.id,
                    accounts.c.token_version == row.token_version,
                    accounts.c.state == AccountState.CONNECTED,
                    or_(accounts.c.lease_until.is_(None), accounts.c.lease_until < now),
                )
                .values(lease_owner=owner, lease_until=now + LEASE)
            )
        return taken.rowcount == 1

    def _refresh(self, row: Any, *, owner: str) -> AccessToken:
        """Ask for a new token and store it. The caller holds the lease."""
        try:
            if row.refresh_token_sealed is None:
                raise InvalidGrant
            answer = self._endpoint.refresh(row.name, refresh_token=self._sealer.open(row.refresh_token_sealed))
            tokens = read_tokens(answer, now=self._now())
        except InvalidGrant:
            return self._after_invalid_grant(row, owner=owner)
        except GorgiasError as error:
            TOKEN_REFRESHES.labels(error.reason.value).inc()
            self._store(row, owner=owner)
            raise
        except OAuthRefused as error:
            TOKEN_REFRESHES.labels(error.reason.value).inc()
            self._store(row, owner=owner)
            raise GorgiasError(GorgiasReason.BROKEN, "Gorgias gave tokens in a shape we cannot read.") from error
        stored = self._store(
            row,
            owner=owner,
            access_token_sealed=self._sealer.seal(tokens.access_token),
            access_expires_at=tokens.expires_at,
            token_version=row.token_version + 1,
            # None returned means that the old one goes on: https://github.com/gorgias/appstore-demo-app
            **({"refresh_token_sealed": self._sealer.seal(tokens.refresh_token)} if tokens.refresh_token else {}),
        )
        if not stored:
            return self._opened(self._read(row.id))
        TOKEN_REFRESHES.labels("ok").inc()
        return AccessToken(value=tokens.access_token, version=row.token_version + 1)

    def _after_invalid_grant(self, row: Any, *, owner: str) -> AccessToken:
        """Refused: access was withdrawn, unless newer tokens were stored meanwhile. Then nothing is written here, and
        reading once more finds them. Raises GorgiasError."""
        TOKEN_REFRESHES.labels("invalid_grant").inc()
        self._store(row, owner=owner, state=AccountState.NEEDS_REAUTH, state_reason="invalid_grant")
        return self.access_token(row.id)

    def _store(self, row: Any, *, owner: str, **values: Any) -> bool:
        """Write `values` and give the lease back, if it is still ours and nobody has stored newer tokens."""
        with self._database.write() as tx:
            stored = tx.execute(
                update(accounts)
                .where(
                    accounts.c.id == row.id,
                    accounts.c.lease_owner == owner,
                    accounts.c.token_version == row.token_version,
                )
                .values(lease_owner=None, lease_until=None, updated_at=self._now(), **values)
            )
        return stored.rowcount == 1


def _account(row: Any) -> Account:
    return Account(
        id=row.id,
        name=row.name,
        state=AccountState(row.state),
        connected_at=row.connected_at,
        access_expires_at=row.access_expires_at,
    )
