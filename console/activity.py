"""What became of awards: the journal for people, undo, and the word of a person where nobody else can tell."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.activity_filter import NOBODY, ShownState, Wanted, page_in, wanted_by, wanted_in
from console.changes import Change, record
from console.naming import PROGRAMS, named
from console.room import ConsoleRoom, Outcome
from loyalty.activity import email_of_agent, email_of_member, newest_in_review, one_award, page_of_awards
from loyalty.attempts import ATTEMPTS_KEPT, attempts_of
from loyalty.awards import AwardRefused, Origin
from loyalty.delivery import Confirmation, Look
from loyalty.program import ProgramKind, ProgramReason, ProgramUnavailable
from schemas.console import NOT_NAMED, read_activity_form
from widget.sentences import points, refusal_sentence, result_sentence

# The hidden field of a button that stands on the page of one award.
ON_AWARD = "on"


def add_activity(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>/activity`, and what can be done about an award there."""

    @console.get("/connections/<int:connection_id>/activity")
    def activity(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        found = who.own(room, account, connection_id)
        wanted, place = wanted_in(request.args), page_in(request.args)
        page = page_of_awards(
            room.database,
            sealer=room.sealer,
            connection_id=connection_id,
            wanted=wanted.filter,
            before=place.get("before"),
            after=place.get("after"),
        )
        shown = named(room, found)
        return render_template(
            "activity.html",
            connection=found,
            shown=shown,
            program=PROGRAMS[found.store.program],
            review_url=review_url(room, connection_id) if shown.in_review else "",
            page=page,
            records=page.records,
            states=list(ShownState),
            wanted=wanted,
            filtered=wanted.address,
            # What brings a person back here after a button was pressed.
            place={**wanted.address, **place},
            member=_member_called(room, connection_id, wanted),
            agent=_agent_called(room, connection_id, wanted),
            may_change=visitor.is_admin,
            helpdesk=room.settings.gorgias_base(account.name),
        )

    @console.post("/connections/<int:connection_id>/activity")
    def filter_activity(connection_id: int) -> ResponseReturnValue:
        _, account = who.signed_in(room)
        who.own(room, account, connection_id)
        # By a form that posts: what it asks for may be an e-mail, which must not stand in an address.
        form = read_activity_form(request.form)
        for fault in form.faults:
            g.outcome = Outcome.FORM_INVALID
            flash(fault, "error")
        wanted = wanted_by(form, hasher=room.hasher)
        return redirect(url_for("console.activity", connection_id=connection_id, **_values(wanted.address)), code=303)

    @console.get("/connections/<int:connection_id>/awards/<operation_id>")
    def award_record(connection_id: int, operation_id: str) -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        found = who.own(room, account, connection_id)
        shown_award = one_award(room.database, sealer=room.sealer, connection_id=found.id, operation_id=operation_id)
        if shown_award is None:
            g.outcome = Outcome.NOT_HERE
            abort(404)
        undo = None
        if shown_award.undone_by is not None:
            undo = one_award(
                room.database, sealer=room.sealer, connection_id=found.id, operation_id=shown_award.undone_by
            )
        return render_template(
            "award_record.html",
            connection=found,
            shown=named(room, found),
            program=PROGRAMS[found.store.program],
            built_in=found.store.program is ProgramKind.LEDGER,
            record=shown_award,
            undo=undo,
            attempts=attempts_of(room.database, operation_id),
            attempts_kept=ATTEMPTS_KEPT.days,
            attempts_gone=room.now() - shown_award.when > ATTEMPTS_KEPT,
            by_agent=shown_award.agent_hmac or NOBODY,
            place={ON_AWARD: "award"},
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
            details = {"operation_id": operation_id, "outcome": result.status}
            record(room, visitor, Change.AWARD_UNDONE, connection_id=found.id, details=details)
            g.outcome = Outcome.DONE
            flash(result_sentence(result), "done")
        except AwardRefused as error:
            g.outcome = error.reason
            flash(refusal_sentence(error), "error")
        except ProgramUnavailable as error:
            g.outcome = error.reason
            flash(_trouble(error, program=found.store.program), "error")
        return _back(connection_id, operation_id)

    @console.post("/connections/<int:connection_id>/awards/<operation_id>/look")
    def look_again(connection_id: int, operation_id: str) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = who.own(room, account, connection_id)
        try:
            look = room.awards.look_again(operation_id=operation_id, connection_id=found.id)
            details = {"operation_id": operation_id, "outcome": look.outcome}
            record(room, visitor, Change.AWARD_LOOKED_FOR, connection_id=found.id, details=details)
            g.outcome = look.outcome
            unsure = look.outcome not in (Confirmation.FOUND, Confirmation.APPLIED)
            flash(_look_sentence(look, program=found.store.program), "error" if unsure else "done")
        except AwardRefused as error:
            g.outcome = error.reason
            flash(refusal_sentence(error), "error")
        return _back(connection_id, operation_id)

    @console.post("/connections/<int:connection_id>/awards/<operation_id>/mark")
    def mark(connection_id: int, operation_id: str) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = who.own(room, account, connection_id)
        applied = {"yes": True, "no": False}.get(request.form.get("applied", ""))
        if applied is None:
            g.outcome = Outcome.FORM_INVALID
            flash("Press either Mark applied or Mark not applied. Nothing was changed.", "error")
            return _back(connection_id, operation_id)
        try:
            room.awards.mark(
                operation_id=operation_id,
                connection_id=found.id,
                applied=applied,
                by=visitor.called,
            )
            details = {"operation_id": operation_id, "applied": applied}
            record(room, visitor, Change.AWARD_MARKED, connection_id=found.id, details=details)
            g.outcome = Outcome.DONE
            flash(_MARKED[applied], "done")
        except AwardRefused as error:
            g.outcome = error.reason
            flash(refusal_sentence(error), "error")
        return _back(connection_id, operation_id)


def review_url(room: ConsoleRoom, connection_id: int) -> str:
    """Where the newest award that waits for a person is to be seen."""
    operation_id, before = newest_in_review(room.database, connection_id) or (None, None)
    return url_for("console.activity", connection_id=connection_id, before=before, _anchor=operation_id)


def _back(connection_id: int, operation_id: str) -> ResponseReturnValue:
    """To the page on which the button was pressed."""
    if request.form.get(ON_AWARD) == "award":
        return redirect(
            url_for("console.award_record", connection_id=connection_id, operation_id=operation_id), code=303
        )
    place = {**wanted_in(request.form).address, **page_in(request.form)}
    return redirect(url_for("console.activity", connection_id=connection_id, **_values(place)), code=303)


def _values(place: dict[str, str]) -> dict[str, Any]:
    """Parameters of an address, for url_for, whose own arguments have types."""
    return dict(place)


def _member_called(room: ConsoleRoom, connection_id: int, wanted: Wanted) -> str | None:
    """The e-mail of the member for whose awards was asked; None when nobody was asked for, or nobody is known."""
    if wanted.member is None:
        return None
    return email_of_member(room.database, sealer=room.sealer, connection_id=connection_id, member_hmac=wanted.member)


def _agent_called(room: ConsoleRoom, connection_id: int, wanted: Wanted) -> str | None:
    """As for members; agents who were not named are called so."""
    if wanted.agent is None:
        return None
    if not wanted.agent:
        return NOT_NAMED
    return email_of_agent(room.database, sealer=room.sealer, connection_id=connection_id, agent_hmac=wanted.agent)


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
