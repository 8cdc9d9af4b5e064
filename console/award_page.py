"""Awards by a signed-in agent: the page that the card's link opens, for where the button's field does not work.

The link carries the card's award key and the ticket's number, never an address. The key says who the customer is and is
good for one award, however late: it ends when it is used, not by time. Whoever comes without one enters the address in
a form and gets a key. Everyone of the helpdesk may award here, within the connection's limits; who it was is proven.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from flask import Blueprint, flash, g, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from console import who
from console.naming import named
from console.room import ConsoleRoom, Outcome
from loyalty import award_key
from loyalty.activity import AwardRecord, one_award
from loyalty.award_key import AwardKey
from loyalty.award_use import use_of
from loyalty.awards import AwardRefused, AwardRequest, AwardResult, Origin, Refusal, Status
from loyalty.journal import AwardState
from loyalty.program import Member, MemberStatus, ProgramKind, ProgramUnavailable
from oauth.return_to import seal_return_to
from schemas.email import normalise, read_addresses
from schemas.widget import MAX_REASON, BadRequest, read_award
from storage.sealing import CannotOpen
from telemetry import AWARDS
from widget.connections import Connection, ConnectionState
from widget.sentences import program_trouble_sentence, refusal_sentence, result_sentence

CHANNEL = "page"
# What is typed and shown again when it could not be taken; sealed, since a reason may name anybody. So many characters
# of each: a browser drops a cookie of more than 4 KB, and with it what it should tell.
TYPED = {"points": 20, "store_credit": 20, "reason": MAX_REASON, "email": 254}

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Link:
    """What the card's link brought; each is empty where Gorgias filled nothing in."""

    award_key: str
    ticket_id: str

    def address(self, connection_id: int) -> str:
        """The page's address with these values."""
        return url_for(
            "console.award_page",
            connection_id=connection_id,
            award_key=self.award_key or None,
            ticket_id=self.ticket_id or None,
        )


def add_award_page(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>/award` and what its forms post to."""

    @console.get("/connections/<int:connection_id>/award")
    def award_page(connection_id: int) -> ResponseReturnValue:
        link = _read_link(request.args)
        connection = room.connections.by_id(connection_id)
        key = _verified(room, connection_id, link)
        try:
            _, account = who.signed_in(room)
        except who.SignInNeeded:
            g.outcome = Outcome.SIGN_IN_NEEDED
            # Only who has the key is told which helpdesk a connection belongs to.
            if connection is not None and key is not None and connection.state is ConnectionState.ACTIVE:
                return _sign_in(room, connection, link)
            return render_template("award_sign_in.html", elsewhere=False, return_to=_sealed(room, connection_id, link))
        if connection is None or connection.account_id != account.id or connection.state is not ConnectionState.ACTIVE:
            g.outcome = Outcome.NOT_HERE
            known = connection is not None and key is not None and connection.state is ConnectionState.ACTIVE
            page = render_template(
                "award_sign_in.html",
                elsewhere=True,
                helpdesk_name=connection.account_name if connection is not None and known else "",
                connection_id=connection_id,
                link=link,
                return_to=_sealed(room, connection_id, link),
            )
            return page, 404
        operation_id = None if key is None else use_of(room.database, connection_id=connection_id, key=key)
        if key is not None and operation_id is not None:
            used = one_award(room.database, sealer=room.sealer, connection_id=connection_id, operation_id=operation_id)
            if used is not None and used.state is not AwardState.REJECTED and not used.is_undone:
                return _to_result(connection_id, operation_id)
            # It added nothing, but the key is on record: another form needs another one.
            link = Link(award_key=_new_key(room, connection_id, key.member_hmac), ticket_id=link.ticket_id)
        return _page(room, connection, link, key)

    @console.post("/connections/<int:connection_id>/award")
    def award(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.agent(room)
        connection = who.own(room, account, connection_id)
        link = _read_link(request.form)
        key = _verified(room, connection_id, link)
        if key is None:
            g.outcome = Refusal.MEMBER_MISSING
            flash("This form names no customer. Enter the customer’s e-mail address. Nothing was added.", "error")
            return redirect(Link(award_key="", ticket_id=link.ticket_id).address(connection_id), code=303)
        earlier = use_of(room.database, connection_id=connection_id, key=key)
        if earlier is not None:
            g.outcome = Status.ALREADY_APPLIED
            AWARDS.labels(Status.ALREADY_APPLIED).inc()
            flash("This form was sent before, and it is good for one award. Nothing more was added.", "done")
            return _to_result(connection_id, earlier)
        try:
            asked = _asked(link, key, connection_id=connection_id, agent_email=normalise(visitor.email))
            result = room.awards.award(connection.store, request=asked, rules=connection.rules)
        except BadRequest as error:
            return _not_added(room, connection_id, link, error.reason, str(error))
        except AwardRefused as error:
            return _not_added(room, connection_id, link, error.reason, refusal_sentence(error))
        except ProgramUnavailable as error:
            return _not_added(room, connection_id, link, error.reason, program_trouble_sentence(error))
        g.outcome = result.status
        AWARDS.labels(result.status).inc()
        log.info("award", outcome=result.status, channel=CHANNEL, operation_id=result.operation_id)
        if result.status is Status.ALREADY_APPLIED:
            flash("This form was sent twice, and it is good for one award. Nothing more was added.", "done")
        return _to_result(connection_id, result.operation_id)

    @console.post("/connections/<int:connection_id>/award/customer")
    def award_customer(connection_id: int) -> ResponseReturnValue:
        """An address in a form, for a key in an address."""
        _, account = who.signed_in(room)
        connection = who.own(room, account, connection_id)
        link = Link(award_key="", ticket_id=_read_link(request.form).ticket_id)
        addresses = read_addresses([request.form.get("email", "")])
        trouble, member = "", None
        try:
            member = room.members.first(connection.store, emails=addresses)
        except ProgramUnavailable as error:
            g.outcome = error.reason
            trouble = "The loyalty program cannot be reached right now. Try again in a minute."
        if member is not None:
            g.outcome = Outcome.DONE
            fresh = _new_key(room, connection_id, room.hasher.email(member.email))
            return redirect(Link(award_key=fresh, ticket_id=link.ticket_id).address(connection_id), code=303)
        if not addresses:
            g.outcome = Outcome.FORM_INVALID
            trouble = "That is not an e-mail address. Enter the whole address, such as jane@example.com."
        elif not trouble:
            g.outcome = Refusal.MEMBER_NOT_FOUND
            trouble = "Customer not found: nobody in the loyalty program has this e-mail address."
        flash(trouble, "error")
        _keep_typed(room, connection_id)
        return redirect(link.address(connection_id), code=303)

    @console.post("/connections/<int:connection_id>/award/helpdesk")
    def award_helpdesk(connection_id: int) -> ResponseReturnValue:
        """Sign in to the helpdesk of this link, in place of the one the person is signed in to."""
        link = _read_link(request.form)
        connection = room.connections.by_id(connection_id)
        if connection is None or _verified(room, connection_id, link) is None:
            return redirect(link.address(connection_id), code=303)
        return _sign_in(room, connection, link)

    @console.get("/connections/<int:connection_id>/award/<operation_id>")
    def awarded(connection_id: int, operation_id: str) -> ResponseReturnValue:
        """What became of an award: the same however often it is loaded, until something new is known."""
        _, account = who.signed_in(room)
        connection = who.own(room, account, connection_id)
        found = one_award(room.database, sealer=room.sealer, connection_id=connection_id, operation_id=operation_id)
        if found is None or found.reverses is not None:
            g.outcome = Outcome.NOT_HERE
            return render_template("error.html", status=404), 404
        again = ""
        if found.member_email:
            fresh = _new_key(room, connection_id, room.hasher.email(found.member_email))
            again = Link(award_key=fresh, ticket_id=found.ticket_id).address(connection_id)
        return render_template(
            "awarded.html",
            connection=connection,
            shown=named(room, connection),
            award=found,
            sentence=_sentence(found),
            good=found.state is AwardState.APPLIED and not found.is_undone,
            waiting=found.state not in (AwardState.APPLIED, AwardState.REJECTED),
            again=again,
            helpdesk=room.settings.gorgias_base(account.name),
            may_award=True,
        )

    @console.after_request
    def keep_to_ourselves(response: Response) -> Response:
        """Whoever has an unused key and a session may award with it: the address goes nowhere."""
        if request.endpoint in _PAGES:
            response.headers["Referrer-Policy"] = "no-referrer"
        return response


_PAGES = frozenset(f"console.{name}" for name in ("award_page", "award", "award_customer", "award_helpdesk", "awarded"))


def _page(room: ConsoleRoom, connection: Connection, link: Link, key: AwardKey | None) -> ResponseReturnValue:
    email, member, trouble = None, None, ""
    if key is not None:
        email = room.members.email_of(connection.store, member_hmac=key.member_hmac)
    if email is not None:
        try:
            member = room.members.read(connection.store, email=email)
        except ProgramUnavailable:
            trouble = "The loyalty program cannot be reached right now, so the balance is not known."
        else:
            email = None if member is None else email
    return render_template(
        "award.html",
        connection=connection,
        shown=named(room, connection),
        link=link,
        email=email,
        member=member,
        trouble=trouble,
        cannot=_cannot(member, connection),
        # A key that verified names a customer; who is unknown now has been deleted in the program or here.
        gone=key is not None and email is None,
        may_give_credit=bool(connection.rules.max_credit_cents_per_award)
        and connection.store.program is not ProgramKind.LEDGER,
        max_reason=MAX_REASON,
        typed=_typed(room, connection.id),
        helpdesk=room.settings.gorgias_base(connection.account_name),
        may_award=True,
    )


def _cannot(member: Member | None, connection: Connection) -> str:
    """Why this member can receive nothing; empty when they can."""
    if member is None or member.status is MemberStatus.MEMBER:
        return ""
    if member.status is MemberStatus.EXCLUDED:
        return refusal_sentence(AwardRefused(Refusal.MEMBER_EXCLUDED)).removesuffix(" Nothing was added.")
    if connection.rules.allow_guests:
        return ""
    return refusal_sentence(AwardRefused(Refusal.MEMBER_GUEST)).removesuffix(" Nothing was added.")


def _asked(link: Link, key: AwardKey, *, connection_id: int, agent_email: str | None) -> AwardRequest:
    """The award that the form asks for. Raises BadRequest."""
    form = request.form
    # A preset stands on its own, whatever was typed beside it.
    preset = form.get("preset")
    amounts = {"points": form.get("points", ""), "store_credit": form.get("store_credit", "")}
    fields = read_award(
        {**({"points": preset} if preset else amounts), "reason": form.get("reason", ""), "ticket_id": link.ticket_id}
    )
    return AwardRequest(
        emails=(),
        points=fields.points,
        credit_cents=fields.credit_cents,
        reason=fields.reason,
        key=key,
        origin=Origin(
            connection_id=connection_id,
            channel=CHANNEL,
            ticket_id=fields.ticket_id,
            agent_email=agent_email,
            agent_proven=True,
        ),
    )


def _not_added(room: ConsoleRoom, connection_id: int, link: Link, reason: str, sentence: str) -> ResponseReturnValue:
    """Back to the form, which says why and still has what was typed."""
    g.outcome = reason
    AWARDS.labels(reason).inc()
    log.info("award", outcome=reason, channel=CHANNEL)
    flash(sentence, "error")
    _keep_typed(room, connection_id)
    return redirect(link.address(connection_id), code=303)


def _sentence(award: AwardRecord) -> str:
    """What became of an award, as it stands now."""
    if award.state is AwardState.REJECTED:
        return refusal_sentence(AwardRefused(Refusal.PROGRAM_REFUSED, told=award.told))
    applied = award.state is AwardState.APPLIED
    said = result_sentence(
        AwardResult(
            status=Status.APPLIED if applied else Status.BEING_CONFIRMED,
            points=award.points,
            credit_cents=award.credit_cents,
            points_balance=award.balance_after,
            balance_is_new=award.balance_after is not None,
            operation_id=award.operation_id,
            in_review=award.state is AwardState.NEEDS_REVIEW,
        )
    )
    return f"{said} It was taken back since." if award.is_undone else said


def _read_link(given: Mapping[str, Any]) -> Link:
    """What came with the link. What Gorgias did not fill in arrives empty or as `{{…}}`, and is empty here."""
    key = re.fullmatch(r"[A-Za-z0-9_-]{1,100}", given.get("award_key", ""))
    ticket = re.fullmatch(r"0*([0-9]{1,20})", given.get("ticket_id", ""))
    return Link(award_key=key[0] if key else "", ticket_id=ticket[1] if ticket else "")


def _verified(room: ConsoleRoom, connection_id: int, link: Link) -> AwardKey | None:
    if connection_id >= 2**63:
        return None
    return award_key.verify(link.award_key, hasher=room.hasher, connection_id=connection_id)


def _new_key(room: ConsoleRoom, connection_id: int, member_hmac: str) -> str:
    return award_key.mint(
        hasher=room.hasher,
        connection_id=connection_id,
        member_hmac=member_hmac,
        now=room.now(),
        random_bytes=room.random_bytes,
    )


def _sealed(room: ConsoleRoom, connection_id: int, link: Link) -> str:
    return seal_return_to(link.address(connection_id), sealer=room.sealer)


def _sign_in(room: ConsoleRoom, connection: Connection, link: Link) -> Response:
    """To the connection's own helpdesk, which says who it is, and back to this very page."""
    return redirect(
        url_for("oauth.install", account=connection.account_name, return_to=_sealed(room, connection.id, link)),
        code=303,
    )


def _to_result(connection_id: int, operation_id: str) -> Response:
    return redirect(url_for("console.awarded", connection_id=connection_id, operation_id=operation_id), code=303)


def _keep_typed(room: ConsoleRoom, connection_id: int) -> None:
    typed = {name: request.form.get(name, "")[:most] for name, most in TYPED.items() if request.form.get(name)}
    kept = json.dumps({"connection_id": connection_id, **typed}, ensure_ascii=False)
    session["typed_award"] = room.sealer.seal(kept)


def _typed(room: ConsoleRoom, connection_id: int) -> dict[str, Any]:
    """What was typed and could not be taken, once."""
    sealed = session.pop("typed_award", None)
    if sealed is None:
        return {}
    try:
        typed: dict[str, Any] = json.loads(room.sealer.open(sealed))
    except CannotOpen:
        return {}
    return typed if typed.get("connection_id") == connection_id else {}
