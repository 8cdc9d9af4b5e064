"""What was tried to bring about an award stands beside it: each attempt with its time, its outcome and the answer."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from loyalty.attempts import ATTEMPTS_KEPT, Attempt, AttemptKind, attempts_of, write_attempt
from loyalty.awards import Awards
from storage.database import erase_older
from storage.tables import award_attempts, awards
from tests.awards_elsewhere.door import Door
from tests.awards_elsewhere.shop import ANA, Shop, ledger_connection
from tests.awards_elsewhere.test_outcomes import in_review
from tests.databases import at_every_checkout


def course(shop: Shop, operation_id: str) -> list[tuple[str, str, int]]:
    """What was tried, how it ended, and how often so."""
    found = attempts_of(shop.house.services.database, operation_id)
    return [(attempt.kind, attempt.outcome, attempt.times) for attempt in found]


def answers(shop: Shop, operation_id: str) -> list[str]:
    return [attempt.answer for attempt in attempts_of(shop.house.services.database, operation_id)]


def test_an_award_that_goes_well_has_one_attempt_with_the_balance_as_its_answer(shop: Shop) -> None:
    done = shop.applied(50)
    (attempt,) = attempts_of(shop.house.services.database, done)
    assert (attempt.kind, attempt.outcome, attempt.times) == ("sent", "applied", 1)
    assert attempt.answer == "The balance is 150 now."
    assert attempt.at == shop.row(done).created_at
    assert attempt.took_ms is not None
    assert 0 <= attempt.took_ms < 60_000


def test_what_got_lost_is_looked_for_sent_again_and_every_step_is_there(shop: Shop) -> None:
    shop.fault("reset_before")
    done = shop.queued(50)
    assert course(shop, done) == [("sent", "no_answer", 1)]
    shop.work(120)
    # The looks that found nothing are one line with a number; then it was sent once more.
    assert course(shop, done) == [("sent", "no_answer", 1), ("looked", "absent", 6), ("sent", "applied", 1)]
    looked = attempts_of(shop.house.services.database, done)[1]
    assert looked.last_at is not None
    assert looked.last_at > looked.at


def test_what_arrived_without_an_answer_is_found(shop: Shop) -> None:
    shop.fault("reset_after")
    done = shop.queued(50)
    shop.work(10)
    assert course(shop, done) == [("sent", "no_answer", 1), ("looked", "found", 1)]
    assert answers(shop, done)[1] == "The balance is 150 now."


def test_a_long_time_without_the_program_is_one_line(shop_behind_door: Shop, door: Door) -> None:
    shop = shop_behind_door
    shop.card()
    door.shut()
    done = shop.queued(50)
    shop.work(600, step_s=20)
    kept = course(shop, done)
    assert {(kind, outcome) for kind, outcome, _ in kept} <= {("sent", "not_reached"), ("sent", "breaker_open")}
    assert sum(times for _, _, times in kept) > len(kept)
    door.open()
    shop.work(120)
    assert course(shop, done)[-1] == ("sent", "applied", 1)


def test_a_refusal_is_kept_in_the_programs_words(small_shop: Shop) -> None:
    shop = small_shop
    shop.card()
    shop.rivo.update_customer(ANA, status="excluded")
    assert shop.press(50).status_code == 422
    with shop.house.services.database.read() as tx:
        operation_id = tx.scalars(select(awards.c.operation_id)).one()
    assert course(shop, operation_id) == [("sent", "refused", 1)]
    (said,) = answers(shop, operation_id)
    assert said == f"The program answered 422: {shop.row(operation_id).told}."


def test_a_process_that_died_while_it_sent_is_told_as_what_it_is(small_shop: Shop) -> None:
    shop = small_shop
    done = shop.applied(50)
    soon = shop.clock() + timedelta(seconds=1)
    with shop.house.services.database.write() as tx:
        tx.execute(
            update(awards)
            .where(awards.c.operation_id == done)
            .values(state="sending", lease_owner="gone", lease_until=soon, settled_at=None, settled_by=None)
        )
    shop.clock.advance(1)
    shop.house.services.jobs.sweep()
    shop.work(60)
    assert course(shop, done) == [("sent", "applied", 1), ("sent", "abandoned", 1), ("looked", "found", 1)]


@pytest.mark.parametrize(("applied", "word"), [(True, "marked_applied"), (False, "marked_not_applied")])
def test_a_persons_word_and_their_looks_are_there(small_shop: Shop, applied: bool, word: str) -> None:
    shop = small_shop
    done = in_review(shop)
    before = course(shop, done)
    service: Awards = shop.house.services.awards
    service.look_again(operation_id=done, connection_id=shop.connection.id)
    service.mark(operation_id=done, connection_id=shop.connection.id, applied=applied, by="admin@acme.example")
    after = course(shop, done)
    assert after[-1] == ("person", word, 1)
    assert sum(times for _, _, times in after) == sum(times for _, _, times in before) + 2


def test_a_webhook_stands_there_where_it_settled_something_or_contradicts(small_shop: Shop) -> None:
    shop = small_shop
    delivery, store = shop.house.services.delivery, shop.connection.store

    def told(operation_id: str) -> bool:
        return delivery.seen(store, operation_id=operation_id, points=50, credit_cents=0)

    shop.fault("reset_after")
    lost = shop.queued(50)
    assert told(lost)
    assert not told(lost)
    assert course(shop, lost) == [("sent", "no_answer", 1), ("webhook", "applied", 1)]
    shop.clock.advance(61)
    waiting = in_review(shop)
    shop.house.services.awards.mark(
        operation_id=waiting, connection_id=shop.connection.id, applied=False, by="admin@acme.example"
    )
    assert not told(waiting)
    assert course(shop, waiting)[-1] == ("webhook", "rejected_but_there", 1)


def test_an_award_on_the_ledger_needs_no_attempts(small_shop: Shop) -> None:
    shop = small_shop
    connection = ledger_connection(shop.house)
    shop.house.add_member(connection.store, ANA, points=10)
    done = shop.house.award(connection, {"email": ANA, "points": 50}).json()["operation_id"]
    assert course(shop, done) == []


def test_an_attempt_is_written_in_the_transaction_of_the_state_that_it_explains(small_shop: Shop) -> None:
    shop = small_shop
    shop.card()
    transactions: list[list[str]] = [[]]

    def note(sql: str) -> None:
        if sql.startswith("BEGIN"):
            transactions.append([])
        transactions[-1].append(sql)

    at_every_checkout(shop.house.services.database, lambda connection, *_: connection.set_trace_callback(note))
    shop.applied(50)
    (written,) = [told for told in transactions if any("INTO award_attempts" in sql for sql in told)]
    assert any(sql.startswith("UPDATE awards") for sql in written)


def test_answers_are_one_short_line_and_attempts_are_forgotten_after_ninety_days(shop: Shop) -> None:
    services = shop.house.services
    done = shop.applied(50)
    said = "Ask ana@example.com\n" + "word " * 100
    with services.database.write() as tx:
        write_attempt(tx, done, Attempt(kind=AttemptKind.LOOKED, outcome="refused", at=shop.clock(), answer=said))
    kept = answers(shop, done)[-1]
    assert kept.startswith("Ask [address] word word")
    assert len(kept) <= 300
    shop.clock.advance((ATTEMPTS_KEPT - timedelta(minutes=1)).total_seconds())
    services.jobs.sweep()
    assert len(course(shop, done)) == 2
    shop.clock.advance(61)
    assert erase_older(services.database, award_attempts.c.at, than=shop.clock() - ATTEMPTS_KEPT, limit=1) == 1
    services.jobs.sweep()
    assert course(shop, done) == []
