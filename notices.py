"""Telling a merchant of trouble: one small POST to the address they gave, as the incoming webhook of a chat takes it.

It says what is wrong with the helpdesk and its connections and when it is well again, and never anything of a shopper
or an agent. The address is the merchant's and the connection is ours: it goes by https to public addresses alone, is
never redirected, and nothing of the answer but its status is looked at. Development may also tell this very machine.
Slack, and what understands its messages, takes `{"text": …}`: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit

import orjson
import structlog
from sqlalchemy import select, update

from findings import Severity
from outbound import Client, NoAnswer, NotSent, TooLarge, is_public
from settings import is_loopback
from storage.database import Database
from storage.sealing import CannotOpen, Sealer
from storage.tables import accounts
from troubles import Trouble, Troubles

MAX_URL = 500
WITHIN_S = 5.0
# Between two attempts: a tenth of the time that has passed, within these bounds.
SOONEST, LATEST = timedelta(minutes=1), timedelta(hours=1)
GIVE_UP_AFTER = timedelta(days=1)

log = structlog.get_logger()


class NoticeOutcome(StrEnum):
    """How an attempt to tell the merchant ended."""

    TOLD = "told"
    NOTHING_NEW = "nothing_new"
    NO_ADDRESS = "no_address"
    AGAIN = "again"
    GIVEN_UP = "given_up"


class BadNoticeUrl(Exception):
    """The address cannot be used; the text says why, for a person."""


class NotTold(Exception):
    """The notice did not arrive; the text says why, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class NoticeResult:
    """`again_at` is set when it must be tried again."""

    outcome: NoticeOutcome
    again_at: datetime | None = None


class Notices:
    """Notices to the merchants of all accounts. `development` allows addresses on this machine, and http there."""

    def __init__(
        self,
        database: Database,
        *,
        sealer: Sealer,
        troubles: Troubles,
        public_url: str,
        development: bool,
        client: Client,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._troubles = troubles
        self._public_url = public_url
        self._development = development
        self._now = now
        self._client = client

    def keep(self, account_id: int, *, account: str, typed: str) -> None:
        """Tell this address from now on, once a first notice has arrived there. Raises BadNoticeUrl."""
        url = read_notice_url(typed, development=self._development)
        wrong = self._troubles.of_account(account_id)
        lines = [
            f"Tallydesk tells you here when something is wrong with {account}, and when it is well again.",
            *(_line(account, trouble) for trouble in wrong),
        ]
        try:
            self._send(url, "\n".join(lines))
        except NotTold as error:
            raise BadNoticeUrl(f"A first notice to this address did not arrive: {error}.") from error
        with self._database.write() as tx:
            sealed = self._sealer.seal(url)
            tx.execute(update(accounts).where(accounts.c.id == account_id).values(notice_url_sealed=sealed))
        self._troubles.mark_told(wrong)

    def stop(self, account_id: int) -> None:
        """Tell this merchant nothing more; the address is forgotten."""
        with self._database.write() as tx:
            tx.execute(update(accounts).where(accounts.c.id == account_id).values(notice_url_sealed=None))

    def host(self, account_id: int) -> str:
        """Where this merchant is told, as far as it may be shown: the rest is a secret. Empty when nowhere."""
        return urlsplit(self._url(account_id)).hostname or ""

    def tell(self, account_id: int) -> NoticeResult:
        """Tell the merchant what has changed since they were last told. May run twice: then it may be told twice."""
        news = self._troubles.untold(account_id)
        if not news:
            return NoticeResult(outcome=NoticeOutcome.NOTHING_NEW)
        url = self._url(account_id)
        if not url:
            self._troubles.mark_told(news)
            return NoticeResult(outcome=NoticeOutcome.NO_ADDRESS)
        account = self._account(account_id)
        try:
            self._send(
                url, "\n".join([*(_line(account, trouble) for trouble in news), f"{self._public_url}/connections/"])
            )
        except NotTold as error:
            age = self._now() - min(trouble.changed_at for trouble in news)
            if age < GIVE_UP_AFTER:
                pause = min(max(age / 10, SOONEST), LATEST)
                return NoticeResult(outcome=NoticeOutcome.AGAIN, again_at=self._now() + pause)
            log.warning("notice", outcome=NoticeOutcome.GIVEN_UP, account=account_id, trouble=str(error))
            self._troubles.mark_told(news)
            return NoticeResult(outcome=NoticeOutcome.GIVEN_UP)
        self._troubles.mark_told(news)
        return NoticeResult(outcome=NoticeOutcome.TOLD)

    def _send(self, url: str, text: str) -> None:
        """Raises NotTold."""
        local = self._development and is_loopback(urlsplit(url).hostname)
        try:
            answer = self._client.exchange(
                "POST",
                url,
                headers={"Content-Type": "application/json", "User-Agent": "Tallydesk", "Connection": "close"},
                body=orjson.dumps({"text": text}),
                within_s=WITHIN_S,
                public_only=not local,
            )
        except (NotSent, NoAnswer) as error:
            raise NotTold(str(error)) from error
        except TooLarge:
            # Whoever answers at such length has taken it.
            return
        if 300 <= answer.status < 400:
            raise NotTold(f"it answered {answer.status}, and redirects are not followed")
        if not 200 <= answer.status < 300:
            raise NotTold(f"it answered {answer.status}")

    def _url(self, account_id: int) -> str:
        with self._database.read() as tx:
            sealed = tx.scalar(select(accounts.c.notice_url_sealed).where(accounts.c.id == account_id))
        try:
            return "" if sealed is None else self._sealer.open(sealed)
        except CannotOpen:
            # Sealed with a key of ours that is lost: the page that shows the host must not fail with it.
            return ""

    def _account(self, account_id: int) -> str:
        with self._database.read() as tx:
            return str(tx.scalar(select(accounts.c.name).where(accounts.c.id == account_id)))


def read_notice_url(typed: str, *, development: bool) -> str:
    """The address as it is kept. Raises BadNoticeUrl. Whether its host is public is checked when it is connected to."""
    url = typed.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise BadNoticeUrl(_FORM) from None
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or not host:
        raise BadNoticeUrl(_FORM)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise BadNoticeUrl("The address must hold no user, no password and no #.")
    if development and is_loopback(host) and parts.scheme in ("http", "https"):
        return url
    if parts.scheme != "https":
        raise BadNoticeUrl("The address must begin with https://.")
    try:
        public = is_public(host)
    except ValueError:
        public = "." in host
    if not public:
        raise BadNoticeUrl("The address must be on the public internet.")
    return url


_FORM = "This is no web address. Paste the whole one, such as https://hooks.slack.com/services/…"


def _line(account: str, trouble: Trouble) -> str:
    about = f"{account}, {trouble.about}" if trouble.about else account
    if trouble.severity is Severity.OK:
        return f"{about}, well again: {trouble.sentence}"
    return f"{about}: {trouble.sentence} {trouble.remedy}".rstrip()
