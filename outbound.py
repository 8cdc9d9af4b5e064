"""Asking other people's HTTP APIs, with time that really ends.

`Client.exchange` is one request and its whole answer within a hard deadline. It tells exactly whether any byte of the
request was written (NotSent: none; NoAnswer: perhaps all), because a program without idempotency may be asked again
only after the first. The usual libraries cannot say that, and their read timeout is for each piece, so that an answer
which drips would never end; hence Python's own http.client, over connections that look at the clock. There are no
cookies, proxies or redirects, and nothing comes from the environment. Nothing here knows what is asked, or of whom.
"""

from __future__ import annotations

import ipaddress
import queue
import select
import socket
import ssl
import threading
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from io import BufferedReader, RawIOBase
from time import monotonic
from typing import Any, cast
from urllib.parse import urlsplit

import certifi

from threads import aside

MAX_BODY = 2 * 1024 * 1024
CONNECT_S = 5.0  # name, connection and TLS; less when less is left
# Idle for longer, a connection may have been forgotten on the way without a word; a new one costs less than that.
MAX_IDLE_S = 15.0
# Kept for one server; whoever asks beyond them makes one and closes it.
MOST_IDLE = 64


class NotSent(Exception):
    """No byte of the request was written. The text says why, for an operator."""


class NoAnswer(Exception):
    """The request may have been written, wholly or in part, and no whole answer came in time. The text says more."""


class TooLarge(Exception):
    """An answer came whose body is larger than MAX_BODY."""


class NotPublic(OSError):
    """The host is to be found at an address that is not on the public internet."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer; `headers` are found in any spelling. `ended` says that its end was announced: by a length, by
    chunks, or by a status without body."""

    status: int
    reason: str
    headers: HTTPMessage
    body: bytes
    ended: bool


@dataclass(frozen=True, kw_only=True)
class _Server:
    """Whom a connection leads to."""

    tls: bool
    host: str
    port: int


class Client:
    """Asks servers, and keeps connections to them. Thread-safe.

    Certificates are believed that certifi knows, or else those of the file `trusted` (PEM).
    """

    def __init__(self, *, trusted: str | None = None) -> None:
        self._trusted = trusted
        self._kept: dict[_Server, deque[_Connection]] = {}

    @aside()
    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        within_s: float,
        public_only: bool = False,
    ) -> Answer:
        """One request and its whole answer, of any status. Never repeated, never redirected; when this returns or
        raises, nothing of it goes on. With `public_only` it connects to nothing but addresses on the public internet:
        what is checked is the very address that is connected to, so that a name cannot come to mean another in between.

        Only a GET may use a connection that is already open; one that turns out to be closed by then is asked again at
        once on a new one, and what became of that is told. Raises NotSent, NoAnswer or TooLarge, none of which knows
        the headers or the address.
        """
        attempt = _Attempt(ends_at=monotonic() + within_s, public_only=public_only)
        failure: Exception
        try:
            server, target = _read(url)
            kept = self._take(server) if method == "GET" and not public_only else None
            if kept is not None:
                try:
                    return self._ask(kept, method, target, headers, body, attempt)
                except _FAILURES:
                    # Closed by the other side, or without a word, while nobody looked.
                    if not attempt.sent or attempt.heard or attempt.over:
                        raise
                attempt.sent = False
            tls = self._tls if server.tls else None
            return self._ask(_Connection(server, tls), method, target, headers, body, attempt)
        except _FAILURES as error:
            failure = NoAnswer(_why_no_answer(error)) if attempt.sent else NotSent(_why_not_sent(error))
        # Raised here and not there, so that nothing of the request hangs on it.
        raise failure

    def close(self) -> None:
        """Close what is kept."""
        while self._kept:
            for connection in self._kept.popitem()[1]:
                connection.close()

    def _ask(
        self,
        connection: _Connection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        attempt: _Attempt,
    ) -> Answer:
        connection.attempt = attempt
        keep = False
        try:
            connection.request(method, target, body, headers=dict(headers))
            with cast(_Response, connection.getresponse()) as response:
                _check_frame(response)
                ended = response.chunked or response.length is not None
                content = _body_of(response)
            odd = response.more_came or (response.chunked and "Content-Length" in response.headers)
            keep = not (response.will_close or odd or attempt.public_only or "Connection" in headers)
            return Answer(
                status=response.status, reason=response.reason, headers=response.headers, body=content, ended=ended
            )
        finally:
            if keep:
                self._keep(connection)
            else:
                connection.close()

    def _take(self, server: _Server) -> _Connection | None:
        """The connection to `server` that was used last, unless that was long ago."""
        kept = self._kept.get(server, ())
        while kept:
            try:
                connection = kept.pop()
            except IndexError:
                break
            # What comes unasked, be it the end, belongs to no question of ours.
            if monotonic() - connection.kept_at <= MAX_IDLE_S and not _is_readable(connection.sock):
                return connection
            connection.close()
        return None

    def _keep(self, connection: _Connection) -> None:
        kept = self._kept.setdefault(connection.server, deque())
        if len(kept) >= MOST_IDLE:
            connection.close()
        else:
            connection.kept_at = monotonic()
            kept.append(connection)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._trusted or certifi.where())


# All that http.client, zlib and the socket raise. ValueError, OverflowError: what they think of odd headers, addresses
# and chunks.
_FAILURES = (HTTPException, OSError, ValueError, OverflowError, zlib.error)


@dataclass(kw_only=True)
class _Attempt:
    """How far one exchange has come."""

    ends_at: float
    public_only: bool
    sent: bool = False
    heard: bool = False

    @property
    def over(self) -> bool:
        return monotonic() >= self.ends_at

    def left_s(self) -> float:
        """What is left of its time. Raises TimeoutError when nothing is."""
        left_s = self.ends_at - monotonic()
        if left_s <= 0:
            raise TimeoutError("the time is up")
        return left_s


def _is_readable(sock: socket.socket) -> bool:
    """Whether something came on it, or its end."""
    looking = select.poll()
    looking.register(sock, select.POLLIN)
    return bool(looking.poll(0))


def _read(url: str) -> tuple[_Server, str]:
    """Whom to ask, and for what. Raises ValueError for what is no address of the web."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address of the web")
    tls = parts.scheme == "https"
    server = _Server(tls=tls, host=parts.hostname, port=parts.port or (443 if tls else 80))
    return server, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _check_frame(response: HTTPResponse) -> None:
    """Raises HTTPException where it is not certain which bytes are the answer."""
    if response.status < 200:
        raise HTTPException("the answer is yet to come")
    told = response.headers.get_all("Content-Length", [])
    if len(set(told)) > 1 or (told and not response.chunked and response.length is None):
        raise HTTPException("a length that is none")
    if response.headers.get_all("Transfer-Encoding", []) not in ([], ["chunked"]) and not response.chunked:
        raise HTTPException("sent in an unknown way")


def _body_of(response: HTTPResponse) -> bytes:
    """The whole body. Raises TooLarge, and _FAILURES where it is not whole."""
    if response.length is not None and response.length > MAX_BODY:
        raise TooLarge("the answer is too large")
    # What ends before its length is an error only where no amount is asked for.
    content = response.read(MAX_BODY + 1) if response.length is None else response.read()
    # Nobody was asked to pack it: what we send says `identity`.
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if content and len(content) <= MAX_BODY and encoding != "identity":
        if encoding not in ("gzip", "x-gzip"):
            raise HTTPException("packed in an unknown way")
        unpacking = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        content = unpacking.decompress(content, MAX_BODY + 1)
        if unpacking.unused_data or (not unpacking.eof and len(content) <= MAX_BODY):
            raise IncompleteRead(b"")
    if len(content) > MAX_BODY:
        raise TooLarge("the answer is too large")
    return content


class _TimedReader(RawIOBase):
    """What a socket gives, each piece within what is left of the whole exchange's time."""

    def __init__(self, raw: RawIOBase, sock: socket.socket, attempt: _Attempt) -> None:
        self._raw = raw
        self._sock = sock
        self._attempt = attempt
        self.at_end = False
        self.is_shut = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int | None:
        if self.is_shut:
            return 0
        self._sock.settimeout(self._attempt.left_s())
        got = self._raw.readinto(into)
        if got:
            self._attempt.heard = True
        self.at_end = got == 0
        return got

    def close(self) -> None:
        # The socket stays open for as long as its file does.
        self._raw.close()
        super().close()


class _Buffer(BufferedReader):
    """Tells when it is closed whether more had come than was read."""

    more_came = False

    def close(self) -> None:
        if not self.closed:
            self.raw.is_shut = True  # type: ignore[attr-defined]
            self.more_came = bool(self.peek(1))
        super().close()


class _Response(HTTPResponse):
    """http.client's response, head and body read through a _TimedReader."""

    def __init__(self, sock: socket.socket, *args: Any, attempt: _Attempt, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._reader = _TimedReader(self.fp.detach(), sock, attempt)
        self.fp = self._buffer = _Buffer(self._reader)

    @property
    def more_came(self) -> bool:
        """Once it is closed: whether bytes came after the answer, so that the next would not be the next one's."""
        return self._buffer.more_came

    def begin(self) -> None:
        super().begin()
        if self._reader.at_end:
            # http.client takes the end of the connection for the end of the head.
            raise IncompleteRead(b"")

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            # http.client would read to the end, however far that is.
            raise ValueError
        return size


class _Connection(HTTPConnection):
    """Connects, writes and reads within the time of the current attempt, and notes in it what was done."""

    attempt: _Attempt
    kept_at = 0.0

    def __init__(self, server: _Server, tls: ssl.SSLContext | None) -> None:
        super().__init__(server.host, server.port)
        self.server = server
        # Which it leaves out of the Host header.
        self.default_port = 443 if server.tls else 80
        self._tls = tls

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> _Response:  # type: ignore[override]
        """Called by http.client for each answer."""
        return _Response(sock, *args, attempt=self.attempt, **kwargs)

    def connect(self) -> None:
        """Within what is left. Raises OSError: gaierror, TimeoutError, NotPublic, SSLError and whatever else."""
        give_up_at = monotonic() + min(self.attempt.left_s(), CONNECT_S)
        addresses = _addresses(self.host, self.server.port, within_s=give_up_at - monotonic())
        if self.attempt.public_only and not all(is_public(address[4][0]) for address in addresses):
            raise NotPublic("not a public address")
        sock = _connect_one_of(addresses, give_up_at=give_up_at)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock.settimeout(max(give_up_at - monotonic(), 0.001))
                sock = self._tls.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    def send(self, data: Any) -> None:
        """Called by http.client with each part of the request."""
        if self.sock is None:
            self.connect()
        self.sock.settimeout(self.attempt.left_s())
        self.attempt.sent = True
        super().send(data)


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: no host, network or cloud of whoever runs this can be meant."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4 in the clothes of IPv6; the last is NAT64: https://www.rfc-editor.org/rfc/rfc6052#section-2.1
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    if any(ip in network for network in _NOT_PUBLIC_EITHER):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What Python 3.11 takes for public: protocol assignments, where a cloud had its metadata, former relays, documentation
# (https://www.iana.org/assignments/iana-ipv4-special-registry), and the address at which Azure serves its machines:
# https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
_NOT_PUBLIC_EITHER = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20"))
)


def _connect_one_of(addresses: list[tuple[Any, ...]], *, give_up_at: float) -> socket.socket:
    """A connection to the first address that takes it; one that is silent does not use up the others' time."""
    failure: OSError = TimeoutError("the time is up")
    for position, (family, kind, protocol, _, address) in enumerate(addresses):
        left_s = give_up_at - monotonic()
        if left_s <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left_s / (len(addresses) - position))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _addresses(host: str, port: int, *, within_s: float) -> list[tuple[Any, ...]]:
    """Where `host` is to be found. Raises OSError (gaierror, TimeoutError).

    The system's resolver takes no timeout and cannot be interrupted: it is asked in a thread that may end later.
    """
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: queue.SimpleQueue[list[tuple[Any, ...]] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.put(error)
        except ValueError as error:  # a name that no host can have
            found.put(socket.gaierror(socket.EAI_NONAME, str(error)))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        told = found.get(timeout=max(within_s, 0.001))
    except queue.Empty:
        raise TimeoutError("the name was not resolved in time") from None
    if isinstance(told, OSError):
        raise told
    return told


def _why_not_sent(error: Exception) -> str:
    for kind, why in (
        (socket.gaierror, "its host name is not known"),
        (NotPublic, "its address is not on the public internet"),
        (ssl.SSLError, "its certificate or TLS is not to be trusted"),
        (ConnectionRefusedError, "the connection was refused"),
        (TimeoutError, "no connection in time"),
        (OSError, "no connection"),
    ):
        if isinstance(error, kind):
            return why
    return "the request cannot be written"


def _why_no_answer(error: Exception) -> str:
    return "no whole answer in time" if isinstance(error, TimeoutError) else "the connection broke"
