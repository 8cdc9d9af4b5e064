"""Everything held about one person, in plain words; of other people nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from privacy.person import Person, rows_naming
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import (
    EPOCH,
    MICROSECOND,
    accounts,
    awards,
    changes,
    connections,
    ledger_entries,
    ledger_transactions,
    members,
    snapshots,
    stores,
)

NOT_IN_HERE = (
    "The loyalty program of a store that is not the built-in ledger (Rivo) and the helpdesk (Gorgias) hold data of "
    "their own about this person: ask there too. Backups of this database may hold more than it does now."
)


def export(database: Database, *, person: Person, sealer: Sealer, now: datetime) -> dict[str, Any]:
    """What is held, ready for JSON, as of one moment. Raises CannotOpen."""
    with database.read(unhurried=True) as tx:
        as_agent, as_admin = awards.c.agent_hmac.in_(person.hmacs), awards.c.marked_by_sealed
        return {
            "about": person.email,
            "as_of": _time(now),
            "as_member": {
                "of_the_built_in_ledger": _ledger_members(tx, person, sealer),
                "as_last_read_from_programs_elsewhere": _snapshots(tx, person, sealer),
                "awards_received": _awards(tx, awards.c.member_hmac.in_(person.hmacs), with_words=True),
            },
            "as_agent": {
                "awards_made": _awards(tx, as_agent),
                "awards_decided": [
                    award
                    for row in rows_naming(tx, person, sealed=as_admin, also=(awards.c.operation_id,), sealer=sealer)
                    for award in _awards(tx, awards.c.operation_id == row.operation_id)
                ],
                "changes_made_in_the_console": _changes(tx, person, sealer),
            },
            "as_admin": {
                "helpdesks_connected": [
                    {"helpdesk": row.name, "connected_at": _time(row.connected_at)}
                    for row in rows_naming(
                        tx,
                        person,
                        sealed=accounts.c.user_email_sealed,
                        also=(accounts.c.name, accounts.c.connected_at),
                        sealer=sealer,
                    )
                ]
            },
            "not_in_here": NOT_IN_HERE,
        }


def is_empty(exported: dict[str, Any]) -> bool:
    """Whether an export found nobody."""
    return not any(rows for part in ("as_member", "as_agent", "as_admin") for rows in exported[part].values())


def _ledger_members(tx: Connection, person: Person, sealer: Sealer) -> list[dict[str, Any]]:
    found = tx.execute(select(members).where(members.c.email_hmac.in_(person.hmacs)).order_by(members.c.id)).all()
    return [
        {
            "shown_in": _shown_in(tx, row.store_id),
            "email": person.email,
            "status": row.status,
            "points_balance": row.balance,
            "lifetime_points": row.lifetime_points,
            "customer_id": row.customer_id,
            "date_of_birth": None if row.date_of_birth_sealed is None else sealer.open(row.date_of_birth_sealed),
            "referral_code": row.referral_code,
            "since": _time(row.created_at),
            "history": _history(tx, row.id),
        }
        for row in found
    ]


def _history(tx: Connection, member_id: int) -> list[dict[str, Any]]:
    booked = ledger_transactions.c
    rows = tx.execute(
        select(booked.created_at, booked.kind, booked.what, booked.operation_id, booked.points)
        .join(ledger_entries, ledger_entries.c.transaction_id == booked.id)
        .where(ledger_entries.c.member_id == member_id)
        .order_by(booked.id)
    )
    return [
        {
            "when": _time(row.created_at),
            "kind": row.kind,
            "what": row.what,
            "points": row.points,
            "operation_id": row.operation_id,
        }
        for row in rows
    ]


def _snapshots(tx: Connection, person: Person, sealer: Sealer) -> list[dict[str, Any]]:
    rows = tx.execute(
        select(snapshots, stores.c.program)
        .join(stores, stores.c.id == snapshots.c.store_id)
        .where(snapshots.c.email_hmac.in_(person.hmacs), snapshots.c.as_of.is_not(None))
        .order_by(snapshots.c.id)
    ).all()
    return [
        {
            "program": row.program,
            "shown_in": _shown_in(tx, row.store_id),
            "state": row.state,
            "as_of": _time(row.as_of),
            "email": person.email if row.email_sealed else None,
            "date_of_birth": None if row.date_of_birth_sealed is None else sealer.open(row.date_of_birth_sealed),
            **_shown(row.shown),
        }
        for row in rows
    ]


def _shown(shown: dict[str, Any] | None) -> dict[str, Any]:
    if shown is None:
        return {}
    activity = [
        {"when": _time(EPOCH + when * MICROSECOND), "what": what, "points": points, "operation_id": operation_id}
        for when, what, points, operation_id in shown["activity"]
    ]
    return {**shown, "activity": activity}


def _awards(tx: Connection, mine: ColumnElement[bool], *, with_words: bool = False) -> list[dict[str, Any]]:
    """Awards without anybody's name. `with_words`: those about the member, who is the one that asks."""
    rows = tx.execute(select(awards).where(mine).order_by(awards.c.created_at, awards.c.operation_id)).all()
    about = ("reason", "told", "ticket_id", "balance_after") if with_words else ()
    return [
        {
            "operation_id": row.operation_id,
            "shown_in": _shown_in(tx, row.store_id),
            "when": _time(row.created_at),
            "state": row.state,
            "points": row.points,
            "store_credit": f"{row.credit_cents / 100:.2f}" if row.credit_cents else None,
            "channel": row.channel,
            "undo_of": row.reverses,
            **{name: getattr(row, name) for name in about},
        }
        for row in rows
    ]


def _changes(tx: Connection, person: Person, sealer: Sealer) -> list[dict[str, Any]]:
    also = (changes.c.account_id, changes.c.at, changes.c.what, changes.c.details)
    found = list(rows_naming(tx, person, sealed=changes.c.who_sealed, also=also, sealer=sealer))
    names = {row.id: row.name for row in tx.execute(select(accounts.c.id, accounts.c.name))} if found else {}
    return [
        {"helpdesk": names[row.account_id], "when": _time(row.at), "what": row.what, "details": row.details}
        for row in found
    ]


def _shown_in(tx: Connection, store_id: int) -> list[str]:
    """The helpdesks that show the store, or did."""
    return list(
        tx.scalars(
            select(accounts.c.name)
            .join(connections, connections.c.account_id == accounts.c.id)
            .where(connections.c.store_id == store_id)
            .order_by(accounts.c.name)
        )
    )


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
