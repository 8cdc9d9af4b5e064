"""A chat with an incoming webhook, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Chat:
    """The incoming webhook of a chat: what it was told, as texts; `answers` is the status it gives, `location` where
    it sends elsewhere."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.told: list[str] = []
        self.answers = 200
        self.location = ""

    def take(self) -> list[str]:
        """What has come since the last time."""
        told, self.told = self.told, []
        return told


@contextmanager
def running_chat() -> Iterator[Chat]:
    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert list(sent) == ["text"]
            if chat.answers == 200:
                chat.told.append(sent["text"])
            self.send_response(chat.answers)
            if chat.location:
                self.send_header("Location", chat.location)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    chat = Chat(f"http://127.0.0.1:{server.server_port}/services/secret-part")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
