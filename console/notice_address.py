"""Where a merchant is told of trouble: the form on the page of all connections.

The address is a secret of the merchant's chat: it stands in no page, session or log, and of it only the host is shown.
"""

from __future__ import annotations

from flask import Blueprint, flash, g, redirect, request, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.changes import Change, record
from console.room import ConsoleRoom, Outcome
from notices import BadNoticeUrl


def add_notice_address(console: Blueprint, room: ConsoleRoom) -> None:
    """What the form posts to."""

    @console.post("/connections/notices")
    def save_notice_address() -> ResponseReturnValue:
        visitor, account = who.admin(room)
        page = redirect(url_for("console.connections", _anchor="notices"), code=303)
        if "stop" in request.form:
            room.notices.stop(account.id)
            record(room, visitor, Change.NOTICE_URL_REMOVED)
            g.outcome = Outcome.DONE
            flash("Nobody is told any more; the address is forgotten.", "done")
            return page
        try:
            room.notices.keep(account.id, account=account.name, typed=request.form.get("notice_url", ""))
        except BadNoticeUrl as error:
            g.outcome = Outcome.FORM_INVALID
            flash(f"{error} Nothing was saved.", "error")
            return page
        record(room, visitor, Change.NOTICE_URL_SAVED)
        g.outcome = Outcome.DONE
        flash(f"Saved. A first notice has arrived at {room.notices.host(account.id)}.", "done")
        return page
