"""Many presses at once, from threads and from processes: no award is lost, doubled, or above a cap."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import requests

from tests.awards.desk import JANE, Desk

ROOT = Path(__file__).parents[2]


def test_fifty_clicks_at_once_are_one_award(desk: Desk) -> None:
    key = desk.key()
    for fields, balance in (({"award_key": key}, 150), ({}, 200)):
        desk.clock.advance(60)
        answers = at_once(10, partial(_five_clicks, desk, fields))
        flat = [answer for some in answers for answer in some]
        assert Counter(answer.json()["status"] for answer in flat) == {"applied": 1, "already_applied": 49}
        assert {answer.status_code for answer in flat} == {200}
        assert len({answer.json()["operation_id"] for answer in flat}) == 1
        assert {answer.json()["points_balance"] for answer in flat} == {balance}, "never the balance of before"


def test_awards_at_once_never_exceed_a_cap_and_never_lose_one(desk: Desk) -> None:
    desk.rule(max_points_per_agent_per_day=100, max_points_per_day=170)
    answers = at_once(
        8,
        lambda n: [desk.press(10, ticket_id=100 * n + i, agent_email=f"agent{n % 2}@acme.example") for i in range(4)],
    )
    flat = [answer for some in answers for answer in some]
    assert Counter(answer.status_code for answer in flat) == {200: 17, 422: 15}
    assert desk.balance() == 100 + 170
    assert desk.made()[:2] == (17, 18)
    by_agent = Counter(row.agent_hmac for row in desk.rows())
    assert max(by_agent.values()) <= 10


def test_one_card_pressed_for_two_awards_at_once_gives_one(desk: Desk) -> None:
    key = desk.key()
    answers = at_once(6, lambda n: desk.press(10 + n % 2, award_key=key))
    codes = Counter(answer.status_code for answer in answers)
    assert codes == {200: 3, 409: 3}
    assert Counter(answer.json()["status"] for answer in answers)["applied"] == 1


def test_undoing_at_once_takes_back_once(desk: Desk) -> None:
    told = desk.told(50)
    results = at_once(6, lambda n: desk.undo(told["operation_id"]))
    assert sorted(str(type(result).__name__) for result in results) == ["dict", *["str"] * 5]
    assert {result for result in results if isinstance(result, str)} == {"already_undone"}
    assert desk.balance() == 100


def test_two_processes_never_exceed_a_cap_and_never_double_an_award(desk: Desk) -> None:
    """Both press for the same forty tickets, with room for thirty under the cap."""
    tickets = [[f"{10 * thread + n}" for n in range(10)] for thread in range(4)]
    task = {
        "url": desk.house.services.settings.database_url,
        "email": JANE,
        "store_id": desk.connection.store.id,
        "rules": {"max_points_per_award": 10, "max_points_per_agent_per_day": 300, "max_points_per_day": 9_999},
        "tickets": tickets,
    }
    processes = []
    for seed in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.awards.press_many"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**task, "seed": seed}) + "\n")
        process.stdin.flush()
        processes.append(process)
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outcomes: Counter[str] = Counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        outcomes.update(json.loads(out))
    assert outcomes == {"applied": 30, "already_applied": 30, "points_above_agent_cap": 20}
    assert desk.balance() == 100 + 300
    assert desk.made()[:2] == (30, 31)
    assert len({row.ticket_id for row in desk.rows()}) == 30


def _five_clicks(desk: Desk, fields: dict[str, Any], _number: int) -> list[requests.Response]:
    return [desk.press(50, **fields) for _ in range(5)]


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What `act(0)` … `act(count - 1)` give, all started at the same moment."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = act(number)
        except requests.RequestException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
