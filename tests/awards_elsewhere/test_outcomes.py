"""What becomes of an award at a program elsewhere: what the agent hears, what the journal says, what is in the book."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest

from loyalty import delivery
from loyalty.delivery import ABSENT_LOOKS, MAX_SENDS, NEVER_REACHED, Confirmation
from loyalty.journal import AwardState
from sandbox.rivo_shapes import RivoShapes
from services import build_services
from storage.tables import awards, jobs
from tests.awards.test_at_once import at_once
from tests.awards_elsewhere.door import Door
from tests.awards_elsewhere.shop import ANA, CUSTOMERS, EVENTS, Shop
from tests.databases import seeded_random_bytes

CONFIRMING = "The award of 50 points is being confirmed; do not add it again. Last known balance: 100 points."
# After these Rivo has the award, or has not; the answer does not tell.
LOST_AFTER = ("reset_after", "status_after", "html_after", "truncated")
LOST_BEFORE = ("reset_before", "status", "html", "empty")
HOUR_S = 3600


# -- done


@pytest.mark.parametrize(
    "shapes",
    [
        RivoShapes(),
        RivoShapes(create="without_customer", composite_ids=False),
        RivoShapes(create="empty"),
        RivoShapes(tally_name="loyalty_points_tally", credits_as="number", tier="text"),
    ],
)
def test_an_award_that_rivo_took_is_applied_and_the_balance_is_rivos(shop: Shop, shapes: RivoShapes) -> None:
    shop.rivo.shapes = shapes
    shop.card()
    # Meanwhile the shopper ordered something: adding up here would be wrong.
    shop.rivo.add_event(ANA, points=7)
    answer = shop.press(50, reason="Late parcel")
    operation_id = answer.json()["operation_id"]
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "applied",
        "message": "Added 50 points. New balance: 157 points.",
        "points_balance": 157,
        "operation_id": operation_id,
    }
    assert shop.book() == [(operation_id, 50, Decimal(0))]
    event = shop.rivo.events(ANA)[-1]
    assert event["internal_note"] == f"Tallydesk {operation_id}: Late parcel"
    assert (event["source"], event["external_note"]) == ("manual", None), "shoppers do not read what agents write"
    row = shop.row(operation_id)
    assert (row.state, row.settled_by, row.balance_after, row.sends) == ("applied", "answer", 157, 1)
    assert (row.lease_owner, row.attempt_ended_at) == (None, None)


def test_the_card_has_the_new_balance_and_the_award_at_once_and_the_award_only_once(shop: Shop) -> None:
    shop.rivo.add_event(ANA, points=7, title="Order #1001")
    shop.card()
    shop.clock.advance(60)
    shop.refreshed()
    shop.applied(50, reason="Late parcel")
    calls = shop.all_calls()
    card = shop.card()
    entry = {"when": "2026-03-14T09:31:00Z", "what": "Late parcel", "points": 50}
    assert card["points_balance"] == 157
    assert card["recent_activity"][0] == entry
    assert [one["what"] for one in card["recent_activity"]] == ["Late parcel", "Order #1001"]
    assert shop.all_calls() == calls
    for _ in range(2):
        shop.clock.advance(60)
        assert shop.refreshed()["recent_activity"] == card["recent_activity"]


def test_an_award_whose_balance_cannot_be_read_afterwards_is_applied_all_the_same(shop: Shop) -> None:
    shop.card()
    shop.fault("status", path=CUSTOMERS, method="GET", times=None)
    answer = shop.press(50)
    assert answer.status_code == 200
    assert answer.json()["message"].startswith("Added 50 points. The new balance could not be read yet")
    assert "100" not in answer.json()["message"], "what was known before is not the new balance"
    assert answer.json()["points_balance"] == 100, "the last one known"
    assert shop.state(answer.json()["operation_id"]) == "applied"
    shop.mend()
    shop.clock.advance(1)
    assert shop.refreshed()["points_balance"] == 150, "the next card brings it"


def test_a_double_click_on_what_is_applied_is_told_so(shop: Shop) -> None:
    done = shop.applied(50)
    again = shop.press(50)
    assert (again.status_code, again.json()["status"]) == (200, "already_applied")
    assert (again.json()["operation_id"], again.json()["points_balance"]) == (done, 150)
    assert len(shop.book()) == 1


def test_many_clicks_at_once_are_one_award(shop: Shop) -> None:
    shop.card()
    shop.fault("slow", seconds=0.3)
    answers = at_once(8, lambda _: shop.press(50))
    statuses = Counter(answer.json()["status"] for answer in answers)
    assert statuses["applied"] == 1
    assert statuses["being_confirmed"] + statuses["already_applied"] == 7
    assert len({answer.json()["operation_id"] for answer in answers}) == 1
    assert len(shop.book()) == 1


# -- not sent


def test_what_could_not_be_sent_is_queued_and_sent_once_rivo_is_back(shop_behind_door: Shop, door: Door) -> None:
    shop = shop_behind_door
    shop.card()
    door.shut()
    answer = shop.press(50)
    assert answer.status_code == 202
    assert answer.json()["status"] == "being_confirmed"
    assert answer.json()["message"] == CONFIRMING
    done = answer.json()["operation_id"]
    row = shop.row(done)
    assert (row.state, row.sends, row.attempt_ended_at) == ("pending", 0, None)
    again = shop.press(50)
    assert (again.status_code, again.json()["operation_id"]) == (202, done), "a second press is the same award"
    shop.work(60)
    assert shop.state(done) == "pending"
    door.open()
    shop.work(60)
    row = shop.row(done)
    assert (row.state, row.settled_by, row.balance_after, row.sends) == ("applied", "answer", 150, 1)
    assert shop.book() == [(done, 50, Decimal(0))]
    assert shop.card()["points_balance"] == 150


def test_without_any_snapshot_an_award_to_a_program_that_is_down_is_refused_and_not_recorded(
    shop_behind_door: Shop, door: Door
) -> None:
    door.shut()
    answer = shop_behind_door.press(50)
    assert answer.status_code == 503
    assert answer.json()["message"] == (
        "The loyalty program cannot be reached right now. Try again in a minute. Nothing was added."
    )
    assert shop_behind_door.awards() == 0


def test_while_the_breaker_is_open_an_award_is_refused_and_not_recorded(shop: Shop) -> None:
    shop.card()
    shop.fault("status", path=CUSTOMERS, method="GET", times=None, status=503)
    for number in range(5):
        shop.card(f"{number}@example.com")
    calls = shop.all_calls()
    assert shop.card("another@example.com")["loyalty_status"] == "Temporarily unavailable"
    assert shop.card()["points_balance"] == 100
    answer = shop.press(50)
    assert shop.all_calls() == calls
    assert (answer.status_code, answer.json()["reason"]) == (503, "breaker_open")
    assert answer.json()["message"].endswith("Nothing was added.")
    assert shop.awards() == 0
    shop.mend()
    shop.clock.advance(10)
    assert shop.applied(50)


def test_what_never_could_be_sent_is_rejected_after_a_day(shop_behind_door: Shop, door: Door) -> None:
    shop = shop_behind_door
    shop.card()
    door.shut()
    done = shop.queued(50)
    shop.work(23.5 * HOUR_S, step_s=1800)
    assert shop.state(done) == "pending"
    shop.work(HOUR_S, step_s=600)
    row = shop.row(done)
    assert (row.state, row.told, row.settled_by) == ("rejected", NEVER_REACHED, "time")
    door.open()
    shop.work(HOUR_S, step_s=600)
    assert shop.book() == []


# -- refused


def test_what_rivo_refuses_is_rejected_with_its_own_sentence(shop: Shop) -> None:
    shop.card()
    shop.rivo.update_customer(ANA, status="excluded")
    answer = shop.press(50)
    assert answer.status_code == 422
    assert answer.json() == {
        "status": "rejected",
        "reason": "program_refused",
        "message": "The loyalty program did not accept this: This customer is excluded from the loyalty program. "
        "Nothing was added.",
    }
    assert shop.book() == []
    shop.settle()
    shop.clock.advance(1)
    assert shop.refreshed()["loyalty_status"] == "Excluded", "the card was outdated with it"


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": "Limit of ana@example.com reached."}',
        b'{"message": "Limit of ana@example.com reached."}',
        b'{"errors": ["Limit of ana@example.com reached."]}',
        b'{"errors": {"base": ["Limit of ana@example.com reached."]}}',
    ],
)
@pytest.mark.parametrize("status", ["400 Bad Request", "409 Conflict", "422 Unprocessable Content"])
def test_an_address_in_rivos_sentence_is_taken_out(
    shop_behind_door: Shop, door: Door, body: bytes, status: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shop_behind_door.card()
    door.answer_the_next_post(status, body)
    answer = shop_behind_door.press(50)
    assert answer.status_code == 422
    told = answer.json()["message"]
    assert "ana@" not in told
    assert "Limit of [address] reached." in told
    assert "ana@" not in "".join(capfd.readouterr())
    shop_behind_door.mend()
    assert shop_behind_door.applied(50), "what was rejected stands in nobody's way"


def test_a_member_who_is_gone_by_now_is_told_as_not_found(shop: Shop) -> None:
    shop.card()
    shop.rivo.remove_customer(ANA)
    answer = shop.press(50)
    assert (answer.status_code, answer.json()["reason"]) == (404, "member_not_found")
    assert shop.awards() == 1
    assert shop.book() == []


# -- too many requests


@pytest.mark.parametrize("retry_after", [None, 1, 2])
def test_a_short_pause_is_waited_for(shop: Shop, retry_after: int | None) -> None:
    shop.card()
    fault = shop.fault("rate_limited", retry_after=retry_after)
    done = shop.applied(50)
    assert fault.hits == 1
    assert shop.row(done).sends == 1
    assert shop.book() == [(done, 50, Decimal(0))]


def test_a_long_pause_is_told_as_being_confirmed_and_the_award_sent_after_it(shop: Shop) -> None:
    shop.card()
    shop.fault("rate_limited", retry_after=30)
    began = shop.clock()
    answer = shop.press(50)
    assert answer.status_code == 202
    assert answer.json()["message"] == CONFIRMING
    done = answer.json()["operation_id"]
    assert shop.state(done) == "pending"
    shop.work(25)
    assert shop.calls(EVENTS, "POST") == 1, "as told"
    shop.work(10)
    row = shop.row(done)
    assert (row.state, row.sends) == ("applied", 1)
    assert (row.settled_at - began).total_seconds() >= 30
    assert len(shop.book()) == 1


def test_a_429_that_did_count_is_found_and_not_sent_again(shop: Shop) -> None:
    """Whether Rivo refuses before it works is not documented: it is looked for before it is sent again."""
    shop.card()
    shop.fault("status_after", status=429)
    done = shop.applied(50)
    assert len(shop.book()) == 1
    assert shop.row(done).state == "applied"
    shop.fault("status_after", status=429)
    shop.fault("rate_limited", method="GET", times=None, retry_after=20)
    other = shop.queued(70)
    shop.mend()
    shop.work(120)
    assert shop.state(other) == "applied"
    assert [points for _, points, _ in shop.book()] == [50, 70]


# -- unknown


@pytest.mark.parametrize("kind", LOST_AFTER)
def test_what_rivo_has_although_the_answer_was_lost_is_found_and_not_sent_again(shop: Shop, kind: str) -> None:
    shop.card()
    shop.fault(kind)
    answer = shop.press(50)
    assert answer.status_code == 202
    assert answer.json()["message"] == CONFIRMING
    done = answer.json()["operation_id"]
    row = shop.row(done)
    assert (row.state, row.sends, row.attempt_ended_at) == ("unknown", 1, shop.clock())
    # Meanwhile the card tells what it knows.
    assert shop.card()["points_balance"] == 100
    shop.work(10)
    row = shop.row(done)
    assert (row.state, row.settled_by, row.balance_after, row.sends) == ("applied", "found", 150, 1)
    assert shop.book() == [(done, 50, Decimal(0))]
    card = shop.card()
    assert card["points_balance"] == 150
    assert [entry["points"] for entry in card["recent_activity"]] == [50]
    assert shop.press(50).json()["status"] == "already_applied"


@pytest.mark.parametrize("kind", LOST_BEFORE)
def test_what_rivo_never_had_is_sent_again_after_a_while_and_several_looks(shop: Shop, kind: str) -> None:
    shop.card()
    shop.fault(kind)
    done = shop.queued(50)
    shop.work(44, step_s=1)
    assert shop.calls(EVENTS, "POST") == 1, "not before Rivo can no longer commit it"
    assert shop.row(done).looks >= 3
    shop.work(30, step_s=1)
    row = shop.row(done)
    assert (row.state, row.settled_by, row.sends) == ("applied", "answer", 2)
    assert row.looks >= ABSENT_LOOKS
    assert shop.book() == [(done, 50, Decimal(0))]
    calls = shop.house.sandbox.requests.filter(account="rivo", path=EVENTS)
    assert calls[-2].method == "GET", "a look comes before every other send"
    assert calls[-1].method == "POST"


def test_a_look_that_cannot_be_had_is_none(shop: Shop) -> None:
    """Only looks that found it absent count towards sending it again."""
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    shop.fault("status", method="GET", times=None, status=503)
    shop.work(300)
    row = shop.row(done)
    assert (row.state, row.looks, row.sends) == ("unknown", 0, 1)
    shop.mend()
    shop.work(180)
    assert shop.state(done) == "applied"
    assert len(shop.book()) == 1


def test_an_answer_that_never_comes_is_unknown(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SEND_WITHIN_S", 0.4)
    shop.card()
    shop.fault("hang_after", seconds=60)
    done = shop.queued(50)
    assert shop.state(done) == "unknown"
    shop.work(20)
    assert shop.state(done) == "applied"
    assert len(shop.book()) == 1


def test_an_answer_that_drips_for_ever_is_unknown(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SEND_WITHIN_S", 0.4)
    shop.card()
    shop.fault("drip", seconds=0.05)
    done = shop.queued(50)
    shop.work(20)
    assert shop.row(done).settled_by == "found"
    assert len(shop.book()) == 1


def test_what_rivo_commits_while_it_is_looked_for_is_not_sent_again(shop: Shop) -> None:
    shop.card()
    late = shop.fault("commit_late")
    done = shop.queued(50)
    shop.work(40)
    late.commit()
    shop.work(30)
    assert shop.row(done).settled_by == "found"
    assert len(shop.book()) == 1


def test_after_five_sends_a_person_must_decide(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before", times=None)
    done = shop.queued(50)
    shop.work(500, step_s=10)
    row = shop.row(done)
    assert (row.state, row.sends) == ("needs_review", MAX_SENDS)
    calls = shop.all_calls()
    shop.work(600, step_s=60)
    assert shop.all_calls() == calls, "and nothing more is asked by itself"
    answer = shop.press(50)
    assert answer.status_code == 202
    assert "waits for an admin" in answer.json()["message"]
    assert answer.json()["operation_id"] == done


def test_what_cannot_be_told_for_a_day_is_left_to_a_person(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_after")
    done = shop.queued(50)
    shop.fault("status", path=".*", method=None, times=None, status=503)
    shop.work(23.5 * HOUR_S, step_s=1800)
    assert shop.state(done) == "unknown"
    shop.work(HOUR_S, step_s=600)
    assert shop.state(done) == "needs_review"
    assert shop.row(done).sends == 1


def test_an_award_whose_member_is_gone_after_an_attempt_is_left_to_a_person(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    shop.rivo.remove_customer(ANA)
    shop.work(120)
    assert shop.state(done) == "needs_review"
    assert shop.book() == []


def test_a_refusal_after_an_attempt_that_never_counted_is_told_as_rejected(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    shop.rivo.update_customer(ANA, status="excluded")
    shop.work(120)
    row = shop.row(done)
    assert (row.state, row.told) == ("rejected", "This customer is excluded from the loyalty program.")
    assert shop.book() == []


# -- looking


@pytest.mark.parametrize("newest_first", [True, False])
def test_an_award_is_found_behind_hundreds_of_newer_events(small_shop: Shop, newest_first: bool) -> None:
    shop = small_shop
    shop.rivo.shapes = RivoShapes(newest_first=newest_first)
    shop.card()
    shop.fault("reset_after")
    done = shop.queued(50)
    for _ in range(600):
        shop.rivo.add_event(ANA, points=1, announce=False)
    shop.work(10)
    assert shop.row(done).settled_by == "found"
    assert shop.calls(EVENTS) == 3, "three pages"


def test_a_look_ends_at_the_time_of_the_award(small_shop: Shop) -> None:
    """What is older need not be read: two years of orders are thousands of rows."""
    shop = small_shop
    for _ in range(600):
        shop.rivo.add_event(ANA, points=1, announce=False)
    shop.clock.advance(3 * 24 * HOUR_S)
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    before = shop.calls(EVENTS)
    shop.clock.advance(2)
    shop.house.work()
    assert shop.row(done).looks == 1
    assert shop.calls(EVENTS) - before == 1


@pytest.mark.parametrize("kind", ["reset_after", "reset_before"])
def test_a_rivo_that_ignores_the_order_is_read_to_the_end(shop_behind_door: Shop, door: Door, kind: str) -> None:
    """The oldest rows come first, a year before the award: they must not be taken for the end."""
    shop = shop_behind_door
    door.rewrite = lambda request: request.replace(b"sort%5B", b"tros%5B").replace(b"sort[", b"tros[")
    for _ in range(600):
        shop.rivo.add_event(ANA, points=1, announce=False)
    shop.clock.advance(365 * 24 * HOUR_S)
    shop.card()
    shop.fault(kind)
    done = shop.queued(50)
    shop.work(120)
    listed = shop.house.sandbox.requests.filter(path=EVENTS, method="GET")
    assert all(any(name.startswith("tros") for name in request.query) for request in listed)
    assert shop.state(done) == "applied"
    assert shop.row(done).settled_by == ("found" if kind == "reset_after" else "answer")
    assert len(shop.book()) == 1


def test_a_note_that_rivos_admin_changed_at_its_beginning_is_found(small_shop: Shop) -> None:
    shop = small_shop
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    shop.rivo.add_event(ANA, points=50, source="manual", internal_note=f"ben@shop: Tallydesk {done}: Added by support")
    shop.work(120)
    assert shop.row(done).settled_by == "found"
    assert len(shop.book()) == 1


def test_the_event_of_another_award_is_not_taken_for_this_one(small_shop: Shop) -> None:
    shop = small_shop
    other = shop.applied(50, ticket_id=1)
    shop.fault("reset_before")
    done = shop.queued(50, ticket_id=2, reason=f"as Tallydesk {other}: before")
    shop.rivo.add_event(ANA, points=50, source="manual", internal_note=f"Tallydesk {other}: repeats {done}")
    shop.work(30)
    assert shop.state(done) == "unknown"


# -- several at once


def test_two_workers_at_once_settle_an_award_once(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before", times=1)
    done = shop.queued(50)
    settings = shop.house.services.settings
    other = build_services(settings, now=shop.clock, sleep=shop.clock.advance, random_bytes=seeded_random_bytes(21))
    with closing(other.http), closing(other.database):
        for _ in range(30):
            shop.clock.advance(5)
            at_once(
                4,
                lambda number: (shop.house.services, other)[number % 2].delivery.confirm(done),
            )
            if shop.state(done) == "applied":
                break
    assert shop.state(done) == "applied"
    assert shop.row(done).sends == 2
    assert len(shop.book()) == 1
    assert [job for job in _jobs(shop) if job == ("award_settled", done)] == [("award_settled", done)]


def test_two_workers_at_once_find_it_once(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_after")
    done = shop.queued(50)
    shop.clock.advance(5)
    shop.fault("slow", method="GET", seconds=0.2)
    looks = at_once(4, lambda _: shop.house.services.delivery.confirm(done).outcome)
    assert Counter(looks) == {Confirmation.FOUND: 1, Confirmation.NOT_DUE: 3}


def test_an_attempt_whose_process_vanished_is_unknown_and_then_settled(shop: Shop) -> None:
    """The lease runs out, and the sweep finds it; nobody can tell when the attempt really ended."""
    shop.card()
    journal, services = shop.house.services.delivery._journal, shop.house.services
    send = services.delivery.send_now
    vars(services.delivery)["send_now"] = _vanish
    answer = shop.press(50)
    vars(services.delivery)["send_now"] = send
    assert answer.status_code == 202
    done = answer.json()["operation_id"]
    assert journal.read(done).state == "sending"
    shop.work(25)
    services.jobs.sweep()
    shop.work(4)
    assert shop.state(done) == "sending"
    shop.work(1)
    services.jobs.sweep()
    shop.work(90)
    assert shop.state(done) == "applied"
    assert len(shop.book()) == 1


def _vanish(_: Any) -> Any:
    raise RuntimeError("the process is gone")


# -- evidence


@pytest.mark.parametrize("kind", ["rate_limited", "reset_after", "reset_before"])
def test_the_programs_own_word_settles_what_is_open(shop: Shop, kind: str) -> None:
    shop.card()
    shop.fault(kind, retry_after=30)
    done = shop.queued(50)
    assert shop.state(done) in ("pending", "unknown")
    seen = shop.house.services.delivery.seen
    store = shop.connection.store
    assert not seen(store, operation_id=done, points=49, credit_cents=0), "other points"
    assert not seen(store, operation_id=done, points=50, credit_cents=5000)
    assert not seen(store, operation_id=done, points=-50, credit_cents=0)
    assert not seen(store, operation_id="td_" + "a" * 24, points=50, credit_cents=0)
    assert seen(store, operation_id=done, points=50, credit_cents=0)
    row = shop.row(done)
    assert (row.state, row.settled_by, row.balance_after) == ("applied", "webhook", None)
    assert not seen(store, operation_id=done, points=50, credit_cents=0), "once"
    posts = shop.calls(EVENTS, "POST")
    shop.work(120)
    assert shop.calls(EVENTS, "POST") == posts, "nothing is sent any more"


def test_the_programs_own_word_settles_what_waits_for_a_person(shop: Shop) -> None:
    done = in_review(shop)
    assert shop.house.services.delivery.seen(shop.connection.store, operation_id=done, points=50, credit_cents=0)
    assert shop.state(done) == "applied"


def test_the_programs_own_word_while_it_is_being_sent_is_the_outcome(shop: Shop) -> None:
    shop.card()
    services = shop.house.services
    send = services.delivery.send_now

    def send_then_hear(sending: Any) -> Any:
        assert services.delivery.seen(
            shop.connection.store, operation_id=sending.operation_id, points=50, credit_cents=0
        )
        return send(sending)

    vars(services.delivery)["send_now"] = send_then_hear
    answer = shop.press(50)
    assert (answer.status_code, answer.json()["status"]) == (200, "applied")
    assert answer.json()["points_balance"] == 150
    assert shop.row(answer.json()["operation_id"]).settled_by == "webhook"


def test_what_was_rejected_stays_so_whatever_is_told_later(shop: Shop) -> None:
    shop.card()
    shop.rivo.update_customer(ANA, status="excluded")
    shop.press(50)
    with shop.house.services.database.read() as tx:
        (row,) = tx.execute(awards.select()).all()
    assert not shop.house.services.delivery.seen(
        shop.connection.store, operation_id=row.operation_id, points=50, credit_cents=0
    )
    assert shop.state(row.operation_id) == "rejected"


def test_a_sweep_asks_again_for_what_has_no_job(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_after")
    done = shop.queued(50)
    with shop.house.services.database.write() as tx:
        tx.execute(jobs.delete())
    shop.work(300)
    assert shop.state(done) == "unknown"
    shop.house.services.jobs.sweep()
    shop.house.work()
    assert shop.state(done) == "applied"


def in_review(shop: Shop) -> str:
    """An award of 50 points that waits for a person, and that Rivo never had."""
    shop.card()
    shop.fault("reset_before", times=None)
    done = shop.queued(50)
    shop.work(500, step_s=10)
    shop.mend()
    shop.clock.advance(61)
    assert shop.state(done) is AwardState.NEEDS_REVIEW
    return done


def _jobs(shop: Shop) -> list[tuple[str, str]]:
    with shop.house.services.database.read() as tx:
        return [(row.name, row.ref) for row in tx.execute(jobs.select())]
