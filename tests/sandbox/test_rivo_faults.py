"""Trouble on order at the sandbox's Rivo: what the client meets, and what stands in the book."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from sandbox import RivoStore, Sandbox

ANA = "ana@example.com"
PATH = r"/merchant_api/v1/points_events"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    # The clock of the budget stands still: two calls, and no more.
    with Sandbox(rivo_stores=("northwind",), rivo_calls_per_s=2, monotonic=lambda: 100.0) as running:
        running.rivo("northwind").add_customer(ANA)
        yield running


@pytest.fixture
def store(sandbox: Sandbox) -> RivoStore:
    return sandbox.rivo("northwind")


def award(sandbox: Sandbox, *, key: str | None = None, timeout: float = 5) -> requests.Response:
    return requests.post(
        f"{sandbox.rivo_url}/points_events",
        data={"customer_identifier": ANA, "source": "manual", "points_amount": 10},
        headers={"Authorization": key or sandbox.rivo("northwind").key},
        timeout=timeout,
        allow_redirects=False,
    )


def asking(sandbox: Sandbox, path: str) -> socket.socket:
    """A connection on which GET `path` was just sent."""
    connection = socket.create_connection(("127.0.0.1", int(sandbox.url.rsplit(":", 1)[1])), timeout=5)
    key = sandbox.rivo("northwind").key
    head = f"GET /rivo/merchant_api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


@pytest.mark.parametrize(
    ("kind", "status", "content", "written"),
    [
        ("status", 503, b'{"error": "Something went wrong."}', 0),
        ("status_after", 503, b'{"error": "Something went wrong."}', 1),
        ("html", 200, b"<!doctype html>", 0),
        ("html_after", 200, b"<!doctype html>", 1),
        ("empty", 200, b"", 0),
        ("rate_limited", 429, b'{"error": "Too many calls."}', 0),
    ],
)
def test_an_answer_of_another_kind_comes_before_or_after_the_work(
    sandbox: Sandbox, store: RivoStore, kind: str, status: int, content: bytes, written: int
) -> None:
    sandbox.faults.add(PATH, account="rivo", kind=kind, status=503)
    answer = award(sandbox)
    assert (answer.status_code, answer.content[: len(content)]) == (status, content)
    assert len(store.events()) == written
    assert award(sandbox).status_code == 201


@pytest.mark.parametrize(
    ("kind", "written"), [("reset_before", 0), ("reset_after", 1), ("truncated", 1), ("hang", 0), ("hang_after", 1)]
)
def test_a_connection_that_breaks_before_or_after_the_work(
    sandbox: Sandbox, store: RivoStore, kind: str, written: int
) -> None:
    sandbox.faults.add(PATH, kind=kind, seconds=0.05)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        award(sandbox)
    assert len(store.events()) == written


def test_hang_after_says_nothing_although_it_is_done(sandbox: Sandbox, store: RivoStore) -> None:
    sandbox.faults.add(PATH, kind="hang_after")
    with pytest.raises(requests.ReadTimeout):
        award(sandbox, timeout=0.2)
    assert len(store.events()) == 1
    assert sandbox.requests[-1].status is None


def test_a_late_commit_is_done_when_it_is_told_to_and_once(sandbox: Sandbox, store: RivoStore) -> None:
    fault = sandbox.faults.add(PATH, kind="commit_late", times=2)
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            award(sandbox)
    assert (fault.hits, store.events()) == (2, [])
    assert fault.commit() == [201, 201]
    assert fault.commit() == []
    assert len(store.events()) == 2


def test_a_late_commit_asks_neither_for_the_key_nor_for_the_budget_again(sandbox: Sandbox, store: RivoStore) -> None:
    fault = sandbox.faults.add(PATH, kind="commit_late")
    with pytest.raises(requests.ConnectionError):
        award(sandbox)
    store.regenerate_key()
    assert [award(sandbox).status_code for _ in range(3)] == [201, 201, 429]
    assert fault.commit() == [201]


def test_a_late_commit_with_a_wrong_key_stays_refused(sandbox: Sandbox, store: RivoStore) -> None:
    fault = sandbox.faults.add(PATH, kind="commit_late")
    with pytest.raises(requests.ConnectionError):
        award(sandbox, key="wrong")
    assert fault.commit() == [401]
    assert store.events() == []


def test_a_dripping_answer_arrives_byte_by_byte_with_its_head(sandbox: Sandbox, store: RivoStore) -> None:
    sandbox.faults.add(r"/merchant_api/v1/nope", kind="drip", seconds=0.001)
    with asking(sandbox, "nope") as connection:
        pieces = list(iter(lambda: connection.recv(4096), b""))
    assert len(pieces) > 10
    assert b"".join(pieces).startswith(b"HTTP/1.1 404 NOT FOUND\r\n")
    assert b"".join(pieces).endswith(b'\r\n\r\n{"error": "Not Found"}')


def test_a_client_that_only_watches_each_byte_is_held_up_by_a_drip(sandbox: Sandbox, store: RivoStore) -> None:
    sandbox.faults.add(PATH, kind="drip", seconds=0.001)
    answer = award(sandbox, timeout=1)
    assert (answer.status_code, answer.json()["data"]["id"]) == (201, store.events()[0]["id"])


def test_a_drip_ends_when_its_client_leaves(sandbox: Sandbox, store: RivoStore) -> None:
    before = threading.active_count()
    sandbox.faults.add(r"/merchant_api/v1/vip_tiers", kind="drip", seconds=0.02)
    with asking(sandbox, "vip_tiers") as connection:
        assert connection.recv(1) == b"H"
        assert threading.active_count() > before
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.005)
    # The whole answer has some thousand bytes and would have taken far longer.
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["hang", "hang_after", "drip", "slow"])
def test_stopping_waits_for_no_request_under_way(kind: str) -> None:
    sandbox = Sandbox(rivo_stores=("northwind",)).start()
    fault = sandbox.faults.add(r"/merchant_api/v1/vip_tiers", kind=kind)

    def ask() -> None:
        url = f"{sandbox.rivo_url}/vip_tiers"
        try:
            requests.get(url, headers={"Authorization": sandbox.rivo("northwind").key}, timeout=30)
        except requests.RequestException:
            return

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 5
    while not fault.hits and time.monotonic() < deadline:
        time.sleep(0.005)
    began = time.monotonic()
    sandbox.stop()
    thread.join(5)
    assert time.monotonic() - began < 2
    assert not thread.is_alive()


def test_a_full_disk_is_said_so_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Sandbox(data=tmp_path, rivo_stores=("northwind",)) as sandbox:
        store = sandbox.rivo("northwind")
        store.add_customer(ANA)
        store.subscribe("http://localhost:9/nobody", secret="s")
        database = sandbox.runtime.records._database
        assert database is not None
        pages = database.execute("pragma page_count").fetchone()[0]
        database.execute(f"pragma max_page_count = {pages}")
        refused = requests.post(
            f"{sandbox.rivo_url}/points_events",
            json={"customer_identifier": ANA, "source": "manual", "points_amount": 1, "external_note": "x" * 100_000},
            headers={"Authorization": store.key},
            timeout=5,
        )
        sandbox.settle()
        assert (refused.status_code, "could not keep this" in refused.json()["error"]) == (500, True)
        assert (store.events(), store.deliveries()) == ([], [])
        assert (store.customer(ANA) or {})["points_tally"] == 0
    assert "Traceback" not in capsys.readouterr().err


def test_the_wait_of_a_refusal_may_be_a_date(sandbox: Sandbox) -> None:
    date = "Sat, 21 Nov 2026 08:00:05 GMT"
    sandbox.faults.add(PATH, kind="rate_limited", retry_after=date)
    assert award(sandbox).headers["Retry-After"] == date


def test_a_fault_for_rivo_leaves_the_helpdesk_and_the_pages_alone(sandbox: Sandbox) -> None:
    sandbox.faults.add(r".*", account="rivo", kind="status", times=None)
    assert award(sandbox).status_code == 500
    assert requests.get(f"{sandbox.url}/rivo/northwind", timeout=5).status_code == 200
    assert requests.get(f"{sandbox.url}/acme/sign-in", timeout=5).status_code == 200
