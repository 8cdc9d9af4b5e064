"""Looks whether a helpdesk account is well: our access to it, what we placed in it, and the keys of its programs.

Once a day a job probes every account; it also comes when something is known to have changed. What it sees is noted in
`troubles.py`, as is what the pages of the console see meanwhile, so that all of them tell the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import and_, exists, or_, select, update

from findings import Finding, Severity
from loyalty.program import ProgramKind
from loyalty.stores import KeyState, Stores
from oauth.accounts import Account, Accounts, AccountState, Refreshed
from oauth.gorgias_api import GorgiasApi, GorgiasError, GorgiasReason
from storage.database import Database
from storage.tables import accounts, connections, stores, troubles
from troubles import Troubles
from widget.connections import Connection, Connections, ConnectionState
from widget.placement import Part, Placement, PlacementFailed, PlacementProblem

PROBE_ACCOUNT = "probe_account"
PROBE_EVERY = timedelta(days=1)
AGAIN_AFTER = timedelta(minutes=15)
# Who has just connected looks at the pages, and those look themselves.
LEFT_ALONE = timedelta(minutes=10)
# Of one sweep, of which there is one a minute: 100,000 accounts take eight hours, spread over them ever after.
MOST_PER_SWEEP = 200

GORGIAS_TOKEN = "gorgias.token"
GORGIAS_REACHABLE = "gorgias.reachable"
PROGRAM_KEY = "program.key"


class ProbeOutcome(StrEnum):
    """How a probe ended."""

    WELL = "well"
    TROUBLED = "troubled"
    NOT_ASKED = "not_asked"
    UNINSTALLED = "uninstalled"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """`again_at` is set when Gorgias could not be asked and is to be asked again."""

    outcome: ProbeOutcome
    again_at: datetime | None = None


class Probe:
    """Looks at accounts and connections."""

    def __init__(
        self,
        database: Database,
        *,
        accounts: Accounts,
        connections: Connections,
        placement: Placement,
        stores: Stores,
        troubles: Troubles,
        api_for: Callable[[int, str], GorgiasApi],
        public_url: str,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._connections = connections
        self._placement = placement
        self._stores = stores
        self._troubles = troubles
        self._api_for = api_for
        self._public_url = public_url
        self._now = now

    def access(self, account: Account) -> tuple[Finding, datetime | None]:
        """Whether Gorgias takes our token (`gorgias.reachable` instead when it did not say), and its clock's time."""
        api = self._api_for(account.id, account.name)
        try:
            api.get("/api/account")
        except GorgiasError as error:
            if error.reason in _LOST:
                finding = self._lost(account)
            elif error.reason is GorgiasReason.FORBIDDEN:
                finding = self._not_admin(account)
            else:
                finding = Finding(
                    id=GORGIAS_REACHABLE,
                    severity=Severity.WARNING,
                    sentence=f"Gorgias could not be asked. {error}",
                    remedy="Try again in some minutes; when it goes on, see whether this host may reach Gorgias.",
                )
        else:
            finding = _ACCEPTED
        return finding, api.told_at

    def program_key(self, connection: Connection) -> list[Finding]:
        """Whether the program takes the store's key, as far as is known; nothing for a program without one."""
        if connection.store.program is ProgramKind.LEDGER:
            return []
        standing = self._stores.standing(connection.store)
        if standing.state is KeyState.OK:
            return [Finding(id=PROGRAM_KEY, severity=Severity.OK, sentence="The loyalty program takes the key.")]
        return [
            Finding(
                id=PROGRAM_KEY,
                severity=Severity.ERROR,
                sentence="The loyalty program refuses the key. Agents see the last known values, awards are refused."
                if standing.state is KeyState.REFUSED
                else "There is no key for the loyalty program.",
                remedy="Paste the present key on the connection's page.",
            )
        ]

    def see(self, connection: Connection) -> list[Finding]:
        """Look at the connection's placement, and note what is seen. Raises PlacementFailed."""
        findings = self._placement.inspect(connection)
        self._troubles.note(connection.account_id, connection.id, findings, looked_at=tuple(Part))
        # Gorgias has just taken the token.
        self._troubles.note(connection.account_id, None, [_ACCEPTED], looked_at=(GORGIAS_TOKEN,))
        return findings

    def see_connected(self, account_id: int) -> None:
        """Note that the account was connected just now: Gorgias has given us a token."""
        self._troubles.note(account_id, None, [_ACCEPTED], looked_at=(GORGIAS_TOKEN,))

    def see_key(self, connection: Connection) -> None:
        """Note how it stands with the key of the connection's program."""
        findings = self.program_key(connection)
        self._troubles.note(connection.account_id, connection.id, findings, looked_at=(PROGRAM_KEY,))

    def probe(self, account_id: int) -> ProbeResult:
        """Look at the whole account and note what is seen. May run twice."""
        account = self._accounts.by_id(account_id)
        if account is None:
            return ProbeResult(outcome=ProbeOutcome.FORGOTTEN)
        if account.state is AccountState.DISCONNECTED:
            result = self._after_the_end(account)
        else:
            result = self._look(account)
        if result.again_at is None:
            with self._database.write() as tx:
                tx.execute(update(accounts).where(accounts.c.id == account_id).values(probed_at=self._now()))
        return result

    def due(self) -> list[str]:
        """Accounts to be probed now, as references of jobs: at most so many that they are spread over the day.

        Those not looked at for a day, or since they were connected; sooner those that lost our access, have a program
        that has refused its key, or were disconnected.
        """
        since = accounts.c.probed_at
        refused = exists().where(
            connections.c.account_id == accounts.c.id,
            connections.c.state == ConnectionState.ACTIVE,
            stores.c.id == connections.c.store_id,
            stores.c.key_state == KeyState.REFUSED,
            stores.c.key_state_since > since,
        )
        lost = and_(accounts.c.state == AccountState.NEEDS_REAUTH, accounts.c.updated_at > since)
        now = self._now()
        unseen = or_(since.is_(None), since < now - PROBE_EVERY, since < accounts.c.connected_at)
        settled = accounts.c.connected_at < now - LEFT_ALONE
        present = and_(
            accounts.c.state.in_((AccountState.CONNECTED, AccountState.NEEDS_REAUTH)),
            or_(and_(unseen, settled), lost, refused),
        )
        left = and_(
            accounts.c.state == AccountState.DISCONNECTED,
            or_(since.is_(None), since < accounts.c.updated_at),
            or_(accounts.c.notice_url_sealed.is_not(None), exists().where(troubles.c.account_id == accounts.c.id)),
        )
        statement = select(accounts.c.id).where(or_(present, left)).order_by(since).limit(MOST_PER_SWEEP)
        with self._database.read() as tx:
            return [str(account_id) for account_id in tx.scalars(statement)]

    def forget_if_disconnected(self, account_id: int) -> None:
        """Nobody is told of an account that is disconnected any more: its troubles and its notice address go."""
        with self._database.write() as tx:
            gone = tx.execute(
                update(accounts)
                .where(accounts.c.id == account_id, accounts.c.state == AccountState.DISCONNECTED)
                .values(notice_url_sealed=None)
            )
            if gone.rowcount == 1:
                self._troubles.forget(tx, account_id)

    def _look(self, account: Account) -> ProbeResult:
        active = self._connections.of_account(account.id)
        self._troubles.keep_only(account.id, [connection.id for connection in active])
        for connection in active:
            self.see_key(connection)
        access, _ = self.access(account)
        if access.id == GORGIAS_REACHABLE:
            return self._not_asked()
        result = None
        if access.well:
            try:
                for connection in active:
                    self.see(connection)
            except PlacementFailed as error:
                if error.problem is PlacementProblem.NEEDS_REAUTH:
                    access = self._lost(account)
                elif error.problem is PlacementProblem.NOT_ADMIN:
                    access = self._not_admin(account)
                elif error.problem is PlacementProblem.GORGIAS_REFUSED:
                    # An answer that cannot be read now cannot be read in a quarter of an hour either.
                    result = ProbeResult(outcome=ProbeOutcome.NOT_ASKED)
                else:
                    result = self._not_asked()
        self._troubles.note(account.id, None, [access], looked_at=(GORGIAS_TOKEN,))
        if result is not None:
            return result
        wrong = self._troubles.of_account(account.id)
        return ProbeResult(outcome=ProbeOutcome.TROUBLED if wrong else ProbeOutcome.WELL)

    def _after_the_end(self, account: Account) -> ProbeResult:
        """Who disconnected here knows it. Who removed the app in Gorgias may not have meant it."""
        with self._database.read() as tx:
            row = tx.execute(
                select(accounts.c.state_reason, accounts.c.notice_url_sealed).where(accounts.c.id == account.id)
            ).one()
        if row.state_reason != Refreshed.UNINSTALLED or row.notice_url_sealed is None:
            self.forget_if_disconnected(account.id)
            return ProbeResult(outcome=ProbeOutcome.FORGOTTEN)
        self._troubles.keep_only(account.id, [])
        removed = Finding(
            id=GORGIAS_TOKEN,
            severity=Severity.ERROR,
            sentence="Tallydesk was removed in Gorgias, and the helpdesk is disconnected.",
            remedy=f"Nothing, if it was meant; else connect again: {self._install_url(account)}",
        )
        self._troubles.note(account.id, None, [removed], looked_at=(GORGIAS_TOKEN,))
        return ProbeResult(outcome=ProbeOutcome.UNINSTALLED)

    def _lost(self, account: Account) -> Finding:
        return Finding(
            id=GORGIAS_TOKEN,
            severity=Severity.ERROR,
            sentence="Gorgias no longer accepts our access. Cards go on, but notes on tickets wait.",
            remedy=f"A helpdesk admin connects again: {self._install_url(account)}",
        )

    def _not_admin(self, account: Account) -> Finding:
        return Finding(
            id=GORGIAS_TOKEN,
            severity=Severity.ERROR,
            sentence="Gorgias no longer lets the person who connected look after the integration.",
            remedy=f"Somebody who is a helpdesk admin connects again: {self._install_url(account)}",
        )

    def _install_url(self, account: Account) -> str:
        return f"{self._public_url}/oauth/install?account={account.name}"

    def _not_asked(self) -> ProbeResult:
        return ProbeResult(outcome=ProbeOutcome.NOT_ASKED, again_at=self._now() + AGAIN_AFTER)


_ACCEPTED = Finding(id=GORGIAS_TOKEN, severity=Severity.OK, sentence="Gorgias accepts our access.")
_LOST = (GorgiasReason.NEEDS_REAUTH, GorgiasReason.UNAUTHORIZED, GorgiasReason.NOT_CONNECTED)
