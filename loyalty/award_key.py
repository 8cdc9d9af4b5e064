"""One-time keys of the award button: a nonce and a code over connection, member and time. Nothing is stored until use.

A card carries a fresh key. Two clicks on one card bring the same key, so the second is recognised; a card fetched after
the award brings a new one, so a deliberate second award goes through at once.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime

from storage.sealing import Hasher, RandomBytes

_NONCE, _TIME, _MEMBER, _CODE = 12, 5, 16, 16


@dataclass(frozen=True, kw_only=True)
class AwardKey:
    """A key that verified: it was minted by us for this member. `nonce` is what its use is recorded by."""

    nonce: str
    member_hmac: str


def mint(
    *,
    hasher: Hasher,
    connection_id: int,
    member_hmac: str,
    now: datetime,
    random_bytes: RandomBytes,
) -> str:
    """A new key, 68 URL-safe characters."""
    body = random_bytes(_NONCE) + int(now.timestamp()).to_bytes(_TIME) + bytes.fromhex(member_hmac)
    return urlsafe_b64encode(body + _code(hasher, connection_id, body)).decode().rstrip("=")


def verify(text: str, *, hasher: Hasher, connection_id: int) -> AwardKey | None:
    """The key behind `text`, or None when it is missing, unresolved, damaged or of another connection."""
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:
        return None
    if len(raw) != _NONCE + _TIME + _MEMBER + _CODE:
        return None
    body, code = raw[:-_CODE], raw[-_CODE:]
    if not hmac.compare_digest(code, _code(hasher, connection_id, body)):
        return None
    return AwardKey(nonce=body[:_NONCE].hex(), member_hmac=body[-_MEMBER:].hex())


def _code(hasher: Hasher, connection_id: int, body: bytes) -> bytes:
    return hasher.award_key(connection_id.to_bytes(8) + body)
