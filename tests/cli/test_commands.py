"""The commands as a newcomer meets them: what they print, how they end, and what they say when something is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import update

from storage.database import Database
from storage.tables import members
from tests.cli.command import environment, environment_of, flask, flask_here
from tests.databases import FIRST_KEY, SECOND_KEY, Clock
from tests.house import House, running_house
from tests.placement.gorgias import RunningClock, assert_exactly_one_of_each, second_store

COMMANDS = (
    ("db-upgrade",),
    ("worker",),
    ("members", "import", "x.csv"),
    ("ledger", "verify"),
    ("keys", "rotate", "sealing"),
    ("keys", "rotate", "connection"),
    ("privacy", "export", "--email", "ana@example.com"),
    ("privacy", "erase", "--email", "ana@example.com"),
)
CUSTOMERS = "Email,First Name,Tags,Points\nana@example.com,Ana,,120\nben@example.com,Ben,Rivo Excluded,\nnobody,,,\n"


@pytest.fixture
def customers(tmp_path: Path) -> Path:
    path = tmp_path / "customers.csv"
    path.write_text(CUSTOMERS)
    return path


# -- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_wrong_settings_end_in_a_list_of_all_faults(command: tuple[str, ...], tmp_path: Path) -> None:
    env = environment(
        f"sqlite:///{tmp_path / 'x.db'}",
        PUBLIC_URL="http://loyalty.example.com",
        SECRET_KEY="short",
        ENCRYPTION_KEYS="nonsense",
        PORT="many",
        GORGIAS_CLIENT_ID="",
        GORGIAS_URL="https://gorgias.example.com",
    )
    done = flask(*command, env=env)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: Tallydesk cannot start with these settings:\n  - ")
    for name in ("PUBLIC_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "PORT", "GORGIAS_CLIENT_ID", "GORGIAS_URL"):
        assert f"  - {name}" in done.stderr
    assert "nonsense" not in done.stderr
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_an_empty_database_ends_in_what_to_do(command: tuple[str, ...], tmp_path: Path) -> None:
    done = flask_here(*command, env=environment(f"sqlite:///{tmp_path / 'empty.db'}"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: The database is empty. Run: flask db-upgrade\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_that_cannot_be_reached_ends_in_what_to_look_at(command: tuple[str, ...]) -> None:
    done = flask_here(*command, env=environment("postgresql://nobody:secret-word@127.0.0.1:9/tallydesk"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("Error: The database cannot be reached. Check DATABASE_URL and whether the server runs.\n")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_keys_that_do_not_fit_the_database_end_in_what_to_do(
    command: tuple[str, ...], sqlite_database: Database
) -> None:
    assert flask_here("db-upgrade", env=environment(sqlite_database.url)).returncode == 0
    done = flask_here(*command, env=environment(sqlite_database.url, ENCRYPTION_KEYS=SECOND_KEY))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: The database holds secrets sealed with another key. Put the key")


def test_a_folder_that_cannot_be_made_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = flask("db-upgrade", env=environment(f"sqlite:///{tmp_path / 'file' / 'x.db'}"))
    assert done.returncode == 1
    assert done.stderr == "Error: The database file cannot be written. Check the permissions of its folder.\n"


# -- db-upgrade --------------------------------------------------------------------------------------------


def test_an_empty_database_is_brought_up_to_date_and_a_second_time_changes_nothing(empty_database: Database) -> None:
    for _ in range(2):
        done = flask_here("db-upgrade", env=environment(empty_database.url))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "The database is up to date.\n"
    empty_database.require_current()


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[3]], ids=" ".join)
def test_a_database_of_a_newer_version_is_left_alone(command: tuple[str, ...], database: Database) -> None:
    with database.write() as tx:
        tx.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    done = flask_here(*command, env=environment(database.url))
    assert (done.returncode, done.stdout) == (1, "")
    assert "made by a newer version of Tallydesk" in done.stderr
    assert "restore the backup made before the upgrade" in done.stderr
    with database.read() as tx:
        assert tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == "9999"


# -- members import ----------------------------------------------------------------------------------------


def test_on_a_laptop_members_may_come_before_any_connection(
    sqlite_database: Database, customers: Path, clock: Clock
) -> None:
    env = environment(sqlite_database.url)
    done = flask_here("members", "import", str(customers), env=env)
    assert done.returncode == 0, done.stderr
    assert "3 rows: 2 members created, 0 updated, 0 unchanged, 1 rejected." in done.stdout
    assert "Rejected rows, with the reason for each: " in done.stdout
    again = flask_here("members", "import", str(customers), env=env)
    assert "3 rows: 0 members created, 0 updated, 2 unchanged, 1 rejected." in again.stdout
    with running_house(sqlite_database.url, clock=clock) as house:
        _, connection = house.connect()
        assert house.balance(connection, "ana@example.com") == 120, "the first account to connect takes them over"


def test_elsewhere_a_helpdesk_is_connected_first(sqlite_database: Database, customers: Path) -> None:
    env = environment(
        sqlite_database.url,
        PUBLIC_URL="https://loyalty.example.com",
        GORGIAS_URL="https://{account}.gorgias.com",
        SECRET_KEY="a strong secret: 4Dk1-99x-QwErTz-777",
        ENCRYPTION_KEYS=Fernet.generate_key().decode(),
    )
    done = flask_here("members", "import", str(customers), env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: No helpdesk shows the built-in ledger yet. Connect one first, then import its members.\n"
    )


@pytest.mark.parametrize("named", [False, True])
def test_an_import_is_for_the_built_in_ledger_alone(
    sqlite_database: Database, customers: Path, clock: Clock, named: bool
) -> None:
    with running_house(sqlite_database.url, clock=clock) as house:
        connection = house.open_rivo()
        options = ("--connection", str(connection.id)) if named else ()
        env = environment_of(house)
        done = flask_here("members", "import", *options, str(customers), env=env)
        if named:
            assert done.returncode == 1
            assert f"Connection {connection.id} shows rivo, which has its members already." in done.stderr
        else:
            assert done.returncode == 0, "kept for the first account that chooses the ledger"
            assert house.lookup(connection, "ana@example.com").json()["loyalty_status"] == "Customer not found"


def test_with_one_connection_its_store_is_meant_and_with_several_one_is_chosen(
    database: Database, customers: Path, clock: Clock
) -> None:
    with running_house(database.url, clock=clock) as house:
        env = environment_of(house)
        _, first = house.connect()
        assert flask_here("members", "import", str(customers), env=env).returncode == 0
        assert house.balance(first, "ana@example.com") == 120
        second = second_store(house, first)
        unsure = flask_here("members", "import", str(customers), env=env)
        assert unsure.returncode == 1
        assert unsure.stderr == (
            "Error: There are several connections; add --connection ID. "
            f"Connections: {first.id} (acme, ledger), {second.id} (acme, ledger).\n"
        )
        wrong = flask_here("members", "import", "--connection", "77", str(customers), env=env)
        assert wrong.returncode == 1
        assert wrong.stderr.startswith("Error: There is no connection 77. Connections: ")
        chosen = flask_here("members", "import", "--connection", str(second.id), str(customers), env=env)
        assert chosen.returncode == 0, chosen.stderr
        assert house.balance(second, "ana@example.com") == 120


def test_a_file_that_is_not_there_or_is_no_export_ends_in_a_sentence(sqlite_database: Database, tmp_path: Path) -> None:
    env = environment(sqlite_database.url)
    missing = flask_here("members", "import", str(tmp_path / "nothing.csv"), env=env)
    assert missing.returncode == 1
    assert missing.stderr.startswith("Error: ")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    other = flask_here("members", "import", str(tmp_path / "other.csv"), env=env)
    assert other.returncode == 1
    assert "Email" in other.stderr


# -- ledger verify -----------------------------------------------------------------------------------------


def test_good_books_are_proven_and_tampered_ones_are_found(
    sqlite_database: Database, customers: Path, clock: Clock
) -> None:
    env = environment(sqlite_database.url)
    flask_here("members", "import", str(customers), env=env)
    good = flask_here("ledger", "verify", env=env)
    assert good.returncode == 0, good.stderr
    assert good.stdout == "The books add up: 1 transactions, debits 120 = credits 120.\n"
    with sqlite_database.write() as tx:
        tx.execute(update(members).values(balance=members.c.balance + 1))
    bad = flask_here("ledger", "verify", env=env)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "Error: The books do not add up: 2 faults, debits 120, credits 120. Stop awarding" in bad.stderr
    assert "@" not in bad.stderr, "no e-mail in what may end in a log"


# -- keys --------------------------------------------------------------------------------------------------


@pytest.fixture
def house(sqlite_database: Database) -> Iterator[House]:
    with running_house(sqlite_database.url, clock=RunningClock()) as house:
        yield house


def test_the_keys_of_one_or_of_every_connection_are_replaced(house: House) -> None:
    _, acme = house.connect("acme")
    _, globex = house.connect("globex")
    env = environment_of(house)
    before = [house.services.connections.newest_keys(c.id) for c in (acme, globex)]
    one = flask("keys", "rotate", "connection", str(globex.id), env=env)
    assert (one.returncode, one.stdout) == (0, f"Connection {globex.id} (globex): new keys are in place.\n")
    assert house.services.connections.newest_keys(acme.id) == before[0]
    assert house.services.connections.newest_keys(globex.id) != before[1]
    every = flask("keys", "rotate", "connection", env=env)
    assert every.returncode == 0
    assert every.stdout.splitlines() == [
        f"Connection {acme.id} (acme): new keys are in place.",
        f"Connection {globex.id} (globex): new keys are in place.",
    ]
    assert_exactly_one_of_each(house, acme)
    assert_exactly_one_of_each(house, globex)
    unknown = flask("keys", "rotate", "connection", "99", env=env)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("Error: There is no such connection. Connections: ")


def test_a_helpdesk_that_refuses_new_keys_does_not_keep_the_others_from_theirs(house: House) -> None:
    _, acme = house.connect("acme")
    _, globex = house.connect("globex")
    old = house.lookup(acme)
    assert old.status_code == 200
    key = house.services.connections.newest_keys(acme.id).lookup
    house.sandbox.faults.add(r"/api/integrations/\d+", method="PUT", account="acme", kind="status", times=None)
    done = flask("keys", "rotate", "connection", env=environment_of(house))
    assert done.returncode == 1
    assert done.stdout == f"Connection {globex.id} (globex): new keys are in place.\n"
    assert f"Connection {acme.id} (acme): Gorgias did not answer." in done.stderr
    assert done.stderr.endswith("Error: The old keys go on working where the new ones are not in place.\n")
    assert house.lookup(acme, headers={"X-Api-Key": key}).status_code == 200


def test_everything_is_sealed_anew_and_the_old_key_can_be_dropped(house: House) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, "mia@example.com", points=5)
    both = environment_of(house) | {"ENCRYPTION_KEYS": f"{SECOND_KEY},{FIRST_KEY}"}
    done = flask("keys", "rotate", "sealing", env=both)
    assert done.returncode == 0, done.stderr
    assert "Every key but the first can now be removed from ENCRYPTION_KEYS." in done.stdout
    only_new = environment_of(house) | {"ENCRYPTION_KEYS": SECOND_KEY}
    rotated = flask("keys", "rotate", "connection", env=only_new)
    assert rotated.returncode == 0, rotated.stderr
    old = flask("ledger", "verify", env=environment_of(house))
    assert "sealed with another key" in old.stderr


# -- help --------------------------------------------------------------------------------------------------


def test_the_help_lists_the_commands_and_every_group_says_what_it_holds(tmp_path: Path) -> None:
    env = environment(f"sqlite:///{tmp_path / 'x.db'}")
    for command in ((), ("keys", "rotate"), ("members",), ("ledger",), ("privacy",)):
        done = flask_here(*command, "--help", env=env)
        assert done.returncode == 0
        assert "Commands:" in done.stdout
        for line in done.stdout.partition("Commands:\n")[2].strip().splitlines():
            assert len(line.split()) > 1, "every command has a word of help"
