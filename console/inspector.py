"""The inspector: what Gorgias asked in the last minutes, in plain sentences, for "why is my macro blank"."""

from __future__ import annotations

from flask import Blueprint, flash, g, redirect, render_template, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.changes import Change, record
from console.naming import named
from console.room import ConsoleRoom, Outcome
from loyalty.awards import Status
from widget.inspector import WATCHED_FOR, Field, Inspected, Kind, inspected
from widget.room import CUSTOMER
from widget.room import Outcome as Answered

SHOWN = 100


def add_inspector(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>/inspector`, and switching it on and off."""

    @console.get("/connections/<int:connection_id>/inspector")
    def inspector(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        found = who.own(room, account, connection_id)
        until = found.inspect_until
        seen = inspected(room.database, connection_id)
        return render_template(
            "inspector.html",
            connection=found,
            shown=named(room, found),
            until=until if until is not None and room.now() < until else None,
            rows=[
                (request, sentence_of(request), [(field.name, _told(field)) for field in request.fields or ()])
                for request in seen[:SHOWN]
            ],
            further=len(seen) - SHOWN,
            may_change=visitor.is_admin,
        )

    @console.post("/connections/<int:connection_id>/inspector/start")
    def start_inspector(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        who.own(room, account, connection_id)
        with room.database.write() as tx:
            room.connections.inspect(tx, connection_id, until=room.now() + WATCHED_FOR)
            record(room, visitor, Change.INSPECTOR_STARTED, connection_id=connection_id, tx=tx)
        g.outcome = Outcome.DONE
        flash("What Gorgias asks is recorded for ten minutes. Now write a message on a ticket, then reload.", "done")
        return redirect(url_for("console.inspector", connection_id=connection_id), code=303)

    @console.post("/connections/<int:connection_id>/inspector/stop")
    def stop_inspector(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        who.own(room, account, connection_id)
        with room.database.write() as tx:
            room.connections.inspect(tx, connection_id, until=None)
            record(room, visitor, Change.INSPECTOR_STOPPED, connection_id=connection_id, tx=tx)
        g.outcome = Outcome.DONE
        flash("Nothing is recorded any more. What was recorded is erased within the hour.", "done")
        return redirect(url_for("console.inspector", connection_id=connection_id), code=303)


def sentence_of(request: Inspected) -> str:
    """What one request was about, how it was answered, and what to do where that is not what somebody wants."""
    return _lookup(request) if request.route == CUSTOMER else _button(request)


def _lookup(request: Inspected) -> str:
    if request.outcome in (Answered.UNAVAILABLE, Answered.CRASHED):
        return (
            "Tallydesk itself could not answer. The card said “Temporarily unavailable”; its other values were blank. "
            "Whoever runs this service finds the reason in its log."
        )
    email = request.field("email")
    asked = f"Gorgias asked for {email.shown if email is not None and email.shown else 'a customer'}"
    if request.outcome == Answered.FOUND:
        return f"{asked}: a member. The card and the macro variables were filled in."
    if request.outcome == Answered.NOT_FOUND:
        return (
            f"{asked}, who is not in the loyalty program. The status says “Customer not found”, the other variables "
            "are blank. Compare it with the address that the customer has in your shop."
        )
    if request.outcome == Answered.PROGRAM_UNAVAILABLE:
        return (
            f"{asked}, and the loyalty program did not tell in time. The status said “Temporarily unavailable”, the "
            "other variables were blank. New activity on the ticket asks again."
        )
    return _no_address(email)


def _no_address(email: Field | None) -> str:
    """Why a lookup came without an address."""
    if email is None:
        return (
            "Gorgias asked without an e-mail: the address of the integration was changed in Gorgias. Press Repair on "
            "the connection’s page."
        )
    blank = "The status says “Customer not found”, the other variables are blank."
    if email.kind is Kind.VARIABLE:
        return (
            f"Gorgias asked for a customer; the e-mail arrived as {email.shown}, unresolved. {blank} Gorgias had no "
            "customer to put there, or the integration’s address was changed: then press Repair."
        )
    if email.kind is Kind.EMPTY:
        return (
            f"Gorgias asked for a customer without an e-mail address, as chats and social messages have. {blank} "
            "Set the customer’s e-mail in Gorgias; new activity on the ticket asks again."
        )
    return (
        f"What arrived as e-mail is no address ({email.length} characters). {blank} Mend the customer’s e-mail in "
        "Gorgias."
    )


_BUTTON: dict[str, str] = {
    Status.APPLIED: "A button added it.",
    Status.ALREADY_APPLIED: "A button was pressed twice; it was added once.",
    Status.BEING_CONFIRMED: "A button was pressed; the loyalty program has not confirmed it yet.",
}


def _button(request: Inspected) -> str:
    refused = f"A button was pressed and refused: {request.outcome.replace('_', ' ')}. Nothing was added."
    told = _BUTTON.get(request.outcome, refused)
    if request.fields is None:
        return f"{told} What it sent could not be read."
    points = request.field("points")
    if (points is None or points.kind is not Kind.NUMBER) and request.field("store_credit") is None:
        told += (
            " No points arrived: the button’s field did not open or was left empty. The card’s link “Add points in "
            "Tallydesk” needs none."
        )
    return told


def _told(field: Field) -> str:
    """A field's value as far as it was kept."""
    if field.kind is Kind.EMPTY:
        return f"empty ({field.shown})" if field.shown else "empty"
    if field.kind is Kind.VARIABLE:
        return f"{field.shown}, unresolved"
    if field.kind is Kind.NO_ADDRESS:
        return f"no address, {field.length} characters"
    return field.shown or f"text, {field.length} characters"
