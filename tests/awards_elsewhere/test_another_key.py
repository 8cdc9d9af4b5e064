"""A replaced key may open another store: what was done under the former one is never done there again."""

from __future__ import annotations

import pytest

from loyalty.awards import Status
from tests.awards_elsewhere.shop import ANA, CUSTOMERS, Shop

OTHER = "fernhill"


def _replace_key(shop: Shop, *, key: str) -> None:
    services = shop.house.services
    services.stores.replace_key(shop.connection.store, account="acme", key=key)
    services.snapshots.forget(shop.connection.store)


def _to_the_other_store(shop: Shop) -> None:
    other = shop.house.sandbox.rivo(OTHER)
    other.add_customer(ANA, points=7, tier="Bronze")
    _replace_key(shop, key=other.key)


def _work_for_a_while(shop: Shop) -> None:
    shop.work(1_200, step_s=10)


def test_an_award_in_doubt_is_not_sent_to_another_store(shop: Shop) -> None:
    shop.fault("reset_after")
    operation_id = shop.queued(50)
    _to_the_other_store(shop)
    _work_for_a_while(shop)
    assert shop.house.sandbox.rivo(OTHER).events(ANA) == []
    assert len(shop.rivo.events(ANA)) == 1
    assert shop.state(operation_id) == "needs_review", "a person decides"


def test_an_award_in_doubt_is_found_under_a_new_key_of_the_same_store(shop: Shop) -> None:
    shop.fault("reset_after")
    operation_id = shop.queued(50)
    _replace_key(shop, key=shop.rivo.regenerate_key())
    _work_for_a_while(shop)
    assert shop.state(operation_id) == "applied"
    assert len(shop.rivo.events(ANA)) == 1


def test_an_award_of_another_store_is_not_taken_back_here(shop: Shop) -> None:
    operation_id = shop.applied(50)
    _to_the_other_store(shop)
    assert shop.undo(operation_id) == "not_under_this_key"
    assert shop.house.sandbox.rivo(OTHER).events(ANA) == []


def test_an_award_is_taken_back_under_a_new_key_of_the_same_store(shop: Shop) -> None:
    operation_id = shop.applied(50)
    _replace_key(shop, key=shop.rivo.regenerate_key())
    undone = shop.undo(operation_id)
    assert not isinstance(undone, str)
    assert undone.status is Status.APPLIED
    assert [event["points_diff"] for event in shop.rivo.events(ANA)] == [50, -50]


def test_awards_of_another_store_are_in_no_card(shop: Shop) -> None:
    shop.applied(50)
    _to_the_other_store(shop)
    card = shop.card()
    assert (card["points_balance"], card["recent_activity"]) == (7, [])


def test_the_same_key_pasted_again_changes_nothing(small_shop: Shop) -> None:
    shop = small_shop
    shop.fault("reset_before")
    operation_id = shop.queued(50)
    _replace_key(shop, key=shop.rivo.key)
    _work_for_a_while(shop)
    assert shop.state(operation_id) == "applied"
    assert len(shop.rivo.events(ANA)) == 1


@pytest.mark.parametrize("left", ["replaced", "disconnected"])
def test_what_was_read_meanwhile_is_not_kept_after(shop: Shop, left: str) -> None:
    """Somebody asks, the key goes, and then the answer comes."""
    services, store = shop.house.services, shop.connection.store
    member = services.rivo.member(store, email=ANA)
    assert member is not None
    member_hmac = services.hasher.email(ANA)
    shop.card()
    if left == "replaced":
        _to_the_other_store(shop)
    else:
        services.stores.forget_secrets(store)
        services.snapshots.forget(store)
    # The refresh that was under way, and the read-back of an award.
    services.snapshots.keep(store, member_hmac=member_hmac, member=member, with_activity=True, owner="long ago")
    services.members.took(store, member_hmac=member_hmac, member=member)
    assert services.snapshots.find(store, email=ANA, member_hmac=member_hmac) is None
    if left == "replaced":
        assert shop.card()["points_balance"] == 7


def test_a_repetition_that_cannot_be_read_is_not_told_that_nothing_was_added(shop: Shop) -> None:
    shop.fault("reset_after")
    operation_id = shop.queued(50)
    shop.house.services.snapshots.forget(shop.connection.store)
    shop.fault("status", path=CUSTOMERS, method="GET", status=502, times=None)
    again = shop.press(50)
    assert (again.status_code, again.json()["status"]) == (202, "being_confirmed")
    assert again.json()["operation_id"] == operation_id
    assert "Nothing was added" not in again.json()["message"]


def test_a_repetition_after_an_unread_balance_tells_no_old_one(shop: Shop) -> None:
    shop.card()
    shop.fault("status", path=CUSTOMERS, method="GET", status=502, times=None)
    shop.applied(50)
    shop.mend()
    again = shop.press(50).json()
    assert again["status"] == "already_applied"
    assert "the balance is" not in again["message"]
