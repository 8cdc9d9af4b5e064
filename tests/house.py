"""The whole product in one process beside the sandbox, over real sockets, on a clock that tests move."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

import requests
from sqlalchemy import select, update
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler, make_server

from app import create_app
from loyalty import ledger
from loyalty.awards import Rules
from loyalty.program import MemberStatus, ProgramKind, Store
from sandbox import Sandbox
from services import Services, build_services
from settings import Settings
from storage.tables import accounts, members
from tests.databases import FIRST_KEY, Clock, seeded_random_bytes
from tests.stepping import run_one
from widget.connections import Connection

SECRET_KEY = "a secret key of the tests, long enough: 0123456789"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def _whole(answer: Any) -> list[bytes]:
    """The answer in one piece: Werkzeug's server leaves a file open when the browser goes away in the middle of it."""
    try:
        return [b"".join(answer)]
    finally:
        getattr(answer, "close", lambda: None)()


class House:
    """One running Tallydesk (`url`), its `services`, the `sandbox` it talks to and the `clock` of both."""

    def __init__(self, *, services: Services, sandbox: Sandbox, clock: Clock, url: str) -> None:
        self.services = services
        self.sandbox = sandbox
        self.clock = clock
        self.url = url

    def browser(self) -> Browser:
        """A new browser: its own cookies."""
        return Browser(self)

    def connect(self, account: str = "acme") -> tuple[Browser, Connection]:
        """Connect `account` as its admin, choose the built-in ledger; the signed-in browser and the connection."""
        browser = self.browser()
        browser.sign_in(account)
        page = browser.submit("/connections/", {"program": "ledger"}, on="/connections/new")
        assert page.status_code == 200, page.text
        known = self.services.accounts.named(account)
        assert known is not None
        return browser, self.services.connections.of_account(known.id)[0]

    def connect_rivo(self, account: str = "acme", *, store: str = "northwind") -> tuple[Browser, Connection]:
        """Connect `account` as its admin and choose Rivo with the key of a store of the sandbox."""
        browser = self.browser()
        browser.sign_in(account)
        fields = {"program": "rivo", "api_key": self.sandbox.rivo(store).key}
        page = browser.submit("/connections/", fields, on="/connections/new")
        assert page.status_code == 200, page.text
        known = self.services.accounts.named(account)
        assert known is not None
        rivo = [c for c in self.services.connections.of_account(known.id) if c.store.program is ProgramKind.RIVO]
        return browser, rivo[-1]

    def open_rivo(self, account: str = "acme", *, store: str = "northwind", **rules: Any) -> Connection:
        """A connection of `account` to a store of the sandbox's Rivo, without a walk through pages and placement.

        `rules` are fields of Rules. The account must have been connected before, or is made without tokens.
        """
        services = self.services
        with services.database.write() as tx:
            account_id = tx.scalar(select(accounts.c.id).where(accounts.c.name == account))
            if account_id is None:
                account_id = tx.execute(
                    accounts.insert()
                    .values(name=account, state="needs_reauth", connected_at=self.clock(), updated_at=self.clock())
                    .returning(accounts.c.id)
                ).scalar_one()
            rivo = services.stores.open(tx, account=account, program=ProgramKind.RIVO, key=self.sandbox.rivo(store).key)
            connection_id = services.connections.open(
                tx,
                account_id=account_id,
                store=rivo,
                rules=Rules(
                    **{
                        "max_points_per_award": 1_000,
                        "max_points_per_agent_per_day": 10_000,
                        "max_points_per_day": 50_000,
                        **rules,
                    }
                ),
            )
        opened = services.connections.by_id(connection_id)
        assert opened is not None
        return opened

    def add_member(
        self,
        store: Store,
        email: str,
        *,
        points: int = 0,
        status: MemberStatus = MemberStatus.MEMBER,
    ) -> None:
        """A member of the embedded ledger with `points` as opening balance."""
        services = self.services
        with services.database.write() as tx:
            member_id = tx.execute(
                members.insert()
                .values(
                    store_id=store.id,
                    email_hmac=services.hasher.email(email),
                    email_sealed=services.sealer.seal(email),
                    status=status,
                    referral_code=ledger.new_referral_code(services.random_bytes),
                    balance=0,
                    lifetime_points=0,
                    created_at=self.clock(),
                    updated_at=self.clock(),
                )
                .returning(members.c.id)
            ).scalar_one()
            if points:
                ledger.book(
                    tx,
                    store_id=store.id,
                    member_id=member_id,
                    operation_id=f"opening:{member_id}",
                    kind=ledger.Kind.OPENING,
                    points=points,
                    what="Opening balance",
                    now=self.clock(),
                )

    def set_status(self, email: str, status: MemberStatus) -> None:
        """Change what the ledger says about a member."""
        with self.services.database.write() as tx:
            tx.execute(
                update(members).where(members.c.email_hmac == self.services.hasher.email(email)).values(status=status)
            )

    def lookup(self, connection: Connection, email: str | None = None, **kwargs: Any) -> requests.Response:
        """What Gorgias does: GET the card with the connection's key."""
        key = self.services.connections.newest_keys(connection.id).lookup
        headers = {"X-Api-Key": key, **kwargs.pop("headers", {})}
        params = kwargs.pop("params", {} if email is None else {"email": email})
        return requests.get(f"{self.url}/widget/customer", params=params, headers=headers, timeout=20, **kwargs)

    def award(self, connection: Connection, fields: dict[str, Any] | None = None, **kwargs: Any) -> requests.Response:
        """What the button does: POST an award, as JSON unless `kwargs` say otherwise."""
        key = self.services.connections.newest_keys(connection.id).award
        headers = {"X-Api-Key": key, **kwargs.pop("headers", {})}
        if fields is not None:
            kwargs["json"] = fields
        return requests.post(f"{self.url}/widget/earnings", headers=headers, timeout=20, **kwargs)

    def balance(self, connection: Connection, email: str) -> int:
        """The member's balance as the card shows it."""
        shown: int = self.lookup(connection, email).json()["points_balance"]
        return shown

    def work(self) -> int:
        """Run every job that is due now; how many there were."""
        done = 0
        while run_one(self.services):
            done += 1
            assert done < 1000
        return done


class Browser:
    """A person's browser at the console: cookies, forms with their hidden token, redirects one by one or followed."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.session = requests.Session()
        self.session.trust_env = False

    def get(self, path: str, *, follow: bool = True) -> requests.Response:
        return self.session.get(urljoin(self.house.url, path), allow_redirects=follow, timeout=20)

    def submit(
        self, action: str, fields: dict[str, Any] | None = None, *, on: str, follow: bool = True
    ) -> requests.Response:
        """Fill in the form that posts to `action` on the page `on`, and send it."""
        page = self.get(on)
        found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
        data = {**(fields or {}), **({"csrf_token": found.group(1)} if found else {})}
        answer = self.session.post(urljoin(self.house.url, action), data=data, allow_redirects=False, timeout=30)
        if follow and answer.is_redirect:
            return self.get(answer.headers["Location"])
        return answer

    def sign_in(self, account: str = "acme", *, user_id: int | None = None, allow: bool = True) -> requests.Response:
        """Walk through /oauth/install, the sandbox's consent and the callback; the page at the end."""
        return self.get(self.return_address(account, user_id=user_id, allow=allow))

    def return_address(self, account: str = "acme", *, user_id: int | None = None, allow: bool = True) -> str:
        """The callback address that Gorgias would send this browser to, not yet visited."""
        start = self.get(f"/oauth/install?account={account}", follow=False)
        assert start.status_code == 303, start.text
        return self.house.sandbox.authorize(start.headers["Location"], user_id=user_id, allow=allow)


@contextmanager
def running_house(database_url: str, *, clock: Clock, **overrides: Any) -> Iterator[House]:
    """Start sandbox and product; `overrides` with the prefix `sandbox_` go to the sandbox, others to Settings."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    apps: list[Any] = []
    server = make_server(
        "127.0.0.1", 0, lambda environ, start: _whole(apps[0](environ, start)), threaded=True, request_handler=_Quiet
    )
    assert isinstance(server, ThreadedWSGIServer)
    # Closing waits for requests under way: the sandbox may just be fetching a card, with a database connection open.
    server.daemon_threads = False
    url = f"http://localhost:{server.server_port}"
    for_sandbox = {k.removeprefix("sandbox_"): v for k, v in overrides.items() if k.startswith("sandbox_")}
    for_settings = {k: v for k, v in overrides.items() if not k.startswith("sandbox_")}
    options = {
        "accounts": ("acme", "globex"),
        "redirect_urls": [f"{url}/oauth/callback"],
        "app_url": f"{url}/oauth/install?account={{gorgias_account}}",
        "now": clock,
        "calls_per_20_s": 10_000,
        "rivo_stores": ("northwind", "fernhill"),
        "rivo_calls_per_s": 10_000,
        **for_sandbox,
    }
    with Sandbox(**options) as sandbox:
        settings = Settings(
            **{
                "database_url": database_url,
                "public_url": url,
                "port": server.server_port,
                "secret_key": SECRET_KEY,
                "encryption_keys": (FIRST_KEY,),
                "gorgias_client_id": sandbox.runtime.client_id,
                "gorgias_client_secret": sandbox.runtime.client_secret,
                "gorgias_url": sandbox.gorgias_url,
                "max_points_per_award": 1_000,
                "max_points_per_agent_per_day": 10_000,
                "max_points_per_connection_per_day": 50_000,
                "double_click_window_s": 60,
                "rivo_url": sandbox.rivo_url,
                "snapshot_fresh_s": 60,
                "snapshot_not_found_s": 30,
                "snapshot_retention_days": 30,
                "card_deadline_s": 2.5,
                "unknown_award_resend_after_s": 45,
                "award_retention_days": 730,
                "forget_after_disconnect_days": 30,
                "metrics_token": "",
                "worker_metrics_port": 0,
                "sentry_dsn": "",
                **for_settings,
            }
        )

        def sleep(seconds: float) -> None:
            """Waiting takes the clock along, and yields to the thread that is waited for."""
            clock.advance(seconds)
            time.sleep(0.002)

        services = build_services(settings, now=clock, sleep=sleep, random_bytes=seeded_random_bytes(7))
        services.hasher.email("")
        apps.append(create_app(services))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield House(services=services, sandbox=sandbox, clock=clock, url=url)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            services.database.close()
