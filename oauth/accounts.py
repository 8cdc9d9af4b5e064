"""Helpdesk accounts at rest: their sealed tokens, refreshed by one process at a time, and the OAuth dance's states.

A refresh happens under a lease in the database, so that over all threads, processes and hosts one asks and the
others read what it stored. The new token is stored before anyone uses it. A worker refreshes at half of a token's life,
which is also how an uninstall is found out: nobody is told of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog
from sqlalchemy import String, case, cast, delete, exists, func, insert, literal, null, or_, select, update

from oauth.gorgias_api import (
    AccessToken,
    GorgiasError,
    GorgiasReason,
    InvalidGrant,
    TokenEndpoint,
    TokenSource,
)
from oauth.wire import OAuthRefused, TokenSet, read_tokens
from storage.database import Database, insert_into
from storage.sealing import RandomBytes, Sealer, hash_of
from storage.tables import UtcTime, accounts, jobs, oauth_states
from telemetry import TOKEN_REFRESHES

# Jobs; their reference is the account's id.
REFRESH_TOKEN = "refresh_token"
GIVE_UP_ACCOUNT = "give_up_account"

STATE_LIFE = timedelta(minutes=10)
REFRESH_BEFORE_END = timedelta(minutes=5)
# Longer than the token call can take (3 s to connect, 10 s to read, once again after a dropped connection).
LEASE = timedelta(seconds=30)
WAIT_FOR_REFRESH = timedelta(seconds=12)
POLL_S = 0.05
# Between a refusal and the try that confirms it.
CONFIRM_AFTER = timedelta(minutes=10)
# How long a refresh ahead of time waits after trouble: as long as the trouble lasts already, within these.
SHORTEST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(minutes=30)

log = structlog.get_logger()


class AccountState(StrEnum):
    """Whether we can act in a helpdesk."""

    CONNECTED = "connected"
    NEEDS_REAUTH = "needs_reauth"
    DISCONNECTED = "disconnected"


class Refreshed(StrEnum):
    """How a refresh ended; where the call itself failed, its GorgiasReason is the word."""

    OK = "ok"
    INVALID_GRANT = "invalid_grant"
    """Refused while the access token lives. Tried once more after a while, before anything is made of it."""
    UNINSTALLED = "uninstalled"
    """Refused again: the app was removed in Gorgias."""
    UNPROVEN = "unproven"
    """Refused again, but not for certain because the app was removed."""
    NEEDS_REAUTH = "needs_reauth"
    """Refused, and there is no access token left: only connecting again helps."""
    SUPERSEDED = "superseded"
    """Somebody else stored newer tokens, or disconnected, in the meantime."""
    HELD = "held"
    """Somebody else is refreshing."""
    NOT_DUE = "not_due"


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """How a refresh ahead of time ended, and when to look again, if at all.

    `living` is the access token of an account that was uninstalled: what is ours in Gorgias can be taken out with it.
    """

    outcome: Refreshed | GorgiasReason
    again_at: datetime | None = None
    living: AccessToken | None = None


class Purpose(StrEnum):
    """Why someone is sent to the helpdesk's consent page."""

    CONNECT = "connect"
    SIGN_IN = "sign_in"


@dataclass(frozen=True, kw_only=True)
class Account:
    """One Gorgias helpdesk. `name` is its subdomain, `left_over` names what has to be deleted there by hand.

    `is_refused`: Gorgias has refused to refresh; perhaps the app was removed there.
    """

    id: int
    name: str
    state: AccountState
    connected_at: datetime
    access_expires_at: datetime | None
    left_over: tuple[str, ...] = ()
    is_refused: bool = False


@dataclass(frozen=True, kw_only=True)
class PendingSignIn:
    """What was remembered when the browser was sent away. `return_to` is the page of ours it comes back to, if any."""

    account: str
    purpose: Purpose
    nonce: str
    return_to: str | None = None


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

    def remember_state(
        self, *, account: str, purpose: Purpose, browser: str, return_to: str | None = None
    ) -> tuple[str, str]:
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
                    return_to_sealed=None if return_to is None else self._sealer.seal(return_to),
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
                    oauth_states.c.return_to_sealed,
                    oauth_states.c.expires_at,
                )
            ).one_or_none()
        if row is None or row.expires_at < self._now():
            return None
        return PendingSignIn(
            account=row.account,
            purpose=Purpose(row.purpose),
            nonce=row.nonce,
            return_to=None if row.return_to_sealed is None else self._sealer.open(row.return_to_sealed),
        )

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
            "client_hash": self._endpoint.client_hash,
            "refresh_at": _half_of_life(tokens, now=now),
            "refused_at": None,
            "failing_since": None,
            "disconnected_at": None,
            "user_email_sealed": self._sealer.seal(user_email),
            "lease_owner": None,
            "lease_until": None,
            "connected_at": now,
            "updated_at": now,
        }
        with self._database.write() as tx:
            row = tx.execute(
                insert_into(tx, accounts)
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
            withdrawn = tx.execute(
                update(accounts)
                .where(accounts.c.id == account_id, accounts.c.state == AccountState.CONNECTED)
                .values(updated_at=self._now(), **_withdrawn(reason))
            )
        if withdrawn.rowcount == 1:
            log.warning("account", outcome=AccountState.NEEDS_REAUTH.value, reason=reason, account=account_id)

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
            tx.execute(update(accounts).where(accounts.c.id == account_id).values(self._wiped(reason=None)))
        return problem

    def end(self, account_id: int, *, living: AccessToken) -> bool:
        """Wipe the tokens of an account that was uninstalled; False when it is not in that state any more.

        `living` is the token that `renew` gave: whoever connected again in the meantime stays connected.
        """
        with self._database.write() as tx:
            ended = tx.execute(
                update(accounts)
                .where(*_is_uninstalled(account_id, living))
                .values(self._wiped(reason=Refreshed.UNINSTALLED))
            )
        if ended.rowcount == 1:
            log.warning("account", outcome=Refreshed.UNINSTALLED.value, account=account_id)
        return ended.rowcount == 1

    def abandoned(self, *, since: datetime, limit: int = 100) -> list[str]:
        """Accounts that wait since before `since` for somebody to connect them again, and for which no job waits."""
        ref = cast(accounts.c.id, String)
        has_job = exists().where(jobs.c.name == GIVE_UP_ACCOUNT, jobs.c.ref == ref)
        statement = select(ref).where(*_is_abandoned(since), ~has_job).order_by(accounts.c.updated_at).limit(limit)
        with self._database.read(unhurried=True) as tx:
            return list(tx.scalars(statement))

    def is_abandoned(self, account_id: int, *, since: datetime) -> bool:
        """Whether nobody has connected the account again."""
        with self._database.read() as tx:
            mine = accounts.c.id == account_id
            return tx.scalar(select(accounts.c.id).where(mine, *_is_abandoned(since))) is not None

    def give_up(self, account_id: int, *, since: datetime) -> bool:
        """Wipe the dead tokens of an account that nobody has connected again; False when somebody has."""
        with self._database.write() as tx:
            ended = tx.execute(
                update(accounts)
                .where(accounts.c.id == account_id, *_is_abandoned(since))
                .values(self._wiped(reason=None))
            )
        if ended.rowcount == 1:
            log.warning("account", outcome="given_up", account=account_id)
        return ended.rowcount == 1

    def still_uninstalled(self, account_id: int, *, living: AccessToken) -> bool:
        """Whether nobody has connected the account again since `renew` gave `living`."""
        with self._database.read() as tx:
            return tx.scalar(select(accounts.c.id).where(*_is_uninstalled(account_id, living))) is not None

    def take_left_over(self, account_id: int) -> list[str]:
        """What could not be taken out of Gorgias when the account left, to be told to its people; told once."""
        mine = accounts.c.id == account_id
        with self._database.write() as tx:
            left: list[str] | None = tx.scalar(select(accounts.c.left_over).where(mine).with_for_update())
            if left:
                tx.execute(update(accounts).where(mine).values(left_over=null()))
        return left or []

    def due(self, *, limit: int = 500) -> list[str]:
        """Accounts whose token is to be refreshed and for which no job waits, longest due first: for the sweep.

        A sweep each minute with this limit is three times what 100,000 accounts need, twice a day each.
        """
        ref = cast(accounts.c.id, String)
        has_job = exists().where(jobs.c.name == REFRESH_TOKEN, jobs.c.ref == ref)
        with self._database.read(unhurried=True) as tx:
            return list(
                tx.scalars(
                    select(ref)
                    .where(accounts.c.state == AccountState.CONNECTED, accounts.c.refresh_at <= self._now(), ~has_job)
                    .order_by(accounts.c.refresh_at)
                    .limit(limit)
                )
            )

    def renew(self, account_id: int) -> Renewal:
        """Refresh the account's token ahead of its end, if that is due. Raises nothing of Gorgias'.

        What it ended with is stored: whoever asks the next time, however late, goes on from there.
        """
        now = self._now()
        with self._database.read() as tx:
            row = tx.execute(select(accounts).where(accounts.c.id == account_id)).one_or_none()
        if row is None or not _is_due(row, now):
            return Renewal(outcome=Refreshed.NOT_DUE)
        owner = self._random_bytes(12).hex()
        row = self._take_lease(row, owner=owner, now=now)
        if row is None:
            return Renewal(outcome=Refreshed.HELD, again_at=now + LEASE)
        if not _is_due(row, now):
            self._store(row, owner=owner)
            return Renewal(outcome=Refreshed.NOT_DUE)
        asked = self._refresh(row, owner=owner, usable=True)
        if asked.outcome is Refreshed.UNINSTALLED:
            return Renewal(outcome=asked.outcome, again_at=asked.again_at, living=self._opened(row))
        return Renewal(outcome=asked.outcome, again_at=asked.again_at)

    def access_token(self, account_id: int, *, rejected: AccessToken | None = None) -> AccessToken:
        """A working access token, refreshed when it ends soon or when Gorgias has `rejected` the one in use.

        Raises GorgiasError with NOT_CONNECTED, NEEDS_REAUTH, BUSY or UNREACHABLE.
        """
        give_up_at = self._now() + WAIT_FOR_REFRESH
        while True:
            row = self._read(account_id)
            now = self._now()
            usable = row.access_expires_at > now and (rejected is None or rejected.version != row.token_version)
            # Refused once, it is the worker's to find out what that means; until then what lives is used.
            if usable and (row.refused_at is not None or row.access_expires_at - now > REFRESH_BEFORE_END):
                return self._opened(row)
            owner = self._random_bytes(12).hex()
            leased = self._take_lease(row, owner=owner, now=now)
            if leased is not None:
                asked = self._refresh(leased, owner=owner, usable=usable)
                if asked.token is not None:
                    return asked.token
                if asked.error is None:
                    # Refused, or overtaken by others: what is stored now says how to go on.
                    return self.access_token(account_id)
                if not usable:
                    raise asked.error
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

    def _take_lease(self, row: Any, *, owner: str, now: datetime) -> Any | None:
        """The account as it is now, held by `owner` alone; None when somebody else holds it or has changed it."""
        failing_since = case(
            # Who held it did not come back: what Gorgias answered them, if anything, is lost.
            (accounts.c.lease_owner.is_not(None), func.coalesce(accounts.c.failing_since, literal(now, UtcTime()))),
            else_=accounts.c.failing_since,
        )
        with self._database.write() as tx:
            return tx.execute(
                update(accounts)
                .where(
                    accounts.c.id == row.id,
                    accounts.c.token_version == row.token_version,
                    accounts.c.state == AccountState.CONNECTED,
                    or_(accounts.c.lease_until.is_(None), accounts.c.lease_until < now),
                )
                .values(lease_owner=owner, lease_until=now + LEASE, failing_since=failing_since)
                .returning(accounts)
            ).one_or_none()

    def _refresh(self, row: Any, *, owner: str, usable: bool) -> _Asked:
        """Ask for new tokens and store them, or what came instead. The caller holds the lease.

        `usable`: the access token is not known to be dead.
        """
        try:
            tokens = self._ask(row)
        except InvalidGrant:
            return self._refused(row, owner=owner, usable=usable)
        except GorgiasError as error:
            return self._failed(row, owner=owner, error=error)
        now = self._now()
        stored = self._store(
            row,
            owner=owner,
            access_token_sealed=self._sealer.seal(tokens.access_token),
            access_expires_at=tokens.expires_at,
            client_hash=self._endpoint.client_hash,
            refresh_at=_half_of_life(tokens, now=now),
            refused_at=None,
            failing_since=None,
            token_version=row.token_version + 1,
            # None returned means that the old one goes on: https://github.com/gorgias/appstore-demo-app
            **({"refresh_token_sealed": self._sealer.seal(tokens.refresh_token)} if tokens.refresh_token else {}),
        )
        if not stored:
            return _asked(Refreshed.SUPERSEDED)
        if row.failing_since is not None or row.refused_at is not None:
            log.info("token_refresh", outcome=Refreshed.OK.value, account=row.id)
        return _asked(Refreshed.OK, token=AccessToken(value=tokens.access_token, version=row.token_version + 1))

    def _ask(self, row: Any) -> TokenSet:
        """New tokens from Gorgias. Raises InvalidGrant or GorgiasError."""
        if row.refresh_token_sealed is None:
            raise InvalidGrant
        answer = self._endpoint.refresh(row.name, refresh_token=self._sealer.open(row.refresh_token_sealed))
        try:
            return read_tokens(answer, now=self._now())
        except OAuthRefused as error:
            raise GorgiasError(GorgiasReason.BROKEN, "Gorgias gave tokens in a shape we cannot read.") from error

    def _failed(self, row: Any, *, owner: str, error: GorgiasError) -> _Asked:
        """Neither tokens nor a refusal: later again. Says nothing about the account."""
        now = self._now()
        since = row.failing_since or now
        pause = max(SHORTEST_PAUSE, min(now - since, LONGEST_PAUSE), timedelta(seconds=error.retry_after_s or 0))
        stored = self._store(row, owner=owner, failing_since=since, refresh_at=now + pause)
        if stored and row.failing_since is None:
            log.warning("token_refresh", outcome=error.reason.value, account=row.id)
        return _asked(error.reason, again_at=now + pause, error=error)

    def _refused(self, row: Any, *, owner: str, usable: bool) -> _Asked:
        """`invalid_grant`: store what it means, unless newer tokens were stored meanwhile."""
        now = self._now()
        outcome = _meaning_of_refusal(
            row,
            living=usable and row.access_expires_at > now,
            same_app=row.client_hash == self._endpoint.client_hash,
            now=now,
        )
        values: dict[str, Any] = {}
        if outcome is Refreshed.NEEDS_REAUTH:
            values = _withdrawn(Refreshed.INVALID_GRANT.value)
        elif outcome is Refreshed.INVALID_GRANT:
            since = row.refused_at or now
            values = {"refused_at": since, "refresh_at": since + CONFIRM_AFTER}
        elif outcome is Refreshed.UNPROVEN:
            values = {"refresh_at": row.access_expires_at}
        elif outcome is Refreshed.UNINSTALLED:
            # Should taking everything out not come to its end.
            values = {"refresh_at": now + CONFIRM_AFTER}
        if not self._store(row, owner=owner, **values):
            return _asked(Refreshed.SUPERSEDED)
        # Confirmed, it is told once all is taken out and wiped: `end`.
        if outcome is not Refreshed.UNINSTALLED:
            log.warning("token_refresh", outcome=outcome.value, account=row.id)
        return _asked(outcome, again_at=values.get("refresh_at"))

    def _wiped(self, *, reason: Refreshed | None) -> dict[str, Any]:
        return {
            "state": AccountState.DISCONNECTED,
            "state_reason": reason,
            "access_token_sealed": None,
            "refresh_token_sealed": None,
            "user_email_sealed": None,
            "access_expires_at": None,
            "refresh_at": None,
            "refused_at": None,
            "failing_since": None,
            "disconnected_at": self._now(),
            "token_version": accounts.c.token_version + 1,
            "updated_at": self._now(),
        }

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


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What asking for new tokens came to. With neither `token` nor `error`, what is stored now counts."""

    outcome: Refreshed | GorgiasReason
    token: AccessToken | None = None
    error: GorgiasError | None = None
    again_at: datetime | None = None


def _asked(outcome: Refreshed | GorgiasReason, **came: Any) -> _Asked:
    TOKEN_REFRESHES.labels(outcome.value).inc()
    return _Asked(outcome=outcome, **came)


def _meaning_of_refusal(row: Any, *, living: bool, same_app: bool, now: datetime) -> Refreshed:
    """What `invalid_grant` says about the account. `living`: its access token still works, as far as we know;
    `same_app`: the tokens were given to the app in whose name we ask.

    Uninstalling revokes the refresh token and leaves the access token to its end, so that asking with it whether the
    app is still installed would prove nothing: https://github.com/gorgias/appstore-demo-app

    UNKNOWN: whether Gorgias refuses a refresh for any other reason. A refusal that stays after CONFIRM_AFTER is taken
    for an uninstall, with one exception: refresh tokens do not rotate as far as is known, but if they do, one of which
    the answer was lost leaves us with the former, which is refused although the app is installed. After trouble, then,
    the cards stay in Gorgias and go on answering, and the merchant is asked once the access token has ended. The same
    where GORGIAS_CLIENT_ID is another app's: every token is refused then (RFC 6749, 5.2), and nobody has uninstalled.
    """
    if not living:
        return Refreshed.NEEDS_REAUTH
    if row.refused_at is None or now - row.refused_at < CONFIRM_AFTER:
        return Refreshed.INVALID_GRANT
    return Refreshed.UNINSTALLED if same_app and row.failing_since is None else Refreshed.UNPROVEN


def _is_due(row: Any, now: datetime) -> bool:
    return row.state == AccountState.CONNECTED and row.refresh_at is not None and row.refresh_at <= now


def _withdrawn(reason: str) -> dict[str, Any]:
    return {"state": AccountState.NEEDS_REAUTH, "state_reason": reason, "refresh_at": None}


def _is_abandoned(since: datetime) -> tuple[Any, ...]:
    return (accounts.c.state == AccountState.NEEDS_REAUTH, accounts.c.updated_at < since)


def _is_uninstalled(account_id: int, living: AccessToken) -> tuple[Any, ...]:
    return (
        accounts.c.id == account_id,
        accounts.c.token_version == living.version,
        accounts.c.state != AccountState.DISCONNECTED,
    )


def _half_of_life(tokens: TokenSet, *, now: datetime) -> datetime:
    # Never at once: a clock that is wrong must not make us ask without end.
    return now + max((tokens.expires_at - now) / 2, SHORTEST_PAUSE)


def _account(row: Any) -> Account:
    return Account(
        id=row.id,
        name=row.name,
        state=AccountState(row.state),
        connected_at=row.connected_at,
        access_expires_at=row.access_expires_at,
        left_over=tuple(row.left_over or ()),
        is_refused=row.refused_at is not None,
    )
