"""What is sent to Rivo, byte for byte."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loyalty import rivo_wire as wire
from loyalty.rivo_wire import NewRivoEvent, Request


def sent(request: Request) -> tuple[str, str, list[tuple[str, str]], list[tuple[str, str]] | None]:
    """Method, path, query and form, as a server reads them."""
    path, _, query = request.target().partition("?")
    body = request.body()
    form = None if body is None else parse_qsl(body.decode(), keep_blank_values=True)
    return request.method, path, parse_qsl(query), form


def test_a_customer_is_asked_for_by_an_encoded_address_or_by_number() -> None:
    assert wire.customer("ana+gifts/x?y#z @exämple.com").target() == (
        "/customers/ana%2Bgifts%2Fx%3Fy%23z%20%40ex%C3%A4mple.com"
    )
    assert wire.customer(7198000000001).target() == "/customers/7198000000001"


@pytest.mark.parametrize("identifier", ["", ".", ".."])
def test_an_identifier_that_would_lead_to_another_path_is_refused(identifier: str) -> None:
    with pytest.raises(ValueError, match="no identifier"):
        wire.customer(identifier)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip(".")))
def test_any_identifier_is_one_segment(identifier: str) -> None:
    path = wire.cancel_membership(identifier).path
    assert path.count("/") == 3
    assert unquote(path.split("/")[2]) == identifier


def test_the_key_is_tried_with_a_list_of_one() -> None:
    assert wire.try_key().target() == "/vip_tiers?pagination%5Bper_page%5D=1"


def test_lists_and_their_filters() -> None:
    assert sent(wire.rewards()) == ("GET", "/rewards", [], None)
    assert sent(wire.rewards(purchase_type="subscription"))[2] == [("filters[purchase_type]", "subscription")]
    assert sent(wire.earning_rules()) == ("GET", "/earning_rules", [], None)
    assert sent(wire.vip_tier(3)) == ("GET", "/vip_tiers/3", [], None)
    assert sent(wire.points_events(newest_first=False)) == ("GET", "/points_events", [], None)
    assert sent(wire.points_events(of="a+b@example.com", newest_first=True))[2] == [
        ("filters[customer_identifier]", "a+b@example.com"),
        ("sort[order_direction]", "desc"),
    ]
    assert sent(wire.redemptions(of=7, used=False))[2] == [
        ("filters[customer_identifier]", "7"),
        ("filters[used]", "false"),
        ("sort[order_type]", "applied_at"),
        ("sort[order_direction]", "desc"),
    ]


def test_the_two_ways_to_page_never_meet() -> None:
    assert wire.first_page(wire.Paging.CURSOR) == (("pagination[since_id]", "0"), ("pagination[limit]", "250"))
    assert wire.first_page(wire.Paging.OFFSET, size=50) == (("pagination[page]", "1"), ("pagination[per_page]", "50"))


def test_points_are_given_with_what_was_said_and_nothing_else() -> None:
    event = NewRivoEvent(customer_identifier="a+b@example.com", points=-5, internal_note="Tallydesk td_x: ü & =")
    assert sent(wire.create_points_event(event)) == (
        "POST",
        "/points_events",
        [],
        [
            ("customer_identifier", "a+b@example.com"),
            ("source", "manual"),
            ("points_amount", "-5"),
            ("internal_note", "Tallydesk td_x: ü & ="),
        ],
    )


def test_store_credit_is_given_in_two_decimals_with_everything_that_can_be_said() -> None:
    event = NewRivoEvent(
        customer_identifier=7,
        credits=Decimal("2.5"),
        internal_note="note",
        external_note="For you",
        skip_email=True,
        source="custom_action",
        custom_action_name="Nice letter",
        applied_at=datetime(2026, 3, 14, 9, 30, tzinfo=UTC),
    )
    assert sent(wire.create_points_event(event))[3] == [
        ("customer_identifier", "7"),
        ("source", "custom_action"),
        ("credits_amount", "2.50"),
        ("internal_note", "note"),
        ("external_note", "For you"),
        ("skip_email", "true"),
        ("custom_action_name", "Nice letter"),
        ("applied_at", "2026-03-14T09:30:00.000Z"),
    ]


def test_an_action_may_leave_the_amount_to_its_rule() -> None:
    event = NewRivoEvent(
        customer_identifier=7, internal_note="", source="visit_url", custom_action_name="https://x.example"
    )
    assert ("points_amount", "") not in (sent(wire.create_points_event(event))[3] or [])


@pytest.mark.parametrize(
    "amounts",
    [
        {},
        {"points": 0},
        {"points": True},
        {"points": 2**31},
        {"points": -(2**31)},
        {"points": 5, "credits": Decimal(5)},
        {"credits": Decimal(0)},
        {"credits": Decimal("0.005")},
        {"credits": Decimal("NaN")},
        {"credits": Decimal("Infinity")},
    ],
)
def test_an_amount_that_rivo_could_take_for_another_is_not_sent(amounts: Any) -> None:
    with pytest.raises(ValueError, match=r"points|credit"):
        NewRivoEvent(customer_identifier=7, internal_note="x", **amounts)


def test_a_redemption_of_a_reward_of_fixed_and_of_any_size() -> None:
    assert sent(wire.create_redemption(of="a@example.com", reward_id=3)) == (
        "POST",
        "/points_redemptions",
        [],
        [("customer_identifier", "a@example.com"), ("reward_id", "3")],
    )
    assert ("points_amount", "250") in (sent(wire.create_redemption(of=7, reward_id=3, points=250))[3] or [])
    assert ("credits_amount", "2.50") in (
        sent(wire.create_redemption(of=7, reward_id=3, credits=Decimal("2.5")))[3] or []
    )


def test_a_date_of_birth_is_written_as_it_is_read() -> None:
    assert sent(wire.set_date_of_birth("a@example.com", month=2, day=29)) == (
        "PUT",
        "/customers/a%40example.com",
        [],
        [("dob", "02-29")],
    )
    with pytest.raises(ValueError, match="day"):
        wire.set_date_of_birth(7, month=2, day=30)


def test_a_membership_is_cancelled_without_a_body() -> None:
    assert sent(wire.cancel_membership("a@example.com")) == (
        "DELETE",
        "/memberships/a%40example.com/cancel",
        [],
        None,
    )


@pytest.mark.parametrize("text", ["abc123", "  abc123\n", "x", "k" * 4_000, "clé-ÿ", "a:b/c=="])
def test_a_key_is_what_was_pasted_without_blanks_around_it(text: str) -> None:
    key = wire.clean_key(text)
    assert key == text.strip()
    key.encode("latin-1")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "Paste the REST API key"),
        (" \n\t", "Paste the REST API key"),
        ("Bearer abc", "without a word such as Bearer"),
        ("abc\r\nX-Other: 1", "no spaces"),
        ("abc\u00a0def", "no spaces"),
        ("abc\x00", "copy it once more"),
        ("abc\x7f", "copy it once more"),
        ("abc\x85def", "no spaces"),
        ("abc\u200b", "copy it once more"),
        ("abc\u00ad", "copy it once more"),
        ("schlüssel→", "copy it once more"),
        ("k" * 4_001, "copy it once more"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_with_a_sentence(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part) as caught:
        wire.clean_key(text)
    assert "abc" not in str(caught.value)
