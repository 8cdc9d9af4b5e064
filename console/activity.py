"""What became of awards: the journal for people, undo, and the word of a person where nobody else can tell."""

from __future__ import annotations

from flask import Blueprint, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.naming import PROGRAMS, named
from console.room import ConsoleRoom, Outcome
from loyalty.activity import PAGE, newest_in_review, recent_awards
from loyalty.awards import AwardRefused, Origin, is_operation_id
from loyalty.delivery import Confirmation, Look
from loyalty.program import ProgramKind, ProgramReason, ProgramUnavailable
from widget.sentences import points, refusal_sentence, result_sentence


def add_activity(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>/activity`, and what can be done about an award there."""

    @console.get("/connections/<int:connection_id>/activity")
    def activity(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        found = who.own(room, account, connection_id)
        records = recent_awards(
            room.database,
            sealer=room.sealer,
            connection_id=connection_id,
            before=request.args.get("before"),
            limit=PAGE + 1,
        )
        older = records[PAGE - 1].operation_id if len(records) > PAGE else None
        shown = named(room, found)
        return render_template(
            "activity.html",
            connection=found,
            shown=shown,
            program=PROGRAMS[found.store.program],
            review_url=review_url(room, connection_id) if shown.in_review else "",
            records=records[:PAGE],
            older=older,
            may_change=visitor.is_admin,
            helpdesk=room.settings.gorgias_base(account.name),
        )

    @console.post("/connections/<int:connection_id>/awards/<operation_id>/undo")
    def undo(connection_id: int, operation_id: str) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = who.own(room, account, connection_id)
        try:
            result = room.awards.undo(
                operation_id=operation_id,
                origin=Origin(
                    connection_id=found.id,
                    channel="console",
                    agent_email=visitor.email or None,
                    agent_proven=True,
                ),
            )
            g.outcome = Outcome.DONE
            flash(result_sentence(result), "done")
        except AwardRefused as error:
            g.outcome = error.reason
            flash(refusal_sentence(error), "error")
        except ProgramUnavailable as error:
            g.outcome = error.reason
            flash(_trouble(error, program=found.store.program), "error")
        return _back(connection_id)

    @console.post("/connections/<int:connection_id>/awards/<operation_id>/look")
    def look_again(connection_id: int, operation_id: str) -> ResponseReturnValue:
        _, account = who.admin(room)
        found = who.own(room, account, connection_id)
        try:
            look = room.awards.look_again(operation_id=operation_id, connection_id=found.id)
            g.outcome = look.outcome
            unsure = look.outcome not in (Confirmation.FOUND, Confirmation.APPLIED)
            flash(_look_sentence(look, program=found.store.program), "error" if unsure else "done")
        except AwardRefused as error:
            g.outcome = error.reason
            flash(refusal_sentence(error), "error")
        return _back(connection_id)

    @console.post("/connections/<int:connection_id>/awards/<operation_id>/mark")
    def mark(connection_id: int, operation_id: str) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = who.own(room, account, connection_id)
        applied = {"yes": True, "no": False}.get(request.form.get("applied", ""))
        if applied is None:
            g.outcome = Outcome.FORM_INVALID
            flash("Press either Mark applied or Mark not applied. Nothing was changed.", "error")
            return _back(connection_id)
        try:
            room.awards.mark(
                operation_id=operation_id,
                connection_id=found.id,
                applied=applied,
                by=visitor.email or visitor.name or f"user {visitor.user_id}",
            )
            g.outcome = Outcome.DONE
            flash(_MARKED[applied], "done")
        except AwardRefused as error:
            g.outcome = error.reason
            flash(refusal_sentence(error), "error")
        return _back(connection_id)


def review_url(room: ConsoleRoom, connection_id: int) -> str:
    """Where the newest award that waits for a person is to be seen."""
    operation_id, before = newest_in_review(room.database, connection_id) or (None, None)
    return url_for("console.activity", connection_id=connection_id, before=before, _anchor=operation_id)


def _back(connection_id: int) -> ResponseReturnValue:
    """To the page on which the button was pressed."""
    before = request.form.get("before", "")
    return redirect(
        url_for("console.activity", connection_id=connection_id, before=before if is_operation_id(before) else None),
        code=303,
    )


def _look_sentence(look: Look, *, program: ProgramKind) -> str:
    """What a look at an award in review found."""
    name = PROGRAMS[program]
    if look.outcome in (Confirmation.FOUND, Confirmation.APPLIED):
        balance = "" if look.points_balance is None else f" New balance: {points(look.points_balance)}."
        return f"Found: {name} has this award, so it counts as applied.{balance}"
    if look.outcome is Confirmation.ABSENT:
        return (
            f"{name} shows nothing of this award. Should you find it among the customer's events there, press Mark "
            "applied; if not, press Mark not applied. Nothing was changed."
        )
    if look.outcome is Confirmation.PROGRAM_UNAVAILABLE:
        if isinstance(look.error, ProgramUnavailable) and look.error.reason is not ProgramReason.REFUSED:
            return _trouble(look.error, program=program)
        return f"{name} did not want to tell. Look for the award there yourself, then mark it. Nothing was changed."
    return "Somebody else is looking at this award just now. Reload the page in a minute."


def _trouble(error: ProgramUnavailable, *, program: ProgramKind) -> str:
    """Why the program could not be asked."""
    name = PROGRAMS[program]
    if error.reason is ProgramReason.KEY_REFUSED:
        return (
            f"{name} refuses the key of this connection. Paste the present one under “{name} key” on the connection's "
            "page. Nothing was changed."
        )
    return f"{name} cannot be reached right now. Try again in a minute. Nothing was changed."


_MARKED = {
    True: "Marked as applied. Nothing was sent: the balance is what the program says.",
    False: "Marked as not applied. Nothing was sent; an agent may add it again.",
}
