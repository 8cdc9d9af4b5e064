"""A process of its own that presses the button many times: `python -m tests.awards.press_many` in the root.

Takes one line of JSON with everything it needs, says `ready`, waits for another line, then prints the outcomes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from loyalty.awards import AwardRefused, AwardRequest, Awards, Origin, Rules
from loyalty.delivery import Delivery
from loyalty.journal import Journal
from loyalty.ledger import Ledger
from loyalty.members import Members, ReadLimits
from loyalty.program import LoyaltyProgram, ProgramKind, Store
from loyalty.snapshots import Snapshots
from storage.database import Database
from storage.sealing import Sealer, load_hasher
from tests.databases import FIRST_KEY, Clock, seeded_random_bytes


def main() -> None:
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    database = Database(task["url"])
    sealer, clock, random_bytes = Sealer((FIRST_KEY,)), Clock(), seeded_random_bytes(task["seed"])
    hasher = load_hasher(database, sealer=sealer, random_bytes=random_bytes)
    hasher.email("")
    ledger = Ledger(database, sealer=sealer, hasher=hasher, public_url="http://localhost", now=clock)
    programs: dict[ProgramKind, LoyaltyProgram] = {ProgramKind.LEDGER: ledger}
    members = Members(
        snapshots=Snapshots(database, sealer=sealer, now=clock),
        programs=programs,
        hasher=hasher,
        limits=ReadLimits(fresh_s=60, not_found_s=30, deadline_s=2.5, retention=timedelta(days=30)),
        now=clock,
        sleep=time.sleep,
        random_bytes=random_bytes,
    )
    journal = Journal(database, sealer=sealer, now=clock)
    awards = Awards(
        database,
        programs=programs,
        members=members,
        journal=journal,
        delivery=Delivery(
            journal=journal,
            programs=programs,
            members=members,
            now=clock,
            random_bytes=random_bytes,
            resend_after_s=45,
        ),
        sealer=sealer,
        hasher=hasher,
        now=clock,
        random_bytes=random_bytes,
        double_click_window_s=60,
    )
    store, rules = Store(id=task["store_id"], program=ProgramKind.LEDGER), Rules(**task["rules"])
    outcomes: list[str] = []

    def press(tickets: list[str]) -> None:
        for ticket in tickets:
            request = AwardRequest(
                emails=(task["email"],), points=10, origin=Origin(connection_id=1, channel="button", ticket_id=ticket)
            )
            try:
                outcomes.append(awards.award(store, request=request, rules=rules).status)
            except AwardRefused as error:
                outcomes.append(error.reason)

    threads = [threading.Thread(target=press, args=(tickets,)) for tickets in task["tickets"]]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.close()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
