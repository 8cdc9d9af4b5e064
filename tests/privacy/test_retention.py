"""What the worker erases by itself: awards past their time, and what a disconnected helpdesk left behind."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, update

from loyalty.ledger_import import import_members
from oauth.accounts import Purpose
from privacy import retention
from storage.tables import accounts, awards, changes, inspected_requests, ledger_transactions, oauth_states, stores
from tests.console.steps import text_of
from tests.house import Browser, House
from tests.privacy.people import places_of
from widget.connections import Connection

MIA, BEN, OLE = "mia@example.com", "ben@example.com", "ole@acme.example"
DAY_S = 24 * 3_600


def award(house: House, connection: Connection, email: str = MIA) -> str:
    asked = {"email": email, "points": 10, "ticket_id": "770", "agent_email": OLE, "reason": "For Mia Miller"}
    answer = house.award(connection, asked).json()
    assert answer["status"] == "applied", answer
    house.clock.advance(61)
    operation_id: str = answer["operation_id"]
    return operation_id


def rows(house: House, *operation_ids: str) -> list[Any]:
    with house.services.database.read() as tx:
        found = tx.execute(select(awards).where(awards.c.operation_id.in_(operation_ids))).all()
    return sorted(found, key=lambda row: operation_ids.index(row.operation_id))


def sweep(house: House) -> None:
    house.services.jobs.sweep()


def forgotten_at(house: House, connection: Connection) -> Any:
    with house.services.database.read() as tx:
        return tx.scalar(select(accounts.c.forgotten_at).where(accounts.c.id == connection.account_id))


def leave(browser: Browser) -> str:
    return text_of(browser.submit("/oauth/disconnect", on="/connections/").text)


def test_awards_past_their_time_keep_their_numbers_alone(house: House) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, MIA, points=100)
    old = [award(house, connection), award(house, connection)]
    house.clock.advance(730 * DAY_S)
    young = award(house, connection)
    house.work()
    before = rows(house, *old, young)

    sweep(house)
    after = rows(house, *old, young)
    sweep(house)
    assert rows(house, *old, young) == after, "once is enough"
    assert after[2] == before[2]
    for was, became in zip(before[:2], after[:2], strict=True):
        same = ("operation_id", "state", "points", "balance_after", "created_at", "settled_at", "award_key_nonce")
        assert [getattr(became, name) for name in same] == [getattr(was, name) for name in same]
        assert (became.reason, became.told, became.ticket_id, became.fingerprint) == ("", None, "", "")
        assert became.note_state in ("none", "given_up"), "no note is posted any more"
        assert became.erased_at == house.clock()
    hmacs = {row.member_hmac for row in after} | {row.agent_hmac for row in after}
    assert len(hmacs) == 6, "nobody can tell who of them was the same"
    with house.services.database.read() as tx:
        booked = tx.execute(select(ledger_transactions.c.operation_id, ledger_transactions.c.what))
        words = {row.operation_id: row.what for row in booked}
    assert [words[operation_id] for operation_id in (*old, young)] == ["", "", "For Mia Miller"]
    card = house.lookup(connection, MIA).json()
    assert card["points_balance"] == 130, "a member of a store that goes on stays"
    words_shown = [entry["what"] for entry in card["recent_activity"]]
    assert words_shown == ["For Mia Miller", "Added by support", "Added by support", "Opening balance"]


def test_an_award_under_way_is_let_alone_and_one_that_waits_for_a_person_has_waited_long_enough(
    small_house: House,
) -> None:
    house = small_house
    browser, _ = house.connect()
    rivo = house.open_rivo()
    house.sandbox.rivo("northwind").add_customer(MIA, points=0)
    waiting, under_way = award(house, rivo), award(house, rivo)
    with house.services.database.write() as tx:
        for operation_id, state in ((waiting, "needs_review"), (under_way, "unknown")):
            tx.execute(update(awards).where(awards.c.operation_id == operation_id).values(state=state))
    house.clock.advance(731 * DAY_S)
    house.services.snapshots.forget(rivo.store)
    sweep(house)
    erased, left = rows(house, waiting, under_way)
    assert erased.erased_at is not None
    assert left.erased_at is None
    assert places_of(house, MIA) == {"awards.member_email_sealed"}

    browser.sign_in()
    address = f"/connections/{rivo.id}"
    page = browser.submit(f"{address}/awards/{waiting}/look", on=f"{address}/activity")
    assert "The customer of this award was erased here" in page.text
    page = browser.submit(f"{address}/awards/{waiting}/mark", {"applied": "yes"}, on=f"{address}/activity")
    assert "Marked as applied." in page.text


def test_a_disconnected_helpdesk_is_forgotten_after_the_time_that_its_page_states(house: House) -> None:
    browser, ledger = house.connect()
    _, kept = house.connect("globex")
    for connection in (ledger, kept):
        house.add_member(connection.store, MIA, points=100)
        award(house, connection)
    house.add_member(ledger.store, BEN, points=50)
    services, now = house.services, house.clock()
    with services.database.write() as tx:
        tx.execute(
            insert(changes).values(
                account_id=ledger.account_id, at=now, who_sealed=services.sealer.seal(OLE), what="x", details={}
            )
        )
        tx.execute(
            insert(inspected_requests).values(
                connection_id=ledger.id, at=now, route="/", outcome="x", status=200, took_ms=1, seen={}
            )
        )
        tx.execute(
            update(accounts)
            .where(accounts.c.id == ledger.account_id)
            .values(notice_url_sealed=services.sealer.seal("https://hooks.example.com/secret"))
        )
    page = text_of(browser.get(f"/connections/{ledger.id}").text)
    assert "are erased 30 days after, unless you connect again before" in page
    assert "What is personal in them is erased after 30 days, unless you connect again before." in leave(browser)
    house.work()

    house.clock.advance(30 * DAY_S - 60)
    sweep(house)
    assert forgotten_at(house, ledger) is None
    assert "members.email_sealed" in places_of(house, BEN)

    house.clock.advance(120)
    sweep(house)
    assert places_of(house, BEN, "https://hooks.example.com/secret") == set()
    assert forgotten_at(house, ledger) == house.clock()
    with services.database.read() as tx:
        of_account = tx.scalars(select(changes.c.id).where(changes.c.account_id == ledger.account_id)).all()
        assert of_account == []
        assert tx.scalars(select(inspected_requests.c.id)).all() == []
    assert house.balance(kept, MIA) == 110
    assert house.services.members.email_of(kept.store, member_hmac=services.hasher.email(MIA)) == MIA

    # Whoever brings the address finds the member with their points; an award makes them known again.
    browser, again = house.connect()
    mias = services.hasher.email(MIA)
    card = house.lookup(again, MIA).json()
    assert (card["points_balance"], card["loyalty_status"]) == (110, "Member")
    assert services.members.email_of(again.store, member_hmac=mias) is None
    award(house, again)
    assert services.members.email_of(again.store, member_hmac=mias) == MIA
    assert house.balance(again, MIA) == 120
    leave(browser)
    house.clock.advance(31 * DAY_S)
    sweep(house)
    assert services.members.email_of(again.store, member_hmac=mias) is None, "each time anew"


def test_a_store_that_another_helpdesk_shows_still_keeps_its_members(small_house: House) -> None:
    house = small_house
    browser, acme = house.connect()
    _, globex = house.connect("globex")
    house.add_member(acme.store, MIA, points=100)
    with house.services.database.write() as tx:
        house.services.connections.open(tx, account_id=globex.account_id, store=acme.store, rules=acme.rules)
    leave(browser)
    house.clock.advance(31 * DAY_S)
    sweep(house)
    assert forgotten_at(house, acme) is not None
    assert places_of(house, MIA) == {"members.email_sealed"}


def test_an_import_brings_forgotten_addresses_back(small_house: House, tmp_path: Any) -> None:
    house = small_house
    browser, connection = house.connect()
    house.add_member(connection.store, MIA, points=100)
    leave(browser)
    house.clock.advance(31 * DAY_S)
    sweep(house)
    assert places_of(house, MIA) == set()
    path = tmp_path / "customers.csv"
    path.write_text(f"Email\n{MIA}\n")
    services = house.services
    report = import_members(
        services.database,
        store=connection.store,
        path=path,
        sealer=services.sealer,
        hasher=services.hasher,
        random_bytes=services.random_bytes,
        now=services.now,
        progress=lambda _: None,
    )
    assert (report.created, report.updated) == (0, 1)
    assert services.members.email_of(connection.store, member_hmac=services.hasher.email(MIA)) == MIA


def test_one_sweep_erases_a_limited_number_and_the_next_one_goes_on(small_house: House, monkeypatch: Any) -> None:
    house = small_house
    browser, connection = house.connect()
    for number in range(7):
        house.add_member(connection.store, f"m{number}@example.com", points=1)
    made = [award(house, connection, f"m{number}@example.com") for number in range(5)]
    leave(browser)
    house.work()
    house.clock.advance(31 * DAY_S)
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST_BATCHES", 3)
    sweeps = 0
    while forgotten_at(house, connection) is None:
        sweep(house)
        sweeps += 1
        assert sweeps < 10
    assert sweeps > 2
    assert all(row.erased_at for row in rows(house, *made))
    assert places_of(house, "@example.com") == set()


def test_sign_ins_that_nobody_finished_are_gone_after_ten_minutes(small_house: House) -> None:
    house = small_house
    house.services.accounts.remember_state(account="acme", purpose=Purpose.SIGN_IN, browser="b")
    house.clock.advance(timedelta(minutes=11).total_seconds())
    sweep(house)
    with house.services.database.read() as tx:
        assert tx.scalars(select(oauth_states.c.account)).all() == []


def test_a_helpdesk_that_nobody_connects_again_is_given_up_and_then_forgotten(house: House) -> None:
    """Removed in Gorgias while no worker ran: nobody ever pressed Disconnect."""
    _, connection = house.connect()
    _, rivo = house.connect_rivo()
    house.add_member(connection.store, MIA, points=100)
    house.services.accounts.withdraw(connection.account_id, reason="invalid_grant")
    house.clock.advance(29 * DAY_S)
    sweep(house)
    house.work()
    assert house.lookup(connection, MIA).json()["loyalty_status"] == "Member", "an admin may still connect it again"

    house.clock.advance(2 * DAY_S)
    sweep(house)
    house.work()

    with house.services.database.read() as tx:
        row = tx.execute(select(accounts).where(accounts.c.id == connection.account_id)).one()
    assert (row.state, row.disconnected_at) == ("disconnected", house.clock())
    assert (row.access_token_sealed, row.refresh_token_sealed, row.user_email_sealed) == (None, None, None)
    assert row.left_over, "whoever connects it one day is told what stayed in Gorgias"
    with house.services.database.read() as tx:
        assert tx.scalar(select(stores.c.key_sealed).where(stores.c.id == rivo.store.id)) is None
    house.clock.advance(31 * DAY_S)
    sweep(house)
    assert forgotten_at(house, connection) == house.clock()


def test_whoever_connects_again_before_that_stays_connected(house: House) -> None:
    _, connection = house.connect()
    house.services.accounts.withdraw(connection.account_id, reason="invalid_grant")
    house.clock.advance(31 * DAY_S)
    sweep(house)
    house.connect()
    house.work()
    known = house.services.accounts.by_id(connection.account_id)
    assert known is not None
    assert known.state == "connected"
    assert house.services.connections.by_id(connection.id) is not None
