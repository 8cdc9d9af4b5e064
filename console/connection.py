"""One connection: the page that proves it, its settings, repair, and new keys for Gorgias."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from flask import Blueprint, flash, g, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from console import who
from console.activity import review_url
from console.changes import Change, differences, record
from console.naming import named
from console.room import ConsoleRoom, Outcome
from findings import Finding
from loyalty import ledger
from loyalty.activity import recent_awards
from loyalty.awards import Rules
from loyalty.program import ProgramKind
from oauth.accounts import Account, AccountState
from oauth.sign_in import Visitor
from schemas.console import FIELDS, BadForm, read_connection_form
from storage.sealing import CannotOpen
from widget.connections import Connection
from widget.placement import Part, PlacementFailed
from widget.proof import NotProven, look_up
from widget.template import card_title, macro_variables, rows_of

# Characters of a refused settings form that are shown again; a cookie holds 4 kB in all.
MAX_KEPT_FORM = 1_500


def add_connection(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>` and what its buttons post to."""

    @console.get("/connections/<int:connection_id>")
    def connection(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.signed_in(room)
        found = who.own(room, account, connection_id)
        return _page(room, visitor, account, found)

    @console.post("/connections/<int:connection_id>/lookup")
    def try_lookup(connection_id: int) -> ResponseReturnValue:
        _, account = who.signed_in(room)
        who.own(room, account, connection_id)
        # An e-mail must not stand in an address: it travels to the next page sealed, in the session.
        session["tested_email"] = room.sealer.seal(request.form.get("email", "")[:400])
        return redirect(url_for("console.connection", connection_id=connection_id, _anchor="lookup"), code=303)

    @console.post("/connections/<int:connection_id>/settings")
    def save_settings(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        found = who.own(room, account, connection_id)
        built_in = found.store.program is ProgramKind.LEDGER
        try:
            form = read_connection_form(request.form, built_in=built_in)
        except BadForm as error:
            g.outcome = Outcome.FORM_INVALID
            for fault in error.faults:
                flash(fault, "fault")
            typed = {name: value for name, value in request.form.items() if name in FIELDS}
            # The session is a cookie, and browsers drop large ones: better to lose what was typed than the session.
            if len(json.dumps(typed)) <= MAX_KEPT_FORM:
                session["typed_settings"] = {"connection_id": connection_id, **typed}
            return redirect(url_for("console.connection", connection_id=connection_id, _anchor="settings"), code=303)
        rules = Rules(
            max_points_per_award=form.max_points_per_award,
            max_points_per_agent_per_day=form.max_points_per_agent_per_day,
            max_points_per_day=form.max_points_per_day,
            reasons=form.reasons,
            allow_guests=form.allow_guests,
            max_credit_cents_per_award=form.max_credit_cents_per_award,
            max_credit_cents_per_day=form.max_credit_cents_per_day,
        )
        before = _settings(found.rules, found.presets, show_date_of_birth=found.show_date_of_birth)
        after = _settings(rules, form.presets, show_date_of_birth=form.show_date_of_birth)
        if built_in:
            before["storefront_url"] = ledger.read_storefront(room.database, found.store)
            after["storefront_url"] = form.storefront_url
        with room.database.write() as tx:
            room.connections.save_settings(
                tx, connection_id, rules=rules, presets=form.presets, show_date_of_birth=form.show_date_of_birth
            )
            details = {"changed": differences(before, after)}
            record(room, visitor, Change.SETTINGS_SAVED, connection_id=connection_id, details=details, tx=tx)
        if built_in:
            ledger.save_storefront(room.database, found.store, url=form.storefront_url)
        elif not form.show_date_of_birth:
            room.snapshots.forget_dates_of_birth(found.store)
        return placed(room, connection_id, done="Saved.")

    @console.post("/connections/<int:connection_id>/repair")
    def repair(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        who.own(room, account, connection_id)
        answer = placed(
            room,
            connection_id,
            restore=True,
            done="Repaired. New activity on a ticket brings the card back there.",
        )
        _record_pressed(room, visitor, Change.PLACEMENT_REPAIRED, connection_id=connection_id)
        return answer

    @console.post("/connections/<int:connection_id>/switch-on")
    def switch_on(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        who.own(room, account, connection_id)
        answer = placed(room, connection_id, done="The HTTP integration is switched on again.")
        _record_pressed(room, visitor, Change.INTEGRATION_SWITCHED_ON, connection_id=connection_id)
        return answer

    @console.post("/connections/<int:connection_id>/keys")
    def rotate_keys(connection_id: int) -> ResponseReturnValue:
        visitor, account = who.admin(room)
        who.own(room, account, connection_id)
        try:
            room.placement.rotate_keys(connection_id)
            record(room, visitor, Change.CONNECTION_KEYS_REPLACED, connection_id=connection_id)
            g.outcome = Outcome.DONE
            flash("New keys are in place and the old ones have ended. Agents reload their open tickets.", "done")
        except PlacementFailed as error:
            g.outcome = error.problem
            flash(f"{error} Until then the old keys go on working.", "error")
        return redirect(url_for("console.connection", connection_id=connection_id), code=303)


def placed(room: ConsoleRoom, connection_id: int, *, done: str, restore: bool = False) -> ResponseReturnValue:
    """Bring Gorgias to where it should be, and go to the connection's page, which says `done` or what went wrong."""
    try:
        room.placement.ensure(connection_id, restore=restore)
        g.outcome = Outcome.DONE
        flash(done, "done")
    except PlacementFailed as error:
        g.outcome = error.problem
        flash(str(error), "error")
    return redirect(url_for("console.connection", connection_id=connection_id), code=303)


def _record_pressed(room: ConsoleRoom, visitor: Visitor, what: Change, *, connection_id: int) -> None:
    """Keep that a button was pressed whose work Gorgias may not have let us finish; then with how it ended."""
    details = {} if g.outcome is Outcome.DONE else {"outcome": str(g.outcome)}
    record(room, visitor, what, connection_id=connection_id, details=details)


def _page(room: ConsoleRoom, visitor: Visitor, account: Account, connection: Connection) -> ResponseReturnValue:
    findings: list[Finding] = []
    trouble = ""
    try:
        findings = room.probe.see(connection)
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
    # After the lookup, which may have shown that the program refuses its key.
    shown = named(room, connection)
    room.probe.see_key(connection)
    troubles = [t for t in room.troubles.of_account(account.id) if t.connection_id == connection.id]
    all_of_account = room.connections.of_account(account.id)
    return render_template(
        "connection.html",
        connection=connection,
        shown=shown,
        built_in=connection.store.program is ProgramKind.LEDGER,
        several=len(all_of_account) > 1,
        has_rivo=any(other.store.program is ProgramKind.RIVO for other in all_of_account),
        review_url=review_url(room, connection.id) if shown.in_review else "",
        webhook_url=f"{room.settings.public_url}/rivo/webhooks/{connection.id}",
        account=account,
        reconnect=account.state is AccountState.NEEDS_REAUTH,
        findings=findings,
        trouble=trouble,
        since={known.finding: known.since for known in troubles},
        last_seen=[known for known in troubles if trouble and known.finding in tuple(Part)],
        switched_off=any(finding.id == Part.INTEGRATION_ENABLED and not finding.well for finding in findings),
        variables={} if integration_id is None else macro_variables(integration_id),
        card_title=card_title(connection),
        card_rows=rows_of(connection),
        tested_email=tested_email,
        tested_card=tested_card,
        tested_trouble=tested_trouble,
        typed=_typed_settings(room, connection),
        helpdesk=room.settings.gorgias_base(account.name),
        recent=recent_awards(room.database, sealer=room.sealer, connection_id=connection.id, limit=5),
        may_change=visitor.is_admin,
        forget_after_days=room.settings.forget_after_disconnect_days,
    )


def _settings(rules: Rules, presets: Sequence[int], *, show_date_of_birth: bool) -> dict[str, Any]:
    """What the settings form holds, by its names, as plain values."""
    return {
        "max_points_per_award": rules.max_points_per_award,
        "max_points_per_agent_per_day": rules.max_points_per_agent_per_day,
        "max_points_per_day": rules.max_points_per_day,
        "max_store_credit_per_award": _amount(rules.max_credit_cents_per_award),
        "max_store_credit_per_day": _amount(rules.max_credit_cents_per_day),
        "reasons": list(rules.reasons),
        "presets": list(presets),
        "allow_guests": rules.allow_guests,
        "show_date_of_birth": show_date_of_birth,
    }


def _typed_settings(room: ConsoleRoom, connection: Connection) -> dict[str, Any]:
    """What the settings form shows: what was just typed and could not be kept, else what is kept."""
    typed: dict[str, Any] = session.pop("typed_settings", {})
    if typed.get("connection_id") == connection.id:
        return typed
    rules = connection.rules
    shown = {
        "max_points_per_award": rules.max_points_per_award,
        "max_points_per_agent_per_day": rules.max_points_per_agent_per_day,
        "max_points_per_day": rules.max_points_per_day,
        "presets": ", ".join(map(str, connection.presets)),
        "reasons": "\n".join(rules.reasons),
        "allow_guests": rules.allow_guests,
        "show_date_of_birth": connection.show_date_of_birth,
    }
    if connection.store.program is ProgramKind.LEDGER:
        return {**shown, "storefront_url": ledger.read_storefront(room.database, connection.store)}
    return {
        **shown,
        "max_store_credit_per_award": _amount(rules.max_credit_cents_per_award),
        "max_store_credit_per_day": _amount(rules.max_credit_cents_per_day),
    }


def _amount(cents: int) -> str:
    """As it is typed: `5.00`; empty when there is none."""
    return f"{Decimal(cents) / 100:.2f}" if cents else ""
