"""Gorgias' REST API and token endpoint, over requests and Authlib.

Bearer token with one forced renewal on 401, `Retry-After` obeyed as far as the caller's patience goes, cursor paging,
no redirects (they would carry credentials elsewhere), bounded time and body. What goes wrong is a `GorgiasError` whose
`reason` says what kind it is.

Facts: https://developers.gorgias.com/reference/limitations, https://developers.gorgias.com/reference/errors,
https://developers.gorgias.com/changelog/deprecation-offset-based-pagination
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http.cookiejar import DefaultCookiePolicy
from io import BytesIO
from time import monotonic
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson
import requests
from authlib.integrations.requests_client import OAuth2Session
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError as _PROTOCOL_ERROR

from outbound import MAX_BODY
from storage.sealing import hash_of
from telemetry import GORGIAS_CALLS

TIMEOUTS_S = (3.05, 10.0)  # connect, read
PIECE = 65_536  # bytes
BODY_S = 5.0  # from the head of an answer to the end of its body
PAGE_SIZE = 100
MAX_PAGES = 100

# Its lines quote whole paths, and ours hold e-mail addresses.
logging.getLogger("urllib3").setLevel(logging.ERROR)


class GorgiasReason(StrEnum):
    """What kind of failure a call met."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    REFUSED = "refused"
    BROKEN = "broken"
    NOT_CONNECTED = "not_connected"
    NEEDS_REAUTH = "needs_reauth"


class GorgiasError(Exception):
    """A call to Gorgias failed."""

    def __init__(
        self,
        reason: GorgiasReason,
        sentence: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


class InvalidGrant(Exception):
    """The token endpoint refused the code or the refresh token."""


@dataclass(frozen=True, kw_only=True)
class AccessToken:
    """An access token and the version under which it is stored."""

    value: str = field(repr=False)
    version: int = 0


class TokenSource(Protocol):
    """Where a client gets its token."""

    def __call__(self, *, rejected: AccessToken | None = None) -> AccessToken:
        """A token to use; never `rejected` again. Raises GorgiasError."""


def only(token: AccessToken) -> TokenSource:
    """A source of this token alone: when Gorgias rejects it, the call fails with UNAUTHORIZED."""

    def source(*, rejected: AccessToken | None = None) -> AccessToken:
        if rejected is not None:
            raise GorgiasError(GorgiasReason.UNAUTHORIZED, "Gorgias does not accept this access any more.")
        return token

    return source


def new_session() -> requests.Session:
    """A session for credentialed calls: no proxies or netrc from the environment, no cookies, GETs retried briefly."""
    return _hardened(requests.Session())


def _hardened(session: requests.Session) -> requests.Session:
    session.trust_env = False
    # One session serves many accounts: a cookie of one must never reach another.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    retries = Retry(
        total=2,
        connect=1,
        read=1,
        status=2,
        status_forcelist=(502, 503, 504),
        allowed_methods=("GET",),
        backoff_factor=0.2,
        # urllib3 would wait up to six hours inside the call (checked in 2.8).
        respect_retry_after_header=False,
        raise_on_status=False,
        redirect=0,
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries, pool_maxsize=32))
    return session


def _read_body(response: requests.Response, *, within_s: float) -> bytes:
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


class TokenEndpoint:
    """The OAuth endpoints of every helpdesk, with our client's credentials: HTTP Basic and a form body."""

    def __init__(self, *, base_of: Callable[[str], str], client_id: str, client_secret: str, redirect_uri: str) -> None:
        self._base_of = base_of
        self.client_hash = hash_of(client_id)
        self._client_id = client_id
        self._client_secret = client_secret
        self._redirect_uri = redirect_uri

    def exchange(self, account: str, *, code: str) -> Mapping[str, Any]:
        """Tokens for an authorization code. Raises InvalidGrant or GorgiasError."""
        return self._call(
            lambda session: session.fetch_token(
                f"{self._base_of(account)}/oauth/token",
                grant_type="authorization_code",
                code=code,
                redirect_uri=self._redirect_uri,
                timeout=TIMEOUTS_S,
                allow_redirects=False,
                stream=True,
            )
        )

    def refresh(self, account: str, *, refresh_token: str) -> Mapping[str, Any]:
        """Tokens for a refresh token. Raises InvalidGrant or GorgiasError."""
        return self._call(
            lambda session: session.refresh_token(
                f"{self._base_of(account)}/oauth/token",
                refresh_token=refresh_token,
                timeout=TIMEOUTS_S,
                allow_redirects=False,
                stream=True,
            )
        )

    def revoke(self, account: str, *, token: str) -> None:
        """Revoke a refresh token; one that is gone already is fine. Raises GorgiasError."""
        with suppress(InvalidGrant):
            self._call(
                lambda session: _checked(
                    session.revoke_token(
                        f"{self._base_of(account)}/oauth/revoke",
                        token=token,
                        timeout=TIMEOUTS_S,
                        allow_redirects=False,
                        stream=True,
                    )
                )
            )

    def _call(self, call: Callable[[OAuth2Session], Any]) -> Mapping[str, Any]:
        session = OAuth2Session(
            client_id=self._client_id,
            client_secret=self._client_secret,
            token_endpoint_auth_method="client_secret_basic",
            revocation_endpoint_auth_method="client_secret_basic",
        )
        for answered in ("access_token_response", "refresh_token_response"):
            session.register_compliance_hook(answered, _checked)
        try:
            with _hardened(session):
                answer = call(session)
        except (requests.RequestException, OSError, _PROTOCOL_ERROR) as error:
            raise GorgiasError(GorgiasReason.UNREACHABLE, "Gorgias cannot be reached.") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise GorgiasError(GorgiasReason.BROKEN, "Gorgias gave tokens in a shape we cannot read.") from error
        return answer if isinstance(answer, Mapping) else {}


def _checked(response: requests.Response) -> requests.Response:
    """A good answer of the token endpoint, a JSON object. Raises InvalidGrant or GorgiasError for any other.

    Authlib looks at the word `error` alone and reads a body of any size. What 401, 403 and 404 say here is about our
    client, not about the account's tokens: to take it for lost access would disconnect every account at once.
    """
    with response:
        content = _read_body(response, within_s=BODY_S)
    told = _load(response, content)
    error = told.get("error") if isinstance(told, dict) else None
    if error == "invalid_grant":
        raise InvalidGrant
    status = response.status_code
    if error or not 200 <= status < 300:
        raise GorgiasError(
            GorgiasReason.REFUSED, f"Gorgias refused the token request{_error_text(told)}.", status=status
        )
    if told is not None and not isinstance(told, dict):
        raise GorgiasError(GorgiasReason.BROKEN, "Gorgias gave tokens in a shape we cannot read.", status=status)
    response.raw = BytesIO(content if told else b"{}")
    return response


class GorgiasApi:
    """One helpdesk's REST API. `patience_s` is how long a call may wait altogether on 429 before it gives up."""

    def __init__(
        self,
        base: str,
        *,
        token: TokenSource,
        session: requests.Session,
        sleep: Callable[[float], None],
        patience_s: float = 8.0,
    ) -> None:
        self._base = base
        self._token = token
        self._session = session
        self._sleep = sleep
        self._patience_s = patience_s
        # The time of Gorgias' clock, to the second, as its latest answer told.
        self.told_at: datetime | None = None

    def get(self, path: str, **params: Any) -> Any:
        """GET `path`, e.g. `/api/account`. Raises GorgiasError."""
        return self._request("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST `body` as JSON. Never repeated by itself. Raises GorgiasError."""
        return self._request("POST", path, body=body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """PUT `body` as JSON. Raises GorgiasError."""
        return self._request("PUT", path, body=body)

    def delete(self, path: str) -> None:
        """DELETE `path`; what is gone already is fine. Raises GorgiasError."""
        try:
            self._request("DELETE", path)
        except GorgiasError as error:
            if error.reason is not GorgiasReason.NOT_FOUND:
                raise

    def find(self, path: str) -> dict[str, Any] | None:
        """GET one object; None when there is none. Raises GorgiasError."""
        try:
            found = self.get(path)
        except GorgiasError as error:
            if error.reason is GorgiasReason.NOT_FOUND:
                return None
            raise
        return found if isinstance(found, dict) else None

    def list(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every object of a list, page after page. Raises GorgiasError."""
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = self.get(path, limit=PAGE_SIZE, **params, **({"cursor": cursor} if cursor else {}))
            if not isinstance(page, dict) or not isinstance(page.get("data"), list):
                raise GorgiasError(GorgiasReason.BROKEN, "Gorgias gave a list in a shape we cannot read.")
            yield from (item for item in page["data"] if isinstance(item, dict))
            meta = page.get("meta")
            cursor = meta.get("next_cursor") if isinstance(meta, dict) else None
            if not cursor:
                return
        raise GorgiasError(GorgiasReason.BROKEN, f"Gorgias' list did not end after {MAX_PAGES} pages.")

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        token = self._token()
        waited_s = 0.0
        renewed = False
        while True:
            try:
                answer = self._send(method, path, token=token, params=params, body=body)
            except GorgiasError as error:
                GORGIAS_CALLS.labels(error.reason.value).inc()
                if error.reason is GorgiasReason.UNAUTHORIZED and not renewed:
                    renewed = True
                    token = self._token(rejected=token)
                    continue
                if error.reason is GorgiasReason.BUSY:
                    pause_s = error.retry_after_s or 1.0
                    if waited_s + pause_s <= self._patience_s:
                        self._sleep(pause_s)
                        waited_s += pause_s
                        continue
                raise
            GORGIAS_CALLS.labels("ok").inc()
            return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        token: AccessToken,
        params: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
    ) -> Any:
        headers = {"Authorization": f"Bearer {token.value}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            with self._session.request(
                method,
                self._base + path,
                params=params,
                data=None if body is None else orjson.dumps(body),
                headers=headers,
                timeout=TIMEOUTS_S,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read_body(response, within_s=BODY_S)
        except requests.ConnectTimeout as error:
            raise GorgiasError(GorgiasReason.UNREACHABLE, "Gorgias cannot be reached.") from error
        except (requests.RequestException, OSError, _PROTOCOL_ERROR) as error:
            raise GorgiasError(GorgiasReason.UNREACHABLE, "The connection to Gorgias broke.") from error
        self.told_at = _time(response.headers.get("Date"))
        return _read_answer(response, content)


def _read_answer(response: requests.Response, content: bytes) -> Any:
    """The JSON of a good answer (None when it has no body). Raises GorgiasError for any other."""
    told = _load(response, content)
    status = response.status_code
    if 200 <= status < 300:
        return told
    # A redirect says nothing about the request (a gateway in maintenance, perhaps): worth another try later.
    other = GorgiasReason.BROKEN if status < 400 else GorgiasReason.REFUSED
    reason = _BY_STATUS.get(status, other)
    raise GorgiasError(reason, f"Gorgias answered {status}{_error_text(told)}.", status=status)


def _load(response: requests.Response, content: bytes) -> Any:
    """The JSON of an answer, good or not; None when there is none. Raises GorgiasError for what has nothing to do with
    the request: 429, 5xx, too large a body, and a good status with something else than JSON."""
    status = response.status_code
    if len(content) > MAX_BODY:
        raise GorgiasError(GorgiasReason.BROKEN, "Gorgias' answer is too large.", status=status)
    try:
        told = orjson.loads(content) if content.strip() else None
    except orjson.JSONDecodeError:
        if status < 300:
            raise GorgiasError(
                GorgiasReason.BROKEN,
                "Gorgias gave an answer that is not JSON.",
                status=status,
            ) from None
        told = None
    sentence = f"Gorgias answered {status}{_error_text(told)}."
    if status == 429:
        raise GorgiasError(
            GorgiasReason.BUSY,
            sentence,
            status=status,
            retry_after_s=_seconds(response.headers.get("Retry-After")),
        )
    if status >= 500:
        raise GorgiasError(GorgiasReason.UNREACHABLE, sentence, status=status)
    return told


_BY_STATUS = {
    401: GorgiasReason.UNAUTHORIZED,
    403: GorgiasReason.FORBIDDEN,
    404: GorgiasReason.NOT_FOUND,
    409: GorgiasReason.CONFLICT,
}


def _time(header: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(header or "").astimezone(UTC)
    except ValueError:
        return None


def _seconds(header: str | None) -> float | None:
    try:
        return min(max(float(header or ""), 1.0), 3600.0)
    except ValueError:
        return None


def _error_text(told: Any) -> str:
    """Gorgias' own words: `{"error": {"msg"}}`, `{"error": "…"}` and `{"message": "…"}` have all been seen."""
    if not isinstance(told, dict):
        return ""
    error = told.get("error", told.get("message"))
    if isinstance(error, dict):
        error = error.get("msg")
    return f" ({_short(error)})" if error else ""


def _short(text: Any) -> str:
    return str(text)[:100]


def origin_of(url: str) -> str:
    """Scheme, host and port of `url`, as browsers write an Origin."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
