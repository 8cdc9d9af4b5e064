"""Several stores side by side: nothing of one ever opens, shows or changes another, tried with every key and id.

acme has the built-in ledger and two stores at Rivo; globex has one at Rivo, with the same key as one of acme's. The
same shopper is a member in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from loyalty.activity import recent_awards
from loyalty.awards import AwardRefused, Refusal
from loyalty.program import ProgramKind
from loyalty.stores import KeyState
from storage.database import Database
from storage.tables import awards, snapshots
from tests.awards_elsewhere.shop import ANA, EVENTS, Shop, ledger_connection
from tests.databases import Clock
from tests.house import House, running_house

# At Rivo, acme's first store and globex's are one store: only there may what one does be seen by the other.
BALANCES = {"acme ledger": 10, "acme northwind": 200, "acme fernhill": 3000, "globex northwind": 200}
NAMES = tuple(BALANCES)


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    with running_house(database.url, clock=clock) as house:
        yield house


@pytest.fixture
def shops(house: House) -> Iterator[dict[str, Shop]]:
    house.sandbox.rivo("northwind").add_customer(ANA, points=200, credits="2.00", tier="Gold", referral_code="nw")
    house.sandbox.rivo("fernhill").add_customer(ANA, points=3000, credits="3.00", tier="Silver", referral_code="fh")
    northwind = house.open_rivo("acme", store="northwind")
    ledger = ledger_connection(house)
    house.add_member(ledger.store, ANA, points=10)
    yield {
        "acme ledger": Shop(house=house, connection=ledger),
        "acme northwind": Shop(house=house, connection=northwind),
        "acme fernhill": Shop(house=house, connection=house.open_rivo("acme", store="fernhill"), name="fernhill"),
        "globex northwind": Shop(house=house, connection=house.open_rivo("globex", store="northwind")),
    }
    house.sandbox.faults.clear()
    house.services.members.settle(20)


def test_each_connection_shows_its_own_store(shops: dict[str, Shop]) -> None:
    for _ in range(2):
        cards = {name: shop.card() for name, shop in shops.items()}
        assert {name: card["points_balance"] for name, card in cards.items()} == BALANCES
        assert [card["vip_tier_name"] for card in cards.values()] == ["Bronze", "Gold", "Silver", "Gold"]
        assert [card["store_credit_balance"] for card in cards.values()] == ["", "2.00", "3.00", "2.00"]
        for name, shop in shops.items():
            shop.clock.advance(61)
            shop.refreshed()
            assert cards[name]["referral_url"].startswith("http") or name == "acme ledger"
    assert len({shop.connection.store.id for shop in shops.values()}) == 4, "the same key is no shared store"


def test_an_award_goes_into_its_own_store_and_onto_its_own_card(shops: dict[str, Shop]) -> None:
    for name, shop in shops.items():
        before = {one: other.card() for one, other in shops.items() if one != name}
        assert shop.press(5, ticket_id=1, reason=f"from {name}").status_code == 200
        for one, card in before.items():
            after = shops[one].card()
            assert (after["points_balance"], after["recent_activity"]) == (
                card["points_balance"],
                card["recent_activity"],
            )
    assert [points for _, points, _ in shops["acme fernhill"].book()] == [5]
    assert [points for _, points, _ in shops["acme northwind"].book()] == [5, 5], "acme's and globex's"
    for name, shop in shops.items():
        assert [entry["what"] for entry in shop.card()["recent_activity"]][:1] == [f"from {name}"]


def test_the_same_press_in_another_store_is_no_repetition(shops: dict[str, Shop]) -> None:
    done = {name: shop.press(5).json() for name, shop in shops.items()}
    assert {told["status"] for told in done.values()} == {"applied"}
    assert len({told["operation_id"] for told in done.values()}) == 4


@pytest.mark.parametrize("mine", NAMES)
def test_the_keys_of_one_open_nothing_of_another(shops: dict[str, Shop], mine: str) -> None:
    house = shops[mine].house
    keys = house.services.connections.newest_keys(shops[mine].connection.id)
    for ticket, other in enumerate(_others(mine)):
        # The key decides whose card it is, whoever asks with it.
        answer = house.lookup(shops[other].connection, ANA, headers={"X-Api-Key": keys.lookup})
        assert answer.json()["points_balance"] == BALANCES[mine] + 5 * ticket
        asked = {"email": ANA, "points": 5, "ticket_id": str(ticket)}
        for key, status in ((keys.lookup, 401), (keys.award, 200)):
            assert house.award(shops[other].connection, asked, headers={"X-Api-Key": key}).status_code == status
        assert house.lookup(shops[other].connection, ANA, headers={"X-Api-Key": keys.award}).status_code == 401
    made = {(row.connection_id, row.store_id) for row in _rows(house)}
    assert made == {(shops[mine].connection.id, shops[mine].connection.store.id)}


@pytest.mark.parametrize("mine", NAMES)
def test_an_award_key_of_one_is_none_in_another(shops: dict[str, Shop], mine: str) -> None:
    key = shops[mine].card()["award_key"]
    for other in _others(mine):
        shop = shops[other]
        shop.card()
        answer = shop.press(5, email="{{ticket.customer.email}}", award_key=key)
        assert (answer.status_code, answer.json()["reason"]) == (422, "member_missing")
        # With an address it is an award of that store, and the foreign key is not recorded for it.
        told = shop.press(5, award_key=key)
        assert told.status_code == 200
        assert shop.row(told.json()["operation_id"]).award_key_nonce is None
    assert shops[mine].press(7, award_key=key).json()["status"] == "applied", "nor used up"


@pytest.mark.parametrize("mine", NAMES)
def test_an_award_of_one_cannot_be_undone_looked_at_or_marked_from_another(shops: dict[str, Shop], mine: str) -> None:
    house = shops[mine].house
    awards_ = house.services.awards
    done = shops[mine].press(5).json()["operation_id"]
    before = shops[mine].row(done)
    for other in _others(mine):
        assert shops[other].undo(done) == "award_not_found"
        theirs = shops[other].connection.id
        with pytest.raises(AwardRefused) as looked:
            awards_.look_again(operation_id=done, connection_id=theirs)
        with pytest.raises(AwardRefused) as marked:
            awards_.mark(operation_id=done, connection_id=theirs, applied=False, by="admin@example.com")
        assert looked.value.reason is marked.value.reason is Refusal.AWARD_NOT_FOUND
        assert shops[mine].row(done) == before
    assert len(_rows(house)) == 1
    assert not isinstance(shops[mine].undo(done), str)


def test_what_waits_for_a_person_in_one_waits_whatever_another_says(shops: dict[str, Shop]) -> None:
    shop = shops["acme northwind"]
    shop.card()
    shop.fault("reset_before", times=None)
    done = shop.queued(50)
    shop.work(500, step_s=10)
    shop.mend()
    assert shop.state(done) == "needs_review"
    awards_ = shop.house.services.awards
    for other in _others("acme northwind"):
        theirs = shops[other].connection.id
        for applied in (True, False):
            with pytest.raises(AwardRefused):
                awards_.mark(operation_id=done, connection_id=theirs, applied=applied, by="admin@example.com")
        with pytest.raises(AwardRefused):
            awards_.look_again(operation_id=done, connection_id=theirs)
    assert shop.state(done) == "needs_review"


def test_evidence_of_one_store_settles_nothing_of_another(shops: dict[str, Shop]) -> None:
    """Also where both hold the same key: the webhook comes to one connection's address."""
    shop = shops["acme northwind"]
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    seen = shop.house.services.delivery.seen
    for name in NAMES:
        if name != "acme northwind":
            assert not seen(shops[name].connection.store, operation_id=done, points=50, credit_cents=0)
    assert shop.state(done) == "unknown"


def test_an_award_is_looked_for_and_sent_in_its_own_store_alone(shops: dict[str, Shop]) -> None:
    shop = shops["acme northwind"]
    for one in shops.values():
        one.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    # Its operation id in another store's book proves nothing.
    shops["acme fernhill"].rivo.add_event(ANA, points=50, source="manual", internal_note=f"Tallydesk {done}: x")
    shop.work(120)
    assert shop.row(done).settled_by == "answer"
    assert len(shop.book()) == 1
    asked = shop.house.sandbox.requests.filter(account="rivo", path=EVENTS)
    assert {request.store for request in asked} == {"northwind"}


def test_the_activity_of_one_lists_its_own_awards_only(shops: dict[str, Shop]) -> None:
    made = {name: shop.press(5).json()["operation_id"] for name, shop in shops.items()}
    services = shops["acme ledger"].house.services
    for name, shop in shops.items():
        listed = recent_awards(services.database, sealer=services.sealer, connection_id=shop.connection.id)
        assert [record.operation_id for record in listed] == [made[name]]
        for other in NAMES:
            older = recent_awards(
                services.database, sealer=services.sealer, connection_id=shop.connection.id, before=made[other]
            )
            assert older == []


def test_snapshots_are_of_one_store_and_change_with_it_alone(shops: dict[str, Shop]) -> None:
    for shop in shops.values():
        shop.card()
    services = shops["acme ledger"].house.services
    with services.database.read() as tx:
        kept = {row.store_id: row.shown["points"] for row in tx.execute(select(snapshots))}
    rivo = [name for name in NAMES if name != "acme ledger"]
    assert kept == {shops[name].connection.store.id: BALANCES[name] for name in rivo}
    hmac = services.hasher.email(ANA)
    services.members.outdate(shops["acme northwind"].connection.store, member_hmac=hmac)
    assert [shops[name].snapshot().outdated_at is None for name in rivo] == [False, True, True]
    services.snapshots.forget(shops["globex northwind"].connection.store)
    assert [shops[name].snapshot() is None for name in rivo] == [False, False, True]
    for name in rivo:
        assert services.rivo.email_of(shops[name].connection.store, member_hmac=hmac) == (
            None if name == "globex northwind" else ANA
        )


def test_somebody_known_to_one_store_is_a_stranger_to_the_others(shops: dict[str, Shop]) -> None:
    shops["acme fernhill"].rivo.add_customer("only@fernhill.example", points=1)
    found = {name: shop.card("only@fernhill.example")["loyalty_status"] for name, shop in shops.items()}
    assert found.pop("acme fernhill") == "Member"
    assert set(found.values()) == {"Customer not found"}
    for name in found:
        assert shops[name].press(5, email="only@fernhill.example").status_code == 404


def test_replacing_the_key_of_one_account_does_not_give_or_take_anything_from_another(shops: dict[str, Shop]) -> None:
    stores = shops["acme ledger"].house.services.stores
    acme, globex = shops["acme northwind"], shops["globex northwind"]
    old = acme.rivo.key
    new = acme.rivo.regenerate_key()
    stores.replace_key(acme.connection.store, account="acme", key=new)
    assert stores.key_of(globex.connection.store).key == old
    assert acme.card()["points_balance"] == 200
    assert globex.card()["loyalty_status"] == "Temporarily unavailable", "it was never given the new key"
    assert stores.standing(globex.connection.store).state is KeyState.REFUSED
    assert stores.standing(acme.connection.store).state is KeyState.OK
    assert stores.standing(shops["acme fernhill"].connection.store).state is KeyState.OK
    assert acme.press(5).status_code == 200
    assert globex.press(5).status_code == 503


def test_wiping_the_secrets_of_one_leaves_the_others(shops: dict[str, Shop]) -> None:
    stores = shops["acme ledger"].house.services.stores
    acme, globex = shops["acme northwind"].connection.store, shops["globex northwind"].connection.store
    stores.save_webhook_secret(acme, secret="of acme")
    stores.save_webhook_secret(globex, secret="of globex")
    stores.forget_secrets(acme)
    assert stores.webhook_secrets(globex) == ("of globex",)
    assert stores.webhook_secrets(acme) == ()
    assert shops["globex northwind"].card()["points_balance"] == 200
    assert shops["acme fernhill"].card()["points_balance"] == 3000


def test_two_accounts_with_one_key_share_its_budget_and_nothing_else(shops: dict[str, Shop]) -> None:
    stores = shops["acme ledger"].house.services.stores
    acme, fernhill, globex = (
        stores.key_of(shops[name].connection.store) for name in ("acme northwind", "acme fernhill", "globex northwind")
    )
    assert acme.gate == globex.gate != fernhill.gate
    assert acme.gate == stores.gate_of(ProgramKind.RIVO, acme.key)


def test_the_limits_of_one_connection_are_not_used_up_by_another(shops: dict[str, Shop]) -> None:
    for shop in shops.values():
        shop.rule(max_points_per_day=100, max_points_per_agent_per_day=100)
    for shop in shops.values():
        assert shop.press(100, agent_email="ada@example.com").status_code == 200
        assert shop.press(1, agent_email="ada@example.com").status_code == 422


@pytest.mark.parametrize("down", ["northwind", "fernhill"])
def test_a_store_that_is_down_takes_no_other_down_with_it(shops: dict[str, Shop], down: str) -> None:
    house = shops["acme ledger"].house
    house.sandbox.rivo(down).lapse()
    for name, shop in shops.items():
        expected = 503 if name.endswith(down) else 200
        assert shop.press(5).status_code == expected, name


def test_an_operation_id_is_never_of_two_stores(shops: dict[str, Shop]) -> None:
    for shop in shops.values():
        for ticket in range(3):
            shop.press(1, ticket_id=ticket)
    house = shops["acme ledger"].house
    rows = _rows(house)
    assert len(rows) == 12
    assert all(re.fullmatch(r"td_[a-z2-7]{24}", row.operation_id) for row in rows)
    for row in rows:
        (owner,) = [shop for shop in shops.values() if shop.connection.id == row.connection_id]
        assert row.store_id == owner.connection.store.id
    with house.services.database.read() as tx:
        assert tx.scalar(select(func.count(func.distinct(awards.c.operation_id)))) == 12


def _others(mine: str) -> list[str]:
    return [name for name in NAMES if name != mine]


def _rows(house: House) -> list[Any]:
    with house.services.database.read() as tx:
        return list(tx.execute(select(awards)))
