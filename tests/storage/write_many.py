"""A process of its own that writes to a SQLite file: `python -m tests.storage.write_many` in the root.

Takes the database's address and what to do. `count` says `ready`, waits for a line, then adds one many times from
several threads; `hold` begins a transaction, says `inside`, and stays in it until it is killed.
"""

from __future__ import annotations

import sys

from sqlalchemy import insert, select, update

from storage.database import Database
from storage.tables import app_keys
from tests.storage.together import at_once

THREADS, TIMES = 3, 15


def count_up(database: Database, *, times: int) -> None:
    """Add one to what is counted, `times` over: read, then written, as whoever has the turn may."""
    for number in range(times):
        with database.write(may_be_lost=number % 3 == 0) as tx:
            counted = int(tx.scalars(select(app_keys.c.sealed).where(app_keys.c.name == "count")).one())
            tx.execute(update(app_keys).values(sealed=str(counted + 1)).where(app_keys.c.name == "count"))


def _hold(database: Database) -> None:
    with database.write() as tx:
        tx.execute(insert(app_keys).values(name="half", sealed="done"))
        print("inside", flush=True)
        sys.stdin.readline()


def main() -> None:
    """Do what the command line says."""
    database = Database(sys.argv[1])
    if sys.argv[2] == "hold":
        _hold(database)
        return
    print("ready", flush=True)
    sys.stdin.readline()
    at_once(THREADS, lambda _: count_up(database, times=TIMES))
    database.close()


if __name__ == "__main__":
    main()
