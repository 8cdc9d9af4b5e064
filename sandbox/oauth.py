"""The OAuth 2 and OpenID provider of each account: authorize, token, revoke, and the pages a person meets on
the way.

Authlib's server side does the protocol; this module tells it what is particular about Gorgias: `expires_in:
0` beside a JWT that lives 24 hours, a refresh token that neither expires nor rotates, no PKCE, client
authentication by HTTP Basic only.
https://developers.gorgias.com/docs/oauth2-authentication-for-creating-apps-with-gorgias and the demo app that
Gorgias publishes (github.com/gorgias/appstore-demo-app).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any, ClassVar
from urllib.parse import urlencode

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.integrations.flask_oauth2.requests import FlaskOAuth2Payload, FlaskOAuth2Request
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import OAuth2Request
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oidc.core.grants import OpenIDCode
from flask import Blueprint, Flask, Response, g, redirect, render_template, request
from joserfc.jwk import RSAKey
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.wrappers import Response as AnyResponse

from sandbox.records import Record
from sandbox.runtime import Runtime
from sandbox.state import Helpdesk, UnknownRecord, timestamp
from sandbox.tokens import ACCESS_TOKEN_LIFE, Tokens

CODE_LIFE = timedelta(minutes=10)

# https://developers.gorgias.com/docs/oauth2-scopes; the deprecated write:all is refused, as for every new
# app.
_READ_WRITE = {
    "account": "the account's settings",
    "users": "the users of this helpdesk",
    "customers": "customers and what is known about them",
    "tickets": "tickets and their messages",
    "custom_fields": "custom fields",
    "events": "the history of tickets",
    "integrations": "integrations and sidebar widgets",
    "jobs": "background jobs",
    "macros": "macros",
    "rules": "rules",
    "satisfaction_survey": "satisfaction surveys",
    "tags": "tags",
    "apps": "apps",
}
SCOPES: Mapping[str, str] = {
    "openid": "Know who you are",
    "email": "See your e-mail address",
    "profile": "See your name",
    "offline": "Stay connected while you are away",
    **{f"{name}:read": f"See {what}" for name, what in _READ_WRITE.items()},
    **{f"{name}:write": f"Change {what}" for name, what in _READ_WRITE.items()},
    "statistics:read": "See statistics",
}
"""Every scope, and what the consent page says about it."""


@dataclass(frozen=True)
class _Client:
    """The one app this sandbox knows, as Authlib asks about it."""

    client_id: str
    secret: str
    redirect_urls: tuple[str, ...]

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        return None  # the authorize request must name one

    def get_allowed_scope(self, scope: str | None) -> str | None:
        wanted = dict.fromkeys((scope or "").split())
        return " ".join(wanted) if wanted.keys() <= SCOPES.keys() else None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.redirect_urls

    def check_client_secret(self, client_secret: str) -> bool:
        return compare_digest(self.secret.encode(), client_secret.encode())

    def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in ("authorization_code", "refresh_token")


@dataclass(frozen=True)
class _Code:
    """An authorization code as Authlib asks about it."""

    record: Record

    def get_redirect_uri(self) -> str:
        return str(self.record["redirect_uri"])

    def get_scope(self) -> str:
        return str(self.record["scope"])

    def get_nonce(self) -> str | None:
        nonce: str | None = self.record["nonce"]
        return nonce

    def get_auth_time(self) -> int:
        return int(self.record["auth_time"])

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


@dataclass(frozen=True)
class _RefreshToken:
    """A refresh token as Authlib asks about it."""

    record: Record

    def check_client(self, client: _Client) -> bool:
        return bool(self.record["client_id"] == client.client_id)

    def get_scope(self) -> str:
        return str(self.record["scope"])


class _Request(FlaskOAuth2Request):  # type: ignore[misc]  # Authlib has no types
    def __init__(self, incoming: Any) -> None:
        # Authlib refuses plain http except on the name localhost. TLS is the business of a real helpdesk, not
        # of this one on loopback, and the environment variable that relaxes it would reach the code under
        # test too.
        OAuth2Request.__init__(self, incoming.method, f"https://localhost{incoming.path}", headers=incoming.headers)
        self._request = incoming
        self.payload = FlaskOAuth2Payload(incoming)


class _Server(AuthorizationServer):  # type: ignore[misc]  # Authlib has no types
    def create_oauth2_request(self, _incoming: Any) -> _Request:
        return _Request(request)


def create_oauth(runtime: Runtime, app: Flask) -> Blueprint:
    """The routes below /<account>/oauth and the sign-in page /<account>/sign-in."""
    client = _Client(runtime.client_id, runtime.client_secret, runtime.redirect_urls)
    server = _Server(
        app,
        query_client=lambda client_id: client if client_id == client.client_id else None,
        save_token=_save_token,
    )

    def issue(*, user: Record, scope: str, include_refresh_token: bool, **_: Any) -> Record:
        token: Record = {
            "access_token": runtime.tokens.access_token(g.helpdesk, user_id=user["id"], scope=scope),
            "token_type": "Bearer",
            "expires_in": 0,  # as Gorgias answers; the JWT's exp tells the truth
            "scope": scope,
        }
        if include_refresh_token and "offline" in scope.split():
            token["refresh_token"] = secrets.token_urlsafe(36)  # 48 characters
        return token

    server.register_token_generator("default", issue)

    class CodeGrant(_CodeGrant):
        now = staticmethod(runtime.now)

    class RefreshGrant(_RefreshGrant):
        INCLUDE_NEW_REFRESH_TOKEN = runtime.rotate_refresh_tokens

    class IdToken(_IdToken):
        tokens = runtime.tokens
        now = staticmethod(runtime.now)

    server.register_grant(CodeGrant, [IdToken(require_nonce=False)])
    server.register_grant(RefreshGrant)
    server.register_endpoint(_Revocation)

    blueprint = Blueprint("oauth", __name__, url_prefix="/<account>")

    @blueprint.url_value_preprocessor
    def find_account(_endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.account = (values or {}).pop("account")
        helpdesk = runtime.helpdesk(g.account)
        if helpdesk is None:
            raise UnknownRecord("account", g.account)
        g.helpdesk = helpdesk

    @blueprint.after_request
    def keep_out_of_caches(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    def page(template: str, status: int = 200, **values: Any) -> Response:
        html = render_template(template, account=g.account, app_name=runtime.app_name, **values)
        return Response(html, status=status, mimetype="text/html")

    @blueprint.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        return page("error.html", status=error.code or 500, error=error, user=None)

    def refusal(sentence: str) -> Response:
        """Shown instead of a redirect, because nothing proves where a redirect would lead."""
        return page("oauth_error.html", status=400, sentence=sentence)

    @blueprint.get("/sign-in")
    def sign_in() -> Response:
        return page("oauth_sign_in.html", users=g.helpdesk.users(), next=_own_path(request.args.get("next")))

    @blueprint.post("/sign-in")
    def signed_in() -> AnyResponse:
        try:
            user = g.helpdesk.user(int(request.form.get("user_id", "")))
        except ValueError as error:
            raise BadRequest("Choose one of the users.") from error
        response = redirect(_own_path(request.form.get("next")), code=303)
        response.set_cookie(
            f"sandbox_{g.account}", str(user["id"]), path=f"/{g.account}", httponly=True, samesite="Lax"
        )
        return response

    @blueprint.route("/oauth/authorize", methods=["GET", "POST"])
    def authorize() -> AnyResponse:
        if request.args.get("client_id") != client.client_id:
            return refusal("This app is not known here: the client_id of the request is not the one of the app.")
        if not client.check_redirect_uri(request.args.get("redirect_uri", "")):
            return refusal(
                "The app asked to be answered at an address that is not among its Redirect URLs: "
                "redirect_uri must be one of them, character for character."
            )
        user = runtime.current_user(g.account)
        try:
            grant = server.get_consent_grant(end_user=user)
        except OAuth2Error as error:
            told: Response = server.handle_error_response(None, error)
            return told
        except ValueError:  # Authlib quotes the parameter in a message that allows only printable ASCII
            return refusal("The request of the app is not valid.")
        if user is None:
            here = f"{request.path}?{request.query_string.decode('ascii', 'replace')}"
            return redirect(f"/{g.account}/sign-in?{urlencode({'next': here})}", code=302)
        wanted = grant.request.scope.split()
        consent_key = f"{client.client_id} {user['id']}"
        consent = g.helpdesk.records.get(g.account, "consents", consent_key) or {"scope": ""}
        granted = consent["scope"].split()
        if request.method == "GET" and not set(wanted) <= set(granted):
            permissions = [SCOPES[scope] for scope in wanted]
            return page("oauth_consent.html", user=user, permissions=permissions)
        allowed = request.method == "GET" or request.form.get("decision") == "allow"
        with g.helpdesk.records.change():
            if allowed:
                scope = " ".join(dict.fromkeys([*granted, *wanted]))
                kept = {"client_id": client.client_id, "user_id": user["id"], "scope": scope}
                g.helpdesk.records.put(g.account, "consents", consent_key, kept)
            answer: Response = server.create_authorization_response(grant_user=user if allowed else None, grant=grant)
        return answer

    def form_only() -> Response | None:
        if request.mimetype == "application/x-www-form-urlencoded" and not request.query_string:
            return None
        error = {
            "error": "invalid_request",
            "error_description": "Send the parameters as application/x-www-form-urlencoded in the body.",
        }
        return Response(json.dumps(error), status=400, mimetype="application/json")

    @blueprint.post("/oauth/token")
    def token() -> Response:
        # One at a time: a code or a rotated refresh token is used once, whoever comes at the same moment.
        with g.helpdesk.records.change():
            answer: Response = form_only() or server.create_token_response()
        return answer

    @blueprint.post("/oauth/revoke")
    def revoke() -> Response:
        with g.helpdesk.records.change():
            answer: Response = form_only() or server.create_endpoint_response("revocation")
        return answer

    return blueprint


def _own_path(target: str | None) -> str:
    """`target` when it is a path of this account, else the account's first page."""
    if target is not None and target.startswith(f"/{g.account}/") and "\\" not in target:
        return target
    return f"/{g.account}/app/"


def _save_token(token: Record, incoming: Any) -> None:
    """Keep the refresh token; access tokens are stateless."""
    if "refresh_token" not in token:
        return
    before: _RefreshToken | None = incoming.refresh_token
    helpdesk: Helpdesk = g.helpdesk
    helpdesk.records.put(
        helpdesk.account,
        "refresh_tokens",
        token["refresh_token"],
        {
            "token": token["refresh_token"],
            "client_id": incoming.client.client_id,
            "user_id": incoming.user["id"],
            "scope": token["scope"],
            "created_datetime": timestamp(helpdesk.now()),
            "family": before.record["family"] if before else token["refresh_token"],
            "used": False,
            "revoked": False,
        },
    )


class _CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]  # Authlib has no types
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = ["client_secret_basic"]
    now: Callable[[], datetime]

    def save_authorization_code(self, code: str, incoming: Any) -> None:
        issued = int(self.now().timestamp())
        record = {
            "code": code,
            "redirect_uri": incoming.payload.redirect_uri,
            "scope": incoming.scope,
            "nonce": incoming.payload.data.get("nonce"),
            "user_id": incoming.user["id"],
            "auth_time": issued,
            "expires": issued + int(CODE_LIFE.total_seconds()),
        }
        g.helpdesk.records.put(g.helpdesk.account, "codes", code, record)

    def query_authorization_code(self, code: str, _client: _Client) -> _Code | None:
        record = g.helpdesk.records.get(g.helpdesk.account, "codes", code)
        return _Code(record) if record is not None and record["expires"] > self.now().timestamp() else None

    def delete_authorization_code(self, authorization_code: _Code) -> None:
        g.helpdesk.records.delete(g.helpdesk.account, "codes", authorization_code.record["code"])

    def authenticate_user(self, authorization_code: _Code) -> Record:
        user: Record = g.helpdesk.user(authorization_code.record["user_id"])
        return user


class _RefreshGrant(RefreshTokenGrant):  # type: ignore[misc]  # Authlib has no types
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = ["client_secret_basic"]

    def authenticate_refresh_token(self, refresh_token: str) -> _RefreshToken | None:
        records, account = g.helpdesk.records, g.helpdesk.account
        record = records.get(account, "refresh_tokens", refresh_token)
        if record is not None and record["used"] and not record["revoked"]:
            # A rotated token came back: somebody has a copy, so everything that descends from it ends.
            for relative in records.all(account, "refresh_tokens"):
                if relative["family"] == record["family"]:
                    records.put(account, "refresh_tokens", relative["token"], relative | {"revoked": True})
            return None
        return None if record is None or record["revoked"] else _RefreshToken(record)

    def authenticate_user(self, refresh_token: _RefreshToken) -> Record:
        user: Record = g.helpdesk.user(refresh_token.record["user_id"])
        return user

    def revoke_old_credential(self, refresh_token: _RefreshToken) -> None:
        if self.INCLUDE_NEW_REFRESH_TOKEN:
            used = refresh_token.record | {"used": True}
            g.helpdesk.records.put(g.helpdesk.account, "refresh_tokens", used["token"], used)


class _Revocation(RevocationEndpoint):  # type: ignore[misc]  # Authlib has no types
    def query_token(self, token_string: str, _token_type_hint: str | None) -> _RefreshToken | None:
        # An access token is not found: it is stateless, revoking it is answered 200 and changes nothing.
        record = g.helpdesk.records.get(g.helpdesk.account, "refresh_tokens", token_string)
        return None if record is None else _RefreshToken(record)

    def revoke_token(self, token: _RefreshToken, _incoming: Any) -> None:
        records, account = g.helpdesk.records, g.helpdesk.account
        for relative in records.all(account, "refresh_tokens"):
            if relative["family"] == token.record["family"]:
                records.put(account, "refresh_tokens", relative["token"], relative | {"revoked": True})
        # After a deactivation the whole authorize flow has to be repeated, consent included.
        records.delete(account, "consents", f"{token.record['client_id']} {token.record['user_id']}")


class _IdToken(OpenIDCode):  # type: ignore[misc]  # Authlib has no types
    tokens: Tokens
    now: Callable[[], datetime]

    def exists_nonce(self, _nonce: str, _incoming: Any) -> bool:
        return False  # checking it is the client's part; Gorgias binds it to the token and no more

    def resolve_client_private_key(self, _client: _Client) -> RSAKey:
        return self.tokens.key

    def get_client_algorithm(self, _client: _Client) -> str:
        return "RS256"

    def get_encode_header(self, _client: _Client) -> Record:
        return dict(self.tokens.header)

    def get_client_claims(self, client: _Client) -> Record:
        issued = int(self.now().timestamp())
        return {
            "iss": g.helpdesk.base_url,
            "aud": [client.client_id],
            "iat": issued,
            "exp": issued + int(ACCESS_TOKEN_LIFE.total_seconds()),
        }

    def generate_user_info(self, user: Record, scope: str) -> Record:
        claims: Record = {"sub": user["id"]}
        if "profile" in scope.split():
            claims["name"] = user["name"]
        if "email" in scope.split():
            claims["email"] = user["email"]
        return claims
