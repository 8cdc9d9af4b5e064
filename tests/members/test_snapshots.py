"""What is kept of a member: no more than the card shows, sealed, and for no longer than is promised."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from storage.database import Database
from storage.tables import metadata, snapshots
from tests.awards_elsewhere.shop import ANA, CUSTOMERS, Shop, running_shop
from tests.databases import Clock

DAY_S = 24 * 3600
# All that a card has beside its own keys, and the e-mail by which it was asked for.
KEPT = {"status", "points", "lifetime", "tier", "referral", "credit", "expires", "activity"}


def columns_of(database: Database) -> str:
    """Everything that stands in any column of any table, as text."""
    with database.read() as tx:
        return "\n".join(repr(row) for table in metadata.sorted_tables for row in tx.execute(select(table)))


def test_no_address_is_kept_plain(
    sqlite_database: Database, tmp_path: Path, clock: Clock, small_shop: Shop, capfd: pytest.CaptureFixture[str]
) -> None:
    small_shop.rivo.update_customer(ANA, dob="05-31")
    small_shop.rule(show_date_of_birth=True)
    small_shop.rivo.add_event(ANA, points=5, title=f"Order of {ANA}", external_note=f"for {ANA}")
    small_shop.card()
    small_shop.applied(10, agent_email="agent@acme.example", reason=f"promised to {ANA}")
    small_shop.clock.advance(60)
    activity = small_shop.refreshed()["recent_activity"]
    assert len(activity) == 2
    for kept in (columns_of(small_shop.house.services.database), *_files(tmp_path)):
        assert "ana@" not in kept.lower()
        assert "agent@acme" not in kept
        assert "05-31" not in kept
    assert "ana@" not in "".join(capfd.readouterr())


def test_no_address_is_in_a_column_of_postgresql(
    postgres_database: Database, clock: Clock, request: pytest.FixtureRequest
) -> None:
    with running_shop(postgres_database.url, clock=clock) as shop:
        shop.card()
        shop.applied(10, agent_email="agent@acme.example")
        kept = columns_of(postgres_database)
    assert "ana@" not in kept
    assert "agent@" not in kept


def test_a_snapshot_has_what_the_card_shows_and_nothing_else(shop: Shop) -> None:
    shop.rivo.update_customer(
        ANA, points_expire_at="December 31, 2026", lifetime=700, first_name="Anastasia", last_name="Secretname"
    )
    shop.card()
    shop.clock.advance(60)
    card = shop.refreshed()
    assert (card["lifetime_points"], card["points_expire_at"]) == (700, "December 31, 2026")
    assert card["referral_url"] == "https://northwind.myshopify.com?referral_code=ana-1"
    row = shop.snapshot()
    assert set(row.shown) == KEPT
    assert "Secretname" not in columns_of(shop.house.services.database)
    assert row.date_of_birth_sealed is None


@pytest.mark.parametrize(
    ("told", "shown"), [({"credits": "1000.0"}, "1000.00"), ({"credits": "0"}, "0.00"), ({"credits": "7.5"}, "7.50")]
)
def test_store_credit_is_the_same_from_the_snapshot_as_when_it_was_read(
    small_shop: Shop, told: dict[str, Any], shown: str
) -> None:
    small_shop.rivo.update_customer(ANA, **told)
    assert [small_shop.card()["store_credit_balance"] for _ in range(2)] == [shown, shown]
    assert small_shop.calls() == 1


def test_what_the_program_does_not_offer_is_empty_from_the_snapshot_too(small_shop: Shop) -> None:
    small_shop.rivo.add_customer("ben@example.com", points=0, referral_code="")
    for _ in range(2):
        card = small_shop.card("ben@example.com")
        names = ("vip_tier_name", "referral_url", "lifetime_points", "points_expire_at")
        assert [card[name] for name in names] == ["", "", "", ""]
        assert card["points_balance"] == 0


# -- the date of birth


def test_the_date_of_birth_is_read_only_where_the_connection_shows_it(shop: Shop) -> None:
    shop.rivo.update_customer(ANA, dob="05-31")
    assert shop.card()["date_of_birth"] == ""
    assert shop.snapshot().date_of_birth_sealed is None
    shop.rule(show_date_of_birth=True)
    shop.clock.advance(60)
    assert shop.refreshed()["date_of_birth"] == "05-31"
    assert shop.snapshot().date_of_birth_sealed is not None


def test_a_date_of_birth_is_erased_as_soon_as_it_is_switched_off(shop: Shop) -> None:
    shop.rule(show_date_of_birth=True)
    shop.rivo.update_customer(ANA, dob="05-31")
    assert shop.card()["date_of_birth"] == "05-31"
    shop.rule(show_date_of_birth=False)
    shop.house.services.snapshots.forget_dates_of_birth(shop.connection.store)
    assert shop.snapshot().date_of_birth_sealed is None
    assert shop.card()["date_of_birth"] == ""
    assert shop.card()["points_balance"] == 100, "the rest stays"
    assert shop.calls() == 1


def test_a_date_of_birth_that_is_switched_off_but_still_kept_is_not_shown(small_shop: Shop) -> None:
    small_shop.rule(show_date_of_birth=True)
    small_shop.rivo.update_customer(ANA, dob="05-31")
    small_shop.card()
    small_shop.rule(show_date_of_birth=False)
    small_shop.clock.advance(1)
    assert small_shop.card()["date_of_birth"] == ""


def test_an_award_leaves_the_date_of_birth_and_a_refresh_takes_its_removal_over(shop: Shop) -> None:
    shop.rule(show_date_of_birth=True)
    shop.rivo.update_customer(ANA, dob="05-31")
    shop.card()
    shop.clock.advance(1)
    shop.applied(50)
    assert shop.card()["date_of_birth"] == "05-31"
    shop.rivo.update_customer(ANA, dob=None)
    shop.clock.advance(60)
    assert shop.refreshed()["date_of_birth"] == ""
    assert shop.snapshot().date_of_birth_sealed is None


# -- retention


def test_the_retention_job_erases_what_nobody_looked_at_for_thirty_days(shop: Shop) -> None:
    shop.card()
    shop.clock.advance(15 * DAY_S)
    shop.rivo.add_customer("ben@example.com")
    shop.card("ben@example.com")
    shop.clock.advance(15 * DAY_S - 1)
    shop.house.services.jobs.sweep()
    assert _kept(shop) == 2
    shop.clock.advance(2)
    shop.house.services.jobs.sweep()
    assert shop.snapshot() is None
    assert shop.snapshot("ben@example.com") is not None


def test_a_member_who_is_read_again_is_kept(shop: Shop) -> None:
    shop.card()
    for _ in range(4):
        shop.clock.advance(20 * DAY_S)
        shop.refreshed()
        shop.house.services.jobs.sweep()
        assert _kept(shop) == 1


def test_while_the_program_is_down_retention_ends_all_the_same(shop: Shop) -> None:
    """Looking at a card must not keep alive what could not be read anew."""
    shop.card()
    shop.fault("status", path=CUSTOMERS, method="GET", times=None, status=503)
    for _ in range(31):
        shop.clock.advance(DAY_S)
        shop.refreshed()
    shop.house.services.jobs.sweep()
    assert _kept(shop) == 0


def test_of_strangers_nothing_is_kept_for_longer_than_an_hour(shop: Shop) -> None:
    shop.card("new@example.com")
    shop.house.services.jobs.sweep()
    assert _kept(shop) == 1
    shop.clock.advance(3601)
    shop.house.services.jobs.sweep()
    assert _kept(shop) == 0


def test_the_row_of_an_asker_who_died_is_erased_too(shop: Shop) -> None:
    snapshots_ = shop.house.services.snapshots
    assert snapshots_.claim(
        shop.connection.store, member_hmac="a" * 32, seen=None, owner="dead", lease=timedelta(seconds=10)
    )
    shop.clock.advance(3601)
    shop.house.services.jobs.sweep()
    assert _kept(shop) == 0


def test_more_than_one_sweep_can_take_is_erased_by_the_next_ones(small_shop: Shop) -> None:
    services = small_shop.house.services
    for number in range(7):
        store, member_hmac = small_shop.connection.store, f"{number:032}"
        assert services.snapshots.claim(
            store, member_hmac=member_hmac, seen=None, owner="card", lease=timedelta(seconds=10)
        )
        services.snapshots.keep_not_found(store, member_hmac=member_hmac, as_of=services.now(), owner="card")
    later = services.now() + timedelta(hours=2)
    swept = [services.snapshots.sweep(found_before=later, not_found_before=later, limit=3) for _ in range(4)]
    assert swept == [3, 3, 1, 0]


def test_forgetting_a_store_leaves_the_others(shop: Shop) -> None:
    other = shop.house.open_rivo(store="fernhill")
    shop.house.sandbox.rivo("fernhill").add_customer(ANA, points=9)
    shop.card()
    assert shop.house.lookup(other, ANA).json()["points_balance"] == 9
    assert shop.house.services.snapshots.forget(shop.connection.store) == 1
    assert shop.snapshot() is None
    calls = shop.all_calls()
    assert shop.house.lookup(other, ANA).json()["points_balance"] == 9
    assert shop.all_calls() == calls


def _kept(shop: Shop) -> int:
    with shop.house.services.database.read() as tx:
        return tx.scalar(select(func.count()).select_from(snapshots)) or 0


def _files(folder: Path) -> list[str]:
    found = [path.read_bytes().decode("latin-1") for path in folder.glob("tallydesk.db*")]
    assert found
    return found
