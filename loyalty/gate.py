"""Whether a program elsewhere may be called now: its call budget and its breaker, over all threads and processes.

Rivo allows 15 calls a second for a store, shared with the merchant's other tools
(https://github.com/packdigital/pack-hydrogen-theme-blueprint/pull/148 names it as Rivo's documented limit). We take at
most 12 in any second, of which background work takes at most 5. After five failures in a row a store is left alone for
ten seconds; then one call tries, and the others go on only when it succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from time import monotonic
from typing import Any

import structlog
from sqlalchemy import Connection, Text, and_, bindparam, cast, select, update

from loyalty.program import ProgramReason, ProgramUnavailable
from storage.database import INSERTS, Database, insert_into
from storage.statements import run, run_one
from storage.tables import EPOCH, MICROSECOND, UtcTime, gates
from threads import aside

CALLS_PER_S = 12
BACKGROUND_CALLS_PER_S = 5
FAILURES_TO_OPEN = 5
OPEN_FOR = timedelta(seconds=10)
# What lies further ahead than anybody may wait was written before the clock was set back.
MOST_AHEAD = timedelta(minutes=1)
MOST_LATE = timedelta(milliseconds=50)

log = structlog.get_logger()

_SECOND = timedelta(seconds=1) // MICROSECOND


class Lane(StrEnum):
    """Who waits for a call."""

    AGENT = "agent"
    BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a call is made. `within_s` holds for everything: its turn, the connection, the answer to its last byte."""

    lane: Lane
    within_s: float


BACKGROUND = Call(lane=Lane.BACKGROUND, within_s=15.0)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The turn of a call has come. `left_s` of its time are left; `after_failures`: the calls before it had failed, so
    that its success is news."""

    left_s: float
    after_failures: bool


class Gate:
    """One gate for every store of a program elsewhere, by a name that all processes share."""

    def __init__(self, database: Database, *, now: Callable[[], datetime], sleep: Callable[[float], None]) -> None:
        self._database = database
        self._now = now
        self._sleep = sleep
        # Where a call of this process failed and none has succeeded since: those under way had entered before.
        self._failing: set[str] = set()

    def check(self, name: str) -> None:
        """Raises ProgramUnavailable when `enter` certainly would, without waiting or writing anything."""
        for row in self._database.look_up(_STANDING, of=name):
            self._check_breaker(row.open_until, now=self._now())

    def enter(self, name: str, *, call: Call) -> Entry:
        """Wait for the turn of a call. Raises ProgramUnavailable: BREAKER_OPEN, BUSY or BUDGET_SPENT; nothing was taken
        from the budget then."""
        ends = monotonic() + call.within_s
        while True:
            row = next(iter(self._database.look_up(_FIND, of=name)), _NEW)
            now = self._now()
            self._check_breaker(row.open_until, now=now)
            at = self._turn(row, lane=call.lane, now=now)
            wait_s = (at - now).total_seconds()
            if wait_s >= call.within_s or monotonic() > ends:
                paused = row.paused_until is not None and row.paused_until > now
                raise ProgramUnavailable(
                    ProgramReason.BUSY if paused else ProgramReason.BUDGET_SPENT,
                    "The program has been called as often as it allows.",
                    retry_after_s=wait_s,
                )
            # A turn that came late, because the note had to wait, is left: by now others may have those around it.
            if self._take(name, row, at=at, lane=call.lane, now=now) and self._now() - at < MOST_LATE:
                break
        if wait_s > 0:
            with aside():
                self._sleep(wait_s)
        after_failures = row.failures > 0 or row.open_until is not None
        return Entry(left_s=call.within_s - wait_s, after_failures=after_failures)

    def _take(self, name: str, row: Any, *, at: datetime, lane: Lane, now: datetime) -> bool:
        """Take the turn at `at`, unless another call was entered since `row` was read: one of those who read the same
        comes in, and the others look again."""
        taken = (at - EPOCH) // MICROSECOND
        background = _recent(row.background_calls, now=now)
        values = {
            "gate": name,
            "was": row.was,
            "all": [*_recent(row.calls, now=now), taken],
            "behind": [*background, taken] if lane is Lane.BACKGROUND else background,
        }
        if row.open_until is None:
            return bool(self._database.note(_ENTER[self._database.dialect], **values))
        # This call tries whether the program is back; should nobody report, another may try later.
        more = {"open_seen": row.open_until, "until": now + OPEN_FOR}
        return bool(self._database.note(_TRY[self._database.dialect], **values, **more))

    def succeeded(self, name: str, *, entry: Entry) -> None:
        """The program answered the call that came in by `entry`: after failures it is well again."""
        if not entry.after_failures and name not in self._failing:
            return
        self._failing.discard(name)
        with self._database.write(f"gate {name}", may_be_lost=True) as tx:
            before = self._row(tx, name)
            tx.execute(update(gates).where(gates.c.name == name).values(failures=0, open_until=None))
        if before.open_until is not None:
            log.info("gate", outcome="breaker_closed", gate=name)

    def failed(self, name: str) -> None:
        """The program was not reached, did not answer, or answered nonsense."""
        self._failing.add(name)
        now = self._now()
        with self._database.write(f"gate {name}", may_be_lost=True) as tx:
            failures = self._row(tx, name).failures + 1
            opened = {"open_until": now + OPEN_FOR} if failures >= FAILURES_TO_OPEN else {}
            tx.execute(update(gates).where(gates.c.name == name).values(failures=failures, **opened))
        if failures == FAILURES_TO_OPEN:
            # Once; each later failure only keeps it open.
            log.error("gate", outcome="breaker_opened", gate=name)

    def pause(self, name: str, *, seconds: float) -> None:
        """The program asked to be left alone for so long; a longer pause that it asked for before still stands."""
        now = self._now()
        until = now + timedelta(seconds=seconds)
        with self._database.write(f"gate {name}", may_be_lost=True) as tx:
            paused_until = self._row(tx, name).paused_until
            if paused_until is None or not until < paused_until <= now + MOST_AHEAD:
                tx.execute(update(gates).where(gates.c.name == name).values(paused_until=until))

    def _row(self, tx: Connection, name: str) -> Any:
        rows = run(tx, _FIND, of=name)
        if rows:
            return rows[0]
        tx.execute(insert_into(tx, gates).values(name=name, calls=[], background_calls=[]).on_conflict_do_nothing())
        return run_one(tx, _FIND, of=name)

    @staticmethod
    def _check_breaker(open_until: datetime | None, *, now: datetime) -> None:
        if open_until is not None and now < open_until <= now + MOST_AHEAD:
            raise ProgramUnavailable(
                ProgramReason.BREAKER_OPEN,
                "The program failed several times in a row and is left alone for a few seconds.",
                retry_after_s=(open_until - now).total_seconds(),
            )

    @staticmethod
    def _turn(row: Any, *, lane: Lane, now: datetime) -> datetime:
        """The first moment at which another call fits into every second around it."""
        earliest = now
        if row.paused_until is not None and now < row.paused_until <= now + MOST_AHEAD:
            earliest = row.paused_until
        limits = [(_recent(row.calls, now=now), CALLS_PER_S)]
        if lane is Lane.BACKGROUND:
            limits.append((_recent(row.background_calls, now=now), BACKGROUND_CALLS_PER_S))
        start = (earliest - EPOCH) // MICROSECOND
        candidates = [start, *sorted(taken + _SECOND for taken in limits[0][0] if taken + _SECOND > start)]
        fitting = next(
            moment
            for moment in candidates
            if all(sum(abs(taken - moment) < _SECOND for taken in calls) < limit for calls, limit in limits)
        )
        return EPOCH + fitting * MICROSECOND


@dataclass(frozen=True, kw_only=True)
class _New:
    """The row of a gate that nobody has been through."""

    calls: tuple[int, ...] = ()
    background_calls: tuple[int, ...] = ()
    paused_until: None = None
    failures: int = 0
    open_until: None = None
    was: str = ""


_NEW = _New()

# Every call adds itself to the calls, so that their text tells whether another was entered since.
_CALLS_TEXT = cast(gates.c.calls, Text)
_FIND = select(gates, _CALLS_TEXT.label("was")).where(gates.c.name == bindparam("of"))
_STANDING = _FIND.with_only_columns(gates.c.failures, gates.c.open_until)


def _entering(dialect: str, *conditions: Any, **more: Any) -> Any:
    statement = INSERTS[dialect](gates).values(
        name=bindparam("gate"), calls=bindparam("all"), background_calls=bindparam("behind"), **more
    )
    return statement.on_conflict_do_update(
        index_elements=[gates.c.name],
        set_={name: statement.excluded[name] for name in ("calls", "background_calls", *more)},
        where=and_(bindparam("was", type_=Text) == _CALLS_TEXT, *conditions),
    )


# By the name of the dialect: ON CONFLICT is said by each for itself.
_ENTER = {dialect: _entering(dialect) for dialect in INSERTS}
_TRY = {
    dialect: _entering(
        dialect, gates.c.open_until == bindparam("open_seen", type_=UtcTime), open_until=bindparam("until")
    )
    for dialect in INSERTS
}


def _recent(calls: Sequence[int], *, now: datetime) -> list[int]:
    """Those of the last second, and those whose turn is yet to come."""
    moment = (now - EPOCH) // MICROSECOND
    return [taken for taken in calls if moment - _SECOND < taken <= moment + MOST_AHEAD // MICROSECOND]
