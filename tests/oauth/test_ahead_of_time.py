"""A worker refreshes tokens at half of their life, so that an agent rarely waits for it, and finds refusals early."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import delete, select
from structlog.testing import capture_logs

from oauth.accounts import LEASE, REFRESH_TOKEN, AccountState
from oauth.gorgias_api import GorgiasError, GorgiasReason
from oauth.wire import TokenSet
from storage.tables import accounts, jobs
from telemetry import TOKEN_REFRESHES
from tests.house import House
from tests.oauth.renewing import CONFIRM_S, HALF_S, account_row, refreshes, run_refresh, until


def connected(house: House) -> int:
    house.browser().sign_in()
    account = house.services.accounts.named("acme")
    assert account is not None
    return account.id


def waiting(house: House) -> list[str]:
    with house.services.database.read() as tx:
        return list(tx.scalars(select(jobs.c.ref).where(jobs.c.name == REFRESH_TOKEN)))


def counted(outcome: str) -> float:
    return TOKEN_REFRESHES.labels(outcome)._value.get()  # type: ignore[no-any-return]


def test_a_token_is_refreshed_at_half_of_its_life_and_then_again_half_a_life_later(house_on_both: House) -> None:
    house = house_on_both
    account_id = connected(house)
    house.services.accounts.connect("busy", tokens=TokenSet(access_token="x", expires_at=house.clock()), user_email="")
    house.clock.advance(HALF_S - 1)
    assert str(account_id) not in house.services.accounts.due()
    assert run_refresh(house, account_id).outcome == "not_due"
    house.clock.advance(1)
    house.services.jobs.sweep()
    house.services.jobs.sweep()
    assert sorted(waiting(house)) == sorted([str(account_id), str(account_id + 1)]), "one job each, however often"
    assert house.services.accounts.due() == [], "those that have a job are not asked for again"
    assert refreshes(house) == []
    before = account_row(house)
    assert run_refresh(house, account_id).outcome == "ok"
    after = account_row(house)
    assert after.token_version == before.token_version + 1
    assert after.refresh_at == house.clock() + timedelta(seconds=HALF_S)
    assert (after.lease_owner, after.refused_at, after.failing_since) == (None, None, None)
    assert run_refresh(house, account_id).outcome == "not_due"
    assert len(refreshes(house)) == 1


def test_those_that_are_due_longest_come_first_and_only_connected_ones(house: House) -> None:
    known = house.services.accounts
    lives = {"late": 10, "first": 2, "later": 6, "gone": 2, "lost": 2}
    for name, hours in lives.items():
        life = house.clock() + timedelta(hours=hours)
        known.connect(name, tokens=TokenSet(access_token="x", refresh_token="y", expires_at=life), user_email="")
    ids = {name: account_row(house, name).id for name in lives}
    assert known.disconnect(ids["gone"]) is not None, "the sandbox knows no such helpdesk"
    known.withdraw(ids["lost"], reason="unauthorized")
    house.clock.advance(4 * 3600)
    assert known.due() == [str(ids["first"]), str(ids["later"])]
    assert known.due(limit=1) == [str(ids["first"])]
    with house.services.database.write() as tx:
        tx.execute(delete(accounts).where(accounts.c.id == ids["first"]))
    assert run_refresh(house, ids["first"]).outcome == "not_due"


def test_who_comes_while_another_refreshes_looks_again_when_that_must_be_over(house: House) -> None:
    account_id = connected(house)
    house.clock.advance(HALF_S)
    with house.services.database.write() as tx:
        tx.execute(accounts.update().values(lease_owner="another", lease_until=house.clock() + LEASE))
    result = run_refresh(house, account_id)
    assert (result.outcome, result.again_at) == ("held", house.clock() + LEASE)
    assert refreshes(house) == []


@pytest.mark.parametrize(
    ("kind", "reason"), [("status", "unreachable"), ("reset_before", "unreachable"), ("html", "broken")]
)
def test_trouble_is_no_refusal_it_is_tried_again_ever_later_and_told_once_when_bad_and_once_when_good(
    house: House, kind: str, reason: str
) -> None:
    account_id = connected(house)
    house.clock.advance(HALF_S)
    house.sandbox.faults.add(r"/oauth/token", kind=kind, times=None)
    pauses = []
    before = counted(reason)
    with capture_logs() as lines:
        for _ in range(8):
            result = run_refresh(house, account_id)
            assert result.outcome == reason
            assert result.again_at is not None
            pauses.append((result.again_at - house.clock()).total_seconds() / 60)
            house.clock.advance(pauses[-1] * 60)
        house.sandbox.faults.clear()
        assert run_refresh(house, account_id).outcome == "ok"
    assert pauses == [1, 1, 2, 4, 8, 16, 30, 30]
    assert counted(reason) == before + 8
    told = [line for line in lines if line["event"] == "token_refresh"]
    assert [(line["log_level"], line["outcome"]) for line in told] == [("warning", reason), ("info", "ok")]
    row = account_row(house)
    assert (row.state, row.failing_since) == ("connected", None)


def test_a_wait_that_gorgias_asks_for_is_kept(house: House) -> None:
    account_id = connected(house)
    house.clock.advance(HALF_S)
    house.sandbox.faults.add(r"/oauth/token", kind="rate_limited", retry_after=300)
    result = run_refresh(house, account_id)
    assert (result.outcome, result.again_at) == ("busy", house.clock() + timedelta(seconds=300))


def test_a_first_refusal_changes_nothing_for_agents_and_a_success_forgets_it(house: House) -> None:
    account_id = connected(house)
    first = house.services.accounts.access_token(account_id)
    house.clock.advance(HALF_S)
    house.sandbox.faults.add(r"/oauth/token", kind="invalid_grant")
    with capture_logs() as lines:
        result = run_refresh(house, account_id)
        assert (result.outcome, result.again_at) == ("invalid_grant", house.clock() + timedelta(seconds=CONFIRM_S))
        assert account_row(house).refused_at == house.clock()
        assert house.services.accounts.access_token(account_id) == first
        house.clock.advance(CONFIRM_S - 1)
        assert run_refresh(house, account_id).outcome == "not_due", "not before ten minutes have passed"
        house.clock.advance(1)
        assert run_refresh(house, account_id).outcome == "ok"
    assert account_row(house).refused_at is None
    told = [(line["event"], line["outcome"]) for line in lines if line["event"] == "token_refresh"]
    assert told == [("token_refresh", "invalid_grant"), ("token_refresh", "ok")]


def test_an_agent_who_meets_the_refusal_first_goes_on_with_what_lives_and_asks_no_more(house: House) -> None:
    """No worker ran for half a day: the refusal is met while an agent waits, minutes before the token ends."""
    account_id = connected(house)
    first = house.services.accounts.access_token(account_id)
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(2 * HALF_S - 240)
    for _ in range(3):
        assert house.services.accounts.access_token(account_id) == first
    assert [call.status for call in refreshes(house)] == [400]
    assert account_row(house).refused_at == house.clock()
    house.clock.advance(240)
    with pytest.raises(GorgiasError) as caught:
        house.services.accounts.access_token(account_id)
    assert caught.value.reason is GorgiasReason.NEEDS_REAUTH
    row = account_row(house)
    assert (row.state, row.state_reason) == (AccountState.NEEDS_REAUTH, "invalid_grant")


def test_an_admin_who_installs_anew_after_a_refusal_brings_new_tokens_that_count(house: House) -> None:
    """For an account that is connected a sign-in asks for the identity alone; that would lose the new installation."""
    account_id = connected(house)
    house.clock.advance(HALF_S)
    house.sandbox.helpdesk("acme").uninstall()
    assert run_refresh(house, account_id).outcome == "invalid_grant"
    agent = next(user for user in house.sandbox.helpdesk("acme").users() if user["role"]["name"] == "agent")
    assert house.browser().sign_in(user_id=agent["id"]).status_code == 200, "an agent signs in as ever"
    assert account_row(house).refused_at is not None
    browser = house.browser()
    middle = browser.get(browser.return_address(), follow=False)
    assert browser.get(house.sandbox.authorize(middle.headers["Location"])).status_code == 200
    house.clock.advance(CONFIRM_S)
    assert run_refresh(house, account_id).outcome == "not_due"
    row = account_row(house)
    assert (row.state, row.refused_at, row.refresh_at) == (
        "connected",
        None,
        house.clock() + timedelta(seconds=HALF_S - CONFIRM_S),
    )


def test_tokens_that_are_stored_during_a_refused_refresh_count_and_not_the_refusal(house: House) -> None:
    account_id = connected(house)
    house.clock.advance(HALF_S)
    house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(run_refresh, house, account_id)
        until(lambda: len(refreshes(house)) == 1)
        house.sandbox.helpdesk("acme").uninstall()
        fresh = TokenSet(access_token="newer", refresh_token="newer", expires_at=house.clock() + timedelta(days=1))
        house.services.accounts.connect("acme", tokens=fresh, user_email="ada@acme.example")
        assert late.result(timeout=10).outcome == "superseded"
    assert [call.status for call in refreshes(house)] == [400]
    row = account_row(house)
    assert (row.state, row.refused_at) == ("connected", None)
    assert house.services.accounts.access_token(account_id).value == "newer"


def test_workers_that_take_the_same_account_at_once_ask_once(rotating_house: House) -> None:
    house = rotating_house
    account_id = connected(house)
    house.clock.advance(HALF_S)
    house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3, times=None)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: run_refresh(house, account_id).outcome, range(4)))
    assert [call.status for call in refreshes(house)] == [200]
    assert outcomes.count("ok") == 1
    assert set(outcomes) <= {"ok", "held", "not_due"}


@pytest.mark.parametrize("lost", ["the answer", "the worker"])
def test_where_an_answer_was_lost_a_second_refusal_proves_nothing_and_the_cards_stay(
    rotating_house: House, lost: str
) -> None:
    """Should Gorgias rotate refresh tokens, the one whose answer was lost is refused although the app is installed."""
    house = rotating_house
    _, connection = house.connect()
    account_id = connection.account_id
    house.clock.advance(HALF_S)
    if lost == "the answer":
        house.sandbox.faults.add(r"/oauth/token", kind="reset_after")
        assert run_refresh(house, account_id).outcome == "unreachable"
    else:
        with house.services.database.write() as tx:
            tx.execute(accounts.update().values(lease_owner="killed", lease_until=house.clock()))
        house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(60)
    assert run_refresh(house, account_id).outcome == "invalid_grant"
    house.clock.advance(CONFIRM_S)
    result = run_refresh(house, account_id)
    row = account_row(house)
    assert (result.outcome, result.again_at) == ("unproven", row.access_expires_at)
    assert row.state == "connected"
    assert house.lookup(connection, "mia@example.com").status_code == 200
    house.clock.advance((row.access_expires_at - house.clock()).total_seconds())
    assert run_refresh(house, account_id).outcome == "needs_reauth"
    assert account_row(house).state == AccountState.NEEDS_REAUTH
    assert len(house.sandbox.helpdesk("acme").integrations()) == 1
