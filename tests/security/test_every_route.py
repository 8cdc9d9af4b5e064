"""What holds for every route, those of tomorrow included: they are taken from the application and not from a list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from sqlalchemy import text
from werkzeug.routing import Rule

from app import create_app
from storage.database import Database
from tests.console.steps import everything
from tests.databases import Clock
from tests.house import House, running_house
from widget.connections import Connection

HEADERS = {
    "X-Content-Type-Options": {"nosniff"},
    "X-Frame-Options": {"DENY"},
    "Referrer-Policy": {"same-origin", "no-referrer"},
    "Cross-Origin-Opener-Policy": {"same-origin"},
    "Cross-Origin-Resource-Policy": {"same-origin"},
    "Permissions-Policy": {"camera=(), geolocation=(), microphone=(), payment=(), usb=()"},
}
# What programs call has no form, and a key or a signature in its place.
NO_FORM = {"/widget/earnings", "/rivo/webhooks/<int:connection_id>"}


def test_every_answer_carries_the_headers_that_protect_it(house: House) -> None:
    browser, connection = house.connect()
    others = [("GET", "/nowhere"), ("DELETE", "/"), ("GET", "/%ff"), ("GET", "/oauth/install?account=globex")]
    seen = set()
    for method, path in [*_requests(house, connection), *others]:
        answer = browser.session.request(method, f"{house.url}{path}", allow_redirects=False, timeout=20)
        assert answer.status_code < 500, (method, path)
        _check(answer)
        assert answer.status_code != 405 or method not in answer.headers["Allow"].split(", ")
        seen.add(answer.status_code)
    assert {200, 303, 400, 401, 404, 405} <= seen


def test_answers_to_trouble_carry_them_too(house: House) -> None:
    browser, _ = house.connect()
    too_large = browser.session.post(f"{house.url}/connections/", data={"x": "y" * 20_000}, timeout=20)
    assert too_large.status_code == 413
    _check(too_large)
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE changes RENAME TO changes_away"))
    broken = browser.get("/connections/changes")
    assert broken.status_code == 503
    _check(broken)


def test_every_form_is_refused_without_its_token(house: House) -> None:
    admin, connection = house.connect()
    before = everything(house)
    posts = [(rule, path) for rule, method, path in _rules(house, connection) if method == "POST"]
    forms = [(rule, path) for rule, path in posts if rule.rule not in NO_FORM]
    assert {rule.rule for rule, _ in posts} - {rule.rule for rule, _ in forms} == NO_FORM
    assert len(forms) > 10
    for _, path in forms:
        for data in ({}, {"csrf_token": "made-up"}):
            answer = admin.session.post(f"{house.url}{path}", data=data, allow_redirects=False, timeout=20)
            assert (answer.status_code, "form_too_old" in answer.text) == (400, True), path
    assert everything(house) == before
    # And the session is still there: the refusals were for want of a token.
    assert admin.get("/connections/changes", follow=False).status_code == 200


def test_every_page_of_the_console_is_closed_to_strangers(house: House) -> None:
    _, connection = house.connect("globex")
    closed = [
        (method, path)
        for rule, method, path in _rules(house, connection)
        if rule.rule.startswith("/connections/") and method in ("GET", "POST")
    ]
    assert len(closed) > 10
    for method, path in closed:
        stranger = house.browser()
        answer = stranger.session.request(method, f"{house.url}{path}", allow_redirects=False, timeout=20)
        # To the start; the page that agents come to from a ticket asks them to sign in on the spot.
        on_the_spot = answer.status_code in (200, 403) and 'action="/oauth/install"' in answer.text
        assert on_the_spot or (answer.status_code, answer.headers.get("Location")) == (303, "/"), path
        assert "globex" not in answer.text, path


def test_cookies_are_for_https_and_for_us_alone(sqlite_database: Database, clock: Clock) -> None:
    with running_house(sqlite_database.url, clock=clock, public_url="https://tallydesk.example") as house:
        begun = house.browser().get("/oauth/install?account=acme", follow=False)
        ended = requests.post(f"{house.url}/connections/", allow_redirects=False, timeout=20)
        for answer, name, path in ((begun, "tallydesk_oauth", "/oauth"), (ended, "tallydesk_session", "/")):
            cookie = answer.headers["Set-Cookie"]
            assert cookie.startswith(f"{name}=")
            assert {"Secure", "HttpOnly", "SameSite=Lax", f"Path={path}"} <= set(cookie.split("; "))
            assert "Domain=" not in cookie
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize("page", ["/", "/oauth/install?account=%3Cscript%3E", "/?account=%22%3E%3Cscript%3E"])
def test_what_is_typed_is_shown_and_never_run(house: House, page: str) -> None:
    shown = house.browser().get(page).text
    assert "<script" not in shown
    assert not re.search(r"\son\w+=", shown)
    assert " style=" not in shown


def _check(answer: requests.Response) -> None:
    where = f"{answer.request.method} {answer.request.path_url}: {answer.status_code}"
    for name, allowed in HEADERS.items():
        assert answer.headers.get(name) in allowed, (where, name)
    policy = answer.headers["Content-Security-Policy"]
    for directive in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert directive in policy, where
    assert "unsafe" not in policy, where
    assert "script-src" not in policy, where
    if answer.request.path_url.startswith("/static/") and answer.ok:
        return
    assert answer.headers["Cache-Control"] == "no-store", where


def _rules(house: House, connection: Connection) -> Iterator[tuple[Rule, str, str]]:
    """Every rule with each of its methods and an address that fits it."""
    fitting: dict[str, Any] = {
        "connection_id": connection.id,
        "operation_id": "td_" + "a" * 26,
        "code": "nobody",
        "filename": "style.css",
    }
    for rule in create_app(house.services).url_map.iter_rules():
        built = rule.build({name: fitting.get(name, "1") for name in rule.arguments})
        assert built is not None, rule
        for method in sorted(rule.methods or ()):
            yield rule, method, built[1]


def _requests(house: House, connection: Connection) -> list[tuple[str, str]]:
    return [(method, path) for _, method, path in _rules(house, connection)]
