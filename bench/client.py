"""Sends load where wrk is absent or cannot do it: reads an order as JSON on standard input, prints what came of it.

One event loop, one task for each connection. On its own core it sends some thousand requests a second, fewer than wrk:
what a fast server reaches with it is told too low, and alike for all that are compared.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import accumulate
from random import Random

from bench.load import TIMEOUT_S, Load, Shape, head_of, parts_of


def main() -> None:
    """Carry out the order."""
    order = json.load(sys.stdin)
    shapes = [Shape(**shape) for shape in order.pop("shapes")]
    print(json.dumps(asdict(asyncio.run(_Sender(shapes, **order).run()))))


def request_of(shape: Shape, port: int) -> Callable[[Random], bytes]:
    """What makes one request of this kind after the other."""
    head, body = parts_of(head_of(shape, port), shape.draws), parts_of(shape.body or "", shape.draws)

    def filled(parts: list[str | tuple[str, int]], drawn: dict[str, int]) -> str:
        return "".join(part if isinstance(part, str) else _number(drawn[part[0]], part[1]) for part in parts)

    def make(random: Random) -> bytes:
        drawn = {name: random.randint(low, high) for name, (low, high) in shape.draws.items()}
        if shape.body is None:
            return (filled(head, drawn) + "\r\n").encode()
        sent = filled(body, drawn).encode()
        return f"{filled(head, drawn)}Content-Length: {len(sent)}\r\n\r\n".encode() + sent

    return make


def _number(drawn: int, digits: int) -> str:
    return f"{drawn:0{digits}x}" if digits else str(drawn)


class _Sender:
    def __init__(
        self,
        shapes: list[Shape],
        *,
        port: int,
        connections: int,
        seed: int,
        seconds: float = 0.0,
        per_s: float = 0.0,
        count: int = 0,
        marker: str = "",
    ) -> None:
        self._makers = [request_of(shape, port) for shape in shapes]
        self._bounds = list(accumulate(shape.share for shape in shapes))
        self._port = port
        self._connections = connections
        self._seed = seed
        self._seconds = seconds
        self._per_s = per_s
        self._count = count
        self._marker = marker.encode()
        self._took: list[float] = []
        self._errors = self._marked = 0

    async def run(self) -> Load:
        began = time.perf_counter()
        due = self._by_pace(began) if self._count else self._until(began + self._seconds)
        await asyncio.gather(*(self._connection(number, due) for number in range(self._connections)))
        seconds = time.perf_counter() - began
        took = sorted(self._took) or [0.0]
        return Load(
            sent=len(self._took),
            seconds=seconds,
            per_s=len(self._took) / seconds,
            p50_ms=1000 * took[len(took) // 2],
            p99_ms=1000 * took[min(len(took) - 1, len(took) * 99 // 100)],
            max_ms=1000 * took[-1],
            errors=self._errors,
            marked=self._marked,
        )

    def _until(self, end: float) -> Iterator[float]:
        """When the next request is due: at once, until the end."""
        while (now := time.perf_counter()) < end:
            yield now

    def _by_pace(self, began: float) -> Iterator[float]:
        for number in range(self._count):
            yield began + number / self._per_s

    async def _connection(self, number: int, due: Iterator[float]) -> None:
        """Send what is due over one connection, a new one after a failure."""
        random = Random(f"{self._seed} {number}")
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for at in due:
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            [make] = random.choices(self._makers, cum_weights=self._bounds) if len(self._makers) > 1 else self._makers
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    if streams is None:
                        streams = await asyncio.open_connection("127.0.0.1", self._port)
                    streams[1].write(make(random))
                    status, body, stays = await _answer(streams[0])
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                self._errors += 1
                stays = False
            else:
                self._took.append(time.perf_counter() - at)
                self._errors += status >= 400
                self._marked += bool(self._marker) and self._marker in body
            if not stays and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), body, headers.get("connection", "").lower() != "close"


if __name__ == "__main__":
    main()
