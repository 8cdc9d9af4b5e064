"""`flask keys rotate sessions`: new keys without signing anybody out, and twice to sign everybody out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import delete, select, text

from oauth.sessions import FORMER, KNOWN_FOR, PRESENT, SessionKeys
from storage.database import Database
from storage.sealing import RandomBytes, Sealer, reseal_everything
from storage.tables import app_keys
from tests.cli.command import environment_of, start
from tests.databases import FIRST_KEY, SECOND_KEY, Clock, seeded_random_bytes
from tests.house import SECRET_KEY, Browser, House, running_house


@pytest.fixture
def other(sqlite_database: Database, house: House, clock: Clock) -> Iterator[House]:
    """A second web process on the same database, with everything in its memory its own."""
    with running_house(sqlite_database.url, clock=clock) as other:
        yield other


def test_a_rotation_signs_nobody_out_and_a_second_one_everybody_in_every_process(house: House, other: House) -> None:
    early = house.browser()
    early.sign_in()
    assert _signed_in(early, house)
    assert _signed_in(early, other)
    form = early.get("/connections/new").text
    _rotate(house)

    # Begun under the new key in one process, it opens in the other at once.
    late = house.browser()
    house.clock.advance(KNOWN_FOR / timedelta(seconds=1))
    late.sign_in()
    assert _signed_in(late, other)
    assert _signed_in(late, house)
    # The former goes on, also with forms from before.
    assert _signed_in(early, house)
    assert _signed_in(early, other)
    token = form.split('name="csrf_token" value="')[1].split('"')[0]
    data = {"csrf_token": token, "program": "ledger"}
    answer = early.session.post(f"{house.url}/connections/", data=data, allow_redirects=False, timeout=20)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections/1")

    _rotate_here(house)
    house.clock.advance(KNOWN_FOR / timedelta(seconds=1))
    # However busy it was between the two, it stayed under the key it began with.
    assert not _signed_in(early, house)
    assert not _signed_in(early, other)
    assert _signed_in(late, other)
    _rotate_here(house)
    house.clock.advance(KNOWN_FOR / timedelta(seconds=1))
    assert not _signed_in(late, other)
    assert not _signed_in(late, house)


def test_signing_in_again_begins_a_session_under_the_present_key(house: House) -> None:
    browser = house.browser()
    browser.sign_in()
    _rotate_here(house)
    house.clock.advance(10)
    browser.sign_in()
    _rotate_here(house)
    house.clock.advance(10)
    assert _signed_in(browser, house)


def test_keys_stay_through_a_rotation_of_what_seals_them_and_end_with_the_secret_key(
    database: Database, clock: Clock, random_bytes: RandomBytes
) -> None:

    def keys(secret: str = SECRET_KEY, *, sealed_with: tuple[str, ...] = (FIRST_KEY,)) -> SessionKeys:
        return SessionKeys(
            database, sealer=Sealer(sealed_with), secret_key=secret, now=clock, random_bytes=random_bytes
        )

    first = keys().read()
    assert len(first) == 1
    assert keys().read() == first
    assert keys("another secret key of the tests, long enough: 98765").read() != first
    keys().rotate()
    second = keys().read()
    assert second[1:] == first
    assert second[0] != first[0]
    keys().rotate()
    assert keys().read()[1] == second[0]
    assert first[0] not in keys().read()

    before = keys().read()
    reseal_everything(database, sealer=Sealer((SECOND_KEY, FIRST_KEY)))
    assert keys(sealed_with=(SECOND_KEY,)).read() == before
    with database.read() as tx:
        kept = {row.name: row.sealed for row in tx.execute(select(app_keys))}
    assert {PRESENT, FORMER} <= set(kept)
    assert not any(key in sealed for key in before for sealed in kept.values())


def test_what_is_known_is_asked_again_after_seconds_and_not_before(
    sqlite_database: Database, clock: Clock, random_bytes: RandomBytes
) -> None:
    keys = SessionKeys(
        sqlite_database,
        sealer=Sealer((FIRST_KEY,)),
        secret_key=SECRET_KEY,
        now=clock,
        random_bytes=random_bytes,
    )
    known = keys.known()
    replacing = _replaced(sqlite_database, clock)
    assert keys.known() == known
    clock.advance(KNOWN_FOR / timedelta(seconds=1))
    assert keys.known() == (replacing.read()[0], known[0])
    # A clock that was set back must not keep old keys for hours.
    replacing.rotate()
    clock.advance(-3600)
    assert keys.known() == replacing.read()


def test_trouble_with_the_database_is_told_and_ends_no_session(house: House) -> None:
    browser = house.browser()
    browser.sign_in()
    house.clock.advance(10)
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE app_keys RENAME TO app_keys_away"))
    answer = browser.get("/connections/changes", follow=False)
    assert answer.status_code == 503
    assert "Set-Cookie" not in answer.headers
    assert house.browser().get("/").status_code == 200
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE app_keys_away RENAME TO app_keys"))
    assert _signed_in(browser, house)


def test_a_forged_cookie_opens_nothing(house: House) -> None:
    browser = house.browser()
    browser.sign_in()
    cookie = browser.session.cookies["tallydesk_session"]
    with house.services.database.write() as tx:
        tx.execute(delete(app_keys).where(app_keys.c.name == PRESENT))
    house.clock.advance(10)
    assert not _signed_in(browser, house)
    for forged in (cookie[:-4] + "AAAA", "x", "." * 50, "é"):
        other = house.browser()
        other.session.headers["Cookie"] = f"tallydesk_session={forged}".encode("latin-1").decode("latin-1")
        assert other.get("/connections/changes", follow=False).status_code == 303


def _signed_in(browser: Browser, house: House) -> bool:
    answer = browser.session.get(f"{house.url}/connections/changes", allow_redirects=False, timeout=20)
    assert answer.status_code in (200, 303)
    return answer.status_code == 200


def _rotate(house: House) -> None:
    """As an operator does, in a process of its own."""
    process = start("keys", "rotate", "sessions", env=environment_of(house))
    told, trouble = process.communicate(timeout=60)
    assert process.returncode == 0, trouble
    assert "run this again to end them" in told


def _replaced(database: Database, clock: Clock) -> SessionKeys:
    """What another process knows, after it has replaced the keys."""
    replacing = SessionKeys(
        database, sealer=Sealer((FIRST_KEY,)), secret_key=SECRET_KEY, now=clock, random_bytes=seeded_random_bytes(4)
    )
    replacing.rotate()
    return replacing


def _rotate_here(house: House) -> None:
    house.services.session_keys.rotate()
