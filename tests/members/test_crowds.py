"""Many cards at once while a program is slow: those of known members and of other stores do not wait with them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import loyalty.members
from loyalty.program import Member, ProgramReason, ProgramUnavailable
from tests.awards_elsewhere.shop import ANA, CUSTOMERS, Shop, wait_until


@pytest.fixture
def hanging(small_shop: Shop) -> Shop:
    small_shop.card()
    small_shop.fault("hang", path=CUSTOMERS, method="GET", times=None)
    return small_shop


def _read(shop: Shop, email: str) -> Callable[[], Member | None]:
    return lambda: shop.house.services.members.read(shop.connection.store, email=email)


def _reason(answer: Future[Member | None]) -> ProgramReason:
    error = answer.exception(timeout=30)
    assert isinstance(error, ProgramUnavailable)
    return error.reason


def test_one_store_cannot_take_every_asker(hanging: Shop) -> None:
    with ThreadPoolExecutor(20) as pool:
        first = [pool.submit(_read(hanging, f"stranger{n}@example.com")) for n in range(8)]
        wait_until(lambda: hanging.calls() >= 1 + 8)
        late = pool.submit(_read(hanging, "one.more@example.com"))
        assert _reason(late) is ProgramReason.BUDGET_SPENT
        # Another store asks as ever, although the first one's askers are still at it.
        other = hanging.house.open_rivo("globex", store="fernhill")
        hanging.mend()
        hanging.house.sandbox.rivo("fernhill").add_customer(ANA, points=7)
        assert hanging.house.lookup(other, ANA).json()["points_balance"] == 7
        assert all(_reason(answer) is ProgramReason.NO_ANSWER for answer in first)


def test_when_the_program_is_slow_a_crowd_is_not_kept_waiting(hanging: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loyalty.members, "CROWD_WAITS_S", 0.0)
    with ThreadPoolExecutor(loyalty.members.WAITERS + 8) as pool:
        first = [pool.submit(_read(hanging, "stranger@example.com")) for _ in range(loyalty.members.WAITERS)]
        wait_until(lambda: hanging.house.services.members._waiting == loyalty.members.WAITERS)
        late = [pool.submit(_read(hanging, "stranger@example.com")) for _ in range(8)]
        assert {_reason(answer) for answer in late} == {ProgramReason.BUDGET_SPENT}
        # A known member's card waits for nobody.
        assert hanging.card()["points_balance"] == 100
        assert {_reason(answer) for answer in first} == {ProgramReason.NO_ANSWER}
    assert hanging.calls() == 1 + 1, "and one call asked for all"


def test_only_where_the_last_ask_failed_it_is_looked_first_whether_another_may_be_made(small_shop: Shop) -> None:
    shop = small_shop
    members = shop.house.services.members
    assert _read(shop, "stranger@example.com")() is None
    assert members._in_trouble == set()
    shop.fault("status", path=CUSTOMERS, method="GET", times=1, status=503)
    with pytest.raises(ProgramUnavailable):
        _read(shop, "another@example.com")()
    assert members._in_trouble == {shop.connection.store.id}
    assert _read(shop, "another@example.com")() is None
    assert members._in_trouble == set()


def test_several_addresses_share_one_deadline(hanging: Shop) -> None:
    emails = [f"stranger{n}@example.com" for n in range(4)]
    with pytest.raises(ProgramUnavailable):
        hanging.house.services.members.first(hanging.connection.store, emails=emails)
    assert hanging.calls() == 1 + 1, "no time was left for the others"
