"""A real Chromium before the running product and sandbox, with the demo's members and a worker that never rests."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from loyalty import ledger
from loyalty.ledger_import import import_members
from tests.browser.steps import RunningClock, Visit
from tests.house import House, running_house
from tests.stepping import run_one

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ROOT / "demo" / "members.csv"
# What a machine without Chromium is told is script/test's to say: it installs one before it gets here.
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 15_000


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, one for each test process."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)))
    arguments = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def house(tmp_path: Path, migrated_file: Path) -> Iterator[House]:
    """Tallydesk and a sandbox with tickets of the demo's customers, who are members of acme's ledger; jobs are run."""
    database = tmp_path / "tallydesk.db"
    shutil.copyfile(migrated_file, database)
    clock = RunningClock()
    with running_house(f"sqlite:///{database}", clock=clock, sandbox_demo=True, sandbox_customers=MEMBERS) as house:
        services = house.services
        with services.database.write() as tx:
            store = ledger.open_store(tx, identity=ledger.identity_for("acme"), now=clock())
        members = tmp_path / "members.csv"  # beside it stands a file of what was rejected
        shutil.copyfile(MEMBERS, members)
        import_members(
            services.database,
            store=store,
            path=members,
            sealer=services.sealer,
            hasher=services.hasher,
            random_bytes=services.random_bytes,
            now=clock,
            progress=lambda _: None,
        )
        stopping = threading.Event()

        def work() -> None:
            while not stopping.is_set():
                if not run_one(services):
                    stopping.wait(0.05)

        worker = threading.Thread(target=work, name="worker")
        worker.start()
        try:
            yield house
        finally:
            stopping.set()
            worker.join()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Open a page in a browser of its own: `visit(java_script_enabled=False)`. Trouble in any page fails the test."""
    opened = []
    trouble: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # A refusal's status is an error to the console too, and is looked at by the tests themselves.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            trouble.append(message.text)

    def open_page(**options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", **options})
        opened.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.on("console", note)
        context.on("weberror", lambda error: trouble.append(str(error.error)))
        return context.new_page()

    yield open_page
    for context in opened:
        context.close()
    assert trouble == []
