"""The JWTs that the sandbox signs and reads: access tokens and id_tokens, RS256, with a key kept with the records."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from sandbox.records import Records
from sandbox.state import Helpdesk

ACCESS_TOKEN_LIFE = timedelta(hours=24)


@cache
def _key_of_this_process() -> RSAKey:
    """One key for all sandboxes that keep nothing: making one takes up to a third of a second."""
    return RSAKey.generate_key(2048, parameters={"kid": secrets.token_hex(8), "use": "sig"}, private=True)


class Tokens:
    """Signs and reads the sandbox's JWTs (RS256). The key is kept with the records."""

    def __init__(self, records: Records, *, client_id: str, now: Callable[[], datetime], durable: bool) -> None:
        self._now = now
        self._client_id = client_id
        stored = records.get("", "meta", "signing_key") if durable else None
        self.key = _key_of_this_process() if stored is None else RSAKey.import_key(stored)
        if durable and stored is None:
            records.put("", "meta", "signing_key", dict(self.key.as_dict(private=True)))
        self.header = {"alg": "RS256", "kid": self.key.kid}

    def access_token(self, helpdesk: Helpdesk, *, user_id: int, scope: str) -> str:
        """A token that acts as this user for 24 hours. `scope` is space-separated."""
        issued = int(self._now().timestamp())
        claims = {
            "iss": helpdesk.base_url,
            "sub": user_id,
            "aud": f"{helpdesk.base_url}/api",
            "iat": issued,
            "exp": issued + int(ACCESS_TOKEN_LIFE.total_seconds()),
            "azp": self._client_id,
            # Opaque to everyone else: the generation tells which tokens were ended all at once.
            "jti": f"{helpdesk.access_generation:08x}{secrets.token_hex(12)}",
            "scope": scope,
        }
        return jwt.encode(self.header, claims, self.key, ["RS256"])

    def read(self, helpdesk: Helpdesk, token: str) -> Mapping[str, Any] | None:
        """The claims of an access token of this account, or None when it is forged, foreign, expired or was ended.

        Revoking does not show here: the token is stateless and lives until `exp`.
        """
        try:
            claims = jwt.decode(token, self.key, ["RS256"]).claims
        except (JoseError, ValueError):
            return None
        if claims.get("iss") != helpdesk.base_url or claims.get("aud") != f"{helpdesk.base_url}/api":
            return None
        if int(str(claims.get("jti"))[:8], 16) < helpdesk.access_generation:
            return None
        return claims if claims.get("exp", 0) > self._now().timestamp() else None
