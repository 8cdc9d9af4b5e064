"""The merchant's pages. Server-rendered, work without JavaScript; every POST ends in 303.

Here are the ways in and out; the other modules add the rest to the same blueprint.
"""

from __future__ import annotations

import structlog
from flask import Blueprint, abort, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.activity import add_activity, review_url
from console.award_page import add_award_page
from console.by_hand import add_by_hand, tell_left_over
from console.changes import Change, add_changes, record
from console.charts import add_charts
from console.connection import add_connection
from console.export import add_export
from console.inspector import add_inspector
from console.naming import all_named
from console.notice_address import add_notice_address
from console.programs import add_programs, choose_page
from console.room import ConsoleRoom, Outcome
from loyalty import ledger
from oauth.sign_in import end_session
from widget.placement import PlacementFailed
from widget.sentences import counted

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
    add_export(console, room)
    add_charts(console, room)
    add_award_page(console, room)
    add_inspector(console, room)
    add_changes(console, room)
    add_notice_address(console, room)
    add_by_hand(console, room)

    return console


def _add_ways_in_and_out(console: Blueprint, room: ConsoleRoom) -> None:
    @console.get("/")
    def landing() -> ResponseReturnValue:
        return render_template("landing.html", typed=request.args.get("account", "")[:100])

    @console.get("/connections/")
    def connections() -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        if visitor.is_admin:
            tell_left_over(room, account)
        found = all_named(room, account.id)
        if not found:
            return choose_page(room, account, may_change=visitor.is_admin)
        ids = [shown.connection.id for shown in found if shown.in_review]
        return render_template(
            "connections.html",
            all_shown=found,
            review_urls={connection_id: review_url(room, connection_id) for connection_id in ids},
            troubles=room.troubles.of_account(account.id),
            notice_host=room.notices.host(account.id),
            may_change=visitor.is_admin,
        )

    @console.post("/oauth/disconnect")
    def disconnect() -> ResponseReturnValue:
        # Leaving must be possible when our access is gone already.
        visitor, account = who.admin(room, last_known_role=True)
        try:
            farewell = room.leaving.disconnect(account.id)
        except PlacementFailed as error:
            g.outcome = error.problem
            flash(f"{error} The account is still connected; press Disconnect again to go on.", "error")
            return redirect(url_for("console.connections"), code=303)
        record(room, visitor, Change.ACCOUNT_DISCONNECTED)
        end_session()
        g.outcome = Outcome.LEFT_OVER if farewell.by_hand or farewell.not_revoked else Outcome.DONE
        log.info("disconnect", outcome=g.outcome)
        flash(f"{account.name} is disconnected. Members, points and the history of awards are kept.", "done")
        days = counted(room.settings.forget_after_disconnect_days, "day")
        flash(f"What is personal in them is erased after {days}, unless you connect again before.", "done")
        if farewell.stores_erased:
            flash("The key of Rivo, its webhook secret and all that was remembered of its members are erased here. "
                  "Choose Rivo with the same key to go on with the history.", "done")  # fmt: skip
        if farewell.by_hand:
            flash("Delete these by hand in Gorgias: " + "; ".join(farewell.by_hand), "error")
        if farewell.not_revoked:
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
