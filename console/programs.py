"""Which program a connection shows, and what the merchant brings from it: its key, and the secret of its webhooks.

What is typed there is secret: it stands in no page, address, session or log, whether it is kept or not.
"""

from __future__ import annotations

import structlog
from flask import Blueprint, abort, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import Connection as Transaction

from console import who
from console.changes import Change, record
from console.connection import placed
from console.naming import PROGRAMS, named
from console.room import ConsoleRoom, Outcome
from loyalty import ledger
from loyalty.awards import Rules
from loyalty.program import ProgramKind, ProgramReason, ProgramRefused, ProgramUnavailable
from loyalty.rivo_wire import clean_key
from loyalty.stores import KeyInUse
from oauth.accounts import Account
from oauth.sign_in import Visitor
from schemas.console import BadForm, read_webhook_secret
from widget.connections import Connection

log = structlog.get_logger()


class KeyNotTaken(Exception):
    """The typed key cannot be used. `reason` is the word, the text says what happened and what to do."""

    def __init__(self, reason: Outcome | ProgramReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def add_programs(console: Blueprint, room: ConsoleRoom) -> None:
    """Choosing a program, and Rivo's key and webhook secret."""

    @console.get("/connections/new")
    def add() -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        return choose_page(room, account, may_change=visitor.is_admin)

    @console.post("/connections/")
    def choose() -> ResponseReturnValue:
        visitor, account = who.admin(room)
        program = request.form.get("program")
        if program == ProgramKind.LEDGER:
            with room.database.write() as tx:
                store = ledger.open_store(tx, identity=ledger.identity_for(account.name), now=room.now())
                connection_id = room.connections.open(tx, account_id=account.id, store=store, rules=_rules(room))
                _record_choice(room, visitor, connection_id, ProgramKind.LEDGER, tx=tx)
            return placed(room, connection_id, done="Connected. Everything is in place in Gorgias.")
        if program != ProgramKind.RIVO:
            g.outcome = Outcome.FORM_INVALID
            flash("Choose a program first.", "error")
            return redirect(url_for("console.add"), code=303)
        try:
            secret = request.form.get("webhook_secret", "").strip()
            if secret:
                secret = read_webhook_secret(secret)
            key = _tried_key(room)
        except (BadForm, KeyNotTaken) as error:
            g.outcome = Outcome.FORM_INVALID if isinstance(error, BadForm) else error.reason
            log.info("program_key", outcome=g.outcome)
            flash(f"{error} Nothing was kept.", "error")
            return redirect(url_for("console.add", program=ProgramKind.RIVO.value), code=303)
        return _open_rivo(room, visitor, account, key=key, secret=secret)

    @console.post("/connections/<int:connection_id>/program-key")
    def replace_program_key(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = _own_rivo(room, account, connection_id)
        try:
            key = _tried_key(room)
            try:
                room.stores.replace_key(found.store, account=account.name, key=key)
            except KeyInUse as error:
                raise KeyNotTaken(Outcome.KEY_IN_USE, _in_use(room, found, error.store_id)) from error
        except KeyNotTaken as error:
            g.outcome = error.reason
            flash(f"{error} Nothing was kept; the key that was in use stays.", "error")
        else:
            # They are of the store that the former key opened, which may be another.
            room.snapshots.forget(found.store)
            record(room, visitor, Change.PROGRAM_KEY_REPLACED, connection_id=found.id)
            g.outcome = Outcome.DONE
            flash("The new key is in place. The history of awards is kept; cards are read from Rivo anew.", "done")
        log.info("program_key", outcome=g.outcome, connection=found.id)
        return redirect(url_for("console.connection", connection_id=found.id), code=303)

    @console.post("/connections/<int:connection_id>/webhook-secret")
    def save_webhook_secret(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = _own_rivo(room, account, connection_id)
        page = redirect(url_for("console.connection", connection_id=found.id), code=303)
        if "stop" in request.form:
            room.stores.save_webhook_secret(found.store, secret="")
            record(room, visitor, Change.WEBHOOKS_STOPPED, connection_id=found.id)
            g.outcome = Outcome.DONE
            flash("Webhooks are no longer trusted. Remove them in Rivo under Settings → Webhooks, too.", "done")
            return page
        try:
            secret = read_webhook_secret(request.form.get("webhook_secret", ""))
        except BadForm as error:
            g.outcome = Outcome.FORM_INVALID
            flash(f"{error} Nothing was kept.", "error")
            return page
        had_one = room.stores.standing(found.store).has_webhook_secret
        room.stores.save_webhook_secret(found.store, secret=secret)
        record(room, visitor, Change.WEBHOOK_SECRET_SAVED, connection_id=found.id)
        g.outcome = Outcome.DONE
        former = " The former secret goes on counting until the next change." if had_one else ""
        flash(f"Saved. Webhooks signed with this secret are trusted.{former}", "done")
        return page


def choose_page(room: ConsoleRoom, account: Account, *, may_change: bool) -> ResponseReturnValue:
    """The page on which a program is chosen."""
    has_ledger = any(c.store.program is ProgramKind.LEDGER for c in room.connections.of_account(account.id))
    # What is likeliest: after a key that was not taken another one, and where the ledger is shown already not that.
    likely = ProgramKind.RIVO if has_ledger or request.args.get("program") == ProgramKind.RIVO else ProgramKind.LEDGER
    return render_template("choose_program.html", likely=likely, has_ledger=has_ledger, may_change=may_change)


def _record_choice(
    room: ConsoleRoom, visitor: Visitor, connection_id: int, program: ProgramKind, *, tx: Transaction
) -> None:
    details = {"program": PROGRAMS[program]}
    record(room, visitor, Change.PROGRAM_CHOSEN, connection_id=connection_id, details=details, tx=tx)


def _open_rivo(room: ConsoleRoom, visitor: Visitor, account: Account, *, key: str, secret: str) -> ResponseReturnValue:
    """Show the store of this key, which was just tried; the one that is shown already is shown once."""
    before = {connection.id for connection in room.connections.of_account(account.id)}
    with room.database.write() as tx:
        store = room.stores.open(tx, account=account.name, program=ProgramKind.RIVO, key=key)
        connection_id = room.connections.open(tx, account_id=account.id, store=store, rules=_rules(room))
        _record_choice(room, visitor, connection_id, ProgramKind.RIVO, tx=tx)
    if secret:
        room.stores.save_webhook_secret(store, secret=secret)
        record(room, visitor, Change.WEBHOOK_SECRET_SAVED, connection_id=connection_id)
    log.info("program_key", outcome=Outcome.DONE, connection=connection_id)
    if connection_id in before:
        done = "This key was in use already, by this connection. Everything is in place in Gorgias."
    else:
        done = "Connected. Everything is in place in Gorgias."
    return placed(room, connection_id, done=done)


def _rules(room: ConsoleRoom) -> Rules:
    """What a new connection allows."""
    defaults = room.settings
    return Rules(
        max_points_per_award=defaults.max_points_per_award,
        max_points_per_agent_per_day=defaults.max_points_per_agent_per_day,
        max_points_per_day=defaults.max_points_per_connection_per_day,
    )


def _own_rivo(room: ConsoleRoom, account: Account, connection_id: int) -> Connection:
    found = who.own(room, account, connection_id)
    if found.store.program is not ProgramKind.RIVO:
        g.outcome = Outcome.NOT_HERE
        abort(404)
    return found


def _tried_key(room: ConsoleRoom) -> str:
    """The key in the form, once Rivo took it. Raises KeyNotTaken."""
    try:
        key = clean_key(request.form.get("api_key", ""))
    except ValueError as error:
        raise KeyNotTaken(Outcome.FORM_INVALID, str(error)) from None
    try:
        room.rivo.try_key(key, gate=room.stores.gate_of(ProgramKind.RIVO, key))
    except (ProgramUnavailable, ProgramRefused) as error:
        raise KeyNotTaken(error.reason, _NOT_TAKEN[error.reason]) from error
    return key


def _in_use(room: ConsoleRoom, connection: Connection, store_id: int) -> str:
    """Which connection has the key that was typed for `connection`: the one that shows this store."""
    for other in room.connections.of_account(connection.account_id):
        if other.store.id == store_id:
            return (
                f"This key is in use already, by {named(room, other).name}: a store is shown once. Copy the key of the "
                "store that belongs here."
            )
    return (
        "This key belongs to a store that this helpdesk showed before it was disconnected. Choose it under Add another "
        "store: its history is still there."
    )


_AGAIN = "Try again in a minute."
_CHECK = f"{_AGAIN} If it goes on, ask whoever runs this service to check RIVO_URL."
_BUSY = "Rivo takes no more calls for this key just now. Try again in a few seconds."
_NOT_TAKEN = {
    # UNKNOWN which of the two a 401 and a 403 mean in every case, so that both remedies are named.
    ProgramReason.KEY_REFUSED: "Rivo refuses this key. Copy the REST API key once more, complete, from Rivo under "
    "Settings → Developer Toolkit → REST API Keys: it may have been regenerated. If it is the right one, the store's "
    "Rivo plan must include the Developer Toolkit.",
    ProgramReason.NOT_REACHED: f"Rivo could not be reached, so the key could not be tried. {_CHECK}",
    ProgramReason.NO_ANSWER: f"Rivo did not answer, so the key could not be tried. {_AGAIN}",
    ProgramReason.SERVER_ERROR: f"Rivo is in trouble, so the key could not be tried. {_AGAIN}",
    ProgramReason.UNREADABLE: f"Rivo gave an answer that cannot be read, so the key could not be tried. {_CHECK}",
    ProgramReason.REFUSED: f"Rivo did not want to try this key. {_CHECK}",
    ProgramReason.BREAKER_OPEN: "Rivo failed several times in a row and is left alone for a few seconds, so the key "
    f"could not be tried. {_AGAIN}",
    ProgramReason.BUSY: _BUSY,
    ProgramReason.BUDGET_SPENT: _BUSY,
}
