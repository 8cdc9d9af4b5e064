"""A copy of the SQLite database, taken while Tallydesk runs and checked before it counts.

Standard library only, so that a copy can be made wherever the file is. On PostgreSQL this is pg_dump's work.
"""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from script.bootstrap import ROOT, VAR, Trouble, say

KEYS = "A copy is of no use without ENCRYPTION_KEYS: keep them too, in another place."


def main(arguments: Sequence[str]) -> int:
    """script/backup COPY"""
    parser = argparse.ArgumentParser(prog="script/backup", description="Copy the SQLite database; Tallydesk may run.")
    parser.add_argument("copy", type=Path, help="the file to make")
    given = with_database(parser).parse_args(arguments)
    database = given.database or database_file(os.environ, ROOT / ".env")
    back_up(database, given.copy)
    say(f"{given.copy} is a whole and sound copy of {database}. {KEYS}")
    return 0


def back_up(database: Path, copy: Path) -> None:
    """A copy of `database` as of one moment, whatever is written meanwhile. Raises Trouble."""
    if copy.exists():
        raise Trouble(f"{copy} is there already: give a new name, so that no good copy is lost.")
    with opened(database) as connection, draft_of(copy) as draft:
        # Not a copy of the files, which may change between two of them; and without what was erased.
        connection.execute("VACUUM INTO ?", (str(draft),))
        check(draft)


def with_database(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, which takes --database too."""
    parser.add_argument("--database", type=Path, help="the database's file, else that of DATABASE_URL")
    return parser


def database_file(environment: Mapping[str, str], dotenv: Path) -> Path:
    """The SQLite file of DATABASE_URL, read as `settings.py` reads it: the environment first, then the file `dotenv`.

    Raises Trouble when it is a PostgreSQL.
    """
    url = environment.get("DATABASE_URL", "")
    if "DATABASE_URL" not in environment and dotenv.is_file():
        given = re.findall(r"^\s*(?:export\s+)?DATABASE_URL\s*=[ \t]*(\S*)", dotenv.read_text(), re.MULTILINE)
        url = given[-1].strip("'\"") if given else ""
    if not url:
        return VAR / "tallydesk.db"
    if not url.startswith("sqlite:///"):
        raise Trouble(
            "DATABASE_URL is a PostgreSQL: docs/backup.md has its commands. For a SQLite file give --database."
        )
    return Path(url.removeprefix("sqlite:///").partition("?")[0])


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is there. Raises Trouble, also for what the database objects meanwhile."""
    if not path.is_file():
        raise Trouble(f"There is no file {path}.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)) as found:
            yield found
    except sqlite3.Error as error:
        raise Trouble(f"{path} cannot be used: {error}.") from error


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """An empty file that becomes `path` when the block ends well, safely on the disk, and is gone when it does not."""
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.unlink(missing_ok=True)
        # Nobody else on the machine reads it.
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield draft
        for place in (draft, path.parent):
            descriptor = os.open(place, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        draft.rename(path)
    except OSError as error:
        raise Trouble(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        draft.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Raises Trouble unless the file is a sound database of Tallydesk."""
    with opened(path) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            raise Trouble(f"{path} is not a database of Tallydesk.")
        sound = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not sound or connection.execute("PRAGMA foreign_key_check").fetchall():
            raise Trouble(f"{path} is damaged.")
