"""A TCP proxy that breaks connections on order, between Tallydesk and its Rivo.

It takes one request for each connection, as the sandbox answers. What it breaks is the transport alone: no answer is
made up, and no request is forwarded twice.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self


class Break(StrEnum):
    """What happens to a request, or to the connection that would bring it."""

    REFUSED = "connection refused"
    SILENT = "accepted, then silence"
    RESET_BEFORE = "reset before the request was forwarded"
    RESET_AFTER = "reset after the request was forwarded"
    BLACK_HOLE = "request forwarded, answer lost"
    CUT_HEAD = "cut in the head of the answer"
    CUT_BODY = "cut in the body of the answer"
    DRIP = "answer byte by byte"
    LATENCY = "slow by 0.1 s"


LATENCY_S, DRIP_S = 0.1, 0.05


@dataclass(frozen=True, kw_only=True)
class _Order:
    kind: Break
    method: str
    path: re.Pattern[str]

    def fits(self, method: str, path: str) -> bool:
        return self.method == method and self.path.fullmatch(path) is not None


class Proxy:
    """Listens on a port of its own and forwards to `upstream`, (host, port); use it as a context manager."""

    def __init__(self) -> None:
        self.upstream = ("127.0.0.1", 9)
        self._lock = threading.Lock()
        self._order: _Order | None = None
        self._refuse_after: _Order | None = None
        self._stopping = threading.Event()
        self._calmed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        # Bound without listening, it keeps the port ours while connections are refused.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        self._listen()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.calm()
        self._close_listener()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._place.close()

    def order(self, kind: Break, *, method: str, path: str, after: tuple[str, str] | None = None) -> None:
        """Break every request that fits, until `calm`. `path` is a regular expression for the whole path.

        A refused connection has no request to fit: connections are refused from now on, or, with `after` (method and
        path), from just before the answer to the next request that fits it is passed on.
        """
        self._calmed.clear()
        if kind is not Break.REFUSED:
            self._order = _Order(kind=kind, method=method, path=re.compile(path))
        elif after is None:
            self._close_listener()
        else:
            self._refuse_after = _Order(kind=kind, method=after[0], path=re.compile(after[1]))

    def calm(self) -> None:
        """Break nothing more, and end what is being broken."""
        self._order = self._refuse_after = None
        self._calmed.set()
        if not self._stopping.is_set() and self._listener is None:
            self._listen()

    # -- within

    def _listen(self) -> None:
        listener = _bound(self.port)
        listener.listen(128)
        self._listener = listener
        self._start(lambda: self._accept(listener))

    def _close_listener(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):  # wakes up who accepts
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="proxy", daemon=True)
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(30)
            request = _read_request(client)
            if request is None:
                return
            method, target, _ = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            path = target.partition("?")[0]
            order = self._order
            if order is None or not order.fits(method, path):
                answer = self._forward(request)
                if self._refuse_after is not None and self._refuse_after.fits(method, path):
                    self._refuse_after = None
                    self._close_listener()
                client.sendall(answer)
                return
            self._break(order.kind, client, request)

    def _break(self, kind: Break, client: socket.socket, request: bytes) -> None:
        match kind:
            case Break.SILENT:
                # Whether the request was read cannot be told from outside.
                self._calmed.wait(60)
            case Break.RESET_BEFORE:
                _reset(client)
            case Break.RESET_AFTER:
                self._forward(request)
                _reset(client)
            case Break.BLACK_HOLE:
                self._forward(request)
                self._calmed.wait(60)
            case Break.CUT_HEAD:
                client.sendall(self._forward(request)[:40])
            case Break.CUT_BODY:
                head, _, body = self._forward(request).partition(b"\r\n\r\n")
                client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
            case Break.DRIP:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in self._forward(request):
                    client.sendall(bytes((byte,)))
                    if self._calmed.wait(DRIP_S):
                        return
            case Break.LATENCY:
                self._calmed.wait(LATENCY_S)
                client.sendall(self._forward(request))

    def _forward(self, request: bytes) -> bytes:
        """The whole answer of the other side, which closes after it."""
        with socket.create_connection(self.upstream, timeout=30) as server:
            server.sendall(request)
            answer = b""
            while piece := server.recv(65_536):
                answer += piece
            return answer


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _reset(client: socket.socket) -> None:
    """Make closing send a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_request(client: socket.socket) -> bytes | None:
    """One request with its body, or None when the client went away."""
    request = b""
    while b"\r\n\r\n" not in request:
        piece = client.recv(65_536)
        if not piece:
            return None
        request += piece
    head = request.partition(b"\r\n\r\n")[0]
    found = re.search(rb"(?im)^content-length:\s*(\d+)", head)
    whole = len(head) + 4 + (int(found[1]) if found else 0)
    while len(request) < whole:
        piece = client.recv(65_536)
        if not piece:
            return None
        request += piece
    return request
