"""The way back: a copy that script/backup made takes the place of the SQLite database."""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from script.backup import check, database_file, draft_of, opened, with_database
from script.bootstrap import ROOT, Trouble, say


def main(arguments: Sequence[str]) -> int:
    """script/restore COPY"""
    parser = argparse.ArgumentParser(
        prog="script/restore", description="Put a copy in the place of the SQLite database; stop Tallydesk before."
    )
    parser.add_argument("copy", type=Path, help="a file that script/backup made")
    given = with_database(parser).parse_args(arguments)
    database = given.database or database_file(os.environ, ROOT / ".env")
    aside = restore(given.copy, database)
    if aside is not None:
        say(f"What was there before is kept as {aside}.")
    say(f"{database} is as it was in {given.copy}. Now run flask db-upgrade and flask ledger verify, then start.")
    return 0


def restore(copy: Path, database: Path) -> Path | None:
    """Put `copy` in the place of `database`; where that was put aside, if there was one. Raises Trouble."""
    check(copy)
    aside = None
    if database.exists():
        _require_unused(database)
        aside = next(path for path in _names_aside(database) if not path.exists())
    with draft_of(database) as draft:
        shutil.copyfile(copy, draft)
        if aside is not None:
            database.rename(aside)
        for left_over in ("-wal", "-shm"):
            # The log of another database would be written into this one.
            database.with_name(database.name + left_over).unlink(missing_ok=True)
    return aside


def _require_unused(path: Path) -> None:
    """Raises Trouble while anybody has it open. Brings what is in its log into the file."""
    with opened(path) as connection:
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.OperationalError:
            mode = "wal"
        if mode != "delete":
            raise Trouble(f"{path} is in use: stop web and worker first.")


def _names_aside(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.name}.before-restore")
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}.before-restore-{number}")
