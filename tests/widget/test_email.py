"""Addresses as they arrive: read where they can be, never bent into somebody else's."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.email import MAX_ADDRESSES, normalise, read_addresses

ADDRESS_LIKE = st.text(alphabet=st.sampled_from("aİßΣǅé́ﬁ@.+%2B40 \t\n,;<>{}\x00\x7f\u200b\u00a0ŉ"), max_size=60)


@given(st.text() | ADDRESS_LIKE)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert once is None or normalise(once) == once


@given(st.lists(st.text() | ADDRESS_LIKE, max_size=4))
def test_whatever_arrives_what_is_read_is_normalised_and_short(values: list[str]) -> None:
    found = read_addresses(values)
    assert len(found) <= MAX_ADDRESSES
    assert len(set(found)) == len(found)
    for address in found:
        assert normalise(address) == address
        assert len(address) <= 254


@pytest.mark.parametrize(
    ("arrived", "meant"),
    [
        ("jane@example.com", "jane@example.com"),
        ("  Jane@EXAMPLE.com \r\n", "jane@example.com"),
        ("jane+vip@example.com", "jane+vip@example.com"),
        ("jane vip@example.com", "jane+vip@example.com"),
        ("jane%2Bvip%40example.com", "jane+vip@example.com"),
        ("Jane Doe <Jane@Example.com>", "jane@example.com"),
        ('"Doe, Jane" <jane@example.com>', "jane@example.com"),
        ("JU\u0308RGEN@example.com", "jürgen@example.com"),
        ("jane%40example.com%2Cjoan%40example.com", "jane@example.com"),
    ],
)
def test_one_address_in_every_clothing(arrived: str, meant: str) -> None:
    assert read_addresses([arrived])[0] == meant


def test_a_percent_sign_in_an_address_is_a_letter_like_others() -> None:
    assert read_addresses(["ten%25@example.com"]) == ("ten%25@example.com",)


@pytest.mark.parametrize(
    "arrived",
    [
        "jane%40example.com%2C@evil.example",
        "%6aane@example.com",
        '"<jane@example.com>"@evil.example',
        "<jane@example.com>@evil.example",
        "x<jane@example.com>y@evil.example",
        "jane@example.com,@evil.example",
        '"jane@example.com" <@evil.example>',
        "jane@example.com <x@evil.example>",
    ],
)
def test_nobody_is_taken_for_somebody_else_whose_address_stands_inside_theirs(arrived: str) -> None:
    """Who writes in chooses their own address, and must not be shown another shopper's card by it."""
    assert "jane@example.com" not in read_addresses([arrived])


@pytest.mark.parametrize("separator", [",", ";", "\n", ", ", " ; "])
def test_several_addresses_are_read_in_their_order(separator: str) -> None:
    assert read_addresses([separator.join(["B@example.com", "a@example.com"])]) == ("b@example.com", "a@example.com")


@pytest.mark.parametrize(
    "arrived",
    [
        "",
        "   ",
        "{{ticket.customer.email}}",
        quote("{{ticket.customer.email}}"),
        "None",
        "null",
        "jane",
        "jane@",
        "@example.com",
        "jane@example",
        "jane@doe@example.com",
        "ja\x00ne@example.com",
        "ja\tne@example.com",
        "ja\u00a0ne@example.com",
        "ja\x1bne@example.com",
        f"{'j' * 300}@example.com",
        "x" * 9_000 + ",jane@example.com",
    ],
)
def test_what_is_no_address_names_nobody(arrived: str) -> None:
    assert read_addresses([arrived]) == ()


def test_a_value_too_long_to_read_is_not_cut_into_another_address() -> None:
    """At the cut `jane@example.com.au` would become `jane@example.com`."""
    padding = "x," * 992
    assert read_addresses([f"{padding}jane@example.com.au"]) == ()
