"""A door in front of the sandbox's Rivo: it can be shut, so that nobody is reached, and it can answer by itself."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

_PIECE = 65_536


class Door:
    """Passes TCP connections on to `lead_to`. Its port stays reserved while it is shut.

    `rewrite` changes what a client sends, request by request.
    """

    def __init__(self) -> None:
        # Bound and never listening: the port is ours for good, and connections to it are refused.
        self._reserve = self._bound(0)
        self.port: int = self._reserve.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/rivo/merchant_api/v1"
        self.rewrite: Callable[[bytes], bytes] = lambda request: request
        self._target: tuple[str, int] | None = None
        self._lock = threading.Lock()
        self._answers: list[bytes] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.open()

    def lead_to(self, url: str) -> None:
        """Pass on to the server at `url`."""
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)

    def open(self) -> None:
        """Let connections in."""
        listener = self._listener = self._bound(self.port)
        listener.listen(64)
        self._start(lambda: self._accept(listener))

    def shut(self) -> None:
        """Refuse connections, and break those that are open."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shut for good."""
        self.shut()
        for thread in self._threads:
            thread.join(timeout=10)
        self._reserve.close()

    def answer_the_next_post(self, status: str, body: bytes) -> None:
        """The next POST is answered with this JSON, and never passed on."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with self._lock:
            self._answers.append(head.encode() + body)

    @staticmethod
    def _bound(port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                self._pass_on(client)
        finally:
            with self._lock:
                self._open.discard(client)

    def _pass_on(self, client: socket.socket) -> None:
        request = client.recv(_PIECE)
        with self._lock:
            answer = self._answers.pop(0) if self._answers and request.startswith(b"POST ") else None
        if answer is not None:
            while not _is_whole(request):
                request += client.recv(_PIECE)
            client.sendall(answer)
            return
        assert self._target is not None
        with socket.create_connection(self._target, timeout=30) as server:
            with self._lock:
                self._open.add(server)
            try:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                while request:
                    server.sendall(self.rewrite(request))
                    request = client.recv(_PIECE)
                with suppress(OSError):
                    server.shutdown(socket.SHUT_WR)
                back.join(timeout=30)
            finally:
                with self._lock:
                    self._open.discard(server)


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def _pump(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            to.sendall(piece)
    with suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)
