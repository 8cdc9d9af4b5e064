"""What became of a call: one table for writes, one for reads; each row is a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loyalty.program import (
    OutcomeUnknown,
    ProgramError,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    UnknownMember,
)
from loyalty.rivo_wire import Answer, NothingCame, judge, read_pause

SAMPLES = Path(__file__).parent / "samples"
NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)

CREATED = (SAMPLES / "created__with_customer.json").read_bytes()
CANCELLED = (SAMPLES / "cancellation__vendor.json").read_bytes()
HTML = (SAMPLES / "maintenance.html").read_bytes()
HTML_404 = (SAMPLES / "not_found.html").read_bytes()
JSON_404 = (SAMPLES / "not_found.json").read_bytes()
CUT = (SAMPLES / "cut.txt").read_bytes()
EMPTY = (SAMPLES / "empty.txt").read_bytes()

DONE = "done"
NOBODY = "nobody"


@dataclass(frozen=True)
class NotDone:
    """It was certainly not done, and may be asked again."""

    reason: ProgramReason


@dataclass(frozen=True)
class Unknown:
    """It may have been done."""

    reason: ProgramReason


@dataclass(frozen=True)
class Refused:
    """It was certainly not done and will not be."""

    told: str


def became(came: Answer | NothingCame, *, writes: bool) -> Any:
    try:
        told = judge(came, writes=writes, now=NOW)
    except OutcomeUnknown as error:
        return Unknown(error.reason)
    except ProgramUnavailable as error:
        return NotDone(error.reason)
    except ProgramRefused as error:
        return Refused(error.told)
    except UnknownMember:
        return NOBODY
    if not writes and told is None:
        return NOBODY
    return DONE


def said(status: int, body: bytes | dict[str, Any] = b"", *, ended: bool = True, phrase: str = "") -> Answer:
    return Answer(
        status=status, phrase=phrase, body=body if isinstance(body, bytes) else orjson.dumps(body), ended=ended
    )


NO_ANSWER = Unknown(ProgramReason.NO_ANSWER)
UNREADABLE = Unknown(ProgramReason.UNREADABLE)
SERVER_ERROR = Unknown(ProgramReason.SERVER_ERROR)

WRITES = {
    "nothing was sent: it may be asked again": (NothingCame.NOT_SENT, NotDone(ProgramReason.NOT_REACHED)),
    "no answer came: it may have been done": (NothingCame.NO_ANSWER, NO_ANSWER),
    "an answer without end: it may have been done": (NothingCame.TOO_LARGE, UNREADABLE),
    "201 with the event: done": (said(201, CREATED), DONE),
    "201 with any object: done": (said(201, {}), DONE),
    "201 with nothing, properly ended: done": (said(201, EMPTY), DONE),
    "201 with blanks, properly ended: done": (said(201, b" \n"), DONE),
    "201 with nothing, perhaps cut: unknown": (said(201, EMPTY, ended=False), UNREADABLE),
    "201 with an error: unknown": (said(201, {"error": "Something"}), UNREADABLE),
    "201 with errors: unknown": (said(201, {"errors": ["Something"]}), UNREADABLE),
    "201 with success false: unknown": (said(201, {"success": False, "data": {"id": 1}}), UNREADABLE),
    "201 without any error: done": (said(201, {"success": True, "error": None, "errors": []}), DONE),
    "201 with a list: unknown": (said(201, b"[]"), UNREADABLE),
    "201 with null: unknown": (said(201, b"null"), UNREADABLE),
    "201 with HTML: unknown": (said(201, HTML), UNREADABLE),
    "201 with cut JSON: unknown": (said(201, CUT), UNREADABLE),
    "204 with nothing: done": (said(204), DONE),
    "204 with HTML: unknown": (said(204, HTML), UNREADABLE),
    "200 with the event: done": (said(200, CREATED), DONE),
    "200 with a cancellation: done": (said(200, CANCELLED), DONE),
    "202 with the event: done": (said(202, CREATED), DONE),
    "200 with nothing: unknown": (said(200), UNREADABLE),
    "202 with nothing: unknown": (said(202), UNREADABLE),
    "200 with an empty object: unknown": (said(200, {}), UNREADABLE),
    "200 with no data: unknown": (said(200, {"data": None}), UNREADABLE),
    "200 with empty data: unknown": (said(200, {"data": {}}), UNREADABLE),
    "200 with a list of data: unknown": (said(200, {"data": [{"id": 1}]}), UNREADABLE),
    "200 with a refusal inside: unknown": (said(200, {"success": False, "error": "Not enough points"}), UNREADABLE),
    "200 with HTML: unknown": (said(200, HTML), UNREADABLE),
    "200 with cut JSON: unknown": (said(200, CUT), UNREADABLE),
    "a status before the answer: unknown": (said(103), UNREADABLE),
    "a redirect: unknown": (said(302), UNREADABLE),
    "not modified: unknown": (said(304), UNREADABLE),
    "400 with a sentence: refused in those words": (
        said(400, {"error": "points_amount is missing"}),
        Refused("points_amount is missing"),
    ),
    "422 with a message": (said(422, {"message": "Customer is excluded"}), Refused("Customer is excluded")),
    "422 with a list of errors": (said(422, {"errors": ["One", "Two"]}), Refused("One; Two")),
    "422 with errors by field": (
        said(422, {"errors": {"points_amount": ["is too large", "is odd"], "base": "No"}}),
        Refused("points_amount is too large; is odd; base No"),
    ),
    "422 with errors as objects": (
        said(422, {"errors": [{"code": 7, "detail": "Too much"}]}),
        Refused("Too much"),
    ),
    "422 with an error as object": (said(422, {"error": {"message": "Too much"}}), Refused("Too much")),
    "422 with empty words uses those that follow": (said(422, {"error": "", "message": "No"}), Refused("No")),
    "422 with an e-mail in it": (
        said(422, {"error": "ana@example.com is excluded"}),
        Refused("[address] is excluded"),
    ),
    "422 with a whole novel": (said(422, {"error": "x " * 5_000}), Refused(("x " * 100).rstrip())),
    "422 with HTML: the phrase of the status": (
        said(422, HTML, phrase="Unprocessable Entity"),
        Refused("Unprocessable Entity"),
    ),
    "422 with nothing at all": (said(422), Refused("")),
    "404 as JSON: no such member": (said(404, JSON_404), NOBODY),
    "404 as HTML: no such member": (said(404, HTML_404), NOBODY),
    "404 about a reward: refused": (said(404, {"error": "Reward not found"}), Refused("Reward not found")),
    "422 that means no such member": (said(422, {"error": "Customer not found"}), NOBODY),
    "400 that means no such member": (said(400, {"errors": ["customer could not be found"]}), NOBODY),
    "422 about something else of a customer": (
        said(422, {"error": "Customer has no reward: reward not found"}),
        Refused("Customer has no reward: reward not found"),
    ),
    "401: the key": (said(401, {"error": "Unauthorized"}), NotDone(ProgramReason.KEY_REFUSED)),
    "401 as HTML: the key": (said(401, HTML), NotDone(ProgramReason.KEY_REFUSED)),
    "403: the plan or the key": (said(403), NotDone(ProgramReason.KEY_REFUSED)),
    "408: the request may have come through": (said(408), NO_ANSWER),
    "409: refused": (said(409, {"error": "Locked"}), Refused("Locked")),
    "429: not done, later": (said(429, HTML), NotDone(ProgramReason.BUSY)),
    "500: unknown": (said(500, {"error": "Oops"}), SERVER_ERROR),
    "502 as HTML: unknown": (said(502, HTML), SERVER_ERROR),
    "503: unknown": (said(503), SERVER_ERROR),
    "504: unknown": (said(504), SERVER_ERROR),
    "a status nobody knows: unknown": (said(799), SERVER_ERROR),
}

READS = {
    "nothing was sent": (NothingCame.NOT_SENT, NotDone(ProgramReason.NOT_REACHED)),
    "no answer came": (NothingCame.NO_ANSWER, NO_ANSWER),
    "an answer without end": (NothingCame.TOO_LARGE, UNREADABLE),
    "200 with data": (said(200, {"data": {"id": 1}}), DONE),
    "200 with a flat object": (said(200, {"id": 1}), DONE),
    "200 with HTML: unreadable": (said(200, HTML), UNREADABLE),
    "200 with cut JSON: unreadable": (said(200, CUT), UNREADABLE),
    "200 with nothing: unreadable": (said(200), UNREADABLE),
    "204: unreadable": (said(204), UNREADABLE),
    "200 with a number: unreadable": (said(200, b"7"), UNREADABLE),
    "200 with null: unreadable": (said(200, b"null"), UNREADABLE),
    "200 with an error instead of data: refused": (said(200, {"error": "Plan too small"}), Refused("Plan too small")),
    "200 with an error that means nobody": (said(200, {"success": False, "error": "Customer not found"}), NOBODY),
    "404 as JSON: nobody": (said(404, JSON_404), NOBODY),
    "404 as HTML: nobody": (said(404, HTML_404), NOBODY),
    "422 that means nobody": (said(422, {"message": "No such customer"}), NOBODY),
    "400: refused": (said(400, {"error": "Bad page"}), Refused("Bad page")),
    "302: unreadable": (said(302), UNREADABLE),
    "401: the key": (said(401), NotDone(ProgramReason.KEY_REFUSED)),
    "403: the key": (said(403), NotDone(ProgramReason.KEY_REFUSED)),
    "408: no answer": (said(408), NO_ANSWER),
    "429: later": (said(429), NotDone(ProgramReason.BUSY)),
    "500: server error": (said(500), SERVER_ERROR),
    "502 as HTML: server error": (said(502, HTML), SERVER_ERROR),
}


@pytest.mark.parametrize(("came", "expected"), WRITES.values(), ids=WRITES.keys())
def test_a_write(came: Answer | NothingCame, expected: Any) -> None:
    assert became(came, writes=True) == expected


@pytest.mark.parametrize(("came", "expected"), READS.values(), ids=READS.keys())
def test_a_read(came: Answer | NothingCame, expected: Any) -> None:
    assert became(came, writes=False) == expected


@given(status=st.integers(100, 999), body=st.binary(max_size=50), writes=st.booleans(), ended=st.booleans())
def test_any_answer_has_one_of_these_outcomes(status: int, body: bytes, writes: bool, ended: bool) -> None:
    outcome = became(said(status, body, ended=ended), writes=writes)
    if writes and status >= 500:
        assert outcome == SERVER_ERROR
    if outcome == DONE:
        assert 200 <= status < 300


def test_a_refusal_has_the_status_it_came_with() -> None:
    with pytest.raises(ProgramRefused) as caught:
        judge(said(409, {"error": "Locked"}), writes=True, now=NOW)
    assert (caught.value.status, str(caught.value)) == (409, "The program answered 409: Locked.")


def sentence(came: Answer | NothingCame, *, why: str = "") -> str:
    with pytest.raises(ProgramError) as caught:
        judge(came, writes=True, now=NOW, why=why)
    return str(caught.value)


def test_the_operator_is_told_what_happened() -> None:
    assert sentence(NothingCame.NOT_SENT, why="the connection was refused") == (
        "Rivo could not be reached: the connection was refused. Nothing was sent."
    )
    assert sentence(NothingCame.NO_ANSWER, why="no whole answer in time") == (
        "Rivo gave no whole answer: no whole answer in time."
    )
    assert sentence(said(503)) == "Rivo answered 503."
    told = sentence(said(401))
    assert "regenerated" in told
    assert "Bearer" in told


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 1.0),
        ("", 1.0),
        ("soon", 1.0),
        ("0", 1.0),
        ("-5", 1.0),
        ("2", 2.0),
        (" 2.5 ", 2.5),
        ("59", 59.0),
        ("3600", 60.0),
        ("9" * 400, 1.0),
        ("nan", 1.0),
        ("inf", 1.0),
        (format_datetime(NOW + timedelta(seconds=7), usegmt=True), 7.0),
        (format_datetime(NOW - timedelta(seconds=7), usegmt=True), 1.0),
        (format_datetime(NOW + timedelta(days=7), usegmt=True), 60.0),
        ("Sat, 14 Mar 2026 09:30:07", 7.0),
        ("Sat, 99 Mar 2026 09:30:07 GMT", 1.0),
    ],
)
def test_how_long_to_wait_is_told_in_seconds_or_as_a_date_and_bounded(header: str | None, seconds: float) -> None:
    assert read_pause(header, now=NOW) == seconds
    with pytest.raises(ProgramUnavailable) as caught:
        judge(Answer(status=429, retry_after=header), writes=True, now=NOW)
    assert caught.value.retry_after_s == seconds
