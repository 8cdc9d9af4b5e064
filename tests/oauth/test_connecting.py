"""An account comes: its tokens are kept only for the right account and for an admin, whatever happens on the way."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import render_template
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

import oauth.gorgias_api
from app import create_app
from oauth.accounts import Accounts
from oauth.views import STATUS
from oauth.wire import SCOPES, Refusal
from storage.database import Database
from storage.tables import accounts
from tests.databases import Clock
from tests.house import Browser, House, running_house
from tests.oauth.scripted import Answer, Scripted


def kept(house: House) -> int:
    with house.services.database.read() as tx:
        return tx.scalar(select(func.count()).select_from(accounts)) or 0


def alive(house: House) -> int:
    """Refresh tokens of ours that Gorgias still accepts."""
    return len(house.sandbox.helpdesk("acme").installations())


def users(house: House) -> dict[str, int]:
    return {user["role"]["name"]: user["id"] for user in house.sandbox.helpdesk("acme").users()}


def asking_for(browser: Browser, change: tuple[str, str]) -> requests.Response:
    """Connect with an authorize address in which somebody changed something on the way."""
    start = browser.get("/oauth/install?account=acme", follow=False)
    pattern, instead = change
    address, changes = re.subn(pattern, instead, start.headers["Location"])
    assert changes == 1
    return browser.get(browser.house.sandbox.authorize(address))


def refused_and_given_back(house: House, answer: requests.Response, reason: Refusal) -> None:
    assert answer.status_code == STATUS[reason]
    assert f"<code>{reason}</code>" in answer.text
    assert kept(house) == 0
    assert alive(house) == 0
    assert [seen.status for seen in house.sandbox.requests.filter(path="/oauth/revoke")] == [200]


def test_an_admin_connects_and_is_signed_in(house: House) -> None:
    browser = house.browser()
    page = browser.sign_in()
    assert page.status_code == 200
    assert "Ada Okafor" in page.text
    assert (kept(house), alive(house)) == (1, 1)
    account = house.services.accounts.named("acme")
    assert account is not None
    # `expires_in` is 0; the token's own end counts.
    assert account.access_expires_at is not None
    assert (account.access_expires_at - house.clock()).total_seconds() == 24 * 3600
    assert house.services.accounts.user_email(account.id) == "ada@acme.example"


def test_the_token_call_uses_basic_and_a_form_and_the_same_redirect_uri(house: House) -> None:
    house.browser().sign_in()
    [call] = house.sandbox.requests.filter(path="/oauth/token")
    runtime = house.sandbox.runtime
    pair = base64.b64encode(f"{runtime.client_id}:{runtime.client_secret}".encode()).decode()
    assert call.headers["Authorization"] == f"Basic {pair}"
    assert call.headers["Content-Type"].startswith("application/x-www-form-urlencoded")
    assert call.form.keys() == {"grant_type", "code", "redirect_uri"}
    assert call.form["grant_type"] == "authorization_code"
    assert call.form["redirect_uri"] == f"{house.url}/oauth/callback"
    assert call.query == {}


def test_a_person_who_is_no_admin_connects_nothing(house: House) -> None:
    for role in ("agent", "lite-agent"):
        house.sandbox.requests.clear()
        answer = house.browser().sign_in(user_id=users(house)[role])
        refused_and_given_back(house, answer, Refusal.NOT_ADMIN)


def test_a_person_whom_gorgias_does_not_list_connects_nothing(house: House) -> None:
    house.sandbox.faults.add(r"/api/users/.*", kind="status", status=404)
    refused_and_given_back(house, house.browser().sign_in(), Refusal.NOT_ADMIN)


@pytest.mark.parametrize("domain", ["globex", "", None, 7, "acme.evil.com", "acme2"])
def test_access_to_another_account_is_given_back(house: House, monkeypatch: pytest.MonkeyPatch, domain: Any) -> None:
    monkeypatch.setattr(house.sandbox.helpdesk("acme"), "about", lambda: {"domain": domain})
    refused_and_given_back(house, house.browser().sign_in(), Refusal.ACCOUNT_MISMATCH)


@pytest.mark.parametrize("domain", ["Acme", "acme.gorgias.com"])
def test_an_account_may_spell_its_own_name_in_full(house: House, monkeypatch: pytest.MonkeyPatch, domain: str) -> None:
    monkeypatch.setattr(house.sandbox.helpdesk("acme"), "about", lambda: {"domain": domain})
    assert house.browser().sign_in().status_code == 200


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope not in ("openid", "offline", "email", "profile")])
def test_access_with_a_permission_missing_is_given_back(house: House, scope: str) -> None:
    answer = asking_for(house.browser(), (rf"\+{scope.replace(':', '(?:%3A|:)')}(?=[+&])", ""))
    refused_and_given_back(house, answer, Refusal.SCOPE_MISSING)


def test_access_that_does_not_last_is_refused(house: House) -> None:
    answer = asking_for(house.browser(), (r"\+offline\+", "+"))
    assert answer.status_code == 403
    assert "offline_missing" in answer.text
    assert (kept(house), alive(house)) == (0, 0)


def test_tokens_that_come_with_an_identity_of_another_sign_in_are_given_back(house: House) -> None:
    answer = asking_for(house.browser(), (r"nonce=[0-9a-f]+", "nonce=of-somebody-else"))
    refused_and_given_back(house, answer, Refusal.ID_TOKEN_INVALID)


def test_tokens_without_an_identity_are_given_back(house: House) -> None:
    answer = asking_for(house.browser(), (r"scope=openid\+", "scope="))
    refused_and_given_back(house, answer, Refusal.ID_TOKEN_INVALID)


def test_tokens_that_cannot_be_stored_are_given_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(Accounts, "connect", full)
    answer = house.browser().sign_in()
    assert answer.status_code >= 500
    assert (kept(house), alive(house)) == (0, 0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Refusal.PROVIDER_ERROR),
        (403, Refusal.NOT_ADMIN),
        (404, Refusal.PROVIDER_ERROR),
        (500, Refusal.GORGIAS_UNREACHABLE),
        (429, Refusal.GORGIAS_BUSY),
    ],
)
def test_trouble_after_the_tokens_came_gives_them_back(house: House, status: int, reason: Refusal) -> None:
    house.sandbox.faults.add(r"/api/account", kind="status", status=status, times=None)
    refused_and_given_back(house, house.browser().sign_in(), reason)


def test_when_giving_back_fails_too_nothing_is_kept_and_the_log_says_so(house: House) -> None:
    house.sandbox.faults.add(r"/oauth/revoke", kind="status", times=None)
    with capture_logs() as logged:
        answer = house.browser().sign_in(user_id=users(house)["agent"])
    assert answer.status_code == 403
    assert kept(house) == 0
    assert "revoke_failed" in [line.get("outcome") for line in logged]


TROUBLE: list[tuple[str, dict[str, Any], Refusal]] = [
    ("status", {"status": 500}, Refusal.GORGIAS_UNREACHABLE),
    ("status", {"status": 503}, Refusal.GORGIAS_UNREACHABLE),
    ("status", {"status": 400}, Refusal.PROVIDER_ERROR),
    ("status", {"status": 401}, Refusal.PROVIDER_ERROR),
    ("status", {"status": 404}, Refusal.PROVIDER_ERROR),
    ("rate_limited", {}, Refusal.GORGIAS_BUSY),
    ("rate_limited", {"retry_after": 20}, Refusal.GORGIAS_BUSY),
    ("html", {}, Refusal.PROVIDER_ERROR),
    ("empty", {}, Refusal.TOKEN_UNREADABLE),
    ("reset_before", {}, Refusal.GORGIAS_UNREACHABLE),
    ("truncated", {}, Refusal.GORGIAS_UNREACHABLE),
    ("slow", {"seconds": 1.0}, Refusal.GORGIAS_UNREACHABLE),
]


@pytest.mark.parametrize(("kind", "details", "reason"), TROUBLE, ids=[f"{k}-{d}" for k, d, _ in TROUBLE])
def test_trouble_at_the_token_endpoint_ends_in_its_own_page(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str, details: dict[str, Any], reason: Refusal
) -> None:
    house.sandbox.faults.add(r"/oauth/token", kind=kind, times=None, **details)
    browser = house.browser()
    # Only where it is too slow, and not for the sign-in at the end: others must not be late on a busy machine.
    with monkeypatch.context() as impatient:
        if kind == "slow":
            impatient.setattr(oauth.gorgias_api, "TIMEOUTS_S", (0.5, 0.3))
        answer = browser.sign_in()
    assert answer.status_code == STATUS[reason]
    assert f"<code>{reason}</code>" in answer.text
    assert kept(house) == 0
    assert len(house.sandbox.requests.filter(path="/oauth/token")) == 1  # a code is never sent twice
    assert browser.get("/connections/", follow=False).headers["Location"] == "/"  # and nobody is signed in
    house.sandbox.faults.clear()
    assert browser.sign_in().status_code == 200


def test_a_gorgias_that_is_not_there_ends_in_a_page(sqlite_database: Database, clock: Clock) -> None:
    with running_house(sqlite_database.url, clock=clock, gorgias_url="http://127.0.0.1:9/{account}") as house:
        browser = house.browser()
        start = browser.get("/oauth/install?account=acme", follow=False)
        state = start.headers["Location"].split("state=")[1].split("&")[0]
        answer = browser.get(f"/oauth/callback?code=x&state={state}")
    assert answer.status_code == 503
    assert "gorgias_unreachable" in answer.text


@pytest.mark.parametrize("path", [r"/oauth/token", r"/api/account", r"/oauth/revoke"])
def test_no_redirect_is_followed_with_a_secret_in_hand(house: House, scripted: Scripted, path: str) -> None:
    house.sandbox.faults.add(path, kind="redirect", location=f"{scripted.url}/elsewhere", times=None)
    # An agent, so that giving back is tried as well.
    answer = house.browser().sign_in(user_id=users(house)["agent"])
    assert answer.status_code in (403, 502)
    assert scripted.seen == []
    assert kept(house) == 0


ODD = [
    Answer(status=302, headers={"Location": "/elsewhere"}, body=b'{"access_token": "opaque", "refresh_token": "r"}'),
    Answer(status=401, body=b'{"error": "invalid_client"}'),
    Answer(status=401, body=b'{"message": "no"}'),
    Answer(body=b'{"error": "server_error"}'),
    Answer(body=b'{"error": {"msg": "no"}}'),
    Answer(body=b"[]"),
    Answer(body=b"7"),
    Answer(body=b"null"),
    Answer(body=b'"error"'),
    Answer(body=b'{"access_token": '),
    Answer(body=b'{"access_token": "opaque", "expires_in": [1]}'),
    Answer(body=b'{"access_token": "opaque", "expires_in": "soon", "refresh_token": "r"}'),
    Answer(body=b'{"access_token": "a b"}'),
    Answer(body=b"[" * 100_000),
    Answer(body=b'{"access_token": "' + b"x" * 3_000_000 + b'"}'),
    Answer(headers={"Content-Encoding": "gzip"}, body=b"no gzip"),
    Answer(status=429, body=b"<p>slow down</p>"),
    Answer(status=503, body=b"<p>back soon</p>"),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{odd.status}-{odd.body[:30]!r}")
def test_however_odd_the_token_endpoints_answer_it_ends_in_a_page(
    sqlite_database: Database, clock: Clock, scripted: Scripted, odd: Answer
) -> None:
    scripted.answers = [odd]
    with running_house(sqlite_database.url, clock=clock, gorgias_url=scripted.url + "/{account}") as house:
        browser = house.browser()
        start = browser.get("/oauth/install?account=acme", follow=False)
        state = start.headers["Location"].split("state=")[1].split("&")[0]
        answer = browser.get(f"/oauth/callback?code=x&state={state}")
        assert answer.status_code in (502, 503)
        assert "Reason:" in answer.text
        assert kept(house) == 0
    assert "/acme/oauth/token" in [seen.path for seen in scripted.seen]
    assert "/elsewhere" not in [seen.path for seen in scripted.seen]


def test_connecting_anew_replaces_the_tokens_of_the_same_account(house_on_both: House) -> None:
    house = house_on_both
    house.browser().sign_in()
    first = house.services.accounts.named("acme")
    assert first is not None
    house.services.accounts.disconnect(first.id)
    house.clock.advance(60)
    house.browser().sign_in()
    again = house.services.accounts.named("acme")
    assert again is not None
    assert (again.id, kept(house), alive(house)) == (first.id, 1, 1)
    assert house.services.accounts.access_token(again.id).version > 1


def test_disconnecting_revokes_and_wipes_and_names_what_went_wrong(house: House) -> None:
    for kind in (None, "status", "html", "rate_limited", "redirect", "reset_before"):
        house.browser().sign_in()
        account = house.services.accounts.named("acme")
        assert account is not None
        if kind:
            house.sandbox.faults.add(r"/oauth/revoke", kind=kind)
        problem = house.services.accounts.disconnect(account.id)
        assert (problem is None) == (kind is None), kind
        with house.services.database.read() as tx:
            row = tx.execute(select(accounts)).one()
        assert row.state == "disconnected"
        assert {value for name, value in row._mapping.items() if name.endswith("_sealed")} == {None}
        house.sandbox.helpdesk("acme").uninstall()


def test_revoking_what_is_gone_already_is_no_problem(house: House) -> None:
    house.browser().sign_in()
    account = house.services.accounts.named("acme")
    assert account is not None
    house.sandbox.helpdesk("acme").uninstall()
    assert house.services.accounts.disconnect(account.id) is None
    assert house.services.accounts.disconnect(account.id) is None


def test_every_refusal_has_a_status_and_a_page_that_says_what_to_do(house: House) -> None:
    app = create_app(house.services)
    titles = set()
    for reason in Refusal:
        assert 400 <= STATUS[reason] < 600
        with app.test_request_context("/oauth/callback"):
            html = render_template("refused.html", reason=reason.value)
        main = html.split("<main", 1)[1].split("</main>", 1)[0]
        [title] = re.findall(r"<h1>(.+?)</h1>", main)
        what, remedy = re.findall(r"<p(?: class=\"lead\")?>([^<]+)</p>", main)[:2]
        assert title[0].isupper()
        assert what[0].isupper()
        assert what.endswith(".")
        assert remedy[0].isupper()
        assert remedy.endswith(".")
        assert f"<code>{reason}</code>" in main
        assert "None" not in html
        titles.add(title)
    assert len(titles) == len(Refusal)


def secrets_of(house: House) -> list[str]:
    """Everything of one dance that must stay between us and Gorgias."""
    found = []
    for seen in house.sandbox.requests:
        if "Authorization" in seen.headers:
            found.append(seen.headers["Authorization"].split()[1])
        if seen.path in ("/oauth/token", "/oauth/revoke"):
            found += [seen.form[name] for name in ("code", "refresh_token", "token") if name in seen.form]
        if "state" in seen.query:
            found.append(seen.query["state"])
    return [*found, house.sandbox.runtime.client_secret, "ada@acme.example", "ben@acme.example"]


def whole_story(house: House) -> None:
    """Connect, refresh, be refused, sign in, meet trouble, lose access, disconnect."""
    browser = house.browser()
    browser.sign_in()
    account = house.services.accounts.named("acme")
    assert account is not None
    house.clock.advance(24 * 3600)
    house.services.accounts.access_token(account.id)
    house.browser().sign_in(user_id=users(house)["agent"])
    house.browser().sign_in(allow=False)
    house.sandbox.faults.add(r"/oauth/token", kind="status")
    house.browser().sign_in()
    house.sandbox.helpdesk("acme").uninstall()
    house.sandbox.faults.add(r"/api/users/.*", kind="status", status=401)
    house.browser().sign_in()
    house.browser().sign_in(user_id=users(house)["agent"])


def test_no_secret_stands_plain_in_the_database_file(house: House, sqlite_database: Database) -> None:
    whole_story(house)
    house.browser().sign_in()
    with house.services.database.read() as tx:
        sealed = tx.scalars(select(accounts.c.refresh_token_sealed)).one()
    path = sqlite_database.engine.url.database
    assert path is not None
    kept_bytes = b"".join(file.read_bytes() for file in Path(path).parent.glob(Path(path).name + "*"))
    assert sealed.encode() in kept_bytes  # we look at the right bytes
    secrets = [*secrets_of(house), house.services.sealer.open(sealed)]
    assert len(secrets) > 20
    for secret in secrets:
        assert secret.encode() not in kept_bytes


def test_no_secret_reaches_a_log(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)  # DEBUG holds what sandbox and test browser say to each other
    with capture_logs() as logged:
        whole_story(house)
    assert len(logged) > 5
    told = repr(logged) + caplog.text
    for secret in secrets_of(house):
        assert secret not in told
