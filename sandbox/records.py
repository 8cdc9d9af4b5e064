"""Records of the sandbox: JSON documents read from memory and written through to one SQLite file.

Each record is kept as JSON text under (account, kind, id), so every reader gets a copy of its own. A change
is one SQLite transaction that is on the disk before the change is answered; a kill at any moment leaves
either all of it or nothing. One JSON file replaced as a whole was rejected: it rewrites ten thousand
customers to store one message.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

Record = dict[str, Any]
"""A JSON object. Ids are integers for what Gorgias numbers and text for codes and tokens."""

_SCHEMA = """
create table if not exists records (
    account text not null, kind text not null, id text not null, body text not null,
    primary key (account, kind, id)
)
"""


class RecordsUnusable(Exception):
    """The data folder cannot be used; the message is one sentence for a person."""


class Records:
    """Thread-safe records of all accounts of one sandbox.

    `folder` holds `sandbox.sqlite3`; None keeps everything in memory.

    Raises RecordsUnusable when the folder cannot be written or another sandbox is using it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._lock = RLock()
        self._depth = 0
        self._undo: list[tuple[tuple[str, str], str, str | None]] = []
        self._tables: dict[tuple[str, str], dict[str, str]] = {}
        self._database: sqlite3.Connection | None = None
        if folder is not None:
            self._database = self._open(folder)

    def _open(self, folder: Path) -> sqlite3.Connection:
        database: sqlite3.Connection | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(
                folder / "sandbox.sqlite3", check_same_thread=False, isolation_level=None, timeout=0.2
            )
            # The memory copy is right only while nobody else writes, hence the exclusive lock.
            database.execute("pragma locking_mode=exclusive")
            database.execute("pragma journal_mode=wal")
            database.execute("pragma synchronous=full")
            database.execute("begin exclusive")
            database.execute(_SCHEMA)
            database.execute("commit")
            for account, kind, key, body in database.execute(
                "select account, kind, id, body from records order by rowid"
            ):
                self._tables.setdefault((account, kind), {})[key] = body
        except (OSError, sqlite3.Error) as error:
            if database is not None:
                database.close()
            if "locked" in str(error):
                raise RecordsUnusable(
                    f"The folder {folder} is in use by another sandbox: stop that one or give another --data."
                ) from error
            raise RecordsUnusable(
                f"The sandbox cannot keep its data in {folder} ({error}): "
                "name a folder that can be written with --data."
            ) from error
        return database

    @contextmanager
    def change(self) -> Iterator[None]:
        """One change: everything inside is kept together or not at all. May be nested; holds the lock."""
        with self._lock:
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._commit()
            except BaseException:
                if self._depth == 1:
                    self._roll_back()
                raise
            finally:
                self._depth -= 1

    def _commit(self) -> None:
        if self._database is not None and self._undo:
            touched = dict.fromkeys((table, key) for table, key, _ in self._undo)
            try:
                self._database.execute("begin immediate")
                for (account, kind), key in touched:
                    body = self._tables[account, kind].get(key)
                    if body is None:
                        self._database.execute(
                            "delete from records where account = ? and kind = ? and id = ?",
                            (account, kind, key),
                        )
                    else:
                        self._database.execute(
                            "insert into records values (?, ?, ?, ?) "
                            "on conflict (account, kind, id) do update set body = excluded.body",
                            (account, kind, key, body),
                        )
                self._database.execute("commit")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("rollback")
                raise
        self._undo.clear()

    def _roll_back(self) -> None:
        for table, key, before in reversed(self._undo):
            if before is None:
                self._tables[table].pop(key, None)
            else:
                self._tables[table][key] = before
        self._undo.clear()

    def get(self, account: str, kind: str, key: int | str) -> Record | None:
        """A copy of one record, or None."""
        with self._lock:
            body = self._tables.get((account, kind), {}).get(str(key))
        record: Record | None = None if body is None else json.loads(body)
        return record

    def all(self, account: str, kind: str) -> list[Record]:
        """Copies of all records of a kind, oldest first."""
        with self._lock:
            bodies = list(self._tables.get((account, kind), {}).values())
        return [json.loads(body) for body in bodies]

    def put(self, account: str, kind: str, key: int | str, record: Record) -> None:
        """Keep a record under its key, new or instead of the one before."""
        body = json.dumps(record, separators=(",", ":"))
        with self.change():
            table = self._tables.setdefault((account, kind), {})
            self._undo.append(((account, kind), str(key), table.get(str(key))))
            table[str(key)] = body

    def delete(self, account: str, kind: str, key: int | str) -> None:
        """Forget a record; one that is not there is no error."""
        with self.change():
            table = self._tables.setdefault((account, kind), {})
            if str(key) in table:
                self._undo.append(((account, kind), str(key), table.pop(str(key))))

    def new_id(self) -> int:
        """The next number. One series for everything, so that a mixed-up id never fits by chance."""
        with self.change():
            last = (self.get("", "meta", "last_id") or {"value": 1000})["value"]
            self.put("", "meta", "last_id", {"value": last + 1})
            return int(last) + 1

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
