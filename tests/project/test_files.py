"""The files that a deployment or a newcomer relies on agree with the code and with each other."""

from __future__ import annotations

import csv
import re
import unicodedata
from datetime import date
from pathlib import Path

import pytest

import settings
from script.bootstrap import ROOT

REQUIREMENTS = ["requirements.txt", "requirements-dev.txt"]
TIERS = {"Bronze": 0, "Silver": 500, "Gold": 2_000, "Platinum": 10_000}


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_dependency_is_pinned_and_hashed_and_no_address_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    packages = [line for line in text.splitlines() if not line.startswith(" ")]
    assert packages
    assert [line for line in packages if not re.fullmatch(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+( ; .+)? \\", line)] == []
    for block in re.split(r"\n(?=\S)", text.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_package_asked_for_is_in_the_compiled_file(name: str) -> None:
    compiled = {line.split("==")[0].split("[")[0] for line in (ROOT / name).read_text().splitlines() if "==" in line}
    asked = re.findall(r"(?m)^[a-z][a-z0-9-]*", (ROOT / name).with_suffix(".in").read_text())
    assert asked
    assert [package for package in asked if package not in compiled] == []


def test_the_example_of_an_env_file_names_every_setting_with_a_comment() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = [line.split("=")[0] for line in lines if line and not line.startswith("#")]
    assert sorted(named) == sorted(settings._Environment().fields)
    for paragraph in "\n".join(lines).split("\n\n")[1:]:
        assert paragraph.startswith("#")


def test_the_example_of_an_env_file_works_on_a_laptop_as_it_is(tmp_path: Path) -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert settings.load(given, var=tmp_path) == settings.load({}, var=tmp_path)


def test_the_processes_of_the_procfile() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    processes = dict(line.split(": ", 1) for line in lines)
    assert set(processes) == {"release", "web", "worker"}
    assert processes["web"] == 'gunicorn -c gunicorn.conf.py "app:create_app()"'


def test_the_continuous_integration_runs_the_command_that_people_run() -> None:
    assert "exec script/test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture
def members() -> list[dict[str, str]]:
    with (ROOT / "demo" / "members.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_the_demo_store_has_valid_rows_only(members: list[dict[str, str]]) -> None:
    assert 30 <= len(members) <= 40
    addresses = [unicodedata.normalize("NFC", row["Email"].strip().lower()) for row in members]
    assert len(set(addresses)) == len(addresses)
    for row, address in zip(members, addresses, strict=True):
        assert None not in row
        assert None not in row.values()
        assert re.fullmatch(r"[^@\s]+@([a-z]+\.)?example\.(com|org|net)", address), address
        assert int(row["Lifetime Points"] or 0) >= int(row["Points"] or 0) >= 0
        assert row["Loyalty Status"] in ("", "Member", "Guest", "Excluded")
        assert row["Date of Birth"] == "" or date.fromisoformat(row["Date of Birth"])


def test_the_demo_store_shows_every_status_tier_and_shape_of_address(members: list[dict[str, str]]) -> None:
    def tier(row: dict[str, str]) -> str:
        points = int(row["Lifetime Points"] or 0)
        return max((name for name, least in TIERS.items() if points >= least), key=lambda name: TIERS[name])

    assert {tier(row) for row in members} == set(TIERS)
    assert {row["Loyalty Status"] for row in members} == {"", "Member", "Guest", "Excluded"}
    assert any("Rivo Excluded" in row["Tags"].split(", ") for row in members)
    assert any(row["Points"] == "" for row in members)
    assert any("+" in row["Email"] for row in members)
    assert any(row["Email"].isupper() for row in members)
    assert any(row["Email"] != row["Email"].strip() for row in members)
    assert any(not row["Email"].isascii() for row in members)
