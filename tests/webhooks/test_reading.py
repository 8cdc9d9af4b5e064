"""What a webhook tells, in every shape that is documented or was seen, and in shapes that are neither."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loyalty.rivo_webhook import Evidence, Told, read
from tests.webhooks.rivo_sends import ANA, points_event, profile

OPERATION = "td_" + "a2" * 12
BEN = "ben@example.com"


def told_by(body: Any, topic: str = "") -> Told:
    told = read(orjson.dumps(body), topic_header=topic)
    assert told is not None
    return told


@pytest.mark.parametrize(
    ("topic", "body", "emails"),
    [
        ("points_event/created", {"points_diff": 5, "customer": profile()}, (ANA,)),
        ("points_redemption/created", {"customer": {"data": {"attributes": {"email": ANA}}}}, (ANA,)),
        ("loyalty_profile/updated", profile(), (ANA,)),
        ("loyalty_profile/updated", {"data": {"id": 1, "type": "customer", "attributes": profile()}}, (ANA,)),
        ("loyalty_profile/updated", {"data": profile()}, (ANA,)),
        ("customer_vip_tier/downgraded", {"id": [59, 45], "vip_tier_id": 2, "customer": profile()}, (ANA,)),
        ("membership/payment_success", {"customer_id": 7, "customer_email": ANA}, (ANA,)),
        ("balance_transaction/created", {"customer": profile(), "customer_email": BEN}, (ANA, BEN)),
        (
            "referral/completed",
            {"referrer_customer": profile(), "referred_customer": profile(BEN), "referred_email": BEN},
            (ANA, BEN),
        ),
        ("referral/completed", {"referrer_customer": None, "referred_email": BEN}, (BEN,)),
        ("referral/created", {"advocate_email": ANA, "referred_email": BEN}, (BEN, ANA)),
        ("membership/canceled", {"customer_id": 7}, ()),
    ],
)
def test_the_customers_of_every_known_shape(topic: str, body: dict[str, Any], emails: tuple[str, ...]) -> None:
    told = told_by(body, topic)
    assert told.known
    assert told.topic == topic
    assert told.emails == emails


def test_an_address_is_found_in_its_only_form() -> None:
    assert told_by({"customer": {"email": "  ANA@Example.COM "}}).emails == (ANA,)
    assert told_by({"customer": profile(), "email": "Ana@example.com"}).emails == (ANA,)
    assert told_by({"customer_email": "Ana <ana@example.com>, ben@example.com"}).emails == ()


def test_the_topic_of_the_body_counts_before_that_of_the_header() -> None:
    body = profile(event_type="loyalty_profile/updated")
    assert told_by(body, "points_event/created").topic == "loyalty_profile/updated"
    assert told_by({"data": {"attributes": body}}, "other/topic").topic == "loyalty_profile/updated"
    assert told_by(profile(event_type=""), "loyalty_profile/updated").topic == "loyalty_profile/updated"
    assert told_by(profile(event_type=["x"]), " loyalty_profile/updated ").topic == "loyalty_profile/updated"


def test_the_topic_within_a_customer_is_not_that_of_the_delivery() -> None:
    body = points_event(OPERATION, points=5, customer=profile(event_type="loyalty_profile/updated"))
    assert told_by(body, "points_event/created").topic == "points_event/created"


@pytest.mark.parametrize("topic", ["", "widget_event/created", "points", "POINTS_EVENT/created", "😀/x"])
def test_an_unknown_topic_is_not_known_and_still_names_who_may_have_changed(topic: str) -> None:
    told = told_by(profile(), topic)
    assert not told.known
    assert told.emails == (ANA,)


@pytest.mark.parametrize("topic", ["notification/points_expiry_warning", "referral_invite/created"])
def test_an_announcement_changes_nobody(topic: str) -> None:
    told = told_by({"customer": profile()}, topic)
    assert told.known
    assert told.emails == ()


def test_a_new_points_event_with_our_note_is_evidence() -> None:
    topic = "points_event/created"
    event = points_event(OPERATION, points=50)
    expected = Evidence(operation_id=OPERATION, points=50, credit_cents=0)
    assert told_by(event, topic).evidence == expected
    assert told_by({**event, "event_type": topic}).evidence == expected
    assert told_by({"data": {"id": 9, "attributes": event}}, topic).evidence == expected
    assert told_by({**event, "internal_note": f"jo@shop.example: Tallydesk {OPERATION}: T"}, topic).evidence == expected
    assert told_by({**event, "points_diff": None}, topic).evidence == expected
    taken = Evidence(operation_id=OPERATION, points=-50, credit_cents=0)
    assert told_by(points_event(OPERATION, points=-50), topic).evidence == taken


@pytest.mark.parametrize(
    ("credits", "cents"), [(5.5, 550), (25.1, 2510), (-0.01, -1), ("12.30", 1230), (0.30000000000000004, 30), (0.0, 0)]
)
def test_store_credit_in_evidence_is_exact_to_the_cent(credits: Any, cents: int) -> None:
    event = {**points_event(OPERATION), "credits_diff": credits}
    found = told_by(event, "points_event/created").evidence
    assert found == Evidence(operation_id=OPERATION, points=0, credit_cents=cents)


@pytest.mark.parametrize(
    "change",
    [
        {"internal_note": None},
        {"internal_note": "Goodwill"},
        {"internal_note": 5},
        {"revoked_at": "2026-03-14T09:31:00.000Z"},
        {"credits_diff": 0.005},
    ],
)
def test_what_is_no_evidence(change: dict[str, Any]) -> None:
    event = {**points_event(OPERATION, points=50), **change}
    assert told_by(event, "points_event/created").evidence is None


@pytest.mark.parametrize("topic", ["points_event/updated", "points_event/revoked", "balance_transaction/created", ""])
def test_only_a_created_event_is_evidence(topic: str) -> None:
    assert told_by(points_event(OPERATION, points=50), topic).evidence is None


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"', b"5", b"{", b"{}x", b"\xff\xfe{}", b"[" * 100_000])
def test_what_is_no_json_object_tells_nothing(body: bytes) -> None:
    assert read(body) is None


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([ANA, "points_event/created", f"Tallydesk {OPERATION}: x", "1e999999", "NaN", "2026-03-14"])
)
_FIELDS = st.sampled_from(
    ["data", "attributes", "id", "email", "customer", "customer_email", "referrer_customer", "referred_customer",
     "referred_email", "event_type", "internal_note", "points_diff", "points_amount", "credits_diff", "credits_amount",
     "revoked_at", "hidden", "source", "title", "applied_at", "points_tally", "vip_tier", "dob"]
) | st.text(max_size=5)  # fmt: skip
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_FIELDS, inner, max_size=8), max_leaves=30
)


@settings(deadline=None)
@given(body=_JSON, topic=st.text(max_size=10) | st.just("points_event/created"))
def test_any_json_is_read_without_raising(body: Any, topic: str) -> None:
    told = read(orjson.dumps(body), topic_header=topic)
    assert (told is None) == (not isinstance(body, dict))
    if told is not None:
        assert all(email == email.strip().lower() and "@" in email for email in told.emails)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_raising(body: bytes) -> None:
    read(body)
