"""What seals and what signs sessions is replaced while cards, awards and pages are asked for: nobody notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from storage.database import Database
from storage.sealing import Sealer, reseal_everything
from tests.databases import FIRST_KEY, SECOND_KEY, Clock
from tests.house import House, running_house

JANE = "jane@example.com"
LEAST = 15


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    """Of an operator who has put a new key first and kept the old one behind it."""
    with running_house(database.url, clock=clock, encryption_keys=(SECOND_KEY, FIRST_KEY)) as house:
        yield house


def test_nothing_fails_while_keys_are_replaced(house: House) -> None:
    admin, connection = house.connect()
    house.add_member(connection.store, JANE, points=0)
    numbers = count(1)

    def award() -> bool:
        asked = {"email": JANE, "points": 1, "ticket_id": str(next(numbers))}
        return bool(house.award(connection, asked).json()["status"] == "applied")

    work: dict[str, Callable[[], bool]] = {
        "card": lambda: house.lookup(connection, JANE).json()["loyalty_status"] == "Member",
        "award": award,
        "page": lambda: admin.get("/connections/changes", follow=False).status_code == 200,
    }
    outcomes: dict[str, list[bool]] = {name: [] for name in work}
    enough = threading.Event()

    def go_on(name: str) -> None:
        while not enough.is_set():
            outcomes[name].append(work[name]())

    threads = [threading.Thread(target=go_on, args=(name,)) for name in work]
    for thread in threads:
        thread.start()
    sealer = Sealer((SECOND_KEY, FIRST_KEY))
    try:
        house.services.session_keys.rotate()
        while min(len(done) for done in outcomes.values()) < LEAST and all(all(d) for d in outcomes.values()):
            assert reseal_everything(house.services.database, sealer=sealer, batch=5) > 0
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert all(all(done) for done in outcomes.values())
    assert house.balance(connection, JANE) == len(outcomes["award"])
    # Everything opens with the new key alone.
    reseal_everything(house.services.database, sealer=sealer)
    assert reseal_everything(house.services.database, sealer=Sealer((SECOND_KEY,))) > 0
