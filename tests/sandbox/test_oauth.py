"""The sandbox as an OAuth and OpenID provider, met over real sockets."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
from joserfc import jwt

from sandbox import Sandbox

CALLBACK = "http://localhost:1/callback"
CLIENT = ("client-one", "secret-one")
SCOPE = "openid email profile offline account:read tickets:write"


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(
        accounts=("acme", "globex"),
        client_id=CLIENT[0],
        client_secret=CLIENT[1],
        redirect_urls=[CALLBACK],
        now=clock,
    ) as running:
        yield running


def authorize_url(sandbox: Sandbox, **changes: str) -> str:
    parameters = {
        "response_type": "code",
        "client_id": CLIENT[0],
        "redirect_uri": CALLBACK,
        "scope": SCOPE,
        "state": "a state",
        "nonce": "a-nonce",
    } | changes
    return f"{sandbox.url}/acme/oauth/authorize?{urlencode(parameters)}"


def code_from(sandbox: Sandbox, **changes: str) -> str:
    return dict(parse_qsl(urlsplit(sandbox.authorize(authorize_url(sandbox, **changes))).query))["code"]


def ask(sandbox: Sandbox, path: str = "token", *, auth: Any = CLIENT, **form: str) -> requests.Response:
    return requests.post(f"{sandbox.url}/acme/oauth/{path}", data=form, auth=auth, timeout=5)


def exchange(sandbox: Sandbox, **changes: str) -> dict[str, Any]:
    answer = ask(sandbox, grant_type="authorization_code", code=code_from(sandbox, **changes), redirect_uri=CALLBACK)
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


def claims_of(sandbox: Sandbox, token: str) -> dict[str, Any]:
    return jwt.decode(token, sandbox.runtime.tokens.key, ["RS256"]).claims


def call_account(sandbox: Sandbox, token: str, account: str = "acme") -> int:
    url = f"{sandbox.url}/{account}/api/account"
    return requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=5).status_code


def test_a_person_signs_in_reads_the_permissions_and_allows(sandbox: Sandbox) -> None:
    """The whole walk as a browser makes it, cookie and all."""
    with requests.Session() as browser:
        page = browser.get(authorize_url(sandbox), timeout=5)
        assert urlsplit(page.url).path == "/acme/sign-in"
        assert all(name in page.text for name in ("Ada", "Ben", "Lea"))
        ada = sandbox.helpdesk("acme").users()[0]
        following = dict(parse_qsl(urlsplit(page.url).query))["next"]
        signed_in = browser.post(
            page.url, data={"user_id": ada["id"], "next": following}, allow_redirects=False, timeout=5
        )
        cookie = signed_in.headers["Set-Cookie"]
        assert cookie.startswith("sandbox_acme=")
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        consent = browser.get(sandbox.url + signed_in.headers["Location"], timeout=5)
        assert "Tallydesk wants to connect to acme" in consent.text
        assert "Change tickets and their messages" in consent.text
        allowed = browser.post(consent.url, data={"decision": "allow"}, allow_redirects=False, timeout=5)
        assert allowed.status_code == 302
        answer = urlsplit(allowed.headers["Location"])
        assert f"{answer.scheme}://{answer.netloc}{answer.path}" == CALLBACK
        assert dict(parse_qsl(answer.query)).keys() == {"code", "state"}
        assert dict(parse_qsl(answer.query))["state"] == "a state"


def test_the_token_answer_has_the_fields_and_the_odd_zero_of_gorgias(sandbox: Sandbox) -> None:
    tokens = exchange(sandbox)
    assert tokens.keys() == {"access_token", "token_type", "expires_in", "refresh_token", "id_token", "scope"}
    assert tokens["expires_in"] == 0
    assert tokens["token_type"] == "Bearer"
    assert tokens["scope"] == SCOPE
    assert len(tokens["refresh_token"]) == 48


def test_the_access_token_is_a_jwt_for_one_account_and_24_hours(sandbox: Sandbox, clock: Clock) -> None:
    claims = claims_of(sandbox, exchange(sandbox)["access_token"])
    ada = sandbox.helpdesk("acme").users()[0]
    assert claims.pop("jti")
    assert claims == {
        "iss": f"{sandbox.url}/acme",
        "sub": ada["id"],
        "aud": f"{sandbox.url}/acme/api",
        "iat": int(clock.time.timestamp()),
        "exp": int(clock.time.timestamp()) + 86400,
        "azp": CLIENT[0],
        "scope": SCOPE,
    }


def test_the_id_token_names_the_person_and_repeats_the_nonce(sandbox: Sandbox) -> None:
    claims = claims_of(sandbox, exchange(sandbox)["id_token"])
    assert claims.keys() == {
        "iss",
        "aud",
        "iat",
        "exp",
        "auth_time",
        "nonce",
        "at_hash",
        "sub",
        "name",
        "email",
    }
    assert claims["aud"] == [CLIENT[0]]
    assert claims["nonce"] == "a-nonce"
    assert claims["email"] == "ada@acme.example"
    assert claims["exp"] - claims["iat"] == 86400


def test_the_access_token_ends_after_24_hours_and_works_for_no_other_account(sandbox: Sandbox, clock: Clock) -> None:
    token = exchange(sandbox)["access_token"]
    assert call_account(sandbox, token) == 200
    assert call_account(sandbox, token, "globex") == 401
    clock.time += timedelta(hours=23, minutes=59)
    assert call_account(sandbox, token) == 200
    clock.time += timedelta(minutes=1)
    assert call_account(sandbox, token) == 401


def test_without_the_offline_scope_there_is_no_refresh_token(sandbox: Sandbox) -> None:
    tokens = exchange(sandbox, scope="openid email profile")
    assert "refresh_token" not in tokens
    assert sandbox.helpdesk("acme").installations() == []


def test_without_the_openid_scope_there_is_no_id_token(sandbox: Sandbox) -> None:
    assert "id_token" not in exchange(sandbox, scope="offline account:read")


def test_refreshing_gives_a_new_access_token_and_keeps_the_refresh_token(sandbox: Sandbox, clock: Clock) -> None:
    tokens = exchange(sandbox)
    clock.time += timedelta(days=400)
    for _ in range(2):
        answer = ask(sandbox, grant_type="refresh_token", refresh_token=tokens["refresh_token"])
        assert answer.json().keys() == {"access_token", "expires_in", "scope", "token_type"}
        assert call_account(sandbox, answer.json()["access_token"]) == 200


def test_denying_leads_back_with_access_denied_and_the_state(sandbox: Sandbox) -> None:
    back = sandbox.authorize(authorize_url(sandbox), allow=False)
    query = dict(parse_qsl(urlsplit(back).query))
    assert back.startswith(CALLBACK)
    assert (query["error"], query["state"]) == ("access_denied", "a state")


def test_consent_is_skipped_for_the_same_or_fewer_permissions_and_asked_for_more(sandbox: Sandbox) -> None:
    sandbox.authorize(authorize_url(sandbox))
    ada, ben, _ = sandbox.helpdesk("acme").users()

    def shows_consent(user_id: int, scope: str) -> bool:
        with requests.Session() as browser:
            browser.post(f"{sandbox.url}/acme/sign-in", data={"user_id": user_id}, allow_redirects=False, timeout=5)
            answer = browser.get(authorize_url(sandbox, scope=scope), allow_redirects=False, timeout=5)
            return answer.status_code == 200

    assert not shows_consent(ada["id"], SCOPE)
    assert not shows_consent(ada["id"], "openid email")
    assert shows_consent(ada["id"], f"{SCOPE} macros:write")
    assert shows_consent(ben["id"], SCOPE)


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "somebody-else"},
        {"redirect_uri": "http://evil.example/"},
        {"redirect_uri": CALLBACK + "?account=acme"},
        {"redirect_uri": CALLBACK + "/"},
        {"redirect_uri": ""},
        {"redirect_uri": 'http://évil.example/"'},
    ],
)
def test_an_unknown_app_or_address_gets_a_page_and_no_redirect(sandbox: Sandbox, change: dict[str, str]) -> None:
    answer = requests.get(authorize_url(sandbox, **change), allow_redirects=False, timeout=5)
    assert answer.status_code == 400
    assert "Location" not in answer.headers
    assert "cannot be connected" in answer.text


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scope": "openid everything"}, "invalid_scope"),
        ({"scope": "write:all"}, "invalid_scope"),
        ({"response_type": "token"}, "unsupported_response_type"),
    ],
)
def test_a_wrong_request_of_a_known_app_is_answered_to_the_app(
    sandbox: Sandbox, change: dict[str, str], error: str
) -> None:
    answer = requests.get(authorize_url(sandbox, **change), allow_redirects=False, timeout=5)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(CALLBACK)
    assert dict(parse_qsl(urlsplit(answer.headers["Location"]).query))["error"] == error


def test_pkce_parameters_are_ignored(sandbox: Sandbox) -> None:
    assert exchange(sandbox, code_challenge="x" * 43, code_challenge_method="S256")["access_token"]


def test_a_code_works_once(sandbox: Sandbox) -> None:
    form = {"grant_type": "authorization_code", "code": code_from(sandbox), "redirect_uri": CALLBACK}
    assert ask(sandbox, **form).status_code == 200
    second = ask(sandbox, **form)
    assert (second.status_code, second.json()["error"]) == (400, "invalid_grant")


def test_of_two_exchanges_at_the_same_moment_one_wins(sandbox: Sandbox) -> None:
    form = {"grant_type": "authorization_code", "code": code_from(sandbox), "redirect_uri": CALLBACK}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(sandbox, **form).status_code, range(8)))
    assert sorted(answers) == [200] + [400] * 7


def test_a_code_works_for_ten_minutes(sandbox: Sandbox, clock: Clock) -> None:
    code = code_from(sandbox)
    clock.time += timedelta(minutes=10)
    late = ask(sandbox, grant_type="authorization_code", code=code, redirect_uri=CALLBACK)
    assert (late.status_code, late.json()["error"]) == (400, "invalid_grant")


def test_a_code_needs_the_same_redirect_uri_and_its_own_account(sandbox: Sandbox) -> None:
    code = code_from(sandbox)
    other = ask(sandbox, grant_type="authorization_code", code=code, redirect_uri=CALLBACK + "x")
    assert other.json()["error"] == "invalid_grant"
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    foreign = requests.post(f"{sandbox.url}/globex/oauth/token", data=form, auth=CLIENT, timeout=5)
    assert foreign.json()["error"] == "invalid_grant"
    assert ask(sandbox, **form).status_code == 200


def test_the_client_authenticates_with_http_basic_only(sandbox: Sandbox) -> None:
    form = {"grant_type": "authorization_code", "code": code_from(sandbox), "redirect_uri": CALLBACK}
    for auth, extra in (
        ((CLIENT[0], "wrong"), {}),
        (("wrong", CLIENT[1]), {}),
        (None, {"client_id": CLIENT[0], "client_secret": CLIENT[1]}),
    ):
        answer = ask(sandbox, auth=auth, **form, **extra)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_parameters_come_as_a_form_in_the_body(sandbox: Sandbox) -> None:
    form = {"grant_type": "authorization_code", "code": code_from(sandbox), "redirect_uri": CALLBACK}
    url = f"{sandbox.url}/acme/oauth/token"
    for answer in (
        requests.post(url, json=form, auth=CLIENT, timeout=5),
        requests.post(url, params=form, auth=CLIENT, timeout=5),
    ):
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_a_revoked_refresh_token_is_an_invalid_grant_while_the_access_token_lives_on(
    sandbox: Sandbox,
) -> None:
    tokens = exchange(sandbox)
    revoked = ask(sandbox, "revoke", token=tokens["refresh_token"])
    assert (revoked.status_code, revoked.json()) == (200, {})
    refused = ask(sandbox, grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert (refused.status_code, refused.json()) == (400, {"error": "invalid_grant"})
    assert call_account(sandbox, tokens["access_token"]) == 200


def test_revoking_what_is_unknown_changes_nothing_and_needs_the_client(sandbox: Sandbox) -> None:
    assert ask(sandbox, "revoke", token="never-issued").json() == {}
    tokens = exchange(sandbox)
    assert ask(sandbox, "revoke", auth=(CLIENT[0], "wrong"), token=tokens["refresh_token"]).status_code == 401
    assert ask(sandbox, grant_type="refresh_token", refresh_token=tokens["refresh_token"]).status_code == 200


def test_uninstalling_in_the_helpdesk_revokes_and_asks_for_consent_again(sandbox: Sandbox) -> None:
    tokens = exchange(sandbox)
    assert [app["client_id"] for app in sandbox.helpdesk("acme").installations()] == [CLIENT[0]]
    sandbox.helpdesk("acme").uninstall()
    assert sandbox.helpdesk("acme").installations() == []
    refused = ask(sandbox, grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert refused.json() == {"error": "invalid_grant"}
    assert call_account(sandbox, tokens["access_token"]) == 200
    assert "error=access_denied" in sandbox.authorize(authorize_url(sandbox), allow=False)


def test_uninstalling_may_end_the_access_tokens_too_and_the_next_installation_has_new_ones(sandbox: Sandbox) -> None:
    tokens = exchange(sandbox)
    elsewhere = sandbox.access_token("globex", scope="account:read")
    sandbox.helpdesk("acme").uninstall(end_access=True)
    assert call_account(sandbox, tokens["access_token"]) == 401
    assert call_account(sandbox, exchange(sandbox)["access_token"]) == 200
    assert sandbox.runtime.tokens.read(sandbox.helpdesk("globex"), elsewhere) is not None


def test_rotation_replaces_the_refresh_token_and_a_reuse_ends_the_family(clock: Clock) -> None:
    with Sandbox(
        client_id=CLIENT[0],
        client_secret=CLIENT[1],
        redirect_urls=[CALLBACK],
        rotate_refresh_tokens=True,
        now=clock,
    ) as sandbox:
        first = exchange(sandbox)["refresh_token"]
        second = ask(sandbox, grant_type="refresh_token", refresh_token=first).json()["refresh_token"]
        assert second != first
        assert ask(sandbox, grant_type="refresh_token", refresh_token=first).json() == {"error": "invalid_grant"}
        assert ask(sandbox, grant_type="refresh_token", refresh_token=second).json() == {"error": "invalid_grant"}


def test_signing_in_never_leads_out_of_the_account(sandbox: Sandbox) -> None:
    ada = sandbox.helpdesk("acme").users()[0]
    for target in ("http://evil.example/", "//evil.example/acme/", "/globex/app/", "/acme/\\evil.example"):
        answer = requests.post(
            f"{sandbox.url}/acme/sign-in",
            data={"user_id": ada["id"], "next": target},
            allow_redirects=False,
            timeout=5,
        )
        assert answer.headers["Location"] == "/acme/app/"


def test_an_account_that_is_not_served_is_not_found(sandbox: Sandbox) -> None:
    assert requests.get(f"{sandbox.url}/nobody/oauth/authorize", timeout=5).status_code == 404
    assert requests.get(f"{sandbox.url}/nobody/api/account", timeout=5).status_code == 404


def test_the_first_page_lists_the_accounts(sandbox: Sandbox) -> None:
    page = requests.get(sandbox.url, timeout=5).text
    assert "/acme/app/" in page
    assert "/globex/app/" in page


def test_nothing_imports_the_deprecated_jose_module_of_authlib() -> None:
    script = "import sys, sandbox; sys.exit('authlib.jose' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
