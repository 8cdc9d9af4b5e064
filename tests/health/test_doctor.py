"""`flask doctor` and /readyz: one list of checks, each with a sentence and what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import requests
from sqlalchemy import insert, make_url, select, text, update
from structlog.testing import capture_logs

from findings import Finding, Severity
from health import MOST_ASKED_LIVE, Health, instance_of, lasting
from settings import Settings, SettingsError, load
from storage.database import Database
from storage.tables import accounts, awards, workers
from tests.cli.command import ROOT, environment, environment_of, flask, flask_here
from tests.databases import Clock, Postgres
from tests.health.steps import probed, switch_off
from tests.house import House, running_house

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR


class RealClock(Clock):
    """The real time: the doctor is a process of its own."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)

    def advance(self, seconds: float) -> None:
        """Nothing: real time passes by itself."""


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


def test_a_person_and_a_program_read_the_same_findings(sqlite_database: Database) -> None:
    with running_house(sqlite_database.url, clock=RealClock()) as house:
        _, connection = house.connect()
        with house.services.database.write() as tx:
            tx.execute(insert(workers).values(owner="w", last_seen_at=house.clock()))
        env = environment_of(house)
        told = json.loads(flask("doctor", "--json", env=env).stdout)
        assert list(told) == ["findings"]
        found = {finding["id"]: finding for finding in told["findings"]}
        assert {key for finding in told["findings"] for key in finding} == {"id", "severity", "sentence", "remedy"}
        well = [name for name, finding in found.items() if finding["severity"] == "ok"]
        # Whether the disk of the tests lasts and has room depends on where they run.
        assert sorted({*well} - {"database.lasting", "database.room"}) == [
            "awards.backlog",
            "awards.review",
            "clock",
            "database.migrated",
            "database.reachable",
            "database.writable",
            "gorgias.token",
            "integration",
            "integration.enabled",
            "macro",
            "notes.backlog",
            "queue.depth",
            "redirect_uri",
            "secrets.fit",
            "secrets.strength",
            "settings",
            "widget.customer",
            "widget.ticket",
            "worker.heartbeat",
        ]
        assert found["redirect_uri"]["sentence"].startswith(
            f"Register it with your app at Gorgias: {house.url}/oauth/callback"
        )
        assert all(finding["remedy"] == "" for finding in found.values() if finding["severity"] == "ok")

        switch_off(house, connection)
        with house.services.database.write() as tx:
            tx.execute(update(workers).values(last_seen_at=house.clock() - timedelta(minutes=5)))
        done = flask_here("doctor", env=env)
        assert done.returncode == 2
        lines = done.stdout.splitlines()
        at = next(n for n, line in enumerate(lines) if "integration.enabled" in line)
        assert lines[at].startswith("error    integration.enabled  ")
        about = f"acme, connection {connection.id}: The HTTP integration is switched off in Gorgias."
        assert lines[at].endswith(about)
        remedy = lines[at + 1]
        assert remedy.lstrip().startswith("→ Press “Switch on again” on the connection's page.")
        assert remedy.index("→") == lines[at].index("acme")
        assert "No worker has shown itself for 5 minutes" in done.stdout
        assert lines[-1].startswith("2 errors")
        assert "\x1b" not in done.stdout


def test_broken_settings_are_findings_one_for_each_fault() -> None:
    env = environment("mysql://host/name", PUBLIC_URL="https://loyalty.example.com", SECRET_KEY="weak", PORT="many")
    done = flask("doctor", "--json", env={**env, "GORGIAS_CLIENT_ID": ""})
    assert (done.returncode, done.stderr) == (2, "")
    found = json.loads(done.stdout)["findings"]
    assert [(f["id"], f["severity"]) for f in found].count(("settings", "error")) == len(found) - 1
    weak = next(f for f in found if f["id"] == "secrets.strength")
    assert weak["sentence"] == "SECRET_KEY is too weak."
    assert weak["remedy"].startswith("Make one with: python3 -c")
    with pytest.raises(SettingsError) as refused:
        load({**env, "GORGIAS_CLIENT_ID": ""}, var=ROOT / "var")
    assert len(found) == len(refused.value.faults) == 5
    for_people = flask("doctor", env={**env, "GORGIAS_CLIENT_ID": ""})
    assert for_people.returncode == 2
    assert "5 errors." in for_people.stdout
    # Every other command says it as before.
    other = flask("ledger", "verify", env={**env, "GORGIAS_CLIENT_ID": ""})
    assert (other.returncode, other.stdout) == (1, "")
    assert "Tallydesk cannot start with these settings:" in other.stderr


def test_a_database_that_cannot_even_be_opened_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = flask("doctor", "--json", env=environment(f"sqlite:///{tmp_path}/file/tallydesk.db"))
    assert done.returncode == 2
    settings, database = json.loads(done.stdout)["findings"]
    assert (settings["id"], settings["severity"]) == ("settings", "ok")
    assert (database["id"], database["severity"]) == ("database.reachable", "error")
    assert database["remedy"] == "Check the permissions of its folder."


def test_ready_tells_what_keeps_it_from_serving(house: House, request: pytest.FixtureRequest) -> None:
    """The same findings as the doctor's; health is asked of nothing at all."""
    services = house.services

    def ready() -> tuple[int, str]:
        answer = requests.get(f"{house.url}/readyz", timeout=20)
        return answer.status_code, answer.text

    assert ready() == (200, "ready\n")
    alive = requests.get(f"{house.url}/healthz", timeout=20)
    assert (alive.text, alive.headers["X-Tallydesk-Instance"]) == ("ok\n", instance_of(services.settings))
    with services.database.write() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    status, told = ready()
    assert status == 503
    assert told.startswith("The database is of an older version (0001, needed is ")
    assert told.endswith("Run: flask db-upgrade\n")
    found = by_id(services.health.everything())
    assert found["database.migrated"].remedy == "Run: flask db-upgrade"
    # What needs the tables is left out.
    assert "clock" not in found


def test_what_keeps_it_from_serving_is_logged_once_and_once_when_it_is_over(house: House) -> None:
    """Though it is asked every few seconds."""
    with house.services.database.read() as tx:
        newest = tx.scalar(text("SELECT version_num FROM alembic_version"))
    with capture_logs() as lines:
        for version in ("0001", "0001", newest):
            with house.services.database.write() as tx:
                tx.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
            for _ in range(2):
                requests.get(f"{house.url}/readyz", timeout=20)
    told = [(line["event"], line["outcome"], line["finding"]) for line in lines]
    assert told == [("health", "error", "database.migrated"), ("health", "well_again", "database.migrated")]


def test_a_database_that_may_only_be_read_and_one_that_is_gone_are_not_ready(
    postgres: Postgres, postgres_database: Database, clock: Clock
) -> None:
    name = postgres_database.url.split("?")[0].rsplit("/", 1)[1]
    with running_house(postgres_database.url, clock=clock) as house:
        health = house.services.health
        assert [finding.severity for finding in health.ready()] == [OK, OK, OK]
        with house.services.database.write() as tx:
            tx.execute(text("DROP ROLE IF EXISTS only_reads"))
            tx.execute(text("CREATE ROLE only_reads LOGIN"))
            tx.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO only_reads"))
        only_reads = Database(make_url(postgres_database.url).set(username="only_reads").render_as_string(False))
        ready = replace(health, database=only_reads).ready()
        only_reads.close()
        assert [finding.severity for finding in ready] == [OK, OK, ERROR]
        assert ready[-1].sentence == "The database lets us read and not write."
        with house.services.database.write() as tx:
            tx.execute(text("DROP OWNED BY only_reads"))
            tx.execute(text("DROP ROLE only_reads"))
        postgres.run(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        answer = requests.get(f"{house.url}/readyz", timeout=20)
        assert (answer.status_code, answer.text.split(".")[0]) == (503, "The database cannot be reached")
        assert "database.reachable" in by_id(house.services.health.everything())


def test_a_clock_that_is_wrong_is_told_by_whoever_has_another(house: House) -> None:
    """The clock of the tests stands still in the past: for PostgreSQL, Gorgias and what will be stored later."""
    house.connect()
    clock = by_id(house.services.health.everything())["clock"]
    assert clock.severity is ERROR
    whose = "Gorgias' clock" if house.services.database.sqlite else "clock"
    assert "behind" in clock.sentence
    assert whose in clock.sentence

    alone = replace(house.services.health, probe=cast(Any, _Deaf(house)))
    stored = by_id(alone.everything())["clock"]
    if house.services.database.sqlite:
        assert stored.well
        with house.services.database.write() as tx:
            tx.execute(update(accounts).values(updated_at=house.clock() + timedelta(seconds=30)))
        stored = by_id(alone.everything())["clock"]
        assert stored.severity is WARNING
        assert stored.sentence == "This host's clock is 30 seconds behind the newest time that is stored."
    else:
        assert "the database's clock" in stored.sentence


class _Deaf:
    """A probe to which Gorgias' answers carry no time."""

    def __init__(self, house: House) -> None:
        self._probe = house.services.probe

    def access(self, account: Any) -> tuple[Finding, None]:
        return self._probe.access(account)[0], None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)


def test_what_piles_up_is_told(small_house: House) -> None:
    house = small_house
    connection = house.open_rivo()
    house.sandbox.rivo("northwind").add_customer("ana@example.com", points=10)
    health = house.services.health
    assert by_id(health.everything())["worker.heartbeat"].severity is ERROR
    house.sandbox.faults.add(r"/merchant_api/v1/points_events", method="POST", account="rivo", kind="commit_late")
    house.award(connection, {"email": "ana@example.com", "points": 50, "ticket_id": "7"})
    assert by_id(health.everything())["awards.backlog"].well
    house.clock.advance(200)
    backlog = by_id(health.everything())["awards.backlog"]
    assert (backlog.severity, backlog.sentence) == (WARNING, "1 award is not settled for more than three minutes.")
    with house.services.database.write() as tx:
        tx.execute(update(awards).values(state="needs_review", note_state="due"))
    house.clock.advance(300)
    found = by_id(health.everything())
    assert found["awards.backlog"].well
    assert found["awards.review"].sentence == "1 award is waiting for somebody's decision."
    assert found["notes.backlog"].sentence == "1 note is not posted on a ticket for more than five minutes."
    assert found["program.key"].sentence == "acme, connection 1: The loyalty program takes the key."
    assert found["gorgias.token"].severity is ERROR
    with house.services.database.write() as tx:
        columns = {"state": "connected", "connected_at": house.clock(), "updated_at": house.clock()}
        tx.execute(insert(accounts), [{"name": f"shop-{n}", **columns} for n in range(300)])
    house.clock.advance(11 * 60)
    house.services.jobs.sweep()
    assert by_id(health.everything())["queue.depth"].severity is WARNING


def test_many_helpdesks_are_told_of_as_the_probe_last_saw_them(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    switch_off(house, connection)
    probed(house)
    with house.services.database.write() as tx:
        columns = {"state": "connected", "connected_at": house.clock(), "updated_at": house.clock()}
        others = [{"name": f"shop-{n}", **columns, "probed_at": house.clock()} for n in range(MOST_ASKED_LIVE)]
        tx.execute(insert(accounts), others)
    house.sandbox.requests.clear()
    found = by_id(house.services.health.everything())
    assert [*house.sandbox.requests] == []
    assert found["probe"].sentence == f"{MOST_ASKED_LIVE + 1} helpdesks are looked at once a day."
    seen = found["integration.enabled"]
    assert seen.severity is ERROR
    assert seen.sentence.startswith(
        f"acme, connection {connection.id}: The HTTP integration is switched off in Gorgias."
    )
    assert "Since 15 Mar 2026" in seen.sentence
    house.clock.advance(3 * 24 * 3600)
    assert by_id(house.services.health.everything())["probe"].severity is WARNING


def test_public_url_must_lead_to_this_very_installation(small_house: House) -> None:
    """Seen as a real deployment sees it: not loopback, so that it is fetched."""
    house = small_house
    here = house.services.settings

    def redirect_uri(**changed: Any) -> Finding:
        settings = _Deployed(**{**_values(here), **changed})
        health: Health = replace(house.services.health, settings=settings)
        return by_id([*health.everything()])["redirect_uri"]

    well = redirect_uri()
    assert (well.severity, well.sentence.split(".")[0]) == (OK, "PUBLIC_URL leads here")
    assert redirect_uri(secret_key="of another installation, long enough 123").severity is ERROR
    nobody = redirect_uri(public_url="http://localhost:9")
    assert (nobody.severity, "refused" in nobody.sentence) == (WARNING, True)
    elsewhere = redirect_uri(public_url=house.sandbox.url)
    assert "is not this installation" in elsewhere.sentence


def _values(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


class _Deployed(Settings):
    @property
    def development(self) -> bool:
        return False


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /dev/shm rw,nosuid - tmpfs tmpfs rw
23 21 8:2 / /data rw,relatime - ext4 /dev/sdb1 rw
24 21 0:21 / /in\\040memory rw - ramfs ramfs rw
"""
CONTAINER = MOUNTS.replace(" / / rw,relatime shared:1 - ext4 /dev/sda1", " / / rw,relatime - overlay overlay")


@pytest.mark.parametrize(
    ("file", "mounts", "environment", "severity"),
    [
        ("/srv/tallydesk.db", MOUNTS, {}, OK),
        ("/data/tallydesk.db", MOUNTS, {}, OK),
        ("/dev/shm/tallydesk.db", MOUNTS, {}, ERROR),
        ("/in memory/tallydesk.db", MOUNTS, {}, ERROR),
        ("/app/var/tallydesk.db", CONTAINER, {}, ERROR),
        ("/data/tallydesk.db", CONTAINER, {}, OK),
        ("/app/var/tallydesk.db", MOUNTS, {"DYNO": "web.1"}, ERROR),
        ("/app/var/tallydesk.db", MOUNTS, {"RENDER": "true"}, ERROR),
        ("/data/tallydesk.db", MOUNTS, {"RENDER": "true"}, OK),
        ("/app/var/tallydesk.db", MOUNTS, {"FLY_APP_NAME": "loyalty"}, ERROR),
        ("/data/tallydesk.db", MOUNTS, {"FLY_APP_NAME": "loyalty"}, OK),
        ("/database/tallydesk.db", MOUNTS, {"FLY_APP_NAME": "loyalty"}, ERROR),
        ("/srv/tallydesk.db", "", {}, OK),
        ("/srv/tallydesk.db", "", {"DYNO": "web.1"}, ERROR),
    ],
)
def test_a_disk_that_does_not_last_is_an_error_and_on_a_laptop_a_warning(
    file: str, mounts: str, environment: dict[str, str], severity: Severity
) -> None:
    def judged(development: bool) -> Finding:
        return lasting(Path(file), mounts=mounts, environment=environment, development=development)

    assert judged(False).severity is severity
    assert judged(True).severity is (OK if severity is OK else WARNING)
    assert bool(judged(False).remedy) is (severity is not OK)


def test_keys_that_open_nothing_are_told(small_house: House) -> None:
    settings = small_house.services.settings
    other = environment_of(small_house) | {"ENCRYPTION_KEYS": "c2Vjb25kIGtleSBvZiB0aGUgdGVzdHMgMzIgYnl0ZXM="}
    done = flask_here("doctor", "--json", env=other)
    found = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["secrets.fit"]["severity"] == "error"
    assert "ENCRYPTION_KEYS" in found["secrets.fit"]["remedy"]
    assert settings.encryption_keys[0] not in done.stdout
    with small_house.services.database.read() as tx:
        assert tx.execute(select(accounts)).all() == []
