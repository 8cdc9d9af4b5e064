"""How much was awarded, by day and by agent: sums over the journal, for charts.

What stands counts: awards that were applied and not undone since, on the UTC day on which they were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, func, literal_column, or_, select, type_coerce

from loyalty.activity import email_of_agent
from loyalty.journal import AwardState, written_out
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import EPOCH, MICROSECOND, awards

DAYS = 30
MOST_AGENTS = 10

_DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Total:
    """A sum over awards: how many there were, their points, and their store credit in hundredths."""

    awards: int = 0
    points: int = 0
    credit_cents: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(
            awards=self.awards + other.awards,
            points=self.points + other.points,
            credit_cents=self.credit_cents + other.credit_cents,
        )


@dataclass(frozen=True, kw_only=True)
class DayTotal:
    """What was awarded on one UTC day."""

    day: date
    total: Total


@dataclass(frozen=True, kw_only=True)
class AgentTotal:
    """What one agent awarded. `email` is None for agents who were not named, and empty for one who was erased."""

    email: str | None
    agent_hmac: str = field(repr=False)
    total: Total


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The last days, oldest first, those without awards too; the agents who gave most in them; and all `others`
    together, of whom there are `other_agents`."""

    days: Sequence[DayTotal]
    agents: Sequence[AgentTotal]
    other_agents: int
    others: Total

    @property
    def total(self) -> Total:
        """The sum over all days."""
        return sum((day.total for day in self.days), Total())


def totals(database: Database, *, sealer: Sealer, connection_id: int, now: datetime) -> Totals:
    """What was awarded through a connection in the last thirty days, today included."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - (DAYS - 1) * _DAY
    # Whole days since 1970.
    number = type_coerce(awards.c.created_at, BigInteger) // literal_column(str(_DAY // MICROSECOND), BigInteger)
    with database.read(unhurried=True) as tx:
        by_day = {row.key: _total(row) for row in tx.execute(_sums(number, connection_id, since))}
        by_agent = [(row.key, _total(row)) for row in tx.execute(_sums(awards.c.agent_hmac, connection_id, since))]
    by_agent.sort(key=lambda one: (-one[1].points, -one[1].credit_cents, -one[1].awards, one[0]))
    first = (since - EPOCH) // _DAY
    return Totals(
        days=[
            DayTotal(day=(since + ahead * _DAY).date(), total=by_day.get(first + ahead, Total()))
            for ahead in range(DAYS)
        ],
        agents=[
            AgentTotal(
                email=email_of_agent(database, sealer=sealer, connection_id=connection_id, agent_hmac=agent_hmac),
                agent_hmac=agent_hmac,
                total=total,
            )
            for agent_hmac, total in by_agent[:MOST_AGENTS]
        ],
        other_agents=len(by_agent[MOST_AGENTS:]),
        others=sum((total for _, total in by_agent[MOST_AGENTS:]), Total()),
    )


_undo = awards.alias("undo")
_REJECTED = written_out(AwardState.REJECTED)


def _sums(key: ColumnElement[Any], connection_id: int, since: datetime) -> Select[Any]:
    undone = and_(_undo.c.reverses == awards.c.operation_id, _undo.c.state != _REJECTED)
    return (
        select(
            key.label("key"),
            func.count().label("awards"),
            func.sum(awards.c.points).label("points"),
            func.sum(awards.c.credit_cents).label("credit_cents"),
        )
        .select_from(awards.outerjoin(_undo, undone))
        .where(
            awards.c.connection_id == connection_id,
            awards.c.created_at >= since,
            awards.c.state == AwardState.APPLIED,
            awards.c.reverses.is_(None),
            or_(_undo.c.state.is_(None), _undo.c.state != AwardState.APPLIED),
        )
        .group_by(key)
    )


def _total(row: Any) -> Total:
    return Total(awards=row.awards, points=int(row.points), credit_cents=int(row.credit_cents))
