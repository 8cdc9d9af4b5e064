"""The two entrances and the return: `/oauth/install` sends the browser to Gorgias, `/oauth/callback` takes it back.

An account that is not connected is asked for everything we need; one that is connected only for who the person is, and
that sign-in never touches the account's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from flask import Blueprint, g, make_response, redirect, render_template, request
from flask.typing import ResponseReturnValue
from flask.wrappers import Response
from werkzeug.wrappers import Response as BaseResponse

from limiting import Limit, network_of
from oauth.accounts import STATE_LIFE, Accounts, AccountState, PendingSignIn, Purpose
from oauth.gorgias_api import (
    AccessToken,
    GorgiasApi,
    GorgiasError,
    GorgiasReason,
    InvalidGrant,
    TokenEndpoint,
    TokenSource,
    only,
)
from oauth.return_to import read_return_to
from oauth.sign_in import ADMIN_ROLES, Visitor, begin_session, lost_access, read_role
from oauth.wire import (
    SCOPES,
    SIGN_IN_SCOPES,
    Identity,
    OAuthRefused,
    Refusal,
    TokenSet,
    authorize_url,
    read_account,
    read_identity,
    read_tokens,
)
from settings import Settings
from storage.sealing import RandomBytes, Sealer

BROWSER_COOKIE = "tallydesk_oauth"
log = structlog.get_logger()

STATUS = {
    Refusal.ACCOUNT_INVALID: 400,
    Refusal.NOT_CONFIGURED: 503,
    Refusal.CONSENT_DENIED: 403,
    Refusal.PROVIDER_ERROR: 502,
    Refusal.SESSION_MISSING: 400,
    Refusal.STATE_UNKNOWN: 400,
    Refusal.CODE_MISSING: 400,
    Refusal.CODE_REFUSED: 400,
    Refusal.TOKEN_UNREADABLE: 502,
    Refusal.OFFLINE_MISSING: 403,
    Refusal.SCOPE_MISSING: 403,
    Refusal.ID_TOKEN_INVALID: 502,
    Refusal.ACCOUNT_MISMATCH: 403,
    Refusal.NOT_ADMIN: 403,
    Refusal.GORGIAS_UNREACHABLE: 503,
    Refusal.GORGIAS_BUSY: 503,
    Refusal.TOO_MANY_STARTS: 429,
}


# A whole team in one office signs in within minutes of the morning; nobody is kept out by strangers who keep asking for
# their account from other addresses, however many: the first of each address neither count for all nor are refused.
STARTS_FROM_ONE_ADDRESS, STARTS_IN_ALL, STARTS_WITHIN = 60, 300, timedelta(minutes=10)
STARTS_NEVER_REFUSED = 10


class Starts:
    """How often the dance may be started for one account: each start leaves a row behind for ten minutes."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._never_refused = Limit(most=STARTS_NEVER_REFUSED, within=STARTS_WITHIN, now=now)
        self._from_one = Limit(most=STARTS_FROM_ONE_ADDRESS, within=STARTS_WITHIN, now=now)
        self._in_all = Limit(most=STARTS_IN_ALL, within=STARTS_WITHIN, now=now)

    def wait_s(self, account: str, *, network: str) -> int:
        """0 when it may be started, and counts; else seconds to wait."""
        one = f"{account} {network}"
        if wait_s := self._from_one.wait_s(one):
            return wait_s
        return self._never_refused.wait_s(one) and self._in_all.wait_s(account)


@dataclass(frozen=True, kw_only=True)
class OAuthRoom:
    """What this room needs from the front door."""

    settings: Settings
    accounts: Accounts
    sealer: Sealer
    endpoint: TokenEndpoint
    api_for: Callable[[str, TokenSource], GorgiasApi]
    now: Callable[[], datetime]
    random_bytes: RandomBytes
    starts: Starts
    # Told of whoever has connected an account, for the record.
    on_connected: Callable[[Visitor], None]

    @property
    def redirect_uri(self) -> str:
        """The one address Gorgias sends browsers back to: from configuration, never from the request's Host."""
        return f"{self.settings.public_url}/oauth/callback"


def create_blueprint(room: OAuthRoom) -> Blueprint:
    """`/oauth/install` and `/oauth/callback`."""
    oauth = Blueprint("oauth", __name__, url_prefix="/oauth")

    @oauth.get("/install")
    def install() -> ResponseReturnValue:
        account = read_account(request.args.get("account", ""))
        if account is None:
            raise OAuthRefused(Refusal.ACCOUNT_INVALID)
        if not room.settings.gorgias_client_id or not room.settings.gorgias_client_secret:
            raise OAuthRefused(Refusal.NOT_CONFIGURED)
        network = network_of(request.remote_addr, request.headers.get("X-Forwarded-For"))
        if wait_s := room.starts.wait_s(account, network=network):
            raise OAuthRefused(Refusal.TOO_MANY_STARTS, wait_s=wait_s)
        known = room.accounts.named(account)
        connected = known is not None and known.state is AccountState.CONNECTED
        purpose = Purpose.SIGN_IN if connected else Purpose.CONNECT
        return_to = read_return_to(request.args.get("return_to", ""), sealer=room.sealer)
        response = _send_away(room, account, purpose, return_to=return_to)
        g.outcome = purpose.value
        return response

    @oauth.get("/callback")
    def callback() -> ResponseReturnValue:
        pending = _consume(room)
        if "error" in request.args:
            denied = request.args["error"] == "access_denied"
            raise OAuthRefused(Refusal.CONSENT_DENIED if denied else Refusal.PROVIDER_ERROR)
        code = request.args.get("code", "")
        if not code:
            raise OAuthRefused(Refusal.CODE_MISSING)
        tokens = _exchange(room, pending, code)
        response = redirect(pending.return_to or "/connections/", code=303)
        if pending.purpose is Purpose.CONNECT:
            _connect(room, pending, tokens)
            outcome = "connected"
        elif _sign_in(room, pending, tokens):
            outcome = "signed_in"
        else:
            # Once more, now asking for everything. That way never leads back here, so it cannot go round in circles.
            response = _send_away(room, pending.account, Purpose.CONNECT, return_to=pending.return_to)
            outcome = "reconnecting"
        g.outcome = outcome
        return response

    @oauth.errorhandler(OAuthRefused)
    def refused(error: OAuthRefused) -> Response:
        status = STATUS[error.reason]
        g.outcome = error.reason.value
        page = render_template("refused.html", reason=error.reason.value, minutes=math.ceil(error.wait_s / 60))
        response = make_response(page, status)
        if error.wait_s:
            response.headers["Retry-After"] = str(error.wait_s)
        return response

    return oauth


def _send_away(room: OAuthRoom, account: str, purpose: Purpose, *, return_to: str | None) -> BaseResponse:
    """To the consent page of this helpdesk, with a state that only this browser can bring back."""
    browser = request.cookies.get(BROWSER_COOKIE) or room.random_bytes(32).hex()
    state, nonce = room.accounts.remember_state(account=account, purpose=purpose, browser=browser, return_to=return_to)
    response = redirect(
        authorize_url(
            room.settings.gorgias_base(account),
            client_id=room.settings.gorgias_client_id,
            redirect_uri=room.redirect_uri,
            scopes=tuple(SCOPES) if purpose is Purpose.CONNECT else SIGN_IN_SCOPES,
            state=state,
            nonce=nonce,
        ),
        code=303,
    )
    response.set_cookie(
        BROWSER_COOKIE,
        browser,
        max_age=int(STATE_LIFE.total_seconds()),
        path="/oauth",
        secure=room.settings.public_url.startswith("https://"),
        httponly=True,
        # Lax: the way back from Gorgias is a top-level navigation and must carry it.
        samesite="Lax",
    )
    return response


def _consume(room: OAuthRoom) -> PendingSignIn:
    browser = request.cookies.get(BROWSER_COOKIE)
    if not browser:
        raise OAuthRefused(Refusal.SESSION_MISSING)
    pending = room.accounts.consume_state(request.args.get("state", ""), browser=browser)
    if pending is None:
        raise OAuthRefused(Refusal.STATE_UNKNOWN)
    return pending


def _exchange(room: OAuthRoom, pending: PendingSignIn, code: str) -> TokenSet:
    try:
        answer = room.endpoint.exchange(pending.account, code=code)
    except InvalidGrant as error:
        raise OAuthRefused(Refusal.CODE_REFUSED) from error
    except GorgiasError as error:
        raise _refusal(error) from error
    return read_tokens(answer, now=room.now())


def _identify(room: OAuthRoom, pending: PendingSignIn, tokens: TokenSet) -> Identity:
    return read_identity(
        tokens.id_token,
        issuer=room.settings.gorgias_base(pending.account),
        client_id=room.settings.gorgias_client_id,
        nonce=pending.nonce,
        now=room.now(),
    )


def _connect(room: OAuthRoom, pending: PendingSignIn, tokens: TokenSet) -> None:
    """Keep the tokens, but only of the very account that was asked for and only of an admin; else give them back."""
    try:
        identity = _identify(room, pending, tokens)
        if tokens.refresh_token is None:
            raise OAuthRefused(Refusal.OFFLINE_MISSING)
        if tokens.scopes is not None and not tokens.scopes.issuperset(SCOPES):
            raise OAuthRefused(Refusal.SCOPE_MISSING)
        api = room.api_for(pending.account, only(AccessToken(value=tokens.access_token)))
        described: Any = api.get("/api/account")
        if not isinstance(described, dict) or read_account(str(described.get("domain"))) != pending.account:
            raise OAuthRefused(Refusal.ACCOUNT_MISMATCH)
        role = read_role(api, identity.user_id)
        if role not in ADMIN_ROLES:
            raise OAuthRefused(Refusal.NOT_ADMIN)
        account = room.accounts.connect(pending.account, tokens=tokens, user_email=identity.email)
    except Exception as error:
        # Whatever happened, a full disk too: what is not kept here must not stay alive there.
        _give_back(room, pending.account, tokens)
        if isinstance(error, GorgiasError):
            raise _refusal(error) from error
        raise
    room.on_connected(begin_session(identity, account_id=account.id, role=role, now=room.now()))


def _give_back(room: OAuthRoom, account: str, tokens: TokenSet) -> None:
    if tokens.refresh_token is None:
        return
    try:
        room.endpoint.revoke(account, token=tokens.refresh_token)
    except GorgiasError:
        log.warning("oauth", outcome="revoke_failed")


def _sign_in(room: OAuthRoom, pending: PendingSignIn, tokens: TokenSet) -> bool:
    """Sign the person in with their role, read with the account's own token; False when that token does not serve, or
    not for much longer."""
    identity = _identify(room, pending, tokens)
    account = room.accounts.named(pending.account)
    if account is None or account.state is not AccountState.CONNECTED:
        return False
    try:
        role = read_role(room.api_for(account.name, room.accounts.token_source(account.id)), identity.user_id)
    except GorgiasError as error:
        if lost_access(error):
            room.accounts.withdraw(account.id, reason=error.reason.value)
            return False
        if error.reason is GorgiasReason.FORBIDDEN:
            # It acts for whoever connected, and Gorgias no longer lets them read users; notes may go on.
            return False
        raise _refusal(error) from error
    if account.is_refused and role in ADMIN_ROLES:
        # Perhaps the app was removed in Gorgias and has just been installed anew: its tokens must not be lost.
        return False
    begin_session(identity, account_id=account.id, role=role, now=room.now())
    return True


def _refusal(error: GorgiasError) -> OAuthRefused:
    return OAuthRefused(_REFUSALS.get(error.reason, Refusal.PROVIDER_ERROR))


_REFUSALS = {
    GorgiasReason.BUSY: Refusal.GORGIAS_BUSY,
    GorgiasReason.FORBIDDEN: Refusal.NOT_ADMIN,
    GorgiasReason.UNREACHABLE: Refusal.GORGIAS_UNREACHABLE,
}
