"""Whether this installation is well: one list of checks behind `/readyz` and `flask doctor`.

A check asks and changes nothing. What is wrong with one helpdesk account comes from `widget.probe`, which the daily
probe and the console use as well; with many accounts it is not asked anew but taken from what the probe last saw.
"""

from __future__ import annotations

import hmac
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, func, make_url, select, update
from sqlalchemy.exc import OperationalError

from findings import Finding, Severity
from loyalty.journal import IS_OPEN, NOTE_IS_DUE, UNSETTLED, AwardState
from oauth.accounts import Accounts, AccountState
from outbound import Client, NoAnswer, NotSent, TooLarge
from settings import Settings, SettingsError
from storage import queue
from storage.database import Database, DatabaseUnavailable
from storage.sealing import CannotOpen, Hasher
from storage.tables import accounts, app_keys, award_attempts, awards, changes, snapshots
from storage.trouble import TROUBLE, trouble_sentence
from troubles import Troubles
from widget.connections import Connections
from widget.placement import Placement, PlacementFailed
from widget.probe import GORGIAS_REACHABLE, GORGIAS_TOKEN, PROBE_EVERY, Probe
from widget.sentences import counted

# More are not asked one by one: the daily probe has.
MOST_ASKED_LIVE = 20
MOST_LISTED = 200
ASKED_AT_ONCE = 8

INSTANCE_HEADER = "X-Tallydesk-Instance"
FETCH_S = 5.0

WORKER_SEEN = timedelta(seconds=60)
AWARD_LATE = timedelta(minutes=3)
NOTE_LATE = timedelta(minutes=5)
MANY = 100
CLOCK_WARNING, CLOCK_ERROR = timedelta(seconds=5), timedelta(seconds=60)
LITTLE_ROOM = 100 * 1024 * 1024  # bytes

# Set by hosts whose own disk is new with every release; a volume of theirs is a mount of its own.
_EPHEMERAL = {"DYNO": "Heroku", "RENDER": "Render", "FLY_APP_NAME": "Fly", "K_SERVICE": "Cloud Run"}
_IN_MEMORY = ("tmpfs", "ramfs")
_POSTGRESQL = "Set DATABASE_URL to a PostgreSQL database, or put the file on a disk that lasts."
_WORKER = "See that `flask worker` runs, and what it logs."


def instance_of(settings: Settings) -> str:
    """What tells this installation from others: the same in every process with this SECRET_KEY, and no secret."""
    return hmac.digest(settings.secret_key.encode(), b"instance", "sha256")[:8].hex()


def of_start(error: SettingsError | DatabaseUnavailable) -> list[Finding]:
    """What to say when this process could not even be put together."""
    if isinstance(error, DatabaseUnavailable):
        return [
            _ok("settings", "The settings are complete."),
            _told("database.reachable", str(error), "Check DATABASE_URL and the folder it names."),
        ]
    return [_of_fault(fault) for fault in error.faults]


@dataclass(frozen=True, kw_only=True)
class Health:
    """The checks of one process, with what they look at."""

    settings: Settings
    database: Database
    hasher: Hasher
    accounts: Accounts
    connections: Connections
    placement: Placement
    probe: Probe
    troubles: Troubles
    now: Callable[[], datetime]

    def ready(self) -> list[Finding]:
        """What this process needs to serve, cheaply: a database that answers, is of this version and can be written."""
        findings = [self._reachable()]
        if findings[-1].well:
            findings.append(self._migrated())
        if findings[-1].well:
            findings.append(self._writable())
        return findings

    def everything(self) -> list[Finding]:
        """Every check. Those that need what is broken are left out."""
        findings = [*self._of_settings(), self._redirect_uri(), *self.ready(), self._lasting()]
        if self.database.sqlite:
            findings += self._room()
        if any(f.severity is Severity.ERROR and f.id in ("database.reachable", "database.migrated") for f in findings):
            return findings
        try:
            fits = self._keys_fit()
            findings.append(fits)
            asked, heard = self._of_accounts() if fits.well else ([], None)
            with self.database.read(unhurried=True) as tx:
                findings.append(self._clock(tx, heard=heard))
                findings += self._of_work(tx)
            findings += asked
        except TROUBLE as error:
            findings.append(_told("database.reachable", trouble_sentence(error), "Run this again in a moment."))
        return findings

    def _of_settings(self) -> Iterator[Finding]:
        kind = "for development, since PUBLIC_URL is on this machine" if self.settings.development else "for everybody"
        yield _ok("settings", f"All {len(fields(self.settings))} settings are right, {kind}.")
        if self.settings.secret_key in self.settings.encryption_keys:
            yield _warning(
                "secrets.strength",
                "SECRET_KEY is also one of ENCRYPTION_KEYS: whoever learns one has both.",
                "Give SECRET_KEY a value of its own; everybody signs in again then.",
            )
        else:
            yield _ok("secrets.strength", "SECRET_KEY and ENCRYPTION_KEYS are long and random enough.")

    def _redirect_uri(self) -> Finding:
        """Whether people who come back from Gorgias reach this very installation."""
        uri = f"{self.settings.public_url}/oauth/callback"
        register = f"Register it with your app at Gorgias: {uri}"
        if self.settings.development:
            return _ok("redirect_uri", f"{register} (on this machine it is not fetched)")
        url = f"{self.settings.public_url}/healthz"
        try:
            answer = Client().exchange("GET", url, headers={"Connection": "close"}, within_s=FETCH_S)
        except (NotSent, NoAnswer, TooLarge) as error:
            return _warning(
                "redirect_uri",
                f"{url} could not be fetched from this host: {error}.",
                f"Some networks do not let a host reach itself: open it elsewhere, it must say “ok”. {register}",
            )
        if 300 <= answer.status < 400:
            return _error(
                "redirect_uri",
                f"{url} is redirected, and Gorgias follows no redirects.",
                "Set PUBLIC_URL to where the redirect leads, and register its /oauth/callback at Gorgias.",
            )
        if answer.headers.get(INSTANCE_HEADER) != instance_of(self.settings):
            return _error(
                "redirect_uri",
                f"What answers at {url} ({answer.status}) is not this installation, or has another SECRET_KEY.",
                "Point PUBLIC_URL's name at this service, give every process the same SECRET_KEY, and start web anew.",
            )
        return _ok("redirect_uri", f"PUBLIC_URL leads here. {register}")

    def _reachable(self) -> Finding:
        try:
            with self.database.read() as tx:
                tx.execute(select(1))
        except TROUBLE as error:
            return _told("database.reachable", trouble_sentence(error), "Bring it back; nothing else is needed then.")
        return _ok("database.reachable", "The database answers.")

    def _migrated(self) -> Finding:
        try:
            self.database.require_current()
        except DatabaseUnavailable as error:
            return _told("database.migrated", str(error), "Run: flask db-upgrade")
        return _ok("database.migrated", "The database has this version's schema.")

    def _writable(self) -> Finding:
        try:
            with self.database.write() as tx:
                # Changes nothing, but takes everything that a change takes.
                tx.execute(update(app_keys).where(app_keys.c.name == "").values(sealed=app_keys.c.sealed))
        except TROUBLE as error:
            if not self.database.sqlite and not isinstance(error, OperationalError):
                return _error(
                    "database.writable",
                    "The database lets us read and not write.",
                    "Point DATABASE_URL at the primary server, with a user who may write.",
                )
            told = _told("database.writable", trouble_sentence(error), "See what keeps it from being written.")
            # A long write of somebody else's passes by itself.
            return replace(told, severity=Severity.WARNING) if "busy" in told.sentence else told
        return _ok("database.writable", "The database can be written.")

    def _lasting(self) -> Finding:
        if not self.database.sqlite:
            return _ok("database.lasting", "The database is a PostgreSQL server, which outlives this host.")
        return lasting(self._file(), mounts=_mounts(), environment=os.environ, development=self.settings.development)

    def _room(self) -> Iterator[Finding]:
        try:
            free = shutil.disk_usage(self._file().parent).free
        except OSError:
            return
        if free < LITTLE_ROOM:
            sentence = f"The disk of the database has {free // 1024**2} MB left."
            yield _warning("database.room", sentence, "Make room before it is full: then nothing can be awarded.")
        else:
            yield _ok("database.room", f"The disk of the database has {free / 1024**3:,.1f} GB left.")

    def _file(self) -> Path:
        return Path(make_url(self.database.url).database or "").resolve()

    def _keys_fit(self) -> Finding:
        try:
            self.hasher.email("")
        except CannotOpen as error:
            return _told("secrets.fit", str(error), "Bring the former key back.")
        return _ok("secrets.fit", "ENCRYPTION_KEYS open what is stored.")

    def _clock(self, tx: Connection, *, heard: timedelta | None) -> Finding:
        """`heard` is by how much Gorgias' clock is ahead of ours, if it was asked."""
        now = self.now()
        apart: list[tuple[str, timedelta]] = [] if heard is None else [("Gorgias' clock", heard)]
        if not self.database.sqlite:
            told = tx.scalar(select(func.extract("epoch", func.clock_timestamp())))
            apart.append(("the database's clock", datetime.fromtimestamp(float(told or 0), UTC) - now))
        newest = [tx.scalar(select(func.max(c))) for c in _TIMES]
        ahead = max((time for time in newest if time is not None), default=now) - now
        if ahead > timedelta():
            apart.append(("the newest time that is stored", ahead))
        for what, difference in sorted(apart, key=lambda pair: abs(pair[1]), reverse=True):
            if abs(difference) > CLOCK_WARNING:
                way = "behind" if difference > timedelta() else "ahead of"
                return Finding(
                    id="clock",
                    severity=Severity.ERROR if abs(difference) > CLOCK_ERROR else Severity.WARNING,
                    sentence=f"This host's clock is {_roughly(abs(difference))} {way} {what}.",
                    remedy="Let NTP set the clock: sign-ins, leases and limits for a day go by it.",
                )
        return _ok("clock", "The clock agrees with " + (apart[0][0] if apart else "every time that is stored") + ".")

    def _worker(self, tx: Connection) -> Finding:
        seen = queue.last_seen(tx)
        if seen is None:
            return _error("worker.heartbeat", "No worker runs: awards in doubt and notes wait.", _WORKER)
        silent = self.now() - seen
        if silent > WORKER_SEEN:
            sentence = f"No worker has shown itself for {_roughly(silent)}: awards in doubt and notes wait."
            return _error("worker.heartbeat", sentence, _WORKER)
        return _ok("worker.heartbeat", "A worker runs.")

    def _of_work(self, tx: Connection) -> Iterator[Finding]:
        now = self.now()
        yield self._worker(tx)

        late = _count(tx, IS_OPEN, awards.c.state.in_(UNSETTLED), awards.c.created_at < now - AWARD_LATE)
        review = _count(tx, IS_OPEN, awards.c.state == AwardState.NEEDS_REVIEW)
        if late:
            yield Finding(
                id="awards.backlog",
                severity=Severity.ERROR if late >= MANY else Severity.WARNING,
                sentence=f"{_are(late, 'award')} not settled for more than three minutes.",
                remedy="They are settled once the program answers again; see program.key, and the worker's log.",
            )
        else:
            yield _ok("awards.backlog", "Every award is settled, or was made just now.")
        if review:
            yield _warning(
                "awards.review",
                f"{_are(review, 'award')} waiting for somebody's decision.",
                "A helpdesk admin decides under Activity, after a look at the program.",
            )
        else:
            yield _ok("awards.review", "No award waits for somebody's decision.")

        due = _count(tx, NOTE_IS_DUE, awards.c.created_at < now - NOTE_LATE)
        if due:
            sentence = f"{_are(due, 'note')} not posted on a ticket for more than five minutes."
            yield _warning("notes.backlog", sentence, f"They are tried again for a day. {_WORKER}")
        else:
            yield _ok("notes.backlog", "No note on a ticket is late.")

        waiting = sum(queue.waiting(tx, now=now).values())
        if waiting > MANY:
            sentence = f"{counted(waiting, 'job')} are due and not done."
            yield _warning("queue.depth", sentence, "Start another worker, or see what keeps those that run.")
        else:
            yield _ok("queue.depth", f"{counted(waiting, 'job')} to be done." if waiting else "No job waits.")

    def _of_accounts(self) -> tuple[list[Finding], timedelta | None]:
        """What there is to say of every account, and by how much Gorgias' clock is ahead of ours."""
        present = accounts.c.state != AccountState.DISCONNECTED
        with self.database.read(unhurried=True) as tx:
            how_many = tx.scalar(select(func.count()).where(present)) or 0
            ids = tx.scalars(select(accounts.c.id).where(present).order_by(accounts.c.name).limit(MOST_ASKED_LIVE))
            found = list(ids) if how_many <= MOST_ASKED_LIVE else []
            old = self.now() - 2 * PROBE_EVERY
            unseen = _count(tx, present, accounts.c.probed_at < old, of=accounts.c.id)
        if how_many > MOST_ASKED_LIVE:
            return [*self._as_last_seen(how_many, unseen)], None
        if not found:
            return [_ok(GORGIAS_TOKEN, "No helpdesk is connected yet.")], None
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            told = list(pool.map(self._of_account, found))
        ahead = [heard for _, heard in told if heard is not None]
        return [finding for some, _ in told for finding in some], min(ahead, key=abs, default=None)

    def _of_account(self, account_id: int) -> tuple[list[Finding], timedelta | None]:
        account = self.accounts.by_id(account_id)
        if account is None:
            return [], None
        access, told_at = self.probe.access(account)
        heard = None if told_at is None else told_at - self.now()
        findings = [_about(account.name, None, access)]
        for connection in self.connections.of_account(account_id):
            seen = self.probe.program_key(connection)
            if access.well:
                try:
                    seen += self.placement.inspect(connection)
                except PlacementFailed as error:
                    seen.append(_warning(GORGIAS_REACHABLE, str(error), "Run this again in a minute."))
            findings += [_about(account.name, connection.id, finding) for finding in seen]
        return findings, heard

    def _as_last_seen(self, how_many: int, unseen: int) -> Iterator[Finding]:
        if unseen:
            sentence = f"{counted(unseen, 'helpdesk')} of {how_many:,} were not looked at for two days."
            yield _warning("probe", sentence, _WORKER)
        else:
            yield _ok("probe", f"{how_many:,} helpdesks are looked at once a day.")
        wrong = self.troubles.of_all(limit=MOST_LISTED + 1)
        names: dict[int, str] = {}
        for account_id, trouble in wrong[:MOST_LISTED]:
            if account_id not in names:
                account = self.accounts.by_id(account_id)
                names[account_id] = "" if account is None else account.name
            seen = Finding(
                id=trouble.finding,
                severity=trouble.severity,
                sentence=f"{trouble.sentence} Since {trouble.since:%d %b %Y, %H:%M} UTC.",
                remedy=trouble.remedy,
            )
            yield _about(names[account_id], trouble.connection_id, seen)
        if len(wrong) > MOST_LISTED:
            yield _warning(
                "probe", f"More than {MOST_LISTED} troubles: only the oldest are listed.", "Mend these first."
            )


def lasting(file: Path, *, mounts: str, environment: Mapping[str, str], development: bool) -> Finding:
    """Whether a SQLite file outlives a restart and a release. `mounts` is Linux's /proc/self/mountinfo, or empty."""
    mount, kind = _mount_of(file, mounts)
    on = next((name for variable, name in _EPHEMERAL.items() if environment.get(variable)), None)
    if kind in _IN_MEMORY:
        sentence = f"The database file is kept in memory ({kind}): a restart loses everything."
    elif on is not None and mount in ("/", ""):
        sentence = f"The database file is on {on}'s own disk, which is new with every release: it is lost then."
    elif kind == "overlay":
        sentence = "The database file is inside a container: whatever replaces the container loses it."
    else:
        return _ok("database.lasting", f"The database file is on a disk ({kind or 'of unknown kind'}).")
    if development:
        return _warning("database.lasting", sentence, _POSTGRESQL)
    return _error("database.lasting", sentence, _POSTGRESQL)


def _mount_of(file: Path, mounts: str) -> tuple[str, str]:
    """Mount point and kind of file system: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html"""
    best = ("", "")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        parts, kinds = before.split(), after.split()
        if len(parts) < 5 or not kinds:
            continue
        point = parts[4].replace("\\040", " ")
        # Of two at one place, the later one lies on top.
        if file.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kinds[0])
    return best


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""


def _of_fault(fault: str) -> Finding:
    """A fault of the settings says itself, after a colon, what to do about it."""
    sentence, colon, remedy = fault.partition(": ")
    name = "secrets.strength" if fault.startswith(("SECRET_KEY", "ENCRYPTION_KEYS")) else "settings"
    if not colon:
        return _error(name, fault, "Correct it in the environment or in .env, and start again.")
    return _error(name, f"{sentence}.", f"{remedy[:1].upper()}{remedy[1:]}")


# Of every kind of thing the newest time that somebody's clock has written.
_TIMES = (accounts.c.updated_at, award_attempts.c.at, changes.c.at, snapshots.c.touched_at)


def _count(tx: Connection, *conditions: object, of: object = awards.c.operation_id) -> int:
    return tx.scalar(select(func.count(of)).where(*conditions)) or 0  # type: ignore[arg-type]


def _about(account: str, connection_id: int | None, finding: Finding) -> Finding:
    """The finding, naming what it is about."""
    about = account if connection_id is None else f"{account}, connection {connection_id}"
    return replace(finding, id=str(finding.id), sentence=f"{about}: {finding.sentence}")


def _are(number: int, noun: str) -> str:
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"


def _roughly(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    if seconds < 120:
        return f"{seconds} seconds"
    if seconds < 7_200:
        return f"{seconds // 60} minutes"
    return f"{seconds // 3_600} hours" if seconds < 172_800 else f"{seconds // 86_400} days"


def _ok(name: str, sentence: str) -> Finding:
    return Finding(id=name, severity=Severity.OK, sentence=sentence)


def _warning(name: str, sentence: str, remedy: str) -> Finding:
    return Finding(id=name, severity=Severity.WARNING, sentence=sentence, remedy=remedy)


def _told(name: str, trouble: str, remedy: str) -> Finding:
    """An error in the words of whoever met it, which may say what to do after the first sentence; else `remedy`."""
    sentence, _, rest = trouble.partition(". ")
    return _error(name, f"{sentence.rstrip('.')}.", rest or remedy)


def _error(name: str, sentence: str, remedy: str) -> Finding:
    return Finding(id=name, severity=Severity.ERROR, sentence=sentence, remedy=remedy)
