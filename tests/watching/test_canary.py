"""A marked shopper, a marked agent and every secret go through every path of real processes, and are found nowhere:
not in what the processes say, not in metrics, not in refusals, not in the database.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
from sqlalchemy import select, text

from sandbox import Sandbox
from services import build_services
from settings import load
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import accounts, awards, connection_keys, members
from tests.cli.command import flask_here, start
from tests.databases import FIRST_KEY, SECOND_KEY, Clock
from tests.house import Browser, House
from tests.processes.serving import environment, free_port, gunicorn, wait_for
from tests.watching.marks import AGENT, CRASHING_SHOPPER, DOUBTED_SHOPPER, SHOPPER, files, leaks, rows
from tests.watching.receiver import receiving
from tests.webhooks.rivo_sends import legacy_base64, points_event, profile, standard
from widget.connections import Connection

WEBHOOK_SECRET = "whsec-canary-b1d5-5f0c7a9e2d"
NOTICE_PATH = "canary-hook-3d5f7a9b1c2e4f60"
OTHER_RIVO_KEY = "canary-other-key-77e0d1c2b3a4958677"
SECRETS = {
    "SECRET_KEY": "canary-session-0b6c4f1d2e3a59788796a5b4c3d2e1f0",
    "METRICS_TOKEN": "canary-metrics-4b1e9d7c",
    "SENTRY_DSN": "https://canary5e27d1f00dfeed@127.0.0.1:9/1",
}


class _Now(Clock):
    """The time it is: the processes have no other."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)


class World:
    """A web server and a worker beside the sandbox; `house` reaches them as Gorgias and browsers do."""

    def __init__(self, house: House, *, env: dict[str, str], folder: Path) -> None:
        self.house = house
        self.env = env
        self.folder = folder
        self.places: dict[str, bytes | str] = {}
        self.marks: dict[str, str] = {
            "shopper": SHOPPER,
            "agent": AGENT,
            "admin": house.sandbox.helpdesk("acme").users()[0]["email"],
            "webhook secret": WEBHOOK_SECRET,
            "notice address": NOTICE_PATH,
            "a typed key of Rivo": OTHER_RIVO_KEY,
            "key of Rivo": house.sandbox.rivo("northwind").key,
            "client secret": house.sandbox.runtime.client_secret,
            "sealing key": FIRST_KEY,
            "former sealing key": SECOND_KEY,
            "key in SENTRY_DSN": "canary5e27d1f00dfeed",
            **{name: SECRETS[name] for name in ("SECRET_KEY", "METRICS_TOKEN")},
        }

    def refused(self, answer: requests.Response, *statuses: int) -> None:
        """Keep what was answered, to be searched. It is a refusal, or says nothing of anybody."""
        assert answer.status_code in statuses, (answer.status_code, answer.text)
        headers = {name: value for name, value in answer.headers.items() if name != "Set-Cookie"}
        self.places[f"answer {len(self.places)} ({answer.request.method} {answer.status_code})"] = (
            f"{headers} {answer.text}"
        )

    def call(self, method: str, path: str, **how: Any) -> requests.Response:
        return requests.request(method, f"{self.house.url}{path}", timeout=20, allow_redirects=False, **how)

    def said(self, log: str) -> str:
        return (self.folder / log).read_text()

    def mark_what_is_sealed(self) -> None:
        """The tokens and keys that are at rest now."""
        sealer = self.house.services.sealer
        with self.house.services.database.read() as tx:
            for row in tx.execute(select(accounts)):
                for name in ("access_token_sealed", "refresh_token_sealed"):
                    sealed = getattr(row, name)
                    if sealed is not None:
                        self.marks[f"{name} {row.name} {row.token_version}"] = sealer.open(sealed)
            for row in tx.execute(select(connection_keys)):
                self.marks[f"key {row.id} ({row.purpose})"] = sealer.open(row.key_sealed)


@contextmanager
def world(database: Database, folder: Path) -> Iterator[World]:
    with free_port() as port:
        url = f"http://localhost:{port}"
        password = "canary-pg-2c9d4e5f60718293"
        database_url = database.url.replace("postgres:@", f"postgres:{password}@")
        with Sandbox(
            accounts=("acme",),
            redirect_urls=[f"{url}/oauth/callback"],
            app_url=f"{url}/oauth/install?account={{gorgias_account}}",
            rivo_stores=("northwind",),
        ) as sandbox:
            env = environment(database_url, port=port, folder=folder) | {
                **SECRETS,
                "PYTHONDONTWRITEBYTECODE": "1",
                "ENCRYPTION_KEYS": f"{FIRST_KEY},{SECOND_KEY}",
                "GORGIAS_CLIENT_ID": sandbox.runtime.client_id,
                "GORGIAS_CLIENT_SECRET": sandbox.runtime.client_secret,
                "GORGIAS_URL": sandbox.gorgias_url,
                "RIVO_URL": sandbox.rivo_url,
                "SNAPSHOT_FRESH_S": "1",
                "UNKNOWN_AWARD_RESEND_AFTER_S": "15",
                "WEB_CONCURRENCY": "1",
                "FLASK_APP": "tests.watching.crashing:create_app",
            }
            services = build_services(load(env, var=folder / "var"))
            services.hasher.email("")
            house = House(services=services, sandbox=sandbox, clock=_Now(), url=url)
            with (folder / "worker.log").open("w") as log, start("worker", env=env, log=log) as worker:
                web = gunicorn(env, log=folder / "web.log", app="tests.watching.crashing:create_app()")
                made = World(house, env=env, folder=folder)
                try:
                    wait_for(lambda: "started" in made.said("worker.log"), "no worker", log=folder / "worker.log")
                    wait_for(lambda: _answers(url), "gunicorn never answered", log=folder / "web.log")
                    yield made
                finally:
                    for process in (web, worker):
                        process.terminate()
                    for process in (web, worker):
                        process.wait(timeout=40)
                    services.database.close()


def _answers(url: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(f"{url}/healthz", timeout=5).ok
    return False


def test_no_address_and_no_secret_is_found_where_it_does_not_belong(database: Database, tmp_path: Path) -> None:
    with world(database, tmp_path) as made:
        house = made.house
        browser, ledger = _connect(made)
        browser.submit(
            "/connections/",
            {"program": "rivo", "api_key": house.sandbox.rivo("northwind").key, "webhook_secret": WEBHOOK_SECRET},
            on="/connections/new?program=rivo",
        )
        rivo = house.services.connections.all()[-1]
        assert rivo.id != ledger.id
        house.sandbox.rivo("northwind").add_customer(SHOPPER, points=300)
        house.sandbox.rivo("northwind").add_customer(DOUBTED_SHOPPER, points=300)
        for email in (SHOPPER, CRASHING_SHOPPER):
            house.add_member(ledger.store, email, points=100)
        made.mark_what_is_sealed()

        with receiving() as chat:
            _choose_a_notice_address(made, browser, address=chat.address)
            assert chat.bodies, "a first notice arrives"
        for connection in (ledger, rivo):
            browser.submit(f"/connections/{connection.id}/inspector/start", on="/connections/new", follow=False)
        _look_up(made, ledger, rivo)
        _award(made, ledger, rivo)
        _send_webhooks(made, rivo)
        _use_the_console(made, browser, ledger, rivo)
        _type_nonsense(made, ledger)
        _break_the_database(made, browser, ledger, rivo)
        _run_commands(made, ledger)
        made.mark_what_is_sealed()

        wait_for(lambda: '"outcome":"crashed"' in made.said("worker.log"), "no job crashed")
        wait_for(lambda: _notes_are_done(house), "notes were not posted", log=tmp_path / "worker.log")
        bearer = {"Authorization": f"Bearer {SECRETS['METRICS_TOKEN']}"}
        metrics = made.call("GET", "/metrics", headers=bearer).text
        assert 'outcome="crashed",route="/widget/customer"' in metrics
        made.places["metrics"] = metrics
        made.places |= rows(database)
        made.places |= files(database)
    said = {log: made.said(log) for log in ("web.log", "worker.log")}
    assert "RuntimeError" in said["web.log"]
    assert "RuntimeError" in said["worker.log"]
    assert leaks(made.places | said, made.marks) == []
    with database.read() as tx:
        opened = {Sealer((FIRST_KEY, SECOND_KEY)).open(s) for s in tx.scalars(select(members.c.email_sealed))}
    assert SHOPPER in opened, "it went all the way"


def _connect(made: World) -> tuple[Browser, Connection]:
    """Connect; the code and the state of the dance are marked too."""
    browser = made.house.browser()
    address = browser.return_address("acme")
    for name, values in parse_qs(urlsplit(address).query).items():
        made.marks[f"{name} of the dance"] = values[0]
    assert browser.get(address).status_code == 200
    assert browser.submit("/connections/", {"program": "ledger"}, on="/connections/new").status_code == 200
    return browser, made.house.services.connections.all()[0]


def _choose_a_notice_address(made: World, browser: Browser, *, address: str) -> None:
    for typed in (f"http://127.0.0.1:9/{NOTICE_PATH}", f"ftp://{NOTICE_PATH}", f"http://{address}/{NOTICE_PATH}"):
        fields = {"notice_url": typed}
        made.refused(browser.submit("/connections/notices", fields, on="/connections/new", follow=False), 303)


def _look_up(made: World, ledger: Connection, rivo: Connection) -> None:
    house = made.house
    for connection in (ledger, rivo):
        found = house.lookup(connection, SHOPPER)
        assert found.json()["loyalty_status"] == "Member"
        made.marks[f"award key {connection.id}"] = found.json()["award_key"]
        for written in (SHOPPER.upper(), quote(SHOPPER), quote(quote(SHOPPER)), f"Canary <{SHOPPER}>"):
            house.lookup(connection, params=f"email={quote(written)}")
        crash = house.lookup(connection, CRASHING_SHOPPER)
        assert crash.json()["loyalty_status"] == "Temporarily unavailable"
        made.refused(crash, 200)
        made.refused(house.lookup(connection, f"nobody.{SHOPPER}"), 200)
    query = f"email={quote(SHOPPER)}"
    made.refused(made.call("GET", f"/widget/customer?{query}"), 401)
    made.refused(made.call("GET", f"/widget/customer?{query}", headers={"X-Api-Key": OTHER_RIVO_KEY}), 401)
    made.refused(made.call("POST", f"/widget/customer?{query}", data={"email": SHOPPER}), 405)
    made.refused(made.call("GET", f"/widget/{quote(SHOPPER)}"), 404)
    made.refused(made.call("OPTIONS", "/widget/customer", headers={"Origin": f"https://{SHOPPER}"}), 204)


def _award(made: World, ledger: Connection, rivo: Connection) -> None:
    house = made.house
    ticket = house.sandbox.helpdesk("acme").create_customer("Canary", SHOPPER)["id"]
    ticket = house.sandbox.helpdesk("acme").create_ticket(ticket, "Where is it?", "Hello")["id"]
    asked = {"email": SHOPPER, "points": 5, "agent_email": AGENT, "ticket_id": str(ticket)}
    for connection in (ledger, rivo):
        for number, how in enumerate(({"json": asked}, {"data": asked}, {"params": asked})):
            sent = {kind: fields | {"points": 5 + number} for kind, fields in how.items()}
            assert house.award(connection, **sent).status_code == 200, connection.id
        made.refused(house.award(connection, asked | {"points": "many", "reason": ""}), 422)
        made.refused(house.award(connection, asked | {"ticket_id": SHOPPER}), 422)
        made.refused(house.award(connection, asked | {"email": f"nobody.{SHOPPER}"}), 404)
        made.refused(house.award(connection, data=f'{{"email": "{SHOPPER}", broken'), 422)
        made.refused(house.award(connection, data=f'{{"email": "{SHOPPER * 2_000}"}}'), 413)
        made.refused(house.award(connection, json=[SHOPPER]), 422)
    made.refused(made.call("POST", "/widget/earnings", json=asked, headers={"X-Api-Key": OTHER_RIVO_KEY}), 401)
    events = "/merchant_api/v1/points_events"
    house.sandbox.faults.add(events, method="POST", account="rivo", kind="status_after", status=500)
    # Its outcome is unknown, and looking for it crashes in the worker.
    assert house.award(rivo, asked | {"email": DOUBTED_SHOPPER, "points": 9}).status_code == 202
    made.refused(house.award(rivo, asked | {"email": CRASHING_SHOPPER, "points": 9}), 500)


def _send_webhooks(made: World, rivo: Connection) -> None:
    path = f"/rivo/webhooks/{rivo.id}"
    body = json.dumps(profile(SHOPPER)).encode()
    stamp = str(int(datetime.now(UTC).timestamp()))
    signed = standard(body, timestamp=stamp, secret=WEBHOOK_SECRET)
    made.refused(made.call("POST", path, data=body, headers=signed), 200)
    made.refused(made.call("POST", path, data=body, headers=signed), 200)
    made.refused(made.call("POST", path, data=body, headers=legacy_base64(body, secret="other")), 401)
    made.refused(made.call("POST", path, data=body, headers={"rivo-signature": WEBHOOK_SECRET}), 401)
    made.refused(made.call("POST", "/rivo/webhooks/999", data=body, headers=signed), 404)
    for broken in (body[:-9], json.dumps(points_event(SHOPPER, customer=profile(SHOPPER))).encode()):
        headers = standard(broken, timestamp=stamp, key=f"msg_{len(broken)}", secret=WEBHOOK_SECRET, topic=SHOPPER)
        made.refused(made.call("POST", path, data=broken, headers=headers), 200)


def _use_the_console(made: World, browser: Browser, ledger: Connection, rivo: Connection) -> None:
    # A page with a form that asks nobody else.
    light = "/connections/new"
    for connection in (ledger, rivo):
        page = f"/connections/{connection.id}"
        shopper = SHOPPER if connection is rivo else CRASHING_SHOPPER
        assert shopper in browser.submit(f"{page}/lookup", {"email": shopper}, on=light).text, "here it belongs"
        bad = {"max_points_per_award": SHOPPER, "storefront_url": f"ftp://{OTHER_RIVO_KEY}", "reasons": ""}
        made.refused(browser.submit(f"{page}/settings", bad, on=light, follow=False), 303)
        _act_on_pages(made, browser, connection, light=light)
    made.refused(browser.submit(f"{page}/repair", on=light, follow=False), 303)
    made.refused(browser.submit(f"{page}/keys", on=light, follow=False), 303)
    made.mark_what_is_sealed()
    for form, fields in (
        ("program-key", {"api_key": OTHER_RIVO_KEY}),
        ("program-key", {"api_key": f"{OTHER_RIVO_KEY} {SHOPPER}"}),
        ("webhook-secret", {"webhook_secret": WEBHOOK_SECRET * 20}),
        ("webhook-secret", {"webhook_secret": WEBHOOK_SECRET}),
    ):
        made.refused(browser.submit(f"{page}/{form}", fields, on=light, follow=False), 303)
    made.places["the connection's page"] = _without(browser.get(page).text, SHOPPER, AGENT, made.marks["admin"])
    chosen = {"program": "rivo", "api_key": OTHER_RIVO_KEY, "webhook_secret": WEBHOOK_SECRET}
    made.refused(browser.submit("/connections/", chosen, on=light, follow=False), 303)
    browser.get("/connections/changes")
    without_token = browser.session.post(f"{made.house.url}{page}/lookup", data={"email": SHOPPER}, timeout=20)
    made.refused(without_token, 400)
    made.marks["session cookie"] = browser.session.cookies["tallydesk_session"]


def _act_on_pages(made: World, browser: Browser, connection: Connection, *, light: str) -> None:
    """Activity, export and the award page: what was typed stands in no address, and on pages alone."""
    page = f"/connections/{connection.id}"
    filtered = browser.submit(f"{page}/activity", {"member": SHOPPER, "agent": AGENT}, on=light, follow=False)
    made.refused(filtered, 303)
    assert browser.get(filtered.headers["Location"]).ok
    assert SHOPPER in browser.get(f"{page}/activity.csv").text, "here it belongs"
    found = browser.submit(f"{page}/award/customer", {"email": SHOPPER}, on=light, follow=False)
    made.refused(found, 303)
    made.refused(browser.submit(f"{page}/award/customer", {"email": f"no.{SHOPPER}"}, on=light, follow=False), 303)
    assert browser.get(found.headers["Location"]).ok
    key = parse_qs(urlsplit(found.headers["Location"]).query)["award_key"][0]
    fields = {"award_key": key, "points": "3", "reason": "", "ticket_id": ""}
    made.refused(browser.submit(f"{page}/award", fields, on=light, follow=False), 303)
    browser.get(f"{page}/inspector")
    browser.get(f"{page}/charts")


def _without(text: str, *shown: str) -> str:
    """A page that shows people, as it does to those who are signed in, for the search for all else."""
    for one in shown:
        text = text.replace(one, "")
    return text


def _type_nonsense(made: World, connection: Connection) -> None:
    """What strangers and broken proxies put where it does not belong."""
    odd = {"User-Agent": SHOPPER, "Referer": f"https://x.example/?email={SHOPPER}", "Cookie": f"a={SHOPPER}"}
    made.refused(made.call("GET", f"/{quote(SHOPPER)}?token={OTHER_RIVO_KEY}", headers=odd), 404)
    made.refused(made.call("GET", f"/connections/{quote(SHOPPER)}", headers=odd), 404)
    made.refused(made.call("GET", "/", headers={**odd, "X-Request-Id": SHOPPER}), 200)
    made.refused(made.call("DELETE", f"/connections/{connection.id}", data={"email": SHOPPER}), 405)
    made.refused(made.call("GET", f"/oauth/callback?code={OTHER_RIVO_KEY}&state={quote(SHOPPER)}"), 400)
    made.refused(made.call("GET", f"/oauth/callback?error={quote(SHOPPER)}&state={OTHER_RIVO_KEY}"), 400)
    made.call("GET", f"/oauth/install?account={quote(SHOPPER)}")
    made.refused(made.call("GET", f"/oauth/install?account=acme&email={quote(SHOPPER)}"), 303)
    made.refused(made.call("GET", "/metrics"), 401)
    made.refused(made.call("GET", "/metrics", headers={"Authorization": f"Bearer {OTHER_RIVO_KEY}"}), 401)
    made.refused(made.call("GET", "/connections/", headers=odd), 303)


def _break_the_database(made: World, browser: Browser, ledger: Connection, rivo: Connection) -> None:
    """SQL that fails while it has an address in hand."""
    database = made.house.services.database
    for table in ("snapshots", "members", "awards"):
        with database.write() as tx:
            tx.execute(text(f"ALTER TABLE {table} RENAME TO {table}_away"))
        try:
            for connection in (ledger, rivo):
                made.refused(made.house.lookup(connection, f"another.{SHOPPER}"), 200)
                fields = {"email": SHOPPER, "points": 7, "agent_email": AGENT}
                made.refused(made.house.award(connection, fields), 200, 202, 503)
            if table == "awards":
                made.refused(browser.get(f"/connections/{ledger.id}/activity"), 503)
            made.call("GET", "/metrics", headers={"Authorization": f"Bearer {SECRETS['METRICS_TOKEN']}"})
        finally:
            with database.write() as tx:
                tx.execute(text(f"ALTER TABLE {table}_away RENAME TO {table}"))


def _run_commands(made: World, ledger: Connection) -> None:
    table = made.folder / "members.csv"
    table.write_text(
        "First Name,Last Name,Email,Points\n"
        f"Canary,One,imported.{SHOPPER},10\n"
        f"Canary,Two,{SHOPPER} and {AGENT},10\n"
        f"Canary,Three,third.{SHOPPER},{OTHER_RIVO_KEY}\n"
    )
    for arguments in (
        ("members", "import", "--connection", str(ledger.id), str(table)),
        ("members", "import", str(made.folder / SHOPPER)),
        ("ledger", "verify"),
        ("keys", "rotate", "sealing"),
        ("keys", "rotate", "connection", str(ledger.id)),
        ("privacy", "erase", "--email", f"imported.{SHOPPER}"),
        ("doctor", "--json"),
    ):
        done = flask_here(*arguments, env=made.env)
        typed = {str(made.folder / SHOPPER): "", str(table): ""}
        said = done.stdout + done.stderr
        for what, instead in typed.items():
            said = said.replace(what, instead)
        made.places[f"flask {' '.join(arguments[:2])}"] = said


def _notes_are_done(house: House) -> bool:
    with house.services.database.read() as tx:
        due = tx.execute(select(awards.c.note_state).where(awards.c.note_state == "due")).all()
    return not due


@pytest.mark.parametrize("written", [SHOPPER, SHOPPER.upper(), quote(SHOPPER), quote(quote(SHOPPER))])
def test_the_search_finds_what_was_planted(sqlite_database: Database, written: str) -> None:
    marks = {"shopper": SHOPPER}
    assert leaks({"log": "nothing"}, marks) == []
    for planted in (f"x {written} y", f'{{"a": "{written}"}}', f"path?{written}&b"):
        assert leaks({"log": planted}, marks) == ["shopper in log"]
    with sqlite_database.write() as tx:
        tx.execute(text("INSERT INTO gates (name, calls, background_calls) VALUES (:n, '[]', '[]')"), {"n": written})
    assert leaks(rows(sqlite_database), marks) == ["shopper in table gates"]
    assert "shopper in file tallydesk.db-wal" in leaks(files(sqlite_database), marks)


def test_the_search_finds_what_was_planted_in_base64() -> None:
    for beside in ("", "a", "ab", '{"visitor": {"email": "'):
        planted = base64.b64encode(f"{beside}{SHOPPER}{beside}".encode())
        assert leaks({"cookie": planted}, {"shopper": SHOPPER}) == ["shopper in cookie"]
