"""The daily probe: what changed in Gorgias behind our back is noted once, shown, and over when it is over."""

from __future__ import annotations

from sqlalchemy import select, update
from structlog.testing import capture_logs

from findings import Severity
from storage.tables import accounts, connections, jobs, troubles
from tests.console.steps import ANA, text_of
from tests.health.steps import DAY_S, probed, switch_off, troubles_of
from tests.house import House
from widget.placement import Part
from widget.probe import MOST_PER_SWEEP, PROBE_ACCOUNT


def test_an_integration_that_gorgias_switched_off_is_noticed_once_and_well_again_once(house: House) -> None:
    browser, connection = house.connect()
    assert probed(house) == []
    switch_off(house, connection)
    assert probed(house) == [("error", "integration.enabled", connection.id)]
    assert probed(house) == []
    found = troubles_of(house)
    assert [*found] == ["integration.enabled"]
    # Since it was first seen, not since it was last seen.
    assert (house.clock() - found["integration.enabled"].since).total_seconds() == DAY_S + 60

    browser.sign_in()
    page = text_of(browser.get("/connections/").text)
    assert "Not in order" in page
    assert (
        "The HTTP integration is switched off in Gorgias. Since 16 Mar 2026, 09:32 UTC. Press “Switch on again”" in page
    )
    agent = house.browser()
    agent.sign_in(user_id=house.sandbox.helpdesk("acme").users()[1]["id"])
    seen = text_of(agent.get("/connections/").text)
    assert "The HTTP integration is switched off in Gorgias." in seen
    assert "Press “Switch on again”" not in seen

    # The page that follows the button sees it first, and the probe has nothing to add.
    address = f"/connections/{connection.id}"
    assert "Switch on again</button>" not in agent.get(address).text
    assert "is switched on again" in browser.submit(f"{address}/switch-on", on=address).text
    assert troubles_of(house) == {}
    assert "Set up" in text_of(browser.get("/connections/").text)
    assert probed(house) == []


def test_what_is_over_by_itself_is_logged_as_well_again(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    switch_off(house, connection)
    probed(house)
    house.services.placement.ensure(connection.id)
    assert probed(house) == [("well_again", "integration.enabled", connection.id)]


def test_drift_of_the_placement_is_noticed(small_house: House) -> None:
    """Deleted by hand, or put there by an older version of ours: each card is judged by itself."""
    house = small_house
    _, connection = house.connect()
    placed = house.services.connections.by_id(connection.id)
    assert placed is not None
    house.sandbox.helpdesk("acme").delete_object("widgets", placed.placed.ticket_widget_id or 0)
    house.services.connections.save_placed(connection.id, placed_digest="of an older version")
    house.sandbox.helpdesk("acme").delete_object("macros", placed.placed.macro_id or 0)
    assert probed(house) == [
        ("warning", "macro", connection.id),
        ("warning", "widget.customer", connection.id),
        ("error", "widget.ticket", connection.id),
    ]
    house.services.placement.ensure(connection.id)
    assert [outcome for outcome, *_ in probed(house)] == ["well_again"] * 3
    # Without the integration nobody can say whether it is switched on.
    switch_off(house, connection)
    probed(house)
    house.sandbox.helpdesk("acme").delete_object("integrations", placed.placed.integration_id or 0)
    assert probed(house)[0] == ("error", "integration", connection.id)
    assert Part.INTEGRATION_ENABLED not in troubles_of(house)


def test_lost_access_is_noticed_at_once_and_over_once_somebody_connects_again(small_house: House) -> None:
    house = small_house
    house.connect()
    probed(house)
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(DAY_S)
    known = house.services.accounts.named("acme")
    assert known is not None
    house.services.accounts.withdraw(known.id, reason="invalid_grant")
    # No day has to pass before that is told.
    assert probed(house, after_s=60) == [("error", "gorgias.token", None)]
    assert troubles_of(house)["gorgias.token"].severity is Severity.ERROR
    house.clock.advance(1)
    with capture_logs() as lines:
        house.browser().sign_in()
    assert [line["outcome"] for line in lines if line["event"] == "health"] == ["well_again"]
    assert troubles_of(house) == {}


def test_a_key_that_rivo_refuses_is_a_trouble_of_its_connection(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect_rivo()
    probed(house)
    northwind = house.sandbox.rivo("northwind")
    northwind.add_customer(ANA)
    northwind.regenerate_key()
    house.clock.advance(1)
    house.lookup(connection, ANA)
    # It is known since a card asked: no day has to pass before that is told.
    assert probed(house, after_s=60) == [("error", "program.key", connection.id)]
    assert probed(house, after_s=60) == []
    browser.sign_in()
    address = f"/connections/{connection.id}"
    fields = {"api_key": northwind.key}
    browser.submit(f"{address}/program-key", fields, on=address)
    assert troubles_of(house) == {}


def test_while_gorgias_is_down_nothing_new_is_said_and_it_is_asked_again_soon(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    switch_off(house, connection)
    probed(house)
    house.sandbox.faults.add(r"/api/.*", kind="status", status=503, times=None)
    assert probed(house) == []
    assert [*troubles_of(house)] == ["integration.enabled"]
    house.sandbox.faults.clear()
    house.services.placement.ensure(connection.id)
    house.clock.advance(15 * 60)
    house.work()
    assert troubles_of(house) == {}


def test_a_connection_that_is_gone_has_no_troubles(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    _, rivo = house.connect_rivo()
    switch_off(house, connection)
    probed(house)
    house.services.placement.remove(connection.id)
    probed(house)
    assert troubles_of(house) == {}
    known = house.services.accounts.named("acme")
    assert known is not None
    switch_off(house, rivo)
    probed(house)
    house.services.placement.remove(rivo.id)
    house.clock.advance(1)
    house.services.accounts.disconnect(known.id)
    probed(house, after_s=60)
    with house.services.database.read() as tx:
        assert tx.execute(select(troubles)).all() == []


def test_accounts_are_probed_a_part_at_a_time_and_once_a_day_each(house: House) -> None:
    """After an upgrade nobody was ever probed: they are spread, and stay so."""
    many = MOST_PER_SWEEP + 50
    now = house.clock()
    with house.services.database.write() as tx:
        tx.execute(
            accounts.insert(),
            [
                {"name": f"shop-{n}", "state": "needs_reauth", "connected_at": now, "updated_at": now}
                for n in range(many)
            ],
        )
    services = house.services
    services.jobs.sweep()
    assert services.probe.due() == [], "who has just connected looks at the pages"
    house.clock.advance(11 * 60)
    services.jobs.sweep()

    def waiting() -> int:
        with services.database.read() as tx:
            return len(tx.execute(select(jobs.c.id).where(jobs.c.name == PROBE_ACCOUNT)).all())

    assert waiting() == MOST_PER_SWEEP
    with services.database.write() as tx:
        tx.execute(update(accounts).values(probed_at=house.clock()))
    assert services.probe.due() == []
    house.clock.advance(DAY_S + 1)
    assert len(services.probe.due()) == MOST_PER_SWEEP
    with services.database.write() as tx:
        tx.execute(update(accounts).values(state="disconnected"))
        tx.execute(update(connections).values(state="removed"))
    assert services.probe.due() == []
