"""The settings: every fault told at once, and a laptop that needs none."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from dotenv import dotenv_values

import settings
from settings import Settings, SettingsError, is_loopback, load
from tests.databases import FIRST_KEY, SECOND_KEY

ROOT = Path(__file__).resolve().parents[1]
SECRET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
KEY = FIRST_KEY

PRODUCTION = {
    "PUBLIC_URL": "https://loyalty.example.com",
    "SECRET_KEY": SECRET,
    "ENCRYPTION_KEYS": KEY,
    "GORGIAS_CLIENT_ID": "client",
    "GORGIAS_CLIENT_SECRET": "client secret",
}

LOAD = """
import sys
from pathlib import Path
from settings import load
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
found = load({}, var=Path(sys.argv[1]))
print(found.secret_key, *found.encryption_keys)
"""


def _faults(environment: dict[str, str], *, var: Path) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load(environment, var=var)
    for fault in refused.value.faults:
        assert fault in str(refused.value)
    return refused.value.faults


def test_a_laptop_needs_no_setting(tmp_path: Path) -> None:
    found = load({}, var=tmp_path / "var")
    assert found.development
    assert found.public_url == "http://localhost:8000"
    assert found.database_url == f"sqlite:///{tmp_path / 'var' / 'tallydesk.db'}"
    assert found.gorgias_base("acme") == "https://acme.gorgias.com"
    assert (found.max_points_per_award, found.max_points_per_agent_per_day) == (1_000, 10_000)
    assert (found.max_points_per_connection_per_day, found.double_click_window_s) == (50_000, 60)
    assert found.rivo_url == "https://developer-api.rivo.io/merchant_api/v1"
    assert (found.snapshot_fresh_s, found.snapshot_not_found_s, found.snapshot_retention_days) == (60, 30, 30)
    assert (found.card_deadline_s, found.unknown_award_resend_after_s) == (2.5, 45)


def test_production_settings_are_taken_as_given(tmp_path: Path) -> None:
    found = load(
        {
            **PRODUCTION,
            "PUBLIC_URL": "https://loyalty.example.com/",
            "ENCRYPTION_KEYS": f" {KEY} , {SECOND_KEY},",
            "PORT": " 9000 ",
            "GORGIAS_URL": "https://sandbox.example.com/{account}/",
            "RIVO_URL": "https://sandbox.example.com/rivo/merchant_api/v1/",
            "SNAPSHOT_FRESH_S": "120",
            "SNAPSHOT_NOT_FOUND_S": "15",
            "SNAPSHOT_RETENTION_DAYS": "7",
            "CARD_DEADLINE_S": "1.5",
            "UNKNOWN_AWARD_RESEND_AFTER_S": "90",
        },
        var=tmp_path,
    )
    assert found.rivo_url == "https://sandbox.example.com/rivo/merchant_api/v1"
    assert (found.snapshot_fresh_s, found.snapshot_not_found_s, found.snapshot_retention_days) == (120, 15, 7)
    assert (found.card_deadline_s, found.unknown_award_resend_after_s) == (1.5, 90)
    assert not found.development
    assert found.public_url == "https://loyalty.example.com"
    assert found.encryption_keys[0] == KEY
    assert len(found.encryption_keys) == 2
    assert found.port == 9000
    assert found.gorgias_base("acme") == "https://sandbox.example.com/acme"
    assert list(tmp_path.iterdir()) == [], "nothing is made where everything is given"


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    faults = _faults(
        {
            "PUBLIC_URL": "http://loyalty.example.com",
            "GORGIAS_URL": "http://gorgias.example.com",
            "PORT": "http",
            "SECRET_KEY": "short",
            "ENCRYPTION_KEYS": f"{KEY},nonsense",
            "DATABASE_URL": "mysql://localhost/tallydesk",
            "MAX_POINTS_PER_AWARD": "0",
            "DOUBLE_CLICK_WINDOW_S": "soon",
        },
        var=tmp_path,
    )
    for beginning in (
        "PORT must be a number.",
        "DOUBLE_CLICK_WINDOW_S must be a whole number.",
        "PUBLIC_URL must begin with https://",
        "GORGIAS_URL must begin with https://",
        "GORGIAS_URL must contain {account} once",
        "MAX_POINTS_PER_AWARD must lie between 1 and 2,000,000,000.",
        "SECRET_KEY is too weak: make one with",
        "ENCRYPTION_KEYS, key 2, is not a good Fernet key: make one with",
        "GORGIAS_CLIENT_ID is missing",
        "GORGIAS_CLIENT_SECRET is missing",
        "DATABASE_URL must begin with sqlite:/// or postgresql://.",
    ):
        assert sum(fault.startswith(beginning) for fault in faults) == 1, (beginning, faults)
    assert len(faults) == 11


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("SNAPSHOT_FRESH_S", "1", "86,400"),
        ("SNAPSHOT_NOT_FOUND_S", "1", "3,600"),
        ("SNAPSHOT_RETENTION_DAYS", "1", "3,650"),
        ("UNKNOWN_AWARD_RESEND_AFTER_S", "15", "3,600"),
    ],
)
def test_a_number_of_seconds_or_days_has_its_limits(tmp_path: Path, name: str, lowest: str, highest: str) -> None:
    least, most = int(lowest), int(highest.replace(",", ""))
    for good in (least, most):
        assert getattr(load({name: str(good)}, var=tmp_path), name.lower()) == good
    for bad in (least - 1, most + 1, -5):
        [fault] = _faults({name: str(bad)}, var=tmp_path)
        assert fault == f"{name} must lie between {lowest} and {highest}."
    for nonsense in ("soon", "1.5", "1e3"):
        [fault] = _faults({name: nonsense}, var=tmp_path)
        assert fault == f"{name} must be a whole number."


@pytest.mark.parametrize("seconds", ["0.5", "4.5", "3", " 2.50 "])
def test_a_card_may_wait_for_as_long_as_gorgias_does(tmp_path: Path, seconds: str) -> None:
    assert load({"CARD_DEADLINE_S": seconds}, var=tmp_path).card_deadline_s == float(seconds)


@pytest.mark.parametrize("seconds", ["0.4", "4.6", "0", "-1", "60", "inf"])
def test_a_card_may_not_wait_longer_nor_give_up_at_once(tmp_path: Path, seconds: str) -> None:
    [fault] = _faults({"CARD_DEADLINE_S": seconds}, var=tmp_path)
    assert fault.startswith("CARD_DEADLINE_S ")
    assert "between 0.5 and 4.5" in fault or "number" in fault


@pytest.mark.parametrize("seconds", ["soon", "2,5", "nan"])
def test_a_deadline_that_is_no_number_is_told(tmp_path: Path, seconds: str) -> None:
    [fault] = _faults({"CARD_DEADLINE_S": seconds}, var=tmp_path)
    assert fault.startswith("CARD_DEADLINE_S must be a number of seconds, such as 2.5.")


@pytest.mark.parametrize(
    ("url", "beginning"),
    [
        ("http://rivo.example.com/merchant_api/v1", "RIVO_URL must begin with https://"),
        ("rivo.example.com", "RIVO_URL must be a full address"),
        ("https://key@rivo.example.com/v1", "RIVO_URL must be a plain address"),
        ("https://rivo.example.com/v1?key=x", "RIVO_URL must be a plain address"),
    ],
)
def test_an_address_of_rivo_that_is_none_is_told(tmp_path: Path, url: str, beginning: str) -> None:
    [fault] = _faults({**PRODUCTION, "RIVO_URL": url}, var=tmp_path)
    assert fault.startswith(beginning)


def test_on_a_laptop_rivo_may_be_the_sandbox(tmp_path: Path) -> None:
    url = "http://localhost:8001/rivo/merchant_api/v1"
    assert load({"RIVO_URL": url}, var=tmp_path).rivo_url == url


def test_every_setting_is_explained() -> None:
    text = (ROOT / ".env.example").read_text()
    names = {field.name.upper() for field in fields(Settings)}
    assert [name for name in sorted(names) if re.search(rf"^{name}=", text, re.M) is None] == []


def test_the_example_has_every_default(tmp_path: Path) -> None:
    """Copied as it is, `.env.example` changes nothing."""
    example = {name: value or "" for name, value in dotenv_values(ROOT / ".env.example").items()}
    assert vars(load(example, var=tmp_path)) == vars(load({}, var=tmp_path))


@pytest.mark.parametrize("name", sorted(PRODUCTION.keys() - {"PUBLIC_URL"}))
@pytest.mark.parametrize("value", [None, "", "   "])
def test_outside_a_laptop_a_missing_secret_stops_the_start(tmp_path: Path, name: str, value: str | None) -> None:
    environment = {key: told for key, told in PRODUCTION.items() if key != name}
    if value is not None:
        environment[name] = value
    [fault] = _faults(environment, var=tmp_path)
    assert fault.startswith(f"{name} is missing: ")
    assert list(tmp_path.iterdir()) == [], "no secret is made up"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "a" * 64),
        ("SECRET_KEY", "changeme"),
        ("SECRET_KEY", SECRET[:31]),
        ("ENCRYPTION_KEYS", "A" * 43 + "="),
        ("ENCRYPTION_KEYS", KEY[:-4]),
        ("ENCRYPTION_KEYS", "schlüssel"),
    ],
)
@pytest.mark.parametrize("public_url", ["https://loyalty.example.com", "http://localhost:8000"])
def test_a_weak_secret_stops_the_start_everywhere(tmp_path: Path, name: str, value: str, public_url: str) -> None:
    [fault] = _faults({**PRODUCTION, "PUBLIC_URL": public_url, name: value}, var=tmp_path)
    assert fault.startswith(name)
    assert value not in fault, "a fault never shows the secret"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("tallydesk.localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost.example.com", False),
        ("notlocalhost", False),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("10.0.0.1", False),
        ("::", False),
        ("", False),
        (None, False),
    ],
)
def test_only_this_very_machine_is_a_laptop(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("public_url", ["http://[::1]:8000", "http://LOCALHOST:8000", "http://127.0.0.1"])
def test_loopback_addresses_need_no_https(tmp_path: Path, public_url: str) -> None:
    assert load({"PUBLIC_URL": public_url}, var=tmp_path).development


@pytest.mark.parametrize(
    "public_url",
    ["loyalty.example.com", "ftp://example.com", "https://", "https://[", "https://user@example.com", "https://a.b/?c"],
)
def test_an_address_that_is_none_is_told(tmp_path: Path, public_url: str) -> None:
    faults = _faults({**PRODUCTION, "PUBLIC_URL": public_url}, var=tmp_path)
    assert any(fault.startswith("PUBLIC_URL must be a ") for fault in faults)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p%40ss@db/tallydesk", "postgresql+psycopg://u:p%40ss@db/tallydesk"),
        ("postgresql://db/tallydesk?host=/run", "postgresql+psycopg://db/tallydesk?host=/run"),
        ("postgresql+psycopg://db/tallydesk", "postgresql+psycopg://db/tallydesk"),
        ("sqlite:////data/tallydesk.db", "sqlite:////data/tallydesk.db"),
    ],
)
def test_database_addresses_are_read_as_hosts_write_them(tmp_path: Path, given: str, used: str) -> None:
    assert load({"DATABASE_URL": given}, var=tmp_path).database_url == used


def test_a_laptops_secrets_are_made_once_and_are_private(tmp_path: Path) -> None:
    first = load({}, var=tmp_path / "var")
    second = load({}, var=tmp_path / "var")
    assert (second.secret_key, second.encryption_keys) == (first.secret_key, first.encryption_keys)
    kept = tmp_path / "var" / "secrets.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["secrets.json"], "no draft stays behind"
    assert json.loads(kept.read_text())["SECRET_KEY"] == first.secret_key


def test_a_secret_that_is_given_wins_over_the_one_that_was_made(tmp_path: Path) -> None:
    made = load({}, var=tmp_path)
    given = load({"SECRET_KEY": SECRET}, var=tmp_path)
    assert given.secret_key == SECRET
    assert given.encryption_keys == made.encryption_keys


def test_two_processes_starting_at_once_agree_on_the_secrets(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", LOAD, str(tmp_path / "var")]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert len({out for out, _ in told}) == 1


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")
    [fault] = _faults({}, var=tmp_path / "var")
    assert fault.startswith(f"The folder {tmp_path / 'var'} cannot be written (")
    assert "SECRET_KEY and ENCRYPTION_KEYS" in fault


@pytest.mark.parametrize("content", ["", "{", "[]", '{"SECRET_KEY": "x"}'])
def test_a_damaged_file_of_secrets_is_a_sentence(tmp_path: Path, content: str) -> None:
    """Never a traceback, and never a new key: the old one is what the database is sealed with."""
    (tmp_path / "secrets.json").write_text(content)
    faults = _faults({}, var=tmp_path)
    assert any("secrets.json" in fault for fault in faults)
    assert (tmp_path / "secrets.json").read_text() == content


def test_the_environment_wins_over_the_file_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text('PORT=9001\nPUBLIC_URL="http://localhost:9999"  # a remark\nGORGIAS_CLIENT_ID=\n')
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    for name in (*PRODUCTION, "DATABASE_URL", "GORGIAS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORT", "9002")
    found = settings.from_environment()
    assert found.port == 9002
    assert found.public_url == "http://localhost:9999"
    assert found.gorgias_client_id == ""


def test_secrets_are_not_shown_when_settings_are_printed(tmp_path: Path) -> None:
    found: Settings = load({**PRODUCTION, "DATABASE_URL": "postgresql://u:hidden@db/x"}, var=tmp_path)
    for secret in (SECRET, KEY, "client secret", "hidden"):
        assert secret not in repr(found)


def test_a_public_address_with_a_path_is_refused(tmp_path: Path) -> None:
    """Pages and Gorgias look for everything at the root."""
    with pytest.raises(SettingsError, match="PUBLIC_URL must be a host without a path"):
        load({"PUBLIC_URL": "http://localhost:8000/loyalty"}, var=tmp_path)
