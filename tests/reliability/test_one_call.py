"""However many ask at once, one asks for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import loyalty.members
from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house

ROOT = Path(__file__).parents[2]
ANA = "ana@example.com"
CUSTOMER = r"/merchant_api/v1/customers/.*"


@pytest.fixture
def house(database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    # Deadlines are not what is tried here: a busy machine may take long to run two hundred threads.
    monkeypatch.setattr(loyalty.members, "CROWD_WAITS_S", 20.0)
    with running_house(database.url, clock=clock, card_deadline_s=20.0, sandbox_rotate_refresh_tokens=True) as house:
        house.sandbox.rivo("northwind").add_customer(ANA, points=120)
        house.sandbox.faults.add(path=CUSTOMER, account="rivo", kind="slow", seconds=0.3, times=None)
        yield house


def in_two_processes(module: str, told: dict[str, Any]) -> list[Any]:
    """Run `module` twice, both told the same, set off when both are ready; all that they got."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    got: list[Any] = []
    try:
        for line in (json.dumps(told), "go"):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(line + "\n")
                process.stdin.flush()
            if line != "go":
                for process in processes:
                    assert process.stdout is not None
                    assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdout is not None
            # What comes before are lines of the log.
            got += next(json.loads(line) for line in process.stdout if line.startswith("["))
            assert process.wait(timeout=20) == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return got


@pytest.mark.parametrize(("email", "answer"), [(ANA, 120), ("nobody@example.com", "nobody")])
def test_two_hundred_tickets_of_one_member_in_two_processes_cost_one_call(
    house: House, email: str, answer: int | str
) -> None:
    connection = house.open_rivo()
    got = in_two_processes(
        "tests.reliability.askers",
        {
            "settings": asdict(house.services.settings),
            "now": house.clock().isoformat(),
            "store_id": connection.store.id,
            "email": email,
            "threads": 100,
        },
    )
    assert Counter(got) == {answer: 200}
    assert len(house.sandbox.requests.filter(account="rivo")) == 1


def test_two_hundred_cards_of_one_member_cost_one_call(house: House) -> None:
    connection = house.open_rivo()
    line = threading.Barrier(200)

    def ask(_: int) -> Any:
        line.wait(30)
        return house.lookup(connection, ANA).json()["points_balance"]

    with ThreadPoolExecutor(200) as pool:
        shown = Counter(pool.map(ask, range(200)))
    assert shown == {120: 200}
    assert len(house.sandbox.requests.filter(account="rivo")) == 1


def test_eight_threads_in_each_of_two_processes_with_one_expired_token_make_one_refresh(house: House) -> None:
    house.browser().sign_in()
    account = house.services.accounts.named("acme")
    assert account is not None
    house.clock.advance(24 * 3600)
    house.sandbox.requests.clear()
    house.sandbox.faults.add(r"/oauth/token", kind="slow", seconds=0.3, times=None)
    got = in_two_processes(
        "tests.oauth.refreshers",
        {
            "database_url": house.services.settings.database_url,
            "gorgias_url": house.sandbox.gorgias_url,
            "client_id": house.sandbox.runtime.client_id,
            "client_secret": house.sandbox.runtime.client_secret,
            "now": house.clock().isoformat(),
            "account_id": account.id,
            "threads": 8,
        },
    )
    assert got == [2] * 16
    assert [call.status for call in house.sandbox.requests.filter(path="/oauth/token")] == [200]
