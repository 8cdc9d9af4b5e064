"""Bodies as gunicorn brings them: whole, in chunks, cut off, and too large."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

from loyalty.awards import Rules
from loyalty.program import ProgramKind
from storage.database import Database
from tests.processes.serving import Server, serving
from tests.webhooks.rivo_sends import SECRET, legacy_hex, profile, standard
from webhooks.views import MAX_BODY


def open_rivo(server: Server) -> int:
    """The id of a connection to Rivo, whose webhooks are believed."""
    services = server.house.services
    with services.database.write() as tx:
        store = services.stores.open(tx, account="acme", program=ProgramKind.RIVO, key="key")
        rules = Rules(max_points_per_award=1, max_points_per_agent_per_day=1, max_points_per_day=1)
        opened = services.connections.open(tx, account_id=server.connection.account_id, store=store, rules=rules)
    services.stores.save_webhook_secret(store, secret=SECRET)
    return opened


def in_chunks(body: bytes, *, size: int = 10_000) -> bytes:
    """The body as chunks, without the empty one that ends it."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def test_a_body_counts_only_when_it_came_as_a_whole(sqlite_database: Database, tmp_path: Path) -> None:
    with serving(sqlite_database.url, folder=tmp_path) as server:
        path = f"/rivo/webhooks/{open_rivo(server)}"

        def post(sent: bytes, headers: dict[str, str], *, end: bool = False) -> tuple[int, dict[str, Any]]:
            lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
            head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
                line.sendall(head.encode() + sent)
                if end:
                    line.shutdown(socket.SHUT_WR)
                answer = http.client.HTTPResponse(line)
                answer.begin()
                return answer.status, json.loads(answer.read())

        chunked = {"Transfer-Encoding": "chunked"}
        body = json.dumps(profile(shopify_tags=["x" * 100] * 1_000)).encode()
        signed = standard(body, timestamp=str(int(time.time())))
        assert post(body, {**signed, "Content-Length": str(len(body))}) == (200, {"status": "accepted"})
        assert post(in_chunks(body) + b"0\r\n\r\n", {**signed, **chunked}) == (200, {"status": "repeated"})

        # The part that came is signed, and would be believed.
        part = b'{"customer_email": "ana@example.com"}'
        status, told = post(part, {**legacy_hex(part), "Content-Length": "1000"}, end=True)
        assert (status, told["status"]) == (400, "refused")
        assert "Send it again" in told["message"]
        for wrong in (b"zz\r\n", in_chunks(part), b"5\r\nabcdefgh\r\n"):
            assert post(wrong, {**legacy_hex(part), **chunked}, end=True)[0] == 400

        large = b" " * MAX_BODY
        assert post(in_chunks(large, size=MAX_BODY), {**legacy_hex(large), **chunked})[0] == 413
        assert post(b"", {**signed, "Content-Length": str(MAX_BODY + 1)})[0] == 413
        assert "Traceback" not in server.log.read_text()
