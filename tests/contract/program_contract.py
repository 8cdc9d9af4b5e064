"""What every loyalty program must do, whoever implements it.

To test an adapter, subclass `ProgramContract` in a test module and give it a fixture `subject`: the program with
two stores and the few handles that the tests need. Nothing here knows where members come from.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from datetime import UTC, date
from typing import Protocol

import pytest
from sqlalchemy import Connection

from loyalty.program import (
    LoyaltyProgram,
    Member,
    MemberStatus,
    NewPointsEvent,
    PointsEvent,
    Store,
    UnknownMember,
)

ANA = "ana@example.com"
BEN = "ben@example.com"


class Subject(Protocol):
    """A program under test."""

    @property
    def program(self) -> LoyaltyProgram:
        """The adapter."""

    @property
    def store(self) -> Store:
        """The store that the tests use."""

    @property
    def other_store(self) -> Store:
        """Another store of the same kind."""

    def enrol(
        self,
        store: Store,
        *,
        email: str,
        status: MemberStatus = MemberStatus.MEMBER,
        points: int = 0,
        date_of_birth: date | None = None,
    ) -> object:
        """Make a member in the program, by whatever means, with this balance."""

    def transaction(self) -> AbstractContextManager[Connection]:
        """A transaction as callers of `add_points` hold one; committed at the end."""

    def advance(self, seconds: float) -> None:
        """Let time pass for the program."""

    def hmac(self, email: str) -> str:
        """The keyed HMAC by which an award key names the member."""


class ProgramContract:
    """Subclass this as `Test…` and provide the fixture `subject`."""

    def test_nobody_is_found_in_an_empty_store(self, subject: Subject) -> None:
        assert subject.program.member(subject.store, email=ANA) is None
        assert subject.program.email_of(subject.store, member_hmac=subject.hmac(ANA)) is None

    def test_points_for_nobody_are_refused(self, subject: Subject) -> None:
        with pytest.raises(UnknownMember):
            _add(subject, 50)

    @pytest.mark.parametrize("status", list(MemberStatus))
    def test_a_member_has_the_status_that_the_program_gave(self, subject: Subject, status: MemberStatus) -> None:
        subject.enrol(subject.store, email=ANA, status=status)
        assert _member(subject).status is status

    def test_a_member_is_read_with_balance_and_time(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA, points=120, date_of_birth=date(1990, 5, 31))
        member = _member(subject)
        assert member.email == ANA
        assert member.points_balance == 120
        assert member.as_of.tzinfo is UTC
        assert member.date_of_birth in (date(1990, 5, 31), None), "None: the program does not offer it"

    def test_the_balance_after_an_award_is_told_and_read(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA, points=120)
        assert _add(subject, 50, operation_id="op-1") == PointsEvent(operation_id="op-1", points_balance=170)
        assert _member(subject).points_balance == 170

    def test_points_can_be_taken(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA, points=120)
        assert _add(subject, -20).points_balance == 100

    def test_an_operation_id_counts_once(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA)
        first = _add(subject, 50, operation_id="op-1")
        assert _add(subject, 50, operation_id="op-1") == first
        assert _member(subject).points_balance == 50
        assert len(_member(subject).recent_activity) == 1

    def test_a_reversal_takes_back_what_was_added(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA, points=120)
        _add(subject, 50, operation_id="op-1")
        reversal = _add(subject, -50, operation_id="op-2", reverses="op-1")
        assert reversal.points_balance == 120
        assert _add(subject, -50, operation_id="op-2", reverses="op-1") == reversal, "and counts once"
        assert _member(subject).points_balance == 120

    def test_recent_activity_is_newest_first_and_at_most_five(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA)
        for points in range(1, 8):
            subject.advance(60)
            _add(subject, points, operation_id=f"op-{points}", what=f"Reason {points}")
        activity = _member(subject).recent_activity
        assert [(entry.points, entry.what) for entry in activity] == [
            (points, f"Reason {points}") for points in (7, 6, 5, 4, 3)
        ]
        times = [entry.when for entry in activity]
        assert times == sorted(times, reverse=True)

    def test_the_email_behind_an_award_key_is_found(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA)
        subject.enrol(subject.store, email=BEN)
        assert subject.program.email_of(subject.store, member_hmac=subject.hmac(BEN)) == BEN

    def test_awards_at_once_add_up(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA)
        barrier = threading.Barrier(4)

        def award(worker: int) -> None:
            barrier.wait()
            for number in range(5):
                _add(subject, 10, operation_id=f"op-{worker}-{number}")

        threads = [threading.Thread(target=award, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert _member(subject).points_balance == 200

    def test_stores_never_see_each_other(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA, points=120)
        subject.enrol(subject.other_store, email=BEN, points=7)
        program, other = subject.program, subject.other_store
        assert program.member(other, email=ANA) is None
        assert program.member(subject.store, email=BEN) is None
        assert program.email_of(other, member_hmac=subject.hmac(ANA)) is None
        with pytest.raises(UnknownMember):
            _add(subject, 50, store=other)

    def test_one_person_in_two_stores_is_two_members(self, subject: Subject) -> None:
        subject.enrol(subject.store, email=ANA, points=120)
        subject.enrol(subject.other_store, email=ANA, points=7)
        _add(subject, 50, operation_id="op-1")
        _add(subject, 1, operation_id="op-1", store=subject.other_store)
        assert _member(subject).points_balance == 170
        other = subject.program.member(subject.other_store, email=ANA)
        assert other is not None
        assert other.points_balance == 8


def _member(subject: Subject) -> Member:
    member = subject.program.member(subject.store, email=ANA)
    assert member is not None
    return member


def _add(
    subject: Subject,
    points: int,
    *,
    operation_id: str = "op-1",
    what: str = "Goodwill",
    reverses: str | None = None,
    store: Store | None = None,
) -> PointsEvent:
    event = NewPointsEvent(operation_id=operation_id, email=ANA, points=points, what=what, reverses=reverses)
    with subject.transaction() as tx:
        return subject.program.add_points(store or subject.store, event=event, within=tx)
