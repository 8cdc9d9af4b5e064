"""Setting up is interrupted, repeated, or done by several at once: in the end there is one of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

import oauth.gorgias_api
from loyalty import ledger
from sandbox.faults import FaultKind
from storage.database import Database
from storage.tables import connections
from tests.cli.command import environment_of, start
from tests.databases import Clock
from tests.house import House, running_house
from tests.placement.gorgias import RULES, RunningClock, assert_exactly_one_of_each, found_in, fresh, second_store
from widget.connections import Connection
from widget.placement import LEASE, WAIT_FOR_LEASE, PlacementFailed, PlacementProblem

# Each POST of a first set-up: what is created, and how many POSTs to that path go before it.
STEPS = ((r"/api/integrations", 0), (r"/api/widgets", 0), (r"/api/widgets", 1), (r"/api/macros", 0))


@pytest.mark.parametrize(
    "kind", ["reset_after", "reset_before", "status", "rate_limited", "html", "empty", "truncated", "hang"]
)
def test_after_trouble_at_any_step_the_next_attempt_leaves_exactly_one_of_each(
    database: Database, clock: Clock, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = tuple(f"shop{number}" for number in range(len(STEPS)))
    with running_house(database.url, clock=clock, sandbox_accounts=accounts) as house:
        for account, (path, skip) in zip(accounts, STEPS, strict=True):
            connection = _not_yet_placed(house, account)
            fault = house.sandbox.faults.add(
                path, method="POST", account=account, kind=kind, skip=skip, times=None, seconds=1.0
            )
            with monkeypatch.context() as impatient:
                if kind == "hang":
                    # Only here: on a busy machine a sandbox that is well may take as long.
                    impatient.setattr(oauth.gorgias_api, "TIMEOUTS_S", (1.0, 0.3))
                with pytest.raises(PlacementFailed) as failed:
                    house.services.placement.ensure(connection.id)
            assert fault.hits >= 1
            assert failed.value.problem is {
                FaultKind.RATE_LIMITED: PlacementProblem.GORGIAS_BUSY,
                FaultKind.EMPTY: PlacementProblem.GORGIAS_REFUSED,
            }.get(FaultKind(kind), PlacementProblem.GORGIAS_UNREACHABLE)
            assert "Press Repair" in str(failed.value)
            assert fresh(house, connection).placed.problem == failed.value.problem
            house.sandbox.faults.clear()
            house.services.placement.ensure(connection.id)
            assert_exactly_one_of_each(house, connection)


def test_a_short_limit_of_gorgias_is_waited_out_within_the_same_attempt(small_house: House) -> None:
    connection = _not_yet_placed(small_house, "acme")
    small_house.sandbox.faults.add("/api/widgets", method="POST", kind="rate_limited", retry_after=5)
    before = small_house.clock()
    small_house.services.placement.ensure(connection.id)
    assert small_house.clock() - before >= timedelta(seconds=5)
    assert_exactly_one_of_each(small_house, connection)


def test_a_merchant_who_connects_in_a_second_window_after_a_lost_answer_finds_one_of_each(house: House) -> None:
    browsers = [house.browser() for _ in range(2)]
    house.sandbox.faults.add("/api/integrations", method="POST", kind="reset_after", times=1)
    for browser in browsers:
        browser.sign_in("acme")
    pages = [browser.submit("/connections/", {"program": "ledger"}, on="/connections/new") for browser in browsers]
    assert [page.status_code for page in pages] == [200, 200]
    known = house.services.accounts.named("acme")
    assert known is not None
    (connection,) = house.services.connections.of_account(known.id)
    assert_exactly_one_of_each(house, connection)


@pytest.fixture
def live_house(database: Database) -> Iterator[House]:
    """A house on the real clock: others wait for each other in it."""
    with running_house(database.url, clock=RunningClock()) as house:
        yield house


def test_six_threads_at_once_leave_exactly_one_of_each(live_house: House) -> None:
    connection = _not_yet_placed(live_house, "acme")
    together = threading.Barrier(6)

    def ensure(_number: int) -> None:
        together.wait(timeout=10)
        live_house.services.placement.ensure(connection.id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ensure, range(6)))
    assert_exactly_one_of_each(live_house, connection)
    posts = [r.path for r in live_house.sandbox.requests if r.method == "POST" and r.path.startswith("/api/")]
    assert sorted(posts) == ["/api/integrations", "/api/macros", "/api/widgets", "/api/widgets"]


def test_two_processes_at_once_leave_exactly_one_of_each(live_house: House) -> None:
    connection = _not_yet_placed(live_house, "acme")
    live_house.sandbox.faults.add("/api/.*", kind="slow", seconds=0.05, times=None)
    env = environment_of(live_house)
    both = [start("keys", "rotate", "connection", str(connection.id), env=env) for _ in range(2)]
    for process in both:
        with process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == f"Connection {connection.id} (acme): new keys are in place.\n"
    assert_exactly_one_of_each(live_house, connection)


def test_whoever_comes_after_a_killed_process_goes_on_within_half_a_minute(live_house: House) -> None:
    clock = live_house.clock
    assert isinstance(clock, RunningClock)
    connection = _not_yet_placed(live_house, "acme")
    hanging = live_house.sandbox.faults.add("/api/widgets", method="POST", kind="hang", skip=1)
    with start("keys", "rotate", "connection", env=environment_of(live_house)) as process:
        _wait_until(lambda: hanging.hits == 1)
        process.kill()
        process.communicate(timeout=10)
    assert LEASE < WAIT_FOR_LEASE < timedelta(seconds=30), "the next person only waits, and not too long"
    with live_house.services.database.read() as tx:
        lease_until = tx.scalars(select(connections.c.lease_until)).one()
    assert lease_until is not None
    assert lease_until - clock() <= LEASE
    clock.jump(LEASE.total_seconds() - 1)
    live_house.services.placement.ensure(connection.id)
    assert_exactly_one_of_each(live_house, connection)


def test_a_slow_attempt_keeps_its_lease_by_going_on(small_house: House) -> None:
    """Calls that each wait out Gorgias' limit take longer than the lease; nobody else gets in between."""
    connection = _not_yet_placed(small_house, "acme")
    for kind in ("integrations", "widgets", "macros"):
        for method in ("GET", "POST"):
            small_house.sandbox.faults.add(f"/api/{kind}", method=method, kind="rate_limited", retry_after=8)
    began = small_house.clock()
    small_house.services.placement.ensure(connection.id)
    assert small_house.clock() - began > LEASE
    assert_exactly_one_of_each(small_house, connection)


def test_whoever_has_lost_the_lease_stops_before_the_next_change(small_house: House) -> None:
    """A process that stalled and was overtaken must not go on creating what the other has created."""
    house = small_house
    connection = _not_yet_placed(house, "acme")
    database = house.services.database
    house.sandbox.faults.add("/api/widgets", method="GET", kind="slow", seconds=0.5)

    def overtake() -> None:
        _wait_until(lambda: bool(house.sandbox.requests.filter(path="/api/widgets", method="GET")))
        with database.write() as tx:
            tx.execute(update(connections).values(lease_owner="another", lease_until=house.clock() + LEASE))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(overtake)
        with pytest.raises(PlacementFailed) as failed:
            house.services.placement.ensure(connection.id)
        done.result()
    assert failed.value.problem is PlacementProblem.IN_PROGRESS
    assert found_in(house).widgets == []
    with database.read() as tx:
        assert tx.scalars(select(connections.c.lease_owner)).one() == "another", "not given back by who lost it"


def test_a_person_who_meets_a_set_up_that_goes_on_and_on_is_told_to_come_back(small_house: House) -> None:
    connection = _not_yet_placed(small_house, "acme")
    with small_house.services.database.write() as tx:
        tx.execute(
            update(connections).values(lease_owner="another", lease_until=small_house.clock() + timedelta(hours=1))
        )
    with pytest.raises(PlacementFailed, match="Someone else is setting up this connection") as failed:
        small_house.services.placement.ensure(connection.id)
    assert failed.value.problem is PlacementProblem.IN_PROGRESS


def test_doubles_of_an_earlier_mishap_are_removed_and_what_is_known_is_kept(house: House) -> None:
    _, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    before = found_in(house)
    for _ in range(2):
        twin = helpdesk.keep_object("integrations", _fields(before.integrations[0]))
        for widget in before.widgets:
            helpdesk.keep_object("widgets", _fields(widget))
            helpdesk.keep_object("widgets", _fields(widget) | {"integration_id": twin["id"]})
        helpdesk.keep_object("macros", _fields(before.macros[0]))
    house.services.placement.ensure(connection.id)
    assert_exactly_one_of_each(house, connection)
    assert found_in(house).ids == before.ids


def test_objects_whose_ids_were_lost_are_found_again_and_not_made_anew(house: House) -> None:
    _, connection = house.connect()
    before = found_in(house).ids
    house.services.connections.save_placed(
        connection.id, integration_id=None, ticket_widget_id=None, customer_widget_id=None, macro_id=None
    )
    house.services.placement.ensure(connection.id)
    assert found_in(house).ids == before
    assert_exactly_one_of_each(house, connection)


def test_ours_are_found_on_later_pages_too(small_house: House) -> None:
    house = small_house
    helpdesk = house.sandbox.helpdesk("acme")
    _, connection = house.connect()
    before = found_in(house)
    for number in range(105):
        strange = _fields(before.integrations[0]) | {"name": f"Shop {number}", "description": "of someone else"}
        strange["http"] = strange["http"] | {"url": "https://elsewhere.example.com/x"}
        helpdesk.keep_object("integrations", strange)
        helpdesk.keep_object("macros", _fields(before.macros[0]) | {"name": f"Macro {number}", "actions": []})
    house.services.connections.save_placed(connection.id, integration_id=None, macro_id=None)
    house.services.placement.ensure(connection.id)
    after = found_in(house)
    assert len(after.integrations) == len(after.macros) == 106
    placed = fresh(house, connection).placed
    assert (placed.integration_id, placed.macro_id) == (before.integrations[0]["id"], before.macros[0]["id"])


def test_what_belongs_to_others_is_never_touched(small_house: House) -> None:
    """Another Tallydesk with a connection of the same number, and a merchant's own objects, in the same helpdesk."""
    house = small_house
    helpdesk = house.sandbox.helpdesk("acme")
    _, connection = house.connect()
    ours = found_in(house)
    theirs = _fields(ours.integrations[0])
    theirs["http"] = theirs["http"] | {"url": theirs["http"]["url"].replace(house.url, "https://other.example.com")}
    other = helpdesk.keep_object("integrations", theirs)
    for widget in ours.widgets:
        helpdesk.keep_object("widgets", _fields(widget) | {"integration_id": other["id"]})
    action = ours.macros[0]["actions"][0]
    texts = {
        name: text.replace(f"[{ours.integrations[0]['id']}]", f"[{other['id']}]")
        for name, text in action["arguments"].items()
    }
    helpdesk.keep_object("macros", _fields(ours.macros[0]) | {"actions": [action | {"arguments": texts}]})
    helpdesk.keep_object("macros", {"name": "Thanks", "actions": [], "intent": None, "language": None})
    mine = _fields(ours.integrations[0]) | {"name": "My own", "description": "Looks up orders."}
    helpdesk.keep_object("integrations", mine)
    before = found_in(house)

    house.services.placement.ensure(connection.id, restore=True)
    assert found_in(house) == before
    house.services.connections.save_placed(connection.id, integration_id=None, macro_id=None)
    house.services.placement.ensure(connection.id)
    assert found_in(house) == before
    house.services.placement.rotate_keys(connection.id)
    assert house.services.placement.remove(connection.id) == []
    after = found_in(house)
    assert after.ids == before.ids - ours.ids
    assert all(kept in before.integrations for kept in after.integrations)
    assert all(kept in before.widgets for kept in after.widgets)
    assert all(kept in before.macros for kept in after.macros)


def test_two_stores_side_by_side_in_one_account_do_not_touch_each_other(house: House) -> None:
    _, first = house.connect()
    of_first = found_in(house)
    second = second_store(house, first)
    house.services.placement.ensure(second.id)
    both = found_in(house)
    assert (len(both.integrations), len(both.widgets), len(both.macros)) == (2, 4, 2)
    for connection in (first, second):
        house.services.placement.ensure(connection.id, restore=True)
    assert found_in(house) == both
    assert house.services.placement.remove(second.id) == []
    assert found_in(house) == of_first
    assert house.lookup(first, "nobody@example.com").status_code == 200


def test_a_person_who_is_no_admin_is_told_so_in_words(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    helpdesk.delete_object("widgets", found_in(house).widgets[0]["id"])
    house.sandbox.faults.add("/api/widgets", method="POST", kind="status", status=403)
    page = browser.submit(f"/connections/{connection.id}/repair", on=f"/connections/{connection.id}")
    assert "only helpdesk admins may" in page.text
    assert fresh(house, connection).placed.problem == PlacementProblem.NOT_ADMIN
    helpdesk.set_role(helpdesk.users()[0]["id"], "agent")
    with pytest.raises(PlacementFailed, match="Ask an admin to connect again") as failed:
        house.services.placement.ensure(connection.id)
    assert failed.value.problem is PlacementProblem.NOT_ADMIN


def test_an_account_whose_access_was_withdrawn_is_told_to_connect_again(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(25 * 3600)
    with pytest.raises(PlacementFailed, match="connect again") as failed:
        house.services.placement.ensure(connection.id)
    assert failed.value.problem is PlacementProblem.NEEDS_REAUTH


def _not_yet_placed(house: House, account: str) -> Connection:
    """A connected account with its store, and nothing in Gorgias yet."""
    house.browser().sign_in(account)
    known = house.services.accounts.named(account)
    assert known is not None
    services = house.services
    with services.database.write() as tx:
        store = ledger.open_store(tx, identity=ledger.identity_for(account), now=house.clock())
        opened = services.connections.open(tx, account_id=known.id, store=store, rules=RULES)
    found = services.connections.by_id(opened)
    assert found is not None
    return found


def _fields(found: dict[str, Any]) -> dict[str, Any]:
    """A stored object without what the helpdesk adds."""
    return {
        name: value
        for name, value in found.items()
        if name not in ("id", "uri", "created_datetime", "updated_datetime")
    }


def _wait_until(true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
