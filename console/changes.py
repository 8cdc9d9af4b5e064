"""The audit of the console: who changed what and when, kept for 400 days and shown to everyone of the helpdesk.

Every POST that changes something records it here. What is kept names settings with their values before and after, and
operation ids; never a secret, and no address of a shopper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from flask import Blueprint, render_template, request
from flask.typing import ResponseReturnValue
from sqlalchemy import Connection as Transaction
from sqlalchemy import insert, select

from console import who
from console.room import ConsoleRoom
from oauth.sign_in import Visitor
from schemas.widget import without_addresses
from storage.sealing import CannotOpen
from storage.tables import changes
from widget.connections import MAX_ID

CHANGES_KEPT = timedelta(days=400)
PAGE = 50


class Change(StrEnum):
    """What can be changed; the word is what is kept, and the key of the page's text."""

    ACCOUNT_CONNECTED = "account_connected"
    ACCOUNT_DISCONNECTED = "account_disconnected"
    PROGRAM_CHOSEN = "program_chosen"
    PROGRAM_KEY_REPLACED = "program_key_replaced"
    WEBHOOK_SECRET_SAVED = "webhook_secret_saved"
    WEBHOOKS_STOPPED = "webhooks_stopped"
    SETTINGS_SAVED = "settings_saved"
    PLACEMENT_REPAIRED = "placement_repaired"
    INTEGRATION_SWITCHED_ON = "integration_switched_on"
    CONNECTION_KEYS_REPLACED = "connection_keys_replaced"
    AWARD_UNDONE = "award_undone"
    AWARD_LOOKED_FOR = "award_looked_for"
    AWARD_MARKED = "award_marked"
    AWARDS_EXPORTED = "awards_exported"
    INSPECTOR_STARTED = "inspector_started"
    INSPECTOR_STOPPED = "inspector_stopped"
    NOTICE_URL_SAVED = "notice_url_saved"
    NOTICE_URL_REMOVED = "notice_url_removed"


@dataclass(frozen=True, kw_only=True)
class RecordedChange:
    """One change as kept. `who` is empty where it was erased or cannot be opened."""

    id: int
    at: datetime
    who: str
    what: str
    connection_id: int | None
    details: Mapping[str, Any]


def record(
    room: ConsoleRoom,
    visitor: Visitor,
    what: Change,
    *,
    connection_id: int | None = None,
    details: Mapping[str, Any] | None = None,
    tx: Transaction | None = None,
) -> None:
    """Keep that `visitor` has changed something, in the transaction of the change where there is one to share.

    `details` hold plain JSON: names, numbers, operation ids, and under `changed` a pair of before and after for each
    setting. Addresses in their texts are taken out; secrets must not be given.
    """
    if tx is None:
        with room.database.write() as own:
            record(room, visitor, what, connection_id=connection_id, details=details, tx=own)
        return
    tx.execute(
        insert(changes).values(
            account_id=visitor.account_id,
            connection_id=connection_id,
            at=room.now(),
            who_sealed=room.sealer.seal(visitor.called),
            what=what,
            details=_without_addresses(details or {}),
        )
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What changed between two sets of settings: for each name, the value before and after."""
    return {name: [before.get(name), value] for name, value in after.items() if before.get(name) != value}


def recorded_changes(room: ConsoleRoom, account_id: int, *, before: int | None, limit: int) -> list[RecordedChange]:
    """The account's changes, newest first, at most `limit`: all, or those older than the id `before`."""
    statement = select(changes).where(changes.c.account_id == account_id).order_by(changes.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(changes.c.id < before)
    with room.database.read() as tx:
        rows = tx.execute(statement).all()
    return [
        RecordedChange(
            id=row.id,
            at=row.at,
            who=_opened(room, row.who_sealed),
            what=row.what,
            connection_id=row.connection_id,
            details=row.details,
        )
        for row in rows
    ]


def add_changes(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/changes`."""

    @console.get("/connections/changes")
    def changes() -> ResponseReturnValue:
        _, account = who.signed_in(room)
        asked = request.args.get("before", type=int)
        before = asked if asked is not None and 0 < asked <= MAX_ID else None
        found = recorded_changes(room, account.id, before=before, limit=PAGE + 1)
        return render_template(
            "changes.html",
            changes=found[:PAGE],
            older=found[PAGE - 1].id if len(found) > PAGE else None,
            further=before is not None,
        )


def _opened(room: ConsoleRoom, sealed: str) -> str:
    try:
        return room.sealer.open(sealed)
    except CannotOpen:
        # Sealed with a key of ours that is lost: the page must not fail with it.
        return ""


def _without_addresses(value: Any) -> Any:
    if isinstance(value, str):
        return without_addresses(value)
    if isinstance(value, Mapping):
        return {str(name): _without_addresses(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_addresses(inner) for inner in value]
    return value
