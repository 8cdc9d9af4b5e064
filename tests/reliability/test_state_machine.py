"""Awards on Rivo under every trouble at once: faults, crashes, clocks, several processes. Nobody is charged twice.

`TALLYDESK_STATE_MACHINE_EXAMPLES` sets the number of examples on SQLite; a tenth of them is run on PostgreSQL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from loyalty import delivery
from loyalty.journal import AwardState
from sandbox.rivo_shapes import RivoShapes
from tests.databases import Postgres
from tests.reliability.world import POINTS, WORLDS, Deed, Process, Rivo, World

EXAMPLES = int(os.environ.get("TALLYDESK_STATE_MACHINE_EXAMPLES", "200"))
CUSTOMERS = r"/merchant_api/v1/customers/.*"

# With them Rivo has done nothing, or everything, when the answer goes wrong; the last list is for writes alone.
ANY_REQUEST = (
    "slow",
    "hang",
    "reset_before",
    "reset_after",
    "status",
    "status_after",
    "html",
    "html_after",
    "truncated",
    "empty",
    "rate_limited",
    "drip",
    "hang_after",
)
SECONDS = {"slow": 0.02, "hang": 0.02, "hang_after": 0.02, "drip": 0.0001}
# Longer than an agent's attempt where that was made short.
TOO_LONG_S = 0.4

processes = st.integers(0, 1)
members = st.integers(0, 1)
which = st.integers(0, 9)
# Most go well; a crash is at one of the steps that an award has.
deaths = st.one_of(st.none(), st.none(), st.integers(0, 24))
presses = st.fixed_dictionaries(
    {"member": members, "ticket": st.integers(1, 2), "key": st.sampled_from([None, None, 0, 1])},
).flatmap(
    lambda press: st.sampled_from(
        [{**press, "points": 50}, {**press, "points": 70}, {**press, "cents": 250}],
    )
)


# Most presses meet one, or a rule would have to order it just before.
troubles = st.one_of(st.none(), st.just("commit_late"), st.sampled_from(ANY_REQUEST))


class Reliability(RuleBasedStateMachine):
    """Rules make trouble; invariants look into Rivo's book after each."""

    rivo: Rivo
    new_database: Callable[[], str]
    set_patience: Callable[[float], None]

    @initialize(
        patient=st.sampled_from([True, True, True, False]),
        shapes=st.builds(
            RivoShapes,
            create=st.sampled_from(["with_customer", "without_customer", "empty"]),
            newest_first=st.booleans(),
            composite_ids=st.booleans(),
            points_diff=st.booleans(),
            tally_name=st.sampled_from(["points_tally", "loyalty_points_tally"]),
            errors=st.sampled_from(["error", "message", "errors_list", "errors_object"]),
        ),
        known=st.booleans(),
    )
    def open(self, patient: bool, shapes: RivoShapes, known: bool) -> None:
        # Short of patience, an agent's attempt ends while Rivo still works on it.
        self.hang_s = 0.0 if patient else TOO_LONG_S
        self.set_patience(7.0 if patient else 0.2)
        self.world = World(self.rivo, database_url=self.new_database(), number=next(WORLDS))
        self.world.shop.shapes = shapes
        if known:
            self.world.do(Deed(process=0, action=lambda process: self.world.show_card(process, 0)))

    # -- what people and workers do

    @rule(process=processes, die_at=deaths, press=presses, trouble=troubles)
    def press(self, process: int, die_at: int | None, press: dict[str, Any], trouble: str | None) -> None:
        if trouble is not None:
            self.fault(trouble, "POST", times=1, skip=0, status=502, retry_after=None)
        request = self.world.request(**press)
        repeats = self.world.standing_repetitions(request)
        (done,) = self.world.do(
            Deed(
                process=process,
                action=lambda alive: self.world.press(alive, request),
                die_at=die_at,
                what=f"press {press}",
            )
        )
        with self.world.telling():
            if repeats and done is not None and press["key"] is None:
                assert done in repeats, "a repetition became an award of its own"

    @rule(die_at=deaths, press=presses, same_process=st.booleans(), and_work=st.booleans())
    def press_twice_at_once(
        self, die_at: int | None, press: dict[str, Any], same_process: bool, and_work: bool
    ) -> None:
        request = self.world.request(**press)
        deeds = [
            Deed(
                process=0, action=lambda alive: self.world.press(alive, request), die_at=die_at, what=f"press {press}"
            ),
            Deed(
                process=0 if same_process else 1,
                action=lambda alive: self.world.press(alive, request),
                what=f"press {press}",
            ),
        ]
        if same_process:
            deeds = [replace(deed, die_at=die_at) for deed in deeds]
        if and_work:
            deeds.append(Deed(process=1, action=self.world.work, what="work"))
        before = {row.operation_id for row in self.world.rows()}
        self.world.do(*deeds)
        new = [row for row in self.world.rows() if row.operation_id not in before]
        with self.world.telling():
            # One that is pressed again long after counts anew as soon as it is settled, which may be just now.
            assert len([row for row in new if row.state != AwardState.REJECTED]) <= 1, "a double click counted twice"

    @rule(process=processes, die_at=deaths, which=which)
    def undo(self, process: int, die_at: int | None, which: int) -> None:
        applied = [row for row in self.world.rows() if row.state == AwardState.APPLIED and row.reverses is None]
        if applied:
            operation_id = applied[which % len(applied)].operation_id
            self.world.do(
                Deed(
                    process=process,
                    action=lambda alive: self.world.undo(alive, operation_id),
                    die_at=die_at,
                    what=f"undo {operation_id}",
                )
            )

    @rule(process=processes, die_at=deaths)
    def work(self, process: int, die_at: int | None) -> None:
        self.world.do(Deed(process=process, action=self.world.work, die_at=die_at, what="work"))

    @rule(die_at=deaths, more=st.sampled_from(["work", "tell", "sweep"]), which=which)
    def work_at_once(self, die_at: int | None, more: str, which: int) -> None:
        def other(process: Process) -> None:
            if more == "work":
                self.world.work(process)
            elif more == "tell":
                self.world.tell(process, which)
            else:
                process.services.jobs.sweep()
                self.world.work(process)

        self.world.do(
            Deed(process=0, action=self.world.work, die_at=die_at, what="work"),
            Deed(process=1, action=other, what=more),
        )

    @rule(process=processes, die_at=deaths)
    def sweep(self, process: int, die_at: int | None) -> None:
        self.world.do(
            Deed(process=process, action=lambda alive: alive.services.jobs.sweep(), die_at=die_at, what="sweep")
        )

    @rule(process=processes, which=which)
    def tell(self, process: int, which: int) -> None:
        self.world.do(
            Deed(process=process, action=lambda alive: self.world.tell(alive, which), what=f"webhook {which}")
        )

    @rule(process=processes, member=members)
    def show_card(self, process: int, member: int) -> None:
        self.world.do(
            Deed(process=process, action=lambda alive: self.world.show_card(alive, member), what=f"card {member}")
        )

    @rule(process=processes, which=which, look=st.booleans())
    def review(self, process: int, which: int, look: bool) -> None:
        self.world.do(
            Deed(
                process=process,
                action=lambda alive: self.world.review(alive, which, look=look),
                what=f"review {which} {look}",
            )
        )

    @rule()
    def mend_key(self) -> None:
        self.world.mend_key()

    # -- what goes wrong

    @rule(
        kind=st.sampled_from(ANY_REQUEST),
        at=st.sampled_from(["POST", "POST", "GET", "customer"]),
        times=st.integers(1, 3),
        skip=st.integers(0, 1),
        status=st.sampled_from([500, 502, 503]),
        retry_after=st.sampled_from([None, 1, 3, 30]),
    )
    def fault(self, kind: str, at: str, times: int, skip: int, status: int, retry_after: int | None) -> None:
        seconds = max(SECONDS.get(kind, 0.0), self.hang_s if kind in ("slow", "hang", "hang_after") else 0.0)
        self.world.order(
            kind=kind,
            path=CUSTOMERS if at == "customer" else POINTS,
            method="POST" if at == "POST" else "GET",
            times=times,
            skip=skip,
            seconds=seconds,
            status=status,
            retry_after=retry_after,
        )

    @rule(at=st.sampled_from(["POST", "GET"]), status=st.sampled_from([401, 403, 422, 429]))
    def refusal(self, at: str, status: int) -> None:
        self.world.order(kind="status", path=POINTS, method=at, status=status)

    @rule()
    def late(self) -> None:
        self.world.order(kind="commit_late", path=POINTS, method="POST")

    @rule(which=which)
    def commit(self, which: int) -> None:
        self.world.commit_late(which)

    @rule()
    def faults_stop(self) -> None:
        self.world.sandbox.faults.clear()

    @rule(member=members, events=st.integers(1, 4))
    def others_write(self, member: int, events: int) -> None:
        self.world.note(f"others write {events} events of member {member}")
        for _ in range(events):
            self.world.shop.add_event(self.world.emails[member], points=5)

    @rule(seconds=st.sampled_from([1, 3, 8, 12, 20, 31, 46, 61, 95, 125, 600]), works=st.booleans())
    def time_passes(self, seconds: int, works: bool) -> None:
        self.world.pass_time(seconds)
        if works:
            self.work(0, None)

    @rule(seconds=st.sampled_from([-3600, -600, -30, 30, 600, 3600, 3 * 3600]))
    def clock_jumps(self, seconds: int) -> None:
        self.world.jump(seconds)

    # -- what must hold

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.recover()
                # For --hypothesis-show-statistics: how far the examples come.
                for row in self.world.rows():
                    event(f"{row.state} by {row.settled_by} after {row.sends} sends")
            finally:
                self.world.close()


def explore(
    rivo: Rivo, monkeypatch: pytest.MonkeyPatch, *, new_database: Callable[[], str], examples: int, steps: int
) -> None:
    attributes = {
        "rivo": rivo,
        "new_database": staticmethod(new_database),
        "set_patience": staticmethod(lambda seconds: monkeypatch.setattr(delivery, "SEND_WITHIN_S", seconds)),
    }
    run_state_machine_as_test(
        type("Reliability", (Reliability,), attributes),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            # Threads and sockets take the time they take; what is generated does not depend on it.
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(max(120, EXAMPLES * 3))
def test_every_award_is_in_rivos_book_exactly_once_whatever_happens(
    rivo: Rivo, monkeypatch: pytest.MonkeyPatch, threads_may_crash: None, new_sqlite: Callable[[], str]
) -> None:
    explore(rivo, monkeypatch, new_database=new_sqlite, examples=EXAMPLES, steps=20)


@pytest.mark.timeout(max(120, EXAMPLES))
def test_every_award_is_in_rivos_book_exactly_once_on_postgresql_too(
    rivo: Rivo,
    monkeypatch: pytest.MonkeyPatch,
    threads_may_crash: None,
    postgres: Postgres,
    migrated_template: str,
) -> None:
    made: list[str] = []

    def new_database() -> str:
        for name in made:
            postgres.drop(name)
        made[:] = [postgres.create(template=migrated_template)]
        return postgres.url(made[0])

    explore(rivo, monkeypatch, new_database=new_database, examples=max(5, EXAMPLES // 10), steps=20)
