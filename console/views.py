"""The merchant's pages. Server-rendered, work without JavaScript; every POST ends in 303.

Anyone of the helpdesk who has signed in may look; only a helpdesk admin may change or disconnect, and their role is
read again when it is older than fifteen minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import requests
import structlog
from flask import Blueprint, abort, flash, g, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import SQLAlchemyError

from loyalty import ledger
from loyalty.activity import PAGE, recent_awards
from loyalty.awards import AwardRefused, Awards, Origin, Rules
from loyalty.program import ProgramKind
from oauth.accounts import Account, Accounts, AccountState
from oauth.gorgias_api import GorgiasApi, GorgiasError, GorgiasReason
from oauth.sign_in import Visitor, current_visitor, end_session, lost_access, with_fresh_role
from schemas.console import BadForm, read_connection_form
from settings import Settings
from storage.database import Database
from storage.sealing import CannotOpen, Sealer
from telemetry import REQUESTS
from widget.connections import Connection, Connections, ConnectionState
from widget.placement import Finding, Placement, PlacementFailed
from widget.proof import NotProven, look_up
from widget.sentences import refusal_sentence, result_sentence
from widget.template import macro_variables

# Characters of a refused settings form that are shown again; a cookie holds 4 kB in all.
MAX_KEPT_FORM = 1_500

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class ConsoleRoom:
    """What this room needs from the front door."""

    settings: Settings
    database: Database
    accounts: Accounts
    connections: Connections
    placement: Placement
    http: requests.Session
    awards: Awards
    sealer: Sealer
    csrf: CSRFProtect
    api_for: Callable[[int, str], GorgiasApi]
    now: Callable[[], datetime]


class Outcome(StrEnum):
    """How a request to the console ended; where a room below has a word for it, that word counts instead."""

    SHOWN = "shown"
    DONE = "done"
    FORM_INVALID = "form_invalid"
    FORM_TOO_OLD = "form_too_old"
    SIGN_IN_NEEDED = "sign_in_needed"
    ADMIN_NEEDED = "admin_needed"
    ROLE_UNREADABLE = "role_unreadable"
    ACCESS_LOST = "access_lost"
    LEFT_OVER = "left_over"
    NOT_HERE = "not_here"


class SignInNeeded(Exception):
    """Nobody is signed in."""


class AdminNeeded(Exception):
    """The person is signed in but is no helpdesk admin."""


class RoleUnreadable(Exception):
    """Gorgias did not tell the person's role just now."""


class AccessLost(Exception):
    """Gorgias no longer lets us read the person's role; only connecting anew helps."""


def create_blueprint(room: ConsoleRoom) -> Blueprint:
    """Landing, connections, activity and disconnect."""
    console = Blueprint("console", __name__, template_folder="templates", static_folder="static",
                        static_url_path="/static")  # fmt: skip

    @console.before_request
    def protect() -> None:
        if request.method == "POST":
            # First who it is: a form sent after the session ended deserves the true reason.
            if request.endpoint != "console.sign_out":
                _signed_in(room)
            room.csrf.protect()

    # For every page, not only this room's: a refusal or an error has a header too.
    @console.app_context_processor
    def who() -> dict[str, Any]:
        try:
            visitor, account = _signed_in(room)
        except (SignInNeeded, SQLAlchemyError):
            # The page that tells of trouble with the database must not itself fail for want of a name.
            return {"visitor": None, "account": None}
        return {"visitor": visitor, "account": account}

    @console.after_request
    def count(response: Any) -> Any:
        REQUESTS.labels(str(request.url_rule), g.get("outcome", Outcome.SHOWN)).inc()
        return response

    @console.get("/")
    def landing() -> ResponseReturnValue:
        return render_template("landing.html", typed=request.args.get("account", "")[:100])

    @console.get("/connections/")
    def connections() -> ResponseReturnValue:
        visitor, account = _signed_in(room)
        found = room.connections.of_account(account.id)
        if not found:
            return render_template("choose_program.html", may_change=visitor.is_admin)
        return render_template("connections.html", connections=found, may_change=visitor.is_admin)

    @console.get("/connections/new")
    def add() -> ResponseReturnValue:
        visitor, _ = _signed_in(room)
        return render_template("choose_program.html", may_change=visitor.is_admin)

    @console.post("/connections/")
    def choose() -> ResponseReturnValue:
        _, account = _admin(room)
        if request.form.get("program") != ProgramKind.LEDGER:
            g.outcome = Outcome.FORM_INVALID
            flash("Choose a program first.", "error")
            return redirect(url_for("console.add"), code=303)
        defaults = room.settings
        with room.database.write() as tx:
            store = ledger.open_store(tx, identity=ledger.identity_for(account.name), now=room.now())
            connection_id = room.connections.open(
                tx,
                account_id=account.id,
                store=store,
                rules=Rules(
                    max_points_per_award=defaults.max_points_per_award,
                    max_points_per_agent_per_day=defaults.max_points_per_agent_per_day,
                    max_points_per_day=defaults.max_points_per_connection_per_day,
                ),
            )
        return _placed(room, connection_id, done="Connected. Everything is in place in Gorgias.")

    @console.get("/connections/<int:connection_id>")
    def connection(connection_id: int) -> ResponseReturnValue:
        visitor, account = _signed_in(room)
        found = _own(room, account, connection_id)
        return _connection_page(room, visitor, account, found)

    @console.post("/connections/<int:connection_id>/lookup")
    def try_lookup(connection_id: int) -> ResponseReturnValue:
        _, account = _signed_in(room)
        _own(room, account, connection_id)
        # An e-mail must not stand in an address: it travels to the next page sealed, in the session.
        session["tested_email"] = room.sealer.seal(request.form.get("email", "")[:400])
        return redirect(url_for("console.connection", connection_id=connection_id, _anchor="lookup"), code=303)

    @console.post("/connections/<int:connection_id>/settings")
    def save_settings(connection_id: int) -> ResponseReturnValue:
        _, account = _admin(room)
        found = _own(room, account, connection_id)
        try:
            form = read_connection_form(request.form)
        except BadForm as error:
            g.outcome = Outcome.FORM_INVALID
            for fault in error.faults:
                flash(fault, "fault")
            typed = {name: value for name, value in request.form.items() if name != "csrf_token"}
            # The session is a cookie, and browsers drop large ones: better to lose what was typed than the session.
            if len(json.dumps(typed)) <= MAX_KEPT_FORM:
                session["typed_settings"] = {"connection_id": connection_id, **typed}
            return redirect(url_for("console.connection", connection_id=connection_id, _anchor="settings"), code=303)
        room.connections.save_settings(
            connection_id,
            rules=Rules(
                max_points_per_award=form.max_points_per_award,
                max_points_per_agent_per_day=form.max_points_per_agent_per_day,
                max_points_per_day=form.max_points_per_day,
                reasons=form.reasons,
                allow_guests=form.allow_guests,
            ),
            presets=form.presets,
            show_date_of_birth=form.show_date_of_birth,
        )
        ledger.save_storefront(room.database, found.store, url=form.storefront_url)
        return _placed(room, connection_id, done="Saved.")

    @console.post("/connections/<int:connection_id>/repair")
    def repair(connection_id: int) -> ResponseReturnValue:
        _, account = _admin(room)
        _own(room, account, connection_id)
        return _placed(
            room,
            connection_id,
            restore=True,
            done="Repaired. New activity on a ticket brings the card back there.",
        )

    @console.post("/connections/<int:connection_id>/keys")
    def rotate_keys(connection_id: int) -> ResponseReturnValue:
        _, account = _admin(room)
        _own(room, account, connection_id)
        try:
            room.placement.rotate_keys(connection_id)
            g.outcome = Outcome.DONE
            flash("New keys are in place and the old ones have ended. Agents reload their open tickets.", "done")
        except PlacementFailed as error:
            g.outcome = error.problem
            flash(f"{error} Until then the old keys go on working.", "error")
        return redirect(url_for("console.connection", connection_id=connection_id), code=303)

    @console.get("/connections/<int:connection_id>/activity")
    def activity(connection_id: int) -> ResponseReturnValue:
        visitor, account = _signed_in(room)
        found = _own(room, account, connection_id)
        records = recent_awards(
            room.database,
            sealer=room.sealer,
            connection_id=connection_id,
            before=request.args.get("before"),
            limit=PAGE + 1,
        )
        older = records[PAGE - 1].operation_id if len(records) > PAGE else None
        return render_template(
            "activity.html",
            connection=found,
            records=records[:PAGE],
            older=older,
            may_change=visitor.is_admin,
            helpdesk=room.settings.gorgias_base(account.name),
        )

    @console.post("/connections/<int:connection_id>/awards/<operation_id>/undo")
    def undo(connection_id: int, operation_id: str) -> ResponseReturnValue:
        visitor, account = _admin(room)
        found = _own(room, account, connection_id)
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
        return redirect(url_for("console.activity", connection_id=connection_id), code=303)

    @console.post("/oauth/disconnect")
    def disconnect() -> ResponseReturnValue:
        # Leaving must be possible when our access is gone already.
        _, account = _admin(room, last_known_role=True)
        left: list[str] = []
        try:
            for found in room.connections.of_account(account.id):
                left += room.placement.remove(found.id)
        except PlacementFailed as error:
            g.outcome = error.problem
            flash(f"{error} The account is still connected; press Disconnect again to go on.", "error")
            return redirect(url_for("console.connections"), code=303)
        problem = room.accounts.disconnect(account.id)
        end_session()
        g.outcome = Outcome.DONE if not left and problem is None else Outcome.LEFT_OVER
        log.info("disconnect", outcome=g.outcome)
        flash(f"{account.name} is disconnected. Members, points and the history of awards are kept.", "done")
        if left:
            flash("Delete these by hand in Gorgias: " + "; ".join(left), "error")
        if problem is not None:
            flash("Gorgias could not be told to end our access; our copy of it is deleted. "
                  "Remove the app in Gorgias under Settings, App Store.", "error")  # fmt: skip
        return redirect(url_for("console.landing"), code=303)

    @console.post("/sign-out")
    def sign_out() -> ResponseReturnValue:
        end_session()
        g.outcome = Outcome.DONE
        flash("You are signed out.", "done")
        return redirect(url_for("console.landing"), code=303)

    @console.get("/r/<code>")
    def referral(code: str) -> ResponseReturnValue:
        """Where a referral link leads: to the shop, which learns the code."""
        storefront = ledger.storefront_of(room.database, referral_code=code)
        if storefront is None:
            abort(404)
        if not storefront:
            return render_template("referral.html")
        return redirect(f"{storefront}?ref={code}", code=302)

    @console.errorhandler(SignInNeeded)
    def sign_in_needed(_: SignInNeeded) -> ResponseReturnValue:
        g.outcome = Outcome.SIGN_IN_NEEDED
        if request.method == "POST":
            flash("Your session has ended. Sign in and try again; nothing was changed.", "error")
        return redirect(url_for("console.landing"), code=303)

    @console.errorhandler(AdminNeeded)
    def admin_needed(_: AdminNeeded) -> ResponseReturnValue:
        return _refused(Outcome.ADMIN_NEEDED, 403)

    @console.errorhandler(RoleUnreadable)
    def role_unreadable(_: RoleUnreadable) -> ResponseReturnValue:
        return _refused(Outcome.ROLE_UNREADABLE, 503)

    @console.errorhandler(AccessLost)
    def access_lost(_: AccessLost) -> ResponseReturnValue:
        return _refused(Outcome.ACCESS_LOST, 403)

    @console.errorhandler(CSRFError)
    def form_too_old(_: CSRFError) -> ResponseReturnValue:
        return _refused(Outcome.FORM_TOO_OLD, 400)

    return console


def _refused(outcome: Outcome, status: int) -> ResponseReturnValue:
    """The page that tells what happened and what to do, by its reason word."""
    g.outcome = outcome
    return render_template("refused.html", reason=outcome), status


def _signed_in(room: ConsoleRoom) -> tuple[Visitor, Account]:
    visitor = current_visitor(now=room.now())
    account = None if visitor is None else room.accounts.by_id(visitor.account_id)
    # Disconnected while the session lived: it ended with the connection.
    if visitor is None or account is None or account.state is AccountState.DISCONNECTED:
        raise SignInNeeded
    if visitor.signed_in_at < int(account.connected_at.timestamp()):
        raise SignInNeeded
    return visitor, account


def _admin(room: ConsoleRoom, *, last_known_role: bool = False) -> tuple[Visitor, Account]:
    """The signed-in admin. Raises SignInNeeded, AdminNeeded, RoleUnreadable or AccessLost.

    Without access to Gorgias there is no role to read. With `last_known_role` the one read last counts then.
    """
    visitor, account = _signed_in(room)
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


def _own(room: ConsoleRoom, account: Account, connection_id: int) -> Connection:
    """The connection, if it is this account's; to everyone else it does not exist."""
    found = room.connections.by_id(connection_id)
    if found is None or found.account_id != account.id or found.state is not ConnectionState.ACTIVE:
        g.outcome = Outcome.NOT_HERE
        abort(404)
    return found


def _placed(room: ConsoleRoom, connection_id: int, *, done: str, restore: bool = False) -> ResponseReturnValue:
    try:
        room.placement.ensure(connection_id, restore=restore)
        g.outcome = Outcome.DONE
        flash(done, "done")
    except PlacementFailed as error:
        g.outcome = error.problem
        flash(str(error), "error")
    return redirect(url_for("console.connection", connection_id=connection_id), code=303)


def _connection_page(
    room: ConsoleRoom, visitor: Visitor, account: Account, connection: Connection
) -> ResponseReturnValue:
    findings: list[Finding] = []
    trouble = ""
    try:
        findings = room.placement.inspect(connection)
    except PlacementFailed as error:
        trouble = str(error)
    account = room.accounts.by_id(account.id) or account
    sealed = session.pop("tested_email", None)
    tested_email, tested_card, tested_trouble = "", None, ""
    if sealed is not None:
        try:
            tested_email = room.sealer.open(sealed)
            tested_card = look_up(
                tested_email,
                connection=connection,
                connections=room.connections,
                public_url=room.settings.public_url,
                session=room.http,
            )
        except CannotOpen:
            tested_email = ""
        except NotProven as error:
            tested_trouble = str(error)
    integration_id = connection.placed.integration_id
    return render_template(
        "connection.html",
        connection=connection,
        account=account,
        reconnect=account.state is AccountState.NEEDS_REAUTH,
        findings=findings,
        trouble=trouble,
        variables={} if integration_id is None else macro_variables(integration_id),
        tested_email=tested_email,
        tested_card=tested_card,
        tested_trouble=tested_trouble,
        typed=_typed_settings(room, connection),
        helpdesk=room.settings.gorgias_base(account.name),
        recent=recent_awards(room.database, sealer=room.sealer, connection_id=connection.id, limit=5),
        may_change=visitor.is_admin,
    )


def _typed_settings(room: ConsoleRoom, connection: Connection) -> dict[str, Any]:
    """What the settings form shows: what was just typed and could not be kept, else what is kept."""
    typed: dict[str, Any] = session.pop("typed_settings", {})
    if typed.get("connection_id") == connection.id:
        return typed
    rules = connection.rules
    return {
        "max_points_per_award": rules.max_points_per_award,
        "max_points_per_agent_per_day": rules.max_points_per_agent_per_day,
        "max_points_per_day": rules.max_points_per_day,
        "presets": ", ".join(map(str, connection.presets)),
        "reasons": "\n".join(rules.reasons),
        "allow_guests": rules.allow_guests,
        "show_date_of_birth": connection.show_date_of_birth,
        "storefront_url": ledger.read_storefront(room.database, connection.store),
    }
