"""The log of awards: found by state, member, agent and day; page by page; one award; as a file; as charts."""

from __future__ import annotations

import csv
import io
import re
from datetime import date
from typing import Any

import pytest
from sqlalchemy import text, update

from console.export import BROKEN_OFF, COLUMNS, spreadsheet_safe
from loyalty.activity import BATCH, EVERYTHING, PAGE, all_awards, page_of_awards
from loyalty.totals import DAYS, totals
from schemas.console import read_activity_form, read_day
from storage.tables import MICROSECOND, awards
from tests.console.steps import ANA, DAY_S, activity_of, put_in_review, text_of
from tests.house import Browser, House
from widget.connections import Connection

BOB = "bob@example.com"
BEN, EVE = "ben@acme.example", "eve@acme.example"


def award(house: House, connection: Connection, points: int, *, email: str = ANA, **asked: Any) -> str:
    """An award on the ledger; its operation id."""
    answer = house.award(connection, {"email": email, "points": points, "ticket_id": str(points), **asked})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["operation_id"])


def shown(page: str) -> list[str]:
    """The operation ids of the rows, from the top."""
    return re.findall(r'<tr role="row" id="(td_\w+)"', page)


def find(browser: Browser, connection: Connection, **fields: str) -> tuple[str, list[str]]:
    """Send the filter; the address it leads to, and the rows there."""
    here = f"/connections/{connection.id}/activity"
    answer = browser.submit(here, fields, on=here, follow=False)
    assert answer.status_code == 303
    address = answer.headers["Location"]
    return address, shown(browser.get(address).text)


@pytest.fixture
def log(house: House) -> tuple[Browser, Connection, list[str]]:
    """Four awards on three days, oldest first, to two members, by two agents and one who was not named."""
    _, connection = house.connect()
    for email in (ANA, BOB):
        house.add_member(connection.store, email, points=10)
    ids = [award(house, connection, 1, agent_email=BEN)]
    house.clock.advance(DAY_S)
    ids += [award(house, connection, 2, agent_email=EVE), award(house, connection, 3, email=BOB, agent_email=BEN)]
    house.clock.advance(DAY_S)
    ids.append(award(house, connection, 4))
    browser = house.browser()
    browser.sign_in()
    return browser, connection, ids


def test_awards_are_found_by_state_member_agent_and_day_and_no_address_names_anybody(
    house: House, log: tuple[Browser, Connection, list[str]]
) -> None:
    browser, connection, ids = log
    first, second, third, fourth = ids
    with house.services.database.write() as tx:
        tx.execute(update(awards).where(awards.c.operation_id == second).values(state="pending"))
        tx.execute(update(awards).where(awards.c.operation_id == third).values(state="rejected"))
    for fields, expected in (
        ({}, [fourth, third, second, first]),
        ({"state": "rejected"}, [third]),
        ({"state": "sending"}, [second]),
        ({"state": "unknown"}, []),
        ({"state": "made-up"}, [fourth, third, second, first]),
        ({"member": " Bob@EXAMPLE.com "}, [third]),
        ({"member": "nobody@example.com"}, []),
        ({"agent": BEN}, [third, first]),
        ({"agent": BEN, "state": "applied"}, [first]),
        ({"agent": "Not named"}, [fourth]),
        ({"from": "2026-03-15"}, [fourth, third, second]),
        ({"to": "2026-03-15"}, [third, second, first]),
        ({"from": "2026-03-15", "to": "2026-03-15", "member": ANA}, [second]),
    ):
        address, rows = find(browser, connection, **fields)
        # Those of one moment stand in the order of their ids.
        assert sorted(rows) == sorted(expected), fields
        for part in ("@", "%40", "bob", "ana", "ben"):
            assert part not in address.lower()
    address, _ = find(browser, connection, member=BOB, state="rejected", to="2026-03-20")
    page = browser.get(address).text
    assert "Shown are awards that are “rejected” to bob @example.com to 20 Mar 2026." in text_of(page)
    assert f'value="{BOB}"' in page
    assert f'href="/connections/{connection.id}/activity">Clear the filter' in page
    address, _ = find(browser, connection, member="nobody@example.com")
    page = text_of(browser.get(address).text)
    assert "to a member who was given nothing here" in page
    assert "No awards like that. Clear the filter to see all of them." in page


def test_what_cannot_be_read_is_left_out_and_told(small_house: House) -> None:
    browser, connection = small_house.connect()
    here = f"/connections/{connection.id}/activity"
    fields = {"member": "ana", "agent": BEN, "from": "soon", "to": "2026-02-30"}
    answer = browser.submit(here, fields, on=here)
    read = text_of(answer.text)
    assert "Member must be a whole e-mail address; it was left out." in read
    assert "From must be a day such as 2026-03-14; it was left out." in read
    assert "To must be a day such as 2026-03-14; it was left out." in read
    assert "Shown are awards by an agent who gave nothing here." in read
    assert read_activity_form({"from": "2026-03-15", "to": "2026-03-14"}).faults == (
        "From must not be after To; both were left out.",
    )
    assert [read_day(typed) for typed in ("2026-03-14", "9999-12-31", "20260314", "")] == [
        date(2026, 3, 14), None, None, None,
    ]  # fmt: skip
    # Nor does an address that somebody made up break the page.
    odd = f"{here}?state=x&member=' OR 1=1&agent={'f' * 31}&from=0000-00-00&to=9999-12-31&before=td_x&after=%00"
    assert browser.get(odd).status_code == 200


def test_pages_go_both_ways_within_a_filter_and_buttons_lead_back(house: House) -> None:
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    waiting = put_in_review(house, connection, points=7, agent_email=BEN)
    services = house.services
    _copies(house, waiting.operation_id, PAGE + 10)
    browser.sign_in()
    address, first = find(browser, connection, agent=BEN)
    page = browser.get(address).text
    assert len(first) == PAGE
    assert ">Newer<" not in page
    (older,) = re.findall(r'href="([^"]+)">Older<', page)
    page = browser.get(older.replace("&amp;", "&")).text
    rest = shown(page)
    assert len(rest) == 11
    assert ">Older<" not in page
    (newer,) = re.findall(r'href="([^"]+)">Newer<', page)
    assert shown(browser.get(newer.replace("&amp;", "&")).text) == first
    assert len({*first, *rest}) == PAGE + 11
    # In small steps too, with several of one moment.
    walked: list[str] = []
    after: str | None = rest[-1]
    while after is not None:
        part = page_of_awards(
            services.database, sealer=services.sealer, connection_id=connection.id, after=after, limit=7
        )
        walked = [*(record.operation_id for record in part.records), *walked]
        after = part.newer
    assert walked == [*first, *rest][:-1]

    here = older.replace("&amp;", "&")
    fields = dict(re.findall(r'type="hidden" name="(agent|before)" value="([^"]+)"', page))
    assert set(fields) == {"agent", "before"}
    mark = f"/connections/{connection.id}/awards/{waiting.operation_id}/mark"
    answer = browser.submit(mark, {"applied": "no", **fields}, on=here, follow=False)
    there = answer.headers["Location"]
    assert sorted(there.partition("?")[2].split("&")) == sorted(here.partition("?")[2].split("&"))
    answer = browser.submit(mark, {"applied": "no", "agent": "//evil.example", "state": "x"}, on=here, follow=False)
    assert answer.headers["Location"] == f"/connections/{connection.id}/activity"


def test_one_award_shows_all_that_is_known_and_can_be_decided_there(house: House) -> None:
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    waiting = put_in_review(house, connection, points=50, agent_email=BEN, reason="Late parcel")
    browser.sign_in()
    here = f"/connections/{connection.id}/awards/{waiting.operation_id}"
    assert f'href="{here}"' in browser.get(f"/connections/{connection.id}/activity").text
    read = text_of(browser.get(here).text)
    for told in (
        "Award of +50 points",
        "This award needs a decision",
        "Look again asks Rivo once more.",
        "ben @acme.example as Gorgias names them",
        "the button on the card",
        "Late parcel",
        "Sent to Rivo: no whole answer came, so it may have been added",
        "Looked for in Rivo: it is not there",
    ):
        assert told in read, told
    waiting.fault.commit()
    answer = browser.submit(f"{here}/look", {"on": "award"}, on=here, follow=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, here)
    read = text_of(browser.get(here).text)
    assert "Looked for in Rivo: it is there “The balance is 170 now.”" in read
    browser.submit(f"{here}/undo", {"on": "award"}, on=here)
    page = browser.get(here).text
    assert "Undone" in text_of(page)
    (undo,) = set(re.findall(rf'href="(/connections/{connection.id}/awards/td_\w+)"', page))
    assert "Undo of -50 points" in text_of(browser.get(undo).text)
    # To others it does not exist, and neither does what is no award.
    stranger, _ = house.connect("globex")
    assert stranger.get(here).status_code == 404
    assert browser.get(f"/connections/{connection.id}/awards/td_nothing").status_code == 404
    agent = house.browser()
    agent.sign_in(user_id=_agent_of(house))
    page = agent.get(here).text
    assert "Late parcel" in page
    assert f'action="{here}' not in page


def test_the_log_is_exported_as_a_file_that_no_spreadsheet_executes(house: House) -> None:
    browser, connection = house.connect()
    house.add_member(connection.store, "=cmd@example.com", points=10)
    house.add_member(connection.store, BOB, points=10)
    first = award(house, connection, 50, email="=cmd@example.com", reason='=HYPERLINK("http://evil.example")')
    house.clock.advance(60)
    second = award(house, connection, 20, email=BOB, reason="Ärger; =1+1, sagt er", agent_email=BEN)
    house.clock.advance(60)
    browser.submit(f"/connections/{connection.id}/awards/{first}/undo", on=f"/connections/{connection.id}/activity")
    page = browser.get(f"/connections/{connection.id}/activity").text
    (address,) = re.findall(r'href="([^"]+activity\.csv[^"]*)"', page)
    answer = browser.get(address)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    name = f"tallydesk-acme-{connection.id}-2026-03-14.csv"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    assert answer.content.startswith(b"\xef\xbb\xbfoperation_id,")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    undo, other, undone = rows
    assert (undone["operation_id"], undone["points"], undone["undone_by"]) == (first, "50", undo["operation_id"])
    assert (undo["points"], undo["undo_of"], undo["member_email"]) == ("-50", first, "'=cmd@example.com")
    assert undone["reason"] == """'=HYPERLINK("http://evil.example")"""
    assert (other["operation_id"], other["agent_email"], other["reason"]) == (second, BEN, "Ärger;' =1+1, sagt er")
    assert undone["asked_at"] == "2026-03-14T09:30:00Z"
    # What is filtered is exported so, and each export stands among the changes.
    address, _ = find(browser, connection, member=BOB)
    (filtered,) = re.findall(r'href="([^"]+activity\.csv[^"]*)"', browser.get(address).text)
    assert browser.get(filtered.replace("&amp;", "&")).text.count("\r\n") == 2
    changes = text_of(browser.get("/connections/changes").text)
    assert "Exported awards Rows: 3" in changes
    assert "Exported awards Rows: 1 Member: yes" in changes
    assert BOB not in changes.replace(" @", "@")
    # Only admins take everybody's addresses at once.
    agent = house.browser()
    agent.sign_in(user_id=_agent_of(house))
    path = f"/connections/{connection.id}/activity"
    assert "activity.csv" not in agent.get(path).text
    assert agent.get(f"{path}.csv").status_code == 403
    stranger, _ = house.connect("globex")
    assert stranger.get(f"{path}.csv").status_code == 404


def test_a_large_log_is_exported_in_batches_and_one_that_breaks_off_says_so(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect()
    house.add_member(connection.store, ANA, points=10)
    one = award(house, connection, 5)
    _copies(house, one, BATCH + 20)
    path = f"/connections/{connection.id}/activity.csv"
    lines = browser.get(path).text.splitlines()
    assert len(lines) == BATCH + 22
    assert len({line.partition(",")[0] for line in lines}) == BATCH + 22
    services = house.services
    batches = all_awards(services.database, sealer=services.sealer, connection_id=connection.id, wanted=EVERYTHING)
    assert len(next(batches)) == BATCH
    with services.database.write() as tx:
        # Between the batches nothing is held: others can write meanwhile.
        tx.execute(update(awards).values(told="meanwhile"))
    (last,) = batches
    assert {record.told for record in last} == {"meanwhile"}
    # The oldest one cannot be opened any more: what is before it is there, and the file says that it is not complete.
    with services.database.write() as tx:
        tx.execute(update(awards).where(awards.c.operation_id == one).values(member_email_sealed="of a lost key"))
    lines = browser.get(path).text.splitlines()
    assert lines[-1] == f'"{BROKEN_OFF}"'
    assert len(lines) == BATCH + 2
    # Before anything was answered it is an ordinary page of trouble.
    with services.database.write() as tx:
        tx.execute(text("ALTER TABLE awards RENAME TO awards_away"))
    assert browser.get(path).status_code == 503


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\rx", "'\rx"),
        ("  =1", "'  =1"),
        ("＝1", "'＝1"),
        ("late;=1+1", "late;'=1+1"),
        ('late;"=1+1;x', "late;'\"=1+1;x"),
        ('late\t ""=1+1', 'late\t\' ""=1+1'),
        ("late, -5", "late, -5"),
        ("a-b = c", "a-b = c"),
        ("", ""),
    ],
)
def test_text_that_a_spreadsheet_would_take_for_a_formula_begins_with_an_apostrophe(cell: str, written: str) -> None:
    assert spreadsheet_safe(cell) == written


def test_charts_sum_up_what_stands_by_day_and_by_agent(house: House) -> None:
    browser, connection = house.connect()
    here = f"/connections/{connection.id}/charts"
    assert "Nothing was awarded in the last 30 days." in text_of(browser.get(here).text)
    house.add_member(connection.store, ANA, points=10)
    award(house, connection, 900, agent_email=EVE)
    house.clock.advance((DAYS - 1) * DAY_S)
    browser.sign_in()
    undone = award(house, connection, 70, agent_email=BEN)
    browser.submit(f"/connections/{connection.id}/awards/{undone}/undo", on=here)
    for number in range(12):
        award(house, connection, 10 + number, agent_email=f"agent-{number:02d}@acme.example")
    award(house, connection, 40)
    services = house.services
    summed = totals(services.database, sealer=services.sealer, connection_id=connection.id, now=house.clock())
    assert [day.day.isoformat() for day in (summed.days[0], summed.days[-1])] == ["2026-03-14", "2026-04-12"]
    assert [day.total.points for day in summed.days] == [900, *[0] * (DAYS - 2), sum(range(10, 22)) + 40]
    assert [agent.email for agent in summed.agents[:3]] == [EVE, None, "agent-11@acme.example"]
    assert (len(summed.agents), summed.other_agents, summed.others.points) == (10, 4, 10 + 11 + 12 + 13)
    page = browser.get(here)
    read = text_of(page.text)
    assert "14 awards, 1,126 points." in read
    assert "not named" in read
    assert "4 more 4 46" in read
    assert page.text.count("<rect") == 2 * 2 + 10
    for forbidden in ("style=", "<script", "<style"):
        assert forbidden not in page.text
    # A day later the first one is too long ago.
    house.clock.advance(DAY_S)
    browser.sign_in()
    assert "13 awards, 226 points." in text_of(browser.get(here).text)
    stranger, _ = house.connect("globex")
    assert stranger.get(here).status_code == 404


def test_what_was_erased_is_told_so_everywhere(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect()
    house.add_member(connection.store, ANA, points=10)
    done = award(house, connection, 5, agent_email=BEN)
    nothing = house.services.sealer.seal("")
    with house.services.database.write() as tx:
        tx.execute(update(awards).values(member_email_sealed=nothing, agent_email_sealed=nothing, reason=""))
    assert "erased erased" in re.sub(r"ticket \d+ ", "", activity_of(browser, connection))
    assert browser.get(f"/connections/{connection.id}/awards/{done}").status_code == 200
    assert "erased" in text_of(browser.get(f"/connections/{connection.id}/charts").text)
    assert browser.get(f"/connections/{connection.id}/activity.csv").status_code == 200


def _copies(house: House, operation_id: str, count: int) -> None:
    """As many awards more like one that is there, newer than it, two at each moment."""
    with house.services.database.write() as tx:
        row = tx.execute(awards.select().where(awards.c.operation_id == operation_id)).one()._asdict()
        letters = "abcdefghijklmnopqrstuvwxyz234567"
        tx.execute(
            awards.insert(),
            [
                {
                    **row,
                    "operation_id": "td_" + "a" * 21 + "".join(letters[number // 32**place % 32] for place in range(3)),
                    "award_key_nonce": None,
                    "state": "applied",
                    "created_at": house.clock() + (number // 2 + 1) * MICROSECOND,
                }
                for number in range(count)
            ],
        )


def _agent_of(house: House) -> int:
    return next(int(user["id"]) for user in house.sandbox.helpdesk("acme").users() if user["role"]["name"] == "agent")
