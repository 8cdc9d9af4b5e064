"""script/backup and script/restore: a SQLite database copied while awards go on, and brought back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from script.backup import database_file
from script.bootstrap import ROOT
from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house

MIA = "mia@example.com"


@pytest.fixture
def house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    with running_house(sqlite_database.url, clock=clock, max_points_per_connection_per_day=1_000_000) as house:
        yield house


def run(script: str, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """The script as an operator runs it, with nothing but Python."""
    command = [ROOT / "script" / script, *arguments]
    environment = {"PATH": os.environ["PATH"], **settings}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


def file_of(house: House) -> Path:
    name = make_url(house.services.database.url).database
    assert name is not None
    return Path(name)


def test_a_copy_taken_while_awards_go_on_is_whole_and_brings_everything_back(
    house: House, tmp_path: Path, clock: Clock
) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, MIA)
    stop, awarded = threading.Event(), threading.Semaphore(0)

    def press() -> None:
        for number in range(10_000):
            if stop.is_set():
                return
            assert house.award(connection, {"email": MIA, "points": 1, "ticket_id": str(number)}).status_code == 200
            awarded.release()

    agent = threading.Thread(target=press)
    agent.start()
    copy, database = tmp_path / "copies" / "monday.db", file_of(house)
    copy.parent.mkdir()
    try:
        for _ in range(5):
            assert awarded.acquire(timeout=20)
        done = run("backup", copy, "--database", database)
        for _ in range(5):
            assert awarded.acquire(timeout=20), "awards go on"
    finally:
        stop.set()
        agent.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{copy} is a whole and sound copy of {database}. "
        "A copy is of no use without ENCRYPTION_KEYS: keep them too, in another place.\n"
    )
    assert [path.name for path in copy.parent.iterdir()] == ["monday.db"], "one file, that needs no other"
    assert copy.stat().st_mode & 0o777 == 0o600
    at_the_end = house.balance(connection, MIA)

    elsewhere = tmp_path / "another-host" / "tallydesk.db"
    elsewhere.parent.mkdir()
    done = run("restore", copy, "--database", elsewhere)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    with running_house(f"sqlite:///{elsewhere}", clock=clock) as restored:
        balance = restored.balance(connection, MIA)
        assert 5 <= balance < at_the_end
        with closing(sqlite3.connect(elsewhere)) as sql:
            (of_awards,) = sql.execute("SELECT sum(points) FROM awards WHERE state = 'applied'").fetchone()
            (of_entries,) = sql.execute("SELECT sum(points) FROM ledger_entries WHERE side = 'credit'").fetchone()
        assert (of_awards, of_entries) == (balance, balance), "the state of one moment"
        clock.advance(61)
        answer = restored.award(connection, {"email": MIA, "points": 1, "ticket_id": "1"})
        assert answer.json()["points_balance"] == balance + 1
    assert copy.exists(), "a copy may be needed once more"


def test_a_database_in_use_is_not_replaced_and_one_out_of_use_is_kept_aside(
    house: House, tmp_path: Path, clock: Clock
) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, MIA, points=100)
    copy, database = tmp_path / "copy.db", file_of(house)
    assert run("backup", copy, "--database", database).returncode == 0
    house.award(connection, {"email": MIA, "points": 20, "ticket_id": "1"})
    refused = run("restore", copy, "--database", database)
    assert (refused.returncode, refused.stderr) == (1, f"{database} is in use: stop web and worker first.\n")
    assert house.balance(connection, MIA) == 120

    house.services.database.close()
    for number, name in enumerate(("tallydesk.db.before-restore", "tallydesk.db.before-restore-2")):
        done = run("restore", copy, "--database", database)
        assert done.returncode == 0, done.stderr
        aside = database.with_name(name)
        assert done.stdout == (
            f"What was there before is kept as {aside}.\n{database} is as it was in {copy}. "
            "Now run flask db-upgrade and flask ledger verify, then start.\n"
        )
        with closing(sqlite3.connect(aside)) as sql:
            assert sql.execute("SELECT balance FROM members").fetchone() == (100 if number else 120,)
    assert house.balance(connection, MIA) == 100


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, None])
def test_what_is_no_copy_is_refused_and_the_database_stays(migrated_file: Path, tmp_path: Path, content: bytes) -> None:
    copy, database = tmp_path / "copy.db", tmp_path / "tallydesk.db"
    shutil.copyfile(migrated_file, database)
    before = database.read_bytes()
    if content is not None:
        copy.write_bytes(content)
    done = run("restore", copy, "--database", database)
    assert done.returncode == 1
    assert str(copy) in done.stderr
    assert database.read_bytes() == before


def test_a_damaged_database_gives_no_copy(migrated_file: Path, tmp_path: Path) -> None:
    database, copy = tmp_path / "tallydesk.db", tmp_path / "copy.db"
    whole = migrated_file.read_bytes()
    database.write_bytes(whole[:8192] + b"\xff" * 8192 + whole[16384:])
    done = run("backup", copy, "--database", database)
    assert done.returncode == 1
    assert str(database) in done.stderr or "damaged" in done.stderr
    assert not copy.exists()


def test_no_good_copy_is_written_over(migrated_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_text("the only one")
    done = run("backup", copy, "--database", migrated_file)
    assert (done.returncode, done.stderr) == (
        1,
        f"{copy} is there already: give a new name, so that no good copy is lost.\n",
    )
    assert copy.read_text() == "the only one"


def test_the_database_is_the_one_of_the_setting(migrated_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    done = run("backup", copy, DATABASE_URL=f"sqlite:///{migrated_file}")
    assert done.stdout.startswith(f"{copy} is a whole and sound copy of {migrated_file}. ")

    refused = run("restore", copy, DATABASE_URL="postgresql://tallydesk:hidden@db.example.com/tallydesk")
    assert (refused.returncode, refused.stderr) == (
        1,
        "DATABASE_URL is a PostgreSQL: docs/backup.md has its commands. For a SQLite file give --database.\n",
    )


def test_the_environment_wins_over_the_file_of_settings(tmp_path: Path) -> None:
    settings = tmp_path / ".env"
    assert database_file({}, settings) == ROOT / "var" / "tallydesk.db"
    settings.write_text("# DATABASE_URL=sqlite:////no.db\nDATABASE_URL=\nPORT=8000\n")
    assert database_file({}, settings) == ROOT / "var" / "tallydesk.db"
    settings.write_text("PORT=8000\nDATABASE_URL='sqlite:////data/of-the-file.db'\n")
    assert database_file({}, settings) == Path("/data/of-the-file.db")
    assert database_file({"DATABASE_URL": "sqlite:////data/a.db"}, settings) == Path("/data/a.db")
