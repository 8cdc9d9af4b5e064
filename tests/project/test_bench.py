"""The benchmark runs, and counts what happened. What it measures is no test's business."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import insert

from bench import store
from bench.__main__ import DOCUMENT, document_of, main, measure
from bench.load import Shape, has_wrk, paced, send
from bench.measure import Ratio, Spread, alternated
from bench.pace import QUICK, WHOLE, Pace
from bench.report import Section, Table, at_least, at_most, text_of, told
from loyalty import ledger
from storage.database import Database
from storage.tables import EPOCH, members
from tests.processes.serving import free_port

# How long each loads; wrk is for whoever has it.
CLIENTS = {**({"wrk": 1.0} if has_wrk() else {}), "our own client": 0.5}


class Counter(ThreadingHTTPServer):
    """A web server that remembers what it was asked: (method, path, key, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, str, str]] = []
        self.connections = 0

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients stop in the middle of an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one piece: else the second would wait for the first to be acknowledged.
    wbufsize = -1

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        assert isinstance(self.server, Counter)
        self.server.asked.append((self.command, self.path, self.headers.get("X-Api-Key", ""), body))
        said = b"Temporarily unavailable" if self.path.endswith("=1") else b"well"
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def counter() -> Iterator[Counter]:
    with Counter() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_load_is_what_was_ordered_and_counts_what_came_of_it(client: str, counter: Counter) -> None:
    """Kinds of requests by their share, numbers drawn out of their range, over few connections that stay open."""
    shapes = [
        Shape(
            path="/card?n={n}",
            headers={"X-Api-Key": "key_{k:064x}"},
            share=2,
            draws={"n": (2, 4), "k": (10, 11)},
        ),
        Shape(method="POST", path="/award", body='{"n": "{n}", "of": {"n": {n}}}', share=1, draws={"n": (7, 7)}),
        Shape(path="/missing", share=1),
    ]
    load = send(counter.server_port, shapes, connections=3, seconds=CLIENTS[client], seed=5)

    assert 3 <= counter.connections <= 4  # wrk looks first whether anybody is there
    assert load.sent <= len(counter.asked) <= load.sent + 4
    cards = [asked for asked in counter.asked if asked[1].startswith("/card")]
    assert {path for _, path, _, _ in cards} == {"/card?n=2", "/card?n=3", "/card?n=4"}
    assert {key for _, _, key, _ in cards} == {f"key_{10:064x}", f"key_{11:064x}"}
    assert 0.3 < len(cards) / len(counter.asked) < 0.7
    awards = [body for method, path, _, body in counter.asked if (method, path) == ("POST", "/award")]
    assert {json.dumps(json.loads(body)) for body in awards} == {'{"n": "7", "of": {"n": 7}}'}
    missing = sum(path == "/missing" for _, path, _, _ in counter.asked)
    assert missing - 4 <= load.errors <= missing
    assert 0 < load.p50_ms <= load.p99_ms <= load.max_ms
    assert load.per_s == pytest.approx(load.sent / load.seconds, rel=0.01)


def test_a_pace_is_kept_and_answers_with_the_marker_are_counted(counter: Counter) -> None:
    shapes = [Shape(path="/card?n={n}", draws={"n": (1, 2)})]
    load = paced(counter.server_port, shapes, connections=4, per_s=200, count=60, marker="Temporarily unavailable")
    assert load.sent == len(counter.asked) == 60
    assert load.seconds >= 59 / 200
    assert load.marked == sum(path.endswith("=1") for _, path, _, _ in counter.asked)
    assert 0 < load.marked < 60


def test_nobody_there_is_an_error_and_no_answer() -> None:
    with free_port() as port:
        load = paced(port, [Shape(path="/")], connections=1, per_s=1_000, count=5)
    assert (load.sent, load.errors) == (0, 5)


def test_what_is_compared_takes_turns_and_is_compared_within_its_turn() -> None:
    order: list[str] = []
    found = alternated({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)  # type: ignore[misc]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}
    # Twice as slow in the second turn, both of them: the ratio does not see it.
    assert Ratio.between([8, 4, 9], [10, 5, 10]) == Ratio(median=0.8, low=0.8, high=0.9)
    assert Spread.of([3, 1, 2]) == Spread(median=2, low=1, high=3)


def test_the_report_says_what_is_met_and_what_bounds_the_rest() -> None:
    section = Section(
        title="Cards",
        figures=[
            at_most(110, target=3, name="time", measured=161.4, unit=" µs", bound_by="The log line."),
            at_most(10, target=3, name="again", measured=20, bound_by="The log line."),
            at_most(10, target=9, name="elsewhere", measured=20, bound_by="The log line."),
            at_least(0.8, target=1, name="card ÷ (a)", measured=Ratio(median=0.912, low=0.85, high=1.2)),
        ],
        tables=[Table(title="Loads", columns=["", "requests/s"], rows=[["a|b", told(12_345.6)]], note="Read it so.")],
    )
    machine = Table(title="", columns=["", "Measured on"], rows=[["Memory", "8 GiB"]])
    text = text_of([section], pace=QUICK, date="14 March 2026", machine=machine)
    assert "| 1 | card ÷ (a) | 0.91 (0.85 – 1.20) | ≥ 0.8 | yes |\n| 3 | time | 161 µs | ≤ 110 µs | **no** |" in text
    assert "- **3, time; again.** The log line.\n- **9, elsewhere.** The log line.\n" in text
    assert "| a\\|b | 12,346 |\n\nRead it so." in text
    assert "14 March 2026. A quick run: its figures are indicative only." in text
    assert "A whole run." in text_of([section], pace=WHOLE, date="14 March 2026", machine=machine)


def test_only_a_whole_run_of_everything_rewrites_the_page() -> None:
    assert document_of(WHOLE, []) == DOCUMENT
    assert DOCUMENT not in (document_of(QUICK, []), document_of(WHOLE, ["cards"]))


def test_an_unknown_section_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cards", "crads"])
    assert "there is no section crads; there are cards, " in capsys.readouterr().err


def test_a_filled_database_is_one_that_the_product_could_have_written(database: Database, tmp_path: Path) -> None:
    """The books add up, and what is added later gets ids of its own."""
    filled = store.fill(database.url, members=3, activity=2, connections=2, folder=tmp_path)
    assert list(filled.connection_ids) == [1, 2]
    with database.read() as tx:
        assert list(ledger.verify(tx)) == []
        assert ledger.totals(tx) == (120, 120, 12)
    with database.write() as tx:
        added = tx.execute(
            insert(members)
            .values(
                {
                    **dict.fromkeys(("email_hmac", "email_sealed", "referral_code"), "x"),
                    **dict.fromkeys(("balance", "lifetime_points"), 0),
                    "store_id": 1,
                    "status": "member",
                    **dict.fromkeys(("created_at", "updated_at"), EPOCH),
                }
            )
            .returning(members.c.id)
        ).scalar_one()
    assert added == 7


def test_a_short_run_runs(tmp_path: Path) -> None:
    """Real servers, real loads, every subject; the report names neither this machine nor its folders."""
    document = tmp_path / "benchmarks.md"
    measure(["cards", "start"], pace=Pace(quick=True, rounds=1, seconds=0.1, members=200), document=document)
    text = document.read_text()
    assert {int(target) for target in re.findall(r"(?m)^\| (\d+) \| ", text)} == {1, 2, 11}
    assert "(c) FastAPI's lookup, uvicorn" in text
    loads = [
        line.split(" | ") for line in text.splitlines() if line.startswith(("| card", "| (")) and " / " not in line
    ]
    assert len(loads) >= 9
    assert {cells[-1].rstrip(" |") for cells in loads} == {"0"}, "errors"
    assert socket.gethostname() not in text
    assert not re.search(r"/(tmp|home|root|var|work)\b", text)
