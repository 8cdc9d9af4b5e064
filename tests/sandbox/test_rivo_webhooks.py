"""The webhooks of the sandbox's Rivo, as a small receiver over real sockets meets them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from sandbox import RivoShapes, RivoStore, Sandbox

ANA = "ana@example.com"
SECRET = "6f" * 32
NOW = datetime(2026, 9, 16, 12, 0, tzinfo=UTC)


class Receiver:
    """Takes webhooks, with the statuses given first and 204 then, and keeps (headers, body)."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        receiver = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    receiver.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                    status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self._server.server_port}/rivo/webhooks/7"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def bodies(self, topic: str) -> list[dict[str, Any]]:
        """The bodies of a topic, of either scheme."""
        found = [(headers.get("rivo-webhook-topic"), json.loads(body)) for headers, body in self.received]
        return [body for name, body in found if topic in (name, body.get("event_type"))]

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.stop()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(
        rivo_stores=("northwind", "fernhill"), now=lambda: NOW, retry_delays_s=(0.01, 0.02), delivery_timeout_s=2
    ) as running:
        yield running


@pytest.fixture
def store(sandbox: Sandbox, receiver: Receiver) -> RivoStore:
    store = sandbox.rivo("northwind")
    store.add_customer(ANA, points=5, tier="Silver")
    store.subscribe(receiver.url, secret=SECRET)
    return store


def digest(signed: bytes) -> bytes:
    return hmac.digest(SECRET.encode(), signed, hashlib.sha256)


def test_the_standard_scheme_signs_id_time_and_body(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    store.add_event(ANA, points=10, title="Order #1001")
    sandbox.settle()
    assert len(receiver.received) == 2
    for headers, body in receiver.received:
        key, at = headers["rivo-webhook-id"], headers["rivo-webhook-timestamp"]
        assert at == str(int(NOW.timestamp()))
        expected = base64.b64encode(digest(f"{key}.{at}.".encode() + body)).decode()
        assert headers["rivo-webhook-signature"] == f"v1,{expected}"
        assert "rivo-signature" not in headers
        assert "event_type" not in json.loads(body)
    assert {one.status for one in store.deliveries()} == {204}


@pytest.mark.parametrize("scheme", ["legacy_base64", "legacy_hex"])
def test_the_older_schemes_sign_the_body_which_names_the_event(
    sandbox: Sandbox, store: RivoStore, receiver: Receiver, scheme: str
) -> None:
    store.subscribe(receiver.url, secret=SECRET, scheme=scheme, topics=("points_event/created",))
    store.add_event(ANA, points=10)
    sandbox.settle()
    ((headers, body),) = [one for one in receiver.received if "rivo-signature" in one[0]]
    expected = base64.b64encode(digest(body)).decode() if scheme == "legacy_base64" else digest(body).hex()
    assert headers["rivo-signature"] == expected
    assert not [name for name in headers if name.startswith("rivo-webhook-")]
    assert json.loads(body)["event_type"] == "points_event/created"


def test_an_award_over_the_api_tells_of_the_event_and_of_the_profile(
    sandbox: Sandbox, store: RivoStore, receiver: Receiver
) -> None:
    answer = requests.post(
        f"{sandbox.rivo_url}/points_events",
        data={"customer_identifier": ANA, "source": "manual", "points_amount": 10, "internal_note": "op-1"},
        headers={"Authorization": store.key},
        timeout=5,
    )
    sandbox.settle()
    (event,) = receiver.bodies("points_event/created")
    assert (event["id"], event["points_diff"], event["internal_note"]) == (answer.json()["data"]["id"], 10, "op-1")
    assert (event["credits_amount"], event["customer"]["shopify_domain"]) == (0.0, "northwind.myshopify.com")
    # The recorded delivery carried the balance of before.
    assert event["customer"]["points_tally"] == 5
    (profile,) = receiver.bodies("loyalty_profile/updated")
    assert (profile["email"], profile["points_tally"], profile["credits_tally"]) == (ANA, 15, "0.0")


def test_the_embedded_balance_may_also_be_that_of_after(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    store.shapes = RivoShapes(webhook_balance="after")
    store.add_event(ANA, points=10)
    sandbox.settle()
    assert receiver.bodies("points_event/created")[0]["customer"]["points_tally"] == 15


def test_what_else_is_told(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    store.update_customer(ANA, status="guest")
    store.update_customer(ANA, tier="Gold")
    store.update_customer(ANA, tier=None)
    store.update_customer(ANA, first_name="Ana")
    sandbox.settle()
    assert [body["loyalty_status"] for body in receiver.bodies("loyalty_profile/updated")] == ["guest"]
    (up,), (down,) = (receiver.bodies(f"customer_vip_tier/{way}") for way in ("upgraded", "downgraded"))
    assert (up["previous_vip_tier"]["name"], up["vip_tier"]["name"], down["vip_tier"]) == ("Silver", "Gold", None)
    assert isinstance(up["id"], list)
    assert len(receiver.received) == 3


def test_a_redemption_is_told_with_its_code(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    store.update_customer(ANA, points=100)
    customer = store.customer(ANA)
    assert customer is not None
    made = store.redeem(customer, store.rewards()[0], points=None, credits=None)
    sandbox.settle()
    (told,) = receiver.bodies("points_redemption/created")
    assert (told["code"], told["customer"]["points_tally"]) == (made["code"], 0)
    assert len(receiver.bodies("points_event/created")) == 1


def test_bulk_changes_are_told_to_nobody(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    store.add_event(ANA, points=10, announce=False)
    sandbox.settle()
    assert (receiver.received, store.deliveries()) == ([], [])


def test_a_delivery_is_asked_again_under_the_same_id(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    receiver.statuses = [500, 404]
    store.publish("some/topic", {"a": 1})
    sandbox.settle()
    (delivery,) = store.deliveries()
    assert (delivery.topic, delivery.status, delivery.attempts, delivery.error) == ("some/topic", 204, 3, None)
    assert {headers["rivo-webhook-id"] for headers, _ in receiver.received} == {delivery.id}


def test_a_delivery_is_given_up_after_a_few_attempts(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    receiver.statuses = [500] * 3
    store.publish("some/topic", {})
    sandbox.settle()
    (delivery,) = store.deliveries()
    assert (delivery.status, delivery.attempts, delivery.error) == (500, 3, "HTTP status 500.")
    store.subscribe("http://localhost:9/nobody", secret=SECRET)
    store.publish("some/topic", {})
    sandbox.settle()
    assert (store.deliveries()[-1].status, store.deliveries()[-1].attempts) == (None, 3)


def test_deliveries_can_come_twice_with_the_same_id(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    store.deliver_twice = True
    store.add_event(ANA, points=10)
    sandbox.settle()
    ids = [headers["rivo-webhook-id"] for headers, _ in receiver.received]
    assert (len(ids), len(set(ids))) == (4, 2)
    assert sorted(one.id for one in store.deliveries()) == sorted(ids)
    assert len(store.events()) == 1


def test_a_topic_has_one_receiver_and_stores_do_not_mix(sandbox: Sandbox, store: RivoStore, receiver: Receiver) -> None:
    other = sandbox.rivo("fernhill")
    other.add_customer(ANA)
    other.add_event(ANA, points=1)
    store.subscribe(receiver.url, secret="second", topics=("points_event/created", "points_event/created"))
    store.subscribe(receiver.url, secret=SECRET, topics=("points_event/created",))
    assert [one["topic"] for one in store.subscriptions()] == ["*", "points_event/created"]
    store.unsubscribe("*")
    store.add_event(ANA, points=10)
    sandbox.settle()
    assert [one.topic for one in store.deliveries()] == ["points_event/created"]
    assert other.deliveries() == []
    store.unsubscribe()
    store.add_event(ANA, points=10)
    sandbox.settle()
    assert len(receiver.received) == 1


def test_an_unknown_scheme_is_refused(store: RivoStore) -> None:
    with pytest.raises(ValueError, match="md5"):
        store.subscribe("http://localhost:9/", secret=SECRET, scheme="md5")
