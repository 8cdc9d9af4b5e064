"""A webhook as the proof of an award that nobody knew what had become of."""

from __future__ import annotations

import pytest

from sandbox import RivoStore
from tests.databases import Clock
from tests.house import House
from tests.webhooks.rivo_sends import ANA, SECRET, Rivo, points_event, profile

CREATED = "points_event/created"
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def award(rivo: Rivo, **fields: object) -> str:
    """The operation id of an award that Rivo has written, and whose answer was lost."""
    sandbox = rivo.house.sandbox
    fault = sandbox.faults.add(
        path=r"/merchant_api/v1/points_events", method="POST", account="rivo", kind="reset_after"
    )
    answer = rivo.house.award(rivo.connection, {"email": ANA, **(fields or {"points": 50})})
    assert (answer.status_code, answer.json()["status"]) == (202, "being_confirmed"), answer.text
    assert fault.hits == 1
    operation_id: str = answer.json()["operation_id"]
    assert rivo.award_state(operation_id) == ("unknown", None)
    return operation_id


def test_an_unknown_award_is_settled_by_the_event_that_carries_its_id(
    rivo: Rivo, house: House, store: RivoStore, clock: Clock
) -> None:
    operation_id = award(rivo)
    assert rivo.status(points_event(operation_id, points=50), topic=CREATED) == "award_confirmed"
    assert rivo.award_state(operation_id) == ("applied", "webhook")
    clock.advance(1)
    rivo.balance()
    assert rivo.balance() == 170
    for _ in range(30):
        clock.advance(10)
        house.work()
    assert len(store.events(ANA)) == 1, "nothing is sent again"
    assert rivo.award_state(operation_id) == ("applied", "webhook")


@only_sqlite
def test_a_second_delivery_settles_nothing_more(rivo: Rivo) -> None:
    operation_id = award(rivo)
    event = points_event(operation_id, points=50)
    assert rivo.status(event, topic=CREATED, key="msg_1") == "award_confirmed"
    assert rivo.status(event, topic=CREATED, key="msg_1") == "repeated"
    assert rivo.status(event, topic=CREATED, key="msg_2") == "accepted", "another delivery, and the award was settled"


@only_sqlite
def test_store_credit_is_proven_by_its_amount(rivo: Rivo) -> None:
    operation_id = award(rivo, store_credit="5.25")
    for wrong in (points_event(operation_id, credits=5.0), points_event(operation_id, points=525)):
        assert rivo.status(wrong, topic=CREATED) == "accepted"
    assert rivo.award_state(operation_id) == ("unknown", None)
    assert rivo.status(points_event(operation_id, credits=5.25), topic=CREATED) == "award_confirmed"


@only_sqlite
@pytest.mark.parametrize(
    "event",
    [
        {"points": 49},
        {"points": -50},
        {"points": 50, "credits": 1.0},
        {"points": 50, "internal_note": "Goodwill"},
        {"points": 50, "internal_note": "Tallydesk td_\u0000\u0000: x"},
        {"points": 50, "internal_note": f"Tallydesk td_{'a' * 24}: x"},
        {"points": 50, "revoked_at": "2026-03-14T09:31:00Z"},
    ],
)
def test_what_does_not_fit_proves_nothing(rivo: Rivo, event: dict[str, object]) -> None:
    operation_id = award(rivo)
    told = points_event(operation_id, **event)  # type: ignore[arg-type]
    assert rivo.status(told, topic=CREATED) == "accepted"
    assert rivo.award_state(operation_id) == ("unknown", None)


def test_another_store_proves_nothing_about_an_award(rivo: Rivo, house: House) -> None:
    operation_id = award(rivo)
    other = Rivo(house=house, connection=house.open_rivo(store="fernhill"))
    house.services.stores.save_webhook_secret(other.connection.store, secret=SECRET)
    assert other.status(points_event(operation_id, points=50), topic=CREATED) == "accepted"
    assert rivo.award_state(operation_id) == ("unknown", None)


@only_sqlite
def test_only_a_created_event_proves_an_award(rivo: Rivo) -> None:
    operation_id = award(rivo)
    event = points_event(operation_id, points=50)
    for topic, status in (("points_event/revoked", "accepted"), ("", "unknown_topic")):
        assert rivo.status(event, topic=topic) == status
    assert rivo.status({**event, "event_type": "points_event/updated"}, topic=CREATED) == "accepted"
    assert rivo.award_state(operation_id) == ("unknown", None)
    assert rivo.status({"data": {"id": 1, "attributes": event}}, topic=CREATED) == "award_confirmed"


# --------------------------------------------------------------------------------- With the sandbox's Rivo


@pytest.mark.parametrize("scheme", ["standard", "legacy_base64", "legacy_hex"])
def test_rivo_itself_settles_an_award_whose_answer_was_lost(
    rivo: Rivo, house: House, store: RivoStore, clock: Clock, scheme: str
) -> None:
    assert rivo.balance() == 120
    clock.advance(1)
    store.subscribe(rivo.url, secret=SECRET, scheme=scheme)
    path = r"/merchant_api/v1/points_events"
    house.sandbox.faults.add(path=path, method="POST", account="rivo", kind="status_after", status=502)
    answer = house.award(rivo.connection, {"email": ANA, "points": 50, "ticket_id": "7"})
    # What the agent hears depends on whether the webhook was faster than the trouble.
    assert answer.json()["status"] in ("being_confirmed", "applied")
    house.sandbox.settle()
    assert rivo.award_state(answer.json()["operation_id"]) == ("applied", "webhook")
    delivered = {(one.topic, one.status, one.attempts) for one in store.deliveries()}
    assert delivered == {("points_event/created", 200, 1), ("loyalty_profile/updated", 200, 1)}
    clock.advance(1)
    rivo.balance()
    assert rivo.balance() == 170
    assert len(store.events(ANA)) == 1


@pytest.mark.parametrize("scheme", ["standard", "legacy_base64"])
def test_rivo_that_delivers_everything_twice_changes_nothing(
    rivo: Rivo, house: House, store: RivoStore, clock: Clock, scheme: str
) -> None:
    rivo.balance()
    clock.advance(1)
    store.subscribe(rivo.url, secret=SECRET, scheme=scheme)
    store.deliver_twice = True
    store.add_event(ANA, points=30, source="order_placed", title="Order #1001")
    house.sandbox.settle()
    assert [one.status for one in store.deliveries()] == [200] * 4
    assert rivo.handled() == 2
    clock.advance(1)
    rivo.balance()
    assert rivo.balance() == 150


@only_sqlite
def test_an_award_that_was_answered_is_only_brought_up_to_date(rivo: Rivo, house: House, store: RivoStore) -> None:
    store.subscribe(rivo.url, secret=SECRET)
    answer = house.award(rivo.connection, {"email": ANA, "points": 50})
    assert answer.json()["status"] == "applied"
    house.sandbox.settle()
    state, by = rivo.award_state(answer.json()["operation_id"])
    # Rivo may be faster than its own answer.
    assert (state, by in ("answer", "webhook")) == ("applied", True)
    assert {one.status for one in store.deliveries()} == {200}


@only_sqlite
def test_rivo_hears_that_a_secret_does_not_fit(rivo: Rivo, house: House, store: RivoStore) -> None:
    store.subscribe(rivo.url, secret="not what was pasted", topics=("loyalty_profile/updated",))
    store.update_customer(ANA, points_tally=1)
    house.sandbox.settle()
    assert [(one.status, one.attempts) for one in store.deliveries()] == [(401, 2)]
    assert rivo.send(profile()).status_code == 200
