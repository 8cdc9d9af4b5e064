"""The sandbox as one thing: a web server on loopback, the accounts it serves, and what tests ask of it."""

from __future__ import annotations

import io
import json
import re
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urljoin

import requests
from flask import Flask, render_template
from werkzeug.datastructures import EnvironHeaders, Headers
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from sandbox.api import create_api
from sandbox.deliveries import Deliveries
from sandbox.faults import Fault, FaultKind, Faults
from sandbox.oauth import create_oauth
from sandbox.pages import create_pages
from sandbox.records import Record, Records
from sandbox.rivo import RivoStore
from sandbox.rivo_api import create_rivo_api
from sandbox.rivo_pages import create_rivo_pages
from sandbox.rivo_webhooks import RivoWebhooks
from sandbox.runtime import Runtime
from sandbox.sending import Crew
from sandbox.state import Helpdesk, load_demo
from sandbox.tokens import Tokens

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
RIVO = "rivo"
"""What requests to the sandbox's Rivo are filed under, in place of an account."""


class PortTaken(Exception):
    """The port cannot be listened on; the message is one sentence for a person."""


@dataclass(eq=False)
class Received:
    """One request the sandbox received. `status` is None until it was answered, and stays so when it never
    was. The `account` of a request to Rivo is `rivo`.
    """

    account: str
    method: str
    path: str
    """Without the account: `/api/widgets`."""
    query: Mapping[str, str]
    headers: Headers
    body: bytes
    at: float
    """When it arrived, on the sandbox's monotonic clock."""
    store: str | None = None
    """The store of Rivo that its key opens; None at the helpdesk and for a key that opens none."""
    status: int | None = None

    @property
    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, str]:
        """The body read as a form."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


class ReceivedRequests:
    """The latest 10,000 requests in the order of their arrival. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: deque[Received] = deque(maxlen=10_000)

    def add(self, received: Received) -> None:
        """Note a request."""
        with self._lock:
            self._requests.append(received)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._requests.clear()

    def filter(
        self,
        *,
        account: str | None = None,
        method: str | None = None,
        path: str | None = None,
        store: str | None = None,
    ) -> list[Received]:
        """Those that fit; `path` is a regular expression for the whole path after the account."""
        return [
            received
            for received in self
            if account in (None, received.account)
            and method in (None, received.method)
            and store in (None, received.store)
            and (path is None or re.fullmatch(path, received.path))
        ]

    def __iter__(self) -> Iterator[Received]:
        with self._lock:
            return iter(list(self._requests))

    def __len__(self) -> int:
        with self._lock:
            return len(self._requests)

    def __getitem__(self, index: int) -> Received:
        with self._lock:
            return self._requests[index]


class Sandbox:
    """A running sandbox; use it as a context manager, or call start() and stop().

    `rivo_stores` are the stores that its Rivo serves, `rivo_calls_per_s` (None: no limit) what each may be called in
    any second; beyond that is 429, with `Retry-After` unless `rivo_retry_after` is false.

    `data` is the folder that keeps everything between runs (None: memory only). `now` answers an aware
    datetime and is what tokens and records are stamped with; the call budget and all waiting follow the real
    clock. `port` 0 takes a free one. `customers` is a Shopify customer export that, with `demo`, fills every
    new account.

    Raises PortTaken and sandbox.records.RecordsUnusable, and for `customers` OSError and ValueError.
    """

    def __init__(
        self,
        *,
        accounts: Sequence[str] = ("acme",),
        client_id: str = "60925f8f0f7dd3b3ab1b9f5c",
        client_secret: str = "sandbox-client-secret",
        redirect_urls: Iterable[str] = ("http://localhost:8000/oauth/callback",),
        app_url: str = "http://localhost:8000/oauth/install?account={gorgias_account}",
        app_name: str = "Tallydesk",
        data: Path | None = None,
        demo: bool = False,
        customers: Path | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        port: int = 0,
        open_fires: bool = True,
        encode_email: str = "percent",
        rotate_refresh_tokens: bool = False,
        calls_per_20_s: int = 80,
        delivery_timeout_s: float = 5.0,
        action_timeout_s: float = 15.0,
        retry_delays_s: Sequence[float] = (0.5, 2.0),
        rivo_stores: Sequence[str] = (),
        rivo_calls_per_s: int | None = 15,
        rivo_retry_after: bool = True,
    ) -> None:
        for account in accounts:
            if not _NAME.fullmatch(account):
                raise ValueError(f"{account!r} is no account name: use small letters, digits and hyphens.")
            if account == RIVO:
                raise ValueError(f"{RIVO!r} is no account name: it is where the sandbox's Rivo stands.")
        for store in rivo_stores:
            if not _NAME.fullmatch(store):
                raise ValueError(f"{store!r} is no name of a Rivo store: use small letters, digits and hyphens.")
        self.faults = Faults()
        self.requests = ReceivedRequests()
        self._stopping = threading.Event()
        self._socket = _listen(port)
        self.url = f"http://localhost:{self._socket.getsockname()[1]}"
        self.gorgias_url = self.url + "/{account}"
        self.rivo_url = f"{self.url}/rivo/merchant_api/v1"
        try:
            self._records = Records(data)
        except BaseException:
            self._socket.close()
            raise
        self._crew = Crew()
        deliveries = Deliveries(
            crew=self._crew,
            now=now,
            encode_email=encode_email,
            timeout_s=delivery_timeout_s,
            action_timeout_s=action_timeout_s,
            retry_delays_s=retry_delays_s,
        )
        self.runtime = Runtime(
            url=self.url,
            accounts=tuple(accounts),
            client_id=client_id,
            client_secret=client_secret,
            redirect_urls=tuple(redirect_urls),
            app_url=app_url,
            app_name=app_name,
            now=now,
            monotonic=monotonic,
            calls_per_20_s=calls_per_20_s,
            rotate_refresh_tokens=rotate_refresh_tokens,
            records=self._records,
            tokens=Tokens(self._records, client_id=client_id, now=now, durable=data is not None),
            deliveries=deliveries,
            rivo_calls_per_s=rivo_calls_per_s,
            rivo_retry_after=rivo_retry_after,
        )
        webhooks = RivoWebhooks(crew=self._crew, now=now, timeout_s=delivery_timeout_s, retry_delays_s=retry_delays_s)
        try:
            for account in accounts:
                helpdesk = Helpdesk(
                    account,
                    base_url=f"{self.url}/{account}",
                    records=self._records,
                    now=now,
                    on_activity=deliveries.fire,
                    open_fires=open_fires,
                )
                self.runtime.helpdesks[account] = helpdesk
                if demo:
                    load_demo(helpdesk, customers)
            for name in rivo_stores:
                store_here = RivoStore(name, records=self._records, now=now, webhooks=webhooks, url=self.rivo_url)
                self.runtime.rivo_stores[name] = store_here
                if demo:
                    store_here.load_demo(customers)
            app: WSGIApplication = _Gate(
                create_app(self.runtime).wsgi_app,
                runtime=self.runtime,
                faults=self.faults,
                received=self.requests,
                stopping=self._stopping,
            )
            self._server = _Server(self._socket, app)
        except BaseException:
            self._crew.stop()
            self._records.close()
            self._socket.close()
            raise
        # The short interval is how soon stop() is noticed.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="sandbox", daemon=True)

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End hanging requests, stop answering and sending, close everything. What was answered is kept."""
        self._stopping.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._socket.close()
        self._crew.stop()
        self._records.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def helpdesk(self, account: str) -> Helpdesk:
        """An account's data. Raises KeyError for an account that is not served."""
        return self.runtime.helpdesks[account]

    def rivo(self, store: str) -> RivoStore:
        """A store of Rivo. Raises KeyError for one that is not served."""
        return self.runtime.rivo_stores[store]

    def settle(self, timeout_s: float = 10.0) -> None:
        """Wait until no integration and no webhook's receiver is being called, retries included.

        Raises TimeoutError.
        """
        self._crew.settle(timeout_s)

    def access_token(self, account: str, *, scope: str, user_id: int | None = None) -> str:
        """An access token without the walk through OAuth, by default of the first user, an admin."""
        helpdesk = self.helpdesk(account)
        user = helpdesk.users()[0]["id"] if user_id is None else user_id
        return self.runtime.tokens.access_token(helpdesk, user_id=user, scope=scope)

    def authorize(self, authorize_url: str, *, user_id: int | None = None, allow: bool = True) -> str:
        """Do in a browser's place what a person does at an authorize address: sign in, then allow or deny.

        Answers the address that the person is sent to, with `code` and `state` or `error` and `state` in its
        query. Raises ValueError with the page's text when the sandbox refuses to redirect.
        """
        account = authorize_url.removeprefix(self.url).split("/")[1]
        user = self.helpdesk(account).users()[0]["id"] if user_id is None else user_id
        with requests.Session() as browser:
            browser.trust_env = False
            browser.post(f"{self.url}/{account}/sign-in", data={"user_id": user}, allow_redirects=False, timeout=10)
            answer = browser.get(authorize_url, allow_redirects=False, timeout=10)
            if answer.status_code == 200:
                decision = {"decision": "allow" if allow else "deny"}
                answer = browser.post(authorize_url, data=decision, allow_redirects=False, timeout=10)
            if answer.status_code != 302:
                raise ValueError(f"{answer.status_code}: {answer.text}")
            return urljoin(authorize_url, answer.headers["Location"])


def create_app(runtime: Runtime) -> Flask:
    """The sandbox as a Flask application."""
    app = Flask("sandbox")
    app.url_map.strict_slashes = False  # `uri` of an object ends in a slash, the documented paths do not
    app.register_blueprint(create_oauth(runtime, app))
    app.register_blueprint(create_api(runtime))
    app.register_blueprint(create_pages(runtime))
    app.register_blueprint(create_rivo_api(runtime))
    app.register_blueprint(create_rivo_pages(runtime))

    @app.errorhandler(sqlite3.Error)
    def not_kept(error: sqlite3.Error) -> tuple[Record, int]:
        sentence = f"The sandbox could not keep this ({error}). Nothing was changed."
        print(sentence, file=sys.stderr)
        return {"error": {"msg": sentence, "data": {}}}, 500

    @app.get("/")
    def accounts() -> str:
        return render_template(
            "oauth_accounts.html",
            accounts=runtime.accounts,
            app_name=runtime.app_name,
            rivo_stores=tuple(runtime.rivo_stores),
            account=None,
        )

    return app


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        raise PortTaken(
            f"Port {port} cannot be used ({error.strerror}): stop what uses it or choose another."
        ) from error


class _Handler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Quiet: the requests are in `Sandbox.requests`, and addresses may hold e-mails."""


class _Server(ThreadedWSGIServer):
    """Werkzeug's threaded server that can break a connection and leaves no threads behind."""

    daemon_threads = False  # server_close() waits for the threads

    def __init__(self, listening: socket.socket, app: WSGIApplication) -> None:
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        host, port = listening.getsockname()
        super().__init__(host, port, app, _Handler, fd=listening.fileno())

    def process_request(self, connection: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(connection)
        super().process_request(connection, client_address)

    def shutdown_request(self, connection: Any) -> None:
        with self._open_lock:
            self._open.discard(connection)
        if struct.unpack("ii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]:
            self.close_request(connection)  # a broken connection: no orderly end first
        else:
            super().shutdown_request(connection)

    def server_close(self) -> None:
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):  # whoever connected and says nothing is not waited for
                    connection.shutdown(socket.SHUT_RD)
        super().server_close()


class _Gate:
    """In front of the application: writes down every request and lets faults strike."""

    def __init__(
        self,
        app: WSGIApplication,
        *,
        runtime: Runtime,
        faults: Faults,
        received: ReceivedRequests,
        stopping: threading.Event,
    ) -> None:
        self._app = app
        self._runtime = runtime
        self._faults = faults
        self._received = received
        self._stopping = stopping

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        # WSGI hands paths over as Latin-1; those of customers are UTF-8.
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        _, account, rest = ["", *path.lstrip("/").split("/", 1), ""][:3]
        of_rivo = account == RIVO and rest.startswith("merchant_api/")
        if not of_rivo and account not in self._runtime.accounts:
            status, headers, page = self._run(environ)
            start_response(status, headers)
            return [page]
        store = self._runtime.rivo_store_of(environ.get("HTTP_AUTHORIZATION")) if of_rivo else None
        received = Received(
            account=account,
            method=environ["REQUEST_METHOD"],
            path=f"/{rest}",
            query=dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)),
            headers=Headers(list(EnvironHeaders(environ))),
            body=body,
            at=self._runtime.monotonic(),
            store=None if store is None else store.name,
        )
        self._received.add(received)
        status, headers, answer = self._answer(environ, received)
        received.status = int(status.split()[0])
        start_response(status, headers)
        return answer

    def _answer(
        self, environ: WSGIEnvironment, received: Received
    ) -> tuple[str, list[tuple[str, str]], Iterable[bytes]]:
        fault = self._faults.strike(account=received.account, method=received.method, path=received.path)
        if fault is None:
            status, headers, answer = self._run(environ)
            return status, headers, [answer]
        match fault.kind:
            case FaultKind.HANG:
                self._stopping.wait(fault.seconds)
                raise _break(environ)
            case FaultKind.RESET_BEFORE:
                raise _break(environ)
            case FaultKind.COMMIT_LATE:
                # The key and the budget are not looked at again: this request is inside already.
                later = {**environ, "wsgi.input": io.BytesIO(received.body), "sandbox.admitted": received.store}
                fault.keep_for_later(lambda: int(self._run(later)[0].split()[0]))
                raise _break(environ)
            case (
                FaultKind.STATUS
                | FaultKind.RATE_LIMITED
                | FaultKind.HTML
                | FaultKind.EMPTY
                | FaultKind.REDIRECT
                | FaultKind.INVALID_GRANT
            ):
                return _made_up(fault, received.account)
            case FaultKind.SLOW:
                self._stopping.wait(fault.seconds)
        status, headers, answer = self._run(environ)
        match fault.kind:
            case FaultKind.RESET_AFTER:
                raise _break(environ)
            case FaultKind.HANG_AFTER:
                self._stopping.wait(fault.seconds)
                raise _break(environ)
            case FaultKind.STATUS_AFTER | FaultKind.HTML_AFTER:
                return _made_up(fault, received.account)
            case FaultKind.DRIP:
                if self._drip(environ, status, headers, answer, fault.seconds):
                    received.status = int(status.split()[0])
                raise _end(environ)
            case FaultKind.TRUNCATED:
                answer = answer[: len(answer) // 2]
        return status, headers, [answer]

    def _drip(
        self, environ: WSGIEnvironment, status: str, headers: list[tuple[str, str]], answer: bytes, seconds: float
    ) -> bool:
        """Send an answer byte by byte past the server; false when it was not sent to its end."""
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "Connection: close", "", ""]
        connection: socket.socket = environ["werkzeug.socket"]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in "\r\n".join(lines).encode("latin-1") + answer:
            try:
                connection.sendall(bytes((byte,)))
            except OSError:
                return False
            if self._stopping.wait(seconds):
                return False
        return True

    def _run(self, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
            started.append((status, headers))
            return lambda _: None

        chunks = self._app(environ, start_response)
        try:
            answer = b"".join(chunks)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        return *started[-1], answer


def _made_up(fault: Fault, account: str) -> tuple[str, list[tuple[str, str]], Iterable[bytes]]:
    headers = [("Content-Type", "application/json")]
    body = b""
    status = "200 OK"
    match fault.kind:
        case FaultKind.STATUS | FaultKind.STATUS_AFTER:
            status = f"{fault.status} Fault"
            body = _error(account, "Something went wrong.")
        case FaultKind.INVALID_GRANT:
            status = "400 Bad Request"
            body = b'{"error": "invalid_grant"}'
        case FaultKind.RATE_LIMITED:
            status = "429 Too Many Requests"
            body = _error(account, "Too many calls.")
            if fault.retry_after is not None:
                headers.append(("Retry-after", str(fault.retry_after)))
        case FaultKind.HTML | FaultKind.HTML_AFTER:
            headers = [("Content-Type", "text/html; charset=utf-8")]
            body = b"<!doctype html><title>One moment</title><p>Checking your browser.</p>"
        case FaultKind.REDIRECT:
            status = "302 Found"
            headers.append(("Location", fault.location))
    return status, [*headers, ("Content-Length", str(len(body)))], [body]


def _error(account: str, sentence: str) -> bytes:
    body: Record = {"error": sentence} if account == RIVO else {"error": {"msg": sentence, "data": {}}}
    return json.dumps(body).encode()


def _break(environ: WSGIEnvironment) -> ConnectionError:
    """Make the connection end in a reset; raising the answer tells the server that it is gone."""
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return _end(environ)


def _end(environ: WSGIEnvironment) -> ConnectionError:
    """Make the connection end after what was sent; raising the answer tells the server that it is gone."""
    connection: socket.socket = environ["werkzeug.socket"]
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    return ConnectionAbortedError()
