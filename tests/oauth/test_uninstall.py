"""Uninstalled in Gorgias, of which nobody tells us: known by the refused refresh, taken out with what still lives."""

from __future__ import annotations

from datetime import timedelta

import pytest
import requests
from sqlalchemy import update
from structlog.testing import capture_logs

from loyalty.stores import KeyState
from sandbox import Sandbox
from storage.tables import accounts, snapshots, stores
from tests.house import Browser, House
from tests.oauth.renewing import CONFIRM_S, HALF_S, account_row, refreshes, run_refresh
from widget.connections import Connection, ConnectionState

ANA = "ana@example.com"


def refused_once(house: House, account_id: int, *, end_access: bool = False) -> None:
    """Uninstalled, found out by the refresh at half of the token's life, and ten minutes have passed since."""
    house.sandbox.helpdesk("acme").uninstall(end_access=end_access)
    house.clock.advance(HALF_S)
    assert run_refresh(house, account_id).outcome == "invalid_grant"
    house.clock.advance(CONFIRM_S)


def objects_in(sandbox: Sandbox) -> dict[str, list[int]]:
    helpdesk = sandbox.helpdesk("acme")
    found = {"integrations": helpdesk.integrations(), "widgets": helpdesk.widgets(), "macros": helpdesk.macros()}
    return {kind: [one["id"] for one in ones] for kind, ones in found.items()}


NOTHING: dict[str, list[int]] = {"integrations": [], "widgets": [], "macros": []}


def state_of(house: House, connection: Connection) -> ConnectionState:
    found = house.services.connections.by_id(connection.id)
    assert found is not None
    return found.state


def assert_wiped(house: House) -> None:
    row = account_row(house)
    assert (row.state, row.state_reason) == ("disconnected", "uninstalled")
    assert row.disconnected_at == house.clock()
    assert {value for name, value in row._mapping.items() if name.endswith("_sealed")} == {None}
    assert (row.refresh_at, row.refused_at, row.access_expires_at) == (None, None, None)


def connect_again(house: House) -> tuple[Browser, str]:
    browser = house.browser()
    return browser, browser.sign_in().text


def test_an_uninstall_is_found_out_and_nothing_of_ours_stays_behind_and_connecting_again_finds_everything(
    house_on_both: House,
) -> None:
    """The whole story: two stores, by the worker alone, a day on which nobody looks."""
    house = house_on_both
    _, ledger = house.connect()
    house.add_member(ledger.store, "mia@example.com", points=100)
    browser, rivo = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    assert house.balance(rivo, ANA) == 120
    keys = house.services.connections.newest_keys(rivo.id)
    house.sandbox.helpdesk("acme").uninstall()
    with capture_logs() as lines:
        for _ in range(24 * 6):
            house.clock.advance(600)
            house.services.jobs.sweep()
            house.work()
            if account_row(house).state == "disconnected":
                break
    assert [call.status for call in refreshes(house)] == [400, 400], "refused, and confirmed once"
    assert_wiped(house)
    assert account_row(house).left_over is None
    assert objects_in(house.sandbox) == NOTHING
    assert [state_of(house, connection) for connection in (ledger, rivo)] == [ConnectionState.REMOVED] * 2
    with house.services.database.read() as tx:
        store = tx.execute(stores.select().where(stores.c.id == rivo.store.id)).one()
        assert (store.key_sealed, store.webhook_secret_sealed, store.key_state) == (None, None, KeyState.MISSING)
        assert tx.execute(snapshots.select()).all() == []
    answer = requests.get(f"{house.url}/widget/customer", headers={"X-Api-Key": keys.lookup}, timeout=10)
    assert answer.status_code == 401
    told = [(line["event"], line["outcome"]) for line in lines if line["event"] in ("token_refresh", "account")]
    assert told == [("token_refresh", "invalid_grant"), ("account", "uninstalled")], "each once"
    assert browser.get(f"/connections/{rivo.id}", follow=False).status_code == 303, "the session ended with it"

    _, again = house.connect()
    assert (again.id, again.store) == (ledger.id, ledger.store)
    assert house.balance(again, "mia@example.com") == 100
    _, again = house.connect_rivo()
    assert (again.id, again.store) == (rivo.id, rivo.store)
    row = account_row(house)
    assert (row.state, row.disconnected_at, row.refused_at) == ("connected", None, None)


def test_a_refusal_under_the_credentials_of_another_app_disconnects_nobody(house: House) -> None:
    """A wrong GORGIAS_CLIENT_ID: every token of every merchant is refused, and none of them has left."""
    _, connection = house.connect()
    with house.services.database.write() as tx:
        tx.execute(update(accounts).values(client_hash="another app's"))
    refused_once(house, connection.account_id)
    assert run_refresh(house, connection.account_id).outcome == "unproven"
    assert state_of(house, connection) is ConnectionState.ACTIVE
    assert account_row(house).refresh_token_sealed is not None
    assert objects_in(house.sandbox) != NOTHING


def test_what_gorgias_does_not_let_us_delete_is_told_once_to_the_admin_who_connects_again(house: House) -> None:
    _, connection = house.connect()
    house.sandbox.helpdesk("acme").delete_object("macros", objects_in(house.sandbox)["macros"][0])
    refused_once(house, connection.account_id)
    told_by_gorgias = r"/api/integrations/\d+"
    house.sandbox.faults.add(told_by_gorgias, method="DELETE", kind="status", status=409)
    assert run_refresh(house, connection.account_id).outcome == "uninstalled"
    assert_wiped(house)
    (integration_id,) = objects_in(house.sandbox)["integrations"]
    assert objects_in(house.sandbox) == NOTHING | {"integrations": [integration_id]}
    (left,) = account_row(house).left_over
    assert left.startswith(f"HTTP integration {integration_id} (Gorgias answered 409")

    browser, page = connect_again(house)
    assert "When Tallydesk was removed in Gorgias, these could not be deleted there." in page
    assert f"<li>HTTP integration {integration_id} (Gorgias answered 409" in page
    assert account_row(house).left_over is None
    assert "could not be deleted" not in browser.get("/connections/").text, "once"
    house.connect()
    assert objects_in(house.sandbox)["integrations"] == [integration_id], "taken up again"


def test_an_access_token_that_turns_out_to_be_dead_leaves_everything_to_be_deleted_by_hand(house: House) -> None:
    _, connection = house.connect()
    left = objects_in(house.sandbox)
    refused_once(house, connection.account_id, end_access=True)
    assert run_refresh(house, connection.account_id).outcome == "uninstalled"
    assert_wiped(house)
    assert objects_in(house.sandbox) == left
    _, page = connect_again(house)
    for number in (number for numbers in left.values() for number in numbers):
        assert f" {number} (" in page


@pytest.mark.parametrize("kind", ["reset_before", "status", "rate_limited", "html"])
def test_while_gorgias_is_in_trouble_nothing_is_given_up_and_it_goes_on_from_there_later(
    house: House, kind: str
) -> None:
    _, connection = house.connect()
    widget = objects_in(house.sandbox)["widgets"][0]
    refused_once(house, connection.account_id)
    # The first widget goes, then the trouble begins.
    house.sandbox.faults.add(r"/api/.*", method="DELETE", kind=kind, skip=1, times=None)
    result = run_refresh(house, connection.account_id)
    assert result.outcome in ("gorgias_unreachable", "gorgias_busy")
    assert result.again_at is not None
    assert result.again_at > house.clock() + timedelta(minutes=9)
    row = account_row(house)
    assert (row.state, row.left_over, row.lease_owner) == ("connected", None, None)
    assert state_of(house, connection) is ConnectionState.ACTIVE
    assert widget not in objects_in(house.sandbox)["widgets"]
    house.sandbox.faults.clear()
    house.clock.advance(CONFIRM_S)
    house.services.jobs.sweep()
    assert house.work() >= 1, "the job was lost; the sweep finds the account"
    assert_wiped(house)
    assert objects_in(house.sandbox) == NOTHING


def test_trouble_until_the_token_has_ended_ends_in_a_page_that_lists_what_to_delete_by_hand(house: House) -> None:
    _, connection = house.connect()
    house.clock.advance(HALF_S)
    browser = signed_in(house)
    house.sandbox.helpdesk("acme").uninstall()
    assert run_refresh(house, connection.account_id).outcome == "invalid_grant"
    house.clock.advance(CONFIRM_S)
    house.sandbox.faults.add(r"/api/.*", method="DELETE", kind="reset_before", times=None)
    assert run_refresh(house, connection.account_id).outcome == "gorgias_unreachable"
    house.clock.advance(HALF_S - CONFIRM_S)
    assert run_refresh(house, connection.account_id).outcome == "needs_reauth"
    assert_listed(browser, connection)


def test_a_token_that_had_ended_before_anyone_noticed_asks_to_connect_again_and_lists_what_to_delete(
    house: House,
) -> None:
    _, connection = house.connect()
    house.clock.advance(HALF_S)
    browser = signed_in(house)
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(HALF_S)
    with capture_logs() as lines:
        assert run_refresh(house, connection.account_id).outcome == "needs_reauth"
        assert run_refresh(house, connection.account_id).outcome == "not_due"
    assert [line["outcome"] for line in lines if line["event"] == "token_refresh"] == ["needs_reauth"]
    assert account_row(house).state == "needs_reauth"
    assert_listed(browser, connection)
    page = browser.submit("/oauth/disconnect", on=f"/connections/{connection.id}").text
    assert "acme is disconnected" in page
    assert "Delete these by hand in Gorgias" in page
    assert account_row(house).left_over is None, "told here, and not once more after connecting"


def signed_in(house: House) -> Browser:
    browser = house.browser()
    assert browser.sign_in().status_code == 200
    return browser


def assert_listed(browser: Browser, connection: Connection) -> None:
    placed = connection.placed
    for page in ("/connections/", f"/connections/{connection.id}"):
        shown = browser.get(page).text
        assert "You do not want to connect again?" in shown
        for line in (
            f"HTTP integration {placed.integration_id}, “Loyalty (Tallydesk {connection.id})”",
            f"widget {placed.ticket_widget_id}, the card on tickets",
            f"widget {placed.customer_widget_id}, the card on customers",
            f"macro {placed.macro_id}, “Loyalty summary (Tallydesk {connection.id})”",
        ):
            assert f"<li>{line}</li>" in shown


def test_a_worker_killed_at_any_step_is_followed_by_one_that_finishes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the decision, after each connection, before the secrets are wiped, before the account is."""
    services = house.services
    steps = [
        (services.placement, "remove", 0),
        (services.connections, "remove", 0),
        (services.connections, "remove", 1),
        (services.stores, "forget_secrets", 0),
        (services.accounts, "end", 0),
    ]

    class Killed(BaseException):
        """Nothing catches it, as nothing runs after a kill."""

    for owner, step, passes in steps:
        _, connection = house.connect()
        house.connect_rivo()
        house.sandbox.faults.add(r"/api/integrations/\d+", method="DELETE", kind="status", status=409)
        refused_once(house, connection.account_id)
        real, calls = getattr(owner, step), []

        def stop(*args: object, **kwargs: object) -> object:
            calls.append(step)  # noqa: B023 (called before the next round)
            if len(calls) > passes:  # noqa: B023
                raise Killed
            return real(*args, **kwargs)  # noqa: B023

        monkeypatch.setattr(owner, step, stop)
        with pytest.raises(Killed):
            run_refresh(house, connection.account_id)
        monkeypatch.undo()
        assert account_row(house).state == "connected"
        house.clock.advance(CONFIRM_S)
        assert run_refresh(house, connection.account_id).outcome == "uninstalled"
        assert_wiped(house)
        left = objects_in(house.sandbox)["integrations"]
        told = account_row(house).left_over or []
        assert [sentence.split(" (")[0] for sentence in told] == [f"HTTP integration {number}" for number in left]
        connect_again(house)


def test_whoever_connects_again_while_it_is_taken_out_stays_connected(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, connection = house.connect()
    _, rivo = house.connect_rivo()
    refused_once(house, connection.account_id)
    real = house.services.placement.remove

    def remove(connection_id: int, **kwargs: object) -> list[str]:
        left = real(connection_id, **kwargs)  # type: ignore[arg-type]
        browser = house.browser()
        middle = browser.get(browser.return_address(), follow=False)
        assert browser.get(house.sandbox.authorize(middle.headers["Location"])).status_code == 200
        return left

    monkeypatch.setattr(house.services.placement, "remove", remove)
    run_refresh(house, connection.account_id)
    row = account_row(house)
    assert (row.state, row.refused_at) == ("connected", None)
    assert row.access_token_sealed is not None
    assert state_of(house, rivo) is ConnectionState.ACTIVE
    assert house.services.stores.key_of(rivo.store).key == house.sandbox.rivo("northwind").key
    assert house.services.api_for("acme", house.services.accounts.token_source(row.id)).get("/api/account")
