"""Webhooks as Rivo sends them, over a real socket, to a running house."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from prometheus_client import REGISTRY
from sqlalchemy import text, update
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

from loyalty.rivo_webhook import TOLERANCE
from sandbox import RivoStore
from storage.database import erase_older
from storage.deliveries import DELIVERIES_KEPT
from storage.sealing import Sealer
from storage.tables import stores, webhook_deliveries
from tests.databases import SECOND_KEY, Clock
from tests.house import House
from tests.webhooks.rivo_sends import ANA, SECRET, Rivo, Send, legacy_base64, legacy_hex, profile, standard
from widget.connections import Connection

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def counted(outcome: str) -> float:
    labels = {"program": "rivo", "outcome": outcome}
    return REGISTRY.get_sample_value("tallydesk_webhooks_total", labels) or 0.0


def signed_by(rivo: Rivo, scheme: str, body: bytes) -> dict[str, str]:
    send: dict[str, Send] = {
        "standard": lambda body: standard(body, timestamp=rivo.timestamp()),
        "legacy_base64": legacy_base64,
        "legacy_hex": legacy_hex,
    }
    return send[scheme](body)


@pytest.mark.parametrize("scheme", ["standard", "legacy_base64", "legacy_hex"])
def test_a_changed_profile_is_on_the_next_card(
    rivo: Rivo, store: RivoStore, house: House, clock: Clock, scheme: str
) -> None:
    assert rivo.balance() == 120
    store.update_customer(ANA, points_tally=200)
    clock.advance(1)
    assert rivo.balance() == 120, "still fresh"
    body = json.dumps(profile(event_type="loyalty_profile/updated")).encode()
    answer = rivo.post(body, signed_by(rivo, scheme, body))
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted"})
    assert rivo.is_outdated()
    clock.advance(1)
    assert rivo.balance() == 120, "the card does not wait, and does not believe the balance in the webhook"
    assert rivo.balance() == 200
    assert not rivo.is_outdated()


def test_somebody_not_found_before_is_asked_for_again(rivo: Rivo, store: RivoStore, clock: Clock) -> None:
    assert rivo.balance("new@example.com") == ""
    store.add_customer("new@example.com", points=7)
    clock.advance(1)
    assert rivo.balance("new@example.com") == "", "not found is kept for half a minute"
    assert rivo.status(profile("new@example.com")) == "accepted"
    clock.advance(1)
    assert rivo.balance("new@example.com") == 7


@only_sqlite
def test_both_sides_of_a_referral_are_asked_for_again(rivo: Rivo, store: RivoStore) -> None:
    store.add_customer("ben@example.com")
    rivo.balance(), rivo.balance("ben@example.com")
    told = {"referrer_customer": profile(), "referred_customer": None, "referred_email": "Ben@Example.com"}
    assert rivo.status(told, topic="referral/completed") == "accepted"
    assert rivo.is_outdated()
    assert rivo.is_outdated("ben@example.com")


@only_sqlite
def test_a_webhook_of_somebody_never_seen_leaves_nothing_but_its_mark(rivo: Rivo, house: House) -> None:
    assert rivo.status(profile("stranger@example.com")) == "accepted"
    services = house.services
    hmac = services.hasher.email("stranger@example.com")
    assert services.snapshots.find(rivo.connection.store, email="stranger@example.com", member_hmac=hmac) is None
    assert rivo.handled() == 1


@only_sqlite
def test_no_call_to_rivo_is_made_on_the_way(rivo: Rivo, house: House) -> None:
    rivo.balance()
    calls = len(house.sandbox.requests)
    for _ in range(5):
        rivo.status(profile())
    assert len(house.sandbox.requests) == calls


# ---------------------------------------------------------------------------------------- Each one once


@pytest.mark.parametrize("scheme", ["standard", "legacy_base64", "legacy_hex"])
def test_a_delivery_counts_once(rivo: Rivo, clock: Clock, scheme: str) -> None:
    rivo.balance()
    body = json.dumps(profile(event_type="loyalty_profile/updated")).encode()
    headers = signed_by(rivo, scheme, body)
    assert rivo.post(body, headers).json() == {"status": "accepted"}
    clock.advance(1)
    rivo.balance(), rivo.balance()
    assert not rivo.is_outdated()
    again = rivo.post(body, headers)
    assert (again.status_code, again.json()) == (200, {"status": "repeated"})
    assert not rivo.is_outdated()
    assert rivo.handled() == 1


@only_sqlite
def test_the_same_delivery_with_a_new_signature_is_still_the_same(rivo: Rivo, clock: Clock) -> None:
    assert rivo.status(profile(), key="msg_a") == "accepted"
    clock.advance(600)
    assert rivo.status(profile(), key="msg_a", topic="points_event/created") == "repeated"
    assert rivo.status(profile(), key="msg_b") == "accepted"


def test_of_many_copies_at_once_one_is_the_first(rivo: Rivo) -> None:
    body = json.dumps(profile()).encode()
    headers = standard(body, timestamp=rivo.timestamp())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: rivo.post(body, headers), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert Counter(answer.json()["status"] for answer in answers) == {"accepted": 1, "repeated": 23}
    assert rivo.handled() == 1


@only_sqlite
def test_what_was_stopped_before_its_mark_is_done_again_by_the_next_delivery(rivo: Rivo, house: House) -> None:
    rivo.balance()
    body = json.dumps(profile()).encode()
    headers = standard(body, timestamp=rivo.timestamp())
    refuse = "CREATE TRIGGER stop BEFORE INSERT ON webhook_deliveries BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    with house.services.database.write() as tx:
        tx.execute(text(refuse))
    answer = rivo.post(body, headers)
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "Send it again" in answer.json()["message"]
    assert rivo.is_outdated(), "the effects come before the mark"
    with house.services.database.write() as tx:
        tx.execute(text("DROP TRIGGER stop"))
    assert rivo.post(body, headers).json() == {"status": "accepted"}
    assert rivo.post(body, headers).json() == {"status": "repeated"}


@only_sqlite
def test_two_stores_may_use_the_same_id(rivo: Rivo, house: House) -> None:
    other = Rivo(house=house, connection=house.open_rivo(store="fernhill"))
    house.services.stores.save_webhook_secret(other.connection.store, secret=SECRET)
    assert rivo.status(profile(), key="msg_1") == "accepted"
    assert other.status(profile(), key="msg_1") == "accepted"
    assert (rivo.handled(), other.handled()) == (1, 1)


def test_marks_are_erased_in_time_and_in_portions(rivo: Rivo, house: House, clock: Clock) -> None:
    database = house.services.database
    for _ in range(3):
        rivo.status(profile())
    clock.advance(DELIVERIES_KEPT.total_seconds())
    rivo.status(profile())
    assert erase_older(database, webhook_deliveries.c.received_at, than=clock() - DELIVERIES_KEPT) == 0
    clock.advance(1)
    assert erase_older(database, webhook_deliveries.c.received_at, than=clock() - DELIVERIES_KEPT, limit=2) == 2
    assert erase_older(database, webhook_deliveries.c.received_at, than=clock() - DELIVERIES_KEPT) == 1
    assert rivo.handled() == 1


def test_a_mark_lasts_longer_than_a_signature_with_a_time() -> None:
    assert 2 * TOLERANCE < DELIVERIES_KEPT


# ---------------------------------------------------------------------------------------- Who is believed


def test_whatever_is_wrong_the_answer_is_the_same(rivo: Rivo, house: House) -> None:
    body = json.dumps(profile()).encode()
    now = rivo.timestamp()
    good = standard(body, timestamp=now)
    wrong: dict[str, dict[str, str]] = {
        "signature_missing": {},
        "header_missing": {k: v for k, v in good.items() if k != "rivo-webhook-id"},
        "signature_wrong": standard(body, timestamp=now, secret="another"),
        "timestamp_stale": standard(body, timestamp=rivo.timestamp(ahead_s=-301)),
        "timestamp_unreadable": standard(body, timestamp="yesterday"),
    }
    before = {fault: counted(fault) for fault in wrong}
    with capture_logs() as lines:
        answers = {fault: rivo.post(body, headers) for fault, headers in wrong.items()}
        house.services.stores.save_webhook_secret(rivo.connection.store, secret="")
        answers["secret_missing"] = rivo.post(body, good)
    assert len({(answer.status_code, answer.text) for answer in answers.values()}) == 1
    answer = answers["secret_missing"]
    assert answer.status_code == 401
    assert answer.json()["status"] == "refused"
    assert "signing secret" in answer.json()["message"]
    assert [line["outcome"] for line in lines] == list(answers)
    assert "secret missing" in lines[-1]["trouble"]
    assert all(line["log_level"] == "warning" and line["trouble"] for line in lines)
    assert {fault: counted(fault) - count for fault, count in before.items()} == dict.fromkeys(wrong, 1)
    assert rivo.handled() == 0


@only_sqlite
def test_a_good_old_signature_does_not_save_a_bad_new_one(rivo: Rivo) -> None:
    rivo.balance()
    body = json.dumps(profile()).encode()
    headers = {**standard(body, timestamp=rivo.timestamp(), secret="another"), **legacy_base64(body)}
    assert rivo.post(body, headers).status_code == 401
    assert not rivo.is_outdated()


@only_sqlite
def test_a_clock_that_is_ahead_or_behind_by_up_to_five_minutes_is_borne(rivo: Rivo) -> None:
    assert rivo.status(profile(), timestamp=rivo.timestamp(ahead_s=300)) == "accepted"
    assert rivo.status(profile(), timestamp=rivo.timestamp(ahead_s=-300)) == "accepted"
    assert rivo.send(profile(), timestamp=rivo.timestamp(ahead_s=302)).status_code == 401


@only_sqlite
def test_both_secrets_count_during_a_rotation(rivo: Rivo, house: House) -> None:
    stores, store = house.services.stores, rivo.connection.store
    stores.save_webhook_secret(store, secret="second")
    assert rivo.status(profile(), secret="second") == "accepted"
    assert rivo.status(profile(), secret=SECRET) == "accepted"
    stores.save_webhook_secret(store, secret="third")
    assert rivo.status(profile(), secret="second") == "accepted"
    assert rivo.send(profile(), secret=SECRET).status_code == 401


def test_the_secret_of_another_connection_opens_nothing(rivo: Rivo, house: House) -> None:
    other = Rivo(house=house, connection=house.open_rivo(store="fernhill"))
    assert other.send(profile()).status_code == 401, "no secret at all"
    house.services.stores.save_webhook_secret(other.connection.store, secret="of fernhill")
    assert other.send(profile()).status_code == 401
    assert rivo.send(profile(), secret="of fernhill").status_code == 401
    rivo.balance(), other.balance()
    assert other.status(profile(), secret="of fernhill") == "accepted"
    assert not rivo.is_outdated()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_only_an_active_connection_to_rivo_has_the_address(rivo: Rivo, house: House) -> None:
    _, ledger = house.connect("globex")
    house.services.stores.save_webhook_secret(ledger.store, secret=SECRET)
    body = json.dumps(profile()).encode()
    headers = standard(body, timestamp=rivo.timestamp())
    before = counted("unknown_connection")
    for number in (ledger.id, 999, 10**30):
        answer = rivo.post(body, headers, url=f"{house.url}/rivo/webhooks/{number}")
        assert (answer.status_code, answer.json()["status"]) == (404, "refused")
        assert "Copy the address once more" in answer.json()["message"]
    house.services.connections.remove(rivo.connection.id)
    assert rivo.post(body, headers).status_code == 404
    assert counted("unknown_connection") - before == 4


# -------------------------------------------------------------------------------------------- Odd ones


@only_sqlite
def test_an_unknown_topic_is_taken_and_counted_under_one_name(rivo: Rivo) -> None:
    rivo.balance()
    before = counted("unknown_topic")
    topics = ["gift_card/created", "x" * 200, "jane.secret@example.com/x", ""]
    with capture_logs() as lines:
        assert [rivo.status(profile(), topic=topic) for topic in topics] == ["unknown_topic"] * 4
    assert counted("unknown_topic") - before == 4
    assert rivo.is_outdated(), "it may well have been a change"
    assert rivo.status(profile(), topic="gift_card/created", key="msg_1") == "repeated"
    assert [line.get("topic") for line in lines] == ["gift_card/created", None, None, None]
    metrics = rivo.house.browser().get("/metrics").text
    assert "gift_card" not in metrics


@only_sqlite
def test_an_announcement_changes_nothing(rivo: Rivo) -> None:
    rivo.balance()
    assert rivo.status({"customer": profile()}, topic="notification/points_expiry_warning") == "accepted"
    assert not rivo.is_outdated()


@only_sqlite
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"email": "\xe4"}', b"[" * 50_000])
def test_what_is_signed_but_no_json_object_is_taken_since_it_would_not_change(rivo: Rivo, body: bytes) -> None:
    before = counted("unreadable")
    for headers in (standard(body, timestamp=rivo.timestamp()), legacy_hex(body)):
        answer = rivo.post(body, headers)
        assert (answer.status_code, answer.json()) == (200, {"status": "unreadable"})
    assert counted("unreadable") - before == 2
    assert rivo.handled() == 0


@only_sqlite
def test_a_customer_with_very_many_tags_is_read(rivo: Rivo, store: RivoStore) -> None:
    rivo.balance()
    told = profile(shopify_tags=[f"tag number {number}" for number in range(12_000)])
    assert 200_000 < len(json.dumps(told)) < 256 * 1024
    assert rivo.status(told) == "accepted"
    assert rivo.is_outdated()


@contextmanager
def raw(rivo: Rivo) -> Iterator[socket.socket]:
    """A connection to the house; requests are written by hand."""
    parts = urlsplit(rivo.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as line:
        yield line


def head(rivo: Rivo, length: int) -> bytes:
    path = urlsplit(rivo.url).path
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n".encode()


def answer_on(line: socket.socket) -> tuple[int, dict[str, Any]]:
    answer = http.client.HTTPResponse(line)
    answer.begin()
    return answer.status, json.loads(answer.read())


@only_sqlite
def test_more_than_256_kib_is_refused_before_it_is_read(rivo: Rivo) -> None:
    before = counted("too_large")
    with raw(rivo) as line:
        line.sendall(head(rivo, 256 * 1024 + 1))
        status, said = answer_on(line)
    assert (status, said["status"]) == (413, "refused")
    assert "256 KiB" in said["message"]
    assert counted("too_large") - before == 1


@only_sqlite
def test_a_body_that_is_cut_off_is_refused_in_a_sentence(rivo: Rivo) -> None:
    before = counted("cut_off")
    with raw(rivo) as line:
        line.sendall(head(rivo, 100) + b'{"email":')
        line.shutdown(socket.SHUT_WR)
        status, said = answer_on(line)
    assert (status, said["status"]) == (400, "refused")
    assert counted("cut_off") - before == 1


@only_sqlite
def test_other_routes_keep_their_small_limit(rivo: Rivo, house: House, connection: Connection) -> None:
    path = f"{house.url}/widget/earnings"
    with raw(rivo) as line:
        line.sendall(head(rivo, 17 * 1024).replace(urlsplit(rivo.url).path.encode(), urlsplit(path).path.encode()))
        # Whoever has no key hears of that first, before anything is read.
        assert answer_on(line)[0] == 401
    big = {"email": ANA, "points": 1, "reason": "x" * 17_000}
    with raw(rivo) as line:
        key = house.services.connections.newest_keys(connection.id).award
        request = head(rivo, len(json.dumps(big))).replace(urlsplit(rivo.url).path.encode(), b"/widget/earnings")
        line.sendall(request.replace(b"Host: x", f"Host: x\r\nX-Api-Key: {key}".encode()))
        assert answer_on(line)[0] == 413


@only_sqlite
def test_it_is_called_by_post_alone_and_keeps_no_session(rivo: Rivo) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert requests.request(method, rivo.url, timeout=20).status_code == 405
    answer = rivo.send(profile())
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Vary" not in answer.headers, "no session was opened"


@only_sqlite
def test_each_delivery_is_one_line_without_anything_private(rivo: Rivo) -> None:
    with capture_logs() as lines:
        rivo.send(profile(first_name="Ana-Maria"), key="msg_private")
        rivo.send(profile(), secret="another")
    first, second = lines
    assert (first["outcome"], first["topic"], first["status"]) == ("accepted", "loyalty_profile/updated", 200)
    assert first["connection"] == second["connection"] == rivo.connection.id
    assert (second["outcome"], second["status"]) == ("signature_wrong", 401)
    assert not re.search(r"ana|maria|example\.com|msg_|" + SECRET, str(lines), re.IGNORECASE)


@only_sqlite
def test_a_bug_of_ours_is_an_answer_and_a_traceback_for_us(
    rivo: Rivo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("loyalty.rivo_webhook.read", crash)
    capfd.readouterr()
    answer = rivo.send(profile())
    assert (answer.status_code, answer.json()["status"]) == (500, "crashed")
    assert "a bug" in "".join(capfd.readouterr())


def test_a_database_in_trouble_asks_for_the_delivery_again(rivo: Rivo, house: House) -> None:
    body = json.dumps(profile()).encode()
    headers = standard(body, timestamp=rivo.timestamp())
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE webhook_deliveries RENAME TO away"))
    before = counted("unavailable")
    answer = rivo.post(body, headers)
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert counted("unavailable") - before == 1
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE away RENAME TO webhook_deliveries"))
    assert rivo.post(body, headers).json() == {"status": "accepted"}


@only_sqlite
def test_a_secret_that_cannot_be_opened_is_our_trouble_and_not_a_wrong_signature(rivo: Rivo, house: House) -> None:
    with house.services.database.write() as tx:
        tx.execute(update(stores).values(webhook_secret_sealed=Sealer((SECOND_KEY,)).seal(SECRET)))
    with capture_logs() as lines:
        assert rivo.send(profile()).status_code == 503
    assert [(line["outcome"], line["log_level"]) for line in lines] == [("unavailable", "error")]
    assert "ENCRYPTION_KEYS" in lines[0]["trouble"]


@only_sqlite
def test_more_deliveries_than_database_connections_are_asked_for_again(
    rivo: Rivo, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = house.services.database.engine.pool
    monkeypatch.setattr(pool, "_timeout", 0.01)
    with ExitStack() as held:
        with suppress(PoolTimeout):
            while True:
                held.enter_context(house.services.database.engine.connect())
        with capture_logs() as lines:
            assert rivo.send(profile()).status_code == 503
    assert lines[0]["trouble"] == "More requests at once than database connections."
    assert rivo.status(profile()) == "accepted"
