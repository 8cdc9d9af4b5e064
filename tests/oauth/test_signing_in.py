"""Who uses the console: agents may look, admins may change, and neither touches the account's tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests
from sqlalchemy import select

from app import create_app
from oauth.wire import SCOPES
from storage.tables import accounts, metadata
from tests.house import Browser, House
from tests.oauth.test_connecting import users
from tests.oauth.test_entrances import query_of
from widget.connections import Connection

# A look, and leaving: what everybody who is signed in may post.
HARMLESS = {f"/connections/<int:connection_id>/{look}" for look in ("lookup", "activity")} | {"/sign-out"}
# Awards, which are an agent's work: tests/console/test_award_page.py.
AGENTS_MAY = {f"/connections/<int:connection_id>/award{rest}" for rest in ("", "/customer", "/helpdesk")}


def account_row(house: House) -> Any:
    with house.services.database.read() as tx:
        return tx.execute(select(accounts).where(accounts.c.name == "acme")).one()


def everything(house: House) -> dict[str, list[Any]]:
    """All rows of all tables but the dance's own states."""
    with house.services.database.read() as tx:
        return {
            table.name: [tuple(row) for row in tx.execute(select(table).order_by(*table.primary_key.columns))]
            for table in metadata.sorted_tables
            if table.name != "oauth_states"
        }


def changing_addresses(house: House, connection: Connection) -> list[str]:
    """Every address of the console that a form posts to in order to change something."""
    rules = [rule for rule in create_app(house.services).url_map.iter_rules() if "POST" in (rule.methods or ())]
    found = [
        rule.rule for rule in rules if rule.endpoint.startswith("console.") and rule.rule not in HARMLESS | AGENTS_MAY
    ]
    assert len(found) >= 6
    return [
        re.sub(r"<operation_id>", "an-award", rule.replace("<int:connection_id>", str(connection.id))) for rule in found
    ]


def post_everything(house: House, browser: Browser, connection: Connection) -> dict[str, requests.Response]:
    """Post to all of them with a good form token, and disconnect last."""
    page = browser.get("/connections/")
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert found is not None
    addresses = sorted(changing_addresses(house, connection), key=lambda path: path == "/oauth/disconnect")
    return {
        path: browser.session.post(
            house.url + path,
            data={"csrf_token": found.group(1), "program": "ledger", "max_points_per_award": "9"},
            allow_redirects=False,
            timeout=20,
        )
        for path in addresses
    }


def test_signing_in_never_touches_the_accounts_tokens(house_on_both: House) -> None:
    house = house_on_both
    house.connect()
    before = account_row(house)
    for user_id in users(house).values():
        house.clock.advance(60)
        assert house.browser().sign_in(user_id=user_id).status_code == 200
    assert account_row(house) == before
    assert len(house.sandbox.helpdesk("acme").installations()) == 1
    assert house.sandbox.requests.filter(path="/oauth/revoke") == []


def test_the_role_is_read_with_the_accounts_own_token(house: House) -> None:
    house.connect()
    house.sandbox.requests.clear()
    agent = users(house)["agent"]
    house.browser().sign_in(user_id=agent)
    [call] = house.sandbox.requests.filter(path=rf"/api/users/{agent}")
    known = house.services.accounts.named("acme")
    assert known is not None
    assert call.headers["Authorization"] == f"Bearer {house.services.accounts.access_token(known.id).value}"


@pytest.mark.parametrize("role", ["agent", "lite-agent"])
def test_an_agent_may_look_and_not_change(house: House, role: str) -> None:
    _, connection = house.connect()
    agent = house.browser()
    assert agent.sign_in(user_id=users(house)[role]).status_code == 200
    for path in ("/connections/", f"/connections/{connection.id}", f"/connections/{connection.id}/activity"):
        page = agent.get(path)
        assert page.status_code == 200
        assert "may look, not change" in page.text
    before = everything(house)
    house.sandbox.requests.clear()
    for path, answer in post_everything(house, agent, connection).items():
        assert answer.status_code == 403, path
        assert "admin_needed" in answer.text
    assert everything(house) == before
    assert [seen for seen in house.sandbox.requests if seen.method != "GET"] == []


def test_nobody_changes_anything_without_signing_in_or_without_the_forms_token(house: House) -> None:
    admin, connection = house.connect()
    before = everything(house)
    for path in changing_addresses(house, connection):
        stranger = house.browser().session.post(house.url + path, allow_redirects=False, timeout=10)
        if path != "/sign-out":
            assert (stranger.status_code, stranger.headers["Location"]) == (303, "/")
        forged = admin.session.post(house.url + path, allow_redirects=False, timeout=10)
        assert forged.status_code == 400
        assert "form_too_old" in forged.text
    assert everything(house) == before


def test_an_admin_of_one_account_reaches_nothing_of_another(house: House) -> None:
    _, connection = house.connect("acme")
    stranger, _ = house.connect("globex")
    before = everything(house)
    assert stranger.get(f"/connections/{connection.id}").status_code == 404
    answer = stranger.submit(f"/connections/{connection.id}/repair", on="/connections/", follow=False)
    assert answer.status_code == 404
    assert everything(house) == before


def test_the_role_is_read_again_before_a_change_when_older_than_a_quarter_of_an_hour(house: House) -> None:
    admin, connection = house.connect()
    house.clock.advance(15 * 60 + 1)
    house.sandbox.requests.clear()
    admin.submit(f"/connections/{connection.id}/repair", on="/connections/", follow=False)
    admin.submit(f"/connections/{connection.id}/repair", on="/connections/", follow=False)
    assert len(house.sandbox.requests.filter(path=r"/api/users/\d+")) == 1


def test_an_admin_who_was_demoted_changes_nothing_after_a_quarter_of_an_hour(house: House) -> None:
    admin, connection = house.connect()
    house.sandbox.helpdesk("acme").set_role(users(house)["admin"], "agent")
    house.clock.advance(15 * 60 + 1)
    before = everything(house)
    for path, answer in post_everything(house, admin, connection).items():
        assert answer.status_code == 403, path
    assert everything(house) == before


def test_a_person_who_left_the_helpdesk_changes_nothing_after_a_quarter_of_an_hour(house: House) -> None:
    admin, connection = house.connect()
    house.clock.advance(15 * 60 + 1)
    house.sandbox.faults.add(r"/api/users/.*", kind="status", status=404, times=None)
    assert {answer.status_code for answer in post_everything(house, admin, connection).values()} == {403}


@pytest.mark.parametrize("kind", ["status", "html", "rate_limited"])
def test_when_the_role_cannot_be_read_nothing_is_changed(house: House, kind: str) -> None:
    admin, connection = house.connect()
    house.clock.advance(15 * 60 + 1)
    before = everything(house)
    house.sandbox.faults.add(r"/api/users/.*", kind=kind, times=None)
    answer = admin.submit(f"/connections/{connection.id}/repair", on="/connections/", follow=False)
    assert answer.status_code == 503
    assert "role_unreadable" in answer.text
    assert everything(house) == before


def test_when_nobody_may_read_roles_any_more_an_admin_can_still_disconnect_and_nothing_else(house: House) -> None:
    """The person who connected lost their rights in Gorgias: waiting does not help, connecting again does."""
    admin, connection = house.connect()
    house.clock.advance(15 * 60 + 1)
    house.sandbox.faults.add(r"/api/users/.*", kind="status", status=403, times=None)
    answer = admin.submit(f"/connections/{connection.id}/repair", on="/connections/", follow=False)
    assert answer.status_code == 403
    assert "access_lost" in answer.text
    assert "Connect again" in answer.text
    page = admin.submit("/oauth/disconnect", on=f"/connections/{connection.id}")
    assert "acme is disconnected" in page.text


@pytest.mark.parametrize(("hours", "status"), [(11.9, 200), (12.1, 303)])
def test_a_session_ends_after_twelve_hours(house: House, hours: float, status: int) -> None:
    browser, _ = house.connect()
    house.clock.advance(hours * 3600)
    answer = browser.get("/connections/", follow=False)
    assert answer.status_code == status
    if status == 303:
        assert answer.headers["Location"] == "/"


def test_sessions_end_when_the_account_is_disconnected(house: House) -> None:
    admin, _ = house.connect()
    agent = house.browser()
    agent.sign_in(user_id=users(house)["agent"])
    stolen = dict(admin.session.cookies)
    answer = admin.submit("/oauth/disconnect", on="/connections/", follow=False)
    assert answer.status_code == 303
    assert agent.get("/connections/", follow=False).headers["Location"] == "/"
    kept = requests.get(f"{house.url}/connections/", cookies=stolen, allow_redirects=False, timeout=10)
    assert kept.headers["Location"] == "/"
    # Connected anew: the old ones stay ended.
    house.clock.advance(60)
    house.connect()
    assert agent.get("/connections/", follow=False).headers["Location"] == "/"


def test_sessions_end_when_the_account_is_connected_anew(house: House) -> None:
    before, _ = house.connect()
    house.clock.advance(60)
    known = house.services.accounts.named("acme")
    assert known is not None
    house.services.accounts.withdraw(known.id, reason="invalid_grant")
    assert before.get("/connections/", follow=False).status_code == 200  # it still shows what is wrong
    after = house.browser()
    assert after.sign_in().status_code == 200
    assert before.get("/connections/", follow=False).headers["Location"] == "/"
    assert after.get("/connections/", follow=False).status_code == 200


def test_signing_in_replaces_whoever_was_signed_in_before(house: House) -> None:
    browser, _ = house.connect()
    browser.sign_in(user_id=users(house)["agent"])
    page = browser.get("/connections/")
    assert "Ben Lindqvist" in page.text
    assert "Ada Okafor" not in page.text


def test_a_forged_session_is_nobody(house: House) -> None:
    house.connect()
    for cookie in ("", "x", "eyJ2aXNpdG9yIjp7fX0.aaaaaa.bbbbbb"):
        answer = requests.get(
            f"{house.url}/connections/", cookies={"tallydesk_session": cookie}, allow_redirects=False, timeout=10
        )
        assert answer.headers["Location"] == "/"


@pytest.mark.parametrize(
    ("status", "reason"), [(500, "gorgias_unreachable"), (429, "gorgias_busy"), (400, "provider_error")]
)
def test_trouble_while_signing_in_is_a_page_and_costs_the_account_nothing(
    house: House, status: int, reason: str
) -> None:
    house.connect()
    before = account_row(house)
    house.sandbox.faults.add(r"/api/users/.*", kind="status", status=status, times=None)
    answer = house.browser().sign_in()
    assert answer.status_code >= 500
    assert reason in answer.text
    assert account_row(house) == before


@pytest.mark.parametrize("kind", ["status", "rate_limited", "html", "redirect"])
def test_trouble_at_the_token_endpoint_while_signing_in_costs_the_account_nothing(house: House, kind: str) -> None:
    house.connect()
    before = account_row(house)
    house.sandbox.faults.add(r"/oauth/token", kind=kind)
    assert house.browser().sign_in().status_code in (502, 503)
    assert account_row(house) == before


def test_a_wrong_client_secret_does_not_disconnect_anyone(house: House) -> None:
    """The operator's mistake shows as 401 `invalid_client`, and is no news about any account's tokens."""
    house.connect()
    house.clock.advance(24 * 3600)
    before = account_row(house)
    house.sandbox.faults.add(r"/oauth/token", kind="status", status=401, skip=1, times=None)
    assert house.browser().sign_in().status_code == 502
    assert account_row(house).state == "connected"
    assert account_row(house).refresh_token_sealed == before.refresh_token_sealed


def withdrawn_in_gorgias(house: House) -> None:
    """The app was uninstalled, and the access token has ended since."""
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(24 * 3600 + 60)


def test_signing_in_after_the_app_was_removed_leads_once_through_the_whole_consent(house: House) -> None:
    house.connect()
    withdrawn_in_gorgias(house)
    browser = house.browser()
    middle = browser.get(browser.return_address(), follow=False)
    assert middle.status_code == 303
    assert middle.headers["Location"].startswith(f"{house.sandbox.url}/acme/oauth/authorize?")
    assert query_of(middle.headers["Location"])["scope"].split() == list(SCOPES)
    assert account_row(house).state == "needs_reauth"
    page = browser.get(house.sandbox.authorize(middle.headers["Location"]))
    assert page.status_code == 200
    assert account_row(house).state == "connected"


def test_an_agent_cannot_renew_a_withdrawn_connection(house: House) -> None:
    house.connect()
    withdrawn_in_gorgias(house)
    agent = house.browser()
    user_id = users(house)["agent"]
    middle = agent.get(agent.return_address(user_id=user_id), follow=False)
    answer = agent.get(house.sandbox.authorize(middle.headers["Location"], user_id=user_id))
    assert answer.status_code == 403
    assert "not_admin" in answer.text
    assert account_row(house).state == "needs_reauth"
    assert house.sandbox.helpdesk("acme").installations() == []


@pytest.mark.parametrize(("status", "reason"), [(401, "provider_error"), (403, "not_admin")])
def test_a_gorgias_that_refuses_every_token_for_ever_is_asked_twice_and_no_more(
    house: House, status: int, reason: str
) -> None:
    house.connect()
    house.sandbox.faults.add(r"/api/.*", kind="status", status=status, times=None)
    browser = house.browser()
    middle = browser.get(browser.return_address(), follow=False)
    assert query_of(middle.headers["Location"])["scope"].split() == list(SCOPES)
    end = browser.get(house.sandbox.authorize(middle.headers["Location"]), follow=False)
    assert end.status_code in (403, 502)
    assert reason in end.text


def test_a_refusal_to_read_users_is_put_right_by_an_admin_who_connects_anew(house: House) -> None:
    house.connect()
    house.sandbox.faults.add(r"/api/users/.*", kind="status", status=403)
    browser = house.browser()
    middle = browser.get(browser.return_address(), follow=False)
    assert account_row(house).state == "connected"  # one 403 does not end what may still work
    assert browser.get(house.sandbox.authorize(middle.headers["Location"])).status_code == 200


def test_the_console_says_that_access_was_withdrawn_and_offers_to_connect_again(house: House) -> None:
    browser, connection = house.connect()
    house.sandbox.helpdesk("acme").uninstall()
    house.sandbox.faults.add(r"/api/.*", kind="status", status=401, times=None)
    page = browser.get(f"/connections/{connection.id}")
    assert page.status_code == 200
    assert account_row(house).state == "needs_reauth"
    assert account_row(house).state_reason == "invalid_grant"
    assert "no longer accepts our access" in page.text
    assert "Connect again" in page.text
    assert 'action="/oauth/install"' in page.text
