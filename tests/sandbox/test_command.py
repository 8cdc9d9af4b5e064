"""`python -m sandbox` in a terminal: the demo, what survives, and what cannot start."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from sandbox import Sandbox
from sandbox.__main__ import main

CUSTOMERS = (
    "\ufeffCustomer ID,First Name,Last Name,Email,Accepts Email Marketing\n"
    "1,Mia,Rossi,mia@example.com,yes\n"
    "2,,,lone@example.com,no\n"
    "3,Noor,Haddad,,no\n"
    "4,,,,no\n"
)
CALLBACK = "http://localhost:1/callback"


def command(*more: str) -> list[str]:
    credentials = ["--client-id", "client-one", "--client-secret", "secret-one"]
    return [sys.executable, "-m", "sandbox", *credentials, *more]


@contextmanager
def running(*more: str, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """The address of a sandbox that runs in a process of its own and is ended by a signal."""
    process = subprocess.Popen(
        command(*more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert "is ready: http://localhost:" in ready, process.communicate()[1]
        yield ready.split()[-1]
    finally:
        process.send_signal(end)
        _, errors = process.communicate(timeout=10)
    assert errors == ""
    assert process.returncode == (0 if end is signal.SIGTERM else -end)


@pytest.fixture
def customers(tmp_path: Path) -> Path:
    path = tmp_path / "members.csv"
    path.write_text(CUSTOMERS, encoding="utf-8")
    return path


def test_the_demo_opens_a_ticket_for_each_customer_a_stranger_and_a_nameless_chat(customers: Path) -> None:
    with Sandbox(demo=True, customers=customers) as sandbox:
        tickets = sandbox.helpdesk("acme").tickets()
        assert [ticket["customer"]["email"] for ticket in tickets] == [
            "mia@example.com",
            "lone@example.com",
            None,
            "nora.stranger@example.org",
            None,
        ]
        assert [ticket["channel"] for ticket in tickets] == ["email"] * 4 + ["chat"]
        assert all(sandbox.helpdesk("acme").messages(ticket["id"])[0]["body_text"] for ticket in tickets)
        assert tickets[0]["customer"]["name"] == "Mia Rossi"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_everything_survives_the_end_of_the_process(tmp_path: Path, customers: Path, end: signal.Signals) -> None:
    """An installed app works on after a restart: tokens, key, integrations and tickets are there."""
    options = ["--port", "0", "--data", str(tmp_path / "data"), "--accounts", "acme,globex"]
    options += ["--customers", str(customers)]
    with running(*options, end=end) as url:
        assert requests.get(f"{url}/globex/sign-in", timeout=5).ok
    # The address is part of what tokens say, so the same port is used for both lives of the installed app.
    with Sandbox(data=tmp_path / "data", accounts=("acme", "globex"), redirect_urls=[CALLBACK]) as first:
        token = first.access_token("acme", scope="macros:write macros:read")
        macro = {"name": "Points", "actions": []}
        url = f"{first.url}/acme/api/macros"
        headers = {"Authorization": f"Bearer {token}"}
        assert requests.post(url, json=macro, headers=headers, timeout=5).status_code == 201
        port = int(first.url.rsplit(":", 1)[1])
        tickets = first.helpdesk("acme").tickets()
    with Sandbox(
        data=tmp_path / "data", accounts=("acme", "globex"), demo=True, customers=customers, port=port
    ) as second:
        assert second.helpdesk("acme").tickets() == tickets
        assert len(tickets) == 5
        (kept,) = requests.get(url, headers=headers, timeout=5).json()["data"]
        assert kept["name"] == "Points"
        assert len(second.helpdesk("acme").users()) == 3


def test_the_demo_fills_a_store_of_rivo_with_the_same_people(customers: Path) -> None:
    with Sandbox(demo=True, customers=customers, rivo_stores=("northwind",)) as sandbox:
        people = sandbox.rivo("northwind").customers()
        assert [(one["email"], one["loyalty_status"]) for one in people] == [
            ("mia@example.com", "guest"),
            ("lone@example.com", "excluded"),
        ]
    with Sandbox(demo=True, customers=Path("demo/members.csv"), rivo_stores=("northwind",)) as sandbox:
        store = sandbox.rivo("northwind")
        of_helpdesk = {one["email"] for one in sandbox.helpdesk("acme").customers()}
        people = store.customers()
        assert {one["email"] for one in people} < of_helpdesk
        statuses = [one["loyalty_status"] for one in people]
        assert (statuses.count("guest"), statuses.count("excluded")) == (1, 1)
        tiers = {one["vip_tier"] and one["vip_tier"]["name"] for one in people}
        assert tiers == {None, "Silver", "Gold", "Platinum"}
        assert {"0.0", "21.50"} <= {one["credits_tally"] for one in people}
        for one in people:
            assert one["points_tally"] == sum(event["points_diff"] for event in store.events(one["email"]))


def test_a_store_of_rivo_keeps_its_key_and_its_book_over_restarts(tmp_path: Path, customers: Path) -> None:
    options = ["--port", "0", "--data", str(tmp_path / "data"), "--customers", str(customers)]
    with running(*options, "--rivo-stores", "northwind,fernhill") as url:
        page = requests.get(f"{url}/rivo/northwind", timeout=5).text
    with Sandbox(
        data=tmp_path / "data", rivo_stores=("northwind", "fernhill"), demo=True, customers=customers
    ) as again:
        assert again.rivo("northwind").key in page
        assert again.rivo("northwind").key != again.rivo("fernhill").key
        assert len(again.rivo("northwind").customers()) == 2


def test_an_award_that_was_answered_is_in_the_book_after_a_kill(tmp_path: Path, customers: Path) -> None:
    data = tmp_path / "data"
    with Sandbox(data=data, rivo_stores=("northwind",)) as before:
        key = before.rivo("northwind").key
        before.rivo("northwind").add_customer("mia@example.com")
    with running("--port", "0", "--data", str(data), end=signal.SIGKILL) as url:
        for number in range(10):
            answer = requests.post(
                f"{url}/rivo/merchant_api/v1/points_events",
                data={
                    "customer_identifier": "mia@example.com",
                    "source": "manual",
                    "points_amount": 5,
                    "internal_note": str(number),
                },
                headers={"Authorization": key},
                timeout=5,
            )
            assert answer.status_code == 201
    with Sandbox(data=data, rivo_stores=("northwind",)) as after:
        book = after.rivo("northwind").events("mia@example.com")
        assert [row["internal_note"] for row in book] == [str(number) for number in range(10)]
        assert (after.rivo("northwind").customer("mia@example.com") or {})["points_tally"] == 50


def test_what_was_answered_is_on_the_disk_when_the_process_is_killed(tmp_path: Path) -> None:
    options = ["--port", "0", "--data", str(tmp_path / "data"), "--accounts", "acme"]
    made = 0
    with running(*options, end=signal.SIGKILL) as url:
        ada = str(1001)
        for number in range(20):
            with requests.Session() as browser:
                browser.post(f"{url}/acme/sign-in", data={"user_id": ada}, allow_redirects=False, timeout=5)
                consent = browser.post(
                    f"{url}/acme/oauth/authorize",
                    params={
                        "response_type": "code",
                        "client_id": "client-one",
                        "redirect_uri": "http://localhost:8000/oauth/callback",
                        "scope": "offline",
                    },
                    data={"decision": "allow"},
                    allow_redirects=False,
                    timeout=5,
                )
                code = consent.headers["Location"].split("code=")[1]
            answer = requests.post(
                f"{url}/acme/oauth/token",
                data={
                    "grant_type": "authorization_code",
                    "code": code,
                    "redirect_uri": "http://localhost:8000/oauth/callback",
                },
                auth=("client-one", "secret-one"),
                timeout=5,
            )
            assert answer.status_code == 200, number
            made += 1
    with Sandbox(data=tmp_path / "data", accounts=("acme",)) as after:
        assert len(after.helpdesk("acme").installations()) == made


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a start that cannot be says on stderr: one line."""

    def start(*more: str) -> str:
        assert main(["--client-id", "client-one", "--client-secret", "secret-one", *more]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    return start


def test_a_taken_port_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            command("--port", port, "--data", str(tmp_path)), capture_output=True, text=True, timeout=20, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Port {port} cannot be used")
    assert ended.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot keep its data in" in refusal("--port", "0", "--data", str(tmp_path / "file" / "data"))


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "sandbox.sqlite3").write_text("something else " * 1000)
    assert "cannot keep its data in" in refusal("--port", "0", "--data", str(tmp_path))


def test_a_folder_in_use_is_one_sentence(tmp_path: Path, refusal: Callable[..., str]) -> None:
    with Sandbox(data=tmp_path):
        assert "in use by another sandbox" in refusal("--port", "0", "--data", str(tmp_path))


def test_missing_or_foreign_customers_are_one_sentence(tmp_path: Path, refusal: Callable[..., str]) -> None:
    options = ["--port", "0", "--data", str(tmp_path / "data"), "--customers"]
    assert "cannot be read" in refusal(*options, str(tmp_path / "missing.csv"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "no column" in refusal(*options, str(tmp_path / "other.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in refusal(*options, str(tmp_path / "binary.csv"))


def test_a_wrong_account_name_is_one_sentence(tmp_path: Path, refusal: Callable[..., str]) -> None:
    options = ["--port", "0", "--data", str(tmp_path)]
    assert "no account name" in refusal(*options, "--accounts", "Acme Inc")
    assert "no account name" in refusal(*options, "--accounts", "rivo")
    assert "no name of a Rivo store" in refusal(*options, "--rivo-stores", "North Wind")


def test_it_listens_on_loopback_only() -> None:
    with Sandbox() as sandbox:
        assert sandbox._socket.getsockname()[0] == "127.0.0.1"


def test_stopping_leaves_no_threads_behind() -> None:
    before = set(threading.enumerate())
    with Sandbox() as sandbox:
        silent = socket.create_connection(("127.0.0.1", int(sandbox.url.rsplit(":", 1)[1])))
        requests.get(sandbox.url, timeout=5)
    silent.close()
    assert set(threading.enumerate()) <= before


def test_two_sandboxes_run_side_by_side() -> None:
    with Sandbox() as one, Sandbox() as two:
        one.helpdesk("acme").create_customer("Mia", "mia@example.com")
        assert two.helpdesk("acme").customers() == []
        assert one.url != two.url
        assert one.gorgias_url == one.url + "/{account}"
