"""The client against a server that says what it is told to: what is sent, what the gate hears, what is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select
from structlog.testing import capture_logs

import outbound
from loyalty import rivo_wire as wire
from loyalty.gate import Call, Entry, Gate, Lane
from loyalty.program import (
    NotOffered,
    OutcomeUnknown,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    UnknownMember,
)
from loyalty.rivo import Access, RivoClient
from loyalty.rivo_wire import NewRivoEvent
from storage.database import Database
from storage.tables import gates
from telemetry import as_line
from tests.databases import Clock
from tests.oauth.scripted import Answer, Scripted
from tests.rivo.conftest import ClientOf
from tests.rivo.raw import Peer, Raw

SAMPLES = Path(__file__).parent / "samples"
ACCESS = Access(key="raw-key-ÿ", gate="shop")
OPERATION = "td_abcdefghijklmnopqrstuvwx"


@pytest.fixture
def odd(scripted: Scripted, client_of: ClientOf) -> RivoClient:
    """A client of the scripted server, under a path as Rivo's is."""
    return client_of(f"{scripted.url}/merchant_api/v1/")


def sample(name: str, *, status: int = 200) -> Answer:
    return Answer(status=status, body=(SAMPLES / name).read_bytes())


def said(told: Any, *, status: int = 200, **headers: str) -> Answer:
    return Answer(
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        body=json.dumps(told).encode(),
    )


def note(what: str = "Sorry") -> NewRivoEvent:
    return NewRivoEvent(
        customer_identifier="ana@example.com", points=5, internal_note=wire.internal_note(OPERATION, what)
    )


def gate_row(database: Database) -> Any:
    with database.read() as tx:
        return tx.execute(select(gates).where(gates.c.name == "shop")).one()


def counted(call: str, outcome: str) -> float:
    labels = {"program": "rivo", "call": call, "outcome": outcome}
    return REGISTRY.get_sample_value("tallydesk_program_calls_total", labels) or 0.0


def test_the_raw_key_is_sent_and_nothing_that_would_tell_more(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [sample("customer__live.json")]
    odd.customer(ACCESS, "ana@example.com")
    seen = scripted.seen[0]
    assert (seen.method, seen.path) == ("GET", "/merchant_api/v1/customers/ana%40example.com")
    assert seen.headers["Authorization"] == "raw-key-ÿ"
    assert seen.headers["Accept"] == "application/json"
    assert seen.headers["User-Agent"] == "Tallydesk"
    assert "Cookie" not in seen.headers


def test_a_points_event_is_sent_as_a_form(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [sample("created__with_customer.json", status=201)]
    created = odd.create_points_event(ACCESS, note())
    assert created.id == 91000006
    seen = scripted.seen[0]
    assert (seen.method, seen.path) == ("POST", "/merchant_api/v1/points_events")
    assert seen.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert b"points_amount=5" in seen.body


Do = Callable[[RivoClient], Any]
READS: dict[str, Do] = {
    "try_key": lambda rivo: rivo.try_key(ACCESS),
    "customer": lambda rivo: rivo.customer(ACCESS, "ana@example.com"),
    "customers": lambda rivo: list(rivo.customers(ACCESS)),
    "vip_tiers": lambda rivo: list(rivo.vip_tiers(ACCESS)),
    "vip_tier": lambda rivo: rivo.vip_tier(ACCESS, 1),
    "rewards": lambda rivo: list(rivo.rewards(ACCESS)),
    "earning_rules": lambda rivo: list(rivo.earning_rules(ACCESS)),
    "points_events": lambda rivo: list(rivo.points_events(ACCESS)),
    "redemptions": lambda rivo: list(rivo.redemptions(ACCESS, customer=7)),
}
WRITES: dict[str, Do] = {
    "create_points_event": lambda rivo: rivo.create_points_event(ACCESS, note()),
    "create_redemption": lambda rivo: rivo.create_redemption(ACCESS, customer=7, reward_id=3),
    "set_date_of_birth": lambda rivo: rivo.set_date_of_birth(ACCESS, 7, month=5, day=31),
    "cancel_membership": lambda rivo: rivo.cancel_membership(ACCESS, 7),
}
CALLS = {**READS, **WRITES}


def failure(do: Do, rivo: RivoClient) -> ProgramUnavailable:
    with pytest.raises(ProgramUnavailable) as caught:
        do(rivo)
    return caught.value


@pytest.mark.parametrize("name", CALLS)
def test_every_call_tells_a_refused_key_and_counts_it(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, name: str
) -> None:
    before = counted(name, "key_refused")
    scripted.answers = [said({"error": "Unauthorized"}, status=401)]
    assert failure(CALLS[name], odd).reason is ProgramReason.KEY_REFUSED
    assert counted(name, "key_refused") == before + 1
    assert gate_row(sqlite_database).failures == 0, "a program that refuses is alive"


@pytest.mark.parametrize("name", CALLS)
def test_every_call_that_fails_is_sent_once_and_told_to_the_gate(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, name: str
) -> None:
    scripted.answers = [Answer(status=503, body=b"<p>Back soon</p>")]
    error = failure(CALLS[name], odd)
    assert isinstance(error, OutcomeUnknown)
    assert error.reason is ProgramReason.SERVER_ERROR
    assert len(scripted.seen) == 1
    assert gate_row(sqlite_database).failures == 1


@pytest.mark.parametrize("name", CALLS)
def test_every_call_answered_with_html_is_unreadable(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, name: str
) -> None:
    scripted.answers = [sample("maintenance.html")]
    assert failure(CALLS[name], odd).reason is ProgramReason.UNREADABLE
    assert gate_row(sqlite_database).failures == 1


@pytest.mark.parametrize("name", CALLS)
def test_every_call_that_cannot_be_sent_says_so(client_of: ClientOf, sqlite_database: Database, name: str) -> None:
    with Raw(lambda peer: None) as gone:
        url = gone.url
    error = failure(CALLS[name], client_of(url))
    assert not isinstance(error, OutcomeUnknown)
    assert error.reason is ProgramReason.NOT_REACHED
    assert gate_row(sqlite_database).failures == 1


@pytest.mark.parametrize("name", CALLS)
def test_every_call_waits_no_longer_than_it_may(client_of: ClientOf, name: str) -> None:
    def hang(peer: Peer) -> None:
        peer.request()
        peer.wait_until_gone()

    with Raw(hang) as server, pytest.MonkeyPatch.context() as patch:
        rivo = client_of(server.url)
        enter = rivo._gate.enter
        patch.setattr(rivo._gate, "enter", lambda gate, call: replace(enter(gate, call=call), left_s=0.2))
        assert failure(CALLS[name], rivo).reason is ProgramReason.NO_ANSWER
        assert len(server.requests) == 1


@pytest.mark.parametrize("name", WRITES)
def test_a_write_for_nobody_is_told(scripted: Scripted, odd: RivoClient, name: str) -> None:
    before = counted(name, "unknown_member")
    scripted.answers = [sample("not_found.html", status=404)]
    with pytest.raises(UnknownMember):
        WRITES[name](odd)
    assert counted(name, "unknown_member") == before + 1


@pytest.mark.parametrize("answer", [sample("not_found.json", status=404), sample("not_found.html", status=404)])
@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("customer", None),
        ("vip_tier", None),
        ("customers", []),
        ("vip_tiers", []),
        ("rewards", []),
        ("earning_rules", []),
        ("redemptions", []),
    ],
)
def test_a_read_of_what_is_not_there_is_nothing(
    scripted: Scripted, odd: RivoClient, name: str, nothing: Any, answer: Answer
) -> None:
    scripted.answers = [answer]
    assert READS[name](odd) == nothing


def test_points_events_that_are_not_there_are_not_an_empty_list(scripted: Scripted, odd: RivoClient) -> None:
    """An award would be sent again for want of a trace of it."""
    scripted.answers = [sample("not_found.html", status=404)]
    with pytest.raises(ProgramRefused):
        list(odd.points_events(ACCESS, customer="ana@example.com"))


@pytest.mark.parametrize("told", [{}, {"data": {}}, [], {"data": [7]}])
def test_a_key_that_opens_something_else_than_rivo_is_not_taken(scripted: Scripted, odd: RivoClient, told: Any) -> None:
    scripted.answers = [said(told)]
    assert failure(READS["try_key"], odd).reason is ProgramReason.UNREADABLE


def test_a_key_is_not_taken_where_no_api_is(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [sample("not_found.html", status=404)]
    assert failure(READS["try_key"], odd).reason is ProgramReason.UNREADABLE


@pytest.mark.parametrize("told", [{"data": []}, {"data": None}, {"data": {}}])
def test_a_good_answer_without_a_customer_is_nobody(scripted: Scripted, odd: RivoClient, told: Any) -> None:
    scripted.answers = [said(told)]
    assert odd.customer(ACCESS, "ana@example.com") is None


@pytest.mark.parametrize("told", [[], [1], {}])
def test_a_good_answer_of_another_kind_is_unreadable(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, told: Any
) -> None:
    before = counted("customer", "ok"), counted("customer", "unreadable")
    scripted.answers = [said(told)]
    for _ in range(2):
        assert failure(READS["customer"], odd).reason is ProgramReason.UNREADABLE
    assert gate_row(sqlite_database).failures == 2
    assert (counted("customer", "ok"), counted("customer", "unreadable")) == (before[0], before[1] + 2)


@pytest.mark.parametrize("told", ["ben@example.com", None, "", "ana@example.com.evil.example", 7])
def test_another_customer_than_asked_for_is_nobody_and_is_logged_without_a_name(
    scripted: Scripted, odd: RivoClient, told: Any
) -> None:
    scripted.answers = [said({"data": {"id": 1, "attributes": {"email": told, "points_tally": 5}}})]
    with capture_logs() as logged:
        assert odd.customer(ACCESS, "ana@example.com") is None
    assert [line["outcome"] for line in logged] == ["another_customer"]
    assert "@" not in str(logged)
    assert "ben" not in str(logged)


def test_the_same_address_in_another_spelling_is_the_same_customer(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [said({"data": {"id": 1, "attributes": {"email": " ANA@Example.com "}}})]
    found = odd.customer(ACCESS, "ana@example.com")
    assert found is not None
    assert found.email == "ana@example.com"


def test_a_customer_asked_for_by_number_may_have_any_address(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [said({"data": {"id": 7, "attributes": {"email": None}}})]
    assert odd.customer(ACCESS, 7) is not None


def test_an_answer_to_a_write_that_is_too_large_leaves_it_unknown(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [Answer(status=201, body=b" " * (outbound.MAX_BODY + 1))]
    error = failure(WRITES["create_points_event"], odd)
    assert isinstance(error, OutcomeUnknown)
    assert error.reason is ProgramReason.UNREADABLE


# -- 429


def test_a_busy_program_is_left_alone_for_as_long_as_it_says(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, clock: Clock
) -> None:
    scripted.answers = [said({}, status=429, Retry_After="7")]
    error = failure(WRITES["create_points_event"], odd)
    assert (error.reason, error.retry_after_s) == (ProgramReason.BUSY, 7.0)
    assert not isinstance(error, OutcomeUnknown)
    row = gate_row(sqlite_database)
    assert row.paused_until == clock() + timedelta(seconds=7)
    assert row.failures == 0
    assert len(scripted.seen) == 1


def test_calls_during_a_pause_are_not_sent(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [said({}, status=429, Retry_After="7")]
    failure(WRITES["create_points_event"], odd)
    before = counted("customer", "busy")
    with pytest.raises(ProgramUnavailable) as caught:
        odd.customer(ACCESS, 7, call=Call(lane=Lane.AGENT, within_s=2.5))
    assert caught.value.reason is ProgramReason.BUSY
    assert counted("customer", "busy") == before + 1
    assert len(scripted.seen) == 1


def test_no_time_left_after_the_gate_sends_nothing(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "enter", lambda self, name, *, call: Entry(left_s=0.0, after_failures=False))
    assert failure(WRITES["create_points_event"], odd).reason is ProgramReason.BUDGET_SPENT
    assert scripted.seen == []


def test_a_program_that_answers_again_is_well(scripted: Scripted, odd: RivoClient, sqlite_database: Database) -> None:
    scripted.answers = [Answer(status=500), Answer(status=500), sample("customer__live.json")]
    failure(READS["customer"], odd)
    failure(READS["customer"], odd)
    assert gate_row(sqlite_database).failures == 2
    odd.customer(ACCESS, "ana@example.com")
    assert gate_row(sqlite_database).failures == 0


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_program_that_refuses_is_well(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database, status: int
) -> None:
    scripted.answers = [Answer(status=500), said({"error": "No"}, status=status)]
    failure(WRITES["create_points_event"], odd)
    with pytest.raises((ProgramRefused, UnknownMember)):
        odd.create_points_event(ACCESS, note())
    assert gate_row(sqlite_database).failures == 0


def test_a_write_that_was_done_stays_done_when_our_database_is_broken(
    scripted: Scripted, odd: RivoClient, sqlite_database: Database
) -> None:
    scripted.answers = [sample("created__with_customer.json", status=201)]
    enter = odd._gate.enter

    def enter_and_lose_the_table(name: str, *, call: Call) -> Entry:
        entry = enter(name, call=call)
        with sqlite_database.write() as tx:
            gates.drop(tx)
        return replace(entry, after_failures=True)

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logged:
        patch.setattr(odd._gate, "enter", enter_and_lose_the_table)
        assert odd.create_points_event(ACCESS, note()).id == 91000006
    assert [line["outcome"] for line in logged] == ["gate_not_told"]


# -- lists


def rows(*ids: int, created: str = "2026-03-14T09:30:00Z", notes: dict[int, str] | None = None) -> list[Any]:
    return [
        {
            "id": number,
            "type": "points_event",
            "attributes": {
                "id": [1, number],
                "points_diff": number,
                "created_at": created,
                "internal_note": (notes or {}).get(number),
            },
        }
        for number in ids
    ]


def test_a_list_is_read_page_by_page_and_only_as_far_as_it_is_wanted(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [said({"links": {"next": "http://elsewhere.example/"}, "data": rows(9, 8)})]
    events = odd.points_events(ACCESS, customer=7, page_size=2)
    assert scripted.seen == []
    assert [next(events).id for _ in range(3)] == [9, 8, 9]
    assert [seen.path.partition("page%5D=")[2][:1] for seen in scripted.seen] == ["1", "2"]


def test_a_page_that_fails_in_the_middle_is_an_error_and_not_an_end(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [said({"links": {"next": "x"}, "data": rows(9)}), Answer(status=500)]
    with pytest.raises(OutcomeUnknown):
        list(odd.points_events(ACCESS))


@pytest.mark.parametrize("name", ["customers", "points_events"])
def test_a_page_that_is_missing_in_the_middle_is_an_error_and_not_an_end(
    scripted: Scripted, odd: RivoClient, name: str
) -> None:
    links = {"next": "x", "next_since_id": 9}
    scripted.answers = [said({"links": links, "data": rows(9)}), sample("not_found.html", status=404)]
    with pytest.raises(ProgramRefused):
        READS[name](odd)


def test_a_list_that_never_ends_is_an_error(
    scripted: Scripted, odd: RivoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LAST_PAGE", 3)
    scripted.answers = [said({"links": {"next": "x"}, "data": rows(9)})]
    with pytest.raises(OutcomeUnknown, match="longer than its pages reach"):
        list(odd.vip_tiers(ACCESS))


def test_rewards_of_a_type_hold_even_where_the_filter_is_ignored(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [sample("rewards__list.json")]
    assert [reward.name for reward in odd.rewards(ACCESS, purchase_type="one_time")] == ["$5 off coupon", "Mystery"]
    assert [reward.name for reward in odd.rewards(ACCESS, purchase_type="subscription")] == ["Mystery"]


def test_used_redemptions_hold_even_where_the_filter_is_ignored(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [sample("redemptions__list.json")]
    assert [found.id for found in odd.redemptions(ACCESS, customer=7, used=True)] == [24000002]
    assert [found.id for found in odd.redemptions(ACCESS, customer=7, used=False)] == [24000001]
    assert len(list(odd.redemptions(ACCESS, customer=7))) == 2


def test_a_membership_cannot_be_asked_for(odd: RivoClient, scripted: Scripted) -> None:
    with pytest.raises(NotOffered, match="membership"):
        odd.membership(ACCESS, 7)
    assert scripted.seen == []


# -- finding an operation

SINCE = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
LONG_AGO = "2025-01-01T00:00:00Z"


def find(rivo: RivoClient) -> int | None:
    found = rivo.find_points_event(ACCESS, OPERATION, customer=7, since=SINCE)
    return None if found is None else found.id


def more(data: list[Any]) -> Answer:
    return said({"links": {"next": "x"}, "data": data})


def last(data: list[Any]) -> Answer:
    return said({"links": {"next": None}, "data": data})


OURS = {5: wire.internal_note(OPERATION, "Sorry")}


def test_an_operation_is_found_by_its_note(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [more(rows(9, 8)), more(rows(7, 6)), more(rows(5, 4, notes=OURS))]
    assert find(odd) == 5
    assert len(scripted.seen) == 3


def test_a_list_in_order_is_read_back_to_the_award_and_no_further(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [more(rows(9, 8)), more(rows(7, 6, created=LONG_AGO)), more(rows(3, notes=OURS))]
    assert find(odd) is None
    assert len(scripted.seen) == 2


def test_a_list_from_the_oldest_is_read_to_its_end(scripted: Scripted, odd: RivoClient) -> None:
    """Rivo may not know how we ask for the order: the first rows are old, and ours comes last."""
    scripted.answers = [
        more(rows(1, 2, 3, created=LONG_AGO)),
        more(rows(4, created=LONG_AGO)),
        last(rows(5, notes=OURS)),
    ]
    assert find(odd) == 5


def test_one_old_row_does_not_show_the_order(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [more(rows(1, created=LONG_AGO)), last(rows(5, notes=OURS))]
    assert find(odd) == 5


def test_rows_without_a_time_of_creation_do_not_show_the_order(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [more(rows(9, 8, created="")), more(rows(7, 6, created=LONG_AGO)), last(rows(5, notes=OURS))]
    assert find(odd) == 5


def test_the_clocks_may_differ_a_little(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [last(rows(9, 8, 5, created="2026-03-14T09:20:00Z", notes=OURS))]
    assert find(odd) == 5


def test_an_absent_operation_is_absent(scripted: Scripted, odd: RivoClient) -> None:
    scripted.answers = [last(rows(9, 8, notes={9: "Tallydesk td_another: Sorry"}))]
    assert find(odd) is None
    scripted.answers = [last([])]
    assert find(odd) is None


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=404, body=b"<p>no</p>"),
        Answer(status=500),
        said({"data": [None]}),
        said({}),
        said({"error": "Something"}),
        said({"error": "Customer not found"}),
    ],
)
def test_an_operation_is_never_absent_for_want_of_an_answer(
    scripted: Scripted, odd: RivoClient, answer: Answer
) -> None:
    scripted.answers = [answer]
    with pytest.raises((ProgramUnavailable, ProgramRefused)):
        find(odd)


# -- secrets


def test_a_log_line_that_quotes_our_headers_does_so_without_the_key() -> None:
    for quoted in (
        "{'Authorization': 'raw-key'}",
        "Authorization: raw-key",
        "('authorization', b'raw-key')",
        '{"Authorization":"Bearer raw-key"}',
    ):
        assert "raw-key" not in str(as_line(None, "info", {"event": f"sent {quoted} to Rivo"}))


def test_the_key_is_in_no_error_no_log_line_and_no_metric(scripted: Scripted, odd: RivoClient) -> None:
    assert "raw-key" not in repr(ACCESS)
    told: list[str] = []
    with capture_logs() as logged:
        for status in (401, 404, 422, 429, 500):
            scripted.answers = [said({"error": "No"}, status=status)]
            for do in WRITES.values():
                try:
                    do(odd)
                except (ProgramUnavailable, ProgramRefused, UnknownMember) as error:
                    told.append(f"{error!r} {error.__cause__!r} {error.__context__!r}")
    metrics = [str(sample) for metric in REGISTRY.collect() for sample in metric.samples]
    everything = f"{told} {logged} {metrics}"
    assert "raw-key" not in everything
    assert "example.com" not in everything
