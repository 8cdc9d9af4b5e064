"""Notices: the merchant is told once when something goes wrong and once when it is well again, and nobody else is."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from findings import Finding, Severity
from notices import BadNoticeUrl, Notices, read_notice_url
from outbound import Client, is_public
from storage.tables import accounts, changes, jobs, troubles
from tests.console.steps import session_of, text_of
from tests.databases import Clock
from tests.health.chat import Chat
from tests.health.steps import DAY_S, probed, switch_off, tell_at, troubles_of
from tests.house import House


def test_a_merchant_is_told_once_when_it_goes_wrong_and_once_when_it_is_well_again(house: House, chat: Chat) -> None:
    browser, connection = house.connect()
    page = tell_at(browser, chat.url)
    assert "Saved. A first notice has arrived at 127.0.0.1." in page
    assert chat.take() == ["Tallydesk tells you here when something is wrong with acme, and when it is well again."]
    switch_off(house, connection)
    probed(house)
    probed(house)
    (told,) = chat.take()
    about, where = told.splitlines()
    assert about.startswith(f"acme, connection {connection.id}: The HTTP integration is switched off in Gorgias. Press")
    assert where == f"{house.url}/connections/"
    house.services.placement.ensure(connection.id)
    probed(house)
    (told,) = chat.take()
    well = f"acme, connection {connection.id}, well again: The HTTP integration is switched on."
    assert told.splitlines()[0] == well
    probed(house)
    assert chat.take() == []
    with house.services.database.read() as tx:
        assert tx.execute(select(troubles)).all() == []
        kept = str(tx.execute(select(accounts)).all()) + str(tx.execute(select(changes)).all())
    assert "secret-part" not in kept + session_of(house, browser) + page


def test_a_notice_that_does_not_arrive_is_tried_again_and_given_up_after_a_day(small_house: House, chat: Chat) -> None:
    house = small_house
    browser, connection = house.connect()
    tell_at(browser, chat.url)
    switch_off(house, connection)
    chat.take()
    chat.answers = 503
    probed(house)
    chat.answers = 200
    house.clock.advance(60)
    house.work()
    assert len(chat.take()) == 1

    chat.answers = 503
    house.services.placement.ensure(connection.id)
    house.services.probe.probe(connection.account_id)
    house.work()
    assert _untold(house) == [("integration.enabled", "ok")]
    # Bad again before anybody could be told that it was well: there is nothing to tell.
    switch_off(house, connection)
    house.services.probe.probe(connection.account_id)
    assert _untold(house) == []
    house.services.placement.ensure(connection.id)
    house.services.probe.probe(connection.account_id)
    for _ in range(24):
        assert _untold(house) == [("integration.enabled", "ok")]
        house.clock.advance(3600)
        house.work()
    assert _untold(house) == []
    chat.answers = 200
    probed(house)
    assert chat.take() == []


def test_a_lost_hint_is_found_by_the_sweep(small_house: House, chat: Chat) -> None:
    house = small_house
    browser, connection = house.connect()
    tell_at(browser, chat.url)
    switch_off(house, connection)
    # Seen by the page; the job that it asked for is lost.
    browser.get(f"/connections/{connection.id}")
    chat.take()
    with house.services.database.write() as tx:
        tx.execute(jobs.delete())
    probed(house, after_s=180)
    assert len(chat.take()) == 1


def test_who_removed_the_app_in_gorgias_is_told_and_then_forgotten(small_house: House, chat: Chat) -> None:
    house = small_house
    browser, connection = house.connect()
    tell_at(browser, chat.url)
    switch_off(house, connection)
    probed(house)
    chat.take()
    house.clock.advance(1)
    house.services.placement.remove(connection.id)
    with house.services.database.write() as tx:
        ended = {"state": "disconnected", "state_reason": "uninstalled", "updated_at": house.clock()}
        tx.execute(update(accounts).values(**ended))
    probed(house, after_s=60)
    (told,) = chat.take()
    assert told.startswith("acme: Tallydesk was removed in Gorgias, and the helpdesk is disconnected. Nothing, if it")
    probed(house, after_s=60)
    assert chat.take() == []
    with house.services.database.read() as tx:
        assert tx.execute(select(accounts.c.notice_url_sealed)).all() == [(None,)]
        assert tx.execute(select(troubles)).all() == []


def test_an_address_that_does_not_take_the_first_notice_is_not_kept(small_house: House, chat: Chat) -> None:
    house = small_house
    browser, _ = house.connect()
    for status, told in ((404, "it answered 404."), (302, "it answered 302, and redirects are not followed.")):
        chat.answers, chat.location = status, f"{house.url}/"
        assert f"did not arrive: {told} Nothing was saved." in text_of(tell_at(browser, chat.url))
    assert "Nobody is told" in browser.get("/connections/").text
    chat.answers, chat.location = 200, ""
    tell_at(browser, chat.url)
    # Nobody who is told already is told again of what they see on the page.
    assert "Notices go to 127.0.0.1." in browser.get("/connections/").text
    agent = house.browser()
    agent.sign_in(user_id=house.sandbox.helpdesk("acme").users()[1]["id"])
    assert 'name="notice_url"' not in agent.get("/connections/").text
    refused = agent.submit("/connections/notices", {"stop": "yes"}, on="/healthz")
    assert refused.status_code in (400, 403)
    page = browser.submit("/connections/notices", {"stop": "yes"}, on="/connections/").text
    assert "Nobody is told any more; the address is forgotten." in page
    with house.services.database.read() as tx:
        assert tx.execute(select(accounts.c.notice_url_sealed)).all() == [(None,)]
    changed = text_of(browser.get("/connections/changes").text)
    assert "secret-part" not in changed


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "hooks.example.com/x",
        "http://hooks.example.com/x",
        "ftp://hooks.example.com/x",
        "https://",
        "https://user:pass@hooks.example.com/x",
        "https://hooks.example.com/x#y",
        "https://hooks.example.com:notaport/",
        "https://hooks.example.com/" + "x" * 500,
        "https://hooks.example.com/a b",
        "https://hooks.exämple.com/",
        "https://intranet/x",
        "https://localhost/x",
        "https://127.0.0.1/x",
        "https://10.0.0.7/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://[fd00:ec2::254]/x",
    ],
)
def test_an_address_that_no_merchant_should_give_is_refused_in_a_sentence(typed: str) -> None:
    with pytest.raises(BadNoticeUrl) as refused:
        read_notice_url(typed, development=False)
    assert str(refused.value)[0].isupper()


def test_an_address_is_kept_as_it_is() -> None:
    assert read_notice_url(" https://hooks.slack.com/services/T/B/x?y=1 ", development=False).endswith("?y=1")
    assert read_notice_url("http://localhost:9000/x", development=True) == "http://localhost:9000/x"
    with pytest.raises(BadNoticeUrl):
        read_notice_url("http://hooks.example.com/x", development=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700:4700::1111", True),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::5db8:d70e", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.31.255.255", False),
        ("192.168.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["localhost.localdomain.example", "0x7f.1"])
def test_what_a_name_stands_for_is_checked_when_it_is_connected_to(
    small_house: House, chat: Chat, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """A public-looking name that the resolver leads to this very machine: nothing of the request arrives there."""
    resolve = socket.getaddrinfo

    def lead_here(name: str, port: int, *args: int, **kwargs: int) -> object:
        return resolve("127.0.0.1" if name == host else name, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lead_here)
    services = small_house.services
    notices = Notices(
        services.database,
        sealer=services.sealer,
        troubles=services.troubles,
        public_url="https://loyalty.example.com",
        development=False,
        client=Client(),
        now=services.now,
    )
    port = chat.url.split(":")[2].split("/")[0]
    with pytest.raises(BadNoticeUrl, match="not on the public internet"):
        notices.keep(1, account="acme", typed=f"https://{host}:{port}/x")
    assert chat.take() == []


def test_two_who_see_the_same_at_once_note_it_once(house: House, clock: Clock) -> None:
    house.connect()
    known = house.services.accounts.named("acme")
    assert known is not None
    wrong = Finding(id="macro", severity=Severity.WARNING, sentence="It is missing.", remedy="Press Repair.")
    with capture_logs() as lines, ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(house.services.troubles.note, known.id, 1, [wrong], looked_at=("macro",))
    assert [line["outcome"] for line in lines if line["event"] == "health"] == ["warning"]
    assert [*troubles_of(house)] == ["macro"]
    clock.advance(DAY_S)
    worse = Finding(id="macro", severity=Severity.ERROR, sentence="It is worse.", remedy="Press Repair.")
    with capture_logs() as lines:
        house.services.troubles.note(known.id, 1, [worse], looked_at=("macro",))
    assert [line["outcome"] for line in lines if line["event"] == "health"] == ["error"]
    assert (clock() - troubles_of(house)["macro"].since).total_seconds() == DAY_S


def _untold(house: House) -> list[tuple[str, str]]:
    with house.services.database.read() as tx:
        rows = tx.execute(select(troubles).where(troubles.c.severity != troubles.c.told))
        return [(row.finding, row.severity) for row in rows]
