"""The merchant's pages. Server-rendered, work without JavaScript; every POST ends in 303.

Here are the ways in and out; the other modules add the rest to the same blueprint.
"""

from __future__ import annotations

from typing import Any

import structlog
from flask import Blueprint, abort, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.activity import add_activity, review_url
from console.connection import add_connection
from console.naming import all_named
from console.programs import add_programs, choose_page
from console.room import ConsoleRoom, Outcome
from loyalty import ledger
from loyalty.program import ProgramKind
from oauth.sign_in import end_session
from telemetry import REQUESTS
from widget.placement import PlacementFailed

log = structlog.get_logger()


def create_blueprint(room: ConsoleRoom) -> Blueprint:
    """Every page of the console."""
    console = Blueprint("console", __name__, template_folder="templates", static_folder="static",
                        static_url_path="/static")  # fmt: skip
    who.guard(console, room)
    _add_ways_in_and_out(console, room)
    add_programs(console, room)
    add_connection(console, room)
    add_activity(console, room)

    @console.after_request
    def count(response: Any) -> Any:
        REQUESTS.labels(str(request.url_rule), g.get("outcome", Outcome.SHOWN)).inc()
        return response

    return console


def _add_ways_in_and_out(console: Blueprint, room: ConsoleRoom) -> None:
    @console.get("/")
    def landing() -> ResponseReturnValue:
        return render_template("landing.html", typed=request.args.get("account", "")[:100])

    @console.get("/connections/")
    def connections() -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        found = all_named(room, account.id)
        if not found:
            return choose_page(room, account, may_change=visitor.is_admin)
        ids = [shown.connection.id for shown in found if shown.in_review]
        return render_template(
            "connections.html",
            all_shown=found,
            review_urls={connection_id: review_url(room, connection_id) for connection_id in ids},
            may_change=visitor.is_admin,
        )

    @console.post("/oauth/disconnect")
    def disconnect() -> ResponseReturnValue:
        # Leaving must be possible when our access is gone already.
        _, account = who.admin(room, last_known_role=True)
        left: list[str] = []
        try:
            for found in room.connections.of_account(account.id):
                left += room.placement.remove(found.id)
        except PlacementFailed as error:
            g.outcome = error.problem
            flash(f"{error} The account is still connected; press Disconnect again to go on.", "error")
            return redirect(url_for("console.connections"), code=303)
        finally:
            elsewhere = _forget_stores(room, account.id)
        problem = room.accounts.disconnect(account.id)
        end_session()
        g.outcome = Outcome.DONE if not left and problem is None else Outcome.LEFT_OVER
        log.info("disconnect", outcome=g.outcome)
        flash(f"{account.name} is disconnected. Members, points and the history of awards are kept.", "done")
        if elsewhere:
            flash("The key of Rivo, its webhook secret and all that was remembered of its members are erased here. "
                  "Choose Rivo with the same key to go on with the history.", "done")  # fmt: skip
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


def _forget_stores(room: ConsoleRoom, account_id: int) -> int:
    """Wipe secrets and snapshots of the stores that the account no longer shows; how many live elsewhere.

    Also of those that an earlier attempt to disconnect took out before it was broken off.
    """
    elsewhere = [store for store in room.connections.stores_left(account_id) if store.program is not ProgramKind.LEDGER]
    for store in elsewhere:
        room.stores.forget_secrets(store)
        room.snapshots.forget(store)
    return len(elsewhere)
