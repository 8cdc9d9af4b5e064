"""Requests that nobody sends by accident end in an answer, never in a traceback."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select

from schemas.console import BadForm, read_connection_form
from storage.tables import members
from tests.house import House
from widget.connections import Connection

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_numbers_and_codes_that_cannot_exist_are_not_found(house: House) -> None:
    browser, connection = house.connect("globex")
    for path in (f"/connections/{10**20}", "/connections/9223372036854775808", "/r/%00", "/r/nobody"):
        assert browser.get(path).status_code == 404, path
    assert browser.get(f"/connections/{connection.id}/activity?before=%00").status_code == 200
    page = browser.submit(f"/connections/{connection.id}/awards/%00/undo", on=f"/connections/{connection.id}")
    assert "no such award" in page.text


@only_sqlite
def test_no_page_with_a_name_or_a_token_is_kept_by_a_cache(house: House) -> None:
    browser, _ = house.connect("globex")
    for path in ("/", "/connections/", "/nope.css", "/static/nope.css", "/r/x.css"):
        assert browser.get(path).headers["Cache-Control"] == "no-store", path
    assert "no-store" not in browser.get("/static/style.css").headers["Cache-Control"]


@only_sqlite
def test_a_referral_link_leads_to_the_shop_with_its_code(house: House) -> None:
    browser, connection = house.connect("globex")
    house.add_member(connection.store, "jane@example.com")
    with house.services.database.read() as tx:
        code = tx.scalars(select(members.c.referral_code)).one()
    assert "has not set its address" in browser.get(f"/r/{code}").text
    form = {"max_points_per_award": "1", "max_points_per_agent_per_day": "1", "max_points_per_day": "1"}
    browser.submit(
        f"/connections/{connection.id}/settings",
        {**form, "storefront_url": "https://shop.example.com/start"},
        on=f"/connections/{connection.id}",
    )
    answer = browser.get(f"/r/{code}", follow=False)
    assert answer.headers["Location"] == f"https://shop.example.com/start?ref={code}"


@pytest.mark.parametrize(
    "address", ["https://shop:99999", "https://shop..com", "https://.", f"https://{'s' * 64}.com", "https://xn--\u00e9"]
)
def test_a_shop_address_that_cannot_be_redirected_to_is_refused(address: str) -> None:
    form = {"max_points_per_award": "1", "max_points_per_agent_per_day": "1", "max_points_per_day": "1"}
    with pytest.raises(BadForm, match="Shop address"):
        read_connection_form({**form, "storefront_url": address})


@only_sqlite
def test_lookups_and_awards_are_told_to_the_operator_in_one_line_each(
    house: House, connection: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    house.lookup(connection, "jane@example.com")
    house.award(connection, {"email": "jane@example.com", "points": "x"})
    said = capfd.readouterr()
    assert len((said.out + said.err).strip().splitlines()) == 2


@only_sqlite
def test_every_page_keeps_its_headers(house: House) -> None:
    parts = urlsplit(house.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", "/nothing")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert "frame-ancestors 'none'" in (answer.getheader("Content-Security-Policy") or "")
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
