"""What the tests of refreshing ahead of time and of uninstalls do with a house."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from jobs import JobResult
from oauth.accounts import REFRESH_TOKEN
from sandbox import Received
from storage.queue import Job
from storage.tables import accounts
from tests.house import House

HALF_S = 12 * 3600
CONFIRM_S = 600


def run_refresh(house: House, account_id: int) -> JobResult:
    """Run the job, as a worker does that took it."""
    return house.services.jobs.run(Job(id=1, name=REFRESH_TOKEN, ref=str(account_id), attempts=1))


def account_row(house: House, name: str = "acme") -> Any:
    with house.services.database.read() as tx:
        return tx.execute(select(accounts).where(accounts.c.name == name)).one()


def refreshes(house: House) -> list[Received]:
    return [seen for seen in house.sandbox.requests.filter(path="/oauth/token") if "refresh_token" in seen.form]


def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
