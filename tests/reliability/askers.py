"""One process of several in which many tickets of one member arrive at once: `python -m tests.reliability.askers`.

Reads one line of JSON, prints `ready`, waits for a second line, then reads the member from `threads` threads at once
and prints a line of JSON: for each the balance, "nobody" or the reason why there was no answer.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import loyalty.members
from loyalty.program import ProgramKind, ProgramUnavailable, Store
from services import build_services
from settings import Settings


def main() -> None:
    # Not what is tried here, and a busy machine may take long to run two hundred threads.
    loyalty.members.CROWD_WAITS_S = 20.0
    told = json.loads(sys.stdin.readline())
    now = datetime.fromisoformat(told["now"])
    settings = Settings(**{**told["settings"], "encryption_keys": tuple(told["settings"]["encryption_keys"])})
    services = build_services(settings, now=lambda: now)
    store = Store(id=told["store_id"], program=ProgramKind.RIVO)
    line = threading.Barrier(told["threads"])

    def ask(_: int) -> int | str:
        line.wait()
        try:
            member = services.members.read(store, email=told["email"])
        except ProgramUnavailable as error:
            return error.reason.value
        return "nobody" if member is None else member.points_balance

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(told["threads"]) as pool:
        print(json.dumps(list(pool.map(ask, range(told["threads"])))), flush=True)
    services.database.close()


if __name__ == "__main__":
    main()
