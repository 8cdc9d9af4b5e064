"""The two entrances, and the state that ties the way back to the browser that was sent away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from sqlalchemy import func, select

from oauth.accounts import PendingSignIn, Purpose
from oauth.wire import SCOPES, SIGN_IN_SCOPES
from storage.database import Database
from storage.tables import accounts, oauth_states
from tests.databases import Clock
from tests.house import Browser, House, running_house
from tests.oauth.test_wire import ACME, HOSTILE


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, strict_parsing=True).items()}


def rows(database: Database, table: Any) -> int:
    with database.read() as tx:
        return tx.scalar(select(func.count()).select_from(table)) or 0


def install(house: House, **kwargs: Any) -> requests.Response:
    return requests.get(f"{house.url}/oauth/install", allow_redirects=False, timeout=10, **kwargs)


def token_calls(house: House) -> int:
    return len(house.sandbox.requests.filter(path="/oauth/token"))


def test_our_page_leads_to_gorgias_whatever_form_of_the_name_is_typed(house: House) -> None:
    page = house.browser().get("/")
    assert 'action="/oauth/install"' in page.text
    assert 'name="account"' in page.text
    for typed in ACME:
        answer = install(house, params={"account": typed})
        assert answer.status_code == 303
        assert answer.headers["Location"].startswith(f"{house.sandbox.url}/acme/oauth/authorize?")


def test_gorgias_own_entrance_leads_to_a_connected_account(house: House) -> None:
    entrance = house.sandbox.runtime.app_url_for("acme")
    assert entrance == f"{house.url}/oauth/install?account=acme"
    browser = house.browser()
    start = browser.get(entrance, follow=False)
    page = browser.get(house.sandbox.authorize(start.headers["Location"]))
    assert (page.status_code, urlsplit(page.url).path) == (200, "/connections/")


def test_a_hostile_account_is_refused_before_any_address_is_built(house: House) -> None:
    for typed in [*HOSTILE, "x" * 4000]:
        answer = install(house, params={"account": typed})
        assert answer.status_code == 400, typed
        assert "account_invalid" in answer.text
        assert "Location" not in answer.headers
        assert "Set-Cookie" not in answer.headers
    assert install(house).status_code == 400
    assert len(house.sandbox.requests) == 0
    assert rows(house.services.database, oauth_states) == 0


def test_what_was_typed_comes_back_only_escaped(house: House) -> None:
    answer = install(house, params={"account": '"><script>alert(1)</script>'})
    assert answer.status_code == 400
    assert "<script>" not in answer.text


def test_connecting_asks_for_exactly_what_is_listed_without_pkce(house: House) -> None:
    asked = query_of(install(house, params={"account": "acme"}).headers["Location"])
    assert asked.keys() == {"response_type", "client_id", "redirect_uri", "scope", "state", "nonce"}
    assert asked["scope"].split() == list(SCOPES)
    assert (asked["response_type"], asked["client_id"]) == ("code", house.sandbox.runtime.client_id)


def test_signing_in_to_a_connected_account_asks_for_three_scopes_only(house: House) -> None:
    house.browser().sign_in()
    asked = query_of(install(house, params={"account": "acme"}).headers["Location"])
    assert asked["scope"].split() == list(SIGN_IN_SCOPES)
    assert "code_challenge" not in asked


def test_every_state_and_nonce_is_new_and_long(house: House) -> None:
    asked = [query_of(install(house, params={"account": "acme"}).headers["Location"]) for _ in range(5)]
    for name in ("state", "nonce"):
        values = {one[name] for one in asked}
        assert len(values) == 5
        assert min(map(len, values)) >= 32


def test_the_redirect_uri_is_the_configured_one_whatever_the_request_says(house: House) -> None:
    answer = install(
        house,
        params={"account": "acme", "redirect_uri": "https://evil.example/", "next": "https://evil.example/"},
        headers={
            "Host": "evil.example",
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-Proto": "https",
            "Forwarded": "host=evil.example",
        },
    )
    assert query_of(answer.headers["Location"])["redirect_uri"] == f"{house.url}/oauth/callback"
    assert "evil" not in answer.headers["Location"]


def test_nobody_can_say_where_signing_in_ends(house: House) -> None:
    browser = house.browser()
    address = browser.return_address() + "&next=https://evil.example/&redirect=//evil.example"
    answer = browser.get(address, follow=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections/")


def test_without_an_app_at_gorgias_the_page_names_the_settings(sqlite_database: Database, clock: Clock) -> None:
    with running_house(sqlite_database.url, clock=clock, gorgias_client_id="") as house:
        answer = install(house, params={"account": "acme"})
    assert answer.status_code == 503
    assert "GORGIAS_CLIENT_ID" in answer.text


def cookies_set(answer: requests.Response) -> dict[str, str]:
    # urllib3 keeps repeated headers apart, requests joins them with commas.
    return {one.split("=", 1)[0]: one for one in answer.raw.headers.getlist("Set-Cookie")}


def test_cookies_are_for_this_site_and_never_for_scripts(house: House) -> None:
    browser = house.browser()
    start = browser.get("/oauth/install?account=acme", follow=False)
    end = browser.get(house.sandbox.authorize(start.headers["Location"]), follow=False)
    for told in (cookies_set(start)["tallydesk_oauth"], cookies_set(end)["tallydesk_session"]):
        assert "HttpOnly" in told
        assert "SameSite=Lax" in told
        assert "Secure" not in told
        assert "Domain" not in told
    assert "Path=/oauth" in cookies_set(start)["tallydesk_oauth"]
    assert "Max-Age=600" in cookies_set(start)["tallydesk_oauth"]


def test_cookies_travel_over_tls_only_where_the_service_does(sqlite_database: Database, clock: Clock) -> None:
    public_url = "https://loyalty.example.com"
    with running_house(
        sqlite_database.url,
        clock=clock,
        public_url=public_url,
        sandbox_redirect_urls=[f"{public_url}/oauth/callback"],
    ) as house:
        start = install(house, params={"account": "acme"})
        told = cookies_set(start)["tallydesk_oauth"]
        back = house.sandbox.authorize(start.headers["Location"])
        assert back.startswith(f"{public_url}/oauth/callback?")
        # The socket of the tests speaks no TLS, so the cookie is carried by hand.
        end = requests.get(
            back.replace(public_url, house.url),
            headers={"Cookie": told.split(";")[0]},
            allow_redirects=False,
            timeout=10,
        )
    assert end.status_code == 303
    for cookie in (told, cookies_set(end)["tallydesk_session"]):
        assert all(flag in cookie for flag in ("Secure", "HttpOnly", "SameSite=Lax"))


def test_pages_of_the_dance_are_kept_out_of_caches_and_referrers(house: House) -> None:
    browser = house.browser()
    for answer in (
        browser.get("/oauth/install?account=acme", follow=False),
        browser.get("/oauth/callback?state=x", follow=False),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] in ("no-referrer", "same-origin")


def test_a_callback_in_a_browser_that_did_not_start_is_refused(house: House) -> None:
    address = house.browser().return_address()
    stranger = house.browser().get(address)
    assert stranger.status_code == 400
    assert "session_missing" in stranger.text
    assert token_calls(house) == 0


def test_a_state_of_another_browser_is_refused_and_stays_good_for_its_own(house: House) -> None:
    victim, attacker = house.browser(), house.browser()
    address = victim.return_address()
    attacker.get("/oauth/install?account=acme", follow=False)
    answer = attacker.get(address)
    assert answer.status_code == 400
    assert "state_unknown" in answer.text
    assert token_calls(house) == 0
    assert victim.get(address).status_code == 200


@pytest.mark.parametrize("state", ["", "unknown", "a" * 64, "é\x00", "%", "x" * 5000])
def test_a_state_that_was_never_given_is_refused(house: House, state: str) -> None:
    browser = house.browser()
    browser.get("/oauth/install?account=acme", follow=False)
    answer = browser.session.get(f"{house.url}/oauth/callback", params={"code": "x", "state": state}, timeout=10)
    assert answer.status_code == 400
    assert "state_unknown" in answer.text
    assert token_calls(house) == 0


def test_a_replayed_callback_is_refused(house: House) -> None:
    browser = house.browser()
    address = browser.return_address()
    assert browser.get(address).status_code == 200
    again = browser.get(address)
    assert again.status_code == 400
    assert "state_unknown" in again.text
    assert token_calls(house) == 1


@pytest.mark.parametrize(("seconds", "status"), [(600, 200), (601, 400)])
def test_a_state_lives_for_ten_minutes(house: House, seconds: int, status: int) -> None:
    browser = house.browser()
    start = browser.get("/oauth/install?account=acme", follow=False)
    house.clock.advance(seconds)
    answer = browser.get(house.sandbox.authorize(start.headers["Location"]))
    assert answer.status_code == status
    assert ("state_unknown" in answer.text) == (status == 400)


def test_old_states_are_swept_by_new_ones(house: House) -> None:
    for _ in range(3):
        install(house, params={"account": "acme"})
    house.clock.advance(601)
    install(house, params={"account": "acme"})
    assert rows(house.services.database, oauth_states) == 1


def test_a_state_carries_its_account_so_that_a_code_of_another_one_fails(house: House) -> None:
    """The code of globex is sent with the state of acme: it is tried at acme, which does not know it."""
    browser = house.browser()
    acme, globex = (query_of(browser.return_address(name)) for name in ("acme", "globex"))
    answer = browser.session.get(
        f"{house.url}/oauth/callback",
        params={"code": globex["code"], "state": acme["state"], "account": "globex"},
        timeout=10,
    )
    assert answer.status_code == 400
    assert "code_refused" in answer.text
    assert [seen.account for seen in house.sandbox.requests.filter(path="/oauth/token")] == ["acme"]
    assert rows(house.services.database, accounts) == 0


def test_of_eight_that_use_a_state_at_once_exactly_one_wins(house_on_both: House) -> None:
    known = house_on_both.services.accounts
    state, _ = known.remember_state(account="acme", purpose=Purpose.CONNECT, browser="one")
    line = threading.Barrier(8)

    def use(_: int) -> PendingSignIn | None:
        line.wait()
        return known.consume_state(state, browser="one")

    with ThreadPoolExecutor(8) as pool:
        won = [pending for pending in pool.map(use, range(8)) if pending is not None]
    assert [(pending.account, pending.purpose) for pending in won] == [("acme", Purpose.CONNECT)]


def test_of_eight_callbacks_at_once_exactly_one_connects(house_on_both: House) -> None:
    browser = house_on_both.browser()
    address = browser.return_address()
    cookie = {"Cookie": f"tallydesk_oauth={browser.session.cookies['tallydesk_oauth']}"}
    line = threading.Barrier(8)

    def come_back(_: int) -> int:
        line.wait()
        return requests.get(address, headers=cookie, allow_redirects=False, timeout=20).status_code

    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(come_back, range(8)))
    assert sorted(answered) == [303, *[400] * 7]
    assert token_calls(house_on_both) == 1
    assert rows(house_on_both.services.database, accounts) == 1


def test_several_tabs_of_one_browser_do_not_disturb_each_other(house: House) -> None:
    browser = house.browser()
    addresses = [browser.return_address(name) for name in ("acme", "globex")]
    assert [browser.get(address).status_code for address in addresses] == [200, 200]


def come_back_with(browser: Browser, **parameters: str) -> requests.Response:
    state = query_of(browser.get("/oauth/install?account=acme", follow=False).headers["Location"])["state"]
    return browser.session.get(f"{browser.house.url}/oauth/callback", params={"state": state, **parameters}, timeout=10)


def test_a_denied_consent_ends_in_a_page_that_says_what_to_do(house: House) -> None:
    browser = house.browser()
    answer = browser.sign_in(allow=False)
    assert answer.status_code == 403
    assert "consent_denied" in answer.text
    assert "press Allow" in answer.text
    assert token_calls(house) == 0
    assert rows(house.services.database, accounts) == 0


def test_any_other_error_of_the_provider_is_named_apart_and_not_repeated(house: House) -> None:
    answer = come_back_with(house.browser(), error="<i>server_error</i>", error_description="secret words")
    assert answer.status_code == 502
    assert "provider_error" in answer.text
    assert "secret words" not in answer.text
    assert "<i>" not in answer.text


@pytest.mark.parametrize("parameters", [{}, {"code": ""}])
def test_a_callback_without_a_code_is_refused(house: House, parameters: dict[str, str]) -> None:
    answer = come_back_with(house.browser(), **parameters)
    assert answer.status_code == 400
    assert "code_missing" in answer.text


def test_a_code_that_gorgias_does_not_know_is_refused(house: House) -> None:
    answer = come_back_with(house.browser(), code="made-up")
    assert answer.status_code == 400
    assert "code_refused" in answer.text
