"""A Rivo store, processes of Tallydesk that can die at any step, and two clocks: Rivo's, which is right, and ours.

Time is made up: it passes only in `pass_time`, and never while Rivo still works on a request, so that what a fault
does late happens exactly as late as it was ordered, however slow the machine is.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from sqlalchemy import select

from loyalty import award_key
from loyalty.award_key import AwardKey
from loyalty.awards import AwardRefused, AwardRequest, AwardResult, Origin, Rules
from loyalty.delivery import GIVE_UP_AFTER, MAX_SENDS
from loyalty.journal import CONFIRM_AWARD, SETTLED, UNSETTLED, AwardState
from loyalty.program import ProgramKind, ProgramUnavailable
from loyalty.stores import KeyState
from sandbox import Sandbox
from sandbox.faults import Fault
from services import build_services
from settings import Settings
from storage.tables import accounts, awards, jobs
from tests.databases import FIRST_KEY, seeded_random_bytes
from tests.house import SECRET_KEY
from tests.stepping import run_one

# Numbers of worlds, none twice at one Rivo.
WORLDS = count(1)

START = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
WINDOW_S = 60
RESEND_AFTER_S = 45
# Rivo commits within this of the attempt's end; the setting promises to exceed it.
LATEST_COMMIT_S = 44.9
POINTS = "/merchant_api/v1/points_events"
OPENING_POINTS, OPENING_CREDIT = 5_000, Decimal("900.00")
RULES = Rules(
    max_points_per_award=1_000,
    max_points_per_agent_per_day=1_000_000,
    max_points_per_day=1_000_000,
    max_credit_cents_per_award=10_000,
    max_credit_cents_per_day=1_000_000,
)


class Crash(SystemExit):
    """The process is gone. Nothing of the product may catch it; a thread that it ends is silent."""


class Steps:
    """The steps of one process: before, within and after each transaction that writes, and around each request.

    From the chosen step on every one raises Crash, since a dead process writes and sends nothing more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: int | None = None
        self.dead = False

    def die_at(self, number: int | None) -> None:
        """Die at the step with this number, counted from 0 and from now; None: live on."""
        with self._lock:
            self._left = number

    def step(self) -> None:
        """One step. Raises Crash."""
        with self._lock:
            if self._left is not None:
                self.dead = self.dead or self._left == 0
                self._left -= 1
            if self.dead:
                raise Crash


class Process:
    """One process of Tallydesk, reached past HTTP."""

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], None],
        seed: int,
        steps: Steps | None = None,
    ) -> None:
        self.steps = steps or Steps()
        self.services = build_services(settings, now=now, sleep=sleep, random_bytes=seeded_random_bytes(seed))
        database = self.services.database
        exchange, write, note = self.services.client.exchange, database.write, database.note

        def exchanged(*args: Any, **how: Any) -> Any:
            self.steps.step()
            answer = exchange(*args, **how)
            self.steps.step()
            return answer

        @contextmanager
        def written(*locks: str, **how: bool) -> Iterator[Any]:
            self.steps.step()
            with write(*locks, **how) as tx:
                yield tx
                self.steps.step()
            self.steps.step()

        def noted(*args: Any, **values: Any) -> Any:
            self.steps.step()
            rows = note(*args, **values)
            self.steps.step()
            return rows

        # Every part of the process writes and sends through these methods.
        vars(database).update(write=written, note=noted)
        vars(self.services.client)["exchange"] = exchanged

    def close(self) -> None:
        """End it, as far as its files and sockets go."""
        self.services.http.close()
        self.services.client.close()
        self.services.database.close()


@dataclass(frozen=True, kw_only=True)
class Deed:
    """Something that a process does, which may die at a step of it."""

    process: int
    action: Callable[[Process], Any]
    die_at: int | None = None
    what: str = "something"

    def __str__(self) -> str:
        end = "" if self.die_at is None else f", dies at step {self.die_at}"
        return f"process {self.process}: {self.what}{end}"


class Underway:
    """Counts what Rivo is still working on, requests whose client has gone included."""

    def __init__(self, sandbox: Sandbox) -> None:
        server = sandbox._server
        app = server.app
        self._changed = threading.Condition()
        self._count = 0

        def counted(environ: Any, start_response: Any) -> Any:
            with self._changed:
                self._count += 1
            try:
                return app(environ, start_response)
            finally:
                with self._changed:
                    self._count -= 1
                    self._changed.notify_all()

        server.app = counted

    def settle(self) -> None:
        """Wait until Rivo works on nothing."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._count == 0, timeout=30), "Rivo never ended a request"


@dataclass
class Rivo:
    """A sandbox that many worlds use one after the other. `now` is set by the present one."""

    now: Callable[[], datetime] = field(default=lambda: START)
    sandbox: Sandbox = field(init=False)
    underway: Underway = field(init=False)

    def __post_init__(self) -> None:
        self.sandbox = Sandbox(
            accounts=("acme",), rivo_stores=("northwind",), rivo_calls_per_s=None, now=lambda: self.now()
        )
        self.underway = Underway(self.sandbox)

    def __enter__(self) -> Rivo:
        self.sandbox.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sandbox.stop()


class World:
    """Everything of one example. `number` tells it from others at the same Rivo."""

    def __init__(self, rivo: Rivo, *, database_url: str, number: int) -> None:
        self._lock = threading.RLock()
        self._true_s = 0.0
        self._ahead_s = 0.0
        self._jumped_at: list[float] = []
        self._trail: list[str] = []
        self._late: list[tuple[Fault, float]] = []
        self._ordered: list[Fault] = []
        self._seed = number * 1_000
        self._rivo = rivo
        rivo.now = self.rivo_now
        self.sandbox = rivo.sandbox
        self.sandbox.faults.clear()
        self.shop = rivo.sandbox.rivo("northwind")
        self.emails = (f"ana{number}@example.com", f"ben{number}@example.com")
        for email in self.emails:
            self.shop.add_customer(email, points=OPENING_POINTS, credits=OPENING_CREDIT)
        self.settings = Settings(
            database_url=database_url,
            public_url="http://localhost:8000",
            port=8000,
            secret_key=SECRET_KEY,
            encryption_keys=(FIRST_KEY,),
            gorgias_client_id="client",
            gorgias_client_secret="secret",
            gorgias_url=rivo.sandbox.gorgias_url,
            max_points_per_award=1_000,
            max_points_per_agent_per_day=1_000_000,
            max_points_per_connection_per_day=1_000_000,
            double_click_window_s=WINDOW_S,
            rivo_url=rivo.sandbox.rivo_url,
            snapshot_fresh_s=60,
            snapshot_not_found_s=30,
            snapshot_retention_days=30,
            card_deadline_s=2.5,
            unknown_award_resend_after_s=RESEND_AFTER_S,
            award_retention_days=730,
            forget_after_disconnect_days=30,
            metrics_token="",
            worker_metrics_port=0,
            sentry_dsn="",
        )
        self.processes = [self._new_process(), self._new_process()]
        services = self.processes[0].services
        services.hasher.email("")
        with services.database.write() as tx:
            account_id = tx.execute(
                accounts.insert()
                .values(name="acme", state="needs_reauth", connected_at=self.now(), updated_at=self.now())
                .returning(accounts.c.id)
            ).scalar_one()
            self.store = services.stores.open(tx, account="acme", program=ProgramKind.RIVO, key=self.shop.key)
            self.connection_id = services.connections.open(tx, account_id=account_id, store=self.store, rules=RULES)
        self.keys = [self._mint(email) for email in self.emails for _ in range(2)]
        # What was answered with 200 or 202.
        self.answered: dict[str, str] = {}

    def _mint(self, email: str) -> AwardKey:
        services = self.processes[0].services
        text = award_key.mint(
            hasher=services.hasher,
            connection_id=self.connection_id,
            member_hmac=services.hasher.email(email),
            now=self.now(),
            random_bytes=services.random_bytes,
        )
        key = award_key.verify(text, hasher=services.hasher, connection_id=self.connection_id)
        assert key is not None
        return key

    def new_seed(self) -> int:
        """A seed for a process of its own, so that no two make the same ids."""
        self._seed += 1
        return self._seed

    def _new_process(self) -> Process:
        return Process(self.settings, now=self.now, sleep=self.sleep, seed=self.new_seed())

    def close(self) -> None:
        """End everything of this example."""
        self.settle()
        for process in self.processes:
            process.close()

    # -- time

    def rivo_now(self) -> datetime:
        """The time, as Rivo knows it."""
        return START + timedelta(seconds=self._true_s)

    def now(self) -> datetime:
        """The time as this machine's clock has it."""
        return START + timedelta(seconds=self._true_s + self._ahead_s)

    def sleep(self, seconds: float) -> None:
        """What the product waits with."""
        self.pass_time(seconds)
        time.sleep(0.001)

    def pass_time(self, seconds: float) -> None:
        """Let time pass. What Rivo commits late is committed at the latest moment that it may take."""
        with self._lock:
            self._note_strikes()
            end = self._true_s + seconds
            while due := [(at, fault) for fault, at in self._late if at + LATEST_COMMIT_S <= end]:
                at, fault = min(due, key=lambda pair: pair[0])
                self._true_s = max(self._true_s, at + LATEST_COMMIT_S)
                self._commit(fault)
            self._true_s = end

    def jump(self, seconds: float) -> bool:
        """Set the machine's clock; false when that is one jump too many while Rivo may still commit something."""
        with self._lock:
            self._note_strikes()
            if any(at <= jumped for _, at in self._late for jumped in self._jumped_at):
                return False
            self._jumped_at.append(self._true_s)
            self._ahead_s += seconds
            self.note(f"clock set by {seconds}")
            return True

    def _note_strikes(self) -> None:
        """Time is about to pass: note what Rivo is left with now."""
        self._rivo.underway.settle()
        struck = [fault for fault in self._ordered if fault.hits]
        self._late += [(fault, self._true_s) for fault in struck]
        self._ordered = [fault for fault in self._ordered if not fault.hits]

    def _commit(self, fault: Fault) -> None:
        self._late = [pair for pair in self._late if pair[0] is not fault]
        self.note(f"Rivo commits late: {fault.commit()}")

    # -- Rivo

    def order(self, *, kind: str, path: str, method: str, **more: Any) -> Fault:
        """Order a fault."""
        self.note(f"fault {kind} {method} {more}")
        fault = self.sandbox.faults.add(path=path, method=method, account="rivo", kind=kind, **more)
        if kind == "commit_late":
            self._ordered.append(fault)
        return fault

    def commit_late(self, which: int) -> None:
        """Rivo commits now what it was left with."""
        with self._lock:
            self._note_strikes()
            if self._late:
                self._commit(self._late[which % len(self._late)][0])

    def book(self) -> list[dict[str, Any]]:
        """The points events of this world's members that stand, as Rivo has them."""
        rows = [row for email in self.emails for row in self.shop.events(email)]
        return [row for row in rows if row["revoked_at"] is None]

    def ours(self) -> list[tuple[str, dict[str, Any]]]:
        """Those among them that carry an operation id."""
        found = [(re.search(r"Tallydesk (\S+):", row["internal_note"] or ""), row) for row in self.book()]
        return [(match[1], row) for match, row in found if match]

    # -- what agents, workers and people do

    def request(
        self, *, member: int, ticket: int, points: int = 0, cents: int = 0, key: int | None = None
    ) -> AwardRequest:
        """A press of the button; `key` is which of the member's two cards it came from."""
        return AwardRequest(
            emails=(self.emails[member],),
            points=points,
            credit_cents=cents,
            origin=Origin(
                connection_id=self.connection_id,
                channel="button",
                ticket_id=str(ticket),
                agent_email="agent@example.com",
            ),
            key=None if key is None else self.keys[2 * member + key],
        )

    def press(self, process: Process, request: AwardRequest) -> str | None:
        """Press the button: the operation id that was answered with 200 or 202, or None."""
        try:
            result = process.services.awards.award(self.store, request=request, rules=RULES)
        except (AwardRefused, ProgramUnavailable):
            return None
        return self._answered(result)

    def undo(self, process: Process, operation_id: str) -> str | None:
        """Take an award back; as `press`."""
        origin = Origin(connection_id=self.connection_id, channel="console")
        try:
            result = process.services.awards.undo(operation_id=operation_id, origin=origin)
        except (AwardRefused, ProgramUnavailable):
            return None
        return self._answered(result)

    def _answered(self, result: AwardResult) -> str:
        self.answered[result.operation_id] = result.status
        return result.operation_id

    def show_card(self, process: Process, member: int) -> None:
        """Read a member as a card does, until the refresh behind it has ended too."""
        with suppress(ProgramUnavailable):
            process.services.members.read(self.store, email=self.emails[member])

    def work(self, process: Process) -> None:
        """Run the jobs that are due."""
        for _ in range(200):
            if not run_one(process.services):
                return
        raise AssertionError("The worker never came to an end.")

    def tell(self, process: Process, which: int) -> None:
        """Rivo's webhook about one of the points events in its book."""
        told = self.ours()
        if told:
            operation_id, row = told[which % len(told)]
            process.services.delivery.seen(
                self.store,
                operation_id=operation_id,
                points=row["points_diff"],
                credit_cents=int(Decimal(row["credits_diff"]) * 100),
            )

    def review(self, process: Process, which: int, *, look: bool) -> None:
        """A person looks at an award in review: asks again, or looks into Rivo's book and says what is there."""
        waiting = [row for row in self.rows() if row.state == AwardState.NEEDS_REVIEW]
        if not waiting or (self._late and not look):
            return
        row = waiting[which % len(waiting)]
        try:
            if look:
                process.services.awards.look_again(operation_id=row.operation_id, connection_id=self.connection_id)
            else:
                process.services.awards.mark(
                    operation_id=row.operation_id,
                    connection_id=self.connection_id,
                    applied=row.operation_id in dict(self.ours()),
                    by="admin@example.com",
                )
        except AwardRefused:
            pass

    def mend_key(self) -> None:
        """The merchant pastes the key again where Rivo seemed to refuse it."""
        stores = self.processes[0].services.stores
        if stores.standing(self.store).state is KeyState.REFUSED:
            stores.replace_key(self.store, account="acme", key=self.shop.key)

    def do(self, *deeds: Deed) -> list[Any]:
        """Do one thing, or several at once in threads that begin together; what each returned, None of who died.

        A process that died is started anew, on the same database.
        """
        self.note(" | ".join(map(str, deeds)))
        line = threading.Barrier(len(deeds))
        results: list[Any] = [None] * len(deeds)
        failures: list[BaseException] = []

        def run(position: int) -> None:
            deed = deeds[position]
            process = self.processes[deed.process]
            line.wait(30)
            try:
                results[position] = deed.action(process)
            except Crash:
                pass
            except BaseException as error:
                failures.append(error)

        for deed in deeds:
            self.processes[deed.process].steps.die_at(deed.die_at)
        threads = [threading.Thread(target=run, args=(position,)) for position in range(len(deeds))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "something never ended"
        self.settle()
        for number, process in enumerate(self.processes):
            process.steps.die_at(None)
            if process.steps.dead:
                self.processes[number] = self._new_process()
                process.close()
        self.note(f"  → {results}")
        if failures:
            raise failures[0]
        return results

    def note(self, what: str) -> None:
        """Write down what happens, for whoever has to understand a failure that depended on threads."""
        self._trail.append(f"{self._true_s:8.1f} {self._ahead_s:+8.1f}  {what}")

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What fails within tells all that went before."""
        try:
            yield
        except AssertionError as error:
            rows = [
                f"{row.operation_id} {row.state} points={row.points} cents={row.credit_cents} ticket={row.ticket_id} "
                f"sends={row.sends} looks={row.looks} created={row.created_at:%H:%M:%S} by={row.settled_by} "
                f"reverses={row.reverses}"
                for row in self.rows()
            ]
            error.add_note("\n".join([*self._trail, *rows]))
            raise

    def settle(self) -> None:
        """Wait for the threads behind cards and for Rivo."""
        for thread in threading.enumerate():
            if thread.name in ("ask", "refresh"):
                thread.join(30)
                assert not thread.is_alive(), "a thread behind a card never ended"
        self._rivo.underway.settle()

    # -- what must hold

    def rows(self) -> list[Any]:
        """The journal, oldest first."""
        with self.processes[0].services.database.read() as tx:
            return list(tx.execute(select(awards).order_by(awards.c.created_at, awards.c.operation_id)))

    def standing_repetitions(self, request: AwardRequest) -> set[str] | None:
        """The awards that this press repeats; None when it is too near to the end of a window to tell."""
        rows = self.rows()
        undone = {row.reverses for row in rows if row.reverses and row.state == AwardState.APPLIED}
        repeated = set()
        for row in rows:
            age_s = (self.now() - row.created_at).total_seconds()
            same = (row.ticket_id, row.points, row.credit_cents, row.member_hmac) == (
                request.origin.ticket_id,
                request.points,
                request.credit_cents,
                self.processes[0].services.hasher.email(request.emails[0]),
            )
            if row.reverses or not same or row.state == AwardState.REJECTED or row.operation_id in undone:
                continue
            if abs(age_s - WINDOW_S) < 10:
                return None
            if age_s < WINDOW_S or row.state not in SETTLED:
                repeated.add(row.operation_id)
        return repeated

    def check(self) -> None:
        """What must hold at every moment."""
        with self.telling():
            self._check()

    def _check(self) -> None:
        rows = {row.operation_id: row for row in self.rows()}
        ours = self.ours()
        counts = Counter(operation_id for operation_id, _ in ours)
        assert {o: n for o, n in counts.items() if n > 1} == {}, "an award is in Rivo's book more than once"
        hasher = self.processes[0].services.hasher
        for operation_id, event in ours:
            assert operation_id in rows, "Rivo has an award that the journal does not know"
            row = rows[operation_id]
            written = (event["points_diff"], int(Decimal(event["credits_diff"]) * 100), hasher.email(event["email"]))
            assert written == (row.points, row.credit_cents, row.member_hmac)
        for operation_id, row in rows.items():
            if row.state == AwardState.APPLIED:
                assert operation_id in counts, "an applied award is not in Rivo's book"
            if row.state == AwardState.REJECTED:
                assert operation_id not in counts, "a rejected award is in Rivo's book"
            if row.state == AwardState.NEEDS_REVIEW:
                too_old = self.now() - row.created_at > GIVE_UP_AFTER
                assert row.sends >= MAX_SENDS or too_old, "an award was left to a person too soon"
        assert set(self.answered) <= set(rows), "an award was answered that is not in the journal"
        undos = Counter(row.reverses for row in rows.values() if row.reverses and row.state != AwardState.REJECTED)
        assert not undos or max(undos.values()) == 1
        for email in self.emails:
            customer = self.shop.customer(email)
            assert customer is not None
            events = [row for row in self.book() if row["email"] == email]
            assert customer["points_tally"] == OPENING_POINTS + sum(row["points_diff"] for row in events)
            credit = sum((Decimal(row["credits_diff"]) for row in events), Decimal(0))
            assert Decimal(customer["credits_tally"]) == OPENING_CREDIT + credit

    def recover(self) -> None:
        """Faults stop, Rivo commits what it still has, and a day passes with a worker: everything is settled."""
        self.note("faults stop")
        with self.telling():
            self._recover()

    def _recover(self) -> None:
        self.sandbox.faults.clear()
        self.settle()
        self.pass_time(LATEST_COMMIT_S)
        self.mend_key()
        process = self.processes[0]
        ends = self.now() + timedelta(days=1)
        swept = self.now()
        while any(row.state in UNSETTLED for row in self.rows()) and self.now() < ends:
            self.work(process)
            if self.now() - swept >= timedelta(minutes=1):
                process.services.jobs.sweep()
                swept = self.now()
            self.pass_time(self._until_next_job_s())
        left = {row.operation_id: row.state for row in self.rows() if row.state in UNSETTLED}
        assert left == {}, "awards were not settled within a day"
        self.check()
        in_book = {operation_id for operation_id, _ in self.ours()}
        for row in self.rows():
            if row.state != AwardState.NEEDS_REVIEW:
                assert (row.state == AwardState.APPLIED) == (row.operation_id in in_book)

    def _until_next_job_s(self) -> float:
        with self.processes[0].services.database.read() as tx:
            waiting = tx.execute(select(jobs.c.run_at, jobs.c.lease_until).where(jobs.c.name == CONFIRM_AWARD)).all()
        times = [max(row.run_at, row.lease_until or row.run_at) for row in waiting]
        wait_s = (min(times) - self.now()).total_seconds() if times else 60.0
        return min(max(wait_s, 0.5), 300.0)
