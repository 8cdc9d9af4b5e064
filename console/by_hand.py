"""What has to be deleted in Gorgias by hand, for a merchant whose helpdesk no longer lets us in to do it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, flash

from console.room import ConsoleRoom
from oauth.accounts import Account, AccountState
from widget.connections import Connection
from widget.template import integration_name, macro_name


def add_by_hand(console: Blueprint, room: ConsoleRoom) -> None:
    """`to_delete_by_hand(account)`, for whichever page asks to connect again."""

    @console.app_context_processor
    def by_hand() -> dict[str, Any]:
        return {"to_delete_by_hand": lambda account: _to_delete(room, account)}


def tell_left_over(room: ConsoleRoom, account: Account) -> None:
    """Say on this page, and never again, what an uninstall left behind; once the account is connected again."""
    if account.left_over and account.state is AccountState.CONNECTED:
        for line in room.accounts.take_left_over(account.id):
            flash(line, "left_over")


def _to_delete(room: ConsoleRoom, account: Account) -> list[str]:
    """All that is ours in this helpdesk, as far as is known here: what it is, its number and its name there."""
    placed = [line for connection in room.connections.of_account(account.id) for line in _placed(connection)]
    return [*account.left_over, *placed]


def _placed(connection: Connection) -> list[str]:
    placed = connection.placed
    found = {
        f"HTTP integration {placed.integration_id}, “{integration_name(connection)}”": placed.integration_id,
        f"widget {placed.ticket_widget_id}, the card on tickets": placed.ticket_widget_id,
        f"widget {placed.customer_widget_id}, the card on customers": placed.customer_widget_id,
        f"macro {placed.macro_id}, “{macro_name(connection)}”": placed.macro_id,
    }
    return [line for line, number in found.items() if number is not None]
