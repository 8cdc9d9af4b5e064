"""Reads: fresh from the snapshot, stale and refreshed behind, or asked now.

A card never waits for a program of which it knows an answer. What is not known is asked for within a deadline, by one
asker for each e-mail however many tickets arrive, in all threads and processes; the others wait for its answer. While
the program is down, the last snapshot serves, and its time tells how old it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from time import monotonic

import structlog
from prometheus_client import Counter, Histogram
from sqlalchemy.exc import SQLAlchemyError

from loyalty.program import (
    LoyaltyProgram,
    Member,
    ProgramError,
    ProgramKind,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    Store,
)
from loyalty.snapshots import Known, Snapshot, Snapshots
from storage.sealing import CannotOpen, Hasher, RandomBytes
from telemetry import MEMBER_READS, SNAPSHOT_AGE_SECONDS
from threads import Threads, aside

# Threads of one process that may be asking at once while agents wait, and that refresh behind; and how many of them for
# one store, so that a store whose program hangs, or whose tickets are a flood of strangers, leaves room for the others.
ASKERS, ASKERS_OF_STORE = 48, 8
REFRESHERS, REFRESHERS_OF_STORE = 6, 3
# Cards of one process that may wait until their deadline: fewer than a web server has threads (gunicorn 64, and granian
# where it is started as docs/benchmarks.md says), so that a program which hangs leaves the others to known members. A
# card beyond them waits only for a program that is quick.
WAITERS, CROWD_WAITS_S = 24, 0.5
# The asker goes on after its card was answered without: of a program that takes longer, the next card has the answer.
ASK_WITHIN_S = 8.0
ASK_LEASE, REFRESH_LEASE = timedelta(seconds=10), timedelta(seconds=60)
POLL_S = 0.05
# Strangers are forgotten soon; the answer about them counts for much less time than this.
NOT_FOUND_KEPT = timedelta(hours=1)

log = structlog.get_logger()


class ReadOutcome(StrEnum):
    """How a read of a program elsewhere was answered."""

    FRESH = "fresh"
    STALE = "stale"
    NOT_FOUND_KEPT = "not_found_kept"
    ASKED = "asked"
    WAITED = "waited"
    UNAVAILABLE = "unavailable"
    REFRESHED = "refreshed"
    REFRESH_FAILED = "refresh_failed"


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """How old answers may be, and how long a card may wait for one."""

    fresh_s: float
    not_found_s: float
    deadline_s: float
    retention: timedelta


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What is asked of a program elsewhere: who has this e-mail in that store."""

    store: Store
    # Not compared: however the address is written, by the HMAC it is the same question.
    email: str = field(repr=False, compare=False)
    member_hmac: str
    with_date_of_birth: bool


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """A question under way, since `began` on the monotonic clock."""

    answer: Future[Member | None]
    began: float


class Members:
    """Members of every store, however their program is reached."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        programs: Mapping[ProgramKind, LoyaltyProgram],
        hasher: Hasher,
        limits: ReadLimits,
        now: Callable[[], datetime],
        sleep: Callable[[float], None],
        random_bytes: RandomBytes,
    ) -> None:
        self._snapshots = snapshots
        self._programs = programs
        self._hasher = hasher
        self._limits = limits
        self._now = now
        self._sleep = sleep
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._asking: dict[_Question, _Asking] = {}
        self._waiting = 0
        self._refreshing: set[tuple[int, str]] = set()
        # Stores whose program could not be asked when this process last tried: there it is looked first whether it may
        # be, before a thread is taken and anything is written.
        self._in_trouble: set[int] = set()
        self._askers = threading.BoundedSemaphore(ASKERS)
        self._asking_threads = Threads(running=ASKERS, most=ASKERS, name="ask")
        self._refreshers = threading.BoundedSemaphore(REFRESHERS)

    def first(self, store: Store, *, emails: Iterable[str], with_date_of_birth: bool = False) -> Member | None:
        """The first of these readings of one customer's address that the program knows, or None.

        Raises ProgramUnavailable as `read`; the deadline holds for all of them together.
        """
        ends = monotonic() + self._limits.deadline_s
        for email in emails:
            member = self.read(
                store, email=email, with_date_of_birth=with_date_of_birth, within_s=max(0.0, ends - monotonic())
            )
            if member is not None:
                return member
        return None

    def read(
        self, store: Store, *, email: str, with_date_of_birth: bool = False, within_s: float | None = None
    ) -> Member | None:
        """The member as of `member.as_of`, or None when the program does not know them.

        Raises ProgramUnavailable when nothing is known and the program does not tell within `within_s`, the deadline
        of a card unless given.
        """
        within_s = self._limits.deadline_s if within_s is None else within_s
        program = self._programs[store.program]
        if not program.remote:
            return program.member(store, email=email, with_date_of_birth=with_date_of_birth)
        member_hmac = self._hasher.email(email)
        snapshot = self._snapshots.find(
            store, email=email, member_hmac=member_hmac, with_date_of_birth=with_date_of_birth
        )
        if snapshot is not None and self._is_fresh(snapshot):
            _count(store, ReadOutcome.NOT_FOUND_KEPT if snapshot.member is None else ReadOutcome.FRESH)
            self._count_age(store, snapshot)
            return snapshot.member
        question = _Question(store=store, email=email, member_hmac=member_hmac, with_date_of_birth=with_date_of_birth)
        if snapshot is not None and snapshot.member is not None and self._is_retained(snapshot):
            self._refresh_behind(question)
            _count(store, ReadOutcome.STALE)
            self._count_age(store, snapshot)
            return snapshot.member
        return self._ask(question, seen=snapshot, within_s=within_s)

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        """The e-mail behind the member of an award key, or None."""
        return self._programs[store.program].email_of(store, member_hmac=member_hmac)

    def took(self, store: Store, *, member_hmac: str, member: Member | None) -> None:
        """An award was applied; `member` is what the program says since, if it could be asked."""
        if member is None:
            self._snapshots.outdate(store, member_hmac=member_hmac)
        else:
            self._snapshots.keep(store, member_hmac=member_hmac, member=member, with_activity=False)

    def outdate(self, store: Store, *, member_hmac: str) -> None:
        """The program is known to have something newer: the next card brings it behind itself."""
        self._snapshots.outdate(store, member_hmac=member_hmac)

    def sweep(self) -> int:
        """Erase snapshots whose time has come; how many."""
        now = self._now()
        return self._snapshots.sweep(found_before=now - self._limits.retention, not_found_before=now - NOT_FOUND_KEPT)

    def settle(self, timeout_s: float) -> None:
        """Wait until nothing is being refreshed behind. Raises TimeoutError."""
        ends = monotonic() + timeout_s
        for number in range(REFRESHERS):
            if not self._refreshers.acquire(timeout=max(0.0, ends - monotonic())):
                for _ in range(number):
                    self._refreshers.release()
                raise TimeoutError
        for _ in range(REFRESHERS):
            self._refreshers.release()

    def _is_fresh(self, snapshot: Snapshot) -> bool:
        # A time ahead of ours is from before the clock was set back: as old as one that far behind.
        age_s = abs((self._now() - snapshot.as_of).total_seconds())
        if snapshot.known is Known.NOT_FOUND:
            return age_s < self._limits.not_found_s and not snapshot.outdated
        return age_s < self._limits.fresh_s and not snapshot.outdated

    def _count_age(self, store: Store, snapshot: Snapshot) -> None:
        """How old it is that agents are shown."""
        _ages(store.program).observe(max(0.0, (self._now() - snapshot.as_of).total_seconds()))

    def _is_retained(self, snapshot: Snapshot) -> bool:
        return self._now() - snapshot.as_of < self._limits.retention

    def _refresh_behind(self, question: _Question) -> None:
        """Start a refresh unless one runs; when every refresher is busy, the next card tries again."""
        store, key = question.store, (question.store.id, question.member_hmac)
        with self._lock:
            of_store = sum(store_id == store.id for store_id, _ in self._refreshing)
            if key in self._refreshing or of_store >= REFRESHERS_OF_STORE:
                return
            if not self._refreshers.acquire(blocking=False):
                return
            self._refreshing.add(key)

        def run() -> None:
            try:
                self._refresh(question)
            except (SQLAlchemyError, CannotOpen) as error:
                log.error("refresh", outcome="storage_trouble", kind=type(error).__name__)
            except Exception:
                log.exception("refresh", outcome="crashed")
            finally:
                with self._lock:
                    self._refreshing.discard(key)
                self._refreshers.release()

        # A daemon: what it does is lost without harm, and nobody waits for it when the process ends.
        threading.Thread(target=run, name="refresh", daemon=True).start()

    def _refresh(self, question: _Question) -> None:
        """Read the member with their activity, as background work, unless somebody is just asking."""
        store = question.store
        owner = self._random_bytes(12).hex()
        try:
            # Before anything is written: while the key is refused, every card would come here.
            self._programs[store.program].check_ready(store)
        except ProgramUnavailable:
            _count(store, ReadOutcome.REFRESH_FAILED)
            return
        seen = self._snapshots.find(store, email=question.email, member_hmac=question.member_hmac)
        if not self._snapshots.claim(
            store, member_hmac=question.member_hmac, seen=seen, owner=owner, lease=REFRESH_LEASE, look_first=True
        ):
            return
        try:
            self._read_and_keep(question, seen=seen, owner=owner, within_s=None)
            outcome = ReadOutcome.REFRESHED
        except ProgramError as error:
            outcome = ReadOutcome.REFRESH_FAILED
            log.warning("refresh", outcome=outcome, reason=error.reason, program=store.program)
        _count(store, outcome)

    def _ask(self, question: _Question, *, seen: Snapshot | None, within_s: float) -> Member | None:
        """Ask now, or wait for the answer to who asks already. In a thread: however the program behaves, the card is
        answered at its deadline."""
        began, store = monotonic(), question.store
        if store.id in self._in_trouble and question not in self._asking:
            try:
                self._programs[store.program].check_ready(store)
            except ProgramUnavailable:
                _count(store, ReadOutcome.UNAVAILABLE)
                raise
            self._in_trouble.discard(store.id)
        with self._lock:
            asking = self._asking.get(question)
            mine = asking is None
            crowded = self._waiting >= WAITERS
            of_store = [other for asked, other in self._asking.items() if asked.store.id == store.id]
            slow = any(began - other.began > CROWD_WAITS_S for other in of_store)
            full = mine and (len(of_store) >= ASKERS_OF_STORE or not self._askers.acquire(blocking=False))
            if full or (crowded and slow):
                if mine and not full:
                    self._askers.release()
                _count(store, ReadOutcome.UNAVAILABLE)
                raise ProgramUnavailable(ProgramReason.BUDGET_SPENT, "Too many are waiting for the program at once.")
            if asking is None:
                asking = self._asking[question] = _Asking(answer=Future(), began=began)
            self._waiting += 1
        if mine:
            self._start_asking(asking, question, seen=seen)
        try:
            with aside():
                member = asking.answer.result(timeout=min(within_s, CROWD_WAITS_S) if crowded else within_s)
        except TimeoutError as error:
            _count(store, ReadOutcome.UNAVAILABLE)
            raise ProgramUnavailable(ProgramReason.NO_ANSWER, "The program did not answer in time.") from error
        except ProgramError:
            _count(store, ReadOutcome.UNAVAILABLE)
            raise
        finally:
            with self._lock:
                self._waiting -= 1
        _count(store, ReadOutcome.ASKED if mine else ReadOutcome.WAITED)
        return member

    def _start_asking(self, asking: _Asking, question: _Question, *, seen: Snapshot | None) -> None:
        store_id = question.store.id

        def run() -> None:
            member, failure = None, None
            try:
                member = self._ask_alone(question, seen=seen)
            except BaseException as error:
                failure = error
                if isinstance(error, ProgramUnavailable) and error.reason is not ProgramReason.REFUSED:
                    self._in_trouble.add(store_id)
            # Before the answer is told: the card that it is told to may be followed by the next at once.
            with self._lock:
                del self._asking[question]
            self._askers.release()
            if failure is None:
                asking.answer.set_result(member)
            else:
                asking.answer.set_exception(failure)

        self._asking_threads.submit(run)

    def _ask_alone(self, question: _Question, *, seen: Snapshot | None) -> Member | None:
        """Ask as the only one of all processes; when another one is faster, take its answer."""
        store, owner = question.store, self._random_bytes(12).hex()
        ends = monotonic() + ASK_WITHIN_S
        waited = False
        while (left_s := ends - monotonic()) > 0:
            if self._snapshots.claim(
                store, member_hmac=question.member_hmac, seen=seen, owner=owner, lease=ASK_LEASE, look_first=waited
            ):
                return self._read_and_keep(question, seen=seen, owner=owner, within_s=left_s)
            seen = self._find(question)
            if seen is not None and self._is_fresh(seen):
                return seen.member
            waited = True
            self._sleep(POLL_S)
        raise ProgramUnavailable(ProgramReason.NO_ANSWER, "Somebody else asks the program, and has no answer yet.")

    def _read_and_keep(
        self, question: _Question, *, seen: Snapshot | None, owner: str, within_s: float | None
    ) -> Member | None:
        """Ask the program as holder of the claim, which is given back, and keep what it says. `seen` is what was known
        before."""
        store, member_hmac = question.store, question.member_hmac
        began = self._now()
        given_back = False
        try:
            try:
                member = self._programs[store.program].member(
                    store, email=question.email, with_date_of_birth=question.with_date_of_birth, within_s=within_s
                )
            except ProgramRefused as error:
                # It refuses to talk about this one; nobody can be shown.
                log.warning("read", outcome=error.reason, status=error.status, program=store.program)
                raise ProgramUnavailable(ProgramReason.REFUSED, str(error)) from error
            if member is None:
                given_back = self._snapshots.keep_not_found(store, member_hmac=member_hmac, as_of=began, owner=owner)
                return None
            if within_s is not None and seen is not None and seen.member is not None:
                # It was asked for what an agent waits for, and not for the activity.
                member = member._replace(recent_activity=seen.member.recent_activity)
            kept = self._snapshots.keep(
                store,
                member_hmac=member_hmac,
                member=member,
                with_activity=True,
                with_date_of_birth=question.with_date_of_birth,
                owner=owner,
            )
            given_back = kept is not None
        finally:
            if not given_back:
                self._snapshots.release(store, member_hmac=member_hmac, owner=owner)
        if kept is not None:
            return kept
        newer = self._find(question)
        return member if newer is None or newer.member is None else newer.member

    def _find(self, question: _Question) -> Snapshot | None:
        return self._snapshots.find(
            question.store,
            email=question.email,
            member_hmac=question.member_hmac,
            with_date_of_birth=question.with_date_of_birth,
        )


def _count(store: Store, outcome: ReadOutcome) -> None:
    _reads(store.program, outcome).inc()


@cache
def _reads(program: ProgramKind, outcome: ReadOutcome) -> Counter:
    return MEMBER_READS.labels(program, outcome)


@cache
def _ages(program: ProgramKind) -> Histogram:
    return SNAPSHOT_AGE_SECONDS.labels(program)
