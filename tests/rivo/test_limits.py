"""What a hostile or broken program sends takes no more time and room than it is worth."""

from __future__ import annotations

import json

import pytest

from loyalty import rivo_wire as wire
from loyalty.rivo_wire import read_page, read_points_event
from schemas.email import normalise
from schemas.widget import without_addresses

PAGE = (("pagination[page]", "1"), ("pagination[per_page]", "250"))


def test_an_address_of_thousands_of_marks_is_none() -> None:
    assert normalise("a" + "\u0315\u0300" * 60_000 + "@example.com") is None
    assert normalise("a" * 600 + "@example.com") is None
    assert normalise("ana@example.com" + " " * 60_000) == "ana@example.com"


def test_long_words_are_kept_as_they_are_and_addresses_in_them_are_not() -> None:
    assert without_addresses("x" * 100_000) == "x" * 100_000
    assert "ana@example.com" not in without_addresses("y" * 10_000 + " write to ana@example.com")


def test_a_page_of_far_more_rows_than_asked_for_is_none() -> None:
    rows = [{"id": number} for number in range(wire.MOST_ROWS + 1)]
    assert read_page({"data": rows}, asked=PAGE, read=read_points_event) is None


@pytest.mark.parametrize(
    ("row", "taken", "opposite"),
    [
        ({"points_diff": 50}, False, False),
        ({"points_diff": -50}, False, True),
        ({"points_diff": -50}, True, False),
        ({"points_diff": 50}, True, True),
        # The sign is not known: it may be ours.
        ({"points_diff": None, "points_amount": 50}, True, False),
        ({"points_diff": None, "points_amount": 50, "credits_diff": "0.0"}, True, False),
        ({"credits_diff": "-5.0", "points_amount": 0}, False, True),
        ({"credits_amount": "5.0", "points_diff": 0}, True, False),
    ],
)
def test_a_correction_that_quotes_our_note_is_not_our_event(
    row: dict[str, object], taken: bool, opposite: bool
) -> None:
    record = read_points_event(json.loads(json.dumps({"id": 1, "attributes": {"source": "manual", **row}})))
    assert record is not None
    assert wire.is_opposite(record, taken=taken) is opposite


def test_an_event_says_whose_it_is_where_it_can() -> None:
    row = {"id": 1, "attributes": {"points_diff": 5, "customer": {"id": 7, "email": "Bob@Example.com"}}}
    record = read_points_event(row)
    assert record is not None
    assert (record.customer_id, record.customer_email) == (7, "bob@example.com")
    bare = read_points_event({"id": 1, "attributes": {"points_diff": 5, "customer_identifier": 7198000000001}})
    assert bare is not None
    assert (bare.customer_id, bare.customer_email, bare.credits) == (7198000000001, "", None)
