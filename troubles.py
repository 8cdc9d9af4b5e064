"""What is wrong now with an account and its connections: noted by whoever sees it, shown to whoever may mend it.

A trouble is logged once when it comes and once when it is over, however often it is seen in between. The merchant is
told by `notices.py`; a row stays until they know that all is well again, so that nothing is told twice or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, delete, insert, select, update

from findings import Finding, Severity
from storage.database import Database
from storage.queue import defer
from storage.tables import troubles

TELL_TROUBLE = "tell_trouble"

# What the columns hold; sentences of ours are shorter.
MAX_TEXT = 400

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One thing that is wrong, or that is well again and not told yet (severity `ok`).

    `connection_id` is None when it is about the account itself. `told` is what the merchant was last told.
    """

    id: int
    connection_id: int | None
    finding: str
    severity: Severity
    sentence: str
    remedy: str
    since: datetime
    changed_at: datetime
    told: Severity

    @property
    def about(self) -> str:
        """What it is about within the account, as people read it; empty for the account itself."""
        return _subject(self.connection_id)


class Troubles:
    """The troubles of every account."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def note(
        self,
        account_id: int,
        connection_id: int | None,
        findings: Sequence[Finding],
        *,
        looked_at: Collection[str],
    ) -> None:
        """Keep what was just seen of a connection, or of the account itself where `connection_id` is None.

        `looked_at` are the ids of everything that was looked at. What is not among the findings could not be judged,
        because something else stands in the way: of that, nothing is known any more.
        """
        with self._database.read() as tx:
            if not self._news(tx, account_id, connection_id, findings, looked_at):
                return
        now = self._now()
        with self._database.write() as tx:
            # Two who see the same at the same moment: the second finds it noted.
            self._database.lock(tx, f"troubles {account_id}")
            news = self._news(tx, account_id, connection_id, findings, looked_at)
            for row, finding in news:
                self._keep(tx, account_id, connection_id, row, finding, now=now)
            defer(tx, TELL_TROUBLE, str(account_id), run_at=now)
        for row, finding in news:
            _log(account_id, connection_id, row, finding)

    def of_account(self, account_id: int) -> list[Trouble]:
        """What is wrong now, the account itself first, then the worst first."""
        found = self._select(troubles.c.account_id == account_id, troubles.c.severity != Severity.OK)
        return sorted(found, key=lambda t: (t.connection_id or 0, t.severity is not Severity.ERROR, t.since))

    def of_all(self, *, limit: int) -> list[tuple[int, Trouble]]:
        """What is wrong now anywhere, with the account's id: the oldest first, at most `limit`."""
        statement = select(troubles).where(troubles.c.severity != Severity.OK).order_by(troubles.c.since).limit(limit)
        with self._database.read(unhurried=True) as tx:
            return [(row.account_id, _trouble(row)) for row in tx.execute(statement)]

    def keep_only(self, account_id: int, connection_ids: Iterable[int]) -> None:
        """Forget the troubles of connections that are gone: of the account's, all but `connection_ids`."""
        kept = ["", *map(_subject, connection_ids)]
        gone = (troubles.c.account_id == account_id, troubles.c.subject.not_in(kept))
        with self._database.read() as tx:
            if tx.scalar(select(troubles.c.id).where(*gone).limit(1)) is None:
                return
        with self._database.write() as tx:
            tx.execute(delete(troubles).where(*gone))

    def forget(self, tx: Connection, account_id: int) -> None:
        """Forget every trouble of the account."""
        tx.execute(delete(troubles).where(troubles.c.account_id == account_id))

    def untold(self, account_id: int) -> list[Trouble]:
        """What has changed since the merchant was last told, the oldest first."""
        return self._select(troubles.c.account_id == account_id, troubles.c.severity != troubles.c.told)

    def mark_told(self, told: Iterable[Trouble]) -> None:
        """The merchant knows of these now, or nobody is to be told. What changed meanwhile stays to be told."""
        with self._database.write() as tx:
            for trouble in told:
                same = (troubles.c.id == trouble.id, troubles.c.severity == trouble.severity)
                tx.execute(update(troubles).where(*same).values(told=trouble.severity))
                tx.execute(delete(troubles).where(*same, troubles.c.severity == Severity.OK))

    def forgotten(self, *, older_than: datetime, limit: int = 1_000) -> list[str]:
        """Accounts whose merchant was to be told before `older_than` and was not, as references of jobs."""
        statement = (
            select(troubles.c.account_id)
            .where(troubles.c.severity != troubles.c.told, troubles.c.changed_at < older_than)
            .distinct()
            .limit(limit)
        )
        with self._database.read() as tx:
            return [str(account_id) for account_id in tx.scalars(statement)]

    def _select(self, *conditions: Any) -> list[Trouble]:
        statement = select(troubles).where(*conditions).order_by(troubles.c.changed_at, troubles.c.id)
        with self._database.read() as tx:
            return [_trouble(row) for row in tx.execute(statement)]

    def _news(
        self,
        tx: Connection,
        account_id: int,
        connection_id: int | None,
        findings: Sequence[Finding],
        looked_at: Collection[str],
    ) -> list[tuple[Any, Finding | None]]:
        """Pairs of a row as kept and what was seen now: no row when it is new, no finding when nothing is known."""
        found = {finding.id: finding for finding in findings}
        rows = {
            row.finding: row
            for row in tx.execute(
                select(troubles).where(
                    troubles.c.account_id == account_id,
                    troubles.c.subject == _subject(connection_id),
                    troubles.c.finding.in_([*looked_at, *found]),
                )
            )
        }
        news: list[tuple[Any, Finding | None]] = []
        for name in sorted({*rows, *found}):
            row, finding = rows.get(name), found.get(name)
            if row is None:
                if finding is not None and not finding.well:
                    news.append((None, finding))
            elif finding is None or (row.severity, row.sentence, row.remedy) != _columns(finding):
                news.append((row, finding))
        return news

    def _keep(
        self,
        tx: Connection,
        account_id: int,
        connection_id: int | None,
        row: Any,
        finding: Finding | None,
        *,
        now: datetime,
    ) -> None:
        if finding is None:
            tx.execute(delete(troubles).where(troubles.c.id == row.id))
            return
        severity, sentence, remedy = _columns(finding)
        values: dict[str, Any] = {"severity": severity, "sentence": sentence, "remedy": remedy}
        if row is None:
            tx.execute(
                insert(troubles).values(
                    account_id=account_id,
                    subject=_subject(connection_id),
                    finding=finding.id,
                    since=now,
                    changed_at=now,
                    told=Severity.OK,
                    **values,
                )
            )
        elif finding.well and row.told == Severity.OK:
            # It came and went before anybody was told.
            tx.execute(delete(troubles).where(troubles.c.id == row.id))
        else:
            if row.severity != severity:
                values["changed_at"] = now
            if row.severity == Severity.OK:
                values["since"] = now
            tx.execute(update(troubles).where(troubles.c.id == row.id).values(**values))


def _log(account_id: int, connection_id: int | None, row: Any, finding: Finding | None) -> None:
    """One line when something goes bad, better or worse, and one when it is well again."""
    if finding is None or (row is not None and row.severity == finding.severity):
        return
    about: dict[str, Any] = {"finding": finding.id, "account": account_id}
    if connection_id is not None:
        about["connection"] = connection_id
    if finding.well:
        log.info("health", outcome="well_again", **about)
    else:
        tell = log.error if finding.severity is Severity.ERROR else log.warning
        tell("health", outcome=finding.severity.value, **about)


def _columns(finding: Finding) -> tuple[str, str, str]:
    return finding.severity.value, finding.sentence[:MAX_TEXT], finding.remedy[:MAX_TEXT]


def _subject(connection_id: int | None) -> str:
    return "" if connection_id is None else f"connection {connection_id}"


def _trouble(row: Any) -> Trouble:
    return Trouble(
        id=row.id,
        connection_id=int(row.subject.removeprefix("connection ")) if row.subject else None,
        finding=row.finding,
        severity=Severity(row.severity),
        sentence=row.sentence,
        remedy=row.remedy,
        since=row.since,
        changed_at=row.changed_at,
        told=Severity(row.told),
    )
