"""What is asked of Gorgias and how its answers are read, without I/O."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey

from oauth.wire import (
    ASSUMED_LIFE,
    SCOPES,
    SIGN_IN_SCOPES,
    Identity,
    OAuthRefused,
    Refusal,
    authorize_url,
    read_account,
    read_identity,
    read_tokens,
)

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
ISSUER = "https://acme.gorgias.com"
CLIENT = "60925f8f0f7dd3b3ab1b9f5c"
KEY = OctKey.generate_key(256)


def token(**claims: Any) -> str:
    # Plain base64 and not joserfc's claims: it would refuse to write what a provider may well send.
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "kid": "one"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in [*parts, b"signature"])


def claims(**changes: Any) -> dict[str, Any]:
    usual = {
        "iss": ISSUER,
        "aud": [CLIENT],
        "iat": int(NOW.timestamp()),
        "exp": int((NOW + timedelta(hours=24)).timestamp()),
        "auth_time": int(NOW.timestamp()),
        "nonce": "a-nonce",
        "at_hash": "x",
        "sub": 1001,
        "name": "Ada Okafor",
        "email": "Ada@Acme.example",
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not ...}


def reads(id_token: str | None) -> Identity:
    return read_identity(id_token, issuer=ISSUER, client_id=CLIENT, nonce="a-nonce", now=NOW)


def check_refused(id_token: str | None) -> None:
    with pytest.raises(OAuthRefused) as caught:
        reads(id_token)
    assert caught.value.reason is Refusal.ID_TOKEN_INVALID


ACME = [
    "acme",
    "ACME",
    "  acme \n",
    "acme.gorgias.com",
    "Acme.Gorgias.com",
    "http://acme.gorgias.com",
    "https://acme.gorgias.com",
    "https://acme.gorgias.com/",
    "HTTPS://ACME.GORGIAS.COM/app/tickets?view=1#top",
    "acme.gorgias.com/app/tickets",
    "https://acme.gorgias.com?install=true",
]
OTHERS = {"a": "a", "my-shop-2": "my-shop-2", "x" * 63: "x" * 63, "4ever.gorgias.com": "4ever"}

HOSTILE = [
    "",
    " ",
    ".",
    "-acme",
    "acme-",
    "ac me",
    "ac\nme",
    "acme\nevil",
    "ac_me",
    "x" * 64,
    "evil.com",
    "acme.evil.com",
    "https://evil.com",
    "https://evil.com/acme.gorgias.com",
    "https://evil.com#.gorgias.com",
    "https://evil.com?.gorgias.com",
    "https://evil.com\\.gorgias.com",
    "https://evil",
    "https://localhost/acme",
    "https://127.0.0.1",
    "127.0.0.1",
    "https://[::1]",
    "https://[::1",
    "evil.com/acme.gorgias.com",
    "acme.gorgias.com.evil.com",
    "acme.gorgias.com@evil.com",
    "https://acme.gorgias.com@evil.com/",
    "https://evil.com@acme.gorgias.com/",
    "https://user:password@acme.gorgias.com/",
    "https://acme.gorgias.com:8443/",
    "acme:8443",
    "acme@evil",
    "acme/evil",
    "acme/../evil",
    "//acme.gorgias.com",
    "ftp://acme.gorgias.com",
    "javascript://acme.gorgias.com",
    "https:acme.gorgias.com",
    "acme?x",
    "acme#x",
    "acme%2eevil%2ecom",
    "acme%00",
    "acme\x00",
    "acme\r\nHost: evil.com",
    "https://ac\nme.gorgias.com",
    "https://ac\tme.gorgias.com",
    "{account}",
    "{{account}}",
    "acme.gorgias.com.",
    "acme.gorgias.com.gorgias.com",
    ".gorgias.com",
    "gorgias.com",
    "a.b.gorgias.com",
    "ac\u200bme",
    "аcme",  # a Cyrillic а
    "ａcme",  # a full-width a
    "ac\u0131me",
    "\u212aelvin",  # the Kelvin sign, whose lower case is k
    "acme。gorgias。com",
]


@pytest.mark.parametrize("typed", ACME)
def test_an_account_is_understood_however_it_is_typed(typed: str) -> None:
    assert read_account(typed) == "acme"


@pytest.mark.parametrize(("typed", "name"), OTHERS.items())
def test_every_dns_label_is_an_account(typed: str, name: str) -> None:
    assert read_account(typed) == name


@pytest.mark.parametrize("typed", HOSTILE)
def test_what_is_not_one_label_of_gorgias_is_no_account(typed: str) -> None:
    assert read_account(typed) is None


@given(st.text() | st.from_regex(r"(https?://)?[a-z0-9.@:/\\?#-]*(\.gorgias\.com)?[a-z.@:/\\]*"))
def test_whatever_is_typed_only_a_label_comes_out(typed: str) -> None:
    found = read_account(typed)
    if found is not None:
        url = urlsplit(f"https://{found}.gorgias.com/oauth/authorize")
        assert url.hostname == f"{found}.gorgias.com"
        assert (url.path, url.username, url.port) == ("/oauth/authorize", None, None)
        assert "." not in found
        assert found.isascii()


def test_the_authorize_address_asks_for_exactly_this_and_sends_no_pkce() -> None:
    url = authorize_url(
        ISSUER,
        client_id=CLIENT,
        redirect_uri="https://loyalty.example.com/oauth/callback",
        scopes=tuple(SCOPES),
        state="a-state",
        nonce="a-nonce",
    )
    assert url.startswith("https://acme.gorgias.com/oauth/authorize?")
    assert parse_qs(urlsplit(url).query, strict_parsing=True) == {
        "response_type": ["code"],
        "client_id": [CLIENT],
        "redirect_uri": ["https://loyalty.example.com/oauth/callback"],
        "scope": [" ".join(SCOPES)],
        "state": ["a-state"],
        "nonce": ["a-nonce"],
    }


def test_every_scope_has_a_reason_and_signing_in_asks_for_three() -> None:
    assert all(reason.startswith("to ") for reason in SCOPES.values())
    assert "write:all" not in SCOPES
    assert SIGN_IN_SCOPES == ("openid", "email", "profile")


def test_the_end_of_a_token_is_read_from_the_token_when_expires_in_is_zero() -> None:
    ends = NOW + timedelta(hours=7)
    read = read_tokens({"access_token": token(exp=int(ends.timestamp())), "expires_in": 0}, now=NOW)
    assert read.expires_at == ends
    assert (read.refresh_token, read.id_token, read.scopes) == (None, None, None)


def test_the_tokens_own_end_counts_more_than_expires_in() -> None:
    ends = NOW + timedelta(hours=1)
    assert read_tokens({"access_token": token(exp=ends.timestamp()), "expires_in": 86400}, now=NOW).expires_at == ends


@pytest.mark.parametrize("expires_in", [0, -1, None, "soon", [1], 10**30, 2**63, 1.5, {}])
@pytest.mark.parametrize("access_token", ["opaque", "a.b.c", token(), token(exp="soon"), token(exp=10**30), "e30.e30."])
def test_without_a_readable_end_a_day_less_a_margin_is_assumed(access_token: str, expires_in: Any) -> None:
    read = read_tokens({"access_token": access_token, "expires_in": expires_in}, now=NOW)
    assert read.expires_at == NOW + ASSUMED_LIFE


def test_an_opaque_token_lives_as_long_as_expires_in_says() -> None:
    read = read_tokens({"access_token": "opaque", "expires_in": 3600}, now=NOW)
    assert read.expires_at == NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    "access_token", [None, "", 5, ["x"], {}, "with space", "line\nbreak", "é", "\ud800"], ids=ascii
)
def test_what_cannot_go_into_a_header_is_no_access_token(access_token: Any) -> None:
    with pytest.raises(OAuthRefused) as caught:
        read_tokens({"access_token": access_token}, now=NOW)
    assert caught.value.reason is Refusal.TOKEN_UNREADABLE


def test_a_refresh_token_that_is_null_or_empty_is_none() -> None:
    for given_token in (None, "", 7):
        assert read_tokens({"access_token": "opaque", "refresh_token": given_token}, now=NOW).refresh_token is None


def test_tokens_never_show_in_a_repr() -> None:
    read = read_tokens({"access_token": "secret-1", "refresh_token": "secret-2", "id_token": "secret-3"}, now=NOW)
    assert "secret" not in repr(read)


def test_the_person_is_read_from_the_id_token() -> None:
    who = reads(token(**claims()))
    assert (who.user_id, who.email, who.name) == (1001, "ada@acme.example", "Ada Okafor")


def test_an_id_token_as_joserfc_writes_it_is_read() -> None:
    signed = jwt.encode({"alg": "HS256"}, claims(sub="1001"), KEY)
    assert reads(signed).user_id == 1001


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": CLIENT},
        {"aud": [CLIENT], "azp": CLIENT},
        {"aud": [CLIENT, "another"], "azp": CLIENT},
        {"iss": ISSUER + "/"},
        {"iat": ...},
        {"email": ..., "name": ...},
        {"exp": int(NOW.timestamp()) - 100},  # within what two clocks may differ
        {"iat": int(NOW.timestamp()) + 100},
        {"sub": "1001"},
    ],
    ids=str,
)
def test_an_id_token_is_good(changes: dict[str, Any]) -> None:
    assert reads(token(**claims(**changes))).user_id == 1001


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "another"},
        {"nonce": ...},
        {"nonce": ""},
        {"nonce": None},
        {"nonce": ["a-nonce"]},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": []},
        {"aud": ...},
        {"aud": None},
        {"aud": f"{ISSUER}/api"},
        {"aud": [CLIENT, "another"]},  # several, and azp does not say for whom
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"azp": "another"},
        {"azp": ""},
        {"azp": None},
        {"iss": "https://globex.gorgias.com"},
        {"iss": "https://acme.gorgias.com.evil.com"},
        {"iss": "http://acme.gorgias.com"},
        {"iss": ...},
        {"iss": None},
        {"iss": [ISSUER]},
        {"exp": int(NOW.timestamp()) - 121},
        {"exp": ...},
        {"exp": "later"},
        {"exp": None},
        {"iat": int(NOW.timestamp()) + 3600},
        {"nbf": int(NOW.timestamp()) + 3600},
        {"sub": ...},
        {"sub": "ada"},
        {"sub": ""},
        {"sub": None},
        {"sub": True},
        {"sub": -1},
        {"sub": 1.5},
        {"sub": "1/../2"},
        {"sub": "١٢"},
        {"sub": [1]},
        {"sub": 10**30},
    ],
    ids=str,
)
def test_an_id_token_is_refused(changes: dict[str, Any]) -> None:
    check_refused(token(**claims(**changes)))


@pytest.mark.parametrize("id_token", [None, "", "x", "a.b.c", "e30.e30.e30", "é.é.é", "....", "\ud800"], ids=ascii)
def test_what_is_no_token_is_refused(id_token: str | None) -> None:
    check_refused(id_token)


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: f"e30.{base64.urlsafe_b64encode(raw).decode()}.e"))
def test_no_rubbish_is_ever_taken_for_a_person(id_token: str) -> None:
    check_refused(id_token)


def test_long_names_are_cut_so_that_they_fit_a_cookie() -> None:
    who = reads(token(**claims(name="n" * 5000, email="e" * 5000)))
    assert len(who.name) + len(who.email) < 500
