"""Trouble on order, as a client of the sandbox meets it."""

import threading
import time
from collections.abc import Iterator

import pytest
import requests

from sandbox import Sandbox

MACRO = {"name": "Points", "actions": [{"name": "setResponseText", "arguments": {}}]}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def call(sandbox: Sandbox, method: str = "POST", path: str = "/api/macros") -> requests.Response:
    token = sandbox.access_token("acme", scope="macros:read macros:write")
    return requests.request(
        method,
        f"{sandbox.url}/acme{path}",
        json=MACRO if method == "POST" else None,
        headers={"Authorization": f"Bearer {token}"},
        timeout=5,
        allow_redirects=False,
    )


def macros(sandbox: Sandbox) -> int:
    return len(sandbox.helpdesk("acme").macros())


def test_a_status_strikes_as_often_as_ordered_and_nothing_is_done(sandbox: Sandbox) -> None:
    fault = sandbox.faults.add(r"/api/macros", method="POST", kind="status", status=503, times=2, skip=1)
    assert [call(sandbox).status_code for _ in range(4)] == [201, 503, 503, 201]
    assert (fault.hits, macros(sandbox)) == (2, 2)


def test_a_fault_keeps_to_its_method_path_and_account(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/api/macros/\d+", kind="status", times=None)
    sandbox.faults.add(r"/api/macros", method="DELETE", kind="status", times=None)
    sandbox.faults.add(r"/api/macros", account="globex", kind="status", times=None)
    assert call(sandbox).status_code == 201
    assert call(sandbox, "GET", "/api/macros/1").status_code == 500
    sandbox.faults.clear()
    assert call(sandbox, "GET", "/api/macros/1").status_code == 404


def test_rate_limits_come_with_and_without_the_header(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/api/macros", kind="rate_limited", retry_after=7)
    sandbox.faults.add(r"/api/macros", kind="rate_limited")
    first, second = call(sandbox), call(sandbox)
    assert (first.status_code, first.headers["Retry-after"]) == (429, "7")
    assert second.status_code == 429
    assert "Retry-after" not in second.headers


def test_a_refused_grant_is_told_in_the_words_of_the_token_endpoint(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/oauth/token", kind="invalid_grant")
    refused = call(sandbox, "POST", "/oauth/token")
    assert (refused.status_code, refused.json()) == (400, {"error": "invalid_grant"})


def test_html_empty_and_redirect_answers(sandbox: Sandbox) -> None:
    for kind in ("html", "empty", "redirect"):
        sandbox.faults.add(r"/oauth/token", kind=kind, location="http://evil.example/")
    html, empty, redirect = (call(sandbox, "POST", "/oauth/token") for _ in range(3))
    assert (html.status_code, html.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert (empty.status_code, empty.content) == (200, b"")
    assert (redirect.status_code, redirect.headers["Location"]) == (302, "http://evil.example/")


def test_a_reset_before_does_nothing_and_a_reset_after_has_done_it(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/api/macros", kind="reset_before")
    with pytest.raises(requests.ConnectionError):
        call(sandbox)
    assert macros(sandbox) == 0
    sandbox.faults.add(r"/api/macros", kind="reset_after")
    with pytest.raises(requests.ConnectionError):
        call(sandbox)
    assert macros(sandbox) == 1
    assert [received.status for received in sandbox.requests] == [None, None]


def test_a_truncated_answer_breaks_off_after_everything_was_done(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/api/macros", kind="truncated")
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        call(sandbox)
    assert macros(sandbox) == 1


def test_a_slow_answer_comes_late(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/api/macros", kind="slow", seconds=0.2)
    began = time.monotonic()
    assert call(sandbox).status_code == 201
    assert time.monotonic() - began >= 0.2


def test_a_hanging_request_ends_when_its_time_is_over(sandbox: Sandbox) -> None:
    sandbox.faults.add(r"/api/macros", kind="hang", seconds=0.1)
    with pytest.raises(requests.ConnectionError):
        call(sandbox)
    assert macros(sandbox) == 0


def test_stopping_ends_hanging_requests_at_once() -> None:
    failures: list[Exception] = []
    sandbox = Sandbox().start()
    sandbox.faults.add(r"/api/macros", kind="hang")

    def hang() -> None:
        try:
            call(sandbox)
        except requests.ConnectionError as error:
            failures.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    deadline = time.monotonic() + 5
    while not sandbox.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    sandbox.stop()
    thread.join()
    assert time.monotonic() - began < 2
    assert len(failures) == 1


def test_an_unknown_kind_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="explode"):
        sandbox.faults.add(r"/api/macros", kind="explode")
