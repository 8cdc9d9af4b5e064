"""Reads: fresh from the snapshot, stale and refreshed behind, or asked now within a deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from loyalty.members import Members
from loyalty.program import Member, ProgramUnavailable
from sandbox.rivo_shapes import RivoShapes
from services import Services, build_services
from tests.awards.test_at_once import at_once
from tests.awards_elsewhere.door import Door
from tests.awards_elsewhere.shop import ANA, CUSTOMERS, EVENTS, Shop
from tests.databases import seeded_random_bytes

UNAVAILABLE = "Temporarily unavailable"
NOT_FOUND = "Customer not found"


def test_what_was_just_read_is_shown_again_without_any_call(shop: Shop) -> None:
    first = shop.card()
    assert (first["loyalty_status"], first["points_balance"]) == ("Member", 100)
    assert (first["vip_tier_name"], first["store_credit_balance"]) == ("Gold", "25.00")
    calls = shop.all_calls()
    shop.rivo.update_customer(ANA, points=900)
    shop.clock.advance(59)
    again = shop.card()
    assert (again["points_balance"], again["as_of"]) == (100, first["as_of"])
    assert shop.all_calls() == calls == 1


def test_a_stale_answer_comes_at_once_with_its_own_time_and_is_refreshed_behind(shop: Shop) -> None:
    first = shop.card()
    shop.rivo.update_customer(ANA, points=900)
    shop.clock.advance(60)
    stale = shop.card()
    assert (stale["points_balance"], stale["as_of"]) == (100, first["as_of"])
    shop.settle()
    new = shop.card()
    assert new["points_balance"] == 900
    assert new["as_of"] == "2026-03-14T09:31:00Z"


def test_a_stale_answer_does_not_wait_for_a_program_that_hangs(small_shop: Shop) -> None:
    small_shop.card()
    small_shop.clock.advance(60)
    fault = small_shop.fault("slow", path=CUSTOMERS, method="GET", seconds=1.0)
    asked = small_shop.house.sandbox.requests
    before = len(asked)
    assert small_shop.card()["points_balance"] == 100
    assert len([r for r in list(asked)[before:] if r.account == "rivo"]) <= 1
    small_shop.settle()
    assert fault.hits == 1, "it was asked, behind the card"
    assert small_shop.card()["as_of"] == "2026-03-14T09:31:00Z"


def test_recent_activity_costs_no_call_on_the_cards_path_and_comes_with_the_refresh(shop: Shop) -> None:
    shop.rivo.add_event(ANA, points=20, title="Order #1001")
    shop.rivo.add_event(ANA, points=5, title="Secret", hidden=True)
    shop.rivo.revoke_event(shop.rivo.add_event(ANA, points=7, title="Refunded")["id"])
    assert shop.card()["recent_activity"] == []
    assert shop.calls(EVENTS) == 0
    shop.clock.advance(60)
    assert shop.refreshed()["recent_activity"] == [
        {"when": "2026-03-14T09:30:00Z", "what": "Order #1001", "points": 20}
    ]
    calls = shop.calls(EVENTS)
    assert calls == 1
    shop.card()
    assert shop.calls(EVENTS) == calls


def test_the_activity_shows_the_latest_five(small_shop: Shop) -> None:
    for number in range(8):
        small_shop.rivo.add_event(ANA, points=number + 1, title=f"Order {number}")
        small_shop.clock.advance(1)
    small_shop.card()
    small_shop.clock.advance(60)
    assert [entry["what"] for entry in small_shop.refreshed()["recent_activity"]] == [
        f"Order {number}" for number in (7, 6, 5, 4, 3)
    ]


def test_a_refresh_without_answer_keeps_what_is_known(shop: Shop) -> None:
    first = shop.card()
    for kind in ("status", "html", "reset_before", "truncated", "empty"):
        shop.clock.advance(120)
        shop.fault(kind, path=CUSTOMERS, method="GET", times=2)
        card = shop.refreshed()
        assert (card["points_balance"], card["as_of"]) == (100, first["as_of"]), kind
        shop.mend()
    shop.clock.advance(120)
    assert shop.refreshed()["as_of"] != first["as_of"]


def test_activity_that_cannot_be_read_does_not_cost_the_refresh_its_time_of_the_balance(small_shop: Shop) -> None:
    """Balance and activity are read together: one without the other keeps both as they were."""
    first = small_shop.card()
    small_shop.rivo.update_customer(ANA, points=900)
    small_shop.clock.advance(60)
    small_shop.fault("status", method="GET")
    card = small_shop.refreshed()
    assert (card["points_balance"], card["as_of"]) == (100, first["as_of"])


def test_whoever_is_not_known_is_asked_for_again_after_thirty_seconds_and_then_found(shop: Shop) -> None:
    """New shoppers take up to a minute to reach Rivo."""
    assert shop.card("new@example.com")["loyalty_status"] == NOT_FOUND
    shop.rivo.add_customer("new@example.com", points=7)
    shop.clock.advance(29)
    assert shop.card("new@example.com")["loyalty_status"] == NOT_FOUND
    assert shop.calls() == 1
    shop.clock.advance(1)
    assert shop.card("new@example.com")["points_balance"] == 7
    assert shop.calls() == 2


@pytest.mark.parametrize("not_found", ["json", "html"])
def test_a_404_is_somebody_unknown_whatever_its_body(small_shop: Shop, not_found: str) -> None:
    small_shop.rivo.shapes = RivoShapes(not_found="html" if not_found == "html" else "json")
    assert small_shop.card("new@example.com")["loyalty_status"] == NOT_FOUND


def test_a_member_who_was_removed_is_not_found_and_nothing_of_them_stays(shop: Shop) -> None:
    shop.rule(show_date_of_birth=True)
    shop.rivo.update_customer(ANA, dob="05-31")
    shop.card()
    shop.rivo.remove_customer(ANA)
    shop.clock.advance(60)
    assert shop.refreshed()["loyalty_status"] == NOT_FOUND
    kept = shop.snapshot()
    assert kept.state == "not_found"
    assert (kept.shown, kept.email_sealed, kept.date_of_birth_sealed) == (None, None, None)


@pytest.mark.parametrize(
    "email",
    [
        "ana+gifts@example.com",
        "ana/bob@example.com",
        "ana%40x@example.com",
        "anä@exämple.com",
        "o'neil&sons?#=@example.com",
        "100%@example.com",
        "アナ@example.com",
    ],
)
def test_an_address_with_odd_characters_is_found_exactly(small_shop: Shop, email: str) -> None:
    small_shop.rivo.add_customer(email, points=33)
    assert small_shop.card(email)["points_balance"] == 33
    assert small_shop.press(5, email=email).json()["points_balance"] == 38
    small_shop.clock.advance(60)
    assert small_shop.refreshed(email)["points_balance"] == 38


def test_an_answer_about_somebody_else_is_nobody_and_nothing_of_them_is_kept(
    shop: Shop, capfd: pytest.CaptureFixture[str]
) -> None:
    shop.rivo.shapes = RivoShapes(emails="without_plus_tags")
    assert shop.card("ana+gifts@example.com")["loyalty_status"] == NOT_FOUND
    kept = shop.snapshot("ana+gifts@example.com")
    assert (kept.state, kept.shown, kept.email_sealed) == ("not_found", None, None)
    said = "".join(capfd.readouterr())
    assert "another_customer" in said, "the operator can tell"
    assert "example.com" not in said
    assert shop.press(50, email="ana+gifts@example.com").status_code == 404
    assert shop.book() == []


def test_the_case_of_an_address_does_not_matter(small_shop: Shop) -> None:
    small_shop.rivo.add_customer("Ben@Example.COM", points=3)
    assert small_shop.card("BEN@example.com")["points_balance"] == 3
    assert small_shop.card("ben@example.com")["points_balance"] == 3
    assert small_shop.calls() == 1


def test_something_newer_at_the_program_is_brought_by_the_next_card(shop: Shop) -> None:
    shop.card()
    shop.clock.advance(1)
    shop.rivo.update_customer(ANA, points=900)
    services = shop.house.services
    services.members.outdate(shop.connection.store, member_hmac=services.hasher.email(ANA))
    assert shop.card()["points_balance"] == 100, "at once, with what is known"
    shop.settle()
    shop.clock.advance(1)
    assert shop.refreshed()["points_balance"] == 900
    shop.settle()
    calls = shop.all_calls()
    shop.card()
    assert shop.all_calls() == calls, "it is fresh again"


def test_to_outdate_somebody_who_was_never_shown_changes_nothing(shop: Shop) -> None:
    services = shop.house.services
    services.members.outdate(shop.connection.store, member_hmac=services.hasher.email("new@example.com"))
    assert shop.snapshot("new@example.com") is None


def test_a_refresh_that_began_before_an_award_does_not_undo_what_the_award_brought(shop: Shop) -> None:
    shop.card()
    # Not so long that the award itself would have the card refreshed.
    shop.clock.advance(30)
    services = shop.house.services
    old = services.rivo.member(shop.connection.store, email=ANA)
    assert old is not None
    shop.clock.advance(1)
    shop.applied(50)
    # What the refresh read before the award comes to be kept after it.
    services.snapshots.keep(
        shop.connection.store, member_hmac=services.hasher.email(ANA), member=old, with_activity=True
    )
    card = shop.card()
    assert card["points_balance"] == 150
    assert [entry["points"] for entry in card["recent_activity"]] == [50]


# -- the program is down


def test_while_the_program_is_down_the_last_snapshot_is_shown_with_its_time(shop: Shop) -> None:
    first = shop.card()
    shop.fault("status", path=".*", method=None, times=None, status=503)
    for hours in (1, 24, 28 * 24):
        shop.clock.advance(hours * 3600)
        card = shop.refreshed()
        assert (card["loyalty_status"], card["points_balance"], card["as_of"]) == ("Member", 100, first["as_of"])
    shop.clock.advance(24 * 3600)
    assert shop.card()["loyalty_status"] == UNAVAILABLE, "kept for thirty days and no longer"
    shop.mend()
    shop.clock.advance(11)
    assert shop.card()["points_balance"] == 100


@pytest.mark.parametrize("kind", ["status", "html", "empty", "reset_before", "reset_after", "truncated"])
def test_of_whom_nothing_is_known_the_card_says_that_the_program_is_unavailable(small_shop: Shop, kind: str) -> None:
    small_shop.fault(kind, path=CUSTOMERS, method="GET", times=2)
    card = small_shop.card()
    assert card["loyalty_status"] == UNAVAILABLE
    assert {name for name, value in card.items() if value not in ("", [])} == {"loyalty_status", "as_of"}
    small_shop.mend()
    assert small_shop.card()["loyalty_status"] == "Member", "nothing was kept that would stand in the way"


def test_a_program_that_cannot_be_reached_is_unavailable_and_then_back(shop_behind_door: Shop, door: Door) -> None:
    shop = shop_behind_door
    shop.card()
    door.shut()
    assert shop.card("new@example.com")["loyalty_status"] == UNAVAILABLE
    shop.clock.advance(60)
    assert shop.refreshed()["points_balance"] == 100
    door.open()
    assert shop.card("new@example.com")["loyalty_status"] == NOT_FOUND
    assert shop.refreshed()["as_of"] == "2026-03-14T09:31:00Z"


def test_a_card_is_answered_at_its_deadline_and_the_next_has_the_answer_that_came_later(small_shop: Shop) -> None:
    services = small_shop.house.services
    impatient = _members_with(services, deadline_s=0.2)
    fault = small_shop.fault("slow", path=CUSTOMERS, method="GET", seconds=1.0)
    with pytest.raises(ProgramUnavailable):
        impatient.read(small_shop.connection.store, email=ANA)
    assert fault.hits == 1
    # The asker goes on; whoever comes now waits for its answer instead of asking.
    found = _members_with(services, deadline_s=4).read(small_shop.connection.store, email=ANA)
    assert found is not None
    assert found.points_balance == 100
    assert small_shop.calls() == 1


# -- one asker


def test_many_tickets_of_one_member_at_once_are_one_call(shop: Shop) -> None:
    shop.fault("slow", path=CUSTOMERS, method="GET", seconds=0.3)
    cards = at_once(12, lambda _: shop.card())
    assert {card["points_balance"] for card in cards} == {100}
    assert shop.calls() == 1


def test_many_tickets_of_an_unknown_customer_at_once_are_one_call(shop: Shop) -> None:
    shop.fault("slow", path=CUSTOMERS, method="GET", seconds=0.3)
    cards = at_once(12, lambda _: shop.card("new@example.com"))
    assert {card["loyalty_status"] for card in cards} == {NOT_FOUND}
    assert shop.calls() == 1


def test_two_processes_ask_once_and_both_have_the_answer(shop: Shop) -> None:
    shop.fault("slow", path=CUSTOMERS, method="GET", seconds=0.3)
    store = shop.connection.store
    with _other_process(shop, seed=11) as one, _other_process(shop, seed=12) as two:

        def read(number: int) -> Member | None:
            return (one, two)[number % 2].members.read(store, email=ANA)

        found = at_once(8, read)
    assert [member.points_balance for member in found] == [100] * 8
    assert shop.calls() == 1


def test_two_processes_refresh_a_stale_member_once(shop: Shop) -> None:
    shop.card()
    shop.clock.advance(60)
    fault = shop.fault("slow", path=CUSTOMERS, method="GET", seconds=0.3)
    store = shop.connection.store
    with _other_process(shop, seed=11) as one, _other_process(shop, seed=12) as two:
        at_once(8, lambda number: (one, two)[number % 2].members.read(store, email=ANA))
        one.members.settle(20)
        two.members.settle(20)
    assert fault.hits == 1
    assert shop.calls() == 2


def test_when_the_asker_has_died_another_takes_over_after_its_lease(shop: Shop) -> None:
    services = shop.house.services
    store, hmac = shop.connection.store, services.hasher.email(ANA)
    assert services.snapshots.claim(store, member_hmac=hmac, seen=None, owner="dead", lease=timedelta(seconds=10))
    patient = _members_with(services, deadline_s=15)
    began = shop.clock()
    # Each look at what the dead one is doing takes the clock along.
    found = patient.read(store, email=ANA)
    assert found is not None
    assert found.points_balance == 100
    assert shop.clock() - began >= timedelta(seconds=10)
    assert shop.calls() == 1


def test_a_lease_from_before_the_clock_was_set_back_holds_nobody_up(shop: Shop) -> None:
    services = shop.house.services
    store, hmac = shop.connection.store, services.hasher.email(ANA)
    assert services.snapshots.claim(store, member_hmac=hmac, seen=None, owner="dead", lease=timedelta(seconds=10))
    shop.clock.advance(-3600)
    assert shop.card()["points_balance"] == 100


def test_a_lease_is_released_by_its_owner_alone(shop: Shop) -> None:
    snapshots, store = shop.house.services.snapshots, shop.connection.store
    claim = partial(snapshots.claim, store, member_hmac="a" * 32, seen=None, lease=timedelta(seconds=10))
    assert claim(owner="one")
    assert not claim(owner="two")
    snapshots.release(store, member_hmac="a" * 32, owner="two")
    assert not claim(owner="two")
    snapshots.release(store, member_hmac="a" * 32, owner="one")
    assert claim(owner="two")


def test_who_has_seen_less_than_is_known_by_now_does_not_ask_again(shop: Shop) -> None:
    """Between its look and its claim another process may have had the answer."""
    services = shop.house.services
    store, hmac = shop.connection.store, services.hasher.email(ANA)
    shop.card()
    claim = partial(services.snapshots.claim, store, member_hmac=hmac, owner="late", lease=timedelta(seconds=10))
    assert not claim(seen=None)
    seen = services.snapshots.find(store, email=ANA, member_hmac=hmac)
    assert seen is not None
    assert claim(seen=seen)
    assert claim(seen=seen), "a statement that ran twice"
    services.snapshots.forget(store)
    assert not claim(seen=seen), "what was forgotten since is not brought back"


# -- a clock that is set back


@pytest.mark.parametrize("back_s", [300, 3600, 30 * 24 * 3600])
def test_after_the_clock_was_set_back_a_card_still_becomes_fresh(shop: Shop, back_s: int) -> None:
    shop.card()
    shop.clock.advance(-back_s)
    shop.rivo.update_customer(ANA, points=900)
    assert shop.refreshed()["points_balance"] == 900
    shop.settle()
    calls = shop.all_calls()
    shop.card()
    shop.settle()
    assert shop.all_calls() == calls, "and is fresh from then on"


def test_after_the_clock_was_set_back_somebody_new_is_found_and_somebody_gone_is_not(shop: Shop) -> None:
    shop.card("new@example.com")
    shop.card()
    shop.clock.advance(-3600)
    shop.rivo.add_customer("new@example.com", points=7)
    shop.rivo.remove_customer(ANA)
    assert shop.card("new@example.com")["points_balance"] == 7
    assert shop.card("new@example.com")["points_balance"] == 7
    assert shop.refreshed()["loyalty_status"] == NOT_FOUND
    assert shop.snapshot().shown is None


def test_what_was_newer_before_the_clock_was_set_back_does_not_make_every_card_call(shop: Shop) -> None:
    shop.card()
    services = shop.house.services
    services.members.outdate(shop.connection.store, member_hmac=services.hasher.email(ANA))
    shop.clock.advance(-3600)
    shop.refreshed()
    shop.settle()
    calls = shop.all_calls()
    shop.card()
    shop.settle()
    assert shop.all_calls() == calls


def _members_with(services: Services, *, deadline_s: float) -> Members:
    """Another reader of the same process, with more or less patience."""
    members = services.members
    return Members(
        snapshots=services.snapshots,
        programs=services.programs,
        hasher=services.hasher,
        limits=replace(members._limits, deadline_s=deadline_s),
        now=services.now,
        sleep=members._sleep if deadline_s > 5 else time.sleep,
        random_bytes=services.random_bytes,
    )


@contextmanager
def _other_process(shop: Shop, *, seed: int) -> Iterator[Services]:
    """All that another process of the same house has. It waits in real time."""
    services = build_services(
        shop.house.services.settings, now=shop.clock, sleep=time.sleep, random_bytes=seeded_random_bytes(seed)
    )
    with closing(services.http), closing(services.database):
        yield services
