"""What is read from Rivo's answers: every documented and observed shape from a file, and anything else unharmed."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loyalty import rivo_wire as wire
from loyalty.rivo_wire import Customer, Paging, PointsEventRecord

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str) -> Any:
    return orjson.loads((SAMPLES / name).read_bytes())


def customer(name: str) -> Customer:
    found = wire.read_customer(sample(name))
    assert found is not None
    return found


def test_a_customer_as_live_answers_have_it() -> None:
    assert customer("customer__live.json") == Customer(
        id=7198000000001,
        email="ana@example.com",
        status="member",
        points_tally=150,
        credits_tally=Decimal("25.50"),
        vip_tier_name="Gold",
        referral_url="https://brand.myshopify.com?referral_code=abcDEF12345",
        referral_code="abcDEF12345",
        points_expire_at="December 31, 2026",
        lifetime_earnings_tally=None,
        date_of_birth="07-13",
    )


def test_the_documented_name_of_the_balance_counts_where_the_observed_one_is_missing() -> None:
    assert customer("customer__documented.json").points_tally == 150


def test_a_customer_without_the_envelope_is_one() -> None:
    assert customer("customer__flat.json") == customer("customer__live.json")


def test_no_tier_is_an_empty_name() -> None:
    found = customer("customer__null_tier.json")
    assert (found.vip_tier_name, found.credits_tally) == ("", Decimal("2.4"))


def test_a_tier_may_be_a_bare_name() -> None:
    assert customer("customer__tier_as_text.json").vip_tier_name == "Silver"


def test_a_guest_with_an_unpadded_birthday_and_a_debt() -> None:
    found = customer("customer__guest_short_dob.json")
    assert (found.status, found.date_of_birth, found.points_tally, found.referral_url) == ("guest", "09-28", -40, "")


def test_an_excluded_customer() -> None:
    assert customer("customer__excluded.json").status == "excluded"


def test_unknown_fields_are_ignored_and_unknown_values_kept() -> None:
    found = customer("customer__unknown_fields_and_values.json")
    assert (found.status, found.vip_tier_name) == ("paused", "Ünïque ✨")


@pytest.mark.parametrize("name", ["customer__nulls_everywhere.json", "customer__wrong_types_everywhere.json"])
def test_what_cannot_be_read_is_none_or_empty(name: str) -> None:
    found = customer(name)
    assert found == Customer(
        id=found.id,
        email="",
        status="",
        points_tally=None,
        credits_tally=None,
        vip_tier_name="",
        referral_url="",
        referral_code="",
        points_expire_at="",
        lifetime_earnings_tally=None,
        date_of_birth="",
    )


def events() -> list[PointsEventRecord]:
    page = wire.read_page(
        sample("points_events__list.json"), asked=wire.first_page(Paging.OFFSET), read=wire.read_points_event
    )
    assert page is not None
    return list(page.items)


def test_an_event_has_the_id_beside_its_attributes_and_is_for_people() -> None:
    assert events()[0] == PointsEventRecord(
        id=91000001,
        points=100,
        credits=Decimal("0.0"),
        what="Placed an order",
        internal_note="",
        source="order_placed",
        applied_at=datetime(2026, 5, 1, 10, tzinfo=UTC),
        created_at=datetime(2026, 5, 1, 10, 0, 1, tzinfo=UTC),
        revoked=False,
        hidden=False,
        sign_known=True,
        customer_id=7198000000001,
    )


def test_the_sign_is_that_of_the_difference() -> None:
    assert events()[1].points == -100


def test_without_a_difference_a_redemption_takes_away() -> None:
    spent = events()[2]
    assert (spent.points, spent.what) == (-100, "Points purchase")


def test_store_credit_is_an_event_of_no_points() -> None:
    credit = events()[3]
    assert (credit.points, credit.credits, credit.what) == (0, Decimal("-1000.0"), "Manual")


def test_an_operation_id_is_found_behind_what_the_admin_writes() -> None:
    found = wire.read_internal_note(events()[3].internal_note)
    assert found == ("td_abcdefghijklmnopqrstuvwx", "Sorry for the delay")


def test_revoked_and_hidden_rows_are_marked_and_an_unknown_source_is_readable() -> None:
    row = events()[4]
    assert (row.revoked, row.hidden, row.what) == (True, True, "Vip tier upgraded soon")


def test_a_created_event_with_a_customer() -> None:
    created = wire.read_created_event(sample("created__with_customer.json"))
    assert created.id == 91000006
    assert created.customer is not None
    assert created.customer.points_tally == 400


@pytest.mark.parametrize("name", ["created__without_customer.json", "created__composite_id_only.json"])
def test_a_created_event_without_a_customer_has_the_last_part_of_its_pair_of_ids(name: str) -> None:
    created = wire.read_created_event(sample(name))
    assert (created.id, created.customer) == (91000006, None)


def test_a_created_event_of_which_nothing_is_told() -> None:
    assert wire.read_created_event(None) == wire.CreatedEvent(id=None, customer=None)


def test_a_redemption() -> None:
    found = wire.read_redemption(sample("redemption__created.json"))
    assert found is not None
    assert (found.id, found.code, found.name) == (24000001, "BAL-0123456789ab", "$5 off coupon")
    assert (found.points, found.reward_id, found.used, found.taken_back) == (-100, 594000, False, False)
    assert found.customer is not None


def test_a_redemption_without_a_code_that_was_used_and_taken_back() -> None:
    page = wire.read_page(
        sample("redemptions__list.json"), asked=wire.first_page(Paging.OFFSET), read=wire.read_redemption
    )
    assert page is not None
    second = page.items[1]
    assert (second.code, second.used, second.taken_back) == ("", True, True)


def test_tiers_with_their_perks() -> None:
    page = wire.read_page(sample("vip_tiers__list.json"), asked=wire.first_page(Paging.OFFSET), read=wire.read_vip_tier)
    assert page is not None
    assert [(tier.name, tier.threshold, tier.perks) for tier in page.items] == [
        ("Silver", Decimal(500), ("Free shipping", "Early access")),
        ("Gold", Decimal("1250.5"), ()),
    ]


def test_rewards_of_unknown_kinds_are_kept_and_those_without_a_name_dropped() -> None:
    page = wire.read_page(sample("rewards__list.json"), asked=wire.first_page(Paging.OFFSET), read=wire.read_reward)
    assert page is not None
    assert [(reward.name, reward.reward_type, reward.value) for reward in page.items] == [
        ("$5 off coupon", "fixed_amount", Decimal("5.0")),
        ("Mystery", "teleport", None),
    ]


def test_earning_rules_without_a_title_are_dropped() -> None:
    page = wire.read_page(
        sample("earning_rules__list.json"), asked=wire.first_page(Paging.OFFSET), read=wire.read_earning_rule
    )
    assert page is not None
    assert [(rule.title, rule.trigger, rule.points) for rule in page.items] == [
        ("Sign up", "customer_member_enabled", 50)
    ]


def test_a_membership_in_the_vendors_shape() -> None:
    found = wire.read_membership(sample("membership__vendor.json"))
    assert found is not None
    assert (found.email, found.customer_id, found.tier_id) == ("ana@example.com", 7198000000001, 12)
    assert (found.subscription_status, found.billing_interval, found.currency) == ("active", "month", "EUR")
    assert found.ends_later_at == found.next_billing_at == datetime(2026, 6, 1, tzinfo=UTC)
    assert found.ended_at is None


def test_no_membership_is_an_error_alone() -> None:
    assert wire.read_membership(sample("membership__none.json")) is None


def test_a_cancellation_with_and_without_words() -> None:
    told = wire.read_cancellation(sample("cancellation__vendor.json"))
    assert (told.status, told.message, told.policy) == ("pending", "Ends with the period.", "end_of_period")
    assert wire.read_cancellation(None) == wire.Cancellation()


# -- values

Read = Callable[[Any], Any]


def of_customer(**attributes: Any) -> Customer:
    found = wire.read_customer({"data": {"attributes": attributes}})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (150, 150),
        (-3, -3),
        ("150", 150),
        (" 150.0 ", 150),
        (150.0, 150),
        (150.5, None),
        (True, None),
        ("1e3", None),
        ("٥", None),
        ("", None),
        (10**30, None),
        ("9" * 400, None),
        (2**63, None),
        (1e300, None),
        (float("inf"), None),
        ([150], None),
    ],
)
def test_points_are_whole_numbers_or_nothing(given: Any, read: int | None) -> None:
    assert of_customer(points_tally=given).points_tally == read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("25.50", Decimal("25.50")),
        ("0.0", Decimal("0.0")),
        (25.5, Decimal("25.5")),
        (0.1, Decimal("0.1")),
        (25, Decimal(25)),
        ("-1.25", Decimal("-1.25")),
        ("NaN", None),
        ("Infinity", None),
        ("1e999999", None),
        ("1e-999999", None),
        ("9" * 39, None),
        ("$5", None),
        (True, None),
        ({}, None),
    ],
)
def test_store_credit_is_a_decimal_of_its_digits_or_nothing(given: Any, read: Decimal | None) -> None:
    assert of_customer(credits_tally=given).credits_tally == read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("07-13", "07-13"),
        ("9-28", "09-28"),
        ("2-29", "02-29"),
        ("1990-07-13", "07-13"),
        ("13-07", ""),
        ("02-30", ""),
        ("00-00", ""),
        ("July 13", ""),
        ("٠٧-١٣", ""),
        (713, ""),
    ],
)
def test_a_date_of_birth_is_month_and_day_or_nothing(given: Any, read: str) -> None:
    assert of_customer(dob=given).date_of_birth == read


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "//elsewhere.example",
        "ftp://x.example",
        "https://",
        "https://[",
        "https://x.example/\n",
        "https://x.example/ y",
        'https://x.example/"onclick',
        "https://x.example/<b>",
        "https://x.example/\\evil",
        "https://x.example/{{ticket}}",
        "https://x.example/\u202e",
        "https://x.example/" + "a" * 2_000,
        "data:text/html,x",
        7,
    ],
)
def test_a_referral_address_that_a_browser_might_misread_is_none(address: Any) -> None:
    # A line break at the end is trimmed, as browsers do; within, it is none.
    expected = "https://x.example/" if address == "https://x.example/\n" else ""
    assert of_customer(referral_url=address).referral_url == expected


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("  Gold\n tier\x00\x1b[31m ", "Gold tier [31m"),
        ("ask ana@example.com", "ask [address]"),
        ("ask ana%40example.com now", "ask [address] now"),
        ("x" * 5_000, "x" * 200),
        ("\u202eevil", "evil"),
        (5, "5"),
        (None, ""),
        (True, ""),
    ],
)
def test_text_for_people_is_one_short_line_without_addresses(given: Any, read: str) -> None:
    assert wire.shown(given) == read


def test_a_time_without_a_zone_is_utc_and_an_impossible_one_is_none() -> None:
    def applied(at: Any) -> datetime | None:
        found = wire.read_points_event({"id": 1, "applied_at": at})
        assert found is not None
        return found.applied_at

    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert applied("2026-05-01T12:00:00") == noon
    assert applied("2026-05-01T14:00:00+02:00") == noon
    for odd in ("May 1", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", 5, None):
        assert applied(odd) is None


# -- paging


def page_of(name: str, *, asked: wire.Fields) -> wire.Page[Customer]:
    page = wire.read_page(sample(name), asked=asked, read=wire.read_customer)
    assert page is not None
    return page


CURSOR = (("pagination[since_id]", "0"), ("pagination[limit]", "2"))
OFFSET = (("pagination[page]", "1"), ("pagination[per_page]", "1"))


def test_a_cursor_goes_on_where_rivo_says() -> None:
    page = page_of("customers__cursor_newer.json", asked=CURSOR)
    assert [found.email for found in page.items] == ["ana@example.com", "ben@example.com"]
    assert page.next == (("pagination[since_id]", "7198000000002"), ("pagination[limit]", "2"))


def test_a_cursor_ends_with_null_or_with_no_rows() -> None:
    assert page_of("customers__cursor_end.json", asked=CURSOR).next is None


def test_where_only_self_is_told_a_full_page_goes_on_behind_its_last_id() -> None:
    page = page_of("customers__cursor_older.json", asked=CURSOR)
    assert page.next == (("pagination[since_id]", "7198000000002"), ("pagination[limit]", "2"))


def test_where_only_self_is_told_a_short_page_is_the_last() -> None:
    asked = (("pagination[since_id]", "0"), ("pagination[limit]", "3"))
    assert page_of("customers__cursor_older.json", asked=asked).next is None


def test_a_cursor_that_does_not_go_forward_ends() -> None:
    asked = (("pagination[since_id]", "7198000000002"), ("pagination[limit]", "2"))
    assert page_of("customers__cursor_newer.json", asked=asked).next is None


def test_an_offset_goes_on_while_there_is_a_next_and_never_follows_its_address() -> None:
    assert page_of("customers__offset.json", asked=OFFSET).next == (
        ("pagination[page]", "2"),
        ("pagination[per_page]", "1"),
    )


def test_an_offset_ends_with_null() -> None:
    assert page_of("customers__offset_end.json", asked=OFFSET).next is None


def test_an_offset_without_links_ends_with_a_short_page() -> None:
    full = {"data": [{"id": 1}]}
    assert wire.read_page(full, asked=OFFSET, read=wire.read_customer) == wire.Page(
        items=(wire.read_customer({"id": 1}),), next=(("pagination[page]", "2"), ("pagination[per_page]", "1"))
    )
    short = wire.read_page(full, asked=wire.first_page(Paging.OFFSET), read=wire.read_customer)
    assert short is not None
    assert short.next is None


@pytest.mark.parametrize("told", [{}, [], None, {"data": {}}, {"data": None}, {"data": [1]}, {"data": [{}, None]}])
def test_what_is_no_list_of_objects_is_no_page(told: Any) -> None:
    """A row that is passed over might be the one that is looked for."""
    assert wire.read_page(told, asked=OFFSET, read=wire.read_points_event) is None


# -- notes

OPERATION = "td_abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (f"Tallydesk {OPERATION}: Sorry", (OPERATION, "Sorry")),
        (f"kim@shop.example: Tallydesk {OPERATION}: Sorry", (OPERATION, "Sorry")),
        (f"kim@shop.example:Tallydesk  {OPERATION}:\n Sorry \n twice", (OPERATION, "Sorry twice")),
        (f"Tallydesk {OPERATION}:", (OPERATION, "")),
        (f"Tallydesk {OPERATION}", (OPERATION, "")),
        (f"Tallydesk {OPERATION}: Tallydesk td_other: x", (OPERATION, "Tallydesk td_other: x")),
        ("Tallydesk", None),
        ("NotTallydesk td_x: y", None),
        ("tallydesk@x.example: moved", None),
        ("", None),
    ],
)
def test_our_note_is_read_however_it_was_dressed(text: str, read: tuple[str, str] | None) -> None:
    assert wire.read_internal_note(text) == read


@given(st.text(max_size=600), st.text(alphabet=string.ascii_lowercase + "234567_", min_size=1, max_size=40))
def test_every_note_we_write_is_found_again(what: str, operation_id: str) -> None:
    note = wire.internal_note(operation_id, what)
    assert len(note) <= wire.MAX_NOTE
    found = wire.read_internal_note(f"kim@shop.example: {note}")
    assert found is not None
    assert found[0] == operation_id


def record(note: str) -> PointsEventRecord:
    found = wire.read_points_event({"id": 1, "internal_note": note})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("note", "ours"),
    [
        (f"Tallydesk {OPERATION}: x", True),
        (f"Tallydesk {OPERATION}", True),
        (f"Tallydesk {OPERATION[:15]}", True),
        (f"Tallydesk {OPERATION[:5]}", False),
        (f"Tallydesk {OPERATION[:15]}: x", False),
        (f"Tallydesk {OPERATION[:15]}:", False),
        (f"Tallydesk {OPERATION}y: x", False),
        (f"Tallydesk td_other: undoes Tallydesk {OPERATION}: x", False),
        (OPERATION, False),
    ],
)
def test_a_row_carries_an_operation_only_by_its_own_id(note: str, ours: bool) -> None:
    assert wire.carries(record(note), OPERATION) is ours


# -- anything at all

NAMES = st.sampled_from(
    sorted(
        {
            name
            for path in SAMPLES.glob("*.json")
            for name in path.read_text().split('"')
            if name.replace("_", "").isalpha()
        }
    )
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "0", "1e999999", "NaN", "02-30", "https://[", "2026-01-01T00:00:00Z", "a@b.example"])
)
JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=8),
    max_leaves=30,
)
READERS: list[Read] = [
    wire.read_customer,
    wire.read_vip_tier,
    wire.read_reward,
    wire.read_earning_rule,
    wire.read_points_event,
    wire.read_redemption,
    wire.read_created_event,
    wire.read_membership,
    wire.read_cancellation,
    wire.shows_nobody,
    wire.words,
    wire.shown,
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@given(told=JSON)
def test_no_reader_stumbles_over_anything(read: Read, told: Any) -> None:
    for envelope in (told, {"data": told}, {"data": {"id": told, "attributes": told}}):
        read(envelope)


@given(told=JSON, asked=st.sampled_from([CURSOR, OFFSET]))
def test_no_page_stumbles_over_anything(told: Any, asked: wire.Fields) -> None:
    for envelope in (told, {"data": told}, {"data": [told]}, {"links": told, "data": [{"id": told}] * 3}):
        wire.read_page(envelope, asked=asked, read=wire.read_points_event)


@given(st.text(max_size=400))
def test_shown_text_is_always_short_and_harmless(text: str) -> None:
    shown = wire.shown(text)
    assert len(shown) <= 200
    assert re.search(r"\S@\S", shown) is None
    assert all(c.isprintable() for c in shown)
