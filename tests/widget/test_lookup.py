"""The card beside the ticket: right for every member, readable for everyone, and never an error."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update

from loyalty.ledger import Kind, book
from loyalty.program import Activity, Member, MemberStatus
from storage.database import Database
from storage.tables import connections, members
from tests.databases import Clock
from tests.house import House
from widget import card
from widget.connections import Connection

KEYS = [
    "loyalty_status",
    "points_balance",
    "vip_tier_name",
    "referral_url",
    "store_credit_balance",
    "lifetime_points",
    "points_expire_at",
    "date_of_birth",
    "recent_activity",
    "as_of",
    "award_key",
]
JANE = "jane+vip@example.com"

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_the_card_of_a_member_has_the_promised_keys_words_and_types(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=2_400)
    answer = house.lookup(connection, JANE)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    shown = answer.json()
    assert list(shown) == KEYS
    assert len(shown.pop("award_key")) > 40
    assert shown.pop("referral_url").startswith(f"{house.url}/r/")
    assert shown == {
        "loyalty_status": "Member",
        "points_balance": 2_400,
        "vip_tier_name": "Gold",
        "store_credit_balance": "",
        "lifetime_points": 2_400,
        "points_expire_at": "",
        "date_of_birth": "",
        "recent_activity": [{"when": "2026-03-14T09:30:00Z", "what": "Opening balance", "points": 2_400}],
        "as_of": "2026-03-14T09:30:00Z",
    }


@pytest.mark.parametrize(
    ("status", "word"),
    [(MemberStatus.MEMBER, "Member"), (MemberStatus.GUEST, "Guest"), (MemberStatus.EXCLUDED, "Excluded")],
)
@only_sqlite
def test_every_status_has_its_word(house: House, connection: Connection, status: MemberStatus, word: str) -> None:
    house.add_member(connection.store, JANE, points=10, status=status)
    shown = house.lookup(connection, JANE).json()
    assert list(shown) == KEYS
    assert shown["loyalty_status"] == word
    assert shown["points_balance"] == 10
    assert (shown["vip_tier_name"], bool(shown["referral_url"])) == (
        ("Bronze", True) if status is MemberStatus.MEMBER else ("", False)
    )


def test_a_stranger_gets_a_card_with_the_same_keys_that_says_so(house: House, connection: Connection) -> None:
    shown = house.lookup(connection, "stranger@example.com").json()
    assert list(shown) == KEYS
    assert shown == {
        **dict.fromkeys(KEYS, ""),
        "loyalty_status": "Customer not found",
        "recent_activity": [],
        "as_of": "2026-03-14T09:30:00Z",
    }


def test_what_a_program_gives_is_shown_as_text_that_macros_can_use() -> None:
    """Store credit and expiry come from programs other than the ledger."""
    member = Member(
        email=JANE,
        status=MemberStatus.MEMBER,
        points_balance=-5,
        as_of=_noon(),
        store_credit_balance=Decimal("25"),
        points_expire_at="2026-12-31",
        date_of_birth=date(1990, 2, 3),
        recent_activity=tuple(Activity(when=_noon(), what=str(n), points=n) for n in range(9)),
    )
    shown = card.found(member, award_key="k")
    assert list(shown) == KEYS
    assert shown["points_balance"] == -5
    assert shown["store_credit_balance"] == "25.00"
    assert shown["points_expire_at"] == "2026-12-31"
    assert shown["date_of_birth"] == "1990-02-03"
    assert shown["lifetime_points"] == ""
    assert len(shown["recent_activity"]) == 5
    assert card.found(member._replace(date_of_birth=None), award_key="k")["date_of_birth"] == ""
    assert None not in shown.values()


def test_the_date_of_birth_is_shown_only_where_the_connection_says_so(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE)
    with house.services.database.write() as tx:
        tx.execute(update(members).values(date_of_birth_sealed=house.services.sealer.seal("1990-02-03")))
    assert house.lookup(connection, JANE).json()["date_of_birth"] == ""
    with house.services.database.write() as tx:
        tx.execute(update(connections).values(show_date_of_birth=True))
    # As another process would change it: known here within a second.
    house.clock.advance(1)
    assert house.lookup(connection, JANE).json()["date_of_birth"] == "1990-02-03"


def test_recent_activity_is_at_most_five_newest_first(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE)
    for number in range(1, 8):
        house.clock.advance(1)
        assert house.award(connection, {"email": JANE, "points": number, "reason": f"No. {number}"}).status_code == 200
    shown = house.lookup(connection, JANE).json()["recent_activity"]
    assert [entry["points"] for entry in shown] == [7, 6, 5, 4, 3]
    assert shown[0] == {"when": "2026-03-14T09:30:07Z", "what": "No. 7", "points": 7}


def test_the_fullest_card_stays_small(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=1)
    for number in range(5):
        house.award(connection, {"email": JANE, "points": 1_000 - number, "reason": "ж" * 200})
    assert len(house.lookup(connection, JANE).content) < 10_000


def test_every_spelling_of_an_address_finds_its_member(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=7)
    for query in (
        "jane%2Bvip%40example.com",  # encoded once, as a client should
        "jane+vip@example.com",  # not encoded: the plus arrives as a space
        "jane%252Bvip%2540example.com",  # encoded twice
        "JANE%2BVIP%40EXAMPLE.COM",
        "%20jane%2Bvip%40example.com%20",
        "Jane%20%3Cjane%2Bvip%40example.com%3E",
        "nobody%40example.com%2Cjane%2Bvip%40example.com",
        "nobody%40example.com&email=jane%2Bvip%40example.com",
        "&email=jane%2Bvip%40example.com",
    ):
        shown = house.lookup(connection, params=f"email={query}").json()
        assert shown["points_balance"] == 7, query


def test_composed_and_decomposed_letters_are_the_same_address(house: House, connection: Connection) -> None:
    house.add_member(connection.store, "jürgen@example.com", points=7)
    for spelling in ("jürgen@example.com", "ju\u0308rgen@example.com", "JU\u0308RGEN@example.com"):
        assert house.lookup(connection, spelling).json()["points_balance"] == 7


ODD = [
    "email=",
    "",
    "email",
    "e-mail=jane@example.com",
    "email={{ticket.customer.email}}",
    "email=%7B%7Bticket.customer.email%7D%7D",
    "email=None",
    "email=not-an-address",
    f"email={'j' * 300}@example.com",
    "email=ja%00ne@example.com",
    "email=%01%02%1B%7F@example.com",
    "email=%FF%FE@example.com",
    "email=%ED%A0%80@example.com",
    f"email={quote('🎁@🎁.example')}",
    f"email={quote('jane@example.com; DROP TABLE members; --')}",
    f"email={quote(''' ' OR 1=1 --@example.com''')}",
    f"email={quote('<script>alert(1)</script>@example.com')}",
    f"email={'x' * 10_240}",
    "email=%",
    "email=%zz@example.com",
    "&".join(["email=a@example.com"] * 200),
    "email[]=a@example.com&email.x=1",
]


def test_nothing_that_can_arrive_is_answered_with_an_error_or_an_empty_object(
    house: House, connection: Connection
) -> None:
    house.add_member(connection.store, JANE)
    for query in ODD:
        answer = house.lookup(connection, params=query)
        assert answer.status_code == 200, query[:80]
        assert list(answer.json()) == KEYS, query[:80]
        assert answer.json()["loyalty_status"] == "Customer not found", query[:80]


@only_sqlite
def test_any_text_at_all_is_answered_with_the_whole_card(house: House, connection: Connection) -> None:
    session = requests.Session()
    key = house.services.connections.newest_keys(connection.id).lookup

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.text(max_size=200) | st.binary(max_size=100))
    def check(value: Any) -> None:
        answer = session.get(
            f"{house.url}/widget/customer?email={quote(value)}", headers={"X-Api-Key": key}, timeout=20
        )
        assert answer.status_code == 200
        assert list(answer.json()) == KEYS

    check()


def test_only_a_wrong_key_is_refused(house: House, connection: Connection) -> None:
    """Missing, made up, of the other purpose, huge, foreign letters: one and the same answer."""
    house.add_member(connection.store, JANE)
    keys = house.services.connections.newest_keys(connection.id)
    refused = [
        requests.get(f"{house.url}/widget/customer?email={quote(JANE)}", headers=headers, timeout=20)
        for headers in (
            {},
            {"X-Api-Key": ""},
            {"X-Api-Key": keys.award},
            {"X-Api-Key": keys.lookup[:-1]},
            {"X-Api-Key": f"{keys.lookup}, {keys.lookup}"},
            {"X-Api-Key": "x" * 10_000},
            {"X-Api-Key": "clé ключ".encode()},
            {"Authorization": f"Bearer {keys.lookup}"},
        )
    ]
    assert {answer.status_code for answer in refused} == {401}
    assert len({answer.text for answer in refused}) == 1
    assert refused[0].json()["reason"] == "wrong_key"
    assert "Repair" in refused[0].json()["message"]
    in_query = requests.get(f"{house.url}/widget/customer?email={quote(JANE)}&X-Api-Key={keys.lookup}", timeout=20)
    assert in_query.status_code == 401


@only_sqlite
def test_the_key_of_a_removed_connection_opens_nothing(house: House, connection: Connection) -> None:
    keys = house.services.connections.newest_keys(connection.id)
    house.services.connections.remove(connection.id)
    for path, key in (("customer?email=a@example.com", keys.lookup), ("earnings?points=5", keys.award)):
        call = requests.get if path.startswith("customer") else requests.post
        assert call(f"{house.url}/widget/{path}", headers={"X-Api-Key": key}, timeout=20).status_code == 401


def test_two_accounts_never_see_each_others_members(house: House, connection: Connection) -> None:
    _, other = house.connect("globex")
    house.add_member(connection.store, JANE, points=7)
    house.add_member(other.store, "only@globex.example", points=9)
    assert house.lookup(connection, JANE).json()["points_balance"] == 7
    assert house.lookup(other, JANE).json()["loyalty_status"] == "Customer not found"
    assert house.lookup(connection, "only@globex.example").json()["loyalty_status"] == "Customer not found"
    spoofed = house.lookup(other, params={"email": JANE, "account": "acme", "connection": "1", "store": "1"})
    assert spoofed.json()["loyalty_status"] == "Customer not found"


def test_a_lookup_is_neither_cached_nor_followed_by_a_cookie(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE)
    for answer in (
        house.lookup(connection, JANE),
        house.lookup(connection, "nobody@example.com", headers={"Cookie": "tallydesk_session=x"}),
        house.lookup(connection, JANE, headers={"X-Api-Key": "wrong"}),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_lookup_writes_nothing(house: House, connection: Connection) -> None:
    """Asked of the database itself: SQLite's change counter, PostgreSQL's next transaction number."""
    database = house.services.database
    counter = "PRAGMA data_version" if database.sqlite else "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
    house.add_member(connection.store, JANE)
    with database.engine.connect() as watcher:
        before = watcher.scalar(text(counter))
        for email in (JANE, "nobody@example.com", ""):
            house.lookup(connection, email)
        house.lookup(connection, JANE, headers={"X-Api-Key": "wrong"})
        assert watcher.scalar(text(counter)) == before
        watcher.rollback()
        house.award(connection, {"email": JANE, "points": 1})
        assert watcher.scalar(text(counter)) != before, "the counter does count"


def test_every_card_carries_a_key_of_its_own(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE)
    keys = [house.lookup(connection, JANE).json()["award_key"] for _ in range(3)]
    assert len(set(keys)) == 3


def test_a_ledger_that_counts_below_zero_is_shown_as_it_is(house: House, connection: Connection, clock: Clock) -> None:
    house.add_member(connection.store, JANE, points=5)
    with house.services.database.write() as tx:
        book(
            tx,
            store_id=connection.store.id,
            member_id=tx.execute(members.select()).one().id,
            operation_id="spent",
            kind=Kind.OPENING_SPENT,
            points=-8,
            what="Spent",
            now=clock(),
        )
    assert house.lookup(connection, JANE).json()["points_balance"] == -3


def test_no_address_is_plain_in_the_database(
    house: House, connection: Connection, database: Database, tmp_path: Any
) -> None:
    house.add_member(connection.store, JANE)
    house.lookup(connection, JANE)
    house.award(connection, {"email": JANE, "points": 5, "agent_email": "agent.smith@acme.example", "ticket_id": 1})
    house.work()
    with database.read() as tx:
        names = ["members", "awards", "jobs", "accounts", "connections", "ledger_transactions", "oauth_states"]
        told = json.dumps([[str(row) for row in tx.execute(text(f"SELECT * FROM {name}"))] for name in names])
    kept = told.encode() + b"".join(file.read_bytes() for file in tmp_path.glob("tallydesk.db*"))
    # Each with a sign that no seal has: four letters alone come in one now and then.
    for plain in (b"jane+", b"agent.smith", b"vip@example"):
        assert plain not in kept.lower()


def _noon() -> datetime:
    return datetime.fromisoformat("2026-03-14T12:00:00+00:00")
