"""The internal note after an award: what it says, and that it is posted once whatever Gorgias does meanwhile."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import delete, insert, select, update

import oauth.gorgias_api
from loyalty.journal import AWARD_SETTLED, AwardState
from services import build_services
from storage.queue import defer
from storage.tables import accounts, awards, jobs
from tests.databases import seeded_random_bytes
from tests.notes.tickets import EMAIL, Ticket
from tests.stepping import run_one
from widget.notes import AGAIN_AFTER_S, note_text


def test_the_note_says_who_added_what_and_why_under_the_operation_id(ticket: Ticket) -> None:
    operation_id = ticket.award(1_000, reason="Late parcel", agent_email="Ben@acme.example")
    assert ticket.notes() == [], "nothing waits for it"
    ticket.house.work()
    (note,) = ticket.notes()
    assert note["body_text"] == (
        "Loyalty: ben@acme.example (as Gorgias names them) added 1,000 points. New balance: 1,100 points.\n"
        "Reason: Late parcel\n"
        f"Operation: {operation_id}"
    )
    assert note["external_id"] == operation_id
    assert (note["channel"], note["via"], note["from_agent"], note["public"]) == ("internal-note", "api", True, False)
    assert note["sender"]["email"] == "ada@acme.example", "the admin who connected"
    assert ticket.state(operation_id) == ("posted", None)
    assert ticket.house.work() == 0


def test_an_agent_whose_name_did_not_arrive_is_an_agent() -> None:
    text = note_text(
        state=AwardState.APPLIED,
        points=5,
        reason="",
        agent=None,
        proven=False,
        balance=5,
        operation_id="td_x",
        reverses=None,
    )
    assert text == "Loyalty: An agent added 5 points. New balance: 5 points.\nOperation: td_x"


def test_no_markup_of_the_caller_reaches_the_note(small_ticket: Ticket) -> None:
    ticket = small_ticket
    hostile = "<img src=x onerror=alert(1)> \"quoted\" 'n' &amp;\n<br>\r\nOperation: forged"
    operation_id = ticket.award(reason=hostile, agent_email="o'neil&<b>@acme.example")
    other = ticket.award(7, reason="a\tb", agent_email="o'neil&sons@acme.example")
    ticket.house.work()
    for note in ticket.notes():
        assert set(re.findall(r"<[^>]*>", note["body_html"])) == {"<br>"}
        assert re.findall(r"&(?!(amp|lt|gt|quot|#x27);)", note["body_html"]) == []
    first, second = ticket.notes()
    assert "&lt;img src=x onerror=alert(1)&gt; &quot;quoted&quot; &#x27;n&#x27; &amp;amp;" in first["body_html"]
    assert first["body_text"].splitlines()[-1] == f"Operation: {operation_id}"
    assert len(first["body_text"].splitlines()) == 3, "a line break in the reason makes no line of its own"
    assert "An agent added" in first["body_text"], "what is no address is no name"
    assert "o'neil&sons@acme.example" in second["body_text"]
    assert second["external_id"] == other


def test_without_the_admins_address_the_note_is_of_whoever_the_token_belongs_to(small_ticket: Ticket) -> None:
    with small_ticket.house.services.database.write() as tx:
        tx.execute(update(accounts).values(user_email_sealed=None))
    small_ticket.award()
    small_ticket.house.work()
    assert small_ticket.notes()[0]["sender"]["email"] == "ada@acme.example"


def test_an_undo_has_a_note_of_its_own_with_the_signed_in_agent(ticket: Ticket) -> None:
    operation_id = ticket.award(50)
    activity = f"/connections/{ticket.connection.id}/activity"
    ticket.browser.submit(f"/connections/{ticket.connection.id}/awards/{operation_id}/undo", on=activity)
    ticket.house.work()
    texts = [note["body_text"] for note in ticket.notes()]
    assert len(texts) == 2
    undone = next(text for text in texts if "took back" in text)
    assert undone.startswith("Loyalty: ada@acme.example took back 50 points. New balance: 100 points.\n")
    assert f"Undo of {operation_id}" in undone
    assert len({note["external_id"] for note in ticket.notes()}) == 2


def test_the_note_makes_gorgias_fetch_the_card_anew(ticket: Ticket) -> None:
    ticket.award(50)
    placed = ticket.house.services.connections.by_id(ticket.connection.id)
    assert placed is not None

    def shown() -> int:
        ticket.sandbox.settle()
        number = str(placed.placed.integration_id)
        balance: int = ticket.helpdesk.customer(ticket.customer_id)["integrations"][number]["points_balance"]
        return balance

    assert shown() == 100, "the award itself refreshes nothing"
    ticket.house.work()
    assert shown() == 150


def test_an_award_without_a_ticket_needs_no_note(small_ticket: Ticket) -> None:
    operation_id = small_ticket.award(ticket_id="")
    assert small_ticket.house.work() == 0
    assert small_ticket.state(operation_id) == ("none", None)


def test_the_award_is_answered_while_the_helpdesk_hangs(small_ticket: Ticket) -> None:
    ticket = small_ticket
    fault = ticket.sandbox.faults.add(ticket.path, method="POST", kind="hang", seconds=1.5)
    first = ticket.award(5)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(ticket.house.work)
        give_up_at = time.monotonic() + 10
        while not fault.hits:
            assert time.monotonic() < give_up_at
            time.sleep(0.005)
        began = time.monotonic()
        ticket.award(6)
        assert time.monotonic() - began < 1.0
        working.result()
    ticket.house.clock.advance(2)
    ticket.house.work()
    assert len(ticket.notes()) == 2
    assert ticket.state(first) == ("posted", None)


def test_a_refused_note_is_tried_again_after_1_2_5_15_30_seconds_then_slower_for_a_day(small_ticket: Ticket) -> None:
    ticket = small_ticket
    clock = ticket.house.clock
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="status", status=500, times=None)
    began = clock()
    operation_id = ticket.award()
    assert ticket.house.work() == 1
    pauses = []
    while ticket.state(operation_id)[0] == "due":
        with ticket.house.services.database.read() as tx:
            run_at = tx.scalars(select(jobs.c.run_at)).one()
        pauses.append((run_at - clock()).total_seconds())
        clock.advance(pauses[-1] - 0.01)
        assert ticket.house.work() == 0, "not before its time"
        clock.advance(0.01)
        assert ticket.house.work() == 1
    assert pauses[: len(AGAIN_AFTER_S)] == [1, 2, 5, 15, 30, 60, 120, 300, 600, 1800, 3600]
    assert set(pauses[len(AGAIN_AFTER_S) :]) == {3600}
    assert timedelta(days=1) < clock() - began < timedelta(days=1, hours=1, minutes=1)
    assert ticket.state(operation_id) == ("given_up", "too_late")
    assert ticket.notes() == []
    assert ticket.house.balance(ticket.connection, EMAIL) == 150, "the award stands"


def test_a_day_without_gorgias_ends_with_the_note_when_it_is_back(small_ticket: Ticket) -> None:
    ticket = small_ticket
    fault = ticket.sandbox.faults.add("/api/.*", kind="reset_before", times=None)
    operation_id = ticket.award()
    for _ in range(20):
        ticket.house.work()
        ticket.house.clock.advance(3600)
    assert fault.hits > 20
    assert ticket.state(operation_id) == ("due", None)
    ticket.sandbox.faults.clear()
    ticket.house.work()
    assert len(ticket.notes()) == 1


def test_retry_after_is_obeyed(small_ticket: Ticket) -> None:
    ticket = small_ticket
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="rate_limited", retry_after=120)
    ticket.award()
    ticket.house.work()
    ticket.house.clock.advance(119)
    assert ticket.house.work() == 0
    ticket.house.clock.advance(1)
    assert ticket.house.work() == 1
    assert (len(ticket.notes()), ticket.posts()) == (1, 2)


def test_a_conflict_means_that_the_note_is_there(small_ticket: Ticket) -> None:
    ticket = small_ticket
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="status", status=409)
    operation_id = ticket.award()
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("posted", None)
    assert ticket.house.work() == 0


@pytest.mark.parametrize(("status", "reason"), [(400, "refused"), (403, "forbidden"), (404, "ticket_gone")])
def test_what_will_never_work_ends_the_note_with_a_reason(small_ticket: Ticket, status: int, reason: str) -> None:
    ticket = small_ticket
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="status", status=status, times=None)
    operation_id = ticket.award()
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("given_up", reason)
    ticket.house.clock.advance(86_400)
    ticket.house.services.jobs.sweep()
    ticket.house.work()
    assert ticket.posts() == 1


@pytest.mark.parametrize("status", [408, 422, 429, 500, 503])
def test_what_may_pass_is_tried_again(small_ticket: Ticket, status: int) -> None:
    ticket = small_ticket
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="status", status=status, times=10)
    operation_id = ticket.award()
    ticket.house.work()
    assert ticket.state(operation_id) == ("due", None)
    ticket.sandbox.faults.clear()
    ticket.house.clock.advance(60)
    ticket.house.work()
    assert ticket.state(operation_id) == ("posted", None)


def test_a_ticket_that_does_not_exist_ends_the_note_with_a_reason(small_ticket: Ticket) -> None:
    operation_id = small_ticket.award(ticket_id="999999")
    assert small_ticket.house.work() == 1
    assert small_ticket.state(operation_id) == ("given_up", "ticket_gone")


@pytest.mark.parametrize("kind", ["reset_after", "truncated"])
def test_after_a_lost_answer_the_note_is_found_through_all_pages_and_not_posted_twice(
    ticket: Ticket, kind: str
) -> None:
    ticket.sandbox.faults.add(ticket.path, method="POST", kind=kind)
    operation_id = ticket.award()
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("due", None)
    for number in range(210):
        ticket.helpdesk.add_message(ticket.id, f"And another thing ({number})", fire=False)
        ticket.house.clock.advance(0.001)
    ticket.house.clock.advance(1)
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("posted", None)
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)
    assert len(ticket.sandbox.requests.filter(method="GET", path=ticket.path)) == 3


def test_an_answer_that_never_came_is_looked_for_too(small_ticket: Ticket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth.gorgias_api, "TIMEOUTS_S", (1.0, 0.2))
    ticket = small_ticket
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="slow", seconds=0.5)
    operation_id = ticket.award()
    ticket.house.work()
    assert ticket.state(operation_id) == ("due", None)
    monkeypatch.undo()
    give_up_at = time.monotonic() + 10
    while not ticket.notes():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    ticket.house.clock.advance(1)
    ticket.house.work()
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)


def test_a_search_that_fails_posts_nothing(small_ticket: Ticket) -> None:
    """As long as we cannot see whether the note is there, posting might double it."""
    ticket = small_ticket
    ticket.sandbox.faults.add(ticket.path, method="POST", kind="reset_after")
    ticket.sandbox.faults.add(ticket.path, method="GET", kind="html", times=2)
    ticket.award()
    for _ in range(3):
        ticket.house.work()
        ticket.house.clock.advance(5)
    ticket.house.work()
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)


def test_while_the_access_is_withdrawn_the_note_waits_and_comes_after_connecting_again(ticket: Ticket) -> None:
    ticket.helpdesk.uninstall()
    ticket.house.clock.advance(25 * 3600)
    operation_id = ticket.award()
    ticket.house.work()
    assert ticket.state(operation_id) == ("due", None)
    ticket.house.browser().sign_in("acme")
    ticket.house.clock.advance(1)
    ticket.house.work()
    assert ticket.state(operation_id) == ("posted", None)


def test_a_disconnected_helpdesk_gets_no_note(ticket: Ticket) -> None:
    operation_id = ticket.award()
    page = ticket.browser.submit("/oauth/disconnect", on=f"/connections/{ticket.connection.id}")
    assert "is disconnected" in page.text
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("given_up", "connection_removed")
    assert ticket.posts() == 0


def test_a_lost_job_is_found_by_the_sweep(ticket: Ticket) -> None:
    operation_id = ticket.award()
    with ticket.house.services.database.write() as tx:
        tx.execute(delete(jobs))
    assert ticket.house.services.jobs.sweep() == 0, "too young: its job may be on its way"
    ticket.house.clock.advance(121)
    assert ticket.house.services.jobs.sweep() == 1
    assert ticket.house.services.jobs.sweep() == 0, "it has a job again"
    ticket.house.work()
    assert ticket.state(operation_id) == ("posted", None)


def test_many_notes_that_wait_do_not_hide_the_one_that_was_lost(small_ticket: Ticket) -> None:
    ticket = small_ticket
    operation_id = ticket.award()
    now = ticket.house.clock()
    with ticket.house.services.database.write() as tx:
        tx.execute(delete(jobs))
        row = dict(tx.execute(select(awards)).one()._mapping)
        for number in range(150):
            older = {"operation_id": f"td_waits{number}", "created_at": now - timedelta(hours=1)}
            tx.execute(insert(awards).values(row | older))
            defer(tx, AWARD_SETTLED, f"td_waits{number}", run_at=now + timedelta(hours=1))
    ticket.house.clock.advance(121)
    assert ticket.house.services.jobs.sweep() == 1
    assert ticket.house.work() == 1
    assert ticket.state(operation_id) == ("posted", None)


def test_two_workers_at_once_post_one_note(ticket: Ticket) -> None:
    house = ticket.house
    another = build_services(house.services.settings, now=house.clock, random_bytes=seeded_random_bytes(8))
    ticket.sandbox.faults.add(ticket.path, kind="slow", seconds=0.1, times=None)
    operation_id = ticket.award()
    together = Barrier(4)

    def work(number: int) -> bool:
        together.wait(timeout=10)
        return run_one(house.services if number % 2 else another)

    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(work, range(4)))
    another.database.close()
    assert sum(ran) == 1
    assert (len(ticket.notes()), ticket.posts()) == (1, 1)
    assert ticket.state(operation_id) == ("posted", None)


def test_a_job_that_crashes_is_kept_and_tried_again_ever_more_slowly(
    small_ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours must neither lose the note nor fill the log."""
    ticket = small_ticket
    operation_id = ticket.award()

    def crash(**_: object) -> str:
        raise KeyError("a bug")

    monkeypatch.setattr("widget.notes.note_text", crash)
    assert pauses_of(ticket, (0, 1, 2, 20)) == [30, 60, 120, 3600]
    monkeypatch.undo()
    ticket.house.work()
    assert ticket.state(operation_id) == ("posted", None)
    assert len(ticket.notes()) == 1


def test_trouble_with_the_database_in_a_job_is_one_line_and_soon_tried_again(
    small_ticket: Ticket, capfd: pytest.CaptureFixture[str]
) -> None:
    ticket = small_ticket
    operation_id = ticket.award()
    with ticket.house.services.database.write() as tx:
        tx.exec_driver_sql("ALTER TABLE awards RENAME COLUMN note_reason TO note_reason_gone")
    assert pauses_of(ticket, (0, 1, 40)) == [2, 4, 60]
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    with ticket.house.services.database.write() as tx:
        tx.exec_driver_sql("ALTER TABLE awards RENAME COLUMN note_reason_gone TO note_reason")
    ticket.house.work()
    assert ticket.state(operation_id) == ("posted", None)


def pauses_of(ticket: Ticket, earlier_attempts: tuple[int, ...]) -> list[float]:
    """How many seconds the one job waits after failing with so many attempts before."""
    pauses = []
    for attempts in earlier_attempts:
        with ticket.house.services.database.write() as tx:
            tx.execute(update(jobs).values(attempts=attempts))
        assert ticket.house.work() == 1
        with ticket.house.services.database.read() as tx:
            pauses.append((tx.scalars(select(jobs.c.run_at)).one() - ticket.house.clock()).total_seconds())
        ticket.house.clock.advance(pauses[-1])
    return pauses


def test_a_job_of_another_version_is_dropped(small_ticket: Ticket) -> None:
    with small_ticket.house.services.database.write() as tx:
        defer(tx, "of_the_future", "1", run_at=small_ticket.house.clock())
    assert small_ticket.house.work() == 1
    assert small_ticket.house.work() == 0
