"""The REST client: patience, paging, bounds, and what each kind of trouble is called."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests

import oauth.gorgias_api
from oauth.gorgias_api import (
    AccessToken,
    GorgiasApi,
    GorgiasError,
    GorgiasReason,
    InvalidGrant,
    TokenEndpoint,
    new_session,
    origin_of,
)
from oauth.wire import SCOPES
from outbound import MAX_BODY
from sandbox import Sandbox
from tests.oauth.scripted import Answer, Scripted


class Client:
    """A client of its own, and how long it waited."""

    def __init__(self, base: str, *, token: str = "opaque", session: requests.Session | None = None) -> None:
        self.waited: list[float] = []
        self.renewed = 0
        self.token = token

        def source(*, rejected: AccessToken | None = None) -> AccessToken:
            self.renewed += rejected is not None
            return AccessToken(value=self.token)

        self.session = session or new_session()
        self.api = GorgiasApi(base, token=source, session=self.session, sleep=self.waited.append)


def failed(client: Client, method: str = "get", path: str = "/api/account", *arguments: Any) -> GorgiasError:
    with pytest.raises(GorgiasError) as caught:
        getattr(client.api, method)(path, *arguments)
    return caught.value


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(accounts=("acme", "globex"), calls_per_20_s=10_000) as running:
        yield running


@pytest.fixture
def gorgias(sandbox: Sandbox) -> Iterator[Client]:
    """A client of the sandbox's account acme."""
    token = sandbox.access_token("acme", scope=" ".join([*SCOPES, "customers:read"]))
    client = Client(f"{sandbox.url}/acme", token=token)
    with client.session:
        yield client


@pytest.fixture
def odd(scripted: Scripted) -> Iterator[Client]:
    """A client of the scripted server."""
    client = Client(scripted.url)
    with client.session:
        yield client


def test_a_429_is_waited_out_for_as_long_as_gorgias_says(sandbox: Sandbox, gorgias: Client) -> None:
    sandbox.faults.add(r"/api/account", kind="rate_limited", retry_after=3, times=2)
    assert gorgias.api.get("/api/account")["domain"] == "acme"
    assert gorgias.waited == [3, 3]


def test_a_429_to_a_post_is_waited_out_too_because_nothing_was_done(sandbox: Sandbox, gorgias: Client) -> None:
    sandbox.faults.add(r"/api/macros", kind="rate_limited", retry_after=2)
    body = {"name": "Points", "actions": [{"name": "setResponseText", "arguments": {}}]}
    assert gorgias.api.post("/api/macros", body)["name"] == "Points"
    assert gorgias.waited == [2]
    assert len(sandbox.helpdesk("acme").macros()) == 1


def test_patience_ends_with_the_reason_and_the_time_to_wait(sandbox: Sandbox, gorgias: Client) -> None:
    sandbox.faults.add(r"/api/account", kind="rate_limited", retry_after=5, times=None)
    error = failed(gorgias)
    assert (error.reason, error.status, error.retry_after_s) == (GorgiasReason.BUSY, 429, 5.0)
    assert gorgias.waited == [5]
    assert gorgias.renewed == 0


def test_a_wait_beyond_patience_is_not_begun(sandbox: Sandbox, gorgias: Client) -> None:
    sandbox.faults.add(r"/api/account", kind="rate_limited", retry_after=20, times=None)
    assert failed(gorgias).retry_after_s == 20
    assert gorgias.waited == []
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("header", [None, "", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "0", "-5", "1e-9"])
def test_without_a_useful_number_a_second_is_waited(scripted: Scripted, odd: Client, header: str | None) -> None:
    headers = {} if header is None else {"Retry-After": header}
    scripted.answers = [Answer(status=429, headers=headers), Answer(body=b'{"domain": "acme"}')]
    assert odd.api.get("/api/account") == {"domain": "acme"}
    assert odd.waited == [1.0]


@pytest.mark.parametrize("header", ["nan", "inf", "1e9", "99999999999999999999"])
def test_an_absurd_wait_is_never_begun(scripted: Scripted, odd: Client, header: str) -> None:
    scripted.answers = [Answer(status=429, headers={"Retry-After": header})]
    assert failed(odd).reason is GorgiasReason.BUSY
    assert odd.waited == []


def test_lists_are_read_page_by_page_to_their_end(
    sandbox: Sandbox, gorgias: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth.gorgias_api, "PAGE_SIZE", 3)
    made = [sandbox.helpdesk("acme").create_customer(f"Customer {n}", f"c{n}@example.com")["id"] for n in range(7)]
    found = [customer["id"] for customer in gorgias.api.list("/api/customers", order_by="created_datetime:asc")]
    assert found == made
    calls = sandbox.requests.filter(path="/api/customers")
    assert [("cursor" in call.query, call.query["limit"]) for call in calls] == [(False, "3"), (True, "3"), (True, "3")]


def test_a_list_that_never_ends_is_given_up(scripted: Scripted, odd: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth.gorgias_api, "MAX_PAGES", 4)
    scripted.answers = [Answer(body=b'{"data": [{"id": 1}], "meta": {"next_cursor": "again"}}')]
    with pytest.raises(GorgiasError) as caught:
        list(odd.api.list("/api/macros"))
    assert caught.value.reason is GorgiasReason.BROKEN
    assert len(scripted.seen) == 4


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{}", b'{"data": {}}', b'{"data": null}'])
def test_a_list_in_another_shape_is_broken(scripted: Scripted, odd: Client, body: bytes) -> None:
    scripted.answers = [Answer(body=body)]
    with pytest.raises(GorgiasError) as caught:
        list(odd.api.list("/api/macros"))
    assert caught.value.reason is GorgiasReason.BROKEN


@pytest.mark.parametrize("meta", [b"null", b"[]", b'{"next_cursor": null}', b"{}"])
def test_a_page_without_a_next_one_is_the_last(scripted: Scripted, odd: Client, meta: bytes) -> None:
    scripted.answers = [Answer(body=b'{"data": [{"id": 1}, null, 7], "meta": ' + meta + b"}")]
    assert list(odd.api.list("/api/macros")) == [{"id": 1}]


def test_a_body_beyond_the_bound_is_not_taken_in(scripted: Scripted, odd: Client) -> None:
    fits = b'"' + b"x" * (MAX_BODY - 2) + b'"'
    scripted.answers = [Answer(body=fits)]
    assert len(odd.api.get("/api/account")) == MAX_BODY - 2
    scripted.answers = [Answer(body=fits + b" ")]
    error = failed(odd)
    assert (error.reason, str(error)) == (GorgiasReason.BROKEN, "Gorgias' answer is too large.")


def test_a_compressed_body_is_measured_unpacked(scripted: Scripted, odd: Client) -> None:
    small = gzip.compress(b'{"domain": "acme"}')
    bomb = gzip.compress(b'"' + b"x" * 50 * 1024 * 1024 + b'"')
    scripted.answers = [Answer(headers={"Content-Encoding": "gzip"}, body=small)]
    assert odd.api.get("/api/account") == {"domain": "acme"}
    scripted.answers = [Answer(headers={"Content-Encoding": "gzip"}, body=bomb)]
    assert failed(odd).reason is GorgiasReason.BROKEN


def test_a_get_is_tried_again_on_503(sandbox: Sandbox, gorgias: Client) -> None:
    sandbox.faults.add(r"/api/account", kind="status", status=503, times=2)
    assert gorgias.api.get("/api/account")["domain"] == "acme"
    assert [call.status for call in sandbox.requests] == [503, 503, 200]


def test_a_get_is_tried_again_once_on_a_broken_connection(sandbox: Sandbox, gorgias: Client) -> None:
    sandbox.faults.add(r"/api/account", kind="reset_before")
    assert gorgias.api.get("/api/account")["domain"] == "acme"
    sandbox.faults.add(r"/api/account", kind="reset_before", times=None)
    assert failed(gorgias).reason is GorgiasReason.UNREACHABLE


@pytest.mark.parametrize("kind", ["status", "reset_before", "reset_after", "truncated", "html"])
@pytest.mark.parametrize("method", ["post", "put"])
def test_a_write_is_never_sent_twice(sandbox: Sandbox, gorgias: Client, method: str, kind: str) -> None:
    body = {"name": "Points", "actions": [{"name": "setResponseText", "arguments": {}}]}
    path = "/api/macros"
    if method == "put":
        path = f"/api/macros/{gorgias.api.post(path, body)['id']}"
    sandbox.requests.clear()
    sandbox.faults.add(path, kind=kind, status=503, times=None)
    error = failed(gorgias, method, path, body)
    assert error.reason is (GorgiasReason.BROKEN if kind == "html" else GorgiasReason.UNREACHABLE)
    assert len(sandbox.requests) == 1


def test_a_slow_answer_is_not_waited_for_longer_than_the_bound(
    sandbox: Sandbox, gorgias: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth.gorgias_api, "TIMEOUTS_S", (0.5, 0.2))
    sandbox.faults.add(r"/api/account", kind="slow", seconds=1.0, times=None)
    assert failed(gorgias).reason is GorgiasReason.UNREACHABLE


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, GorgiasReason.REFUSED),
        (403, GorgiasReason.FORBIDDEN),
        (404, GorgiasReason.NOT_FOUND),
        (409, GorgiasReason.CONFLICT),
        (413, GorgiasReason.REFUSED),
        (418, GorgiasReason.REFUSED),
        (500, GorgiasReason.UNREACHABLE),
    ],
)
def test_each_status_has_its_reason(sandbox: Sandbox, gorgias: Client, status: int, reason: GorgiasReason) -> None:
    sandbox.faults.add(r"/api/account", kind="status", status=status, times=None)
    error = failed(gorgias)
    assert (error.reason, error.status) == (reason, status)
    assert str(error) == f"Gorgias answered {status} (Something went wrong.)."


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"error": {"msg": "No such scope.", "data": {}}}', "Gorgias answered 400 (No such scope.)."),
        (b'{"error": "Bad thing"}', "Gorgias answered 400 (Bad thing)."),
        (b'{"message": "Bad thing"}', "Gorgias answered 400 (Bad thing)."),
        (b'{"error": null}', "Gorgias answered 400."),
        (b'{"error": {}}', "Gorgias answered 400."),
        (b"[]", "Gorgias answered 400."),
        (b"<p>Bad</p>", "Gorgias answered 400."),
        (b"", "Gorgias answered 400."),
        (json.dumps({"error": "x" * 5000}).encode(), f"Gorgias answered 400 ({'x' * 100})."),
    ],
)
def test_gorgias_own_words_are_told_shortly_in_whichever_shape(
    scripted: Scripted, odd: Client, body: bytes, sentence: str
) -> None:
    scripted.answers = [Answer(status=400, body=body)]
    assert str(failed(odd)) == sentence


@pytest.mark.parametrize(
    "body", [b"<!doctype html><p>hello</p>", b"{", b"{'a': 1}", b"NaN", b"\xff", b"[" * 100_000, b"ok"]
)
def test_a_good_answer_that_is_not_json_is_broken(scripted: Scripted, odd: Client, body: bytes) -> None:
    scripted.answers = [Answer(body=body)]
    assert failed(odd).reason is GorgiasReason.BROKEN


@pytest.mark.parametrize(("status", "body"), [(200, b""), (202, b" \n"), (201, b"")])
def test_a_good_answer_without_a_body_is_nothing(scripted: Scripted, odd: Client, status: int, body: bytes) -> None:
    scripted.answers = [Answer(status=status, body=body)]
    assert odd.api.put("/api/customers/1/data", {}) is None


def test_deleting_what_is_gone_is_fine_and_finding_it_gives_none(sandbox: Sandbox, gorgias: Client) -> None:
    gorgias.api.delete("/api/macros/424242")
    assert gorgias.api.find("/api/macros/424242") is None
    sandbox.faults.add(r"/api/macros/1", kind="status", status=403, times=2)
    assert failed(gorgias, "delete", "/api/macros/1").reason is GorgiasReason.FORBIDDEN
    assert failed(gorgias, "find", "/api/macros/1").reason is GorgiasReason.FORBIDDEN


def test_no_redirect_is_followed(scripted: Scripted, odd: Client) -> None:
    for status in (301, 302, 303, 307, 308):
        scripted.answers = [Answer(status=status, headers={"Location": f"{scripted.url}/elsewhere"})]
        assert failed(odd).reason is GorgiasReason.BROKEN
        assert failed(odd, "post", "/api/macros", {}).reason is GorgiasReason.BROKEN
    assert {seen.path for seen in scripted.seen} == {"/api/account", "/api/macros"}


def test_no_cookie_is_kept_or_carried_to_another_account(scripted: Scripted) -> None:
    with new_session() as session:
        acme = Client(f"{scripted.url}/acme", session=session, token="of-acme")
        globex = Client(f"{scripted.url}/globex", session=session, token="of-globex")
        scripted.answers = [Answer(headers={"Set-Cookie": "session=acme; Path=/"})]
        for client in (acme, acme, globex):
            client.api.get("/api/account")
        assert len(session.cookies) == 0
    assert [seen.headers.get("Cookie") for seen in scripted.seen] == [None] * 3
    assert [seen.headers["Authorization"] for seen in scripted.seen] == [
        "Bearer of-acme",
        "Bearer of-acme",
        "Bearer of-globex",
    ]


def test_proxies_and_netrc_of_the_environment_see_nothing(
    scripted: Scripted, odd: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    odd.api.get("/api/account")
    assert scripted.seen[0].headers["Authorization"] == "Bearer opaque"


def test_a_token_never_shows_in_a_repr_or_an_error(sandbox: Sandbox, gorgias: Client) -> None:
    assert "secret" not in repr(AccessToken(value="secret"))
    for kind in ("status", "html", "reset_before", "truncated"):
        sandbox.faults.add(r"/api/account", kind=kind, times=3)
        error = failed(gorgias)
        assert gorgias.token not in f"{error!r} {error} {error.__cause__!r}"
        sandbox.faults.clear()


def endpoint(base: str) -> TokenEndpoint:
    return TokenEndpoint(
        base_of=lambda account: f"{base}/{account}",
        client_id="client",
        client_secret="secret",
        redirect_uri="https://loyalty.example.com/oauth/callback",
    )


@pytest.mark.parametrize("status", [200, 400, 401, 403])
def test_invalid_grant_is_known_by_its_word_whatever_the_status(scripted: Scripted, status: int) -> None:
    scripted.answers = [Answer(status=status, body=b'{"error": "invalid_grant"}')]
    with pytest.raises(InvalidGrant):
        endpoint(scripted.url).refresh("acme", refresh_token="r")
    with pytest.raises(InvalidGrant):
        endpoint(scripted.url).exchange("acme", code="c")
    endpoint(scripted.url).revoke("acme", token="r")  # gone already is as good as revoked


@pytest.mark.parametrize("status", [429, 500, 503])
def test_invalid_grant_in_the_midst_of_trouble_is_not_believed(scripted: Scripted, status: int) -> None:
    scripted.answers = [Answer(status=status, body=b'{"error": "invalid_grant"}')]
    with pytest.raises(GorgiasError):
        endpoint(scripted.url).refresh("acme", refresh_token="r")


@pytest.mark.parametrize("body", [b"", b"{}", b"null"])
def test_revoking_may_be_answered_with_nothing(scripted: Scripted, body: bytes) -> None:
    scripted.answers = [Answer(body=body)]
    endpoint(scripted.url).revoke("acme", token="r")
    [seen] = scripted.seen
    assert (seen.method, seen.path) == ("POST", "/acme/oauth/revoke")
    assert seen.headers["Authorization"].startswith("Basic ")
    assert seen.body == b"token=r"


@pytest.mark.parametrize("header", ["5", None])
def test_a_busy_token_endpoint_says_so(scripted: Scripted, header: str | None) -> None:
    scripted.answers = [Answer(status=429, headers={"Retry-After": header} if header else {}, body=b"slow down")]
    with pytest.raises(GorgiasError) as caught:
        endpoint(scripted.url).refresh("acme", refresh_token="r")
    assert caught.value.reason is GorgiasReason.BUSY
    assert caught.value.retry_after_s == (5.0 if header else None)


def test_an_origin_is_scheme_host_and_port() -> None:
    assert origin_of("https://acme.gorgias.com/api/account?x=1") == "https://acme.gorgias.com"
    assert origin_of("http://localhost:4000/acme") == "http://localhost:4000"


def test_an_answer_that_drips_is_not_waited_for_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time for the read timeout; all of them together would outlive every lease."""
    monkeypatch.setattr("oauth.gorgias_api.BODY_S", 0.2)
    stop = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            with suppress(OSError):
                while not stop.wait(0.02):
                    connection.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listening, new_session() as session:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        api = GorgiasApi(
            f"http://127.0.0.1:{listening.getsockname()[1]}",
            token=lambda *, rejected=None: AccessToken(value="t"),
            session=session,
            sleep=time.sleep,
        )
        began = time.monotonic()
        with pytest.raises(GorgiasError) as caught:
            api.post("/api/macros", {})
        stop.set()
        thread.join()
    assert caught.value.reason is GorgiasReason.UNREACHABLE
    assert time.monotonic() - began < 10, "the whole body would have taken half an hour"
