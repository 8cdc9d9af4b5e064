"""What the clients of other people's HTTP APIs share: sessions that keep to themselves, and time that really ends.

`exchange` is one request and its whole answer within a hard deadline. It tells exactly whether any byte of the request
was written (NotSent: none; NoAnswer: perhaps all), because a program without idempotency may be asked again only after
the first. urllib3 cannot say that by its exceptions alone, and its read timeout is for each piece, so that an answer
which drips would never end; hence connections of our own, at the places urllib3 leaves for them. Nothing here knows
what is asked, or of whom.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPException, HTTPResponse, IncompleteRead
from http.cookiejar import DefaultCookiePolicy
from io import BufferedReader, RawIOBase
from ssl import SSLError
from time import monotonic
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

from threads import aside

PIECE = 65_536  # bytes
MAX_BODY = 2 * 1024 * 1024
CONNECT_S = 5.0  # name, connection and TLS; less when less is left
# Idle for longer, a connection may have been forgotten on the way without a word; a new one costs less than that.
MAX_IDLE_S = 15.0

# Its lines quote whole paths, and ours hold e-mail addresses.
logging.getLogger("urllib3").setLevel(logging.ERROR)


class NotSent(Exception):
    """No byte of the request was written. The text says why, for an operator."""


class NoAnswer(Exception):
    """The request may have been written, wholly or in part, and no whole answer came in time. The text says more."""


class TooLarge(Exception):
    """An answer came whose body is larger than MAX_BODY."""


class NotPublic(OSError):
    """The host is to be found at an address that is not on the public internet."""


class Answer:
    """A whole answer. `ended` says that its end was announced: by a length, by chunks, or by a status without body."""

    def __init__(self, response: requests.Response, body: bytes) -> None:
        headers = response.headers
        self.status = response.status_code
        self.reason = response.reason or ""
        self.headers: Mapping[str, str] = headers
        self.body = body
        self.ended = self.status in (204, 304) or "Content-Length" in headers or "Transfer-Encoding" in headers


def keep_to_itself(session: requests.Session) -> requests.Session:
    """`session`, with no proxies or netrc from the environment and no cookies."""
    session.trust_env = False
    # One session serves many accounts: a cookie of one must never reach another.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


def make_exact(session: requests.Session, base_url: str) -> None:
    """Make `session` good for `exchange` with everything under `base_url`, over connections of their own."""
    if not isinstance(session.get_adapter(base_url), DeadlineAdapter):
        session.mount(base_url, DeadlineAdapter(max_retries=0, pool_maxsize=64))


def read_body(response: requests.Response, *, within_s: float) -> bytes:
    """At most one byte more than MAX_BODY. Raises requests' and urllib3's errors.

    The read timeout is for each piece: a body that drips would otherwise hold the caller, and its lease, for ever.
    """
    give_up_at = monotonic() + within_s
    content = b""
    # read1 gives what is there; read and stream would wait for a whole piece.
    while len(content) <= MAX_BODY and (piece := response.raw.read1(PIECE, decode_content=True)):
        content += piece
        if monotonic() > give_up_at:
            raise requests.ReadTimeout("the body did not come to an end")
    return content[: MAX_BODY + 1]


@aside()
def exchange(
    session: requests.Session,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    within_s: float,
    public_only: bool = False,
) -> Answer:
    """One request and its whole answer, of any status. Never repeated, never redirected; when this returns or raises,
    nothing of it goes on. With `public_only` it connects to nothing but addresses on the public internet: what is
    checked is the very address that is connected to, so that a name cannot come to mean another one in between.

    Only a GET may use a connection that is already open; one that turns out to be closed by then is asked again at
    once on a new one. Raises NotSent, NoAnswer or TooLarge, none of which knows the headers or the address.
    """
    adapter = session.get_adapter(url)
    if not isinstance(adapter, DeadlineAdapter):
        raise TypeError("exchange needs a session that make_exact has prepared")
    attempt = _Attempt(within_s=within_s, fresh=public_only or method != "GET", public_only=public_only)
    verify = True if session.verify is None else session.verify
    failure: Exception
    try:
        prepared = requests.Request(method, url, headers=dict(headers), data=body).prepare()
        try:
            return _send(adapter, prepared, attempt=attempt, verify=verify)
        except _FAILURES:
            if not attempt.found_closed:
                raise
        attempt.begin_again()
        return _send(adapter, prepared, attempt=attempt, verify=verify)
    except _FAILURES as error:
        failure = NoAnswer(_why_no_answer(error)) if attempt.sent else NotSent(_why_not_sent(error))
    # Raised here and not there: requests' own errors hold the request with its headers.
    raise failure


# All that requests, urllib3, http.client and the socket raise. ValueError: what they think of an odd header or address.
_FAILURES = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError)


class _Attempt:
    """How far one exchange has come."""

    def __init__(self, *, within_s: float, fresh: bool, public_only: bool = False) -> None:
        self._ends_at = monotonic() + within_s
        self.fresh = fresh
        self.public_only = public_only
        self.reused = False
        self.sent = False
        self.heard = False

    def left_s(self) -> float:
        """What is left of its time. Raises TimeoutError when nothing is."""
        left_s = self._ends_at - monotonic()
        if left_s <= 0:
            raise TimeoutError("the time is up")
        return left_s

    @property
    def found_closed(self) -> bool:
        """Whether it was written to a kept connection that the other side had closed, or closed without a word."""
        return self.reused and self.sent and not self.heard and self._ends_at > monotonic()

    def begin_again(self) -> None:
        self.fresh = True
        self.reused = self.sent = False


_CURRENT: ContextVar[_Attempt] = ContextVar("attempt")


@contextmanager
def _making(attempt: _Attempt) -> Iterator[None]:
    token = _CURRENT.set(attempt)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _send(
    adapter: DeadlineAdapter, prepared: requests.PreparedRequest, *, attempt: _Attempt, verify: bool | str
) -> Answer:
    """Straight to the adapter: a session would look at redirects even where they are not followed, and may fail there
    after the answer has come."""
    left_s = attempt.left_s()
    with _making(attempt):
        response = adapter.send(prepared, stream=True, timeout=left_s, verify=verify)
    with response:
        content = read_body(response, within_s=left_s)
        if len(content) > MAX_BODY:
            raise TooLarge("the answer is too large")
        return Answer(response, content)


class _TimedReader(RawIOBase):
    """What a socket gives, each piece within what is left of the whole exchange's time."""

    def __init__(self, raw: RawIOBase, sock: socket.socket, attempt: _Attempt) -> None:
        self._raw = raw
        self._sock = sock
        self._attempt = attempt
        self.at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int | None:
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


class _TimedResponse(HTTPResponse):
    """http.client's response, head and body read through a _TimedReader."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._reader = _TimedReader(self.fp.detach(), sock, _CURRENT.get())
        self.fp = BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if self._reader.at_end:
            # http.client takes the end of the connection for the end of the head.
            raise IncompleteRead(b"")


class _Connection(HTTPConnection):
    """Connects, writes and reads within the time of the current attempt, and notes in it what was done."""

    response_class = _TimedResponse
    kept_at = 0.0

    def _new_conn(self) -> socket.socket:
        return _connect(self)

    def send(self, data: Any) -> None:
        attempt = _CURRENT.get()
        if self.sock is None:
            self.connect()
        self.sock.settimeout(attempt.left_s())
        attempt.sent = True
        super().send(data)


class _TlsConnection(_Connection, HTTPSConnection):
    """The same with TLS; its handshake has the timeout that `_connect` leaves on the socket."""


def _connect(connection: HTTPConnection) -> socket.socket:
    """A connected socket, with what is left for TLS as its timeout. Raises urllib3's errors, as its own would."""
    attempt = _CURRENT.get()
    try:
        give_up_at = monotonic() + min(attempt.left_s(), CONNECT_S)
        addresses = _addresses(connection._dns_host, connection.port, within_s=give_up_at - monotonic())
        if attempt.public_only and not all(is_public(address[4][0]) for address in addresses):
            raise NotPublic("not a public address")
        sock = _connect_one_of(addresses, give_up_at=give_up_at)
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, "no connection in time") from error
    except OSError as error:
        raise NewConnectionError(connection, f"no connection: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(max(give_up_at - monotonic(), 0.001))
    return sock


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


class _Pool(HTTPConnectionPool):
    """Gives a kept connection to those only who may have one, and none that was idle for long."""

    ConnectionCls = _Connection

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = cast(_Connection, super()._get_conn(timeout))
        attempt = _CURRENT.get()
        if attempt.fresh or monotonic() - connection.kept_at > MAX_IDLE_S:
            connection.close()
        attempt.reused = not connection.is_closed
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.kept_at = monotonic()
        super()._put_conn(conn)


class _TlsPool(_Pool, HTTPSConnectionPool):
    """The same with TLS."""

    ConnectionCls = _TlsConnection


class DeadlineAdapter(HTTPAdapter):
    """requests' adapter over connections that keep to the time of the exchange."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


def _why_not_sent(error: Exception) -> str:
    causes = list(_causes(error))
    for kind, why in (
        (NameResolutionError, "its host name is not known"),
        (NotPublic, "its address is not on the public internet"),
        (SSLError, "its certificate or TLS is not to be trusted"),
        (ConnectionRefusedError, "the connection was refused"),
        ((ConnectTimeoutError, TimeoutError), "no connection in time"),
        (OSError, "no connection"),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return why
    return "the request cannot be written"


def _why_no_answer(error: Exception) -> str:
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in _causes(error)):
        return "no whole answer in time"
    return "the connection broke"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what led to it; requests and urllib3 put the latter into arguments and `reason` as well."""
    for _ in range(10):
        if error is None:
            return
        yield error
        inner = [part for part in error.args if isinstance(part, BaseException)]
        reason = getattr(error, "reason", None)
        if isinstance(reason, BaseException):
            inner.append(reason)
        error = inner[0] if inner else error.__cause__ or error.__context__
