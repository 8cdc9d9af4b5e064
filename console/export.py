"""The log of awards as a file for spreadsheets.

It holds the e-mails of every member and agent at once, so only admins take it, and each time is written down.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain

import structlog
from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from console import who
from console.activity_filter import wanted_in
from console.changes import Change, record
from console.room import ConsoleRoom
from loyalty.activity import AwardRecord, all_awards, count_awards
from storage.trouble import TROUBLE, trouble_sentence

COLUMNS = (
    "operation_id",
    "asked_at",
    "state",
    "points",
    "store_credit",
    "member_email",
    "agent_email",
    "agent_signed_in",
    "reason",
    "ticket_id",
    "channel",
    "points_balance_after",
    "settled_at",
    "settled_by",
    "told",
    "marked_by",
    "sends",
    "note_on_ticket",
    "undo_of",
    "undone_by",
)
BROKEN_OFF = "The export broke off here, because the database did not answer: this file is not complete. Export again."

# Spreadsheets take a cell that begins so for a formula, or drop what comes before it. One that splits at another sign
# than the comma begins a cell there, too, and takes a quotation mark there for its own:
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(r"(^|[;\t|])(?=[\s\"]*[=+\-@＝＋－＠]|[\t\r\n])")

log = structlog.get_logger()


def add_export(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>/activity.csv`."""

    @console.get("/connections/<int:connection_id>/activity.csv")
    def export_activity(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = who.own(room, account, connection_id)
        wanted = wanted_in(request.args)
        batches = all_awards(room.database, sealer=room.sealer, connection_id=found.id, wanted=wanted.filter)
        # Before anything is answered: trouble with the database is a page then, and not the beginning of a file.
        first = next(batches, [])
        rows = count_awards(room.database, connection_id=found.id, wanted=wanted.filter)
        asked = {name: True if name in ("member", "agent") else value for name, value in wanted.address.items()}
        details = {"rows": rows, **asked}
        record(room, visitor, Change.AWARDS_EXPORTED, connection_id=found.id, details=details)
        name = f"tallydesk-{account.name}-{found.id}-{room.now():%Y-%m-%d}.csv"
        return Response(
            _file(chain([first], batches)),
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


def spreadsheet_safe(text: str) -> str:
    """Text that no spreadsheet executes: an apostrophe stands before whatever it would take for a formula.

    Only for text. Numbers of ours are written as they are, so that -50 stays one.
    """
    return _FORMULA.sub(r"\1'", text)


def _file(batches: Iterable[Sequence[AwardRecord]]) -> Iterator[str]:
    # Excel takes a file without this mark for one in an old encoding.
    yield "\ufeff" + _lines([COLUMNS])
    try:
        for records in batches:
            yield _lines(map(_row, records))
    except TROUBLE as error:
        # The answer has begun, so its status can no longer tell.
        log.error("export", outcome="broken_off", trouble=trouble_sentence(error))
        yield _lines([[BROKEN_OFF]])


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _row(record: AwardRecord) -> list[object]:
    cells: tuple[object, ...] = (
        record.operation_id,
        record.when,
        record.state,
        record.points if not record.credit_cents else None,
        Decimal(record.credit_cents) / 100 if record.credit_cents else None,
        record.member_email,
        record.agent_email,
        "yes" if record.agent_proven else "no",
        record.reason,
        record.ticket_id,
        record.channel,
        record.balance_after,
        record.settled_at,
        record.settled_by,
        record.told,
        record.marked_by,
        record.sends,
        record.note_state,
        record.reverses,
        record.undone_by if record.is_undone else None,
    )
    return [_cell(cell) for cell in cells]


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return f"{value:.2f}"
    return spreadsheet_safe(value) if isinstance(value, str) else value
