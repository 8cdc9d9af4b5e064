"""A link that a program gives is http(s) or it is not shown: agents press it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from loyalty.program import Member, MemberStatus
from schemas.link import web_address
from widget import card

GOOD = ("https://shop.example/?ref=abc", "http://shop.example:8080/a/b#c", "https://münchen.example/é")
BAD = (
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "data:text/html,<b>x</b>",
    "//shop.example/a",
    "/oauth/install",
    "https://",
    "https://shop.example/{{ticket.id}}",
    "https://shop.example/a b",
    'https://shop.example/"onclick=',
    "https://[shop",
    "ftp://shop.example",
    "https://shop.example/" + "a" * 2_000,
    "",
)


@pytest.mark.parametrize("link", GOOD)
def test_a_web_address_stays_as_it_is(link: str) -> None:
    assert web_address(f" {link}\n") == link


@pytest.mark.parametrize("link", BAD)
def test_anything_else_is_blank_on_the_card_whatever_program_it_comes_from(link: str) -> None:
    member = Member(
        email="jane@example.com",
        status=MemberStatus.MEMBER,
        points_balance=1,
        as_of=datetime(2026, 3, 14, tzinfo=UTC),
        referral_url=link,
    )
    assert card.found(member, award_key="")["referral_url"] == ""
