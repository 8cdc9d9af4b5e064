"""One exchange: whether anything was written, and that its time really ends."""

from __future__ import annotations

import gzip
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import outbound
from outbound import Answer, Client, NoAnswer, NotSent, TooLarge
from tests.rivo.raw import Handler, Peer, Raw, always, answer

WITHIN_S = 0.4
# A quiet machine is late by milliseconds; a busy one may not run us at once. Without an end it would be minutes.
LATE_S = 3.0
LONG_S = 20.0


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def ask(
    client: Client,
    url: str,
    *,
    method: str = "GET",
    within_s: float = LONG_S,
    path: str = "/customers/ana%40example.com",
) -> Answer:
    return client.exchange(
        method,
        url + path,
        headers={"Authorization": "s3cret"},
        body=None if method == "GET" else b"points_amount=5",
        within_s=within_s,
    )


def drip_the_body(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    peer.drip([b"1"] * 10_000, every_s=0.02)


def drip_the_head(peer: Peer) -> None:
    peer.request()
    peer.drip([bytes([c]) for c in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000], every_s=0.02)


def drip_chunks(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.drip([b"1\r\na\r\n"] * 10_000, every_s=0.02)


def keep_promising(peer: Peer) -> None:
    peer.request()
    peer.drip([b"HTTP/1.1 100 Continue\r\n\r\n"] * 10_000, every_s=0.02)


def say_nothing(peer: Peer) -> None:
    peer.request()
    peer.wait_until_gone()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("handle", [drip_the_body, drip_the_head, drip_chunks, keep_promising, say_nothing])
def test_an_exchange_ends_on_time_however_the_answer_comes(client: Client, handle: Handler, method: str) -> None:
    with Raw(handle) as server:
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=r"^no whole answer in time$"):
            ask(client, server.url, method=method, within_s=WITHIN_S)
        assert WITHIN_S <= time.monotonic() - began < WITHIN_S + LATE_S
        assert len(server.requests) == 1


def test_the_connection_is_closed_when_the_time_is_up(client: Client) -> None:
    """Whoever looks later for what was done relies on it: the attempt has ended."""
    closed = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.wait_until_gone()
        closed.set()

    with Raw(handle) as server:
        with pytest.raises(NoAnswer):
            ask(client, server.url, method="POST", within_s=WITHIN_S)
        gave_up_at = time.monotonic()
        assert closed.wait(10)
        assert server.closed_at[0] < gave_up_at + LATE_S


def break_off(peer: Peer) -> None:
    peer.request()


def reset(peer: Peer) -> None:
    peer.request()
    peer.reset()


def cut_the_head(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 201 Created\r\nContent-")


def cut_the_body(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{}")


def cut_a_chunk(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}")


def leave_out_the_last_chunk(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")


def talk_nonsense(peer: Peer) -> None:
    peer.request()
    peer.say(b"\x00\x01\x02 hello\r\n\r\n")


def lie_about_the_encoding(peer: Peer) -> None:
    peer.request()
    peer.say(answer("200 OK", b"not gzip at all", "Content-Encoding: gzip"))


def promise_and_break_off(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def say_a_length_that_is_none(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}")


def say_it_all_in_one_chunk_of_no_size(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n")


def say_it_in_a_chunk_of_a_size_beyond_numbers(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-ffffffffffffffffffffffff\r\n{}\r\n0\r\n\r\n")


def send_it_in_an_unknown_way(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


def pack_two_in_one(peer: Peer) -> None:
    peer.request()
    peer.say(answer("200 OK", gzip.compress(b"one") + gzip.compress(b"two"), "Content-Encoding: gzip"))


def say_two_lengths(peer: Peer) -> None:
    peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\n{}")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "handle",
    [
        break_off,
        reset,
        cut_the_head,
        cut_the_body,
        cut_a_chunk,
        leave_out_the_last_chunk,
        talk_nonsense,
        lie_about_the_encoding,
        say_two_lengths,
        say_a_length_that_is_none,
        promise_and_break_off,
        say_it_all_in_one_chunk_of_no_size,
        say_it_in_a_chunk_of_a_size_beyond_numbers,
        send_it_in_an_unknown_way,
        pack_two_in_one,
    ],
)
def test_an_answer_that_is_not_whole_is_none_and_nothing_is_sent_again(
    client: Client, handle: Handler, method: str
) -> None:
    with Raw(handle) as server:
        with pytest.raises(NoAnswer, match=r"^the connection broke$"):
            ask(client, server.url, method=method)
        assert len(server.requests) == 1


def test_a_server_that_hangs_up_before_it_reads_may_have_got_something(client: Client) -> None:
    def hang_up(peer: Peer) -> None:
        # Something has arrived; a reset before that may strike while the client still connects, which sends nothing.
        peer.connection.recv(1, socket.MSG_PEEK)
        peer.reset()

    with Raw(hang_up) as server, pytest.raises(NoAnswer):
        ask(client, server.url, method="POST")


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def test_a_refused_connection_sent_nothing(client: Client) -> None:
    with pytest.raises(NotSent, match=r"^the connection was refused$"):
        ask(client, f"http://127.0.0.1:{refused_port()}", method="POST")


def test_an_unknown_host_sent_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NotSent, match=r"^its host name is not known$"):
        ask(client, "http://no-such-host.invalid", method="POST")


def test_an_impossible_host_sent_nothing(client: Client) -> None:
    with pytest.raises(NotSent):
        ask(client, f"http://{'a' * 70}.example", method="POST")


def test_a_resolver_that_does_not_answer_sent_nothing_in_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(60) and [])
    began = time.monotonic()
    try:
        with pytest.raises(NotSent, match=r"^no connection in time$"):
            ask(client, "http://slow-name.invalid", method="POST", within_s=WITHIN_S)
    finally:
        over.set()
    assert time.monotonic() - began < WITHIN_S + LATE_S


@contextmanager
def silent_port() -> Iterator[int]:
    """A port with a full backlog: the kernel leaves further connections without an answer."""
    with socket.socket() as listening, ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def test_a_connection_that_is_not_taken_in_time_sent_nothing(client: Client) -> None:
    with silent_port() as port:
        began = time.monotonic()
        with pytest.raises(NotSent, match=r"^no connection in time$"):
            ask(client, f"http://127.0.0.1:{port}", method="POST", within_s=WITHIN_S)
        assert time.monotonic() - began < WITHIN_S + LATE_S


def test_addresses_that_are_silent_or_refuse_leave_time_for_the_next(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    with Raw(always(answer())) as server, silent_port() as silent:
        ports = (refused_port(), silent, server.port)
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, port, **kwargs: [found for each in ports for found in resolve("127.0.0.1", each, **kwargs)],
        )
        assert ask(client, f"http://three-addresses.invalid:{server.port}", within_s=4.0).status == 200


def test_tls_that_does_not_come_about_sent_nothing(client: Client) -> None:
    with Raw(lambda peer: peer.wait_until_gone()) as server:
        url = server.url.replace("http://", "https://")
        began = time.monotonic()
        with pytest.raises(NotSent, match=r"^no connection in time$"):
            ask(client, url, method="POST", within_s=WITHIN_S)
        assert time.monotonic() - began < WITHIN_S + LATE_S


def test_a_server_without_tls_was_sent_nothing(client: Client) -> None:
    with Raw(lambda peer: peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        url = server.url.replace("http://", "https://")
        with pytest.raises(NotSent):
            ask(client, url, method="POST")
        assert server.requests == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "here.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def trusting(certificate: Path) -> Iterator[Client]:
    """A client that believes the certificate."""
    client = Client(trusted=str(certificate))
    yield client
    client.close()


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_that_nobody_vouches_for_was_sent_nothing(client: Client, tls: ssl.SSLContext) -> None:
    with Raw(always(answer()), tls=tls) as server:
        with pytest.raises(NotSent, match=r"^its certificate or TLS is not to be trusted$"):
            ask(client, server.url, method="POST")
        assert server.requests == []


def test_the_same_holds_over_tls(trusting: Client, tls: ssl.SSLContext) -> None:
    with Raw(always(answer()), tls=tls) as server:
        for _ in range(3):
            assert ask(trusting, server.url).status == 200
        assert ask(trusting, server.url, method="POST").status == 200
        assert server.connections == 2, "three reads share one connection, a write has its own"


@pytest.mark.parametrize("handle", [drip_the_body, drip_the_head, say_nothing])
def test_time_ends_over_tls_too(trusting: Client, tls: ssl.SSLContext, handle: Handler) -> None:
    with Raw(handle, tls=tls) as server:
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=r"^no whole answer in time$"):
            ask(trusting, server.url, method="POST", within_s=WITHIN_S)
        assert time.monotonic() - began < WITHIN_S + LATE_S


def answer_once_then_break_off(peer: Peer) -> None:
    """Keeps the connection, as far as the client can tell, and drops it on the next request."""
    peer.request()
    peer.say(answer())
    peer.request()


def test_a_read_on_a_kept_connection_that_has_died_is_asked_again_on_a_new_one(client: Client) -> None:
    with Raw(answer_once_then_break_off) as server:
        assert ask(client, server.url).status == 200
        assert ask(client, server.url).status == 200
        assert server.connections == 2
        assert len(server.requests) == 3


def test_an_answer_that_was_packed_unasked_is_unpacked_and_no_larger_than_any_other(client: Client) -> None:
    packed = gzip.compress(b"x" * outbound.MAX_BODY)
    with Raw(always(answer("200 OK", packed, "Content-Encoding: gzip"))) as server:
        assert len(ask(client, server.url).body) == outbound.MAX_BODY
        server.handle = always(
            answer("200 OK", gzip.compress(b"x" * (outbound.MAX_BODY + 1)), "Content-Encoding: gzip")
        )
        with pytest.raises(TooLarge):
            ask(client, server.url, method="POST")
        server.handle = always(answer("200 OK", packed[:-20], "Content-Encoding: gzip"))
        with pytest.raises(NoAnswer):
            ask(client, server.url, method="POST")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http:///customers", "//127.0.0.1", "http://127.0.0.1:port"])
def test_what_is_no_address_of_the_web_sent_nothing(client: Client, url: str) -> None:
    with pytest.raises(NotSent, match=r"^the request cannot be written$"):
        ask(client, url, path="")


def test_a_host_is_named_to_its_server_as_it_was_asked_for(client: Client) -> None:
    with Raw(always(answer())) as server:
        ask(client, server.url, path="")
        ask(client, server.url, path="/a%20b?c=d%26e")
        assert server.requests[0].startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.port)
        assert server.requests[1].startswith(b"GET /a%20b?c=d%26e HTTP/1.1\r\n")


def test_a_read_on_a_new_connection_is_not_asked_again(client: Client) -> None:
    def handle(peer: Peer) -> None:
        if server.connections == 1:
            answer_once_then_break_off(peer)
        else:
            peer.request()

    with Raw(handle) as server:
        assert ask(client, server.url).status == 200
        with pytest.raises(NoAnswer):
            ask(client, server.url)
        assert server.connections == 2
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON",
        b"HTTP/1.1 204 No Content\r\n\r\n" + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 3\r\n\r\nbye",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" + b"x" * 30_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_what_comes_after_an_answer_is_no_answer_to_the_next_question(client: Client, more: bytes) -> None:
    """One connection serves the stores of many merchants."""

    def handle(peer: Peer) -> None:
        while request := peer.request():
            first = len(server.requests) == 1
            peer.say(more if first else answer(body=request.split(b" ")[1]))

    with Raw(handle) as server:
        assert ask(client, server.url, path="/first").status in (200, 204)
        assert ask(client, server.url, path="/second").body == b"/second"
        assert server.connections == 2


def test_what_comes_later_without_being_asked_for_is_no_answer_either(client: Client) -> None:
    said = threading.Event()

    def handle(peer: Peer) -> None:
        while request := peer.request():
            peer.say(answer(body=request.split(b" ")[1]))
            if len(server.requests) == 1:
                peer.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 3\r\n\r\nbye")
                said.set()

    with Raw(handle) as server:
        ask(client, server.url, path="/first")
        assert said.wait(10)
        assert ask(client, server.url, path="/second").body == b"/second"
        assert server.connections == 2


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_nothing_at_all_may_be_packed_in_any_way(client: Client, encoding: str) -> None:
    with Raw(always(answer("200 OK", b"", f"Content-Encoding: {encoding}"))) as server:
        told = ask(client, server.url, method="POST")
        assert (told.status, told.body, told.ended) == (200, b"", True)


def test_who_asks_for_the_end_of_the_connection_keeps_none(client: Client) -> None:
    with Raw(always(answer())) as server:
        for _ in range(2):
            client.exchange("GET", server.url, headers={"Connection": "close"}, within_s=LONG_S)
        assert server.connections == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_write_never_meets_a_kept_connection(client: Client, method: str) -> None:
    with Raw(answer_once_then_break_off) as server:
        assert ask(client, server.url).status == 200
        assert ask(client, server.url, method=method).status == 200
        assert server.connections == 2
        assert len(server.requests) == 2


def test_a_connection_that_was_idle_for_long_is_not_used_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with Raw(always(answer())) as server:
        ask(client, server.url)
        monkeypatch.setattr(outbound, "MAX_IDLE_S", -1.0)
        ask(client, server.url)
        assert server.connections == 2


def test_many_threads_share_the_connections(client: Client) -> None:
    with Raw(always(answer())) as server:
        failed: list[BaseException] = []

        def run(method: str) -> None:
            try:
                for _ in range(20):
                    assert ask(client, server.url, method=method).status == 200
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(method,)) for method in ["GET", "POST"] * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert len(server.requests) == 160


@pytest.mark.parametrize("location", ["/elsewhere", "http://", "https://[", "//\x80", "http://127.0.0.1:1/"])
def test_a_redirect_is_an_answer_and_is_not_followed(client: Client, location: str) -> None:
    with Raw(always(answer("302 Found", b"", f"Location: {location}", "Set-Cookie: a=b"))) as server:
        assert ask(client, server.url, method="POST").status == 302
        assert ask(client, server.url).status == 302
        assert len(server.requests) == 2
        assert not any(b"ookie" in request for request in server.requests)


def test_the_environment_has_no_say(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{refused_port()}")
    with Raw(always(answer())) as server:
        assert ask(client, server.url).status == 200
        assert re.findall(rb"(?m)^Authorization: (.*)\r$", server.requests[0]) == [b"s3cret"]


def test_a_body_may_be_two_mebibytes_and_no_larger(client: Client) -> None:
    with Raw(always(answer(body=b"x" * outbound.MAX_BODY))) as server:
        assert len(ask(client, server.url).body) == outbound.MAX_BODY
        server.handle = always(answer(body=b"x" * (outbound.MAX_BODY + 1)))
        with pytest.raises(TooLarge):
            ask(client, server.url, method="POST")


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        (b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 201 Created\r\n\r\n", False),
        (b"HTTP/1.1 201 Created\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_an_empty_body_that_was_announced_is_told_from_one_that_may_be_cut(
    client: Client, said: bytes, ended: bool
) -> None:
    def handle(peer: Peer) -> None:
        peer.request()
        peer.say(said)

    with Raw(handle) as server:
        told = ask(client, server.url, method="POST")
        assert (told.body, told.ended) == (b"", ended)


def test_neither_key_nor_address_is_in_an_error_or_a_log_line(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def odd_header(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n bad\r\nno colon here\r\n\r\n{}")

    with Raw(odd_header) as server:
        with pytest.raises(NoAnswer):
            ask(client, server.url)
        server.handle = break_off
        with pytest.raises(NoAnswer) as caught:
            ask(client, server.url, method="POST")
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    told = f"{error!r} {caplog.text}"
    assert "s3cret" not in told
    assert "ana" not in told


def test_no_time_at_all_sends_nothing(client: Client) -> None:
    with Raw(always(answer())) as server:
        with pytest.raises(NotSent, match=r"^no connection in time$"):
            ask(client, server.url, method="POST", within_s=0)
        assert server.requests == []
