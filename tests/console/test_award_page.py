"""The page that the card's link opens: awards by a signed-in agent, once for each form, and only in their helpdesk."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from sqlalchemy import select, update

from loyalty import award_key
from loyalty.awards import Origin
from loyalty.program import MemberStatus
from oauth.return_to import read_return_to, seal_return_to
from oauth.wire import SIGN_IN_SCOPES
from sandbox.widgets import build
from storage.database import Database
from storage.tables import awards, connections, oauth_states
from tests.console.steps import POINTS_EVENTS, session_of, text_of
from tests.databases import Clock
from tests.house import Browser, House, running_house
from tests.oauth.test_connecting import users
from widget.connections import Connection

ANA = "ana@example.com"
BEN_S_NOTE = "Late parcel"


@pytest.fixture
def desk(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    """A house in which acme shows its ledger, with ana as a member."""
    with running_house(sqlite_database.url, clock=clock) as house:
        _, connection = house.connect()
        house.add_member(connection.store, ANA, points=100)
        yield house


def only(house: House, account: str = "acme") -> Connection:
    known = house.services.accounts.named(account)
    assert known is not None
    return house.services.connections.of_account(known.id)[0]


def key_of(house: House, connection: Connection, email: str = ANA) -> str:
    return str(house.lookup(connection, email).json()["award_key"])


def link(house: House, *, ticket: str | None = "7", key: str | None = None) -> str:
    """The card's link, as Gorgias fills it in."""
    connection = only(house)
    address = f"/connections/{connection.id}/award?award_key={key_of(house, connection) if key is None else key}"
    return address if ticket is None else f"{address}&ticket_id={ticket}"


def agent(house: House, role: str = "agent", account: str = "acme") -> Browser:
    browser = house.browser()
    browser.sign_in(account, user_id=users(house)[role] if account == "acme" else None)
    return browser


def send(browser: Browser, page: str, fields: dict[str, str], *, action: str = "award", follow: bool = True) -> Any:
    """Fill in the form on `page` and send it with its hidden fields."""
    shown = browser.get(page).text
    form = re.search(rf'<form[^>]*action="([^"]*/{action})".*?</form>', shown, re.DOTALL)
    assert form is not None, text_of(shown)
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form[0]))
    return browser.submit(html.unescape(form[1]), {**hidden, **fields}, on=page, follow=follow)


def journal(house: House) -> list[Any]:
    with house.services.database.read() as tx:
        return list(tx.execute(select(awards).order_by(awards.c.created_at)))


def test_the_card_has_the_link_with_its_key_and_the_ticket_and_no_address(desk: House) -> None:
    helpdesk = desk.sandbox.helpdesk("acme")
    customer = helpdesk.create_customer("Ana", ANA)
    ticket = helpdesk.create_ticket(customer["id"], "Where is it?", "Hello")
    desk.sandbox.settle()
    connection = only(desk)
    data = helpdesk.customer(customer["id"])["integrations"][str(connection.placed.integration_id)]
    for widget in helpdesk.widgets():
        context = {"ticket": helpdesk.ticket(ticket["id"])} if widget["context"] == "ticket" else {"ticket": None}
        [card] = build(widget["template"], data, context=context)
        url = next(shown.url for shown in card.links if shown.label == "Add points in Tallydesk")
        query = parse_qs(urlsplit(url).query)
        assert url.startswith(f"{desk.url}/connections/{connection.id}/award?")
        assert query.pop("award_key") == [data["award_key"]]
        assert query == ({"ticket_id": [str(ticket["id"])]} if widget["context"] == "ticket" else {})


def test_an_agent_signs_in_with_the_identity_scopes_only_and_comes_back_to_this_very_page(desk: House) -> None:
    page = link(desk)
    browser = desk.browser()
    start = browser.get(page, follow=False)
    assert start.status_code == 303
    key = parse_qs(urlsplit(page).query)["award_key"][0]
    assert start.headers["Location"].startswith("/oauth/install?account=acme&")
    assert key not in start.headers["Location"]
    to_gorgias = browser.get(start.headers["Location"], follow=False).headers["Location"]
    assert parse_qs(urlsplit(to_gorgias).query)["scope"] == [" ".join(SIGN_IN_SCOPES)]
    assert key not in to_gorgias
    with desk.services.database.read() as tx:
        [row] = tx.execute(select(oauth_states)).all()
    assert key not in str(tuple(row))
    callback = browser.get(desk.sandbox.authorize(to_gorgias, user_id=users(desk)["agent"]), follow=False)
    assert (callback.status_code, callback.headers["Location"]) == (303, page)
    shown = browser.get(page)
    assert shown.status_code == 200
    assert "ana@example.com" in shown.text.replace("<wbr>", "")
    assert "may look, not change" not in shown.text
    assert {name: shown.headers[name] for name in ("Referrer-Policy", "Cache-Control")} == {
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    assert "frame-ancestors 'none'" in shown.headers["Content-Security-Policy"]
    assert start.headers["Referrer-Policy"] == "no-referrer"


def test_two_links_opened_at_once_both_find_their_way_back(desk: House) -> None:
    browser = desk.browser()
    pages = [link(desk, ticket="7"), link(desk, ticket="8")]
    ways = [browser.get(browser.get(page, follow=False).headers["Location"], follow=False) for page in pages]
    for page, way in zip(pages, ways, strict=True):
        back = browser.get(desk.sandbox.authorize(way.headers["Location"]), follow=False)
        assert back.headers["Location"] == page


@pytest.mark.parametrize(
    "path", ["https://evil.example/", "//evil.example/", "/\\evil.example", "/a\n/b", "evil", "/a#b", "/a?b=//c", ""]
)
def test_nobody_is_sent_elsewhere_after_signing_in(desk: House, path: str) -> None:
    sealer = desk.services.sealer
    with pytest.raises(ValueError, match="path"):
        seal_return_to(path, sealer=sealer)
    assert read_return_to(sealer.seal(path), sealer=sealer) is None
    browser = desk.browser()
    for given in (path, sealer.seal(path), "x" * 2_000):
        start = browser.session.get(
            f"{desk.url}/oauth/install",
            params={"account": "acme", "return_to": given},
            allow_redirects=False,
            timeout=10,
        )
        back = browser.get(desk.sandbox.authorize(start.headers["Location"]), follow=False)
        assert back.headers["Location"] == "/connections/"


def test_an_award_is_proven_counted_and_stays_what_it_is_however_often_it_is_loaded(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, ANA, points=100)
    browser = agent(house)
    page = link(house)
    answer = send(browser, page, {"points": "50", "reason": BEN_S_NOTE}, follow=False)
    assert answer.status_code == 303
    [row] = journal(house)
    result = answer.headers["Location"]
    assert result == f"/connections/{connection.id}/award/{row.operation_id}"
    assert (row.channel, row.agent_proof, row.ticket_id, row.reason) == ("page", "proven", "7", BEN_S_NOTE)
    assert house.services.sealer.open(row.agent_email_sealed) == "ben@acme.example"
    for _ in range(2):
        shown = browser.get(result)
        assert "Added 50 points. New balance: 150 points." in text_of(shown.text)
        assert shown.headers["Referrer-Policy"] == "no-referrer"
    assert house.balance(connection, ANA) == 150
    activity = text_of(browser.get(f"/connections/{connection.id}/activity").text)
    assert "signed in" in activity
    # The address of the used form leads to what became of it; another form is one click away.
    for again in (browser.get(page, follow=False), browser.get(page, follow=False)):
        assert (again.status_code, again.headers["Location"]) == (303, result)
    more = re.search(r'href="([^"]+award_key=[^"]+)"', browser.get(result).text)
    assert more is not None
    assert html.unescape(more[1]).partition("&")[2] == "ticket_id=7"
    answer = send(browser, html.unescape(more[1]), {"points": "5"})
    assert "Added 5 points. New balance: 155 points." in text_of(answer.text)
    assert house.work() >= 1
    said = capsys.readouterr()
    assert "award_key" not in said.out + said.err
    assert ANA not in said.out + said.err


def test_a_form_is_good_for_one_award_also_after_the_double_click_window_and_with_another_body(desk: House) -> None:
    browser = agent(desk)
    page = link(desk)
    fields = _form(browser, page)
    first = browser.session.post(desk.url + page.partition("?")[0], data={**fields, "points": "50"}, timeout=20)
    assert "Added 50 points" in first.text
    for seconds, points in ((0, "50"), (0, "60"), (3_600, "50"), (3_600, "60")):
        desk.clock.advance(seconds)
        again = browser.session.post(desk.url + page.partition("?")[0], data={**fields, "points": points}, timeout=20)
        assert "Nothing more was added." in again.text
        assert "Added 50 points. New balance: 150 points." in text_of(again.text)
    assert desk.balance(only(desk), ANA) == 150


def test_a_form_sent_many_times_at_once_awards_once(house: House) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, ANA, points=100)
    browser = agent(house)
    page = link(house)
    fields = {**_form(browser, page), "points": "50"}
    together = threading.Barrier(6)

    def press(_: int) -> str:
        together.wait()
        answer = requests.post(
            house.url + page.partition("?")[0],
            data=fields,
            cookies=dict(browser.session.cookies),
            allow_redirects=False,
            timeout=30,
        )
        assert answer.status_code == 303
        return answer.headers["Location"]

    with ThreadPoolExecutor(6) as pool:
        places = set(pool.map(press, range(6)))
    assert len(places) == 1
    assert len(journal(house)) == 1
    assert house.balance(connection, ANA) == 150


def test_a_key_that_the_button_used_shows_that_award(desk: House) -> None:
    connection = only(desk)
    key = key_of(desk, connection)
    told = desk.award(connection, {"award_key": key, "email": ANA, "points": 30, "ticket_id": "7"}).json()
    shown = agent(desk).get(link(desk, key=key))
    assert shown.url.endswith(told["operation_id"])
    assert "Added 30 points. New balance: 130 points." in text_of(shown.text)
    desk.services.awards.undo(operation_id=told["operation_id"], origin=_console(connection))
    again = agent(desk).get(link(desk, key=key))
    assert "How much" in again.text, "an award that was taken back stands in nobody's way"
    assert key not in again.text


def test_a_key_stays_good_until_it_is_used(desk: House) -> None:
    page = link(desk)
    desk.clock.advance(400 * 24 * 3600)
    answer = send(agent(desk), page, {"points": "5"})
    assert "Added 5 points." in text_of(answer.text)


@pytest.mark.parametrize("given", ["", "{{award_key}}", "%7B%7Baward_key%7D%7D", "not-a-key", "A" * 68])
def test_a_link_without_a_customer_asks_for_one_in_a_form(desk: House, given: str) -> None:
    browser = agent(desk)
    page = link(desk, key=given, ticket="{{ticket.id}}")
    shown = browser.get(page)
    assert shown.status_code == 200
    assert "The link named no customer" in shown.text
    assert "{{" not in shown.text
    for typed, told in (
        ("nobody", "That is not an e-mail address."),
        ("stranger@example.com", "Customer not found: nobody in the loyalty program has this e-mail address."),
    ):
        answer = send(browser, page, {"email": typed}, action="customer", follow=False)
        assert answer.status_code == 303
        assert "@" not in answer.headers["Location"]
        assert typed not in session_of(desk, browser)
        back = browser.get(answer.headers["Location"]).text
        assert told in text_of(back)
        assert f'value="{typed}"' in back
    found = send(browser, page, {"email": " Ana@Example.com"}, action="customer", follow=False)
    assert "@" not in found.headers["Location"]
    answer = send(browser, found.headers["Location"], {"points": "5"})
    assert "Added 5 points. New balance: 105 points." in text_of(answer.text)
    assert journal(desk)[0].ticket_id == ""


def test_what_was_typed_fits_into_a_cookie_in_every_script(desk: House) -> None:
    """A browser drops a longer one, and what it should tell with it: the agent would see nothing but an empty form."""
    browser, page = agent(desk), link(desk)
    long = "\N{PARTY POPPER}" * 300
    fields = {"points": "5", "reason": long, "store_credit": "ض" * 500, "email": "é" * 500}
    answer = send(browser, page, fields, follow=False)
    assert len(answer.headers["Set-Cookie"]) < 4_093
    back = browser.get(page).text
    assert "Nothing was added." in text_of(back)
    assert 'value="5"' in back


def test_what_was_typed_is_still_there_when_it_cannot_be_taken(desk: House) -> None:
    connection = only(desk)
    browser = agent(desk)
    page = link(desk)
    for fields, told in (
        ({"points": "a lot", "reason": "jane@example.com"}, "Enter the points as a whole number"),
        (
            {"points": "1001", "reason": "Goodwill"},
            "1,001 points are too many for one award; the limit is 1,000 points.",
        ),
    ):
        answer = send(browser, page, fields, follow=False)
        assert (answer.status_code, answer.headers["Location"]) == (303, page)
        assert "jane@" not in session_of(desk, browser)
        back = browser.get(page).text
        assert f"{told}" in text_of(back)
        assert "Nothing was added." in back
        assert f'value="{fields["points"]}"' in back
        assert f'value="{fields["reason"]}"' in back
        assert f'value="{fields["points"]}"' not in browser.get(page).text
    assert journal(desk) == []
    # The limits of an agent hold over button and page together.
    rules = {"max_points_per_agent_per_day": 60}
    with desk.services.database.write() as tx:
        tx.execute(update(connections).where(connections.c.id == connection.id).values(**rules))
    desk.award(connection, {"email": ANA, "points": 50, "ticket_id": "1", "agent_email": "Ben@Acme.example"})
    answer = send(browser, page, {"points": "50"})
    assert "You have added 50 points today; the limit for one agent is 60 points a day (UTC)." in text_of(answer.text)


def test_presets_and_reasons_of_the_connection_stand_in_the_form(desk: House) -> None:
    connection = only(desk)
    with desk.services.database.write() as tx:
        chosen = {"presets": [25, 100], "reasons": ["Late parcel", "Goodwill"]}
        tx.execute(update(connections).where(connections.c.id == connection.id).values(**chosen))
    browser = agent(desk)
    page = link(desk)
    shown = browser.get(page).text
    assert "<option>Late parcel</option>" in shown
    answer = send(browser, page, {"points": "", "preset": "100", "reason": "Goodwill"})
    assert "Added 100 points. New balance: 200 points." in text_of(answer.text)
    assert journal(desk)[0].reason == "Goodwill"
    answer = send(browser, link(desk), {"points": "5", "reason": "My own"})
    assert "This reason is not on the list." in text_of(answer.text)


@pytest.mark.parametrize(
    ("status", "told"),
    [(MemberStatus.EXCLUDED, "This customer is excluded"), (MemberStatus.GUEST, "This customer is a guest")],
)
def test_who_can_receive_nothing_has_no_form(desk: House, status: MemberStatus, told: str) -> None:
    browser = agent(desk)
    page = link(desk)
    fields = _form(browser, page)
    desk.set_status(ANA, status)
    shown = browser.get(page).text
    assert told in text_of(shown)
    assert 'name="points"' not in shown
    refused = browser.session.post(desk.url + page.partition("?")[0], data={**fields, "points": "5"}, timeout=20)
    assert told in text_of(refused.text)
    assert journal(desk) == []


def test_only_people_of_the_connections_helpdesk_award_and_others_can_change_over(desk: House) -> None:
    desk.connect("globex")
    connection = only(desk)
    stranger = desk.browser()
    stranger.sign_in("globex")
    page = link(desk)
    shown = stranger.get(page)
    assert shown.status_code == 404
    assert "This link belongs to another helpdesk" in shown.text
    assert "ana@" not in shown.text
    # Without the key nobody learns whose connection it is, nor whether there is one.
    blank = [stranger.get(f"/connections/{number}/award") for number in (connection.id, 999, 10**19)]
    assert {answer.status_code for answer in blank} == {404}
    assert all("acme" not in re.sub(r"<form.*?</form>|return_to\S+", "", answer.text, flags=re.S) for answer in blank)
    forged = stranger.submit(
        page.partition("?")[0],
        {"award_key": page.partition("award_key=")[2].partition("&")[0], "points": "5"},
        on="/connections/",
        follow=False,
    )
    assert forged.status_code == 404
    away = send(stranger, page, {}, action="helpdesk", follow=False)
    start = stranger.get(away.headers["Location"], follow=False)
    assert start.headers["Location"].startswith(f"{desk.sandbox.url}/acme/oauth/authorize?")
    back = stranger.get(desk.sandbox.authorize(start.headers["Location"]), follow=False)
    assert back.headers["Location"] == page
    assert "How much" in stranger.get(page).text
    assert journal(desk) == []


def test_whoever_comes_without_key_and_session_names_their_helpdesk_and_comes_back(desk: House) -> None:
    browser = desk.browser()
    pages = [browser.get(f"/connections/{number}/award?ticket_id=7") for number in (only(desk).id, 999)]
    assert {page.status_code for page in pages} == {200}
    assert all("Sign in to add points" in page.text for page in pages)
    return_to = re.search(r'name="return_to" value="([^"]+)"', pages[0].text)
    assert return_to is not None
    start = browser.get(f"/oauth/install?account=acme&return_to={return_to[1]}", follow=False)
    back = browser.get(desk.sandbox.authorize(start.headers["Location"]), follow=False)
    assert back.headers["Location"] == f"/connections/{only(desk).id}/award?ticket_id=7"


def test_a_key_of_another_connection_names_nobody(desk: House) -> None:
    _, other = desk.connect("globex")
    desk.add_member(other.store, ANA, points=900)
    shown = agent(desk).get(link(desk, key=key_of(desk, other)))
    assert "Which customer?" in shown.text
    own_key = award_key.verify(key_of(desk, other), hasher=desk.services.hasher, connection_id=other.id)
    assert own_key is not None


def test_forged_forms_ended_sessions_and_people_who_left_award_nothing(desk: House) -> None:
    browser = agent(desk)
    page = link(desk)
    fields = {**_form(browser, page), "points": "5"}
    address = desk.url + page.partition("?")[0]
    for path in ("", "/customer", "/helpdesk"):
        without = {name: value for name, value in fields.items() if name != "csrf_token"}
        forged = browser.session.post(address + path, data=without, allow_redirects=False, timeout=20)
        assert (forged.status_code, "form_too_old" in forged.text) == (400, True)
        stranger = requests.post(address + path, data=fields, allow_redirects=False, timeout=20)
        assert (stranger.status_code, stranger.headers["Location"]) == (303, "/")
    desk.clock.advance(16 * 60)
    for status, answered, word in ((500, 503, "role_unreadable"), (404, 403, "left_helpdesk")):
        desk.sandbox.faults.clear()
        desk.sandbox.faults.add(r"/api/users/.*", kind="status", status=status, times=None)
        refused = browser.session.post(address, data=fields, allow_redirects=False, timeout=20)
        assert (refused.status_code, word in refused.text) == (answered, True)
    desk.clock.advance(13 * 3600)
    ended = browser.session.post(address, data=fields, allow_redirects=False, timeout=20)
    assert ended.headers["Location"] == "/"
    assert journal(desk) == []


def test_where_nobody_may_read_roles_any_more_agents_go_on_as_with_the_buttons(desk: House) -> None:
    browser = agent(desk)
    page = link(desk)
    desk.clock.advance(16 * 60)
    desk.sandbox.faults.add(r"/api/users/.*", kind="status", status=403, times=None)
    assert "Added 5 points." in text_of(send(browser, page, {"points": "5"}).text)


def test_on_rivo_what_is_unclear_is_said_and_settles_on_the_same_page(house: House) -> None:
    _, connection = house.connect_rivo()
    rivo = house.sandbox.rivo("northwind")
    rivo.add_customer(ANA, points=120, credits="0.00")
    with house.services.database.write() as tx:
        limits = {"max_credit_cents_per_award": 10_00, "max_credit_cents_per_day": 20_00}
        tx.execute(update(connections).where(connections.c.id == connection.id).values(**limits))
    browser = agent(house)
    both = send(browser, link(house), {"points": "5", "store_credit": "5"})
    assert "Enter points or store credit, not both. Nothing was added." in text_of(both.text)
    answer = send(browser, link(house), {"points": "", "store_credit": "7,50"})
    assert "Added 7.50 store credit. Points balance: 120 points." in text_of(answer.text)

    # Nothing was sent: the same form serves again.
    page = link(house, ticket="8")
    house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="reset_after")
    answer = send(browser, page, {"points": "50"})
    assert "The award of 50 points is being confirmed; do not add it again." in text_of(answer.text)
    assert "Add more" not in answer.text
    assert browser.get(page).url == answer.url
    house.clock.advance(20)
    house.work()
    assert "Added 50 points." in text_of(browser.get(answer.url.removeprefix(house.url)).text)

    # Refused in Rivo's own words, and another form is at hand.
    house.clock.advance(61)
    page = link(house, ticket="9")
    fields = _form(browser, page)
    rivo.update_customer(ANA, status="excluded")
    refused = browser.session.post(
        house.url + page.partition("?")[0], data={**fields, "points": "5"}, allow_redirects=False, timeout=20
    )
    shown = browser.get(refused.headers["Location"]).text
    assert "Nothing was added." in shown
    assert len(rivo.events(ANA)) == 2

    # While the key is refused the last known values stand there, and the form stays good.
    rivo.add_customer("bea@example.com", points=70)
    page = link(house, ticket="10", key=key_of(house, connection, "bea@example.com"))
    rivo.regenerate_key()
    for _ in range(2):
        answer = send(browser, page, {"points": "5"})
        assert "The loyalty program refuses the key of this connection." in text_of(answer.text)
        assert "Points balance 70" in text_of(answer.text)


def _form(browser: Browser, page: str) -> dict[str, str]:
    """The hidden fields of the award form on `page`, its token among them."""
    shown = browser.get(page).text
    form = re.search(r'<form class="award".*?</form>', shown, re.DOTALL)
    assert form is not None
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form[0]))


def _console(connection: Connection) -> Any:
    return Origin(connection_id=connection.id, channel="console")
