"""A process of its own that calls Rivo as fast as the gate lets it: `python -m tests.members.call_many` in the root.

Takes one line of JSON, says `ready`, waits for another line, then prints how each call ended.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

from loyalty.gate import Call, Gate, Lane
from loyalty.program import ProgramUnavailable
from loyalty.rivo import Access, RivoClient
from outbound import Client
from storage.database import Database


def main() -> None:
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    database = Database(task["url"])
    gate = Gate(database, now=lambda: datetime.now(UTC), sleep=time.sleep)
    client = RivoClient(task["rivo_url"], client=Client(), gate=gate)
    access = Access(key=task["key"], gate="rivo:shared")
    outcomes: list[str] = []

    def run(calls: int) -> None:
        for _ in range(calls):
            try:
                client.customer(access, "ana@example.com", call=Call(lane=Lane(task["lane"]), within_s=30))
                outcomes.append("ok")
            except ProgramUnavailable as error:
                outcomes.append(error.reason.value)

    threads = [threading.Thread(target=run, args=(task["calls"],)) for _ in range(task["threads"])]
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
