"""What was tried to bring about an award, and what came of it: the part of the journal that explains a state.

Each attempt is written in the transaction of the state that it led to. Awards on the embedded ledger need none: they
are booked at once or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import Connection, bindparam, func, insert, select, update

from schemas.widget import one_line, without_addresses
from storage.database import Database
from storage.statements import run
from storage.tables import award_attempts

ATTEMPTS_KEPT = timedelta(days=90)
MAX_ANSWER = 300


class AttemptKind(StrEnum):
    """What was done."""

    SENT = "sent"
    LOOKED = "looked"
    WEBHOOK = "webhook"
    PERSON = "person"


class AttemptOutcome(StrEnum):
    """How it ended, where the program did not fail; else it is the ProgramReason."""

    APPLIED = "applied"
    FOUND = "found"
    ABSENT = "absent"
    MEMBER_NOT_FOUND = "member_not_found"
    ABANDONED = "abandoned"
    """Whoever sent it ended before an answer came."""
    MARKED_APPLIED = "marked_applied"
    MARKED_NOT_APPLIED = "marked_not_applied"
    REJECTED_BUT_THERE = "rejected_but_there"
    """It counts as rejected here, and yet the program has it."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt, begun `at`. `outcome` is a word of AttemptOutcome or of ProgramReason; `answer` is what the program
    said, without anything personal.

    It went just so `times` times one after the other, for the last time at `last_at`.
    """

    kind: AttemptKind
    outcome: str
    at: datetime
    took_ms: int | None = None
    answer: str = ""
    times: int = 1
    last_at: datetime | None = None


def write_attempt(tx: Connection, operation_id: str, attempt: Attempt) -> None:
    """Keep an attempt. One that went as the last one did is counted with it: a program may be away for a day."""
    answer = without_addresses(one_line(attempt.answer))[:MAX_ANSWER] or None
    if attempt.outcome is not AttemptOutcome.APPLIED:
        newest = select(func.max(award_attempts.c.id)).where(award_attempts.c.operation_id == operation_id)
        counted = tx.execute(
            update(award_attempts)
            .where(
                award_attempts.c.id == newest.scalar_subquery(),
                award_attempts.c.kind == attempt.kind,
                award_attempts.c.outcome == attempt.outcome,
                award_attempts.c.answer.is_not_distinct_from(answer),
            )
            .values(times=award_attempts.c.times + 1, last_at=attempt.at, took_ms=attempt.took_ms)
        )
        if counted.rowcount:
            return
    run(
        tx,
        _WRITE,
        operation_id=operation_id,
        at=attempt.at,
        kind=attempt.kind.value,
        outcome=str(attempt.outcome),
        took_ms=attempt.took_ms,
        answer=answer,
    )


_WRITE = insert(award_attempts).values(
    {name: bindparam(name) for name in ("operation_id", "at", "kind", "outcome", "took_ms", "answer")}
)


def attempts_of(database: Database, operation_id: str) -> list[Attempt]:
    """The attempts of an award, in the order in which they began."""
    statement = (
        select(award_attempts)
        .where(award_attempts.c.operation_id == operation_id)
        .order_by(award_attempts.c.at, award_attempts.c.id)
    )
    with database.read() as tx:
        return [
            Attempt(
                kind=AttemptKind(row.kind),
                outcome=row.outcome,
                at=row.at,
                took_ms=row.took_ms,
                answer=row.answer or "",
                times=row.times,
                last_at=row.last_at,
            )
            for row in tx.execute(statement)
        ]
