"""An award that had to wait until it could be written is as old as its writing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from storage.database import Database
from tests.awards.desk import JANE, Desk
from tests.processes.serving import wait_for

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@only_sqlite
def test_a_press_that_waited_longer_than_the_window_is_still_recognised_when_it_is_repeated(desk: Desk) -> None:
    """Another process holds the turn; the clock goes on. What was pressed before it is written after it."""
    key = desk.key()
    answers: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: answers.append(desk.told(50, email=JANE, award_key=key)))
    other = Database(desk.house.services.database.url)
    with other.write():
        first.start()
        wait_for(lambda: any(thread.name == "turn" for thread in threading.enumerate()), "nobody waits for a turn")
        desk.clock.advance(61)
    first.join()
    other.close()
    again = desk.told(50, email=JANE, award_key=key)
    assert [answer["status"] for answer in (*answers, again)] == ["applied", "already_applied"]
    assert again["points_balance"] == 150
