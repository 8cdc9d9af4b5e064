"""Who may do what: anyone of the helpdesk who has signed in may look, only its admins may change or disconnect.

An admin's role is read again when it is older than fifteen minutes. A connection of another account does not exist.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError

from console.room import ConsoleRoom, Outcome
from oauth.accounts import Account, AccountState
from oauth.gorgias_api import GorgiasError, GorgiasReason
from oauth.sign_in import Visitor, current_visitor, lost_access, with_fresh_role
from storage.trouble import TROUBLE
from widget.connections import Connection, ConnectionState


class SignInNeeded(Exception):
    """Nobody is signed in."""


class AdminNeeded(Exception):
    """The person is signed in but is no helpdesk admin."""


class LeftHelpdesk(Exception):
    """Gorgias knows no such person in this helpdesk any more."""


class RoleUnreadable(Exception):
    """Gorgias did not tell the person's role just now."""


class AccessLost(Exception):
    """Gorgias no longer lets us read the person's role; only connecting anew helps."""


def signed_in(room: ConsoleRoom) -> tuple[Visitor, Account]:
    """The person of this request and their account. Raises SignInNeeded."""
    visitor = current_visitor(now=room.now())
    account = None if visitor is None else room.accounts.by_id(visitor.account_id)
    # Disconnected while the session lived: it ended with the connection.
    if visitor is None or account is None or account.state is AccountState.DISCONNECTED:
        raise SignInNeeded
    if visitor.signed_in_at < int(account.connected_at.timestamp()):
        raise SignInNeeded
    return visitor, account


def admin(room: ConsoleRoom, *, last_known_role: bool = False) -> tuple[Visitor, Account]:
    """The signed-in admin. Raises SignInNeeded, AdminNeeded, RoleUnreadable or AccessLost.

    Without access to Gorgias there is no role to read. With `last_known_role` the one read last counts then.
    """
    visitor, account = signed_in(room)
    try:
        visitor = with_fresh_role(visitor, api=room.api_for(account.id, account.name), now=room.now())
    except GorgiasError as error:
        # Forbidden: the person who connected may no longer read users. Waiting helps neither.
        if not lost_access(error) and error.reason is not GorgiasReason.FORBIDDEN:
            raise RoleUnreadable from error
        if not last_known_role:
            raise AccessLost from error
    if not visitor.is_admin:
        raise AdminNeeded
    return visitor, account


def agent(room: ConsoleRoom) -> tuple[Visitor, Account]:
    """The signed-in person, whatever their role in the helpdesk, as long as they have one. Raises SignInNeeded,
    LeftHelpdesk or RoleUnreadable.

    Where Gorgias no longer lets us read roles, the one read last counts: the card's buttons go on then, too.
    """
    visitor, account = signed_in(room)
    try:
        visitor = with_fresh_role(visitor, api=room.api_for(account.id, account.name), now=room.now())
    except GorgiasError as error:
        if not lost_access(error) and error.reason is not GorgiasReason.FORBIDDEN:
            raise RoleUnreadable from error
    if not visitor.role:
        raise LeftHelpdesk
    return visitor, account


def own(room: ConsoleRoom, account: Account, connection_id: int) -> Connection:
    """The connection, if it is this account's; to everyone else it does not exist."""
    found = room.connections.by_id(connection_id)
    if found is None or found.account_id != account.id or found.state is not ConnectionState.ACTIVE:
        g.outcome = Outcome.NOT_HERE
        abort(404)
    return found


def guard(console: Blueprint, room: ConsoleRoom) -> None:
    """Check every form before it is acted on, and answer whoever may not."""

    @console.before_request
    def protect() -> None:
        if request.method == "POST":
            # First who it is: a form sent after the session ended deserves the true reason.
            if request.endpoint != "console.sign_out":
                signed_in(room)
            room.csrf.protect()

    # For every page, not only this room's: a refusal or an error has a header too.
    @console.app_context_processor
    def who() -> dict[str, Any]:
        try:
            visitor, account = signed_in(room)
        except (SignInNeeded, *TROUBLE):
            # The page that tells of trouble with the database must not itself fail for want of a name.
            return {"visitor": None, "account": None}
        return {"visitor": visitor, "account": account}

    @console.errorhandler(SignInNeeded)
    def sign_in_needed(_: SignInNeeded) -> ResponseReturnValue:
        g.outcome = Outcome.SIGN_IN_NEEDED
        if request.method == "POST":
            flash("Your session has ended. Sign in and try again; nothing was changed.", "error")
        return redirect(url_for("console.landing"), code=303)

    @console.errorhandler(AdminNeeded)
    def admin_needed(_: AdminNeeded) -> ResponseReturnValue:
        return _refused(Outcome.ADMIN_NEEDED, 403)

    @console.errorhandler(LeftHelpdesk)
    def left_helpdesk(_: LeftHelpdesk) -> ResponseReturnValue:
        return _refused(Outcome.LEFT_HELPDESK, 403)

    @console.errorhandler(RoleUnreadable)
    def role_unreadable(_: RoleUnreadable) -> ResponseReturnValue:
        return _refused(Outcome.ROLE_UNREADABLE, 503)

    @console.errorhandler(AccessLost)
    def access_lost(_: AccessLost) -> ResponseReturnValue:
        return _refused(Outcome.ACCESS_LOST, 403)

    @console.errorhandler(CSRFError)
    def form_too_old(_: CSRFError) -> ResponseReturnValue:
        return _refused(Outcome.FORM_TOO_OLD, 400)


def _refused(outcome: Outcome, status: int) -> ResponseReturnValue:
    """The page that tells what happened and what to do, by its reason word."""
    g.outcome = outcome
    return render_template("refused.html", reason=outcome), status
