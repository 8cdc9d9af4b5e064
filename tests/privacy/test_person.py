"""`flask privacy export` and `erase`: one person in every place where somebody can be, and a neighbour beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from privacy.erase import erase
from privacy.person import person_of
from privacy.rows import Eraser
from storage.tables import award_attempts, awards, changes, members, snapshots
from tests.console.steps import activity_of
from tests.house import Browser, House
from tests.privacy.people import bytes_on_disk, exported, opened, places_of, run, sealed_values
from widget.connections import Connection

MIA, BEN, OLE = "mia@example.com", "ben@example.com", "ole@acme.example"
EVENTS = r"/merchant_api/v1/points_events"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A ledger and a Rivo store in one helpdesk. `admin` connected it; Mia and Ben are members of both."""

    house: House
    browser: Browser
    ledger: Connection
    rivo: Connection
    admin: str


def scene_in(house: House) -> Scene:
    browser, ledger = house.connect()
    rivo = house.open_rivo()
    for email in (MIA, BEN):
        house.add_member(ledger.store, email, points=100)
        house.sandbox.rivo("northwind").add_customer(email, points=120)
        for number, connection in enumerate((ledger, rivo)):
            asked = {"email": email, "points": 10, "ticket_id": f"77{number}", "agent_email": OLE,
                     "reason": f"For {email.partition('@')[0].title()} Miller"}  # fmt: skip
            answer = house.award(connection, asked)
            assert answer.json()["status"] == "applied", answer.text
    admin = house.services.accounts.user_email(ledger.account_id)
    assert admin
    services, now = house.services, house.clock()
    with services.database.write() as tx:
        born = services.sealer.seal("1990-05-17")
        mine = services.hasher.email(MIA)
        tx.execute(update(members).where(members.c.email_hmac == mine).values(date_of_birth_sealed=born))
        tx.execute(update(members).where(members.c.email_hmac == mine).values(customer_id="9004"))
        tx.execute(update(snapshots).where(snapshots.c.email_hmac == mine).values(date_of_birth_sealed=born))
        of_mia = tx.scalars(select(awards.c.operation_id).where(awards.c.member_hmac == mine)).all()
        tx.execute(update(awards).where(awards.c.operation_id == of_mia[0]).values(told="Mia Miller is known"))
        tx.execute(
            insert(award_attempts).values(
                operation_id=of_mia[0], at=now, kind="sent", outcome="ok", answer="Mia Miller has it"
            )
        )
        sealed = services.sealer.seal(admin)
        tx.execute(update(awards).where(awards.c.operation_id == of_mia[0]).values(marked_by_sealed=sealed))
        tx.execute(
            insert(changes).values(
                account_id=ledger.account_id, at=now, who_sealed=sealed, what="settings_saved", details={}
            )
        )
    house.clock.advance(61)
    return Scene(house=house, browser=browser, ledger=ledger, rivo=rivo, admin=admin)


def rows_of(house: House, email: str) -> list[Any]:
    """What the tables hold about a member, to be compared."""
    hmac = house.services.hasher.email(email)
    with house.services.database.read() as tx:
        return [
            tuple(row)
            for table, column in ((members, "email_hmac"), (snapshots, "email_hmac"), (awards, "member_hmac"))
            for row in tx.execute(select(table).where(table.c[column] == hmac).order_by(*table.primary_key))
        ]


def test_a_member_is_shown_everything_and_erased_everywhere_and_nobody_else_is(house: House) -> None:
    scene = scene_in(house)
    hmac = house.services.hasher.email(MIA)

    found = exported(house, f"  {MIA.upper()} ")
    assert found["about"] == MIA
    (in_ledger,) = found["as_member"]["of_the_built_in_ledger"]
    assert (in_ledger["points_balance"], in_ledger["date_of_birth"], in_ledger["customer_id"]) == (
        110,
        "1990-05-17",
        "9004",
    )
    assert [(entry["what"], entry["points"]) for entry in in_ledger["history"]] == [
        ("Opening balance", 100),
        ("For Mia Miller", 10),
    ]
    (snapshot,) = found["as_member"]["as_last_read_from_programs_elsewhere"]
    assert (snapshot["program"], snapshot["points"], snapshot["date_of_birth"]) == ("rivo", 130, "1990-05-17")
    received = found["as_member"]["awards_received"]
    assert [(award["points"], award["reason"], award["shown_in"]) for award in received] == [
        (10, "For Mia Miller", ["acme"])
    ] * 2
    assert found["as_agent"] == {"awards_made": [], "awards_decided": [], "changes_made_in_the_console": []}
    text = json.dumps(found)
    assert "ben" not in text.lower()
    assert OLE not in text
    assert scene.admin not in text

    before = rows_of(house, BEN)
    traces = sealed_values(house, MIA)
    (old_code,) = [in_ledger["referral_code"]]
    assert len(traces) == 4
    done = run(house, "privacy", "erase", "--email", MIA)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "Erased:",
        "  1 member of the built-in ledger, who is nobody known now",
        "  1 snapshot of programs elsewhere",
        "  2 awards received, with reasons and tickets",
        "To be erased elsewhere, or it comes back from there:",
        "  Rivo: the customer and their points events",
        "  Gorgias (acme): the person's tickets, with the notes about awards on them",
    ]
    assert places_of(house, MIA, hmac, "Mia Miller", "1990-05-17", "9004", old_code) == set()
    assert rows_of(house, BEN) == before
    if house.services.database.sqlite:
        left = bytes_on_disk(house)
        for trace in (*traces, hmac, "Mia Miller", old_code):
            assert trace.encode() not in left, "secure_delete and an empty log leave nothing in the files"
        assert house.services.hasher.email(BEN).encode() in left, "the files are the right ones"

    assert run(house, "ledger", "verify").exit_code == 0
    assert house.lookup(scene.ledger, MIA).json()["loyalty_status"] == "Customer not found"
    assert scene.browser.get(f"/r/{old_code}").status_code == 404
    assert house.balance(scene.ledger, BEN) == 110
    again = run(house, "privacy", "erase", "--email", MIA)
    assert (again.exit_code, again.stdout) == (0, "Nothing was erased: nothing is held about this address.\n")
    nothing = run(house, "privacy", "export", "--email", MIA)
    assert nothing.stderr == "Nothing is held about this address.\n"


def test_an_erased_award_is_shown_as_such_and_can_no_longer_be_undone(small_house: House) -> None:
    house, scene = small_house, scene_in(small_house)
    with house.services.database.read() as tx:
        operation_id = tx.scalars(
            select(awards.c.operation_id).where(
                awards.c.member_hmac == house.services.hasher.email(MIA), awards.c.connection_id == scene.ledger.id
            )
        ).one()
    assert run(house, "privacy", "erase", "--email", MIA).exit_code == 0
    activity = f"/connections/{scene.ledger.id}/activity"
    page = activity_of(scene.browser, scene.ledger)
    assert "balance 110 erased ole @acme.example as Gorgias names them — ✓ applied" in page
    assert "Undo 10 points for ben@" in scene.browser.get(activity).text.replace("<wbr>", "")
    assert f"awards/{operation_id}/undo" not in scene.browser.get(activity).text
    refused = scene.browser.submit(f"/connections/{scene.ledger.id}/awards/{operation_id}/undo", on=activity)
    assert "The customer of this award was erased here" in refused.text
    assert "Nothing was changed." in refused.text


def test_an_agent_and_admin_is_shown_what_they_did_without_their_customers(small_house: House) -> None:
    house, scene = small_house, scene_in(small_house)
    found = exported(house, OLE)
    assert [award["points"] for award in found["as_agent"]["awards_made"]] == [10] * 4
    assert not any(found["as_member"].values())
    text = json.dumps(found)
    for name in (MIA, BEN, "Miller", "770"):
        assert name not in text, "who received them is somebody else's data"

    found = exported(house, scene.admin)
    assert [row["helpdesk"] for row in found["as_admin"]["helpdesks_connected"]] == ["acme"]
    assert [row["what"] for row in found["as_agent"]["changes_made_in_the_console"]][-1] == "settings_saved"
    assert len(found["as_agent"]["awards_decided"]) == 1

    for person in (OLE, scene.admin):
        assert places_of(house, person)
        done = run(house, "privacy", "erase", "--email", "-", typed=f"{person}\n")
        assert done.exit_code == 0, done.output
        assert places_of(house, person, house.services.hasher.email(person)) == set()
    assert sorted(column for column, value in opened(house) if value == MIA) == [
        "awards.member_email_sealed",
        "awards.member_email_sealed",
        "members.email_sealed",
        "snapshots.email_sealed",
    ], "the members they awarded stay as they are"
    assert house.services.accounts.user_email(scene.ledger.account_id) == ""
    assert scene.browser.get(f"/connections/{scene.ledger.id}/activity").status_code == 200


@pytest.mark.parametrize("state", ["pending", "sending", "unknown", "needs_review"])
def test_an_award_that_is_still_open_is_erased_when_it_is_settled(small_house: House, state: str) -> None:
    house, scene = small_house, scene_in(small_house)
    hmac = house.services.hasher.email(MIA)
    with house.services.database.write() as tx:
        mine = (awards.c.member_hmac == hmac, awards.c.connection_id == scene.rivo.id)
        tx.execute(update(awards).where(*mine).values(state=state))
    done = run(house, "privacy", "erase", "--email", MIA)
    assert done.exit_code == 1
    assert "  1 award received, with reasons and tickets\n" in done.stdout
    assert done.stderr.startswith("Error: 1 award could not be erased yet: still being confirmed, waiting for ")
    assert places_of(house, MIA) == {"awards.member_email_sealed"}, "everything else is erased already"
    with house.services.database.write() as tx:
        tx.execute(update(awards).where(*mine).values(state="applied"))
    done = run(house, "privacy", "erase", "--email", MIA)
    assert done.exit_code == 0, done.output
    assert places_of(house, MIA, hmac) == set()


def test_a_press_that_may_come_once_more_keeps_the_award_for_a_minute(small_house: House) -> None:
    """A double click is known by whom it is for: erased between its two presses, it would award twice."""
    house = small_house
    house.connect()
    rivo = house.open_rivo()
    store = house.sandbox.rivo("northwind")
    store.add_customer(MIA, points=0)
    asked = {"email": MIA, "points": 10, "ticket_id": "7"}
    assert house.award(rivo, asked).json()["status"] == "applied"
    assert run(house, "privacy", "erase", "--email", MIA).exit_code == 1
    assert house.award(rivo, asked).json()["status"] == "already_applied"
    house.clock.advance(61)
    assert run(house, "privacy", "erase", "--email", MIA).exit_code == 0
    assert len(store.events(MIA)) == 1


def test_an_award_that_comes_while_a_person_is_erased_is_told_and_erased_the_next_time(small_house: House) -> None:
    house, scene = small_house, scene_in(small_house)
    services = house.services
    came: list[str] = []

    class Interrupted(Eraser):
        """Somebody awards between the looking and the erasing."""

        def pseudonym(self) -> str:
            if not came:
                came.append(house.award(scene.rivo, {"email": MIA, "points": 5, "ticket_id": "9"}).json()["status"])
            return super().pseudonym()

    eraser = Interrupted(sealer=services.sealer, random_bytes=services.random_bytes, now=house.clock)
    person = person_of(MIA, hasher=services.hasher)
    assert person is not None
    erased = erase(services.database, person=person, eraser=eraser, now=house.clock(), double_click_window_s=60)
    assert came == ["applied"]
    assert erased.open_awards == 1
    assert "awards.member_email_sealed" in places_of(house, MIA)
    house.clock.advance(61)
    assert run(house, "privacy", "erase", "--email", MIA).exit_code == 0
    assert places_of(house, MIA, services.hasher.email(MIA)) == set()


def test_what_is_no_address_is_refused_in_a_sentence(small_house: House) -> None:
    for command in ("export", "erase"):
        done = run(small_house, "privacy", command, "--email", "Mia Miller")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == ("Error: This is not an e-mail address. Give one, such as --email ana@example.com.\n")
