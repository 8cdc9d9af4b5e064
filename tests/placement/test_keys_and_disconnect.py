"""New keys are in place before the old ones end; a disconnect takes everything out and keeps what is the merchant's."""

from __future__ import annotations

import pytest
import requests
from sqlalchemy import func, select, update

from storage.tables import awards, connection_keys, connections, ledger_entries, members
from tests.house import Browser, House
from tests.placement.gorgias import assert_exactly_one_of_each, found_in, fresh, second_store
from widget.connections import Connection, Keys
from widget.placement import LEASE, PlacementFailed, PlacementProblem


def test_after_a_rotation_only_the_new_keys_work(house: House) -> None:
    browser, connection = house.connect()
    old = house.services.connections.newest_keys(connection.id)
    before = found_in(house).ids
    page = browser.submit(f"/connections/{connection.id}/keys", on=f"/connections/{connection.id}")
    assert "New keys are in place" in page.text
    new = house.services.connections.newest_keys(connection.id)
    assert {old.lookup, old.award}.isdisjoint({new.lookup, new.award})
    assert _opens(house, old) == (False, False)
    assert _opens(house, new) == (True, True)
    assert_exactly_one_of_each(house, connection)
    assert found_in(house).ids == before, "by PUT, no object was made anew"


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "status"])
@pytest.mark.parametrize(
    ("path", "skip"), [(r"/api/integrations/\d+", 0), (r"/api/widgets/\d+", 0), (r"/api/widgets/\d+", 1)]
)
def test_while_new_keys_are_not_in_place_everywhere_the_old_ones_go_on_working(
    small_house: House, path: str, skip: int, kind: str
) -> None:
    house = small_house
    browser, connection = house.connect()
    old = house.services.connections.newest_keys(connection.id)
    house.sandbox.faults.add(path, method="PUT", kind=kind, skip=skip)
    page = browser.submit(f"/connections/{connection.id}/keys", on=f"/connections/{connection.id}")
    assert "Until then the old keys go on working." in page.text
    new = house.services.connections.newest_keys(connection.id)
    assert _opens(house, old) == (True, True)
    assert _opens(house, new) == (True, True), "some of Gorgias may have them already"
    house.services.placement.ensure(connection.id)
    assert _opens(house, old) == (False, False)
    assert_exactly_one_of_each(house, connection)


def test_rotating_again_and_again_after_trouble_leaves_one_pair(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    house.sandbox.faults.add(r"/api/integrations/\d+", method="PUT", kind="status", times=3)
    for _ in range(3):
        with pytest.raises(PlacementFailed):
            house.services.placement.rotate_keys(connection.id)
    house.services.placement.rotate_keys(connection.id)
    with house.services.database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(connection_keys)) == 2
    assert_exactly_one_of_each(house, connection)


def test_disconnecting_takes_everything_out_and_keeps_members_points_and_awards(house: House) -> None:
    browser, connection = house.connect()
    house.add_member(connection.store, "mia@example.com", points=100)
    assert house.award(connection, {"email": "mia@example.com", "points": 5}).status_code == 200
    keys = house.services.connections.newest_keys(connection.id)
    kept = _kept(house)
    page = _disconnect(browser, connection)
    assert "acme is disconnected. Members, points and the history of awards are kept." in page
    assert "by hand" not in page
    assert found_in(house).ids == set()
    assert house.sandbox.helpdesk("acme").installations() == [], "the refresh token is revoked"
    assert _opens(house, keys) == (False, False)
    assert _kept(house) == kept

    _, again = house.connect()
    assert (again.id, again.store) == (connection.id, connection.store)
    assert_exactly_one_of_each(house, again)
    assert _opens(house, keys) == (False, False), "old keys stay dead"
    assert house.balance(again, "mia@example.com") == 105


@pytest.mark.parametrize("kind", ["integrations", "widgets", "macros"])
def test_disconnecting_tolerates_what_is_gone_already(small_house: House, kind: str) -> None:
    house = small_house
    browser, connection = house.connect()
    for found in getattr(found_in(house), kind):
        house.sandbox.helpdesk("acme").delete_object(kind, found["id"])
    assert "by hand" not in _disconnect(browser, connection)
    assert found_in(house).ids == set()


def test_disconnecting_takes_out_doubles_and_every_store_of_the_account(house: House) -> None:
    browser, connection = house.connect()
    house.services.placement.ensure(second_store(house, connection).id)
    (integration,) = [
        i for i in found_in(house).integrations if i["id"] == fresh(house, connection).placed.integration_id
    ]
    house.sandbox.helpdesk("acme").keep_object("integrations", {k: v for k, v in integration.items() if k != "id"})
    assert "by hand" not in _disconnect(browser, connection)
    assert found_in(house).ids == set()


def test_disconnecting_tolerates_a_token_that_was_revoked_in_gorgias(small_house: House) -> None:
    browser, connection = small_house.connect()
    small_house.sandbox.helpdesk("acme").uninstall()
    assert "by hand" not in _disconnect(browser, connection)
    assert found_in(small_house).ids == set(), "the access token still works for a while"


@pytest.mark.parametrize("status", [400, 409])
def test_an_integration_that_gorgias_will_not_delete_is_named_and_taken_up_again_later(
    house: House, status: int
) -> None:
    browser, connection = house.connect()
    (integration,) = found_in(house).integrations
    house.sandbox.faults.add(r"/api/integrations/\d+", method="DELETE", kind="status", status=status)
    page = _disconnect(browser, connection)
    assert f"HTTP integration {integration['id']} (Gorgias answered {status}" in page
    assert "Delete these by hand in Gorgias" in page
    found = found_in(house)
    assert found.ids == {integration["id"]}
    _, again = house.connect()
    assert_exactly_one_of_each(house, again)
    assert found_in(house).integrations[0]["id"] == integration["id"]


def test_when_gorgias_is_down_all_that_is_left_is_named_and_the_secrets_are_gone_here(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect()
    keys = house.services.connections.newest_keys(connection.id)
    left = found_in(house)
    house.sandbox.faults.add(".*", kind="reset_before", times=None)
    house.sandbox.requests.clear()
    page = _disconnect(browser, connection)
    for widget in left.widgets:
        assert f"widget {widget['id']} (" in page
    assert f"HTTP integration {left.integrations[0]['id']} (" in page
    assert f"macro {left.macros[0]['id']} (" in page
    assert f"whatever else is named “Tallydesk {connection.id}”" in page
    assert "could not be told to end our access" in page
    assert _opens(house, keys) == (False, False)
    assert len(house.sandbox.requests) <= 5, "the person is not kept waiting for every single call"
    house.sandbox.faults.clear()
    _, again = house.connect()
    assert_exactly_one_of_each(house, again)
    assert found_in(house).ids == left.ids, "what was left behind is taken up again"


def test_a_single_refused_deletion_does_not_keep_the_rest(small_house: House) -> None:
    browser, connection = small_house.connect()
    first = min(widget["id"] for widget in found_in(small_house).widgets)
    small_house.sandbox.faults.add(r"/api/widgets/\d+", method="DELETE", kind="status", status=500)
    page = _disconnect(browser, connection)
    assert f"widget {first} (Gorgias answered 500" in page
    assert found_in(small_house).ids == {first}


def test_a_set_up_that_a_disconnect_overtook_ends_in_a_sentence(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    house.services.placement.remove(connection.id)
    with pytest.raises(PlacementFailed, match="was disconnected") as failed:
        house.services.placement.ensure(connection.id)
    assert failed.value.problem is PlacementProblem.DISCONNECTED
    assert found_in(house).ids == set()


def test_a_disconnect_waits_for_a_set_up_and_then_goes_ahead(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect()
    with house.services.database.write() as tx:
        tx.execute(update(connections).values(lease_owner="stalled", lease_until=house.clock() + 10 * LEASE))
    assert "is disconnected" in _disconnect(browser, connection)
    assert found_in(house).ids == set()


def test_pressing_disconnect_in_two_windows_removes_once_and_names_nothing(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    assert house.services.placement.remove(connection.id) == []
    house.services.accounts.disconnect(connection.account_id)
    assert house.services.placement.remove(connection.id) == []


def test_disconnecting_while_someone_else_holds_the_connection_says_so_and_can_be_repeated(
    small_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = small_house
    browser, connection = house.connect()

    def held(_: int) -> list[str]:
        raise PlacementFailed(PlacementProblem.IN_PROGRESS, "Someone else is setting up this connection.")

    monkeypatch.setattr(house.services.placement, "remove", held)
    page = _disconnect(browser, connection)
    assert "The account is still connected; press Disconnect again" in page
    monkeypatch.undo()
    assert "acme is disconnected" in _disconnect(browser, connection)


def _disconnect(browser: Browser, connection: Connection) -> str:
    page = browser.submit("/oauth/disconnect", on=f"/connections/{connection.id}")
    assert page.status_code == 200
    return page.text


def _opens(house: House, keys: Keys) -> tuple[bool, bool]:
    """Whether the pair opens lookup and award."""
    looked = requests.get(f"{house.url}/widget/customer", headers={"X-Api-Key": keys.lookup}, timeout=10)
    tried = requests.post(f"{house.url}/widget/earnings", headers={"X-Api-Key": keys.award}, timeout=10)
    assert {looked.status_code} <= {200, 401}
    assert {tried.status_code} <= {422, 401}, "nothing was asked for, so nothing is awarded"
    return looked.status_code == 200, tried.status_code == 422


def _kept(house: House) -> tuple[int, ...]:
    with house.services.database.read() as tx:
        return tuple(
            tx.scalar(select(func.count()).select_from(table)) or 0 for table in (members, ledger_entries, awards)
        )
