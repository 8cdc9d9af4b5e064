"""Each request has an id that a person can quote, one line in the log, and one count."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from tests.house import House

OWN = re.compile(r"[0-9a-f]{24}")


def get(house: House, path: str, **how: Any) -> requests.Response:
    return requests.get(f"{house.url}{path}", timeout=20, allow_redirects=False, **how)


def count(route: str, outcome: str) -> float:
    labels = {"route": route, "outcome": outcome}
    return REGISTRY.get_sample_value("tallydesk_requests_total", labels) or 0.0


def test_every_answer_has_an_id_of_its_own(house: House) -> None:
    told = [get(house, path).headers["X-Request-Id"] for path in ("/", "/", "/nowhere", "/healthz", "/widget/customer")]
    assert len(set(told)) == 5
    assert all(OWN.fullmatch(one) for one in told)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("0b6c4f1d-2e3a_5978", True),
        ("1234567", False),
        ("a" * 64, True),
        ("a" * 65, False),
        ("ana@example.com", False),
        ("a b c d e f g", False),
        ("<script>alert(1)</script>", False),
        # What the log would hide: it stands there as it is.
        ("tdl_0123456789abcdef", False),
    ],
)
def test_an_id_that_a_proxy_of_ours_gave_goes_on_when_it_looks_like_one(house: House, given: str, taken: bool) -> None:
    told = get(house, "/", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert told == given if taken else OWN.fullmatch(told)


def test_the_id_of_whoever_comes_from_a_public_address_is_not_taken(house: House) -> None:
    app = _app(house)
    for address, taken in (("203.0.113.9", True), ("8.8.8.8", False), ("10.0.0.7", True), ("2600::1", False)):
        answer = app.get("/healthz", headers={"X-Request-Id": "given-by-them"}, environ_base={"REMOTE_ADDR": address})
        assert (answer.headers["X-Request-Id"] == "given-by-them") is taken, address


def _app(house: House) -> Any:
    from app import create_app

    return create_app(house.services).test_client()


def test_an_error_page_shows_the_id_that_its_line_has(house: House) -> None:
    answer = get(house, "/oauth/callback?state=x")
    assert answer.headers["X-Request-Id"] in answer.text
    missing = get(house, "/nowhere/ana@example.com")
    assert missing.status_code == 404
    assert missing.headers["X-Request-Id"] in missing.text


def test_a_request_is_one_line_with_route_outcome_status_and_time_and_one_count(house: House) -> None:
    browser, connection = house.connect()
    expected = [
        ("/", "/", "shown", 200),
        ("/oauth/install?account=acme", "/oauth/install", "sign_in", 303),
        ("/oauth/callback?code=c&state=s", "/oauth/callback", "session_missing", 400),
        ("/connections/", "/connections/", "sign_in_needed", 303),
        ("/connections/77", "/connections/<int:connection_id>", "sign_in_needed", 303),
        ("/nowhere/ana@example.com", "unmatched", "http_404", 404),
    ]
    for path, route, outcome, status in expected:
        before = count(route, outcome)
        with capture_logs() as lines:
            get(house, path)
        told = [line for line in lines if line["event"] == "request"]
        assert [(line["route"], line["outcome"], line["status"]) for line in told] == [(route, outcome, status)]
        assert told[0]["ms"] > 0
        assert count(route, outcome) == before + 1
    before = count("/connections/<int:connection_id>", "not_here")
    browser.get("/connections/77")
    assert count("/connections/<int:connection_id>", "not_here") == before + 1
    assert count("/connections/<int:connection_id>", "http_404") == 0, "counted once"
    with capture_logs() as lines:
        house.lookup(connection, "nobody@example.com")
    assert [line["event"] for line in lines] == ["lookup"], "what programs call has a line of its own"


def test_what_is_asked_for_all_the_time_has_no_line(house: House) -> None:
    with capture_logs() as lines:
        for path in ("/healthz", "/readyz", "/metrics", "/static/style.css"):
            assert get(house, path).status_code == 200, path
    assert lines == []


def test_a_crash_is_one_line_with_its_traceback(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(type(house.services.accounts), "named", broken)
    with capture_logs() as lines:
        answer = get(house, "/oauth/install?account=acme")
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] in answer.text
    assert [(line["route"], line["outcome"], str(line["exc_info"])) for line in lines] == [
        ("/oauth/install", "crashed", "broken")
    ]
