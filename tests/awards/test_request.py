"""What the button may send: any clothing for a plain whole number, and nothing else for points."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.widget import AwardFields, BadRequest, RequestFault, read_award
from tests.house import House
from widget.connections import Connection

JANE = "jane+vip@example.com"
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.mark.parametrize("points", [50, "50", " 50 ", "0050", "\t50\r\n"])
def test_points_are_a_plain_whole_number_or_its_text(points: Any) -> None:
    assert read_award({"points": points}).points == 50


@pytest.mark.parametrize(
    "points",
    [
        5.9, 50.0, 1e3, "5.9", "1e3", "1_000", "1,000", "٥", "５", "²", "+5", "-5", -5, 0, "0", "", " ", True, False,
        None, 10**30, "9" * 11, 10_000_000_000, [], [50], {"points": 50}, "50 60", "0x32", "５０", "5\u00a0", "5\x00",
        "NaN", "{{points}}",
    ],
)  # fmt: skip
def test_nothing_else_is_taken_for_points(points: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        read_award({"points": points})
    assert refused.value.reason is RequestFault.POINTS_INVALID
    assert str(refused.value) == "Enter the points as a whole number from 1, such as 50. Nothing was added."


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["points", "email", "ticket_id", "agent_email", "reason", "award_key", "other"])


@given(st.dictionaries(NAMES, anything) | anything)
def test_whatever_is_sent_is_read_or_refused_with_a_sentence(sent: Any) -> None:
    fields, sentence = _read(sent)
    if fields is None:
        assert sentence.endswith("Nothing was added.")
        return
    assert 1 <= fields.points <= 9_999_999_999
    assert len(fields.reason) <= 200
    assert fields.reason.isprintable()
    assert fields.ticket_id == "" or (fields.ticket_id.isascii() and fields.ticket_id.isdigit())


@pytest.mark.parametrize("empty", ["", None, "{{current_user.email}}", "None", "null"])
def test_what_the_helpdesk_could_not_fill_in_counts_as_missing(empty: Any) -> None:
    fields = read_award(
        {"points": 5, "email": empty, "ticket_id": empty, "agent_email": empty, "reason": empty, "award_key": empty}
    )
    assert fields.emails == ()
    assert fields.agent_email is None
    assert (fields.ticket_id, fields.reason, fields.award_key) == ("", "", "")


@pytest.mark.parametrize("email", ["ja\x00ne@example.com", "ja\u200bne@example.com\u200b ", "ja\tne@example.com"])
def test_an_address_is_never_tidied_into_somebody_elses(email: str) -> None:
    """With the odd character replaced by a space, `ja ne@` would be read as `ja+ne@`."""
    assert "ja+ne@example.com" not in read_award({"points": 5, "email": email}).emails


def test_json_form_and_query_say_the_same(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE)
    sent = {"email": JANE, "points": "5", "ticket_id": "", "reason": "Late"}
    balance = 0
    ways: tuple[dict[str, Any], ...] = (
        {"json": sent},
        {"json": {**sent, "points": 5}},
        {"data": sent},
        {"params": sent},
        {"files": {name: (None, value) for name, value in sent.items()}},
        {"data": b'{"email": "jane+vip@example.com", "points": 5}', "headers": {"Content-Type": "text/plain"}},
        {"data": b' {"email": "jane+vip@example.com", "points": 5}', "headers": {}},
        {"params": {"email": JANE}, "data": {"points": "5"}},
        {"params": {"email": JANE, "points": "900"}, "json": {"points": 5}},
    )
    for number, kwargs in enumerate(ways):
        house.clock.advance(60)
        balance += 5
        answer = house.award(connection, **kwargs)
        assert answer.status_code == 200, (number, answer.text)
        assert answer.json()["points_balance"] == balance, number


@only_sqlite
def test_an_unreadable_request_is_refused_with_a_sentence(house: House, connection: Connection) -> None:
    as_json = {"Content-Type": "application/json"}
    for body in (
        b"",
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"{",
        b"{'points': 5}",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"a":' * 2_000,
    ):
        answer = house.award(connection, data=body, headers=as_json)
        assert answer.status_code == 422, body[:20]
        assert answer.json()["status"] == "rejected"
        assert answer.json()["message"].endswith("Nothing was added.")
    assert house.award(connection, data={}).json()["reason"] == "points_invalid"
    for fields, reason in (
        ({"ticket_id": "12; --"}, "ticket_invalid"),
        ({"ticket_id": 5.5}, "request_unreadable"),
        ({"reason": ["a"]}, "request_unreadable"),
        ({"email": {"a": 1}}, "request_unreadable"),
    ):
        answer = house.award(connection, {"points": 5, **fields})
        assert (answer.status_code, answer.json()["reason"]) == (422, reason)


@only_sqlite
def test_a_request_that_is_too_large_is_refused_and_counted(house: House, connection: Connection) -> None:
    for kwargs in ({"data": {"points": "5", "reason": "x" * 20_000}}, {"json": {"points": 5, "reason": "x" * 20_000}}):
        answer = house.award(connection, **kwargs)
        assert answer.status_code == 413
        assert answer.json()["reason"] == "request_too_large"
        assert answer.json()["message"].endswith("Nothing was added.")


def _read(sent: Any) -> tuple[AwardFields | None, str]:
    """What was read, or why not."""
    try:
        return read_award(sent), ""
    except BadRequest as error:
        return None, str(error)


def test_an_address_in_the_reason_is_not_kept() -> None:
    """A reason is kept and shown plain; an address never is."""
    assert read_award({"points": 5, "reason": "asked by jane@example.org, late"}).reason == "asked by [address] late"


def test_a_ticket_number_has_one_form() -> None:
    """Else `7` and `007` would be two tickets to the double-click window."""
    assert [read_award({"points": 5, "ticket_id": told}).ticket_id for told in ("7", "007", "0", "000")] == [
        "7",
        "7",
        "0",
        "0",
    ]
