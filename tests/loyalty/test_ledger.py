"""The embedded ledger: what its books prove, and what they find."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, NoResultFound

from loyalty.journal import what_of
from loyalty.ledger import (
    EARNING_KINDS,
    TIERS,
    UNCLAIMED,
    Kind,
    identity_for,
    keep_latest,
    new_referral_code,
    open_store,
    tier_for,
    totals,
    verify,
)
from loyalty.ledger_import import import_members
from loyalty.program import Member, MemberStatus, NewPointsEvent
from privacy.rows import Eraser
from storage.database import Database
from storage.sealing import RandomBytes, Sealer
from storage.tables import ledger_entries, ledger_transactions, members, stores
from tests.databases import FIRST_KEY, Clock, seeded_random_bytes
from tests.ledgers import PUBLIC_URL, LedgerRoom

ANA = "ana@example.com"


@pytest.fixture
def room(database: Database, sealer: Sealer, clock: Clock, random_bytes: RandomBytes) -> LedgerRoom:
    return LedgerRoom(database, sealer=sealer, clock=clock, random_bytes=random_bytes)


def test_tiers_go_by_lifetime_points() -> None:
    assert [tier_for(points) for points in (-5, 0, 499, 500, 1_999, 2_000, 9_999, 10_000, 10**9)] == [
        *["Bronze"] * 3, "Silver", "Silver", "Gold", "Gold", "Platinum", "Platinum",
    ]  # fmt: skip
    assert [threshold for threshold, _ in TIERS] == sorted(threshold for threshold, _ in TIERS)


def test_only_members_have_a_tier_and_a_referral_link(room: LedgerRoom) -> None:
    for status in MemberStatus:
        room.enrol(room.store, email=f"{status}@example.com", status=status, points=600)
    found = {status: _member(room, f"{status}@example.com") for status in MemberStatus}
    assert found[MemberStatus.MEMBER].vip_tier_name == "Silver"
    assert (found[MemberStatus.MEMBER].referral_url or "").startswith(f"{PUBLIC_URL}/r/")
    for status in (MemberStatus.GUEST, MemberStatus.EXCLUDED):
        assert found[status].vip_tier_name is None
        assert found[status].referral_url is None
        assert found[status].points_balance == 600


def test_referral_codes_are_short_and_plain(random_bytes: RandomBytes) -> None:
    codes = {new_referral_code(random_bytes) for _ in range(1_000)}
    assert len(codes) == 1_000
    assert all(len(code) == 16 and code.isalnum() and code == code.lower() for code in codes)


def test_an_award_is_one_debit_and_one_credit(room: LedgerRoom) -> None:
    member_id = room.enrol(room.store, email=ANA)
    room.award(ANA, 50)
    with room.database.read() as tx:
        entries = tx.execute(
            select(ledger_entries.c.member_id, ledger_entries.c.side, ledger_entries.c.points).order_by(
                ledger_entries.c.id
            )
        ).all()
    assert [tuple(entry) for entry in entries] == [(None, "debit", 50), (member_id, "credit", 50)]


def test_a_reversal_is_a_new_entry_that_points_at_the_old_one(room: LedgerRoom) -> None:
    room.enrol(room.store, email=ANA)
    room.award(ANA, 50, operation_id="op-1")
    room.award(ANA, -50, operation_id="op-2", reverses="op-1")
    with room.database.read() as tx:
        old, new = tx.execute(select(ledger_transactions).order_by(ledger_transactions.c.id)).all()
    assert (new.kind, new.reverses_id) == (Kind.REVERSAL, old.id)
    assert _member(room).lifetime_points == 0, "what was undone was never earned"
    with pytest.raises(IntegrityError):
        room.award(ANA, -50, operation_id="op-3", reverses="op-1")
    with pytest.raises(NoResultFound):
        room.award(ANA, -50, operation_id="op-4", reverses="never booked")
    assert _faults(room) == []


def test_a_failed_booking_leaves_nothing(room: LedgerRoom) -> None:
    room.enrol(room.store, email=ANA)
    with pytest.raises(IntegrityError):
        room.award(ANA, 0)
    with room.database.read() as tx:
        assert totals(tx) == (0, 0, 0)
    assert _member(room).recent_activity == ()


@pytest.mark.parametrize(
    "what",
    ["Late delivery", 'It\'s "5 %" \\ of $[#]', "Für Zoë 🎁", "two\nlines\tand a tab", "\x7f\u2028", "[1, 2]", ""],
)
def test_the_activity_is_the_latest_five_newest_first_in_whatever_words(room: LedgerRoom, what: str) -> None:
    room.enrol(room.store, email=ANA, points=120)
    for number in range(1, 8):
        room.advance(60)
        room.award(ANA, number, what=f"{what}{number}" if what else "")
        shown = [(entry.what, entry.points) for entry in _member(room).recent_activity]
        assert shown[0] == (what_of(f"{what}{number}" if what else ""), number)
    assert [points for _, points in shown] == [7, 6, 5, 4, 3]
    times = [entry.when for entry in _member(room).recent_activity]
    assert times == [room.clock() - timedelta(minutes=minutes) for minutes in range(5)]
    assert _faults(room) == []


def test_awards_of_one_member_at_the_same_time_are_all_shown(room: LedgerRoom) -> None:
    room.enrol(room.store, email=ANA)
    barrier = threading.Barrier(4)

    def award(points: int) -> None:
        event = NewPointsEvent(operation_id=f"at-once-{points}", email=ANA, points=points, what="At once")
        barrier.wait()
        with room.transaction() as tx:
            room.program.add_points(room.store, event=event, within=tx)

    threads = [threading.Thread(target=award, args=(points,)) for points in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    member = _member(room)
    assert sorted(entry.points for entry in member.recent_activity) == [1, 2, 3, 4]
    assert member.points_balance == 10
    assert _faults(room) == []


def test_activity_that_is_derived_anew_while_an_award_is_booked_has_that_award(postgres_database: Database) -> None:
    """As an erasure does; PostgreSQL would wait for the award, and then show what was booked before."""
    clock, sealer = Clock(), Sealer((FIRST_KEY,))
    room = LedgerRoom(postgres_database, sealer=sealer, clock=clock, random_bytes=seeded_random_bytes())
    member_id = room.enrol(room.store, email=ANA, points=120)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def derive() -> None:
        with postgres_database.write() as tx:
            keep_latest(tx, members.c.id == member_id)

    with ThreadPoolExecutor(1) as pool, room.transaction() as tx:
        event = NewPointsEvent(operation_id="meanwhile", email=ANA, points=7, what="Meanwhile")
        room.program.add_points(room.store, event=event, within=tx)
        derived = pool.submit(derive)
        ends = time.monotonic() + 20
        while True:
            with postgres_database.read() as other:
                if other.scalar(waiting):
                    break
            assert time.monotonic() < ends, "it never waited"
        # Committed here, while the other one waits.
    derived.result(timeout=20)
    assert [entry.points for entry in _member(room).recent_activity] == [7, 120]
    assert _faults(room) == []


def test_activity_is_derived_from_few_rows_where_postgresql_knows_no_sizes(
    postgres_database: Database, tmp_path: Path
) -> None:
    """As after a restore, or a large import. Without statistics it likes to walk through all entries, newest first."""
    clock, sealer = Clock(), Sealer((FIRST_KEY,))
    room = LedgerRoom(postgres_database, sealer=sealer, clock=clock, random_bytes=seeded_random_bytes())
    path = tmp_path / "members.csv"
    path.write_text("\n".join(["Email,Points,Lifetime Points", *(f"m{n}@example.com,5,9" for n in range(6_000))]))
    import_members(
        postgres_database,
        store=room.store,
        path=path,
        sealer=sealer,
        hasher=room.hasher,
        random_bytes=room.random_bytes,
        now=clock,
        progress=lambda _bytes: None,
    )
    entries_read = text(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'ledger_entries'"
    )
    with room.transaction() as tx:
        ids = tx.scalars(select(members.c.id).order_by(members.c.id).limit(50)).all()
        keep_latest(tx, members.c.id.in_(ids))
        assert tx.scalar(entries_read) == 2 * 50
    assert _faults(room) == []


def test_whoever_is_erased_leaves_no_words_in_what_is_kept(room: LedgerRoom) -> None:
    member_id = room.enrol(room.store, email=ANA, points=120)
    room.award(ANA, 7, what="For Ana Miller")
    eraser = Eraser(sealer=room.sealer, random_bytes=room.random_bytes, now=room.clock)
    with room.transaction() as tx:
        eraser.member(tx, member_id)
    with room.database.read() as tx:
        kept = tx.scalars(select(members.c.latest_activity)).one()
    assert [entry[1:] for entry in kept] == [["Opening balance", 120], ["", 7]]
    assert _faults(room) == []


def test_opening_a_store_twice_finds_the_same_one(database: Database, clock: Clock) -> None:
    with database.write() as tx:
        first = open_store(tx, identity=identity_for("acme"), now=clock())
        assert open_store(tx, identity=identity_for("acme"), now=clock()) == first
        assert open_store(tx, identity=identity_for("other"), now=clock()) != first


def test_the_first_account_takes_over_the_store_of_the_laptop(database: Database, clock: Clock) -> None:
    with database.write() as tx:
        unclaimed = open_store(tx, identity=UNCLAIMED, now=clock())
        assert open_store(tx, identity=identity_for("acme"), now=clock()) == unclaimed
        assert open_store(tx, identity=identity_for("other"), now=clock()) != unclaimed
        assert open_store(tx, identity=identity_for("acme"), now=clock()) == unclaimed


def test_a_store_opened_by_many_at_once_is_one(database: Database, clock: Clock) -> None:
    barrier = threading.Barrier(4)
    found: list[int] = []

    def open_it() -> None:
        barrier.wait()
        with database.write() as tx:
            found.append(open_store(tx, identity=identity_for("acme"), now=clock()).id)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    with database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(stores)) == 1


def test_sound_books_have_nothing_to_say(room: LedgerRoom) -> None:
    room.enrol(room.store, email=ANA, points=120)
    room.enrol(room.other_store, email=ANA)
    room.award(ANA, 50, operation_id="op-1")
    room.award(ANA, -50, reverses="op-1")
    assert _faults(room) == []
    with room.database.read() as tx:
        assert totals(tx) == (220, 220, 3)


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        (
            "UPDATE members SET balance = balance + 1 WHERE id = {member}",
            ["Member {member} is off: balance 171, entries say 170"],
        ),
        (
            "UPDATE members SET lifetime_points = 9 WHERE id = {member}",
            ["Member {member} is off: .* lifetime 9, entries say 170"],
        ),
        (
            "UPDATE ledger_entries SET points = 60 WHERE points = 50 AND side = 'credit'",
            [
                "Transaction .* does not balance: debits 50, credits 60, 2 entries",
                "Transaction .* says 50 points, its entry 60",
                "Member {member} .* entries say 180",
            ],
        ),
        (
            "UPDATE ledger_entries SET points = 60 WHERE points = 50",
            ["Transaction .* says 50 points, its entry 60", "Member {member} .* entries say 180"],
        ),
        (
            "UPDATE ledger_transactions SET points = 49 WHERE points = 50",
            ["Transaction .* says 49 points, its entry 50", "Member {member} shows other activity"],
        ),
        (
            "UPDATE ledger_transactions SET what = 'Something else' WHERE points = 50",
            ["Member {member} shows other activity"],
        ),
        (
            "UPDATE members SET latest_activity = '[]' WHERE id = {member}",
            ["Member {member} shows other activity"],
        ),
        (
            "DELETE FROM ledger_entries WHERE points = 50 AND member_id IS NULL",
            ["Transaction .* debits 0, credits 50, 1 entries"],
        ),
        (
            "DELETE FROM ledger_entries WHERE points = 50",
            [
                "Transaction .* debits 0, credits 0, 0 entries",
                "Member {member} .* entries say 120",
                "Member {member} shows other activity",
            ],
        ),
        (
            "UPDATE ledger_entries SET member_id = {other} WHERE points = 50 AND member_id IS NOT NULL",
            [
                "Member {member} .* entries say 120",
                "Member {member} shows other activity",
                "Member {other} .* entries say 50",
                "Member {other} shows other activity",
            ],
        ),
        (
            "UPDATE ledger_transactions SET kind = 'opening_spent' WHERE kind = 'award'",
            ["Member {member} .* lifetime 170, entries say 120"],
        ),
    ],
)
def test_tampering_is_found(room: LedgerRoom, tampering: str, found: list[str]) -> None:
    member_id = room.enrol(room.store, email=ANA, points=120)
    other_id = room.enrol(room.store, email="ben@example.com")
    room.award(ANA, 50)
    _drop_triggers(room.database)
    with room.database.write() as tx:
        tx.execute(text(tampering.format(member=member_id, other=other_id)))

    faults = sorted(_faults(room), reverse=True)

    assert len(faults) == len(found), faults
    for fault, pattern in zip(faults, sorted(found, reverse=True), strict=True):
        assert re.search(pattern.format(member=member_id, other=other_id), fault), fault


def test_an_entry_that_nobody_booked_is_found(room: LedgerRoom) -> None:
    """Inserting is not refused by the database, so the proof must notice."""
    member_id = room.enrol(room.store, email=ANA)
    room.award(ANA, 50)
    with room.database.write() as tx:
        transaction_id = tx.scalars(select(ledger_transactions.c.id)).one()
        tx.execute(
            insert(ledger_entries),
            [
                {"transaction_id": transaction_id, "member_id": None, "side": "debit", "points": 7},
                {"transaction_id": transaction_id, "member_id": member_id, "side": "credit", "points": 7},
            ],
        )
    # Four entries in one transaction, one of them not what it says, a balance and an activity that are off.
    assert len(_faults(room)) == 4


class Books(RuleBasedStateMachine):
    """Awards, repeated awards, reversals and imports in any order: the books stay sound and equal a plain model."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="tallydesk-books-"))
        shutil.copyfile(self.template, self._folder / "tallydesk.db")
        self._database = Database(f"sqlite:///{self._folder / 'tallydesk.db'}")
        self._room = LedgerRoom(
            self._database,
            sealer=Sealer((FIRST_KEY,)),
            clock=Clock(),
            random_bytes=seeded_random_bytes(),
        )
        self._numbers = itertools.count(1)
        self._balance: dict[str, int] = {}
        self._lifetime: dict[str, int] = {}
        self._touched: set[str] = set()
        self._awards: dict[str, tuple[str, int]] = {}
        self._reversed: set[str] = set()

    def teardown(self) -> None:
        self._database.close()
        shutil.rmtree(self._folder)

    @initialize()
    def enrol(self) -> None:
        self._import([("first@example.com", 0, 0)])

    @rule(
        rows=st.lists(
            st.tuples(
                st.sampled_from([f"{name}@example.com" for name in ("first", "ana", "ben", "eve")]),
                st.integers(0, 5_000),
                st.integers(0, 5_000),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda row: row[0],
        )
    )
    def import_rows(self, rows: list[tuple[str, int, int]]) -> None:
        self._import(rows)

    def _import(self, rows: list[tuple[str, int, int]]) -> None:
        path = self._folder / "members.csv"
        lines = [f"{email},{points},{points + spent}" for email, points, spent in rows]
        path.write_text("\n".join(["Email,Points,Lifetime Points", *lines]))
        import_members(
            self._database,
            store=self._room.store,
            path=path,
            sealer=self._room.sealer,
            hasher=self._room.hasher,
            random_bytes=self._room.random_bytes,
            now=self._room.clock,
            progress=lambda _bytes: None,
        )
        for email, points, spent in rows:
            if email not in self._touched:
                self._balance[email] = points
                self._lifetime[email] = points + spent
                if points + spent:
                    self._touched.add(email)

    @rule(data=st.data(), points=st.integers(1, 10**9))
    def award(self, data: st.DataObject, points: int) -> None:
        email = data.draw(st.sampled_from(sorted(self._balance)))
        operation_id = f"op-{next(self._numbers)}"
        self._balance[email] += points
        self._lifetime[email] += points
        self._touched.add(email)
        self._awards[operation_id] = (email, points)
        assert self._room.award(email, points, operation_id=operation_id) == self._balance[email]

    @precondition(lambda self: self._awards)
    @rule(data=st.data())
    def award_again(self, data: st.DataObject) -> None:
        operation_id = data.draw(st.sampled_from(sorted(self._awards)))
        email, points = self._awards[operation_id]
        assert self._room.award(email, points, operation_id=operation_id) == self._balance[email]

    @precondition(lambda self: set(self._awards) - self._reversed)
    @rule(data=st.data())
    def reverse(self, data: st.DataObject) -> None:
        operation_id = data.draw(st.sampled_from(sorted(set(self._awards) - self._reversed)))
        email, points = self._awards[operation_id]
        self._reversed.add(operation_id)
        self._balance[email] -= points
        self._lifetime[email] -= points
        told = self._room.award(email, -points, operation_id=f"undo-{operation_id}", reverses=operation_id)
        assert told == self._balance[email]

    @invariant()
    def books_are_sound(self) -> None:
        assert _faults(self._room) == []
        with self._database.read() as tx:
            debits, credits, _ = totals(tx)
        assert debits == credits

    @invariant()
    def members_have_what_the_model_says(self) -> None:
        for email, balance in self._balance.items():
            member = _member(self._room, email)
            assert (member.points_balance, member.lifetime_points) == (balance, self._lifetime[email])


def test_any_order_of_events_keeps_the_books(migrated_file: Path) -> None:
    Books.template = migrated_file
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=15,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_spending_is_not_unearning() -> None:
    assert set(Kind) - set(EARNING_KINDS) == {Kind.OPENING_SPENT}


def _member(room: LedgerRoom, email: str = ANA) -> Member:
    member = room.program.member(room.store, email=email)
    assert member is not None
    return member


def _faults(room: LedgerRoom) -> list[str]:
    with room.database.read() as tx:
        return list(verify(tx))


def _drop_triggers(database: Database) -> None:
    with database.write() as tx:
        for table in ("ledger_transactions", "ledger_entries"):
            if database.sqlite:
                for change in ("update", "delete"):
                    tx.execute(text(f"DROP TRIGGER {table}_no_{change}"))
            else:
                tx.execute(text(f"DROP TRIGGER {table}_append_only ON {table}"))
                tx.execute(text(f"DROP TRIGGER IF EXISTS {table}_no_update ON {table}"))
