"""A loyalty program with nothing behind it, on Rivo's wire: `python -m bench.program_process <port>`.

Every address is a member with the same points, every points event is taken and none is kept. It counts its calls. What
it costs, it costs the cores that all share: hence one event loop, answers put together from bytes, and no import of
anything that is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.parse import unquote


class _Wire(asyncio.Protocol):
    """One connection: requests one after the other, each with a length where it has a body."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._came = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        while (end := self._came.find(b"\r\n\r\n")) >= 0:
            head = self._came[:end].decode("latin-1")
            length = next(
                (int(line[15:]) for line in head.split("\r\n") if line[:15].lower() == "content-length:"),
                0,
            )
            if len(self._came) < end + 4 + length:
                return
            self._came = self._came[end + 4 + length :]
            method, target, _ = head.split("\r\n", 1)[0].split(" ")
            self._answer(method, target)

    def _answer(self, method: str, target: str) -> None:
        state = self._state
        if target.startswith("/_delay/"):
            state.delay_s = float(target.rpartition("/")[2])
            self._write(200, b"")
        elif target == "/_calls":
            self._write(200, b"%d" % state.calls)
        elif target == "/healthz":
            self._write(200, b"ok")
        else:
            state.calls += 1
            status, body = _reply(method, target)
            if state.delay_s:
                asyncio.get_running_loop().call_later(state.delay_s, self._write, status, body)
            else:
                self._write(status, body)

    def _write(self, status: int, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                + body
            )


class _State:
    delay_s = 0.0
    calls = 0


def _reply(method: str, target: str) -> tuple[int, bytes]:
    """Status and body, in the shapes that the sandbox answers with."""
    path = target.partition("?")[0]
    if method == "POST":
        return 201, _CREATED
    if path.startswith("/customers/"):
        email = unquote(path.removeprefix("/customers/"))
        return 200, _CUSTOMER.replace(b'"?"', json.dumps(email).encode())
    return 200, b'{"data": [], "links": {"next": null}}'


_CUSTOMER = json.dumps(
    {
        "data": {
            "id": 1,
            "type": "customer",
            "attributes": {
                "email": "?",
                "loyalty_status": "member",
                "points_tally": 1_234,
                "lifetime_earnings_tally": 2_345,
                "credits_tally": "0.0",
                "vip_tier": {"name": "Gold"},
                "referral_url": "https://bench.example/referral/abcdefgh",
                "referral_code": "abcdefgh",
                "points_expire_at": None,
                "dob": None,
            },
        }
    }
).encode()
_CREATED = json.dumps(
    {"data": {"id": 1, "type": "points_event", "attributes": {"id": [1, 1], "points_amount": 10, "points_diff": 10}}}
).encode()


async def _serve(port: int) -> None:
    state = _State()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Wire(state), "127.0.0.1", port, reuse_port=True, backlog=4_096
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
