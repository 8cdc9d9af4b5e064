"""Which part of the log of awards a page shows, as it stands in the page's address.

An address holds no e-mail: people are named there by their HMAC, which means nothing to anybody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from loyalty.activity import AwardFilter
from loyalty.awards import is_operation_id
from loyalty.journal import AwardState
from schemas.console import ActivityForm, read_day
from storage.sealing import Hasher

# Stands for an agent's HMAC where the agent was not named.
NOBODY = "none"


class ShownState(StrEnum):
    """The states among which a person chooses: to them, an award that waits to be sent is being sent."""

    APPLIED = "applied"
    REJECTED = "rejected"
    SENDING = "sending"
    UNKNOWN = "unknown"
    NEEDS_REVIEW = "needs_review"


_STATES = {
    ShownState.APPLIED: (AwardState.APPLIED,),
    ShownState.REJECTED: (AwardState.REJECTED,),
    ShownState.SENDING: (AwardState.PENDING, AwardState.SENDING),
    ShownState.UNKNOWN: (AwardState.UNKNOWN,),
    ShownState.NEEDS_REVIEW: (AwardState.NEEDS_REVIEW,),
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The awards that are wanted; what is None does not matter. Days are UTC's, both included.

    `member` and `agent` are HMACs; `agent` is empty for agents who were not named.
    """

    state: ShownState | None = None
    member: str | None = field(default=None, repr=False)
    agent: str | None = field(default=None, repr=False)
    since: date | None = None
    until: date | None = None

    @property
    def address(self) -> dict[str, str]:
        """The same as parameters of an address; empty when everything is wanted."""
        named = {
            "state": self.state,
            "member": self.member,
            "agent": NOBODY if self.agent == "" else self.agent,
            "from": None if self.since is None else self.since.isoformat(),
            "to": None if self.until is None else self.until.isoformat(),
        }
        return {name: str(value) for name, value in named.items() if value is not None}

    @property
    def filter(self) -> AwardFilter:
        """The same for the journal."""
        return AwardFilter(
            states=None if self.state is None else _STATES[self.state],
            member_hmac=self.member,
            agent_hmac=self.agent,
            since=None if self.since is None else _midnight(self.since),
            until=None if self.until is None else _midnight(self.until + timedelta(days=1)),
        )


def wanted_in(address: Mapping[str, str]) -> Wanted:
    """What an address, or the hidden fields of a form, ask for. Whatever is no such thing is left out."""
    agent = address.get("agent", "")
    return Wanted(
        state=_state(address.get("state", "")),
        member=_hmac(address.get("member", "")),
        agent="" if agent == NOBODY else _hmac(agent),
        since=read_day(address.get("from", "")),
        until=read_day(address.get("to", "")),
    )


def wanted_by(form: ActivityForm, *, hasher: Hasher) -> Wanted:
    """What a person asked for by the form."""
    return Wanted(
        state=_state(form.state),
        member=None if form.member is None else hasher.email(form.member),
        agent=hasher.email(form.agent) if form.agent else form.agent,
        since=form.since,
        until=form.until,
    )


def page_in(address: Mapping[str, str]) -> dict[str, str]:
    """Which page of the list an address asks for: `before` or `after` an operation, or neither."""
    named = {name: address.get(name, "") for name in ("before", "after")}
    return {name: value for name, value in named.items() if is_operation_id(value)}


def _state(text: str) -> ShownState | None:
    return next((state for state in ShownState if state == text), None)


def _hmac(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else None


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)
