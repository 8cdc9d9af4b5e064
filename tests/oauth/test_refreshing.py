"""Tokens stay fresh: one refresher per account over threads and processes, and nothing is lost when it goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from oauth.accounts import LEASE, Account, Accounts, AccountState
from oauth.gorgias_api import AccessToken, GorgiasApi, GorgiasError, GorgiasReason
from oauth.wire import TokenSet
from sandbox import Received
from storage.database import Database
from storage.tables import accounts
from tests.databases import Clock
from tests.house import House, running_house
from tests.oauth.scripted import Answer, Scripted

DAY_S = 24 * 3600
ROOT = Path(__file__).resolve().parents[2]


def connected(house: House) -> Account:
    house.browser().sign_in()
    account = house.services.accounts.named("acme")
    assert account is not None
    return account


def with_real_pauses(house: House) -> Accounts:
    """The house's accounts, whose waiting takes real time while the clock stands still."""
    services = house.services
    return Accounts(
        services.database,
        sealer=services.sealer,
        endpoint=services.endpoint,
        now=house.clock,
        sleep=time.sleep,
        random_bytes=os.urandom,
    )


def refreshes(house: House) -> list[Received]:
    return [seen for seen in house.sandbox.requests.filter(path="/oauth/token") if "refresh_token" in seen.form]


def row_of(house: House, account: Account) -> Any:
    with house.services.database.read() as tx:
        return tx.execute(select(accounts).where(accounts.c.id == account.id)).one()


def at_once(count: int, ask: Callable[[], AccessToken]) -> list[AccessToken]:
    line = threading.Barrier(count)

    def one(_: int) -> AccessToken:
        line.wait()
        return ask()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def api_of(house: House, account: Account) -> GorgiasApi:
    return house.services.api_for(account.name, house.services.accounts.token_source(account.id))


@pytest.fixture
def slow_refresh(rotating_house: House) -> None:
    """A refresh takes long enough for everybody else to arrive meanwhile."""
    rotating_house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3, skip=1, times=None)


def test_a_token_that_lives_is_used_without_asking_anyone(house: House) -> None:
    account = connected(house)
    first = house.services.accounts.access_token(account.id)
    house.clock.advance(DAY_S - 301)
    assert house.services.accounts.access_token(account.id) == first
    assert refreshes(house) == []


def test_a_token_is_refreshed_before_it_ends_and_lives_another_day(house: House) -> None:
    account = connected(house)
    first = house.services.accounts.access_token(account.id)
    house.clock.advance(DAY_S - 300)
    second = house.services.accounts.access_token(account.id)
    assert second.value != first.value
    assert second.version == first.version + 1
    assert row_of(house, account).access_expires_at == house.clock() + timedelta(days=1)
    [call] = refreshes(house)
    assert call.form.keys() == {"grant_type", "refresh_token"}
    assert call.headers["Authorization"].startswith("Basic ")


def test_the_old_refresh_token_goes_on_when_none_is_returned(house: House) -> None:
    account = connected(house)
    before = row_of(house, account).refresh_token_sealed
    for day in range(1, 4):
        house.clock.advance(DAY_S)
        house.services.accounts.access_token(account.id)
        assert house.services.sealer.open(row_of(house, account).refresh_token_sealed) == house.services.sealer.open(
            before
        )
        assert [call.status for call in refreshes(house)] == [200] * day


@pytest.mark.parametrize("body", [b'{"access_token": "new", "refresh_token": null}', b'{"access_token": "new"}'])
def test_a_refresh_token_is_never_overwritten_with_nothing(
    sqlite_database: Database, clock: Clock, scripted: Scripted, body: bytes
) -> None:
    scripted.answers = [Answer(body=body)]
    with running_house(sqlite_database.url, clock=clock, gorgias_url=scripted.url + "/{account}") as house:
        tokens = TokenSet(access_token="old", refresh_token="the-one", expires_at=clock())
        account = house.services.accounts.connect("acme", tokens=tokens, user_email="")
        assert house.services.accounts.access_token(account.id).value == "new"
        assert house.services.sealer.open(row_of(house, account).refresh_token_sealed) == "the-one"


def test_a_new_refresh_token_takes_the_place_of_the_old_one(rotating_house: House) -> None:
    account = connected(rotating_house)
    for _ in range(3):
        rotating_house.clock.advance(DAY_S)
        rotating_house.services.accounts.access_token(account.id)
    used = [call.form["refresh_token"] for call in refreshes(rotating_house)]
    assert len(set(used)) == 3
    assert [call.status for call in refreshes(rotating_house)] == [200] * 3


def test_eight_threads_with_an_expired_token_make_one_refresh(rotating_house: House, slow_refresh: None) -> None:
    house = rotating_house
    account = connected(house)
    house.clock.advance(DAY_S)
    known = with_real_pauses(house)
    got = at_once(8, lambda: known.access_token(account.id))
    assert [call.status for call in refreshes(house)] == [200]
    assert len({token.value for token in got}) == 1
    assert {token.version for token in got} == {2}
    assert api_of(house, account).get("/api/account")["domain"] == "acme"


def test_eight_threads_whose_token_was_rejected_make_one_refresh(rotating_house: House, slow_refresh: None) -> None:
    house = rotating_house
    account = connected(house)
    known = with_real_pauses(house)
    rejected = known.access_token(account.id)
    got = at_once(8, lambda: known.access_token(account.id, rejected=rejected))
    assert [call.status for call in refreshes(house)] == [200]
    assert {token.version for token in got} == {2}


def test_while_one_refreshes_early_the_others_use_what_still_lives(rotating_house: House, slow_refresh: None) -> None:
    house = rotating_house
    account = connected(house)
    house.clock.advance(DAY_S - 60)
    known = with_real_pauses(house)
    got = at_once(8, lambda: known.access_token(account.id))
    assert [call.status for call in refreshes(house)] == [200]
    assert sorted(token.version for token in got) == [1] * 7 + [2]


def test_two_processes_of_four_threads_make_one_refresh(rotating_house: House, slow_refresh: None) -> None:
    house = rotating_house
    account = connected(house)
    house.clock.advance(DAY_S)
    told = {
        "database_url": house.services.settings.database_url,
        "gorgias_url": house.sandbox.gorgias_url,
        "client_id": house.sandbox.runtime.client_id,
        "client_secret": house.sandbox.runtime.client_secret,
        "now": house.clock().isoformat(),
        "account_id": account.id,
        "threads": 4,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.oauth.refreshers"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    got: list[int | str] = []
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            got += json.loads(process.stdout.readline())
            assert process.wait(timeout=10) == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert got == [2] * 8
    assert [call.status for call in refreshes(house)] == [200]


def test_one_401_makes_one_refresh_and_the_call_succeeds(house: House) -> None:
    account = connected(house)
    house.sandbox.requests.clear()
    house.sandbox.faults.add(r"/api/account", kind="status", status=401)
    assert api_of(house, account).get("/api/account")["domain"] == "acme"
    assert len(refreshes(house)) == 1
    first, second = house.sandbox.requests.filter(path="/api/account")
    assert first.headers["Authorization"] != second.headers["Authorization"]


def test_a_401_that_stays_makes_one_refresh_and_not_two(house: House) -> None:
    account = connected(house)
    house.sandbox.requests.clear()
    house.sandbox.faults.add(r"/api/macros", kind="status", status=401, times=None)
    with pytest.raises(GorgiasError) as caught:
        api_of(house, account).post("/api/macros", {"name": "x"})
    assert caught.value.reason is GorgiasReason.UNAUTHORIZED
    assert len(refreshes(house)) == 1
    assert len(house.sandbox.requests.filter(path="/api/macros")) == 2


@pytest.mark.parametrize("status", [400, 403, 404, 409, 500])
def test_no_other_error_makes_a_refresh(house: House, status: int) -> None:
    account = connected(house)
    house.sandbox.faults.add(r"/api/account", kind="status", status=status, times=None)
    with pytest.raises(GorgiasError):
        api_of(house, account).get("/api/account")
    assert refreshes(house) == []


def test_a_revoked_refresh_token_ends_the_connection_until_someone_connects_again(house_on_both: House) -> None:
    house = house_on_both
    account = connected(house)
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(DAY_S)
    for _ in range(3):
        with pytest.raises(GorgiasError) as caught:
            house.services.accounts.access_token(account.id)
        assert caught.value.reason is GorgiasReason.NEEDS_REAUTH
        assert "connect again" in str(caught.value)
    row = row_of(house, account)
    assert (row.state, row.state_reason, row.lease_owner) == (AccountState.NEEDS_REAUTH, "invalid_grant", None)
    assert len(refreshes(house)) == 1  # known once, not asked again


def test_after_invalid_grant_the_tokens_that_a_sibling_stored_meanwhile_serve(house_on_both: House) -> None:
    house = house_on_both
    account = connected(house)
    known = with_real_pauses(house)
    house.clock.advance(DAY_S)
    house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(known.access_token, account.id)
        until(lambda: len(refreshes(house)) == 1)
        house.sandbox.helpdesk("acme").uninstall()
        fresh = TokenSet(access_token="of-a-sibling", refresh_token="new", expires_at=house.clock() + timedelta(days=1))
        known.connect("acme", tokens=fresh, user_email="ada@acme.example")
        got = late.result(timeout=10)
    assert [call.status for call in refreshes(house)] == [400]
    assert got.value == "of-a-sibling"
    assert row_of(house, account).state == AccountState.CONNECTED


def test_a_refresh_that_ends_after_someone_connected_anew_does_not_overwrite(house_on_both: House) -> None:
    house = house_on_both
    account = connected(house)
    known = with_real_pauses(house)
    house.clock.advance(DAY_S)
    house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(known.access_token, account.id)
        until(lambda: len(refreshes(house)) == 1)
        fresh = TokenSet(access_token="newer", refresh_token="newer", expires_at=house.clock() + timedelta(days=1))
        known.connect("acme", tokens=fresh, user_email="ada@acme.example")
        assert late.result(timeout=10).value == "newer"
    assert house.services.sealer.open(row_of(house, account).refresh_token_sealed) == "newer"


def test_a_refresh_that_ends_after_disconnecting_brings_nothing_back(house: House) -> None:
    account = connected(house)
    known = with_real_pauses(house)
    house.clock.advance(DAY_S - 60)  # the old token still lives, and yet must not be used any more
    house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(known.access_token, account.id)
        until(lambda: len(refreshes(house)) == 1)
        known.disconnect(account.id)
        with pytest.raises(GorgiasError) as caught:
            late.result(timeout=10)
    assert caught.value.reason is GorgiasReason.NOT_CONNECTED
    row = row_of(house, account)
    assert (row.state, row.access_token_sealed, row.refresh_token_sealed) == ("disconnected", None, None)


@pytest.mark.parametrize("kind", ["status", "rate_limited", "html", "empty", "redirect", "reset_before", "truncated"])
def test_while_refreshing_fails_the_token_that_still_lives_is_used(house: House, kind: str) -> None:
    account = connected(house)
    first = house.services.accounts.access_token(account.id)
    house.clock.advance(DAY_S - 60)
    house.sandbox.faults.add(r"/oauth/token", kind=kind, times=None)
    assert house.services.accounts.access_token(account.id) == first
    assert api_of(house, account).get("/api/account")["domain"] == "acme"
    row = row_of(house, account)
    assert (row.state, row.lease_owner, row.lease_until) == ("connected", None, None)
    house.sandbox.faults.clear()
    assert house.services.accounts.access_token(account.id).version == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("status", GorgiasReason.UNREACHABLE),
        ("reset_before", GorgiasReason.UNREACHABLE),
        ("rate_limited", GorgiasReason.BUSY),
        ("html", GorgiasReason.BROKEN),
        ("empty", GorgiasReason.BROKEN),
        ("redirect", GorgiasReason.REFUSED),
    ],
)
def test_when_refreshing_fails_and_the_token_has_ended_the_reason_is_told_and_the_account_kept(
    house: House, kind: str, reason: GorgiasReason
) -> None:
    account = connected(house)
    house.clock.advance(DAY_S)
    house.sandbox.faults.add(r"/oauth/token", kind=kind)
    with pytest.raises(GorgiasError) as caught:
        house.services.accounts.access_token(account.id)
    assert caught.value.reason is reason
    assert row_of(house, account).state == "connected"
    assert house.services.accounts.access_token(account.id).version == 2  # the next one succeeds


def test_a_refresh_answered_without_tokens_keeps_the_old_ones(house: House) -> None:
    account = connected(house)
    before = row_of(house, account)
    house.clock.advance(DAY_S)
    house.sandbox.faults.add(r"/oauth/token", kind="empty")
    with pytest.raises(GorgiasError):
        house.services.accounts.access_token(account.id)
    after = row_of(house, account)
    assert after.refresh_token_sealed == before.refresh_token_sealed
    assert after.token_version == before.token_version


def test_a_lease_that_a_crashed_process_left_ends(house_on_both: House) -> None:
    house = house_on_both
    account = connected(house)
    house.clock.advance(DAY_S)
    ends = house.clock() + LEASE
    with house.services.database.write() as tx:
        tx.execute(update(accounts).values(lease_owner="a process that is gone", lease_until=ends))
    # The house's waiting moves its clock: 12 seconds are waited, then it is said in words.
    with pytest.raises(GorgiasError) as caught:
        house.services.accounts.access_token(account.id)
    assert caught.value.reason is GorgiasReason.UNREACHABLE
    assert "Try again" in str(caught.value)
    assert refreshes(house) == []
    house.clock.advance(LEASE.total_seconds())
    assert house.services.accounts.access_token(account.id).version == 2
    assert row_of(house, account).lease_owner is None


def test_a_lease_of_another_does_not_hinder_while_the_token_lives(house: House) -> None:
    account = connected(house)
    house.clock.advance(DAY_S - 60)
    with house.services.database.write() as tx:
        tx.execute(update(accounts).values(lease_owner="another", lease_until=house.clock() + LEASE))
    before = house.clock()
    assert house.services.accounts.access_token(account.id).version == 1
    assert house.clock() == before


def test_an_account_without_a_refresh_token_needs_connecting_again(house: House) -> None:
    account = connected(house)
    with house.services.database.write() as tx:
        tx.execute(update(accounts).values(refresh_token_sealed=None))
    house.clock.advance(DAY_S)
    with pytest.raises(GorgiasError) as caught:
        house.services.accounts.access_token(account.id)
    assert caught.value.reason is GorgiasReason.NEEDS_REAUTH
    assert refreshes(house) == []


def test_an_unknown_account_is_not_connected(house: House) -> None:
    with pytest.raises(GorgiasError) as caught:
        house.services.accounts.access_token(12345)
    assert caught.value.reason is GorgiasReason.NOT_CONNECTED
    assert house.services.accounts.by_id(12345) is None
    assert house.services.accounts.user_email(12345) == ""
