"""A server whose every byte a test decides: for answers that drip, break off or never come."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

Handler = Callable[["Peer"], None]


class Peer:
    """One connection, seen from the server."""

    def __init__(self, connection: socket.socket, server: Raw) -> None:
        self.connection = connection
        self._server = server
        self._rest = b""

    def request(self) -> bytes:
        """The next whole request; empty when the client has gone."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return b""
        head, _, rest = self._rest.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(rest) < length:
            if not self._more():
                return b""
            rest = self._rest.partition(b"\r\n\r\n")[2]
        self._rest = rest[length:]
        whole = head + b"\r\n\r\n" + rest[:length]
        self._server.requests.append(whole)
        return whole

    def _more(self) -> bool:
        try:
            piece = self.connection.recv(65_536)
        except OSError:
            return False
        self._rest += piece
        return bool(piece)

    def say(self, answer: bytes) -> None:
        self.connection.sendall(answer)

    def drip(self, pieces: Iterable[bytes], *, every_s: float) -> None:
        """Say one piece after the other until the client has gone or the test is over."""
        for piece in pieces:
            self.connection.sendall(piece)
            if self._server.over.wait(every_s):
                return

    def wait_until_gone(self) -> None:
        """Say nothing more, until the client closes the connection; when it does is noted."""
        with suppress(OSError):
            while self.connection.recv(65_536):
                pass
        self._server.closed_at.append(time.monotonic())

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Raw:
    """Runs `handle` for each connection. `requests` are those read, `closed_at` when clients were seen to go."""

    def __init__(self, handle: Handler, *, tls: ssl.SSLContext | None = None) -> None:
        self.handle = handle
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed_at: list[float] = []
        self.over = threading.Event()
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        # What waits for a connection or a client does so no longer.
        for waiting in [self._listening, *self._open]:
            with suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)
            waiting.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection:
                self.handle(Peer(connection, self))


def answer(status: str = "200 OK", body: bytes = b"{}", *headers: str) -> bytes:
    """A whole answer with its length."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode("latin-1") + body


def always(said: bytes) -> Handler:
    """Answers every request of a connection with the same."""

    def handle(peer: Peer) -> None:
        while peer.request():
            peer.say(said)

    return handle
