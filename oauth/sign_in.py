"""Who is using the console: a person of a helpdesk, proven by signing in there, and what their role lets them do.

The session is Flask's signed cookie. It names the account, the person and their role as last read from Gorgias; before
a change the role is read again when that is older than fifteen minutes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import session

from oauth.gorgias_api import GorgiasApi, GorgiasError, GorgiasReason
from oauth.wire import Identity

SESSION_LIFE = timedelta(hours=12)
ROLE_FRESH = timedelta(minutes=15)

# Only admins may create HTTP integrations:
# https://docs.gorgias.com/en-US/connect-external-apps-to-gorgias-and-create-sidebar-widgets-81822
ADMIN_ROLES = frozenset({"admin"})


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """A signed-in person. Times are seconds since 1970."""

    account_id: int
    user_id: int
    email: str
    name: str
    role: str
    role_read_at: int
    signed_in_at: int

    @property
    def is_admin(self) -> bool:
        """Whether this person may change a connection."""
        return self.role in ADMIN_ROLES

    @property
    def called(self) -> str:
        """What this person is written down as: their address, else their name, else their number in Gorgias."""
        return self.email or self.name or f"user {self.user_id}"


def read_role(api: GorgiasApi, user_id: int) -> str:
    """The role's name of a user, e.g. `admin` or `agent`; empty when there is no such user. Raises GorgiasError.

    Source: https://developers.gorgias.com/reference/the-user-object
    """
    user = api.find(f"/api/users/{user_id}")
    role: Any = (user or {}).get("role")
    return str(role.get("name", "")) if isinstance(role, dict) else ""


def begin_session(identity: Identity, *, account_id: int, role: str, now: datetime) -> Visitor:
    """Sign this person in, in place of whoever was before."""
    seconds = int(now.timestamp())
    visitor = Visitor(
        account_id=account_id,
        user_id=identity.user_id,
        email=identity.email,
        name=identity.name,
        role=role,
        role_read_at=seconds,
        signed_in_at=seconds,
    )
    session.clear()
    session.permanent = True
    session["visitor"] = asdict(visitor)
    return visitor


def end_session() -> None:
    """Sign out."""
    session.clear()


def current_visitor(*, now: datetime) -> Visitor | None:
    """The person of this request, or None when nobody is signed in or the session has ended.

    Raises what stood in the way of opening the session: trouble with the database must not look like its end.
    """
    trouble: Exception | None = getattr(session, "trouble", None)
    if trouble is not None:
        raise trouble
    kept = session.get("visitor")
    try:
        visitor = Visitor(**kept) if isinstance(kept, dict) else None
    except TypeError:
        visitor = None
    if visitor is None or now.timestamp() - visitor.signed_in_at > SESSION_LIFE.total_seconds():
        return None
    return visitor


def with_fresh_role(visitor: Visitor, *, api: GorgiasApi, now: datetime) -> Visitor:
    """The same person with a role read at most fifteen minutes ago. Raises GorgiasError when it cannot be read."""
    if now.timestamp() - visitor.role_read_at <= ROLE_FRESH.total_seconds():
        return visitor
    role = read_role(api, visitor.user_id)
    fresh = Visitor(**{**asdict(visitor), "role": role, "role_read_at": int(now.timestamp())})
    session["visitor"] = asdict(fresh)
    return fresh


def lost_access(error: GorgiasError) -> bool:
    """Whether only connecting anew helps."""
    return error.reason in (
        GorgiasReason.NEEDS_REAUTH,
        GorgiasReason.NOT_CONNECTED,
        GorgiasReason.UNAUTHORIZED,
    )
