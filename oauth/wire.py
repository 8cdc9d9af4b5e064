"""Gorgias' OAuth 2 and OpenID Connect on the wire, without I/O: what we ask for and how we read what comes back.

Facts: https://developers.gorgias.com/docs/set-up-oauth2-app-store, https://developers.gorgias.com/docs/oauth2-scopes
and the vendor's demo app, https://github.com/gorgias/appstore-demo-app. PKCE is not documented and so not sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry

# The smallest set that works, each with the reason for it.
SCOPES: Mapping[str, str] = {
    "openid": "to learn who installs or signs in",
    "email": "to name that person as the author of notes",
    "profile": "to greet that person by name",
    "offline": "to stay connected: without it there is no refresh token",
    "account:read": "to check that the tokens belong to the account that was asked for",
    "users:read": "to let only admins change a connection",
    "integrations:read": "to find what we put into Gorgias, and see whether it is still there",
    "integrations:write": "to add the lookup and the sidebar widgets, and to remove them",
    "macros:read": "to find our ready-made macro",
    "macros:write": "to add the ready-made macro, and to remove it",
    "tickets:read": "to see whether a note was posted when its answer was lost",
    "tickets:write": "to leave a note on the ticket after an award",
}
SIGN_IN_SCOPES = ("openid", "email", "profile")

# Gorgias' tokens live for a day; the margin covers our clock and theirs.
ASSUMED_LIFE = timedelta(hours=24) - timedelta(minutes=5)
CLOCK_LEEWAY_S = 120

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# ASCII: without it some letters of other scripts count as lower- or upper-case forms of Latin ones.
_TYPED = re.compile(rf"({_LABEL})|(?:https?://)?({_LABEL})\.gorgias\.com(?:[/?#]\S*)?", re.ASCII | re.IGNORECASE)


class Refusal(StrEnum):
    """Why connecting or signing in did not work."""

    ACCOUNT_INVALID = "account_invalid"
    NOT_CONFIGURED = "not_configured"
    CONSENT_DENIED = "consent_denied"
    PROVIDER_ERROR = "provider_error"
    SESSION_MISSING = "session_missing"
    STATE_UNKNOWN = "state_unknown"
    CODE_MISSING = "code_missing"
    CODE_REFUSED = "code_refused"
    TOKEN_UNREADABLE = "token_unreadable"
    OFFLINE_MISSING = "offline_missing"
    SCOPE_MISSING = "scope_missing"
    ID_TOKEN_INVALID = "id_token_invalid"
    ACCOUNT_MISMATCH = "account_mismatch"
    NOT_ADMIN = "not_admin"
    GORGIAS_UNREACHABLE = "gorgias_unreachable"
    GORGIAS_BUSY = "gorgias_busy"
    TOO_MANY_STARTS = "too_many_starts"


class OAuthRefused(Exception):
    """The dance ended. `reason` is the key of the page that says what to do, `wait_s` when it may be tried again."""

    def __init__(self, reason: Refusal, *, wait_s: int = 0) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.wait_s = wait_s


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """What the token endpoint gave. `expires_at` is when the access token ends."""

    access_token: str = field(repr=False)
    expires_at: datetime
    refresh_token: str | None = field(default=None, repr=False)
    id_token: str | None = field(default=None, repr=False)
    scopes: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The person behind an id_token. `user_id` is their id in that helpdesk."""

    user_id: int
    email: str
    name: str


def read_account(typed: str) -> str | None:
    """The account's name from what a person typed: `acme`, `acme.gorgias.com` or a full URL. None when it is none.

    The whole text must match and the result is one lower-case DNS label: nothing else may ever become part of a host
    name. Not read with a URL parser: those forgive line breaks, users and ports, each a way to another host.
    """
    match = _TYPED.fullmatch(typed.strip())
    return (match[1] or match[2]).lower() if match else None


def authorize_url(
    base: str, *, client_id: str, redirect_uri: str, scopes: tuple[str, ...], state: str, nonce: str
) -> str:
    """Where the browser goes to ask for consent at the helpdesk with this `base` URL."""
    url: str = prepare_grant_uri(
        f"{base}/oauth/authorize",
        client_id,
        "code",
        redirect_uri=redirect_uri,
        scope=" ".join(scopes),
        state=state,
        nonce=nonce,
    )
    return url


def read_tokens(answer: Mapping[str, Any], *, now: datetime) -> TokenSet:
    """Read the token endpoint's JSON. Raises OAuthRefused.

    `expires_in` is 0 in the vendor's own sample although the token lives for 24 hours: the JWT's `exp` counts.
    """
    access_token = answer.get("access_token")
    # It goes into a header: nothing but printable ASCII can.
    if not isinstance(access_token, str) or not re.fullmatch(r"[!-~]+", access_token):
        raise OAuthRefused(Refusal.TOKEN_UNREADABLE)
    refresh_token = answer.get("refresh_token")
    id_token = answer.get("id_token")
    scope = answer.get("scope")
    return TokenSet(
        access_token=access_token,
        expires_at=_expiry(access_token, answer.get("expires_in"), now=now),
        refresh_token=refresh_token if isinstance(refresh_token, str) and refresh_token else None,
        id_token=id_token if isinstance(id_token, str) and id_token else None,
        scopes=frozenset(scope.split()) if isinstance(scope, str) and scope.strip() else None,
    )


def read_identity(id_token: str | None, *, issuer: str, client_id: str, nonce: str, now: datetime) -> Identity:
    """Who an id_token speaks of, after its claims are checked. Raises OAuthRefused(ID_TOKEN_INVALID).

    The token comes straight from the token endpoint over TLS, and no key set is documented: claims are checked, the
    signature is not (OpenID Connect Core, section 3.1.3.7, point 6).
    """
    try:
        claims = _claims(id_token or "")
        JWTClaimsRegistry(
            now=lambda: int(now.timestamp()),
            leeway=CLOCK_LEEWAY_S,
            aud={"essential": True, "value": client_id},
            exp={"essential": True},
            # `sub` stays out: it is an integer here, which JWT forbids and joserfc refuses.
        ).validate({name: value for name, value in claims.items() if name != "sub"})
        # Compared as they stand: joserfc takes a list that contains the value for the value.
        if claims.get("iss") not in (issuer, issuer + "/") or claims.get("nonce") != nonce:
            raise OAuthRefused(Refusal.ID_TOKEN_INVALID)
        audience = claims["aud"]
        several = isinstance(audience, list) and len(audience) > 1
        if (several or "azp" in claims) and claims.get("azp") != client_id:
            raise OAuthRefused(Refusal.ID_TOKEN_INVALID)
        subject = str(claims["sub"])  # a number in the vendor's sample, text by the standard
        if not re.fullmatch(r"[0-9]{1,18}", subject):
            raise OAuthRefused(Refusal.ID_TOKEN_INVALID)
        return Identity(
            user_id=int(subject),
            email=_printable(claims.get("email")).lower()[:320],
            name=_printable(claims.get("name"))[:120],
        )
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise OAuthRefused(Refusal.ID_TOKEN_INVALID) from error


def _printable(claim: Any) -> str:
    """Text on one line that every page and database can hold; lone surrogates are no text."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(claim or "")).split())


def _expiry(access_token: str, expires_in: Any, *, now: datetime) -> datetime:
    try:
        return datetime.fromtimestamp(int(_claims(access_token)["exp"]), UTC)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, OSError):
        pass
    if isinstance(expires_in, int) and 0 < expires_in < ASSUMED_LIFE.total_seconds():
        return now + timedelta(seconds=expires_in)
    return now + ASSUMED_LIFE


def _claims(token: str) -> dict[str, Any]:
    claims = json.loads(jws.extract_compact(token.encode()).payload)
    if not isinstance(claims, dict):
        raise ValueError("the token holds no claims")
    return claims
